"""Finds the fragments whose files are gone or damaged, so that every other check can read the rest.

Sizes are compared with the manifest, which costs a listing. Bytes that changed inside a file are found only by reading
it, which the checks do; `examine(snapshot, read=True)` then tells which fragment it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from actors.source_positions import remove_source_positions
from pipelines.store.table import Snapshot

T = TypeVar("T")
READ_FAILURES = (OSError, ValueError, RuntimeError, pa.ArrowException)
"""What Lance raises for files that are gone, cut off or overwritten."""


@dataclass(frozen=True)
class Subject:
    """Holds the version of an index that is checked. lost: reason by id of each fragment that cannot be read."""

    snapshot: Snapshot
    lost: Mapping[int, str]

    def fragments(self) -> list[Any]:
        """Lists the fragments that can be read."""
        return [f for f in self.snapshot.dataset.get_fragments() if f.fragment_id not in self.lost]

    def scan(self, columns: Sequence[str], fragments: Sequence[Any] | None = None) -> Iterator[pa.RecordBatch]:
        """Yields batches of the readable rows, in table order."""
        chosen = self.fragments() if fragments is None else list(fragments)
        if chosen:
            scanner = self.snapshot.dataset.scanner(
                columns=list(columns), fragments=chosen, scan_in_order=True, batch_size=8192
            )
            yield from scanner.to_batches()

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Reads columns of the readable rows."""
        fields = [
            pa.field("_rowaddr", pa.uint64()) if name == "_rowaddr" else self.snapshot.schema.field(name)
            for name in columns
        ]
        return pa.Table.from_batches(self.scan(columns), pa.schema(fields))


def examine(snapshot: Snapshot, read: bool = False) -> Subject:
    """Finds lost fragments by their files' presence and sizes; `read`: also by reading every column of each."""
    sizes = file_sizes(snapshot.dataset)
    tracked = _deletion_files(snapshot)
    lost: dict[int, str] = {}
    for fragment in snapshot.dataset.get_fragments():
        reason = _damage_of(fragment.metadata.files, sizes) or (
            "its deletion file is gone" if not tracked.get(fragment.fragment_id, set()) <= sizes.keys() else None
        )
        if reason is None and read:
            reason = read_failure(partial(_read_fragment, fragment))
        if reason is not None:
            lost[fragment.fragment_id] = reason
    return Subject(snapshot, lost)


def _read_fragment(fragment: Any) -> Iterator[pa.RecordBatch]:
    yield from fragment.scanner().to_batches()


def file_sizes(dataset: Any) -> dict[str, int]:
    """Returns the size of every file of a table that is there, by its path relative to the table."""
    files = dataset.all_files().read_all()
    return dict(zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True))


def _deletion_files(snapshot: Snapshot) -> dict[int, set[str]]:
    """Returns the deletion files that this version refers to, by fragment: their names begin with its id."""
    found: dict[int, set[str]] = {}
    for row in snapshot.dataset.tracked_files().read_all().select(["version", "path", "type"]).to_pylist():
        if row["version"] == snapshot.version and row["type"] == "deletion file":
            name = row["path"].rpartition("/")[2]
            found.setdefault(int(name.partition("-")[0]), set()).add(row["path"])
    return found


def _damage_of(files: Iterable[Any], sizes: Mapping[str, int]) -> str | None:
    """Describes the first data file that is gone or of another size; None if all match the manifest."""
    for file in files:
        size, known = sizes.get(f"data/{file.path}"), file.file_size_bytes
        if size is None:
            return f"file {file.path} is gone"
        if known and size != known:
            return f"file {file.path} has {size:,} bytes, {known:,} were written"
    return None


def attempt(read: Callable[[], T]) -> tuple[T | None, str]:
    """Returns what `read` returns, or None and why a file cannot be read.

    Lance panics on some damaged files; that exception is none of `Exception`.
    """
    try:
        return read(), ""
    except READ_FAILURES as error:
        return None, f"cannot be read: {first_line(error)}"
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return None, f"cannot be read: {first_line(error)}"


def read_failure(read: Callable[[], Iterable[Any]]) -> str | None:
    """Consumes what `read` returns; describes why it cannot be read, None if it can."""
    return attempt(lambda: deque(read(), maxlen=0))[1] or None


def first_line(error: BaseException) -> str:
    """Returns an error's first line without the place in Lance's source."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return remove_source_positions(line)[:300]
