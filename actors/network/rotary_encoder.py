"""Implements ModernBERT, NomicBERT and GTE on packed tokens: rotary positions and gated linear units (GLU).

They differ from BERT in three ways that one forward covers: queries and keys are rotated by their position instead of
adding a position to the embedding, the feed-forward layer is gated, and ModernBERT normalises before a block and lets
two layers of three see a local window only. Against the transformers modules this saves what `packed_encoder` saves;
against a padded batch also the padding, in attention and everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, pad
from torch.nn.functional import linear as torch_linear
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from actors.compute.batching import round_up_tokens
from actors.kernels.torch_private import has_packed_linear, pack_weight, packed_linear
from actors.network.attention import AttentionOptions, Counts, Segments, attend
from actors.outputs import IntArray
from actors.transfers import to_device

ROTARY_ENCODERS = frozenset({"modernbert", "nomic_bert", "gte"})
Rotation = tuple[Tensor, Tensor]
"""cos and sin, (T, 1, 1, d / 2) each."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """Computes `x @ weight.T + bias`; on a CPU the weight is kept in oneDNN's blocked layout."""

    weight: Tensor
    bias: Tensor | None
    packed: bool

    def __call__(self, x: Tensor) -> Tensor:
        if not self.packed:
            return torch_linear(x, self.weight, self.bias)
        return packed_linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class OptionalNorm:
    """Applies layer normalisation; ModernBERT's has no bias. weight None: the identity."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.weight is None else layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True, eq=False)
class GatedLayer:
    """Holds one layer's weights. up: gate and value in one product; kind: which rotations and windows apply."""

    qkv: Projection
    out: Projection
    attention_norm: OptionalNorm
    up: Projection
    down: Projection
    output_norm: OptionalNorm
    kind: str


class RotaryEncoder:
    """Runs `ModernBertModel`, `NomicBertModel` or `GteModel` without pooler, over packed tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        self.config: PretrainedConfig = config
        self.device: torch.device = model.device
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.max_positions: int = config.max_position_embeddings
        self.heads: int = config.num_attention_heads
        self.packed: bool = model.device.type == "cpu" and has_packed_linear()
        self.is_prenorm = config.model_type == "modernbert"
        self.words: Tensor = model.get_input_embeddings().weight
        reader = _Reader(self.packed)
        read = reader.modernbert if self.is_prenorm else reader.postnorm
        kinds = config.layer_types if self.is_prenorm else ["full_attention"] * config.num_hidden_layers
        modules: Any = model
        self.layers = [read(layer, kind) for layer, kind in zip(modules.layers, kinds, strict=True)]
        self.embedding_norm = _norm(modules.embeddings.norm if self.is_prenorm else modules.embeddings.LayerNorm)
        self.final_norm = _norm(modules.final_norm) if self.is_prenorm else OptionalNorm()
        self.token_type = None if self.is_prenorm else _first_token_type(modules.embeddings)
        self.activation: Callable[[Tensor], Tensor] = ACT2FN[
            config.hidden_activation if self.is_prenorm else config.hidden_act
        ]
        self.width: int = _head_width(config)
        positions = 512 if self.device.type == "cpu" else self.max_positions
        self.rotations = {
            kind: _Rotations(_rope(config, kind), self.width, positions, self.device) for kind in set(kinds)
        }
        plain = AttentionOptions(scale=self.width**-0.5)
        local = replace(plain, window=config.sliding_window + 1) if self.is_prenorm else plain
        self.options = {"full_attention": plain, "sliding_attention": local}

    @torch.inference_mode()
    def forward(self, ids: Tensor, offsets: IntArray, *, attended: Counts | None = None) -> Tensor:
        """Computes last hidden states (T, h), final norm applied. ids: int64 (T,); offsets: int64 (n + 1,) on the host.

        attended: see `Segments`.
        """
        segments, tokens = Segments(offsets, ids.device, attended), len(ids)
        if segments.longest > self.max_positions:
            raise ValueError(f"a text has {segments.longest} tokens, the model takes {self.max_positions}")
        x = embedding(ids, self.words)
        x = self.embedding_norm(x if self.token_type is None else x + self.token_type)
        rows = round_up_tokens(tokens) if self.packed else tokens
        x = pad(x, (0, 0, 0, rows - tokens))
        places = np.zeros(rows, np.int64)
        places[:tokens] = np.arange(tokens) - np.repeat(offsets[:-1], np.diff(offsets))
        on_device = to_device(places, ids.device)
        rotation = {kind: table.at(on_device, segments.longest, x.dtype) for kind, table in self.rotations.items()}
        for layer in self.layers:
            x = self._layer(layer, x, rotation[layer.kind], segments)
        return self.final_norm(x[:tokens])

    def _layer(self, layer: GatedLayer, x: Tensor, rotation: Rotation, segments: Segments) -> Tensor:
        if self.is_prenorm:
            x = x + self._attention(layer, layer.attention_norm(x), rotation, segments)
            return x + self._feed_forward(layer, layer.output_norm(x))
        x = layer.attention_norm(self._attention(layer, x, rotation, segments).add_(x))
        return layer.output_norm(self._feed_forward(layer, x).add_(x))

    def _attention(self, layer: GatedLayer, x: Tensor, rotation: Rotation, segments: Segments) -> Tensor:
        qkv = layer.qkv(x).view(len(x), 3, self.heads, self.width)
        query, key = _rotate(qkv[:, :2], rotation).unbind(1)
        mixed = attend(query, key, qkv[:, 2], segments, self.options[layer.kind])
        return layer.out(mixed.view(len(x), -1))

    def _feed_forward(self, layer: GatedLayer, x: Tensor) -> Tensor:
        gate, value = layer.up(x).chunk(2, dim=-1)
        return layer.down(self.activation(gate).mul_(value))


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotates each pair (i, i + d / 2) of a head's dimensions by its angle. x: (T, 2, H, d)."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class _Rotations:
    """Caches cos and sin by position.

    On a CPU the table grows with the longest text seen and is replaced as a whole, so that threads which share the
    model read either the old one or the new one. On a GPU it holds every position from the beginning (1 MiB for 8,192
    of 64 dimensions): a stream might still read a table that another one replaces.
    """

    def __init__(self, frequencies: tuple[float, float], width: int, positions: int, device: torch.device) -> None:
        base, self.scaling = frequencies
        self.device = device
        self.inverse = 1.0 / (base ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
        self.table = self._angles(positions)

    def _angles(self, length: int) -> Rotation:
        angles = torch.arange(length, dtype=torch.float32)[:, None] * self.inverse
        cos, sin = (part * self.scaling for part in (angles.cos(), angles.sin()))
        return cos[:, None, None].to(self.device), sin[:, None, None].to(self.device)

    def at(self, places: Tensor, longest: int, dtype: torch.dtype) -> Rotation:
        table = self.table
        if len(table[0]) < longest:
            table = self.table = self._angles(1 << (longest - 1).bit_length())
        cos, sin = (part[places].to(dtype) for part in table)
        return cos, sin


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any, kind: str) -> tuple[float, float]:
    """Returns base and scaling of the rotary embedding; ValueError for one that depends on the text's length."""
    parameters = config.rope_parameters
    parameters = parameters.get(kind) or parameters
    if parameters.get("rope_type", "default") != "default":
        raise ValueError(f"rotary positions of type {parameters['rope_type']!r} are not packed")
    return float(parameters["rope_theta"]), 1.0


def can_pack(config: Any) -> bool:
    """Returns whether `RotaryEncoder` runs this configuration: plain rotary positions, no mixture of experts."""
    if config.model_type not in ROTARY_ENCODERS:
        return False
    parameters = config.rope_parameters
    kinds = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    return all(kind.get("rope_type", "default") == "default" for kind in kinds)


def _norm(module: nn.Module) -> OptionalNorm:
    if not isinstance(module, nn.LayerNorm):
        return OptionalNorm()
    bias = None if module.bias is None else module.bias.detach()
    return OptionalNorm(module.weight.detach(), bias, module.eps)


def _first_token_type(embeddings: Any) -> Tensor | None:
    table = embeddings.token_type_embeddings
    if table is None:
        return None
    row: Tensor = table.weight.detach()[0]
    return row


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads layers of transformers' modules."""

    packed: bool

    def _join(self, *modules: Any) -> Projection:
        weight = torch.cat([module.weight.detach() for module in modules])
        biases = [module.bias.detach() for module in modules if module.bias is not None]
        if self.packed:
            weight = pack_weight(weight)
        return Projection(weight, torch.cat(biases) if biases else None, self.packed)

    def modernbert(self, layer: Any, kind: str) -> GatedLayer:
        return GatedLayer(
            self._join(layer.attn.Wqkv), self._join(layer.attn.Wo), _norm(layer.attn_norm),
            self._join(layer.mlp.Wi), self._join(layer.mlp.Wo), _norm(layer.mlp_norm), kind,
        )  # fmt: skip

    def postnorm(self, layer: Any, kind: str) -> GatedLayer:
        attention, mlp = layer.self_attn, layer.mlp
        return GatedLayer(
            self._join(attention.q_proj, attention.k_proj, attention.v_proj), self._join(attention.o_proj),
            _norm(layer.post_attention_layernorm), self._join(mlp.gate_proj, mlp.up_proj), self._join(mlp.down_proj),
            _norm(layer.post_mlp_layernorm), kind,
        )  # fmt: skip
