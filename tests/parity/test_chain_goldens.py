"""Sentence-transformers chains and PyLate models against their own libraries' numbers, over 48 texts.

The goldens: record_chains.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints_chains import CHAINS, build_chain
from embedder_cases import TEXTS

from actors import ComputeSpec, EmbedderSpec, load_embedder
from actors.embedders.base import Embedder
from actors.outputs import MultiVectors, SparseVectors

HERE = Path(__file__).resolve().parent
TASKS = ("query", "document")
QUERIES = slice(4, 12)


def embed(model: Embedder, task: str) -> Any:
    batch = model.embed_queries(TEXTS) if task == "query" else model.embed_corpus(TEXTS)
    return {"dense": batch.dense, "sparse": batch.sparse, "colbert": batch.colbert}[model.outputs[0]]


def close(ours: npt.ArrayLike, golden: npt.ArrayLike, what: str) -> None:
    np.testing.assert_allclose(ours, golden, atol=2e-5, rtol=1e-6, err_msg=what)  # SPLADE sums reach 100


def check_sparse(ours: SparseVectors, goldens: Any, task: str) -> None:
    np.testing.assert_array_equal(np.diff(ours.offsets), goldens[f"{task}_counts"])
    np.testing.assert_array_equal(ours.token_ids, goldens[f"{task}_tokens"])
    close(ours.weights, goldens[f"{task}_weights"], task)


def check_vectors(ours: MultiVectors, goldens: Any, task: str) -> None:
    np.testing.assert_array_equal(np.diff(ours.offsets), goldens[f"{task}_counts"])
    close(ours.vectors, goldens[task], task)


def scores(query: Any, document: Any, cosine: bool) -> npt.NDArray[np.float64]:
    """What the peer's own `similarity` or `rank` gives: cosine or dot product, or the sum of the best dot products."""
    if isinstance(query, SparseVectors):
        size = int(max(query.token_ids.max(), document.token_ids.max())) + 1
        return table(query, size)[QUERIES] @ table(document, size).T
    if isinstance(query, MultiVectors):
        return np.array([
            [(query.row(i) @ document.row(j).T).max(1).sum() if len(document.row(j)) else 0 for j in range(len(TEXTS))]
            for i in range(QUERIES.start, QUERIES.stop)
        ])  # fmt: skip
    if cosine:
        query, document = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (query, document))
    return np.asarray(query[QUERIES] @ document.T)


def table(rows: SparseVectors, size: int) -> npt.NDArray[np.float64]:
    found = np.zeros((len(rows), size))
    for i in range(len(rows)):
        ids, weights = rows.row(i)
        found[i, ids] = weights
    return found


@pytest.mark.parametrize("kind", CHAINS)
def test_a_folder_is_run_as_its_own_library_runs_it(kind: str, tmp_path: Path) -> None:
    folder = build_chain(kind, tmp_path / "model")
    model = load_embedder(EmbedderSpec(model=str(folder), compute=ComputeSpec(dtype="fp32", device="cpu")))
    goldens, found = np.load(HERE / f"chain_{kind}.npz"), {}
    for task in TASKS:
        tokens = model.tokenise(TEXTS, "query" if task == "query" else "passage")
        np.testing.assert_array_equal(tokens.lengths, goldens[f"{task}_ids_counts"], err_msg=task)
        np.testing.assert_array_equal(tokens.ids, goldens[f"{task}_ids"], err_msg=task)
        found[task] = embed(model, task)
        if isinstance(found[task], SparseVectors):
            check_sparse(found[task], goldens, task)
        elif isinstance(found[task], MultiVectors):
            check_vectors(found[task], goldens, task)
        else:
            close(found[task], goldens[task], task)
    ours, golden = scores(found["query"], found["document"], cosine=True), goldens["scores"]
    np.testing.assert_allclose(ours, golden, atol=2e-5 * max(1.0, float(np.abs(golden).max())), rtol=0)
