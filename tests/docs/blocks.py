"""Reads the code blocks of the pages and runs them: Python in one namespace per page, `tridex` in this process.

A block that cannot run in a test says why on the line before it: `<!-- not run: needs a cluster -->`; one that needs a
package that is not installed everywhere says `<!-- needs: langchain_core -->`. A page begins with what lies in its
folder: `<!-- setup: corpus, index -->`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import BuildConfig, SearchOptions, validated

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$", re.M | re.S
)
OUTPUT = {"text", "mermaid"}
"""Languages of blocks that show, and do nothing."""
FILES = {"json", "jsonl", "csv", "tsv"}
RUN = {"python", "bash", "yaml"}


@dataclass(frozen=True)
class Block:
    """A fenced block. title: the file that a YAML or data block shows, written before the next command."""

    page: str
    line: int
    language: str
    code: str
    title: str | None
    not_run: str | None
    needs: str | None


def pages() -> list[Path]:
    """The pages that somebody wrote."""
    return [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip("\n").rsplit("\n", 1)[-1]
        indent = len(match["indent"])
        code = "\n".join(line[indent:] for line in match["code"].splitlines())
        title = re.search(r'title="([^"]+)"', match["rest"])
        yield Block(
            page.name,
            text.count("\n", 0, match.start()) + 1,
            match["language"],
            code,
            title[1] if title else None,
            _mark(before, "not run"),
            _mark(before, "needs"),
        )


def setup_of(page: Path) -> set[str]:
    found = re.search(r"<!-- setup: ([^>]+) -->", page.read_text(encoding="utf-8"))
    return set(re.split(r",\s*", found[1])) if found else set()


def _mark(line: str, kind: str) -> str | None:
    found = re.search(rf"<!-- {kind}: (.+?) -->", line)
    return found[1] if found else None


def run_page(page: Path, folder: Path) -> int:
    """Runs a page's blocks in order; returns how many ran. An error names the page and the line."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page):
        if block.title and block.language in {*FILES, "yaml", "python", "text"}:
            (folder / block.title).write_text(block.code + "\n", encoding="utf-8")
        if block.not_run or block.language not in RUN or (block.needs and find_spec(block.needs) is None):
            continue
        try:
            _run(block, namespace)
        except Exception as error:
            raise AssertionError(f"{page.relative_to(ROOT)}:{block.line}: {type(error).__name__}: {error}") from error
        ran += 1
    return ran


def _run(block: Block, namespace: dict[str, Any]) -> None:
    if block.language == "python":
        exec(compile(block.code, f"{block.page}:{block.line}", "exec"), namespace)
    elif block.language == "bash":
        for line in block.code.replace("\\\n", " ").splitlines():
            _command(line)
    else:
        _check_settings(yaml.safe_load(block.code))


def _command(line: str) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] != "tridex":
        raise AssertionError(f"only tridex commands run here: {line!r}")
    ended = CliRunner().invoke(app, words[1:], catch_exceptions=False)
    if ended.exit_code != 0:
        raise AssertionError(f"{line!r} ended with {ended.exit_code}: {ended.output}")


def _check_settings(tree: Any) -> None:
    """A YAML block is a job, a part of one, or search options."""
    if set(tree) <= set(SearchOptions.model_fields):
        validated(SearchOptions, tree)
        return
    needed = {"input": {"paths": ["x"]}, "index": {"uri": "x"}}
    whole = {**needed, **tree}
    whole["input"] = {**needed["input"], **(tree.get("input") or {})}
    whole["index"] = {**needed["index"], **(tree.get("index") or {})}
    validated(BuildConfig, whole)
