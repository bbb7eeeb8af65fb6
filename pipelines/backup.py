"""Copies one consistent version of an index to another place, and back (`tridex backup`, `tridex restore`).

Only the files of one version of each table are copied: an index's history, leases and reports stay behind. Builds and
searches go on meanwhile, since files never change and a tag keeps the version from being removed. Every file is read
again at its new place and compared by SHA-256, which doubles the reading and finds what a store has lost. A backup
without its `backup.json`, the last file to be written, is not one; a restored index has its manifests last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import lance
import pyarrow.fs as pafs
from pydantic import SecretStr

from pipelines.config import ConfigError, WorkFailed, printable_uri
from pipelines.reading.files import filesystem
from pipelines.search_indexes.postings import table_names
from pipelines.store.datasets import check_writable
from pipelines.store.schema import LEASES, table_uri
from pipelines.store.table import open_table

CONTENTS = "backup.json"
TAG = "tridex-backup-"
FORMAT = 1
THREADS = 8
CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class BackupFile:
    """Describes one file of a backup. path: relative to the index."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """Describes a backup: what lies in its `backup.json`. tables: the version of each table."""

    uri: str
    source: str
    created: str
    tables: Mapping[str, int]
    files: tuple[BackupFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self), "bytes": self.bytes}

    def text(self, done: str = "backed up to") -> str:
        return (
            f"{self.source}, version {self.tables.get('documents', '?')} of {self.created}: {len(self.files):,} files, "
            f"{self.bytes / 1e6:,.1f} MB, {done} {self.uri} and verified"
        )


class BackupFailed(WorkFailed):
    """Signals that a file could not be copied, or is not what it was."""


def back_up_index(
    uri: str,
    destination: str,
    *,
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
    destination_options: Mapping[str, str] | None = None,
) -> Backup:
    """Copies the newest version of all tables of an index to a folder or URI that holds nothing.

    ConfigError for a missing index and a destination that holds something; BackupFailed for a file that cannot be
    copied or comes out different.
    """
    options = dict(storage_options or {})
    snapshot = open_table(uri, table, options)
    to = _Place.at(destination, destination_options or {})
    _refuse_occupied(to, destination)
    with contextlib.ExitStack() as stack:
        tables, paths = {}, []
        for name in sorted(table_names(snapshot), key=lambda name: name != table):
            if name == LEASES:
                continue
            dataset = lance.dataset(table_uri(uri, name), storage_options=options or None)
            stack.enter_context(_pinned(dataset))
            tables[name] = int(dataset.version)
            rows = dataset.tracked_files().read_all().select(["version", "path"]).to_pylist()
            paths += [f"{name}.lance/{row['path']}" for row in rows if row["version"] == dataset.version]
        files = _copy_files(_Place.at(uri, options), to, dict.fromkeys(paths))
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    made = Backup(printable_uri(destination), printable_uri(uri), created, tables, files)
    to.write(CONTENTS, json.dumps(made.to_dict(), indent=1).encode())
    return made


def restore_index(
    backup: str,
    uri: str,
    *,
    storage_options: Mapping[str, str] | None = None,
    backup_options: Mapping[str, str] | None = None,
) -> Backup:
    """Copies a backup to a folder or URI that holds nothing, and verifies it; returns what was restored.

    ConfigError for what is no whole backup; BackupFailed, before the index can be opened, for a damaged one.
    """
    source, to = _Place.at(backup, backup_options or {}), _Place.at(uri, storage_options or {})
    tree = _read_contents(source, backup)
    _refuse_occupied(to, uri)
    wanted = {file["path"]: BackupFile(**file) for file in tree["files"]}
    manifests = [path for path in wanted if "/_versions/" in path]
    _copy_files(source, to, {path: wanted[path] for path in wanted if path not in manifests})
    _copy_files(source, to, {path: wanted[path] for path in manifests})
    return Backup(printable_uri(uri), printable_uri(backup), tree["created"], tree["tables"], tuple(wanted.values()))


def _read_contents(source: _Place, backup: str) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(source.read(CONTENTS))
    except OSError as error:
        raise ConfigError(f"{backup}: not a whole backup: it has no {CONTENTS}") from error
    if tree.get("format") != FORMAT:
        raise ConfigError(
            f"{backup}: backup format {tree.get('format')!r} is unknown to this program, which has {FORMAT}"
        )
    return tree


@dataclass(frozen=True, slots=True)
class _Place:
    """Holds a folder of a file system or object store."""

    files: pafs.FileSystem
    root: str

    @classmethod
    def at(cls, uri: str, options: Mapping[str, str]) -> _Place:
        return cls(*filesystem(uri, {key: SecretStr(value) for key, value in options.items()}))

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        with self.files.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        with self.open(name) as stream:
            stream.write(data)

    def open(self, name: str) -> Any:
        self.files.create_dir(self.path(name).rpartition("/")[0], recursive=True)
        return self.files.open_output_stream(self.path(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        with self.files.open_input_stream(self.path(name)) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


def _refuse_occupied(place: _Place, uri: str) -> None:
    """Raises ConfigError if there is anything at the place: nothing of the user's is overwritten."""
    check_writable(uri)
    info = place.files.get_file_info(place.root)
    if info.type == pafs.FileType.File:
        raise ConfigError(f"{uri}: is a file; a folder that holds nothing is needed")
    if info.type == pafs.FileType.Directory and place.files.get_file_info(pafs.FileSelector(place.root)):
        raise ConfigError(f"{uri}: holds something already; name a folder that is new or holds nothing")


@contextlib.contextmanager
def _pinned(dataset: lance.LanceDataset) -> Iterator[None]:
    """Keeps the dataset's version from being removed, by a tag."""
    tag = f"{TAG}{int(time.time())}-{uuid.uuid4().hex[:8]}"
    dataset.tags.create(tag, dataset.version)
    try:
        yield
    finally:
        dataset.tags.delete(tag)


def _copy_files(source: _Place, to: _Place, wanted: Mapping[str, BackupFile | None]) -> tuple[BackupFile, ...]:
    """Copies files several at once; one with known facts must have them."""
    with ThreadPoolExecutor(THREADS) as pool:
        return tuple(pool.map(lambda item: _copy_file(source, to, *item), wanted.items()))


def _copy_file(source: _Place, to: _Place, path: str, known: BackupFile | None) -> BackupFile:
    """Copies one file and reads the copy again; BackupFailed names a file that is missing or differs."""
    digest, size = hashlib.sha256(), 0
    try:
        with to.open(path) as out:
            for chunk in source.chunks(path):
                digest.update(chunk)
                out.write(chunk)
                size += len(chunk)
        made = BackupFile(path, size, digest.hexdigest())
        again = hashlib.sha256()
        for chunk in to.chunks(path):
            again.update(chunk)
    except OSError as error:
        raise BackupFailed(f"{path}: cannot be copied: {error}") from error
    if known is not None and known != made:
        raise BackupFailed(
            f"{path}: is damaged in the backup: {size:,} bytes with another checksum than it was made with"
        )
    if again.hexdigest() != made.sha256:
        raise BackupFailed(f"{path}: was written to {to.root} and reads back differently")
    return made
