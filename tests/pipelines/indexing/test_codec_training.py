"""A job that product-quantises trains its codebook once, and whoever opens the index has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lance
import pytest

from actors.codecs import parameters
from pipelines.config import BuildConfig, ConfigError, load_config
from pipelines.store.schema import Identity

pytestmark = pytest.mark.ray

WORDS = ["river", "city", "panda", "kernel", "thread", "memory", "paper", "garden", "signal", "engine"]


def write(path: Path, start: int, stop: int) -> None:
    rows = [
        {"id": f"d{i}", "text": f"The {WORDS[i % 10]} of number {i} and its {WORDS[i // 10]}."} for i in range(stop)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[start:]), encoding="utf-8")


def configure(folder: Path, *overrides: str) -> BuildConfig:
    paths: Any = {"paths": [str(folder / "*.jsonl")]}
    settings = ["ray.progress=false", "embedders.0.codec.colbert=pq", *overrides]
    return load_config(None, settings, input=paths, index={"uri": str(folder / "index"), "full_text": False})


def dataset(folder: Path) -> lance.LanceDataset:
    return lance.dataset(str(folder / "index" / "documents.lance"))


def test_a_codebook_is_trained_once_and_kept(ray_session: None, tmp_path: Path) -> None:
    from pipelines import open_index
    from pipelines.indexing.build import build_index

    write(tmp_path / "a.jsonl", 0, 50)
    build_index(configure(tmp_path))
    first = dataset(tmp_path).schema.metadata
    book = parameters.from_metadata(first, "minilm")
    assert book is not None
    identity = Identity.from_metadata(first)
    assert identity is not None
    assert identity.embedders["minilm"]["codebook"] == parameters.fingerprint(book)
    rows = dataset(tmp_path).to_table(columns=["n_tokens", "minilm_colbert"]).to_pylist()
    assert all(len(row["minilm_colbert"]) == 24 * (row["n_tokens"] - 1) for row in rows)

    write(tmp_path / "b.jsonl", 50, 60)
    wider = configure(
        tmp_path, "embedders.1.name=short", "embedders.1.truncate_dim=64", "embedders.1.codec.colbert=sign_half"
    )
    summary = build_index(wider)
    assert (summary.embedded.documents, summary.unchanged, summary.backfilled) == (10, 50, 50)
    after = dataset(tmp_path).schema.metadata
    assert parameters.fingerprint(parameters.from_metadata(after, "minilm")) == parameters.fingerprint(book)  # type: ignore[arg-type]
    short = parameters.from_metadata(after, "short")
    assert short is not None
    assert short.shape == (64, 32)

    for name in ("minilm", "short"):
        hits = open_index(str(tmp_path / "index"), embedder=name).search("the panda of number 52", k=60, mode="colbert")
        assert len(hits) == 60
        assert "d52" in [hit.doc_id for hit in hits][:10]


def test_without_text_there_is_nothing_to_train_on(ray_session: None, tmp_path: Path) -> None:
    from pipelines.indexing.build import build_index

    (tmp_path / "a.jsonl").write_text('{"id": "x", "text": " "}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"embedders\.0\.codec\.colbert: the pq codec is trained on the first texts"):
        build_index(configure(tmp_path))
