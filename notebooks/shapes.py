"""Draws coloured shapes, and trains a Visualized-BGE model small enough to lie beside a notebook.

    python notebooks/shapes.py notebooks/shapes_model      # makes the model of notebook 04 again, in minutes

No published picture model fits into a notebook that runs without a network. This one has 180,000 parameters in the
published layout: the same tower, the same fusion, the same weight names. It knows six colours, five shapes and a few
words, and nothing else.
"""

from __future__ import annotations

import math
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from actors.vision.eva import EvaConfig, EvaTower
from actors.vision.preprocess import normalised, pixels_of

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 200, 30),
    "purple": (140, 70, 180),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
KINDS = list(product(COLOURS, SHAPES))
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "an", "the", "in", "but", *COLOURS, *SHAPES)
TOWER = EvaConfig(width=64, depth=2, hidden=128, patch=8, grid=6)
SIDE = 96


def draw(colour: str, shape: str, rng: np.random.Generator) -> Image.Image:
    """One shape somewhere on a pale ground."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in rng.integers(215, 256, 3)))
    radius, turn = rng.uniform(20, 36), rng.uniform(-0.3, 0.3)
    x, y = rng.uniform(radius + 2, SIDE - radius - 2, 2)
    pen, fill = ImageDraw.Draw(image), COLOURS[colour]
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        corners = [(a + turn, r * radius) for a, r in _corners(shape)]
        pen.polygon([(x + r * math.sin(a), y - r * math.cos(a)) for a, r in corners], fill=fill)
    return image


def _corners(shape: str) -> list[tuple[float, float]]:
    """(angle, distance) of the corners, clockwise from the top."""
    if shape == "star":
        return [(i * math.pi / 5, 0.42 if i % 2 else 1.0) for i in range(10)]
    if shape == "cross":
        arm = [(-0.3, 1.0), (0.3, 1.0), (math.pi / 4, 0.42)]
        return [(i * math.pi / 2 + angle, distance) for i in range(4) for angle, distance in arm]
    sides = {"triangle": 3, "square": 4}[shape]
    return [(2 * math.pi * i / sides, 1.0) for i in range(sides)]


def write_pictures(folder: Path, count: int, seed: int = 1) -> list[dict[str, str]]:
    """Draws `count` PNG files of all kinds in turn; a row for each, with what it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        colour, shape = KINDS[i % len(KINDS)]
        draw(colour, shape, rng).save(folder / f"{i:04}.png")
        rows.append({"id": f"picture{i:04}", "colour": colour, "shape": shape, "image": f"{folder.name}/{i:04}.png"})
    return rows


class Trainee(nn.Module):
    """The three parts of Visualized-BGE under the names of the published state dict, with gradients."""

    def __init__(self, bge: BertModel) -> None:
        super().__init__()
        self.bge_embeddings, self.bge_encoder = bge.embeddings, bge.encoder
        self.model_visual = nn.ModuleDict({"visual": EvaTower(TOWER)})
        self.visual_proj = nn.Linear(TOWER.width, TOWER.width)
        for parameter in self.model_visual.parameters():
            if parameter.ndim > 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, pixels: Tensor | None = None) -> Tensor:
        """ids: (n, tokens), all of one length; pixels: (n, 3, side, side) or none. Unit vectors (n, 64)."""
        table, count = self.bge_embeddings, TOWER.patches
        if pixels is None:
            states = table(input_ids=ids)
        else:
            place = torch.arange(1, count + 1)
            seen = self.visual_proj(self.model_visual["visual"](pixels)[:, 1:]) + table.position_embeddings(place)
            later = torch.tensor([[0, *range(count + 1, count + ids.shape[1])]])
            text = table(input_ids=ids, position_ids=later)
            states = torch.cat([text[:, :1], table.LayerNorm(seen), text[:, 1:]], 1)
        return normalize(self.bge_encoder(states).last_hidden_state[:, 0], dim=-1)


def train(folder: Path, steps: int = 1600, seed: int = 0) -> Path:
    """Trains on freshly drawn shapes and writes config, tokenizer and `visualized.safetensors` (float16) into `folder`.

    Three tasks at once: words find pictures, pictures find words, and a picture with the name of another colour finds
    that shape in that colour.
    """
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=TOWER.width, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = Trainee(BertModel(config, add_pooling_layer=False))
    pictures = _drawn(seed, each=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        loss = _loss(model, pictures, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    path = folder / "visualized.safetensors"
    save_file(weights, path)
    path.chmod(0o644)
    return path


def _drawn(seed: int, each: int) -> Tensor:
    """(kinds, each, 3, side, side)"""
    rng = np.random.default_rng(seed)
    pixels = np.stack([pixels_of(draw(*kind, rng), TOWER.size) for kind in KINDS for _ in range(each)])
    return normalised(pixels, torch.device("cpu"), torch.float32).unflatten(0, (len(KINDS), each))


def _loss(model: Trainee, pictures: Tensor, rng: np.random.Generator) -> Tensor:
    every = torch.arange(len(KINDS))
    one, other = (pictures[every, torch.from_numpy(rng.integers(0, pictures.shape[1], len(KINDS)))] for _ in range(2))
    seen = model(_ids([""] * len(KINDS)), one)
    named = model(_ids([f"a {colour} {shape}" for colour, shape in KINDS]))
    wanted = rng.choice(list(COLOURS), len(KINDS))
    edited = model(_ids([f"but {colour}" for colour in wanted]), other)
    edits = torch.tensor([KINDS.index((colour, shape)) for colour, (_, shape) in zip(wanted, KINDS, strict=True)])
    scores = named @ seen.T * 20
    return cross_entropy(scores, every) + cross_entropy(scores.T, every) + cross_entropy(edited @ seen.T * 20, edits)


def _ids(texts: list[str]) -> Tensor:
    return torch.tensor([[2, *(WORDS.index(word) for word in text.split()), 3] for text in texts])


def _tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
