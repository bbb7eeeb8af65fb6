"""Defines what a search returns: `Hits`, a sequence of frozen `Hit`s, as rows, as a table, as JSON and in print."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from pipelines.config import CHANNELS, Channel, Fusion, Mode
from pipelines.config.plain_json import plain_json

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Span = tuple[int, int]
OWN_COLUMNS: tuple[str, ...] = (
    "rank", "doc_id", "chunk_id", "score", *CHANNELS, "rerank", "passage", "start", "end", "source", "line", "text",
)  # fmt: skip
"""Columns of a table of hits; a metadata column of the same name is called `metadata.NAME` there."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Holds a window of a hit's text.

    start, end: its characters in the document's text, of which the hit's text may be a chunk. marks: the matching
    parts, by their characters in `text`.
    """

    text: str
    start: int
    end: int
    marks: tuple[Span, ...] = ()

    def marked(self, before: str, after: str) -> str:
        """Returns the text on one line, each matching part between `before` and `after`."""
        pieces, end = [], 0
        for start, stop in self.marks:
            pieces += [self.text[end:start], before, self.text[start:stop], after]
            end = stop
        return " ".join("".join([*pieces, self.text[end:]]).split())


@dataclass(frozen=True, slots=True)
class Located:
    """Holds the position of a hit's best passage. line: of the document's text, from 1; None if it is not known."""

    passage: Passage
    line: int | None


@dataclass(frozen=True, slots=True)
class Hit:
    """Holds one row of the answer. `score` orders the answer; `scores` are the channels' own, exact scores."""

    doc_id: str
    chunk_id: str
    score: float
    scores: Mapping[str, float]
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 0
    """From 1, over all pages; 0 outside an answer."""
    source: str | None = None
    """The file that the document came from."""
    start: int = 0
    """Where the hit's text begins in the document's text."""
    chunk_index: int = 0
    """The hit's text is this chunk of its document, from 0."""
    locate: Callable[[Hit], Located] | None = field(default=None, repr=False, compare=False)
    """Finds the passage when it is first wanted: ranking needs none."""

    @property
    def id(self) -> str:
        """Returns the chunk's id, which is unique in the index."""
        return self.chunk_id

    @property
    def located(self) -> Located:
        """Returns the passage and its line."""
        if self.locate is not None:
            return self.locate(self)
        return Located(Passage(self.text, self.start, self.start + len(self.text)), None)

    @property
    def passage(self) -> Passage:
        """Returns the window of the text that matched."""
        return self.located.passage

    @property
    def line(self) -> int | None:
        """Returns the line of the document's text on which the passage begins, from 1."""
        return self.located.line

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        passage, line = self.located.passage, self.located.line
        return {
            "rank": self.rank,
            "doc_id": self.doc_id,
            "chunk_id": self.chunk_id,
            "score": self.score,
            "scores": dict(self.scores),
            "passage": {
                "text": passage.text,
                "start": passage.start,
                "end": passage.end,
                "marks": [list(mark) for mark in passage.marks],
            },
            "source": self.source,
            "line": line,
            "text": self.text,
            "metadata": {key: plain_json(value) for key, value in self.metadata.items()},
        }


@dataclass(frozen=True, slots=True)
class Hits(Sequence[Hit]):
    """Holds the answer to one query, best first."""

    query: str
    hits: tuple[Hit, ...]
    mode: Mode
    fusion: Fusion | None
    weights: Mapping[Channel, float]
    n_truncated: int = 0
    """Tokens of the query that the model did not see."""

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, i: int) -> Hit: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, i: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[i]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @property
    def ids(self) -> list[str]:
        """Returns the documents' ids, best first."""
        return [hit.doc_id for hit in self.hits]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "query": self.query,
            "mode": self.mode,
            "fusion": self.fusion,
            "weights": dict(self.weights),
            "n_truncated": self.n_truncated,
            "hits": [hit.to_dict() for hit in self.hits],
        }

    def to_dicts(self) -> list[dict[str, Any]]:
        """Returns one flat row per hit: rank, ids, score, each channel's score, passage, source, line, text, metadata.

        A metadata column whose name is one of those is called `metadata.NAME`.
        """
        return [_flatten_hit(hit) for hit in self.hits]

    def to_pandas(self) -> pd.DataFrame:
        """Returns `to_dicts` as a data frame.

        >>> list(hits.to_pandas().columns[:3])
        ['rank', 'doc_id', 'chunk_id']
        """
        import pandas as pd

        rows = self.to_dicts()
        return pd.DataFrame(rows, columns=list(rows[0]) if rows else _COLUMNS_OF_NONE)

    def to_arrow(self) -> pa.Table:
        """Returns `to_dicts` as an Arrow table."""
        import pyarrow as pa

        rows = self.to_dicts()
        return pa.Table.from_pylist(rows) if rows else pa.table({name: pa.nulls(0) for name in _COLUMNS_OF_NONE})

    def __repr__(self) -> str:
        from pipelines.retrieval.hits_text import hits_as_text

        return hits_as_text(self)

    def _repr_html_(self) -> str:
        from pipelines.retrieval.hits_html import hits_as_html

        return hits_as_html(self)


_COLUMNS_OF_NONE = [name for name in OWN_COLUMNS if name not in CHANNELS and name != "rerank"]


def _flatten_hit(hit: Hit) -> dict[str, Any]:
    passage, line = hit.located.passage, hit.located.line
    return {
        "rank": hit.rank,
        "doc_id": hit.doc_id,
        "chunk_id": hit.chunk_id,
        "score": hit.score,
        **hit.scores,
        "passage": passage.text,
        "start": passage.start,
        "end": passage.end,
        "source": hit.source,
        "line": line,
        "text": hit.text,
        **{f"metadata.{name}" if name in OWN_COLUMNS else name: value for name, value in hit.metadata.items()},
    }
