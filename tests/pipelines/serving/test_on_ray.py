"""The RayService starts this application; a replica that dies takes no other's requests with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config import validated
from pipelines.serving.settings import ServeConfig

ROOT = Path(__file__).resolve().parents[3]
CLUSTERS = ROOT / "configs" / "clusters"


def rayservice() -> tuple[dict[str, Any], dict[str, Any]]:
    config_map, service = yaml.safe_load_all((CLUSTERS / "kuberay-rayservice.yaml").read_text())
    return config_map, service


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_rayservice_starts_this_application_with_a_valid_config() -> None:
    from ray.serve.schema import ServeDeploySchema

    config_map, service = rayservice()
    serve_config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = serve_config.applications
    module, name = application.import_path.split(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    config = validated(ServeConfig, yaml.safe_load(config_map["data"]["serve.yaml"]))
    mounted = {m["name"]: m["mountPath"] for m in _container(service)["volumeMounts"]}
    assert application.args["config"] == f"{mounted['config']}/serve.yaml"
    assert str(config.aliases_file) == f"{mounted['config']}/aliases.yaml"
    assert str(config.keys) == f"{mounted['keys']}/keys.yaml"
    assert application.args["replicas"] <= service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplicas"]
    assert set(yaml.safe_load(config_map["data"]["aliases.yaml"])) == {"current"}


def test_the_rayservice_runs_the_ray_and_the_image_of_the_rayjob() -> None:
    _, service = rayservice()
    _, job = yaml.safe_load_all((CLUSTERS / "kuberay-rayjob.yaml").read_text())
    theirs = job["spec"]["rayClusterSpec"]
    ours = service["spec"]["rayClusterConfig"]
    assert ours["rayVersion"] == theirs["rayVersion"]
    assert _container(service)["image"] == theirs["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]


def _container(service: dict[str, Any]) -> dict[str, Any]:
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    container: dict[str, Any] = head["template"]["spec"]["containers"][0]
    return container


@pytest.mark.slow
@pytest.mark.ray
def test_a_replica_that_is_killed_takes_only_its_own_requests(tmp_path: Path) -> None:
    """Two replicas under six clients, kill -9 of one: what was in it fails, all else is answered, and it comes back."""
    from tests.clients.small_server import main as make_small

    make_small(tmp_path / "small")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(tmp_path / "small" / "index"), "--port", str(port)]
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen([*command, "--ray", "--replicas", "2", "--prewarm"], cwd=ROOT, stderr=log, stdout=log)
    try:
        wait_until(lambda: get(f"http://127.0.0.1:{port}/readyz") == 200, 600)
        statuses: list[int] = []
        stop = threading.Event()
        threads = [threading.Thread(target=ask_on, args=(port, statuses, stop)) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(statuses) > 30, 300)
        before = replicas_of(process.pid)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: len(replicas_of(process.pid)) == 2 and before[0] not in replicas_of(process.pid), 300)
        answered = len(statuses)
        wait_until(lambda: len(statuses) > answered + 30, 300)
        stop.set()
        for thread in threads:
            thread.join()
        assert sum(status != 200 for status in statuses) <= 6, statuses
        assert all(status == 200 for status in statuses[-20:])
    finally:
        process.terminate()
        assert process.wait(timeout=120) == 0, (tmp_path / "log").read_text()[-3000:]


def get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=180) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)
    except OSError:
        return 0


def ask_on(port: int, statuses: list[int], stop: threading.Event) -> None:
    """Searches again and again; a connection for each request, so that none is lost with another's."""
    body = json.dumps({"query": "the kernel writes dirty pages"}).encode()
    while not stop.is_set():
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/search", body, {"Content-Type": "application/json"})
        statuses.append(get(asked))  # type: ignore[arg-type]


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def replicas_of(pid: int) -> list[int]:
    """The replicas' processes of a server's own Ray."""
    import psutil

    found = psutil.Process(pid).children(recursive=True)
    return [p.pid for p in found if any("ServeReplica" in part for part in _command(p))]


def _command(process: Any) -> list[str]:
    import psutil

    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
