from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.arrow.blocks import scatter_rows, set_row_errors, tokens_from_table
from actors.outputs import EmbeddingBatch, TokenBatch
from actors.pool import EmbedActor, pool_size
from actors.spec import PoolSpec

FIELDS = (pa.field("m_dense", pa.list_(pa.float32(), 1)),)


class Fake:
    """Gives each text the sum of its ids; a text with the id 13 cannot be embedded."""

    def colbert_ids(self, tokens: TokenBatch) -> Any:
        return tokens.ids[:0]

    def embed_rows(self, tokens: TokenBatch, table: pa.Table, rows: object, *_: object) -> EmbeddingBatch:
        if 13 in tokens.ids:
            raise ValueError("thirteen")
        sums = np.add.reduceat(tokens.ids, tokens.offsets[:-1]).astype(np.float32)
        return EmbeddingBatch(sums[:, None], None, None, tokens.lengths.astype(np.int32), tokens.n_truncated)


def actor() -> EmbedActor:
    made = EmbedActor.__new__(EmbedActor)
    made.embedder = Fake()  # type: ignore[assignment]
    made.name, made.outputs, made.fields = "m", ("dense",), FIELDS
    made.device_codec = None
    made.finish = lambda batch, tokens, ids: batch.to_arrow("m")
    return made


def block(ids: list[list[int] | None]) -> pa.Table:
    return pa.table(
        {
            "doc_id": [str(i) for i in range(len(ids))],
            "error": pa.array(["before" if row is None else None for row in ids], pa.string()),
            "m_ids": pa.array(ids, pa.list_(pa.int32())),
            "m_truncated": pa.array([None if row is None else 0 for row in ids], pa.int32()),
        }
    )


def test_outputs_stand_beside_their_rows_and_failed_rows_have_none() -> None:
    out = actor()(block([[1, 2], None, [3], [13], [4, 4]]))
    assert out.column_names == ["doc_id", "error", "m_dense"]
    assert out["m_dense"].to_pylist() == [[3.0], None, [3.0], None, [8.0]]
    errors = out["error"].to_pylist()
    assert errors[1] == "before"
    assert errors[3].startswith("ValueError: thirteen\nTraceback")
    assert [errors[0], errors[2], errors[4]] == [None, None, None]


def test_a_block_without_a_good_row_has_the_same_schema() -> None:
    assert actor()(block([None, None])).schema == actor()(block([[1]])).schema
    assert actor()(block([])).schema.names == ["doc_id", "error", "m_dense"]


def test_tokens_come_out_of_a_sliced_block() -> None:
    tokens, rows = tokens_from_table(block([[9], [1, 2], None, [3]]).slice(1), "m")
    assert tokens.ids.tolist() == [1, 2, 3]
    assert tokens.offsets.tolist() == [0, 2, 3]
    assert rows.tolist() == [0, 2]


def test_place_and_mark() -> None:
    assert scatter_rows(pa.array([7, 8]), np.array([2, 0]), 3).to_pylist() == [8, None, 7]
    table = pa.table({"error": pa.array([None, "old", None], pa.string())})
    assert set_row_errors(table, {2: "new"})["error"].to_pylist() == [None, "old", "new"]


@pytest.mark.parametrize(
    ("pool", "cluster", "share", "size"),
    [
        ({}, {"CPU": 3.0}, 1.0, 2),
        ({}, {"CPU": 1.0}, 1.0, 1),
        ({"max_size": 7}, {"CPU": 1.0}, 1.0, 7),
        ({"num_cpus": 1, "num_gpus": 1}, {"CPU": 64.0, "GPU": 8.0}, 1.0, 8),
        ({"num_gpus": 0.5}, {"CPU": 64.0, "GPU": 8.0}, 0.5, 8),
        ({"num_gpus": 1, "min_size": 2}, {"CPU": 64.0}, 1.0, 2),
    ],
)
def test_pool_size(pool: dict[str, Any], cluster: dict[str, float], share: float, size: int) -> None:
    assert pool_size(PoolSpec(**pool), cluster, share) == size
