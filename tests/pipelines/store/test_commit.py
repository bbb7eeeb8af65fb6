"""The driver's commits: each fragment once, whatever the store answers, and never by a driver that was replaced."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import lance
import pyarrow as pa
import pytest

from pipelines.config import ConfigError
from pipelines.store import commit as commit_module
from pipelines.store.commit import CommitError, Committer, create_or_open
from pipelines.store.interrupt import interruptible
from pipelines.store.lease import Lease, LeaseLost, acquire
from pipelines.store.schema import Target
from pipelines.store.writer import write_block

Block = Callable[..., pa.Table]


@pytest.fixture
def committer(target: Target, lease: Lease) -> Committer:
    create_or_open(target, lease)
    return Committer(target, lease)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_module, "_FIRST_PAUSE", 0)


def give(committer: Committer, *blocks: pa.Table) -> None:
    for table in blocks:
        for record in write_block(table, committer.target).to_pylist():
            committer.add(record)


def chunks_in(target: Target) -> list[str]:
    return lance.dataset(target.documents_uri).to_table(columns=["chunk_id"]).column("chunk_id").to_pylist()


def addresses(target: Target, doc_id: str) -> list[int]:
    table = lance.dataset(target.documents_uri).to_table(columns=["doc_id"], with_row_address=True)
    return [a for i, a in zip(table["doc_id"].to_pylist(), table["_rowaddr"].to_pylist(), strict=True) if i == doc_id]


def test_rows_come_with_a_commit_and_not_before(committer: Committer, block: Block) -> None:
    give(committer, block(["a", "b"]), block(["c"], errors=["bad"]))
    assert chunks_in(committer.target) == []
    totals = committer.commit()
    assert chunks_in(committer.target) == ["a#0", "b#0"]
    assert (totals.rows, totals.documents, totals.quarantined, totals.fragments) == (2, 2, 1, 1)
    assert lance.dataset(committer.target.quarantine_uri).count_rows() == 1


def test_commits_are_due_by_number_or_by_time(target: Target, lease: Lease, block: Block) -> None:
    create_or_open(target, lease)
    committer = Committer(target, lease, fragments=2, seconds=0.2)
    assert not committer.commit_due()
    give(committer, block(["a"]))
    assert not committer.commit_due()
    give(committer, block(["b"]))
    assert committer.commit_due()
    committer.commit()
    give(committer, block(["c"]))
    assert not committer.commit_due()
    time.sleep(0.25)
    assert committer.commit_due()


def test_a_document_waits_for_its_last_chunk(committer: Committer, block: Block) -> None:
    give(committer, block(["a", "b"], chunks=[(0, 1), (0, 3)]), block(["b"], chunks=[(1, 3)]))
    committer.commit()
    assert chunks_in(committer.target) == ["a#0"]
    assert committer.incomplete == ["b"]
    give(committer, block(["b"], chunks=[(2, 3)], errors=["bad"]))
    committer.commit()
    assert chunks_in(committer.target) == ["a#0", "b#0", "b#1"]
    assert committer.incomplete == []


@pytest.mark.parametrize("seed", range(5))
def test_no_version_ever_holds_half_a_document(committer: Committer, block: Block, seed: int) -> None:
    random = Random(seed)
    counts = {f"d{i}": random.randint(1, 5) for i in range(12)}
    rows = [(doc, chunk) for doc, n in counts.items() for chunk in range(n)]
    blocks = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    random.shuffle(blocks)
    for part in blocks:
        give(committer, block([doc for doc, _ in part], chunks=[(chunk, counts[doc]) for doc, chunk in part]))
        committer.commit()
        found = Counter(chunk.partition("#")[0] for chunk in chunks_in(committer.target))
        assert all(counts[doc] == n for doc, n in found.items())
    assert found == counts
    assert committer.incomplete == []


def test_a_changed_document_is_replaced_by_one_commit(committer: Committer, block: Block) -> None:
    give(committer, block(["a", "a", "b"], chunks=[(0, 2), (1, 2), (0, 1)]))
    committer.commit()
    old = addresses(committer.target, "a")
    give(committer, block(["a"], replaces=[old], text="new text"))
    before = lance.dataset(committer.target.documents_uri).version
    assert committer.commit().replaced == 2
    dataset = lance.dataset(committer.target.documents_uri)
    assert dataset.version == before + 1
    rows = dataset.to_table(columns=["doc_id", "text"]).to_pylist()
    assert sorted((r["doc_id"], r["text"]) for r in rows) == [("a", "new text"), ("b", "text")]


def test_a_fragment_whose_rows_all_go_is_dropped(committer: Committer, block: Block) -> None:
    give(committer, block(["a"]))
    committer.commit()
    give(committer, block(["a"], replaces=[addresses(committer.target, "a")]))
    committer.commit()
    dataset = lance.dataset(committer.target.documents_uri)
    assert (dataset.count_rows(), len(dataset.get_fragments())) == (1, 1)


def test_rows_that_are_gone_already_do_not_stop_a_prune(committer: Committer, block: Block) -> None:
    give(committer, block(["a", "b"]))
    committer.commit()
    gone = addresses(committer.target, "a")
    assert committer.prune(gone) == 1
    assert committer.prune(gone) == 1
    assert chunks_in(committer.target) == ["b#0"]
    assert committer.prune([]) == 0


def test_a_table_that_was_compacted_behind_the_job_is_not_edited_blindly(committer: Committer, block: Block) -> None:
    give(committer, block(["a"]), block(["b"]))
    committer.commit()
    old = addresses(committer.target, "a")
    lance.dataset(committer.target.documents_uri).optimize.compact_files()
    give(committer, block(["a"], replaces=[old], text="new text"))
    with pytest.raises(CommitError, match="fragment 0 is gone: the table was compacted or edited by another program"):
        committer.commit()
    assert chunks_in(committer.target) == ["a#0", "b#0"]


class Store:
    """Stands in for `LanceDataset.commit`: fails before or after the real commit, as told for each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *faults: str) -> None:
        self.faults, self.calls, self.real = list(faults), 0, lance.LanceDataset.commit
        monkeypatch.setattr(commit_module.lance.LanceDataset, "commit", self.commit)

    def commit(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        fault = self.faults.pop(0) if self.faults else "none"
        if fault == "before":
            raise OSError("connection refused")
        result = self.real(*args, **kwargs)
        if fault == "after":
            raise OSError("connection reset while waiting for the reply")
        return result


@pytest.mark.parametrize("faults", [["after"], ["before", "after"], ["before", "before"], ["after", "after"]])
def test_a_lost_reply_neither_loses_nor_doubles_rows(
    committer: Committer, block: Block, monkeypatch: pytest.MonkeyPatch, faults: list[str]
) -> None:
    store = Store(monkeypatch, *faults)
    give(committer, block(["a", "b"]))
    committer.commit()
    give(committer, block(["c"]))
    committer.commit()
    assert Counter(chunks_in(committer.target)) == Counter(["a#0", "b#0", "c#0"])
    assert store.calls == 2 + faults.count("before")


def test_a_lost_reply_is_found_behind_other_commits(
    committer: Committer, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lance.LanceDataset.commit

    def lose(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(commit_module.lance.LanceDataset, "commit", real)
        dataset = real(*args, **kwargs)
        dataset.update_config({"somebody": "else"})
        raise OSError("connection reset")

    monkeypatch.setattr(commit_module.lance.LanceDataset, "commit", lose)
    give(committer, block(["a"]))
    committer.commit()
    assert chunks_in(committer.target) == ["a#0"]


def test_a_store_that_stays_away_ends_the_job_and_keeps_its_last_words(
    committer: Committer, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(monkeypatch, *["before"] * 20)
    give(committer, block(["a"]))
    with pytest.raises(CommitError, match="8 commits failed, the last one: connection refused"):
        committer.commit()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where a shell's background job runs the tests, which starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signal_during_a_commit_waits_and_nothing_is_committed_twice(
    committer: Committer, block: Block, monkeypatch: pytest.MonkeyPatch, number: int, moment: str
) -> None:
    """A driver that is interrupted commits once more on its way out."""
    real = lance.LanceDataset.commit

    def struck(*args: Any, **kwargs: Any) -> Any:
        if moment == "before":
            signal.raise_signal(number)
        dataset = real(*args, **kwargs)
        if moment == "after":
            signal.raise_signal(number)
        return dataset

    monkeypatch.setattr(commit_module.lance.LanceDataset, "commit", struck)
    give(committer, block(["a", "b"]))
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            committer.commit()
        committer.commit()
    assert chunks_in(committer.target) == ["a#0", "b#0"]


def test_after_a_commit_of_unknown_outcome_nothing_more_is_committed(
    committer: Committer, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> bool:
        raise OSError("connection refused")

    with monkeypatch.context() as broken:
        Store(broken, "after")
        broken.setattr(commit_module, "_find", lost)
        give(committer, block(["a"]))
        with pytest.raises(CommitError, match="8 commits failed"):
            committer.commit()
    with pytest.raises(CommitError, match="8 commits failed"):
        committer.commit()
    assert chunks_in(committer.target) == ["a#0"]


def test_a_driver_that_was_replaced_cannot_commit(
    target: Target, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "_keep", lambda self: None)
    old = acquire(target.uri, target.table, "old", lease_seconds=0.2)
    create_or_open(target, old)
    committer = Committer(target, old)
    give(committer, block(["a"]))
    with (
        acquire(target.uri, "documents", "other", lease_seconds=30),
        pytest.raises(LeaseLost, match="was taken for dead; now writing: job 'other'"),
    ):
        committer.commit()
    assert chunks_in(target) == []


def test_a_driver_frozen_after_its_check_is_refused_by_the_store(
    target: Target, another_run: Target, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old driver passes its lease check, is frozen, and wakes up when the new one has begun to write."""
    monkeypatch.setattr(Lease, "_keep", lambda self: None)
    old = acquire(target.uri, target.table, "old", lease_seconds=0.2)
    create_or_open(target, old)
    slow = Committer(target, old)
    give(slow, block(["a"]))
    frozen, awake = threading.Event(), threading.Event()
    check = Lease.check

    def check_and_freeze(self: Lease) -> None:
        check(self)
        if self is old and not frozen.is_set():
            frozen.set()
            assert awake.wait(20)

    monkeypatch.setattr(Lease, "check", check_and_freeze)
    refused: list[bool] = []

    def wake_up_and_commit() -> None:
        with pytest.raises(LeaseLost):
            slow.commit()
        refused.append(True)

    thread = threading.Thread(target=wake_up_and_commit)
    thread.start()
    assert frozen.wait(20)
    with acquire(target.uri, target.table, "new", lease_seconds=30) as new:
        create_or_open(another_run, new)
        quick = Committer(another_run, new)
        give(quick, block(["a", "b"]))
        quick.commit()
        awake.set()
        thread.join(20)
    assert refused == [True]
    assert chunks_in(target) == ["a#0", "b#0"]


def test_another_identity_is_refused_and_named(target: Target, lease: Lease) -> None:
    create_or_open(target, lease)
    metadata = {b"tridex.identity": target.schema.metadata[b"tridex.identity"].replace(b'"abc"', b'"xyz"')}
    other = replace(target, schema=target.schema.with_metadata(metadata))
    with pytest.raises(ConfigError, match=r"embedders.toy.weights: index has 'abc', you have 'xyz'"):
        create_or_open(other)


def test_other_metadata_columns_are_refused_and_named(target: Target, lease: Lease) -> None:
    create_or_open(target, lease)
    more = target.schema.append(pa.field("year", pa.int64()))
    with pytest.raises(ConfigError, match="the index has no column 'year', the job writes one"):
        create_or_open(replace(target, schema=more))
    at = target.schema.get_field_index("lang")
    with pytest.raises(ConfigError, match="column 'lang' is string in the index, int64 in the job"):
        create_or_open(replace(target, schema=target.schema.set(at, pa.field("lang", pa.int64()))))


def test_a_table_of_somebody_else_is_refused(target: Target, lease: Lease) -> None:
    lance.write_dataset(pa.table({"a": [1]}), target.documents_uri)
    with pytest.raises(ConfigError, match="is not a tridex index"):
        create_or_open(target, lease)
    assert lance.dataset(target.documents_uri).count_rows() == 1
