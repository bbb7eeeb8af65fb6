"""What upstream's README and inference guides show, with the import line changed, on tiny models of the same names.

The models lie as local folders under the names that the guides use; `devices` of a GPU are left out.
"""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import build

from actors import BGEM3FlagModel, FlagAutoModel, FlagICLModel, FlagLLMModel, FlagModel
from actors.text.prompts import task_instructions

BUILD = build
pytestmark = pytest.mark.usefixtures("in_upstream_models")
MODELS = {
    "BAAI/bge-base-en-v1.5": "bert",
    "BAAI/bge-large-zh-v1.5": "bert",
    "BAAI/llm-embedder": "bert",
    "BAAI/bge-m3": "m3",
    "BAAI/bge-multilingual-gemma2": "gemma2",
    "BAAI/bge-en-icl": "mistral",
    "your_model_name_or_path": "bert",
}
FOR_CHINESE = "为这个句子生成表示以用于检索相关文章："
QUERIES, PASSAGES = (
    ["how much protein", "summit define"],
    ["As a guideline, 46 grams per day.", "The top of a mountain."],
)


def assert_scores(scores: np.ndarray) -> None:
    assert scores.shape == (2, 2)
    assert np.isfinite(scores).all()
    assert np.abs(scores).max() <= 1.001


def test_quick_start() -> None:
    model = FlagAutoModel.from_finetuned(
        "BAAI/bge-base-en-v1.5",
        query_instruction_for_retrieval="Represent this sentence for searching relevant passages:",
        use_fp16=True,
    )
    first, second = model.encode(["I love NLP", "I love learning"]), model.encode(["I love BGE", "I love retrieval"])
    assert_scores(first @ second.T)


@pytest.mark.parametrize(
    "options", [{}, {"model_class": "encoder-only-base", "pooling_method": "cls"}], ids=["named", "fine-tuned"]
)
def test_auto_model(options: dict[str, str]) -> None:
    name = "your_model_name_or_path" if options else "BAAI/bge-large-zh-v1.5"
    model = FlagAutoModel.from_finetuned(
        name, query_instruction_for_retrieval=FOR_CHINESE, use_fp16=True, devices=["cpu"], **options
    )
    assert_scores(model.encode_queries(QUERIES) @ model.encode_corpus(PASSAGES).T)


def test_normal_model() -> None:
    model = FlagModel(
        "BAAI/bge-large-zh-v1.5", query_instruction_for_retrieval=FOR_CHINESE, use_fp16=True, devices=["cpu"]
    )
    queries, passages = model.encode_queries(QUERIES), model.encode_corpus(PASSAGES)
    assert_scores(np.asarray(queries @ passages.T))
    np.testing.assert_array_equal(queries, model.encode([FOR_CHINESE + query for query in QUERIES]))


def test_m3_model() -> None:
    model = BGEM3FlagModel("BAAI/bge-m3", use_fp16=True, pooling_method="cls", devices=["cpu"])
    queries = model.encode_queries(QUERIES, return_dense=True, return_sparse=True, return_colbert_vecs=False)
    passages = model.encode_corpus(PASSAGES, return_dense=True, return_sparse=True, return_colbert_vecs=True)
    assert_scores(queries["dense_vecs"] @ passages["dense_vecs"].T)
    matching = model.compute_lexical_matching_score(queries["lexical_weights"], passages["lexical_weights"])
    assert np.shape(matching) == (2, 2)
    assert queries["colbert_vecs"] is None
    assert [row.shape[1] for row in passages["colbert_vecs"]] == [32, 32]
    assert len(model.convert_id_to_token(passages["lexical_weights"])) == 2


def test_m3_scores_of_pairs_agree_with_its_vectors() -> None:
    model = BGEM3FlagModel("BAAI/bge-m3", use_fp16=True, devices=["cpu"])
    pairs = [[query, passage] for query in QUERIES for passage in PASSAGES]
    weights = [0.4, 0.2, 0.4]
    scores = model.compute_score(pairs, max_passage_length=128, weights_for_different_modes=weights)
    assert isinstance(scores, dict)
    a, b = (model.encode(t, return_sparse=True, return_colbert_vecs=True) for t in (QUERIES, PASSAGES))
    assert scores["dense"][1] == pytest.approx(float(a["dense_vecs"][0] @ b["dense_vecs"][1]), abs=1e-5)
    lexical = model.compute_lexical_matching_score(a["lexical_weights"][0], b["lexical_weights"][1])
    assert scores["sparse"][1] == pytest.approx(float(lexical), abs=1e-5)
    colbert = model.colbert_score(a["colbert_vecs"][0], b["colbert_vecs"][1])
    assert scores["colbert"][1] == pytest.approx(float(colbert), abs=1e-5)
    total = 0.4 * scores["dense"][1] + 0.2 * scores["sparse"][1] + 0.4 * scores["colbert"][1]
    assert scores["colbert+sparse+dense"][1] == pytest.approx(total, abs=1e-5)


def test_llm_model() -> None:
    model = FlagLLMModel(
        "BAAI/bge-multilingual-gemma2",
        query_instruction_for_retrieval="Given a question, retrieve passages that answer the question.",
        query_instruction_format="<instruct>{}\\n<query>{}",
        use_fp16=True,
        devices=["cpu"],
    )
    assert_scores(np.asarray(model.encode_queries(QUERIES) @ model.encode_corpus(PASSAGES, pad_to_multiple_of=8).T))


def test_in_context_model() -> None:
    examples = [
        {"instruct": "Retrieve passages.", "query": "what is a virtual interface", "response": "A software network."},
        {"instruct": "Retrieve passages.", "query": "causes of back pain", "response": "Muscle strain."},
    ]
    model = FlagICLModel(
        "BAAI/bge-en-icl",
        query_instruction_for_retrieval="Given a question, retrieve passages that answer the question.",
        query_instruction_format="<instruct>{}\\n<query>{}",
        examples_for_task=examples,
        examples_instruction_format="<instruct>{}\\n<query>{}\\n<response>{}",
        use_fp16=True,
        devices=["cpu"],
    )
    assert_scores(np.asarray(model.encode_queries(QUERIES) @ model.encode_corpus(PASSAGES).T))


def test_llm_embedder_by_task() -> None:
    query, key = task_instructions("qa")
    model = FlagModel(
        "BAAI/llm-embedder",
        use_fp16=False,
        query_instruction_for_retrieval=query,
        passage_instruction_for_retrieval=key,
        devices=["cpu"],
    )
    keys = model.encode_corpus(PASSAGES)
    np.testing.assert_array_equal(keys, model.encode([key + passage for passage in PASSAGES]))
    assert_scores(np.asarray(model.encode_queries(QUERIES) @ keys.T))
