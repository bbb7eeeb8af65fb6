"""Encodes texts for cross-encoders, which read only the first token (CLS): that row stays exact.

Where linear layers are bf16 the row's own products and its attention run in float32 all the same. It is one row of a
hundred, so on a CPU that costs no time that could be measured, and the error of a score falls to a quarter: what bf16
does to the other rows is averaged away by the attention that reads them. The last layer computes that row alone. The
price is a second copy of most weights. On a GPU that row is computed like all others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from actors.compute.batching import round_up_tokens
from actors.kernels.torch_private import has_packed_linear
from actors.network.attention import Segments, attend, attend_firsts
from actors.network.packed_encoder import Layer, PackedEncoder, join, read_layer
from actors.outputs import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FirstTokenEncoder(PackedEncoder):
    """Converts a float32 `model`'s linear layers to `dtype`; embeddings, norms and sums stay as they are."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        exact, packed = model.device.type == "cpu", has_packed_linear()
        layers = model.encoder.layer if exact else []
        queries = [join(layer.attention.self.query, packed=packed) for layer in layers]
        wide = [read_layer(x, model.config.hidden_act, packed=packed) for x in layers if dtype != torch.float32]
        for module in model.encoder.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        super().__init__(model)
        copies = wide or self.layers  # one copy where the rows do not differ
        self.firsts = [replace(layer, qkv=query) for layer, query in zip(copies, queries, strict=False)]
        """What the first rows go through on a CPU; their keys and values are computed with all others."""

    @torch.inference_mode()
    def first_states(self, ids: Tensor, offsets: IntArray, kinds: Tensor | None = None) -> Tensor:
        """Computes the last hidden state of each text's first token: float32 (n, h). Arguments as `forward`."""
        segments = Segments(offsets, ids.device)
        places = segments.cumulative[:-1].long()
        x = self._embed(ids, segments, kinds)
        return self._encode_firsts(x, places, segments) if self.firsts else self._encode(x, segments)[places]

    def _encode_firsts(self, x: Tensor, places: Tensor, segments: Segments) -> Tensor:
        first = x[places]
        x = pad(x, (0, 0, 0, round_up_tokens(len(x)) - len(x)))
        for layer, exact in zip(self.layers, self.firsts, strict=True):
            query, key, value = self._split(layer.qkv(_for(layer, x)))
            (first_query,) = self._split(exact.qkv(first))
            first = _after_attention(exact, attend_firsts(first_query, key, value, segments, self.options), first)
            if exact is not self.firsts[-1]:
                x = _after_attention(layer, attend(query, key, value, segments, self.options), x)
                x[places] = first
        return first

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Splits (T, c x h) into c views of (T, heads, h / heads)."""
        return projected.view(len(projected), -1, self.heads, self.hidden_size // self.heads).unbind(1)

    def _layer(self, layer: Layer, x: Tensor, segments: Segments) -> Tensor:
        query, key, value = self._split(layer.qkv(_for(layer, x)))
        return _after_attention(layer, attend(query, key, value, segments, self.options), x)


def _for(layer: Layer, x: Tensor) -> Tensor:
    return x.to(layer.qkv.weight.dtype)


def _after_attention(layer: Layer, mixed: Tensor, x: Tensor) -> Tensor:
    x = layer.attention_norm(layer.out(mixed.reshape(x.shape)) + x)
    return layer.output_norm(layer.down(layer.up(_for(layer, x))) + x)
