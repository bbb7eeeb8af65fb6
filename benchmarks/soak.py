"""Edits a corpus under `tridex watch` while a client searches: `python benchmarks/soak.py --minutes 20`.

Three processes of the program as an operator runs them: `watch` builds, `serve` follows the index, and this script
edits files (insert, new text, new metadata, delete) and sends searches one after the other. Staleness is the time from
the end of a write to the first answer over HTTP that shows it: a look of `watch`, a build, a refresh of `serve`. Prints
a Markdown table of memory, versions, fragments and bytes over time; exits with 1 if a search failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import numpy as np
import psutil
import yaml

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS)]

from checkpoints import build as build_checkpoint

WORDS = [a + b + c for a in "bdgklmnprst" for b in "aeiou" for c in ("", "n", "rt", "ll")]
FILES, DOCUMENTS = 40, 25
COLUMNS = (
    "minute", "edits", "searches", "failed", "watch MiB", "serve MiB", "versions", "fragments", "index MB"
)  # fmt: skip


@dataclass
class Corpus:
    """JSON Lines files that one thread edits; each edit carries its number as metadata."""

    folder: Path
    rng: random.Random
    rows: dict[int, dict[str, dict[str, str]]] = field(default_factory=dict)
    edits: int = 0
    deleted: list[str] = field(default_factory=list)

    def fill(self) -> None:
        self.folder.mkdir()
        for number in range(FILES):
            self.rows[number] = {f"f{number}d{i}": self.row() for i in range(DOCUMENTS)}
            self.write(number)

    def row(self) -> dict[str, str]:
        return {"text": " ".join(self.rng.choices(WORDS, k=self.rng.randint(5, 40))), "tag": "first"}

    def write(self, number: int) -> None:
        lines = [json.dumps({"id": i, **row}) for i, row in self.rows[number].items()]
        beside = self.folder / f".{number}"
        beside.write_text("\n".join(lines) + "\n")
        beside.replace(self.folder / f"{number}.jsonl")

    def edit(self) -> str:
        """Makes one edit and returns the condition that the changed row meets; deletions follow inserts."""
        self.edits += 1
        number, tag = self.rng.randrange(FILES), f"edit{self.edits}"
        rows = self.rows[number]
        kind = self.rng.choice(["insert", "text", "metadata"])
        name = f"new{self.edits}" if kind == "insert" else self.rng.choice([*rows])
        rows[name] = {"text": rows[name]["text"], "tag": tag} if kind == "metadata" else {**self.row(), "tag": tag}
        if kind == "insert":
            gone = self.rng.choice([i for i in rows if i != name])
            del rows[gone]
            self.deleted.append(gone)
        self.write(number)
        return f"tag = '{tag}'"


@contextmanager
def program(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command of tridex until the block ends; SIGTERM ends it."""
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "pipelines.cli", *arguments], stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(120)


@dataclass
class Client:
    """Sends searches and looks for edits that are not visible yet."""

    url: str
    searches: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    staleness: list[float] = field(default_factory=list)
    pending: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def search(self, query: str, where: str | None = None) -> int:
        """Returns the number of hits; a failure is an answer other than 200."""
        body: dict[str, Any] = {"query": query, "k": 5, **({"where": where} if where else {})}
        began = time.perf_counter()
        try:
            answer = fetch(f"{self.url}/v1/search", body)
            return len(json.loads(answer)["results"][0]["hits"])
        except urllib.error.HTTPError as error:
            self.failures.append(f"{error.code} {error.read()[:200]!r}")
        except OSError as error:
            self.failures.append(repr(error))
        finally:
            self.searches += 1
            self.seconds.append(time.perf_counter() - began)
        return 0

    def run(self, stop: threading.Event) -> None:
        rng = random.Random(2)
        while not stop.is_set():
            if not self.search(" ".join(rng.choices(WORDS, k=3))) and not self.failures:
                self.failures.append("a search without a filter found nothing")
            with self.lock:
                waiting = dict(self.pending)
            for where, since in waiting.items():
                if self.search("ba", where):
                    self.staleness.append(time.time() - since)
                    with self.lock:
                        del self.pending[where]
            stop.wait(0.1)


def fetch(url: str, body: Any = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return bytes(answer.read())


def memory(pid: int) -> float:
    """Resident MiB of a process and all below it."""
    root = psutil.Process(pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def folder_bytes(folder: Path) -> float:
    """MB of all files that are there now."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                total += Path(path, name).stat().st_size
            except FileNotFoundError:
                continue
    return total / 1e6


def wait_for_index(uri: str, rows: int, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (
            Path(uri, "documents.lance/_versions").exists()
            and lance.dataset(f"{uri}/documents.lance").count_rows() >= rows
        ):
            return
        time.sleep(1)
    raise TimeoutError("the first build did not end")


def served_at(log: Path, seconds: float = 300) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        try:
            if found and fetch(f"{found[0]}/readyz"):
                return found[0]
        except OSError:
            time.sleep(1)
        time.sleep(1)
    raise TimeoutError(f"the server did not start:\n{log.read_text()[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--edit-seconds", type=float, default=3, help="mean time between two edits")
    parser.add_argument("--every", default="2s", help="as of `tridex watch`")
    parser.add_argument("--watch", nargs="*", default=["--keep-minutes", "2"], help="further options of `tridex watch`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sys.exit(soak(Path(name), arguments))


def soak(folder: Path, arguments: argparse.Namespace) -> int:
    build_checkpoint("m3", folder / "model")
    corpus = Corpus(folder / "input", random.Random(1))
    corpus.fill()
    index = str(folder / "index")
    job = {
        "input": {"paths": [str(folder / "input" / "*.jsonl")], "columns": {"metadata": ["tag"]}},
        "index": {"uri": index},
        "embedders": [{"name": "m", "model": str(folder / "model"), "compute": {"dtype": "fp32", "threads": 1}}],
        "ray": {"progress": False},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    watching = ["watch", str(folder / "job.yaml"), "--every", arguments.every, "--prune", *arguments.watch]
    with program(folder / "watch.log", *watching) as watch:
        wait_for_index(index, FILES * DOCUMENTS)
        with program(folder / "serve.log", "serve", index, "--port", "0", "--refresh", "1") as serve:
            client, stop = Client(served_at(folder / "serve.log")), threading.Event()
            searcher = threading.Thread(target=client.run, args=(stop,))
            searcher.start()
            print_row(
                "minute", "edits", "searches", "failed", "watch MiB", "serve MiB", "versions", "fragments", "index MB"
            )
            print_row(*["---"] * 9)
            began, rng, row = time.time(), random.Random(3), 0
            while (now := time.time() - began) < 60 * arguments.minutes:
                where = corpus.edit()
                with client.lock:  # an edit that is itself edited before it was seen is seen by its last one
                    client.pending[where] = time.time()
                time.sleep(rng.uniform(0.5, 1.5) * arguments.edit_seconds)
                drop_overwritten(client, corpus)
                if now >= 60 * row:
                    dataset = lance.dataset(f"{index}/documents.lance")
                    print_row(
                        row, corpus.edits, client.searches, len(client.failures), round(memory(watch.pid)),
                        round(memory(serve.pid)), len(dataset.versions()), len(dataset.get_fragments()),
                        round(folder_bytes(Path(index)), 1),
                    )  # fmt: skip
                    row += 1
            settle(client, corpus)
            stop.set()
            searcher.join()
    return summarise(client, corpus, index, folder)


def drop_overwritten(client: Client, corpus: Corpus) -> None:
    """Forgets edits that a later one has overwritten or deleted before they were seen."""
    tags = {f"tag = '{row['tag']}'" for rows in corpus.rows.values() for row in rows.values()}
    with client.lock:
        for where in [where for where in client.pending if where not in tags]:
            del client.pending[where]


def settle(client: Client, corpus: Corpus, seconds: float = 120) -> None:
    """Waits until all edits are visible."""
    end = time.monotonic() + seconds
    while client.pending and time.monotonic() < end:
        time.sleep(1)
        drop_overwritten(client, corpus)


def summarise(client: Client, corpus: Corpus, index: str, folder: Path) -> int:
    """Prints what was seen, and compares the index with the files; returns the exit status."""
    stored = lance.dataset(f"{index}/documents.lance").to_table(columns=["doc_id", "text", "tag"]).to_pylist()
    have = {row["doc_id"]: (row["text"], row["tag"]) for row in stored}
    want = {i: (row["text"], row["tag"]) for rows in corpus.rows.values() for i, row in rows.items()}
    wrong = sum(have.get(i) != value for i, value in want.items()) + len(have.keys() - want.keys())
    seen, took = np.array(client.staleness or [0.0]), np.array(client.seconds)
    sys.stdout.write(
        f"\n{corpus.edits} edits ({len(corpus.deleted)} with a deletion), {client.searches:,} searches, "
        f"{len(client.failures)} failed; staleness of {len(client.staleness)} edits: median {np.median(seen):.1f} s, "
        f"p99 {np.quantile(seen, 0.99):.1f} s, most {seen.max():.1f} s; search p50 {1000 * np.median(took):.0f} ms, "
        f"p99 {1000 * np.quantile(took, 0.99):.0f} ms\n"
        f"never seen: {len(client.pending)}; rows at the end: {len(stored)}, documents that differ from the files: "
        f"{wrong}, rows twice: {len(stored) - len(have)}\n"
    )
    for failure in client.failures[:5]:
        sys.stdout.write(f"failed: {failure}\n")
    watched = (folder / "watch.log").read_text().strip().splitlines()
    sys.stdout.write("\n".join(watched[-3:]) + "\n")
    return int(bool(client.failures or wrong or client.pending or len(stored) != len(have)))


def print_row(*cells: Any) -> None:
    sys.stdout.write("| " + " | ".join(map(str, cells)) + " |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
