"""One real build in a process of its own, that can be told to go wrong: `driver.py CONFIG FAULTS`, FAULTS as JSON.

die: "before:N" or "after:N" kills this process around its Nth commit of documents; after: the commit is there, and the
driver never saw the reply. write_deaths: so many write tasks kill their process when their fragments are on disk and
their records are not returned. slow: seconds that each write task sleeps, so that there is time to be killed. memory:
tokens in a forward pass beyond which the actors' device has no memory left. freeze: the driver stops after its second
lease check, as a process that was suspended, and goes on when there is a file `thaw` beside CONFIG. small_commits:
metadata is committed in four parts, each of which meets every fragment.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import pipelines.indexing.build
import pipelines.indexing.metadata
import pipelines.indexing.operators
from pipelines.config import load_config
from pipelines.indexing.operators import IO_STAGE_RESOURCES
from pipelines.monitor.metrics import MeteredActor
from pipelines.store import commit
from pipelines.store.lease import Lease
from pipelines.store.schema import Target
from pipelines.store.writer import write_block


def die_at_commit(when: str, number: int) -> None:
    real, seen = commit.lance.LanceDataset.commit, 0

    def dying(uri: str, transaction: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += uri.endswith("documents.lance") and isinstance(transaction, commit.lance.Transaction)
        if when == "before" and seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(uri, transaction, *args, **kwargs)
        if when == "after" and seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    commit.lance.LanceDataset.commit = dying


def freeze_after_check(folder: Path) -> None:
    """Stops the lease's beat and the driver, at a point where it believes that it holds the lease."""
    real, seen = Lease.check, 0

    def freezing(self: Lease) -> None:
        nonlocal seen
        real(self)
        seen += 1
        if seen == 2:
            self._stop.set()
            (folder / "frozen").touch()
            while not (folder / "thaw").exists():
                time.sleep(0.2)

    Lease.check = freezing  # type: ignore[method-assign]


def commit_metadata_in_parts(parts: int) -> None:
    """Cuts what would be one commit of metadata, for a corpus of this size, into several."""
    real = pipelines.indexing.metadata._batches

    def in_parts(*arguments: Any) -> Iterator[pa.Table]:
        for rows in real(*arguments):
            numbers = np.arange(len(rows))
            yield from (rows.take(pa.array(numbers[numbers % parts == part])) for part in range(parts))

    pipelines.indexing.metadata._batches = in_parts


def small_device(tokens: int) -> Any:
    """Embedding actors whose device holds a forward pass of so many tokens."""

    class SmallActor(MeteredActor):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            import torch

            backbone = self.embedder.engine.backbone
            forward = backbone.forward

            def limited(ids: Any, offsets: Any) -> Any:
                if len(ids) > tokens:
                    raise torch.OutOfMemoryError(f"no memory for {len(ids)} tokens")
                return forward(ids, offsets)

            backbone.forward = limited  # type: ignore[method-assign]

    return lambda embedder: type(f"Embed_{embedder}", (SmallActor,), {})


def slow_and_mortal(folder: str, deaths: int, seconds: float) -> Any:
    """A write task that sleeps, writes, and then dies without an answer until it has died `deaths` times."""

    def write(table: pa.Table, target: Target) -> pa.Table:
        time.sleep(seconds)
        records = write_block(table, target)
        for i in range(deaths):
            try:
                Path(folder, f"death-{i}").touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return records

    return write


def main(path: str, faults: dict[str, Any]) -> None:
    folder = Path(path).parent
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    IO_STAGE_RESOURCES["num_cpus"] = (
        1  # few worker processes: each takes seconds to start, and they are most of what a job costs
    )
    if "die" in faults:
        when, number = faults["die"].split(":")
        die_at_commit(when, int(number))
    if "memory" in faults:
        pipelines.indexing.operators.actor_class_for = small_device(faults["memory"])
    if "freeze" in faults:
        freeze_after_check(folder)
    if "small_commits" in faults:
        commit_metadata_in_parts(4)
    pipelines.indexing.build.write_block = slow_and_mortal(
        str(folder), faults.get("write_deaths", 0), faults.get("slow", 0.0)
    )
    sys.stdout.write(json.dumps(pipelines.indexing.build.build_index(load_config(path)).to_dict()) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
