"""Conditions that Lance misreads or drops a part of are refused with the right spelling; others mean what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from pipelines.config import InvalidRequest
from pipelines.store.conditions import compares_integers, parse_text_list
from pipelines.store.table import Snapshot, open_table, sql_in
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
        ("$", r"'\$' is a placeholder"),
        ("lang = N'en'", "Lance's parser cannot read"),
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


def test_a_long_list_of_texts_is_matched_as_a_set(tmp_path: Path) -> None:
    texts = {f"a{i}": f"text {i}" for i in range(50)} | {"it's": "quoted"}
    kinds = pa.array(["k1"] * 50 + [None])
    snapshot = open_table(make_index(tmp_path, texts, metadata={"kind": kinds}, full_text=False))
    ids = [f"a{i}" for i in range(0, 1400, 2)]
    long, quoted = sql_in("doc_id", ids), sql_in("doc_id", [*ids, "it's"])
    for spelling in (long, long.replace("doc_id IN", "`doc_id`  in"), long.replace("', '", "',\n'") + "\n"):
        column, values = parse_text_list(spelling) or ("", pa.array([]))
        assert (column, values.to_pylist()) == ("doc_id", ids)
    others = (quoted, long + " AND n = 1", "NOT " + long, long[:-1], long.replace(", 'a8'", " 'a8'"), sql_in("d", "ab"))
    assert [parse_text_list(where) for where in others] == [None] * len(others)
    for where, count in ((long, 25), (quoted, 26), (sql_in("kind", ["k1", *ids]), 50)):
        np.testing.assert_array_equal(np.flatnonzero(snapshot.matching_mask(where)), snapshot.matching(where))
        assert snapshot.matching_mask(where).sum() == count
    with pytest.raises(InvalidRequest, match="No field named nothing"):
        snapshot.matching_mask(sql_in("nothing", ids))


@pytest.mark.parametrize(
    "where",
    [
        "n < 3",
        "NOT n < 3",
        "n <> 3 and not (n BETWEEN 1 AND 4 or n IS NULL)",
        "n IS NOT NULL AND n >= -2",
        "n IN (1, 3, 999999999999999999)",
        "n NOT IN (1,3)",
    ],
)
def test_a_condition_over_integers_is_computed_to_the_rows_that_the_filter_finds(tmp_path: Path, where: str) -> None:
    numbers = pa.array([None if i % 7 == 0 else i % 6 - 1 for i in range(50)], pa.int64())
    uri = make_index(tmp_path, {f"a{i}": f"text {i}" for i in range(50)}, metadata={"n": numbers}, full_text=False)
    lance.dataset(f"{uri}/documents.lance").delete("doc_id IN ('a3', 'a17', 'a49')")
    snapshot = open_table(uri)
    assert compares_integers(where, {"n"})
    mask = snapshot.matching_mask(where)
    assert len(mask) == 47
    np.testing.assert_array_equal(np.flatnonzero(mask), snapshot.matching(where))


def test_only_whole_numbers_and_known_columns_are_computed() -> None:
    others = [
        "n < 1.5",
        "n < 1e3",
        "n = '3'",
        "m < 3",
        "n < 3 -- x",
        "n < 1234567890123456789",
        "abs(n) = 1",
        "n LIKE 3",
    ]
    assert [where for where in others if compares_integers(where, {"n"})] == []


@pytest.mark.parametrize("where", ["n", "n <", "n < 3)", "(n < 3", "n < < 3", "n IN ()", "n < 3 n"])
def test_a_wrong_condition_over_integers_has_the_message_of_the_filter(tmp_path: Path, where: str) -> None:
    numbers = pa.array([1, 2], pa.int64())
    snapshot = open_table(make_index(tmp_path, {"a": "x", "b": "y"}, metadata={"n": numbers}, full_text=False))

    def outcome(run: Callable[[str], object]) -> str:
        try:
            return str(run(where))
        except InvalidRequest as error:
            return str(error)

    assert outcome(lambda text: np.flatnonzero(snapshot.matching_mask(text))) == outcome(snapshot.matching)
