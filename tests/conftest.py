"""Fixtures that every test may use. Ray starts once for a whole session: it takes about 25 seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: a busy machine is no failure. The same examples in every run; TRIDEX_EXPLORE=1 draws new ones.
settings.register_profile("repeatable", deadline=None, derandomize=not os.environ.get("TRIDEX_EXPLORE"))
settings.load_profile("repeatable")
ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def shared_data(*parts: str) -> Path:
    """A file or folder of the evaluation data; skips the test, with the reason, where it is absent."""
    base = Path(os.environ.get("TRIDEX_DATA", ROOT.parent / "shared" / "data"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"evaluation data absent: {path} (set TRIDEX_DATA)")
    return path


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local Ray on the loopback interface with two CPUs, shared by all tests that ask for it."""
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=512 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()
