"""The command line: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app

run = CliRunner().invoke
README = (Path(__file__).resolve().parents[3] / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    return [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_and_stands_in_the_readme(command: str) -> None:
    result = run(app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 4
    assert f"tridex {command}" in README


def test_help_lists_every_command_once_in_a_section_with_a_whole_summary() -> None:
    listed = run(app, ["--help"], env={"COLUMNS": "80"}, terminal_width=80).stdout.partition("Build and maintain")[2]
    rows = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert sorted(rows) == sorted(commands())
    assert "..." not in listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build"], "input: is missing\nindex: is missing"),
        (["build", "absent.yaml"], "absent.yaml: no such config file"),
        (["build", "--input", "a", "--index", "b", "--set", "chunk"], "--set 'chunk': expected key.path=value"),
        (
            ["build", "--input", "a", "--index", "b", "--set", "chunk.size=x"],
            "chunk.size: must be an integer or auto, got 'x'",
        ),
        (["build", "--input", "a", "--index", "b", "--set", "chunks.size=1"], "chunks: is unknown"),
        (["build", "--input", "/no/such/*.parquet", "--index", "b"], "no file matches '/no/such/*.parquet'"),
        (["search", "/no/such/index", "x"], "/no/such/index"),
        (["status", "/no/such/index"], "/no/such/index"),
        (["optimize", "/no/such/index"], "/no/such/index"),
        (["submit", "--input", "a", "--index", "b", "--env", "NAME"], "--env 'NAME': expected NAME=VALUE"),
        (["submit", "--follow"], "--job: is required here"),
        (["plan", "--input", "/no/such/*.parquet", "--index", "b"], "no file matches"),
    ],
)
def test_a_wrong_request_is_one_message_and_status_2(arguments: list[str], message: str) -> None:
    result = run(app, arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.ray
def test_build_then_status_then_search_each_one_json_document(ray_session: None, tmp_path: Path) -> None:
    lines = [{"id": f"d{i}", "text": text} for i, text in enumerate(["a red apple", "a blue car", "green grass"])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    index = str(tmp_path / "index")
    built = run(app, ["build", "--input", str(tmp_path / "a.jsonl"), "--index", index, "--json"])
    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["embedded"]["documents"] == 3
    status = json.loads(run(app, ["status", index, "--json"]).stdout)
    assert (status["documents"], status["quarantine"]) == (3, 0)
    found = json.loads(run(app, ["search", index, "fruit", "car", "-k", "1", "--json"]).stdout)
    assert [hits["hits"][0]["doc_id"] for hits in found] == ["d0", "d1"]
    assert set(found[0]["hits"][0]["scores"]) >= {"dense", "colbert", "bm25"}
    shown = run(app, ["search", index, "fruit", "-k", "1"])
    assert "a red apple" in shown.stdout
    wrong = run(app, ["search", index, "fruit", "--where", "nonsense ="])
    assert wrong.exit_code == 2
    assert "nonsense =" in wrong.stderr


def test_a_failure_that_explains_itself_is_one_message_and_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    import pipelines.indexing.build

    def fail(config: object) -> None:
        raise pipelines.indexing.build.JobFailed("10 of the first 20 rows went to quarantine")

    monkeypatch.setattr(pipelines.indexing.build, "build_index", fail)
    result = run(app, ["build", "--input", "a", "--index", "b"])
    assert (result.exit_code, result.stderr) == (1, "tridex: 10 of the first 20 rows went to quarantine\n")
