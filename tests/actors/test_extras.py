"""The one message about missing packages, and that its table is pyproject.toml's."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actors.extras import DISTRIBUTIONS, EXTRAS, MissingExtraError, find_missing, require_extra

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

OF_RAY = ("aiohttp", "grpc")
"""Modules that come with an extra of Ray."""


@pytest.fixture
def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python finds none of the optional packages."""
    for module in {module for modules in EXTRAS.values() for module in modules}:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_is_declared_with_its_packages(extra: str) -> None:
    line = next(text for text in PYPROJECT.read_text(encoding="utf-8").splitlines() if text.startswith(f"{extra} = "))
    declared = {re.split(r"[\[>=<,]", name)[0].lower() for name in re.findall(r'"([^"]+)"', line)}
    expected = {"ray" if module in OF_RAY else DISTRIBUTIONS.get(module, module).lower() for module in EXTRAS[extra]}
    assert declared == expected


def test_nothing_is_said_of_what_is_installed() -> None:
    assert find_missing("serve") == []
    require_extra("serve", "serving")


def test_all_missing_packages_are_named(without_extras: None) -> None:
    message = r"^serving needs fastapi, uvicorn, mcp, prometheus-client: pip install 'tridex\[serve\]'$"
    with pytest.raises(MissingExtraError, match=message):
        require_extra("serve", "serving")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve", "idx"], "serving needs fastapi, uvicorn, mcp, prometheus-client: pip install 'tridex[serve]'"),
        (
            ["serve", "idx", "--ray"],
            "serving on Ray needs grpcio, fastapi, uvicorn, mcp, prometheus-client: pip install 'tridex[serve-ray]'",
        ),
        (["mcp", "idx"], "serving needs fastapi, uvicorn, mcp, prometheus-client: pip install 'tridex[serve]'"),
        (
            ["optimize", "idx", "--address", "ray://nowhere:1"],
            "building a vector index on Ray needs lance-ray: pip install 'tridex[distributed]'",
        ),
    ],
)
def test_a_command_says_it_before_any_work(arguments: list[str], expected: str, without_extras: None) -> None:
    from pipelines.cli import app

    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 2
    assert ended.stderr == f"tridex: {expected}\n"
