"""Wrappers that other projects wrote around FlagEmbedding, unmodified, with tridex in its place.

Each runs twice on a tiny checkpoint, once on tridex and once on FlagEmbedding itself. The packages come from
`requirements-adapters.lock`; without them (`make test`) every test here is skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import build
from checkpoints_rerankers import build as build_reranker

import tridex

flag_embedding = pytest.importorskip("FlagEmbedding")
QUERY = "what is the panda"
TEXTS = ["the panda is a bear", "a river and its query", "the passage of the bear, over the river", "What? A query."]
"""Of characters that the tiny vocabularies have: on transformers 5 FlagEmbedding decodes a pair and tokenises it again,
which changes unknown ones."""
Numbers = dict[str, npt.NDArray[Any]]
Wrapper = Callable[[str], Numbers]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny checkpoints under the names by which FlagEmbedding chooses its class."""
    base = tmp_path_factory.mktemp("hub")
    build("m3", base / "bge-m3")
    build_reranker("xlm_roberta", base / "bge-reranker-v2-m3")
    return base


def milvus_embeddings(hub: str) -> Numbers:
    hybrid = pytest.importorskip("milvus_model.hybrid")
    embed = hybrid.BGEM3EmbeddingFunction(f"{hub}/bge-m3", device="cpu", return_colbert_vecs=True)
    found = embed.encode_documents(TEXTS)
    return {
        "dense": np.stack(found["dense"]),
        "sparse": found["sparse"].toarray(),
        "colbert": np.concatenate(found["colbert_vecs"]),
        "dimensions": np.array([embed.dim[name] for name in ("dense", "sparse", "colbert_vecs")]),
        "query": embed.encode_queries([QUERY])["dense"][0],
    }


def milvus_reranker(hub: str) -> Numbers:
    rerank = pytest.importorskip("milvus_model.reranker").BGERerankFunction(f"{hub}/bge-reranker-v2-m3", device="cpu")
    return {"scores": in_order([(hit.index, hit.score) for hit in rerank(QUERY, TEXTS, top_k=len(TEXTS))])}


def llamaindex_reranker(hub: str) -> Numbers:
    postprocessor = pytest.importorskip("llama_index.postprocessor.flag_embedding_reranker")
    nodes = llamaindex_nodes()
    reranker = postprocessor.FlagEmbeddingReranker(top_n=len(nodes), model=f"{hub}/bge-reranker-v2-m3")
    return {"scores": in_order([(n.node.id_, n.score) for n in reranker.postprocess_nodes(nodes, query_str=QUERY)])}


def llamaindex_index(hub: str) -> Numbers:
    managed = pytest.importorskip("llama_index.indices.managed.bge_m3")
    weights = [0.4, 0.2, 0.4]
    index = managed.BGEM3Index(
        [n.node for n in llamaindex_nodes()],
        model_name=f"{hub}/bge-m3",
        weights_for_different_modes=weights,
        doc_maxlen=512,
        query_maxlen=512,
    )
    found = index.as_retriever(similarity_top_k=len(TEXTS)).retrieve(QUERY)
    return {"scores": in_order([(n.node.id_, n.score) for n in found])}


def mteb_reranker(hub: str) -> Numbers:
    wrappers = pytest.importorskip("mteb.models.model_implementations.rerankers_custom")
    from datasets import Dataset
    from torch.utils.data import DataLoader

    queries = DataLoader(Dataset.from_dict({"query": [QUERY] * len(TEXTS)}), batch_size=3)
    passages = DataLoader(Dataset.from_dict({"text": TEXTS}), batch_size=3)
    reranker = wrappers.BGEReranker(f"{hub}/bge-reranker-v2-m3")
    found = reranker.predict(queries, passages, task_metadata=None, hf_split="test", hf_subset="default")
    return {"scores": np.array(found)}


def llamaindex_nodes() -> list[Any]:
    from llama_index.core.schema import NodeWithScore, TextNode

    return [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.0) for i, text in enumerate(TEXTS)]


def in_order(scores: list[tuple[Any, float]]) -> npt.NDArray[np.float64]:
    """Returns the scores by the position of their text, and proves that they came best first."""
    assert [score for _, score in scores] == sorted((score for _, score in scores), reverse=True)
    return np.array([score for _, score in sorted(scores, key=lambda pair: int(pair[0]))])


def expected_reranking(hub: str, **options: Any) -> Numbers:
    reranker = tridex.FlagReranker(f"{hub}/bge-reranker-v2-m3", devices="cpu")
    return {"scores": np.array(reranker.compute_score([(QUERY, text) for text in TEXTS], **options))}


def expected_embeddings(hub: str) -> Numbers:
    compute = tridex.ComputeSpec(dtype="fp32", device="cpu")
    batch = tridex.load_embedder(tridex.EmbedderSpec(model=f"{hub}/bge-m3", compute=compute)).embed_corpus(TEXTS)
    assert batch.dense is not None
    assert batch.colbert is not None
    return {"dense": batch.dense, "colbert": batch.colbert.vectors}


def expected_scores(hub: str) -> Numbers:
    model = tridex.BGEM3FlagModel(f"{hub}/bge-m3", devices="cpu", use_fp16=False)
    pairs = [(QUERY, text) for text in TEXTS]
    scores = model.compute_score(pairs, weights_for_different_modes=[0.4, 0.2, 0.4])
    return {"scores": np.array(scores["colbert+sparse+dense"])}


WRAPPERS: dict[str, tuple[Wrapper, Wrapper]] = {
    "milvus BGEM3EmbeddingFunction": (milvus_embeddings, expected_embeddings),
    "milvus BGERerankFunction": (
        milvus_reranker,
        lambda hub: expected_reranking(hub, normalize=True, query_max_length=256),
    ),
    "LlamaIndex FlagEmbeddingReranker": (llamaindex_reranker, expected_reranking),
    "LlamaIndex BGEM3Index": (llamaindex_index, expected_scores),
    "MTEB BGEReranker": (mteb_reranker, lambda hub: expected_reranking(hub, normalize=True)),
}


def run_on(module: ModuleType, wrapper: Wrapper, hub: Path, monkeypatch: pytest.MonkeyPatch) -> Numbers:
    """Runs a wrapper with `module` in FlagEmbedding's place; milvus_model binds its classes when it is imported."""
    monkeypatch.setitem(sys.modules, "FlagEmbedding", module)
    for name in [name for name in sys.modules if name.partition(".")[0] == "milvus_model"]:
        monkeypatch.delitem(sys.modules, name)
    return wrapper(str(hub))


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapper_gives_the_numbers_of_both(name: str, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper, expected = WRAPPERS[name]
    ours = run_on(tridex, wrapper, hub, monkeypatch)
    for part, numbers in expected(str(hub)).items():
        np.testing.assert_allclose(ours[part], numbers, atol=1e-5, err_msg=f"{part} of tridex itself")
    theirs = run_on(flag_embedding, wrapper, hub, monkeypatch)
    assert ours.keys() == theirs.keys()
    for part, numbers in theirs.items():
        np.testing.assert_allclose(ours[part], numbers, atol=2e-5, err_msg=f"{part} of FlagEmbedding")
