"""Restores the configuration of an index's last build, without its secrets, from the newest report beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pyarrow import fs

from pipelines.config import BuildConfig, ConfigError, apply_override, parse_override, validated
from pipelines.monitor.report import FOLDER
from pipelines.reading.files import READ_ERRORS, filesystem

MASKED = "**********"
"""Pydantic's mask of a secret."""


def last_config(uri: str, overrides: Sequence[str] = ()) -> BuildConfig:
    """Returns the configuration of the newest run of the index at `uri`, with `overrides` (`KEY=VALUE`) over it.

    ConfigError where no run is remembered. Secrets are not: give them again as overrides.
    """
    tree = _remove_secrets(_newest_report(uri)["config"])
    tree["index"]["uri"] = uri
    for text in overrides:
        apply_override(tree, *parse_override(text))
    return validated(BuildConfig, tree)


def _newest_report(uri: str) -> dict[str, Any]:
    try:
        client, path = filesystem(uri, {})
        found = client.get_file_info(fs.FileSelector(f"{path}/{FOLDER}", allow_not_found=True))
        reports = sorted(info.path for info in found if info.path.endswith(".json"))
        if not reports:
            raise ConfigError(f"{uri}: no run of this index is remembered; give the config file, or --input")
        with client.open_input_stream(reports[-1]) as stream:
            report: dict[str, Any] = json.loads(stream.read())
    except READ_ERRORS as error:
        raise ConfigError(f"{uri}: its reports cannot be read: {error}; give the config file, or --input") from error
    return report


def _remove_secrets(tree: Any) -> Any:
    """Removes masked values from a tree."""
    if isinstance(tree, dict):
        return {key: _remove_secrets(value) for key, value in tree.items() if value != MASKED}
    return [_remove_secrets(value) for value in tree] if isinstance(tree, list) else tree
