"""Imports follow the layers below. The syntax tree is read, so that an import inside a function counts as well."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A subpackage (or a module beside them) imports from lower layers only, so no import cycle is possible. A new one needs
# a line here.
LAYERS: dict[str, int] = {
    # actors: runs models
    "actors.spec": 0,
    "actors.extras": 0,
    "actors.outputs": 0,
    "actors.output_paths": 0,
    "actors.source_positions": 0,
    "actors.suggest": 0,
    "actors.arrow": 1,
    "actors.transfers": 1,
    "actors.kernels": 1,
    "actors.checkpoints": 1,
    "actors.text": 2,
    "actors.compute": 2,
    "actors.codecs": 2,
    "actors.vision": 2,
    "actors.models": 3,
    "actors.network": 4,
    "actors.embedders": 5,
    "actors.rerankers": 6,
    "actors.fitting": 6,
    "actors.mixing": 6,
    "actors.pool": 6,
    # pipelines: moves, stores and finds
    "pipelines.config": 7,
    "pipelines.store": 8,
    "pipelines.reading": 9,
    "pipelines.search_indexes": 9,
    "pipelines.changes": 9,
    "pipelines.backup": 10,
    "pipelines.cluster": 10,
    "pipelines.monitor": 10,
    "pipelines.retrieval": 10,
    "pipelines.indexing": 11,
    "pipelines.evaluation": 11,
    "pipelines.integrity": 11,
    "pipelines.plan": 12,
    "pipelines.reranking": 12,
    "pipelines.serving": 12,
    "pipelines.integrations": 12,
    "pipelines.cli": 13,
}

# What a subpackage may not import from outside: the reason stands in CONTRIBUTING.md.
FORBIDDEN: dict[str, set[str]] = {
    **{name: {"ray", "lance", "lancedb", "pydantic", "typer"} for name in LAYERS if name.startswith("actors.")},
    "pipelines.store": {"ray", "torch", "transformers", "typer"},
    "pipelines.search_indexes": {"ray", "torch", "transformers", "typer"},
    "pipelines.retrieval": {"ray", "typer"},
    "pipelines.evaluation": {"ray", "typer"},
    "pipelines.integrations": {"ray", "typer"},
}
PUBLIC = {"tridex", "actors", "pipelines"}  # their `__init__.py` export names of every layer, lazily, to users


def subpackage(module: str) -> str:
    """Returns the first two parts of a module's name."""
    name = ".".join(module.split(".")[:2])
    assert name in LAYERS, f"{module}: {name} has no layer in this table"
    return name


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
        if module in PUBLIC:
            continue
        here = subpackage(module)
        for name in imported(path):
            top = name.split(".")[0]
            if name in PUBLIC - {"tridex"} or (top == "tridex" and name not in ("tridex", "tridex.__version__")):
                yield f"{module} imports the public API {name}; import the module that defines the name"
            elif top in ("actors", "pipelines"):
                there = subpackage(name)
                if there != here and LAYERS[there] >= LAYERS[here]:
                    yield f"{module} (layer {LAYERS[here]}) imports {name} (layer {LAYERS[there]})"
            elif top in FORBIDDEN.get(here, set()):
                yield f"{module} imports {name}"


def test_imports_go_one_way() -> None:
    assert sorted(set(faults())) == []


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("actors", ["ray", "lance", "torch"]),
        ("pipelines", ["ray", "lance", "torch"]),
        ("pipelines.cli", ["ray", "torch", "numpy", "pyarrow"]),
        ("pipelines.indexing.build", ["torch", "transformers", "lancedb"]),
    ],
)
def test_importing_is_quick(package: str, absent: list[str]) -> None:
    """What is not needed yet is not loaded: help is printed in a second, and a notebook without Ray works."""
    code = f"import sys, {package}; print([m for m in {absent!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
