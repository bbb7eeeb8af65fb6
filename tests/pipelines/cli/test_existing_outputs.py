"""Commands leave what is there alone, and check what they need before they touch the disk."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.cli.demo import MARKER, claim_folder
from pipelines.config import load_config
from pipelines.monitor.memory import last_config
from pipelines.monitor.report import Facts, write_report
from tests.indexes import corpus, make_index

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_demo_leaves_a_folder_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").write_text("three years of work")
    result = run("demo", "--folder", str(tmp_path / "demo"))
    assert result.exit_code == 2
    assert f"--folder {tmp_path}/demo exists and is not an empty folder" in result.stderr
    assert contents(tmp_path) == {"demo/thesis.tex": "three years of work"}


def test_a_demo_without_its_model_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from actors.models import preparation

    def missing(spec: Any) -> Any:
        raise ValueError(f"no model {spec.model} here")

    monkeypatch.setattr(preparation, "load_preparation", missing)
    result = run("demo", "--folder", str(tmp_path / "demo"))
    assert (result.exit_code, result.stderr) == (2, "tridex: demo: no model all-MiniLM-L6-v2 here\n")
    assert list(tmp_path.iterdir()) == []


def test_a_second_demo_replaces_what_the_first_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    claim_folder(folder)
    for name in ("corpus/part-0", "index/table", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    claim_folder(folder)
    assert sorted(contents(folder)) == [MARKER, "notes.txt"]


@pytest.mark.parametrize("made_by_demo", [True, False])
def test_make_clean_removes_what_a_demo_wrote_and_nothing_else(tmp_path: Path, made_by_demo: bool) -> None:
    for name in ("corpus/part-0", "index/table"):
        (tmp_path / "demo" / name).parent.mkdir(parents=True)
        (tmp_path / "demo" / name).write_text("x")
    if made_by_demo:
        (tmp_path / "demo" / MARKER).touch()
    clean = ["make", "-C", str(tmp_path), "-f", str(ROOT / "Makefile"), "clean"]
    subprocess.run(clean, check=True, capture_output=True)
    assert sorted(contents(tmp_path)) == ([] if made_by_demo else ["demo/corpus/part-0", "demo/index/table"])
    if made_by_demo:
        assert not (tmp_path / "demo").exists()
        claim_folder(tmp_path / "demo")
        (tmp_path / "demo" / "notes.txt").write_text("mine")
        subprocess.run(clean, check=True, capture_output=True)
        assert contents(tmp_path) == {"demo/notes.txt": "mine"}


@pytest.fixture
def judged(tmp_path: Path) -> list[str]:
    index = make_index(tmp_path / "index", corpus(40))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "kernel"}\n')
    (tmp_path / "qrels.tsv").write_text("q\td0001\t1\n")
    (tmp_path / "run.trec").write_text("q Q0 d0001 1 1.0 t\n")
    return [index, "--queries", str(tmp_path / "queries.jsonl")]


def test_outputs_that_exist_are_refused_by_name_before_any_work(judged: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "dense.trec").write_text("mine")
    output, qrels = str(tmp_path / "mine.yaml"), ["--qrels", str(tmp_path / "qrels.tsv")]
    tuned = run("tune", *judged, *qrels, "-o", output)
    reranked = run("rerank", judged[0], str(tmp_path / "run.trec"), *judged[1:], "--model", "none", "-o", output)
    evaluated = run("evaluate", *judged, *qrels, "--runs", str(tmp_path / "runs"))
    assert [r.exit_code for r in (tuned, reranked, evaluated)] == [2, 2, 2]
    assert tuned.stderr == reranked.stderr == f"tridex: output {output} exists; --force replaces it\n"
    assert f"--runs {tmp_path}/runs exists and is not an empty folder" in evaluated.stderr
    assert (tmp_path / "mine.yaml").read_text() == (tmp_path / "runs" / "dense.trec").read_text() == "mine"


def test_a_file_that_is_called_like_an_unfinished_job_is_left_alone(judged: list[str], tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text("my notes")
    options = ["--model", "none", "-o", str(tmp_path / "out")]
    result = run("rerank", judged[0], str(tmp_path / "run.trec"), *judged[1:], *options)
    assert result.exit_code == 2
    assert "out.partial exists and is no unfinished job" in result.stderr
    assert (tmp_path / "out.partial").read_text() == "my notes"


def test_interrupting_ends_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.indexing.build as build

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build_index", stop)
    result = run("build", "--input", str(tmp_path), "--index", str(tmp_path / "index"))
    assert result.exit_code == 130
    assert "run the same command again to go on" in result.stderr


def test_retry_remembers_the_last_run_without_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.indexing.build as build

    index = str(tmp_path / "index")
    config = load_config(
        None,
        ["input.columns.metadata=[lang]", "chunk.size=32"],
        input={"paths": [str(tmp_path / "a.jsonl")], "storage_options": {"secret": "hunter2"}},
        index={"uri": index},
    )
    facts = Facts(job="build", state="done", summary={}, config=config.model_dump(mode="json"), phases={})
    for _ in range(2):
        write_report(index, facts)
    assert len(list((tmp_path / "index" / "reports").glob("*.json"))) == 2
    remembered = last_config(index, ["job.prune=true"])
    assert remembered.input.model_dump() == config.input.model_copy(update={"storage_options": {}}).model_dump()
    assert (remembered.chunk, remembered.job.prune) == (config.chunk, True)
    asked = []
    monkeypatch.setattr(build, "retry", lambda job: asked.append(job) or SimpleNamespace(to_dict=lambda: {"ok": 1}))
    result = run("retry", "--index", index, "--json")
    assert json.loads(result.stdout) == {"ok": 1}
    assert asked[0].input.paths == config.input.paths


def test_an_index_without_a_run_says_what_to_give(tmp_path: Path) -> None:
    result = run("retry", "--index", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "no run of this index is remembered; give the config file, or --input" in result.stderr
