"""Adapts a tridex index to DSPy as a retriever. Extra: `dspy`.

search = TridexRetriever("./idx", k=3)
search("what moves sand").passages          # in a program, or as a tool of dspy.ReAct
dspy.configure(rm=TridexRM("./idx"))        # for programs that use dspy.Retrieve
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.extras import require_extra
from pipelines.integrations.documents import DocumentIndex
from pipelines.integrations.metadata import of_hit
from pipelines.retrieval.hits import Hits

try:
    import dspy
    from dspy.dsp.utils import dotdict
except ModuleNotFoundError:
    require_extra("dspy", __name__)
    raise


class _Searches:
    """Holds what both classes share: an index, and the options of every search."""

    def __init__(self, index: str | Path | DocumentIndex, *, k: int = 3, **options: Any) -> None:
        """Opens an index. index: its folder or URI. options: of every search, such as `mode`, `where` or `rerank`."""
        super().__init__()
        self.documents = index if isinstance(index, DocumentIndex) else DocumentIndex.open(index, create=False)
        self.k = k
        self.options = options

    def hits(self, query: str, k: int | None = None, **options: Any) -> Hits:
        """Searches the index and returns tridex's own hits."""
        return self.documents.search(query, self.k if k is None else k, **{**self.options, **options})


class TridexRetriever(_Searches, dspy.Module):
    """Retrieves passages for a query, with ids, scores and every channel's own score."""

    def forward(self, query: str, k: int | None = None, **options: Any) -> dspy.Prediction:
        """Returns `passages`, and in the same order `doc_ids`, `scores`, `channel_scores` and `metadata`."""
        hits = self.hits(query, k, **options)
        return dspy.Prediction(
            passages=[hit.text for hit in hits],
            doc_ids=[hit.doc_id for hit in hits],
            scores=[hit.score for hit in hits],
            channel_scores=[dict(hit.scores) for hit in hits],
            metadata=[of_hit(hit) for hit in hits],
        )


class TridexRM(_Searches):
    """Serves as a retrieval model for `dspy.configure(rm=...)`."""

    def __call__(self, query: str, k: int | None = None, **options: Any) -> list[dotdict]:
        """Returns passages in the form of `dspy.Retrieve`: `long_text`, `doc_id`, `score` and `channel_scores` each."""
        return [
            dotdict(long_text=hit.text, doc_id=hit.doc_id, score=hit.score, channel_scores=dict(hit.scores))
            for hit in self.hits(query, k, **options)
        ]
