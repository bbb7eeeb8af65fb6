"""Visualized-BGE: the order and positions of what the encoder sees, and what a picture or a text alone is equal to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from actors import ComputeSpec, EmbedderSpec, load_embedder
from actors.embedders.visualized import VisualizedBGE
from actors.vision.eva import EvaTower
from actors.vision.preprocess import load, normalised, pixels_of
from tests.checkpoints_vision import TOWER, Visualized, build_visualized, drawn, published_state
from tests.parity.eva_cases import tower_weights

EXACT = ComputeSpec(dtype="fp32", device="cpu")
TEXTS = ["what is a panda", "the river of the bear and the query", ""]


@pytest.fixture(scope="module", params=["bert", "xlmr"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Visualized:
    return build_visualized(request.param, tmp_path_factory.mktemp("visualized") / request.param)


@pytest.fixture(scope="module")
def model(built: Visualized) -> VisualizedBGE:
    return VisualizedBGE(str(built.folder), built.weights, compute=EXACT)


@torch.inference_mode()
def specified(built: Visualized, model: VisualizedBGE, pixels: np.ndarray, ids: list[int]) -> np.ndarray:
    """One row as the paper's code builds it, by transformers' own modules: first token, patches, the rest; CLS."""
    table, projection = built.model.embeddings, torch.load(built.weights, weights_only=True)
    tower = EvaTower(TOWER)
    tower.load_state_dict(tower_weights(TOWER))
    states = tower(normalised(pixels[None], torch.device("cpu"), torch.float32))[0, 1:]
    states = states @ projection["visual_proj.weight"].T + projection["visual_proj.bias"]
    count = len(states)
    patches = table.LayerNorm(states + table.position_embeddings(torch.arange(1, count + 1)))
    places = torch.tensor([[0, *range(count + 1, count + len(ids))]])
    text = table(input_ids=torch.tensor([ids]), position_ids=places, token_type_ids=torch.zeros_like(places))[0]
    fused = torch.cat([text[:1], patches, text[1:]])
    hidden = built.model.encoder(fused[None])
    cls = (hidden[0] if isinstance(hidden, tuple) else hidden.last_hidden_state)[0, 0]
    return normalize(cls, dim=-1).numpy()


def test_picture_and_text_are_fused_as_specified(built: Visualized, model: VisualizedBGE) -> None:
    images = [drawn(1), drawn(2, 40, 90), drawn(3, 33, 32)]
    batch = model.embed_images(images, TEXTS)
    tokens = model.tokenise(TEXTS, "plain")
    assert batch.dense is not None
    for i, image in enumerate(images):
        ids = tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist()
        expected = specified(built, model, pixels_of(load(image), model.size), ids)
        np.testing.assert_allclose(batch.dense[i], expected, atol=2e-6)
    assert batch.n_tokens.tolist() == (tokens.lengths + TOWER.patches).tolist()


def test_a_picture_alone_is_the_picture_with_the_empty_text(model: VisualizedBGE) -> None:
    alone, empty = model.encode(image=drawn(1)), model.encode(image=drawn(1), text="")
    assert alone.shape == (1, 64)
    assert torch.equal(alone, empty)
    assert not torch.allclose(alone, model.encode(image=drawn(1), text="a panda"), atol=1e-3)


def test_a_text_alone_is_what_the_bge_model_makes_of_it(built: Visualized, model: VisualizedBGE) -> None:
    spec = EmbedderSpec(model=str(built.folder), model_class="encoder-only-base", pooling="cls", compute=EXACT)
    plain = load_embedder(spec)
    np.testing.assert_array_equal(model.embed_corpus(TEXTS).dense, plain.embed_corpus(TEXTS).dense)
    np.testing.assert_array_equal(model.encode(text=TEXTS).numpy(), plain.embed_corpus(TEXTS).dense)


def test_neighbours_and_batches_do_not_matter(built: Visualized, model: VisualizedBGE) -> None:
    images, texts = [drawn(i) for i in range(7)], [f"{'panda ' * i}bear" for i in range(7)]
    small = VisualizedBGE(str(built.folder), built.weights, compute=ComputeSpec(dtype="fp32", device="cpu", budget=40))
    one = model.embed_images(images, texts)
    each = torch.cat([model.encode(image, text) for image, text in zip(images, texts, strict=True)])
    np.testing.assert_allclose(small.embed_images(images, texts).dense, one.dense, atol=2e-6)
    np.testing.assert_allclose(each.numpy(), one.dense, atol=2e-6)


def test_a_long_text_is_cut_to_what_the_picture_leaves_and_counted(built: Visualized, model: VisualizedBGE) -> None:
    batch = model.embed_images([drawn(1), drawn(1)], ["panda " * 99 + "panda", "panda"])
    room = built.model.config.max_position_embeddings - TOWER.patches
    assert model.text_room == room
    assert batch.n_tokens[0] == built.model.config.max_position_embeddings
    assert batch.n_truncated.tolist() == [100 - (room - 2), 0]


def test_no_rows_give_no_vectors(model: VisualizedBGE) -> None:
    batch = model.embed_images([])
    assert batch.dense is not None
    assert batch.dense.shape == (0, 64)


def test_bf16_stays_close(built: Visualized, model: VisualizedBGE) -> None:
    half = VisualizedBGE(str(built.folder), built.weights, compute=ComputeSpec(dtype="bf16", device="cpu"))
    cosine = (half.encode([drawn(1)], ["a panda"]) * model.encode([drawn(1)], ["a panda"])).sum()
    assert cosine > 0.999


def test_the_identity_names_the_weights_that_run(built: Visualized, model: VisualizedBGE, tmp_path: Path) -> None:
    plain = load_embedder(EmbedderSpec(model=str(built.folder), model_class="encoder-only-base", pooling="cls"))
    assert model.identity()["weights"] != plain.identity()["weights"]
    assert model.identity()["tokenizer"] == plain.identity()["tokenizer"]


def test_safetensors_load_too(built: Visualized, model: VisualizedBGE, tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in published_state(built.model).items()}
    save_file(state, tmp_path / "visualized.safetensors")
    again = VisualizedBGE(str(built.folder), tmp_path / "visualized.safetensors", compute=EXACT)
    assert torch.equal(again.encode(drawn(1)), model.encode(drawn(1)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_visual.visual.blocks.1.attn.q_bias": None}, 'Missing key.*"blocks.1.attn.q_bias"'),
        ({"bge_encoder.layer.0.output.dense.bias": None}, 'Missing key.*"encoder.layer.0.output.dense.bias"'),
        ({"visual_proj.bias": torch.zeros(3)}, "size mismatch for bias"),
        ({"model_visual.visual.extra": torch.zeros(3)}, 'Unexpected key.*"extra"'),
        ({"other.weight": torch.zeros(3)}, "1 tensors fit nowhere, the first is other.weight"),
        ({"model_visual.visual.cls_token": None}, "no EVA02 tower: model_visual.visual.cls_token is missing"),
    ],
)
def test_nothing_may_be_missing_or_left_over(
    built: Visualized, tmp_path: Path, change: dict[str, torch.Tensor | None], words: str
) -> None:
    state = {**published_state(built.model), **change}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=f"(?s){tmp_path}/bad.pth: .*{words}"):
        VisualizedBGE(str(built.folder), tmp_path / "bad.pth", compute=EXACT)


def test_wrong_requests_are_named(model: VisualizedBGE) -> None:
    with pytest.raises(ValueError, match="give image, text or both"):
        model.encode()
    with pytest.raises(ValueError, match="2 pictures and 1 texts"):
        model.encode([drawn(1), drawn(2)], ["one"])
