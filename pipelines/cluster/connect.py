"""Connects to Ray, or starts a local Ray for the duration of the job.

A local Ray gets one CPU more than the machine has: the light stages (reading, tokenising, writing) then always find a
slot beside one model a core, and the operating system shares the cores out. Everything binds to the loopback interface.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.util.debug import log_once

from actors.spec import EmbedderSpec
from pipelines.cluster.preflight import check_address, give_token_without_home, local_folder
from pipelines.config import ConfigError, EmbedderConfig, RayConfig, WorkFailed

LOOPBACK = "127.0.0.1"

T = TypeVar("T")


@contextmanager
def running(config: RayConfig) -> Iterator[None]:
    """Connects to Ray: the process's own connection, else `address` or `RAY_ADDRESS`, else a new local one."""
    if ray.is_initialized():
        _disable_ray_output()
        yield
        return
    _connect(config)
    try:
        _disable_ray_output()
        yield
    finally:
        ray.shutdown()


def _connect(config: RayConfig) -> None:
    address = config.address or os.environ.get("RAY_ADDRESS")
    setting = "ray.address" if config.address else "RAY_ADDRESS"
    # Ray's core warns on stderr, as an error, that actors have arguments in the object store. Ray Data holds them.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    silent: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with warnings.catch_warnings(), _without(b"Set ray log level from environment variable"):
        # Lance warns of every fork; Ray forks only to execute another program at once, which is safe.
        warnings.filterwarnings("ignore", message="lance")
        if address and address != "local":
            check_address(address, setting)
            with _convert_ray_errors(f"{setting} {address}: no connection to a Ray cluster"):
                ray.init(address=address, **silent)
            return
        cpus = config.num_cpus or (os.cpu_count() or 1) + 1
        give_token_without_home()
        where = {"_temp_dir": local_folder(), "_node_ip_address": LOOPBACK}
        with _convert_ray_errors("Ray could not be started on this machine"):
            _start_local(num_cpus=cpus, include_dashboard=False, **where, **silent)


def _start_local(**options: Any) -> None:
    """Starts a local Ray; WorkFailed if it was not up in time twice.

    Ray gives its node 30 s, which is too short where other programs occupy the processors, and then raises a plain
    Exception. What was started for the first attempt ends with this process.
    """
    for last in (False, True):
        try:
            ray.init(address="local", **options)
            return
        except Exception as error:
            if type(error) is not Exception:
                raise
            if last:
                raise WorkFailed(
                    "Ray did not start on this machine within 30 s, twice: other programs occupy its processors or "
                    "memory; try again when they are free, or name a running Ray with ray.address"
                ) from error
            ray.shutdown()


@contextmanager
def _convert_ray_errors(problem: str) -> Iterator[None]:
    """Converts Ray's errors on connecting or starting to a ConfigError of one line."""
    from ray.exceptions import AuthenticationError, RayError

    try:
        yield
    except AuthenticationError as error:
        raise ConfigError(
            f"{problem}: it requires a token that is missing or wrong; `ray get-auth-token` on its head prints it, "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH gives it to this command"
        ) from error
    except WorkFailed:
        raise
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{problem}: {' '.join(str(error).split())[:300]}") from error


@contextmanager
def _without(chatter: bytes) -> Iterator[None]:
    """Buffers stderr during the block, then prints it without the lines that contain a text.

    Ray's C++ core writes past Python, and cannot be told to be silent without saying so.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            held.seek(0)
            for line in held:
                if chatter not in line:
                    os.write(2, line)


def _disable_ray_output() -> None:
    """Turns off Ray Data's progress bars and its notice about that; tridex prints its own progress."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    log_once("ray_data_progress_manager_disabled")
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def run_on_worker(function: Callable[..., T], *arguments: Any) -> T:
    """Runs a function on a worker, so that the driver needs neither the model's files nor torch's memory."""
    result: T = ray.get(ray.remote(num_cpus=0.25)(function).remote(*arguments))
    return result


@contextmanager
def as_config_error(setting: str, *kinds: type[Exception]) -> Iterator[None]:
    """Converts a worker's errors of these kinds to a ConfigError that names the setting; other errors propagate."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, kinds):
            raise ConfigError(f"{setting}: {error.cause}") from error
        raise


def describe_embedders(embedders: Sequence[EmbedderConfig]) -> dict[str, dict[str, Any]]:
    """Describes identity and outputs of each embedder by name, on a worker: the driver need not have the models.

    ConfigError where a model cannot be used.
    """
    pending = {e.name: ray.remote(num_cpus=0.25)(_describe).remote(e.spec()) for e in embedders}
    found: dict[str, dict[str, Any]] = {}
    for i, embedder in enumerate(embedders):
        with as_config_error(f"embedders.{i} ({embedder.model})", ValueError):
            found[embedder.name] = ray.get(pending[embedder.name])
    return found


def describe_locally(embedders: Sequence[EmbedderConfig]) -> dict[str, dict[str, Any]]:
    """Describes embedders as `describe_embedders` does, in this process: without Ray, with local model files."""
    found: dict[str, dict[str, Any]] = {}
    for i, embedder in enumerate(embedders):
        try:
            found[embedder.name] = _describe(embedder.spec())
        except ValueError as error:
            raise ConfigError(f"embedders.{i} ({embedder.model}): {error}") from error
    return found


def _describe(spec: EmbedderSpec) -> dict[str, Any]:
    from actors.models.identity import available_outputs, describe
    from actors.models.preparation import load_preparation

    preparation = load_preparation(spec)
    return {**describe(preparation), "outputs": list(available_outputs(preparation))}
