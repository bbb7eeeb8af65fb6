"""Compiles loops with numba, and falls back to numpy where numba is not installed or switched off.

A compiled loop runs at the speed of C on one core and releases the GIL; the numpy counterpart gives the same numbers
several times slower, so that nothing but speed depends on numba (`NUMBA_DISABLE_JIT=1` runs the tests without it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import numba
except ImportError:  # numpy does the same, several times slower
    numba = None
HAS_NUMBA = numba is not None and not numba.config.DISABLE_JIT


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A numba kernel that releases the GIL and is cached on disk; the plain function where there is no numba."""
    return _kernel(function) if HAS_NUMBA else function


def compiled_or(plain: Callable[..., Any], fast: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As `compiled`, with a numpy function that does the same where there is no numba, only slower.

    fast: sums in any order, which a vectoriser needs. The order is the same for the same length.
    """
    return lambda function: _kernel(function, fast) if HAS_NUMBA else plain


def _kernel(function: Callable[..., Any], fast: bool = False) -> Callable[..., Any]:
    kernel: Callable[..., Any] = numba.njit(
        cache=True, nogil=True, boundscheck=False, fastmath={"reassoc", "contract"} if fast else False
    )(function)
    return kernel
