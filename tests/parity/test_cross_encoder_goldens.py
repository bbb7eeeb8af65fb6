"""Cross-encoders against sentence-transformers' own `predict` and `rank`, and Qwen3-Reranker against its model card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints_cross_encoders import CROSS_ENCODERS, build_cross_encoder, pairs_of
from checkpoints_rerankers import PAIRS

from actors.rerankers.registry import load_reranker
from actors.spec import ComputeSpec

HERE = Path(__file__).resolve().parent
QUERY = 5


@pytest.mark.parametrize("kind", CROSS_ENCODERS)
def test_scores_are_those_of_its_own_library(kind: str, tmp_path: Path) -> None:
    folder = build_cross_encoder(kind, tmp_path / kind)
    reranker = load_reranker(str(folder), compute=ComputeSpec(dtype="fp32", device="cpu"))
    goldens = np.load(HERE / f"cross_encoder_{kind.lower().replace('-', '_')}.npz")
    np.testing.assert_allclose(reranker.compute_score(pairs_of(kind)), goldens["scores"], atol=2e-5)
    ranked = reranker.score(PAIRS[QUERY][0], [passage for _, passage in PAIRS])
    order = np.argsort(-ranked, kind="stable")
    np.testing.assert_allclose(ranked[order], goldens["ranked"], atol=2e-5)
    np.testing.assert_allclose(ranked[goldens["order"]], goldens["ranked"], atol=2e-5)
