"""After any sequence of changes, kills included, an index equals one that is built from nothing: ids, texts, metadata,
vectors and search results.

A state machine draws upserts, deletes, new metadata, new columns, models that join, are promoted and dropped, feeds of
events, compaction, updates of postings and returns to earlier versions. Any of them may be killed around one of its
commits, with its lease left behind, and is then done again, as whoever asked for it would. `TRIDEX_STATES=500` runs
more of them than `make test` does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipelines.integrity.check import check_index
from pipelines.retrieval.create import add_metadata_columns
from pipelines.retrieval.events import DeleteEvent, Event, UpsertEvent
from pipelines.retrieval.index import Index, open_index
from pipelines.search_indexes.document_ids import update_document_id_index
from pipelines.search_indexes.drop import drop_embedder, remove_dropped_tables
from pipelines.search_indexes.postings import update_postings
from pipelines.store.lease import Holder, Lease
from pipelines.store.maintain import optimize
from pipelines.store.promote import promote_embedder
from pipelines.store.table import open_table
from tests.indexes import WordEmbedder, make_index
from tests.pipelines.test_model_switch import OtherEmbedder, add_embedder

EXAMPLES = int(os.environ.get("TRIDEX_STATES", "6"))
IDS = st.sampled_from([f"d{i:02d}" for i in range(12)])
TEXTS = st.lists(
    st.sampled_from(["kernel", "page", "cache", "timer", "socket", "inode", "queue", "slab"]), min_size=1, max_size=6
).map(" ".join)
YEARS = st.one_of(st.none(), st.integers(2000, 2003))
DOCUMENTS = st.dictionaries(IDS, st.tuples(TEXTS, YEARS), min_size=1, max_size=4)
KILLS = st.one_of(st.none(), st.none(), st.tuples(st.sampled_from(["before", "after"]), st.integers(1, 3)))
QUERIES = ("kernel timer", "page cache slab queue")
FIRST = {"d00": "kernel page", "d01": "timer socket", "d02": "inode queue slab", "d03": "cache cache kernel"}


class Killed(BaseException):
    """What a kill looks like to the code that it hits: nothing catches it."""


class IndexMachine(RuleBasedStateMachine):
    """Changes an index and a dictionary alike."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.kill: tuple[str, int] | None = None
        self.position = 0
        self.columns = ["year"]
        self.models: list[WordEmbedder] = []
        self.patch.setattr(Holder, "is_gone", lambda _: True)  # who holds a lease here was killed
        self.patch.setattr(Lease, "__exit__", self.exit_lease(Lease.__exit__))
        self.patch.setattr(lance.LanceDataset, "commit", self.counting(lance.LanceDataset.commit))

    @initialize()
    def build(self) -> None:
        years = pa.array([2000 + i for i in range(len(FIRST))], pa.int64())
        self.uri = make_index(self.folder / "index", FIRST, metadata={"year": years}, fragment_rows=2, full_text=False)
        self.documents: dict[str, dict[str, Any]] = {
            i: {"text": text, "year": 2000 + n} for n, (i, text) in enumerate(FIRST.items())
        }
        self.embedders = {"words": WordEmbedder()}
        self.promoted = "words"
        self.saved: list[tuple[int, Any]] = []

    def exit_lease(self, real: Callable[..., None]) -> Callable[..., None]:
        def leave(lease: Lease, kind: Any, error: Any, trace: Any) -> None:
            if kind is not Killed:
                return real(lease, kind, error, trace)
            lease._stop.set()
            return None

        return leave

    def counting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Kills around the commit of documents that `self.kill` counts down to."""

        def commit(uri: Any, *args: Any, **kwargs: Any) -> Any:
            if self.kill is None or not str(getattr(uri, "uri", uri)).endswith("documents.lance"):
                return real(uri, *args, **kwargs)
            moment, left = self.kill
            self.kill = (moment, left - 1) if left > 1 else None
            if left == 1 and moment == "before":
                raise Killed
            result = real(uri, *args, **kwargs)
            if left == 1:
                raise Killed
            return result

        return commit

    def survive(self, change: Callable[[], object], kill: tuple[str, int] | None) -> None:
        """Makes a change; one that is killed leaves a sound index, and is made again."""
        self.kill = kill
        try:
            change()
        except Killed:
            self.kill = None
            report = check_index(self.uri)
            assert report.sound, report.text()
            change()
        self.kill = None

    def open(self, name: str) -> Index:
        return open_index(self.uri, embedder=self.embedders[name])

    def rows(self, documents: dict[str, tuple[str, int | None]]) -> list[dict[str, Any]]:
        return [{"doc_id": i, "text": text, "year": year} for i, (text, year) in documents.items()]

    def store(self, i: str, text: str, year: int | None) -> None:
        self.documents[i] = {"text": text, "year": year}

    @precondition(lambda self: len(self.embedders) == 1)
    @rule(documents=DOCUMENTS, kill=KILLS)
    def upsert(self, documents: dict[str, tuple[str, int | None]], kill: tuple[str, int] | None) -> None:
        self.survive(lambda: self.open(self.promoted).upsert(self.rows(documents)), kill)
        for i, (text, year) in documents.items():
            self.store(i, text, year)

    @precondition(lambda self: len(self.embedders) == 1 and self.documents)
    @rule(year=YEARS, kill=KILLS, data=st.data())
    def change_metadata(self, year: int | None, kill: tuple[str, int] | None, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.documents)))
        self.upsert({chosen: (self.documents[chosen]["text"], year)}, kill)

    @rule(ids=st.lists(IDS, min_size=1, max_size=4), kill=KILLS)
    def delete(self, ids: list[str], kill: tuple[str, int] | None) -> None:
        self.survive(lambda: self.open(self.promoted).delete(ids), kill)
        for i in ids:
            self.documents.pop(i, None)

    @precondition(lambda self: len(self.embedders) == 1)
    @rule(
        changes=st.lists(st.tuples(IDS, st.one_of(st.none(), st.tuples(TEXTS, YEARS))), min_size=1, max_size=6),
        kill=KILLS,
    )
    def apply(self, changes: list[tuple[str, Any]], kill: tuple[str, int] | None) -> None:
        events: list[Event] = []
        for i, change in changes:
            self.position += 1
            if change is None:
                events.append(DeleteEvent(self.position, i))
                self.documents.pop(i, None)
            else:
                events.append(UpsertEvent(self.position, {"doc_id": i, "text": change[0], "year": change[1]}))
                self.store(i, *change)
        self.survive(lambda: self.open(self.promoted).apply(events, batch=3), kill)
        assert self.open(self.promoted).apply(events).repeated == len(events)

    @rule()
    def add_column(self) -> None:
        if len(self.columns) < 3:
            self.columns.append(f"note{len(self.columns)}")
            add_metadata_columns(self.open(self.promoted), [pa.field(self.columns[-1], pa.string())])

    @precondition(lambda self: len(self.embedders) == 1)
    @rule(kill=KILLS)
    def add_model(self, kill: tuple[str, int] | None) -> None:
        name = "others" if self.promoted == "words" else "words"
        model = OtherEmbedder(f"model {len(self.models)}")
        self.models.append(model)
        self.survive(lambda: add_embedder(self.uri, model, name), kill)
        self.embedders[name] = model

    @precondition(lambda self: len(self.embedders) == 2)
    @rule(kill=KILLS, data=st.data())
    def promote(self, kill: tuple[str, int] | None, data: st.DataObject) -> None:
        self.promoted = data.draw(st.sampled_from(sorted(self.embedders)))
        self.survive(lambda: promote_embedder(self.uri, self.promoted), kill)

    @precondition(lambda self: len(self.embedders) == 2)
    @rule(kill=KILLS, keep=st.sampled_from([timedelta(0), timedelta(hours=1)]))
    def drop(self, kill: tuple[str, int] | None, keep: timedelta) -> None:
        (name,) = self.embedders.keys() - {self.promoted}

        def drop() -> None:
            if name in open_table(self.uri).identity.embedders:  # a drop that was killed after its commit
                drop_embedder(self.uri, name, keep_versions=keep)

        self.survive(drop, kill)
        del self.embedders[name]
        if not keep:
            self.saved.clear()

    @rule(kill=KILLS, keep=st.sampled_from([timedelta(0), timedelta(hours=1)]))
    def compact(self, kill: tuple[str, int] | None, keep: timedelta) -> None:
        self.survive(lambda: optimize(self.uri, keep_versions=keep, orphan_age=keep), kill)
        if not keep:
            self.saved.clear()

    @rule()
    def update_side_tables(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipelines.search_indexes.document_ids.MIN_FRAGMENTS", 2)
            update_document_id_index(self.uri, stale=0)
        remove_dropped_tables(open_table(self.uri))
        if self.documents:
            update_postings(self.uri)

    @rule()
    def save(self) -> None:
        state = (
            {i: dict(d) for i, d in self.documents.items()}, dict(self.embedders), self.promoted, list(self.columns),
        )  # fmt: skip
        self.saved.append((open_table(self.uri).version, state))

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        version, state = data.draw(st.sampled_from(self.saved))
        lance.dataset(f"{self.uri}/documents.lance", version=version).restore()
        documents, self.embedders, self.promoted, self.columns = (
            {i: dict(d) for i, d in state[0].items()}, dict(state[1]), state[2], list(state[3]),
        )  # fmt: skip
        self.documents = documents
        self.position += 100  # a feed would go on behind what the restored version has

    @invariant()
    def equals_one_built_from_nothing(self) -> None:
        if not hasattr(self, "uri"):
            return
        snapshot = open_table(self.uri)
        assert (snapshot.promoted, {*snapshot.identity.embedders}) == (self.promoted, {*self.embedders})
        assert {*snapshot.metadata_columns} == {*self.columns}
        stored = snapshot.dataset.to_table(columns=["doc_id", "text", "year"]).to_pylist()
        assert len(stored) == len(self.documents)
        assert {r["doc_id"]: {"text": r["text"], "year": r["year"]} for r in stored} == self.documents
        if self.documents:
            for name, model in self.embedders.items():
                self.compare_vectors_and_answers(name, model)

    def compare_vectors_and_answers(self, name: str, model: WordEmbedder) -> None:
        texts = {i: d["text"] for i, d in sorted(self.documents.items())}
        dense = open_table(self.uri).dataset.to_table(columns=["doc_id", f"{name}_dense"])
        got = dict(zip(dense["doc_id"].to_pylist(), dense[f"{name}_dense"].to_pylist(), strict=True))
        want = model.embed_corpus(texts.values()).dense
        assert want is not None
        np.testing.assert_allclose([got[i] for i in texts], want, atol=1e-6)
        index = open_index(self.uri, embedder=model, local=self.folder / "local")
        assert index.name == name
        fresh = self.rebuilt(texts, model, tuple(index.identity.embedders[name]["outputs"]))
        for query in QUERIES:
            for mode in ("dense", "sparse"):
                assert scores(index, query, mode) == pytest.approx(scores(fresh, query, mode), abs=1e-5), (query, mode)

    def rebuilt(self, texts: dict[str, str], model: WordEmbedder, outputs: tuple[str, ...]) -> Index:
        folder = self.folder / "fresh"
        shutil.rmtree(folder, ignore_errors=True)
        model.outputs = outputs
        return open_index(make_index(folder, texts, embedder=model, full_text=False), embedder=model)

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.folder, ignore_errors=True)


def scores(index: Index, query: str, mode: Any) -> dict[str, float]:
    return {hit.doc_id: hit.score for hit in index.search(query, k=50, mode=mode)}


IndexMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=12 if EXAMPLES < 50 else 30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestIndexStates = IndexMachine.TestCase
