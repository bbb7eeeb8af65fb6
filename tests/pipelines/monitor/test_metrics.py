"""What the actors count, without a Ray: the metric objects are replaced by lists."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ray import cloudpickle

from actors.arrow.blocks import tokens_from_table
from actors.pool import EmbedActor
from pipelines.monitor import metrics
from pipelines.monitor.metrics import MeteredActor, actor_class_for


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}

    def note(name: str, n: float, job: str, embedder: str = "") -> None:
        assert job == "j"
        found.setdefault(name, []).append(n)

    monkeypatch.setattr(metrics, "increment", note)
    monkeypatch.setattr(metrics, "observe_seconds", note)
    return found


def _actor(monkeypatch: pytest.MonkeyPatch) -> MeteredActor:
    class Fake:
        class engine:
            backbone = None
            executor = SimpleNamespace(budget=6, halvings=1)

    def start(self: Any, *_: Any) -> None:
        self.embedder, self.name = Fake(), "m"

    monkeypatch.setattr(EmbedActor, "__init__", start)
    fails = pa.array([None, "broken", None], pa.string())

    def call(self: Any, table: pa.Table) -> pa.Table:
        self.embedder.engine.executor.halvings += 2
        return table.set_column(2, "error", fails)

    monkeypatch.setattr(EmbedActor, "__call__", call)
    return actor_class_for("m")("j")


TABLE = pa.table(
    {
        "m_ids": pa.array([[1, 2, 3], [4], [5, 6, 7, 8]], pa.list_(pa.int32())),
        "m_truncated": pa.array([0, 0, 5], pa.int32()),
        "error": pa.nulls(3, pa.string()),
    }
)


def test_a_block_is_counted(seen: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    actor = _actor(monkeypatch)
    result = actor(TABLE)
    assert result["error"].null_count == 2
    assert result["n_halvings"].to_pylist() == [2, 0, 0]
    assert tokens_from_table(TABLE, "m")[0].lengths.tolist() == [3, 1, 4]
    counted = {name: values[0] for name, values in seen.items() if not name.endswith("seconds")}
    assert counted == {"rows": 3, "tokens": 8, "truncated_tokens": 5, "failed_rows": 1, "batches": 2, "halvings": 2}
    assert "wait_seconds" not in seen


def test_waiting_is_the_time_between_blocks(seen: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    actor = _actor(monkeypatch)
    now = iter([10.0, 12.0, 15.0, 16.0])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(now))
    actor(TABLE)
    actor(TABLE)
    assert seen["wait_seconds"] == [3.0]
    assert seen["block_seconds"] == [2.0, 1.0]


@pytest.mark.parametrize(("kind", "tokens"), [({"packed": True}, 16), ({"packed": False}, 8), ({"padded": True}, 10)])
def test_what_a_pass_goes_over(kind: dict[str, bool], tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "actors.network.transformers_backbone", None)  # importing it is an error now
    assert metrics.count_computed_tokens(SimpleNamespace(**kind), np.array([3, 5])) == tokens


def test_costs_of_two_embedders_add_up() -> None:
    block = metrics.BlockCost(rows=2, tokens=8, truncated=0, failed=0, batches=1, padding=5, halvings=1, seconds=1.0)
    table = metrics.add_costs(metrics.add_costs(pa.table({"text": ["a", "b"]}), block), block)
    assert (table["n_padding"].to_pylist(), table["n_halvings"].to_pylist()) == ([10, 0], [2, 0])


def test_the_actor_is_named_after_its_embedder_and_travels() -> None:
    actor = actor_class_for("bge")
    assert actor.__name__ == "Embed_bge"
    assert cloudpickle.loads(cloudpickle.dumps(actor)).__name__ == "Embed_bge"


def test_counting_without_ray_is_harmless() -> None:
    metrics.record_commit("j", 0.5, rows=3, quarantined=0)
    metrics.increment("halvings", 0, "j", "m")
    with pytest.raises(KeyError):
        metrics.increment("nonsense", 1, "j")
