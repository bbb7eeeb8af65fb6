"""Loads the frozen encoder that heads are fitted on: any encoder-only checkpoint, with or without heads of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

from actors.checkpoints.loading import check_weights, fingerprint
from actors.compute.resolve import Compute, resolve_compute
from actors.embedders.base import UNWEIGHTED
from actors.fitting.card import check_existing_heads
from actors.fitting.result import FitConfig
from actors.fitting.states import States, compute_states
from actors.models.preparation import Kind, Preparation, load_preparation
from actors.network.backbone import Backbone, load_backbone
from actors.spec import EmbedderSpec, Pooling


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """Holds a frozen encoder with its tokenizer."""

    preparation: Preparation
    backbone: Backbone
    compute: Compute
    pooling: Pooling
    excluded: frozenset[int]

    @property
    def vocab(self) -> int:
        return max(self.backbone.vocab_size, self.preparation.tokenizer.vocab_size)


def load_encoder(config: FitConfig) -> Encoder:
    spec = EmbedderSpec(model=config.model, trust_remote_code=config.trust_remote_code, compute=config.compute)
    preparation = load_preparation(spec, chains=False)
    assert preparation.spec.pooling is not None, "the spec is complete"
    if preparation.spec.model_class not in ("encoder-only-base", "encoder-only-m3"):
        raise ValueError(f"{config.model} is {preparation.spec.model_class}; M3 heads are fitted on encoders")
    check_weights(preparation.folder)
    settings = AutoConfig.from_pretrained(preparation.folder, trust_remote_code=config.trust_remote_code)
    check_existing_heads(preparation.folder, settings.hidden_size)
    if config.colbert_dim is not None and not 1 <= config.colbert_dim <= settings.hidden_size:
        raise ValueError(
            f"colbert_dim must be between 1 and the encoder's {settings.hidden_size}, got {config.colbert_dim}"
        )
    compute = resolve_compute(config.compute, settings)
    backbone = load_backbone(preparation.folder, compute, trust_remote_code=config.trust_remote_code)
    named = preparation.tokenizer.named
    excluded = frozenset(named[role] for role in UNWEIGHTED if role in named)
    return Encoder(preparation, backbone, compute, preparation.spec.pooling, excluded)


def encode_texts(encoder: Encoder, texts: Sequence[str], kind: Kind, cache: Path) -> States:
    """Computes token states of the texts, or reads them from `cache` if they are cached."""
    cache.mkdir(parents=True, exist_ok=True)
    model = f"{fingerprint(encoder.preparation.folder)} {encoder.compute.dtype}"
    tokens = encoder.preparation.tokenise(texts, kind)
    return compute_states(encoder.backbone, tokens, encoder.excluded, encoder.compute.budget, cache, model)
