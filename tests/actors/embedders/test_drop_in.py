"""What callers of FlagEmbedding read from a model and do with it, beside encoding."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import build
from checkpoints_rerankers import build as build_reranker
from transformers import AutoTokenizer

from actors import (
    BGEM3FlagModel,
    ComputeSpec,
    EmbedderSpec,
    FlagAutoReranker,
    FlagLLMReranker,
    FlagModel,
    FlagReranker,
    LayerWiseFlagLLMReranker,
    load_embedder,
    load_reranker,
)
from actors.compute.resolve import cpu_has_bf16

CPU: dict[str, Any] = {"use_fp16": False, "devices": "cpu"}
TEXTS = ["what is the panda", "bear", " ".join(["of the river"] * 9)]
PAIRS = [("what is the panda", "a bear"), ("river", "of the river " * 30)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("drop_in")
    made = {kind: str(build(kind, base / kind)) for kind in ("bert", "m3")}
    made |= {f"reranker-{kind}": str(build_reranker(kind, base / f"r-{kind}")) for kind in ("bert", "llama", "minicpm")}
    return made


@pytest.fixture(scope="module")
def m3(folders: dict[str, str]) -> BGEM3FlagModel:
    return BGEM3FlagModel(folders["m3"], **CPU)


@pytest.fixture(scope="module")
def reranker(folders: dict[str, str]) -> FlagReranker:
    return FlagReranker(folders["reranker-bert"], devices="cpu")


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


def test_the_tokenizer_is_one_of_transformers(folders: dict[str, str], m3: BGEM3FlagModel) -> None:
    for model, folder in ((m3, folders["m3"]), (FlagModel(folders["bert"], **CPU), folders["bert"])):
        theirs, ours = AutoTokenizer.from_pretrained(folder), model.tokenizer
        assert ours(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]
        assert {"input_ids", "attention_mask"} <= set(ours(TEXTS))
        assert len(ours) == len(theirs)
        assert ours.encode("panda") == theirs.encode("panda")
        assert ours.decode(ours.encode("panda"), skip_special_tokens=True).strip() == "panda"
        assert ours.pad_token_id == theirs.pad_token_id
        tokens = model.preparation.tokenise(TEXTS)
        assert [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)] == [
            list(row) for row in ours(TEXTS)["input_ids"]
        ]


def test_the_module_is_transformers_and_computes_the_same(folders: dict[str, str], m3: BGEM3FlagModel) -> None:
    bert = FlagModel(folders["bert"], **CPU)
    assert bert.model.config.hidden_size == 32
    batch = bert.tokenizer(TEXTS, padding=True, return_tensors="pt")
    first = torch.nn.functional.normalize(bert.model(**batch).last_hidden_state[:, 0], dim=-1)
    np.testing.assert_allclose(first.numpy(), bert.encode(TEXTS), atol=1e-5)
    assert m3.model.model.config.hidden_size == m3.model.config.hidden_size == 32
    assert m3.model.colbert_linear.out_features == 32
    assert m3.model.sparse_linear.out_features == 1
    states = m3.model(dict(m3.tokenizer(TEXTS[:1], return_tensors="pt")))
    lexical = torch.relu(m3.model.sparse_linear(states))[0, 1:-1, 0].amax()
    found = m3.encode(TEXTS[0], return_sparse=True)["lexical_weights"]
    assert max(found.values()) == pytest.approx(float(lexical), abs=1e-5)


def test_a_rerankers_module_and_tokenizer(folders: dict[str, str], reranker: FlagReranker) -> None:
    batch = reranker.tokenizer(*zip(*PAIRS, strict=True), padding=True, truncation=True, return_tensors="pt")
    scores = reranker.model(**batch).logits[:, 0]
    np.testing.assert_allclose(scores.numpy(), reranker.compute_score(PAIRS), atol=1e-5)
    assert FlagLLMReranker(folders["reranker-llama"], devices="cpu").model.config.model_type == "llama"
    with pytest.raises(TypeError, match="has no transformers module"):
        LayerWiseFlagLLMReranker(folders["reranker-minicpm"], devices="cpu").model  # noqa: B018


def test_the_line_of_upstreams_readme_that_everybody_copies(folders: dict[str, str], reranker: FlagReranker) -> None:
    made = FlagAutoReranker.from_finetuned(
        folders["reranker-bert"], query_max_length=256, passage_max_length=512, use_fp16=True, devices=["cpu"]
    )
    assert made.passage_max_length == 512
    assert made.compute_score(PAIRS) == reranker.compute_score(PAIRS)


def test_a_passage_limit_is_kept(reranker: FlagReranker) -> None:
    cut = reranker.compute_score(PAIRS, passage_max_length=3)
    tokens = reranker.engine.tokenizer
    assert cut == reranker.compute_score([(q, tokens.decode(tokens.ids([p])[0][:3])) for q, p in PAIRS])
    assert cut != reranker.compute_score(PAIRS)
    with pytest.raises(ValueError, match="passage_max_length must be a positive integer"):
        reranker.compute_score(PAIRS, passage_max_length=0)
    assert reranker.engine.identity().keys() == load_reranker(str(reranker.model_name_or_path)).identity().keys()


def test_device_is_another_name_for_devices(folders: dict[str, str]) -> None:
    assert FlagModel(folders["bert"], device="cpu").target_devices == ["cpu"]
    assert FlagReranker(folders["reranker-bert"], device="cpu").target_devices == ["cpu"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: FlagModel(f["bert"], pooling_methd="cls"), "FlagModel has no .*; did you mean 'pooling_method'"),
        (lambda f: FlagReranker(f["reranker-bert"], max_lenght=8), "FlagReranker has no .* mean 'max_length'"),
        (lambda f: FlagModel(f["bert"], **CPU).encode(["a"], batchsize=3), "encode has no .* mean 'batch_size'"),
        (lambda f: FlagReranker(f["reranker-bert"]).compute_score(PAIRS, normalise=True), "did you mean 'normalize'"),
    ],
)
def test_the_nearest_argument_is_named(folders: dict[str, str], call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(folders)


def test_the_known_pooling_is_used_and_a_contradiction_warned_of(folders: dict[str, str], tmp_path: Path) -> None:
    packaged = FlagModel("all-MiniLM-L6-v2", **CPU)
    assert packaged.pooling_method == "mean"
    unrelated = packaged.encode(["The cat sleeps on the sofa.", "Interest rates rose by half a point."])
    assert float(unrelated[0] @ unrelated[1]) < 0.2
    with pytest.warns(UserWarning, match="published with pooling_method='mean', 'cls' pools it"):
        FlagModel("all-MiniLM-L6-v2", pooling_method="cls", **CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FlagModel(folders["bert"], **CPU).pooling_method == "cls"


def test_copies_share_weights_and_pickles_load_them(m3: BGEM3FlagModel, reranker: FlagReranker) -> None:
    expected, scores = m3.encode(TEXTS)["dense_vecs"], reranker.compute_score(PAIRS)
    for twin in (copy.copy(m3), copy.deepcopy(m3), pickled(m3)):
        np.testing.assert_array_equal(twin.encode(TEXTS)["dense_vecs"], expected)
    assert copy.deepcopy(m3).runner is m3.runner
    shorter = copy.deepcopy(m3)
    shorter.passage_max_length = 4
    assert m3.passage_max_length != 4
    assert pickled(shorter).passage_max_length == 4
    for other in (copy.deepcopy(reranker), pickled(reranker)):
        assert other.compute_score(PAIRS) == scores
    with pytest.raises(TypeError, match="cannot be pickled or copied; load it where it is needed"):
        pickle.dumps(reranker.engine)


def test_an_embedder_pickles_as_its_spec(folders: dict[str, str]) -> None:
    model = load_embedder(EmbedderSpec(model=folders["bert"], compute=ComputeSpec(dtype="fp32", device="cpu")))
    again = pickled(model).embed_corpus(TEXTS)
    np.testing.assert_array_equal(again.dense, model.embed_corpus(TEXTS).dense)


def test_a_forked_child_encodes_and_scores(m3: BGEM3FlagModel, reranker: FlagReranker) -> None:
    expected, scores = m3.encode(TEXTS * 99)["dense_vecs"], reranker.compute_score(PAIRS)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            same = np.abs(m3.encode(TEXTS * 99)["dense_vecs"] - expected).max() < 1e-5
            status = 0 if same and np.allclose(reranker.compute_score(PAIRS), scores, atol=1e-5) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.DataFrame({"text": ["a", "b"]}), r"got a DataFrame: give one column, such as df\['text'\]\.tolist\(\)"),
        ({"a": "text", "b": "text"}, r"got a dict: give list\(d\.values\(\)\)"),
    ],
)
def test_names_of_columns_are_not_embedded(m3: BGEM3FlagModel, given: Any, message: str) -> None:
    for method in (m3.encode, m3.encode_queries, m3.encode_corpus):
        with pytest.raises(TypeError, match=message):
            method(given)


def test_anything_that_yields_pairs_is_scored(m3: BGEM3FlagModel, reranker: FlagReranker) -> None:
    expected, dense = reranker.compute_score(PAIRS), m3.compute_score(PAIRS)["dense"]
    for given in (tuple(PAIRS), zip(*zip(*PAIRS, strict=True), strict=True), (list(pair) for pair in PAIRS)):
        assert reranker.compute_score(given) == expected
    for given in (tuple(PAIRS), zip(*zip(*PAIRS, strict=True), strict=True), (list(pair) for pair in PAIRS)):
        assert m3.compute_score(given)["dense"] == dense
    assert reranker.compute_score(()) == []
    assert m3.compute_score(()) == []
    for model in (m3, reranker):
        for given in (None, "text", {"a": "b"}, 5):
            with pytest.raises(TypeError, match=r"expected a \(query, passage\) pair or a list of pairs, got"):
                model.compute_score(given)
        with pytest.raises(TypeError, match=r"got a DataFrame: give list\(zip"):
            model.compute_score(pd.DataFrame({"query": ["a"], "passage": ["b"]}))


def test_options_by_position_are_upstreams(folders: dict[str, str], m3: BGEM3FlagModel) -> None:
    assert isinstance(FlagModel(folders["bert"], **CPU).encode(TEXTS, 8, 64, False), torch.Tensor)
    found = m3.encode(TEXTS, 8, 64, False, True, True)
    assert found["dense_vecs"] is None
    assert len(found["lexical_weights"]) == len(found["colbert_vecs"]) == len(TEXTS)


def test_what_computes_is_what_was_asked_for(folders: dict[str, str]) -> None:
    def compute(**options: Any) -> Any:
        return FlagModel(folders["bert"], devices="cpu", **options).runner.compute

    upstream = compute(use_bf16=False)
    assert (upstream.dtype, upstream.rounding) == (torch.float32, torch.float16)
    bf16 = compute(use_bf16=True)
    expected = (torch.bfloat16, None) if cpu_has_bf16() else (torch.float32, torch.bfloat16)
    assert (bf16.dtype, bf16.rounding) == expected
    auto = compute(compute="auto")
    assert auto.dtype == load_embedder(EmbedderSpec(model=folders["bert"])).compute.dtype
    assert compute(compute=ComputeSpec(dtype="fp32")).rounding is None
    with pytest.raises(ValueError, match="compute must be 'auto', a ComputeSpec, or None"):
        compute(compute="fast")
    reranker = FlagReranker(folders["reranker-bert"], devices="cpu", compute="auto")
    assert reranker.engine.compute.dtype == auto.dtype
