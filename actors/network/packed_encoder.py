"""Implements BERT and XLM-RoBERTa on packed tokens: they carry nearly all embedding work.

Against the transformers modules over the same packed tokens: one matrix product for query, key and value, no mask, no
dropout or cache bookkeeping, attention on views of that product. What it costs is this file, and a second place that
must agree with transformers; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, layer_norm, linear, pad

from actors.compute.batching import round_up_tokens
from actors.kernels.torch_private import has_packed_linear, pack_weight, packed_linear
from actors.network.attention import AttentionOptions, Counts, Segments, attend
from actors.network.encoder_checkpoint import EncoderConfig, EncoderWeights
from actors.outputs import IntArray

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


class Linear:
    """Computes `activation(x @ weight.T + bias)`.

    On a CPU the weight is kept in oneDNN's blocked layout, and the erf-GELU runs inside the product. torch's own
    linear copies the bias over the output first and reorders the weight in every call.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None, *, packed: bool = False) -> None:
        self.packed = packed
        self.weight = pack_weight(weight) if self.packed else weight
        self.bias = bias
        self.fused_gelu = self.packed and activation == "gelu"
        self.activation = None if activation is None or self.fused_gelu else activation_function(activation)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            y = packed_linear(x, self.weight, self.bias, fused_gelu=self.fused_gelu)
        else:
            y = linear(x, self.weight, self.bias)
        return y if self.activation is None else self.activation(y)


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """Returns the activation that transformers has under this name; erf-GELU does not need its import."""
    if name == "gelu":
        return gelu
    from transformers.activations import ACT2FN

    found: Callable[[Tensor], Tensor] = ACT2FN[name]
    return found


@dataclass(frozen=True, slots=True)
class Layer:
    qkv: Linear
    out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


class PackedEncoder:
    """Runs `BertModel` or `XLMRobertaModel` (and RoBERTa), without pooler, over packed tokens.

    compiled: everything of a layer but its attention goes through torch.compile, which fuses the elementwise passes.
    has_layers: False leaves the layers to a subclass.
    """

    def __init__(
        self, model: PreTrainedModel | EncoderWeights, compiled: bool = False, *, has_layers: bool = True
    ) -> None:
        config = model.config
        if config.is_decoder:
            raise ValueError("PackedEncoder: the checkpoint sets is_decoder, but this forward is bidirectional")
        self.config: PretrainedConfig | EncoderConfig = config
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.pad_id: int | None = None if config.model_type == "bert" else config.pad_token_id
        skipped = 0 if self.pad_id is None else self.pad_id + 1
        self.max_positions: int = config.max_position_embeddings - skipped
        self.heads: int = config.num_attention_heads
        self.options = AttentionOptions(scale=(config.hidden_size // config.num_attention_heads) ** -0.5)
        table = model.embeddings
        self.words, self.places = table.word_embeddings.weight, table.position_embeddings.weight
        self.kinds = table.token_type_embeddings.weight
        self.norm = read_norm(table.LayerNorm)
        self.packed: bool = model.device.type == "cpu" and has_packed_linear() and not compiled
        layers = model.encoder.layer if has_layers else []
        self.layers = [read_layer(layer, config.hidden_act, self.packed) for layer in layers]
        self.after_attention = torch.compile(_after_attention, dynamic=True) if compiled else _after_attention
        self.device: torch.device = model.device

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, offsets: IntArray, kinds: Tensor | None = None, *, attended: Counts | None = None
    ) -> Tensor:
        """Computes the last hidden states (T, h) of packed texts.

        ids: int64 (T,); offsets: int64 (n + 1,) on the host; kinds: int64 (T,) token types, 0 where None; attended:
        see `Segments`.
        """
        segments = Segments(offsets, ids.device, attended)
        return self._encode(self._embed(ids, segments, kinds), segments)

    @torch.inference_mode()
    def forward_embedded(self, x: Tensor, offsets: IntArray) -> Tensor:
        """Computes the last hidden states (T, h) of embedded tokens (T, h): positions added, norm applied."""
        return self._encode(x, Segments(offsets, x.device))

    def _encode(self, x: Tensor, segments: Segments) -> Tensor:
        tokens = len(x)
        if self.packed:
            x = pad(x, (0, 0, 0, round_up_tokens(tokens) - tokens))
        for layer in self.layers:
            x = self._layer(layer, x, segments)
        return x[:tokens]

    def _embed(self, ids: Tensor, segments: Segments, kinds: Tensor | None) -> Tensor:
        places = self._places(ids, segments)
        kind = self.kinds[0] if kinds is None else embedding(kinds, self.kinds)
        return self.norm(embedding(ids, self.words) + kind + embedding(places, self.places))

    def _places(self, ids: Tensor, segments: Segments) -> Tensor:
        """Computes each token's position in its text; RoBERTa counts from pad + 1 and skips literal pad tokens."""
        if segments.longest > self.max_positions:
            raise ValueError(f"a text has {segments.longest} tokens, the model takes {self.max_positions}")
        starts = segments.cumulative[:-1].long()
        lengths = segments.cumulative.diff()
        if self.pad_id is None:
            base = torch.repeat_interleave(starts, lengths, output_size=len(ids))
            return torch.arange(len(ids), device=ids.device) - base
        real = (ids != self.pad_id).long()
        seen = real.cumsum(0)
        before = torch.repeat_interleave((seen - real)[starts], lengths, output_size=len(ids))
        return (seen - before) * real + self.pad_id

    def _layer(self, layer: Layer, x: Tensor, segments: Segments) -> Tensor:
        return self.after_attention(layer, self._attention(layer, x, segments), x)

    def _attention(self, layer: Layer, x: Tensor, segments: Segments) -> Tensor:
        """Mixes values (T, h). Queries, keys and values are free again when the feed-forward layer needs memory."""
        query, key, value = layer.qkv(x).view(len(x), 3, self.heads, self.hidden_size // self.heads).unbind(1)
        return attend(query, key, value, segments, self.options).view_as(x)


def read_norm(module: nn.LayerNorm) -> Norm:
    return Norm(module.weight.detach(), module.bias.detach(), module.eps)


def _after_attention(layer: Layer, mixed: Tensor, x: Tensor) -> Tensor:
    x = layer.attention_norm(layer.out(mixed).add_(x))
    return layer.output_norm(layer.down(layer.up(x)).add_(x))


def join(*modules: nn.Linear, activation: str | None = None, packed: bool) -> Linear:
    """Concatenates several linear layers with one input into one."""
    weights, biases = [m.weight.detach() for m in modules], [m.bias.detach() for m in modules]
    return Linear(torch.cat(weights), torch.cat(biases), activation, packed=packed)


def read_layer(module: Any, activation: str, packed: bool) -> Layer:
    attention = module.attention
    return Layer(
        qkv=join(attention.self.query, attention.self.key, attention.self.value, packed=packed),
        out=join(attention.output.dense, packed=packed),
        attention_norm=read_norm(attention.output.LayerNorm),
        up=join(module.intermediate.dense, activation=activation, packed=packed),
        down=join(module.output.dense, packed=packed),
        output_norm=read_norm(module.output.LayerNorm),
    )
