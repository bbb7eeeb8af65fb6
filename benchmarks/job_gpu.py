"""The whole job on one card through Ray: its tokens a second against the bare encoder's, and where the actor waits.

    python benchmarks/job_gpu.py --model BAAI/bge-m3 shards/*.parquet      # columns `id` and `text`
    python benchmarks/job_gpu.py --toy                                     # the same in two minutes, on a CPU

Bare: the model embeds the same texts in blocks, tokenised before, in this process; nothing is stored. Job: `tridex
build` with one actor on the card (codec rotated_sign: a sixteenth of the bytes leaves it). The job's clock runs from
the first fragment to the last, so that the start of Ray and of the model is left out. The goal is .95 of bare.
Utilisation is sampled once a second where NVIDIA's library is there (`pip install nvidia-ml-py`). The wait is the
actor's own: the time between the end of a block and the beginning of the next.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch


def bare_rate(model: str, paths: list[str], rows: int) -> float:
    """Tokens a second of the encoder alone, tokenising left out."""
    from actors.codecs.device_codec import DeviceCodec
    from actors.embedders.registry import load_embedder
    from actors.spec import EmbedderSpec

    embedder = load_embedder(EmbedderSpec(model=model))
    codec = None if embedder.compute.device.type == "cpu" else DeviceCodec("rotated_sign")
    texts = [text for path in paths for text in pq.read_table(path, columns=["text"])["text"].to_pylist()]
    blocks = [embedder.tokenise(texts[start : start + rows]) for start in range(0, len(texts), rows)]
    embedder.embed_tokens(blocks[0], device_codec=codec)
    began = time.perf_counter()
    for tokens in blocks:
        embedder.embed_tokens(tokens, device_codec=codec)
    return sum(int(tokens.lengths.sum()) for tokens in blocks) / (time.perf_counter() - began)


class Utilisation(threading.Thread):
    """Samples the card's utilisation once a second; no samples without NVIDIA's library or a card."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[int] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            card = pynvml.nvmlDeviceGetHandleByIndex(0)
        except Exception:  # no library, no driver: the figure is left out
            return
        while not self.stopped.wait(1.0):
            self.samples.append(int(pynvml.nvmlDeviceGetUtilizationRates(card).gpu))


def log_blocks() -> None:
    """Runs in every worker: an actor's waits and blocks go to a file as well as to Prometheus."""
    from pipelines.monitor import metrics

    observe = metrics.observe_seconds

    def logged(name: str, seconds: float, *tags: str) -> None:
        observe(name, seconds, *tags)
        if name in ("wait_seconds", "block_seconds"):
            with Path(os.environ["TRIDEX_BLOCK_LOG"]).open("a") as file:
                file.write(f"{name} {seconds}\n")

    metrics.observe_seconds = logged


def run_job(model: str, paths: list[str], gpus: float) -> dict[str, Any]:
    """Tokens a second of the job, the actor's seconds in blocks and between them, and the card's utilisation."""
    import ray

    from pipelines.config import load_config
    from pipelines.indexing.build import build_index
    from pipelines.monitor.runlog import RunLog

    points: list[tuple[float, int]] = []
    note = RunLog.note

    def noted(self: RunLog, record: dict[str, object], progress: object) -> None:
        note(self, record, progress)  # type: ignore[arg-type]
        points.append((time.time(), self.seen.n_tokens))

    utilisation = Utilisation()
    utilisation.start()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "blocks.log"
        log.touch()
        hook = {"worker_process_setup_hook": log_blocks, "env_vars": {"TRIDEX_BLOCK_LOG": str(log)}}
        settings = [
            "index.fragment_bytes=4000000", "ray.progress=false", f"embedders.0.model={model}",
            "embedders.0.codec.colbert=rotated_sign", f"embedders.0.pool.num_gpus={gpus}",
            "embedders.0.pool.max_size=1",
        ]  # fmt: skip
        config = load_config(None, settings, input={"paths": paths}, index={"uri": f"{folder}/index"})
        RunLog.note = noted  # type: ignore[method-assign]
        cpus = (os.cpu_count() or 1) + 1
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, runtime_env=hook,
            _node_ip_address="127.0.0.1",
        )  # fmt: skip
        try:
            build_index(config)
        finally:
            ray.shutdown()
            RunLog.note = note  # type: ignore[method-assign]
        lines = [line.split() for line in log.read_text().splitlines()]
    utilisation.stopped.set()
    (began, before), (ended, after) = points[0], points[-1]
    waits, blocks = ([float(s) for name, s in lines if name == kind] for kind in ("wait_seconds", "block_seconds"))
    return {
        "tokens_per_second": (after - before) / max(1e-9, ended - began),
        "blocks": len(blocks),
        "wait_seconds_median": float(np.median(waits)) if waits else None,
        "wait_share": sum(waits) / max(1e-9, sum(waits) + sum(blocks)),
        "utilisation": float(np.mean(utilisation.samples)) if utilisation.samples else None,
    }


def toy_shards(folder: Path) -> list[str]:
    """Two shards of short texts."""
    words = ("river", "panda", "forest", "stone", "cloud", "bamboo")
    paths = []
    for shard in range(2):
        ids = [f"{shard}-{i}" for i in range(1500)]
        texts = [" ".join(words[(i * k) % 6] for k in range(1, 5 + i % 9)) for i in range(1500)]
        paths.append(str(folder / f"{shard}.parquet"))
        pq.write_table(pa.table({"id": ids, "text": texts}), paths[-1], row_group_size=250)
    return paths


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", help="Parquet files with columns id and text")
    parser.add_argument("--model", default="BAAI/bge-m3")
    parser.add_argument("--toy", action="store_true", help="the packaged model on a few made-up texts, on a CPU")
    parser.add_argument("--json", type=Path, default=None)
    asked = parser.parse_args(arguments)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - spelled so in Ray
    with tempfile.TemporaryDirectory() as folder:
        paths = toy_shards(Path(folder)) if asked.toy else sorted(asked.paths)
        if not paths:
            parser.error("give Parquet files, or --toy")
        model = "all-MiniLM-L6-v2" if asked.toy else asked.model
        bare = bare_rate(model, paths, 1000)
        figures = run_job(model, paths, float(torch.cuda.is_available()))
    figures |= {"bare_tokens_per_second": bare, "job_of_bare": figures["tokens_per_second"] / bare}
    print("\n".join(f"{name:<24} {value}" for name, value in figures.items()))
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
