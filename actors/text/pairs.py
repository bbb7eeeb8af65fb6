"""Accepts (query, passage) pairs in any form that callers use: one pair, a list, an array, or any iterable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def listed_pairs(pairs: Any) -> Any:
    """Returns pairs as a sequence; a zip, a generator or a map is read once.

    Raises TypeError for what holds no pairs: None, a text, a dict, a DataFrame.
    """
    if hasattr(pairs, "columns"):
        raise TypeError(
            f"expected a (query, passage) pair or a list of pairs, got a {type(pairs).__name__}: "
            "give list(zip(df['query'], df['passage'])) with the names of its columns"
        )
    if isinstance(pairs, (str, bytes, Mapping)) or not isinstance(pairs, Iterable):
        raise TypeError(f"expected a (query, passage) pair or a list of pairs, got {type(pairs).__name__}")
    return pairs if isinstance(pairs, (list, tuple, np.ndarray)) else list(pairs)
