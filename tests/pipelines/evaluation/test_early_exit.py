"""Choosing a cutoff layer on judged queries, with a reranker whose layers are known to be good or bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.rerankers.registry import load_reranker
from actors.spec import ComputeSpec
from pipelines.config import ConfigError
from pipelines.evaluation.early_exit import choose_cutoff
from pipelines.retrieval.index import Index, open_index
from tests.checkpoints_rerankers import build
from tests.indexes import WordEmbedder, make_index

TEXTS = {f"d{i}": f"passage number {i} about topic{i % 7}" for i in range(40)}
QUERIES = {f"q{i}": f"topic{i}" for i in range(7)}
QRELS = {f"q{i}": {f"d{i}": 1} for i in range(7)}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return open_index(make_index(tmp_path_factory.mktemp("exit"), TEXTS), embedder=WordEmbedder())


def test_the_earliest_layer_that_is_good_enough_is_chosen(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = load_reranker(str(build("minicpm", tmp_path / "model")), compute=ComputeSpec(dtype="fp32"))
    asked = []

    def score_pairs(pairs: list[tuple[str, str]], options: object) -> np.ndarray:
        """Layers 2 and 3 rank the judged document last, the others first."""
        asked.append(options.cutoff_layers)  # type: ignore[attr-defined]
        right = [passage.split()[2] == query.removeprefix("topic") for query, passage in pairs]
        return np.array([[-1.0, -1.0, 1.0, 1.0, 1.0] if good else [0.0] * 5 for good in right])

    monkeypatch.setattr(reranker, "score_pairs", score_pairs)
    layer, table = choose_cutoff(index, QUERIES, QRELS, reranker)
    assert layer == 4
    assert set(asked) == {(2, 3, 4, 5, 6)}
    assert [row.layer for row in table] == [2, 3, 4, 5, 6]
    assert [row.ndcg for row in table[2:]] == [1.0, 1.0, 1.0]
    assert table[0].ndcg < 0.5
    assert table[0].p < 0.05 < table[2].p
    assert table[2].share == pytest.approx(4 / 6)


def test_every_layer_is_measured_as_it_scores_alone(index: Index, tmp_path: Path) -> None:
    reranker = load_reranker(str(build("minicpm", tmp_path / "model")), compute=ComputeSpec(dtype="fp32"))
    _, together = choose_cutoff(index, QUERIES, QRELS, reranker, depth=10)
    _, alone = choose_cutoff(index, QUERIES, QRELS, reranker, layers=[4], depth=10)
    assert alone[0].ndcg == pytest.approx(together[2].ndcg)


def test_a_reranker_without_layers_is_refused(index: Index, tmp_path: Path) -> None:
    reranker = load_reranker(str(build("bert", tmp_path / "model")))
    with pytest.raises(ConfigError, match="there is no layer to choose"):
        choose_cutoff(index, QUERIES, QRELS, reranker)
