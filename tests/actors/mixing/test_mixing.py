"""Mixed checkpoints: exact sums, what is copied, who can load them, and where data-driven weights come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, MistralConfig

from actors import ComputeSpec, EmbedderSpec, load_embedder
from actors.mixing import mix_models, mix_models_by_layers, mix_models_with_data
from actors.mixing.losses import embedder_batches, weights_from_losses
from actors.mixing.sums import weighted_sum
from tests.checkpoints import COMMON, DECODER, bert_tokenizer, build, sentencepiece_bpe_tokenizer

TEXTS = ["what is a panda", "the river of the bear and the query"]


def fine_tuned(kind: str, folder: Path, seed: int, scale: float = 0.02) -> Path:
    """A checkpoint of this kind whose weights were moved a little, as fine-tuning would."""
    build(kind, folder)
    return moved(folder, seed, scale)


def moved(folder: Path, seed: int, scale: float = 0.02) -> Path:
    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name in sorted(tensors):
        noise = torch.randn(tensors[name].shape, generator=draw) * scale
        tensors[name] = (tensors[name].float() + noise).to(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for head in folder.glob("*_linear.pt"):
        state = torch.load(head, weights_only=True)
        torch.save({k: v + torch.randn(v.shape, generator=draw) * scale for k, v in state.items()}, head)
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return fine_tuned("m3", tmp_path / "one", 1), fine_tuned("m3", tmp_path / "two", 2)


@pytest.mark.parametrize("mix", [mix_models, mix_models_by_layers])
def test_the_sum_is_the_plain_sum(mix: Callable[..., object], pair: tuple[Path, Path], tmp_path: Path) -> None:
    mix(list(pair), "encoder", [0.3, 0.7], tmp_path / "out")
    one, two = (load_file(folder / "model.safetensors") for folder in pair)
    mixed: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        mixed |= load_file(file)
    assert mixed.keys() == one.keys()
    for name in one:
        expected = (0.3 * one[name].double() + 0.7 * two[name].double()).float()
        assert torch.equal(mixed[name], expected), name


def test_m3_heads_are_mixed_too(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mix_models(pair, "encoder", [0.5, 0.5], tmp_path / "out")
    for head in ("sparse_linear.pt", "colbert_linear.pt"):
        one, two, mixed = (torch.load(f / head, weights_only=True) for f in (*pair, tmp_path / "out"))
        assert not torch.equal(one["weight"], two["weight"])
        torch.testing.assert_close(mixed["weight"], (one["weight"] + two["weight"]) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_mixed_with_itself_comes_back(dtype: torch.dtype) -> None:
    tensor = (torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    again = weighted_sum([tensor, tensor, tensor], [0.2, 0.7, 0.1], "x")
    assert again.dtype == dtype
    assert torch.equal(again, tensor)


def test_blocks_cover_a_tensor_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.mixing.sums.BLOCK", 7)
    one, two = torch.arange(30.0).view(5, 6), torch.ones(5, 6)
    assert torch.equal(weighted_sum([one, two], [0.5, 0.5], "x"), (one + two) / 2)
    assert weighted_sum([torch.tensor(2.0), torch.tensor(4.0)], [0.5, 0.5], "scalar").item() == 3


def test_the_mixed_checkpoint_loads_and_embeds(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mix = mix_models(pair, "encoder", [1.0, 0.0], tmp_path / "out")
    first, mixed = (load_embedder(EmbedderSpec(model=str(folder))) for folder in (pair[0], mix.folder))
    assert mixed.outputs == ("dense", "sparse", "colbert")
    np.testing.assert_array_equal(mixed.embed_corpus(TEXTS).dense, first.embed_corpus(TEXTS).dense)


def test_shards_are_written_with_an_index_and_load(pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole = mix_models(pair, "encoder", [0.4, 0.6], tmp_path / "whole")
    shards = mix_models(pair, "encoder", [0.4, 0.6], tmp_path / "shards", shard_bytes=20_000)
    index = json.loads((shards.folder / "model.safetensors.index.json").read_text())
    files = {path.name for path in shards.folder.glob("*.safetensors")}
    assert len(files) > 2
    assert set(index["weight_map"].values()) == files
    one, two = (load_embedder(EmbedderSpec(model=str(mix.folder))).embed_corpus(TEXTS) for mix in (whole, shards))
    np.testing.assert_array_equal(one.dense, two.dense)


def test_a_sharded_pickle_mixes_with_a_single_safetensors(pair: tuple[Path, Path], tmp_path: Path) -> None:
    two = pair[1]
    expected = mix_models(pair, "encoder", [0.5, 0.5], tmp_path / "expected")
    tensors = load_file(two / "model.safetensors")
    (two / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(names)}
    for file in set(places.values()):
        torch.save({n: tensors[n] for n in names if places[n] == file}, two / file)
    (two / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    mixed = mix_models(pair, "encoder", [0.5, 0.5], tmp_path / "out")
    a, b = (load_file(mix.folder / "model.safetensors") for mix in (expected, mixed))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_encoder_saved_with_a_training_head_mixes_with_a_plain_one(tmp_path: Path) -> None:
    plain, headed = fine_tuned("bert", tmp_path / "a", 1), fine_tuned("bert", tmp_path / "b", 2)
    tensors = {f"bert.{name}": value for name, value in load_file(headed / "model.safetensors").items()}
    tensors["cls.predictions.bias"] = torch.zeros(3)
    tensors["bert.embeddings.position_ids"] = torch.arange(512)
    save_file(tensors, headed / "model.safetensors", metadata={"format": "pt"})
    mix = mix_models([plain, headed], "encoder", [0.5, 0.5], tmp_path / "out")
    assert load_file(mix.folder / "model.safetensors").keys() == load_file(plain / "model.safetensors").keys()


def test_companions_come_from_the_first_model_and_the_card_names_all(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (pair[0] / "README.md").write_text("the first model's own card")
    mix = mix_models(pair, "encoder", [0.25, 0.75], tmp_path / "out")
    assert (mix.folder / "tokenizer.json").read_bytes() == (pair[0] / "tokenizer.json").read_bytes()
    assert (mix.folder / "config.json").read_bytes() == (pair[0] / "config.json").read_bytes()
    assert (mix.folder / "model.safetensors").stat().st_mode == (pair[0] / "config.json").stat().st_mode
    card = (mix.folder / "README.md").read_text()
    assert f"| {pair[0]} | 0.25 |" in card
    assert f"| {pair[1]} | 0.75 |" in card
    assert "the first model's own card" not in card
    modules = json.loads((mix.folder / "modules.json").read_text())
    assert [module["type"].rsplit(".")[-1] for module in modules] == ["Transformer", "Pooling", "Normalize"]


def test_rerankers_keep_their_classifier(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        config = BertConfig(vocab_size=bert_tokenizer(folder), num_labels=1, **COMMON)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        moved(folder, seed, 0.1)
    mix = mix_models(folders, "reranker", [0.5, 0.5], tmp_path / "out")
    one, two, mixed = (load_file(f / "model.safetensors")["classifier.weight"] for f in (*folders, mix.folder))
    torch.testing.assert_close(mixed, (one + two) / 2)
    assert not (mix.folder / "modules.json").exists()


CONTRAST = [
    {"query": "what is a panda", "pos": ["the panda is a bear"], "neg": ["the river", "query of the passage"]},
    {"query": "what is the river", "pos": ["the river of the bear"], "neg": ["panda bear", "er re"]},
    {"query": "bear", "pos": ["what bear"], "neg": ["the and of"]},
]


def test_data_prefers_the_embedder_with_the_lower_loss(tmp_path: Path) -> None:
    folders = [fine_tuned("bert", tmp_path / str(seed), seed, 0.2) for seed in (1, 2, 3)]
    mix = mix_models_with_data(folders, "encoder", CONTRAST, temperature=0.5, output_path=tmp_path / "out")
    assert mix.losses is not None
    assert len(set(mix.losses)) == 3
    assert np.argsort(mix.losses).tolist() == np.argsort(mix.weights)[::-1].tolist()
    np.testing.assert_allclose(mix.weights, np.exp(-2 * np.array(mix.losses)) / np.exp(-2 * np.array(mix.losses)).sum())
    assert "loss on the examples" in (mix.folder / "README.md").read_text()


def test_the_contrastive_loss_is_the_published_one(tmp_path: Path) -> None:
    folder = build("bert", tmp_path / "model")
    mix = mix_models_with_data([folder], "encoder", CONTRAST[:2], output_path=tmp_path / "out", neg_number=2)
    spec = EmbedderSpec(model=str(folder), pooling="cls", compute=ComputeSpec(dtype="fp32"))
    embed = load_embedder(spec).embed_corpus
    passages = [text for example in CONTRAST[:2] for text in (example["pos"][0], *sorted(example["neg"]))]
    scores = embed([example["query"] for example in CONTRAST[:2]]).dense @ embed(passages).dense.T / 0.05
    losses = [np.log(np.exp(row).sum()) - row[target] for row, target in zip(scores, (0, 3), strict=True)]
    assert mix.losses is not None
    assert mix.losses[0] == pytest.approx(np.mean(losses), abs=1e-4)


def test_data_prefers_the_decoder_with_the_lower_loss(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        size = sentencepiece_bpe_tokenizer(folder, "LlamaTokenizerFast", "left", spaces=True)
        AutoModelForCausalLM.from_config(MistralConfig(vocab_size=size, **DECODER)).save_pretrained(folder)
        moved(folder, seed, 0.1)
    examples = [{"input": "what is a panda", "output": "bear"}, {"input": "the river", "output": "of the bear and"}]
    mix = mix_models_with_data(folders, "decoder", examples, temperature=0.05, output_path=tmp_path / "out")
    assert mix.losses is not None
    assert (mix.losses[0] < mix.losses[1]) == (mix.weights[0] > mix.weights[1])
    alone = mix_models_with_data(folders, "decoder", examples, batch_size=1, output_path=tmp_path / "alone")
    assert alone.losses is not None
    assert all(
        loss == pytest.approx(_plain_lm_loss(f, examples)) for f, loss in zip(folders, alone.losses, strict=True)
    )


def _plain_lm_loss(folder: Path, examples: list[dict[str, str]]) -> float:
    from transformers import AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    losses = []
    for example in examples:
        ids = [*tokenizer(f"{example['input']} {example['output']}").input_ids, tokenizer.eos_token_id]
        labels = list(ids)
        labels[: len(tokenizer(example["input"]).input_ids)] = [-100] * len(tokenizer(example["input"]).input_ids)
        losses.append(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item())
    return float(np.mean(losses))


def test_negatives_follow_the_seed() -> None:
    examples = [{"query": "q", "pos": ["p"], "neg": [f"n{i}" for i in range(50)]}]
    draw = [embedder_batches(examples, 2, 7, seed)[0].passages for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]
    assert len(draw[0]) == 8


def test_examples_may_have_fewer_negatives_than_asked() -> None:
    batch = embedder_batches(CONTRAST, 3, 2, 0)[0]
    assert [batch.passages[i] for i in batch.positives] == [example["pos"][0] for example in CONTRAST]
    assert len(batch.passages) == 3 + 2 + 2 + 1


def test_weights_of_losses_sum_to_one_and_flatten_with_temperature() -> None:
    cold, hot = weights_from_losses([1.0, 2.0], 0.1), weights_from_losses([1.0, 2.0], 100)
    assert sum(cold) == pytest.approx(1)
    assert cold[0] > 0.99 > 0.51 > hot[0] > 0.5
