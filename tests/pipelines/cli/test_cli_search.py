"""`tridex search` and `tridex explain` take what the Python functions take, and refuse what those refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import pipelines.retrieval
from pipelines.cli import app
from pipelines.retrieval.index import Index, open_index
from tests.indexes import WordEmbedder, corpus, make_index

run = CliRunner().invoke
QUERY = "scheduler reads dirty pages"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    metadata = {
        "year": pa.array([2000 + i % 20 for i in range(400)]),
        "kind": pa.array([f"k{i % 3}" for i in range(400)]),
    }
    return make_index(tmp_path_factory.mktemp("cli"), corpus(), codec="sign", metadata=metadata)


@pytest.fixture
def index(uri: str, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The commands open the index with the tests' embedder."""

    def opened(index: str, **options: Any) -> Index:
        return open_index(index, embedder=WordEmbedder(), **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pipelines.retrieval, "open_index", opened)
    return opened(uri)


def hits(uri: str, *arguments: str) -> list[dict[str, Any]]:
    result = run(app, ["search", uri, QUERY, "--json", *arguments])
    assert result.exit_code == 0, result.output
    (document,) = json.loads(result.stdout)
    return document["hits"]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--weights", "dense=1, bm25=.5", "--fusion", "rrf"], {"weights": {"dense": 1, "bm25": 0.5}, "fusion": "rrf"}),
        (["--weights", "sparse=1"], {"weights": {"sparse": 1}}),
        (["--candidates", "7", "-k", "30"], {"candidates": 7, "k": 30}),
        (["--rerank", "colbert", "--rerank-k", "20"], {"rerank": "colbert", "rerank_k": 20}),
        (["--group-by", "kind", "--group-size", "2"], {"group_by": "kind", "group_size": 2}),
        (["--offset", "4", "-k", "3"], {"offset": 4, "k": 3}),
        (["--exact", "--mode", "colbert"], {"exact": True, "mode": "colbert"}),
        (["--where", "year = 2003"], {"where": "year = 2003"}),
    ],
)
def test_an_option_does_what_its_argument_does(uri: str, index: Index, arguments: list[str], options: dict) -> None:
    expected = index.search(QUERY, **options).to_dict()["hits"]
    found = hits(uri, *arguments)
    assert [h["chunk_id"] for h in found] == [h["chunk_id"] for h in expected]
    assert [h["score"] for h in found] == pytest.approx([h["score"] for h in expected])


def test_columns_choose_the_metadata(uri: str, index: Index) -> None:
    assert set(hits(uri, "--columns", "year")[0]["metadata"]) == {"year"}
    assert set(hits(uri, "--columns", "year, kind")[0]["metadata"]) == {"year", "kind"}
    assert hits(uri, "--columns", "")[0]["metadata"] == {}


def test_a_search_file_is_used_and_options_win_over_it(uri: str, index: Index, tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("fusion: rrf\nweights: {dense: 1.0}\ncandidates: 50\n")
    assert [h["score"] for h in hits(uri, "--search", str(path))] == pytest.approx(
        [h.score for h in index.search(QUERY, fusion="rrf", weights={"dense": 1.0}, candidates=50)]
    )
    assert [h["score"] for h in hits(uri, "--search", str(path), "--fusion", "weighted")] == pytest.approx(
        [h.score for h in index.search(QUERY, fusion="weighted", weights={"dense": 1.0}, candidates=50)]
    )


def test_a_local_copy_is_made_where_asked(uri: str, index: Index, tmp_path: Path) -> None:
    assert hits(uri, "--local", str(tmp_path / "copy")) == hits(uri)
    assert len(list((tmp_path / "copy").glob("*/manifest.json"))) == 3


def test_explain_takes_the_options_of_the_search(uri: str, index: Index) -> None:
    arguments = ["--weights", "dense=1,colbert=1", "--fusion", "weighted", "--candidates", "30", "--json"]
    result = run(app, ["explain", uri, QUERY, "d0002", *arguments])
    assert result.exit_code == 0, result.output
    expected = index.explain(QUERY, "d0002", weights={"dense": 1, "colbert": 1}, fusion="weighted", candidates=30)
    assert json.loads(result.stdout)["score"] == pytest.approx(expected.score)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "dense"], "--weights: 'dense': expected CHANNEL=NUMBER, as in dense=1,bm25=0.5"),
        (["--weights", "dense=one"], "--weights: 'dense=one': expected CHANNEL=NUMBER"),
        (["--weights", "denser=1"], "weights: the index has no channel 'denser'"),
        (["--weights", "dense=-1"], "weights.dense: must be a number that is 0 or more"),
        (["--weights", "dense=nan"], "weights.dense: must be a number that is 0 or more"),
        (["--fusion", "sum"], "fusion: 'sum' is unknown; there are zscore"),
        (["--mode", "both"], "mode: 'both' is unknown; there are hybrid"),
        (["--candidates", "0"], "candidates: must be an integer of at least 1, got 0"),
        (["--where", "yaer = 3"], "where: "),
        (["--search", "absent.yaml"], "absent.yaml: no such config file"),
    ],
)
@pytest.mark.parametrize("command", ["search", "explain"])
def test_a_bad_value_is_one_message_and_status_2(
    uri: str, index: Index, command: str, arguments: list[str], message: str
) -> None:
    result = run(app, [command, uri, QUERY, *(["d0002"] if command == "explain" else []), *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", "0"], "k: must be an integer of at least 1, got 0"),
        (["--rerank-k", "0"], "rerank_k: must be an integer of at least 1"),
        (["--group-by", "colour"], "group_by: the index has no column 'colour'"),
        (["--group-by", "kind", "--group-size", "0"], "group_size: must be an integer of at least 1"),
        (["--offset", "-1"], "offset: must be an integer of at least 0, got -1"),
        (["--columns", "yaer"], "columns: the index has no column 'yaer'"),
    ],
)
def test_a_bad_page_is_one_message_and_status_2(uri: str, index: Index, arguments: list[str], message: str) -> None:
    result = run(app, ["search", uri, QUERY, *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_show_prints_a_document_with_its_metadata_or_names_what_is_missing(uri: str) -> None:
    shown = json.loads(run(app, ["show", uri, "d0003", "--json"]).stdout)
    assert (shown["doc_id"], shown["metadata"]) == ("d0003", {"year": 2003, "kind": "k0"})
    assert [chunk["text"] for chunk in shown["chunks"]] == [corpus()["d0003"]]
    text = run(app, ["show", uri, "d0003"]).stdout
    assert corpus()["d0003"] in text
    assert "year: 2003" in text
    refused = run(app, ["show", uri, "nowhere"])
    assert refused.exit_code == 2
    assert "id: the index has no document or chunk 'nowhere'" in refused.stderr


@pytest.mark.parametrize(("mode", "reads"), [("hybrid", 1), ("dense", 0), ("bm25", 0)])
def test_a_hybrid_search_reads_columns_ahead_and_does_not_depend_on_it(
    uri: str, index: Index, monkeypatch: pytest.MonkeyPatch, mode: str, reads: int
) -> None:
    expected = [hit["chunk_id"] for hit in hits(uri, "--mode", mode)]
    calls = []

    def fail(self: Index) -> None:
        calls.append(self)
        raise OSError("the storage is away")

    monkeypatch.setattr(Index, "warm", fail)
    assert [hit["chunk_id"] for hit in hits(uri, "--mode", mode)] == expected
    assert len(calls) == reads
