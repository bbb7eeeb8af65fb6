"""Commits the fragments that workers wrote, on the driver: their rows join the table, each exactly once.

Lance itself does not help here: an append is never refused, and the same fragment committed twice is there twice. So
every commit carries {job, run, seq}; after an error the driver looks whether the table's history has that transaction
before it tries again. A commit builds on a version that was read before the lease was checked, and a driver that takes
a lease over first commits a fence (a merge that changes nothing, which Lance lets no older append pass): a driver that
was frozen in between is refused by the store itself, not by a check that it might have passed long ago.

Documents are replaced and completed whole: a fragment with some chunks of a document waits in `Committer` until all of
its chunks were written, and the rows that a changed document replaces are deleted by the commit that adds the new.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import lance
import numpy as np
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata

from pipelines.config import ConfigError, WorkFailed
from pipelines.store.datasets import create_dataset, open_dataset
from pipelines.store.interrupt import uninterrupted
from pipelines.store.lease import Lease
from pipelines.store.schema import FORMAT_VERSION, Identity, Target, quarantine_schema
from pipelines.store.writer import split_addresses

Record = Mapping[str, Any]
"""One row of `writer.RECORD_SCHEMA`."""

ATTEMPTS = 8
_FIRST_PAUSE = 0.2


class CommitError(WorkFailed):
    """Signals that the table could not be written; rows committed before stay, and the job can be restarted."""


def compare_settings(dataset: lance.LanceDataset, target: Target) -> None:
    """Raises ConfigError if the table was built by other settings, naming the first that differs.

    Columns that the table lacks are no difference, nor are outputs and embedders that the job adds, nor that it is of
    an older format: `store.evolve` and the back-fill add them.
    """
    have = Identity.from_metadata(dataset.schema.metadata)
    if have is None:
        raise ConfigError(f"{target.documents_uri}: this table is not a tridex index (no identity in its schema)")
    have = replace(have, format_version=max(have.format_version, FORMAT_VERSION))
    difference = have.difference(have.common(target.identity))
    if difference is not None:
        raise ConfigError(f"{target.documents_uri}: the index was built with other settings: {difference}")
    for column in target.schema:
        if column.name not in dataset.schema.names:
            continue
        have_type = dataset.schema.field(column.name).type
        if have_type != column.type:
            raise ConfigError(
                f"{target.documents_uri}: column {column.name!r} is {have_type} in the index, {column.type} in the "
                f"job; `input.columns.metadata: {{{column.name}: TYPE}}` states the index's type"
            )


def verify_settings(dataset: lance.LanceDataset, target: Target) -> None:
    """Raises as `compare_settings`, and ConfigError also if the table lacks a column or an output."""
    compare_settings(dataset, target)
    have = Identity.from_metadata(dataset.schema.metadata)
    difference = None if have is None else have.difference(target.identity)
    if difference is not None:
        raise ConfigError(f"{target.documents_uri}: the index was built with other settings: {difference}")
    lacking = next((c.name for c in target.schema if c.name not in dataset.schema.names), None)
    if lacking is not None:
        raise ConfigError(f"{target.documents_uri}: the index has no column {lacking!r}, the job writes one")


def create_or_open(target: Target, lease: Lease | None = None) -> lance.LanceDataset:
    """Opens the `documents` table of `target` and verifies it, or creates it empty.

    Makes the quarantine table too. With a lease that was taken over, fences off the driver that held it before.
    """
    options = dict(target.storage_options)
    dataset = open_dataset(target.documents_uri, options)
    if dataset is None:
        dataset = create_dataset(target.documents_uri, target.schema, options)
    else:
        verify_settings(dataset, target)
    if open_dataset(target.quarantine_uri, options) is None:
        create_dataset(target.quarantine_uri, quarantine_schema(), options)
    if lease is not None and lease.took_over:
        dataset = commit_fence(target, lease)
    return dataset


def commit_fence(target: Target, lease: Lease) -> lance.LanceDataset:
    """Commits a merge that changes nothing; commits based on older versions are refused from then on."""
    properties = {"job": target.job, "run": target.run, "fence": str(lease.row.epoch)}

    def operation(dataset: lance.LanceDataset) -> Any:
        return lance.LanceOperation.Merge([f.metadata for f in dataset.get_fragments()], dataset.lance_schema)

    return commit_once(target.documents_uri, target.storage_options, operation, properties, lease.check)


def _find(dataset: lance.LanceDataset, since: int, properties: Mapping[str, str]) -> bool:
    """Returns whether a version after `since` was made by the transaction with these properties."""
    for version in range(since + 1, dataset.latest_version + 1):
        if properties.items() <= read_properties(dataset, version).items():
            return True
    return False


def read_properties(dataset: lance.LanceDataset, version: int) -> dict[str, str]:
    """Returns the properties of the transaction that made a version; none if it is gone, or was a compaction.

    pylance 14 raises TypeError for a compaction that moved an index; no commit of ours is one.
    """
    try:
        transaction = dataset.read_transaction(version)
    except (OSError, ValueError, TypeError):
        return {}
    return {} if transaction is None else dict(transaction.transaction_properties)


def commit_once(
    uri: str,
    options: Mapping[str, str],
    operation: Callable[[lance.LanceDataset], Any],
    properties: Mapping[str, str],
    check: Callable[[], None],
) -> lance.LanceDataset:
    """Commits one transaction exactly once: based on a version read before `check`, looked up before a retry.

    `properties` must be unique to this transaction. CommitError after `ATTEMPTS` attempts, with the store's last words.
    """
    since: int | None = None
    failure: Exception | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        try:
            dataset = lance.dataset(uri, storage_options=dict(options))
            if since is None:
                since = dataset.version
            elif _find(dataset, since, properties):
                return dataset
            check()
            transaction = lance.Transaction(dataset.version, operation(dataset), transaction_properties=properties)
            return lance.LanceDataset.commit(uri, transaction, storage_options=dict(options), max_retries=0)
        except (OSError, CommitConflictError) as error:
            failure = error
    raise CommitError(f"{uri}: {ATTEMPTS} commits failed, the last one: {failure}") from failure


def fragments_of(records: Iterable[Record]) -> list[FragmentMetadata]:
    """Returns the fragments that records of `write_block` name."""
    return [FragmentMetadata.from_json(r["fragment"]) for r in records]


def build_replacement(dataset: lance.LanceDataset, new: list[FragmentMetadata], addresses: list[int]) -> Any:
    """Builds an operation that adds fragments and deletes rows at `addresses` in one step; an append without any.

    CommitError if a fragment is gone: somebody compacted the table without the lease, and the rows have moved.
    """
    if not addresses:
        return lance.LanceOperation.Append(new)
    updated, emptied = [], []
    for fragment_id, offsets in split_addresses(np.array(addresses, np.uint64)).items():
        fragment = dataset.get_fragment(fragment_id)
        if fragment is None:
            raise CommitError(
                f"{dataset.uri}: fragment {fragment_id} is gone: the table was compacted or edited by another program "
                "while the job ran; start the job again"
            )
        left = fragment.delete_rows(offsets)
        if left is None:
            emptied.append(fragment_id)
        else:
            updated.append(left)
    return lance.LanceOperation.Update(
        removed_fragment_ids=emptied, updated_fragments=updated, new_fragments=new, fields_modified=[]
    )


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts what a driver has committed since it started."""

    rows: int = 0
    documents: int = 0
    quarantined: int = 0
    duplicates: int = 0
    """Of the quarantined rows, those that only repeat an id."""
    reason: str | None = None
    """File, row and error of the first bad row."""
    replaced: int = 0
    n_tokens: int = 0
    n_truncated: int = 0
    rows_truncated: int = 0
    n_padding: int = 0
    """Tokens computed for nothing."""
    n_halvings: int = 0
    """How often a device ran out of memory and a batch was halved."""
    bytes: int = 0
    fragments: int = 0
    commits: int = 0

    @property
    def padding(self) -> float:
        """Returns the share of the computed tokens that were padding."""
        return self.n_padding / max(1, self.n_tokens + self.n_padding)

    def plus(self, records: Iterable[Record]) -> Totals:
        total = self
        for r in records:
            total = replace(
                total,
                n_padding=total.n_padding + (r.get("n_padding") or 0),
                n_halvings=total.n_halvings + (r.get("n_halvings") or 0),
            )
            if r["kind"] == "quarantine":
                duplicates = total.duplicates + (r.get("duplicates") or 0)
                quarantined, reason = total.quarantined + r["rows"], total.reason or r.get("reason")
                total = replace(total, quarantined=quarantined, duplicates=duplicates, reason=reason)
                continue
            total = replace(
                total,
                rows=total.rows + r["rows"],
                documents=total.documents + r["documents"],
                replaced=total.replaced + len(r["replaces"]),
                n_tokens=total.n_tokens + r["n_tokens"],
                n_truncated=total.n_truncated + r["n_truncated"],
                rows_truncated=total.rows_truncated + r["rows_truncated"],
                bytes=total.bytes + r["bytes"],
                fragments=total.fragments + 1,
            )
        return replace(total, commits=total.commits + 1)


@dataclass(slots=True)
class CommitState:
    """Tracks a driver's commits. After a CommitError the table's content is unknown until the next driver reads it."""

    error: CommitError | None = None

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Defers signals between a commit and the driver's record of it. Raises an earlier error."""
        if self.error is not None:
            raise self.error
        with uninterrupted():
            try:
                yield
            except CommitError as error:
                self.error = error
                raise


@dataclass(slots=True)
class _PartialDocument:
    """Holds a document whose chunks have not all arrived."""

    of: int
    seen: int = 0
    records: list[Record] = field(default_factory=list)


@dataclass(slots=True)
class Committer:
    """Collects records of `write_block` and commits them every `fragments` fragments or `seconds` seconds.

    Call `commit_due` after each record: nothing is committed by itself.
    """

    target: Target
    lease: Lease
    fragments: int = 16
    seconds: float = 60
    totals: Totals = Totals()
    _seq: int = 0
    _ready: list[Record] = field(default_factory=list)
    _failed: list[Record] = field(default_factory=list)
    _held: dict[str, _PartialDocument] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)
    _outcome: CommitState = field(default_factory=CommitState)

    def add(self, record: Record) -> None:
        """Takes one record that `write_block` returned."""
        good = record["kind"] == "documents"
        if not good:
            self._failed.append(record)
        elif not record["partial"]:
            self._ready.append(record)
        for part in record["partial"]:
            held = self._held.setdefault(part["doc_id"], _PartialDocument(part["of"]))
            held.seen += part["rows"]
            if good:
                held.records.append(record)
            if held.seen >= held.of:
                self._ready += self._held.pop(part["doc_id"]).records

    @property
    def incomplete(self) -> list[str]:
        """Lists ids of documents whose chunks have not all arrived; after the last block: those that lost a block."""
        return list(self._held)

    @property
    def pending(self) -> int:
        """Counts the fragments of the next commit."""
        return len(self._ready) + len(self._failed)

    def commit_due(self) -> bool:
        if not self.pending:
            return False
        return self.pending >= self.fragments or time.monotonic() - self._last >= self.seconds

    def commit(self) -> Totals:
        """Commits the records that are ready, failed rows to the quarantine first.

        LeaseLost if another driver took over.

        After a CommitError every later call raises it again (`CommitState`).
        """
        with self._outcome.settled():
            if self._failed:
                self._transact(self.target.quarantine_uri, self._failed)
                self._failed = []
            if self._ready:
                self._transact(self.target.documents_uri, self._ready)
                self._ready = []
        self._last = time.monotonic()
        return self.totals

    def prune(self, addresses: Iterable[int]) -> int:
        """Deletes rows (`Changes.prune`) in one commit; returns how many."""
        gone = list(addresses)
        if gone:
            self._operate(self.target.documents_uri, lambda dataset: build_replacement(dataset, [], gone))
        return len(gone)

    def _transact(self, uri: str, records: list[Record]) -> None:
        new = fragments_of(records)
        replaced = sorted({address for r in records for address in r["replaces"]})
        self._operate(uri, lambda dataset: build_replacement(dataset, new, replaced))
        self.totals = self.totals.plus(records)

    def _operate(self, uri: str, operation: Callable[[lance.LanceDataset], Any]) -> None:
        self._seq += 1
        properties = {"job": self.target.job, "run": self.target.run, "seq": str(self._seq)}
        commit_once(uri, self.target.storage_options, operation, properties, self.lease.check)
