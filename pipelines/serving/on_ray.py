"""Runs the application in Ray Serve replicas, for `tridex serve --ray` and for a RayService on Kubernetes.

Every replica opens the indexes, follows their versions and batches by itself. Keys, aliases and indexes are read from
the same files and addresses, so it does not matter which replica takes a request; two replicas may answer from
neighbouring versions for as long as `refresh_seconds`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

from fastapi import FastAPI
from ray import serve

from pipelines.cluster.connect import running
from pipelines.config import RayConfig, WorkFailed, read_yaml, validated
from pipelines.serving.app import create_app, open_service
from pipelines.serving.run import DRAIN_SECONDS, check_exposure
from pipelines.serving.settings import ServeConfig

log = logging.getLogger("tridex.serve")
APPLICATION = "tridex"


class Replica:
    """Runs one replica; Ray calls `__serve_build_asgi_app__` after starting it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = validated(ServeConfig, config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        self.application = create_app(self.config)
        return self.application

    def check_health(self) -> None:
        """Raises if the application was not built, so that Ray replaces the replica."""
        if not hasattr(self, "application"):
            raise RuntimeError("the application is not built yet")


def deployment(config: ServeConfig, replicas: int = 1, num_cpus: float = 1) -> serve.Application:
    """Builds the Ray Serve deployment; its queue holds what one replica answers concurrently."""
    made = serve.deployment(
        serve.ingress()(Replica),
        name=APPLICATION,
        num_replicas=replicas,
        max_ongoing_requests=config.limits.concurrency,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": num_cpus},
    )
    return made.bind(config.model_dump(mode="json"))


def application(arguments: dict[str, Any]) -> serve.Application:
    """Builds the application for `import_path: pipelines.serving.on_ray:application` in a Serve config file.

    arguments: `config`, a YAML file, or the fields of `ServeConfig` themselves; `replicas`; `num_cpus`.
    """
    given = dict(arguments)
    replicas, num_cpus, path = given.pop("replicas", 1), given.pop("num_cpus", 1), given.pop("config", None)
    tree = {**(read_yaml(path) if path is not None else {}), **given}
    return deployment(validated(ServeConfig, tree), int(replicas), float(num_cpus))


def serve_on_ray(config: ServeConfig, host: str, port: int, replicas: int, address: str | None) -> None:
    """Serves on a running Ray, or on a local one, until SIGTERM or SIGINT."""
    check_exposure(config, host)
    open_service(config).threads.shutdown()  # reports a missing index here, not in a replica's log
    stopped = threading.Event()
    with running(RayConfig(address=address, progress=False)):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(deployment(config, replicas), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise WorkFailed(f"Ray Serve did not start the application: {error}") from error
        log.warning("http://%s:%d, %d replicas, pid %d", host, port, replicas, os.getpid())
        stopped.wait()
        serve.shutdown()
