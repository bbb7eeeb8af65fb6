"""Compiles loops with numba, and falls back to numpy where numba is not installed or switched off.

A compiled loop runs at the speed of C on one core and releases the GIL; the numpy counterpart gives the same numbers
several times slower, so nothing but speed depends on numba. `NUMBA_DISABLE_JIT=1` and `TRIDEX_PORTABLE=1` do without.

Compiled code is cached on disk: beside its source, else in the user's cache folder (numba's own rule; NUMBA_CACHE_DIR
overrides it), else in a folder of the user's own among the temporary files, else nowhere, which costs a few seconds of
compilation in every process.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.kernels.portable import PORTABLE

try:
    import numba
except ImportError:  # numpy does the same, several times slower
    numba = None
HAS_NUMBA = numba is not None and not numba.config.DISABLE_JIT and not PORTABLE


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a numba kernel that releases the GIL and is cached on disk; the plain function where
    there is no numba."""
    return _kernel(function) if HAS_NUMBA else function


def compiled_or(plain: Callable[..., Any], fast: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As `compiled`, with a numpy function that does the same where there is no numba, only slower.

    fast: sums in any order, which a vectoriser needs. The order is the same for the same length.
    """
    return lambda function: _kernel(function, fast) if HAS_NUMBA else plain


def _kernel(function: Callable[..., Any], fast: bool = False) -> Callable[..., Any]:
    return njit_cached(boundscheck=False, nogil=True, fastmath={"reassoc", "contract"} if fast else False)(function)


def njit_cached(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As `numba.njit(cache=True, **options)`, which refuses to compile where it can write no cache."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        kernel: Callable[..., Any]
        try:
            kernel = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the installation nor a home can be written
            with _cache_in(_temporary_cache()) as cached:
                kernel = numba.njit(cache=cached, **options)(function)
        return kernel

    return decorate


@contextmanager
def _cache_in(folder: Path | None) -> Iterator[bool]:
    """numba caches what is decorated meanwhile in this folder; False for None, where it cannot cache at all."""
    usual = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = usual if folder is None else str(folder)
    try:
        yield folder is not None
    finally:
        numba.config.CACHE_DIR = usual


def _temporary_cache() -> Path | None:
    """Returns a folder that this user alone may write: numba runs the code that it finds in its cache."""
    try:
        folder = Path(tempfile.gettempdir()) / f"tridex-numba-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:  # no folder for temporary files either
        return None
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if is_ours and os.access(folder, os.W_OK) else None
