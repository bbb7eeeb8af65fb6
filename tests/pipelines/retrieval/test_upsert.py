"""Upserts and deletes are commits that the next opening sees; fusion rules against values by hand; the async front."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.config import ConfigError
from pipelines.retrieval.fusion import SMOOTHING, FusionRule, default_fusion, fuse, parts
from pipelines.retrieval.index import Index, open_index
from tests.indexes import WordEmbedder, corpus, make_index


@pytest.fixture
def own(tmp_path: Path) -> str:
    return make_index(tmp_path, corpus(50), codec="rotated_sign", metadata={"year": pa.array(range(50))})


def test_upserts_replace_and_add_whole_documents(own: str) -> None:
    before = open_index(own, embedder=WordEmbedder())
    rows = [{"doc_id": "d0003", "text": "zebra crossing", "year": 1000}, {"doc_id": "new", "text": "zebra foal"}]
    assert before.upsert(rows) == 2
    after = open_index(own, embedder=WordEmbedder())
    assert (len(before), len(after)) == (50, 51)
    for mode in ("hybrid", "dense", "sparse", "colbert", "bm25"):
        assert set(after.search("zebra", k=2, mode=mode).ids) == {"d0003", "new"}
    assert after.search("zebra", k=2, where="year = 1000").ids == ["d0003"]
    assert "scheduler" not in after.search("zebra crossing", k=1)[0].text


def test_deleting_removes_a_document_and_forgives_unknown_ids(own: str) -> None:
    index = open_index(own, embedder=WordEmbedder())
    assert index.delete(["d0001", "d0002", "no such id", "x') OR ('1'='1"]) == 2
    assert len(open_index(own)) == 48
    with pytest.raises(ConfigError, match="delete: expected a list of ids, got one string"):
        index.delete("d0005")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "row 0: doc_id must be a text that is not empty, got None"),
        ({"doc_id": "a", "text": " "}, "row 0: text must be a text that is not empty, got ' '"),
        ({"doc_id": "a", "text": "b", "yaer": 1}, "row 0: the index has no column 'yaer'"),
    ],
)
def test_upserts_name_the_row_at_fault(own: str, row: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_index(own, embedder=WordEmbedder()).upsert([row])


def test_searches_can_run_beside_each_other(own: str) -> None:
    index = open_index(own, embedder=WordEmbedder())

    async def several() -> list:
        return await asyncio.gather(*(index.search_async(f"kernel case {i}", k=3) for i in range(8)))

    together = asyncio.run(several())
    assert [hits.ids for hits in together] == [index.search(f"kernel case {i}", k=3).ids for i in range(8)]


SCORES = {"dense": np.array([0.9, 0.5, 0.1], np.float32), "bm25": np.array([0.0, 8.0, 4.0], np.float32)}


def test_fusions_by_hand() -> None:
    weighted = fuse(SCORES, FusionRule("weighted", {"dense": 1, "bm25": 0.5}))
    np.testing.assert_allclose(weighted, (SCORES["dense"] + 0.5 * SCORES["bm25"]) / 1.5, rtol=1e-6)
    z = {c: (s - s.mean()) / s.std() for c, s in SCORES.items()}
    zscore = fuse(SCORES, FusionRule("zscore", {"dense": 2, "bm25": 1}))
    np.testing.assert_allclose(zscore, (2 * z["dense"] + z["bm25"]) / 3, rtol=1e-5)
    rrf = fuse(SCORES, FusionRule("rrf", {"dense": 1, "bm25": 1}))
    np.testing.assert_allclose(rrf, [1 / 61, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62], rtol=1e-6)
    dbsf = parts(SCORES, FusionRule("dbsf", {"dense": 1}))["dense"]
    np.testing.assert_allclose(dbsf, np.clip(z["dense"] / 6 + 0.5, 0, 1), rtol=1e-5)


def test_equal_scores_stay_equal_under_every_rule() -> None:
    same = {"dense": np.array([0.5, 0.5, 0.2], np.float32), "colbert": np.array([0.3, 0.3, 0.3], np.float32)}
    for fusion in ("zscore", "weighted", "rrf", "dbsf"):
        fused = fuse(same, FusionRule(fusion, {"dense": 1, "colbert": 1}))  # type: ignore[arg-type]
        assert fused[0] == fused[1] > fused[2]


def test_defaults_depend_on_the_model_and_on_what_there_is(index: Index) -> None:
    assert default_fusion("all-MiniLM-L6-v2", ("dense", "bm25")).weights == {"dense": 1.0, "bm25": 0.35}
    assert default_fusion("mine", ("dense", "colbert"), fitted=True) == FusionRule(
        "zscore", {"dense": 1.0, "colbert": 1.3}, SMOOTHING
    )
    m3 = default_fusion("BAAI/bge-m3", ("dense", "sparse", "colbert", "bm25"))
    assert (m3.fusion, m3.weights) == ("weighted", {"dense": 1.0, "sparse": 0.3, "colbert": 1.0})
    assert index.default_fusion.fusion == "weighted"
