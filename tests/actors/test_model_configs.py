"""Every file in configs/models is a valid embedder of a job, for a model whose class is known or can be read off."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from actors.models.catalogue import EMBEDDERS, short_name
from actors.text.prompts import LLM_EMBEDDER_TASKS
from pipelines.config import EmbedderConfig

FILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "models").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_an_embedder(path: Path) -> None:
    config = EmbedderConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert path.stem == short_name(config.model).lower()
    assert short_name(config.model) in EMBEDDERS or config.model == "BAAI/llm-embedder"


def test_llm_embedders_file_holds_the_instructions_of_qa() -> None:
    path = next(path for path in FILES if path.stem == "llm-embedder")
    config = EmbedderConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert (config.query_instruction, config.passage_instruction) == LLM_EMBEDDER_TASKS["qa"]
