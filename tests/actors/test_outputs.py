from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.outputs import EmbeddingBatch, MultiVectors, SparseVectors, TokenBatch, concat, offsets_of, ranges


def batch(lengths: list[int], dim: int = 3, seed: int = 0) -> EmbeddingBatch:
    random = np.random.default_rng(seed)
    offsets = offsets_of(np.array(lengths, dtype=np.int64))
    m = int(offsets[-1])
    return EmbeddingBatch(
        random.standard_normal((len(lengths), dim)).astype(np.float32),
        SparseVectors(offsets, np.arange(m, dtype=np.uint32), random.random(m, dtype=np.float32)),
        MultiVectors(offsets, random.standard_normal((m, dim)).astype(np.float16)),
        np.array(lengths, dtype=np.int32),
        np.zeros(len(lengths), dtype=np.int32),
    )


@given(st.lists(st.integers(0, 5), max_size=8))
def test_ranges_are_the_concatenated_aranges(lengths: list[int]) -> None:
    starts = np.arange(len(lengths), dtype=np.int64) * 7
    expected = [s + i for s, n in zip(starts, lengths, strict=True) for i in range(n)]
    assert ranges(starts, np.array(lengths, dtype=np.int64)).tolist() == expected


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_arrow_round_trip(lengths: list[int]) -> None:
    original = batch(lengths)
    columns = original.to_arrow("m")
    assert columns["m_dense"].type == pa.list_(pa.float32(), 3)
    assert columns["m_colbert"].type == pa.list_(pa.list_(pa.float16(), 3))
    sparse = SparseVectors.from_arrow(columns["m_sparse"])
    colbert = MultiVectors.from_arrow(columns["m_colbert"])
    assert original.sparse is not None
    assert original.colbert is not None
    np.testing.assert_array_equal(sparse.weights, original.sparse.weights)
    np.testing.assert_array_equal(sparse.token_ids, original.sparse.token_ids)
    np.testing.assert_array_equal(colbert.vectors, original.colbert.vectors)
    np.testing.assert_array_equal(colbert.offsets, original.colbert.offsets)


def test_codes_become_binary_and_come_back_from_a_slice() -> None:
    codes = MultiVectors(np.array([0, 2, 2, 3]), np.arange(12, dtype=np.uint8).reshape(3, 4))
    column = codes.to_arrow()
    assert column.type == pa.large_binary()
    assert column[0].as_py() == bytes(range(8))
    assert column[1].as_py() == b""
    back = MultiVectors.from_arrow(column.slice(1), width=4)
    assert back.offsets.tolist() == [0, 0, 1]
    assert back.vectors.tolist() == [[8, 9, 10, 11]]


def test_a_binary_column_needs_the_width() -> None:
    with pytest.raises(ValueError, match="number of bytes of one code"):
        MultiVectors.from_arrow(pa.array([b"ab"]))


def test_take_and_concat_undo_each_other() -> None:
    whole = batch([2, 0, 3, 1])
    order = np.array([2, 0, 3, 1])
    parts = [whole.take(order[:2]), whole.take(order[2:])]
    back = concat(parts).take(np.argsort(order))
    assert whole.colbert is not None
    assert back.colbert is not None
    np.testing.assert_array_equal(back.colbert.vectors, whole.colbert.vectors)
    np.testing.assert_array_equal(back.dense, whole.dense)
    assert back.n_tokens.tolist() == [2, 0, 3, 1]


def test_concat_names_the_output_that_is_missing_somewhere() -> None:
    whole = batch([1])
    bare = EmbeddingBatch(whole.dense, None, None, whole.n_tokens, whole.n_truncated)
    with pytest.raises(ValueError, match="sparse is there in 1 of 2 batches"):
        concat([whole, bare])


def test_outputs_of_another_length_are_refused() -> None:
    whole = batch([1, 1])
    with pytest.raises(ValueError, match="dense has 2 rows, n_tokens has 1"):
        EmbeddingBatch(whole.dense, None, None, whole.n_tokens[:1], whole.n_truncated[:1])


def test_tokens_can_be_taken_in_any_order() -> None:
    tokens = TokenBatch(np.arange(6, dtype=np.int32), np.array([0, 1, 3, 6]), np.array([0, 4, 0], dtype=np.int32))
    taken = tokens.take(np.array([2, 0]))
    assert taken.ids.tolist() == [3, 4, 5, 0]
    assert taken.lengths.tolist() == [3, 1]
    assert len(taken) == 2
