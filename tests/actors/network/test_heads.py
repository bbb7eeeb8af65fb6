from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actors.kernels.jit import HAS_NUMBA
from actors.network import heads
from actors.outputs import IntArray, offsets_of
from actors.spec import Pooling

Packed = tuple[Tensor, Tensor, IntArray]

LENGTHS = np.array([5, 1, 9, 2])
SPECIAL = {0, 2}


@pytest.fixture
def packed() -> Packed:
    generator = torch.Generator().manual_seed(0)
    total = int(LENGTHS.sum())
    hidden = torch.randn(total, 16, generator=generator)
    return hidden, torch.randint(0, 12, (total,), generator=generator), offsets_of(LENGTHS)


def rows(x: Tensor, offsets: IntArray) -> list[Tensor]:
    return [x[a:b] for a, b in pairwise(offsets)]


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [("cls", lambda x: x[0]), ("last_token", lambda x: x[-1]), ("mean", lambda x: x.mean(0))],
)
def test_dense_pools_each_text(packed: Packed, pooling: Pooling, pool: Callable[[Tensor], Tensor]) -> None:
    hidden, _, offsets = packed
    expected = torch.stack([pool(x) for x in rows(hidden, offsets)])
    torch.testing.assert_close(heads.dense(hidden, offsets, pooling, normalize=False), expected)
    cut = expected[:, :6]
    torch.testing.assert_close(
        heads.dense(hidden, offsets, pooling, truncate_dim=6), cut / cut.norm(dim=1, keepdim=True)
    )


def test_dense_of_half_precision_is_pooled_in_single(packed: Packed) -> None:
    hidden, _, offsets = packed
    half = hidden.bfloat16()
    assert heads.dense(half, offsets, "mean").dtype == torch.float32
    torch.testing.assert_close(heads.dense(half, offsets, "mean"), heads.dense(half.float(), offsets, "mean"))


def test_an_unknown_pooling_is_named(packed: Packed) -> None:
    hidden, _, offsets = packed
    with pytest.raises(ValueError, match="pooling must be cls, mean or last_token, got 'max'"):
        heads.dense(hidden, offsets, "max")  # type: ignore[arg-type]


def test_a_zero_vector_stays_zero() -> None:
    assert heads.dense(torch.zeros(2, 4), np.array([0, 2]), "mean").tolist() == [[0, 0, 0, 0]]


def looped(hidden: Tensor, ids: Tensor, offsets: IntArray, linear: nn.Linear) -> list[list[tuple[int, float]]]:
    """M3's rule as a loop over tokens."""
    weights = torch.relu(linear(hidden)).flatten().tolist()
    out = []
    for start, stop in pairwise(offsets):
        row: dict[int, float] = {}
        for token, weight in zip(ids[start:stop].tolist(), weights[start:stop], strict=True):
            if token not in SPECIAL and weight > 0:
                row[token] = max(row.get(token, 0), weight)
        out.append(sorted(row.items()))
    return out


@torch.inference_mode()
def test_sparse_is_the_maximum_of_each_id_of_each_text(packed: Packed) -> None:
    hidden, ids, offsets = packed
    linear = nn.Linear(16, 1)
    vectors = heads.sparse(hidden, ids, offsets, linear, SPECIAL)
    found = [list(zip(*(part.tolist() for part in vectors.row(i)), strict=True)) for i in range(len(vectors))]
    expected = looped(hidden, ids, offsets, linear)
    assert [[t for t, _ in row] for row in found] == [[t for t, _ in row] for row in expected]
    assert [w for row in found for _, w in row] == pytest.approx([w for row in expected for _, w in row])


@torch.inference_mode()
def test_sparse_without_any_weight_keeps_its_rows(packed: Packed) -> None:
    hidden, ids, offsets = packed
    vectors = heads.sparse(hidden, ids, offsets, nn.Linear(16, 1), set(range(12)))
    assert len(vectors) == 4
    assert len(vectors.token_ids) == 0


@torch.inference_mode()
@pytest.mark.parametrize("dim", [None, 4])
def test_colbert_drops_the_first_token_and_keeps_the_last(packed: Packed, dim: int | None) -> None:
    hidden, _, offsets = packed
    linear = nn.Linear(16, 8)
    vectors = heads.colbert(hidden, offsets, linear, truncate_dim=dim)
    for i, text in enumerate(rows(hidden, offsets)):
        expected = nn.functional.normalize(linear(text[1:])[:, :dim], dim=-1)
        np.testing.assert_allclose(vectors.row(i), expected.numpy(), atol=1e-6)


def test_colbert_without_a_head_gives_the_hidden_states(packed: Packed) -> None:
    hidden, _, offsets = packed
    vectors = heads.colbert(hidden, offsets, None, normalize=False)
    np.testing.assert_array_equal(vectors.row(2), hidden[7:15].numpy())
    assert vectors.row(1).shape == (0, 16)


@pytest.mark.skipif(not HAS_NUMBA, reason="kernels are switched off")
@pytest.mark.parametrize("dim", [None, 20])
def test_compiled_colbert_equals_torch(monkeypatch: pytest.MonkeyPatch, dim: int | None) -> None:
    lengths = np.array([3, 1, 300, 2, 400])
    hidden = torch.randn(int(lengths.sum()), 37, generator=torch.Generator().manual_seed(1)).bfloat16()
    hidden[5] = 0
    calls = [heads.colbert(hidden, offsets_of(lengths), None, truncate_dim=dim)]
    assert heads._compiled() is not None
    monkeypatch.setattr(heads, "_compiled", lambda: None)
    calls.append(heads.colbert(hidden, offsets_of(lengths), None, truncate_dim=dim))
    np.testing.assert_allclose(calls[0].vectors, calls[1].vectors, atol=1e-7)
    assert not calls[0].vectors[2].any()  # the zero vector stays one: no division by its norm
