"""Records the goldens of sentence-transformers chains and PyLate models. From the repository root, in two environments:

    python tests/parity/record_chains.py sentence-transformers [KIND ...]   # 6.2 on transformers 5.23
    python tests/parity/record_chains.py pylate [KIND ...]                  # 1.6 on transformers 5.3

PyLate reads checkpoints that the other environment has written (`--checkpoints FOLDER`), because its older transformers
lack some of the architectures' configurations.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from embedder_cases import TEXTS  # noqa: E402

Arrays = dict[str, Any]
QUERIES = TEXTS[4:12]


def _pack(name: str, rows: list[Any]) -> Arrays:
    """Ragged rows as counts and values."""
    rows = [np.asarray(row) for row in rows]
    return {f"{name}_counts": np.array([len(row) for row in rows], np.int32), name: np.concatenate(rows)}


def _ids(model: Any, task: str, prompt: str | None) -> Arrays:
    """Token ids that go into the model, padding left out."""
    rows = []
    for text in TEXTS:
        features = model.preprocess([text], prompt=prompt, task=task)
        if "offsets" in features:  # a StaticEmbedding: one row of ids, no padding
            rows.append(features["input_ids"].numpy().astype(np.int32))
            continue
        ids = features["input_ids"][0].numpy()
        kept = features["attention_mask"][0].numpy().astype(bool)
        if "query_expansion_positions" in features:
            kept |= features["query_expansion_positions"][0].numpy()
        rows.append(ids[kept].astype(np.int32))
    return _pack(f"{task}_ids", rows)


def _prompt(model: Any, task: str) -> str | None:
    names = ("query",) if task == "query" else ("document", "passage", "corpus")
    found = next((name for name in names if name in model.prompts), None)
    return model.prompts[found] if found else model.prompts.get(model.default_prompt_name)


def _sparse(task: str, tensor: Any) -> Arrays:
    table = tensor.to_dense().numpy()
    rows, ids = np.nonzero(table)
    counts = np.bincount(rows, minlength=len(table)).astype(np.int32)
    return {f"{task}_counts": counts, f"{task}_tokens": ids.astype(np.int32), f"{task}_weights": table[rows, ids]}


def record_sentence_transformers(folder: Path) -> Arrays:
    import json

    from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder

    stored = folder / "config_sentence_transformers.json"
    unnamed = "SentenceTransformer" if (folder / "modules.json").exists() else "MultiVectorEncoder"
    family = json.loads(stored.read_text())["model_type"] if stored.exists() else unnamed
    classes = {"SentenceTransformer": SentenceTransformer, "SparseEncoder": SparseEncoder}
    model: Any = classes.get(family, MultiVectorEncoder)(str(folder), device="cpu")
    encode = {"query": model.encode_query, "document": model.encode_document}
    arrays: Arrays = {}
    for task, method in encode.items():
        arrays |= _ids(model, task, _prompt(model, task))
        if family == "SentenceTransformer":
            arrays[task] = method(TEXTS, batch_size=1)
        elif family == "SparseEncoder":
            arrays |= _sparse(task, method(TEXTS, batch_size=1))
        else:
            arrays |= _pack(task, [vectors.numpy() for vectors in method(TEXTS, batch_size=1, convert_to_numpy=False)])
    scores = model.similarity(encode["query"](QUERIES, batch_size=1), encode["document"](TEXTS, batch_size=1))
    return {**arrays, "scores": np.asarray(scores.to_dense() if scores.is_sparse else scores)}


def record_pylate(folder: Path) -> Arrays:
    from pylate import models, rank

    model = models.ColBERT(str(folder), device="cpu")
    arrays: Arrays = {}
    for task, is_query in (("query", True), ("document", False)):
        features = [model.tokenize([text], is_query=is_query) for text in TEXTS]
        rows = [f["input_ids"][0].numpy().astype(np.int32) for f in features]
        arrays |= _pack(f"{task}_ids", rows)
        arrays |= _pack(task, model.encode(TEXTS, is_query=is_query, batch_size=1, show_progress_bar=False))
    queries, documents = (model.encode(texts, is_query=q, batch_size=1, show_progress_bar=False)
                          for texts, q in ((QUERIES, True), (TEXTS, False)))  # fmt: skip
    scores = np.zeros((len(QUERIES), len(TEXTS)), np.float32)
    for j, document in enumerate(documents):  # together, a shorter one would be padded with zeros, which can score best
        found = rank.rerank([[j]] * len(QUERIES), queries, [[document]] * len(QUERIES))
        scores[:, j] = [ranking[0]["score"] for ranking in found]
    return {**arrays, "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=["sentence-transformers", "pylate"])
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--checkpoints", type=Path)
    given = parser.parse_args()
    record = record_pylate if given.library == "pylate" else record_sentence_transformers
    for kind in given.kinds or _kinds(given.library, given.checkpoints):
        with tempfile.TemporaryDirectory() as made:
            arrays = record(given.checkpoints / kind if given.checkpoints else _build(kind, Path(made)))
            np.savez_compressed(HERE / f"chain_{kind}.npz", **arrays)


def _kinds(library: str, checkpoints: Path | None) -> list[str]:
    if checkpoints is not None:
        found = sorted(path.name for path in checkpoints.iterdir())
        return [kind for kind in found if kind.startswith("pylate") == (library == "pylate")]
    from checkpoints_chains import PYLATE, SENTENCE_TRANSFORMERS

    return list(PYLATE if library == "pylate" else SENTENCE_TRANSFORMERS)


def _build(kind: str, folder: Path) -> Path:
    from checkpoints_chains import build_chain

    return build_chain(kind, folder)


if __name__ == "__main__":
    main()
