"""Runs the application: under uvicorn in this process, in replicas of Ray Serve, or as an MCP server on stdio."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket

from pipelines.config import ConfigError, WorkFailed
from pipelines.serving.settings import ServeConfig

log = logging.getLogger("tridex.serve")
DRAIN_SECONDS = 30
"""How long requests that are being answered may take after SIGTERM."""


def is_loopback(host: str) -> bool:
    """Returns whether an address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(config: ServeConfig, host: str) -> None:
    """Raises ConfigError if a server without keys would be reachable from other machines without explicit consent."""
    if config.keys is None and not is_loopback(host) and not config.any_host:
        raise ConfigError(
            f"--host {host}: without a key file the server listens on loopback only; give --keys FILE "
            "(`tridex serve-key` makes keys), or --any-host if something before it checks who may ask"
        )


def serve(config: ServeConfig, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serves until SIGTERM or SIGINT; then closes the socket, finishes requests in progress and returns."""
    import uvicorn

    from pipelines.serving.app import create_app

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    check_exposure(config, host)
    listening = bind(host, port)
    app = create_app(config)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    whom = "keys are needed" if config.keys is not None else "no keys: whoever reaches this address may search"
    log.info("%s (%s)", where, whom)
    settings = uvicorn.Config(
        app,
        access_log=False,
        server_header=False,
        log_config=None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        backlog=2048,
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises it again after draining: no failure
        signal.signal(number, lambda *_: None)
    uvicorn.Server(settings).run([listening])


def bind(host: str, port: int) -> socket.socket:
    """Opens a listening socket; WorkFailed if the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise WorkFailed(f"cannot listen on {host}:{port}: {error}") from error
    return listening


def serve_mcp(config: ServeConfig) -> None:
    """Serves MCP on standard input and output; logs go to standard error."""
    from pipelines.serving.app import follow, open_service
    from pipelines.serving.mcp_tools import serve_stdio

    logging.basicConfig(level=logging.WARNING)
    service = open_service(config)

    async def run() -> None:
        following = asyncio.create_task(follow(service))
        assert service.keys.anonymous is not None, "stdio has no keys"
        try:
            await serve_stdio(service, service.keys.anonymous)
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following

    asyncio.run(run())
