"""Reads judged queries: BEIR (queries.jsonl, qrels.tsv) and TREC (tab-separated topics, four-column qrels).

Files are told apart by their lines, not by their names. A line that fits no format is an error with its number: a
judgement that is skipped in silence changes every figure that follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pipelines.config import ConfigError
from pipelines.evaluation.lines import parse_json_object, read_lines

Qrels = dict[str, dict[str, int]]


def read_queries(path: str | Path) -> dict[str, str]:
    """Reads queries, id to text, in file order. JSON Lines with `_id` (or `id`) and `text`, or `id<TAB>text`."""
    queries: dict[str, str] = {}
    for number, line in read_lines(path):
        query_id, text = _json_query(path, number, line) if line.startswith("{") else _tab_query(path, number, line)
        if query_id in queries:
            raise ConfigError(f"{path} line {number}: query {query_id!r} is there twice")
        queries[query_id] = text
    if not queries:
        raise ConfigError(f"{path}: holds no query")
    return queries


def _json_query(path: str | Path, number: int, line: str) -> tuple[str, str]:
    row = parse_json_object(path, number, line)
    try:
        query_id, text = row["_id"] if "_id" in row else row["id"], row["text"]
    except KeyError as error:
        raise ConfigError(f"{path} line {number}: has no {error}") from error
    if not isinstance(query_id, (str, int)) or isinstance(query_id, bool):
        raise ConfigError(f"{path} line {number}: the query's id is {query_id!r}, a string or an integer is needed")
    return str(query_id), _checked_text(path, number, str(query_id), text)


def _checked_text(path: str | Path, number: int, query_id: str, text: object) -> str:
    if not isinstance(text, str):
        raise ConfigError(f"{path} line {number}: query {query_id!r} has no text, got {text!r}")
    if not text.strip():
        raise ConfigError(f"{path} line {number}: query {query_id!r} has an empty text")
    return text


def _tab_query(path: str | Path, number: int, line: str) -> tuple[str, str]:
    query_id, tab, text = line.partition("\t")
    if not tab:
        raise ConfigError(f"{path} line {number}: expected JSON or id<TAB>text, got {line[:60]!r}")
    return query_id, _checked_text(path, number, query_id, text)


def read_qrels(path: str | Path) -> Qrels:
    """Reads judgements by query and document. Three columns with a header (BEIR) or four without (TREC)."""
    qrels: Qrels = {}
    for number, line in read_lines(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if number == 1 and fields[0] in ("query-id", "query_id", "qid"):
            continue
        if len(fields) not in (3, 4):
            raise ConfigError(f"{path} line {number}: expected 3 columns (BEIR) or 4 (TREC), got {len(fields)}")
        query_id, document, grade = fields[0], fields[-2], fields[-1]
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", grade.strip()):  # what trec_eval holds in a C int
            raise ConfigError(
                f"{path} line {number}: the judgement {grade[:80]!r} is not an integer of 9 digits at most"
            )
        qrels.setdefault(query_id, {})[document] = int(grade)
    if not qrels:
        raise ConfigError(f"{path}: holds no judgement")
    return qrels


def judged(queries: Mapping[str, str], qrels: Qrels) -> dict[str, str]:
    """Returns the queries that have at least one relevant document; ConfigError if there are none."""
    kept = {q: text for q, text in queries.items() if any(grade > 0 for grade in qrels.get(q, {}).values())}
    if not kept:
        raise ConfigError("qrels: no query has a relevant document; do the query ids of the two files agree?")
    return kept
