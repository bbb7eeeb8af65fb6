"""Prints the worst difference from its own library for every tiny checkpoint with a golden, as a table.

    python -m benchmarks.parity_table

Embedders are compared with sentence-transformers 6.2 and PyLate 1.6 over 48 texts, as queries and as documents;
cross-encoders with sentence-transformers' `predict` over 14 pairs, Qwen3-Reranker with its model card. fp32, CPU.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).resolve().parent.parent / "tests"
PARITY = TESTS / "parity"
sys.path[:0] = [str(TESTS), str(PARITY)]

from checkpoints_chains import CHAINS, build_chain
from checkpoints_cross_encoders import CROSS_ENCODERS, build_cross_encoder, pairs_of
from embedder_cases import TEXTS

from actors import ComputeSpec, EmbedderSpec, load_embedder
from actors.outputs import MultiVectors, SparseVectors
from actors.rerankers.registry import load_reranker

FP32 = ComputeSpec(dtype="fp32", device="cpu")


def embedder_difference(kind: str, folder: Path) -> tuple[str, float, float]:
    """Returns the model class, the largest absolute difference and the largest value."""
    model = load_embedder(EmbedderSpec(model=str(build_chain(kind, folder)), compute=FP32))
    goldens, worst, largest = np.load(PARITY / f"chain_{kind}.npz"), 0.0, 0.0
    for task in ("query", "document"):
        batch = model.embed_queries(TEXTS) if task == "query" else model.embed_corpus(TEXTS)
        found: Any = {"dense": batch.dense, "sparse": batch.sparse, "colbert": batch.colbert}[model.outputs[0]]
        golden = goldens[f"{task}_weights" if isinstance(found, SparseVectors) else task]
        ours = found.weights if isinstance(found, SparseVectors) else found
        ours = ours.vectors if isinstance(ours, MultiVectors) else ours
        worst = max(worst, float(np.abs(ours - golden).max()))
        largest = max(largest, float(np.abs(golden).max()))
    return str(model.spec.model_class), worst, largest


def reranker_difference(kind: str, folder: Path) -> tuple[str, float, float]:
    reranker = load_reranker(str(build_cross_encoder(kind, folder)), compute=FP32)
    golden = np.load(PARITY / f"cross_encoder_{kind.lower().replace('-', '_')}.npz")["scores"]
    scores = np.array(reranker.compute_score(pairs_of(kind)))
    return "reranker", float(np.abs(scores - golden).max()), float(np.abs(golden).max())


def rows() -> Iterator[tuple[str, str, float, float]]:
    for kinds, measure in ((CHAINS, embedder_difference), (CROSS_ENCODERS, reranker_difference)):
        for kind in kinds:
            with tempfile.TemporaryDirectory() as folder:
                found, worst, largest = measure(kind, Path(folder) / kind)
                yield kind, found, worst, largest


def main() -> None:
    print("| checkpoint | class | worst difference | largest value |\n|---|---|---|---|")
    for kind, found, worst, largest in rows():
        print(f"| {kind} | {found} | {worst:.1e} | {largest:.3g} |", flush=True)


if __name__ == "__main__":
    main()
