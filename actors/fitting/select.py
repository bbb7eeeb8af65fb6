"""Which head is kept: the simplest that none beats on the development split.

A later, less simple head has to win by more than noise (one-sided paired test over the development queries, 5%), so
a tie goes to the one with nothing to explain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from actors.fitting.mining import Floats

Doubles = npt.NDArray[np.float64]
ONE_SIDED = 1.645


def ndcg(scores: Floats, positives: Sequence[Sequence[int]], k: int = 10) -> Doubles:
    """nDCG@k of each query with binary relevance; scores (n, passages), positives: rows of the right ones.

    >>> ndcg(np.array([[0.1, 0.9], [0.9, 0.1]], np.float32), [[1], [1]]).round(4).tolist()
    [1.0, 0.6309]
    """
    k = min(k, scores.shape[1])
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    discount = 1 / np.log2(np.arange(2, k + 2))
    hit = np.array([np.isin(row, right) for row, right in zip(top, positives, strict=True)])
    ideal = np.array([discount[: len(set(right))].sum() for right in positives])
    values: Doubles = hit @ discount / ideal
    return values


def beats(challenger: Doubles, holder: Doubles) -> bool:
    """Whether the mean difference is above 0 by a one-sided paired test at 5%."""
    difference = challenger - holder
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return bool(difference.mean() > ONE_SIDED * error)


def simplest_unbeaten(results: Mapping[str, Doubles]) -> str:
    """The name to keep, from results in order of growing complexity."""
    names = iter(results)
    kept = next(names)
    for name in names:
        if beats(results[name], results[kept]):
            kept = name
    return kept
