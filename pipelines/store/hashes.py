"""Computes the two hashes of a document: one over what is embedded, one over its metadata.

Two, because they cost differently: a document whose content hash changed is embedded again, one whose metadata hash
alone changed gets new values in place. Jobs, upserts and the upgrade of older indexes all call these functions, so a
document that came by one way is recognised by the others. blake2b of 128 bits: two of 10^9 documents share a hash with
a probability of about 10^-21, at about a microsecond a document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

HASH = pa.binary(16)


def hash_content(text: pa.Array) -> pa.Array:
    """Hashes each string (or binary value) to `HASH`; null values give null."""
    return pa.array([None if value is None else digest(value) for value in iterate_bytes(text)], HASH)


def hash_metadata(columns: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """Hashes each row's metadata values to `HASH`; nulls and the order of the columns do not matter.

    A column whose values are all null therefore changes nothing, whether it is there or not. `rows` counts where there
    are no columns.
    """
    if not columns:
        return pa.array([_hash_values({})] * rows, HASH)
    values = pa.table(dict(columns)).to_pylist()
    return pa.array([_hash_values(row) for row in values], HASH)


def _hash_values(row: Mapping[str, object]) -> bytes:
    present = {name: value for name, value in row.items() if value is not None}
    return digest(json.dumps(present, default=str, sort_keys=True).encode())


def digest(*parts: bytes | memoryview) -> bytes:
    """Hashes parts, each behind its length, so that no two lists of parts look alike."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def iterate_bytes(strings: pa.Array) -> Iterator[memoryview | None]:
    """Yields the bytes of each string or binary value without a copy; None for null."""
    if not len(strings):
        return
    _, offsets, data = strings.buffers()
    bounds = np.frombuffer(offsets, np.int32)[strings.offset : strings.offset + len(strings) + 1].tolist()
    view = memoryview(data if data is not None else b"")
    for i, valid in enumerate(strings.is_valid().to_pylist()):
        yield view[bounds[i] : bounds[i + 1]] if valid else None
