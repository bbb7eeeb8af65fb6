"""The blocks of the page on frameworks, in the environment that has them; `make test-adapters` runs this."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from pipelines.integrations.documents import DocumentIndex, StoredDocument
from tests.docs.blocks import DOCS, blocks, run_page

PAGE = DOCS / "guides" / "frameworks.md"
FRAMEWORKS = ("langchain_core", "llama_index", "haystack", "dspy")


@pytest.mark.skipif(
    any(find_spec(name) is None for name in FRAMEWORKS), reason="`make test-adapters` installs the frameworks"
)
def test_every_framework_on_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    monkeypatch.setenv("DSPY_CACHEDIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    about = [{"year": 2000 + i, "lang": "en"} for i in range(12)]
    texts = [f"A glacier moves stone number {i} down the valley." for i in range(12)]
    DocumentIndex.open("idx").upsert([StoredDocument(f"doc{i}", texts[i], about[i]) for i in range(12)])
    ran = run_page(PAGE, tmp_path)
    assert ran == sum(block.language == "python" and not block.not_run for block in blocks(PAGE))
