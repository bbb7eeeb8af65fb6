"""Feeds of changes: every event once, in order, whatever is delivered again, and whenever the program dies."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from pipelines.config import ConfigError
from pipelines.integrity.check import check_index
from pipelines.retrieval import events as feed
from pipelines.retrieval.events import DeleteEvent, Event, UpsertEvent
from pipelines.retrieval.index import Index, open_index
from pipelines.store.lease import LeaseHeld, acquire
from pipelines.store.maintain import optimize
from tests.indexes import WordEmbedder, corpus, make_index

NOW = timedelta(0)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    uri = make_index(tmp_path, corpus(20), metadata={"year": pa.array([2000] * 20)})
    return open_index(uri, embedder=WordEmbedder())


def stored(index: Index) -> dict[str, tuple[str, int | None]]:
    table = lance.dataset(f"{index.snapshot.uri}/documents.lance").to_table(columns=["doc_id", "text", "year"])
    rows = table.to_pylist()
    assert len({row["doc_id"] for row in rows}) == len(rows)
    return {row["doc_id"]: (row["text"], row["year"]) for row in rows}


def upsert(position: int, doc_id: str, text: str, year: int | None = 2000, partition: str = "") -> UpsertEvent:
    return UpsertEvent(position, {"doc_id": doc_id, "text": text, "year": year}, partition)


def test_events_are_applied_in_order_and_once(index: Index) -> None:
    events: list[Event] = [
        upsert(0, "a", "first text"),
        upsert(1, "d0001", "another text"),
        DeleteEvent(2, "d0002"),
        upsert(3, "a", "second text"),
        upsert(4, "d0003", corpus(4)["d0003"], 2024),
        DeleteEvent(5, "nobody"),
    ]
    done = index.apply(events)
    assert (done.upserted, done.deleted, done.repeated, done.commits) == (3, 1, 0, 1)
    assert done.positions == index.applied_positions() == {"": 5}
    after = stored(index)
    assert (after["a"], after["d0001"]) == (("second text", 2000), ("another text", 2000))
    assert after["d0003"] == (corpus(4)["d0003"], 2024)
    assert "d0002" not in after
    index.upsert([{"doc_id": "a", "text": "by hand"}])
    again = index.apply([*events, upsert(6, "b", "a new text")])
    assert (again.repeated, again.upserted, again.positions) == (6, 1, {"": 6})
    assert stored(index)["a"] == ("by hand", None)
    assert check_index(index.snapshot.uri).sound


def test_partitions_have_positions_of_their_own(index: Index) -> None:
    index.apply([upsert(7, "a", "one", partition="t/0"), upsert(3, "b", "two", partition="t/1")])
    done = index.apply([upsert(4, "b", "three", partition="t/1"), upsert(7, "a", "late", partition="t/0")])
    assert (done.repeated, done.positions) == (1, {"t/0": 7, "t/1": 4})
    assert (stored(index)["a"][0], stored(index)["b"][0]) == ("one", "three")


def test_positions_outlive_optimize_and_other_commits(index: Index) -> None:
    events = [upsert(i, f"n{i}", f"text {i}") for i in range(3)]
    index.apply(events)
    index.delete(["n0"])
    for _ in range(2):
        optimize(index.snapshot.uri, keep_versions=NOW, orphan_age=NOW)
        assert index.applied_positions() == {"": 2}
    assert index.apply(events).repeated == 3
    assert "n0" not in stored(index)


def test_batches_are_bounded_by_number_and_by_time(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    assert index.apply([upsert(i, f"n{i}", f"text {i}") for i in range(7)], batch=3).commits == 3
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(feed.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(feed, "hold_lease", lambda target, real=feed.hold_lease: real(target))
    seen: list[int] = []

    def slowly() -> Iterator[Event | None]:
        for i in range(7, 9):
            yield upsert(i, f"n{i}", f"text {i}")
            yield None
            yield None
            seen.append(index.applied_positions()[""])

    monkeypatch.setattr(feed, "_wait_for_lease", lambda target, wait: feed.hold_lease(target))
    assert index.apply(slowly(), seconds=5).commits == 2
    assert seen == [7, 8]


def test_a_feed_that_dies_anywhere_ends_as_if_it_had_not(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before or after commits at random, delivered again from an earlier event each time."""
    rng = random.Random(5)
    events: list[Event] = []
    want = {i: text for i, (text, _) in stored(index).items()}
    for position in range(60):
        doc_id = f"d{rng.randrange(30):04d}"
        if rng.random() < 0.3:
            events.append(DeleteEvent(position, doc_id))
            want.pop(doc_id, None)
        else:
            want[doc_id] = f"text {rng.randrange(8)}"
            events.append(upsert(position, doc_id, want[doc_id], rng.choice([2000, 2001])))
    real = lance.LanceDataset.commit

    def dying(uri: str, *args: Any, **kwargs: Any) -> Any:
        if uri.endswith("documents.lance") and rng.random() < 0.25:
            raise KeyboardInterrupt
        result = real(uri, *args, **kwargs)
        if uri.endswith("documents.lance") and rng.random() < 0.25:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(lance.LanceDataset, "commit", dying)
    deaths = 0
    while True:
        try:
            index.apply(events[max(0, index.applied_positions().get("", 0) - 9) :], batch=7)
            break
        except KeyboardInterrupt:
            deaths += 1
    assert deaths > 3
    assert {i: text for i, (text, _) in stored(index).items()} == want
    assert index.applied_positions() == {"": 59}
    assert check_index(index.snapshot.uri).sound


def test_an_event_that_cannot_be_applied_is_named_and_what_was_before_stays(index: Index) -> None:
    with pytest.raises(ConfigError, match="apply: event 1 of partition 't/0': text must be a text that is not empty"):
        index.apply([upsert(0, "a", "fine", partition="t/0"), upsert(1, "b", " ", partition="t/0")], batch=1)
    assert stored(index)["a"] == ("fine", 2000)
    with pytest.raises(ConfigError, match="has no column 'colour'"):
        index.apply([UpsertEvent(2, {"doc_id": "c", "text": "x", "colour": "red"})])
    with pytest.raises(ConfigError, match="a position is an integer, got str"):
        index.apply([DeleteEvent("2", "c")])  # type: ignore[arg-type]


def test_another_writer_is_waited_for_and_then_named(index: Index) -> None:
    with (
        acquire(index.snapshot.uri, "documents", "nightly", lease_seconds=1),
        pytest.raises(LeaseHeld, match="nightly"),
    ):
        index.apply([upsert(0, "a", "one")], wait=0)
    assert index.apply([upsert(0, "a", "one")], wait=0).upserted == 1
