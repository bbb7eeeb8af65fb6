"""Implements lightweight Gemma2 rerankers: scores from several layers, and passages compressed between layers.

Heads stand at start_layer, start_layer + layer_sep, ... Upstream gives the i-th layer requested (in ascending order)
the i-th head, so a single cutoff always runs on the head of `start_layer`; published scores were computed that way and
it is the default here. `heads_by_layer=True` gives every layer the head that was trained for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from actors.checkpoints.files import CheckpointError
from actors.checkpoints.loading import load_weights
from actors.compute.resolve import Compute, resolve_compute
from actors.network.decoders import Compression, Gemma2, Gemma2Config, Source, read_config
from actors.rerankers import llm
from actors.rerankers.adapters import merge_lora
from actors.rerankers.engine import RerankOptions, Scorer
from actors.rerankers.flag_embedding import DecoderCompat
from actors.rerankers.layerwise import always_bos, requested_layers
from actors.rerankers.loading import Checkpoint
from actors.rerankers.pairs import Layout, PairBatch, prompt_layout
from actors.text.tokenizer import TextTokenizer
from actors.transfers import to_device

PROMPT = "Predict whether passage B contains an answer to query A."
RATIOS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Lightweight:
    """Holds a Gemma2 and its heads: float32 (heads on the grid of layers, h)."""

    compute: Compute
    tokenizer: TextTokenizer
    decoder: Gemma2
    heads: Tensor
    bos: int

    @property
    def cutoffs(self) -> range:
        config = self.decoder.config
        return range(config.start_layer, config.num_hidden_layers + 1, config.layer_sep)

    def layout(self, options: RerankOptions) -> Layout:
        return prompt_layout(self.tokenizer, self.bos, PROMPT if options.prompt is None else options.prompt)

    def outputs(self, options: RerankOptions) -> int:
        if options.compress_ratio not in RATIOS:
            raise ValueError(f"compress_ratio must be one of {RATIOS}, got {options.compress_ratio!r}")
        return len(self._requested_layers(options))

    @torch.inference_mode()
    def score(self, batch: PairBatch, layout: Layout, options: RerankOptions) -> Tensor:
        requested, cap = self._requested_layers(options), self.decoder.config.final_logit_softcapping
        ids = to_device(batch.tokens.ids.astype(np.int64), self.compute.device)
        compression = _compression(batch, layout, options)
        states = self.decoder.states(ids, batch.tokens.offsets, set(requested), compression)
        heads = self._heads_of(requested, options.heads_by_layer)
        scores = [states[layer].float() @ self.heads[head] for layer, head in zip(requested, heads, strict=True)]
        return llm.softcapped(torch.stack(scores, 1), cap)

    def _requested_layers(self, options: RerankOptions) -> tuple[int, ...]:
        return requested_layers(options.cutoff_layers, self.cutoffs)

    def _heads_of(self, requested: tuple[int, ...], by_layer: bool) -> list[int]:
        places = list(self.cutoffs) if by_layer else sorted(set(requested))
        return [places.index(layer) for layer in requested]


def _compression(batch: PairBatch, layout: Layout, options: RerankOptions) -> Compression | None:
    if options.compress_ratio == 1:
        return None
    tails = np.full(len(batch), len(layout.tail), dtype=np.int64)
    return Compression(tuple(options.compress_layers), options.compress_ratio, batch.starts, tails)


def load_lightweight(checkpoint: Checkpoint) -> Lightweight:
    """Loads the model; CheckpointError if config.json lacks `layer_wise`: such a checkpoint has no scoring heads."""
    config = read_config(Gemma2Config, checkpoint.config)
    if not config.layer_wise:
        raise CheckpointError(
            f"{checkpoint.folder}: config.json does not set layer_wise, so there are no heads to score with"
        )
    compute = resolve_compute(checkpoint.compute, config)
    weights = load_weights(checkpoint.folder)
    if checkpoint.adapter is not None:
        merge_lora(weights, checkpoint.adapter)
    count = len(range(config.start_layer, config.num_hidden_layers + 1, config.layer_sep))
    source = Source(weights, replace(compute, dtype=torch.float32))
    heads = torch.cat([source.take(f"lm_head.{k}.linear_head.weight") for k in range(count)])
    decoder = Gemma2(config, Source(weights, compute))
    return Lightweight(compute, checkpoint.tokenizer, decoder, heads, always_bos(checkpoint))


@dataclass
class LightWeightFlagLLMReranker(DecoderCompat):
    """Implements FlagEmbedding's `LightWeightFlagLLMReranker`: bge-reranker-v2.5-gemma2-lightweight.

    Arguments and defaults are upstream's, except that fp32 is what one gets without a flag; `heads_by_layer` is ours.
    `compute_score` returns one list of floats, or one for each of several `cutoff_layers`, in that order.
    """

    cutoff_layers: int | Sequence[int] | None = None
    compress_layers: Sequence[int] = (8,)
    compress_ratio: int = 1
    prompt: str | None = None
    batch_size: int = 128
    query_max_length: int | None = None
    max_length: int = 512
    normalize: bool = False
    heads_by_layer: bool = False

    @staticmethod
    def load(checkpoint: Checkpoint) -> Scorer:
        return load_lightweight(checkpoint)
