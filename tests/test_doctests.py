"""The examples in the docstrings that a newcomer meets first are run, and give what they say."""

from __future__ import annotations

import doctest
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from actors.embedders.registry import load_embedder
from actors.spec import EmbedderSpec
from tests.indexes import WordEmbedder, corpus, make_index

NAMES = [
    "actors.spec:EmbedderSpec",
    "actors.embedders.registry:load_embedder",
    "actors.embedders.base:Embedder.embed_corpus",
    "actors.embedders.base:Embedder.embed_queries",
    "actors.embedders.m3:BGEM3FlagModel",
    "actors.outputs:offsets_of",
    "actors.outputs:ranges",
    "actors.outputs:MultiVectors",
    "actors.text.prompts:instruct",
    "actors.compute.batching:plan_batches",
    "actors.compute.batching:inverse_permutation",
    "actors.compute.batching:round_up_tokens",
    "actors.arrow.isolate:isolate_failures",
    "actors.arrow.blocks:scatter_rows",
    "actors.arrow.blocks:split_by_size",
    "actors.codecs.table:get_codec",
    "actors.codecs.table:decode",
    "actors.codecs.pooling:pooled_groups",
    "pipelines.config.load:parse_override",
    "pipelines.config.load:load_config",
    "pipelines.config.search:search_options",
    "pipelines.retrieval.index:open_index",
    "pipelines.retrieval.index:Index.search",
    "pipelines.retrieval.hits:Hits.to_pandas",
]


@cache
def packaged_model() -> Any:
    return load_embedder(EmbedderSpec(model="all-MiniLM-L6-v2"))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_index(Path(tmp_path_factory.mktemp("doctests")), corpus(), embedder=WordEmbedder())


def given(name: str, uri: str) -> dict[str, Any]:
    """What an example uses without making it: a loaded model, an index, its hits."""
    if name.startswith("actors.embedders.base"):
        return {"model": packaged_model()}
    if not name.startswith("pipelines.retrieval"):
        return {}
    from pipelines.retrieval.index import open_index

    index = open_index(uri, embedder=WordEmbedder())  # type: ignore[arg-type]
    hits = index.search("the scheduler reads dirty pages", k=3)
    return {"uri": uri, "embedder": WordEmbedder(), "index": index, "hits": hits}


@pytest.mark.parametrize("name", NAMES)
def test_the_example_gives_what_it_says(name: str, uri: str) -> None:
    module_name, _, path = name.partition(":")
    module = import_module(module_name)
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    parsed = doctest.DocTestParser().get_doctest(
        found.__doc__, {**vars(module), **given(name, uri)}, name, module.__file__, 0
    )
    assert parsed.examples, f"{name} has no example"
    said: list[str] = []
    options = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    failed = doctest.DocTestRunner(optionflags=options).run(parsed, out=said.append).failed
    assert not failed, "".join(said)
