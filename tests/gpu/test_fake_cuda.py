"""Everything that runs on a GPU, on fake tensors of torch's CUDA build: shapes, dtypes, devices, kernel signatures.

`make test-fake-gpu` runs it in an environment of its own; no driver and no card is needed, and no number is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from transformers import PreTrainedModel

from actors.codecs.device_codec import DeviceCodec
from actors.embedders.registry import load_embedder
from actors.kernels.torch_private import has_packed_linear
from actors.network import attention
from actors.network.attention import AttentionOptions, Segments, attend
from actors.outputs import offsets_of
from actors.rerankers.registry import load_reranker
from actors.spec import ComputeSpec, EmbedderSpec
from tests import checkpoints, checkpoints_chains, checkpoints_rerankers
from tests.checkpoints_vision import build_visualized

pytestmark = [
    pytest.mark.fake_gpu,
    pytest.mark.skipif(
        torch.version.cuda is None or torch.cuda.is_available(),
        reason="needs torch's CUDA build on a machine without a card: make test-fake-gpu",
    ),
]
TEXTS = ["panda", "what is the river " * 9, "a b c d e f", " ", "panda " * 5]
PAIRS = [("what is a panda", text) for text in TEXTS]
EMBEDDERS = tuple(kind for kind in checkpoints.KINDS if kind != "m3_sparse_only")
CHAINS = tuple(kind for kind in checkpoints_chains.CHAINS if kind != "embedding_gemma")
"""Gemma 3's padded masks are made under vmap, where fake tensors ask for a driver."""
DTYPES = ("bf16", "fp16", "fp32")


def _zeros(x: FakeTensor) -> Any:
    dtype = {torch.bfloat16: "float32"}.get(x.dtype, str(x.dtype).removeprefix("torch."))
    return np.zeros(tuple(x.shape), dtype)


def _with_numbers(function: Any) -> Any:
    """Makes a function that reads files run outside of the fake mode; `.to(device)` makes fake ones of it."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return wrapped


def _apply(self: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
    """nn.Module._apply that replaces parameters: they are real before it and fake after it."""
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(function(parameter.detach()), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else function(buffer)
    return self


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    has_packed_linear()  # tried once on numbers, which fake tensors have not
    attention._has_flash_kernels.cache_clear()
    event = SimpleNamespace(record=lambda stream: None, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(FakeTensor, "numpy", _zeros, raising=False)
    monkeypatch.setattr(torch.nn.Module, "_apply", _apply)
    monkeypatch.setattr(safetensors.torch, "load_file", _with_numbers(safetensors.torch.load_file))
    monkeypatch.setattr(torch, "load", _with_numbers(torch.load))
    monkeypatch.setattr(
        PreTrainedModel, "from_pretrained", classmethod(_with_numbers(PreTrainedModel.from_pretrained.__func__))
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    attention._has_flash_kernels.cache_clear()


def compute(dtype: str) -> ComputeSpec:
    return ComputeSpec(device="cuda:0", dtype=dtype, budget=40)  # type: ignore[arg-type]


def on_disk(build: Any, kind: str, folder: Path) -> Any:
    """What `build` writes: with numbers."""
    with unset_fake_temporarily():
        return build(kind, folder / kind)


def load(folder: Path, dtype: str, **options: Any) -> Any:
    model = load_embedder(EmbedderSpec(model=str(folder), compute=compute(dtype), **options))
    model.engine.executor.width = 1  # fake tensors are a matter of one thread
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", EMBEDDERS)
def test_every_embedder(kind: str, dtype: str, tmp_path: Path) -> None:
    model = load(on_disk(checkpoints.build, kind, tmp_path), dtype)
    found = model.embed_corpus(TEXTS)
    assert found.dense.shape == (len(TEXTS), model.dim)
    assert found.dense.dtype == np.float32
    if found.colbert is not None:
        assert found.colbert.vectors.dtype == (np.float32 if dtype == "fp32" else np.float16)
        assert found.colbert.vectors.shape[1] == model.colbert_dim


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CHAINS)
def test_every_chain(kind: str, dtype: str, tmp_path: Path) -> None:
    model = load(on_disk(checkpoints_chains.build_chain, kind, tmp_path), dtype)
    for found in (model.embed_corpus(TEXTS), model.embed_queries(TEXTS)):
        assert len(found) == len(TEXTS)
        if found.dense is not None:
            assert found.dense.shape == (len(TEXTS), model.dim)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
@pytest.mark.parametrize("codec", [DeviceCodec("sign"), DeviceCodec("rotated_sign", 2), DeviceCodec("int8", 3)])
def test_codecs_on_the_device_and_poolings(codec: DeviceCodec, pooling: Any, tmp_path: Path) -> None:
    model = load(on_disk(checkpoints.build, "m3", tmp_path), "bf16", pooling=pooling, truncate_dim=24)
    found = model.embed_tokens(model.tokenise(TEXTS), device_codec=codec)
    assert found.dense.shape == (len(TEXTS), 24)
    assert found.colbert.vectors.dtype == np.uint8
    assert found.colbert.vectors.shape[1] == codec.width(24)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", list(checkpoints_rerankers.BUILDERS))
def test_every_reranker(kind: str, dtype: str, tmp_path: Path) -> None:
    folder = on_disk(checkpoints_rerankers.build, kind, tmp_path)
    options: dict[str, Any] = {"compress_layers": (1,), "compress_ratio": 2} if kind == "cost_wise_gemma" else {}
    model = load_reranker(str(folder), compute=compute(dtype), **options)
    model.executor.width = 1
    assert model.score_pairs(PAIRS).shape == (len(PAIRS), 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_pictures(kind: str, dtype: str, tmp_path: Path) -> None:
    made = on_disk(build_visualized, kind, tmp_path)
    model = load(made.folder, dtype, picture_weights=str(made.weights))
    pixels = np.zeros((3, model.size, model.size, 3), np.uint8)
    assert model.embed_pixels(pixels, ["", "panda", "river"]).dense.shape == (3, model.dim)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [32, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize(
    "options",
    [
        AttentionOptions(0.1), AttentionOptions(0.1, causal=True), AttentionOptions(0.1, window=3),
        AttentionOptions(0.1, causal=True, window=3), AttentionOptions(0.1, causal=True, softcap=30.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention(dtype: torch.dtype, width: int, options: AttentionOptions, kv_heads: int) -> None:
    offsets = offsets_of(np.array([7, 7, 5, 1]))
    query = torch.empty(20, 4, width, dtype=dtype, device="cuda:0")
    key, value = (torch.empty(20, kv_heads, width, dtype=dtype, device="cuda:0") for _ in range(2))
    found = attend(query, key, value, Segments(offsets, query.device), options)
    assert (found.shape, found.dtype, found.device) == (query.shape, dtype, query.device)
