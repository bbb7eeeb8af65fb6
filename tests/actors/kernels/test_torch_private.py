"""A torch without its private operators, or with others of the same names, gives the same embeddings, only slower."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.embedders.registry import load_embedder
from actors.kernels import torch_private
from actors.spec import ComputeSpec, EmbedderSpec
from tests.checkpoints import build

TEXTS = ["", "panda", "what is the river " * 9, "a b c d e f"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build("m3", tmp_path / "m3")


@pytest.fixture(autouse=True)
def fresh_check() -> Iterator[None]:
    checks = torch_private.has_packed_linear, torch_private.has_int8_linear
    for check in checks:
        check.cache_clear()
    yield
    for check in checks:
        check.cache_clear()


def gone(*_: Any) -> Any:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


def renamed_argument(*_: Any) -> Any:
    raise RuntimeError("mkldnn::_linear_pointwise() is missing value for argument 'algorithm'")


def other_numbers(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.zeros(len(x), len(bias))


@pytest.mark.parametrize("operator", [gone, renamed_argument, other_numbers])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_without_the_operators_embeddings_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, operator: Any, dtype: Any
) -> None:
    spec = EmbedderSpec(model=str(folder), compute=ComputeSpec(dtype=dtype, device="cpu"))
    usual = load_embedder(spec).embed_corpus(TEXTS)
    torch_private.has_packed_linear.cache_clear()
    monkeypatch.setattr(
        torch_private.torch.ops, "mkldnn", SimpleNamespace(_reorder_linear_weight=operator, _linear_pointwise=operator)
    )
    model = load_embedder(spec)
    assert not torch_private.has_packed_linear()
    found = model.embed_corpus(TEXTS)
    assert usual.dense is not None and found.dense is not None  # noqa: PT018
    np.testing.assert_allclose(found.dense, usual.dense, atol=1e-5 if dtype == "fp32" else 2e-2)


@pytest.mark.skipif(torch_private.PORTABLE, reason="TRIDEX_PORTABLE is set")
def test_this_torch_has_the_operators() -> None:
    """Fails on a torch that drops or changes them: then look for what replaced them, the encoder is slower."""
    assert torch_private.has_packed_linear() == torch.backends.mkldnn.is_available()


def test_a_torch_that_cannot_say_what_the_processor_has_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert torch_private.cpu_supports("amx_tile")  # before torch 2.13: by the private predicates
    assert not torch_private.cpu_supports("avx512_bf16")
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported", "_init_amx"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not torch_private.cpu_supports("amx_tile")
    assert not torch_private.request_amx_permission()


@pytest.mark.parametrize("operator", [gone, renamed_argument, other_numbers])
def test_without_the_int8_operators_embeddings_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, operator: Any
) -> None:
    spec = EmbedderSpec(model=str(folder), compute=ComputeSpec(dtype="int8", device="cpu"))
    usual = load_embedder(spec).embed_corpus(TEXTS)
    torch_private.has_int8_linear.cache_clear()
    monkeypatch.setattr(
        torch_private.torch.ops, "onednn", SimpleNamespace(qlinear_prepack=operator, qlinear_pointwise=operator)
    )
    model = load_embedder(spec)
    assert not torch_private.has_int8_linear()
    found = model.embed_corpus(TEXTS)
    assert usual.dense is not None and found.dense is not None  # noqa: PT018
    np.testing.assert_allclose(found.dense, usual.dense, atol=5e-3)


def test_a_processor_without_8_bit_products_is_not_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_private, "cpu_supports", lambda instructions: False)
    assert not torch_private.has_int8_linear()


@pytest.mark.skipif(torch_private.PORTABLE, reason="TRIDEX_PORTABLE is set")
@pytest.mark.skipif(not torch_private.cpu_supports("avx512_vnni"), reason="the processor has no AVX512-VNNI")
def test_this_torch_has_the_int8_operators() -> None:
    """Fails on a torch that drops or changes them: then look for what replaced them, int8 is slower than fp32."""
    assert torch_private.has_int8_linear()
