"""The options of a search are declared once, and all that take them agree."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import CHANNELS, ConfigError, InvalidRequest, SearchKeywords, SearchOptions, read_search_config
from pipelines.config.search import search_options
from pipelines.retrieval.index import Index


def test_keywords_commands_and_signatures_have_every_option() -> None:
    assert {"k", *SearchKeywords.__annotations__} == set(SearchOptions.model_fields)
    for method in (Index.search, Index.search_async, Index.search_picture, Index.explain):
        assert set(SearchKeywords.__annotations__) <= set(inspect.signature(method).parameters)
    shown = CliRunner().invoke(app, ["search", "--help"], env={"COLUMNS": "200"}).output
    for name in SearchOptions.model_fields:
        assert f"--{name.replace('_', '-')}" in shown or f"-{name} " in shown


def test_every_option_is_documented_and_plain_json() -> None:
    assert all(field.description for field in SearchOptions.model_fields.values())
    assert json.loads(SearchOptions().model_dump_json())["k"] == 10
    assert SearchOptions.model_json_schema()["properties"].keys() == SearchOptions.model_fields.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mod": "bm25"}, "mod: is unknown; did you mean 'mode'?"),
        ({"mode": "colbrt"}, "mode: 'colbrt' is unknown; there are .*; did you mean 'colbert'?"),
        ({"fusion": "zscores"}, "did you mean 'zscore'?"),
        ({"columns": "year"}, "columns: expected a list of names, got 'year'"),
        ({"weights": {"dense": True}}, "weights.dense: must be a number that is 0 or more, got True"),
    ],
)
def test_a_mistake_names_its_nearest_neighbour(options: dict, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        search_options(**options)


def test_options_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SearchOptions().k = 3  # type: ignore[misc]


def test_the_index_names_the_nearest_channel_and_column(index: Index) -> None:
    with pytest.raises(InvalidRequest, match=r"no channel 'densee'; it has .*; did you mean 'dense'\?"):
        index.search("kernel", weights={"densee": 1})  # type: ignore[dict-item]
    with pytest.raises(InvalidRequest, match=r"no column 'yera'; it has .*; did you mean 'year'\?"):
        index.search("kernel", columns=["yera"])


def test_a_search_file_names_its_fault(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("fusions: rrf\n")
    with pytest.raises(ConfigError, match=r"s\.yaml: fusions: is unknown; did you mean 'fusion'?"):
        read_search_config(path)


def test_every_channel_of_the_table_opens(index: Index) -> None:
    assert list(index.channels) == list(CHANNELS)


async def _both(index: Index) -> None:
    alone, several = await index.search_async("kernel", k=2), await index.search_async(["kernel"], k=2)
    assert alone == several[0]


def test_the_async_search_answers_alike(index: Index) -> None:
    import asyncio

    asyncio.run(_both(index))
