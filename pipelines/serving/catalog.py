"""Keeps each served index open at one version and switches to new versions without failing a request.

A view is one index at one version, by the columns of one embedder or of one per channel. A request takes a view once
and keeps it: what a build, a prune or an optimize commits meanwhile is seen by the requests that come after. A new
version is opened and warmed beside the old one, which needs the memory of both for that moment, and shares the loaded
model with it.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from actors.spec import Output
from pipelines.config import ConfigError, read_yaml
from pipelines.retrieval.encoder import QueryEncoder
from pipelines.retrieval.index import Index
from pipelines.serving.errors import ApiError
from pipelines.serving.filters import Filters
from pipelines.serving.metrics import Metrics
from pipelines.serving.settings import ServeConfig, split_name
from pipelines.store.embedder_choice import choose_embedders
from pipelines.store.table import Snapshot, open_table

log = logging.getLogger("tridex.serve")


JOINED = ""
"""Key of the view that takes its channels from several embedders; the others' keys are their embedders' names."""


@dataclass(frozen=True, eq=False)
class View:
    """Holds one index at one version, by the columns of one embedder or of one per channel."""

    name: str
    index: Index
    filters: Filters
    opened: float = field(default_factory=time.time)
    _others: dict[int, View] = field(default_factory=dict)

    @property
    def embedder(self) -> str:
        """Returns the embedder's name; `dense=qwen, sparse=splade` for a view of several."""
        names = self.index.embedder_names
        several = len(set(names.values())) > 1
        return ", ".join(f"{o}={name}" for o, name in names.items()) if several else self.index.name

    @property
    def model(self) -> str:
        """Returns the model's name, of a local folder its last part only; several are joined by commas."""
        return ", ".join(PurePath(name).name if PurePath(name).is_absolute() else name for name in self._stored_models)

    @property
    def _stored_models(self) -> list[str]:
        """Returns the models' names or folders as the index stores them."""
        names = dict.fromkeys(self.index.embedder_names.values())
        return [str(self.index.identity.embedders[name]["model"]) for name in names]

    def is_called(self, name: str) -> bool:
        """Returns whether a name means this view: its own, its embedder's, or its model's (also without the folder)."""
        stored = ", ".join(self._stored_models)
        return name in (self.name, self.embedder, self.model, stored, f"{self.name}/{self.embedder}")

    def with_channels(self, channels: Mapping[str, str] | None) -> View:
        """Returns a view of the same version with these embedders behind its channels; itself for None."""
        index = self.index.with_channels(channels)
        if index is self.index:
            return self
        return self._others.setdefault(id(index), View(self.name, index, self.filters, self.opened))


class ServedIndex:
    """Holds one index and its views, which are replaced together."""

    def __init__(self, name: str, uri: str, config: ServeConfig) -> None:
        self.name, self.uri, self.config = name, uri, config
        self.views: Mapping[str, View] = {}
        self.failure: str | None = None
        """Why the newest version could not be opened; None if it could."""

    def open(self, warm: bool = False) -> None:
        """Opens the newest version and replaces the views once it is loaded. ConfigError if there is no index."""
        snapshot = open_table(self.uri, storage_options=self.config.storage_options)
        embedders, joined = snapshot.identity.embedders, _joined_channels(snapshot)
        encoders = {name: self._encoder(snapshot, name) for name in embedders}
        chosen = {name: dict.fromkeys(e["outputs"], name) for name, e in embedders.items()}
        if len(set(joined.values())) > 1:
            chosen = {JOINED: joined, **chosen}
        views = {key: self._view(snapshot, key, {o: encoders[e] for o, e in of.items()}) for key, of in chosen.items()}
        if warm:
            for view in views.values() if JOINED not in views else [views[JOINED]]:
                warm_up(view)
        self.views, self.failure = views, None

    def _view(self, snapshot: Snapshot, key: str, encoders: Mapping[Output, QueryEncoder]) -> View:
        alone = key == JOINED or len(snapshot.identity.embedders) == 1
        name = self.name if alone else f"{self.name}/{key}"
        index = Index(snapshot, encoders, self.config.memory, self.config.local)
        _ = index.channels, snapshot.has_chunks, snapshot.metadata_columns  # read now, not while a request waits
        return View(name, index, Filters(index))

    def _encoder(self, snapshot: Snapshot, embedder: str) -> QueryEncoder:
        """Returns an embedder's encoder, with the model that the previous views loaded if the index still uses it."""
        before = (e for view in self.views.values() for e in view.index.encoders.values() if e.name == embedder)
        given = next((encoder.loaded for encoder in before), None)
        try:
            return QueryEncoder(self.uri, snapshot.identity, embedder, given)
        except ConfigError:
            return QueryEncoder(self.uri, snapshot.identity, embedder)

    @property
    def default(self) -> View:
        """Returns the view that a search takes if it names none: the joined one, the promoted one, or the first."""
        first = next(iter(self.views.values()))
        return self.views.get(JOINED) or self.views.get(first.index.snapshot.promoted or first.index.name, first)

    @property
    def version(self) -> int:
        return next(iter(self.views.values())).index.version

    def is_behind(self) -> bool:
        """Returns whether the table has a version newer than the served one."""
        snapshot = next(iter(self.views.values())).index.snapshot
        return int(snapshot.dataset.latest_version) != snapshot.version


class Catalog:
    """Looks up views by the names of indexes, embedders, models and aliases."""

    def __init__(self, config: ServeConfig, metrics: Metrics) -> None:
        self.config, self.metrics = config, metrics
        self.indexes = [ServedIndex(*split_name(text), config) for text in config.indexes]
        self.aliases: Mapping[str, str] = dict(config.aliases)
        self._alias_error = ""
        self.warm = False
        self._aliases_read: float | None = None
        self._lock = threading.Lock()

    def open(self) -> None:
        """Opens every index; ConfigError for a missing index or for an alias of an unknown model."""
        for served in self.indexes:
            served.open()
            self._report(served, "opened")
        self._read_aliases()
        gc.freeze()  # excludes loaded data from later garbage collections

    def views(self) -> Iterator[View]:
        """Returns all views, in the order in which the indexes were configured."""
        for served in self.indexes:
            yield from served.views.values()

    def view(self, name: str | None, argument: str = "index") -> View:
        """Returns the view with a name, or the first view for None; 404 for an unknown name."""
        views = list(self.views())
        if name is None:
            name = "default" if "default" in self.aliases else self.indexes[0].name
        target = self.aliases.get(name, name)
        if promoted := next((served.default for served in self.indexes if served.name == target), None):
            return promoted
        found = [v for v in views if v.is_called(target)]
        exact = [v for v in found if v.name == target]
        if len(exact or found) == 1:
            return (exact or found)[0]
        known = ", ".join([*(v.name for v in views), *self.aliases])
        why = "names several" if found else "is unknown"
        raise ApiError(404, f"{argument}: {name!r} {why}; there are {known}", argument)

    def served(self, view: View) -> ServedIndex:
        """Returns the index that a view belongs to."""
        return next(s for s in self.indexes if view.name in (s.name, f"{s.name}/{view.index.name}"))

    def warm_up(self) -> None:
        """Loads models and reads columns so that the first request is as fast as later ones."""
        for served in self.indexes:
            for view in served.views.values() if JOINED not in served.views else [served.default]:
                warm_up(view)
        self.warm = True
        gc.freeze()

    def refresh(self) -> None:
        """Opens new versions of all indexes and rereads the alias file if it has changed. Never raises."""
        for served in self.indexes:
            self.refresh_one(served)
        try:
            self._read_aliases()
            self._alias_error = ""
        except ConfigError as error:
            if str(error) != self._alias_error:  # once, not at every look
                self._alias_error = str(error)
                log.error("the aliases stay as they were: %s", error)

    def refresh_one(self, served: ServedIndex, force: bool = False) -> bool:
        """Opens a new version of one index if there is one; returns whether it did."""
        with self._lock:
            try:
                if not (force or served.is_behind()):
                    return False
                encoders = [e for view in served.views.values() for e in view.index.encoders.values()]
                loaded = any(encoder.loaded is not None for encoder in encoders)
                served.open(warm=self.warm or loaded)
            except Exception as error:  # on any storage failure, the open version stays in service
                served.failure = type(error).__name__
                self.metrics.refreshes.labels(served.name, "failed").inc()
                log.error("%s: no newer version can be opened: %s", served.name, error)
                return False
            self._report(served, "opened")
        gc.collect()
        return True

    def _report(self, served: ServedIndex, outcome: str) -> None:
        log.info("%s: version %d, %d rows", served.name, served.version, len(next(iter(served.views.values())).index))
        self.metrics.refreshes.labels(served.name, outcome).inc()
        for view in served.views.values():
            self.metrics.version.labels(view.name).set(view.index.version)
            self.metrics.rows.labels(view.name).set(len(view.index))
            self.metrics.opened.labels(view.name).set(view.opened)
            self.metrics.model.labels(view.name).info(
                {"model": view.model, "weights": str(view.index.identity.embedders[view.index.name].get("weights", ""))}
            )

    def _read_aliases(self) -> None:
        path = self.config.aliases_file
        if path is None:
            return
        changed = path.stat().st_mtime if path.exists() else None
        if changed is not None and changed == self._aliases_read:
            return
        aliases = {str(k): str(v) for k, v in read_yaml(path).items()}
        self.aliases, self._aliases_read = {**self.config.aliases, **aliases}, changed


def _joined_channels(snapshot: Snapshot) -> dict[Output, str]:
    """Returns the embedder of each output that a search takes unless told otherwise; {} if it must be told."""
    try:
        return choose_embedders(snapshot.identity, metadata=snapshot.schema.metadata)
    except ConfigError:
        return {}


def warm_up(view: View) -> None:
    """Reads one view's columns, loads its model and runs one search."""
    view.index.warm()
    if len(view.index):
        view.index.search("warm up", k=1)


def describe(view: View, aliases: Mapping[str, str], rows: int | None = None) -> dict[str, Any]:
    """Describes a view for `/v1/indexes` and MCP. rows: the number that the key may read, if not all."""
    index = view.index
    default = index.default_fusion
    return {
        "name": view.name,
        "aliases": sorted(alias for alias, target in aliases.items() if view.is_called(target)),
        "embedder": view.embedder,
        "model": view.model,
        "version": index.version,
        "rows": len(index) if rows is None else rows,
        "channels": list(index.channels),
        "fusion": default.fusion,
        "weights": dict(default.weights),
        "columns": list(index.snapshot.metadata_columns),
    }
