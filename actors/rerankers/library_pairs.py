"""Joins pairs as sentence-transformers and the model cards of language-model rerankers do.

Three ways: the tokenizer's pair with `longest_first` truncation, a chat template that takes both texts, and a prompt
around one text. Each gives the token ids that its own library gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from actors.rerankers.engine import RerankOptions
from actors.rerankers.library_folder import Format
from actors.rerankers.pairs import Ids, Layout, PairBatch, token_ids
from actors.text.tokenizer import TextTokenizer, batch_of

Pairs = Sequence[tuple[str, str]]


def cut_longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Returns the lengths to which `longest_first` truncation cuts two texts that share `room` tokens.

    The longer text is cut to the length of the shorter, then both to a half; the odd token goes to the longer one.

    >>> cut_longest_first(3, 40, 20), cut_longest_first(30, 40, 21), cut_longest_first(40, 30, 21)
    ((3, 17), (10, 11), (11, 10))
    """
    short, long = sorted((first, second))
    if short + long > room:
        long = short if short > room else max(short, room - short)
        if short + long > room:
            short, long = room // 2, room // 2 + room % 2
    return (long, short) if first > second else (short, long)


@dataclass(frozen=True, slots=True)
class LongestFirst:
    """Joins pairs in the tokenizer's own frame, both texts cut by `longest_first`."""

    tokenizer: TextTokenizer
    layout: Layout

    def __call__(self, pairs: Pairs, options: RerankOptions) -> PairBatch:
        queries, passages = (token_ids(self.tokenizer, [pair[side] for pair in pairs]) for side in (0, 1))
        limit = options.max_length if self.layout.positions is None else min(options.max_length, self.layout.positions)
        room, cut = max(0, limit - self.layout.frame), self.tokenizer.cut
        rows, starts, dropped = [], [], []
        for query, passage in zip(queries, passages, strict=True):
            first = cut(query, options.query_max_length or len(query))
            second = cut(passage, options.passage_max_length or len(passage))
            kept = cut_longest_first(len(first), len(second), room)
            first, second = (cut(ids, n) if n < len(ids) else ids for ids, n in zip((first, second), kept, strict=True))
            begin = [*self.layout.head, *first, *self.layout.middle]
            rows.append([*begin, *second, *self.layout.tail])
            starts.append(len(begin))
            dropped.append(len(query) + len(passage) - sum(kept))
        return _batch(rows, dropped, starts)


@dataclass(frozen=True, slots=True)
class PromptedText:
    """Writes a pair as one text between fixed tokens; the text alone is cut. template: query and passage to text."""

    tokenizer: TextTokenizer
    head: tuple[int, ...]
    tail: tuple[int, ...]
    template: Callable[[str, str], str]

    def __call__(self, pairs: Pairs, options: RerankOptions) -> PairBatch:
        texts = token_ids(self.tokenizer, [self.template(query, passage) for query, passage in pairs])
        room = max(0, options.max_length - len(self.head) - len(self.tail))
        rows = [[*self.head, *self.tokenizer.cut(ids, room), *self.tail] for ids in texts]
        return _batch(rows, [max(0, len(ids) - room) for ids in texts])


@dataclass(frozen=True)
class ChatPair:
    """Writes a pair through a chat template with the roles query and document.

    A row that is cut keeps the template's end, over its last tokens. wrapper: transformers' tokenizer.
    """

    tokenizer: TextTokenizer
    wrapper: Any
    format: Format
    prompt: str

    def __call__(self, pairs: Pairs, options: RerankOptions) -> PairBatch:
        texts = self.tokenizer.ids([self._render(*pair) for pair in pairs])
        rows = [self._cut(ids, options.max_length) for ids in texts]
        return _batch(rows, [len(ids) - len(row) for ids, row in zip(texts, rows, strict=True)])

    def _render(self, query: str, passage: str) -> str:
        system = [("system", self.prompt)] if self.prompt else []
        messages = [
            {"role": role, "content": text if self.format == "flat" else [{"type": "text", "text": text}]}
            for role, text in (*system, ("query", query), ("document", passage))
        ]
        return str(self.wrapper.apply_chat_template(messages, tokenize=False))

    @cached_property
    def _suffix(self) -> Ids:
        """Returns the tokens that the template puts after the texts, those that two pairs have in common."""
        first, second = self.tokenizer.ids([self._render(text, text) for text in ("0", "1 2 3 4")])
        same = next((n for n, (a, b) in enumerate(zip(first[::-1], second[::-1], strict=False)) if a != b), 0)
        return first[len(first) - same :]

    def _cut(self, ids: Ids, length: int) -> Ids:
        if len(ids) < length:
            return ids
        kept, suffix = ids[:length], self._suffix[-length:]
        return [*kept[: len(kept) - len(suffix)], *suffix]


def _batch(rows: list[Ids], dropped: Sequence[int], starts: Sequence[int] | None = None) -> PairBatch:
    tokens = batch_of(rows, np.array(dropped, dtype=np.int32))
    return PairBatch(tokens, np.array([0] * len(rows) if starts is None else starts, dtype=np.int64))
