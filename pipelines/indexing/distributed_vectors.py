"""Builds vector indexes on the workers of a Ray cluster, for tables that would keep one machine busy for hours.

lance-ray does it. Centroids are trained on a sample, here; each worker then codes some of the fragments, and one commit
adds what all of them made. The price is an index in as many segments as there were workers, each of which a search has
to ask, and a package more (the extra `distributed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from actors.extras import require_extra
from pipelines.search_indexes.vectors import METRIC, index_name
from pipelines.store.table import Snapshot

RABITQ_BITS = 5
"""Lance's own default. lance-ray 0.5 makes a model of 1 bit, which Lance 14 then refuses."""


def create_on_ray(snapshot: Snapshot, column: str, kind: str, chosen: Mapping[str, Any]) -> None:
    """Builds as `store.vectors.create_here`, on the Ray that this process is connected to: one worker per CPU."""
    require_extra("distributed", "building a vector index on Ray")
    from lance_ray import create_index

    bits = {"num_bits": RABITQ_BITS} if kind == "IVF_RQ" else {}
    create_index(
        snapshot.dataset.uri,
        column,
        kind,
        name=index_name(column),
        metric=METRIC,
        num_workers=max(1, int(ray.cluster_resources().get("CPU", 1))),
        storage_options=dict(snapshot.storage_options) or None,
        **bits,
        **chosen,
    )
