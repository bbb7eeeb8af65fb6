"""Attention in AMX tiles against torch's, in float32, on the same bf16 numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.network.attention import AttentionOptions, Segments, attend
from actors.outputs import IntArray, offsets_of

amx = pytest.importorskip("actors.kernels.amx_attention", reason="needs numba")
if not amx.available():
    pytest.skip("this processor has no AMX", allow_module_level=True)


def projected(tokens: int, heads: int, dim: int, seed: int = 0, size: float = 1.0) -> tuple[Tensor, ...]:
    """Query, key and value as an encoder has them: views of one product."""
    torch.manual_seed(seed)
    return (size * torch.randn(tokens, 3, heads, dim)).to(torch.bfloat16).unbind(1)


def exact(parts: tuple[Tensor, ...], offsets: IntArray, scale: float) -> Tensor:
    query, key, value = (x.float() for x in parts)
    return attend(query, key, value, Segments(offsets, torch.device("cpu")), AttentionOptions(scale))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 120), min_size=1, max_size=6),
    st.sampled_from([(1, 32), (3, 32), (12, 32), (2, 64)]),
    st.integers(0, 20),
)
def test_each_text_attends_to_itself(lengths: list[int], shape: tuple[int, int], spare: int) -> None:
    offsets = offsets_of(np.array(lengths))
    parts = projected(int(offsets[-1]) + spare, *shape)
    found = amx.attend(*parts, offsets, 0.2)
    torch.testing.assert_close(found.float(), exact(parts, offsets, 0.2), atol=0.02, rtol=0.01)
    assert not found[offsets[-1] :].any()


def test_sharp_attention_and_large_scores_stay_finite() -> None:
    offsets = np.array([0, 33, 100])
    parts = projected(100, 2, 32, size=30.0)
    found = amx.attend(*parts, offsets, 1.0)
    torch.testing.assert_close(found.float(), exact(parts, offsets, 1.0), atol=0.5, rtol=0.02)


def test_a_text_gives_the_same_numbers_whatever_its_neighbours() -> None:
    parts = projected(90, 4, 64)
    whole = amx.attend(*parts, np.array([0, 20, 61, 90]), 0.125)
    alone = amx.attend(*(x[20:61] for x in parts), np.array([0, 41]), 0.125)
    assert torch.equal(whole[20:61], alone)


def test_threads_share_the_texts() -> None:
    offsets = offsets_of(np.array([70, 70, 3, 50, 1, 20]))
    parts = projected(int(offsets[-1]), 2, 32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = amx.attend(*parts, offsets, 0.2)
        torch.set_num_threads(3)
        assert torch.equal(amx.attend(*parts, offsets, 0.2), alone)
    finally:
        torch.set_num_threads(threads)


def test_products_of_torch_are_right_before_and_after() -> None:
    x, weight = torch.randn(256, 384).to(torch.bfloat16), torch.randn(384, 384).to(torch.bfloat16)
    before = x @ weight
    amx.attend(*projected(40, 2, 32), np.array([0, 40]), 0.2)
    assert torch.equal(x @ weight, before)


def test_long_calls_in_bf16_take_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from actors.network import attention

    asked: list[int] = []
    monkeypatch.setattr(attention, "_tiles", lambda: lambda query, *_: asked.append(len(query)) or query)
    for tokens, dim, dtype in ((600, 32, torch.bfloat16), (40, 32, torch.bfloat16), (600, 48, torch.bfloat16)):
        x = torch.zeros(tokens, 2, dim, dtype=dtype)
        attend(x, x, x, Segments(np.array([0, tokens]), x.device), AttentionOptions(0.2))
    assert asked == [600]
