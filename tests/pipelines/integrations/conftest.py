"""One empty index as a template, and one loaded model, for all adapters: a test copies the folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.integrations.documents import DocumentIndex
from pipelines.retrieval.create import create_index
from pipelines.retrieval.index import open_index


@pytest.fixture(scope="session")
def embedder() -> Any:
    from actors.embedders.registry import load_embedder
    from actors.spec import EmbedderSpec

    return load_embedder(EmbedderSpec(model="all-MiniLM-L6-v2"))


@pytest.fixture(scope="session")
def empty_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty") / "idx"
    create_index(folder)
    return folder


@pytest.fixture
def new_documents(empty_index: Path, tmp_path: Path, embedder: Any) -> Callable[[], DocumentIndex]:
    """Makes empty indexes that share the loaded model."""
    made: list[Path] = []

    def make() -> DocumentIndex:
        made.append(Path(shutil.copytree(empty_index, tmp_path / f"idx{len(made)}")))
        return DocumentIndex(open_index(made[-1], embedder=embedder))

    return make
