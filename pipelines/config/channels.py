"""Defines the search channels in one table, used by fusion, candidates, explanations, evaluation, commands and charts.

To add a channel, write its class (`pipelines.retrieval.channels.base.ChannelSearch` defines its methods) and add its
name and its entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from actors.spec import Output

Channel = Literal["dense", "sparse", "colbert", "bm25"]
Mode = Literal["hybrid", Channel]


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """Describes one channel. Weights are the defaults for searches without any, by the index's contents."""

    searcher: str
    """Module and class that search it, imported when an index with this channel is opened."""
    colour: str
    """Of its bars in notebooks and of its line in charts."""
    output: Output | None = None
    """The model's output that it compares; None: it takes the query's text."""
    lexical: bool = False
    """A score of 0 means that the row does not match at all."""
    needs: str = ""
    """What an index without this channel lacks, for the message that refuses it as a mode."""
    weight: float = 0.0
    """In a hybrid of z-scores with ColBERT: for the packaged model and for heads of `tridex fit-heads`."""
    weight_without_colbert: float = 0.0
    """In a hybrid of z-scores where the index has no ColBERT vectors."""
    m3_weight: float = 0.0
    """In the weighted sum of raw scores, M3's, for all other models."""
    separate_weight: float = 0.0
    """In a hybrid of z-scores of separate models, one per channel: SPLADE beside a dense and a ColBERT model."""
    colbert_oversampling: int = 1
    """Rows it contributes per candidate requested, where ColBERT has no index and only re-scores others' candidates."""
    colbert_oversampling_light: int = 1
    """The same where ColBERT has at most half of the weight: its best rows then lie less deep in others' lists."""
    always_feeds_colbert: bool = False
    """It contributes those rows even in a search whose fusion gives it no weight."""


CHANNELS: Mapping[Channel, ChannelSpec] = {
    "dense": ChannelSpec(
        searcher="pipelines.retrieval.channels.dense.DenseChannel",
        colour="#4c78a8",
        output="dense",
        weight=1.0,
        weight_without_colbert=1.0,
        m3_weight=1.0,
        separate_weight=1.0,
        colbert_oversampling=12,
    ),
    "sparse": ChannelSpec(
        searcher="pipelines.retrieval.channels.sparse.SparseChannel",
        colour="#54a24b",
        output="sparse",
        lexical=True,
        weight=0.1,
        m3_weight=0.3,
        separate_weight=0.5,
        colbert_oversampling=6,
        colbert_oversampling_light=3,
        always_feeds_colbert=True,
    ),
    "colbert": ChannelSpec(
        searcher="pipelines.retrieval.channels.colbert.ColbertChannel",
        colour="#b279a2",
        output="colbert",
        weight=1.3,
        m3_weight=1.0,
        separate_weight=1.0,
        colbert_oversampling=2,
    ),
    "bm25": ChannelSpec(
        searcher="pipelines.retrieval.channels.bm25.Bm25Channel",
        colour="#f58518",
        lexical=True,
        needs="full-text index over the text; `tridex optimize` builds one",
        weight=0.3,
        weight_without_colbert=0.35,
        separate_weight=0.35,
        colbert_oversampling=6,
        colbert_oversampling_light=2,
    ),
}
MODES: tuple[str, ...] = ("hybrid", *CHANNELS)
"""A search fuses all channels, or ranks by one alone."""
RERANK_COLOUR = "#e45756"


def colour_of(name: str) -> str:
    """Returns the colour of a channel's name, or of "rerank"; grey for any other."""
    if name == "rerank":
        return RERANK_COLOUR
    return next((spec.colour for channel, spec in CHANNELS.items() if channel == name), "#777")
