"""Aligns the tokens that a model reads with character spans of the text."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from actors.outputs import Array, IntArray
from pipelines.retrieval.encoder import QueryEncoder

Span = tuple[int, int]


class Tokens:
    """Holds the tokens of one text as the model reads it: those with a ColBERT vector, and the span of each.

    ids: int64 (m,); in M3 all but the first token. spans: (m, 2) characters, -1 for special and instruction tokens.
    """

    def __init__(self, encoder: QueryEncoder, text: str, kind: Literal["passage", "query"] = "passage") -> None:
        embedder = encoder.embedder
        self.tokenizer = embedder.tokenizer
        tokens = embedder.tokenise([text], kind)
        scored, ids = embedder.scored_tokens(tokens, kind), tokens.ids.astype(np.int64)
        self.ids, self.spans = ids[scored], aligned_spans(ids, *self.tokenizer.offsets(text))[scored]

    def name(self, token_id: int) -> str:
        """Returns a token as the tokenizer writes it."""
        return self.tokenizer.token_text(token_id)

    def text_of(self, members: IntArray) -> tuple[tuple[str, ...], tuple[Span, ...]]:
        """Returns names and spans of those tokens that occur in the text."""
        inside = [i for i in members if self.spans[i, 0] >= 0]
        names = tuple(self.name(int(self.ids[i])) for i in inside)
        return names, tuple((int(self.spans[i, 0]), int(self.spans[i, 1])) for i in inside)

    def span(self, i: int) -> Span | None:
        """Returns the span of token i; None for a special or an instruction token."""
        return (int(self.spans[i, 0]), int(self.spans[i, 1])) if self.spans[i, 0] >= 0 else None


def aligned_spans(model_ids: Array, text_ids: Array, starts: Array, ends: Array) -> npt.NDArray[np.int64]:
    """Aligns the model's tokens with character spans of the text.

    The model saw the text's tokens cut at the end, perhaps after an instruction and before special tokens; the longest
    run of equal ids is where they are.
    """
    spans = np.full((len(model_ids), 2), -1, np.int64)
    best_shift, best_length = 0, 0
    for shift in range(len(model_ids)):
        room = min(len(model_ids) - shift, len(text_ids))
        if room <= best_length:
            break
        same = model_ids[shift : shift + room] == text_ids[:room]
        length = room if same.all() else int(same.argmin())
        if length > best_length:
            best_shift, best_length = shift, length
    spans[best_shift : best_shift + best_length, 0] = starts[:best_length]
    spans[best_shift : best_shift + best_length, 1] = ends[:best_length]
    return spans


def whole_words(text: str, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Widens spans to whole words and joins those that then overlap or touch, in the order of the text.

    >>> whole_words("biomaterials", ((0, 3), (6, 9)))
    ((0, 12),)
    """
    joined: list[Span] = []
    for start, end in sorted(spans):
        while start > 0 and text[start - 1].isalnum() and text[start : start + 1].isalnum():
            start -= 1
        while end < len(text) and text[end].isalnum() and text[end - 1 : end].isalnum():
            end += 1
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)
