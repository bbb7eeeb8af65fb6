"""Lists the files of an input path, and gives the reason for every file that is skipped.

Local folders are walked here and not by Arrow, which follows a link that leads back forty times and refuses a whole
folder for one name that is not UTF-8. Hidden are names with a leading dot and the markers of Spark and Hadoop; a site's
`_index.md` and `_posts/` are pages.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import pyarrow.fs as pafs
from pydantic import SecretStr

from pipelines.config import printable_uri, scheme_of
from pipelines.reading.compression import codec_of
from pipelines.reading.files import File, filesystem, version_of
from pipelines.reading.table_formats import TableFormat, find_table_above, find_tables
from pipelines.store.skipped import Skipped

MARKERS = re.compile(
    r"_SUCCESS|_metadata|_common_metadata|_temporary|_delta_log|_spark_metadata|_hoodie.*|_(committed|started)_.*"
    r"|_corrupt|_impala_insert_staging|_scratch|_logs|_distcp.*|.*\$folder\$|.*\._COPYING_"
)
"""Names of files and folders that Spark, Hadoop and their kin leave beside the data."""

HIDDEN = "a leading dot, or a marker of Spark or Hadoop"
LEADS_BACK = "a link to a folder that is read already"
SAME_FILE = "a link to a file that is read already"
BROKEN_LINK = "a link that leads nowhere"
NO_FILE = "not a plain file"
NOT_LISTED = "a folder that cannot be listed"
OWN_INDEX = "an index of tridex, which is no input: name the files that it was made from"
LEASES = "leases.lance"


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """Names a file or folder below an input path that is not read, with the reason."""

    uri: str
    reason: str

    @property
    def kind(self) -> str:
        """Returns the suffix, with the compression's suffix if any; the name if there is none."""
        name = self.uri.rstrip("/").rpartition("/")[2]
        stem, dot, suffix = name.rpartition(".")
        if codec_of(name) is not None and "." in stem.lstrip("."):
            return f".{stem.rpartition('.')[2]}.{suffix}"
        return f".{suffix}" if dot and stem else name


def count_by_kind(skipped: Sequence[SkippedFile]) -> tuple[Skipped, ...]:
    """Counts skipped files by kind and reason, the most frequent first."""
    kinds = [(HIDDEN if s.reason == HIDDEN else s.kind, s.reason) for s in skipped]
    examples = {kind: s.uri for kind, s in zip(reversed(kinds), reversed(skipped), strict=True)}
    return tuple(
        Skipped("files", "hidden" if kind == HIDDEN else kind, reason, count, examples[kind, reason])
        for (kind, reason), count in sorted(Counter(kinds).items(), key=lambda item: (-item[1], item[0]))
    )


@dataclass(frozen=True, slots=True)
class Listing:
    """Lists the files of one input path. `root` is the folder that ids of text files are relative to."""

    root: str
    files: tuple[File, ...]
    exact: bool
    """The path named one file, or one Lance table, and no folder or glob."""
    skipped: tuple[SkippedFile, ...] = ()
    table: tuple[str, TableFormat] | None = None
    """Folder and format of a table of Delta Lake and its like that the files are part of."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """Describes a file or folder: its path for the client, and the facts that make up its version."""

    path: str
    is_folder: bool
    size: int = 0
    mtime_ns: int | None = None


def list_files(uri: str, options: Mapping[str, SecretStr]) -> Listing:
    """Lists the files of a path, folder or glob, sorted; a Lance table is one file. OSError if that fails."""
    fs, path = filesystem(uri, options)
    prefix = _prefix(uri, path)
    found = _entry_at(fs, path)
    if found is not None and not found.is_folder:
        return Listing(path.rpartition("/")[0], (_file(fs, found, prefix),), exact=True)
    if found is not None:
        if _is_lance(fs, path):
            if _is_lance(fs, f"{path.rpartition('/')[0]}/{LEASES}"):
                return Listing(path, (), exact=True, skipped=_printable([SkippedFile(prefix + path, OWN_INDEX)]))
            return Listing(path, (File(fs, path, prefix + path, options=options),), exact=True)
        files, skipped = _list_folder(fs, path, prefix, options)
        table = _find_table(fs, path, prefix, files, files, skipped)
        return Listing(path, files, exact=False, skipped=_printable(skipped), table=table)
    if not _has_glob(path):
        return Listing(path, (), exact=True)
    return _matching(fs, path, prefix, options)


def _prefix(uri: str, path: str) -> str:
    """Returns the part of `uri` before its client path: `s3://`, or nothing."""
    return "" if scheme_of(uri) in ("", "file") or "://" in path else f"{scheme_of(uri)}://"


def _entry_at(fs: pafs.FileSystem, path: str) -> _Entry | None:
    """Returns the file or folder at a path; None if there is none."""
    if isinstance(fs, pafs.LocalFileSystem):
        if not os.path.exists(path):  # noqa: PTH110  # the path as it is
            return None
        facts = os.stat(path)  # noqa: PTH116
        return _Entry(path, stat.S_ISDIR(facts.st_mode), facts.st_size, facts.st_mtime_ns)
    info = fs.get_file_info(path)
    if info.type not in (pafs.FileType.File, pafs.FileType.Directory):
        return None
    return _Entry(path, info.type == pafs.FileType.Directory, info.size or 0, info.mtime_ns)


def _file(fs: pafs.FileSystem, entry: _Entry, prefix: str) -> File:
    uri = printable_uri(prefix + entry.path)
    return File(fs, entry.path, uri, entry.size, version_of(entry.size, entry.mtime_ns))


def is_hidden(relative: str) -> bool:
    """Returns whether any part of a path is hidden: a leading dot, or a marker of Spark or Hadoop."""
    return any(part.startswith(".") or MARKERS.fullmatch(part) is not None for part in relative.split("/"))


def _has_glob(path: str) -> bool:
    return any(c in path for c in "*?[")


def _is_lance(fs: pafs.FileSystem, path: str) -> bool:
    return bool(fs.get_file_info(f"{path}/_versions").type == pafs.FileType.Directory)


def _list_folder(
    fs: pafs.FileSystem, folder: str, prefix: str, options: Mapping[str, SecretStr]
) -> tuple[tuple[File, ...], tuple[SkippedFile, ...]]:
    """Separates the files below a folder into candidates for reading and skipped ones."""
    if isinstance(fs, pafs.LocalFileSystem):
        entries, skipped = _walk_local(folder)
    else:
        infos = fs.get_file_info(pafs.FileSelector(folder, recursive=True))
        entries = [_Entry(i.path, i.type == pafs.FileType.Directory, i.size or 0, i.mtime_ns) for i in infos]
        skipped = []
    tables = sorted(e.path.removesuffix("/_versions") for e in entries if e.path.endswith(".lance/_versions"))
    indexes = [t.rpartition("/")[0] for t in tables if t.endswith(f"/{LEASES}")]
    skipped += [SkippedFile(prefix + path, OWN_INDEX) for path in indexes]
    files = [File(fs, t, prefix + t, options=options) for t in tables if not _is_inside(t, indexes)]
    inside = {*tables, *indexes}
    for entry in entries:
        if entry.is_folder or _is_inside(entry.path, inside):
            continue
        if is_hidden(entry.path[len(folder) :].lstrip("/")):
            skipped.append(SkippedFile(prefix + entry.path, HIDDEN))
        else:
            files.append(_file(fs, entry, prefix))
    return tuple(sorted(files, key=lambda f: f.path)), tuple(sorted(skipped, key=lambda s: s.uri))


def _is_inside(path: str, folders: Iterable[str]) -> bool:
    folders = folders if isinstance(folders, set) else set(folders)
    while path := path.rpartition("/")[0]:
        if path in folders:
            return True
    return False


_Seen: TypeAlias = "set[tuple[int, ...] | tuple[int, int, str]]"
"""Device and inode of each folder that was met; of a file, with the suffix of its name."""


def _walk_local(folder: str) -> tuple[list[_Entry], list[SkippedFile]]:
    """Walks a local folder. Real folders come before links, so that a link to one is the duplicate that is skipped."""
    entries: list[_Entry] = []
    skipped: list[SkippedFile] = []
    links: list[os.DirEntry[str]] = []
    seen: _Seen = {_inode(os.stat(folder))}  # noqa: PTH116
    pending = [folder]
    while pending or links:
        if not pending:
            _add_link_target(links.pop(0), entries, skipped, seen, pending)
            continue
        for item in _scan(pending.pop(), skipped):
            if item.is_symlink():
                links.append(item)
            elif item.is_dir(follow_symlinks=False):
                seen.add(_inode(item.stat(follow_symlinks=False)))
                entries.append(_Entry(item.path, is_folder=True))
                pending.append(item.path)
            else:
                _add_file(item, entries, skipped, seen)
    return entries, skipped


def _scan(folder: str, skipped: list[SkippedFile]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda item: item.name)
    except OSError as error:
        skipped.append(SkippedFile(folder, f"{NOT_LISTED}: {error.strerror}"))
        return []


def _add_link_target(
    link: os.DirEntry[str],
    entries: list[_Entry],
    skipped: list[SkippedFile],
    seen: _Seen,
    pending: list[str],
) -> None:
    """Adds the target of a symbolic link, unless it is listed already."""
    try:
        facts = link.stat()
    except OSError:
        skipped.append(SkippedFile(link.path, BROKEN_LINK))
        return
    if stat.S_ISDIR(facts.st_mode):
        if _inode(facts) in seen:
            skipped.append(SkippedFile(link.path, LEADS_BACK))
            return
        seen.add(_inode(facts))
        entries.append(_Entry(link.path, is_folder=True))
        pending.append(link.path)
    elif (*_inode(facts), _suffix(link.name)) in seen:
        skipped.append(SkippedFile(link.path, SAME_FILE))
    else:
        _add_file(link, entries, skipped, seen)


def _suffix(name: str) -> str:
    return name.partition(".")[2]


def _add_file(item: os.DirEntry[str], entries: list[_Entry], skipped: list[SkippedFile], seen: _Seen) -> None:
    facts = item.stat()
    if stat.S_ISREG(facts.st_mode):
        seen.add((*_inode(facts), _suffix(item.name)))
        entries.append(_Entry(item.path, False, facts.st_size, facts.st_mtime_ns))
    else:
        skipped.append(SkippedFile(item.path, NO_FILE))


def _inode(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _matching(fs: pafs.FileSystem, pattern: str, prefix: str, options: Mapping[str, SecretStr]) -> Listing:
    fixed = []
    for part in pattern.split("/")[:-1]:
        if _has_glob(part):
            break
        fixed.append(part)
    root = "/".join(fixed) or "/"
    folder = _entry_at(fs, root)
    if folder is None or not folder.is_folder:
        return Listing(root, (), exact=False)
    wanted = glob_pattern(pattern)
    files, skipped = _list_folder(fs, root, prefix, options)
    named = tuple(s for s in skipped if wanted.fullmatch(s.uri.removeprefix(prefix)))
    matching = tuple(f for f in files if wanted.fullmatch(f.path))
    table = _find_table(fs, root, prefix, matching, files, skipped)
    return Listing(root, matching, exact=False, skipped=_printable(named), table=table)


def _find_table(
    fs: pafs.FileSystem,
    root: str,
    prefix: str,
    chosen: Sequence[File],
    files: Sequence[File],
    skipped: Sequence[SkippedFile],
) -> tuple[str, TableFormat] | None:
    """Returns the first table of Delta Lake and its like that a chosen file is part of."""
    paths = [s.uri.removeprefix(prefix) for s in skipped if s.reason == HIDDEN]
    tables = find_tables(root, [*paths, *(f.path for f in files if f.path.endswith(".json"))])
    above = find_table_above(root) if chosen and isinstance(fs, pafs.LocalFileSystem) else None
    inside = (folder for folder in tables if any(_is_inside(f.path, {folder}) for f in chosen))
    return above or next(((folder, tables[folder]) for folder in inside), None)


def _printable(skipped: Iterable[SkippedFile]) -> tuple[SkippedFile, ...]:
    return tuple(replace(s, uri=printable_uri(s.uri)) for s in skipped)


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """Compiles a shell glob over whole paths: `*` stays within a folder, `**` crosses folders."""
    parts = []
    for part in pattern.split("/"):
        if part == "**":
            parts.append("(?:[^/]+/)*")
        else:
            body = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")
            parts.append(body.replace(".*", "[^/]*") + "/")
    return re.compile("".join(parts).removesuffix("/"))
