"""Several devices: the same numbers in the same order, errors that arrive, processes that end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import build

from actors import BGEM3FlagModel, FlagModel
from actors.embedders.device_pool import DevicePool, WorkerTraceback, device_names
from actors.embedders.engine import EncodeRequest
from actors.outputs import TokenBatch

TEXTS = [f"what is the panda {'and the river ' * (i % 7)}" for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[FlagModel]:
    several = FlagModel(str(folder), devices=["cpu", "cpu"], use_fp16=False)
    yield several
    several.stop_self_pool()


def pool_of(model: FlagModel) -> DevicePool:
    assert isinstance(model.runner, DevicePool)
    return model.runner


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int], seconds: float = 10) -> list[int]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(is_alive, pids)):
        time.sleep(0.05)
    return [pid for pid in pids if is_alive(pid)]


def test_same_vectors_in_the_same_order(model: FlagModel, folder: Path) -> None:
    alone = FlagModel(str(folder), devices="cpu", use_fp16=False)
    np.testing.assert_allclose(model.encode(TEXTS), alone.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(model.encode("panda"), alone.encode("panda"), atol=1e-6)
    assert np.shape(model.encode([])) == (0, 32)


def test_every_output_comes_back_whole(tmp_path: Path) -> None:
    folder = str(build("m3", tmp_path))
    several, alone = (BGEM3FlagModel(folder, devices=d, use_fp16=False) for d in (["cpu", "cpu"], "cpu"))
    ours, expected = several.embed_corpus(TEXTS), alone.embed_corpus(TEXTS)
    several.stop_self_pool()
    assert ours.sparse is not None
    assert expected.sparse is not None
    assert ours.colbert is not None
    assert expected.colbert is not None
    np.testing.assert_array_equal(ours.sparse.token_ids, expected.sparse.token_ids)
    np.testing.assert_array_equal(ours.colbert.offsets, expected.colbert.offsets)
    np.testing.assert_allclose(ours.colbert.vectors, expected.colbert.vectors, atol=1e-6)
    np.testing.assert_array_equal(ours.n_tokens, expected.n_tokens)


def test_a_workers_exception_reaches_the_caller_and_the_pool_lives_on(model: FlagModel) -> None:
    beyond = TokenBatch(np.array([2, 10**6, 3], np.int32), np.array([0, 3]), np.zeros(1, np.int32))
    with pytest.raises(IndexError) as caught:
        pool_of(model).embed_tokens(beyond, EncodeRequest(("dense",)))
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert "engine.py" in str(caught.value.__cause__)
    assert np.shape(model.encode(["panda"])) == (1, 32)


def test_a_killed_worker_is_an_error_not_a_hang_and_the_next_call_works(model: FlagModel) -> None:
    model.encode(["panda"])
    for worker in pool_of(model)._workers:
        worker.process.kill()
    with pytest.raises(RuntimeError, match="process of device cpu ended with status -9"):
        model.encode(TEXTS)
    assert np.shape(model.encode(["panda"])) == (1, 32)


def test_stopping_ends_the_processes(folder: Path) -> None:
    model = FlagModel(str(folder), devices=["cpu", "cpu"], use_fp16=False)
    model.encode(["panda"])
    pids = [worker.process.pid for worker in pool_of(model)._workers]
    model.stop_self_pool()
    assert not wait_until_gone(pids)


SCRIPT = """
import os, signal, sys
from actors import FlagModel
model = FlagModel({folder!r}, devices=["cpu", "cpu"], use_fp16=False)
model.encode(["panda", "bear"])
print(*[worker.process.pid for worker in model.runner._workers], flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["normal", "killed"])
def test_no_process_outlives_the_program_and_no_main_guard_is_needed(folder: Path, tmp_path: Path, end: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(folder)))
    result = subprocess.run([sys.executable, str(script), end], capture_output=True, text=True, timeout=120)
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2, result.stderr
    assert not wait_until_gone(pids)
    assert os.getpid() not in pids


def test_names_of_devices() -> None:
    assert device_names("cpu") == ["cpu"]
    assert device_names(["cpu", "cpu"]) == ["cpu", "cpu"]
    assert device_names(None)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], "at least one, got"),
        ("gpu:0", "unknown device 'gpu:0'"),
        (99, "'cuda:99' is not there"),
        (["cpu", 1.5], "names or numbers, got 1.5"),
    ],
)
def test_bad_devices_are_named(devices: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        device_names(devices)  # type: ignore[arg-type]
