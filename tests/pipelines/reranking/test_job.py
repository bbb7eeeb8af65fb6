"""Reranking a run file: reading, planning and scoring plainly; the whole job, interrupted and resumed, on Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.rerankers.registry import load_reranker
from actors.spec import ComputeSpec
from pipelines.config import ConfigError
from pipelines.evaluation.run_file import read_run, write_run
from pipelines.reranking.job import PartialResults, RerankActor, RerankConfig, plan_block, rerank_run
from pipelines.store.table import open_table
from tests.checkpoints_rerankers import build
from tests.indexes import make_index

TEXTS = {f"d{i}": f"the panda {i} is a bear of the river" for i in range(30)}
TEXTS |= {"long#0": "the city and the answer", "long#1": "a query to the passage", "long#2": "what is the panda"}
QUERIES = {f"q{i}": f"what is panda {i}?" for i in range(20)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index, a reranker, queries and a run over all of them."""
    folder = tmp_path_factory.mktemp("rerank")
    make_index(folder / "index", TEXTS)
    build("bert", folder / "model")
    rows = ({"_id": query, "text": text} for query, text in QUERIES.items())
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rankings = [(query, {f"d{j}": 30.0 - j for j in range(10)} | {"long": 5.0, "gone": 4.0}) for query in QUERIES]
    write_run(folder / "run.trec", rankings)
    return folder


def config(folder: Path, output: Path, **changes: Any) -> RerankConfig:
    return RerankConfig.model_validate(
        {"index": str(folder / "index"), "run": folder / "run.trec", "queries": folder / "queries.jsonl"}
        | {"output": output, "model": str(folder / "model"), "compute": {"dtype": "fp32"}, "ray": {"progress": False}}
        | changes
    )


def test_run_files_survive_both_formats(tmp_path: Path) -> None:
    rankings = {"q1": {"b": 1.0, "a": 2.5}, "q2": {"c": -0.125}}
    for name in ("run.trec", "run.jsonl"):
        write_run(tmp_path / name, rankings.items(), tag="t")
        assert read_run(tmp_path / name) == {"q1": ["a", "b"], "q2": ["c"]}
    assert (tmp_path / "run.trec").read_text() == "q1 Q0 a 1 2.5 t\nq1 Q0 b 2 1 t\nq2 Q0 c 1 -0.125 t\n"
    assert json.loads((tmp_path / "run.jsonl").read_text().splitlines()[2])["score"] == -0.125


def test_without_scores_the_order_of_lines_is_kept(tmp_path: Path) -> None:
    (tmp_path / "run").write_text('{"query_id": 1, "doc_id": "z"}\n\n{"query_id": 1, "doc_id": "a"}\n')
    assert read_run(tmp_path / "run") == {"1": ["z", "a"]}
    assert read_run(tmp_path / "run", depth=1) == {"1": ["z"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 d 1 0.5\n", "line 1: expected `query Q0 document rank score tag`"),
        ("q Q0 d 1 high t\n", "line 1: expected"),
        ("q Q0 d 1 2 t\nq Q0 d 2 1 t\n", "line 2: document 'd' is there twice for query 'q'"),
        ('{"query_id": "q"}\n', "line 1: has no 'doc_id'"),
        ('{"query_id"\n', "line 1: expected"),
        ("\n", "holds no ranking"),
    ],
)
def test_a_malformed_run_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="none: no such file"):
        read_run(tmp_path / "none")


def test_documents_are_scored_by_their_best_chunk(folder: Path, tmp_path: Path) -> None:
    snapshot = open_table(folder / "index")
    wanted = {"q0": ["d3", "long", "gone"], "q1": ["long#1", "d3"]}
    block, missing = plan_block(snapshot, wanted, QUERIES)
    assert missing == 1
    assert block["docs"].to_pylist() == [["d3", "long", "long", "long"], ["long#1", "d3"]]
    scored = RerankActor(config(folder, tmp_path / "out"), snapshot.version)(block).to_pylist()
    reranker = load_reranker(str(folder / "model"), compute=ComputeSpec(dtype="fp32"))
    expected = reranker.score(QUERIES["q0"], [TEXTS[i] for i in ("d3", "long#0", "long#1", "long#2")])
    assert scored[0]["docs"] == ["d3", "long"]
    assert scored[0]["scores"] == pytest.approx([expected[0], expected[1:].max()], abs=1e-5)
    assert scored[1]["docs"] == ["long#1", "d3"]
    assert scored[0]["error"] is None


def test_a_query_that_fails_takes_no_other_with_it(folder: Path, tmp_path: Path) -> None:
    snapshot = open_table(folder / "index")
    block, _ = plan_block(snapshot, {"good": ["d1"], "bad": ["d1"]}, {"good": "panda", "bad": "panda"})
    actor = RerankActor(config(folder, tmp_path / "out"), snapshot.version)
    score = actor.reranker.score_pairs

    def fails(pairs: Any) -> Any:
        if len(pairs) > 1 or actor.calls.append(pairs) or len(actor.calls) == 2:  # type: ignore[attr-defined]
            raise ValueError("the second query is at fault")
        return score(pairs)

    actor.calls = []  # type: ignore[attr-defined]
    actor.reranker.score_pairs = fails  # type: ignore[method-assign]
    rows = {row["query_id"]: row for row in actor(block).to_pylist()}
    assert rows["good"]["error"] is None
    assert rows["bad"]["error"] == "ValueError: the second query is at fault"


def test_unfinished_scores_are_kept_and_never_mixed(folder: Path, tmp_path: Path) -> None:
    first = PartialResults(config(folder, tmp_path / "out"))
    assert first.open(newest=1) == {}
    first.append([{"query_id": "q0", "docs": ["d1"], "scores": [0.5]}])
    with first.path.open("a") as file:
        file.write('{"query_id": "q1", "sco')  # the process died here
    again = PartialResults(config(folder, tmp_path / "out"))
    assert again.open(newest=7) == {"q0": {"d1": 0.5}}
    assert (again.version, again.resumed) == (1, 1)
    with pytest.raises(ConfigError, match="unfinished job with another depth"):
        PartialResults(config(folder, tmp_path / "out", depth=3)).open(newest=1)
    with pytest.raises(ConfigError, match="unfinished job with another model_options"):
        PartialResults(config(folder, tmp_path / "out", model_options={"max_length": 64})).open(newest=1)


def test_scores_of_other_weights_are_never_mixed(folder: Path, tmp_path: Path) -> None:
    first = PartialResults(config(folder, tmp_path / "out"))
    first.open(newest=1)
    first.confirm("one")
    first.append([{"query_id": "q0", "docs": ["d1"], "scores": [0.5]}])
    again = PartialResults(config(folder, tmp_path / "out"))
    assert again.open(newest=1) == {"q0": {"d1": 0.5}}
    again.confirm("one")
    with pytest.raises(ConfigError, match=r"out\.partial is of an unfinished job with another model: its weights have"):
        again.confirm("two")
    assert PartialResults(config(folder, tmp_path / "out")).open(newest=1) == {"q0": {"d1": 0.5}}


@pytest.mark.ray
def test_a_resumed_job_looks_at_the_weights_again(folder: Path, tmp_path: Path, ray_session: None) -> None:
    settings = config(folder, tmp_path / "out.jsonl")
    stopped = PartialResults(settings)
    stopped.open(open_table(folder / "index").version)
    stopped.confirm("those of last night")
    stopped.append([{"query_id": "q3", "docs": ["d1", "d2"], "scores": [0.25, 0.75]}])
    with pytest.raises(ConfigError, match="another model: its weights have changed"):
        rerank_run(settings)


def test_a_query_without_text_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"_id": "q0", "text": "panda"}\n')
    with pytest.raises(ConfigError, match=r"query 'q1' has no text in .*few\.jsonl"):
        rerank_run(config(folder, tmp_path / "out", queries=tmp_path / "few.jsonl"))


@pytest.mark.ray
def test_the_job_scores_the_whole_run_and_resumes(folder: Path, tmp_path: Path, ray_session: None) -> None:
    settings = config(folder, tmp_path / "out.jsonl")
    stopped = PartialResults(settings)
    stopped.open(open_table(folder / "index").version)
    stopped.append([{"query_id": "q3", "docs": ["d1", "d2"], "scores": [0.25, 0.75]}])
    summary = rerank_run(settings)
    assert (summary.queries, summary.resumed, summary.missing, summary.failed) == (20, 1, 19, ())
    found = read_run(settings.output)
    assert found["q3"] == ["d2", "d1"]
    assert set(found["q4"]) == {*(f"d{j}" for j in range(10)), "long"}
    assert not stopped.path.exists()
    reranker = load_reranker(str(folder / "model"), compute=ComputeSpec(dtype="fp32"))
    scores = dict(zip(TEXTS, reranker.score(QUERIES["q4"], list(TEXTS.values())), strict=True))
    ordered = [d for d in found["q4"] if d != "long"]
    assert ordered == sorted(ordered, key=lambda d: -scores[d])


@pytest.mark.ray
def test_a_model_that_is_not_there_is_a_wrong_request(folder: Path, tmp_path: Path, ray_session: None) -> None:
    with pytest.raises(ConfigError, match=r"model: model folder .*/nowhere/at/all does not exist"):
        rerank_run(config(folder, tmp_path / "out", model="/nowhere/at/all"))
