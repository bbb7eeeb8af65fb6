"""The public names: `tridex` hands out those of `actors` and `pipelines`, with types, and costs nothing to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import actors
import pipelines
import tridex

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"tridex": tridex.__all__, "actors": actors.__all__, "pipelines": pipelines.__all__}


def run(code: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, env=env or None)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_type_checkers_see_is_what_there_is(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(PACKAGES[package])


def test_tridex_hands_out_the_names_of_both_packages() -> None:
    assert set(tridex.__all__) == {*actors.__all__, *pipelines.__all__}
    assert tridex.load_config is pipelines.load_config
    assert tridex.FlagModel is actors.FlagModel
    with pytest.raises(AttributeError, match="nonsense"):
        tridex.nonsense  # noqa: B018


def test_importing_loads_nothing_that_is_large() -> None:
    code = "import sys, tridex; print([m for m in ('numpy', 'torch', 'ray', 'pydantic', 'lance') if m in sys.modules])"
    assert run(code).stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["package", "namespace", "module"])
@pytest.mark.parametrize("name", ["actors", "pipelines"])
def test_a_package_of_the_callers_own_is_named(tmp_path: Path, name: str, kind: str) -> None:
    """Python looks in his folder first; a folder without `__init__.py` comes after every real package."""
    if kind == "module":
        (tmp_path / f"{name}.py").touch()
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / ("__init__.py" if kind == "package" else "notes.txt")).touch()
    ended = run("import tridex; print('fine')", cwd=tmp_path)
    if kind == "namespace":
        assert ended.stdout.strip() == "fine", ended.stderr
        return
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tridex needs its own package"), ended.stderr
    assert repr(name) in last
    assert str(tmp_path / name) in last


def test_the_version_is_the_one_that_is_packaged() -> None:
    from typer.testing import CliRunner

    from pipelines.cli.app import app

    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"tridex {tridex.__version__}\n")
    assert 'attr = "tridex.__version__"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
