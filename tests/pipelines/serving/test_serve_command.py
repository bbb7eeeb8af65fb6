"""`tridex serve` as a process: it says what is wrong and ends, it drains on SIGTERM, slow clients hold nobody up."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.serving.keys import read_keys
from tests.indexes import corpus, make_index

ROOT = Path(__file__).resolve().parents[3]
SERVER = """
import sys, time
from pathlib import Path
from pipelines.retrieval.encoder import QueryEncoder
from pipelines.serving.run import serve
from pipelines.serving.settings import ServeConfig
from tests.indexes import WordEmbedder

class Slow(WordEmbedder):
    def embed_queries(self, texts, outputs=None):
        texts = list(texts)
        time.sleep(1.5 if any("slowly" in text for text in texts) else 0)
        while any("held" in text for text in texts) and not Path(sys.argv[2]).exists():
            time.sleep(0.02)
        return super().embed_queries(texts, outputs)

QueryEncoder._load = lambda self: Slow()
serve(ServeConfig(indexes=(sys.argv[1],), limits={"body_seconds": 2, "concurrency": 2}), port=0)
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server and its port; its model takes 1.5 s for "slowly", and for "held" until the file `release` is there."""
    log = tmp_path / "log"
    command = [sys.executable, "-c", SERVER, make_index(tmp_path, corpus(30)), str(tmp_path / "release")]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stderr=out, env=os.environ)
    deadline = time.monotonic() + 300
    while not (found := re.search(r"127\.0\.0\.1:(\d+)[^$]*startup complete", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process, int(found[1])
    if process.poll() is None:
        process.kill()
        process.wait()


def send(port: int, body: dict[str, Any]) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=300)
    content = json.dumps(body).encode()
    head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def receive(connection: socket.socket) -> tuple[int, bytes]:
    with connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(answer.split(b" ", 2)[1]) if answer else 0, answer


def test_slow_and_vanished_clients_hold_nobody_up(process: tuple[subprocess.Popen[bytes], int]) -> None:
    _, port = process
    receive(send(port, {"query": "warm"}))
    stalled = [socket.create_connection(("127.0.0.1", port), timeout=300) for _ in range(5)]
    for connection in stalled:
        connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 100\r\n\r\n{")
    for _ in range(5):  # who goes away while it is answered gives its place back
        send(port, {"query": "go slowly"}).close()
        time.sleep(0.05)
        assert receive(send(port, {"query": "kernel"}))[0] in (200, 429)
    deadline = time.monotonic() + 120
    while (status := receive(send(port, {"query": "kernel"}))[0]) == 429 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert status == 200
    for connection in stalled:
        refused, answer = receive(connection)
        assert refused == 408, answer
        assert b"request_timeout" in answer


def test_too_many_at_once_are_told_to_come_back(process: tuple[subprocess.Popen[bytes], int], tmp_path: Path) -> None:
    _, port = process
    receive(send(port, {"query": "warm"}))
    answers: list[tuple[int, bytes]] = []
    connections = [send(port, {"query": "held"}) for _ in range(6)]
    threads = [threading.Thread(target=lambda c=c: answers.append(receive(c))) for c in connections]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answers) == 4)
    assert [status for status, _ in answers] == [429] * 4
    assert all(b"retry-after: 1" in answer.lower() for _, answer in answers)
    (tmp_path / "release").touch()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers[4:]] == [200, 200]


def test_sigterm_drains(process: tuple[subprocess.Popen[bytes], int], tmp_path: Path) -> None:
    server, port = process
    receive(send(port, {"query": "warm"}))
    waiting = send(port, {"query": "held"})
    wait_until(lambda: "tridex_active_requests 1.0" in metrics(port))
    server.send_signal(signal.SIGTERM)
    wait_until(lambda: not listens(port))
    assert server.poll() is None
    (tmp_path / "release").touch()
    status, answer = receive(waiting)
    assert status == 200, answer
    assert server.wait(timeout=120) == 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as answer:
        return str(answer.read().decode())


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "{tmp}/none"], "no such index"),
        (["serve", "{index}", "--host", "0.0.0.0"], "loopback only"),
        (["serve", "{index}", "--keys", "{tmp}/none.yaml"], "no such config file"),
        (["serve", "{index}", "--alias", "current"], "expected NAME=VALUE"),
        (["serve", "{index}", "--set", "limits.kk=3"], "limits.kk"),
        (["serve", "a={index}", "a={index}"], "two indexes are called 'a'"),
        (["serve", "{index}", "--aliases", "{tmp}/none.yaml"], "no such config file"),
        (["mcp", "{tmp}/none"], "no such index"),
        (["serve-key", "x", "--scope", "admin"], "'admin' is unknown"),
    ],
)
def test_a_wrong_request_is_one_line(tmp_path: Path, word_index: str, arguments: list[str], message: str) -> None:
    status, output = invoke(*(a.format(tmp=tmp_path, index=word_index) for a in arguments))
    assert status == 2
    assert message in output
    assert "Traceback" not in output


def test_a_port_that_is_taken_is_a_failure(word_index: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, output = invoke("serve", word_index, "--port", str(taken.getsockname()[1]))
    assert status == 1
    assert "cannot listen on 127.0.0.1" in output


def test_a_key_is_made_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    status, output = invoke("serve-key", "team-a", "--scope", "search", "--filter", "tenant = 'a'")
    assert status == 0
    token, entry = output.split("\n", 1)
    (tmp_path / "keys.yaml").write_text("keys:\n" + entry.split("`keys:`\n")[1])
    key = read_keys(tmp_path / "keys.yaml").find(token)
    assert key is not None
    assert (key.name, key.scopes, key.filter) == ("team-a", ("search",), "tenant = 'a'")
    assert token not in (tmp_path / "keys.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys: []", "keys"),
        ("keys: [{name: a, sha256: abc, scopes: [search]}]", "sha256"),
        ("keys: [{name: a, sha256: '" + "0" * 64 + "', scopes: [all]}]", "scopes"),
        ("keys: [{name: a, sha256: '" + "0" * 64 + "', scopes: [search], filter: 'a; b'}]", "where"),
        ("nothing", "mapping"),
        ("keys: [" + ("{name: a, sha256: '" + "0" * 64 + "', scopes: [search]}, ") * 2 + "]", "twice"),
    ],
)
def test_key_files_that_are_wrong(tmp_path: Path, word_index: str, text: str, message: str) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    status, output = invoke("serve", word_index, "--keys", str(tmp_path / "keys.yaml"))
    assert status == 2
    assert message in output
