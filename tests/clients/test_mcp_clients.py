"""The `mcp` package's own client reads the index over HTTP and on stdio; MCP's conformance suite finds no fault."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import BIN, ROOT, Server

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


def test_conformance_suite(server: Server, tmp_path: Path) -> None:
    """MCP's own suite; its baseline lists what this server does not offer, and fails where an entry would pass."""
    modules = ROOT / ".venv-clients" / "node_modules"
    suite = modules / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
    if not suite.exists():
        pytest.skip("MCP's conformance suite is absent; `make test-clients` installs it where there is npm")
    node = shutil.which("node", path=str(modules / ".bin")) or "node"
    baseline = ROOT / "tests" / "clients" / "conformance-baseline.yml"
    command = [node, str(suite), "server", "--url", f"{server.url}/mcp", "--expected-failures", str(baseline)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "dns-rebinding-protection: 2 passed" in done.stdout
