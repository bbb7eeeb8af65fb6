"""What mypy tells an editor of the expressions in README: types, and nowhere `Any`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).resolve().parents[2]

CODE = """
from tridex import (
    BGEM3FlagModel, FlagAutoModel, FlagAutoReranker, FlagModel, FlagReranker, build_index, create_index, load_config,
    open_index,
)

config = load_config(input={"paths": ["shards/*.parquet"]}, index={"uri": "./idx"})
report = build_index(config)
index = open_index("./idx")
hits = index.search("who pays for clean energy", k=5, where="year > 2005")
model = BGEM3FlagModel("BAAI/bge-m3", use_fp16=True)
outputs = model.encode(["What is BGE M3?"], return_dense=True, return_sparse=True, return_colbert_vecs=True)
dense = FlagModel("BAAI/bge-base-en-v1.5")
reranker = FlagReranker("BAAI/bge-reranker-v2-m3")
"""
EXPRESSIONS = (
    "config",
    "report",
    "report.text()",
    "index",
    "create_index('./notes')",
    "hits",
    "hits.to_pandas()",
    "hits.ids",
    "hits[0]",
    "hits[0].score",
    "index.search(['a', 'b'])",
    "model",
    "outputs",
    "outputs['dense_vecs']",
    "outputs['lexical_weights'][0]['5']",
    "model.compute_score([('a', 'b')])['dense']",
    "dense.encode(['a'])",
    "dense.encode(['a'], convert_to_numpy=False)",
    "reranker",
    "FlagAutoModel",
    "FlagAutoReranker.from_finetuned('BAAI/bge-reranker-v2-m3')",
)
SHAPE = re.compile(r"(tuple\[Any, \.\.\.\]|_AnyShape)")
"""numpy's own word for an array of any number of dimensions."""


def test_no_public_name_is_any(tmp_path: Path) -> None:
    lines = [CODE, *(f"reveal_type({expression})" for expression in EXPRESSIONS)]
    (tmp_path / "readme.py").write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "readme.py")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    revealed = re.findall(r'Revealed type is "(.*)"', ran.stdout)
    assert len(revealed) == len(EXPRESSIONS), ran.stdout + ran.stderr
    untyped = [f"{e}: {t}" for e, t in zip(EXPRESSIONS, revealed, strict=True) if "Any" in SHAPE.sub("", t)]
    assert untyped == []
    assert "error:" not in ran.stdout, ran.stdout
