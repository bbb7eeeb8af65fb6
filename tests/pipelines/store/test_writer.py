"""Workers write fragments: nothing lost, nothing committed, odd blocks refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from lance.fragment import FragmentMetadata

from pipelines.store.schema import Target
from pipelines.store.writer import split_addresses, write_block

Block = Callable[..., pa.Table]


def rows_of(target: Target, record: dict[str, Any]) -> pa.Table:
    """Reads a fragment that no version of the table has yet."""
    schema = target.schema if record["kind"] == "documents" else None
    uri = target.documents_uri if record["kind"] == "documents" else target.quarantine_uri
    path = json.loads(record["fragment"])["files"][0]["path"]
    table = lance.file.LanceFileReader(f"{uri}/data/{path}").read_all().to_table()
    assert FragmentMetadata.from_json(record["fragment"]).physical_rows == record["rows"] == table.num_rows
    return table if schema is None else table.cast(schema)


def test_a_block_becomes_one_fragment_with_its_counts(target: Target, block: Block) -> None:
    (record,) = write_block(block(["a", "b", "c"]), target).to_pylist()
    counts = {k: record[k] for k in ("kind", "rows", "documents", "n_tokens", "n_truncated", "rows_truncated")}
    assert counts == {
        "kind": "documents",
        "rows": 3,
        "documents": 3,
        "n_tokens": 9,
        "n_truncated": 1,
        "rows_truncated": 1,
    }
    rows = rows_of(target, record)
    assert rows.column("doc_id").to_pylist() == ["a", "b", "c"]
    assert rows.schema.names == target.schema.names
    assert rows.column("toy_dense").type == pa.list_(pa.float16(), 4)


def test_failed_rows_go_to_the_quarantine_with_their_traceback(target: Target, block: Block) -> None:
    table = block(["a", "b"], errors=[None, "ValueError: bad\nTraceback\n  line 1"])
    good, bad = write_block(table, target).to_pylist()
    assert (good["kind"], good["rows"], bad["kind"], bad["rows"]) == ("documents", 1, "quarantine", 1)
    (row,) = rows_of(target, bad).to_pylist()
    assert (row["doc_id"], row["source"], row["position"]) == ("b", "shard.parquet", 1)
    assert (row["error"], row["traceback"]) == ("ValueError: bad", "Traceback\n  line 1")
    assert (row["job"], row["run"]) == (target.job, target.run)


def test_a_document_cut_by_the_block_has_a_fragment_of_its_own(target: Target, block: Block) -> None:
    table = block(["a", "b", "b", "c"], chunks=[(1, 2), (0, 2), (1, 2), (0, 3)])
    records = write_block(table, target).to_pylist()
    assert [(r["rows"], r["documents"], r["partial"]) for r in records] == [
        (2, 1, []),
        (1, 0, [{"doc_id": "a", "rows": 1, "of": 2}]),
        (1, 1, [{"doc_id": "c", "rows": 1, "of": 3}]),
    ]


def test_a_failed_chunk_counts_towards_its_document(target: Target, block: Block) -> None:
    whole = block(["a", "a"], chunks=[(0, 2), (1, 2)], errors=[None, "bad"])
    assert [r["partial"] for r in write_block(whole, target).to_pylist()] == [[], []]
    cut = block(["a", "a"], chunks=[(0, 3), (1, 3)], errors=[None, "bad"])
    one = [{"doc_id": "a", "rows": 1, "of": 3}]
    assert [r["partial"] for r in write_block(cut, target).to_pylist()] == [one, one]


def test_a_bad_document_without_chunks_is_not_waited_for(target: Target, block: Block) -> None:
    table = block(["a"], errors=["duplicate id"]).set_column(3, "chunk_count", pa.nulls(1, pa.int32()))
    (record,) = write_block(table, target).to_pylist()
    assert (record["kind"], record["partial"]) == ("quarantine", [])


def test_replaced_addresses_are_named_once(target: Target, block: Block) -> None:
    table = block(["a", "a", "b"], chunks=[(0, 2), (1, 2), (0, 1)], replaces=[[5, 7], [5, 7], None])
    (record,) = write_block(table, target).to_pylist()
    assert sorted(record["replaces"]) == [5, 7]


def test_an_empty_block_writes_nothing(target: Target, block: Block) -> None:
    assert write_block(block(["a"]).slice(0, 0), target).num_rows == 0


def test_a_missing_column_is_named(target: Target, block: Block) -> None:
    with pytest.raises(ValueError, match="write_block: column 'toy_dense' is missing"):
        write_block(block(["a"]).drop_columns(["toy_dense"]), target)


def test_a_wrong_dimension_is_named(target: Target, block: Block) -> None:
    table = block(["a"])
    wrong = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0], pa.float32()), 2)
    table = table.set_column(table.column_names.index("toy_dense"), "toy_dense", wrong)
    with pytest.raises(TypeError, match=r"column 'toy_dense' is fixed_size_list.*2.*, not fixed_size_list.*4"):
        write_block(table, target)


def test_tensor_types_are_refused(target: Target, block: Block) -> None:
    table = block(["a"])
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 4), np.float32))
    table = table.set_column(table.column_names.index("toy_dense"), "toy_dense", tensor)
    with pytest.raises(TypeError, match=r"column 'toy_dense' has extension type .*tensor.*: return pyarrow"):
        write_block(table, target)


def test_addresses_split_by_fragment() -> None:
    addresses = np.array([3 << 32 | 5, 1, 3 << 32 | 2, 3 << 32 | 5], np.uint64)
    assert split_addresses(addresses) == {0: [1], 3: [2, 5]}
