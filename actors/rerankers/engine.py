"""Implements the scoring engine of all four reranker classes: a score for each pair and requested layer.

Pairs are sorted by length and cut into passes by a token budget, which run side by side in the lanes that embedders
use, with their back-off where memory runs out; no pass is padded, so a score does not depend on which other pairs stand
beside it. What differs between the classes is a `Scorer`: how a pair is laid out, and what
happens between the tokens and the number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors.checkpoints.loading import fingerprint
from actors.compute.batch_executor import BatchExecutor
from actors.compute.batching import inverse_permutation
from actors.compute.resolve import Compute
from actors.outputs import IntArray
from actors.rerankers.loading import Checkpoint
from actors.rerankers.pairs import Layout, PairBatch, checked_pairs, join, token_ids
from actors.suggest import did_you_mean
from actors.text.prompts import PLAIN, instruct
from actors.transfers import to_host

Scores = npt.NDArray[np.float32]
NAMED_IF_SET = frozenset({"passage_max_length"})
"""Options that an identity leaves out unless they are set: they came later, and unset they change no score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankOptions:
    """Holds the options of a call under FlagEmbedding's names; a class ignores those that do not apply to it."""

    query_instruction_for_rerank: str | None = None
    query_instruction_format: str = PLAIN
    passage_instruction_for_rerank: str | None = None
    passage_instruction_format: str = PLAIN
    query_max_length: int | None = None
    """Tokens kept of a query; None: three quarters of `max_length`."""
    passage_max_length: int | None = None
    """Tokens kept of a passage; None: as many as `max_length` leaves."""
    max_length: int = 512
    normalize: bool = False
    """Logistic function of the score, into 0..1."""
    batch_size: int | None = None
    """Pairs in one pass at most; None: only the token budget counts."""
    prompt: str | None = None
    """Decoders: what follows the pair; None: the class's own."""
    cutoff_layers: int | Sequence[int] | None = None
    """Layered classes: the layers to score from, in any order; None: the last."""
    compress_layers: Sequence[int] = (8,)
    compress_ratio: int = 1
    """Lightweight: before each of `compress_layers`, 1, 2, 4 or 8 neighbours of the passage become their mean."""
    heads_by_layer: bool = False
    """Lightweight: True gives each layer the head trained for it; False picks heads by position among the
    requested layers, as upstream does and as published scores were computed."""

    def __post_init__(self) -> None:
        for name in ("max_length", "query_max_length", "passage_max_length", "batch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")

    @property
    def query_limit(self) -> int:
        return self.query_max_length or max(1, self.max_length * 3 // 4)

    def changed(self, changes: dict[str, Any]) -> RerankOptions:
        """Returns a copy with every option that is not None replaced; TypeError names one that does not exist."""
        known = [field.name for field in fields(self)]
        unknown = next((name for name in changes if name not in known), None)
        if unknown is not None:
            raise TypeError(f"unknown reranking option {unknown!r}{did_you_mean(unknown, known)}")
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


class Joiner(Protocol):
    """Writes pairs, instructions included, as rows of token ids."""

    def __call__(self, pairs: Sequence[tuple[str, str]], options: RerankOptions, /) -> PairBatch: ...


class Scorer(Protocol):
    """Holds a loaded model with its head."""

    @property
    def compute(self) -> Compute: ...

    @property
    def cutoffs(self) -> range:
        """Lists the layers that a score can be taken from; empty for a model with one score."""

    def layout(self, options: RerankOptions) -> Layout: ...

    def outputs(self, options: RerankOptions) -> int:
        """Counts the scores per pair. ValueError if the options request what the model lacks."""

    def score(self, batch: PairBatch, layout: Layout, options: RerankOptions) -> Tensor:
        """Returns float32 (n, outputs), on the model's device."""


class Reranker:
    """Scores pairs by a loaded model. It keeps no state between calls, so any number of threads may share it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        scorer: Scorer,
        options: RerankOptions,
        joiner: Joiner | None = None,
        pipeline: str | None = None,
    ) -> None:
        """joiner: writes pairs as rows of token ids; None: by FlagEmbedding's rules, in the scorer's layout.

        pipeline: what the folder's settings add to the weights (activation, joining); part of the identity if set.
        """
        self.pipeline = pipeline
        self.checkpoint, self.tokenizer, self.joiner = checkpoint, checkpoint.tokenizer, joiner
        self.scorer, self.options, self.executor = scorer, options, BatchExecutor(scorer.compute)
        scorer.outputs(options)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a loaded Reranker cannot be pickled or copied; load it where it is needed (load_reranker), or use "
            "FlagReranker and the like, which can"
        )

    @property
    def compute(self) -> Compute:
        return self.scorer.compute

    @property
    def cutoffs(self) -> range:
        """Lists the layers that `cutoff_layers` may name; empty for a model with one score."""
        return self.scorer.cutoffs

    def compute_score(self, pairs: Any, **changes: Any) -> list[float] | list[list[float]]:
        """Scores one (query, passage) or a list of them, in order, as Python floats.

        A list of lists, one for each of `cutoff_layers` as requested, where there are several; else one list. `changes`
        are fields of `RerankOptions`, for this call alone. Raises TypeError or ValueError that names the pair.
        """
        return score_lists(self.score_pairs(checked_pairs(pairs), self.options.changed(changes)))

    def score(self, query: str, passages: Sequence[str], **changes: Any) -> Scores:
        """Scores one query against its passages: float32 (n,).

        With several cutoff layers, the score of the last one.
        """
        pairs = checked_pairs([(query, passage) for passage in passages])
        return np.ascontiguousarray(self.score_pairs(pairs, self.options.changed(changes))[:, -1])

    def score_pairs(self, pairs: Sequence[tuple[str, str]], options: RerankOptions | None = None) -> Scores:
        """Scores pairs: float32 (n, k), k the number of requested cutoff layers, 1 for classes without layers."""
        options = options or self.options
        width = self.scorer.outputs(options)
        if not pairs:
            return np.zeros((0, width), dtype=np.float32)
        layout = self.scorer.layout(options)
        batch = self._join(pairs, layout, options)

        def score(rows: IntArray) -> Scores:
            parts = _at_most(options.batch_size, rows)
            return to_host(torch.cat([self.scorer.score(batch.take(part), layout, options) for part in parts]))[0]

        order, parts = self.executor.run(batch.tokens.lengths, score)
        scores = np.concatenate(parts)[inverse_permutation(order)]
        return _logistic(scores) if options.normalize else scores

    def _join(self, pairs: Sequence[tuple[str, str]], layout: Layout, options: RerankOptions) -> PairBatch:
        queries = instruct(
            [q for q, _ in pairs], options.query_instruction_for_rerank, options.query_instruction_format
        )
        passages = instruct(
            [p for _, p in pairs], options.passage_instruction_for_rerank, options.passage_instruction_format
        )
        if self.joiner is not None:
            return self.joiner(list(zip(queries, passages, strict=True)), options)
        return join(
            self.tokenizer, layout, token_ids(self.tokenizer, queries), token_ids(self.tokenizer, passages),
            options.query_limit, options.max_length, options.passage_max_length,
        )  # fmt: skip

    def identity(self) -> dict[str, str]:
        """Returns what the scores depend on besides the texts; weights and tokenizer are sha256 sums."""
        given = {field.name: getattr(self.options, field.name) for field in fields(self.options)}
        options = {name: repr(value) for name, value in given.items() if name not in NAMED_IF_SET or value is not None}
        return {
            "weights": fingerprint(self.checkpoint.folder),
            "tokenizer": self.tokenizer.sha256,
            "adapter": str(self.checkpoint.adapter),
            "dtype": str(self.compute.dtype),
            **({} if self.pipeline is None else {"pipeline": self.pipeline}),
            **options,
        }


def score_lists(scores: Scores) -> list[float] | list[list[float]]:
    """Converts (n, k) to upstream's form: a list of n floats, or of k such lists if k > 1."""
    columns: list[list[float]] = scores.T.astype(np.float64).tolist()
    return columns[0] if len(columns) == 1 else columns


def _at_most(size: int | None, rows: IntArray) -> list[IntArray]:
    return [rows] if size is None else np.split(rows, range(size, len(rows), size))


def _logistic(scores: Scores) -> Scores:
    return (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
