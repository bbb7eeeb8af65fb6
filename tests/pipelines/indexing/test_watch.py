"""Watching an input: changes appear in the index, deletions too, nothing to do costs a listing, failures are tried
again. Small changes are embedded in this process, without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import pytest
import ray

from pipelines.cli.jobs import parse_seconds
from pipelines.config import BuildConfig, ConfigError, load_config
from pipelines.indexing import watch as watching
from pipelines.indexing.watch import WatchState, watch
from pipelines.integrity.check import check_index
from pipelines.retrieval.index import open_index
from pipelines.store.lease import Lease, acquire
from tests import checkpoints


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("model")
    checkpoints.build("m3", folder)
    return str(folder)


class Corpus:
    """A folder of JSON Lines files of ten documents each, and an index of it."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.index = folder / "input", str(folder / "index")
        self.folder.mkdir()
        self.config: BuildConfig = load_config(
            input={"paths": [str(self.folder)], "columns": {"metadata": ["tag"]}},
            index={"uri": self.index},
            embedders=[{"name": "m", "model": model, "compute": {"dtype": "fp32", "threads": 1}}],
            ray={"progress": False},
        )

    def write(self, name: str, texts: dict[str, str], tag: str = "a") -> None:
        rows = [json.dumps({"id": i, "text": text, "tag": tag}) for i, text in texts.items()]
        (self.folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")

    def stored(self) -> dict[str, str]:
        table = lance.dataset(f"{self.index}/documents.lance").to_table(columns=["doc_id", "text"])
        return dict(zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True))


@pytest.fixture
def corpus(tmp_path: Path, model: str) -> Iterator[Corpus]:
    made = Corpus(tmp_path, model)
    for part in "xyz":
        made.write(part, {f"{part}{i}": f"ba de ki {'lo ' * i}{part}" for i in range(10)})
    started = ray.is_initialized()  # by tests before these
    yield made
    assert ray.is_initialized() == started, "a small change started Ray"


def edit_between_looks(corpus: Corpus, edits: list[Any], monkeypatch: pytest.MonkeyPatch, **options: Any) -> WatchState:
    """Watches without pauses; each pause does the next edit instead."""
    rest = iter(edits)
    monkeypatch.setattr(watching, "_pause", lambda _: next(rest)())
    return watch(corpus.config, looks=len(edits) + 1, every=1, **options)


def test_changes_come_in_and_a_look_without_any_costs_a_listing(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = [
        lambda: None,
        lambda: corpus.write("w", {"new": "mo ta du"}),
        lambda: corpus.write("x", {f"x{i}": "re si" for i in range(10)}),
        lambda: corpus.write("y", {f"y{i}": f"ba de ki {'lo ' * i}y" for i in range(10)}, tag="b"),
        lambda: None,
    ]
    state = edit_between_looks(corpus, edits, monkeypatch)
    assert (state.looks, state.builds, state.failures, state.backlog) == (6, 4, 0, 0)
    assert (state.embedded, state.metadata_only) == (30 + 1 + 10, 10)
    assert corpus.stored()["new"] == "mo ta du"
    assert {corpus.stored()[f"x{i}"] for i in range(10)} == {"re si"}
    assert check_index(corpus.index).sound
    assert open_index(corpus.index).search("mo ta du", k=1, where="tag = 'a'").ids == ["new"]


def test_documents_that_are_gone_are_removed_up_to_a_limit(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.write("v", {f"v{i}": f"du ra {i}" for i in range(90)})

    def remove(name: str) -> None:
        (corpus.folder / f"{name}.jsonl").unlink()

    state = edit_between_looks(
        corpus, [lambda: remove("x"), lambda: remove("v"), lambda: None], monkeypatch, prune=True
    )
    assert (state.pruned, state.failures, state.builds) == (10, 2, 2)
    assert "90 of 110 documents are gone from the input, more than job.prune_limit (10%)" in str(state.error)
    assert len(corpus.stored()) == 110
    assert (state.backlog, state.staleness > 0) == (1, True)
    assert watch(corpus.config, looks=1, prune=True, prune_limit=1).pruned == 90
    assert len(corpus.stored()) == 20


def test_a_failed_look_is_tried_again_and_a_wrong_request_is_raised(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = corpus.folder.with_name("away")

    def bring_back() -> None:
        away.rename(corpus.folder)
        corpus.write("w", {"new": "mo ta du"})

    state = edit_between_looks(corpus, [lambda: corpus.folder.rename(away), bring_back], monkeypatch, prune=True)
    assert (state.failures, state.error, state.builds) == (1, None, 2)
    assert len(corpus.stored()) == 31
    with pytest.raises(ConfigError, match="no file matches"):
        watch(corpus.config.model_copy(update={"input": corpus.config.input.model_copy(update={"paths": ("/no",)})}))


def test_many_small_commits_are_compacted(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = [lambda i=i: corpus.write("w", {f"w{n}": f"mo ta {n}" for n in range(i + 1)}) for i in range(5)]
    monkeypatch.setattr("pipelines.search_indexes.update.update_indexes", lambda *_: None)
    state = edit_between_looks(corpus, edits, monkeypatch, optimize_fragments=3)
    assert state.optimized >= 1
    assert len(lance.dataset(f"{corpus.index}/documents.lance").get_fragments()) <= 4
    assert len(corpus.stored()) == 35


def test_metrics_are_written_whole(corpus: Corpus, tmp_path: Path) -> None:
    file = tmp_path / "watch.prom"
    watch(corpus.config, looks=1, metrics=file)
    text = file.read_text()
    assert 'tridex_watch_embedded_total{tridex_job="build"} 30' in text
    assert "tridex_watch_staleness_seconds" in text
    assert 'tridex_watch_backlog_files{tridex_job="build"} 0' in text
    assert list(tmp_path.glob(".watch.prom*")) == []


def test_a_signal_ends_it_well_and_it_resumes(corpus: Corpus, tmp_path: Path) -> None:
    import yaml

    (tmp_path / "job.yaml").write_text(yaml.safe_dump(corpus.config.model_dump(mode="json", exclude_unset=True)))
    metrics = tmp_path / "watch.prom"
    command = [sys.executable, "-m", "pipelines.cli", "watch", str(tmp_path / "job.yaml"), "--every", "0.2s"]
    command += ["--json", "--metrics", str(metrics)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        end = time.monotonic() + 240
        while not metrics.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        process.terminate()
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(out)["embedded"] == 30
    assert watch(corpus.config, looks=1).embedded == 0


def test_another_writer_is_waited_for(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Lease] = []

    def write_beside_another() -> None:
        held.append(acquire(corpus.index, "documents", "upserts", lease_seconds=1))
        corpus.write("w", {"new": "mo ta du"})

    state = edit_between_looks(corpus, [write_beside_another, lambda: held[0].release()], monkeypatch)
    assert (state.failures, state.builds, state.error) == (1, 2, None)
    assert "new" in corpus.stored()


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("1h", 3600), ("2.5", 2.5)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5d"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a time such as 30s"):
        parse_seconds(text)
