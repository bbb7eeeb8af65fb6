"""Packages what a cluster needs to run a job into one small folder: the code and the config, without secrets.

Shipping the code makes any Ray cluster with the dependencies good enough, whatever version of tridex its image holds;
it is under a megabyte and Ray uploads it once per content. Secrets are refused, not shipped: Ray keeps a job's files
and environment where everyone who can see the job can read them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from pipelines.config import BuildConfig, ConfigError, plain_options, resolve_paths

PACKAGES = ("actors", "pipelines", "tridex")
EXCLUDES = ("__pycache__", "*.pyc", ".*")
CONFIG = "job.yaml"
SECRET_WORDS = ("secret", "key", "token", "password", "credential", "sas", "account")


def write_package(folder: Path, config: BuildConfig, job_id: str) -> None:
    """Fills an empty folder with the code and `job.yaml`; ConfigError if the config holds a secret."""
    tree = shippable(config, job_id)
    root = Path(__file__).resolve().parents[2]
    for name in PACKAGES:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns(*EXCLUDES))
    (folder / CONFIG).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def shippable(config: BuildConfig, job_id: str) -> dict[str, Any]:
    """Converts the config to a tree valid on other machines: absolute paths, no Ray address, no secrets."""
    config = resolve_paths(config)
    tree = config.model_dump(mode="json", exclude_defaults=True)
    for section, options in (("input", config.input.storage_options), ("index", config.index.storage_options)):
        if options:
            tree[section]["storage_options"] = _public(section, options)
    tree["job"] = {**tree.get("job", {}), "id": job_id}
    tree.pop("ray", None)
    return tree


def _public(section: str, options: Mapping[str, SecretStr]) -> dict[str, str]:
    secret = sorted(key for key in options if any(word in key.lower() for word in SECRET_WORDS))
    if secret:
        raise ConfigError(
            f"{section}.storage_options.{secret[0]}: secrets are not sent with a job, where others could read them; "
            "put them into the environment of the cluster's machines"
        )
    return plain_options(options)
