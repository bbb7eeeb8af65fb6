from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from actors.arrow.blocks import split_by_size
from actors.codecs import table as codecs
from actors.outputs import EmbeddingBatch, MultiVectors, TokenBatch
from pipelines.config import EmbedderConfig
from pipelines.indexing.stages import EncodeOutputs, find_good_rows, tokenise


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_slices_hold_every_row_once_in_order(sizes: list[int], limit: int) -> None:
    parts = split_by_size(np.array(sizes, dtype=np.int64), limit)
    assert [row for part in parts for row in part.tolist()] == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in part) < limit + max(sizes) for part in parts)


def test_tokens_are_counted_and_failed_rows_left_alone() -> None:
    table = pa.table(
        {"text": ["hello world", None, "word " * 400], "error": pa.array([None, "unreadable", None], pa.string())}
    )
    out = tokenise(table, (EmbedderConfig(),))
    assert out["minilm_ids"].to_pylist()[:2] == [[101, 7592, 2088, 102], None]
    assert out["n_tokens"].to_pylist() == [4, 0, 256]
    assert out["n_truncated"].to_pylist() == [0, 0, 146]
    assert out["minilm_truncated"].to_pylist() == [0, None, 146]
    assert find_good_rows(out).tolist() == [0, 2]


def test_a_text_that_cannot_be_tokenised_is_marked_and_no_other_is_lost() -> None:
    table = pa.table({"text": pa.array(["fine", "bad", "good"]), "error": pa.nulls(3, pa.string())})
    bad = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 4, 6, 10], np.int32)), pa.py_buffer(b"fine\xff\xfegood")
    )
    out = tokenise(table.set_column(0, "text", bad), (EmbedderConfig(),))
    assert [ids is None for ids in out["minilm_ids"].to_pylist()] == [False, True, False]
    assert "UnicodeDecodeError" in out["error"].to_pylist()[1]


def test_finish_stores_signs_as_bits_and_float_vectors_as_lists() -> None:
    tokens = TokenBatch(np.array([101, 5, 102], np.int32), np.array([0, 3]), np.zeros(1, np.int32))
    vectors = MultiVectors(np.array([0, 2]), np.array([[1, -1, 1, 1], [-1, -1, 1, -1]], np.float32) / 2)
    batch = EmbeddingBatch(
        np.ones((1, 4), np.float32), None, vectors, tokens.lengths.astype(np.int32), tokens.n_truncated
    )
    signs = EmbedderConfig.model_validate({"codec": {"colbert": "sign"}})
    assert EncodeOutputs(signs)(batch, tokens, lambda batch: batch.ids[1:])["minilm_colbert"].to_pylist() == [
        bytes([0b1101, 0b0100])
    ]
    turned = bytes(codecs.encode(vectors.vectors, "rotated_sign").ravel())
    assert EncodeOutputs(EmbedderConfig())(batch, tokens, lambda batch: batch.ids[1:])[
        "minilm_colbert"
    ].to_pylist() == [turned]
    halves = EmbedderConfig.model_validate({"codec": {"dense": "float16", "colbert": "float16"}})
    assert EncodeOutputs(halves)(batch, tokens, lambda batch: batch.ids[1:])["minilm_dense"].type == pa.list_(
        pa.float16(), 4
    )
    assert EncodeOutputs(halves)(batch, tokens, lambda batch: batch.ids[1:])["minilm_colbert"].to_pylist() == [
        [[0.5, -0.5, 0.5, 0.5], [-0.5, -0.5, 0.5, -0.5]]
    ]
