"""Product quantisation: codes are the nearest trained centroids, and the codebook travels with the table."""

from __future__ import annotations

import numpy as np
import pytest

from actors.codecs import table as codecs
from actors.codecs.product_quantization import Codebook, ProductQuantization


def clusters(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """Vectors around 40 centres, as the tokens of a text are around its words."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, dim))
    x = centres[rng.integers(0, 40, n)] + 0.3 * rng.standard_normal((n, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("dim", "width"), [(384, 24), (96, 6), (21, 2)])
def test_a_code_is_the_nearest_centroid_of_each_part(dim: int, width: int) -> None:
    book = ProductQuantization.train(clusters(3000, dim))
    assert book.shape == (width, 256, 16)
    codec, x = codecs.get_codec("pq", book), clusters(50, dim, 1)
    codes = codecs.encode(x, codec)
    assert codes.shape == (50, width)
    assert codecs.width("pq", dim) == width
    padded = np.pad(x, ((0, 0), (0, width * 16 - dim)))
    for i in range(width):
        part = padded[:, i * 16 : (i + 1) * 16]
        distances = ((part[:, None] - book[i].astype(np.float32)) ** 2).sum(-1)
        chosen = np.take_along_axis(distances, codes[:, i : i + 1].astype(int), 1)[:, 0]
        np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-4, atol=1e-5)
    expected = np.hstack([book[i].astype(np.float32)[codes[:, i]] for i in range(width)])[:, :dim]
    assert np.array_equal(codecs.decode(codes, codec, dim), expected)


def test_training_fits_what_it_has_seen() -> None:
    x = clusters(2000, 384, 1)

    def error(book: Codebook) -> float:
        codec = codecs.get_codec("pq", book)
        return float(((codecs.decode(codecs.encode(x, codec), codec, 384) - x) ** 2).sum(1).mean())

    noise = np.random.default_rng(0).standard_normal((3000, 384)).astype(np.float32)
    foreign = ProductQuantization.train(noise / np.linalg.norm(noise, axis=1, keepdims=True))
    assert error(ProductQuantization.train(clusters(3000, 384))) < 0.6 * error(foreign)


def test_training_is_reproducible_and_takes_few_vectors() -> None:
    x = clusters(100, 32)
    book = ProductQuantization.train(x)
    assert np.array_equal(book, ProductQuantization.train(x))
    codec = codecs.get_codec("pq", book)
    np.testing.assert_allclose(codecs.decode(codecs.encode(x[:5], codec), codec, 32), x[:5], atol=0.4)
    with pytest.raises(ValueError, match="trained on the first texts, and there is none"):
        ProductQuantization.train(np.zeros((0, 32), np.float32))
