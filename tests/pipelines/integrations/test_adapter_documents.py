"""What all adapters share: metadata in typed columns, filters that are never null, and an index that reopens itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.extras import DISTRIBUTIONS, EXTRAS
from pipelines.config import ConfigError
from pipelines.integrations import filters as sql
from pipelines.integrations.documents import DocumentIndex, StoredDocument, join_chunks
from pipelines.integrations.metadata import REST, from_columns, new_columns, to_columns
from pipelines.retrieval.create import create_index

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.lists(st.dictionaries(st.text(max_size=6), VALUES, max_size=4), min_size=1, max_size=4))
def test_metadata_comes_back_as_it_was_given(documents: list[dict[str, Any]]) -> None:
    types = new_columns(documents, {})
    rows = [dict.fromkeys(types) | to_columns(metadata, types) for metadata in documents]
    table = pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()})
    back = [from_columns(row) for row in table.to_pylist()] if types else [{} for _ in documents]
    assert back == documents


def test_columns_take_their_type_from_the_first_value() -> None:
    types = new_columns([{"a": 1, "source": "x", "at": date(2024, 1, 2)}, {"a": "text"}], {})
    assert types == {"a": pa.int64(), "source_": pa.string(), "at": pa.date32(), REST: pa.string()}
    assert new_columns([{"a": 2}], types) == {}
    with pytest.raises(ConfigError, match="metadata 'odd'"):
        to_columns({"odd": {1, 2}}, types)


def test_no_condition_is_ever_null(new_documents: Callable[[], DocumentIndex]) -> None:
    documents = new_documents()
    about = [{"n": 1, "t": ["x"], "when": datetime(2024, 1, 1, tzinfo=timezone.utc)}, {}, {"n": 3, "s": "it's"}]
    documents.upsert([StoredDocument(str(i), f"text {i}", metadata) for i, metadata in enumerate(about)])
    columns = documents.columns

    def ids(where: str) -> str:
        return "".join(document.id for document in documents.documents(where))

    conditions = [
        (sql.equals(columns, "n", 1), "0"),
        (sql.equals(columns, "n", 1.0), "0"),
        (sql.equals(columns, "n", "1"), ""),
        (sql.equals(columns, "n", None), "1"),
        (sql.equals(columns, "s", "it's"), "2"),
        (sql.equals(columns, "t", ["x"]), "0"),
        (sql.contains(columns, "t", "x"), "0"),
        (sql.ordered(columns, "n", ">", 1.5), "2"),
        (sql.ordered(columns, "when", ">=", "2024-01-01T00:00:00+00:00"), "0"),
        (sql.one_of(columns, "n", [1, 3]), "02"),
        (sql.empty(columns, "t"), "12"),
        (sql.equals(columns, "absent", 1), ""),
    ]
    for condition, expected in conditions:
        assert ids(condition) == expected, condition
        assert ids(sql.negated(condition)) == "".join(i for i in "012" if i not in expected), condition
    with pytest.raises(ConfigError, match="no column that a filter can name"):
        sql.equals({"a`b": pa.int64()}, "a`b", 1)


def test_chunks_are_joined_to_the_document(new_documents: Callable[[], DocumentIndex]) -> None:
    documents = new_documents()
    text = "\n\n".join(f"Paragraph {i} is about   rivers, sand and stone." for i in range(200))
    documents.upsert([StoredDocument("long", text, {"n": 1}), StoredDocument("short", "a word")])
    assert len(documents.index) > documents.count() == 2
    (back,) = documents.get(["long"])
    assert back.text.split() == text.split()
    assert len(back.text) == len(text)
    assert join_chunks([{"start": 0, "end": 2, "text": "ab"}, {"start": 3, "end": 4, "text": "d"}]) == "ab d"


def test_writes_are_seen_at_once_and_those_of_others_after_refresh(new_documents: Callable[[], DocumentIndex]) -> None:
    mine = new_documents()
    mine.upsert([StoredDocument("a", "zebra")])
    assert len(mine.index) == 1
    theirs = DocumentIndex.open(mine.uri)
    theirs.upsert([StoredDocument("b", "zebra foal")])
    assert mine.search("zebra").ids == ["a"]
    mine.refresh()
    assert set(mine.search("zebra").ids) == {"a", "b"}
    assert mine.delete(["a", "nothing"]) == 1
    assert mine.search("zebra").ids == ["b"]


def test_an_index_is_made_only_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an index"):
        DocumentIndex.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    create_index(tmp_path / "idx", metadata={"year": pa.int32()})
    with pytest.raises(ConfigError, match="there is a table 'documents' already"):
        create_index(tmp_path / "idx")
    with pytest.raises(ConfigError, match="pq is trained on a corpus"):
        create_index(tmp_path / "pq", embedder={"codec": {"colbert": "pq"}})
    with pytest.raises(ConfigError, match="modle"):
        create_index(tmp_path / "typo", embedder={"modle": "x"})


@pytest.mark.parametrize("extra", ["langchain", "llamaindex", "haystack", "dspy", "mteb"])
def test_a_missing_framework_is_named_with_its_extra(extra: str) -> None:
    name = EXTRAS[extra][0]
    code = f"import sys; sys.modules[{name!r}] = None\nimport pipelines.integrations.{extra}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = ended.stderr.strip().splitlines()[-1]
    needs = f"pipelines.integrations.{extra} needs {DISTRIBUTIONS.get(name, name)}: pip install 'tridex[{extra}]'"
    assert last == f"actors.extras.MissingExtraError: {needs}"
