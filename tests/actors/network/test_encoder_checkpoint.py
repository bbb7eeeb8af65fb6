"""Compares our own reading of BERT and XLM-R checkpoints with the load by transformers: the same bytes, no import."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import actors.network.backbone
import actors.text.tokenizer
from actors.compute.resolve import resolve_compute
from actors.embedders.registry import load_embedder
from actors.network.encoder_checkpoint import EncoderConfig, load_encoder_weights, read_encoder_config
from actors.spec import ComputeSpec, EmbedderSpec
from actors.text.tokenizer import assemble_tokenizer, read_tokenizer
from actors.text.tokenizer_file import read_tokenizer_file
from tests.checkpoints import build
from tests.indexes import corpus, make_index

KINDS = ("bert", "xlmr", "m3", "m3_small_colbert", "m3_sparse_only")
TEXTS = ["what is a panda bear", "the river; 的是在 <mask> [MASK]", "", "Привет  мир\tshלום", "query " * 700]
ROOT = Path(__file__).resolve().parents[3]
COMPUTES = {
    "fp32": ComputeSpec(dtype="fp32", device="cpu"),
    "bf16": ComputeSpec(dtype="bf16", device="cpu"),
    "rounded": ComputeSpec(dtype="fp32", rounding="fp16", device="cpu"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {kind: str(build(kind, tmp_path_factory.mktemp(kind))) for kind in KINDS}
    return made | {"packaged": "all-MiniLM-L6-v2"}


def outputs(spec: EmbedderSpec) -> tuple[dict[str, bytes], Any]:
    """Every number that the embedder gives for TEXTS, as bytes, with its ids; and its backbone's configuration."""
    model = load_embedder(spec)
    tokens = model.tokenise(TEXTS)
    batch = model.embed_tokens(tokens)
    found = {"ids": tokens.ids.tobytes(), "offsets": tokens.offsets.tobytes()}
    if batch.dense is not None:
        found["dense"] = batch.dense.tobytes()
    if batch.sparse is not None:
        found |= {"sparse ids": batch.sparse.token_ids.tobytes(), "sparse": batch.sparse.weights.tobytes()}
    if batch.colbert is not None:
        found["colbert"] = batch.colbert.vectors.tobytes()
    return found, model.engine.backbone.config


def ask_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the loaders take the path for checkpoints that are not plainly ours."""
    monkeypatch.setattr(actors.network.backbone, "read_encoder_config", lambda folder: None)
    monkeypatch.setattr(actors.text.tokenizer, "read_tokenizer_file", lambda folder: None)


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("kind", [*KINDS, "packaged"])
def test_outputs_are_those_of_the_load_by_transformers(
    folders: dict[str, str], kind: str, compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EmbedderSpec(model=folders[kind], compute=COMPUTES[compute])
    own, config = outputs(spec)
    assert isinstance(config, EncoderConfig), "our own reading was taken"
    ask_transformers(monkeypatch)
    other, config = outputs(spec)
    assert not isinstance(config, EncoderConfig), "transformers was asked"
    assert own == other


@pytest.mark.parametrize("kind", [*KINDS, "packaged"])
def test_the_tokenizer_is_the_one_that_transformers_reads(
    folders: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = actors.text.tokenizer.resolve_folder(folders[kind])
    read = read_tokenizer_file(folder)
    assert read is not None
    own = assemble_tokenizer(folder, read)
    ask_transformers(monkeypatch)
    other = read_tokenizer(folder)
    assert own.backend.to_str() == other.backend.to_str()
    same = ("prefix", "suffix", "named", "truncates_left", "sha256", "pads_left", "max_length")
    assert [getattr(own, name) for name in same] == [getattr(other, name) for name in same]
    assert list(own.named) == list(other.named)


@pytest.mark.parametrize(("kind", "prefix"), [("bert", "bert."), ("xlmr", "roberta.")])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_checkpoint_with_heads_beside_the_encoder(
    folders: dict[str, str], kind: str, prefix: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(kind, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    named = {prefix + name: tensor.clone() for name, tensor in tensors.items()} | {"cls.bias": torch.zeros(3)}
    (tmp_path / "model.safetensors").unlink()
    if suffix == ".bin":
        torch.save(named, tmp_path / "pytorch_model.bin")
    else:
        save_file(named, tmp_path / "model.safetensors", {"format": "pt"})
    spec = EmbedderSpec(model=str(tmp_path), compute=COMPUTES["fp32"])
    own, config = outputs(spec)
    assert isinstance(config, EncoderConfig)
    assert own == outputs(replace(spec, model=folders[kind]))[0]
    ask_transformers(monkeypatch)
    assert own == outputs(spec)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mpnet"}, {"hidden_act": "relu"}, {"is_decoder": True}, {"add_cross_attention": True},
        {"position_embedding_type": "relative_key"}, {"auto_map": {"AutoModel": "own.Model"}}, {"hidden_size": "32"},
        {"num_hidden_layers": 0}, {"num_attention_heads": 5}, {"vocab_size": True}, {"layer_norm_eps": None},
        {"quantization_config": {"bits": 4}}, {"transformers_weights": "other.safetensors"}, {"pad_token_id": None},
        {"model_type": ["bert"]}, {"num_attention_heads": 4.0},
    ],
)  # fmt: skip
def test_other_configurations_are_left_to_transformers(change: dict[str, Any], tmp_path: Path) -> None:
    file = build("bert", tmp_path) / "config.json"
    assert read_encoder_config(tmp_path) is not None
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert read_encoder_config(tmp_path) is None


@pytest.mark.parametrize("damage", ["missing", "shape", "integers", "mixed", "truncated", "adapter"])
def test_other_weights_are_left_to_transformers(damage: str, tmp_path: Path) -> None:
    file = build("bert", tmp_path) / "model.safetensors"
    config = read_encoder_config(tmp_path)
    assert config is not None
    compute = resolve_compute(COMPUTES["fp32"], config)
    assert load_encoder_weights(tmp_path, config, compute) is not None
    tensors = load_file(file)
    name = "encoder.layer.1.output.dense.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = torch.zeros(32, 65)
    elif damage == "integers":
        tensors[name] = torch.zeros(32, 64, dtype=torch.int8)
    elif damage == "mixed":
        tensors["bert.embeddings.LayerNorm.weight"] = torch.zeros(32)
    elif damage == "adapter":
        (tmp_path / "adapter_config.json").write_text("{}")
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    assert load_encoder_weights(tmp_path, config, compute) is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer_config.json", {"cls_token": "[NEW]"}),
        ("tokenizer_config.json", {"add_eos_token": True}),
        ("tokenizer_config.json", {"add_prefix_space": True}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
        ("tokenizer_config.json", {"additional_special_tokens": ["[NEW]"]}),
        ("tokenizer_config.json", {"image_token": "[NEW]"}),
        ("tokenizer_config.json", {"truncation_side": "up"}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"2": {"content": "[CLS]", "lstrip": True}}}),
        ("special_tokens_map.json", {"additional_special_tokens": ["[NEW]"]}),
        ("special_tokens_map.json", {"pad_token": "[NEW]"}),
        ("added_tokens.json", {"[NEW]": 400}),
        ("tokenizer.json", {"post_processor": None}),
        ("tokenizer.json", {"model": {}}),
        ("tokenizer.json", {"added_tokens": []}),
    ],
)
def test_other_tokenizers_are_left_to_transformers(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    file = build("bert", tmp_path) / name
    assert read_tokenizer_file(tmp_path) is not None
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | change))
    assert read_tokenizer_file(tmp_path) is None


@pytest.mark.parametrize("kind", ["bert", "m3"])
def test_a_hybrid_search_does_not_import_transformers(folders: dict[str, str], kind: str, tmp_path: Path) -> None:
    model = load_embedder(EmbedderSpec(model=folders[kind], compute=COMPUTES["fp32"]))
    uri = make_index(tmp_path, corpus(60), embedder=model)  # type: ignore[arg-type]
    code = (
        "import sys; from pipelines.cli import app; "
        f"app(['search', {uri!r}, 'what is the river', '--json'], standalone_mode=False); "
        "print('transformers' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    assert last == "False True"
    (found,) = json.loads("\n".join(printed))
    assert len(found["hits"]) == 10
