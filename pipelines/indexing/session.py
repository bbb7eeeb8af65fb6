"""Starts Ray when a job first needs it: a run that finds nothing to do ends without it, in seconds.

Where Ray is there already, or is a cluster's, it is used from the start: only its machines may have the files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, TypeVar

import ray

from actors.checkpoints.loading import resolve_folder
from pipelines.changes.tasks import InProcess, OnRay, Tasks
from pipelines.cluster.connect import describe_embedders, describe_locally, run_on_worker, running
from pipelines.config import ConfigError, EmbedderConfig, RayConfig
from pipelines.monitor.runlog import RunLog

T = TypeVar("T")

NEEDED_CPUS = 1.0
"""Free CPUs with which a job goes ahead: one for a model, parts of others for the stages around it."""


def describe_wait() -> str | None:
    """Describes a wait for CPUs that other jobs hold; None if enough are free.

    Call it when no task of this job runs. Ray hears of released CPUs with some delay, so a cluster that looks full
    is looked at twice.
    """
    for pause in (0.5, 0.0):
        total, free = (found.get("CPU", 0.0) for found in (ray.cluster_resources(), ray.available_resources()))
        if free >= min(NEEDED_CPUS, total):
            return None
        time.sleep(pause)
    return f"waiting for CPUs: other jobs have {total - free:g} of {total:g}"


def uses_running_ray(config: RayConfig) -> bool:
    """Returns whether the job runs on a Ray that is running, whose machines may have other files than this one."""
    return ray.is_initialized() or bool(config.address or os.environ.get("RAY_ADDRESS"))


def find_models(embedders: Sequence[EmbedderConfig]) -> None:
    """Finds the folders of all models in this process, and downloads those of the hub; loads nothing.

    Raises ConfigError within seconds for a wrong name or a hub that does not answer: starting Ray takes half a minute.
    """
    for i, embedder in enumerate(embedders):
        spec = embedder.spec()
        try:
            resolve_folder(spec.model, spec.revision, spec.cache_dir, spec.trust_remote_code)
        except ValueError as error:
            raise ConfigError(f"embedders.{i} ({embedder.model}): {error}") from error


class RaySession(AbstractContextManager["RaySession"]):
    """Runs a job's steps: in this process until `connect` is called, then on Ray.

    Use it as a context manager; a Ray that it started ends with it.
    """

    def __init__(self, config: RayConfig, log: RunLog, *, start: bool, keep: ExitStack | None = None) -> None:
        """Creates a session; `start` connects at once instead of when Ray is first needed.

        keep: what holds a Ray that is started; None: it ends with the session.
        """
        self._config, self._log, self._stack = config, log, ExitStack()
        self._keep = self._stack if keep is None else keep
        self._start = start or uses_running_ray(config)
        self.is_connected = False

    def __enter__(self) -> RaySession:
        if self._start:
            self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def connect(self) -> None:
        """Starts Ray or connects to it, unless connected."""
        if not self.is_connected:
            with self._log.phase("starting Ray"):
                self._keep.enter_context(running(self._config))
            self.is_connected = True
            self._log.status.waits_for = describe_wait

    @property
    def tasks(self) -> Tasks:
        """Runs steps in this process or on Ray."""
        return OnRay() if self.is_connected else InProcess()

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a function on a worker, or here."""
        return run_on_worker(function, *arguments) if self.is_connected else function(*arguments)

    def describe(self, embedders: tuple[EmbedderConfig, ...]) -> dict[str, dict[str, Any]]:
        """Returns identity and outputs of each embedder by name; ConfigError if a model cannot be used."""
        return describe_embedders(embedders) if self.is_connected else describe_locally(embedders)
