"""Converts values to strict JSON, which has no NaN, infinity, bytes or dates."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any


def plain_json(value: Any) -> Any:
    """Converts a value recursively to JSON's types: NaN and infinities to null, bytes to base64, other values that
    JSON has no type for (dates, decimals, paths) to text.

    >>> plain_json({"x": [float("nan"), b"a", 1]})
    {'x': [None, 'YQ==', 1]}
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_json(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return plain_json(value.tolist()) if hasattr(value, "tolist") else str(value)
