"""Finds the known name that is nearest to a misspelt one, for error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """Returns "; did you mean 'mode'?" for the known name that is nearest to a misspelt one, "" where none is near.

    >>> did_you_mean("mod", ["mode", "where"])
    "; did you mean 'mode'?"
    """
    near = get_close_matches(str(name).lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
