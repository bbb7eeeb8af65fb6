"""Models whose library compares by cosine and whose vectors have no length of 1: an index ranks as the library does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints_chains import build_chain

from actors import ComputeSpec, EmbedderSpec, load_embedder
from pipelines.config import load_config
from pipelines.retrieval.create import create_index
from pipelines.retrieval.index import Index, open_index
from pipelines.store.table import with_index_settings
from tests.indexes import corpus

QUERY = "the scheduler reads dirty pages"
TEXTS = {key: " ".join(text.split()[: 3 + i % 20]) for i, (key, text) in enumerate(corpus(40).items())}
"""Short enough for one chunk each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_chain("max_not_normalised", tmp_path_factory.mktemp("model") / "model")


def spec(folder: Path, **options: Any) -> EmbedderSpec:
    return EmbedderSpec(model=str(folder), compute=ComputeSpec(dtype="fp32"), **options)


def filled(uri: Path, folder: Path, **options: Any) -> Index:
    """An index of one model that computes in fp32; options: of the embedder's config."""
    create_index(uri, embedder={"name": "m", "model": str(folder), **options})
    model = load_embedder(spec(folder, **{"cosine_as_dot": True, **options}))
    open_index(uri, embedder=model).upsert([{"doc_id": key, "text": text} for key, text in TEXTS.items()])
    return open_index(uri, embedder=model)


def dense_scores(index: Index) -> dict[str, float]:
    return {hit.doc_id: hit.scores["dense"] for hit in index.search(QUERY, k=len(TEXTS), mode="dense")}


def library_vectors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    model = load_embedder(spec(folder))
    query, documents = model.embed_queries([QUERY]).dense, model.embed_corpus(list(TEXTS.values())).dense
    assert query is not None
    assert documents is not None
    return query[0], documents


def test_dense_scores_are_the_librarys_cosines(folder: Path, tmp_path: Path) -> None:
    query, documents = library_vectors(folder)
    products, lengths = documents @ query, np.linalg.norm(documents, axis=1)
    assert lengths.std() > 0.01, "vectors of one length would rank alike by both"
    cosines = products / lengths / np.linalg.norm(query)
    found = dense_scores(filled(tmp_path / "index", folder))
    np.testing.assert_allclose([found[key] for key in TEXTS], cosines, atol=1e-5)
    assert np.argsort(-cosines).tolist() != np.argsort(-products).tolist()


def test_dot_products_where_the_config_or_the_folder_says_so(folder: Path, tmp_path: Path) -> None:
    query, documents = library_vectors(folder)
    found = dense_scores(filled(tmp_path / "config", folder, cosine_as_dot=False))
    np.testing.assert_allclose([found[key] for key in TEXTS], documents @ query, rtol=1e-5)
    by_dot = build_chain("max_not_normalised", tmp_path / "model")
    stored = by_dot / "config_sentence_transformers.json"
    settings = json.loads(stored.read_text()) if stored.exists() else {}
    stored.write_text(json.dumps({**settings, "similarity_fn_name": "dot"}))
    assert load_embedder(spec(by_dot, cosine_as_dot=True)).identity()["normalize"] is None


def test_a_normalised_chain_is_left_alone_unless_its_dimensions_are_cut(tmp_path: Path) -> None:
    whole = build_chain("gte", tmp_path / "model")
    modules = json.loads((whole / "modules.json").read_text())
    assert modules[-1]["type"].endswith("Normalize")
    assert load_embedder(spec(whole, cosine_as_dot=True)).identity()["normalize"] is None
    cut = load_embedder(spec(whole, cosine_as_dot=True, truncate_dim=8))
    vectors = cut.embed_corpus(["one text", "another"]).dense
    assert vectors is not None
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_an_index_with_vectors_as_the_folder_gives_them_keeps_them(folder: Path, tmp_path: Path) -> None:
    uri = tmp_path / "index"
    filled(uri, folder, cosine_as_dot=False)
    sections: dict[str, Any] = {"embedders": [{"name": "m", "model": str(folder)}]}
    old = load_config(input={"paths": [str(tmp_path)]}, index={"uri": str(uri)}, **sections)
    assert not with_index_settings(old).embedders[0].cosine_as_dot
    new = load_config(input={"paths": [str(tmp_path)]}, index={"uri": str(tmp_path / "other")}, **sections)
    assert with_index_settings(new).embedders[0].cosine_as_dot
