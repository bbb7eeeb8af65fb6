"""Checks the documents table: columns, ids, chunks, hashes, vectors, files. Nothing is changed.

Problems are what no job of ours leaves behind, whenever it dies; notes are what the next build or `tridex optimize`
brings up to date. Ids, chunk numbers and hashes of all rows are read (about 100 bytes a row in memory); texts and
metadata are hashed again and dense vectors looked at batch by batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.integrity.subject import Subject
from pipelines.store.drop import count_fragments_with_dropped_columns
from pipelines.store.hashes import hash_content, hash_metadata
from pipelines.store.maintain import find_orphans
from pipelines.store.schema import FILLING_KEY, FORMAT_VERSION, documents_schema, output_fields

PICTURES = "thumbnail"
"""Where this column is, content hashes cover pictures that the table does not hold."""
REMOVE_LOST = (
    "restore a backup; or `tridex check --repair --remove-lost` removes what is left of these documents, and the next "
    "`tridex build` embeds them again"
)


@dataclass(frozen=True, slots=True)
class Check:
    """Reports one invariant and what was found of it. remedy: what mends the problems."""

    name: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remedy: str = ""

    def text(self) -> str:
        state = "PROBLEM" if self.problems else "note" if self.notes else "ok"
        remedy = (f"remedy: {self.remedy}",) if self.problems and self.remedy else ()
        lines = [f"{state:<8} {self.name}", *(f"         {line}" for line in (*self.problems, *self.notes, *remedy))]
        return "\n".join(lines)


def _check_settings(subject: Subject) -> Check:
    """Checks that the columns are those of the identity."""
    identity, have = subject.snapshot.identity, subject.snapshot.schema
    problems, notes = [], []
    if identity.format_version < FORMAT_VERSION:
        notes.append(
            f"format {identity.format_version}: the next build upgrades it to {FORMAT_VERSION}, without embedding"
        )
    for field in documents_schema(identity):
        old = field.name == "metadata_hash" and identity.format_version < FORMAT_VERSION
        if field.name not in have.names and not old:
            problems.append(f"column {field.name!r} is missing")
        elif field.name in have.names and have.field(field.name).type != field.type:
            problems.append(f"column {field.name!r} is {have.field(field.name).type}, {field.type} is described")
    if filling := json.loads((have.metadata or {}).get(FILLING_KEY, b"[]")):
        notes.append(f"columns {filling} are not filled yet: the next build with them goes on")
    title = "settings: the columns are those that the identity describes"
    return Check(title, tuple(problems), tuple(notes), "restore a backup, or build a new index")


def find_broken_documents(rows: pa.Table) -> pa.ChunkedArray:
    """Returns ids of documents that do not have each of their chunks once, with one hash."""
    grouped = rows.group_by("doc_id").aggregate(
        [("chunk_index", "count_distinct"), ("chunk_index", "max"), ("chunk_count", "max"), ("chunk_count", "min"),
         ("chunk_count", "count"), ("content_hash", "count_distinct")]
    )  # fmt: skip
    count = grouped["chunk_count_max"]
    good = pc.less_equal(grouped["content_hash_count_distinct"], 1)
    for name in ("chunk_count_min", "chunk_count_count", "chunk_index_count_distinct"):
        good = pc.and_(good, pc.equal(grouped[name], count))
    good = pc.and_(good, pc.equal(pc.add(grouped["chunk_index_max"], 1), count))
    return grouped.filter(pc.invert(good))["doc_id"]


def _check_documents(subject: Subject) -> Check:
    """Checks that chunk ids are distinct, and that each document has all of its chunks once, with one hash."""
    rows = subject.read(["doc_id", "chunk_id", "chunk_index", "chunk_count", "content_hash"])
    problems = []
    twice = len(rows) - pc.count_distinct(rows["chunk_id"], mode="all").as_py()
    if twice:
        problems.append(f"{twice:,} rows repeat a chunk_id")
    documents = pc.count_distinct(rows["doc_id"], mode="all").as_py()
    bad = find_broken_documents(rows)
    if len(bad):
        problems.append(f"{len(bad):,} documents lack chunks or have some twice, such as {bad.slice(0, 3).to_pylist()}")
    title = f"documents: {documents:,} whole, in {len(rows):,} rows with distinct ids"
    return Check(title, tuple(problems), (), f"`tridex check --repair` removes exact copies; for others {REMOVE_LOST}")


def _check_hashes(subject: Subject) -> Check:
    """Checks that the hashes are those of the stored text and metadata."""
    title, snapshot = "hashes: those of the texts and the metadata that are there", subject.snapshot
    if snapshot.identity.format_version < FORMAT_VERSION:
        return Check(title, notes=("an index of an earlier format has others",))
    metadata = [name for name in snapshot.metadata_columns if name != PICTURES]
    names = ["chunk_count", "text", "content_hash", "metadata_hash", *metadata]
    texts = values = 0
    for batch in subject.scan(names):
        rows = pa.Table.from_batches([batch])
        described = hash_metadata({name: rows[name] for name in metadata}, len(rows))
        values += _count_differences(rows["metadata_hash"], described)
        whole = rows.filter(pc.equal(rows["chunk_count"], 1))
        texts += _count_differences(whole["content_hash"], hash_content(whole["text"].combine_chunks()))
    if PICTURES in snapshot.schema.names:
        return Check(title, notes=("not compared: pictures are not in the table",))
    problems = [f"{texts:,} rows have another text than their content_hash"] if texts else []
    notes = [f"{values:,} rows have other metadata than their hash: the next build writes it"] if values else []
    return Check(title, tuple(problems), tuple(notes), "restore a backup, or build a new index")


def _count_differences(have: pa.ChunkedArray, want: pa.Array) -> int:
    return len(want) - int(pc.sum(pc.fill_null(pc.equal(have, want), False)).as_py() or 0)


def _check_vectors(subject: Subject) -> Check:
    """Checks that every row has every output, and that dense vectors are finite."""
    snapshot = subject.snapshot
    outputs = [field for field in output_fields(snapshot.identity) if field.name in snapshot.schema.names]
    missing = dict.fromkeys((field.name for field in outputs), 0)
    broken = dict.fromkeys(missing, 0)
    for field in outputs:
        for batch in subject.scan([field.name]):
            column = batch.column(0)
            missing[field.name] += column.null_count
            if pa.types.is_fixed_size_list(field.type):
                values = column.drop_null().flatten().to_numpy(zero_copy_only=False)
                broken[field.name] += int((~np.isfinite(values)).sum())
    problems = [f"{name} has {n:,} values that are not finite" for name, n in broken.items() if n]
    notes = [f"{name} is null in {n:,} rows: a model could not take them" for name, n in missing.items() if n]
    title = f"vectors: {', '.join(missing)} of every row"
    return Check(title, tuple(problems), tuple(notes), "restore a backup, or build a new index")


def _check_files(subject: Subject) -> Check:
    """Checks that the files of every fragment are there and whole; counts those that nothing refers to."""
    dataset = subject.snapshot.dataset
    rows = {f.fragment_id: f.physical_rows for f in dataset.get_fragments()}
    problems = [f"fragment {i}, {rows[i]:,} rows: {reason}" for i, reason in subject.lost.items()]
    orphans = len(find_orphans(dataset))
    notes = [f"{orphans:,} files that nothing refers to: `tridex optimize` removes them"] if orphans else []
    if rest := count_fragments_with_dropped_columns(dataset):
        notes.append(f"{rest:,} fragments hold columns of a dropped embedder: `tridex optimize` frees them")
    if kept := sorted(tag for tag in dataset.tags.list() if tag.startswith("tridex-backup-")):
        notes.append(f"old versions are kept for backups that run, or were killed: tags {kept[:5]}")
    return Check(f"files: all of {len(rows):,} fragments", tuple(problems[:10]), tuple(notes), REMOVE_LOST)


TABLE_CHECKS: tuple[Callable[[Subject], Check], ...] = (
    _check_settings,
    _check_documents,
    _check_hashes,
    _check_vectors,
    _check_files,
)
