"""Queries, judgements and runs as they come: gzip, byte order marks, ids with blanks; each fault by its line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pipelines.config import ConfigError
from pipelines.evaluation import read_qrels, read_queries
from pipelines.evaluation.run_file import read_run, write_run

RUN = {"q 1": {"IPCC report, 1992": 2.0, "d2": 1.5}, "q2": {"d2": 0.25}}


def test_gzip_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    queries, qrels = '{"_id": "1", "text": "one"}\n', "query-id\tcorpus-id\tscore\n1\td1\t1\n"
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf" + queries.encode())
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(queries.encode()))
    (tmp_path / "qrels.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + qrels.encode()))
    assert read_queries(tmp_path / "q.jsonl") == read_queries(tmp_path / "q.jsonl.gz") == {"1": "one"}
    assert read_qrels(tmp_path / "qrels.gz") == {"1": {"d1": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"_id": "q7", "text": null}', "line 1: query 'q7' has no text, got None"),
        (b'{"_id": "q7", "text": 3}', "line 1: query 'q7' has no text, got 3"),
        (b'{"_id": "q7", "text": " "}', "line 1: query 'q7' has an empty text"),
        (b"q7\t", "line 1: query 'q7' has an empty text"),
        (rb'{"_id": "q7", "text": "a \ud83d b"}', "line 1: holds half of a surrogate pair"),
        (gzip.compress(b'{"_id": "1", "text": "one"}')[:-9], "cannot be read"),
        (b"\xff\xfe1", "not UTF-8 text"),
    ],
)
def test_a_bad_query_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "q.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"q\.jsonl.*{message}"):
        read_queries(tmp_path / "q.jsonl")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    for read in (read_queries, read_qrels, read_run):
        with pytest.raises(ConfigError, match="is a folder; name a file in it"):
            read(tmp_path)


@pytest.mark.parametrize("name", ["run.trec", "run.jsonl"])
def test_ids_with_blanks_are_read_back(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / name, RUN.items())
    assert read_run(tmp_path / name) == {query: list(ranking) for query, ranking in RUN.items()}


def test_only_lines_that_need_them_are_parted_by_tabs(tmp_path: Path) -> None:
    write_run(tmp_path / "run", RUN.items())
    lines = (tmp_path / "run").read_text().splitlines()
    assert lines[0] == "q 1\tQ0\tIPCC report, 1992\t1\t2\ttridex"
    assert lines[2] == "q2 Q0 d2 1 0.25 tridex"


def test_ids_with_blanks_that_another_program_wrote_are_read(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q 1 Q0 IPCC report, 1992 1 7.5 bm25\n")
    assert read_run(tmp_path / "run") == {"q 1": ["IPCC report, 1992"]}


def test_an_id_that_trec_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run: the id 'a\\tb' holds a tab or a line break; write a file"):
        write_run(tmp_path / "run", [("q", {"a\tb": 1.0})])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("grade", ["1.0", "good", "1" + "0" * 30, "nan", ""])
def test_a_judgement_that_trec_cannot_hold_is_named_by_its_line(tmp_path: Path, grade: str) -> None:
    path = tmp_path / "qrels.tsv"
    path.write_text(f"q1\td1\t1\nq1\td2\t{grade}\n")
    with pytest.raises(ConfigError, match=rf"qrels.tsv line 2: the judgement '{grade}' is not an integer"):
        read_qrels(path)


@pytest.mark.parametrize("given", ["null", "1.5", "[1]", "true"])
def test_a_query_s_id_is_a_string_or_an_integer(tmp_path: Path, given: str) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(f'{{"_id": 7, "text": "a"}}\n{{"_id": {given}, "text": "b"}}\n')
    with pytest.raises(
        ConfigError, match=r"queries.jsonl line 2: the query's id is .*, a string or an integer is needed"
    ):
        read_queries(path)
