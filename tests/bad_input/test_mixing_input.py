"""Models that cannot be mixed are refused, and the message names the first thing that differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.mixing import mix_models, mix_models_with_data
from tests.checkpoints import build


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build("bert", tmp_path / "one"), build("bert", tmp_path / "two")


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(pair: tuple[Path, Path], tmp_path: Path, *, weights: tuple[float, ...] = (0.5, 0.5)) -> str:
    """The message of the refusal; nothing may be left behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError) as caught:
        mix_models(pair, "encoder", weights, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((0.5, 0.6), "must sum to 1, [0.5, 0.6] sum to 1.1"),
        ((0.5, 0.4), "must sum to 1, [0.5, 0.4] sum to 0.9"),
        ((1.0,), "1 given for 2 models"),
        ((float("nan"), 1.0), "weight 0 is nan"),
    ],
)
def test_weights_must_sum_to_one_from_both_sides(
    pair: tuple[Path, Path], tmp_path: Path, weights: tuple[float, ...], words: str
) -> None:
    assert words in refused(pair, tmp_path, weights=weights)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    message = refused((build("bert", tmp_path / "a"), build("xlmr", tmp_path / "b")), tmp_path)
    assert "config.json has model_type 'bert' and 'xlm-roberta'" in message


def test_another_setting_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = json.loads((pair[1] / "config.json").read_text())
    (pair[1] / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert "config.json has hidden_act 'gelu' and 'relu'" in refused(pair, tmp_path)


def test_a_shape_that_differs_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    edit_tensors(pair[1], **{"embeddings.LayerNorm.bias": torch.zeros(31)})
    assert "tensor embeddings.LayerNorm.bias has shape (32,) and (31,)" in refused(pair, tmp_path)


def test_a_tensor_that_only_one_has_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    edit_tensors(pair[1], **{"pooler.dense.bias": None})
    assert "tensor pooler.dense.bias is in the first only" in refused(pair, tmp_path)
    edit_tensors(pair[0], **{"pooler.dense.bias": None})
    edit_tensors(pair[1], **{"extra.weight": torch.zeros(2)})
    assert "tensor extra.weight is in the second only" in refused(pair, tmp_path)


def test_a_head_that_only_one_has_is_named(tmp_path: Path) -> None:
    message = refused((build("m3", tmp_path / "a"), build("xlmr", tmp_path / "b")), tmp_path)
    assert f"only {tmp_path / 'a'} has a colbert_linear" in message


def test_integers_that_differ_are_refused_and_leave_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    edit_tensors(pair[0], **{"codes": torch.tensor([1, 2])})
    edit_tensors(pair[1], **{"codes": torch.tensor([1, 3])})
    assert "tensor codes holds torch.int64 numbers that differ" in refused(pair, tmp_path)
    edit_tensors(pair[1], **{"codes": torch.zeros(2)})
    assert "tensor codes has dtype torch.int64 and torch.float32" in refused(pair, tmp_path)


def test_a_token_with_another_id_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = pair[1] / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["panda"], vocab["bear"] = vocab["bear"], vocab["panda"]
    path.write_text(json.dumps(tokenizer))
    assert f"their tokenizers give token 'panda' the id {vocab['bear']} and {vocab['panda']}" in refused(pair, tmp_path)


def test_one_vocabulary_with_two_normalisers_is_noticed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = pair[1] / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(tokenizer))
    assert "their tokenizers split one text differently" in refused(pair, tmp_path)


def test_a_folder_without_a_model_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (pair[1] / "model.safetensors").unlink()
    assert f"{pair[1]} holds no weights" in refused(pair, tmp_path)
    (pair[1] / "model.safetensors").write_bytes(b"not a weight file")
    assert f"{pair[1] / 'model.safetensors'} cannot be read as weights" in refused(pair, tmp_path)


def test_a_reranker_needs_a_classifier(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no classifier, so it is no reranker"):
        mix_models(pair, "reranker", [0.5, 0.5], tmp_path / "out")
    with pytest.raises(ValueError, match="must be one of encoder, decoder, reranker, got 'seq2seq'"):
        mix_models(pair, "seq2seq", [0.5, 0.5], tmp_path / "out")  # type: ignore[arg-type]


def test_a_full_output_folder_is_not_touched(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output_path: .*one exists and is not an empty folder"):
        mix_models(pair, "encoder", [0.5, 0.5], pair[0])
    assert (pair[0] / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ([], "at least one example"),
        ([{"query": "q", "pos": ["p"]}], "example 0 has no 'neg'"),
        ([{"query": "q", "pos": [], "neg": ["n"]}], "example 0 has no positive"),
        ([{"query": "q", "pos": ["p"], "neg": []}], "example 0 is alone in its batch and has no negative"),
    ],
)
def test_bad_examples_are_named(
    pair: tuple[Path, Path], tmp_path: Path, examples: list[dict[str, object]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        mix_models_with_data(pair, "encoder", examples, output_path=tmp_path / "out")


def test_an_input_that_leaves_no_room_for_the_output_is_named(tmp_path: Path) -> None:
    folder = build("mistral", tmp_path / "model")
    examples = [{"input": "a", "output": "b"}, {"input": "the panda " * 40, "output": "b"}]
    with pytest.raises(ValueError, match=r"the input of example 1 fills max_input_length \(32\) alone"):
        mix_models_with_data([folder], "decoder", examples, max_input_length=32, output_path=tmp_path / "out")


def test_temperature_must_be_positive(pair: tuple[Path, Path], tmp_path: Path) -> None:
    examples = [{"query": "q", "pos": ["p"], "neg": ["n"]}]
    with pytest.raises(ValueError, match="temperature must be above 0"):
        mix_models_with_data(pair, "encoder", examples, temperature=0, output_path=tmp_path / "out")
