"""Scores of product-quantised vectors are those of the decoded vectors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from actors.codecs import table as codecs
from actors.codecs.product_quantization import ProductQuantization
from actors.outputs import MultiVectors
from pipelines.retrieval.scoring.maxsim import maxsim


def unit(n: int, dim: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("dim", [384, 96, 40])
@pytest.mark.parametrize("queries", [1, 16, 37])
@pytest.mark.parametrize("threads", [1, 2])
def test_scores_are_those_of_decoded_vectors(dim: int, queries: int, threads: int) -> None:
    lengths = np.array([3, 0, 1, 50, 7, 0, 200])
    vectors, query = unit(int(lengths.sum()), dim, 0), unit(queries, dim, 1)
    codec = codecs.get_codec("pq", ProductQuantization.train(vectors))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    documents = MultiVectors(offsets, codecs.encode(vectors, codec))
    weights = np.random.default_rng(2).random(queries).astype(np.float32)
    products = query @ codecs.decode(documents.vectors, codec, dim).T
    expected = [
        (products[:, a:b].max(1) @ weights / weights.sum()) if b > a else 0.0 for a, b in itertools.pairwise(offsets)
    ]
    np.testing.assert_allclose(maxsim(query, documents, codec, weights, threads), expected, atol=1e-5)
    rows = np.array([6, 1, 3])
    found = maxsim(query, documents, codec, weights, threads, rows)
    np.testing.assert_allclose(found, np.array(expected)[rows], atol=1e-5)
