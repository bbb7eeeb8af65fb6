"""What is shipped and how a job is named, without a cluster; and, in the slow tier, jobs on a real one on loopback."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clusters import free_port, two_nodes

from pipelines.cluster.package import shippable, write_package
from pipelines.cluster.submit import (
    Attempt,
    _entrypoint,
    attempts,
    auth_headers,
    connect,
    job_status,
    resolve_address,
    stop_job,
    submit_job,
)
from pipelines.config import BuildConfig, ConfigError, load_config, validate


def _config(**sections: Any) -> BuildConfig:
    return validate({"input": {"paths": ["in"]}, "index": {"uri": "idx"}, **sections})


# What is shipped.


def test_the_package_holds_the_code_and_a_config_that_loads(tmp_path: Path) -> None:
    write_package(tmp_path, _config(job={"prune": True}, ray={"num_cpus": 3}), "night")
    assert {path.name for path in tmp_path.iterdir()} == {"actors", "pipelines", "tridex", "job.yaml"}
    assert not list(tmp_path.rglob("__pycache__"))
    shipped = load_config(tmp_path / "job.yaml")
    assert (shipped.job.id, shipped.job.prune, shipped.ray.num_cpus) == ("night", True, None)
    assert shipped.index.uri == str(Path("idx").absolute())


def test_the_packaged_code_runs_by_itself(tmp_path: Path) -> None:
    write_package(tmp_path, _config(), "night")
    code = "import pipelines.config as c; print(c.__file__); c.load_config('job.yaml')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path))


def test_uris_stay_and_local_paths_become_absolute() -> None:
    tree = shippable(_config(input={"paths": ["s3://b/x/*.parquet", "~/data"]}), "j")
    assert tree["input"]["paths"] == ["s3://b/x/*.parquet", str(Path("~/data").expanduser())]


def test_a_local_model_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    tree = shippable(_config(embedders=[{"model": "model"}, {"name": "b", "model": "BAAI/bge-m3"}]), "j")
    assert [e["model"] for e in tree["embedders"]] == [str(tmp_path / "model"), "BAAI/bge-m3"]


def test_harmless_options_are_shipped_and_secrets_refused() -> None:
    options = {"aws_region": "eu-west-1", "aws_endpoint": "http://127.0.0.1:9"}
    tree = shippable(_config(index={"uri": "s3://b/i", "storage_options": options}), "j")
    assert tree["index"]["storage_options"] == options
    for name in ("aws_access_key_id", "aws_secret_access_key", "azure_storage_sas_token", "google_service_account"):
        with pytest.raises(ConfigError, match=rf"input\.storage_options\.{name}: secrets are not sent") as caught:
            shippable(_config(input={"paths": ["s3://b/x"], "storage_options": {name: "hunter2"}}), "j")
        assert "hunter2" not in str(caught.value)


# Where it goes.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("head:8265", "http://head:8265"),
        ("https://ray.example/", "https://ray.example"),
        (None, "http://127.0.0.1:8265"),
    ],
)
def test_addresses(given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert resolve_address(given) == expected


def test_a_client_address_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"address 'ray://head:10001': expected http://HOST:PORT"):
        resolve_address("ray://head:10001")


def test_no_cluster_at_the_address() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=f"no Ray dashboard answers at {address}"):
        submit_job(_config(), address=address)


def test_an_id_that_ray_cannot_take() -> None:
    with pytest.raises(ConfigError, match=r"job\.id: 'a/b' must be letters, digits"):
        submit_job(_config(), job_id="a/b")


def test_the_interpreter_is_this_one_on_loopback_and_searched_for_elsewhere() -> None:
    assert sys.executable in _entrypoint("http://127.0.0.1:8265", None)
    assert "for p in python python3" in _entrypoint("http://head:8265", None)
    assert _entrypoint("http://head:8265", "/opt/py/bin/python").startswith('p="/opt/py/bin/python"; exec')


def test_the_search_for_an_interpreter_ends_in_a_message(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", _entrypoint("http://head:8265", None)]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert "neither python nor python3 of the cluster can import ray" in done.stderr


def test_the_token_is_taken_from_where_ray_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert auth_headers() == {}
    (tmp_path / "token").write_text("abc\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert auth_headers() == {"authorization": "Bearer abc"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "xyz")
    assert auth_headers() == {"authorization": "Bearer xyz"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert auth_headers() == {}


# On a real cluster.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard's address of two nodes; the head has no CPU, so the other one does all the work."""
    with two_nodes(tmp_path_factory.mktemp("r")) as address:
        yield address


def _shards(folder: Path, rows: int) -> Path:
    folder.mkdir()
    for i in range(4):
        texts = [f"document {i} number {k} about cats " * 10 for k in range(rows)]
        pq.write_table(pa.table({"id": [f"{i}-{k}" for k in range(rows)], "text": texts}), folder / f"{i}.parquet")
    return folder


def _job(tmp_path: Path, rows: int) -> BuildConfig:
    index = {"uri": str(tmp_path / "idx"), "commit_fragments": 1, "fragment_bytes": 250_000, "full_text": False}
    pool = {"batch_rows": 50, "max_size": 1}
    return _config(input={"paths": [str(_shards(tmp_path / "in", rows))]}, index=index, embedders=[{"pool": pool}])


def _rows(tmp_path: Path) -> int:
    table = tmp_path / "idx" / "documents.lance"
    return int(lance.dataset(table).count_rows()) if table.exists() else 0


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_runs_is_followed_and_resumed(cluster: str, tmp_path: Path) -> None:
    config, log = _job(tmp_path, 30), io.StringIO()
    first = submit_job(config, address=cluster, job_id="night", stream=log)
    assert (first.status, first.submission_id, first.number) == ("SUCCEEDED", "night-1", 1)
    assert "embedded    120 documents in 120 rows" in log.getvalue()
    assert _rows(tmp_path) == 120
    again = io.StringIO()
    second = submit_job(config, address=cluster, job_id="night", stream=again)
    assert (second.status, second.submission_id) == ("SUCCEEDED", "night-2")
    assert "left alone  120 documents" in again.getvalue()
    assert [a.number for a in attempts("night", cluster)] == [1, 2]
    assert _rows(tmp_path) == 120


@pytest.mark.slow
@pytest.mark.ray
def test_a_stopped_job_keeps_its_work_and_goes_on(cluster: str, tmp_path: Path) -> None:
    config = _job(tmp_path, 200)
    running = submit_job(config, address=cluster, job_id="long", detach=True)
    assert not running.is_over
    with pytest.raises(ConfigError, match="job 'long' runs already as long-1; stop it first"):
        submit_job(config, address=cluster, job_id="long", detach=True)
    _until(lambda: _rows(tmp_path) > 0, 600)
    stopped = stop_job("long", cluster)
    assert stopped.status == "STOPPED"
    kept = _rows(tmp_path)
    assert 0 < kept < 800
    log = io.StringIO()
    assert submit_job(config, address=cluster, job_id="long", stream=log).status == "SUCCEEDED"
    assert f"left alone  {kept:,} documents" in log.getvalue()
    assert _rows(tmp_path) == 800


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_that_fails_says_so(cluster: str, tmp_path: Path) -> None:
    log = io.StringIO()
    attempt = submit_job(_config(input={"paths": [str(tmp_path / "none")]}), address=cluster, job_id="bad", stream=log)
    assert attempt.status == "FAILED"
    assert "exit code 2" in attempt.message
    assert "input.paths.0: no file matches" in log.getvalue()


@pytest.mark.slow
@pytest.mark.ray
def test_a_wrong_token_and_an_unknown_job(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="job 'unknown' is not known at http://127"):
        job_status("unknown", cluster)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "1" * 64)
    with pytest.raises(ConfigError, match="requires a token that is missing or wrong"):
        connect(cluster)


def test_an_attempt_describes_itself() -> None:
    attempt = Attempt("night", 2, "night-2", "http://head:8265", "FAILED", "exit code 1", 12.0)
    assert attempt.is_over
    assert attempt.text() == "night-2: FAILED, 12 s. exit code 1"
    assert attempt.to_dict()["number"] == 2


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from pipelines.cli.app import app

    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "pipelines.cluster.submit", raising=False)
    result = CliRunner().invoke(app, ["submit", "--input", "a.jsonl", "--index", "idx"])
    assert result.exit_code == 2
    assert "submitting a job needs aiohttp: pip install 'tridex[submit]'" in result.stderr
