"""Scores against FlagEmbedding's, recorded by `record_rerankers.py` on tiny random checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints_rerankers import PAIRS, build, lora
from reranker_cases import CASES

import actors

HERE = Path(__file__).resolve().parent
GOLDENS = {
    name: scores
    for env in ("legacy", "parity")
    for name, scores in json.loads((HERE / f"rerankers_{env}.json").read_text(encoding="utf-8")).items()
}


@pytest.mark.parametrize("name", CASES)
def test_scores_are_upstreams(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    checkpoint = build(case.kind, tmp_path / "model", **case.checkpoint)
    adapter = {"peft_path": str(lora(tmp_path / "adapter", checkpoint))} if case.lora else {}
    reranker = getattr(actors, case.flag_class)(str(checkpoint), devices="cpu", **case.load, **adapter)
    np.testing.assert_allclose(reranker.compute_score(PAIRS, **case.call), GOLDENS[name], atol=1e-5)
