"""A local task through mteb's own runner; its figures equal ir-measures' on the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mteb", reason="`make test-adapters` installs mteb")

import ir_measures
import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from pipelines.integrations.documents import DocumentIndex
from pipelines.integrations.mteb import TridexEncoder, TridexSearch

TOPICS = ("river sand", "kernel threads", "wool knitting", "bread baking", "star light", "chess opening")
KINDS = ("notes", "a book", "a letter", "a poem")
CORPUS = {
    f"d{i}{j}": f"{kind} number {j} about {TOPICS[(2 * i + j) % 6]}, and only then of {topic}"
    for i, topic in enumerate(TOPICS)
    for j, kind in enumerate(KINDS)
}
QUERIES = {f"q{i}": f"{KINDS[i % 4]} on {topic}" for i, topic in enumerate(TOPICS)}
QRELS = {f"q{i}": {f"d{i}{j}": 2 - (j > 1) for j in range(4)} for i in range(6)}


class LocalTask(AbsTaskRetrieval):  # type: ignore[misc]
    """Six topics with four documents each, made here."""

    metadata = TaskMetadata(
        name="LocalTopics",
        description="Six topics with four documents each.",
        reference=None,
        dataset={"path": "local/topics", "revision": "1"},
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )

    def load_data(self, **kwargs: Any) -> None:
        corpus = Dataset.from_list([{"id": i, "title": "", "text": text} for i, text in CORPUS.items()])
        queries = Dataset.from_list([{"id": i, "text": text} for i, text in QUERIES.items()])
        part = {"corpus": corpus, "queries": queries, "relevant_docs": QRELS, "top_ranked": None}
        self.dataset = {"default": {"test": part}}
        self.data_loaded = True


def judged(run: dict[str, dict[str, float]]) -> dict[str, float]:
    qrels = [ir_measures.Qrel(q, d, r) for q, rels in QRELS.items() for d, r in rels.items()]
    ranked = [ir_measures.ScoredDoc(q, d, s) for q, docs in run.items() for d, s in docs.items()]
    measures = {"ndcg_at_10": ir_measures.nDCG @ 10, "recall_at_100": ir_measures.R @ 100}
    found = ir_measures.calc_aggregate(list(measures.values()), qrels, ranked)
    return {name: found[measure] for name, measure in measures.items()}


def run_of(model: Any, folder: Path) -> dict[str, float]:
    result = mteb.evaluate(model, [LocalTask()], cache=None, prediction_folder=folder, show_progress_bar=False)
    (scores,) = result.task_results[0].scores["test"]
    return dict(scores)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "sparse", "colbert", "bm25"])
def test_mteb_ranks_every_channel_as_ir_measures_does(
    new_documents: Callable[[], DocumentIndex], mode: str, tmp_path: Path
) -> None:
    documents = new_documents()
    model = TridexSearch(documents, mode=mode)
    scores = run_of(model, tmp_path)
    assert documents.count() == len(CORPUS)
    run = model.search(Dataset.from_list([{"id": q, "text": t} for q, t in QUERIES.items()]), top_k=1000)
    for name, value in judged(run).items():
        assert 0.3 < value < 1 or name == "recall_at_100"
        assert scores[name] == pytest.approx(value, abs=1e-5), name
    assert model.mteb_model_meta.name == f"tridex/all-MiniLM-L6-v2-mode={mode}"


def test_the_encoder_gives_the_dense_channels_figures(
    new_documents: Callable[[], DocumentIndex], tmp_path: Path
) -> None:
    encoded = run_of(TridexEncoder("all-MiniLM-L6-v2"), tmp_path / "a")
    searched = run_of(TridexSearch(new_documents(), mode="dense"), tmp_path / "b")
    assert encoded["ndcg_at_10"] == pytest.approx(searched["ndcg_at_10"], abs=1e-3)


def test_a_reranking_task_ranks_the_documents_that_it_names(new_documents: Callable[[], DocumentIndex]) -> None:
    model = TridexSearch(new_documents())
    model.index(Dataset.from_list([{"id": i, "title": "", "text": text} for i, text in CORPUS.items()]))
    query = Dataset.from_list([{"id": "q0", "text": QUERIES["q0"]}])
    found = model.search(query, top_k=10, top_ranked={"q0": ["d30", "d00", "d52"]})["q0"]
    assert max(found, key=lambda i: found[i]) == "d00"
    assert found.keys() == {"d30", "d00", "d52"}
