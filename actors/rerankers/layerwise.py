"""Implements layerwise MiniCPM rerankers: every layer from `start_layer` on has a head, so a pass may stop early.

A layer's own head scores it, in whatever order the layers are requested, and scores come back in that order. Upstream
takes heads by position in the request and layers in ascending order, so there only ascending requests are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.checkpoints.files import CheckpointError
from actors.checkpoints.loading import load_weights
from actors.compute.resolve import Compute, resolve_compute
from actors.network.decoders import MiniCPM, MiniCPMConfig, Source, read_config
from actors.rerankers import llm
from actors.rerankers.adapters import merge_lora
from actors.rerankers.engine import RerankOptions, Scorer
from actors.rerankers.flag_embedding import DecoderCompat
from actors.rerankers.loading import Checkpoint
from actors.rerankers.pairs import Layout, PairBatch, prompt_layout
from actors.text.tokenizer import TextTokenizer
from actors.transfers import to_device


def requested_layers(cutoffs: int | Sequence[int] | None, valid: range) -> tuple[int, ...]:
    """Returns the layers to score, as requested; None is the last.

    ValueError names the layers that the model can be cut at.
    """
    if cutoffs is None:
        return (valid[-1],)
    requested = (cutoffs,) if isinstance(cutoffs, int) else tuple(cutoffs)
    wrong = [layer for layer in requested if layer not in valid]
    if wrong or not requested:
        steps = f" in steps of {valid.step}" if valid.step > 1 else ""
        got = f"got {wrong[0]!r}" if wrong else "got none"
        raise ValueError(f"cutoff_layers: the model can be cut at layers {valid[0]} to {valid[-1]}{steps}, {got}")
    return requested


def always_bos(checkpoint: Checkpoint) -> int:
    """Returns the bos id: the layered models begin every text with it, even if it is the padding token."""
    bos = checkpoint.tokenizer.named.get("bos_token", checkpoint.config.get("bos_token_id"))
    if not isinstance(bos, int):
        raise CheckpointError(f"{checkpoint.folder}: neither the tokenizer nor config.json names a bos token")
    return bos


@dataclass(frozen=True, slots=True)
class Layerwise:
    """Holds a MiniCPM and its heads: float32 (layers from start_layer on, h), or (1, h) if all layers share one."""

    compute: Compute
    tokenizer: TextTokenizer
    decoder: MiniCPM
    heads: Tensor
    bos: int

    @property
    def cutoffs(self) -> range:
        return range(self.decoder.config.start_layer, self.decoder.config.num_hidden_layers + 1)

    def layout(self, options: RerankOptions) -> Layout:
        return prompt_layout(self.tokenizer, self.bos, llm.PROMPT if options.prompt is None else options.prompt)

    def outputs(self, options: RerankOptions) -> int:
        return len(self._requested_layers(options))

    @torch.inference_mode()
    def score(self, batch: PairBatch, layout: Layout, options: RerankOptions) -> Tensor:
        requested = self._requested_layers(options)
        ids = to_device(batch.tokens.ids.astype(np.int64), self.compute.device)
        states = self.decoder.states(ids, batch.tokens.offsets, set(requested))
        return torch.stack([states[layer].float() @ self._head(layer) for layer in requested], 1)

    def _requested_layers(self, options: RerankOptions) -> tuple[int, ...]:
        return requested_layers(options.cutoff_layers, self.cutoffs)

    def _head(self, layer: int) -> Tensor:
        return self.heads[layer - self.decoder.config.start_layer if self.decoder.config.head_multi else 0]


def load_layerwise(checkpoint: Checkpoint) -> Layerwise:
    config = read_config(MiniCPMConfig, checkpoint.config)
    compute = resolve_compute(checkpoint.compute, config)
    weights = load_weights(checkpoint.folder)
    if checkpoint.adapter is not None:
        merge_lora(weights, checkpoint.adapter)
    heads = _read_heads(config, weights, llm.yes_id(checkpoint.tokenizer)).to(compute.device)
    decoder = MiniCPM(config, Source(weights, compute))
    return Layerwise(compute, checkpoint.tokenizer, decoder, heads, always_bos(checkpoint))


def _read_heads(config: MiniCPMConfig, weights: dict[str, Tensor], yes: int) -> Tensor:
    """Returns the one row of each head that scores.

    `raw` and `complex` heads give the whole vocabulary, for an input divided by hidden size / base size. Upstream
    reads their flattened logits at the place of the last token, which means nothing; here it is the row of 'Yes'.
    One shared `raw` head may be tied to the embeddings, and is then not in the file.
    """
    inner = "weight" if config.head_type == "raw" else "linear_head.weight"
    count = config.num_hidden_layers - config.start_layer + 1
    names = [f"lm_head.{k}.{inner}" for k in range(count)] if config.head_multi else [f"lm_head.{inner}"]
    if names == ["lm_head.weight"]:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    missing = next((name for name in names if name not in weights), None)
    if missing is not None:
        raise CheckpointError(f"the checkpoint has no weight {missing}")
    whole = config.head_type in ("raw", "complex")
    rows = torch.stack([weights.pop(name)[yes if whole else 0].float() for name in names])
    return rows / (config.hidden_size / config.dim_model_base) if whole else rows


@dataclass
class LayerWiseFlagLLMReranker(DecoderCompat):
    """Implements FlagEmbedding's `LayerWiseFlagLLMReranker`: bge-reranker-v2-minicpm-layerwise.

    Arguments and defaults are upstream's, except that fp32 is what one gets without a flag, where upstream forces
    fp16. `compute_score` returns one list of floats, or one for each of several `cutoff_layers`, in that order.
    """

    cutoff_layers: int | Sequence[int] | None = None
    prompt: str | None = None
    batch_size: int = 128
    query_max_length: int | None = None
    max_length: int = 512
    normalize: bool = False

    @staticmethod
    def load(checkpoint: Checkpoint) -> Scorer:
        return load_layerwise(checkpoint)
