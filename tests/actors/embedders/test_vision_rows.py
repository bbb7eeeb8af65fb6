"""Blocks with pictures: rows with and without one, beside each other, through the actor's shell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from actors import ComputeSpec, EmbedderSpec, load_embedder
from actors.embedders.visualized import VisualizedBGE
from actors.vision.preprocess import pixels_of
from tests.checkpoints_vision import build_visualized, drawn

TEXTS = ["what is a panda", "the river", ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VisualizedBGE:
    built = build_visualized("bert", tmp_path_factory.mktemp("rows") / "bert")
    compute = ComputeSpec(dtype="fp32", device="cpu")
    loaded = load_embedder(EmbedderSpec(model=str(built.folder), picture_weights=str(built.weights), compute=compute))
    assert isinstance(loaded, VisualizedBGE)
    return loaded


def test_rows_with_and_without_a_picture_share_a_block(model: VisualizedBGE) -> None:
    pictures = [pixels_of(drawn(1), model.size), None, pixels_of(drawn(2), model.size)]
    column = pa.array([None, *(None if p is None else p.tobytes() for p in pictures)], pa.binary())
    tokens = model.tokenise(TEXTS)
    batch = model.embed_rows(tokens, pa.table({"pixels": column}), np.array([1, 2, 3]))
    assert batch.dense is not None
    expected = [model.encode(drawn(1), TEXTS[0]), model.encode(text=TEXTS[1]), model.encode(drawn(2), TEXTS[2])]
    np.testing.assert_allclose(batch.dense, np.concatenate([e.numpy() for e in expected]), atol=2e-6)


def test_a_block_of_texts_alone(model: VisualizedBGE) -> None:
    table = pa.table({"pixels": pa.nulls(3, pa.binary())})
    batch = model.embed_rows(model.tokenise(TEXTS), table, np.arange(3))
    np.testing.assert_array_equal(batch.dense, model.embed_corpus(TEXTS).dense)


def test_a_text_that_is_too_long_for_its_picture_says_what_to_lower(model: VisualizedBGE) -> None:
    table = pa.table({"pixels": [pixels_of(drawn(1), model.size).tobytes()]})
    with pytest.raises(ValueError, match="a text has 62 tokens, its picture leaves room for 48: lower max_length"):
        model.embed_rows(model.tokenise(["panda " * 60]), table, np.arange(1))


def test_the_spec_of_an_identity_gives_the_model_again(model: VisualizedBGE, tmp_path: Path) -> None:
    identity = model.identity()
    assert identity["picture_size"] == model.size
    again = load_embedder(EmbedderSpec(model=str(identity["model"]), picture_weights=str(identity["picture_weights"])))
    assert again.identity() == identity
