"""DSPy programs that retrieve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("dspy", reason="`make test-adapters` installs DSPy")

import dspy
from dspy.utils import DummyLM

from pipelines.integrations.documents import DocumentIndex, StoredDocument
from pipelines.integrations.dspy import TridexRetriever, TridexRM

TEXTS = ["the river carries sand", "sand castles on the beach", "a kernel schedules threads", "threads of wool"]


@pytest.fixture
def documents(new_documents: Callable[[], DocumentIndex]) -> DocumentIndex:
    made = new_documents()
    made.upsert([StoredDocument(str(i), text, {"n": i}) for i, text in enumerate(TEXTS)])
    return made


class Rag(dspy.Module):  # type: ignore[misc]
    """Retrieves, then answers."""

    def __init__(self, retriever: TridexRetriever) -> None:
        super().__init__()
        self.search = retriever
        self.answer = dspy.Predict("context, question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        found = self.search(question)
        answer = self.answer(context=found.passages, question=question)
        return dspy.Prediction(answer=answer.answer, found=found)


def test_a_program_retrieves_and_answers(documents: DocumentIndex) -> None:
    lm = DummyLM([{"answer": "sand"}])
    with dspy.context(lm=lm):
        result = Rag(TridexRetriever(documents, k=2))("what does the river carry?")
    assert result.answer == "sand"
    assert result.found.passages[0] == TEXTS[0]
    assert result.found.doc_ids[0] == "0"
    assert result.found.metadata[0]["n"] == 0
    assert result.found.channel_scores[0].keys() == {"dense", "sparse", "colbert", "bm25"}
    assert "river carries sand" in str(lm.history[-1]["messages"])


def test_filters_and_channels(documents: DocumentIndex) -> None:
    search = TridexRetriever(documents, mode="bm25")
    assert search("threads", where="n = 3").doc_ids == ["3"]
    assert search("river sand", k=1).scores[0] == pytest.approx(search("river sand").channel_scores[0]["bm25"])


def test_programs_with_a_retrieval_model_are_served(documents: DocumentIndex) -> None:
    with dspy.context(rm=TridexRM(documents)):
        assert dspy.Retrieve(k=1)("wool").passages == [TEXTS[3]]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("DSPY_CACHEDIR", str(tmp_path))
