"""8-bit attention against attention in float64 over the same numbers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("numba")

from actors.kernels.int8_attention import attend, available

pytestmark = pytest.mark.skipif(not available(), reason="the processor has no AVX512-VNNI, or kernels are switched off")
LENGTHS = (1, 2, 7, 8, 9, 16, 17, 31, 100)
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])


def numbers(heads: int, dim: int, extra: int = 5) -> list[Tensor]:
    """Query, key and value, (T + extra, heads, dim), views of one product as an encoder has them."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(int(OFFSETS[-1]) + extra, 3, heads, dim, generator=generator).unbind(1))


def reference(query: Tensor, key: Tensor, value: Tensor, offsets: Any, scale: float) -> Tensor:
    out = torch.zeros(query.shape, dtype=torch.float64)
    for a, b in pairwise(offsets):
        q, k, v = (x[a:b].double().transpose(0, 1) for x in (query, key, value))
        out[a:b] = (torch.softmax(q @ k.transpose(1, 2) * scale, -1) @ v).transpose(0, 1)
    return out


@pytest.mark.parametrize(("heads", "dim"), [(3, 32), (2, 64)])
def test_it_is_attention_within_rounding(heads: int, dim: int) -> None:
    query, key, value = numbers(heads, dim)
    scale = 1 / math.sqrt(dim)
    found = attend(query, key, value, OFFSETS, scale)
    expected = reference(query, key, value, OFFSETS, scale)
    assert found.shape == query.shape
    assert found.is_contiguous()
    error = (found - expected).norm() / expected.norm()
    assert error < 0.02
    assert not found[OFFSETS[-1] :].any()  # rows past the last text


def test_one_key_that_outweighs_all_others_is_taken_as_it_is() -> None:
    query, key, value = numbers(2, 32)
    key[OFFSETS[8] + 3] = query[OFFSETS[8] :][:1] * 40
    found = attend(query, key, value, OFFSETS, 1.0)[OFFSETS[8]]
    assert (found - value[OFFSETS[8] + 3]).abs().max() < 0.02


def test_a_text_gets_the_same_bytes_alone_and_in_company() -> None:
    query, key, value = numbers(2, 64)
    together = attend(query, key, value, OFFSETS, 0.125)
    for a, b in pairwise(OFFSETS):
        alone = attend(query[a:b], key[a:b], value[a:b], np.array([0, b - a]), 0.125)
        assert torch.equal(alone, together[a:b])


def test_zeros_give_zeros() -> None:
    zeros = [torch.zeros(20, 2, 32) for _ in range(3)]
    assert not attend(*zeros, np.array([0, 20]), 1.0).any()


def test_threads_share_the_texts() -> None:
    before, (query, key, value) = torch.get_num_threads(), numbers(2, 32)
    try:
        torch.set_num_threads(1)
        one = attend(query, key, value, OFFSETS, 0.2)
        torch.set_num_threads(3)
        assert torch.equal(attend(query, key, value, OFFSETS, 0.2), one)
    finally:
        torch.set_num_threads(before)
