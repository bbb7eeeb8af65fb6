"""Every encoder of the benchmark as one function: texts in, numpy out, tokenising included.

Peers run as their documentation says, at the settings that were fastest for them on a CPU: batches of 32 sorted by
length, fp32, and bf16 where the peer offers it. FlagEmbedding computes in fp32 on a CPU whatever is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from actors.embedders.registry import load_embedder
from actors.spec import ComputeSpec, DType, EmbedderSpec, Output

Encode = Callable[[list[str]], dict[str, np.ndarray]]
SIZE = 32


@dataclass
class Subject:
    """One encoder. `excluded`: seconds of a call that are not counted (FlagEmbedding's repeated first batch)."""

    name: str
    encode: Encode
    clock: Callable[[], float]
    excluded: float = 0.0
    seconds: list[float] = field(default_factory=list)
    left_out: list[float] = field(default_factory=list)

    def timed(self, texts: list[str]) -> dict[str, np.ndarray]:
        self.excluded = 0.0
        start = self.clock()
        result = self.encode(texts)
        self.seconds.append(self.clock() - start - self.excluded)
        self.left_out.append(self.excluded)
        return result


def ours(folder: Path, kind: str, dtype: DType, outputs: tuple[Output, ...], longest: int, threads: int) -> Encode:
    pooling = {"minilm": "mean", "qwen3": "last_token"}.get(kind, "cls")
    spec = EmbedderSpec(
        model="all-MiniLM-L6-v2" if kind == "minilm" else str(folder),
        model_class="decoder-only-base" if kind == "qwen3" else "encoder-only-m3",
        pooling=pooling, passage_max_length=longest, compute=ComputeSpec(dtype=dtype, device="cpu", threads=threads),
    )  # fmt: skip
    embedder = load_embedder(spec)

    def encode(texts: list[str]) -> dict[str, np.ndarray]:
        batch = embedder.embed_corpus(texts, outputs)
        colbert = {} if batch.colbert is None else {"colbert": batch.colbert.vectors}
        return {"dense": batch.dense, **colbert}

    return encode


def sentence_transformers(folder: Path, dtype: torch.dtype, longest: int) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    model.max_seq_length = longest
    return lambda texts: {"dense": model.encode(texts, batch_size=SIZE, show_progress_bar=False)}


def plain_transformers(folder: Path, dtype: torch.dtype, longest: int) -> Encode:
    """AutoModel over batches sorted by length, mean pooling."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def encode(texts: list[str]) -> dict[str, np.ndarray]:
        rows = tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        dense = np.empty((len(rows), model.config.hidden_size), np.float32)
        for start in range(0, len(rows), SIZE):
            part = order[start : start + SIZE]
            batch = tokenizer.pad({"input_ids": [rows[i] for i in part]}, return_tensors="pt")
            hidden, mask = model(**batch).last_hidden_state.float(), batch["attention_mask"][..., None]
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            dense[part] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return {"dense": dense}

    return encode


def flag(folder: Path, kind: str, outputs: tuple[Output, ...], longest: int, size: int | None) -> Encode:
    """FlagEmbedding's class for this kind; `size` None leaves its default batch size."""
    from FlagEmbedding import BGEM3FlagModel, FlagLLMModel, FlagModel

    options = {"use_fp16": False, "devices": "cpu", "passage_max_length": longest}
    options |= {} if size is None else {"batch_size": size}
    if outputs != ("dense",):
        wanted = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
        m3 = BGEM3FlagModel(str(folder), **options, **wanted)
        encode = lambda texts: _m3_arrays(m3.encode(texts))  # noqa: E731
        encode.module = m3.model
        return encode
    model = FlagLLMModel(str(folder), **options) if kind == "qwen3" else FlagModel(
        str(folder), pooling_method="mean" if kind == "minilm" else "cls", **options
    )  # fmt: skip
    encode = lambda texts: {"dense": model.encode(texts)}  # noqa: E731
    encode.module = model.model
    return encode


def _m3_arrays(result: dict) -> dict[str, np.ndarray]:
    return {"dense": result["dense_vecs"], "colbert": np.concatenate(result["colbert_vecs"])}


def without_first_pass(subject: Subject) -> Subject:
    """Leaves FlagEmbedding's probe, the first forward pass of every call, out of the subject's time."""
    module: torch.nn.Module = subject.encode.module  # type: ignore[attr-defined]
    started: list[float] = []

    def before(*_: object) -> None:
        started.append(subject.clock())

    def after(*_: object) -> None:
        if subject.excluded == 0.0:
            subject.excluded = subject.clock() - started[-1]

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
    return subject


CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
