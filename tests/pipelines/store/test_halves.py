"""Signs of half the dimensions: the ones that vary, against their means."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.outputs import MultiVectors
from pipelines.retrieval.maxsim import maxsim
from pipelines.store import codecs, halves


def vectors(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """Even dimensions vary ten times as much as odd ones, and all have means of their own."""
    rng = np.random.default_rng(seed)
    spread = np.where(np.arange(dim) % 2 == 0, 1.0, 0.1)
    x = rng.standard_normal((n, dim)) * spread + np.random.default_rng(7).standard_normal(dim)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("dim", "kept"), [(384, 192), (1024, 512), (48, 24), (40, 24), (4, 4)])
def test_half_of_the_dimensions_are_kept_in_whole_bytes(dim: int, kept: int) -> None:
    assert halves.kept(dim) == kept
    assert codecs.width("sign_half", dim) == kept // 8


def test_the_dimensions_that_vary_are_kept_and_compared_with_their_means() -> None:
    x = vectors(500, 32)
    book = halves.train(x)
    assert halves.dimensions(book).tolist() == list(range(0, 32, 2))
    codec, others = codecs.get_codec("sign_half", book), vectors(20, 32, 1)
    decoded = codecs.decode(codecs.encode(others, codec), codec, 32)
    expected = np.where(others[:, ::2] > x[:, ::2].mean(0), 0.25, -0.25)
    np.testing.assert_allclose(decoded[:, ::2], expected)
    assert not decoded[:, 1::2].any()


@given(st.integers(1, 5), st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_scores_are_those_of_the_decoded_vectors(m: int, lengths: list[int]) -> None:
    codec = codecs.get_codec("sign_half", halves.train(vectors(200, 48)))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    query, codes = vectors(m, 48, 2), codecs.encode(vectors(int(offsets[-1]), 48, 3), codec)
    found = maxsim(query, MultiVectors(offsets, codes), codec)
    products = query @ codecs.decode(codes, codec, 48).T
    expected = [products[:, a:b].max(1).mean() if b > a else 0 for a, b in pairwise(offsets)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
