"""Reads and records how far feeds of events are applied (`Index.apply`).

Each commit of a feed names the positions in its transaction's properties. A copy in the schema metadata, with the
version at which it was made, bounds the search for the newest: transactions since then are looked at, newest first.
`record_event_positions` renews the copy; it has to run before transactions are removed, and `optimize` does that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import lance

from pipelines.store.commit import commit_once, read_properties
from pipelines.store.lease import Lease
from pipelines.store.schema import Target

EVENTS = "events"
"""Transaction property: JSON of the last applied position by partition."""
POSITIONS_KEY = "tridex.events"
"""Schema metadata: JSON of `positions`, and the `version` from which on transactions may name newer ones."""


def read_event_positions(dataset: lance.LanceDataset) -> dict[str, int] | None:
    """Returns the last applied position by partition; None if no feed was ever applied to this table."""
    text = (dataset.schema.metadata or {}).get(POSITIONS_KEY.encode())
    if text is None:
        return None
    recorded = json.loads(text)
    for version in range(dataset.version, recorded["version"], -1):
        properties = read_properties(dataset, version)
        if EVENTS in properties:
            return dict(json.loads(properties[EVENTS]))
    return dict(recorded["positions"])


def record_event_positions(target: Target, lease: Lease, positions: Mapping[str, int]) -> lance.LanceDataset:
    """Copies positions into the schema metadata, in a commit of its own."""

    def operation(dataset: lance.LanceDataset) -> Any:
        recorded = json.dumps({"positions": dict(positions), "version": dataset.version})
        change = lance.LanceOperation.UpdateMap({POSITIONS_KEY: recorded})
        return lance.LanceOperation.UpdateConfig(schema_metadata_updates=change)

    properties = {"job": target.job, "run": target.run, "seq": "positions"}
    return commit_once(target.documents_uri, target.storage_options, operation, properties, lease.check)


def keep_event_positions(target: Target, lease: Lease) -> None:
    """Renews the copy if transactions name newer positions; run it before old transactions are removed."""
    dataset = lance.dataset(target.documents_uri, storage_options=dict(target.storage_options))
    positions = read_event_positions(dataset)
    text = (dataset.schema.metadata or {}).get(POSITIONS_KEY.encode())
    if positions is not None and text is not None and positions != json.loads(text)["positions"]:
        record_event_positions(target, lease, positions)
