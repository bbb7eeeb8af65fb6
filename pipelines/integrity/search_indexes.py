"""Checks search indexes against the table that they were made from: Lance's own, postings, document frequencies.

Lance's indexes are read whole, file by file, and their sizes compared with the manifest; what they say is not compared
row by row. Postings are: a page of 65,536 rows at a time, with the sparse vectors of one segment in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from lance.file import LanceFileReader

from actors.outputs import SparseVectors, offsets_of
from pipelines.integrity.subject import Subject, attempt, file_sizes, read_failure
from pipelines.integrity.table import Check
from pipelines.search_indexes.document_frequencies import ROWS_KEY, document_frequencies_table
from pipelines.search_indexes.posting_blocks import LEVELS, PAGE, PAGE_BITS, Blocks
from pipelines.search_indexes.postings import (
    SegmentInfo,
    open_side_table,
    physical_rows,
    prefix,
    sparse_embedders,
    table_names,
    uncovered_fragments,
    valid_segments,
)
from pipelines.store.schema import LEASES, QUARANTINE, SKIPPED, table_uri
from pipelines.store.table import Snapshot

REPAIR = "`tridex check --repair` makes them again from the table"
TOLERANCE = 1e-5
"""Of a posting's weight against the stored one, beside the quantisation step: float32 rounding is less."""


def _read_side_table(snapshot: Snapshot, table: str) -> None:
    for _ in open_side_table(snapshot, table).scanner().to_batches():
        pass


def find_damaged_indexes(subject: Subject) -> dict[str, str]:
    """Returns the reason by name of each of Lance's indexes of which a file is gone, cut off or unreadable."""
    dataset = subject.snapshot.dataset
    sizes = file_sizes(dataset)
    damaged: dict[str, str] = {}
    for index in dataset.describe_indices():
        for segment in index.segments:
            files = {path: size for path, size in sizes.items() if path.startswith(f"_indices/{segment.uuid}/")}
            if reason := _find_segment_damage(subject.snapshot, files, segment.size_bytes):
                damaged[index.name] = reason
    return damaged


def _find_segment_damage(snapshot: Snapshot, files: Mapping[str, int], written: int | None) -> str | None:
    if not files:
        return "its files are gone"
    if written and sum(files.values()) != written:
        return f"its files have {sum(files.values()):,} bytes, {written:,} were written"
    for path in files:
        if reason := read_failure(partial(_read_index_file, snapshot, path)):
            return f"file {path.rpartition('/')[2]} {reason}"
    return None


def _read_index_file(snapshot: Snapshot, path: str) -> Iterator[Any]:
    uri, options = table_uri(snapshot.uri, snapshot.table), dict(snapshot.storage_options) or None
    yield from LanceFileReader(f"{uri}/{path}", storage_options=options).read_all(batch_size=1024).to_batches()


def find_damaged_postings(subject: Subject) -> dict[str, str]:
    """Returns the reason by table of each segment of postings that differs from the sparse vectors in the table.

    Segments that a search would use are compared, once all tables with a segment's name can be opened.
    """
    snapshot = subject.snapshot
    damaged: dict[str, str] = {}
    sparse = sparse_embedders(snapshot)
    for name in sparse:
        for table in table_names(snapshot):
            if not re.fullmatch(re.escape(prefix(name)) + "[0-9a-f]{12}", table):
                continue
            if reason := attempt(partial(open_side_table, snapshot, table))[1]:
                damaged[table] = reason
    for name in () if damaged else sparse:
        for info, dataset in valid_segments(snapshot, name):
            difference, failure = attempt(partial(_compare_segment, subject, info, dataset))
            if failure or difference:
                damaged[info.table] = failure or str(difference)
    return damaged


def _compare_segment(subject: Subject, info: SegmentInfo, dataset: Any) -> str | None:
    """Describes how a segment differs from the sparse column; None if it does not, or the column cannot be read."""
    there = {f.fragment_id: f for f in subject.snapshot.dataset.get_fragments()}
    if any(fragment in subject.lost for fragment, _ in info.fragments):
        return None
    live, rows = _read_sparse_rows(subject, info, [there[fragment] for fragment, _ in info.fragments])
    for page in range(-(-info.rows // PAGE)):
        first, last = page << PAGE_BITS, min((page + 1) << PAGE_BITS, info.rows)
        blocks = Blocks.from_arrow(dataset.to_table(filter=f"page = {page}"))
        if reason := compare_page(blocks, rows.take(np.arange(first, last)), live[first:last]):
            return f"rows {first:,} to {last:,}: {reason}"
    return None


def _read_sparse_rows(subject: Subject, info: SegmentInfo, fragments: list[Any]) -> tuple[Any, SparseVectors]:
    """Reads which rows of a segment are live, and their sparse vectors, by row number in the segment."""
    starts = np.cumsum([0, *(n for _, n in info.fragments)])
    first = dict(zip([fragment for fragment, _ in info.fragments], starts, strict=False))
    lengths, live = np.zeros(info.rows, np.int64), np.zeros(info.rows, bool)
    tokens, weights = [np.zeros(0, np.uint32)], [np.zeros(0, np.float32)]
    for batch in subject.scan([f"{info.name}_sparse", "_rowaddr"], fragments):
        vectors = SparseVectors.from_arrow(batch.column(0))
        numbers = physical_rows(batch.column(1).to_numpy(), first)
        live[numbers], lengths[numbers] = True, np.diff(vectors.offsets)
        tokens.append(vectors.token_ids)
        weights.append(vectors.weights)
    return live, SparseVectors(offsets_of(lengths), np.concatenate(tokens), np.concatenate(weights))


def compare_page(blocks: Blocks, rows: SparseVectors, live: Any) -> str | None:
    """Describes how the blocks of one page differ from its rows; deleted rows may have postings or none.

    A stored weight may be above the true one by a quantisation step, never below.
    """
    counts = np.diff(blocks.starts)
    maxima = np.repeat(blocks.maxima, counts)
    owner = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
    want = rows.token_ids.astype(np.int64) << PAGE_BITS | owner
    have = np.repeat(blocks.tokens.astype(np.int64), counts) << PAGE_BITS | blocks.offsets.astype(np.int64)
    inside = blocks.offsets < len(live)
    kept = ~inside | live[np.where(inside, blocks.offsets, 0)]
    have, quantised, step = have[kept], (maxima * blocks.weights / LEVELS)[kept], (maxima / LEVELS)[kept]
    missing, foreign = np.setdiff1d(want, have), np.setdiff1d(have, want)
    if len(missing) or len(foreign) or len(want) != len(have):
        return f"{len(missing):,} postings are missing, {len(foreign):,} are of no row"
    weights, order = rows.weights[np.argsort(want)], np.argsort(have)
    quantised, step = quantised[order], step[order]
    slack = TOLERANCE * np.maximum(weights, step)
    wrong = (quantised < weights - slack) | (quantised > weights + step + slack)
    return f"{int(wrong.sum()):,} postings have another weight" if wrong.any() else None


def find_damaged_frequencies(subject: Subject) -> dict[str, str]:
    """Returns the reason by table of document frequencies that cannot be read, or count more rows than there were."""
    snapshot, damaged = subject.snapshot, {}
    for table in {document_frequencies_table(name) for name in snapshot.identity.embedders} & {*table_names(snapshot)}:
        wrong, failure = attempt(partial(_check_counts, snapshot, table))
        if failure or wrong:
            damaged[table] = failure or str(wrong)
    return damaged


def _check_counts(snapshot: Snapshot, table: str) -> str | None:
    dataset = open_side_table(snapshot, table)
    counted = int((dataset.schema.metadata or {}).get(ROWS_KEY, 0))
    most = int(dataset.to_table()["rows"].to_numpy().max(initial=0))
    return f"a token is in {most:,} of {counted:,} rows" if most > counted else None


def _format_damage(damaged: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}: {reason}" for name, reason in damaged.items())


def _check_indexes(subject: Subject) -> Check:
    """Checks the files of Lance's indexes; rows that one does not cover are scanned, slower and equally right."""
    snapshot = subject.snapshot
    damaged, notes = find_damaged_indexes(subject), []
    for column, index in snapshot.indexes().items():
        rows = 0 if index.name in damaged else snapshot.index_statistics(index.name)["num_unindexed_rows"]
        if rows:
            notes.append(f"{index.index_type} on {column} does not cover {rows:,} rows: `tridex optimize` adds them")
    if "text" not in snapshot.indexes():
        notes.append("no full-text index, so no bm25 channel: `tridex build` makes one if its config has one")
    return Check("search indexes: whole, and cover all rows", _format_damage(damaged), tuple(notes), REPAIR)


def _check_postings(subject: Subject) -> Check:
    """Checks that postings hold the tokens and weights of the sparse columns."""
    snapshot, damaged, notes = subject.snapshot, find_damaged_postings(subject), []
    for name in () if damaged else sparse_embedders(snapshot):
        uncovered = uncovered_fragments(snapshot, [info for info, _ in valid_segments(snapshot, name)])
        if rows := sum(f.count_rows() for f in uncovered):
            notes.append(f"postings of {name} do not cover {rows:,} rows: `tridex optimize` adds them")
    return Check("postings: those of the sparse vectors", _format_damage(damaged), tuple(notes), REPAIR)


def _check_frequencies(subject: Subject) -> Check:
    return Check("document frequencies: can be read", _format_damage(find_damaged_frequencies(subject)), (), REPAIR)


def _check_side_tables(subject: Subject) -> Check:
    """Checks that leases, quarantine and skipped can be read."""
    snapshot, damaged = subject.snapshot, {}
    for table in sorted({*table_names(snapshot)} & {LEASES, QUARANTINE, SKIPPED}):
        if reason := attempt(partial(_read_side_table, snapshot, table))[1]:
            damaged[table] = reason
    remedy = "move the table's folder away while no job runs; the next `tridex build` makes a new one"
    return Check("side tables: can be read", _format_damage(damaged), (), remedy)


SEARCH_CHECKS: tuple[Callable[[Subject], Check], ...] = (
    _check_indexes,
    _check_postings,
    _check_frequencies,
    _check_side_tables,
)
"""What is made of the table, and the tables beside it."""
