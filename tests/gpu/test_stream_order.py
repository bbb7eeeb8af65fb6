"""What a GPU does in which order: copies, events, two streams, and what happens where its memory ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.embedders.registry import load_embedder
from actors.network import attention
from actors.spec import ComputeSpec, EmbedderSpec
from actors.transfers import to_device, to_host
from tests.checkpoints import build
from tests.gpu.stand_in import CUDA, StandIn, Stream, on_stream, stand_in

TEXTS = [f"panda {'river ' * (i % 7)}" for i in range(24)]


@pytest.fixture
def device() -> Iterator[StandIn]:
    with stand_in() as found:
        yield found


def spec(folder: Path, on: str, budget: int = 40) -> EmbedderSpec:
    return EmbedderSpec(model=str(folder), compute=ComputeSpec(device=on, dtype="fp32", budget=budget))


def test_each_stream_copies_then_records_then_waits(tmp_path: Path, device: StandIn) -> None:
    folder = build("m3", tmp_path / "m3")
    model = load_embedder(spec(folder, "cuda:0"))
    tokens = model.tokenise(TEXTS)
    device.reset()
    model.embed_tokens(tokens)
    names = {name for name, _ in device.calls}
    assert names == {"stream 1", "stream 2"}, "both lanes take part"
    for name in names:
        order = [what for own, what in device.calls if own == name and what != "copy from pinned memory"]
        batch = ["copy to pinned memory"] * 3 + ["event.record", "event.synchronize"]
        assert order == batch * (len(order) // 5)


def test_results_are_not_there_before_their_event(device: StandIn) -> None:
    x = to_device(np.arange(5), CUDA)
    pinned = torch.empty(5, dtype=torch.int64, pin_memory=True)
    pinned.copy_(x, non_blocking=True)
    assert (pinned == -1).all(), "the stand-in delivers a copy only when it is waited for"
    assert to_host(x * 2)[0].tolist() == [0, 2, 4, 6, 8]
    assert pinned.tolist() == [0, 1, 2, 3, 4]


def test_a_pinned_buffer_that_is_filled_again_too_early_is_found(device: StandIn) -> None:
    pinned = torch.empty(3, dtype=torch.int64, pin_memory=True)
    x = pinned.fill_(1).to(CUDA, non_blocking=True)
    pinned.fill_(2)
    with pytest.raises(AssertionError, match="reused before the device had read it"):
        to_host(x)


def test_a_tensor_of_another_stream_needs_a_wait(device: StandIn) -> None:
    one, other = Stream("one"), Stream("other")
    with on_stream(one):
        x = to_device(np.arange(3), CUDA) + 1
    with on_stream(other), pytest.raises(AssertionError, match="reads what one may still write"):
        x + 1
    other.wait_stream(one)
    with on_stream(other):
        assert to_host(x + 1)[0].tolist() == [2, 3, 4]


def test_where_memory_ends_the_cache_is_emptied_and_batches_are_halved(tmp_path: Path, device: StandIn) -> None:
    folder = build("m3", tmp_path / "m3")
    expected = load_embedder(spec(folder, "cpu")).embed_corpus(TEXTS).dense
    model = load_embedder(spec(folder, "cuda:0", budget=200))
    tokens = model.tokenise(TEXTS)
    device.reset()
    device.out_of_memory_above = 64 * 60  # the feed-forward product of 60 tokens
    found = model.embed_tokens(tokens).dense
    assert any(what == "empty_cache" for _, what in device.calls)
    assert model.engine.executor.budget <= 100
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_card_without_flash_attention_computes_run_by_run(
    tmp_path: Path, device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device_=None: (7, 5))
    attention._has_flash_kernels.cache_clear()
    try:
        query = torch.zeros(4, 2, 32, dtype=torch.float16).to(CUDA)
        assert not attention._flash_takes(query, attention.AttentionOptions(1.0))
    finally:
        attention._has_flash_kernels.cache_clear()


@pytest.mark.parametrize(("width", "takes"), [(20, False), (32, True), (256, True), (264, False)])
def test_flash_attention_takes_heads_of_whole_eights(width: int, takes: bool, device: StandIn) -> None:
    attention._has_flash_kernels.cache_clear()
    query = torch.zeros(4, 2, width, dtype=torch.float16).to(CUDA)
    assert attention._flash_takes(query, attention.AttentionOptions(1.0)) is takes
