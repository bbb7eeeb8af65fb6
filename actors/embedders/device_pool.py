"""Runs one model on several devices: a process for each, batches distributed by tokens, errors returned.

A batch goes to whichever process is idle, longest texts first, so a slow device or a run of long texts delays nobody.
Processes are started as fresh interpreters, not by multiprocessing's spawn, so the caller's script needs no main guard;
each ends when its pipe to the parent closes, however the parent ends. The cost: every process loads the weights anew.
POSIX only.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from actors.compute.batching import inverse_permutation, plan_batches
from actors.embedders.engine import EncodeRequest
from actors.outputs import EmbeddingBatch, TokenBatch, concat
from actors.spec import EmbedderSpec

Devices = str | int | Sequence[str | int] | None
Job = tuple[TokenBatch, EncodeRequest]
Answer = EmbeddingBatch | tuple[Exception, str]
SHARES = 8
"""Batches for each device in one call: enough that the last one to finish is not waited for long."""
LEAST_SHARE = 4096
"""Tokens below which a batch is not worth the trip to another process."""


def device_names(devices: Devices) -> list[str]:
    """Converts FlagEmbedding's `devices` to torch names; None: every accelerator, else the CPU.

    ValueError if invalid.
    """
    if devices is None:
        return _all_accelerators() or ["cpu"]
    listed = [devices] if isinstance(devices, (str, int)) else devices
    if not isinstance(listed, Sequence) or not listed:
        raise ValueError(f"devices must be a name, a number, or a list of either with at least one, got {devices!r}")
    return [_device_name(device) for device in listed]


def _all_accelerators() -> list[str]:
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    return [f"{kind}:{i}" for i in range(torch.accelerator.device_count())]


def _device_name(device: object) -> str:
    if isinstance(device, bool) or not isinstance(device, (str, int)):
        raise ValueError(f"devices must be names or numbers, got {device!r}")
    name = f"cuda:{device}" if isinstance(device, int) else device
    try:
        parsed = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: {str(error).splitlines()[0]}") from None
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return name


@dataclass(slots=True, eq=False)
class Worker:
    """Holds a process and this side of its pipe."""

    device: str
    process: subprocess.Popen[bytes]
    pipe: Connection


class DevicePool:
    """Embeds by one model on several devices. Threads may share it; their calls run one after the other."""

    def __init__(self, spec: EmbedderSpec, devices: Sequence[str]) -> None:
        self.specs = [_on_device(spec, device, len(devices)) for device in devices]
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._workers: list[Worker] = []
        self._finalizer: weakref.finalize[[list[Worker]], Any] | None = None

    def embed_tokens(self, tokens: TokenBatch, request: EncodeRequest) -> EmbeddingBatch:
        """Embeds as `Engine.embed_tokens`, each batch on some device.

        Raises what a worker raised, with the worker's traceback as its cause; RuntimeError if a worker has died.
        """
        share = max(LEAST_SHARE, int(tokens.lengths.sum()) // (SHARES * len(self.specs)))
        if os.getpid() != self._pid:  # a forked child: the processes and their pipes belong to its parent
            self._lock, self._pid, self._finalizer, self._workers = threading.Lock(), os.getpid(), None, []
        batches = plan_batches(tokens.lengths, share) or [tokens.lengths]
        with self._lock:
            self._start()
            try:
                results, failure = self._run([(tokens.take(rows), request) for rows in batches])
            except BaseException:  # a dead worker, Ctrl-C: answers may still be under way, and nobody may read them
                self.close()
                raise
        if failure is not None:
            raise failure
        return concat([results[number] for number in range(len(batches))]).take(inverse_permutation(batches))

    def close(self) -> None:
        """Stops the processes; the next call starts them again."""
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer, self._workers = None, []

    def _start(self) -> None:
        if self._workers:
            return
        self._workers = [_spawn(spec) for spec in self.specs]
        self._finalizer = weakref.finalize(self, _stop, self._workers)

    def _run(self, jobs: list[Job]) -> tuple[dict[int, EmbeddingBatch], Exception | None]:
        """Collects results by job number. After a failure no further job is sent, but every answer is awaited."""
        results: dict[int, EmbeddingBatch] = {}
        waiting = list(enumerate(jobs))[::-1]
        busy: dict[Connection, tuple[Worker, int]] = {}
        failure: Exception | None = None
        idle = list(self._workers)
        while busy or (waiting and failure is None):
            while idle and waiting and failure is None:
                worker, (number, job) = idle.pop(), waiting.pop()
                busy[worker.pipe] = (worker, number)
                _send(worker, job)
            ready = wait(list(busy))
            for pipe in [pipe for pipe in busy if pipe in ready]:
                worker, number = busy.pop(pipe)
                answer = _receive(worker)
                idle.append(worker)
                if isinstance(answer, EmbeddingBatch):
                    results[number] = answer
                else:
                    failure = answer
        return results, failure


def _send(worker: Worker, job: Job) -> None:
    try:
        worker.pipe.send(job)
    except ConnectionError:
        raise _died(worker) from None


def _receive(worker: Worker) -> EmbeddingBatch | Exception:
    try:
        return _unpacked(worker.pipe.recv())
    except (EOFError, ConnectionError):
        raise _died(worker) from None


def _died(worker: Worker) -> RuntimeError:
    status = worker.process.wait()
    return RuntimeError(f"the process of device {worker.device} ended with status {status} in the middle of its work")


class WorkerTraceback(Exception):
    """Carries the traceback of the other process as the cause of the exception that the caller gets."""


def _unpacked(answer: Answer) -> EmbeddingBatch | Exception:
    if isinstance(answer, EmbeddingBatch):
        return answer
    error, text = answer
    error.__cause__ = WorkerTraceback(f"\n{text}")
    return error


def _on_device(spec: EmbedderSpec, device: str, n_devices: int) -> EmbedderSpec:
    """Returns the spec for one process of several; CPU processes share the threads."""
    threads = spec.compute.threads
    if threads is None and torch.device(device).type == "cpu":
        threads = max(1, torch.get_num_threads() // n_devices)
    return replace(spec, compute=replace(spec.compute, device=device, threads=threads))


def _spawn(spec: EmbedderSpec) -> Worker:
    ours, theirs = Pipe()
    number = theirs.fileno()
    process = subprocess.Popen(
        [sys.executable, "-c", f"from actors.embedders.device_pool import serve; serve({number})"],
        pass_fds=[number],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},  # noqa: PTH109
    )
    theirs.close()
    ours.send(spec)
    return Worker(str(spec.compute.device), process, ours)


def _stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.pipe.close()
    for worker in workers:
        try:
            worker.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def serve(descriptor: int) -> None:
    """Runs in the other process: receives a spec, then jobs, and answers each, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    pipe = Connection(descriptor)
    try:
        embed = _answering(pipe.recv())
        while True:
            pipe.send(embed(pipe.recv()))
    except (EOFError, BrokenPipeError):
        return


def _answering(spec: EmbedderSpec) -> Callable[[Job], Answer]:
    """Loads the model and embeds; an exception of either becomes the answer to each job."""
    from actors.embedders.registry import load_embedder

    try:
        engine = load_embedder(spec).engine
    except Exception as error:
        answer = _packed(error)
        return lambda job: answer

    def embed(job: Job) -> Answer:
        try:
            return engine.embed_tokens(*job)
        except Exception as error:
            return _packed(error)

    return embed


def _packed(error: Exception) -> tuple[Exception, str]:
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own exception, to see that it survives the trip
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return error, text
