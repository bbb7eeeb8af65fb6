"""Where the steps of a job run, and what it says while it waits."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from pipelines.changes.tasks import InProcess, OnRay
from pipelines.config import ConfigError, load_config
from pipelines.indexing.build import build_index
from pipelines.indexing.session import RaySession, describe_wait
from pipelines.monitor.progress import format_duration
from pipelines.monitor.runlog import RunLog


def a_log(folder: Path) -> RunLog:
    return RunLog(load_config(None, ["ray.progress=false"], input={"paths": ["a"]}, index={"uri": str(folder)}))


@pytest.mark.skipif("ray.is_initialized()", reason="this session's Ray is there already")
def test_without_a_need_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    log = a_log(tmp_path)
    with RaySession(log.config.ray, log, start=False) as session:
        assert isinstance(session.tasks, InProcess)
        assert session.call(format_duration, 65) == "1m05s"
    assert not ray.is_initialized()


@pytest.mark.skipif("ray.is_initialized()", reason="this session's Ray is there already")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("BAAI/absent", r"^embedders\.0 \(BAAI/absent\): .*HF_HUB_OFFLINE"),
        ("./absent/model", r"^embedders\.0 \(.*absent/model\): model folder .*absent/model does not exist$"),
    ],
)
def test_a_model_that_is_not_there_ends_the_job_before_ray_starts(
    model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "A river."}\n')
    sections = {"input": {"paths": [str(tmp_path / "a.jsonl")]}, "index": {"uri": str(tmp_path / "idx")}}
    with pytest.raises(ConfigError, match=message):
        build_index(load_config(None, [f"embedders.0.model={model}"], **sections))
    assert not ray.is_initialized()
    assert not (tmp_path / "idx").exists()


@pytest.mark.ray
def test_a_ray_that_is_there_is_used_and_left(ray_session: None, tmp_path: Path) -> None:
    log = a_log(tmp_path)
    with RaySession(log.config.ray, log, start=False) as session:
        assert isinstance(session.tasks, OnRay)
        assert session.call(format_duration, 65) == "1m05s"
    assert ray.is_initialized()


@pytest.mark.ray
def test_a_full_cluster_is_said_to_be_full(ray_session: None) -> None:
    assert describe_wait() is None

    @ray.remote(num_cpus=2)
    class Holder:
        def ready(self) -> bool:
            return True

    holder = Holder.remote()
    assert ray.get(holder.ready.remote())
    assert describe_wait() == "waiting for CPUs: other jobs have 2 of 2"
    ray.kill(holder)
