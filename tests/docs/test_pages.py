"""Every code block on every page runs, or says why not; every command and every key is documented."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import BuildConfig, SearchOptions
from tests.docs.blocks import DOCS, FILES, OUTPUT, ROOT, RUN, blocks, pages, run_page, setup_of

PHRASES = (
    ("The river", "carries", "sand to the sea"),
    ("A glacier", "moves", "stone down the valley"),
    ("The carbon tax", "pays for", "clean energy"),
    ("The kernel", "schedules", "threads"),
    ("A teacher", "explains", "books"),
    ("The library", "lends", "maps"),
    ("A bakery", "warms", "bread"),
    ("The moon", "pulls", "the tides"),
)
RUNNABLE = [page for page in pages() if any(block.language in RUN for block in blocks(page))]


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus in two shards, and judged queries."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "shards").mkdir()
    rows = [
        {
            "id": f"doc{i}",
            "title": f"Note {i}",
            "text": f"{' '.join(PHRASES[i % 8])}. Case {i} was seen in {2000 + i % 30}.",
            "year": 2000 + i % 30,
            "lang": "en" if i % 3 else "de",
        }
        for i in range(64)
    ]
    for shard in range(2):
        pq.write_table(pa.Table.from_pylist(rows[shard::2]), folder / "shards" / f"part-{shard}.parquet")
    queries = [{"_id": f"q{i}", "text": f"what {PHRASES[i][1]} {PHRASES[i][2]}"} for i in range(8)]
    queries += [{"_id": f"c{i}", "text": f"what was case {i}"} for i in range(0, 64, 5)]
    judged = [f"q{i}\tdoc{j}\t1" for i in range(8) for j in range(i, 64, 8)]
    judged += [f"c{i}\tdoc{i}\t1" for i in range(0, 64, 5)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    return folder


@pytest.fixture(scope="session")
def built(material: Path, ray_session: None) -> Path:
    """An index of the corpus, as `tridex build` makes it."""
    from pipelines.config import load_config
    from pipelines.indexing.build import build_index

    columns = {"metadata": ["year", "lang"]}
    config = {"input": {"paths": [f"{material}/shards/*.parquet"], "columns": columns}}
    build_index(load_config(None, **config, index={"uri": str(material / "idx")}))
    return material / "idx"


@pytest.fixture
def page_folder(
    request: pytest.FixtureRequest, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder in which a page's blocks run, with what the page asks for."""
    wanted = setup_of(request.getfixturevalue("page"))
    if "index" in wanted:
        shutil.copytree(request.getfixturevalue("built"), tmp_path / "idx")
    elif "ray" in wanted:
        request.getfixturevalue("ray_session")
    if "corpus" in wanted:
        shutil.copytree(material / "shards", tmp_path / "shards")
    if "judged" in wanted:
        for name in ("queries.jsonl", "qrels.tsv"):
            shutil.copy(material / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.ray
@pytest.mark.parametrize(
    "page", [p for p in pages() if any(b.language in RUN for b in blocks(p))], ids=lambda p: p.name
)
def test_the_blocks_of_a_page_run(page: Path, page_folder: Path) -> None:
    run_page(page, page_folder)


@pytest.mark.parametrize("page", pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_runs_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        assert block.language, f"{where}: a block without a language"
        if block.language in OUTPUT | (FILES if block.title else set()):
            continue
        assert block.language in RUN or block.not_run, f"{where}: {block.language} does not run: say why not"


def test_every_command_and_option_is_described_and_used_on_a_page() -> None:
    commands = load_generator().commands()
    written = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    for name, command in commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help or parameter.name == "help", f"{name}: {parameter.name}"
        assert re.search(rf"tridex {name}\b", written), f"no page shows `tridex {name}`"


def test_every_key_of_a_job_and_of_a_search_is_described() -> None:
    missing = [*_undescribed(BuildConfig, ""), *_undescribed(SearchOptions, "search.")]
    assert missing == []


def _undescribed(model: Any, path: str) -> Iterator[str]:
    within = load_generator().model_within
    for name, field in model.model_fields.items():
        if not field.description:
            yield path + name
        if inner := within(field.annotation):
            yield from _undescribed(inner, f"{path}{name}.")


def test_links_lead_to_pages_that_are_there() -> None:
    generated = {DOCS / name for name in load_generator().pages()}
    for page in pages():
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path = target.split("#")[0]
            if path and "://" not in target and not target.startswith("mailto:"):
                found = (page.parent / path).resolve()
                assert found.exists() or found in generated, f"{page.relative_to(ROOT)}: {target}"


def test_the_generated_pages_cover_what_they_are_made_of() -> None:
    made = load_generator().pages()
    for name in load_generator().commands():
        assert f"## tridex {name}" in made["reference/cli.md"]
    assert "`commit_fragments`" in made["reference/config.md"]
    assert "## POST /v1/search" in made["reference/http.md"]
    assert "`tridex_tokens`" in made["reference/metrics.md"]
