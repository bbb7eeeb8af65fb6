"""Applies a feed of changes to an index, `Index.apply(events)`: each event exactly once, by its position in the feed.

The positions up to which a feed is applied travel in the properties of the transaction that brings its documents, so a
commit has both or neither; whoever delivers an event again, after a crash or a rebalance, finds it done. `optimize`
copies them into the schema metadata before it removes old transactions. A batch is one commit (two if documents have
new metadata alone: those are written first, and may be written again with the same values). The iterator is not asked
for more while a batch is embedded and committed: a feed that is faster than the model waits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import lance
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import ConfigError
from pipelines.retrieval.handle import IndexHandle
from pipelines.retrieval.upsert import build_block, check_rows, compare, to_documents
from pipelines.retrieval.upsert import write_metadata as write_changed_metadata
from pipelines.store.commit import build_replacement, commit_once, fragments_of
from pipelines.store.documents import COMPARED, find_rows, hold_lease, target_of
from pipelines.store.event_positions import EVENTS, read_event_positions, record_event_positions
from pipelines.store.evolve import UPSERTED, upgrade_hashes
from pipelines.store.lease import Lease, LeaseHeld
from pipelines.store.schema import Target
from pipelines.store.writer import write_block

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH_EVENTS = 256
BATCH_SECONDS = 5.0
WAIT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class UpsertEvent:
    """Brings a document, whole. position: of the event in its partition, rising; row: as `Index.upsert` takes it."""

    position: int
    row: Mapping[str, Any]
    partition: str = ""

    @property
    def doc_id(self) -> str:
        return str(self.row.get("doc_id"))


@dataclass(frozen=True, slots=True)
class DeleteEvent:
    """Removes a document with all its chunks; one that is not there is no error."""

    position: int
    doc_id: str
    partition: str = ""


Event: TypeAlias = UpsertEvent | DeleteEvent


@dataclass(frozen=True, slots=True)
class Applied:
    """Counts what a feed has done. Several events of one document in a batch count once, by the last."""

    upserted: int = 0
    deleted: int = 0
    repeated: int = 0
    """Events that were applied before."""
    commits: int = 0
    positions: Mapping[str, int] = field(default_factory=dict)
    """Last applied position of each partition."""


def apply_events(
    index: IndexHandle,
    events: Iterable[Event | None],
    *,
    batch: int = BATCH_EVENTS,
    seconds: float = BATCH_SECONDS,
    wait: float = WAIT_SECONDS,
) -> Applied:
    """Applies events in their order until the iterator ends; returns what was done.

    A batch is committed when it has `batch` events or is `seconds` old, which is looked at whenever the iterator
    yields, be it None: a consumer yields None when nothing came. wait: seconds to wait for another writer's lease, then
    LeaseHeld. ConfigError for an event that cannot be applied, naming its position; batches before it are committed,
    its own is not. Searches see the documents after `open_index` is called again.
    """
    if batch < 1:
        raise ConfigError(f"batch: must be at least 1, got {batch}")
    done, pending, began = Applied(), list[Event](), 0.0
    for event in events:
        if event is not None:
            _check_event(index, event)
            began = began if pending else time.monotonic()
            pending.append(event)
        if pending and (len(pending) >= batch or time.monotonic() - began >= seconds):
            done, pending = _apply_batch(index, pending, done, wait), []
    return _apply_batch(index, pending, done, wait) if pending else done


def _check_event(index: IndexHandle, event: Event) -> None:
    place = f"apply: event {event.position} of partition {event.partition!r}"
    if isinstance(event.position, bool) or not isinstance(event.position, int):
        raise ConfigError(f"{place}: a position is an integer, got {type(event.position).__name__}")
    if isinstance(event, UpsertEvent):
        check_rows(index, [event.row], place)


def _apply_batch(index: IndexHandle, events: Sequence[Event], done: Applied, wait: float) -> Applied:
    target = target_of(index.snapshot, UPSERTED)
    with _wait_for_lease(target, wait) as lease:
        dataset = upgrade_hashes(target, lease)
        target = replace(target, schema=dataset.schema)
        positions = dict(read_event_positions(dataset) or {})
        if read_event_positions(dataset) is None:
            dataset = record_event_positions(target, lease, {})
        new = list(_iterate_new(events, positions))
        done = replace(done, repeated=done.repeated + len(events) - len(new), positions=positions)
        return _commit_batch(index, target, lease, new, positions, done) if new else done


def _wait_for_lease(target: Target, wait: float) -> Lease:
    end = time.monotonic() + wait
    while True:
        try:
            return hold_lease(target)
        except LeaseHeld:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def _iterate_new(events: Iterable[Event], positions: dict[str, int]) -> Iterator[Event]:
    """Yields the events beyond `positions`, which it advances."""
    for event in events:
        if event.position > positions.get(event.partition, -1):
            positions[event.partition] = event.position
            yield event


def _commit_batch(
    index: IndexHandle,
    target: Target,
    lease: Lease,
    events: Sequence[Event],
    positions: Mapping[str, int],
    done: Applied,
) -> Applied:
    """Writes the last state of every document that the events name, and the positions, in one transaction."""
    last = {event.doc_id: event for event in events}
    rows = [event.row for event in last.values() if isinstance(event, UpsertEvent)]
    gone = [event.doc_id for event in last.values() if isinstance(event, DeleteEvent)]
    dataset = lance.dataset(target.documents_uri, storage_options=dict(target.storage_options))
    stored = find_rows(dataset, last, COMPARED)
    documents = to_documents(target, rows)
    diff = compare(documents, stored)
    if len(diff.updated):
        write_changed_metadata(target, lease, documents, diff, dataset.version)
    settled = set(diff.done[:, 1].tolist())
    changed = [i for i in range(len(rows)) if i not in settled]
    replaced = [*gone, *(rows[i]["doc_id"] for i in changed)]
    old = stored.filter(pc.is_in(stored.column("doc_id"), value_set=pa.array(replaced, pa.string())))
    addresses = old.column("_rowaddr").to_pylist()
    records = []
    if changed:
        block = build_block(index, target, documents.take(pa.array(changed)), rows, changed)
        records = write_block(block, target).to_pylist()
    new = fragments_of(records)

    def operation(dataset: lance.LanceDataset) -> Any:
        if new or addresses:
            return build_replacement(dataset, new, addresses)
        return lance.LanceOperation.UpdateConfig(schema_metadata_updates=lance.LanceOperation.UpdateMap({}))

    properties = {"job": target.job, "run": target.run, "seq": "apply", EVENTS: json.dumps(positions)}
    commit_once(target.documents_uri, target.storage_options, operation, properties, lease.check)
    deleted = len({*old.column("doc_id").to_pylist()} & {*gone})
    return replace(
        done,
        upserted=done.upserted + len(rows),
        deleted=done.deleted + deleted,
        commits=done.commits + 1,
        positions=dict(positions),
    )
