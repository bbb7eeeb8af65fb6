"""Plans which texts share a forward pass: longest first, cut by a budget in tokens, not by a number of rows.

Packing without padding leaves only one reason to sort: texts of equal length stand side by side, so attention runs on
them as one block. Longest first means that the pass that needs most memory comes first. The price is that a text's
vector comes back out of order; `inverse_permutation` puts it right. Batches are of nearly one size: filled to the brim,
they would leave a remainder of any size at the end of every block, and oneDNN keeps kernels for every size that it has
met.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.outputs import IntArray


def plan_batches(lengths: IntArray, budget: int) -> list[IntArray]:
    """Cuts rows into batches, longest text first; every row is in exactly one batch.

    lengths: int (n,), in tokens. A batch holds at most `budget` tokens; a text longer than half of that stands alone.

    >>> [rows.tolist() for rows in plan_batches(np.array([3, 9, 2, 4]), 10)]
    [[1], [3, 0, 2]]
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1 token, got {budget}")
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    alone = int(np.searchsorted(-lengths[order], -(budget // 2)))
    return [*order[:alone, None], *_even(order[alone:], lengths, budget)]


def _even(order: IntArray, lengths: IntArray, budget: int) -> list[IntArray]:
    """Cuts rows into as few batches of nearly equal size as keep to the budget."""
    if not len(order):
        return []
    ends = np.cumsum(lengths[order])
    batches = max(1, -(-int(ends[-1]) // budget))
    while True:
        cuts = np.searchsorted(ends, ends[-1] * np.arange(1, batches) // batches, side="right")
        parts = np.split(order, np.unique(cuts[cuts > 0]))
        if all(lengths[part].sum() <= budget for part in parts):
            return parts
        batches += 1


def inverse_permutation(batches: Sequence[IntArray]) -> IntArray:
    """Inverts the order of batches: `joined[inverse]` puts the concatenated results of batches in order. int64 (n,).

    >>> inverse_permutation([np.array([2]), np.array([0, 1])]).tolist()
    [1, 2, 0]
    """
    order = np.concatenate([np.zeros(0, np.int64), *batches])
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def padding_share(lengths: IntArray, batches: Sequence[IntArray]) -> float:
    """Computes the share of tokens that would be padding if each batch were padded to its longest text: 0 to 1."""
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1 - int(lengths.sum()) / padded if padded else 0.0


def round_up_tokens(tokens: int) -> int:
    """Rounds a batch up to one of 32 sizes per doubling, in whole 16s: at most 3% more from 512 tokens on.

    oneDNN compiles a kernel for every new number of rows (up to 16 ms each on one core, in bf16, where a batch of 4096
    tokens takes 300 ms), so a stream of batches has to come in few sizes.

    >>> [round_up_tokens(tokens) for tokens in (5, 500, 1000)]
    [16, 512, 1008]
    """
    step = max(16, 1 << max(0, (tokens - 1).bit_length() - 6))
    return -(-tokens // step) * step
