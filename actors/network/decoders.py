"""Implements the two decoders that no current transformers release runs: layerwise MiniCPM and cost-wise Gemma2.

Both are read from the published weight names and run packed. A score may be taken after any layer, so `states` returns
the normed state of each text's last token at the layers requested and stops at the deepest of them. Gemma2 can also
shorten the passages on its way. What this costs is that two architectures are written out here; it buys that they
neither follow nor break with the internals of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, linear
from transformers.activations import ACT2FN

from actors.checkpoints.files import CheckpointError
from actors.compute.resolve import Compute
from actors.network.attention import AttentionOptions, Segments, attend
from actors.outputs import IntArray, offsets_of, ranges
from actors.transfers import to_device

C = TypeVar("C")
Weights = dict[str, Tensor]
Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class MiniCPMConfig:
    """Holds config.json of a layerwise MiniCPM; defaults are those of its published configuration class."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    scale_emb: float = 1
    dim_model_base: float = 1
    scale_depth: float = 1
    start_layer: int = 8
    head_multi: bool = True
    head_type: str = "simple"


@dataclass(frozen=True, kw_only=True)
class Gemma2Config:
    """Holds config.json of a cost-wise Gemma2; defaults are those of its published configuration class."""

    vocab_size: int = 256000
    hidden_size: int = 3072
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    query_pre_attn_scalar: float = 224
    sliding_window: int | None = 4096
    final_logit_softcapping: float | None = 30.0
    start_layer: int = 28
    layer_sep: int = 28
    layer_wise: bool = False


def read_config(kind: type[C], values: Mapping[str, Any]) -> C:
    """Reads the known fields of a config.json; missing ones keep their defaults."""
    rope = values.get("rope_parameters") or {}
    values = {**rope, **({"rope_scaling": rope} if "factor" in rope else {}), **values}
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Projection:
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Layer:
    qkv: Projection
    out: Projection
    gate_up: Projection
    down: Projection
    norms: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Source:
    """Moves a checkpoint's tensors to the device: each leaves the dict as it is taken, so none is held twice."""

    weights: Weights
    compute: Compute

    def take(self, name: str) -> Tensor:
        if name not in self.weights:
            raise CheckpointError(f"the checkpoint has no weight {name}")
        return self.weights.pop(name).to(self.compute.device, self.compute.dtype)

    def projection(self, *names: str) -> Projection:
        """Concatenates several linear layers with one input into one."""
        biased = f"{names[0]}.bias" in self.weights
        weight = torch.cat([self.take(f"{name}.weight") for name in names])
        return Projection(weight, torch.cat([self.take(f"{name}.bias") for name in names]) if biased else None)

    def layer(self, name: str) -> Layer:
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        norms = [key for key in self.weights if key.startswith(f"{name}.") and key.endswith("layernorm.weight")]
        return Layer(
            self.projection(f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"),
            self.projection(f"{attention}.o_proj"),
            self.projection(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            self.projection(f"{mlp}.down_proj"),
            {key.removeprefix(f"{name}.").removesuffix(".weight"): self.take(key) for key in norms},
        )


class Decoder:
    """Holds what both share: embeddings, layers, final norm, rotary attention, a gated feed-forward."""

    def __init__(self, config: MiniCPMConfig | Gemma2Config, source: Source) -> None:
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
        self.eps, self.device = config.rms_norm_eps, source.compute.device
        self.words = source.take("model.embed_tokens.weight")
        self.norm = source.take("model.norm.weight")
        self.layers = [source.layer(f"model.layers.{i}") for i in range(config.num_hidden_layers)]

    def _attention(
        self, layer: Layer, x: Tensor, rotation: Rotation, segments: Segments, options: AttentionOptions
    ) -> Tensor:
        width = layer.qkv.weight.shape[0] // (self.heads + 2 * self.kv_heads)
        mixed = layer.qkv(x).view(len(x), -1, width)
        query, key, value = torch.split(mixed, [self.heads, self.kv_heads, self.kv_heads], 1)
        query, key = rotate(query, rotation), rotate(key, rotation)
        return layer.out(attend(query, key, value, segments, options).flatten(1))

    @staticmethod
    def _gated(layer: Layer, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        gate, up = layer.gate_up(x).chunk(2, -1)
        return layer.down(activation(gate) * up)


class MiniCPM(Decoder):
    """Implements Llama's block, with embeddings and residual branches scaled."""

    def __init__(self, config: MiniCPMConfig, source: Source) -> None:
        super().__init__(config, source)
        self.config = config
        self.width = config.hidden_size // config.num_attention_heads
        self.options = AttentionOptions(scale=self.width**-0.5, causal=True)
        self.activation = ACT2FN[config.hidden_act]

    @torch.inference_mode()
    def states(self, ids: Tensor, offsets: IntArray, layers: Collection[int]) -> dict[int, Tensor]:
        """Computes layer -> (n, h), the normed state of each text's last token after that many layers.

        ids: int64 (T,) on the device; offsets: int64 (n + 1,) on the host.
        """
        segments = Segments(offsets, self.device)
        ends = segments.cumulative[1:].long() - 1
        rotation = rotation_of(segments, self._frequencies(np.diff(offsets)))
        depth = self.config.scale_depth / math.sqrt(self.config.num_hidden_layers)
        x, found = embedding(ids, self.words) * self.config.scale_emb, {}
        for i in range(max(layers) + 1):
            if i in layers:
                found[i] = self._norm(x[ends], self.norm)
            if i < max(layers):
                layer = self.layers[i]
                inner = self._norm(x, layer.norms["input_layernorm"])
                x = x + depth * self._attention(layer, inner, rotation, segments, self.options)
                inner = self._norm(x, layer.norms["post_attention_layernorm"])
                x = x + depth * self._gated(layer, inner, self.activation)
        return found

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return normed(x, self.eps).to(x.dtype) * weight

    def _frequencies(self, lengths: IntArray) -> Tensor:
        """Returns float32 (n, width / 2), or (1, width / 2) if the text's length does not matter.

        Dynamic scaling depends on a text's own length, rounded up to 8 as upstream pads it. Upstream takes the longest
        that its process has seen so far, so that a score depends on what was scored before; for the first it agrees.
        """
        scaling, base = self.config.rope_scaling or {}, self.config.rope_theta
        kind, factor = scaling.get("type", scaling.get("rope_type")), scaling.get("factor", 1.0)
        if kind != "dynamic":
            plain = frequencies(np.array([base]), self.width, self.device)
            return plain / float(factor) if kind == "linear" else plain
        padded = np.maximum(-(-lengths // 8) * 8, self.config.max_position_embeddings)
        stretch = factor * padded / self.config.max_position_embeddings - (factor - 1)
        return frequencies(base * stretch ** (self.width / (self.width - 2)), self.width, self.device)


@dataclass(frozen=True, slots=True)
class Compression:
    """Averages groups of `ratio` neighbouring passage tokens before each of `layers`.

    starts, tails: int64 (n,), tokens of a text before its passage and after it; those stay as they are.
    """

    layers: Collection[int]
    ratio: int
    starts: IntArray
    tails: IntArray

    def __call__(self, x: Tensor, offsets: IntArray) -> tuple[Tensor, IntArray]:
        """Maps (T, h) and its offsets to the shorter (T', h) and its offsets."""
        lengths = np.diff(offsets)
        passages = np.maximum(lengths - self.starts - self.tails, 0)
        shorter = lengths - passages + -(-passages // self.ratio)
        places = ranges(np.zeros_like(lengths), lengths)
        starts, after = np.repeat(self.starts, lengths), np.repeat(self.starts + passages, lengths)
        grouped = starts + (places - starts) // self.ratio
        moved = places - np.repeat(lengths - shorter, lengths)
        slots = np.where(places < starts, places, np.where(places < after, grouped, moved))
        new_offsets = offsets_of(shorter)
        slots += np.repeat(new_offsets[:-1], lengths)
        counts = to_device(np.bincount(slots, minlength=int(new_offsets[-1])), x.device)
        sums = torch.zeros(int(new_offsets[-1]), x.shape[1], device=x.device)
        sums.index_add_(0, to_device(slots, x.device), x.float())
        return (sums / counts[:, None]).to(x.dtype), new_offsets


class Gemma2(Decoder):
    """Implements Gemma2's block: norms on both sides of each branch, and a window on every second layer.

    The published class runs on an attention function without Gemma2's soft capping of attention scores; so does this.
    """

    def __init__(self, config: Gemma2Config, source: Source) -> None:
        super().__init__(config, source)
        self.config = config
        scale = config.query_pre_attn_scalar**-0.5
        plain = AttentionOptions(scale, causal=True)
        self.layer_options = (replace(plain, window=config.sliding_window), plain)
        self.activation = ACT2FN[config.hidden_activation]

    @torch.inference_mode()
    def states(
        self, ids: Tensor, offsets: IntArray, layers: Collection[int], compression: Compression | None = None
    ) -> dict[int, Tensor]:
        """Computes layer -> (n, h), the normed state of each text's last token after that many layers.

        ids: int64 (T,) on the device; offsets: int64 (n + 1,) on the host. Where a layer is requested and compresses as
        well, its state is taken before.
        """
        x = embedding(ids, self.words)
        x = x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype)
        segments, rotation = self._segments(offsets)
        found = {}
        for i in range(max(layers) + 1):
            if i in layers:
                found[i] = self._norm(x[segments.cumulative[1:].long() - 1], self.norm)
            if i < max(layers):
                if compression is not None and i > 0 and i in compression.layers:
                    x, offsets = compression(x, offsets)
                    segments, rotation = self._segments(offsets)
                x = self._block(self.layers[i], x, rotation, segments, self.layer_options[i % 2])
        return found

    def _block(
        self, layer: Layer, x: Tensor, rotation: Rotation, segments: Segments, options: AttentionOptions
    ) -> Tensor:
        norms = layer.norms
        mixed = self._attention(layer, self._norm(x, norms["input_layernorm"]), rotation, segments, options)
        x = x + self._norm(mixed, norms["post_attention_layernorm"])
        gated = self._gated(layer, self._norm(x, norms["pre_feedforward_layernorm"]), self.activation)
        return x + self._norm(gated, norms["post_feedforward_layernorm"])

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return (normed(x, self.eps) * (1.0 + weight.float())).to(x.dtype)

    def _segments(self, offsets: IntArray) -> tuple[Segments, Rotation]:
        segments = Segments(offsets, self.device)
        base = np.array([self.config.rope_theta])
        return segments, rotation_of(segments, frequencies(base, self.config.head_dim, self.device))


def normed(x: Tensor, eps: float) -> Tensor:
    """Divides by the root mean square of the last axis, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def frequencies(bases: np.ndarray[Any, np.dtype[Any]], width: int, device: torch.device) -> Tensor:
    """Computes float32 (len(bases), width / 2): base ** (-2 i / width)."""
    powers = torch.arange(0, width, 2, device=device).float() / width
    return 1.0 / to_device(bases.astype(np.float32), device)[:, None] ** powers


def rotation_of(segments: Segments, inverse: Tensor) -> Rotation:
    """Computes cosines and sines (T, 1, width / 2), float32, of positions that restart with each text."""
    lengths, total = segments.cumulative.diff(), int(segments.offsets[-1])
    starts = torch.repeat_interleave(segments.cumulative[:-1], lengths, output_size=total)
    places = torch.arange(total, device=inverse.device) - starts
    if len(inverse) > 1:
        inverse = torch.repeat_interleave(inverse, lengths, 0, output_size=total)
    angles = (places[:, None] * inverse)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Applies rotary positions to (T, H, width): component i turns with component i + width / 2."""
    cos, sin = rotation
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)
