"""Measures a server: latency at 1, 8 and 32 clients, what HTTP adds to `Index.search`, and what batching gains.

    python benchmarks/serving.py INDEX [--seconds 20] [--soak MINUTES] [--build INPUT [--build INPUT]]

It starts `tridex serve INDEX` on loopback and asks it with one asyncio client per connection, each sending its next
query when it has the answer to the one before (a closed loop). Queries are the first words of the index's own
passages. With --soak it goes on with 8 clients for that long, and prints errors, the served version and the server's
memory per minute (--seconds 0 leaves all but that out). With --build INPUT (repeatable) `tridex build` updates the same
index meanwhile, from one input after the other and round again until the time is over; it must be a copy that nobody
needs. Two inputs that differ in some texts keep the index at one size, so that only new versions can make memory grow.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


def queries_of(index: str, count: int = 500) -> list[str]:
    """The first eight words of passages that lie evenly over the index."""
    import lance

    table = lance.dataset(f"{index}/documents.lance").to_table(columns=["text"])
    texts = table["text"].to_pylist()
    return [" ".join(text.split()[:8]) or "x" for text in texts[:: max(1, len(texts) // count)]][:count]


@contextmanager
def server(index: str, *options: str) -> Iterator[tuple[int, int]]:
    """A server of the index; gives its port and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(BIN / "tridex"), "serve", f"i={index}", "--port", str(port), "--prewarm", *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None, "the server ended"
            try:
                if b"200 OK" in asyncio.run(ask(port, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"))[:20]:
                    break
            except OSError:
                pass
            time.sleep(0.2)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


async def ask(port: int, message: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await exchange(reader, writer, message)
    finally:
        writer.close()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes) -> bytes:
    """One request and its answer on a connection that stays open."""
    writer.write(message)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
    return head + await reader.readexactly(length)


def request(query: str, options: dict[str, Any]) -> bytes:
    body = json.dumps({"query": query, **options}).encode()
    head = (
        f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    return head.encode() + b"\r\n\r\n" + body


async def client(
    port: int, messages: list[bytes], first: int, until: float, times: list[float], errors: list[str]
) -> None:
    """Asks one query after the other until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    i = first
    while time.perf_counter() < until:
        begun = time.perf_counter()
        try:
            answer = await exchange(reader, writer, messages[i % len(messages)])
            if not answer.startswith(b"HTTP/1.1 200"):
                errors.append(answer[:300].decode(errors="replace"))
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        except (OSError, asyncio.IncompleteReadError) as error:
            errors.append(repr(error))
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        times.append(time.perf_counter() - begun)
        i += 1
    writer.close()


async def load(port: int, messages: list[bytes], clients: int, seconds: float) -> tuple[list[float], list[str]]:
    times: list[float] = []
    errors: list[str] = []
    until = time.perf_counter() + seconds
    step = len(messages) // clients
    await asyncio.gather(*(client(port, messages, n * step, until, times, errors) for n in range(clients)))
    return times, errors


def quantiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "p50_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
    }


def in_process(index: str, queries: list[str], seconds: float, options: dict[str, Any]) -> list[float]:
    """`Index.search` in this process, one query after the other."""
    from pipelines.retrieval import open_index

    opened = open_index(index)
    for query in queries[:20]:
        opened.search(query, **options)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        opened.search(queries[len(times) % len(queries)], **options).to_dict()
        times.append(time.perf_counter() - begun)
    return times


def overhead(port: int, index: str, queries: list[str], options: dict[str, Any], count: int) -> dict[str, float]:
    """Medians of `Index.search` here and of the same query over HTTP, in turn: what disturbs one disturbs the other."""
    from pipelines.retrieval import open_index

    opened = open_index(index)
    for query in queries[:20]:
        opened.search(query, **options)
    here: list[float] = []
    there: list[float] = []

    async def run() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        for i in range(count):
            query = queries[i % len(queries)]
            begun = time.perf_counter()
            opened.search(query, **options).to_dict()
            middle = time.perf_counter()
            await exchange(reader, writer, request(query, options))
            here.append(middle - begun)
            there.append(time.perf_counter() - middle)
        writer.close()

    asyncio.run(run())
    differences = [1000 * (t - h) for t, h in zip(there, here, strict=True)]
    return {
        "search_p50_ms": 1000 * statistics.median(here),
        "http_p50_ms": 1000 * statistics.median(there),
        "median_difference_ms": statistics.median(differences),
    }


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, on all cores."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> dict[str, float]:
    """Resident megabytes of a process: all, and those that no file backs."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE))
    return {"rss_mb": int(kilobytes["VmRSS"]) / 1024, "anonymous_mb": int(kilobytes["RssAnon"]) / 1024}


def served_version(port: int) -> int:
    """The version of the index that answers."""
    answer = asyncio.run(ask(port, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    return int(json.loads(answer.partition(b"\r\n\r\n")[2])["versions"]["i"])


def soak(port: int, pid: int, messages: list[bytes], minutes: float) -> None:
    for minute in range(max(1, round(minutes))):
        times, errors = asyncio.run(load(port, messages, 8, 60))
        row = {
            "minute": minute + 1,
            "requests": len(times),
            "errors": len(errors),
            "version": served_version(port),
            **memory(pid),
            **quantiles(times),
        }
        print(json.dumps(row | ({"first_error": errors[0]} if errors else {})), flush=True)


@contextmanager
def builds(index: str, inputs: list[str]) -> Iterator[None]:
    """Builds into the index from each input in turn, until the block ends; prints how many builds failed."""
    ended = threading.Event()
    exits: list[int] = []

    def build() -> None:
        for source in itertools.cycle(inputs):
            if ended.is_set():
                return
            command = [str(BIN / "tridex"), "build", "--input", source, "--index", index]
            done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
            exits.append(done.returncode)
            if done.returncode:
                print(json.dumps({"what": "build failed", "message": done.stderr[-500:]}), flush=True)

    thread = threading.Thread(target=build)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        print(json.dumps({"what": "builds", "ended": len(exits), "failed": sum(map(bool, exits))}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--soak", type=float, default=0)
    parser.add_argument("--build", action="append", default=[], help="input of builds into the index, beside the soak")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON of search options")
    given = parser.parse_args()
    queries = queries_of(given.index)
    messages = [request(query, given.options) for query in queries]
    if given.seconds:
        used = cpu_seconds(os.getpid())
        alone = in_process(given.index, queries, given.seconds, given.options)
        report("Index.search", alone, [], given.seconds, cpu_seconds(os.getpid()) - used)
    with server(given.index) as (port, pid):
        asyncio.run(load(port, messages, 4, 3))
        if given.seconds:
            measure_load(port, pid, given.index, queries, given)
        if given.soak:
            with builds(given.index, given.build):
                soak(port, pid, messages, given.soak)


def measure_load(port: int, pid: int, index: str, queries: list[str], given: argparse.Namespace) -> None:
    """Prints rates and latencies at 1, 8, 32 and again 1 client, and what HTTP adds to `Index.search`."""
    messages = [request(query, given.options) for query in queries]
    for clients in (1, 8, 32, 1):
        used = cpu_seconds(pid)
        times, errors = asyncio.run(load(port, messages, clients, given.seconds))
        report(f"{clients} clients", times, errors, given.seconds, cpu_seconds(pid) - used)
    print(json.dumps({"what": "in turn", **overhead(port, index, queries, given.options, 300)}), flush=True)


def report(what: str, times: list[float], errors: list[str], seconds: float, cpu: float) -> None:
    """One line: rate, errors, latency, and processor time per request, which other programs disturb least."""
    row = {"what": what, "per_second": len(times) / seconds, "errors": len(errors), **quantiles(times)}
    print(json.dumps(row | {"cpu_ms": 1000 * cpu / len(times)}), flush=True)


if __name__ == "__main__":
    main()
