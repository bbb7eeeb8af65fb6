"""New outputs for an index that exists: every row gets its own values, whatever the blocks, and nothing else moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from actors.outputs import matrix_to_arrow
from pipelines.config import ConfigError
from pipelines.store.columns import (
    ColumnCommitter,
    add_null_columns,
    join_parts,
    read_fragments,
    record_identity,
    unfilled_fragments,
    write_columns,
)
from pipelines.store.commit import Totals, create_or_open
from pipelines.store.documents import delete_documents, hold_lease, replace_documents
from pipelines.store.lease import Lease, acquire
from pipelines.store.schema import Identity, Target, documents_schema
from pipelines.store.table import open_table

Block = Callable[..., pa.Table]
SPARSE = pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])


def upsert_rows(target: Target, table: pa.Table) -> Totals:
    with hold_lease(target) as lease:
        return replace_documents(target, lease, table)


@pytest.fixture
def index(target: Target, block: Block) -> Target:
    """Three fragments, a deleted row at the start, in the middle and at the end of the first."""
    for part in ("abcdef", "gh", "ij"):
        upsert_rows(replace(target, run=part), block(list(part)))
    delete_documents(target, ["a", "c", "f"])
    return target


@pytest.fixture
def wider(index: Target, identity: Identity) -> Target:
    """The same index with a sparse output and a second embedder."""
    toy = {**identity.embedders["toy"], "outputs": ["dense", "sparse", "colbert"]}
    second = {"model": "second", "dim": 2, "outputs": ["dense"], "dense": "float32", "colbert": "sign"}
    wider = replace(identity, embedders={"toy": toy, "second": second})
    return replace(index, schema=documents_schema(wider, [pa.field("lang", pa.string())]), run="wider")


def embedded(rows: pa.Table) -> pa.Table:
    """New columns whose values name their row: the code of the first letter of its id."""
    codes = np.array([ord(i[0]) for i in rows.column("doc_id").to_pylist()], np.float32)
    sparse = pa.array([{"indices": [int(c)], "values": [float(c)]} for c in codes], SPARSE)
    rows = rows.append_column("toy_sparse", sparse)
    return rows.append_column("second_dense", matrix_to_arrow(np.stack([codes, -codes], axis=1)))


def fill(wider: Target, lease: Lease, blocks: Sequence[pa.Table], fields: list[pa.Field]) -> ColumnCommitter:
    committer = ColumnCommitter(wider, lease, lance.dataset(wider.documents_uri), fields)
    for table in blocks:
        for record in write_columns(embedded(table), wider, fields).to_pylist():
            committer.add(record)
    committer.commit()
    return committer


def values(target: Target) -> dict[str, tuple[Any, Any]]:
    rows = lance.dataset(target.documents_uri).to_table(columns=["doc_id", "toy_sparse", "second_dense"]).to_pylist()
    return {r["doc_id"]: (r["toy_sparse"], r["second_dense"]) for r in rows}


def expected(ids: str) -> dict[str, tuple[Any, Any]]:
    return {i: ({"indices": [ord(i)], "values": [ord(i)]}, [ord(i), -ord(i)]) for i in ids}


def test_columns_that_are_being_filled_are_not_the_users(wider: Target) -> None:
    add_null_columns(wider)
    snapshot = open_table(wider.uri, wider.table)
    assert {"toy_sparse", "second_dense"} <= set(snapshot.schema.names)
    assert snapshot.metadata_columns == ("lang",)


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 100])
def test_every_row_gets_its_own_values(wider: Target, batch_rows: int) -> None:
    with acquire(wider.uri, wider.table, "wider") as lease:
        dataset, fields = add_null_columns(wider)
        before = dataset.to_table(columns=["doc_id", "toy_dense"], with_row_address=True)
        assert [f.name for f in fields] == ["toy_sparse", "second_dense"]
        todo = unfilled_fragments(lance.dataset(wider.documents_uri), fields)
        assert len(todo) == 3
        blocks = list(read_fragments(dataset, todo, batch_rows))
        Random(batch_rows).shuffle(blocks)
        done = fill(wider, lease, blocks, fields)
        assert (done.totals.rows, done.incomplete) == (7, [])
        record_identity(wider, fields)
    after = lance.dataset(wider.documents_uri)
    assert values(wider) == expected("bdeghij")
    assert after.to_table(columns=["doc_id", "toy_dense"], with_row_address=True) == before
    create_or_open(wider)


def test_rows_written_afterwards_find_their_columns(wider: Target, block: Block) -> None:
    """The table's columns are now in another order than the schema of the job."""
    with acquire(wider.uri, wider.table, "wider") as lease:
        dataset, fields = add_null_columns(wider)
        fill(wider, lease, list(read_fragments(dataset, unfilled_fragments(dataset, fields), 100)), fields)
        record_identity(wider, fields)
    assert lance.dataset(wider.documents_uri).schema.names != wider.schema.names
    upsert_rows(replace(wider, run="after"), embedded(block(["b", "z"], text="four")))
    assert values(wider) == expected("bdeghijz")
    rows = lance.dataset(wider.documents_uri).to_table(filter="doc_id = 'z'").to_pylist()
    assert (rows[0]["toy_dense"], rows[0]["toy_colbert"], rows[0]["text"]) == ([4.0] * 4, b"\x01\x02", "four")


def test_blocks_that_cross_fragments_are_taken_apart(wider: Target) -> None:
    with acquire(wider.uri, wider.table, "wider") as lease:
        dataset, fields = add_null_columns(wider)
        rows = pa.concat_tables(read_fragments(dataset, unfilled_fragments(dataset, fields), 100))
        fill(wider, lease, [rows.slice(0, 4), rows.slice(4, 2), rows.slice(6)], fields)
    assert values(wider) == expected("bdeghij")


def test_a_job_that_died_goes_on_with_the_fragments_that_are_left(wider: Target, index: Target) -> None:
    with acquire(wider.uri, wider.table, "wider") as lease:
        dataset, fields = add_null_columns(wider)
        first = unfilled_fragments(lance.dataset(wider.documents_uri), fields)
        fill(wider, lease, list(read_fragments(dataset, first[:2], 2))[:-1], fields)
    create_or_open(index)
    with acquire(wider.uri, wider.table, "wider") as lease:
        dataset, again = add_null_columns(wider)
        assert again == fields
        left = unfilled_fragments(dataset, fields)
        assert left == first[1:]
        with pytest.raises(RuntimeError, match="2 fragments have no data for the new columns"):
            record_identity(wider, fields)
        fill(replace(wider, run="again"), lease, list(read_fragments(dataset, left, 2)), fields)
        record_identity(wider, fields)
    assert values(wider) == expected("bdeghij")


def test_a_row_that_fails_has_nulls_and_is_listed(wider: Target) -> None:
    with acquire(wider.uri, wider.table, "wider") as lease:
        dataset, fields = add_null_columns(wider)
        blocks = list(read_fragments(dataset, unfilled_fragments(dataset, fields), 100))
        failed = embedded(blocks[0])
        for name, kind in (("toy_sparse", SPARSE), ("second_dense", fields[1].type)):
            nulls = pa.nulls(len(failed), kind)
            failed = failed.set_column(failed.column_names.index(name), name, nulls)
        errors = pa.array(["too odd"] * len(failed))
        failed = failed.set_column(failed.column_names.index("error"), "error", errors)
        committer = ColumnCommitter(wider, lease, dataset, fields)
        for table in (failed, *(embedded(b) for b in blocks[1:])):
            for record in write_columns(table, wider, fields).to_pylist():
                committer.add(record)
        committer.commit()
    assert values(wider)["b"] == (None, None)
    assert lance.dataset(wider.quarantine_uri).count_rows(filter="error = 'too odd'") == len(failed)


def test_overlapping_parts_are_refused(wider: Target) -> None:
    dataset, fields = add_null_columns(wider)
    rows = embedded(next(read_fragments(dataset, [0], 100)))
    (record,) = write_columns(rows, wider, fields).to_pylist()
    with pytest.raises(ValueError, match="fragment 0: its parts overlap at row 1"):
        join_parts([record, record], 6, wider, fields)


def test_an_index_that_differs_otherwise_is_refused(wider: Target, identity: Identity) -> None:
    other = Identity(identity.chunk, "{text}", wider.identity.embedders)
    with pytest.raises(ConfigError, match=r"text: index has '\{title\} \{text\}', you have '\{text\}'"):
        add_null_columns(replace(wider, schema=documents_schema(other)))


def test_nothing_to_add_adds_nothing(index: Target) -> None:
    before = lance.dataset(index.documents_uri).version
    assert add_null_columns(index)[1] == []
    assert lance.dataset(index.documents_uri).version == before


def test_parts_of_a_fragment_may_interleave(wider: Target) -> None:
    """Repartitioned blocks join pieces from all over a fragment."""
    with acquire(wider.uri, wider.table, "wider") as lease:
        dataset, fields = add_null_columns(wider)
        (whole,) = read_fragments(dataset, [0], 100)
        blocks = [whole.take([0, 2]), whole.take([1]), *read_fragments(dataset, [1, 2], 100)]
        assert fill(wider, lease, blocks, fields).incomplete == []
        record_identity(wider, fields)
    assert values(wider) == expected("bdeghij")
