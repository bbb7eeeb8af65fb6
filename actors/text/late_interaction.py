"""Tokenises as ColBERT-type models do: a marker after the first token, queries padded with mask tokens, skip lists.

Query expansion adds tokens that a query is scored with; unless the model sets otherwise the encoder does not attend to
them, so they soak up the query's meaning without changing it. The skip list (punctuation, as a rule) drops document
tokens from the index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.checkpoints.files import CheckpointError
from actors.checkpoints.module_chain import LateInteraction
from actors.outputs import IntArray, TokenBatch
from actors.text.tokenizer import TextTokenizer, batch_of


@dataclass(frozen=True, slots=True, eq=False)
class TokenRules:
    """Holds a late-interaction model's rules as token ids. markers: of a query and of a document, None if unused."""

    tokenizer: TextTokenizer
    query_marker: int | None
    document_marker: int | None
    expansion_id: int | None
    expansion_length: int
    attends_expansion: bool
    truncates_query: bool
    skipped: tuple[int, ...]
    skips_queries: bool
    skips_documents: bool
    keep_only: tuple[int, ...] | None
    strips: bool

    def tokenise(self, texts: Iterable[str], is_query: bool, max_length: int) -> TokenBatch:
        """Tokenises to rows of at most `max_length` tokens, marker included; queries are expanded."""
        marker = self.query_marker if is_query else self.document_marker
        items = [text.strip() for text in texts] if self.strips else list(texts)
        batch = self.tokenizer.tokenise(items, max_length - (marker is not None))
        rows = [batch.ids[a:b].tolist() for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
        if marker is not None:
            rows = [[*row[:1], marker, *row[1:]] for row in rows]
        if not is_query or self.expansion_id is None:
            return batch_of(rows, batch.n_truncated)
        attended = np.array([len(row) for row in rows], np.int32)
        rows = [row + [self.expansion_id] * (self.expansion_length - len(row)) for row in rows]
        expanded = batch_of(rows, batch.n_truncated)
        if self.attends_expansion:
            return expanded
        return TokenBatch(expanded.ids, expanded.offsets, expanded.n_truncated, attended)

    def scored(self, ids: npt.NDArray[np.int32], is_query: bool) -> npt.NDArray[np.bool_]:
        """Returns which tokens become vectors: bool (T,)."""
        keep = np.ones(len(ids), bool)
        if self.skips_queries if is_query else self.skips_documents:
            keep &= ~np.isin(ids, self.skipped)
        if not is_query and self.keep_only is not None:
            keep &= np.isin(ids, self.keep_only)
        return keep


def token_rules(late: LateInteraction, tokenizer: TextTokenizer) -> TokenRules:
    """Converts the rules to ids of this tokenizer. CheckpointError if its vocabulary lacks one of the tokens."""
    expansion = late.expansion
    return TokenRules(
        tokenizer,
        _marker(late.query_marker, tokenizer),
        _marker(late.document_marker, tokenizer),
        None if expansion is None else _expansion_id(expansion.token, tokenizer),
        0 if expansion is None else expansion.length,
        expansion is not None and expansion.attend,
        expansion is not None and expansion.truncate,
        _skipped(late, tokenizer),
        bool(late.skiplist) and "query" in late.skip_tasks,
        bool(late.skiplist) and "document" in late.skip_tasks,
        late.keep_only,
        late.strips,
    )


def _marker(token: str | None, tokenizer: TextTokenizer) -> int | None:
    if token is None:
        return None
    found = tokenizer.backend.token_to_id(token)
    if found is None:
        raise CheckpointError(
            f"the tokenizer lacks the marker {token!r} of a late-interaction model: its vector would be untrained"
        )
    return int(found)


def _expansion_id(token: str | None, tokenizer: TextTokenizer) -> int:
    if tokenizer.pads_left:
        raise CheckpointError("query expansion needs a tokenizer that pads on the right; this one pads on the left")
    named = tokenizer.named
    found = named.get("mask_token", named.get("eos_token")) if token is None else tokenizer.backend.token_to_id(token)
    if found is None:
        raise CheckpointError(f"query expansion: the tokenizer has no {token or 'mask or end-of-sequence token'}")
    return int(found)


def _skipped(late: LateInteraction, tokenizer: TextTokenizer) -> tuple[int, ...]:
    unknown = tokenizer.named.get("unk_token")
    found = [tokenizer.backend.token_to_id(word) for word in late.skiplist]
    if late.skips_unknown:
        found = [unknown if token is None else token for token in found]
    elif unknown is not None:
        found = [None if token == unknown and word != tokenizer.backend.id_to_token(unknown) else token
                 for word, token in zip(late.skiplist, found, strict=True)]  # fmt: skip
    return tuple(sorted({int(token) for token in found if token is not None}))


def scored_offsets(scored: npt.NDArray[np.bool_], offsets: IntArray) -> IntArray:
    """Converts offsets to offsets counted in scored tokens: int64 (n + 1,)."""
    before: IntArray = np.concatenate([np.zeros(1, np.int64), np.cumsum(scored, dtype=np.int64)])
    return before[offsets]
