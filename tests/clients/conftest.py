"""A server on loopback for clients that nobody here wrote; `make test-clients` builds their environment, runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("TRIDEX_BIN", ROOT / ".venv" / "bin"))


@dataclass(frozen=True)
class Server:
    """Where the server is, and the numbers that it should give."""

    url: str
    index: Path
    expected: dict[str, Any]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients") / "small"
    command = [str(BIN / "python"), "-m", "tests.clients.small_server", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return folder


@pytest.fixture(scope="session")
def server(small: Path) -> Iterator[Server]:
    command = [
        str(BIN / "tridex"), "serve", f"words={small / 'index'}", "--port", "0", "--prewarm", "--open-writes",
        "--reranker", f"tiny={small / 'reranker'}", "--alias", "rerank-v3.5=tiny",
        "--alias", "text-embedding-3-small=words",
    ]  # fmt: skip
    log = (small / "serve.log").open("w+")
    process = subprocess.Popen(command, cwd=ROOT, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        url = wait_until_ready(process, small / "serve.log")
        yield Server(url, small / "index", json.loads((small / "expected.json").read_text()))
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0, (small / "serve.log").read_text()


def wait_until_ready(process: subprocess.Popen[bytes], log: Path, url: str | None = None) -> str:
    """The server's address, as given or as its log names it, when it is ready."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        found = re.search(r"http://127\.0\.0\.1:\d+", url or log.read_text())
        if found:
            try:
                with urllib.request.urlopen(f"{found[0]}/readyz", timeout=5) as answer:
                    if answer.status == 200:
                        return found[0]
            except OSError:
                pass
        time.sleep(0.2)
    raise AssertionError(f"not ready: {log.read_text()}")
