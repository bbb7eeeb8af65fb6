"""Serves an index over MCP, read-only: tools to search, explain, get a document and report the index's status.

Resources, a prompt and completions are in `mcp_resources`.

A tool's arguments are the body of the HTTP request of the same name, so one model defines a search's options.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from pipelines.serving import schemas
from pipelines.serving.answering import Service
from pipelines.serving.bodies import Json
from pipelines.serving.errors import ApiError, as_api_error, invalid_request
from pipelines.serving.keys import Key
from pipelines.serving.mcp_resources import McpResources
from pipelines.serving.routes_search import described

INSTRUCTIONS = (
    "Searches an index of documents by meaning and by words. Call search first; every hit names its chunk_id, its "
    "source and each channel's score. get_document gives the whole document of a hit, explain says why it was found, "
    "index_status lists the indexes and the columns that a filter (`where`, a SQL condition) may name."
)


class DocumentArguments(schemas.Body):
    id: schemas.Text = Field(description="A document's or a chunk's id, as a hit names it.")
    index: str | None = Field(None, description="Name or alias of an index; by default the first one.")


class NoArguments(schemas.Body):
    pass


async def _search(service: Service, key: Key, given: Any) -> dict[str, Any]:
    view, results = await service.search(key, given.index, given.queries, given, given.normalised)
    return {"index": view.name, "version": view.index.version, "results": results}


async def _explain(service: Service, key: Key, given: Any) -> dict[str, Any]:
    view, explanation = await service.explain(key, given.index, given.query, given.id, given)
    return {"index": view.name, "version": view.index.version, "explanation": explanation.to_dict()}


async def _get_document(service: Service, key: Key, given: Any) -> dict[str, Any]:
    service.check_text(given.id, "id")
    view, found = await service.document(key, given.index, given.id)
    return {"index": view.name, "version": view.index.version, "document": found}


async def _index_status(service: Service, key: Key, given: Any) -> dict[str, Any]:
    return {"indexes": await service.on_thread(lambda: list(described(service, key)))}


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """Describes one MCP tool: its description, its arguments and the function that it runs."""

    title: str
    description: str
    arguments: type[BaseModel]
    run: Callable[[Service, Key, Any], Awaitable[dict[str, Any]]]


TOOLS: Mapping[str, ToolSpec] = {
    "search": ToolSpec("Search", "Find the best passages for a query, or for several.", schemas.SearchBody, _search),
    "explain": ToolSpec(
        "Explain a hit",
        "Say why a passage has its score for a query: each channel's part, words in common, tokens matched.",
        schemas.ExplainBody,
        _explain,
    ),
    "get_document": ToolSpec("Get a document", "Give a document with all its text.", DocumentArguments, _get_document),
    "index_status": ToolSpec(
        "Index status", "List the indexes: rows, version, model, channels, columns.", NoArguments, _index_status
    ),
}


def make_server(service: Service, default_key: Key | None = None) -> Server[Any]:
    """Builds an MCP server over a service. default_key: the key whose rights apply to calls without HTTP."""

    def key_of(ctx: Any) -> Key:
        key: Key | None = ctx.request.state.key if isinstance(ctx.request, Request) else default_key
        assert key is not None, "the guard lets nobody in without a key"
        return key

    async def list_tools(_ctx: Any, _params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_described(name, tool) for name, tool in TOOLS.items()])

    async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            answer = await _call(service, key_of(ctx), params.name, params.arguments or {})
        except Exception as error:
            refused = as_api_error(error)
            return types.CallToolResult(content=[types.TextContent(text=refused.detail)], is_error=True)
        plain = json.loads(bytes(Json(answer).body))
        text = json.dumps(plain, ensure_ascii=False)
        return types.CallToolResult(content=[types.TextContent(text=text)], structured_content=plain)

    resources = McpResources(service, key_of)
    return Server(
        "tridex",
        version="1",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=resources.list_resources,
        on_list_resource_templates=resources.list_templates,
        on_read_resource=resources.read,
        on_list_prompts=resources.list_prompts,
        on_get_prompt=resources.get_prompt,
        on_completion=resources.complete,
    )


def _described(name: str, tool: ToolSpec) -> types.Tool:
    annotations = types.ToolAnnotations(
        read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
    )
    return types.Tool(
        name=name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.arguments.model_json_schema(),
        annotations=annotations,
    )


async def _call(service: Service, key: Key, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    tool = TOOLS.get(name)
    if tool is None:
        raise ApiError(404, f"there is no tool {name!r}; there are {', '.join(TOOLS)}")
    if not key.may("search"):
        raise ApiError(403, f"key {key.name!r} has no scope search")
    try:
        given = tool.arguments.model_validate(arguments)
    except ValidationError as error:
        raise invalid_request(error.errors(), tool.arguments, arguments) from error
    async with service.admitted():
        return await tool.run(service, key, given)


class McpEndpoint:
    """Handles `/mcp` statelessly: one response per request, so that any replica can take any request.

    server: what answers; None for the tools, resources and prompt of the service. session_options: further arguments of
    the session manager, for a server that does keep sessions.
    """

    def __init__(self, service: Service, server: Server[Any] | None = None, **session_options: Any) -> None:
        self.service = service
        self.server = make_server(service) if server is None else server
        self.session_options = {"json_response": True, "stateless": True, **session_options}
        self.manager: StreamableHTTPSessionManager | None = None

    def start(self) -> StreamableHTTPSessionManager:
        """Creates the session manager, which runs as long as the application does."""
        limit = self.service.limits.body_bytes
        self.manager = StreamableHTTPSessionManager(self.server, max_request_body_size=limit, **self.session_options)
        return self.manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.manager is not None, "the application has started"
        await self.manager.handle_request(scope, receive, send)


async def serve_stdio(service: Service, key: Key) -> None:
    """Serves one client over standard input and output until it closes them."""
    server = make_server(service, key)
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())
