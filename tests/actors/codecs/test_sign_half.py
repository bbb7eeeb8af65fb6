"""Signs of half the dimensions: those in which vectors lie, turned."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.codecs import table as codecs
from actors.codecs.sign_half import SignHalf, kept_dimensions
from actors.outputs import MultiVectors
from pipelines.retrieval.scoring.maxsim import maxsim


def vectors(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """Even dimensions vary ten times as much as odd ones, and all have means of their own."""
    rng = np.random.default_rng(seed)
    spread = np.where(np.arange(dim) % 2 == 0, 1.0, 0.1)
    x = rng.standard_normal((n, dim)) * spread + np.random.default_rng(7).standard_normal(dim)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("dim", "kept"), [(384, 192), (1024, 512), (48, 24), (40, 24), (4, 4)])
def test_half_of_the_dimensions_are_kept_in_whole_bytes(dim: int, kept: int) -> None:
    assert kept_dimensions(dim) == kept
    assert codecs.width("sign_half", dim) == kept // 8


def test_vectors_that_lie_in_half_the_dimensions_are_turned_signs_there() -> None:
    basis = np.linalg.qr(np.random.default_rng(3).standard_normal((64, 64)))[0][:, :32].astype(np.float32)
    inside = vectors(300, 32) @ basis.T
    codec = codecs.get_codec("sign_half", SignHalf.train(inside))
    decoded = codecs.decode(codecs.encode(inside, codec), codec, 64)
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, rtol=2e-3)
    np.testing.assert_allclose(decoded @ basis @ basis.T, decoded, atol=2e-3)
    assert (inside * decoded).sum(1).mean() > 0.75


def test_codes_of_single_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="sign_half has changed since this index was built"):
        codecs.get_codec("sign_half", np.zeros((2, 192), np.float32))


@given(st.integers(1, 5), st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_scores_are_those_of_the_decoded_vectors(m: int, lengths: list[int]) -> None:
    codec = codecs.get_codec("sign_half", SignHalf.train(vectors(200, 48)))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    query, codes = vectors(m, 48, 2), codecs.encode(vectors(int(offsets[-1]), 48, 3), codec)
    found = maxsim(query, MultiVectors(offsets, codes), codec)
    products = query @ codecs.decode(codes, codec, 48).T
    expected = [products[:, a:b].max(1).mean() if b > a else 0 for a, b in pairwise(offsets)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
