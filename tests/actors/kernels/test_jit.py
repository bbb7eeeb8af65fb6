"""Where compiled kernels are cached: a read-only installation and a user without a home are no reason to stop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from actors.kernels import jit

numba = pytest.importorskip("numba")
pytestmark = pytest.mark.skipif(not jit.HAS_NUMBA, reason="NUMBA_DISABLE_JIT is set")


def twice(x: int) -> int:
    return x + x


@pytest.fixture
def nothing_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who can write neither the installation nor a home."""

    def refuse(self: object) -> None:
        raise OSError(13, "Permission denied")

    from numba.core import caching

    for name in ("InTreeCacheLocator", "InTreeCacheLocatorFsAgnostic", "UserWideCacheLocator", "IPythonCacheLocator"):
        locator = getattr(caching, name, None) or getattr(caching, f"_{name}", None)  # private before numba 0.62
        if locator is not None:
            monkeypatch.setattr(locator, "ensure_cache_path", refuse)


@pytest.mark.usefixtures("nothing_writable")
def test_kernels_are_cached_among_the_users_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="cannot cache function"):
        numba.njit(cache=True)(twice)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    usual = numba.config.CACHE_DIR
    kernel: Any = jit.njit_cached()(twice)
    assert kernel(4) == 8
    folder = tmp_path / f"tridex-numba-{os.getuid()}"
    assert list(folder.rglob("*.nbi")), "the cache holds an index of what was compiled"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert usual == numba.config.CACHE_DIR, "kernels of the caller's own are cached where they were"


@pytest.mark.usefixtures("nothing_writable")
@pytest.mark.parametrize("fault", ["open to all", "a link", "no folder at all"])
def test_a_cache_that_others_may_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """numba runs what it finds in its cache."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    folder = tmp_path / "temporary" / f"tridex-numba-{os.getuid()}"
    if fault != "no folder at all":
        folder.parent.mkdir()
        (tmp_path / "theirs").mkdir()
    if fault == "open to all":
        folder.mkdir()
        folder.chmod(0o777)
    elif fault == "a link":
        folder.symlink_to(tmp_path / "theirs")
    kernel: Any = jit.njit_cached()(twice)
    assert kernel(4) == 8
    assert not list(tmp_path.rglob("*.nbi"))
