"""Opens and creates Lance tables that several processes may open or create at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import lance
import pyarrow as pa

from pipelines.config import ConfigError, absolute_uri, scheme_of
from pipelines.store.schema import Target


def open_dataset(uri: str, options: Mapping[str, str]) -> lance.LanceDataset | None:
    """Opens the newest version of a table; None if there is none."""
    try:
        return lance.dataset(uri, storage_options=dict(options))
    except ValueError as error:
        if "not found" not in str(error):
            raise
        return None


def open_version(target: Target, version: int) -> lance.LanceDataset:
    """Opens the documents table of `target` at a version: the one that every task of a job reads."""
    return lance.dataset(target.documents_uri, version=version, storage_options=dict(target.storage_options))


def create_dataset(uri: str, schema: pa.Schema, options: Mapping[str, str]) -> lance.LanceDataset:
    """Creates an empty table, or opens the one that another process has just created.

    `lance.write_dataset(mode="create")` will not do: of two that race, the slower one's becomes an overwrite, which
    wipes what was written in between. As a commit on version 0 without retries exactly one of them succeeds.
    """
    operation = lance.LanceOperation.Overwrite(schema, [])
    try:
        return lance.LanceDataset.commit(uri, operation, read_version=0, storage_options=dict(options), max_retries=0)
    except OSError:
        dataset = open_dataset(uri, options)
        if dataset is None:
            raise
        return dataset


def check_writable(uri: str) -> None:
    """Raises ConfigError if this user cannot write or create a local folder; other stores are not checked."""
    if scheme_of(uri):
        return
    folder = Path(absolute_uri(uri))
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"index.uri: {uri}: {there} is a file, a folder is needed")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"index.uri: {uri}: {there} cannot be written by this user, or is on a read-only file system")
