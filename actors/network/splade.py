"""Implements SPLADE: a masked language model's vocabulary scores, max-pooled over a text's tokens, log-saturated.

The head's (tokens x vocabulary) scores never exist as a whole: a slice of the vocabulary is scored for some hundred
tokens at a time, and only each text's maximum is kept. `log(1 + relu(x))` grows with x, so it is taken of the maxima,
once a text and not once a token, which is most of what the pooling costs elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.outputs import Array, IntArray, SparseVectors, offsets_of
from actors.transfers import to_device, to_host

TOKENS_TOGETHER = 512
"""Tokens that are scored together; texts are never split, so a longer one stands alone."""
TOKENS_TOGETHER_ON_GPU = 16384
"""The same on a GPU, which pools all texts of a group in one kernel: 128 MiB of scores in bf16."""
VOCABULARY_SLICE = 4096
"""Scores of so many vocabulary entries are held for those tokens at a time: 4 MB in bf16, which stays in the caches."""


@dataclass(frozen=True, slots=True, eq=False)
class SpladeHead:
    """Holds the language-model head and SPLADE's pooling.

    transform: (T, h) to (T, h), what the head does before the vocabulary. weight: (V, h); bias: (V,) or None.
    strategy: max or sum over tokens. saturations: how often log(1 + x) is taken (2 in OpenSearch's models).
    top_k, threshold: the largest top_k weights of a text are kept, and of them those above the threshold.
    """

    transform: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    strategy: str = "max"
    saturations: int = 1
    top_k: int | None = None
    threshold: float = 0.0

    @torch.inference_mode()
    def __call__(self, hidden: Tensor, offsets: IntArray) -> SparseVectors:
        """Computes one row of weights per text, ids ascending. hidden: (T, h); every text has at least one token."""
        groups = _groups(offsets, TOKENS_TOGETHER if hidden.device.type == "cpu" else TOKENS_TOGETHER_ON_GPU)
        pooled = [self._pool_group(hidden, group) for group in groups]
        if not pooled:
            return SparseVectors.empty(0)
        if hidden.device.type != "cpu":  # one copy for all
            return self._sparsify(*to_host(torch.cat(pooled)))
        return SparseVectors.join([self._sparsify(*to_host(table)) for table in pooled])

    def _pool_group(self, hidden: Tensor, offsets: IntArray) -> Tensor:
        """Computes the saturated weights of a group of texts, at most `top_k` of each above zero: float32 (n, V)."""
        states = self.transform(hidden[offsets[0] : offsets[-1]])
        bounds = offsets - offsets[0]
        on_device = None if hidden.device.type == "cpu" else to_device(bounds, hidden.device)
        pooled = torch.empty(len(offsets) - 1, len(self.weight), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(self.weight), VOCABULARY_SLICE):
            part = slice(start, start + VOCABULARY_SLICE)
            bias = None if self.bias is None else self.bias[part]
            scores = nn.functional.linear(states, self.weight[part], bias)
            if self.strategy == "sum":
                scores = self._saturate(scores.float())
            if on_device is not None:
                pooled[:, part] = torch.segment_reduce(scores, self.strategy, offsets=on_device)
                continue
            for i, (first, end) in enumerate(itertools.pairwise(bounds.tolist())):
                rows = scores[first:end]
                pooled[i, part] = rows.sum(0) if self.strategy == "sum" else rows.amax(0)
        return self._keep_largest(pooled if self.strategy == "sum" else self._saturate(pooled))

    def _saturate(self, scores: Tensor) -> Tensor:
        scores = scores.relu_()
        for _ in range(self.saturations):
            scores = scores.log1p_()
        return scores

    def _keep_largest(self, pooled: Tensor) -> Tensor:
        if self.top_k is None or self.top_k >= pooled.shape[1]:
            return pooled
        kept = pooled.topk(self.top_k, dim=1)
        return torch.zeros_like(pooled).scatter_(1, kept.indices, kept.values)

    def _sparsify(self, table: Array) -> SparseVectors:
        rows, ids = np.nonzero(table > self.threshold)
        counts = np.bincount(rows, minlength=len(table))
        return SparseVectors(offsets_of(counts), ids.astype(np.uint32), table[rows, ids])


def _groups(offsets: IntArray, tokens: int) -> list[IntArray]:
    """Returns offsets of runs of whole texts with at most so many tokens, or one text."""
    groups, first = [], 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + tokens, side="right")) - 1
        last = max(last, first + 1)
        groups.append(offsets[first : last + 1])
        first = last
    return groups


@dataclass(frozen=True, slots=True, eq=False)
class QueryTable:
    """Weights an inference-free query: each token that occurs gets its weight in the table (its IDF)."""

    weight: np.ndarray[Any, np.dtype[np.float32]]
    top_k: int | None = None
    threshold: float = 0.0

    def __call__(self, ids: IntArray, offsets: IntArray) -> SparseVectors:
        """Computes one row per text: every distinct token of weight above the threshold. ids: (T,)."""
        rows = [self._row(np.unique(ids[a:b])) for a, b in itertools.pairwise(offsets)]
        lengths = np.array([len(row) for row in rows], np.int64)
        joined = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return SparseVectors(offsets_of(lengths), joined.astype(np.uint32), self.weight[joined])

    def _row(self, ids: IntArray) -> IntArray:
        weights = self.weight[ids]
        ids, weights = ids[weights > self.threshold], weights[weights > self.threshold]
        if self.top_k is not None and self.top_k < len(ids):
            ids = np.sort(ids[np.argsort(-weights, kind="stable")[: self.top_k]])
        return ids


@dataclass(frozen=True, slots=True, eq=False)
class LanguageModelHead:
    """Applies transform, then multiplies with (V, h)."""

    transform: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None


def read_head(model: Any) -> LanguageModelHead:
    """Reads the masked-language-model head of a transformers model; ValueError names an unknown architecture."""
    decoder = model.get_output_embeddings()
    transform = _transform(model, model.config.model_type)
    if transform is None or not isinstance(decoder, nn.Linear):
        raise ValueError(
            f"{type(model).__name__}: its language-model head is not known here; SPLADE runs on the heads of "
            "BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, MPNet, ELECTRA, ModernBERT, NomicBERT and GTE"
        )
    bias = None if decoder.bias is None else decoder.bias.detach()
    return LanguageModelHead(transform, decoder.weight.detach(), bias)


def _transform(model: Any, kind: str) -> Callable[[Tensor], Tensor] | None:
    if kind in ("bert", "nomic_bert"):
        return _called(model.cls.predictions.transform)
    if kind in ("roberta", "xlm-roberta", "camembert", "mpnet", "gte", "jina_embeddings_v3"):
        head, act = model.lm_head, nn.functional.gelu
        return lambda x: head.layer_norm(act(head.dense(x)))
    if kind == "distilbert":
        act = model.activation
        return lambda x: model.vocab_layer_norm(act(model.vocab_transform(x)))
    if kind == "electra":
        return _called(model.generator_predictions)
    if kind == "modernbert":
        return _called(model.head)
    return None


def _called(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        y: Tensor = module(x)
        return y

    return run
