"""A plan's arithmetic is checked against what the corpus really holds; speeds are stated, so no weights are loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import BuildConfig, ConfigError, validate
from pipelines.plan import Plan, Pool, build_time, make_plan
from pipelines.plan import changes as planning
from pipelines.plan import make as making
from pipelines.plan import sample as sampling
from pipelines.plan.build_time import Load
from pipelines.plan.changes import PlannedChanges
from pipelines.plan.sample import Throughput
from pipelines.store.documents import hold_lease, target_of
from pipelines.store.evolve import upgrade_hashes
from pipelines.store.table import open_table
from tests.checkpoints import build

FORMATS = Path(__file__).resolve().parents[2] / "formats"

STATED = Pool(tokens_per_second=1000, price=2.0, actors=4)


def _config(path: Path, **sections: Any) -> BuildConfig:
    return validate({"input": {"paths": [str(path)]}, "index": {"uri": str(path / "idx")}, **sections})


def _shards(folder: Path, texts: list[str], shards: int = 4) -> Path:
    for i in range(shards):
        rows = [{"id": f"{i}-{k}", "text": text} for k, text in enumerate(texts)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{i}.parquet")
    return folder


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    texts = ["cat " * 8] * 50 + ["cat " * 40] * 50
    return make_plan(_config(_shards(tmp_path, texts)), STATED)


def test_counts_tokens_and_bytes(plan: Plan) -> None:
    assert (plan.documents, plan.exact, plan.chunks, plan.sampled) == (400, True, 400, 400)
    assert {k: n for k, n in plan.histogram.items() if n} == {"0-15": 200, "32-63": 200}
    (minilm,) = plan.embedders
    assert minilm.tokens == 200 * 10 + 200 * 42
    assert minilm.bytes["dense"] == 400 * 384 * 4
    assert minilm.bytes["sparse"] == pytest.approx(minilm.tokens * 8)
    assert minilm.bytes["colbert"] == pytest.approx(minilm.tokens * 48)
    assert minilm.colbert_bytes["float16"] == pytest.approx(minilm.tokens * 768)
    assert plan.text_bytes == pytest.approx(200 * 32 + 200 * 160)
    assert plan.index_bytes == plan.text_bytes + sum(minilm.bytes.values())


def test_hours_and_cost_follow_from_the_stated_pool(plan: Plan) -> None:
    assert plan.hours == pytest.approx(plan.embedders[0].tokens / 4000 / 3600)
    assert plan.cost == pytest.approx(plan.hours * 2.0)
    assert not plan.embedders[0].measured


def test_the_text_and_the_json_say_the_same(plan: Plan) -> None:
    text = plan.text()
    assert "400, in 400 chunks" in text
    assert "4 actors at 1,000 tokens/s each, stated" in text
    assert "device: " in text
    assert json.loads(json.dumps(plan.to_dict()))["documents"] == 400


def test_documents_of_text_formats_are_estimated_from_bytes(tmp_path: Path) -> None:
    for i in range(40):
        rows = [json.dumps({"id": f"{i}-{k}", "text": "cat " * 200}) for k in range(200)]
        (tmp_path / f"{i}.jsonl").write_text("\n".join(rows))
    plan = make_plan(_config(tmp_path), STATED, sample_rows=100)
    assert not plan.exact
    assert plan.documents == pytest.approx(8000, rel=0.02)
    assert "about " in plan.text()


def test_chunks_are_counted_where_documents_are_cut(tmp_path: Path) -> None:
    plan = make_plan(
        _config(_shards(tmp_path, ["cat " * 100]), chunk={"size": 40, "overlap": 0, "mode": "tokens"}), STATED
    )
    assert (plan.documents, plan.chunks) == (4, 12)


def test_each_embedder_has_its_figures(tmp_path: Path) -> None:
    embedders = [{"name": "a"}, {"name": "b", "outputs": ["dense"], "max_length": 16, "codec": {"dense": "float16"}}]
    plan = make_plan(_config(_shards(tmp_path, ["cat " * 30]), embedders=embedders), STATED)
    a, b = plan.embedders
    assert set(b.bytes) == {"dense"}
    assert b.bytes["dense"] == a.bytes["dense"] / 2
    assert (b.rows_truncated, b.tokens_truncated) == (1.0, pytest.approx(16 / 32))
    assert any(line.startswith("b: 100% of the rows are truncated and lose 50%") for line in plan.warnings)


@pytest.mark.parametrize(("speed", "warned"), [(10.0, True), (1000.0, False)])
def test_what_a_crash_may_cost_is_a_fragment_and_a_commits_wait(tmp_path: Path, speed: float, warned: bool) -> None:
    folder = _shards(tmp_path, ["cat " * 30] * 50)
    plan = make_plan(_config(folder), Pool(tokens_per_second=speed, actors=1))
    assert plan.redo_seconds == pytest.approx(200 * 32 / speed + 60)
    assert any("a crash may cost 11m40s of work" in line for line in plan.warnings) == warned


def test_warnings(tmp_path: Path) -> None:
    sections = {"embedders": [{"codec": {"colbert": "float32"}, "pool": {"batch_rows": 10**6}}]}
    sections["index"] = {"uri": str(tmp_path / "idx"), "fragment_bytes": 2**40}
    sections["chunk"] = {"mode": "whole"}
    texts = ["cat " * 500] * 20 + [""] * 10
    plan = make_plan(_config(_shards(tmp_path, texts), **sections), Pool(tokens_per_second=1, actors=10**6))
    shown = "\n".join(plan.warnings)
    assert "33.3% of the sampled rows are bad, more than job.quarantine_limit (5%)" in shown
    assert "100% of the rows are truncated" in shown
    assert "ColBERT takes " in shown
    assert "Ray's object store" in shown
    assert "text is empty (40)" in plan.text()


def test_an_input_without_a_good_row(tmp_path: Path) -> None:
    plan = make_plan(_config(_shards(tmp_path, [""])), Pool())
    assert (plan.documents, plan.chunks, plan.hours) == (4, 0, None)
    assert "not one document of the sample can be used" in plan.text()


def test_an_empty_input(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    assert make_plan(_config(tmp_path), STATED).documents == 0


def test_a_wrong_length_or_model_is_a_config_error(tmp_path: Path) -> None:
    folder = _shards(tmp_path, ["x"])
    with pytest.raises(ConfigError, match=r"embedders\.0 .*9000 is beyond the model's 512 positions"):
        make_plan(_config(folder, embedders=[{"max_length": 9000}]), STATED)
    with pytest.raises(ConfigError, match=r"embedders\.0 \(./nowhere\): model folder ./nowhere does not exist"):
        make_plan(_config(folder, embedders=[{"model": "./nowhere"}]), STATED)


def test_without_a_stated_speed_the_model_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CALIBRATION_SECONDS", 0.1)
    plan = make_plan(_config(_shards(tmp_path, ["cat " * 20] * 8)))
    (minilm,) = plan.embedders
    assert minilm.measured
    assert minilm.tokens_per_second is not None
    assert minilm.tokens_per_second > 0
    assert plan.cost is None


def test_int8_is_compared_with_fp32_on_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CALIBRATION_SECONDS", 0.1)
    monkeypatch.setattr(sampling, "CHECKED_TEXTS", 3)
    config = _config(_shards(tmp_path, ["a panda", "bamboo " * 9]), embedders=[{"compute": {"dtype": "int8"}}])
    lines = [line for line in make_plan(config).embedders[0].why if line.startswith("accuracy")]
    assert len(lines) == 1
    assert re.search(r"int8 against fp32 on 3 sampled texts, dense cosine mean 0\.99\d+, worst 0\.99\d+$", lines[0])
    monkeypatch.setattr(sampling, "LEAST_COSINE", 1.0)
    assert "compare `tridex evaluate` of both" in make_plan(config).embedders[0].why[-1]
    assert not any(line.startswith("accuracy") for line in make_plan(config, STATED).embedders[0].why)


def test_int8_of_another_kind_of_model_is_a_config_error(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, model = _shards(tmp_path, ["x"]), str(build("qwen3", tmp_path_factory.mktemp("model")))
    with pytest.raises(ConfigError, match=r"embedders\.0 .*int8 is for BERT and XLM-RoBERTa embedders; qwen3 takes"):
        make_plan(_config(folder, embedders=[{"model": model, "compute": {"dtype": "int8"}}]), STATED)


def test_long_texts_are_planned_as_the_chunks_that_they_become(tmp_path: Path) -> None:
    plan = make_plan(_config(_shards(tmp_path, ["cat " * 500] * 5)), STATED)
    assert (plan.documents, plan.chunks) == (20, 60)
    assert plan.embedders[0].rows_truncated == 0


def test_a_plan_says_what_a_build_would_do_with_an_index_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted whole where the input is small, from the sample where it is not; hours are of what is embedded."""
    rows = [json.loads(line) for line in (FORMATS / "v1" / "documents.jsonl").read_text().splitlines()]
    index = shutil.copytree(FORMATS / "v1" / "index", tmp_path / "index")
    sections = {"index": {"uri": str(index)}, "chunk": {"size": 32}}
    sections["embedders"] = [{"outputs": ["dense", "sparse", "colbert"], "compute": {"dtype": "fp32"}}]
    rows[0]["lang"] = "nl"
    rows[1]["text"] = "Something else."
    lines = [*rows, {**rows[2], "id": "another"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))

    def planned(*metadata: str) -> Plan:
        columns = {"columns": {"metadata": list(metadata)}}
        tree = {"input": {"paths": [str(tmp_path / "a.jsonl")], **columns}, **sections}
        return make_plan(validate(tree), STATED)

    assert planned("lang", "year", "tags").changes is None
    target = target_of(open_table(str(index)), "test")
    with hold_lease(target) as lease:
        upgrade_hashes(target, lease)
    with pytest.raises(ConfigError, match="the index has the metadata column 'tags', this job does not"):
        planned("lang", "year")
    plan = planned("lang", "year", "tags")
    assert plan.changes == PlannedChanges(new=1, changed=2, metadata_only=1, same=4, gone=1, exact=True)
    assert "1 new, 2 changed, 1 with new metadata only, 4 the same, 1 gone from the input" in plan.text()
    assert plan.hours == pytest.approx(plan.embedders[0].tokens * 3 / 8 / 4000 / 3600)
    monkeypatch.setattr(planning, "QUICK_LOOK_BYTES", 0)
    sampled = planned("lang", "year", "tags").changes
    assert sampled == PlannedChanges(new=1, changed=2, metadata_only=1, same=4, gone=None, exact=False)


def test_the_time_of_a_build_follows_the_machines_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = _shards(tmp_path, ["cat " * 8] * 50, shards=1)
    config = _config(shards, index={"uri": str(tmp_path / "idx"), "full_text": False})
    monkeypatch.setattr(making, "measure_throughput", lambda embedder, chunks: Throughput(1000.0, 2.0))
    seconds = {}
    for load in (Load(1.5, 1.5), Load(30.0, 1.5), Load(1.5, 30.0)):
        monkeypatch.setattr(making, "measure_load", lambda load=load: load)
        seconds[load] = make_plan(config).seconds or 0.0
    plan = make_plan(config)
    embedding = plan.embedders[0].tokens / 1000
    assert plan.embedders[0].working_actors == 1, "50 rows are one block"
    start = build_time.START_SECONDS + (build_time.DRIVER_IMPORTS + build_time.WORKER_IMPORTS + 1) * 1.5 + 2.0
    assert seconds[Load(1.5, 1.5)] == pytest.approx(start + embedding, rel=0.05)
    assert seconds[Load(30.0, 1.5)] - seconds[Load(1.5, 1.5)] == pytest.approx(build_time.DRIVER_IMPORTS * 28.5)
    assert seconds[Load(1.5, 30.0)] - seconds[Load(1.5, 1.5)] == pytest.approx((build_time.WORKER_IMPORTS + 1) * 28.5)


def test_loading_is_measured_as_a_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the clock's reading once, so that a build of 60 documents was planned for six hours."""
    shards = _shards(tmp_path, ["cat " * 8] * 5, shards=1)
    monkeypatch.setattr(making, "measure_load", lambda: Load(0.0, 0.0))
    began = time.monotonic()
    loading = make_plan(_config(shards)).embedders[0].loading_seconds
    assert loading is not None
    assert 0 < loading < time.monotonic() - began


def test_actors_without_a_block_do_not_count() -> None:
    for actors, chunks, expected in ((4, 100, 1.0), (2, 256, 2.0), (2, 384, 1.5), (2, 0, 1.0)):
        assert making._count_working_actors(actors, chunks, 128) == expected


def test_an_import_is_measured_in_a_process_of_its_own() -> None:
    assert build_time.measure_import() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="priorities belong to threads on Linux only")
def test_a_worker_is_measured_at_the_priority_that_ray_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def niceness_of_child() -> int:
        code = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
        return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)

    own = niceness()
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    assert build_time.run_at_worker_priority(niceness) == max(own, 15)
    assert build_time.run_at_worker_priority(niceness_of_child) == max(own, 15)
    monkeypatch.setenv("RAY_worker_niceness", "0")
    assert build_time.run_at_worker_priority(niceness) == own
    assert niceness() == own
