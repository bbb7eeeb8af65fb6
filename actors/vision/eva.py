"""Implements the vision tower of EVA02-CLIP in plain torch, under the names of the published weights.

timm has the same tower, but needs torchvision, which drags in gigabytes; this is its forward pass alone. Its sizes are
read off the weights, so that the base and the large tower (and tiny ones in tests) are one class. Positions are learned
and rotary at once: rotary angles of a grid are those of the 16 x 16 grid of pre-training, stretched over it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu

HEAD_WIDTH = 64
NORM_EPS = 1e-6
ROPE_GRID = 16
ROPE_BASE = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaConfig:
    """Holds the sizes of a tower; `width` is a multiple of 64, the width of every attention head."""

    width: int
    depth: int
    hidden: int
    """Width inside the gated layers."""
    patch: int
    """Side of a patch in pixels."""
    grid: int
    """Patches along a side of the picture."""

    @property
    def size(self) -> int:
        """Returns the side of the square picture in pixels."""
        return self.patch * self.grid

    @property
    def patches(self) -> int:
        return self.grid**2


def config_of(weights: Mapping[str, Tensor]) -> EvaConfig:
    """Reads the sizes off a tower's weights (published names); KeyError if one that has a size is missing."""
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    patches = weights["pos_embed"].shape[1] - 1
    return EvaConfig(
        width=weights["cls_token"].shape[-1],
        depth=len(blocks),
        hidden=weights["blocks.0.mlp.w1.weight"].shape[0],
        patch=weights["patch_embed.proj.weight"].shape[-1],
        grid=round(patches**0.5),
    )


@functools.cache
def rope_table(grid: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Computes cosines and sines of `rope_angles` once per device; they are computed on the host, to be shared."""
    angles = rope_angles(grid)
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def rope_angles(grid: int) -> Tensor:
    """Computes float32 (grid * grid, 64): the angle of each channel, rows in the first half, columns in the second."""
    bands = ROPE_BASE ** -(torch.arange(HEAD_WIDTH // 4, dtype=torch.float32) / (HEAD_WIDTH // 4))
    places = torch.arange(grid, dtype=torch.float32) / grid * ROPE_GRID
    angles = places[:, None] * bands
    rows, columns = angles[:, None].expand(-1, grid, -1), angles[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1).repeat_interleave(2, -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates channel pairs (0, 1), (2, 3), ... of the patches (RoPE); the class token, first, has no position."""
    first, patches = x[:, :, :1], x[:, :, 1:]
    turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], -1).flatten(-2)
    return torch.cat([first, patches * cos + turned * sin], 2)


class Attention(nn.Module):
    """Computes rotary attention without key bias, a LayerNorm before the output layer."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        width = config.width
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.inner_attn_ln = nn.LayerNorm(width, eps=NORM_EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = (x.shape[0], x.shape[1], -1, HEAD_WIDTH)
        query = linear(x, self.q_proj.weight, self.q_bias).view(heads).transpose(1, 2)
        key = self.k_proj(x).view(heads).transpose(1, 2)
        value = linear(x, self.v_proj.weight, self.v_bias).view(heads).transpose(1, 2)
        mixed = scaled_dot_product_attention(rotate(query, cos, sin), rotate(key, cos, sin), value)
        out: Tensor = self.proj(self.inner_attn_ln(mixed.transpose(1, 2).flatten(2)))
        return out


class GatedLayers(nn.Module):
    """Computes SwiGLU with a LayerNorm before the layer that narrows."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.hidden)
        self.w2 = nn.Linear(config.width, config.hidden)
        self.ffn_ln = nn.LayerNorm(config.hidden, eps=NORM_EPS)
        self.w3 = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w3(self.ffn_ln(silu(self.w1(x)) * self.w2(x)))
        return out


class Block(nn.Module):
    """Implements one transformer block: attention and gated layers, each added to its input."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = GatedLayers(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbedding(nn.Module):
    """Embeds patches of pixels by a convolution whose stride is the patch size."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch, config.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.proj(pixels).flatten(2).transpose(1, 2)
        return out


class EvaTower(nn.Module):
    """Turns pixels into token states; the final norm and the CLIP head of the published tower are not part of it."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, config.width))
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps (n, 3, size, size) to (n, 1 + patches, width): class token first, before the final norm."""
        patches = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1) + self.pos_embed
        cos, sin = rope_table(self.config.grid, x.dtype, pixels.device)
        for block in self.blocks:
            x = block(x, cos, sin)
        return x
