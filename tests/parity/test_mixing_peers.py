"""A mixed checkpoint loads in FlagEmbedding and gives the vectors that this project gives; needs that package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors import ComputeSpec, EmbedderSpec, load_embedder
from actors.mixing import mix_models
from tests.checkpoints import build

TEXTS = ["what is a panda", "the river of the bear and the query"]


def test_flagembedding_loads_a_mixed_m3_model(tmp_path: Path) -> None:
    peer = pytest.importorskip("FlagEmbedding", reason="FlagEmbedding is in the extra `parity`")
    folders = [build("m3", tmp_path / name) for name in ("one", "two")]
    mix = mix_models(folders, "encoder", [0.5, 0.5], tmp_path / "out")
    theirs = peer.BGEM3FlagModel(str(mix.folder), use_fp16=False, devices="cpu").encode(TEXTS, return_sparse=True)
    spec = EmbedderSpec(model=str(mix.folder), compute=ComputeSpec(dtype="fp32"))
    ours = load_embedder(spec).embed_corpus(TEXTS)
    assert ours.sparse is not None
    np.testing.assert_allclose(ours.dense, theirs["dense_vecs"], atol=2e-5)
    for i, weights in enumerate(theirs["lexical_weights"]):
        ids, values = ours.sparse.row(i)
        np.testing.assert_allclose(values, [weights[str(j)] for j in ids], atol=2e-5)


def test_sentence_transformers_loads_a_mixed_encoder(tmp_path: Path) -> None:
    peer = pytest.importorskip("sentence_transformers", reason="sentence-transformers is in the extra `parity`")
    folder = build("bert", tmp_path / "one")
    mix = mix_models([folder, folder], "encoder", [0.5, 0.5], tmp_path / "out")
    theirs = peer.SentenceTransformer(str(mix.folder), device="cpu").encode(TEXTS)
    spec = EmbedderSpec(model=str(mix.folder), compute=ComputeSpec(dtype="fp32"))
    np.testing.assert_allclose(load_embedder(spec).embed_corpus(TEXTS).dense, theirs, atol=2e-5)
