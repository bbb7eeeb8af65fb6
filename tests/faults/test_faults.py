"""Real jobs on a Ray of two nodes, killed in every way that a night on a cluster knows. Slow: about 30 jobs.

One of them: `pytest tests/faults -m slow -k replied`. More seeds: `python benchmarks/crash.py --seeds 100`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import pytest
from checkpoints import build as build_checkpoint
from harness import (
    ACTOR,
    PATIENCE,
    Cluster,
    Content,
    Job,
    cluster,
    compare,
    content_of,
    torment,
    wait_for,
    write_shards,
)

pytestmark = [pytest.mark.slow, pytest.mark.ray]

Start = Callable[..., Job]


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.getbasetemp() / "ray"
    folder.mkdir()
    with cluster(folder) as running:
        yield running


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    write_shards(folder / "shards")
    build_checkpoint("m3", folder / "model")
    return folder


@pytest.fixture
def start(ray_cluster: Cluster, material: Path, tmp_path: Path) -> Start:
    """A job on the material, or on a copy of its shards, that has not begun."""

    def prepare(shards: Path | None = None, **settings: Any) -> Job:
        return Job(tmp_path, ray_cluster, settings).configure(shards or material / "shards", material / "model")

    return prepare


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: Cluster, material: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    job = Job(tmp_path_factory.mktemp("undisturbed"), ray_cluster).configure(material / "shards", material / "model")
    summary = job.finish()
    content = content_of(job)
    assert summary["embedded"]["documents"] == 600 - 4 - 3
    assert len(content.vectors) > 700, "many documents have several chunks"
    assert len(content.failed) == 4 + 3
    return content


def all_well(job: Job, undisturbed: Content) -> None:
    outcome = compare(job, undisturbed)
    assert outcome.ok, outcome


def kill_and_wait(driver: subprocess.Popen[str], number: int = signal.SIGKILL) -> int:
    os.kill(driver.pid, number)
    return driver.wait(PATIENCE)


@pytest.mark.parametrize("moment", ["before:1", "after:1", "before:3", "after:3"])
def test_a_driver_that_dies_around_a_commit_is_taken_up_again(start: Start, undisturbed: Content, moment: str) -> None:
    """After: the commit is in the table, and its reply was never seen."""
    job = start()
    assert job.start(die=moment).wait(PATIENCE) == -signal.SIGKILL
    before = job.committed()
    assert (before > 0) == (moment != "before:1")
    summary = job.finish()
    assert summary["unchanged"] == before
    all_well(job, undisturbed)


def test_an_actor_that_is_killed_is_replaced(start: Start, undisturbed: Content) -> None:
    job = start()
    driver = job.start(slow=0.3)
    for _ in range(2):
        wait_for(lambda: job.cluster.workers(ACTOR) or driver.poll() is not None, PATIENCE, "an actor")
        for actor in job.cluster.workers(ACTOR):
            actor.kill()
        time.sleep(2)
    assert driver.wait(PATIENCE) == 0
    all_well(job, undisturbed)


def test_write_tasks_that_die_after_writing_leave_files_and_no_rows(start: Start, undisturbed: Content) -> None:
    job = start()
    job.finish(write_deaths=3)
    assert len(list(job.folder.glob("death-*"))) == 3
    all_well(job, undisturbed)


def test_a_device_that_runs_out_of_memory_gets_smaller_batches(start: Start, undisturbed: Content) -> None:
    job = start()
    assert job.finish(memory=300)["embedded"]["n_halvings"] > 0
    all_well(job, undisturbed)


def test_a_text_that_no_memory_suffices_for_is_listed(start: Start, undisturbed: Content) -> None:
    job = start()
    job.finish(memory=25)
    got = content_of(job)
    lost = undisturbed.vectors.keys() - got.vectors.keys()
    listed = lance.dataset(f"{job.index}/quarantine.lance").to_table(filter="error LIKE '%OutOfMemoryError%'")
    assert {str(chunk) for chunk in listed["chunk_id"].to_pylist()} == lost
    assert 0 < len(lost) < len(got.vectors)
    job.finish()
    all_well(job, undisturbed)


def test_of_two_drivers_one_is_refused(start: Start, undisturbed: Content) -> None:
    job = start()
    drivers = [job.start(slow=2.0) for _ in range(2)]
    assert sorted(driver.wait(PATIENCE) for driver in drivers) == [0, 1]
    assert f"LeaseHeld: {job.index}: " in (job.folder / "log").read_text()
    all_well(job, undisturbed)


def test_a_driver_that_wakes_up_after_it_was_replaced_writes_nothing(start: Start, undisturbed: Content) -> None:
    job = start()
    frozen = job.start(freeze=True)
    wait_for((job.folder / "frozen").exists, PATIENCE, "the frozen driver")
    job.finish()
    (job.folder / "thaw").touch()
    assert frozen.wait(PATIENCE) == 1
    assert "LeaseLost" in (job.folder / "log").read_text()
    all_well(job, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_job_and_keeps_what_is_done(start: Start, undisturbed: Content, number: int) -> None:
    job = start()
    driver = job.start(slow=0.5)
    wait_for(lambda: job.committed() or driver.poll() is not None, PATIENCE, "a commit")
    assert kill_and_wait(driver, number) != 0
    committed = job.committed()
    assert committed > 0
    assert job.finish()["unchanged"] == committed
    all_well(job, undisturbed)


def test_a_damaged_shard_costs_its_own_rows_alone(start: Start, material: Path, undisturbed: Content) -> None:
    shards = shutil.copytree(material / "shards", start().folder / "shards")
    whole = (shards / "shard-2.parquet").read_bytes()
    (shards / "shard-2.parquet").write_bytes(whole[: len(whole) // 2])
    job = start(shards)
    job.finish()
    got = content_of(job)
    assert ("shard-2.parquet", -1) in got.failed
    lost = undisturbed.vectors.keys() - got.vectors.keys()
    assert lost
    assert all(chunk.startswith("s2d") for chunk in lost)
    (shards / "shard-2.parquet").write_bytes(whole)
    job.finish()
    all_well(job, undisturbed)


def test_a_shard_that_goes_while_the_job_runs_is_reported(start: Start, material: Path, undisturbed: Content) -> None:
    shards = shutil.copytree(material / "shards", start().folder / "shards")
    job = start(shards)
    driver = job.start(slow=0.5)
    wait_for(lambda: job.cluster.workers(ACTOR) or driver.poll() is not None, PATIENCE, "an actor")
    (shards / "shard-3.parquet").unlink()
    assert driver.wait(PATIENCE) == 0
    got = content_of(job)
    missing = undisturbed.vectors.keys() - got.vectors.keys()
    assert all(chunk.startswith("s3d") for chunk in missing)
    assert not missing or ("shard-3.parquet", -1) in got.failed
    shutil.copy(material / "shards" / "shard-3.parquet", shards)
    job.finish()
    all_well(job, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_job_and_room_lets_it_go_on(start: Start, small_disk: Path, undisturbed: Content) -> None:
    job = start(index={"uri": str(small_disk / "index")})
    assert job.start().wait(PATIENCE) == 1
    assert "No space left on device" in (job.folder / "log").read_text()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    job.finish()
    all_well(job, undisturbed)


@pytest.mark.parametrize("moment", ["before:1", "after:1"])
def test_new_outputs_that_are_half_there_are_completed(start: Start, undisturbed: Content, moment: str) -> None:
    start(embedder={"outputs": ["dense"]}).finish()
    job = start()
    assert job.start(die=moment).wait(PATIENCE) == -signal.SIGKILL
    summary = job.finish()
    documents = {chunk.rpartition("#")[0] for chunk in undisturbed.vectors}
    assert (summary["embedded"]["documents"], summary["unchanged"]) == (0, len(documents))
    assert 0 < summary["backfilled"] <= len(undisturbed.vectors)
    all_well(job, undisturbed)


TAGGED = {"input": {"columns": {"metadata": ["tag"]}}}


def tags_are(job: Job, tag: str) -> None:
    """Every row has the tag of its document, of this writing of the shards."""
    rows = job.documents.to_table(columns=["doc_id", "tag"]).to_pylist()
    wrong = [row for row in rows if row["tag"] != " ".join([tag, *row["doc_id"][1:].split("d")])]
    assert rows
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("moment", ["before:1", "after:1", "before:3", "after:3"])
def test_new_metadata_that_is_half_there_is_completed(
    start: Start, tmp_path: Path, undisturbed: Content, moment: str
) -> None:
    """Nothing is embedded in either run, and no row is moved."""
    write_shards(tmp_path / "shards")
    job = start(tmp_path / "shards", **TAGGED)
    job.finish()
    addresses = job.documents.to_table(columns=["chunk_id"], with_row_address=True)
    shutil.rmtree(tmp_path / "shards")
    write_shards(tmp_path / "shards", tag="new")
    assert job.start(die=moment, small_commits=True).wait(PATIENCE) == -signal.SIGKILL
    there = [row["tag"].startswith("new") for row in job.documents.to_table(columns=["tag"]).to_pylist()]
    assert any(there) == (moment != "before:1")
    assert not all(there)
    summary = job.finish()
    assert (summary["embedded"]["documents"], summary["changed"], summary["new"]) == (0, 0, 0)
    assert 0 < summary["metadata_only"] <= 593
    tags_are(job, "new")
    assert job.documents.to_table(columns=["chunk_id"], with_row_address=True).equals(addresses)
    all_well(job, undisturbed)
    assert job.finish()["metadata_only"] == 0


@pytest.mark.parametrize("moment", ["before:1", "after:2"])
def test_a_metadata_column_that_is_half_filled_is_completed(start: Start, undisturbed: Content, moment: str) -> None:
    start().finish()
    job = start(**TAGGED)
    assert job.start(die=moment, small_commits=True).wait(PATIENCE) == -signal.SIGKILL
    filled = job.documents.count_rows() - job.documents.to_table(columns=["tag"])["tag"].null_count
    assert (filled > 0) == (moment == "after:2")
    summary = job.finish()
    assert (summary["embedded"]["documents"], summary["backfilled"]) == (0, 0)
    tags_are(job, "old")
    all_well(job, undisturbed)


def test_a_driver_that_wakes_up_while_metadata_is_written_writes_nothing(
    start: Start, tmp_path: Path, undisturbed: Content
) -> None:
    write_shards(tmp_path / "shards")
    job = start(tmp_path / "shards", **TAGGED)
    job.finish()
    shutil.rmtree(tmp_path / "shards")
    write_shards(tmp_path / "shards", tag="new")
    frozen = job.start(freeze=True, small_commits=True)
    wait_for((job.folder / "frozen").exists, PATIENCE, "the frozen driver")
    shutil.rmtree(tmp_path / "shards")
    write_shards(tmp_path / "shards", tag="newest")
    job.finish()
    (job.folder / "thaw").touch()
    assert frozen.wait(PATIENCE) == 1
    assert "LeaseLost" in (job.folder / "log").read_text()
    tags_are(job, "newest")
    all_well(job, undisturbed)


def test_a_dropped_column_costs_no_embedding(start: Start, undisturbed: Content) -> None:
    start(**TAGGED).finish()
    job = start()
    assert job.start().wait(PATIENCE) == 1
    assert "--drop-column tag" in (job.folder / "log").read_text()
    assert "tag" in job.documents.schema.names
    dropping = start(job={"drop_columns": ["tag"]})
    assert dropping.start(die="before:1").wait(PATIENCE) == -signal.SIGKILL
    assert dropping.finish()["embedded"]["documents"] == 0
    assert "tag" not in job.documents.schema.names
    all_well(job, undisturbed)


def test_a_node_that_is_lost_takes_no_document_along(start: Start, undisturbed: Content) -> None:
    job = start()
    driver = job.start(slow=0.3)
    wait_for(lambda: job.committed() or driver.poll() is not None, PATIENCE, "a commit")
    assert job.cluster.replace_node()
    if driver.wait(PATIENCE) != 0:  # the driver may have been attached to the node that is gone
        job.finish()
    all_well(job, undisturbed)


def test_a_shard_that_is_rewritten_while_the_job_runs_is_reported(
    start: Start, material: Path, undisturbed: Content
) -> None:
    """With as many rows and bytes as before: the rows that were there stay, none is taken for another."""
    shards = shutil.copytree(material / "shards", start().folder / "shards")
    job = start(shards)
    driver = job.start(slow=0.5)
    wait_for(lambda: job.began() or driver.poll() is not None, PATIENCE, "the lease")
    shutil.copyfile(material / "shards" / "shard-3.parquet", shards / "shard-3.parquet")
    assert driver.wait(PATIENCE) == 0
    got = content_of(job)
    missing = undisturbed.vectors.keys() - got.vectors.keys()
    assert all(chunk.startswith("s3d") for chunk in missing)
    assert ("shard-3.parquet", -1) in got.failed
    job.finish()
    all_well(job, undisturbed)


@pytest.mark.parametrize("seed", range(10))
def test_whatever_dies_whenever(start: Start, undisturbed: Content, seed: int) -> None:
    job = start()
    torment(job, seed)
    all_well(job, undisturbed)
