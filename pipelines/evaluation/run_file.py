"""Reads and writes run files: a ranking per query, in TREC's six columns or in JSON Lines with the same names.

Which of the two a file holds is told by its lines when it is read, and by its suffix (`.jsonl`) when it is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipelines.config import ConfigError
from pipelines.evaluation.lines import parse_json_object, read_lines

DocumentScores = Mapping[str, float]
BLANKS_IN_IDS = re.compile(r"(?P<query>.+?) +Q0 +(?P<document>.+) +\d+ +(?P<score>\S+) +\S+")
"""A line parted by blanks whose ids hold blanks, too; other programs write such lines."""


def read_run(path: str | Path, depth: int | None = None) -> dict[str, list[str]]:
    """Reads a ranking per query: document ids, best first, at most `depth` of them.

    A line is `query Q0 document rank score tag`, or JSON with `query_id`, `doc_id` and optionally `score`. Order is by
    score; where there are none, or equal ones, it is the order of the lines. ConfigError names the line at fault.
    """
    found: dict[str, dict[str, float]] = {}
    for number, line in read_lines(path):
        query, document, score = _parse_line(Path(path), number, line)
        ranking = found.setdefault(query, {})
        if document in ranking:
            raise ConfigError(f"{path} line {number}: document {document!r} is there twice for query {query!r}")
        ranking[document] = score
    if not found:
        raise ConfigError(f"{path}: holds no ranking")
    return {query: sorted(r, key=r.__getitem__, reverse=True)[:depth] for query, r in found.items()}


def _parse_line(path: Path, number: int, line: str) -> tuple[str, str, float]:
    if line.lstrip().startswith("{"):
        return _json_entry(path, number, line)
    try:
        query, document, score = _trec_columns(line.strip())
        return query, document, float(score)
    except ValueError as error:
        raise ConfigError(_format_error(path, number, line)) from error


def _trec_columns(line: str) -> tuple[str, str, str]:
    """Returns query, document and score of a line of six columns; ValueError for another number of columns."""
    columns = line.split("\t") if line.count("\t") == 5 else line.split()
    if len(columns) != 6:
        found = BLANKS_IN_IDS.fullmatch(line)
        if found is None:
            raise ValueError(f"{len(columns)} columns")
        return found["query"], found["document"], found["score"]
    query, _, document, _, score, _ = columns
    return query, document, score


def _json_entry(path: Path, number: int, line: str) -> tuple[str, str, float]:
    row = parse_json_object(path, number, line, "expected JSON with query_id and doc_id: ")
    try:
        return str(row["query_id"]), str(row["doc_id"]), float(row.get("score", 0.0))
    except KeyError as error:
        raise ConfigError(f"{path} line {number}: has no {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(_format_error(path, number, line)) from error


def _format_error(path: Path, number: int, line: str) -> str:
    return (
        f"{path} line {number}: expected `query Q0 document rank score tag` or JSON with query_id and doc_id, "
        f"got {line.strip()[:60]!r}"
    )


def write_run(path: str | Path, rankings: Iterable[tuple[str, DocumentScores]], tag: str = "tridex") -> None:
    """Writes (query id, document id -> score) rankings, best first; the file appears only when complete.

    Columns are parted by blanks, in lines with an id that holds one by tabs. ConfigError names an id with a tab or a
    line break, which only JSON Lines can hold.
    """
    path = Path(path)
    entry = _json_line if path.suffix == ".jsonl" else _trec_line
    unfinished = path.with_name(f".{path.name}.writing")
    with unfinished.open("w", encoding="utf-8") as file:
        for query, ranking in rankings:
            best = sorted(ranking.items(), key=lambda item: -item[1])
            for rank, (document, score) in enumerate(best, start=1):
                file.write(entry(query, document, rank, score, tag))
    unfinished.replace(path)


def _json_line(query: str, document: str, rank: int, score: float, tag: str) -> str:
    row = {"query_id": query, "doc_id": document, "rank": rank, "score": score, "tag": tag}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _trec_line(query: str, document: str, rank: int, score: float, tag: str) -> str:
    for name in (query, document):
        if any(character in name for character in "\t\r\n"):
            raise ConfigError(f"run: the id {name!r} holds a tab or a line break; write a file that ends in .jsonl")
    blank = "\t" if any(character.isspace() for character in query + document + tag) else " "
    return blank.join((query, "Q0", document, str(rank), f"{score:.8g}", tag)) + "\n"
