"""What is said and not said while Ray starts, without a Ray."""

from __future__ import annotations

import os

import pytest

from pipelines.cluster.connect import _without


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
