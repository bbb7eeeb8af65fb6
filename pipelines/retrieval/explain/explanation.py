"""Holds where a hit's score comes from: each channel's score, weight and share, and the matches of each token.

The parts are those that the fusion summed, so they add up to the score that the search showed. Token parts add up to
the channel's own score: the sum over shared tokens of both weights (sparse), the mean over query tokens of the best
product (ColBERT). Dense is one number, for a single vector has no parts. In print, word pieces are joined to words.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from pipelines.config.channels import colour_of
from pipelines.retrieval.explain.tokens import Span, whole_words
from pipelines.retrieval.passages import best_passage


@dataclass(frozen=True, slots=True)
class SparseMatch:
    """Holds a token that query and document share: both weights, their product, and its places in the document.

    expanded_from: query tokens that query expansion added it for, beside its own place in the query, if it has one.
    """

    token: str
    token_id: int
    query_weight: float
    document_weight: float
    product: float
    spans: tuple[Span, ...]
    expanded_from: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ColbertMatch:
    """Holds a query token and the stored vector that it matched best.

    part: what it adds to the channel's score, similarity times weight. document_tokens and spans are several where
    pooling joined several tokens into one vector, and empty for special tokens. query_span: its characters in the
    query, None for a special token; continues: whether it is a further piece of the word before it.
    """

    query_token: str
    document_tokens: tuple[str, ...]
    similarity: float
    weight: float
    part: float
    spans: tuple[Span, ...]
    query_span: Span | None = None
    continues: bool = False


@dataclass(frozen=True, slots=True)
class WordMatch:
    """Holds a word of the query and the words of the text that its pieces matched, joined from `ColbertMatch`es."""

    query_word: str
    matched: tuple[str, ...]
    similarity: float
    """The pieces' mean, by their weights."""
    weight: float
    part: float
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class ChannelPart:
    """Holds a channel's contribution.

    score: its own; part: added to the fused score; share: part over the absolute sum.
    """

    score: float
    weight: float
    part: float
    share: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Explains one hit of one query; `score` is the sum of the channels' parts."""

    query: str
    doc_id: str
    chunk_id: str
    rank: int
    score: float
    fusion: str
    channels: Mapping[str, ChannelPart]
    sparse: tuple[SparseMatch, ...]
    colbert: tuple[ColbertMatch, ...]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON; the ColBERT matches by token, and joined to words."""
        return {**asdict(self), "words": [asdict(word) for word in self.words]}

    @property
    def words(self) -> tuple[WordMatch, ...]:
        """Joins the ColBERT matches to whole words of the query, in its order; special tokens are left out."""
        return join_pieces(self.colbert, self.query, self.text)

    @property
    def strengths(self) -> dict[Span, float]:
        """Returns what each matched part of the text adds to ColBERT's score; shared tokens alone count 0."""
        found: dict[Span, float] = {}
        for match in self.colbert:
            for span in match.spans:
                found[span] = found.get(span, 0.0) + max(0.0, match.part)
        for shared in self.sparse:
            for span in shared.spans:
                found.setdefault(span, 0.0)
        return found

    def __str__(self) -> str:
        lines = [
            f"{self.chunk_id} is {_format_ordinal(self.rank)} for {self.query!r}: {self.score:.4f} ({self.fusion})"
        ]
        for name, c in self.channels.items():
            lines.append(
                f"  {name:8} score {c.score:9.4f}  weight {c.weight:5.2f}  part {c.part:+9.4f}  {c.share:4.0%}"
            )
        for s in self.sparse:
            near = f"  near {', '.join(s.expanded_from)}" if s.expanded_from else ""
            numbers = f"{s.query_weight:.3f} x {s.document_weight:.3f} = {s.product:.4f}"
            lines.append(f"  sparse   {s.token:16} {numbers}{near}")
        for word in self.words:
            matched = ", ".join(word.matched) or "(special token)"
            place = f" at {word.spans[0][0]}" if word.spans else ""
            lines.append(
                f"  colbert  {word.query_word:16} -> {matched}{place}  {word.similarity:.3f} x {word.weight:.3f}"
            )
        passage = best_passage(self.text, self.strengths, length=400).marked("*", "*")
        return "\n".join([*lines, textwrap.fill(passage, 80, initial_indent="  ", subsequent_indent="  ")])

    __repr__ = __str__

    def highlighted(self) -> str:
        """Returns the text as HTML with the matches marked: the stronger the part, the deeper the colour."""
        return mark(self.text, self.strengths)

    def _repr_html_(self) -> str:
        rows = "".join(_channel_row(name, part) for name, part in self.channels.items())
        return (
            "<div style='font-family:system-ui,sans-serif;max-width:860px;line-height:1.5'>"
            f"<b>{escape(self.chunk_id)}</b> <span style='color:#888'>{escape(self.query)} · {self.score:.4f} · "
            f"{escape(self.fusion)}</span><table style='font-size:12px;border-collapse:collapse'>"
            "<tr style='color:#888'><td></td><td>score</td><td>weight</td><td>part</td><td>share</td></tr>"
            f"{rows}</table><p style='font-size:14px;white-space:pre-wrap'>{self.highlighted()}</p>"
            f"{_format_matches(self)}</div>"
        )


def join_pieces(matches: Sequence[ColbertMatch], query: str, text: str) -> tuple[WordMatch, ...]:
    """Joins the matches of word pieces to those of whole words of the query; special tokens are left out."""
    groups: list[list[ColbertMatch]] = []
    for match in matches:
        if match.query_span is None:
            continue
        if match.continues and groups:
            groups[-1].append(match)
        else:
            groups.append([match])
    return tuple(_join_to_word(group, query, text) for group in groups)


def _join_to_word(pieces: list[ColbertMatch], query: str, text: str) -> WordMatch:
    spans = whole_words(text, tuple(span for piece in pieces for span in piece.spans))
    first, last = pieces[0].query_span, pieces[-1].query_span
    assert first is not None
    assert last is not None
    weight, part = sum(p.weight for p in pieces), sum(p.part for p in pieces)
    matched = tuple(dict.fromkeys(text[start:end] for start, end in spans))
    similarity = part / weight if weight else 0.0
    return WordMatch(query[first[0] : last[1]], matched, similarity, weight, part, spans)


def _format_ordinal(rank: int) -> str:
    return f"rank {rank}" if rank else "not among the candidates"


def _channel_row(name: str, part: ChannelPart) -> str:
    swatch = f"<span style='color:{colour_of(name)}'>&#9632;</span> {escape(name)}"
    numbers = (f"{part.score:.4f}", f"{part.weight:g}", f"{part.part:+.4f}", f"{part.share:.0%}")
    cells = "".join(f"<td style='padding:1px 10px 1px 0'>{value}</td>" for value in numbers)
    return f"<tr><td style='padding-right:14px'>{swatch}</td>{cells}</tr>"


def _format_matches(explanation: Explanation) -> str:
    rows = "".join(
        f"<tr><td style='padding-right:12px'>{escape(m.query_word)}</td><td>{escape(', '.join(m.matched))}</td>"
        f"<td style='padding-left:12px'>{m.similarity:.3f}</td></tr>"
        for m in explanation.words
    )
    return f"<details><summary>word matches</summary><table style='font-size:12px'>{rows}</table></details>"


def mark(text: str, strength: Mapping[Span, float]) -> str:
    """Wraps spans in <mark>, shaded by strength; escapes the text. Spans may touch; overlapping ones are joined.

    Marks are translucent and keep the text's own colour, so that they can be read on light and dark pages.
    """
    strongest = max([*strength.values(), 1e-9])
    pieces, end = [], 0
    for (start, stop), value in sorted(strength.items()):
        start = max(start, end)
        if start >= stop:
            continue
        shade = 0.15 + 0.75 * value / strongest
        style = f"background:rgba(178,121,162,{shade:.2f});color:inherit;border-radius:3px"
        pieces += [escape(text[end:start]), f"<mark style='{style}'>{escape(text[start:stop])}</mark>"]
        end = stop
    return "".join([*pieces, escape(text[end:])])


def channel_parts(
    scores: Mapping[str, float], weights: Mapping[str, float], parts: Mapping[str, float]
) -> dict[str, ChannelPart]:
    """Returns one ChannelPart per channel; a channel without a weight has part 0."""
    total = sum(abs(part) for part in parts.values()) or 1.0
    return {
        name: ChannelPart(score, weights.get(name, 0.0), parts.get(name, 0.0), abs(parts.get(name, 0.0)) / total)
        for name, score in scores.items()
    }
