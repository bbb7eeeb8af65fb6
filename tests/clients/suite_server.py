"""Serves what MCP's conformance suite calls (its `test_*` tools, resources and prompts) through our application.

    python -m tests.clients.suite_server INDEX PORT

The suite judges transport and sessions by tools that no search server has. Here they stand behind the same application,
guard and `McpEndpoint` as our own tools, with sessions and event streams switched on, so that nothing of the suite has
to be left out. Names and texts are those that the suite's scenarios ask for.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.shared.exceptions import MCPError

from pipelines.serving.answering import Service
from pipelines.serving.app import create_app
from pipelines.serving.mcp_tools import McpEndpoint
from pipelines.serving.settings import ServeConfig

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
SILENCE = base64.b64encode(
    b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x40\x1f\x00\x00\x01\x00\x08\x00data"
    b"\x00\x00\x00\x00"
).decode()
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ADDRESS = {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}
SCHEMA_2020: dict[str, Any] = {
    "$schema": DIALECT,
    "type": "object",
    "$defs": {"address": ADDRESS},
    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
    "additionalProperties": False,
}
STATES = ["active", "inactive", "pending"]
DEFAULTS: dict[str, Any] = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": STATES, "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
TITLED = [{"const": "value1", "title": "First"}, {"const": "value2", "title": "Second"}]
ENUMS: dict[str, Any] = {
    "untitledSingle": {"type": "string", "enum": ["option1", "option2"]},
    "titledSingle": {"type": "string", "oneOf": TITLED},
    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["One", "Two"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": ["option1", "option2"]}},
    "titledMulti": {"type": "array", "items": {"anyOf": TITLED}},
}
Content = list[Any]
Tool = Callable[[Any, dict[str, Any]], Awaitable[Content]]


def text(value: str) -> types.TextContent:
    return types.TextContent(text=value)


def image() -> types.ImageContent:
    return types.ImageContent(data=PIXEL, mime_type="image/png")


def embedded(uri: str, value: str, mime_type: str = "text/plain") -> types.EmbeddedResource:
    return types.EmbeddedResource(resource=types.TextResourceContents(uri=uri, text=value, mime_type=mime_type))


def fixed(*content: Any) -> Tool:
    async def tool(_ctx: Any, _arguments: dict[str, Any]) -> Content:
        return list(content)

    return tool


async def log(ctx: Any, message: str) -> None:
    await ctx.session.send_log_message("info", message, related_request_id=ctx.request_id)


async def with_logging(ctx: Any, _arguments: dict[str, Any]) -> Content:
    for message in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await log(ctx, message)
        await asyncio.sleep(0.05)
    return [text("logged")]


async def with_progress(ctx: Any, _arguments: dict[str, Any]) -> Content:
    for done in (0, 50, 100):
        await ctx.session.report_progress(done, 100)
        await asyncio.sleep(0.05)
    return [text("done")]


async def sampling(ctx: Any, arguments: dict[str, Any]) -> Content:
    message = types.SamplingMessage(role="user", content=text(arguments["prompt"]))
    answer = await ctx.session.create_message([message], max_tokens=100, related_request_id=ctx.request_id)
    return [text(f"LLM response: {answer.content.text}")]


def eliciting(properties: dict[str, Any]) -> Tool:
    async def tool(ctx: Any, arguments: dict[str, Any]) -> Content:
        schema = {"type": "object", "properties": properties}
        message = arguments.get("message", "Please fill this in")
        answer = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
        return [text(f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content)}")]

    return tool


async def fails(_ctx: Any, _arguments: dict[str, Any]) -> Content:
    raise RuntimeError("This tool intentionally returns an error for testing")


async def reconnection(ctx: Any, _arguments: dict[str, Any]) -> Content:
    await ctx.close_sse_stream()
    await asyncio.sleep(0.2)
    return [text("Reconnection test completed")]


ONE_STRING: dict[str, Any] = {"type": "string"}
TOOLS: dict[str, Tool] = {
    "test_simple_text": fixed(text("This is a simple text response for testing.")),
    "test_image_content": fixed(image()),
    "test_audio_content": fixed(types.AudioContent(data=SILENCE, mime_type="audio/wav")),
    "test_embedded_resource": fixed(embedded("test://embedded-resource", "This is an embedded resource content.")),
    "test_multiple_content_types": fixed(
        text("Multiple content types test:"), image(), embedded("test://mixed", "{}", "application/json")
    ),
    "test_tool_with_logging": with_logging,
    "test_tool_with_progress": with_progress,
    "test_sampling": sampling,
    "test_elicitation": eliciting({"username": ONE_STRING, "email": ONE_STRING}),
    "test_elicitation_sep1034_defaults": eliciting(DEFAULTS),
    "test_elicitation_sep1330_enums": eliciting(ENUMS),
    "test_error_handling": fails,
    "test_reconnection": reconnection,
    "json_schema_2020_12_tool": fixed(text("accepted")),
}
PROMPTS: dict[str, tuple[str, ...]] = {
    "test_simple_prompt": (),
    "test_prompt_with_arguments": ("arg1", "arg2"),
    "test_prompt_with_embedded_resource": ("resourceUri",),
    "test_prompt_with_image": (),
}


async def list_tools(_ctx: Any, _params: Any) -> types.ListToolsResult:
    schemas = {"json_schema_2020_12_tool": SCHEMA_2020}
    return types.ListToolsResult(
        tools=[
            types.Tool(name=name, description=name, input_schema=schemas.get(name, {"type": "object"}))
            for name in TOOLS
        ]
    )


async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
    try:
        return types.CallToolResult(content=await TOOLS[params.name](ctx, params.arguments or {}))
    except Exception as error:
        return types.CallToolResult(content=[text(str(error))], is_error=True)


async def list_resources(_ctx: Any, _params: Any) -> types.ListResourcesResult:
    names = ("static-text", "static-binary", "watched-resource")
    found = [types.Resource(uri=f"test://{name}", name=name, description=name) for name in names]
    return types.ListResourcesResult(resources=found)


async def list_templates(_ctx: Any, _params: Any) -> types.ListResourceTemplatesResult:
    template = types.ResourceTemplate(name="template", uri_template="test://template/{id}/data")
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def read_resource(_ctx: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    uri = str(params.uri)
    content: types.TextResourceContents | types.BlobResourceContents
    if uri == "test://static-binary":
        content = types.BlobResourceContents(uri=uri, mime_type="image/png", blob=PIXEL)
    elif uri.startswith("test://template/"):
        id = uri.split("/")[3]
        content = types.TextResourceContents(uri=uri, mime_type="application/json", text=json.dumps({"id": id}))
    elif uri in ("test://static-text", "test://watched-resource"):
        content = types.TextResourceContents(uri=uri, mime_type="text/plain", text="a static text")
    else:
        raise MCPError(types.INVALID_PARAMS, f"no resource {uri}")
    return types.ReadResourceResult(contents=[content])


async def acknowledge(_ctx: Any, _params: Any) -> types.EmptyResult:
    return types.EmptyResult()


async def list_prompts(_ctx: Any, _params: Any) -> types.ListPromptsResult:
    prompts = [
        types.Prompt(
            name=name, description=name, arguments=[types.PromptArgument(name=a, required=True) for a in arguments]
        )
        for name, arguments in PROMPTS.items()
    ]
    return types.ListPromptsResult(prompts=prompts)


async def get_prompt(_ctx: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
    given = params.arguments or {}
    content: dict[str, Any] = {
        "test_simple_prompt": text("This is a simple prompt for testing."),
        "test_prompt_with_arguments": text(f"Prompt with arguments: {json.dumps(given)}"),
        "test_prompt_with_embedded_resource": embedded(given.get("resourceUri", ""), "Embedded resource content."),
        "test_prompt_with_image": image(),
    }
    message = types.PromptMessage(role="user", content=content[params.name])
    return types.GetPromptResult(messages=[message])


async def complete(_ctx: Any, _params: Any) -> types.CompleteResult:
    return types.CompleteResult(completion=types.Completion(values=[], total=0, has_more=False))


class MemoryEvents(EventStore):
    """Keeps the events of all streams, so that a client that comes back gets what it missed."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        stream = self.events[int(last_event_id) - 1][0]
        for number, (owner, message) in enumerate(self.events, start=1):
            if number > int(last_event_id) and owner == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


def suite_endpoint(service: Service) -> McpEndpoint:
    """Our endpoint around the suite's server, with sessions, event streams and replay."""
    server: Server[Any] = Server(
        "suite", version="1", on_list_tools=list_tools, on_call_tool=call_tool, on_list_resources=list_resources,
        on_list_resource_templates=list_templates, on_read_resource=read_resource, on_subscribe_resource=acknowledge,
        on_unsubscribe_resource=acknowledge, on_list_prompts=list_prompts, on_get_prompt=get_prompt,
        on_completion=complete, on_set_logging_level=acknowledge,
    )  # fmt: skip
    return McpEndpoint(
        service, server, json_response=False, stateless=False, event_store=MemoryEvents(), retry_interval=100
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # logging and sampling, which the suite still tests, are deprecated
    app = create_app(ServeConfig(indexes=(f"words={sys.argv[1]}",)), suite_endpoint)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
