"""What a user would write: Ray Data `map_batches` over blocks of 1,000 documents, two actors of one core each.

The peer encodes each block at its defaults, so it pads within the block, and runs the first batch of every block twice.
Time is counted inside the actors, from the first block's start to the last one's end, without loading; CPU seconds are
reported beside it because they depend less on what else the machine does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from actors.outputs import matrix_to_arrow
from actors.spec import OUTPUTS, EmbedderSpec
from benchmarks import peers, shapes

ROWS = 1000
Clocked = dict[str, Any]


class Stage:
    """A block of texts in, one row of times out; the columns are made as for writing, then dropped."""

    def __init__(self, make: Callable[[], Callable[[list[str]], dict[str, pa.Array]]]) -> None:
        self.columns = make()
        self.columns(["a text to warm up with"] * 4)

    def __call__(self, block: pa.Table) -> pa.Table:
        texts = block["text"].to_pylist()
        start, cpu = time.time(), time.process_time()
        columns = self.columns(texts)
        assert all(len(column) == len(texts) for column in columns.values())
        times = {"start": start, "end": time.time(), "cpu": time.process_time() - cpu}
        return pa.table({name: [value] for name, value in times.items()})


def our_stage(folder: Path, kind: str, longest: int, dtype: str) -> Callable[[], Any]:
    def make() -> Callable[[list[str]], dict[str, pa.Array]]:
        from actors.embedders.registry import load_embedder
        from actors.spec import ComputeSpec

        spec = EmbedderSpec(
            model="all-MiniLM-L6-v2" if kind == "minilm" else str(folder), model_class="encoder-only-m3",
            pooling="mean" if kind == "minilm" else "cls", passage_max_length=longest,
            compute=ComputeSpec(dtype=dtype, device="cpu"),
        )  # fmt: skip
        embedder = load_embedder(spec)
        outputs = OUTPUTS if kind == "m3" else ("dense",)
        return lambda texts: embedder.embed_corpus(texts, outputs).to_arrow("m")

    return make


def flag_stage(folder: Path, kind: str, longest: int) -> Callable[[], Any]:
    def make() -> Callable[[list[str]], dict[str, pa.Array]]:
        if kind != "m3":
            encode = peers.flag(folder, kind, ("dense",), longest, None)
            return lambda texts: {"dense": matrix_to_arrow(encode(texts)["dense"])}
        from FlagEmbedding import BGEM3FlagModel

        model = BGEM3FlagModel(
            str(folder), use_fp16=False, devices="cpu", passage_max_length=longest, return_sparse=True,
            return_colbert_vecs=True,
        )  # fmt: skip
        return lambda texts: _m3_columns(model.encode(texts))

    return make


def _m3_columns(result: dict[str, Any]) -> dict[str, pa.Array]:
    """The kindest conversion: ColBERT by one concatenation, not by Python lists."""
    vectors = result["colbert_vecs"]
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in vectors])]).astype(np.int32)
    sparse = [{"indices": list(map(int, row)), "values": list(row.values())} for row in result["lexical_weights"]]
    kind = pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])
    return {
        "dense": matrix_to_arrow(result["dense_vecs"]),
        "sparse": pa.array(sparse, kind),
        "colbert": pa.ListArray.from_arrays(pa.array(offsets), matrix_to_arrow(np.concatenate(vectors))),
    }


def run(stage: Callable[[], Any], texts: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one pass over the blocks."""
    import ray

    table = pa.table({"text": texts})
    blocks = [table.slice(start, ROWS) for start in range(0, len(table), ROWS)]
    times = (
        ray.data.from_arrow(blocks)
        .map_batches(
            Stage, fn_constructor_args=(stage,), batch_size=ROWS, batch_format="pyarrow", num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=2),
        )
        .to_pandas()
    )  # fmt: skip
    return float(times["end"].max() - times["start"].min()), float(times["cpu"].sum())


def alone(stage: Callable[[], Any]) -> Callable[[list[str]], tuple[float, float]]:
    """The same blocks and columns in this process, without Ray."""
    actor = Stage(stage)

    def timed(texts: list[str]) -> tuple[float, float]:
        table = pa.table({"text": texts})
        parts = [actor(table.slice(start, ROWS)).to_pylist()[0] for start in range(0, len(table), ROWS)]
        return sum(part["end"] - part["start"] for part in parts), sum(part["cpu"] for part in parts)

    return timed


def on_ray(stage: Callable[[], Any]) -> Callable[[list[str]], tuple[float, float]]:
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        ray.data.DataContext.get_current().enable_progress_bars = False
    return lambda texts: run(stage, texts)


def used(kind: str, longest: int, blocks: int, rounds: int, layers: int | None, dtype: str, ray: bool) -> None:
    corpus = shapes.corpus("linux-doc")
    rng = np.random.default_rng(0)
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = shapes.checkpoint(kind, Path(scratch), layers)
        place = on_ray if ray else alone
        stages = place(our_stage(folder, kind, longest, dtype)), place(flag_stage(folder, kind, longest))
        for _ in range(rounds):
            texts = [corpus[row] for row in rng.choice(len(corpus), blocks * ROWS, replace=False)]
            mine, theirs = (timed(texts) for timed in stages)
            ratios.append(np.array(theirs) / np.array(mine))
            print(
                f"tridex {mine[0]:.1f} s, CPU {mine[1]:.1f} s; FlagEmbedding {theirs[0]:.1f} s, {theirs[1]:.1f} s",
                flush=True,
            )
    found = np.array(ratios)
    wall, cpu = (f"{np.median(x):.2f} [{x.min():.2f}-{x.max():.2f}]" for x in found.T)
    where = "Ray Data, two actors" if ray else f"one process, {torch.get_num_threads()} threads"
    print(f"{kind} as used, {where}, {dtype}, {blocks} blocks of {ROWS}, {rounds} rounds")
    print(f"faster than FlagEmbedding at its defaults: wall {wall}, CPU {cpu}")
