"""A Ray cluster of two nodes for tests: in two network namespaces where we may make one, else side by side.

Both are started as a user would, by `ray start`, with token authentication on, and ended by process id.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

HEAD_IP, WORKER_IP = "203.0.113.1", "203.0.113.2"
"""From a range that is reserved for documentation, so it is in no one's network."""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextmanager
def two_nodes(folder: Path) -> Iterator[str]:
    """The dashboard's address. The head has no CPU, so every task and actor runs on the other node.

    `folder` must have a short path: Ray's sockets lie in it, and their paths may have 107 characters.
    """
    (folder / "token").write_text("0" * 64)
    port, gcs = free_port(), free_port()
    with pytest.MonkeyPatch.context() as patch, _second_machine() as machine:
        for name, value in (("RAY_AUTH_MODE", "token"), ("RAY_USAGE_STATS_ENABLED", "0")):
            patch.setenv(name, value)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        head, worker, inside = (HEAD_IP, WORKER_IP, machine) if machine else ("127.0.0.1", "127.0.0.1", [])
        ports = [f"--port={gcs}", f"--dashboard-port={port}", f"--ray-client-server-port={free_port()}"]
        try:
            where = [f"--node-ip-address={head}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}/s"]
            _start([], "--head", "--num-cpus=0", *ports, *where)
            _start(inside, f"--address={head}:{gcs}", f"--node-ip-address={worker}", "--num-cpus=3")
            yield f"http://127.0.0.1:{port}"
        finally:
            _end(f"{folder}/s")


def _start(inside: list[str], *arguments: str) -> None:
    ray = f"{Path(sys.executable).parent}/ray"
    common = [f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=200000000"]
    subprocess.run([*inside, ray, "start", *arguments, *common], check=True, capture_output=True, timeout=180)


def _end(marker: str) -> None:
    """Ends the processes whose command line names our own temporary folder."""
    ours = [p for p in psutil.process_iter(["cmdline"]) if any(marker in word for word in p.info["cmdline"] or [])]
    for process in ours:
        process.terminate()
    for process in psutil.wait_procs(ours, timeout=10)[1]:
        process.kill()


@contextmanager
def _second_machine() -> Iterator[list[str]]:
    """How to run a command in a network namespace of its own, wired to ours; empty where that is not allowed."""
    name = f"tridex{os.getpid()}"
    if shutil.which("ip") is None or not _ip("netns", "add", name):
        yield []
        return
    try:
        inner, outer = f"w{os.getpid()}", f"h{os.getpid()}"
        wired = (
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
            and _ip("addr", "add", f"{HEAD_IP}/30", "dev", outer)
            and _ip("link", "set", outer, "up")
            and _ip("-n", name, "addr", "add", f"{WORKER_IP}/30", "dev", inner)
            and _ip("-n", name, "link", "set", inner, "up")
            and _ip("-n", name, "link", "set", "lo", "up")
        )
        yield ["ip", "netns", "exec", name] if wired else []
    finally:
        _ip("netns", "del", name)


def _ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0
