"""Reads training data for heads: labelled pairs, BEIR folders or plain text, each as a `Source`.

Each source is sampled to a size that fits minutes, not hours: its queries first, then their passages, then others
until the passage limit, so that mined negatives come from a real collection. Queries of one passage stay on one
side of the development split; otherwise the split would measure memory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from actors.outputs import IntArray

Rng = np.random.Generator
CROP_WORDS = (4, 14)
"""Length of a query cropped from a passage; the passage keeps the words."""


@dataclass(frozen=True, slots=True)
class Source:
    """Holds queries, the passages they are searched among, and for each query the rows of its passages.

    negatives: rows that the data calls wrong answers, possibly none.
    """

    name: str
    queries: list[str]
    passages: list[str]
    positives: list[list[int]]
    negatives: list[list[int]]

    def __len__(self) -> int:
        return len(self.queries)


def read_source(path: Path, limit: int, passage_limit: int, rng: Rng) -> Source:
    """Reads pairs (.jsonl with query, positive, optional negatives; or FlagEmbedding's query, pos, neg), a BEIR folder,
    or unlabelled text (.parquet, .txt, .jsonl with text and optional title, or a folder of those).

    Raises ValueError that names the file and line at fault.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.is_dir() and (path / "queries.jsonl").is_file():
        source = _beir(path)
    elif path.suffix == ".jsonl" and "query" in _first_row(path):
        source = _pairs(path)
    else:
        source = _crop_queries(path, limit, passage_limit, rng)
    _check(source, path)
    return _sample_queries(source, limit, passage_limit, rng)


def split(source: Source, share: float, rng: Rng) -> tuple[IntArray, IntArray]:
    """Splits query rows for training and for development; all queries of one passage go to the same side."""
    keys = np.array([rows[0] for rows in source.positives])
    distinct = rng.permutation(np.unique(keys))
    held = np.isin(keys, distinct[: max(1, round(share * len(distinct)))])
    return np.flatnonzero(~held), np.flatnonzero(held)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number} is a {type(row).__name__}, expected an object")
            yield number, row


def _first_row(path: Path) -> dict[str, Any]:
    return next((row for _, row in _rows(path)), {})


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        shown = "missing" if value is None else "empty" if value == "" or isinstance(value, str) else repr(value)[:40]
        raise ValueError(f"{where}: {key} is {shown}, expected text")
    return value


def _texts(row: dict[str, Any], key: str, where: str) -> list[str]:
    texts = row.get(key) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where}: {key} must be a list of texts without empty ones")
    return texts


class _Rows(dict[str, int]):
    """Numbers texts, each text once."""

    def of(self, text: str) -> int:
        return self.setdefault(text, len(self))


def _pairs(path: Path) -> Source:
    rows, queries, positives, negatives = _Rows(), [], [], []
    for number, row in _rows(path):
        where = f"{path}:{number}"
        queries.append(_text(row, "query", where))
        right = _texts(row, "pos", where) if "pos" in row else [_text(row, "positive", where)]
        if not right:
            raise ValueError(f"{where}: pos is empty, expected at least one text")
        positives.append([rows.of(text) for text in right])
        negatives.append([rows.of(text) for text in _texts(row, "neg" if "pos" in row else "negatives", where)])
    return Source(path.stem, queries, list(rows), positives, negatives)


def _beir(folder: Path) -> Source:
    """Reads `queries.jsonl` and `qrels.tsv` in the folder, `corpus.jsonl` in it or in its parent (a train/ beside
    test)."""
    corpus = next((p for p in (folder / "corpus.jsonl", folder.parent / "corpus.jsonl") if p.is_file()), None)
    if corpus is None or not (folder / "qrels.tsv").is_file():
        raise ValueError(f"{folder} needs qrels.tsv, and corpus.jsonl in it or in its parent")
    documents = {str(row.get("_id")): _document(row) for _, row in _rows(corpus)}
    at = {key: i for i, key in enumerate(documents)}
    judged = _qrels(folder / "qrels.tsv", at)
    judged_queries = [
        (row, judged[key]) for _, row in _rows(folder / "queries.jsonl") if (key := str(row.get("_id"))) in judged
    ]
    queries = [_text(row, "text", f"{folder / 'queries.jsonl'}, query {row['_id']}") for row, _ in judged_queries]
    return Source(
        "-".join(folder.parts[-2:]),
        queries,
        list(documents.values()),
        [rows for _, rows in judged_queries],
        [[] for _ in judged_queries],
    )


def _document(row: dict[str, Any]) -> str:
    return f"{row.get('title') or ''} {row.get('text') or ''}".strip()


def _qrels(path: Path, at: dict[str, int]) -> dict[str, list[int]]:
    judged: dict[str, list[int]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for number, fields in enumerate(csv.reader(lines, delimiter="\t"), 1):
            if number == 1 and fields and fields[-1] == "score":
                continue
            if len(fields) != 3:
                raise ValueError(f"{path}:{number} has {len(fields)} fields, expected query-id, corpus-id, score")
            query, document, score = fields
            if document not in at:
                raise ValueError(f"{path}:{number}: corpus-id {document!r} is not in the corpus")
            if float(score) > 0:
                judged.setdefault(query, []).append(at[document])
    return judged


def _crop_queries(path: Path, limit: int, passage_limit: int, rng: Rng) -> Source:
    """Makes queries from plain text: half of them are spans cropped from a passage, half its title if it has one."""
    texts = list(dict.fromkeys((title.strip(), text) for title, text in _documents(path) if text.strip()))
    texts = [texts[i] for i in np.sort(rng.permutation(len(texts))[:passage_limit])]
    queries: list[str] = []
    positives: list[list[int]] = []
    for row in rng.permutation(len(texts)):
        title, text = texts[row]
        query = title if title and len(queries) % 2 else _crop_span(text, rng)
        if query is not None and len(queries) < limit:
            queries.append(query)
            positives.append([int(row)])
    return Source(path.stem, queries, [text for _, text in texts], positives, [[] for _ in queries])


def _crop_span(text: str, rng: Rng) -> str | None:
    """Crops a span of the text, or None if the text is too short for a span that is not most of it."""
    words = text.split()
    length = int(rng.integers(CROP_WORDS[0], CROP_WORDS[1] + 1))
    if len(words) < 2 * length:
        return None
    start = int(rng.integers(0, len(words) - length + 1))
    return " ".join(words[start : start + length])


def _documents(path: Path) -> Iterator[tuple[str, str]]:
    """Reads (title or "", text) of every document."""
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if file.suffix == ".parquet":
            yield from _parquet(file)
        elif file.suffix == ".jsonl":
            yield from ((str(row.get("title") or ""), _text(row, "text", f"{file}:{n}")) for n, row in _rows(file))
        elif file.suffix == ".txt":
            yield from (("", part) for part in file.read_text(encoding="utf-8").split("\n\n"))
        else:
            raise ValueError(f"{file}: unknown kind of file, expected .parquet, .jsonl or .txt")


def _parquet(file: Path) -> Iterator[tuple[str, str]]:
    names = pq.read_schema(file).names
    if "text" not in names:
        raise ValueError(f"{file} has no column text; it has {', '.join(names)}")
    table = pq.read_table(file, columns=[name for name in ("title", "text") if name in names])
    texts = table.column("text").to_pylist()
    titles = table.column("title").to_pylist() if "title" in names else [""] * len(texts)
    yield from ((title or "", text or "") for title, text in zip(titles, texts, strict=True))


def _check(source: Source, path: Path) -> None:
    """Raises ValueError if there is nothing to train on or nothing can be held out."""
    if not source.queries:
        raise ValueError(f"{path} gives no pairs")
    distinct = {(query, rows[0]) for query, rows in zip(source.queries, source.positives, strict=True)}
    if len(distinct) == 1:
        what = "is a single pair" if len(source) == 1 else f"holds {len(source)} pairs that are all the same"
        raise ValueError(f"{path} {what}: nothing separates right passages from wrong ones")
    if len({rows[0] for rows in source.positives}) < 2:
        raise ValueError(f"{path}: all {len(source)} queries have the same passage, so there are no wrong ones")


def _sample_queries(source: Source, limit: int, passage_limit: int, rng: Rng) -> Source:
    chosen = np.sort(rng.permutation(len(source))[:limit])
    needed = sorted({row for i in chosen for row in source.positives[i] + source.negatives[i]})
    others = np.setdiff1d(np.arange(len(source.passages)), needed)
    room = max(0, passage_limit - len(needed))
    kept = np.sort(np.concatenate([np.array(needed, np.int64), rng.permutation(others)[:room]]))
    at = {int(row): i for i, row in enumerate(kept)}
    return Source(
        source.name,
        [source.queries[i] for i in chosen],
        [source.passages[row] for row in kept],
        [[at[row] for row in source.positives[i]] for i in chosen],
        [[at[row] for row in source.negatives[i]] for i in chosen],
    )
