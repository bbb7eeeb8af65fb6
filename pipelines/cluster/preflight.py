"""Checks addresses, socket paths and the token in seconds, where Ray would retry for minutes or end the process.

Ray retries a dead address for a quarter of an hour and aborts where its sockets' paths are too long; it also needs a
file in the home folder, which a service's user may not have.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

from pipelines.config import ConfigError

CONNECT_SECONDS = 10.0
MAX_SOCKET_PATH = 103
"""Bytes of a socket's path that every kernel takes (Linux: 107)."""
SESSION = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray adds to its temporary folder, at its longest."""
FALLBACK = "/tmp"  # Ray's own default

_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How a gRPC client opens a connection: the preface and empty settings. A server answers with its settings."""
_SETTINGS = 4


def check_address(address: str, setting: str) -> None:
    """Raises ConfigError if no Ray head answers at an address; `setting` is the setting that holds the address."""
    scheme, separator, _ = address.partition("://")
    if separator and scheme == "ray":
        raise ConfigError(
            f"{setting} {address}: Ray Client cannot run a build; give HOST:PORT of the head (port 6379) on a machine "
            "of the cluster, or use `tridex submit --address http://HOST:8265` from elsewhere"
        )
    if separator and scheme in ("http", "https"):
        raise ConfigError(
            f"{setting} {address}: that is a dashboard; give HOST:PORT of the head (6379) on a machine of the cluster, "
            f"or use `tridex submit --address {address}`"
        )
    host, colon, port = address.rpartition(":")
    if separator or address == "auto":
        return
    if not colon or not host or not port.isdigit():
        raise ConfigError(f"{setting} {address}: expected HOST:PORT of a Ray head, or auto")
    problem = _probe(host.strip("[]"), int(port))
    if problem is not None:
        raise ConfigError(f"{setting} {address}: no Ray head answers there: {problem}")


def _probe(host: str, port: int) -> str | None:
    """Probes an address and returns what is wrong with it; None if a gRPC server answers."""
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
            connection.settimeout(CONNECT_SECONDS)
            connection.sendall(_HTTP2_HELLO)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return None if len(answer) >= 4 and answer[3] == _SETTINGS else "something else listens"


def local_folder() -> str | None:
    """Returns a temporary folder for a local Ray if Ray's default is unusable; otherwise None.

    ConfigError names the variable whose folder cannot be written.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    base = os.environ[variable] if variable else FALLBACK
    if len(os.fsencode(base)) + len(SESSION) > MAX_SOCKET_PATH:
        base, variable = FALLBACK, None
    folder = Path(base, "ray")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        named = f"{variable}={base}" if variable else base
        raise ConfigError(f"{named}: Ray cannot keep its files there: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        return _create_user_folder(base)
    return str(folder)


def _create_user_folder(base: str) -> str:
    """Creates a folder of this user beside one that another user owns."""
    folder = Path(base, f"ray-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{base}: Ray cannot keep its files there: {error.strerror}") from error
    return str(folder)


def give_token_without_home() -> None:
    """Sets a token for a local Ray if Ray cannot write its generated one to `~/.ray`."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    if not _home_has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _home_has_token() -> bool:
    """Returns whether `~/.ray/auth_token` can be read or created."""
    try:
        folder = Path.home() / ".ray"
        if (folder / "auth_token").exists():
            return os.access(folder / "auth_token", os.R_OK)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return False
    return os.access(folder, os.W_OK | os.X_OK)
