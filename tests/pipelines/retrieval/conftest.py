"""One index of 400 sentences in four fragments, with all four channels."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.retrieval.index import Index, open_index
from tests.indexes import WordEmbedder, corpus, make_index


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("index")
    texts = corpus()
    years = pa.array([2000 + i % 20 for i in range(len(texts))])
    return make_index(folder, texts, metadata={"year": years, "kind": pa.array([f"k{i % 3}" for i in range(400)])})


@pytest.fixture(scope="session")
def index(uri: str) -> Index:
    return open_index(uri, embedder=WordEmbedder())
