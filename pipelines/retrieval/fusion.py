"""Fuses the channels' scores of one query's candidates into one: a sum of one part per channel, which explains a hit.

Every candidate has every channel's exact score here, so no fusion has to guess what a missing score means. `zscore`
measures a score against those of rows sampled from the table (how far out is this, for this query?) and not against
the other candidates, which are all good ones: worth .0015 nDCG@10 on the sets that it was chosen on
(benchmarks/RESULTS.md) for a few hundred more rows to score. The price is that its scores order one answer and are not
comparable between queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from actors.suggest import did_you_mean
from pipelines.config import CHANNELS, DEFAULT_MODEL, Channel, Fusion, InvalidRequest
from pipelines.retrieval.smoothing import NeighbourGraph

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
MAX_ZSCORE = 32.0
"""Of the best candidate at most: else a query word that no sampled row has makes any match infinitely far out."""
SMOOTHING = 3.0
"""In a hybrid of z-scores with ColBERT, as the weights (benchmarks/RESULTS.md)."""
RRF_K = 60
"""Cormack, Clarke and Buettcher 2009."""


@dataclass(frozen=True, slots=True)
class FusionRule:
    """Holds a fusion and its weights; channels of weight 0 are scored and shown, and add nothing to the fused score."""

    fusion: Fusion
    weights: Mapping[Channel, float]
    smoothing: float = 0.0
    """Weight of near documents' scores in a hit's (`pipelines.retrieval.smoothing`); 0: none."""


def default_fusion(model: str, available: tuple[Channel, ...], fitted: bool = False) -> FusionRule:
    """Returns the fusion measured best for the model, over the channels of the index (benchmarks/RESULTS.md).

    fitted: its heads come from `tridex fit-heads`, as those of the packaged model do.
    """
    fusion: Fusion = "zscore"
    weights = {c: spec.weight for c, spec in CHANNELS.items()}
    if "colbert" not in available:
        weights = {c: spec.weight_without_colbert for c, spec in CHANNELS.items()}
    elif not (fitted or model == DEFAULT_MODEL):
        fusion, weights = "weighted", {c: spec.m3_weight for c, spec in CHANNELS.items()}
    smoothing = SMOOTHING if fusion == "zscore" and {"dense", "colbert"} <= {*available} else 0.0
    return FusionRule(fusion, {c: w for c, w in weights.items() if w > 0 and c in available}, smoothing)


def fusion_of_separate_models(available: tuple[Channel, ...]) -> FusionRule:
    """Returns the fusion of channels that are models of their own: z-scores, for their raw scores share no scale.

    The weights are unmeasured; `tridex tune` chooses them on judged queries.
    """
    weights = {c: spec.separate_weight for c, spec in CHANNELS.items()}
    return FusionRule("zscore", {c: w for c, w in weights.items() if w > 0 and c in available})


def resolve_fusion(
    default: FusionRule,
    available: tuple[Channel, ...],
    fusion: Fusion | None,
    weights: Mapping[str, float] | None,
    smoothing: float | None = None,
) -> FusionRule:
    """Completes the fusion of a search by the index's default.

    InvalidRequest names a channel that the index lacks. Weights alone, with BM25 among them, turn a sum of raw scores
    into one of z-scores: raw BM25 has no upper bound and would drown the others. The default's smoothing goes with the
    default's fusion, whatever the weights.
    """
    rule = _resolve_weights(default, available, fusion, weights)
    if smoothing is None:
        smoothing = default.smoothing if rule.fusion == default.fusion else 0.0
    return replace(rule, smoothing=smoothing)


def _resolve_weights(
    default: FusionRule, available: tuple[Channel, ...], fusion: Fusion | None, weights: Mapping[str, float] | None
) -> FusionRule:
    if weights is None:
        return FusionRule(fusion or default.fusion, default.weights)
    named = {c: weights[c] for c in available if c in weights}
    for channel in weights:
        if channel not in named:
            has = f"it has {', '.join(available)}{did_you_mean(channel, available)}"
            raise InvalidRequest(f"weights: the index has no channel {channel!r}; {has}")
    in_order: dict[Channel, float] = {c: named[c] for c in weights if c in named}
    raw_bm25 = default.fusion == "weighted" and in_order.get("bm25", 0) > 0
    return FusionRule(fusion or ("zscore" if raw_bm25 else default.fusion), in_order)


def _weighted(scores: Floats, _channel: Channel, _sample: Floats | None) -> Doubles:
    return scores.astype(np.float64)


def _standardised(scores: Floats, reference: Floats) -> Doubles:
    """Standardises scores by the reference's mean and standard deviation, at most MAX_ZSCORE for the best score."""
    values, known = scores.astype(np.float64), reference.astype(np.float64)
    mean = known.mean()
    spread = max(known.std(), (values.max(initial=mean) - mean) / MAX_ZSCORE)
    return (values - mean) / spread if spread > 1e-9 else np.zeros(len(values))


def _zscore(scores: Floats, _channel: Channel, sample: Floats | None) -> Doubles:
    return _standardised(scores, scores if sample is None else sample)


def _dbsf(scores: Floats, _channel: Channel, _sample: Floats | None) -> Doubles:
    """Scales scores from mean - 3 sigma to mean + 3 sigma into 0..1 (Qdrant's distribution-based score fusion)."""
    return np.clip(_standardised(scores, scores) / 6 + 0.5, 0, 1)


def _rrf(scores: Floats, channel: Channel, _sample: Floats | None) -> Doubles:
    """Computes 1 / (60 + rank); equal scores share the better rank; rows without a lexical match get 0."""
    ascending = np.sort(scores)
    rank = len(scores) - np.searchsorted(ascending, scores, side="right") + 1
    parts = 1.0 / (RRF_K + rank)
    return np.where(scores > 0, parts, 0.0) if CHANNELS[channel].lexical else parts


NORMALISERS: dict[Fusion, Callable[[Floats, Channel, Floats | None], Doubles]] = {
    "zscore": _zscore,
    "weighted": _weighted,
    "rrf": _rrf,
    "dbsf": _dbsf,
}


def parts(
    scores: Mapping[Channel, Floats],
    rule: FusionRule,
    sample: Mapping[Channel, Floats] | None = None,
    graph: NeighbourGraph | None = None,
) -> dict[Channel, Doubles]:
    """Computes what each channel adds to the fused score of each candidate: (n,) for every channel with a weight.

    sample: scores of rows sampled from the table, which z-scores are measured against; without them, the candidates
    themselves are. Weights are divided by their sum (M3's rule), except in reciprocal rank fusion, where that is not
    the custom. graph: neighbours, over which the rule smooths each part.
    """
    used = {c: w for c, w in rule.weights.items() if w > 0}
    total = 1.0 if rule.fusion == "rrf" else sum(used.values())
    own = {c: normalised(rule.fusion, c, scores, sample) * (w / total) for c, w in used.items()}
    if graph is None or rule.smoothing == 0:
        return own
    smooth = graph.smoother(np.sum(list(own.values()), axis=0), rule.smoothing)
    return {c: smooth(part) for c, part in own.items()}


def normalised(
    fusion: Fusion, channel: Channel, scores: Mapping[Channel, Floats], sample: Mapping[Channel, Floats] | None
) -> Doubles:
    """Returns one channel's scores (n,) on the scale in which the fusion adds them up."""
    return NORMALISERS[fusion](scores[channel], channel, None if sample is None else sample[channel])


def fuse(
    scores: Mapping[Channel, Floats],
    rule: FusionRule,
    sample: Mapping[Channel, Floats] | None = None,
    graph: NeighbourGraph | None = None,
) -> Doubles:
    """Computes fused scores (n,), higher is better."""
    fused: Doubles = np.sum(list(parts(scores, rule, sample, graph).values()), axis=0)
    return fused
