"""Addresses, folders and tokens that Ray would try for minutes are judged within seconds, by name."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster import preflight
from pipelines.cluster.connect import running
from pipelines.cluster.preflight import check_address, give_token_without_home, local_folder
from pipelines.config import ConfigError, RayConfig


@pytest.fixture
def web_server() -> Iterator[int]:
    """A port at which something else than Ray answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(100)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            except OSError:
                return

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ray://head:10001", "Ray Client cannot run a build"),
        ("http://head:8265", "that is a dashboard; .*submit --address http://head:8265"),
        ("head", "expected HOST:PORT"),
        ("head:port", "expected HOST:PORT"),
        ("127.0.0.1:99999", "no Ray head answers there"),
        ("nowhere.invalid:6379", "no Ray head answers there"),
    ],
)
def test_addresses_that_cannot_work(address: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS {address}: .*{why}"):
        check_address(address, "RAY_ADDRESS")


def test_a_dead_address_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    address = f"127.0.0.1:{_free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS {address}: no Ray head answers there: Connection refused"):
        running(RayConfig()).__enter__()
    with pytest.raises(ConfigError, match=f"ray.address {address}: "):
        running(RayConfig(address=address)).__enter__()
    assert time.monotonic() - began < 10


def test_something_else_that_listens(web_server: int) -> None:
    with pytest.raises(ConfigError, match="something else listens"):
        check_address(f"127.0.0.1:{web_server}", "RAY_ADDRESS")


def test_something_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ConfigError, match="timed out"):
        check_address(f"127.0.0.1:{server.getsockname()[1]}", "RAY_ADDRESS")


def test_auto_is_left_to_ray() -> None:
    check_address("auto", "RAY_ADDRESS")


def test_a_long_temporary_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long))
    assert local_folder() == "/tmp/ray"
    assert list(long.iterdir()) == []


def test_a_short_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        assert local_folder() == f"{folder}/ray"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").touch()
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nothing")
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR=/proc/nothing: Ray cannot keep its files there"):
        local_folder()


def test_a_home_that_cannot_be_written_gets_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    give_token_without_home()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    give_token_without_home()
    assert "RAY_AUTH_TOKEN" not in os.environ
