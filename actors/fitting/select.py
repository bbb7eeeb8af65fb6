"""Chooses the head to keep: the simplest, unless another is better on the whole and on no source worse.

Better and worse are one-sided paired tests over the development queries (5%), so a tie goes to the one with nothing to
explain. Sources are tested one by one as well: a gain on a large source cannot pay for a loss on a small one, which
is how a head that fits one kind of text would get in. Of several that pass, the best mean over sources is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from actors.fitting.mining import Floats

Doubles = npt.NDArray[np.float64]
ONE_SIDED = 1.645


def ndcg(scores: Floats, positives: Sequence[Sequence[int]], k: int = 10) -> Doubles:
    """Computes nDCG@k of each query with binary relevance; scores (n, passages), positives: rows of the right ones.

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


def is_significantly_better(challenger: Doubles, holder: Doubles) -> bool:
    """Returns whether the mean difference is above 0 by a one-sided paired test at 5%."""
    difference = challenger - holder
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return bool(difference.mean() > ONE_SIDED * error)


def is_worse_on_any_source(challenger: Sequence[Doubles], holder: Sequence[Doubles]) -> bool:
    """Returns whether the holder beats the challenger on any source."""
    return any(is_significantly_better(before, after) for before, after in zip(holder, challenger, strict=True))


def choose_variant(results: Mapping[str, Sequence[Doubles]]) -> str:
    """Returns the name of the variant to keep.

    results: nDCG of the development queries of every source, the simplest variant first.
    """
    simplest, *others = results
    holder = results[simplest]
    passed = [
        name
        for name in others
        if is_significantly_better(np.concatenate(results[name]), np.concatenate(holder))
        and not is_worse_on_any_source(results[name], holder)
    ]
    return max(passed, key=lambda name: float(np.mean([values.mean() for values in results[name]])), default=simplest)
