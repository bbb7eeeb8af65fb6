"""Implements encoder cross-encoders: a pair is encoded as one text, and its first token's state becomes the score.

BERT and XLM-RoBERTa, which is nearly every published reranker, run on our packed encoder; anything else that
transformers loads for sequence classification runs padded through its own code. The head is a few thousand
multiplications, so it stays in float32 even where the encoder does not.

In half precision only matrix products and attention are halved: embeddings, norms and the sums between layers stay in
float32, and on a CPU so does the first token's own row (`actors.network.first_token_encoder`). Neither costs time that
could be measured on a CPU; together they reduce the error of a score to a tenth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

from actors.compute.resolve import Compute, resolve_compute
from actors.models.catalogue import ENCODERS, max_positions
from actors.network.backbone import load_pretrained
from actors.network.first_token_encoder import FirstTokenEncoder
from actors.outputs import IntArray, ranges
from actors.rerankers.engine import RerankOptions, Scorer
from actors.rerankers.flag_embedding import RerankerCompat
from actors.rerankers.loading import Checkpoint
from actors.rerankers.pairs import Layout, PairBatch, encoder_layout
from actors.text.prompts import PLAIN
from actors.transfers import to_device

Logits = Callable[[Tensor, IntArray, Tensor | None], Tensor]
"""int64 ids (T,), host offsets (n + 1,), token types (T,) or None -> (n, 1)."""


@dataclass(frozen=True, slots=True)
class CrossEncoder:
    """Scores pairs by any encoder architecture, with one layout and one score per pair."""

    compute: Compute
    frame: Layout
    logits: Logits

    @property
    def cutoffs(self) -> range:
        return range(0)

    def layout(self, options: RerankOptions) -> Layout:
        return self.frame

    def outputs(self, options: RerankOptions) -> int:
        return 1

    @torch.inference_mode()
    def score(self, batch: PairBatch, layout: Layout, options: RerankOptions) -> Tensor:
        device, kinds = self.compute.device, batch.kinds(layout)
        ids = to_device(batch.tokens.ids.astype(np.int64), device)
        types = None if kinds is None else to_device(kinds, device)
        return self.logits(ids, batch.tokens.offsets, types).float()


def load_cross_encoder(checkpoint: Checkpoint) -> CrossEncoder:
    """Loads a cross-encoder; ValueError if it has another number of labels than one, or no classification head."""
    if checkpoint.adapter is not None:
        raise ValueError("peft_path: adapters are merged into decoders only")
    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
    if config.num_labels != 1:
        raise ValueError(f"{checkpoint.folder} has {config.num_labels} labels; a reranker gives one score a pair")
    compute = resolve_compute(checkpoint.compute, config)
    has_types = getattr(config, "type_vocab_size", 0) > 1
    limit = max_positions(checkpoint.folder)
    layout = encoder_layout(checkpoint.tokenizer, limit, has_types)
    return CrossEncoder(compute, layout, _logits(checkpoint, config, compute))


def _logits(checkpoint: Checkpoint, config: PretrainedConfig, compute: Compute) -> Logits:
    packed = config.model_type in ENCODERS
    model = load_pretrained(
        AutoModelForSequenceClassification,
        checkpoint.folder,
        replace(compute, dtype=torch.float32) if packed else compute,
        config,
        trust_remote_code=checkpoint.trust_remote_code,
    )
    if not packed:
        return _Padded(model, config.pad_token_id or 0)
    encoder, head = FirstTokenEncoder(model.base_model, compute.dtype), model.classifier.float()
    if config.model_type == "bert":
        pooler = model.base_model.pooler.float()
        return _Packed(encoder, lambda first: head(pooler(first)))
    return _Packed(encoder, head)


@dataclass(frozen=True, slots=True)
class _Packed:
    """Runs the classifier on packed tokens."""

    encoder: FirstTokenEncoder
    head: Callable[[Tensor], Tensor]
    """(n, 1, h) float32, the first token of each text, to (n, 1)."""

    def __call__(self, ids: Tensor, offsets: IntArray, types: Tensor | None) -> Tensor:
        return self.head(self.encoder.first_states(ids, offsets, types)[:, None])


@dataclass(frozen=True, slots=True)
class _Padded:
    """Runs the classifier on right-padded batches."""

    model: Any
    pad_id: int

    def __call__(self, ids: Tensor, offsets: IntArray, types: Tensor | None) -> Tensor:
        lengths = np.diff(offsets)
        shape = (len(lengths), int(lengths.max()))
        where = to_device(ranges(np.arange(shape[0]) * shape[1], lengths), ids.device)

        def padded(values: Tensor, fill: int) -> Tensor:
            rows = values.new_full(shape, fill)
            rows.view(-1)[where] = values
            return rows

        extra = {} if types is None else {"token_type_ids": padded(types, 0)}
        logits: Tensor = self.model(padded(ids, self.pad_id), padded(torch.ones_like(ids), 0), **extra).logits
        return logits


@dataclass
class FlagReranker(RerankerCompat):
    """Implements FlagEmbedding's `FlagReranker`: encoder rerankers such as bge-reranker-v2-m3.

    Arguments and defaults are upstream's; `use_bf16` is ours. `compute_score` returns a list of floats, always.
    """

    model_name_or_path: str
    use_fp16: bool = False
    query_instruction_for_rerank: str | None = None
    query_instruction_format: str = PLAIN
    passage_instruction_for_rerank: str | None = None
    passage_instruction_format: str = PLAIN
    trust_remote_code: bool = False
    cache_dir: str | None = None
    devices: str | int | list[str] | list[int] | None = None
    batch_size: int = 128
    query_max_length: int | None = None
    max_length: int = 512
    normalize: bool = False
    use_bf16: bool = False

    auto_class: ClassVar[str | None] = "AutoModelForSequenceClassification"

    @staticmethod
    def load(checkpoint: Checkpoint) -> Scorer:
        """Loads the encoder and its classification head."""
        return load_cross_encoder(checkpoint)
