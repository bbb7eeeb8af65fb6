"""Stores the parameters of trained codecs in the schema metadata of the table that they encode.

One commit so makes both, and the parameters' hash is in the index's identity. Each version of the table carries them:
260 kB for `pq` at 384 dimensions, 200 kB for `sign_half`.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping

import numpy as np

from actors.codecs.codec import CodecParameters

ParametersByEmbedder = Mapping[str, CodecParameters]

KEY = "tridex.codebook."


def fingerprint(parameters: CodecParameters) -> str:
    """Hashes the parameters (SHA-256, hex)."""
    return hashlib.sha256(parameters.tobytes()).hexdigest()


def to_metadata(parameters: ParametersByEmbedder) -> dict[bytes, bytes]:
    """Serialises the parameters of each embedder, by its name, as schema metadata."""
    return {f"{KEY}{name}".encode(): _to_text(array) for name, array in parameters.items()}


def from_metadata(metadata: Mapping[bytes, bytes] | None, name: str) -> CodecParameters | None:
    """Reads the parameters of embedder `name` from schema metadata; None if its codec has none."""
    text = (metadata or {}).get(f"{KEY}{name}".encode())
    return None if text is None else np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


def _to_text(array: CodecParameters) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return base64.b64encode(file.getvalue())
