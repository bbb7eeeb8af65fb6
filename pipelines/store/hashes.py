"""Computes the two hashes of a document: one over what is embedded, one over its metadata.

Two, because they cost differently: a document whose content hash changed is embedded again, one whose metadata hash
alone changed gets new values in place. Jobs, upserts and the upgrade of older indexes all call these functions, so a
document that came by one way is recognised by the others. blake2b of 128 bits: two of 10^9 documents share a hash with
a probability of about 10^-21, at about a microsecond a document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from json.encoder import encode_basestring_ascii
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

HASH = pa.binary(16)


def hash_content(text: pa.Array) -> pa.Array:
    """Hashes each string (or binary value) to `HASH`; null values give null."""
    return pa.array([None if value is None else _digest_one(value) for value in iterate_bytes(text)], HASH)


def hash_metadata(columns: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """Hashes each row's metadata values to `HASH`; nulls and the order of the columns do not matter.

    What is hashed is `json.dumps` of the row without its nulls, with sorted keys and `default=str`, written column by
    column. A column whose values are all null changes nothing, whether it is there or not. `rows` counts where there
    are no columns.
    """
    members = [_json_member(name, columns[name]) for name in sorted(columns)]
    if not members:
        return pa.array([digest(b"{}")] * rows, HASH)
    inner = pc.utf8_ltrim(pc.binary_join_element_wise(*members, ""), ", ")
    return hash_content(pc.binary_join_element_wise("{", inner, "}", ""))


def _json_member(name: str, column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Returns `, "name": value` of each row as JSON; empty for null."""
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    key = f", {encode_basestring_ascii(name)}: "
    return pc.fill_null(pc.binary_join_element_wise(key, _to_json(column), ""), "")


def _to_json(column: pa.Array) -> pa.Array:
    """Encodes each value as `json.dumps` does; integers, booleans and plain texts without a Python object each."""
    if pa.types.is_integer(column.type):
        return column.cast(pa.string())
    if pa.types.is_boolean(column.type):
        return pc.if_else(column, "true", "false")
    if pa.types.is_string(column.type):
        if not pc.any(pc.match_substring_regex(column, _ESCAPED)).as_py():
            return pc.binary_join_element_wise('"', column, '"', "")
        encode: Callable[[Any], str] = encode_basestring_ascii
    else:
        encode = _JSON.encode
    return pa.array([None if value is None else encode(value) for value in column.to_pylist()], pa.string())


_JSON = json.JSONEncoder(default=str, sort_keys=True)
_ESCAPED = r"[^ -!#-\[\]-~]"
"""A character that JSON in ASCII cannot have as it is."""


def _digest_one(part: memoryview) -> bytes:
    """Returns `digest(part)`, with one call of the hash function."""
    return hashlib.blake2b(len(part).to_bytes(8, "little") + part, digest_size=16).digest()


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
