"""Selects the passage of a hit: the window of its text with the strongest matches of the query."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from pipelines.retrieval.hits import Passage

PASSAGE = 200
"""Characters of a passage, about; it begins and ends between words."""
MIN_SHARE = 0.2
"""Parts weaker than this share of the strongest are neither counted nor marked."""
WORD = re.compile(r"\w+")
Span = tuple[int, int]
Strengths = Mapping[Span, float]
"""How much each part of a text has to do with the query, by its characters."""


def word_strengths(query: str, text: str) -> dict[Span, float]:
    """Assigns a strength to every word of a text that the query shares: less to short and to repeated words."""
    wanted = {match[0].lower() for match in WORD.finditer(query)}
    found = [match for match in WORD.finditer(text) if match[0].lower() in wanted]
    counts = Counter(match[0].lower() for match in found)
    return {m.span(): (1.0 if len(m[0]) > 3 else 0.2) / counts[m[0].lower()] ** 0.5 for m in found}


def best_passage(text: str, strengths: Strengths, offset: int = 0, length: int = PASSAGE) -> Passage:
    """Returns the window of about `length` characters that holds the strongest parts; the beginning if none match.

    offset: where the text begins in its document.
    """
    strengths = _drop_weak_parts(strengths)
    spans = sorted(strengths)
    start, end = _between_words(text, *_strongest_window(text, spans, strengths, length))
    inside = [(a - start, b - start) for a, b in spans if start <= a and b <= end]
    return Passage(text[start:end], offset + start, offset + end, tuple(_join_spans(inside, text[start:end])))


def _drop_weak_parts(strengths: Strengths) -> Strengths:
    """Drops parts that are weak beside the strongest: function words, and best matches of what does not occur."""
    least = MIN_SHARE * max(strengths.values(), default=0.0)
    return {span: strength for span, strength in strengths.items() if strength >= least}


def _strongest_window(text: str, spans: list[Span], strengths: Strengths, length: int) -> Span:
    """Slides a window over the parts; of equally strong windows the first, centred on its parts."""
    best, at, first, total = -1.0, (0, 0), 0, 0.0
    for last, (_, end) in enumerate(spans):
        total += strengths[spans[last]]
        while first < last and end - spans[first][0] > length:
            total -= strengths[spans[first]]
            first += 1
        if total > best + 1e-9:
            best, at = total, (spans[first][0], end)
    margin = max(0, length - (at[1] - at[0])) // 2
    start = max(0, min(at[0] - margin, len(text) - length)) if spans else 0
    return start, min(len(text), max(start + length, at[1]))


def _between_words(text: str, start: int, end: int) -> Span:
    """Moves both ends inwards to the nearest blanks, so that no word is cut; a text without blanks stays as it is."""
    if start > 0 and not text[start - 1].isspace():
        blank = re.compile(r"\s").search(text, start, end)
        start = blank.end() if blank else start
    if end < len(text) and not text[end].isspace():
        blanks = [m.start() for m in re.finditer(r"\s", text[start:end])]
        end = start + blanks[-1] if blanks else end
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _join_spans(spans: list[Span], text: str) -> list[Span]:
    """Joins parts that overlap or touch, such as the pieces of one word."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
