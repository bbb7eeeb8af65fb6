"""The engine under every class: batches, threads, identity; and upstream's defects that are not here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import build

import actors
from actors import BGEM3FlagModel, ComputeSpec, EmbedderSpec, FlagICLModel, FlagLLMModel, FlagModel, load_embedder
from actors.embedders.base import Embedder

FP32 = {"use_fp16": False, "devices": "cpu"}
MINILM = [[0.0676569, 0.0634959, 0.0487132, 0.0793050], [0.0864386, 0.1027627, 0.0053946, 0.0020444]]
TEXTS = ["", "panda", "what is the river " * 30, "的是 mixed", "<pad> </s>", "a b c d e f", " ", "panda " * 5]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("checkpoints")
    return {kind: str(build(kind, base / kind)) for kind in ("bert", "m3", "mistral", "qwen3", "gemma2")}


@pytest.fixture(scope="module")
def m3(folders: dict[str, str]) -> BGEM3FlagModel:
    return BGEM3FlagModel(folders["m3"], **FP32)


def embedder(folder: str, **options: Any) -> Embedder:
    return load_embedder(EmbedderSpec(model=folder, compute=ComputeSpec(dtype="fp32", device="cpu", **options)))


def test_every_public_name_is_there() -> None:
    embedders = {"FlagAutoModel", "FlagModel", "BGEM3FlagModel", "FlagLLMModel", "FlagICLModel", "FlagPseudoMoEModel"}
    assert embedders <= set(actors.__all__)
    assert all(isinstance(getattr(actors, name), type) for name in embedders)


@pytest.mark.parametrize("kind", ["bert", "m3", "mistral", "qwen3", "gemma2"])
def test_a_text_alone_and_among_others_gives_the_same_outputs(folders: dict[str, str], kind: str) -> None:
    model = embedder(folders[kind])
    together = model.embed_corpus(TEXTS)
    for i, text in enumerate(TEXTS):
        alone, row = model.embed_corpus([text]), together.take(np.array([i]))
        np.testing.assert_allclose(alone.dense, row.dense, atol=1e-5)
        if alone.sparse is not None and alone.colbert is not None:
            assert row.sparse is not None
            assert row.colbert is not None
            np.testing.assert_array_equal(alone.sparse.token_ids, row.sparse.token_ids)
            np.testing.assert_allclose(alone.sparse.weights, row.sparse.weights, atol=1e-5)
            np.testing.assert_allclose(alone.colbert.vectors, row.colbert.vectors, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 40, 100_000])
def test_the_budget_does_not_change_numbers_or_order(folders: dict[str, str], budget: int) -> None:
    expected, batch = (embedder(folders["m3"], budget=b).embed_corpus(TEXTS) for b in (None, budget))
    assert batch.sparse is not None
    assert expected.sparse is not None
    np.testing.assert_allclose(batch.dense, expected.dense, atol=1e-5)
    np.testing.assert_array_equal(batch.sparse.offsets, expected.sparse.offsets)
    np.testing.assert_array_equal(batch.n_tokens, expected.n_tokens)


def test_truncation_is_counted(folders: dict[str, str]) -> None:
    batch = embedder(folders["bert"]).embed_corpus(["panda " * 600, "panda"])
    assert batch.n_tokens.tolist() == [512, 3]
    assert batch.n_truncated.tolist() == [90, 0]


def test_one_model_from_many_threads(m3: BGEM3FlagModel) -> None:
    lengths = [8 + i % 20 for i in range(40)]
    expected = {n: m3.encode(TEXTS, max_length=n)["dense_vecs"] for n in set(lengths)}
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: m3.encode(TEXTS, max_length=n)["dense_vecs"], lengths))
    for n, vectors in zip(lengths, results, strict=True):
        np.testing.assert_allclose(vectors, expected[n], atol=1e-5)


def test_an_empty_text_does_not_disturb_the_others(tmp_path: Path) -> None:
    """Upstream: a text without tokens among left-padded ones moves every other text's pooling position."""
    folder = build("qwen3", tmp_path)
    pipeline = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**pipeline, "post_processor": None}))
    model = FlagLLMModel(str(folder), **FP32)
    vectors = np.asarray(model.encode(["panda", "", "bear"]))
    np.testing.assert_allclose(vectors[0], model.encode("panda"), atol=1e-6)
    np.testing.assert_allclose(vectors[2], model.encode("bear"), atol=1e-6)
    np.testing.assert_array_equal(vectors[1], 0)


def test_the_colbert_score_of_a_pair_does_not_depend_on_its_batch(m3: BGEM3FlagModel) -> None:
    """Upstream: tokens whose best match is negative score 0 where the passage is padded."""
    pairs = [("a", "<pad>"), ("panda", "river " * 60), ("的", "zzz")]
    together = m3.compute_score(pairs)
    assert isinstance(together, dict)
    for i, pair in enumerate(pairs):
        alone = m3.compute_score(pair)
        assert isinstance(alone, dict)
        assert alone["colbert"] == pytest.approx(together["colbert"][i], abs=1e-6)


def test_single_texts_and_containers_are_upstreams(m3: BGEM3FlagModel, folders: dict[str, str]) -> None:
    one = m3.encode("what is the panda", return_sparse=True, return_colbert_vecs=True)
    assert one["dense_vecs"].shape == (32,)
    assert isinstance(one["lexical_weights"], defaultdict)
    assert {type(k) for k in one["lexical_weights"]} == {str}
    assert {type(v) for v in one["lexical_weights"].values()} == {np.float32}
    assert one["lexical_weights"]["no such token"] == 0
    assert one["colbert_vecs"].shape == (5, 32)
    assert m3.encode(["a"])["lexical_weights"] is None
    tensor = FlagModel(folders["bert"], convert_to_numpy=False, **FP32).encode(["a", "b"])
    assert isinstance(tensor, torch.Tensor)
    assert tensor.shape == (2, 32)


def test_lexical_scores_and_tokens(m3: BGEM3FlagModel) -> None:
    a, b = {"5": 1.0, "6": 2.0}, {"6": 0.5, "9": 3.0}
    assert m3.compute_lexical_matching_score(a, b) == 1.0
    assert np.asarray(m3.compute_lexical_matching_score([a, b], [b])).tolist() == [[1.0], [9.25]]
    token = m3.preparation.tokenizer.backend.token_to_id("▁panda")
    assert m3.convert_id_to_token({str(token): 2.0}) == {"panda": 2.0}
    assert m3.convert_id_to_token([{str(token): 2.0}]) == {"panda": 2.0}
    assert len(m3.convert_id_to_token([{str(token): 2.0}, {}])) == 2
    score = m3.colbert_score(np.eye(2, 4, dtype=np.float32), np.eye(3, 4, dtype=np.float32))
    assert score.shape == ()
    assert float(score) == 1.0


def test_weights_of_zero_give_nan_as_upstream(m3: BGEM3FlagModel) -> None:
    score = m3.compute_score(("a", "b"), weights_for_different_modes=[0, 0, 1])
    assert isinstance(score, dict)
    assert np.isnan(score["sparse+dense"])
    assert score["colbert+sparse+dense"] == pytest.approx(score["colbert"])


def test_a_long_corpus_is_embedded_in_windows(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_embedder(EmbedderSpec(model=folders["m3"], compute=ComputeSpec(dtype="fp32")))
    whole = model.embed_corpus(iter(TEXTS))
    monkeypatch.setattr("actors.embedders.base.WINDOW", 3)
    parts = model.embed_corpus(iter(TEXTS))
    assert whole.dense is not None
    assert parts.dense is not None
    np.testing.assert_allclose(parts.dense, whole.dense, atol=1e-6)
    assert parts.sparse is not None
    assert len(parts.sparse) == len(TEXTS)
    assert parts.n_tokens.tolist() == whole.n_tokens.tolist()
    assert len(model.embed_corpus([])) == 0
    with pytest.raises(ValueError, match="gives dense, sparse, colbert, asked for nothing"):
        model.embed_corpus([], [])


def test_an_error_ahead_names_the_text(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_embedder(EmbedderSpec(model=folders["m3"]))
    monkeypatch.setattr("actors.embedders.base.WINDOW", 2)
    with pytest.raises(TypeError, match="text 4 is None"):
        model.embed_corpus(["a", "b", "c", "d", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"text 2 .* surrogate U\+D800"):
        model.embed_corpus(["a", "b", "\ud800"])
    with pytest.raises(TypeError, match="got one str"):
        model.embed_corpus("abc")


def test_attributes_are_read_at_every_call(folders: dict[str, str]) -> None:
    model = FlagModel(folders["bert"], **FP32)
    plain = model.encode_queries(["panda"])
    model.query_instruction_for_retrieval = "find: "
    np.testing.assert_array_equal(model.encode_queries(["panda"]), model.encode(["find: panda"]))
    assert not np.allclose(model.encode_queries(["panda"]), plain)
    model.passage_max_length = 4
    np.testing.assert_array_equal(model.encode(["a b c d e"]), model.encode(["a b"]))


def test_set_examples_replaces_and_restores(folders: dict[str, str]) -> None:
    examples = [{"query": "q", "response": "r"}]
    model = FlagICLModel(folders["mistral"], examples_for_task=examples, query_instruction_for_retrieval="f", **FP32)
    first = model.prefix
    assert first == "<instruct>f\n<query>q\n<response>r\n\n"
    model.set_examples([])
    assert model.prefix == "\n\n"
    model.set_examples()
    assert model.prefix == first


def test_half_precision_on_a_cpu_rounds_the_weights_and_returns_fp32(folders: dict[str, str]) -> None:
    half = np.asarray(FlagModel(folders["bert"], devices="cpu").encode(["panda"]))
    full = np.asarray(FlagModel(folders["bert"], **FP32).encode(["panda"]))
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 1e-2


def test_identity_names_what_an_index_depends_on(folders: dict[str, str]) -> None:
    spec = EmbedderSpec(model=folders["m3"], query_instruction="find: ", truncate_dim=8)
    identity = load_embedder(spec).identity()
    assert identity["model_class"] == "encoder-only-m3"
    assert (identity["dim"], identity["colbert_dim"], identity["truncate_dim"]) == (8, 8, 8)
    assert identity["query_instruction"] == "find: "
    assert len(str(identity["weights"])) == len(str(identity["tokenizer"])) == 64
    assert identity["tokenizer"] != load_embedder(EmbedderSpec(model=folders["bert"])).identity()["tokenizer"]


def test_the_packaged_model_has_its_published_vectors() -> None:
    """First components as sentence-transformers 6.2 gives them for these two texts."""
    model = load_embedder(EmbedderSpec(model="all-MiniLM-L6-v2", compute=ComputeSpec(dtype="fp32", device="cpu")))
    batch = model.embed_corpus(["This is an example sentence", "Each sentence is converted"])
    assert batch.dense is not None
    assert batch.colbert is not None
    np.testing.assert_allclose(batch.dense[:, :4], MINILM, atol=2e-6)
    assert (model.dim, model.colbert_dim, model.vocab_size) == (384, 384, 30522)
    assert batch.colbert.vectors.shape == (int(batch.n_tokens.sum()) - 2, 384)


def test_importing_needs_neither_ray_nor_lance() -> None:
    code = (
        "import sys, actors; assert 'torch' not in sys.modules; actors.FlagModel; "
        "assert not {'ray', 'lance', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
