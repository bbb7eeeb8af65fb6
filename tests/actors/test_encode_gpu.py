"""The GPU benchmark's code paths at toy size on a CPU: it checks itself against fp32 before it measures."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "encode_gpu.py"


@pytest.fixture(scope="module")
def bench() -> object:
    spec = importlib.util.spec_from_file_location("encode_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["encode_gpu"] = module
    spec.loader.exec_module(module)
    return module


def test_the_toy_run_prints_one_table(bench: object, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--toy", "--device", "cpu"])  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    assert "worst cosine to fp32: dense 0.99" in printed
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows] == [
        "encoder", "tridex bf16, budget 512", "tridex bf16, budget 2048", "tridex bf16, budget 512, ColBERT as signs",
        "FlagEmbedding's loop, torch.float32",
    ]  # fmt: skip


def test_vectors_that_are_not_those_of_fp32_stop_the_benchmark(bench: object) -> None:
    scale = bench.TOY  # type: ignore[attr-defined]
    tokens = bench.sample(3)  # type: ignore[attr-defined]
    n, m = len(tokens), int(tokens.lengths.sum()) - 3
    dense, vectors = (np.eye(1, scale.width).repeat(rows, 0).astype(np.float32) for rows in (n, m))
    offsets = tokens.offsets - np.arange(n + 1)
    found = bench.EmbeddingBatch(  # type: ignore[attr-defined]
        dense, None, sys.modules["actors.outputs"].MultiVectors(offsets, vectors), tokens.lengths, tokens.n_truncated
    )
    assert bench.check(found, dense, vectors) == "dense 1.00000, colbert 1.00000"  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="not close to fp32"):
        bench.check(found, dense, -vectors)  # type: ignore[attr-defined]
