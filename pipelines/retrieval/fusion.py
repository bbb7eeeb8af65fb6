"""Joins the channels' scores of one query's candidates into one. Each rule is a sum of one part a channel, so that a
hit can be explained by its parts.

Every candidate has every channel's exact score here, so no rule has to guess what a missing score means. `zscore`
measures a score against those of rows drawn at random from the table (how far out is this, for this query?) and not
against the other candidates, which are all good ones: worth .0015 nDCG@10 on the sets that it was chosen on
(benchmarks/RESULTS.md) for a few hundred more rows to score. The price is that its scores order one answer and are not
comparable between queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.config import DEFAULT_MODEL, Channel, ConfigError, Fusion

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
MOST = 32.0
RRF_K = 60
"""Cormack, Clarke and Buettcher 2009."""
LEXICAL: tuple[Channel, ...] = ("sparse", "bm25")
"""Channels in which a score of 0 means: does not match."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A fusion and its weights; channels with weight 0 are scored and shown but have no say."""

    fusion: Fusion
    weights: Mapping[Channel, float]


def default_rule(model: str, available: tuple[Channel, ...], fitted: bool = False) -> Rule:
    """What is measured best for the model, over the channels that the index has (benchmarks/RESULTS.md).

    fitted: its heads come from `tridex fit-heads`, as those of the packaged model do.
    """
    fusion: Fusion = "zscore"
    weights: dict[Channel, float] = {"dense": 1.0, "bm25": 0.5, "colbert": 3.0}
    if "colbert" not in available:
        weights = {"dense": 1.0, "bm25": 0.35}
    elif not (fitted or model == DEFAULT_MODEL):
        fusion, weights = "weighted", {"dense": 1.0, "sparse": 0.3, "colbert": 1.0}
    return Rule(fusion, {c: w for c, w in weights.items() if c in available})


def checked_rule(
    default: Rule, available: tuple[Channel, ...], fusion: Fusion | None, weights: Mapping[Channel, float] | None
) -> Rule:
    """The rule that a request asks for; ConfigError names the weight at fault."""
    if fusion is not None and fusion not in RULES:
        raise ConfigError(f"fusion: {fusion!r} is unknown; there are {', '.join(RULES)}")
    if weights is None:
        return Rule(fusion or default.fusion, default.weights)
    for channel, weight in weights.items():
        if channel not in available:
            raise ConfigError(f"weights: the index has no channel {channel!r}; it has {', '.join(available)}")
        if not (isinstance(weight, (int, float)) and 0 <= weight < float("inf")):
            raise ConfigError(f"weights.{channel}: must be a number that is 0 or more, got {weight!r}")
    if not sum(weights.values()) > 0:
        raise ConfigError("weights: at least one must be above 0")
    raw_bm25 = default.fusion == "weighted" and weights.get("bm25", 0) > 0
    return Rule(fusion or ("zscore" if raw_bm25 else default.fusion), dict(weights))


def _weighted(scores: Floats, _channel: Channel, _sample: Floats | None) -> Doubles:
    return scores.astype(np.float64)


def _standardised(scores: Floats, reference: Floats) -> Doubles:
    """Distance from the reference's mean in its standard deviations, MOST of them at most for the best score.

    A query word that no sampled row has would otherwise make any match look infinitely far out.
    """
    values, known = scores.astype(np.float64), reference.astype(np.float64)
    mean = known.mean()
    spread = max(known.std(), (values.max(initial=mean) - mean) / MOST)
    return (values - mean) / spread if spread > 1e-9 else np.zeros(len(values))


def _zscore(scores: Floats, _channel: Channel, sample: Floats | None) -> Doubles:
    return _standardised(scores, scores if sample is None else sample)


def _dbsf(scores: Floats, _channel: Channel, _sample: Floats | None) -> Doubles:
    """Position between mean - 3 sigma and mean + 3 sigma, cut to 0..1 (Qdrant's distribution-based fusion)."""
    return np.clip(_standardised(scores, scores) / 6 + 0.5, 0, 1)


def _rrf(scores: Floats, channel: Channel, _sample: Floats | None) -> Doubles:
    """1 / (60 + rank); equal scores share the better rank, and what does not match a lexical channel gets nothing."""
    ascending = np.sort(scores)
    rank = len(scores) - np.searchsorted(ascending, scores, side="right") + 1
    parts = 1.0 / (RRF_K + rank)
    return np.where(scores > 0, parts, 0.0) if channel in LEXICAL else parts


RULES: dict[str, Callable[[Floats, Channel, Floats | None], Doubles]] = {
    "zscore": _zscore,
    "weighted": _weighted,
    "rrf": _rrf,
    "dbsf": _dbsf,
}


def parts(
    scores: Mapping[Channel, Floats], rule: Rule, sample: Mapping[Channel, Floats] | None = None
) -> dict[Channel, Doubles]:
    """What each channel adds to the fused score of each candidate: (n,) for every channel with a weight.

    sample: scores of rows drawn at random from the table, which z-scores are measured against; without them, the
    candidates themselves are. Weights are divided by their sum (M3's rule), except in reciprocal rank fusion, where
    that is not the custom.
    """
    used = {c: w for c, w in rule.weights.items() if w > 0}
    total = 1.0 if rule.fusion == "rrf" else sum(used.values())
    return {c: normalised(rule.fusion, c, scores, sample) * (w / total) for c, w in used.items()}


def normalised(
    fusion: Fusion, channel: Channel, scores: Mapping[Channel, Floats], sample: Mapping[Channel, Floats] | None
) -> Doubles:
    """One channel's scores (n,) on the scale in which the fusion adds them up."""
    return RULES[fusion](scores[channel], channel, None if sample is None else sample[channel])


def fuse(scores: Mapping[Channel, Floats], rule: Rule, sample: Mapping[Channel, Floats] | None = None) -> Doubles:
    """Fused scores (n,), higher is better."""
    fused: Doubles = np.sum(list(parts(scores, rule, sample).values()), axis=0)
    return fused
