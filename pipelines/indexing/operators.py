"""Holds what the stages of a job share: the facts known before it starts, and an embedder's Ray operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from actors.codecs.parameters import from_metadata
from actors.pool import CPU_HEADROOM, pool_size
from actors.spec import Output, PoolSpec
from pipelines.changes.selection import RowFilter
from pipelines.config import BuildConfig, EmbedderConfig
from pipelines.indexing.stages import EncodeOutputs
from pipelines.monitor.metrics import actor_class_for
from pipelines.reading.units import Unit
from pipelines.store.schema import Target, output_field
from pipelines.store.skipped import Skipped

IO_STAGE_RESOURCES: dict[str, Any] = {"num_cpus": 0.25, "batch_format": "pyarrow"}
"""Stages that wait for disks and networks more than they compute."""


@dataclass(frozen=True, slots=True)
class Job:
    """Holds what is known before the first document is read."""

    config: BuildConfig
    units: list[Unit]
    fields: list[pa.Field]
    """Metadata columns that are kept."""
    target: Target
    only: RowFilter | None = None
    """Rows that the job is limited to; None: all. Change detection looks at all of them."""
    skipped: tuple[Skipped, ...] = ()
    """Files that are not read."""

    def wants(self, unit: Unit) -> bool:
        """Returns whether the unit can hold a wanted row; a piece of a JSON Lines file is named FILE@BYTE."""
        return self.only is None or any(s == p or s.startswith(f"{p}@") for p in unit.paths for s in self.only)


def add_embedder_pool(
    data: ray.data.Dataset,
    job: Job,
    embedder: EmbedderConfig,
    rows: int,
    expected: int,
    outputs: tuple[Output, ...] | None = None,
) -> ray.data.Dataset:
    """Adds one embedder's pool over `expected` rows in blocks of `rows`; `outputs` None: all that the index stores.

    The number of actors is fixed: Ray starts a pool that may grow with its minimum, and was seen never to add the
    second actor to a job of 16 seconds.
    """
    spec = embedder.pool.spec()
    size = count_actors(job, embedder, rows, expected)
    typed = {} if spec.accelerator_type is None else {"accelerator_type": spec.accelerator_type}
    return data.map_batches(
        actor_class_for(embedder.name),
        fn_constructor_args=actor_arguments(job, embedder, outputs),
        batch_size=rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=size),
        num_cpus=choose_cpus_per_actor(job, spec, size),
        num_gpus=spec.num_gpus or None,
        **typed,
    )


def actor_arguments(job: Job, embedder: EmbedderConfig, outputs: tuple[Output, ...] | None = None) -> tuple[Any, ...]:
    """Returns the constructor's arguments of an embedder's actor; `outputs` None: all that the index stores."""
    described = job.target.identity.embedders[embedder.name]
    outputs = outputs or tuple(described["outputs"])
    fields = tuple(output_field(embedder.name, described, output) for output in outputs)
    finish = EncodeOutputs(embedder, from_metadata(job.target.schema.metadata, embedder.name))
    return job.config.job.id, embedder.spec(), embedder.name, outputs, fields, finish, finish.on_device


def count_most_actors(job: Job) -> int:
    """Returns the actors of the largest pool."""
    return max(_count_fitting_actors(job, embedder) for embedder in job.config.embedders)


def _count_fitting_actors(job: Job, embedder: EmbedderConfig) -> int:
    """Counts the actors of a pool that the cluster has room for, beside the job's other pools."""
    return pool_size(embedder.pool.spec(), ray.cluster_resources(), 1 / len(job.config.embedders))


def count_actors(job: Job, embedder: EmbedderConfig, rows: int, expected: int) -> int:
    """Returns as many actors as configuration and cluster allow, but none that would get no block."""
    return max(1, min(_count_fitting_actors(job, embedder), -(-expected // rows)))


def choose_cpus_per_actor(job: Job, spec: PoolSpec, size: int) -> float:
    """Returns the CPUs that the pool is configured with, or less if that would starve the stages before it.

    Ray would then wait forever for a CPU. Two pools of one actor each already come to that on a machine of two CPUs.
    """
    free = max(0.0, ray.cluster_resources().get("CPU", 0.0) - CPU_HEADROOM) / len(job.config.embedders)
    return spec.num_cpus if size * spec.num_cpus <= free else round(free / size, 2)
