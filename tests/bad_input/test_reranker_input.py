"""What a reranker says to input that it cannot score. Every test reads the message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints_rerankers import build, lora

from actors.checkpoints.files import CheckpointError
from actors.rerankers.cross_encoder import FlagReranker
from actors.rerankers.engine import Reranker
from actors.rerankers.layerwise import LayerWiseFlagLLMReranker
from actors.rerankers.llm import FlagLLMReranker
from actors.rerankers.registry import FlagAutoReranker, load_reranker
from actors.spec import ComputeSpec

FP32 = ComputeSpec(dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("rerankers")
    return {kind: build(kind, base / kind) for kind in ("bert", "llama", "minicpm")}


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    return load_reranker(str(build("cost_wise_gemma", tmp_path_factory.mktemp("light"), layer_sep=2)), compute=FP32)


@pytest.fixture(scope="module")
def bert(folders: dict[str, Path]) -> Reranker:
    return load_reranker(str(folders["bert"]), compute=FP32)


def test_no_pairs_give_no_scores(bert: Reranker, light: Reranker) -> None:
    assert bert.compute_score([]) == []
    assert bert.score("query", []).shape == (0,)
    assert light.compute_score([], cutoff_layers=[2, 4]) == [[], []]


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([("a", "b"), ("a",)], ValueError, r"pair 1 has 1 elements, expected \(query, passage\)"),
        ([("a", "b", "c")], ValueError, r"pair 0 has 3 elements"),
        ([("a", None)], TypeError, r"pair 0: the passage is None, expected str"),
        ([("a", "b"), (3, "b")], TypeError, r"pair 1: the query is int, expected str"),
        ([None], TypeError, r"pair 0 is None, expected \(query, passage\)"),
        ([("a", "b"), "ab"], TypeError, r"pair 1 is str"),
        ("ab", TypeError, r"expected a \(query, passage\) pair or a list of pairs, got str"),
        (None, TypeError, r"got NoneType"),
        (("a", "b", "c"), ValueError, r"pair 0 has 3 elements"),
        (["only"], ValueError, r"pair 0 has 1 elements"),
        ([("a", "\ud800")], ValueError, r"lone surrogate"),
    ],
)
def test_pairs_must_be_two_strings(bert: Reranker, pairs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bert.compute_score(pairs)


def test_one_pair_may_be_a_tuple_a_list_or_an_array(bert: Reranker) -> None:
    expected = bert.compute_score([("a", "b")])
    assert bert.compute_score(("a", "b")) == bert.compute_score(["a", "b"]) == expected
    assert bert.compute_score(np.array([["a", "b"]])) == expected


def test_a_query_longer_than_everything_still_fits_the_model(bert: Reranker) -> None:
    query = "the panda " * 2000
    scores = bert.compute_score([(query, "the river"), (query, query)], max_length=5000, query_max_length=5000)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", ["max_length", "query_max_length", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "12", True])
def test_lengths_are_positive_integers(bert: Reranker, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {value!r}"):
        bert.compute_score([("a", "b")], **{name: value})


def test_an_unknown_option_is_named(bert: Reranker, folders: dict[str, Path]) -> None:
    with pytest.raises(TypeError, match="unknown reranking option 'max_lenght'"):
        bert.compute_score([("a", "b")], max_lenght=3)
    with pytest.raises(TypeError, match="unknown reranking option 'cutof'"):
        FlagReranker(str(folders["bert"]), devices="cpu").compute_score([("a", "b")], cutof=3)


@pytest.mark.parametrize(("cutoffs", "got"), [([1], "1"), ([2, 7], "7"), (9, "9"), (["2"], "'2'"), ([], "none")])
def test_cutoffs_must_be_layers_with_a_head(folders: dict[str, Path], cutoffs: Any, got: str) -> None:
    layered = LayerWiseFlagLLMReranker(str(folders["minicpm"]), devices="cpu")
    with pytest.raises(ValueError, match=f"cutoff_layers: the model can be cut at layers 2 to 6, got {got}"):
        layered.compute_score([("a", "b")], cutoff_layers=cutoffs)
    with pytest.raises(ValueError, match="can be cut at layers 2 to 6"):
        LayerWiseFlagLLMReranker(str(folders["minicpm"]), devices="cpu", cutoff_layers=cutoffs)


def test_cutoffs_off_the_grid_name_its_step(light: Reranker) -> None:
    with pytest.raises(ValueError, match="can be cut at layers 2 to 6 in steps of 2, got 3"):
        light.compute_score([("a", "b")], cutoff_layers=[3])


@pytest.mark.parametrize("ratio", [0, 3, 16, -2, "2"])
def test_compress_ratio_is_one_of_four(light: Reranker, ratio: Any) -> None:
    with pytest.raises(ValueError, match=r"compress_ratio must be one of \(1, 2, 4, 8\)"):
        light.compute_score([("a", "b")], compress_ratio=ratio)


def test_a_classifier_with_two_labels_is_no_reranker(tmp_path: Path) -> None:
    folder = build("bert", tmp_path / "two", id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1})
    with pytest.raises(ValueError, match="has 2 labels; a reranker gives one score a pair"):
        FlagReranker(str(folder), devices="cpu")


def test_weights_without_a_head_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = build("bert", tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights missing .*classifier\.bias"):
        load_reranker(str(folder))


def test_layered_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for kind, gone in (
        ("minicpm", "lm_head.3.linear_head.weight"),
        ("cost_wise_gemma", "model.layers.2.mlp.up_proj.weight"),
    ):
        folder = build(kind, tmp_path / kind)
        weights = load_file(folder / "model.safetensors")
        del weights[gone]
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"no weight {gone}"):
            load_reranker(str(folder))


def test_a_lightweight_checkpoint_without_heads_is_refused(tmp_path: Path) -> None:
    folder = build("cost_wise_gemma", tmp_path / "plain", layer_wise=False)
    with pytest.raises(CheckpointError, match="does not set layer_wise"):
        load_reranker(str(folder))


def test_an_unknown_checkpoint_needs_its_class(tmp_path: Path) -> None:
    folder = build("bert", tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForPreTraining"]}))
    with pytest.raises(ValueError, match=r"names \['BertForPreTraining'\], which is no reranker .* give model_class"):
        FlagAutoReranker.from_finetuned(str(folder))
    with pytest.raises(ValueError, match=r"model_class must be one of encoder-only-base, .* got 'encoder'"):
        FlagAutoReranker.from_finetuned(str(folder), model_class="encoder")  # type: ignore[arg-type]


def test_the_factory_is_not_a_reranker() -> None:
    with pytest.raises(OSError, match="from_finetuned"):
        FlagAutoReranker()


def test_adapters_that_do_not_fit_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    base = str(folders["llama"])
    with pytest.raises(CheckpointError, match=r"model folder .* does not exist"):
        FlagLLMReranker(base, str(tmp_path / "none" / "such"), devices="cpu")
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        FlagLLMReranker(base, str(folders["llama"]), devices="cpu")
    wider = lora(tmp_path / "wider", build("llama", tmp_path / "wide", hidden_size=64))
    with pytest.raises(CheckpointError, match=r"adapts .*q_proj.* as \(64, 64\), the checkpoint has \(32, 32\)"):
        FlagLLMReranker(base, str(wider), devices="cpu")
    config = json.loads((wider / "adapter_config.json").read_text())
    (wider / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(CheckpointError, match="only plain LoRA can be merged, this is IA3"):
        FlagLLMReranker(base, str(wider), devices="cpu")


@pytest.mark.parametrize("devices", [[], [None], {"cpu"}])
def test_devices_are_named(folders: dict[str, Path], devices: Any) -> None:
    with pytest.raises(ValueError, match="devices must be"):
        FlagReranker(str(folders["bert"]), devices=devices)


def test_bf16_and_fp16_do_what_they_say(folders: dict[str, Path]) -> None:
    assert str(FlagReranker(str(folders["bert"]), devices="cpu").engine.compute.dtype) == "torch.float32"
    assert str(FlagReranker(str(folders["bert"]), use_fp16=True, devices="cpu").engine.compute.dtype) == "torch.float32"
    assert (
        str(FlagLLMReranker(str(folders["llama"]), use_bf16=True, devices="cpu").engine.compute.dtype)
        == "torch.bfloat16"
    )
