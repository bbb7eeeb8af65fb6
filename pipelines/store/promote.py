"""Promotes one of an index's embedders: searches, `open_index` and servers that name none follow it from then on.

The name lies in the table's schema metadata, so a switch is one commit under the lease, and every reader sees the old
model or the new one, never parts of both: an open index has one embedder at one version. The names that were promoted
before are kept for a rollback.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import lance

from pipelines.config import ConfigError
from pipelines.store.commit import commit_once
from pipelines.store.documents import hold_lease, target_of
from pipelines.store.schema import CHANNELS_KEY, PROMOTED_KEY, Identity, only_embedder, promotions
from pipelines.store.table import open_table

KEPT = 8
"""Names kept for rollbacks."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """Reports a switch of the promoted embedder. version: of the table that has it."""

    uri: str
    promoted: str
    before: str | None
    version: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        return f"{self.uri}: {self.promoted} is promoted since version {self.version}; before: {self.before or 'none'}"


def promote_embedder(
    uri: str, name: str, table: str = "documents", storage_options: Mapping[str, str] | None = None
) -> Promotion:
    """Promotes the embedder `name`. ConfigError if the index has no such embedder, or a job is writing."""
    return _switch(uri, table, storage_options or {}, lambda identity, names: [name, *(n for n in names if n != name)])


def roll_back_embedder(
    uri: str, table: str = "documents", storage_options: Mapping[str, str] | None = None
) -> Promotion:
    """Promotes the embedder that was promoted before; ConfigError if there was none or it was dropped."""

    def previous(identity: Identity, names: list[str]) -> list[str]:
        if len(names) < 2:
            raise ConfigError(f"{uri}: no embedder that was promoted before {names[0] if names else 'now'} is left")
        return [*names[1:], names[0]]

    return _switch(uri, table, storage_options or {}, previous)


def _switch(
    uri: str, table: str, options: Mapping[str, str], choose: Callable[[Identity, list[str]], list[str]]
) -> Promotion:
    target = target_of(open_table(uri, table, options), "promote")
    with hold_lease(target) as lease:
        snapshot = open_table(uri, table, options)
        only = only_embedder(snapshot.identity)
        names = list(promotions(snapshot.schema.metadata)) or [name for name in (only,) if name is not None]
        wanted = choose(snapshot.identity, names)
        if wanted[0] not in snapshot.identity.embedders:
            raise ConfigError(f"{uri}: the index has no {wanted[0]!r}; it has {', '.join(snapshot.identity.embedders)}")
        cleared = {CHANNELS_KEY.decode(): None} if CHANNELS_KEY in (snapshot.schema.metadata or {}) else {}
        change = lance.LanceOperation.UpdateMap({PROMOTED_KEY.decode(): json.dumps(wanted[:KEPT]), **cleared})
        done = commit_once(
            target.documents_uri,
            options,
            lambda _: lance.LanceOperation.UpdateConfig(schema_metadata_updates=change),
            {"job": target.job, "run": target.run, "seq": "promote"},
            lease.check,
        )
        return Promotion(uri, wanted[0], names[0] if names else None, done.version)
