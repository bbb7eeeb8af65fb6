"""Hits as rows, tables, JSON and print: the hit's own names stay its own, and what JSON cannot say is null."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.retrieval.hits import Hit, Hits
from pipelines.retrieval.hits_text import BOLD, hits_as_text
from pipelines.retrieval.index import Index, open_index
from pipelines.retrieval.passages import best_passage
from tests.indexes import WordEmbedder, make_index

LONG = (
    "Of what was said before. " * 20 + "The scheduler reads every dirty page twice. " + "And of what came after. " * 20
)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index whose metadata columns have the names of a hit's own."""
    folder: Path = tmp_path_factory.mktemp("taken")
    mine: dict[str, pa.Array] = {name: pa.array([701.5, 702.5]) for name in ("score", "rank", "dense", "line")}
    texts = {"a": LONG, "b": "Nothing of the kind."}
    return open_index(make_index(folder, texts, metadata=mine), embedder=WordEmbedder())


def test_metadata_named_as_a_hits_own_keeps_its_values_under_another_name(taken: Index) -> None:
    hits = taken.search("scheduler dirty page", k=2)
    frame = hits.to_pandas()
    assert frame["rank"].tolist() == [1, 2]
    assert frame["score"].tolist() == [hit.score for hit in hits]
    assert frame["dense"].tolist() == [hit.scores["dense"] for hit in hits]
    assert sorted(frame["metadata.score"]) == [701.5, 702.5]
    assert hits.to_arrow().column_names == list(frame.columns)
    assert hits.to_dicts()[0]["metadata.rank"] in (701.5, 702.5)
    assert hits[0].metadata.keys() == {"score", "rank", "dense", "line"}


def test_ranks_go_on_over_pages(taken: Index) -> None:
    assert [hit.rank for hit in taken.search("scheduler", k=1, offset=1)] == [2]


def test_a_hit_shows_the_passage_that_matched(taken: Index) -> None:
    hit = taken.search("scheduler dirty page", k=1)[0]
    passage = hit.passage
    assert "scheduler reads every dirty page" in passage.text
    assert len(passage.text) <= 200
    assert LONG[passage.start : passage.end] == passage.text
    assert [passage.text[a:b] for a, b in passage.marks] == ["scheduler", "dirty", "page"]
    assert (hit.id, hit.source) == (hit.chunk_id, "test")


def hits_of(**values: Any) -> Hits:
    hit = Hit("d", "d#0", 1.0, {"dense": 0.5}, "text", values, rank=1)
    return Hits("query", (hit,), "hybrid", "zscore", {"dense": 1.0})


def test_what_json_cannot_say_is_null() -> None:
    row = hits_of(x=math.nan, y=[math.inf, 1.0], z=b"\x00", w={"k": -math.inf}).to_dict()
    metadata = json.loads(json.dumps(row, allow_nan=False))["hits"][0]["metadata"]
    assert metadata == {"x": None, "y": [None, 1.0], "z": "AA==", "w": {"k": None}}


def test_two_lines_a_hit_at_eighty_columns_without_a_broken_word(taken: Index) -> None:
    lines = hits_as_text(taken.search("scheduler dirty page", k=2)).splitlines()
    assert len(lines) == 2 + 2 * 2
    assert all(len(line) <= 80 for line in lines)
    words = {word.strip(".") for word in LONG.split()} | {"…"}
    assert {word.strip(".") for word in lines[3].split()} <= words
    assert "scheduler" in lines[3]


def test_columns_are_shown_where_they_are_named_and_colour_where_it_is_wanted(taken: Index) -> None:
    hits = taken.search("scheduler dirty page", k=1)
    assert "line: 70" in hits_as_text(hits, columns=["line"]).splitlines()[-1]
    assert "\x1b" not in hits_as_text(hits)
    assert BOLD + "scheduler" in hits_as_text(hits, colour=True)


def test_bars_start_at_zero(taken: Index) -> None:
    hits = Hits(
        "q",
        tuple(Hit(name, name, s, {"dense": s}, "text", rank=1) for name, s in [("a", 0.8), ("b", 0.4), ("c", -0.1)]),
        "dense",
        None,
        {},
    )
    page = hits._repr_html_()
    assert [f"width:{w}%" in page for w in (100, 50, 0)] == [True, True, True]


@pytest.mark.parametrize("length", [1, 20, 200])
def test_a_passage_is_part_of_the_text_whatever_the_text(length: int) -> None:
    for text in ("", "word", "x" * 500, "a b " * 200, "日本語" * 100):
        for strengths in ({}, {(0, min(4, len(text))): 1.0}, {(len(text) // 2, len(text) // 2 + 1): 1.0}):
            passage = best_passage(text, strengths, offset=7, length=length)
            assert text[passage.start - 7 : passage.end - 7] == passage.text
