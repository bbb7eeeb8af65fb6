"""Reads one version of the documents table: its identity, its rows, and their numbering by position.

A snapshot is pinned when it is opened: writers go on, this reader sees what it opened until it opens again. Rows are
numbered 0..n-1 in table order ("positions"), which index arrays; Lance's own row addresses (fragment << 32 |
offset) are translated at the border. That costs one list of offsets for each fragment that has deletions, and nothing
for the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.outputs import IntArray, offsets_of
from actors.suggest import did_you_mean
from pipelines.config import BuildConfig, ConfigError, InvalidRequest, absolute_uri, plain_options
from pipelines.store.conditions import check_filter, compares_integers, evaluate_condition, parse_text_list
from pipelines.store.datasets import open_dataset
from pipelines.store.schema import (
    FORMAT_VERSION,
    SYSTEM_COLUMNS,
    Identity,
    metadata_columns,
    only_embedder,
    promotions,
    table_uri,
)

Addresses = npt.NDArray[np.uint64]
COMPUTED_ROWS = 2_000_000
"""Up to so many rows a condition over integers is computed for every row (4.5 ns each); above, a scalar index that
finds the few rows of a selective one is much faster."""


def sql_literal(value: str | int) -> str:
    """Quotes a value as a SQL literal, the only place where values enter a filter."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError(f"ids are strings or integers, got {type(value).__name__}")
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def sql_in(column: str, values: Iterable[str | int]) -> str:
    """Builds `column IN (...)` over quoted values; without values, a condition that no row meets."""
    literals = ", ".join(map(sql_literal, values))
    return f"{column} IN ({literals})" if literals else "false"


@dataclass(frozen=True, slots=True)
class Fragment:
    """Holds live rows of one fragment.

    first: position of the first; live: offsets within the fragment, None for all.
    """

    id: int
    first: int
    rows: int
    live: npt.NDArray[np.uint32] | None

    @property
    def physical_rows(self) -> int:
        """Returns how many rows it has up to the last live one, deleted ones included."""
        if self.live is None:
            return self.rows
        return int(self.live[-1]) + 1 if len(self.live) else 0


@dataclass(frozen=True)
class Rows:
    """Translates between positions (0..n-1 over the live rows, in table order) and row addresses."""

    fragments: tuple[Fragment, ...]

    def __len__(self) -> int:
        return sum(f.rows for f in self.fragments)

    def addresses(self, positions: IntArray) -> Addresses:
        """Returns the addresses of positions."""
        owner = np.searchsorted(self._first, positions, side="right") - 1
        offsets = positions - self._first[owner]
        for i in self._with_deletions:
            live, chosen = self.fragments[i].live, owner == i
            assert live is not None
            offsets[chosen] = live[offsets[chosen]]
        return (self._ids[owner] << np.uint64(32)) | offsets.astype(np.uint64)

    def positions(self, addresses: Addresses) -> IntArray:
        """Returns positions of addresses, -1 for those that are not (or no longer) in the table."""
        ids = (addresses >> np.uint64(32)).astype(np.int64)
        offsets = (addresses & np.uint64(0xFFFFFFFF)).astype(np.int64)
        owner = self._number_by_id[np.minimum(ids, len(self._number_by_id) - 1)]
        result = np.where(offsets < self._counts[owner], self._first[owner] + offsets, -1)
        for i in self._with_deletions:
            chosen = np.flatnonzero(owner == i)
            result[chosen] = _positions_in(self.fragments[i], offsets[chosen])
        result[owner < 0] = -1
        return result

    def mask(self, addresses: Addresses) -> npt.NDArray[np.bool_]:
        """Returns a mask over positions of the rows at these addresses, all of which must be in the table.

        One pass over the addresses: 1.4 ms for 450,000, whose positions take 10 ms.
        """
        places, starts = (
            addresses.view(np.int64),
            offsets_of(np.array([f.physical_rows for f in self.fragments], np.int64)),
        )
        shifts = np.zeros(len(self._number_by_id), np.int64)
        for f, start in zip(self.fragments, starts[:-1].tolist(), strict=True):
            shifts[f.id] = start - (f.id << 32)
        physical = np.zeros(int(starts[-1]), bool)
        physical[places + shifts[places >> 32]] = True
        if not self._with_deletions:
            return physical
        parts = [physical[a:b] for a, b in pairwise(starts.tolist())]
        return np.concatenate([m if f.live is None else m[f.live] for f, m in zip(self.fragments, parts, strict=True)])

    @cached_property
    def _first(self) -> IntArray:
        return np.array([f.first for f in self.fragments] or [0], np.int64)

    @cached_property
    def _counts(self) -> IntArray:
        return np.array([f.rows for f in self.fragments] or [0], np.int64)

    @cached_property
    def _ids(self) -> Addresses:
        return np.array([f.id for f in self.fragments] or [0], np.uint64)

    @cached_property
    def _number_by_id(self) -> IntArray:
        """Maps a fragment's id to its place in `fragments`, -1 for an id that is not there; the last entry is one."""
        numbers = np.full(max((f.id for f in self.fragments), default=-1) + 2, -1, np.int64)
        for i, fragment in enumerate(self.fragments):
            numbers[fragment.id] = i
        return numbers

    @cached_property
    def _with_deletions(self) -> tuple[int, ...]:
        return tuple(i for i, f in enumerate(self.fragments) if f.live is not None)


def _positions_in(fragment: Fragment, offsets: IntArray) -> IntArray:
    assert fragment.live is not None
    if not len(fragment.live):
        return np.full(len(offsets), -1, np.int64)
    where = np.minimum(np.searchsorted(fragment.live, offsets), len(fragment.live) - 1)
    return np.where(fragment.live[where] == offsets, fragment.first + where, -1)


def rows_of(dataset: Any) -> Rows:
    """Reads the deletions of those fragments that have any, to number the live rows."""
    found = dataset.get_fragments()
    live = [_live_offsets(dataset, f) if f.num_deletions else None for f in found]
    counts = [f.physical_rows if a is None else len(a) for f, a in zip(found, live, strict=True)]
    starts = offsets_of(np.array(counts, np.int64))
    return Rows(
        tuple(
            Fragment(f.fragment_id, int(first), rows, offsets)
            for f, first, rows, offsets in zip(found, starts[:-1], counts, live, strict=True)
        )
    )


def _live_offsets(dataset: Any, fragment: Any) -> npt.NDArray[np.uint32]:
    table = dataset.scanner(columns=["_rowaddr"], fragments=[fragment], scan_in_order=True).to_table()
    addresses: Addresses = table["_rowaddr"].to_numpy()
    return (addresses & np.uint64(0xFFFFFFFF)).astype(np.uint32)


@dataclass(frozen=True)
class Snapshot:
    """Holds one version of an index's documents table, open for reading."""

    uri: str
    dataset: Any
    """A `lance.LanceDataset`, checked out at one version."""
    identity: Identity
    storage_options: Mapping[str, str]
    table: str = "documents"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def version(self) -> int:
        return int(self.dataset.version)

    @property
    def schema(self) -> pa.Schema:
        return self.dataset.schema

    @property
    def promoted(self) -> str | None:
        """Returns the embedder that a search takes if it names none: the promoted one, or the only one."""
        chosen = promotions(self.schema.metadata)
        return chosen[0] if chosen else only_embedder(self.identity)

    @cached_property
    def rows(self) -> Rows:
        return rows_of(self.dataset)

    @cached_property
    def has_chunks(self) -> bool:
        """Returns whether any document has several rows."""
        if self.identity.chunk["mode"] == "whole":
            return False
        scanner = self.dataset.scanner(columns=["chunk_id"], filter="chunk_count > 1", limit=1)
        return bool(scanner.to_table().num_rows)

    @cached_property
    def metadata_columns(self) -> tuple[str, ...]:
        """Lists the user's own columns, in table order, without those that a job is still filling."""
        return metadata_columns(self.schema)

    def indexes(self) -> dict[str, Any]:
        """Maps each indexed column to the description of Lance's index on it."""
        return {d.field_names[0]: d for d in self.dataset.describe_indices()}

    def index_statistics(self, name: str) -> dict[str, Any]:
        """Returns what an index covers, and for a vector index its kind, metric and partitions."""
        # Else all centroids come along: 73 ms in place of 5 at a million rows, and a warning.
        os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")
        return dict(self.dataset.stats.index_stats(name))

    def scan(self, columns: Sequence[str], batch_rows: int = 8192) -> Iterator[pa.RecordBatch]:
        """Yields batches of the whole table in the order of positions."""
        yield from self.dataset.scanner(columns=list(columns), batch_size=batch_rows, scan_in_order=True).to_batches()

    def take(self, positions: IntArray, columns: Sequence[str]) -> pa.Table:
        """Reads rows by position, in the given order, duplicates included."""
        if not len(positions):
            return self.schema.empty_table().select(list(columns))
        return self.dataset.take(pa.array(positions), columns=list(columns))

    @property
    def filter_columns(self) -> tuple[str, ...]:
        """Lists the columns that a condition may name, the ids and the user's own first."""
        return tuple(dict.fromkeys(("doc_id", "chunk_id", *self.metadata_columns, *SYSTEM_COLUMNS)))

    def matching(self, where: str) -> IntArray:
        """Returns the positions of rows that meet a SQL condition, ascending; InvalidRequest explains a wrong one."""
        return np.sort(self.rows.positions(evaluate_condition(where, self.filter_columns, self._addresses_matching)))

    def matching_mask(self, where: str) -> npt.NDArray[np.bool_]:
        """Returns the rows that meet a SQL condition as a mask over positions."""
        listed = parse_text_list(where)
        if listed is not None and listed[0] in self.filter_columns and self.schema.field(listed[0]).type == pa.string():
            return self._rows_with(*listed)
        computed = self._compute_mask(where)
        if computed is not None:
            return computed
        return self.rows.mask(evaluate_condition(where, self.filter_columns, self._addresses_matching))

    def _compute_mask(self, where: str) -> npt.NDArray[np.bool_] | None:
        """Computes a condition over integer columns as a column of a scan; None for any other or a wrong condition.

        A boolean a row, where the scan of a filter returns an address a row that meets it.
        """
        integers = {name for name in self.filter_columns if self.schema.field(name).type == pa.int64()}
        if len(self) > COMPUTED_ROWS or not isinstance(where, str) or not compares_integers(where, integers):
            return None
        check_filter(where, self.filter_columns)
        try:
            scanner = self.dataset.scanner(columns={"met": f"({where}\n)"}, batch_size=65_536, scan_in_order=True)
            met = scanner.to_table()["met"]
        except ValueError:  # the filter explains what is wrong
            return None
        return met.fill_null(False).to_numpy() if met.type == pa.bool_() else None

    def _rows_with(self, column: str, values: pa.Array) -> npt.NDArray[np.bool_]:
        """Returns a mask of the rows whose text in the column is one of the values; reads the column."""
        stored = pa.chunked_array([batch.column(0) for batch in self.scan([column], 65_536)], pa.string())
        found = pc.is_in(stored, value_set=values)
        return np.asarray(found.to_numpy(), bool)

    def _addresses_matching(self, where: str) -> Addresses:
        table = self.dataset.scanner(columns=["_rowaddr"], filter=where, use_scalar_index=True).to_table()
        addresses: Addresses = table["_rowaddr"].to_numpy()
        return addresses

    def check_columns(self, columns: Sequence[str], argument: str) -> None:
        unknown = [c for c in columns if c not in self.schema.names]
        if unknown:
            known = ", ".join(("doc_id", "chunk_id", *self.metadata_columns))
            near = did_you_mean(unknown[0], self.filter_columns)
            raise InvalidRequest(f"{argument}: the index has no column {unknown[0]!r}; it has {known}{near}")


def open_table(
    uri: str | Path,
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
    version: int | None = None,
) -> Snapshot:
    """Opens the table at its newest version, or at `version`; ConfigError if it is missing or no index of tridex."""
    shown, uri, options = str(uri), absolute_uri(uri), dict(storage_options or {})
    try:
        dataset = lance.dataset(table_uri(uri, table), version=version, storage_options=options or None)
    except (ValueError, OSError) as error:
        raise ConfigError(_why_not_opened(shown, table, version, error)) from error
    identity = _read_identity(dataset, uri, table)
    return Snapshot(uri, dataset, identity, options, table)


def with_index_settings(config: BuildConfig) -> BuildConfig:
    """Decides what a config leaves to the index: an existing one keeps what it was built with.

    `chunk.boundaries` auto is sentences for a new index. `cosine_as_dot` is off for embedders whose stored vectors are
    as their folder gives them.
    """
    dataset = open_dataset(table_uri(config.index.uri, config.index.table), plain_options(config.index.storage_options))
    identity = None if dataset is None else Identity.from_metadata(dataset.schema.metadata)
    stored = {} if identity is None else identity.embedders
    as_stored = {name for name, described in stored.items() if described.get("normalize") is None}
    embedders = tuple(
        e.model_copy(update={"cosine_as_dot": e.cosine_as_dot and e.name not in as_stored}) for e in config.embedders
    )
    boundaries = config.chunk.boundaries
    if boundaries == "auto":
        boundaries = "sentences" if identity is None else identity.chunk.get("boundaries", "words")
    chunk = config.chunk.model_copy(update={"boundaries": boundaries})
    return config.model_copy(update={"chunk": chunk, "embedders": embedders})


def _why_not_opened(uri: str, table: str, version: int | None, error: Exception) -> str:
    missing = "not found" in str(error).lower()
    if missing and version is not None:
        return f"{uri}: no version {version} of table {table!r}, or no such index"
    if missing and "://" not in uri and not Path(uri).exists():
        return f"{uri}: no such index; `tridex build --index {uri}` makes one"
    if missing:
        return f"{uri}: not an index: there is no table {table!r} in it"
    return f"{uri}: table {table!r} cannot be opened: {error}"


def _read_identity(dataset: Any, uri: str, table: str) -> Identity:
    identity = Identity.from_metadata(dataset.schema.metadata)
    if identity is None:
        raise ConfigError(f"{uri}: not an index: table {table!r} carries no tridex identity in its schema metadata")
    if identity.format_version > FORMAT_VERSION:
        raise ConfigError(
            f"{uri}: format_version {identity.format_version} is newer than this program's {FORMAT_VERSION}; upgrade it"
        )
    return identity
