"""The int8 encoder against a reference in float64 that rounds at the same places, and against fp32."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from actors.compute.resolve import resolve_compute
from actors.embedders.registry import load_embedder
from actors.models.preparation import load_preparation
from actors.network import int8_encoder
from actors.network.backbone import Backbone, load_backbone, read_model_config
from actors.network.int8_encoder import Int8Encoder
from actors.outputs import IntArray
from actors.spec import ComputeSpec, EmbedderSpec
from tests.checkpoints import build

INT8 = ComputeSpec(dtype="int8", device="cpu")
LENGTHS = (3, 1, 17, 17, 9)
Matrix = Any


@pytest.fixture(scope="module", params=["bert", "m3"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp(request.param))


def backbone_of(folder: Path, dtype: Any = "int8") -> Backbone:
    compute = resolve_compute(ComputeSpec(dtype=dtype, device="cpu"), read_model_config(folder), allows_int8=True)
    return load_backbone(folder, compute)


def texts() -> tuple[torch.Tensor, IntArray]:
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, 60, sum(LENGTHS)))
    return ids, np.concatenate([[0], np.cumsum(LENGTHS)])


def rounded_rows(x: Matrix) -> Matrix:
    """Quantises each row to 256 levels between its ends."""
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    scale = (high - low) / 255
    return low + scale * np.floor((x - low) / scale + 0.5)


def rounded_weight(weight: Matrix) -> Matrix:
    scale = np.abs(weight).max(1, keepdims=True) / 127
    return np.round(weight / scale) * scale


def reference(folder: Path, ids: torch.Tensor, offsets: IntArray) -> Matrix:
    """Last hidden states (T, h) in float64: transformers' modules, with rounded operands of every linear layer."""
    model: Any = AutoModel.from_pretrained(folder, add_pooling_layer=False).double().eval()

    def rounded(module: Any, inputs: Any) -> Any:
        rows = inputs[0].numpy()
        return (torch.from_numpy(rounded_rows(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)),)

    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = torch.from_numpy(rounded_weight(module.weight.detach().numpy()))
            module.register_forward_pre_hook(rounded)
    with torch.inference_mode():
        parts = [model(ids[a:b][None]).last_hidden_state[0] for a, b in pairwise(offsets)]
    return torch.cat(parts).numpy()


def cosines(a: Matrix, b: Matrix) -> Matrix:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_hidden_states_are_those_of_a_reference_that_rounds_at_the_same_places(folder: Path) -> None:
    ids, offsets = texts()
    found, expected = backbone_of(folder).forward(ids, offsets).numpy(), reference(folder, ids, offsets)
    exact = backbone_of(folder, "fp32").forward(ids, offsets).numpy()
    errors = np.abs(found - expected).mean(1)
    assert np.quantile(errors, 0.1) < 1e-4  # a number on the edge of two codes falls either way, and others follow it
    assert errors.mean() < 0.5 * np.abs(exact - expected).mean()
    assert cosines(found, exact).min() > 0.999
    assert not np.array_equal(found, exact)


def test_a_text_gets_the_same_states_alone_and_in_company(folder: Path) -> None:
    encoder, (ids, offsets) = backbone_of(folder), texts()
    together = encoder.forward(ids, offsets)
    for a, b in pairwise(offsets):
        alone = encoder.forward(ids[a:b], np.array([0, b - a]))
        torch.testing.assert_close(alone, together[a:b], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [16, 4096])
def test_how_many_rows_go_together_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    encoder, (ids, offsets) = backbone_of(folder), texts()
    expected = encoder.forward(ids, offsets)
    monkeypatch.setattr(int8_encoder, "ROWS_TOGETHER", rows)
    torch.testing.assert_close(encoder.forward(ids, offsets), expected, atol=1e-6, rtol=1e-6)


def test_without_a_fast_product_the_numbers_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, offsets = texts()
    usual = backbone_of(folder).forward(ids, offsets)
    monkeypatch.setattr(int8_encoder, "has_int8_linear", lambda: False)
    encoder = backbone_of(folder)
    assert isinstance(encoder, Int8Encoder)
    assert not encoder.quantized[0].up.is_packed
    torch.testing.assert_close(encoder.forward(ids, offsets), usual, atol=2e-3, rtol=2e-3)


def test_8_bit_attention_stays_near_attention_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    embedders = []
    for attend in (int8_encoder.int8_attention(), None):
        monkeypatch.setattr(int8_encoder, "int8_attention", lambda attend=attend: attend)
        embedders.append(load_embedder(EmbedderSpec(model="all-MiniLM-L6-v2", compute=INT8)))
    found, expected = (embedder.embed_corpus(["what is a panda bear", "the river " * 40]) for embedder in embedders)
    assert found.dense is not None and expected.dense is not None  # noqa: PT018
    assert cosines(found.dense, expected.dense).min() > 0.995


def test_embedded_tokens_of_the_caller_stay_as_they_are(folder: Path) -> None:
    encoder = backbone_of(folder)
    assert isinstance(encoder, Int8Encoder)
    given = torch.randn(16, encoder.hidden_size, generator=torch.Generator().manual_seed(0))
    kept = given.clone()
    encoder.forward_embedded(given, np.array([0, 16]))
    assert torch.equal(given, kept)


def test_another_activation_than_gelu_is_applied(folder: Path) -> None:
    ids, offsets = texts()
    encoder, exact = backbone_of(folder), backbone_of(folder, "fp32")
    assert isinstance(encoder, Int8Encoder)
    encoder.is_gelu, encoder.activation = False, torch.nn.functional.gelu
    assert cosines(encoder.forward(ids, offsets).numpy(), exact.forward(ids, offsets).numpy()).min() > 0.999


def test_activations_that_are_not_finite_are_an_error_of_their_text(folder: Path) -> None:
    encoder, (ids, offsets) = backbone_of(folder), texts()
    encoder.words = encoder.words.clone()
    encoder.words[ids[4]] = float("nan")
    bad = int(np.searchsorted(offsets, 4, side="right")) - 1
    with pytest.raises(ValueError, match="activations are not finite"):
        encoder.forward(ids, offsets)
    good = ids[offsets[bad + 1] :]
    good = good[good != ids[4]]
    assert torch.isfinite(encoder.forward(good, np.array([0, len(good)]))).all()


def test_weights_that_are_not_finite_are_named(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    model.encoder.layer[1].output.dense.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="layer 1: weights are not finite"):
        Int8Encoder(model)


def test_models_without_an_int8_forward_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    spec = EmbedderSpec(model=str(build("qwen3", tmp_path)), compute=INT8)
    with pytest.raises(ValueError, match="int8 is for BERT and XLM-RoBERTa embedders; qwen3"):
        load_preparation(spec)
    pictures = EmbedderSpec(model="all-MiniLM-L6-v2", picture_weights="eva.pt", compute=spec.compute)
    with pytest.raises(ValueError, match="a model of pictures takes fp32"):
        load_preparation(pictures)


def test_every_output_of_m3_is_near_fp32(tmp_path: Path) -> None:
    folder = str(build("m3", tmp_path))
    found, exact = (
        load_embedder(EmbedderSpec(model=folder, compute=ComputeSpec(dtype=dtype, device="cpu"))).embed_corpus(
            ["what is a panda bear", "", "the river " * 40]
        )
        for dtype in ("int8", "fp32")
    )
    assert found.dense is not None and exact.dense is not None  # noqa: PT018
    assert cosines(found.dense[[0, 2]], exact.dense[[0, 2]]).min() > 0.999
    assert found.colbert is not None and exact.colbert is not None  # noqa: PT018
    assert cosines(found.colbert.vectors, exact.colbert.vectors).min() > 0.99
    assert found.sparse is not None and exact.sparse is not None  # noqa: PT018
    assert abs(found.sparse.weights.sum() / exact.sparse.weights.sum() - 1) < 0.05
