"""Finds good places to cut a text, at paragraphs and headings, at sentences, at lines, by its characters.

Rules, not a model: they cost microseconds and are the same on every machine. An abbreviation before a capital letter
ends a sentence here, which costs nothing but a cut at that place.
"""

from __future__ import annotations

import re

import numpy as np

from actors.outputs import IntArray

_PARAGRAPH = re.compile(r"\n[^\S\n]*(?:\n\s*)+|\f\s*")
_HEADING = re.compile(r"^#{1,6}[ \t]+\S.*$", re.MULTILINE)
_SENTENCE = re.compile(r"[.!?…]+[\"'”’»)\]]*\s+(?=[^a-z\s])|[。！？]+[」』”’）]*\s*")
_LINE = re.compile(r"\n\s*")


def text_boundaries(text: str) -> list[IntArray]:
    """Returns the first characters of paragraphs (headings among them), of sentences, and of lines: int64, ascending.

    What follows a heading is not listed: the heading is.
    """
    headings = [(m.start(), m.end()) for m in _HEADING.finditer(text)]
    ends = {end for _, end in headings}
    paragraphs = [m.end() for m in _PARAGRAPH.finditer(text) if m.start() not in ends]
    starts = np.array(sorted({*paragraphs, *(start for start, _ in headings)}), dtype=np.int64)
    others = [[m.end() for m in rule.finditer(text)] for rule in (_SENTENCE, _LINE)]
    after = {m.end() for m in re.finditer(r"\s+", text) if m.start() in ends} if ends else set()
    return [starts, *(np.array([at for at in found if at not in after], np.int64) for found in others)]


def tokens_at(text: str, characters: IntArray, starts: IntArray, ends: IntArray) -> IntArray:
    """Returns the tokens that begin at these characters, blanks before them aside; int64, ascending.

    A character within a token is left out: `starts` and `ends` are the characters of all tokens.
    """
    found = np.searchsorted(ends, characters, side="right")
    inside = found < len(starts)
    tokens, places = found[inside], characters[inside]
    fits = [first >= at or text[first:at].isspace() for first, at in zip(starts[tokens], places.tolist(), strict=True)]
    return np.unique(tokens[np.array(fits, dtype=bool)]).astype(np.int64)
