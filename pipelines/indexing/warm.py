"""Keeps models loaded between the builds of one process, and embeds small changes with them, without a Ray Data job.

A pool of actors costs seconds to start, tens of them with Ray and its models, which is nothing for a corpus and most
of the time for ten documents. The stages are the job's own, called one after the other on blocks of its sizes, so rows,
vectors and records are the same. Memory is bounded by one fragment, as in a write task.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.config import BuildConfig
from pipelines.indexing.operators import Job, actor_arguments
from pipelines.indexing.sizing import choose_block_rows, choose_fragment_rows, estimate_row_bytes
from pipelines.indexing.stages import chunk, select_documents, tokenise
from pipelines.monitor.metrics import MeteredActor, actor_class_for
from pipelines.store.writer import write_block

MAX_DOCUMENTS = 2000
"""Changes of more documents go to a Ray Data job and its pools."""


@dataclass(slots=True)
class WarmModels:
    """Holds the loaded models of the builds of one process, and the Ray that one of them started."""

    stack: ExitStack = field(default_factory=ExitStack)
    """Of what lives as long as the models do: a local Ray, once a build needs one."""
    on_cluster: bool = False
    """Only the cluster's machines may have the input and the models, so its pools embed every change."""
    _actors: dict[str, MeteredActor] = field(default_factory=dict)

    def takes(self, config: BuildConfig, documents: int) -> bool:
        """Returns whether a change is embedded here: a small one, of texts, in a process that can read the input."""
        return documents <= MAX_DOCUMENTS and config.input.pictures is None and not self.on_cluster

    def embed(self, job: Job, work: Sequence[Mapping[str, bytes]]) -> Generator[dict[str, Any]]:
        """Yields the records of the fragments that the pending units produce, as a job's workers return them."""
        pending: list[pa.Table] = []
        for pair in work:
            units = pa.table({"work": [pair["work"]]})
            for documents in select_documents(units, job.config, job.fields, job.only):
                rows = tokenise(chunk(documents, job.config), job.config.embedders)
                if not len(rows):
                    continue
                size = estimate_row_bytes(job.target.identity, rows)
                block = choose_block_rows(job.config, size)
                fragment = choose_fragment_rows(job.config, size, block)
                for first in range(0, len(rows), block):
                    pending.append(self._embed_block(job, rows.slice(first, block)))
                    if sum(len(table) for table in pending) >= fragment:
                        yield from _write(pending, job)
                        pending = []
        if pending:
            yield from _write(pending, job)

    def _embed_block(self, job: Job, rows: pa.Table) -> pa.Table:
        for embedder in job.config.embedders:
            arguments = actor_arguments(job, embedder)
            key = json.dumps([embedder.name, job.target.identity.embedders[embedder.name], job.config.job.id])
            if key not in self._actors:
                self._actors[key] = actor_class_for(embedder.name)(*arguments)
            rows = self._actors[key](rows)
        return rows


def _write(tables: Sequence[pa.Table], job: Job) -> Iterator[dict[str, Any]]:
    yield from write_block(pa.concat_tables(tables).combine_chunks(), job.target).to_pylist()
