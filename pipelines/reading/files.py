"""Opens input files on any storage through one interface, `pyarrow.fs`; `listing` finds them.

s3, gs, az and local paths go to Arrow's own C++ clients, every other scheme to fsspec. The price is a small
translation of option names: a user writes the names that LanceDB takes (`aws_access_key_id`, ...), so that one set
serves input and index. Secrets stay inside the client objects: a URI that carries one is refused and messages are
redacted.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import SecretStr

from pipelines.config import ConfigError, absolute_uri, is_utf8, plain_options, scheme_of
from pipelines.reading.compression import DECOMPRESSION_ERRORS, buffered, decompress

READ_ERRORS = (OSError, EOFError, pa.ArrowException, UnicodeError, *DECOMPRESSION_ERRORS)
"""What a damaged, missing or forbidden file raises while it is read."""

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
    """Identifies one input file. `uri` is for messages and the `source` column; `path` is what `filesystem` takes."""

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
        """Returns whether the file existed when its version was read."""
        return self.version != ""

    def stream(self) -> io.BufferedReader:
        """Opens the file from the beginning, decompressed by the suffix of its name."""
        return decompress(self.open_sequential(), self.name)

    def open(self) -> pa.NativeFile:
        """Opens the file for random access, without decompression."""
        if not is_utf8(self.path):  # Arrow's file systems refuse it
            return pa.OSFile(os.fsencode(self.path))
        return self.filesystem.open_input_file(self.path)

    def open_sequential(self) -> pa.NativeFile:
        """Opens the file for one sequential pass, without decompression: an object store then needs one request."""
        return self.filesystem.open_input_stream(self.path, compression=None) if is_utf8(self.path) else self.open()

    def stream_from(self, start: int) -> io.BufferedReader:
        """Opens the file at a byte offset, without decompression."""
        file = self.open()
        file.seek(start)
        return buffered(file)


def redact(message: str, options: Mapping[str, SecretStr]) -> str:
    """Removes from a message the values of all options that are long enough to be secrets."""
    for value in plain_options(options).values():
        if len(value) > 5:
            message = message.replace(value, "***")
    return message


def filesystem(uri: str, options: Mapping[str, SecretStr]) -> tuple[pafs.FileSystem, str]:
    """Creates the client for a URI or local path; returns it with the path that it takes."""
    if "@" in urlsplit(uri).netloc and scheme_of(uri) in ("s3", "s3a", "gs", "http", "https"):
        raise ConfigError(
            f"{scheme_of(uri)}://***@...: a URI must not carry credentials; use storage_options or the environment"
        )
    client = _client(scheme_of(uri), tuple(sorted(plain_options(options).items())))
    return client, _client_path(client, uri)


def _client_path(client: pafs.FileSystem, uri: str) -> str:
    if isinstance(client, pafs.LocalFileSystem):
        return absolute_uri(uri)
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
    """Maps LanceDB's option names, with or without `aws_`, to pyarrow's; the environment supplies the others."""
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


def version_of(size: int, mtime_ns: int | None) -> str:
    """Returns a version string that changes with a file's size and modification time.

    Object stores count that time in whole seconds: two files of one size and second look the same.
    """
    return hashlib.blake2b(f"{size} {mtime_ns}".encode(), digest_size=8).hexdigest()


def file_at(uri: str, options: Mapping[str, SecretStr]) -> File:
    """Returns the current file at a URI; a missing one has no version."""
    client, path = filesystem(uri, options)
    if not is_utf8(path):
        try:
            facts = os.stat(path)  # noqa: PTH116  # the path as it is
        except FileNotFoundError:
            return File(client, path, uri, options=options)
        return File(client, path, uri, facts.st_size, version_of(facts.st_size, facts.st_mtime_ns), options=options)
    info = client.get_file_info(path)
    version = version_of(info.size, info.mtime_ns) if info.type == pafs.FileType.File else ""
    return File(client, path, uri, info.size or 0, version, options=options)
