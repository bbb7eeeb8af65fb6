"""Folders that cannot be run as their own library would run them: one line that names what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints_chains import build_chain
from safetensors.torch import save_file

from actors import ComputeSpec, EmbedderSpec, load_embedder


def load(folder: Path, **options: Any) -> Any:
    return load_embedder(EmbedderSpec(model=str(folder), compute=ComputeSpec(dtype="fp32", device="cpu"), **options))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def unknown_module(folder: Path) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    listed[2]["type"] = "sentence_transformers.models.WeightedLayerPooling"
    (folder / "modules.json").write_text(json.dumps(listed))


def own_code(folder: Path) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["type"] = "custom_st.Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "custom_st.py").write_text("raise SystemExit('this code must not run')")


def code_elsewhere(folder: Path) -> None:
    """As Jina v3 publishes it: the module's code lies in another repository."""
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["type"] = "custom_st.Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))


def static_embedding(folder: Path) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["type"] = "sentence_transformers.models.StaticEmbedding"
    (folder / "modules.json").write_text(json.dumps(listed[:1]))


def word_embeddings(folder: Path) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["type"] = "sentence_transformers.models.WordEmbeddings"
    (folder / "modules.json").write_text(json.dumps(listed))


def bidirectional(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", config_kwargs={"is_causal": False})


def model_argument(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", model_args={"rotary_scaling_factor": 2})


def quantised(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})


def narrow_dense(folder: Path) -> None:
    edit(folder / "2_Dense" / "config.json", in_features=31)


def other_shape(folder: Path) -> None:
    save_file(
        {"linear.weight": torch.zeros(7, 32), "linear.bias": torch.zeros(7)}, folder / "2_Dense" / "model.safetensors"
    )


def own_activation(folder: Path) -> None:
    edit(folder / "2_Dense" / "config.json", activation_function="os.system")


def no_bias(folder: Path) -> None:
    save_file({"linear.weight": torch.zeros(24, 32)}, folder / "2_Dense" / "model.safetensors")


def unknown_pooling(folder: Path) -> None:
    edit(folder / "1_Pooling" / "config.json", pooling_mode="median")


def other_family(folder: Path) -> None:
    edit(folder / "config_sentence_transformers.json", model_type="CrossEncoder")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unknown_module, r"modules\.json lists WeightedLayerPooling.*Dense, LayerNorm, Normalize, Pooling"),
        (own_code, r"runs its own code \(custom_st\.Transformer in custom_st\.py\)"),
        (code_elsewhere, r"runs its own code \(custom_st\.Transformer in custom_st\.py\)"),
        (static_embedding, r"holds no table of a StaticEmbedding: expected embedding\.weight or embeddings"),
        (word_embeddings, r"begins with WordEmbeddings, which does not run here; a chain that begins with a Transf"),
        (bidirectional, r"sentence_bert_config\.json sets config_kwargs is_causal=false, which tridex does not apply"),
        (model_argument, r"sets model_kwargs rotary_scaling_factor=2, which tridex does not apply"),
        (quantised, r"its weights are stored quantised \(bitsandbytes\)"),
        (narrow_dense, r"2_Dense/config\.json: this Dense takes vectors of 31 dimensions, .* gives 32"),
        (other_shape, r"2_Dense: linear\.weight has the shape \(7, 32\), its config\.json states \(24, 32\)"),
        (own_activation, r"activation_function os\.system is no class of torch\.nn"),
        (no_bias, r"2_Dense: the weights of this Dense lack linear\.bias"),
        (unknown_pooling, r"1_Pooling/config\.json pools by 'median'; known are cls, max"),
        (other_family, r"names model_type 'CrossEncoder'; an embedder is one of"),
    ],
)
def test_a_chain_that_cannot_run_is_refused(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = build_chain("mean_dense_tanh", tmp_path / "model")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_routes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = build_chain("router_after_pooling", tmp_path / "model")
    edit(folder / "2_Asym" / "query_0_Dense" / "config.json", out_features=9)
    with pytest.raises(ValueError, match=r"its Router gives queries 9 dimensions and documents 12"):
        load(folder)
    routes = json.loads((folder / "2_Asym" / "router_config.json").read_text())
    routes["structure"] = {"question": routes["structure"]["query"], "document": routes["structure"]["document"]}
    edit(folder / "2_Asym" / "router_config.json", **routes)
    with pytest.raises(ValueError, match=r"has the routes question, document, of which none is for a query's text"):
        load(folder)


def test_a_static_embedding_is_not_rounded_and_takes_no_int8(tmp_path: Path) -> None:
    folder = build_chain("static", tmp_path / "model")
    spec = EmbedderSpec(model=str(folder), compute=ComputeSpec(dtype="bf16", device="cpu"))
    assert (load_embedder(spec).embed_corpus(["panda"]).dense == load(folder).embed_corpus(["panda"]).dense).all()
    with pytest.raises(ValueError, match="int8 is for BERT and XLM-RoBERTa embedders; a model of static embeddings"):
        load_embedder(EmbedderSpec(model=str(folder), compute=ComputeSpec(dtype="int8", device="cpu")))
    (folder / "0_StaticEmbedding" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json, as a StaticEmbedding needs"):
        load(folder)


def test_a_prompt_that_is_not_stored_lists_those_that_are(tmp_path: Path) -> None:
    folder = build_chain("mean_dense_tanh", tmp_path / "model")
    with pytest.raises(ValueError, match=r"no prompt is named 'task'; the folder stores: Clustering, document, query"):
        load(folder, query_prompt="task")
    by_name, explicit = load(folder, query_prompt="Clustering"), load(folder, query_instruction="cluster the the ")
    assert (by_name.embed_queries(["panda"]).dense == explicit.embed_queries(["panda"]).dense).all()
    assert load(folder, query_instruction="").embed_queries(["panda"]).n_tokens[0] == 3


def test_a_query_table_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = build_chain("inference_free", tmp_path / "model")
    tokenizer = folder / "query_0_SparseStaticEmbedding" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["panda"], vocabulary["bear"] = vocabulary["bear"], vocabulary["panda"]
    tokenizer.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"query table's tokenizer numbers tokens otherwise"):
        load(folder)


def test_a_marker_without_a_token_is_refused(tmp_path: Path) -> None:
    folder = build_chain("pylate", tmp_path / "model")
    edit(folder / "config_sentence_transformers.json", query_prefix="[QUERY] ")
    with pytest.raises(ValueError, match=r"lacks the marker '\[QUERY\] '"):
        load(folder)


def test_explicit_arguments_win_over_the_folder(tmp_path: Path) -> None:
    folder = build_chain("max_not_normalised", tmp_path / "model")
    texts = ["the panda is a bear", "river"]
    raw, unit = load(folder).embed_corpus(texts).dense, load(folder, normalize=True).embed_corpus(texts).dense
    assert abs((raw**2).sum(1) - 1).min() > 0.1
    assert abs((unit**2).sum(1) - 1).max() < 1e-5
    assert load(folder, truncate_dim=5).dim == 5
    assert load(folder, passage_max_length=4).embed_corpus(texts).n_tokens.max() == 4
    assert load(folder, pooling="mean").identity() != load(folder).identity()


@pytest.mark.parametrize("name", ["tokenizer_args", "tokenizer_kwargs", "processor_kwargs"])
def test_stored_tokenizer_arguments_are_applied(name: str, tmp_path: Path) -> None:
    """By their names in sentence-transformers 3 to 6; arguments that change no number are accepted."""
    folder = build_chain("mean_dense_tanh", tmp_path / "model")
    kept = {name: {"model_max_length": 5}, "model_kwargs": {"torch_dtype": "float16", "attn_implementation": "sdpa"}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(kept))
    assert load(folder).embed_corpus(["the panda is a bear of the river"]).n_tokens.max() == 5
