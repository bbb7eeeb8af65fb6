"""What a reranker's folder is run as, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints_chains import modules_json, write_json
from checkpoints_cross_encoders import build_cross_encoder
from checkpoints_rerankers import PAIRS, build

from actors.rerankers.cross_encoder import FlagReranker
from actors.rerankers.inspection import inspect_reranker
from actors.rerankers.registry import load_reranker
from actors.spec import ComputeSpec

FP32 = ComputeSpec(dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_cross_encoder("saved_by_six", tmp_path_factory.mktemp("six") / "model")


@pytest.fixture
def changed(six: Path, tmp_path: Path) -> Path:
    """A copy of a folder of version 6, for tests that change its settings."""
    for file in six.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def store(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    write_json(path, {**(json.loads(path.read_text()) if path.is_file() else {}), **values})


def test_flagreranker_keeps_flagembeddings_scores(six: Path) -> None:
    """The same folder, by two libraries: one raw and cut by FlagEmbedding's rules, one activated."""
    raw = FlagReranker(str(six), devices="cpu").compute_score(PAIRS)
    plain = build("xlm_roberta", six.parent / "plain")
    np.testing.assert_allclose(raw, FlagReranker(str(plain), devices="cpu").compute_score(PAIRS), atol=1e-6)
    activated = load_reranker(str(six), compute=FP32).compute_score(PAIRS)
    assert np.abs(np.array(activated)).max() < 1 < np.abs(np.array(raw)).max()


def test_a_plain_folder_is_flagembeddings_unless_asked(tmp_path: Path) -> None:
    folder = build("bert", tmp_path / "model")
    raw = np.array(load_reranker(str(folder), compute=FP32).compute_score(PAIRS[:3]))
    asked = load_reranker(str(folder), model_class="cross-encoder", compute=FP32)
    np.testing.assert_allclose(asked.compute_score(PAIRS[:3]), 1 / (1 + np.exp(-raw)), atol=1e-5)
    np.testing.assert_allclose(asked.compute_score(PAIRS[:3], normalize=False), raw, atol=1e-5)


def test_inspection_names_class_and_score(six: Path, tmp_path: Path) -> None:
    found = inspect_reranker(str(six))
    assert found is not None
    assert (found["model_class"], found["max_length"], found["prompt"]) == ("cross-encoder", 41, "query: ")
    assert found["score"] == "classification head, then Tanh"
    plain = inspect_reranker(str(build("llama", tmp_path / "llama")))
    assert plain is None, "a causal model may be an embedder"


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.Softmax"}, "Softmax is not"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"padding": False}}}, "sets processing_kwargs"),
        ("sentence_bert_config.json", {"config_kwargs": {"num_labels": 3}}, "sets config_kwargs num_labels=3"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, r"stored quantised \(gptq\)"),
        ("config.json", {"id2label": {"0": "a", "1": "b"}}, "has 2 labels"),
        ("config.json", {"model_type": "own", "auto_map": {"AutoModel": "own.M"}}, r"trust_remote_code=True.*own.M"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_named(changed: Path, file: str, values: dict[str, object], message: str) -> None:
    store(changed, file, **values)
    with pytest.raises(ValueError, match=message):
        load_reranker(str(changed), compute=FP32)


def test_the_identity_names_activation_and_prompt(changed: Path) -> None:
    found = [load_reranker(str(changed), compute=FP32).identity()]
    for values in ({"activation_fn": "torch.nn.modules.activation.Sigmoid"}, {"prompts": {"q": "other: "}}):
        store(changed, "config_sentence_transformers.json", **values)
        found.append(load_reranker(str(changed), compute=FP32).identity())
    assert len({identity["pipeline"] for identity in found}) == 3
    assert "pipeline" not in load_reranker(str(changed), model_class="encoder-only-base", compute=FP32).identity()


def test_unknown_modules_are_named(changed: Path) -> None:
    modules_json(
        changed, [("sentence_transformers.models.Pooling", {}, {}), ("sentence_transformers.models.Dense", {}, {})]
    )
    with pytest.raises(ValueError, match="lists Transformer, Pooling, Dense; tridex runs a cross-encoder of"):
        load_reranker(str(changed), compute=FP32)


def test_a_language_model_of_mxbai_needs_its_modules(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "mxbai-rerank-base-v2")
    with pytest.raises(ValueError, match=r"mxbai needs the modules.json"):
        load_reranker(str(folder), compute=FP32)
