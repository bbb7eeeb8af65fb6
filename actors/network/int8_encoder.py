"""Runs BERT and XLM-RoBERTa with 8-bit matrix products, quantised when the weights are loaded.

Weights have one scale per output channel, activations one range per token and product, found as they appear: nothing is
calibrated and no weights are written. Attention runs in 8 bits on AVX512-VNNI (`actors.kernels.int8_attention`), in
float32 elsewhere; embeddings, residual sums, norms and heads stay in float32. What it costs is accuracy
(benchmarks/RESULTS.md, "int8": cosines to fp32 and the loss of search quality); in return products run at the speed of
8-bit dot products on processors that have them and no AMX. Without such instructions the same rounded numbers are
multiplied in fp32, which is slower than not to quantise at all.

Products run in oneDNN with packed weights; everything between two products is one pass over each row
(`actors.kernels.int8_rows`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from actors.compute.batching import round_up_tokens
from actors.kernels.int8_rows import QuantizedRows, add_and_normalize, apply_gelu, dequantize, quantize_rows
from actors.kernels.torch_private import has_int8_linear, int8_linear, pack_int8_weight
from actors.network.attention import Segments, attend
from actors.network.encoder_checkpoint import EncoderWeights
from actors.network.packed_encoder import Norm, PackedEncoder, activation_function, read_norm
from actors.outputs import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Attend = Callable[[Tensor, Tensor, Tensor, IntArray, float], Tensor]
HEAD_SIZES = (32, 64)
"""Dimensions of a head for which attention runs in 8 bits as well."""
ROWS_TOGETHER = 512
"""Rows whose products with a weight are held at a time: with 4,096 outputs 8 MB in float32."""
LARGEST_CODE = 127


@functools.cache
def int8_attention() -> Attend | None:
    """Returns `actors.kernels.int8_attention.attend` if numba and the processor can run it."""
    try:
        from actors.kernels import int8_attention as kernels
    except (ImportError, RuntimeError):  # no numba, or no folder where it may keep what it compiles
        return None
    return kernels.attend if kernels.available() else None


class Int8Linear:
    """Multiplies quantised rows with a weight of one or more linear layers that have one input.

    sums: for each output the sum of its dequantised weights, by which a row's lowest number is multiplied.
    """

    def __init__(self, name: str, *modules: Any) -> None:
        weight = torch.cat([module.weight.detach() for module in modules]).float()
        self.bias = torch.cat([module.bias.detach() for module in modules]).float()
        if not (torch.isfinite(weight).all() and torch.isfinite(self.bias).all()):
            raise ValueError(f"{name}: weights are not finite, int8 cannot represent them")
        self.scales = weight.abs().amax(1).clamp_min_(1e-30) / LARGEST_CODE
        codes = (weight / self.scales[:, None]).round_()
        self.sums = codes.sum(1) * self.scales
        self.is_packed = has_int8_linear()
        self.weight = pack_int8_weight(codes.to(torch.int8)) if self.is_packed else codes

    def __call__(self, codes: Tensor) -> Tensor:
        """Computes products as float32 (T, out), the weight's scales applied. codes: uint8 (T, in)."""
        if self.is_packed:
            return int8_linear(codes, self.weight, self.scales)
        return linear(codes.float(), self.weight).mul_(self.scales)


@dataclass(frozen=True, slots=True, eq=False)
class Int8Layer:
    qkv: Int8Linear
    out: Int8Linear
    attention_norm: Norm
    up: Int8Linear
    down: Int8Linear
    output_norm: Norm


class Int8Encoder(PackedEncoder):
    """Runs `BertModel` or `XLMRobertaModel` (and RoBERTa) as `PackedEncoder` does, with int8 products.

    Raises ValueError for weights that are not finite when it is made, and for activations that are not when it runs.
    """

    def __init__(self, model: PreTrainedModel | EncoderWeights) -> None:
        super().__init__(model, has_layers=False)
        self.activation = activation_function(self.config.hidden_act)
        self.is_gelu = self.config.hidden_act == "gelu"
        head = self.hidden_size // self.heads
        self.int8_attend = int8_attention() if head in HEAD_SIZES else None
        self.quantized = [_read_layer(f"layer {i}", layer) for i, layer in enumerate(model.encoder.layer)]

    def _encode(self, x: Tensor, segments: Segments) -> Tensor:
        tokens = len(x)
        x = pad(x, (0, 0, 0, round_up_tokens(tokens) - tokens))
        rows, mixed = (QuantizedRows.empty(len(x), self.hidden_size) for _ in range(2))
        quantize_rows(x, rows)
        for layer in self.quantized:
            self._attend(layer, x, rows, mixed, segments)
            for start in range(0, len(x), ROWS_TOGETHER):
                part = slice(start, start + ROWS_TOGETHER)
                self._feed_forward(layer, x[part], rows.part(part))
        if not torch.isfinite(rows.scale).all():
            raise ValueError("int8: the model's activations are not finite for this text")
        return x[:tokens]

    def _attend(
        self, layer: Int8Layer, x: Tensor, rows: QuantizedRows, mixed: QuantizedRows, segments: Segments
    ) -> None:
        """Replaces x (T, h), and its quantised rows, by the output of a layer's attention block."""
        qkv = layer.qkv(rows.codes)
        dequantize(qkv, rows, layer.qkv.sums, layer.qkv.bias)
        query, key, value = qkv.view(len(x), 3, self.heads, self.hidden_size // self.heads).unbind(1)
        if self.int8_attend is not None and segments.attended is None:
            attended = self.int8_attend(query, key, value, segments.offsets, self.options.scale)
        else:
            attended = attend(query, key, value, segments, self.options)
        quantize_rows(attended.view_as(x), mixed)
        _add_output(layer.out, mixed, x, layer.attention_norm, rows)

    def _feed_forward(self, layer: Int8Layer, x: Tensor, rows: QuantizedRows) -> None:
        """Replaces x (T, h), and its quantised rows, by the output of a layer's feed-forward block."""
        up, products = layer.up, layer.up(rows.codes)
        wide = QuantizedRows.empty(len(x), products.shape[1])
        if self.is_gelu:
            apply_gelu(products, rows, up.sums, up.bias, wide)
        else:
            dequantize(products, rows, up.sums, up.bias)
            quantize_rows(self.activation(products), wide)
        _add_output(layer.down, wide, x, layer.output_norm, rows)


def _add_output(layer: Int8Linear, rows: QuantizedRows, x: Tensor, norm: Norm, out: QuantizedRows) -> None:
    affine = norm.weight, norm.bias, norm.eps
    add_and_normalize(layer(rows.codes), rows, layer.sums, layer.bias, x, affine, out)


def _read_layer(name: str, module: Any) -> Int8Layer:
    attention = module.attention
    return Int8Layer(
        qkv=Int8Linear(name, attention.self.query, attention.self.key, attention.self.value),
        out=Int8Linear(name, attention.output.dense),
        attention_norm=read_norm(attention.output.LayerNorm),
        up=Int8Linear(name, module.intermediate.dense),
        down=Int8Linear(name, module.output.dense),
        output_norm=read_norm(module.output.LayerNorm),
    )
