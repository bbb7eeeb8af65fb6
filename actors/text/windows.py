"""Cuts a long text into overlapping windows of tokens that end at paragraph, sentence or word boundaries if possible.

A window is an exact substring, given by its characters, so a hit can be shown in its document. Texts are counted
first, which is cheap, and only those that do not fit are tokenised again with the place of every token. A long one is
tokenised in segments of 100,000 characters cut at whitespace: one call over 50 MB would hold gigabytes of token
objects. That changes a token only where a segment holds no whitespace at all. Snapping, to paragraphs, sentences, lines
and words in this order, costs up to a quarter of a window and keeps a window's own tokens equal to those of the
document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from actors.arrow.blocks import TOKENIZER_CALL_BYTES, split_by_size
from actors.outputs import IntArray
from actors.spec import Window
from actors.text.boundaries import text_boundaries, tokens_at

SEGMENT_CHARS = 100_000


class Offsets(Protocol):
    """Defines what window cutting needs of a tokenizer."""

    def counts(self, texts: Sequence[str]) -> IntArray:
        """Counts the tokens of each text, without special tokens."""
        ...

    def offsets(self, text: str) -> tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]:
        """Returns token ids, and each token's first character and the one after its last, without special tokens."""
        ...


def cut_all_into_windows(texts: Sequence[str], tokenizer: Offsets, window: Window) -> list[IntArray]:
    """Returns for each text (n, 2): each window's first character and the one after its last; n is at least 1."""
    chars = np.fromiter(map(len, texts), np.int64, len(texts))
    long = chars > SEGMENT_CHARS
    short = np.flatnonzero(~long)
    for part in split_by_size(chars[short], TOKENIZER_CALL_BYTES):
        rows = short[part]
        long[rows] = tokenizer.counts([texts[i] for i in rows]) > window.size
    return [
        windows(text, tokenizer, window) if cut else np.array([[0, len(text)]])
        for text, cut in zip(texts, long.tolist(), strict=True)
    ]


def windows(text: str, tokenizer: Offsets, window: Window) -> IntArray:
    """Returns (n, 2), the first character and the one after the last of each window; n is at least 1."""
    starts, ends, words = _token_spans(text, tokenizer)
    if len(starts) <= window.size:
        return np.array([[0, len(text)]], dtype=np.int64)
    better = [] if window.boundaries == "words" else text_boundaries(text)
    levels = [*(tokens_at(text, characters, starts, ends) for characters in better), words]
    cuts = np.array(list(_cut_tokens(levels, len(starts), window)), dtype=np.int64)
    spans = np.stack([starts[cuts[:, 0]], ends[cuts[:, 1] - 1]], axis=1)
    spans[0, 0], spans[-1, 1] = 0, len(text)
    return spans


def _cut_tokens(levels: Sequence[IntArray], n_tokens: int, window: Window) -> Iterator[tuple[int, int]]:
    """Returns (first, one after the last) token of each window; `levels` are allowed first tokens, best level first."""
    slack = (window.size - window.overlap) // 4
    first = 0
    while first + window.size < n_tokens:
        last = _snap_to_boundary(levels, first + window.size, slack)
        yield first, last
        first = _snap_to_boundary(levels, last - window.overlap, slack) if window.overlap else last
    yield first, n_tokens


def _snap_to_boundary(levels: Sequence[IntArray], token: int, slack: int) -> int:
    """Returns the last token, up to `slack` before `token`, of the best level that has one there; else `token`."""
    for level in levels:
        i = int(np.searchsorted(level, token, side="right")) - 1
        if i >= 0 and level[i] >= token - slack:
            return int(level[i])
    return token


def _token_spans(text: str, tokenizer: Offsets) -> tuple[IntArray, IntArray, IntArray]:
    """Returns start and end character of each token, and which tokens begin a word (after or with whitespace)."""
    starts, ends, begins = [], [], []
    n_tokens = 0
    for a, b in segments(text):
        segment = text[a:b]
        _, first, last = (np.asarray(part, dtype=np.int64) for part in tokenizer.offsets(segment))
        if len(first) == 0:
            continue
        space = np.fromiter((segment[i].isspace() for i in first.tolist()), dtype=bool, count=len(first))
        after_gap = np.concatenate([[True], first[1:] > last[:-1]])
        begins.append(np.flatnonzero(space | after_gap) + n_tokens)
        starts.append(first + a)
        ends.append(last + a)
        n_tokens += len(first)
    empty = [np.zeros(0, dtype=np.int64)]
    return np.concatenate(starts or empty), np.concatenate(ends or empty), np.concatenate(begins or empty)


def segments(text: str) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of pieces of at most SEGMENT_CHARS characters, cut after whitespace if there is any."""
    start = 0
    while len(text) - start > SEGMENT_CHARS:
        end = start + SEGMENT_CHARS
        space = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
        cut = end if space <= start else space
        yield start, cut
        start = cut
    yield start, len(text)
