"""Estimates the seconds of a whole build on this machine from what was measured on it a moment ago.

Ray lowers its workers' priority (niceness 15), so model and imports are timed at that priority: an import of torch took
1.13 and 1.15 times as long there at a load of 25 on two cores. Other work counts as much as it does during
the plan. How many imports a start is worth and what a stored byte costs are constants.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from pipelines.plan.figures import EmbedderPlan

T = TypeVar("T")

START_SECONDS = 5.0
"""What the start of a build on a local Ray waits for, however fast the machine is."""
DRIVER_IMPORTS = 6.0
"""CPU time of the driver and of Ray's own processes, in imports of torch: half of the 12 that 60 documents took."""
WORKER_IMPORTS = 6.0
"""CPU time of workers before the first block and after the last, in imports at their priority: the other half."""
IDLE_IMPORTS = 2.0
"""A build that finds nothing to embed, in imports of torch: 2.4 CPU seconds with 60 documents, 4.1 with 3,923."""
SECONDS_PER_BYTE = 5e-9
"""CPU time per stored byte: 1.3 to 5.5 ns for writing a fragment, .3 to 1.6 for four copies on the way to it."""
FULL_TEXT_SECONDS = 30e-6
"""Per chunk, of the full-text index."""


@dataclass(frozen=True, slots=True)
class Load:
    """Holds the seconds of an import of torch in a new process, now: at this process's priority and at a worker's."""

    driver_import: float
    worker_import: float


def run_at_worker_priority(function: Callable[..., T], *arguments: object) -> T:
    """Runs a function in a thread of the priority that Ray gives its workers; processes that it starts inherit it.

    Priorities belong to threads on Linux only; elsewhere the function runs at this process's.
    """
    with ThreadPoolExecutor(1, initializer=_lower_priority) as executor:
        return executor.submit(function, *arguments).result()


def _lower_priority() -> None:
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112 - spelled so in Ray
        os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), niceness))


def measure_import() -> float:
    """Measures the seconds in which a new process imports torch: processor, disk and other load in one number."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True, stdin=subprocess.DEVNULL)
    return time.monotonic() - began


def measure_load() -> Load:
    """Measures two imports of torch, a few seconds."""
    return Load(measure_import(), run_at_worker_priority(measure_import))


def estimate_build_seconds(
    embedders: Sequence[EmbedderPlan], share: float, chunks: float, preparing: float, full_text: bool, load: Load
) -> float:
    """Estimates the seconds of a build with start-up and search indexes.

    share: of the input that is embedded, in `chunks`; preparing: CPU seconds of chunking and tokenising them. The
    actors of a local Ray share the processors with the stages around them, so the processors' time bounds the build
    from below, as the slowest pool's does.
    """
    if not chunks:
        return IDLE_IMPORTS * load.driver_import
    cpus = os.cpu_count() or 1
    actors = sum(e.working_actors for e in embedders)
    loading = max((e.loading_seconds or 0.0) + load.worker_import for e in embedders) * max(1.0, actors / cpus)
    start = START_SECONDS + DRIVER_IMPORTS * load.driver_import + WORKER_IMPORTS * load.worker_import + loading
    models = 0.0 if torch.cuda.is_available() else sum((e.hours or 0.0) * 3600 * e.actors for e in embedders)
    stages = preparing + SECONDS_PER_BYTE * share * sum(sum(e.bytes.values()) for e in embedders)
    pools = ((e.hours or 0.0) * 3600 * e.actors / e.working_actors for e in embedders)
    return start + max((models + stages) / cpus, *pools) + (chunks * FULL_TEXT_SECONDS if full_text else 0.0)
