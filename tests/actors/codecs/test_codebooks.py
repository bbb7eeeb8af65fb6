"""What trained codecs have learnt travels with the table, and without it nothing is decoded."""

from __future__ import annotations

import numpy as np
import pytest

from actors.codecs import codebooks as books
from actors.codecs import codecs

VECTORS = np.random.default_rng(0).standard_normal((300, 40)).astype(np.float32)


@pytest.mark.parametrize("codec", sorted(books.TRAINERS))
def test_a_book_survives_the_metadata_of_a_schema(codec: str) -> None:
    book = books.TRAINERS[codec](VECTORS)
    metadata = books.to_metadata({"m": book})
    back = books.from_metadata(metadata, "m")
    assert back is not None
    assert back.dtype == book.dtype
    assert np.array_equal(back, book)
    assert books.fingerprint(back) == books.fingerprint(book)
    assert books.from_metadata(metadata, "other") is None
    assert books.from_metadata(None, "m") is None


@pytest.mark.parametrize("codec", sorted(books.TRAINERS))
def test_without_its_book_nothing_is_decoded(codec: str) -> None:
    with pytest.raises(ValueError, match="need the book of their index"):
        codecs.decode(np.zeros((1, 2), np.uint8), codec, 32)


@pytest.mark.parametrize("codec", sorted(books.TRAINERS))
def test_training_needs_vectors(codec: str) -> None:
    with pytest.raises(ValueError, match=f"the {codec} codec is trained on the first texts, and there is none"):
        books.TRAINERS[codec](np.zeros((0, 32), np.float32))
