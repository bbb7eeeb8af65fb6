"""Reads judged queries: BEIR (queries.jsonl, qrels.tsv) and TREC (tab-separated topics, four-column qrels).

Files are told apart by their lines, not by their names. A line that fits no format is an error with its number: a
judgement that is skipped in silence changes every figure that follows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.config import ConfigError

Qrels = dict[str, dict[str, int]]


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error


def read_queries(path: str | Path) -> dict[str, str]:
    """Query id to text, in file order. JSON Lines with `_id` (or `id`) and `text`, or `id<TAB>text`."""
    queries: dict[str, str] = {}
    for number, line in _lines(path):
        query_id, text = _json_query(path, number, line) if line.startswith("{") else _tab_query(path, number, line)
        if query_id in queries:
            raise ConfigError(f"{path} line {number}: query {query_id!r} is there twice")
        queries[query_id] = text
    if not queries:
        raise ConfigError(f"{path}: holds no query")
    return queries


def _json_query(path: str | Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        return str(row["_id"] if "_id" in row else row["id"]), str(row["text"])
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} line {number}: not JSON: {error}") from error
    except KeyError as error:
        raise ConfigError(f"{path} line {number}: has no {error}") from error


def _tab_query(path: str | Path, number: int, line: str) -> tuple[str, str]:
    query_id, tab, text = line.partition("\t")
    if not tab:
        raise ConfigError(f"{path} line {number}: expected JSON or id<TAB>text, got {line[:60]!r}")
    return query_id, text


def read_qrels(path: str | Path) -> Qrels:
    """Judgements by query and document. Three columns with a header (BEIR) or four without (TREC)."""
    qrels: Qrels = {}
    for number, line in _lines(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if number == 1 and fields[0] in ("query-id", "query_id", "qid"):
            continue
        if len(fields) not in (3, 4):
            raise ConfigError(f"{path} line {number}: expected 3 columns (BEIR) or 4 (TREC), got {len(fields)}")
        query_id, document, grade = fields[0], fields[-2], fields[-1]
        try:
            qrels.setdefault(query_id, {})[document] = int(grade)
        except ValueError:
            raise ConfigError(f"{path} line {number}: the judgement {grade!r} is not an integer") from None
    if not qrels:
        raise ConfigError(f"{path}: holds no judgement")
    return qrels


def judged(queries: Mapping[str, str], qrels: Qrels) -> dict[str, str]:
    """The queries that have at least one relevant document; ConfigError if there are none."""
    kept = {q: text for q, text in queries.items() if any(grade > 0 for grade in qrels.get(q, {}).values())}
    if not kept:
        raise ConfigError("qrels: no query has a relevant document; do the query ids of the two files agree?")
    return kept
