"""Replicas of Ray Serve answer as one process does, and one that dies takes no other's requests with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipelines.config import validated
from pipelines.serving.settings import ServeConfig

CLUSTERS = Path(__file__).resolve().parents[3] / "configs" / "clusters"


def rayservice() -> tuple[dict[str, Any], dict[str, Any]]:
    config_map, service = yaml.safe_load_all((CLUSTERS / "kuberay-rayservice.yaml").read_text())
    return config_map, service


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
