"""Changes by a program: whole documents, one commit, ids that are only ever values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lance
import pyarrow as pa
import pytest

from pipelines.store.commit import Totals, create_or_open
from pipelines.store.documents import delete_documents, hold_lease, replace_documents, target_of
from pipelines.store.lease import LeaseHeld, acquire
from pipelines.store.schema import Target
from pipelines.store.table import open_table

Block = Callable[..., pa.Table]
NASTY = ["o'brien", "x' OR '1'='1", 'quote"d', "semi;colon", "per%cent", "ünïcode", ""]


def upsert_rows(target: Target, table: pa.Table) -> Totals:
    with hold_lease(target) as lease:
        return replace_documents(target, lease, table)


@pytest.fixture
def index(target: Target, block: Block) -> Target:
    upsert_rows(target, block(["a", "a", "b", *NASTY], chunks=[(0, 2), (1, 2), *[(0, 1)] * 8]))
    return target


def texts(target: Target) -> list[tuple[Any, Any]]:
    rows = lance.dataset(target.documents_uri).to_table(columns=["chunk_id", "text"]).to_pylist()
    return sorted((r["chunk_id"], r["text"]) for r in rows)


def test_an_upsert_replaces_whole_documents_in_one_commit(index: Target, block: Block) -> None:
    before = lance.dataset(index.documents_uri).version
    done = upsert_rows(index, block(["a", "new"], text="changed"))
    assert (done.documents, done.rows, done.replaced) == (2, 2, 2)
    assert lance.dataset(index.documents_uri).version == before + 1
    assert [t for t in texts(index) if t[0][0] in "abn"] == [
        ("a#0", "changed"),
        ("b#0", "text"),
        ("new#0", "changed"),
    ]


def test_a_row_that_failed_leaves_its_document_as_it_is(index: Target, block: Block) -> None:
    upsert_rows(index, block(["b"], text="changed", errors=["cannot be embedded"]))
    assert ("b#0", "text") in texts(index)
    assert lance.dataset(index.quarantine_uri).count_rows() == 1


def test_half_a_document_is_refused(index: Target, block: Block) -> None:
    before = texts(index)
    with pytest.raises(ValueError, match="not all chunks of document 'c' are in the table"):
        upsert_rows(index, block(["c"], chunks=[(0, 2)]))
    assert texts(index) == before


@pytest.mark.parametrize("doc_id", NASTY)
def test_an_id_deletes_its_document_and_nothing_else(index: Target, doc_id: str) -> None:
    before = texts(index)
    assert delete_documents(index, [doc_id]) == 1
    assert texts(index) == [t for t in before if t[0] != f"{doc_id}#0"]


def test_integer_ids_are_decimal_and_unknown_ids_no_error(index: Target, block: Block) -> None:
    upsert_rows(index, block(["7"]))
    assert delete_documents(index, [7, 8, "nobody"]) == 1
    assert delete_documents(index, []) == 0
    with pytest.raises(TypeError, match="ids are strings or integers, got float"):
        delete_documents(index, [1.5])  # type: ignore[list-item]


def test_a_program_is_refused_while_a_job_writes(index: Target, block: Block) -> None:
    with acquire(index.uri, index.table, "nightly", lease_seconds=1):
        create_or_open(index)
        with pytest.raises(LeaseHeld, match="job 'nightly'"):
            delete_documents(index, ["a"])


def test_an_open_index_knows_where_changes_go(index: Target, block: Block) -> None:
    again = target_of(open_table(index.uri), "upsert")
    assert (again.documents_uri, again.job) == (index.documents_uri, "upsert")
    upsert_rows(again, block(["z"]))
    assert ("z#0", "text") in texts(index)
