"""What is said and not said while Ray starts, without a Ray."""

from __future__ import annotations

import os

import pytest
import ray

from pipelines.cluster.connect import _without, running
from pipelines.config import RayConfig, WorkFailed


def test_chatter_is_left_out_and_all_else_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with _without(b"Set ray log level"):
        os.write(2, b"first\n[I 1] logging.cc:303: Set ray log level to 3\nlast\n")
    os.write(2, b"after\n")
    with pytest.raises(OSError, match="no cluster"):
        fails()
    assert capfd.readouterr().err == "first\nlast\nafter\nwhy\n"


@_without(b"chatter")
def fails() -> None:
    os.write(2, b"chatter\nwhy\n")
    raise OSError("no cluster")


@pytest.mark.parametrize("failures", [1, 2])
def test_a_node_that_is_late_is_started_once_more(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own wait for its node is fixed, and what it raises then is a plain Exception."""
    attempts: list[str] = []

    def start(address: str, **_: object) -> None:
        attempts.append(address)
        if len(attempts) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    if failures == 1:
        with running(RayConfig()):
            pass
    else:
        with pytest.raises(WorkFailed, match="did not start on this machine within 30 s, twice"), running(RayConfig()):
            pass
    assert attempts == ["local", "local"]
