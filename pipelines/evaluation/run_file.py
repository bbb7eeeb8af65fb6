"""Run files: which documents a search found for each query. TREC's six columns, or JSON Lines with the same names.

Which of the two a file holds is told by its lines when it is read, and by its suffix (`.jsonl`) when it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.config import ConfigError

DocumentScores = Mapping[str, float]


def read_run(path: str | Path, depth: int | None = None) -> dict[str, list[str]]:
    """Query id to document ids, best first, at most `depth` of them.

    A line is `query Q0 document rank score tag`, or JSON with `query_id`, `doc_id` and optionally `score`. Order is by
    score; where there are none, or equal ones, it is the order of the lines. ConfigError names the line at fault.
    """
    found: dict[str, dict[str, float]] = {}
    for number, line in _lines(Path(path)):
        query, document, score = _entry(Path(path), number, line)
        ranking = found.setdefault(query, {})
        if document in ranking:
            raise ConfigError(f"{path} line {number}: document {document!r} is there twice for query {query!r}")
        ranking[document] = score
    if not found:
        raise ConfigError(f"{path}: holds no ranking")
    return {query: sorted(r, key=r.__getitem__, reverse=True)[:depth] for query, r in found.items()}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error


def _entry(path: Path, number: int, line: str) -> tuple[str, str, float]:
    try:
        if line.lstrip().startswith("{"):
            row = json.loads(line)
            return str(row["query_id"]), str(row["doc_id"]), float(row.get("score", 0.0))
        query, _, document, _, score, _ = line.split()
        return query, document, float(score)
    except KeyError as error:
        raise ConfigError(f"{path} line {number}: has no {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} line {number}: expected `query Q0 document rank score tag` or JSON with query_id and doc_id, "
            f"got {line.strip()[:60]!r}"
        ) from error


def write_run(path: str | Path, rankings: Iterable[tuple[str, DocumentScores]], tag: str = "tridex") -> None:
    """Writes (query id, document id -> score) rankings, best first; the file appears when it is complete."""
    path = Path(path)
    entry = _json_line if path.suffix == ".jsonl" else _trec_line
    unfinished = path.with_name(f".{path.name}.writing")
    with unfinished.open("w", encoding="utf-8") as file:
        for query, ranking in rankings:
            best = sorted(ranking.items(), key=lambda item: -item[1])
            file.writelines(entry(query, best, rank, tag) for rank in range(len(best)))
    unfinished.replace(path)


def _json_line(query: str, best: Sequence[tuple[str, float]], rank: int, tag: str) -> str:
    document, score = best[rank]
    row = {"query_id": query, "doc_id": document, "rank": rank + 1, "score": score, "tag": tag}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _trec_line(query: str, best: Sequence[tuple[str, float]], rank: int, tag: str) -> str:
    document, score = best[rank]
    return f"{query} Q0 {document} {rank + 1} {score:.8g} {tag}\n"
