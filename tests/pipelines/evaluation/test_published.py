"""Published figures are found by model and collection, and set beside an index's own with its interval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import InvalidRequest
from pipelines.evaluation.published import NOT_COLLECTIONS, _table, find_published
from tests.indexes import WordEmbedder, corpus, make_index


@pytest.mark.parametrize(
    ("expected", "path", "figure"),
    [
        ("bge-m3", "data/scifact/queries.jsonl", 0.644),
        ("BAAI/bge-m3:SciFact", "queries.jsonl", 0.644),
        ("all-minilm-l6-v2", "TREC_COVID/qrels/test.tsv", 0.472),
        ("sentence-transformers/all-MiniLM-L6-v2", "beir/treccovid/q.tsv", 0.472),
    ],
)
def test_a_figure_is_found_by_model_and_path(expected: str, path: str, figure: float) -> None:
    found = find_published(expected, [Path(path)])
    assert (found.ndcg, found.channel) == (figure, "dense")


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"'bge-m4' is unknown; did you mean 'bge-m3'\?"):
        find_published("bge-m4", [])
    with pytest.raises(InvalidRequest, match="say bge-m3:COLLECTION, one of scifact"):
        find_published("bge-m3", [Path("queries.jsonl")])


def test_every_figure_has_a_source_and_is_a_fraction() -> None:
    table = _table()
    for model, row in table["figures"].items():
        assert row["source"] in table["sources"], model
        assert all(0 < value < 1 for key, value in row.items() if key not in NOT_COLLECTIONS), model


def test_evaluate_sets_the_published_figure_beside_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.embedders.registry.load_embedder", lambda _: WordEmbedder())
    uri = make_index(tmp_path / "idx", corpus(150))
    folder = tmp_path / "scifact"
    folder.mkdir()
    queries = [f'{{"_id": "q{i}", "text": "case {i}"}}' for i in range(5)]
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "\n".join(f"q{i}\td{i:04d}\t1" for i in range(5))
    )
    asked = ["evaluate", uri, "--queries", f"{folder}/queries.jsonl", "--qrels", f"{folder}/qrels.tsv"]
    printed = CliRunner().invoke(app, [*asked, "--expect", "bge-m3"])
    assert printed.exit_code == 0, printed.output
    assert "published for bge-m3 on scifact: nDCG@10 0.644" in printed.output
    told = json.loads(CliRunner().invoke(app, [*asked, "--expect", "bge-m3", "--json"]).stdout)["expected"]
    assert told["interval"][0] <= told["measured"] <= told["interval"][1]
    assert told["agrees"] == (told["interval"][0] <= 0.644 <= told["interval"][1])
