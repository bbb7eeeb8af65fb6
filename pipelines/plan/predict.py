"""Predicts the speed of a model on a card that is not here: a formula with stated efficiencies, not a measurement.

Seconds per token = products / (rate x e1) + attention / (rate x e2) + elementwise bytes / (bandwidth x e3), because a
GPU does these one after the other. Copies to the host and writing happen meanwhile: the slower of the three sets the
pace. Rates, bandwidths and memory are those of the vendors' data sheets, dense and in half precision; the efficiencies
are estimates (`EFFICIENCY`), so a prediction is a range. `benchmarks/encode_gpu.py` prints prediction and measurement
side by side on a card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.codecs.pooling import sequential_group_size
from actors.codecs.table import get_codec
from actors.compute.cost import ModelShape, choose_budget, read_shape
from actors.outputs import IntArray
from pipelines.config import ConfigError
from pipelines.indexing.sizing import estimate_output_bytes


@dataclass(frozen=True, slots=True)
class Card:
    """Holds a card's data sheet: FLOP/s and bytes/s."""

    name: str
    flops: float
    """Of dense products in half precision."""
    memory: float
    bandwidth: float
    link: float
    """To the host, one way, from pinned memory."""
    flash: bool = True
    """Variable-length flash attention runs: Ampere and later."""


CARDS: dict[str, Card] = {
    "t4": Card("T4 16 GB", 65e12, 16e9, 320e9, 12e9, flash=False),
    "l4": Card("L4 24 GB", 121e12, 24e9, 300e9, 24e9),
    "a10": Card("A10 24 GB", 125e12, 24e9, 600e9, 24e9),
    "a100": Card("A100 SXM 80 GB", 312e12, 80e9, 2039e9, 24e9),
    "h100": Card("H100 SXM 80 GB", 989e12, 80e9, 3350e9, 50e9),
    "h200": Card("H200 SXM 141 GB", 989e12, 141e9, 4800e9, 50e9),
}
EFFICIENCY: Mapping[str, tuple[float, float, float]] = {
    "products": (0.40, 0.55, 0.70),
    "attention": (0.20, 0.35, 0.50),
    "memory": (0.60, 0.75, 0.85),
    "host link": (0.50, 0.80, 0.90),
    "writing": (0.5, 1.0, 2.0),
}
"""Shares of the data sheet that kernels reach: pessimistic, likely, optimistic; of `WRITE_BYTES` for writing.

This project has not measured them yet.
"""
WITHOUT_FLASH = 0.25
"""Factor on attention's efficiency where every length of a batch is a call of its own."""
WRITE_BYTES = 1e9
"""Bytes per second that one machine writes: a local NVMe disk."""
UPLOADED_BYTES = 24
"""Per token: token id, place in the text, place of its ColBERT vector."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Holds what one card is expected to do with one model."""

    card: str
    tokens_per_second: float
    low: float
    high: float
    budget: int
    limit: str
    """What sets the pace: products, attention, memory, host link or writing."""
    shares: dict[str, float]
    """Seconds of each part over the seconds per token; those of host link and writing pass meanwhile."""
    fits: bool
    """The weights and one pass fit into the card's memory."""

    def text(self) -> str:
        parts = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        memory = "" if self.fits else "; THE WEIGHTS DO NOT FIT INTO ITS MEMORY"
        return (
            f"{self.card}: about {self.tokens_per_second:,.0f} tokens/s ({self.low:,.0f} to {self.high:,.0f}), limited "
            f"by {self.limit} ({parts}), {self.budget:,} tokens in a pass{memory}"
        )


def find_card(name: str) -> Card:
    """Looks a card up by name; ConfigError lists the names."""
    if name.lower() not in CARDS:
        raise ConfigError(f"no data sheet of a card {name!r}; there are {', '.join(CARDS)}")
    return CARDS[name.lower()]


def predict_embedder(card: Card, config: Any, described: Mapping[str, Any], lengths: IntArray) -> Prediction:
    """Predicts an embedder's speed from its configuration, its identity and the tokens of sampled texts.

    ConfigError for an architecture without a formula.
    """
    heads = {"colbert": described["colbert_dim"] or 0} if "colbert" in described["outputs"] else {}
    if described.get("model_class") == "sparse-encoder":
        heads["sparse"] = config.vocab_size
    shape = read_shape(config, heads)
    if shape is None:
        raise ConfigError(f"no formula for the cost of {config.model_type} models: give tokens per second instead")
    mean = max(1.0, float(lengths.mean())) if len(lengths) else 1.0
    stored = sum(estimate_output_bytes(described, mean).values()) / mean
    return predict(card, shape, lengths, _downloaded_bytes(described, mean, shape), stored)


def _downloaded_bytes(described: Mapping[str, Any], tokens: float, shape: ModelShape) -> float:
    """Estimates the bytes per token that leave the card; ColBERT vectors are halved, or encoded if the codec can."""
    if shape.vocabulary_head:
        return 4 * shape.vocabulary / tokens
    codec, pooling = get_codec(described["colbert"]), described["colbert_pooling"]
    encoded = codec.encodes_on_device and pooling != "distinct"
    vector = codec.width(shape.colbert) / sequential_group_size(pooling) if encoded else 2.0 * shape.colbert
    sizes: dict[str, float] = {"dense": 4 * described["dim"] / tokens, "sparse": 4.0, "colbert": vector}
    return sum(sizes[output] for output in described["outputs"])


def predict(
    card: Card, shape: ModelShape, lengths: IntArray, downloaded_bytes: float, stored_bytes: float
) -> Prediction:
    """Predicts one actor's tokens per second.

    lengths: tokens of sampled texts; downloaded_bytes, stored_bytes: per token, what leaves the card and what the index
    stores.
    """
    tokens = max(1, int(lengths.sum()))
    work = {
        "products": shape.product_flops / card.flops,
        "attention": shape.attention_flops(lengths) / tokens / card.flops / (1.0 if card.flash else WITHOUT_FLASH),
        "memory": shape.elementwise_bytes / card.bandwidth,
        "host link": max(downloaded_bytes, UPLOADED_BYTES) / card.link,
        "writing": stored_bytes / WRITE_BYTES,
    }
    low, likely, high = ({name: work[name] / EFFICIENCY[name][i] for name in work} for i in range(3))
    seconds = _seconds(likely)
    budget, _ = choose_budget(shape, shape.hidden, int(card.memory))
    return Prediction(
        card=card.name,
        tokens_per_second=1 / seconds,
        low=1 / _seconds(low),
        high=1 / _seconds(high),
        budget=budget,
        limit=_limit(likely),
        shares={name: part / seconds for name, part in likely.items()},
        fits=2 * shape.parameters + budget * shape.peak_bytes < card.memory,
    )


def _seconds(parts: Mapping[str, float]) -> float:
    return max(_on_card(parts), parts["host link"], parts["writing"])


def _on_card(parts: Mapping[str, float]) -> float:
    return parts["products"] + parts["attention"] + parts["memory"]


def _limit(parts: Mapping[str, float]) -> str:
    beside = max(("host link", "writing"), key=parts.__getitem__)
    if parts[beside] > _on_card(parts):
        return beside
    return max(("products", "attention", "memory"), key=parts.__getitem__)
