"""Puts tiny models under the names that upstream's guides use."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def upstream_models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the module's MODELS, name to kind, by its BUILD, in one folder."""
    base = tmp_path_factory.mktemp("hub")
    for name, kind in request.module.MODELS.items():
        request.module.BUILD(kind, base / name)
    return base


@pytest.fixture
def in_upstream_models(upstream_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes that folder the working one, so that a name is a local model."""
    monkeypatch.chdir(upstream_models)
