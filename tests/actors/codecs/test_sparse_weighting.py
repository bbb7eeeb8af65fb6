"""Lexical weights as they are stored: M3's own, or with the mentions of each term."""

from __future__ import annotations

import numpy as np
import pytest

from actors.codecs.sparse_weighting import weight_sparse
from actors.outputs import SparseVectors, TokenBatch, offsets_of
from pipelines.config import CodecConfig, EmbedderConfig


def batch(*rows: list[int]) -> TokenBatch:
    ids = np.array([token for row in rows for token in row], np.int32)
    return TokenBatch(ids, offsets_of(np.array([len(row) for row in rows])), np.zeros(len(rows), np.int32))


def sparse(*rows: dict[int, float]) -> SparseVectors:
    ids = np.array([token for row in rows for token in row], np.uint32)
    weights = np.array([weight for row in rows for weight in row.values()], np.float32)
    return SparseVectors(offsets_of(np.array([len(row) for row in rows])), ids, weights)


def test_a_term_counts_for_each_text_by_itself() -> None:
    tokens = batch([1, 7, 7, 9, 2], [1, 7, 2], [1, 9, 9, 9, 7, 2])
    stored = weight_sparse(sparse({7: 0.5, 9: 1.0}, {7: 2.0}, {9: 1.0}), tokens, "counted")
    expected = [0.5**0.75 * (1 + 0.2 * np.log(2)), 1.0, 2.0**0.75, 1 + 0.2 * np.log(3)]
    np.testing.assert_allclose(stored.weights, expected, rtol=1e-6)
    assert stored.weights.dtype == np.float32
    assert stored.token_ids.tolist() == [7, 9, 7, 9]
    assert stored.offsets.tolist() == [0, 2, 3, 4]


def test_m3s_own_weights_are_left_alone() -> None:
    weights = sparse({7: 0.5}, {})
    assert weight_sparse(weights, batch([1, 7, 7], [1, 2]), "max") is weights


@pytest.mark.parametrize("rows", [[], [[]], [[1, 2], []]])
def test_texts_without_any_weight(rows: list[list[int]]) -> None:
    stored = weight_sparse(sparse(*({} for _ in rows)), batch(*rows), "counted")
    assert len(stored) == len(rows)
    assert not len(stored.weights)


def test_only_the_packaged_model_counts_unless_asked() -> None:
    assert EmbedderConfig().sparse_codec == "counted"
    assert EmbedderConfig(model="BAAI/bge-m3").sparse_codec == "max"
    assert EmbedderConfig(codec=CodecConfig(sparse="max")).sparse_codec == "max"
