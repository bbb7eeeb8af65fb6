"""Change detection: every row is found new, changed, done or repeated, and the main pass keeps to that."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelines.changes.detect as census_module
from pipelines.changes.detect import Changes, detect_changes
from pipelines.changes.diff import InputRows, TableRows, diff_partition
from pipelines.changes.selection import RowFilter, select_rows
from pipelines.changes.tasks import InProcess, OnRay

READ = pa.schema(
    [
        ("doc_id", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("position", pa.int64()),
        ("content_hash", pa.binary(16)),
        ("metadata_hash", pa.binary(16)),
        ("error", pa.string()),
    ]
)


def content(text: str | None) -> bytes | None:
    return None if text is None else blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class FakeUnit:
    """Rows (id, text); a text of None is a bad row; an id of None a file that broke off."""

    name: str
    rows: tuple[tuple[str | None, str | None], ...]
    size: int = 1000


@dataclass(frozen=True)
class Several:
    """Small files that are read as one unit."""

    files: tuple[FakeUnit, ...]
    size: int = 1000


def read(unit: FakeUnit) -> Iterator[pa.Table]:
    for start in range(0, len(unit.rows), 3):
        part = unit.rows[start : start + 3]
        yield pa.Table.from_pylist(
            [
                {
                    "doc_id": doc_id,
                    "text": text,
                    "source": unit.name,
                    "position": -1 if doc_id is None else start + i,
                    "content_hash": content(text),
                    "metadata_hash": bytes(range(16)),
                    "error": "empty text" if text is None else None,
                }
                for i, (doc_id, text) in enumerate(part)
            ],
            schema=READ,
        )


def open_rows(path: Path, rows: Sequence[tuple[str, str, int]]) -> Any:
    """A table of (id, text, chunk_count), one row a tuple."""
    table = pa.table(
        {
            "doc_id": pa.array([r[0] for r in rows], pa.string()),
            "content_hash": pa.array([content(r[1]) for r in rows], pa.binary(16)),
            "metadata_hash": pa.array([bytes(range(16))] * len(rows), pa.binary(16)),
            "chunk_count": pa.array([r[2] for r in rows], pa.int32()),
        }
    )
    lance.write_dataset(table, str(path), max_rows_per_file=2)
    return lambda: lance.dataset(str(path))


def main_pass(units: Sequence[FakeUnit], changes: Changes, only: RowFilter | None = None) -> list[dict[str, Any]]:
    tables = [t for unit, plan in zip(units, changes.plans, strict=True) for t in select_rows(unit, plan, read, only)]
    return [row for table in tables for row in table.to_pylist()]


def test_a_first_build_embeds_each_id_once_and_says_where_a_duplicate_was_seen_first() -> None:
    units = [FakeUnit("a.jsonl", (("1", "x"), ("2", "y"), ("1", "z"))), FakeUnit("b.jsonl", (("3", "x"), ("2", "y")))]
    changes = detect_changes(units, read, run=InProcess())
    assert (changes.new, changes.changed, changes.same, changes.duplicates) == (3, 0, 0, 2)
    rows = main_pass(units, changes)
    assert [r["doc_id"] for r in rows if r["error"] is None] == ["1", "2", "3"]
    assert [r["error"] for r in rows if r["error"]] == [
        "duplicate id, first seen in a.jsonl row 0",
        "duplicate id, first seen in a.jsonl row 1",
    ]
    assert all(r["text"] is None for r in rows if r["error"])
    assert [plan.pending_rows for plan in changes.plans] == [3, 2]


def test_a_bad_row_does_not_take_its_id_from_a_good_one() -> None:
    units = [FakeUnit("a", (("1", None), ("1", "good")))]
    changes = detect_changes(units, read, run=InProcess())
    assert (changes.new, changes.duplicates, changes.bad) == (1, 0, 1)
    assert [(r["text"], r["error"]) for r in main_pass(units, changes)] == [(None, "empty text"), ("good", None)]


def test_only_new_and_changed_documents_are_embedded_again(tmp_path: Path) -> None:
    table = open_rows(
        tmp_path / "t.lance", [("same", "x", 1), ("changed", "old", 2), ("changed", "old", 2), ("gone", "g", 1)]
    )
    units = [FakeUnit("a", (("new", "n"), ("changed", "new"), ("same", "x")))]
    changes = detect_changes(units, read, table, run=InProcess())
    assert (changes.new, changes.changed, changes.same) == (1, 1, 1)
    rows = main_pass(units, changes)
    assert [r["doc_id"] for r in rows] == ["new", "changed"]
    assert rows[0]["replaces"] is None
    assert sorted(rows[1]["replaces"]) == [1, 1 << 32]
    assert changes.prune.tolist() == [(1 << 32) + 1]


def test_a_document_of_which_chunks_are_missing_is_replaced(tmp_path: Path) -> None:
    table = open_rows(tmp_path / "t.lance", [("half", "x", 3), ("half", "x", 3)])
    changes = detect_changes([FakeUnit("a", (("half", "x"),))], read, table, run=InProcess())
    assert (changes.changed, changes.same) == (1, 0)
    assert changes.plans[0].replaces == {0: [0, 1]}


def test_a_document_that_is_there_twice_is_replaced_by_one(tmp_path: Path) -> None:
    table = open_rows(tmp_path / "t.lance", [("twice", "x", 1), ("twice", "x", 1)])
    changes = detect_changes([FakeUnit("a", (("twice", "x"),))], read, table, run=InProcess())
    assert changes.plans[0].replaces == {0: [0, 1]}


def test_a_document_whose_row_is_bad_now_is_neither_pruned_nor_replaced(tmp_path: Path) -> None:
    table = open_rows(tmp_path / "t.lance", [("1", "x", 1)])
    changes = detect_changes([FakeUnit("a", (("1", None),))], read, table, run=InProcess())
    assert (changes.changed, len(changes.prune), changes.plans[0].replaces) == (0, 0, {})


def test_a_file_that_broke_off_is_named_so_that_nothing_is_pruned_for_it() -> None:
    changes = detect_changes([FakeUnit("broken.parquet", (("1", "x"), (None, None)))], read, run=InProcess())
    assert changes.unreadable == ("broken.parquet",)


def test_a_unit_that_grew_since_the_census_is_reported() -> None:
    changes = detect_changes([FakeUnit("a", (("1", "x"),))], read, run=InProcess())
    rows = main_pass([FakeUnit("a", (("1", "x"), ("2", "y")))], changes)
    assert [r["doc_id"] for r in rows] == ["1", None]
    assert rows[1]["error"] == "the file changed while the job ran: 1 rows when it started, 2 when it was read"


def test_a_unit_that_is_there_no_more_is_reported() -> None:
    changes = detect_changes([FakeUnit("a", (("1", "x"), ("2", "y")))], read, run=InProcess())
    (row,) = main_pass([FakeUnit("a", ())], changes)
    assert (row["source"], row["position"], row["doc_id"]) == ("a", -1, None)
    assert row["error"] == "the file changed while the job ran: 2 rows when it started, 0 when it was read"


def test_a_file_that_became_shorter_does_not_shift_those_after_it(tmp_path: Path) -> None:
    """Else a row that is in the table already would be taken for its neighbour, and be there twice."""

    def several(files: Sequence[FakeUnit]) -> Iterator[pa.Table]:
        for file in files:
            yield from read(file)

    table = open_rows(tmp_path / "t.lance", [("2", "x", 1), ("4", "x", 1)])
    first, second = FakeUnit("a", (("1", "x"), ("2", "x"))), FakeUnit("b", (("3", "x"), ("4", "x")))
    (plan,) = detect_changes([Several((first, second))], lambda unit: several(unit.files), table, run=InProcess()).plans
    shorter = (FakeUnit("a", (("1", "x"),)), second)
    rows = [r for t in select_rows(shorter, plan, several) for r in t.to_pylist()]
    assert [(r["doc_id"], r["source"]) for r in rows] == [("1", "a"), ("3", "b"), (None, "a")]


def test_a_retry_is_limited_to_the_rows_in_quarantine() -> None:
    units = [
        FakeUnit("a", (("1", "x"), ("2", None), ("3", "y"), ("1", "z"))),
        FakeUnit("b", (("4", "x"), (None, None))),
    ]
    changes = detect_changes(units, read, run=InProcess())
    only = {"a": frozenset({1, 2}), "b": frozenset({-1})}
    rows = [
        r
        for u, p in zip(units, changes.plans, strict=True)
        for t in select_rows(u, p, read, only)
        for r in t.to_pylist()
    ]
    assert [(r["source"], r["position"]) for r in rows] == [("a", 1), ("a", 2), ("b", 0), ("b", -1)]
    assert not list(select_rows(units[0], changes.plans[0], read, {}))


def test_partitions_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_rows(tmp_path / "t.lance", [(str(i), "old" if i % 5 else "x", 1) for i in range(0, 60, 3)])
    units = [FakeUnit(f"u{u}", tuple((str((i * 7 + u) % 50), "x") for i in range(20))) for u in range(4)]
    one = detect_changes(units, read, table, run=InProcess())
    monkeypatch.setattr(census_module, "ROWS_PER_PARTITION", 3)
    many = detect_changes(units, read, table, run=InProcess())
    assert (many.new, many.changed, many.same, many.duplicates) == (one.new, one.changed, one.same, one.duplicates)
    assert sorted(many.prune) == sorted(one.prune)
    for a, b in zip(one.plans, many.plans, strict=True):
        assert a.embed.tolist() == b.embed.tolist()
        assert (a.duplicates, a.replaces) == (b.duplicates, b.replaces)


@pytest.mark.ray
def test_ray_gives_what_one_process_gives(ray_session: None, tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    table = open_rows(tmp_path / "t.lance", [(str(i), "x", 1) for i in range(30)])
    units = [FakeUnit(f"u{u}", tuple((str(i * 3 + u), "x") for i in range(20))) for u in range(3)]
    here, there = (detect_changes(units, read, table, run=run) for run in (InProcess(), OnRay()))
    assert (here.new, here.same, here.prune.tolist()) == (there.new, there.same, there.prune.tolist())
    assert [p.embed.tolist() for p in here.plans] == [p.embed.tolist() for p in there.plans]


def keys(values: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Few distinct first halves, so that keys differ in the second half alone."""
    return np.array([[v % 3, v] for v in values], np.uint64).reshape(-1, 2)


def expected(rows: Sequence[tuple[int, int, bool]], table: Sequence[tuple[int, int, int]]) -> Mapping[str, Any]:
    """The rule, said with dicts."""
    first: dict[int, int] = {}
    for i, (key, _, good) in enumerate(rows):
        if good:
            first.setdefault(key, i)
    whole = {
        key: [(c, n) for k, c, n in table if k == key]
        == [(rows[i][1], sum(k == key for k, _, _ in table))] * sum(k == key for k, _, _ in table)
        for key, i in first.items()
    }
    present = {k for k, _, _ in table}
    return {
        "new": sum(k not in present for k in first),
        "done": sorted(i for k, i in first.items() if k in present and whole[k]),
        "duplicates": sorted((i, first[k]) for i, (k, _, good) in enumerate(rows) if good and first[k] != i),
        "replaced": sorted((first[k], a) for a, (k, _, _) in enumerate(table) if k in first and not whole[k]),
        "gone": sorted(a for a, (k, _, _) in enumerate(table) if k not in {key for key, _, _ in rows}),
    }


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.booleans()), max_size=20),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.integers(1, 3)), max_size=20),
)
def test_judging_follows_the_rule(rows: list[tuple[int, int, bool]], table: list[tuple[int, int, int]]) -> None:
    n = np.arange(len(rows))
    verdict = diff_partition(
        InputRows(
            keys([r[0] for r in rows]),
            keys([r[1] for r in rows]),
            keys([0] * len(rows)),
            np.zeros(len(rows), np.int32),
            n,
            n + 100,
            np.array([r[2] for r in rows], bool),
        ),
        TableRows(
            keys([t[0] for t in table]),
            keys([t[1] for t in table]),
            keys([0] * len(table)),
            np.array([t[2] for t in table], np.int32),
            np.arange(len(table), dtype=np.uint64),
        ),
    )
    want = expected(rows, table)
    assert verdict.new == want["new"]
    assert sorted(verdict.done[:, 1].tolist()) == want["done"]
    assert sorted((row, first) for _, row, _, first, _ in verdict.duplicates.tolist()) == want["duplicates"]
    replaced = zip(verdict.replaced[:, 1].tolist(), verdict.addresses.tolist(), strict=True)
    assert sorted(replaced) == want["replaced"]
    assert sorted(verdict.gone.tolist()) == want["gone"]


def test_a_file_that_cannot_be_read_any_more_is_reported_whatever_its_first_row_was_to_be() -> None:
    """Its one row stands where the census saw a duplicate, and a retry asked for another row of it."""
    before = FakeUnit("a", (("2", "y"), ("2", "z"), ("3", None)))
    changes = detect_changes([before], read, run=InProcess())
    broken = FakeUnit("a", ((None, None),))
    for only in (None, {"a": frozenset({2})}):
        rows = main_pass([broken], changes, only)
        assert [(row["position"], row["error"]) for row in rows] == [(-1, "empty text")]
    assert main_pass([broken], changes, {"b": frozenset({2})}) == []


def test_an_error_is_not_hidden_by_a_duplicates() -> None:
    changes = detect_changes([FakeUnit("a", (("2", "y"), ("2", "z")))], read, run=InProcess())
    rows = main_pass([FakeUnit("a", (("2", "y"), ("2", None)))], changes)
    assert [row["error"] for row in rows] == [None, "empty text"]
