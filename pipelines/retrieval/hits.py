"""What a search returns: `Hits`, a sequence of frozen `Hit`s that prints well in a terminal and in a notebook."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, overload

import pandas as pd

from pipelines.config import Channel

COLOURS: dict[str, str] = {
    "dense": "#4c78a8",
    "sparse": "#54a24b",
    "colbert": "#b279a2",
    "bm25": "#f58518",
    "rerank": "#e45756",
}
SNIPPET = 320
THUMBNAIL = "thumbnail"
"""Metadata column with a small JPEG, shown as a picture."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One row of the answer. `score` orders the answer; `scores` are the channels' own, exact scores."""

    doc_id: str
    chunk_id: str
    score: float
    scores: Mapping[str, float]
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "doc_id": self.doc_id,
            "chunk_id": self.chunk_id,
            "score": self.score,
            "scores": dict(self.scores),
            "text": self.text,
            "metadata": {key: _plain(value) for key, value in self.metadata.items()},
        }


@dataclass(frozen=True, slots=True)
class Hits(Sequence[Hit]):
    """The answer to one query, best first."""

    query: str
    hits: tuple[Hit, ...]
    mode: str
    fusion: str | None
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
        return [hit.doc_id for hit in self.hits]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "query": self.query,
            "mode": self.mode,
            "fusion": self.fusion,
            "weights": dict(self.weights),
            "n_truncated": self.n_truncated,
            "hits": [hit.to_dict() for hit in self.hits],
        }

    def to_pandas(self) -> pd.DataFrame:
        """One row a hit: rank, ids, score, one column for each channel's score, text, metadata columns."""
        rows = [
            {
                "rank": rank,
                "doc_id": hit.doc_id,
                "chunk_id": hit.chunk_id,
                "score": hit.score,
                **hit.scores,
                "text": hit.text,
                **hit.metadata,
            }
            for rank, hit in enumerate(self.hits, start=1)
        ]
        return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["rank", "doc_id", "chunk_id", "score", "text"])

    def __repr__(self) -> str:
        lines = [f"{len(self)} hit{'s' * (len(self) != 1)} for {self.query!r} ({self.mode})"]
        for rank, hit in enumerate(self.hits, start=1):
            channels = "  ".join(f"{name} {score:.3f}" for name, score in hit.scores.items())
            lines.append(f"{rank:3}. {hit.score:8.4f}  {hit.chunk_id}  [{channels}]  {shorten(hit.text, 80)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return _page(self)


def _plain(value: Any) -> Any:
    """Bytes (a thumbnail) as base64 text, all else as it is."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def shorten(text: str, length: int) -> str:
    """One line of at most `length` characters, cut at a word."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[:length].rsplit(" ", 1)[0] + " …"


def _page(hits: Hits) -> str:
    values: dict[str, list[float]] = {}
    for hit in hits:
        for name, score in hit.scores.items():
            values.setdefault(name, []).append(score)
    extremes = {name: (min(scores), max(scores)) for name, scores in values.items()}
    rule = ", ".join(f"{c} {w:g}" for c, w in hits.weights.items())
    caption = f"{escape(hits.mode)}{f' · {escape(hits.fusion)} ({escape(rule)})' if hits.fusion else ''}"
    body = "".join(_card(rank, hit, extremes) for rank, hit in enumerate(hits, start=1))
    empty = "<div style='color:#888;padding:8px 0'>nothing found</div>"
    return (
        "<div style='font-family:system-ui,sans-serif;max-width:860px;line-height:1.4'>"
        f"<div style='font-size:15px;font-weight:600'>{escape(hits.query)}</div>"
        f"<div style='font-size:12px;color:#888;margin-bottom:6px'>{len(hits)} hits · {caption}</div>"
        f"{body or empty}</div>"
    )


def _card(rank: int, hit: Hit, extremes: Mapping[str, tuple[float, float]]) -> str:
    bars = "".join(_bar(name, score, *extremes[name]) for name, score in hit.scores.items())
    chips = "".join(
        f"<span style='font-size:11px;color:#888;margin-right:8px'>{escape(f'{key}: {shorten(str(value), 60)}')}</span>"
        for key, value in hit.metadata.items()
        if not isinstance(value, bytes)
    )
    pictures = "".join(
        f"<img src='data:image/jpeg;base64,{_plain(value)}' style='max-width:160px;max-height:120px;border-radius:4px'>"
        for key, value in hit.metadata.items()
        if key == THUMBNAIL and isinstance(value, bytes)
    )
    return (
        "<div style='display:flex;gap:14px;border-top:1px solid #8884;padding:8px 0'>"
        f"<div style='min-width:26px;text-align:right;color:#888'>{rank}</div>"
        f"{pictures}<div style='flex:1'><div><b>{escape(hit.chunk_id)}</b> "
        f"<span style='color:#888;font-size:12px'>{hit.score:.4f}</span></div>"
        f"<div style='font-size:13px'>{escape(shorten(hit.text, SNIPPET))}</div>{chips}</div>"
        f"<div style='min-width:190px'>{bars}</div></div>"
    )


def _bar(name: str, score: float, low: float, high: float) -> str:
    """A bar from the worst to the best of this answer, so that channels of different scale can be compared."""
    share = 1.0 if high <= low else (score - low) / (high - low)
    return (
        "<div style='display:flex;align-items:center;font-size:11px;gap:6px'>"
        f"<span style='width:46px;color:#888'>{escape(name)}</span>"
        "<span style='flex:1;background:#8882;height:7px;border-radius:4px;overflow:hidden'>"
        f"<span style='display:block;height:7px;width:{6 + 94 * share:.0f}%;background:{COLOURS.get(name, '#777')}'>"
        f"</span></span><span style='width:44px;text-align:right'>{score:.3f}</span></div>"
    )
