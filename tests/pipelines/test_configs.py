"""The files under configs/ are data: each is loaded, and held against the schema of whatever will read it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.config import ConfigError, load_config, validate
from pipelines.monitor import metrics

ROOT = Path(__file__).resolve().parent.parent.parent
JOBS = sorted((ROOT / "configs" / "jobs").glob("*.yaml"))
CLUSTERS = ROOT / "configs" / "clusters"


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_file_is_valid(path: Path) -> None:
    config = load_config(path)
    assert config.input.paths
    assert path.read_text().startswith("#"), "a job file says what it is for"


def test_no_config_holds_a_secret() -> None:
    for path in (ROOT / "configs").rglob("*.yaml"):
        text = path.read_text()
        assert not re.search(r"(AKIA|aws_secret_access_key: *\S)", text), path


@pytest.mark.parametrize("name", ["ray-up-aws.yaml", "ray-up-local.yaml"])
def test_a_ray_up_file_passes_rays_own_schema(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((CLUSTERS / name).read_text()))
    validate_config(config)
    assert "ray start --head" in config["head_start_ray_commands"][-1]


def test_the_schema_check_can_fail() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((CLUSTERS / "ray-up-aws.yaml").read_text()))
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, "head_nodes": 1})


def _object(required: list[str], **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


STRING, NUMBER, BOOLEAN = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": STRING}
ANY: dict[str, Any] = {}
CONTAINER = _object(
    ["name", "image", "resources"],
    name=STRING, image=STRING, ports=ANY, env=ANY, envFrom={"type": "array"}, command=ANY, args=ANY,
    volumeMounts={"type": "array", "items": _object(["name", "mountPath"], name=STRING, mountPath=STRING)},
    resources=_object(["requests", "limits"], requests=STRINGS, limits=STRINGS),
)  # fmt: skip
POD = _object(
    ["spec"],
    metadata=ANY,
    spec=_object(
        ["containers"], containers={"type": "array", "items": CONTAINER, "minItems": 1}, volumes={"type": "array"},
        tolerations={"type": "array"}, nodeSelector=STRINGS, serviceAccountName=STRING,
        terminationGracePeriodSeconds=NUMBER,
    ),
)  # fmt: skip
WORKERS = _object(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=STRING, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, numOfHosts=NUMBER,
    rayStartParams=STRINGS, template=POD,
)  # fmt: skip
RAYJOB = _object(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=STRING, runtimeEnvYAML=STRING, backoffLimit=NUMBER, shutdownAfterJobFinishes=BOOLEAN,
    ttlSecondsAfterFinished=NUMBER, activeDeadlineSeconds=NUMBER, submissionMode=STRING, jobId=STRING, suspend=BOOLEAN,
    rayClusterSpec=_object(
        ["headGroupSpec"],
        rayVersion=STRING, enableInTreeAutoscaling=BOOLEAN,
        headGroupSpec=_object(["rayStartParams", "template"], rayStartParams=STRINGS, template=POD, serviceType=STRING),
        workerGroupSpecs={"type": "array", "items": WORKERS},
    ),
)  # fmt: skip
"""The fields of KubeRay's RayJob (ray.io/v1) and of pods that are used here; the operator's schema has 30,000 lines."""


def _kuberay() -> tuple[dict[str, Any], dict[str, Any]]:
    config_map, job = yaml.safe_load_all((CLUSTERS / "kuberay-rayjob.yaml").read_text())
    return config_map, job


def test_the_rayjob_uses_only_fields_that_kuberay_knows() -> None:
    _, job = _kuberay()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    jsonschema.validate(job["spec"], RAYJOB)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(job["spec"], RAYJOB)


def test_the_rayjob_runs_a_valid_config_that_is_mounted_where_it_says() -> None:
    config_map, job = _kuberay()
    config = validate(yaml.safe_load(config_map["data"]["job.yaml"]))
    cluster = job["spec"]["rayClusterSpec"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    (mount,) = head["volumeMounts"]
    assert job["spec"]["entrypoint"] == f"tridex build {mount['mountPath']}/job.yaml"
    (volume,) = cluster["headGroupSpec"]["template"]["spec"]["volumes"]
    assert (volume["name"], volume["configMap"]["name"]) == (mount["name"], config_map["metadata"]["name"])
    (workers,) = cluster["workerGroupSpecs"]
    pool = config.embedders[0].pool
    gpus = int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert pool.max_size != "auto"
    assert pool.max_size * pool.num_gpus <= workers["minReplicas"] * gpus
    env = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in env.values()), "Ray refuses numbers as variables"


def _locked(package: str) -> str:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return next(line.split("==")[1].split(";")[0].strip() for line in lines if line.startswith(f"{package}=="))


def test_every_cluster_runs_the_locked_ray() -> None:
    _, job = _kuberay()
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == _locked("ray")
    assert f"FROM rayproject/ray:{_locked('ray')}-" in (CLUSTERS / "Dockerfile").read_text()


def test_the_dockerfile_copies_files_that_exist() -> None:
    copied = re.findall(r"^COPY --chown=ray (.+) \S+$", (CLUSTERS / "Dockerfile").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())


def _dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((CLUSTERS / "grafana-dashboard.json").read_text())
    return board


def test_the_dashboard_shows_metrics_that_exist_and_all_of_them() -> None:
    text = json.dumps(_dashboard())
    shown = set(re.findall(r"ray_tridex_(\w+)", text))
    exist = {f"{name}_total" for name in metrics.COUNTERS} | {f"{name}_bucket" for name in metrics.SECONDS}
    assert shown == exist | {"padding_share"}


def test_the_dashboard_filters_by_the_label_that_the_metrics_carry() -> None:
    labels = {label for panel in _dashboard()["panels"] for target in panel["targets"]
              for label in re.findall(r"[{,](\w+)=~", target["expr"])}  # fmt: skip
    assert labels == {metrics.TAGS[0]}


def test_the_dashboards_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in _dashboard()["panels"]:
        place = panel["gridPos"]
        here = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not here & cells, panel["title"]
        assert max(x for x, _ in here) < 24
        cells |= here


def test_configs_are_data_that_no_module_imports() -> None:
    for path in [*(ROOT / "actors").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]:
        names = {
            node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        }
        assert not any(name.split(".")[0] == "configs" for name in names), path


def test_packaged_files_are_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/jobs/laptop.yaml") == load_config(ROOT / "configs" / "jobs" / "laptop.yaml")
    with pytest.raises(ConfigError, match=r"^configs/jobs/none\.yaml: no such config file$"):
        load_config("configs/jobs/none.yaml")
    with pytest.raises(ConfigError, match=r"^laptop\.yaml: no such config file$"):
        load_config("laptop.yaml")


def test_a_file_of_the_users_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "jobs").mkdir(parents=True)
    (tmp_path / "configs" / "jobs" / "laptop.yaml").write_text("input: {paths: [mine.jsonl]}\nindex: {uri: idx}\n")
    assert load_config("configs/jobs/laptop.yaml").input.paths == ("mine.jsonl",)
