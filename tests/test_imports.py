"""Imports go one way. The syntax tree is read, so that an import inside a function counts as well."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A room may import those on lower floors. `pipelines.config` and small leaf modules stand on the floor given here.
FLOORS: dict[str, int] = {
    "actors": 0,
    "pipelines.config": 1,
    "pipelines.store": 2,
    "pipelines.search_indexes": 3,
    "pipelines.changes": 3,
    "pipelines.retrieval": 4,
    "pipelines.evaluation": 5,
    "pipelines": 6,
    "pipelines.integrations": 6,
    "pipelines.cli": 7,
}

# What a room may not import from outside: the reason stands in CONTRIBUTING.md.
FORBIDDEN: dict[str, set[str]] = {
    "actors": {"ray", "lance", "lancedb", "pydantic", "typer"},
    "pipelines.store": {"ray", "torch", "transformers", "typer"},
    "pipelines.search_indexes": {"ray", "torch", "transformers", "typer"},
    "pipelines.retrieval": {"ray", "typer"},
    "pipelines.evaluation": {"ray", "typer"},
    "pipelines.integrations": {"ray", "typer"},
}
FACES = {"pipelines", "actors"}  # the two `__init__.py` hand out names of every floor, lazily


def room(module: str) -> str:
    """The longest known prefix of a module's name."""
    parts = module.split(".")
    return next(name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in FLOORS)


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("actors", "pipelines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def faults() -> Iterator[str]:
    for module, path in modules():
        if module in FACES:
            continue
        here = room(module)
        for name in imported(path):
            top = name.split(".")[0]
            if top in ("actors", "pipelines"):
                there = room(name)
                if FLOORS[there] > FLOORS[here]:
                    yield f"{module} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})"
            elif top in FORBIDDEN.get(here, set()):
                yield f"{module} imports {name}"


def test_imports_go_one_way() -> None:
    assert sorted(set(faults())) == []


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("actors", ["ray", "lance", "torch"]),
        ("pipelines", ["ray", "lance", "torch"]),
        ("pipelines.cli", ["ray", "torch"]),
        ("pipelines.indexing.build", ["torch", "transformers", "lancedb"]),
    ],
)
def test_importing_is_quick(package: str, absent: list[str]) -> None:
    """What is not needed yet is not loaded: help is printed in a second, and a notebook without Ray works."""
    code = f"import sys, {package}; print([m for m in {absent!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
