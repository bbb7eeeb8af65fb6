"""The `mcp` package's own client reads the index over HTTP and on stdio; MCP's conformance suite finds no fault."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import BIN, ROOT, Server, wait_until_ready

mcp = pytest.importorskip("mcp", reason="outside client absent; `make test-clients` installs it")


async def use(client: Any) -> None:
    """What an agent does: list the tools, search, open a hit, ask why, and make mistakes."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"search", "explain", "get_document", "index_status"}
    assert all(tool.annotations.read_only_hint for tool in tools.values())
    found = await client.call_tool("search", {"query": "who writes dirty pages?", "k": 3})
    assert not found.is_error
    assert json.loads(found.content[0].text) == found.structured_content
    hits = found.structured_content["results"][0]["hits"]
    assert len(hits) == 3
    asked = {"query": "who writes dirty pages?", "id": hits[0]["chunk_id"]}
    told = (await client.call_tool("explain", asked)).structured_content["explanation"]
    assert told["score"] == pytest.approx(hits[0]["score"], abs=1e-6)
    document = (await client.call_tool("get_document", {"id": hits[0]["doc_id"]})).structured_content["document"]
    assert document["chunks"][0]["text"] == hits[0]["text"]
    status = (await client.call_tool("index_status", {})).structured_content["indexes"]
    assert status[0]["rows"] == 151
    for name, arguments, message in [
        ("search", {"query": "x", "kk": 3}, "kk"),
        ("search", {"query": "x", "where": "nothing = 1"}, "where"),
        ("get_document", {"id": "no such"}, "no document"),
        ("upsert", {}, "no tool"),
    ]:
        wrong = await client.call_tool(name, arguments)
        assert wrong.is_error
        assert message in wrong.content[0].text


def test_over_http(server: Server) -> None:
    async def run() -> None:
        async with mcp.Client(f"{server.url}/mcp") as client:
            await use(client)

    asyncio.run(run())


def test_on_stdio(server: Server) -> None:
    async def run() -> None:
        command = mcp.StdioServerParameters(
            command=str(BIN / "tridex"),
            args=["mcp", str(server.index)],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            cwd=str(ROOT),
        )
        async with mcp.Client(command) as client:
            await use(client)

    asyncio.run(run())


def run_suite(url: str, folder: Path, *options: str) -> str:
    """Runs MCP's own suite against a server, which must pass, and returns its output."""
    modules = ROOT / ".venv-clients" / "node_modules"
    suite = modules / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
    if not suite.exists():
        pytest.skip("MCP's conformance suite is absent; `make test-clients` installs it where there is npm")
    node = shutil.which("node", path=str(modules / ".bin")) or "node"
    command = [node, str(suite), "server", "--url", f"{url}/mcp", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "dns-rebinding-protection: 2 passed" in done.stdout
    return done.stdout


def test_conformance_suite(server: Server, tmp_path: Path) -> None:
    """The baseline lists, with reasons, what this server does not offer, and fails where an entry would pass."""
    run_suite(server.url, tmp_path, "--expected-failures", str(ROOT / "tests" / "clients" / "conformance-baseline.yml"))


@pytest.fixture
def suite_server(server: Server, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "suite.log"
    command = [str(BIN / "python"), "-m", "tests.clients.suite_server", str(server.index), str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stderr=output, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        yield wait_until_ready(process, log, f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_conformance_of_transport_and_sessions(suite_server: str, tmp_path: Path) -> None:
    """Every scenario, none left out: the suite's tools behind our application, with sessions and event streams."""
    output = run_suite(suite_server, tmp_path)
    assert "server-sse-multiple-streams" in output


def test_resources_and_prompt_of_an_index(server: Server) -> None:
    async def run() -> None:
        async with mcp.Client(f"{server.url}/mcp") as client:
            (index,) = (await client.list_resources()).resources
            described = json.loads((await client.read_resource(index.uri)).contents[0].text)
            assert (described["name"], described["rows"]) == ("words", 151)
            (template,) = (await client.list_resource_templates()).resource_templates
            uri = template.uri_template.replace("{index}", "words").replace("{id}", "hostile%2F%3Cb%3Eid%3C%2Fb%3E")
            document = json.loads((await client.read_resource(uri)).contents[0].text)["document"]
            assert document["doc_id"] == "hostile/<b>id</b>"
            (prompt,) = (await client.list_prompts()).prompts
            filled = await client.get_prompt(prompt.name, {"question": "who writes?"})
            assert filled.messages[0].content.text.endswith("Question: who writes?")
            for wrong, message in [("tridex://indexes/nothing", "unknown"), ("file:///etc/passwd", "no resource")]:
                with pytest.raises(Exception, match=message):
                    await client.read_resource(wrong)

    asyncio.run(run())
