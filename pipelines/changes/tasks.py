"""Runs the steps of change detection and of metadata updates: in this process, or as Ray tasks.

Both have the same two methods, so the steps do not depend on where they run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class InProcess:
    """Runs the steps in this process, one after the other, on one CPU without start-up time."""

    def submit(self, step: Callable[..., Any], returns: int, *args: Any) -> list[Any]:
        result = step(*args)
        return list(result) if returns > 1 else [result]

    def get(self, handle: Any) -> Any:
        return handle


class OnRay:
    """Runs the steps as Ray tasks; handles are object references, so parts pass between tasks without the driver."""

    def submit(self, step: Callable[..., Any], returns: int, *args: Any) -> list[Any]:
        import ray

        task = ray.remote(step).options(num_returns=returns, name=f"changes.{step.__name__}", max_retries=10)
        handles = task.remote(*args)
        return list(handles) if returns > 1 else [handles]

    def get(self, handle: Any) -> Any:
        import ray

        return ray.get(handle)


Tasks = InProcess | OnRay
