"""Counts what a model costs: FLOPs per token, bytes that pass through memory, bytes of activations, parameters.

The figures follow from the sizes in config.json, so a plan needs neither weights nor a card. FLOPs are exact (tests
compare them with torch's FlopCounterMode); activations are a bound within 25% of what fake tensors show to be alive at
the peak. What no formula contains is how much of a card's rate its kernels reach: `pipelines.plan.predict` states that
as a range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.outputs import IntArray

PLAIN = frozenset({"bert", "roberta", "xlm-roberta", "camembert"})
"""Architectures with two products in the feed-forward layer."""
GATED = frozenset({
    "modernbert", "nomic_bert", "gte", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text",
    "minicpm",
})  # fmt: skip
"""Architectures with three: gate, up and down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Holds the sizes that the cost follows from. local_layers: those whose attention sees `window` tokens only."""

    hidden: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    gated: bool
    local_layers: int = 0
    window: int = 0
    colbert: int = 0
    """Width of the ColBERT vectors; 0: none."""
    vocabulary_head: bool = False
    """SPLADE: every token is scored against the vocabulary."""

    @property
    def layer_parameters(self) -> int:
        """Counts the weights of one layer's products, without biases and norms."""
        attention = self.hidden * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        return attention + (3 if self.gated else 2) * self.hidden * self.feed_forward

    @property
    def parameters(self) -> int:
        """Counts the weights: word embeddings, layers and heads."""
        heads = self.hidden * self.colbert + (self.hidden**2 if self.vocabulary_head else 0)
        return self.vocabulary * self.hidden + self.layers * self.layer_parameters + heads

    @property
    def product_flops(self) -> int:
        """Counts the FLOPs of all matrix products for one token, two per weight."""
        scored = self.hidden * (self.hidden + self.vocabulary) if self.vocabulary_head else 0
        return 2 * (self.layers * self.layer_parameters + self.hidden * self.colbert + scored)

    def attention_flops(self, lengths: IntArray) -> int:
        """Counts the FLOPs of attention over texts of these lengths, causal or not: 4 x heads x width x length^2."""
        lengths = np.asarray(lengths, np.int64)
        seen = np.minimum(lengths, 2 * self.window - 1) if self.local_layers else lengths
        pairs = (self.layers - self.local_layers) * (lengths**2).sum() + self.local_layers * (lengths * seen).sum()
        return int(4 * self.heads * self.head_width * pairs)

    @property
    def elementwise_bytes(self) -> int:
        """Counts the bytes that sums, norms and activations read and write for one token, in half precision.

        Per layer: two sums (read 2, write 1) and two norms (1, 1) of the hidden size; the activation reads and writes
        the feed-forward size, a gate reads it twice more and writes it once more.
        """
        per_layer = 10 * self.hidden + (5 if self.gated else 2) * self.feed_forward
        return 2 * self.layers * per_layer

    @property
    def peak_bytes(self) -> int:
        """Counts the bytes of activations alive at the peak for one token, in half precision.

        In the feed-forward layer: its input, the residual, and the up product before and after its activation (a gated
        layer: gate and value in one tensor, and the activated gate). Or, if larger, in attention, where a rotation
        holds queries and keys several times; or in the ColBERT head: states and projection in half precision, gathered
        vectors twice in float32.
        """
        feed_forward = 2 * (3 * self.hidden + (3 if self.gated else 2) * self.feed_forward)
        queries, keys = (6, 3) if self.gated else (3, 2)
        attention = 2 * (2 * self.hidden + self.head_width * (queries * self.heads + keys * self.kv_heads))
        return max(feed_forward, attention, 2 * self.hidden + 10 * self.colbert)


def read_shape(config: Any, outputs: Mapping[str, int] | None = None) -> ModelShape | None:
    """Reads the sizes of a configuration (transformers' or ours); None for architectures without a formula here.

    outputs: output -> width of those that need a head: `colbert`; `sparse` of width 1, or of the vocabulary (SPLADE).
    """
    if getattr(config, "model_type", None) not in PLAIN | GATED:
        return None
    outputs = outputs or {}
    heads, hidden = config.num_attention_heads, config.hidden_size
    kinds = list(getattr(config, "layer_types", None) or [])
    local = kinds.count("sliding_attention") if config.model_type == "modernbert" else 0
    return ModelShape(
        hidden=hidden,
        layers=config.num_hidden_layers,
        feed_forward=config.intermediate_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or hidden // heads,
        vocabulary=config.vocab_size,
        gated=config.model_type in GATED,
        local_layers=local,
        window=config.sliding_window + 1 if local else 0,
        colbert=outputs.get("colbert", 0),
        vocabulary_head=outputs.get("sparse", 0) > 1,
    )


MOST_TOKENS = 65536
"""In one pass, at hidden sizes up to 1024: products of so many rows fill every card, and more only take memory."""
LEAST_TOKENS = 4096
GPU_WORKERS = 2
"""Batches in a card's memory at once, each on a stream of its own."""
MEMORY_SHARE = 0.8
"""Of the free memory that weights and activations may take; the rest is fragments, libraries and longer texts."""


def choose_budget(shape: ModelShape | None, hidden: int, free_bytes: int) -> tuple[int, str]:
    """Chooses the tokens of one pass from a card's free memory, before the weights are loaded, with the reason.

    shape None: no formula, so that memory is not considered.
    """
    most = max(LEAST_TOKENS, MOST_TOKENS * 1024 // max(1024, hidden))
    if shape is None:
        return most, f"fills the GPU at hidden size {hidden}"
    room = MEMORY_SHARE * free_bytes - 2 * shape.parameters
    fitting = int(room / (GPU_WORKERS * shape.peak_bytes)) if room > 0 else 0
    if fitting >= most:
        return most, f"fills the GPU at hidden size {hidden}"
    rounded = 1 << max(0, fitting.bit_length() - 1)
    return max(LEAST_TOKENS, rounded), f"what {free_bytes / 2**30:.1f} GiB of free memory hold beside the weights"
