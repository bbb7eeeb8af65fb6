"""Tiny random Visualized-BGE checkpoints in the published layout: one state dict with five prefixes, as a `.pth`."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, BertConfig, PreTrainedModel, XLMRobertaConfig

from actors.vision.eva import EvaConfig
from tests.checkpoints import bert_tokenizer, linear, save_weights, xlmr_tokenizer
from tests.parity.eva_cases import tower_weights

WIDTH = 64
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
TOWER = EvaConfig(width=WIDTH, depth=2, hidden=80, patch=8, grid=4)


class Visualized(NamedTuple):
    folder: Path
    """Config, tokenizer and weights of the BGE model alone."""
    weights: Path
    model: PreTrainedModel
    """The BGE model with its pooler, from transformers."""


def build_visualized(kind: str, folder: Path) -> Visualized:
    """kind: `bert` or `xlmr`."""
    folder.mkdir(parents=True)
    if kind == "bert":
        config = BertConfig(vocab_size=bert_tokenizer(folder), max_position_embeddings=64, **SIZES)
    else:
        size = xlmr_tokenizer(folder)
        config = XLMRobertaConfig(vocab_size=size, max_position_embeddings=66, pad_token_id=1, **SIZES)
    save_weights(config, folder)
    model = AutoModel.from_pretrained(folder).eval()
    torch.save(published_state(model), folder / "visualized.pth")
    return Visualized(folder, folder / "visualized.pth", model)


def published_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What upstream's module saves, rotary buffers, final norm and CLIP head included."""
    state = {f"bge_{name}": tensor for name, tensor in model.state_dict().items()}
    state["bge_embeddings.position_ids"] = torch.arange(64)[None]
    tower = tower_weights(TOWER)
    for name in ("norm.weight", "norm.bias", "head.weight", "head.bias"):
        tower[name] = torch.zeros(WIDTH)
    for prefix in ("", "blocks.0.attn.", "blocks.1.attn."):
        tower |= {f"{prefix}rope.freqs_{part}": torch.zeros(16, 64) for part in ("cos", "sin")}
    state |= {f"model_visual.visual.{name}": tensor for name, tensor in tower.items()}
    state |= {f"visual_proj.{name}": tensor for name, tensor in linear("visual_proj", WIDTH, WIDTH).items()}
    state["model_visual.logit_scale"] = torch.zeros(())
    return state


def drawn(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    """A noisy RGB picture."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The picture as the bytes of a file of this format."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def hollow_png(width: int, height: int) -> bytes:
    """A PNG whose header promises this size; its data are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
