"""Builds the demo's corpus from docstrings of the Python standard library, which every machine with Python has.

The sources are parsed, not imported, so nothing runs; docstrings shorter than a sentence are left out.
"""

from __future__ import annotations

import ast
import inspect
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import ConfigError, EmbedderConfig

QUESTIONS = (
    "run a function after some seconds in another thread",
    "compare two sequences and show what changed",
    "find out which delimiter a csv file uses",
)
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "ensurepip", "turtledemo", "idle_test"}
MIN_CHARACTERS = 60
MARKER = ".tridex-demo"
"""Marker file of a folder that `tridex demo` made and may overwrite."""


def _sources() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not SKIPPED.intersection(parts):
            yield ".".join(part for part in parts if part != "__init__"), path


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Yields name and docstring of a module, class or function, and of all its public members."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text is not None and len(text) >= MIN_CHARACTERS:
            yield name, inspect.cleandoc(text)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from _docstrings(child, f"{name}.{child.name}")


def passages() -> Iterator[tuple[str, str, str]]:
    """Returns (id, module, text) per docstring; ids are unique."""
    seen: set[str] = set()
    for module, path in _sources():
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # lib2to3-style fixtures in some distributions are not Python 3
            continue
        for name, text in _docstrings(tree, module):
            if name not in seen:
                seen.add(name)
                yield name, module, text


def check_model(embedder: EmbedderConfig) -> None:
    """Raises ConfigError if the model is missing, before anything is written."""
    from actors.models.preparation import load_preparation

    try:
        load_preparation(embedder.spec())
    except ValueError as error:
        raise ConfigError(f"demo: {error}") from error


def claim_folder(folder: Path) -> None:
    """Creates the folder with its marker; removes an earlier demo's files from it and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MARKER).exists():
        for name in ("corpus", "index"):
            shutil.rmtree(folder / name, ignore_errors=True)
    (folder / MARKER).write_text("made by `tridex demo`, which replaces corpus and index beside this file\n")


def write_corpus(folder: Path, shards: int = 4, modules: tuple[str, ...] = ()) -> int:
    """Writes the passages as Parquet shards (`id`, `title`, `text`, `module`) and returns their number.

    `modules` limits them to those top-level modules; () takes all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in passages() if not modules or row[1].split(".")[0] in modules]
    for shard in range(shards):
        ids, modules, texts = zip(*rows[shard::shards], strict=True)
        table = pa.table({"id": ids, "title": ids, "text": texts, "module": modules})
        pq.write_table(table, folder / f"part-{shard:05d}.parquet", compression="zstd")
    return len(rows)
