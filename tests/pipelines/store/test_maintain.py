"""Optimize, status and quarantine: nothing that is in use is touched, and what is there is told as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from pipelines.config import ConfigError
from pipelines.store.commit import Committer, create_or_open
from pipelines.store.lease import LeaseHeld, acquire
from pipelines.store.maintain import find_orphans, optimize, target_rows
from pipelines.store.quarantine import count_reasons, drop_old_quarantine, failed_rows
from pipelines.store.schema import Target
from pipelines.store.status import read_status
from pipelines.store.writer import write_block

Block = Callable[..., pa.Table]
NOW = timedelta(0)


def build(target: Target, *blocks: pa.Table) -> None:
    with acquire(target.uri, target.table, target.job) as lease:
        create_or_open(target, lease)
        committer = Committer(target, lease)
        for table in blocks:
            for record in write_block(table, target).to_pylist():
                committer.add(record)
            committer.commit()


def data_files(target: Target) -> set[str]:
    return {p.name for p in Path(target.documents_uri, "data").iterdir()}


def test_optimize_joins_fragments_and_drops_old_versions(target: Target, block: Block) -> None:
    build(target, *(block([str(i)]) for i in range(5)))
    done = optimize(target.uri, keep_versions=NOW, orphan_age=NOW)
    assert (done.fragments_before, done.fragments_after, done.orphans_removed) == (5, 1, 0)
    assert done.versions_removed > 0
    assert done.bytes_freed > 0
    dataset = lance.dataset(target.documents_uri)
    assert dataset.to_table(columns=["doc_id"]).column("doc_id").to_pylist() == ["0", "1", "2", "3", "4"]
    assert len(data_files(target)) == 1


def test_files_of_a_dead_worker_are_removed_only_when_old_enough(target: Target, block: Block) -> None:
    build(target, block(["a"]))
    write_block(block(["b"]), target)
    assert len(find_orphans(lance.dataset(target.documents_uri))) == 1
    kept = optimize(target.uri)
    assert (kept.orphans_removed, kept.orphans_kept, len(data_files(target))) == (0, 1, 2)
    removed = optimize(target.uri, orphan_age=NOW)
    assert (removed.orphans_removed, removed.orphans_kept, len(data_files(target))) == (1, 0, 1)
    assert lance.dataset(target.documents_uri).count_rows() == 1


def test_nothing_is_optimized_while_a_job_writes(target: Target, block: Block) -> None:
    build(target, block(["a"]))
    with acquire(target.uri, target.table, "nightly", lease_seconds=1), pytest.raises(LeaseHeld, match="job 'nightly'"):
        optimize(target.uri)


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    for call in (optimize, read_status):
        with pytest.raises(ConfigError, match="no such index"):
            call(str(tmp_path / "nowhere"))


def test_fragments_are_sized_by_bytes(target: Target, block: Block) -> None:
    build(target, block([str(i) for i in range(100)]))
    dataset = lance.dataset(target.documents_uri)
    assert target_rows(dataset, fragment_bytes=1) == 1024
    assert target_rows(dataset, fragment_bytes=2**50) == 2**20


def test_status_tells_what_is_there(target: Target, block: Block) -> None:
    build(target, block(["a", "b", "b"], chunks=[(0, 1), (0, 2), (1, 2)]), block(["c"], errors=["bad"]))
    status = read_status(target.uri)
    assert (status.documents, status.rows, status.fragments, status.quarantine) == (2, 3, 1, 1)
    assert (status.last_job, status.writer) == ("test", None)
    assert status.bytes > 0
    assert status.embedders["toy"]["model"] == "toy"
    assert "2 documents in 3 rows" in status.text()
    assert "1 x bad (shard.parquet row 0)" in status.text()
    with acquire(target.uri, target.table, "nightly"):
        assert "job 'nightly'" in (read_status(target.uri).writer or "")


def test_quarantine_lists_what_failed_in_the_last_run(target: Target, another_run: Target, block: Block) -> None:
    build(target, block(["a", "b"], errors=["bad", "worse"]))
    build(another_run, block(["b"], errors=["worse"]))
    assert len(failed_rows(target.uri)["shard.parquet"]) == 2
    drop_old_quarantine(another_run)
    assert failed_rows(target.uri) == {"shard.parquet": frozenset({0})}
    rows = lance.dataset(target.quarantine_uri).to_table().to_pylist()
    assert [(r["doc_id"], r["run"]) for r in rows] == [("b", another_run.run)]


def test_reasons_come_most_frequent_first_and_duplicates_count_as_one(target: Target, block: Block) -> None:
    errors = ["empty text", "duplicate id, first seen in a row 1", "duplicate id, first seen in b row 2"]
    build(target, block(["a", "b", "c"], errors=errors))
    assert [(r["error"], r["rows"]) for r in count_reasons(target.uri)] == [("duplicate id", 2), ("empty text", 1)]
    assert count_reasons(target.uri, limit=1)[0]["source"] == "shard.parquet"


def test_an_index_without_quarantine_has_no_failed_rows(target: Target) -> None:
    assert failed_rows(target.uri) == {}
    assert count_reasons(target.uri) == []
    drop_old_quarantine(replace(target, run="x"))
