"""Joins a query and a passage into one row of token ids, never by way of text.

The rules are FlagEmbedding's on transformers 4: the query is cut to `query_max_length`, the passage to `max_length`,
and then the passage alone is cut further until the row fits. A `passage_max_length` cuts the passage first (upstream
takes that argument and ignores it). A passage that would vanish is left whole instead, so a row can exceed `max_length`
where the query alone nearly fills it. Beyond the positions that the model has, nothing exists to run: there the passage
is cut to what is left, and then the query, so that a row always fits the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.outputs import IntArray, TokenBatch, ranges
from actors.text.pairs import listed_pairs
from actors.text.tokenizer import TextTokenizer, batch_of

Ids = list[int]


@dataclass(frozen=True, slots=True)
class Layout:
    """Describes a row: head + query + middle + passage + tail.

    extra: tokens that a row may have beyond `max_length`. cuts_middle: the middle counts as the passage's beginning
    when the passage is cut. kinds: token types of the two halves, None if the model has a single type.
    positions: the longest row that the model can take, None if rotary positions set no limit.
    """

    head: tuple[int, ...]
    middle: tuple[int, ...]
    tail: tuple[int, ...]
    extra: int = 0
    cuts_middle: bool = False
    kinds: tuple[int, int] | None = None
    positions: int | None = None

    @property
    def frame(self) -> int:
        return len(self.head) + len(self.middle) + len(self.tail)


def encoder_layout(tokenizer: TextTokenizer, positions: int | None, has_types: bool) -> Layout:
    """Returns the frame that the tokenizer's post-processor puts around a pair of texts.

    has_types: whether the model marks the two halves by token type.
    """
    probe = tokenizer.backend.encode("a", "a", add_special_tokens=True)
    sides = probe.sequence_ids
    if 0 not in sides or 1 not in sides:
        raise ValueError("the tokenizer's post-processor drops one text of a pair")
    second = sides.index(1)
    after_first, after_second = (len(sides) - sides[::-1].index(side) for side in (0, 1))
    head, middle, tail = probe.ids[: sides.index(0)], probe.ids[after_first:second], probe.ids[after_second:]
    kinds = (probe.type_ids[0], probe.type_ids[second]) if has_types else None
    return Layout(tuple(head), tuple(middle), tuple(tail), kinds=kinds, positions=positions)


def prompt_layout(tokenizer: TextTokenizer, bos: int | None, prompt: str, positions: int | None = None) -> Layout:
    r"""Returns the layout bos, query, line break, passage, line break, prompt; each part is tokenised on its own.

    `max_length` limits everything before the last line break, and one line break and the prompt come free on top of
    it: upstream adds their lengths to the limit before it cuts, and appends them after.
    """
    separator, written = tokenizer.ids(["\n", prompt])
    tail = (*separator, *written)
    head = () if bos is None else (bos,)
    return Layout(head, tuple(separator), tail, extra=2 * len(tail), cuts_middle=True, positions=positions)


@dataclass(frozen=True, slots=True, eq=False)
class PairBatch:
    """Holds joined rows. starts: int64 (n,), the passage's place in each row, after head, query and middle."""

    tokens: TokenBatch
    starts: IntArray

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: IntArray) -> PairBatch:
        return PairBatch(self.tokens.take(rows), self.starts[rows])

    def kinds(self, layout: Layout) -> IntArray | None:
        """Returns token types int64 (T,): the layout's first up to the middle, its second from the passage on."""
        if layout.kinds is None:
            return None
        kinds = np.full(len(self.tokens.ids), layout.kinds[0], dtype=np.int64)
        lengths = self.tokens.lengths - self.starts
        kinds[ranges(self.tokens.offsets[:-1] + self.starts, lengths)] = layout.kinds[1]
        return kinds


def checked_pairs(pairs: Any) -> list[tuple[str, str]]:
    """Returns one (query, passage) or a list of them as a list; TypeError or ValueError names the wrong pair."""
    pairs = listed_pairs(pairs)
    if len(pairs) and isinstance(pairs[0], str):
        pairs = [pairs]
    return [_checked_pair(i, pair) for i, pair in enumerate(pairs)]


def _checked_pair(i: int, pair: Any) -> tuple[str, str]:
    if isinstance(pair, (str, bytes)) or not isinstance(pair, (Sequence, np.ndarray)):
        raise TypeError(f"pair {i} is {_named(pair)}, expected (query, passage)")
    if len(pair) != 2:
        raise ValueError(f"pair {i} has {len(pair)} elements, expected (query, passage)")
    for side, text in zip(("query", "passage"), pair, strict=True):
        if not isinstance(text, str):
            raise TypeError(f"pair {i}: the {side} is {_named(text)}, expected str")
    return str(pair[0]), str(pair[1])


def _named(value: object) -> str:
    return "None" if value is None else type(value).__name__


def token_ids(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[Ids]:
    """Tokenises without special tokens. A text that occurs again (a query with all its passages) is tokenised once."""
    unique = list(dict.fromkeys(texts))
    ids = dict(zip(unique, tokenizer.ids(unique), strict=True))
    return [ids[text] for text in texts]


def join(
    tokenizer: TextTokenizer,
    layout: Layout,
    queries: Sequence[Ids],
    passages: Sequence[Ids],
    query_max_length: int,
    max_length: int,
    passage_max_length: int | None = None,
) -> PairBatch:
    """Returns the rows of all pairs; `n_truncated` counts the tokens of both texts that were dropped."""
    rows, starts, dropped = [], [], []
    passage_limit = min(max_length, passage_max_length or max_length)
    for query, passage in zip(queries, passages, strict=True):
        first = [*layout.head, *tokenizer.cut(query, query_max_length)]
        second = [*layout.middle, *tokenizer.cut(passage, passage_limit)]
        second = _fit_length(tokenizer, layout, first, second, max_length)
        first, second = _fit_positions(layout, first, second)
        rows.append([*first, *second, *layout.tail])
        starts.append(min(len(first) + len(layout.middle), len(rows[-1])))
        dropped.append(len(query) + len(passage) + layout.frame - len(rows[-1]))
    tokens = batch_of(rows, np.array(dropped, dtype=np.int32))
    return PairBatch(tokens, np.array(starts, dtype=np.int64))


def _fit_length(tokenizer: TextTokenizer, layout: Layout, first: Ids, second: Ids, max_length: int) -> Ids:
    overflow = len(first) + len(second) + len(layout.tail) - max_length - layout.extra
    fixed = 0 if layout.cuts_middle else len(layout.middle)
    room = len(second) - fixed - overflow
    return second[:fixed] + tokenizer.cut(second[fixed:], room) if overflow > 0 and room > 0 else second


def _fit_positions(layout: Layout, first: Ids, second: Ids) -> tuple[Ids, Ids]:
    if layout.positions is None:
        return first, second
    room = max(0, layout.positions - len(layout.tail))
    first = first[: max(0, room - len(layout.middle))]
    return first, second[: room - len(first)]
