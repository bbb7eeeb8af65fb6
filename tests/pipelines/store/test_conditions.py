"""Conditions that Lance misreads or drops a part of are refused with the right spelling; others mean what they say."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.config import InvalidRequest
from pipelines.store.table import Snapshot, open_table
from tests.indexes import make_index


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder: Path = tmp_path_factory.mktemp("conditions")
    metadata = {"lang": pa.array(["en", "de", "it's"]), "year": pa.array([1, 2, 3])}
    return open_table(make_index(folder, {"a": "one", "b": "two", "c": "three"}, metadata=metadata, full_text=False))


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("lang = 'en'", [0]),
        ("`lang` = 'en'", [0]),
        ("lang = 'it''s'", [2]),
        ("(year = 1) OR (year = 3)", [0, 2]),
        ("year = 1 -- the first", [0]),
        ("lang IN ('en', 'de') AND NOT year = 2", [0]),
        ("lang = 'a ? b' OR lang = ':x' OR lang = '(' OR year = 2", [1]),
        ("CAST(year AS string) = '2'", [1]),
        ("year::string = '2'", [1]),
    ],
)
def test_a_condition_finds_its_rows(snapshot: Snapshot, where: str, rows: list[int]) -> None:
    assert snapshot.matching(where).tolist() == rows


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("\"lang\" = 'en'", "double quotes around 'lang' in .*: the column is written `lang`"),
        ("\"Lang\" in ('en')", "the column is written `lang`"),
        ('lang = "en"', "double quotes around 'en' in .*: a text is written 'en', a column `en`"),
        ("lang = 'en' garbage", "there is text after the condition, at 'garbage', in \"lang = 'en' garbage\""),
        ("lang = 'en' lang = 'de'", "there is text after the condition, at 'lang',"),
        ("(year = 1) (year = 2)", "there is text after the condition"),
        ("year = 1 LIMIT 3", "there is text after the condition, at 'LIMIT'"),
        ("year = 1,", "there is text after the condition"),
        ("year = 1) OR (year = 2", "the parentheses do not match"),
        ("lang = ?", r"'\?' is a placeholder in 'lang = \?'; write the value itself, as in lang = 'en'"),
        ("lang = $1", "placeholder"),
        ("lang = :name", "':name' is a placeholder"),
        ("lang = 'en", "a quote is not closed in .*doubled, as in 'it''s'"),
        ("lang = 'it's'", "a quote is not closed"),
        ("lang = 'en\"", "a quote is not closed"),
        ("lagn = 'en'", "No field named lagn; there are doc_id, chunk_id, lang, year, .*; did you mean 'lang'"),
        ("lang = en", "No field named en; there are .*; a text is written in quotes, 'en'"),
    ],
)
def test_a_mistake_is_refused_with_the_right_spelling(snapshot: Snapshot, where: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"where: .*{message}"):
        snapshot.matching(where)
