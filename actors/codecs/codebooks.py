"""What a trained ColBERT codec has learnt, in the schema metadata of the table that it encodes.

One commit so makes both, and the book's hash is in the index's identity. Each version of the table carries it: 260 kB
for `pq` at 384 dimensions, 200 kB for `sign_half`.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.codecs import pq
from actors.codecs import sign_half as halves
from actors.outputs import Array

Book = npt.NDArray[Any]
KEY = "tridex.codebook."
TRAINERS: dict[str, Callable[[Array], Book]] = {"pq": pq.train, "sign_half": halves.train}
"""Codecs that are trained on vectors (m, d) of the corpus before they encode any."""


def fingerprint(book: Book) -> str:
    return hashlib.sha256(book.tobytes()).hexdigest()


def to_metadata(books: Mapping[str, Book]) -> dict[bytes, bytes]:
    """Schema metadata that carry the book of each embedder."""
    return {f"{KEY}{name}".encode(): _to_text(book) for name, book in books.items()}


def from_metadata(metadata: Mapping[bytes, bytes] | None, name: str) -> Book | None:
    """The book of embedder `name`; None where its codec has none."""
    text = (metadata or {}).get(f"{KEY}{name}".encode())
    return None if text is None else np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


def _to_text(book: Book) -> bytes:
    file = io.BytesIO()
    np.save(file, book, allow_pickle=False)
    return base64.b64encode(file.getvalue())
