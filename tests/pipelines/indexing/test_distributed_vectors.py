from __future__ import annotations

import sys
from pathlib import Path

import pytest
from indexes import WordEmbedder, corpus, make_index
from typer.testing import CliRunner

from actors.extras import MissingExtraError
from pipelines.cli import app
from pipelines.indexing.distributed_vectors import create_on_ray
from pipelines.retrieval import open_index
from pipelines.search_indexes.vectors import Kind, find_vector_index, update_vector_indexes
from pipelines.store.table import open_table

QUERY = "the scheduler locks a buffer"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("kind", ["IVF_RQ", "IVF_HNSW_SQ"])
def test_workers_build_an_index_that_searches_like_a_scan(tmp_path: Path, kind: Kind) -> None:
    uri = make_index(tmp_path, corpus(), full_text=False)
    scanned = open_index(uri, embedder=WordEmbedder()).search(QUERY, k=20, mode="dense")
    assert update_vector_indexes(uri, kind=kind, create=create_on_ray) == {"words": kind}
    found = find_vector_index(open_table(uri), "words_dense")
    assert found is not None
    assert (found.kind, found.metric, found.unindexed_rows) == (kind, "dot", 0)
    hits = open_index(uri, embedder=WordEmbedder()).search(QUERY, k=20, mode="dense")
    assert len(set(hits.ids) & set(scanned.ids)) >= 15
    scores = {hit.chunk_id: hit.score for hit in scanned}
    assert all(hit.score == pytest.approx(scores[hit.chunk_id], rel=1e-5) for hit in hits if hit.chunk_id in scores)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_optimize_takes_the_address_of_a_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pipelines.search_indexes.update.update_document_frequencies", lambda *_: {}
    )  # would load the model
    uri = make_index(tmp_path, corpus(300), full_text=False)
    done = CliRunner().invoke(app, ["optimize", uri, "--vectors", "IVF_RQ", "--address", "auto"])
    assert done.exit_code == 0, done.output
    assert "words: vector index IVF_RQ" in done.output


def test_without_lance_ray_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lance_ray", None)
    uri = make_index(tmp_path, corpus(20), full_text=False)
    with pytest.raises(MissingExtraError, match=r"needs lance-ray: pip install 'tridex\[distributed\]'"):
        update_vector_indexes(uri, kind="IVF_RQ", create=create_on_ray)
