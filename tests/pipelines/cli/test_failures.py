"""What the machine did is one line; what only a mistake of ours can be keeps its traceback."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pipelines.cli.app import _Group, split_arguments
from pipelines.cli.failures import SHOW_TRACEBACK, describe_failure
from pipelines.config import ConfigError

LANCE = (
    "LanceError(IO): Generic LocalFileSystem error: Unable to create file /ro/idx/x.lance: Read-only file system "
    "(os error 30), /home/runner/work/lance/lance/rust/lance-io/src/object_store.rs:12:34"
)


def _raised(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "the disk is full: .*'/data/x'"),
        (PermissionError(errno.EACCES, "Permission denied", "/ro/idx"), "no permission: .*'/ro/idx'"),
        (OSError(LANCE), r"no permission: LanceError\(IO\): .*/ro/idx/x.lance: .*\(os error 30\)$"),
        (RuntimeError(LANCE), "no permission: .*/ro/idx/x.lance"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (MemoryError(), "out of memory"),
        (_raised(RuntimeError("a task failed"), OSError(errno.ENOSPC, "No space left on device")), "the disk is full"),
    ],
)
def test_failures_of_the_machine_are_one_line(error: BaseException, line: str) -> None:
    import re

    told = describe_failure(error)
    assert told is not None
    assert re.search(line, told)
    assert "\n" not in told
    assert ".rs:" not in told


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), AssertionError(), ValueError("x"), RuntimeError("x")])
def test_mistakes_of_ours_are_none(error: BaseException) -> None:
    assert describe_failure(error) is None


def test_a_full_disk_in_a_user_function_of_ray_data() -> None:
    from ray.exceptions import RayTaskError

    class UserCodeException(Exception):
        """As `ray.exceptions.UserCodeException`: its cause does not survive pickling."""

    trace = (
        "ray::MapBatches(write)() (pid=7)\n  File 'x.py', line 3, in write\n"
        "OSError: LanceError(IO): No space left on device (os error 28), /src/lance/local.rs:77:12\n"
        "The above exception was the direct cause of the following exception:\nUserCodeException: UDF failed"
    )
    told = describe_failure(RayTaskError("f", trace, UserCodeException("UDF failed")))
    assert told == "the disk is full: OSError: LanceError(IO): No space left on device (os error 28)"
    assert describe_failure(RayTaskError("f", trace.replace("No space left", "Odd"), UserCodeException("x"))) is None


def test_what_ray_wraps() -> None:
    from ray.exceptions import RayTaskError, WorkerCrashedError

    wrapped = RayTaskError("f", "Traceback ...", OSError(errno.ENOSPC, "No space left on device", "/x"))
    assert (
        describe_failure(wrapped.as_instanceof_cause()) == "the disk is full: [Errno 28] No space left on device: '/x'"
    )
    ours = RayTaskError("f", "Traceback ...", TypeError("x"))
    assert describe_failure(ours.as_instanceof_cause()) is None
    assert str(describe_failure(WorkerCrashedError())).startswith("a worker process died: ")


def _command(error: BaseException) -> typer.Typer:
    app = typer.Typer(cls=_Group, pretty_exceptions_enable=False)

    @app.command()
    def run() -> None:
        raise error

    @app.command()
    def other() -> None: ...

    return app


def test_exit_status_and_message(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(_command(OSError(errno.EROFS, "Read-only file system", "/ro")), ["run"])
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert "tridex: no permission: [Errno 30] Read-only file system: '/ro'" in result.output
    assert CliRunner().invoke(_command(KeyboardInterrupt()), ["run"]).exit_code == 130
    assert isinstance(CliRunner().invoke(_command(TypeError("ours")), ["run"]).exception, TypeError)
    monkeypatch.setenv(SHOW_TRACEBACK, "1")
    assert isinstance(CliRunner().invoke(_command(OSError("x")), ["run"]).exception, OSError)


def test_what_a_shell_makes_of_a_glob_is_input() -> None:
    yaml, b, c = Path("job.yaml"), Path("b.jsonl"), Path("c.jsonl")
    assert split_arguments([yaml], []) == (yaml, [])
    assert split_arguments([b, c], ["a.jsonl"]) == (None, ["a.jsonl", "b.jsonl", "c.jsonl"])
    assert split_arguments([yaml, b], ["a.jsonl"]) == (yaml, ["a.jsonl", "b.jsonl"])
    with pytest.raises(ConfigError, match=r"expected one config file, got job\.yaml, other\.yml"):
        split_arguments([yaml, Path("other.yml")], ["a.jsonl"])
    with pytest.raises(ConfigError, match=r"b\.jsonl: is not a config file \(\.yaml\); name inputs with --input"):
        split_arguments([b], [])
