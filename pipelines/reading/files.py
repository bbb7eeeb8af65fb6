"""Finds and opens input files through one interface, `pyarrow.fs`, wherever they lie.

s3, gs, az and local paths go to Arrow's own C++ clients, every other scheme to fsspec. The price is a small
translation of option names: a user writes the names that LanceDB takes (`aws_access_key_id`, ...), so that one set
serves input and index. Secrets stay inside the client objects: a URI that carries one is refused and messages are
redacted.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import SecretStr

from pipelines.config import ConfigError, plain_options

READ_ERRORS = (OSError, EOFError, pa.ArrowException, UnicodeError)
"""What a damaged, missing or forbidden file raises while it is read."""

# A larger buffer is no faster (Arrow reads ahead itself), and all of it is lost when a compressed stream breaks off.
STREAM_BUFFER = 4096

_S3_NAMES = {
    "access_key_id": "access_key",
    "secret_access_key": "secret_key",
    "session_token": "session_token",
    "region": "region",
    "endpoint": "endpoint_override",
    "endpoint_url": "endpoint_override",
}
_AZURE_NAMES = {"account_name": "account_name", "account_key": "account_key", "sas_token": "sas_token"}


@dataclass(frozen=True, slots=True)
class File:
    """One input file. `uri` is what messages and the `source` column show; `path` is what `filesystem` takes."""

    filesystem: pafs.FileSystem
    path: str
    uri: str
    size: int = 0
    version: str = ""
    """Changes when the file does: size and time of the last change; the version of a Lance table."""
    root: str = ""
    """The input folder that it was found in."""
    options: Mapping[str, SecretStr] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def exists(self) -> bool:
        """Whether it was there when its version was taken."""
        return self.version != ""

    def stream(self) -> BinaryIO:
        """From the beginning, decompressed where the name ends in .gz, .zst or .bz2."""
        return _buffered(self.filesystem.open_input_stream(self.path))

    def open(self) -> pa.NativeFile:
        """With random access, as it is."""
        return self.filesystem.open_input_file(self.path)

    def stream_from(self, start: int) -> BinaryIO:
        """From a byte on, as it is."""
        file = self.open()
        file.seek(start)
        return _buffered(file)


def _buffered(file: pa.NativeFile) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(file, STREAM_BUFFER))


def redact(message: str, options: Mapping[str, SecretStr]) -> str:
    """The message without the values of any option that is long enough to be a secret."""
    for value in plain_options(options).values():
        if len(value) > 5:
            message = message.replace(value, "***")
    return message


def scheme_of(uri: str) -> str:
    """`s3` of `s3://...`; empty for a plain path."""
    return uri.split("://", 1)[0].lower() if "://" in uri else ""


def filesystem(uri: str, options: Mapping[str, SecretStr]) -> tuple[pafs.FileSystem, str]:
    """The client for a URI or local path, and the path that it takes."""
    if "@" in urlsplit(uri).netloc and scheme_of(uri) in ("s3", "s3a", "gs", "http", "https"):
        raise ConfigError(
            f"{scheme_of(uri)}://***@...: a URI must not carry credentials; use storage_options or the environment"
        )
    client = _client(scheme_of(uri), tuple(sorted(plain_options(options).items())))
    return client, _client_path(client, uri)


def _client_path(client: pafs.FileSystem, uri: str) -> str:
    if isinstance(client, pafs.LocalFileSystem):
        return str(Path(uri.removeprefix("file://")).absolute())
    if isinstance(client, pafs.PyFileSystem):
        return str(client.handler.fs._strip_protocol(uri))
    return uri.split("://", 1)[1].rstrip("/")


@functools.lru_cache(maxsize=32)
def _client(scheme: str, options: tuple[tuple[str, str], ...]) -> pafs.FileSystem:
    given = dict(options)
    if scheme in ("", "file"):
        return pafs.LocalFileSystem()
    if scheme in ("s3", "s3a"):
        return pafs.S3FileSystem(**_s3_arguments(given))
    if scheme in ("gs", "gcs"):
        return pafs.GcsFileSystem(**given)
    if scheme in ("az", "abfs", "abfss"):
        return pafs.AzureFileSystem(**_azure_arguments(given))
    try:
        other = fsspec.filesystem(scheme, **given)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{scheme}://: no client for this scheme: {error}") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(other))


def _s3_arguments(options: Mapping[str, str]) -> dict[str, Any]:
    """LanceDB's names, with or without `aws_`, to pyarrow's; the environment fills what is not given."""
    known = {key.lower().removeprefix("aws_"): value for key, value in options.items()}
    arguments: dict[str, Any] = {new: known[old] for old, new in _S3_NAMES.items() if old in known}
    endpoint = (
        arguments.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
    )
    if endpoint:
        arguments["scheme"] = scheme_of(endpoint) or "https"
        arguments["endpoint_override"] = endpoint.split("://")[-1].rstrip("/")
    if "region" not in arguments:
        arguments["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    arguments["force_virtual_addressing"] = known.get("virtual_hosted_style_request") == "true"
    return arguments


def _azure_arguments(options: Mapping[str, str]) -> dict[str, str]:
    known = {re.sub("^azure_storage_", "", key.lower()): value for key, value in options.items()}
    arguments = {new: known[old] for old, new in _AZURE_NAMES.items() if old in known}
    return arguments if arguments else {"account_name": os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")}


def version_of(info: pafs.FileInfo) -> str:
    """Changes with the file's size and time of last change; empty where there is no file, and for a folder.

    Object stores count that time in whole seconds: two files of one size and second look the same.
    """
    if info.type != pafs.FileType.File:
        return ""
    return hashlib.blake2b(f"{info.size} {info.mtime_ns}".encode(), digest_size=8).hexdigest()


def _prefix(uri: str, path: str) -> str:
    """What `uri` has before its client path: `s3://`, or nothing."""
    return "" if scheme_of(uri) in ("", "file") or "://" in path else f"{scheme_of(uri)}://"


def _file(fs: pafs.FileSystem, info: pafs.FileInfo, prefix: str) -> File:
    return File(fs, info.path, prefix + info.path, info.size or 0, version_of(info))


def is_hidden(relative: str) -> bool:
    """Markers and unfinished files of Spark, Hadoop and editors: `_SUCCESS`, `.part.crc`."""
    return any(part.startswith((".", "_")) for part in relative.split("/"))


@dataclass(frozen=True, slots=True)
class Listing:
    """The files that one input path names. `root` is the folder that ids of text files are relative to."""

    root: str
    files: tuple[File, ...]
    exact: bool
    """The path named one file, or one Lance table, and no folder or glob."""


def list_files(uri: str, options: Mapping[str, SecretStr]) -> Listing:
    """Everything that a path, folder or glob names, sorted; a Lance table is one file. OSError if it cannot."""
    fs, path = filesystem(uri, options)
    prefix = _prefix(uri, path)
    info = fs.get_file_info(path)
    if info.type == pafs.FileType.File:
        return Listing(path.rpartition("/")[0], (_file(fs, info, prefix),), exact=True)
    if info.type == pafs.FileType.Directory:
        if _is_lance(fs, path):
            return Listing(path, (File(fs, path, prefix + path, options=options),), exact=True)
        return Listing(path, _in_folder(fs, path, prefix, options), exact=False)
    if not _has_glob(path):
        return Listing(path, (), exact=True)
    return _matching(fs, path, prefix, options)


def _has_glob(path: str) -> bool:
    return any(c in path for c in "*?[")


def _is_lance(fs: pafs.FileSystem, path: str) -> bool:
    return bool(fs.get_file_info(f"{path}/_versions").type == pafs.FileType.Directory)


def _in_folder(fs: pafs.FileSystem, folder: str, prefix: str, options: Mapping[str, SecretStr]) -> tuple[File, ...]:
    infos = fs.get_file_info(pafs.FileSelector(folder, recursive=True))
    visible = [i for i in infos if not is_hidden(i.path[len(folder) :].lstrip("/"))]
    tables = sorted(i.path for i in visible if i.type == pafs.FileType.Directory and i.path.endswith(".lance"))
    plain_files = [i for i in visible if i.type == pafs.FileType.File and not _inside(i.path, tables)]
    found = [File(fs, t, prefix + t, options=options) for t in tables] + [_file(fs, i, prefix) for i in plain_files]
    return tuple(sorted(found, key=lambda f: f.path))


def _inside(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)


def _matching(fs: pafs.FileSystem, pattern: str, prefix: str, options: Mapping[str, SecretStr]) -> Listing:
    fixed = []
    for part in pattern.split("/")[:-1]:
        if _has_glob(part):
            break
        fixed.append(part)
    root = "/".join(fixed) or "/"
    if fs.get_file_info(root).type != pafs.FileType.Directory:
        return Listing(root, (), exact=False)
    wanted = glob_pattern(pattern)
    found = _in_folder(fs, root, prefix, options)
    return Listing(root, tuple(f for f in found if wanted.fullmatch(f.path)), exact=False)


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """A shell glob as a regular expression over whole paths: `*` stays within a folder, `**` crosses folders."""
    parts = []
    for part in pattern.split("/"):
        if part == "**":
            parts.append("(?:[^/]+/)*")
        else:
            body = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")
            parts.append(body.replace(".*", "[^/]*") + "/")
    return re.compile("".join(parts).removesuffix("/"))
