"""Serves MCP resources, a prompt and completions over the served indexes: what an agent may attach without a tool call.

Indexes are listed; documents are reached by a template, since a list of them has no end. A part of an address is
percent-encoded, so that ids with slashes need no rule of their own. Like the tools, all of it is read-only and limited
to the rows of the request's key, and none of it needs a session.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import mcp_types as types
from mcp.shared.exceptions import MCPError

from pipelines.serving.answering import Service
from pipelines.serving.bodies import Json
from pipelines.serving.errors import ApiError, as_api_error
from pipelines.serving.keys import Key
from pipelines.serving.routes_search import described, description

PREFIX = "tridex://indexes/"
DOCUMENTS = "/documents/"
DOCUMENT_TEMPLATE = PREFIX + "{index}" + DOCUMENTS + "{id}"
JSON_TYPE = "application/json"
ANSWER = "answer_from_documents"
ANSWER_TEXT = (
    "Answer the question below from the documents of the index alone. Call `search` with the question, and again with "
    "other words if the hits do not answer it; read the whole document with `get_document` where a passage is not "
    "enough. Name the source and chunk_id of every passage that the answer rests on. If the documents do not answer "
    "the question, say so.\n\n"
)
KeyOf = Callable[[Any], Key]


class McpResources:
    """Handles MCP's requests about resources, prompts and completions. key_of: the key of a request's context."""

    def __init__(self, service: Service, key_of: KeyOf) -> None:
        self.service, self.key_of = service, key_of

    async def list_resources(self, ctx: Any, _params: Any) -> types.ListResourcesResult:
        """Lists the indexes."""
        key = self._searcher(ctx)
        found = await self.service.on_thread(lambda: list(described(self.service, key)))
        return types.ListResourcesResult(resources=[_index_resource(index) for index in found])

    async def list_templates(self, ctx: Any, _params: Any) -> types.ListResourceTemplatesResult:
        """Lists the one template: a document of an index."""
        self._searcher(ctx)
        template = types.ResourceTemplate(
            name="document",
            title="A document of an index",
            description="A document with all its text; index and id are percent-encoded.",
            uri_template=DOCUMENT_TEMPLATE,
            mime_type=JSON_TYPE,
        )
        return types.ListResourceTemplatesResult(resource_templates=[template])

    async def read(self, ctx: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        """Reads an index's description or a document."""
        key, uri = self._searcher(ctx), str(params.uri)
        try:
            if not uri.startswith(PREFIX):
                raise ApiError(404, f"there is no resource {uri!r}; resources begin with {PREFIX}")
            value = await self._value(key, uri.removeprefix(PREFIX))
        except Exception as error:
            refused = as_api_error(error)
            raise MCPError(types.INVALID_PARAMS, refused.detail, {"uri": uri}) from error
        text = bytes(Json(value).body).decode()
        contents = [types.TextResourceContents(uri=uri, mime_type=JSON_TYPE, text=text)]
        return types.ReadResourceResult(contents=list(contents))

    async def _value(self, key: Key, path: str) -> dict[str, Any]:
        name, sign, id = path.partition(DOCUMENTS)
        async with self.service.admitted():
            if sign:
                self.service.check_text(unquote(id), "id")
                view, found = await self.service.document(key, unquote(name), unquote(id))
                return {"index": view.name, "version": view.index.version, "document": found}
            view = self.service.catalog.view(unquote(name))
            return await self.service.on_thread(description, self.service, key, view)

    async def list_prompts(self, ctx: Any, _params: Any) -> types.ListPromptsResult:
        """Lists the one prompt: answer a question from the documents."""
        arguments = [
            types.PromptArgument(name="question", description="What is to be answered.", required=True),
            types.PromptArgument(name="index", description="Name or alias of an index; by default the first one."),
        ]
        prompt = types.Prompt(
            name=ANSWER,
            title="Answer from the documents",
            description="Answer a question from the documents of an index, with sources.",
            arguments=arguments,
        )
        return types.ListPromptsResult(prompts=[prompt])

    async def get_prompt(self, ctx: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        """Returns the prompt with its arguments filled in."""
        if params.name != ANSWER:
            raise MCPError(types.INVALID_PARAMS, f"there is no prompt {params.name!r}; there is {ANSWER}")
        given = params.arguments or {}
        if not given.get("question", "").strip():
            raise MCPError(types.INVALID_PARAMS, "question: is missing")
        index = f"Index: {json.dumps(given['index'])}\n" if given.get("index") else ""
        text = types.TextContent(text=f"{ANSWER_TEXT}{index}Question: {given['question']}")
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=text)])

    async def complete(self, ctx: Any, params: types.CompleteRequestParams) -> types.CompleteResult:
        """Completes the name of an index; no other argument has values that could be listed."""
        values: list[str] = []
        if params.argument.name == "index":
            self._searcher(ctx)
            known = [*(view.name for view in self.service.catalog.views()), *self.service.catalog.aliases]
            values = sorted({name for name in known if name.startswith(params.argument.value)})
        return types.CompleteResult(
            completion=types.Completion(values=values[:100], total=len(values), has_more=len(values) > 100)
        )

    def _searcher(self, ctx: Any) -> Key:
        """Returns the request's key; an MCP error if it may not search."""
        key = self.key_of(ctx)
        if not key.may("search"):
            raise MCPError(types.INVALID_REQUEST, f"key {key.name!r} has no scope search")
        return key


def _index_resource(index: dict[str, Any]) -> types.Resource:
    return types.Resource(
        uri=PREFIX + quote(index["name"], safe=""),
        name=index["name"],
        description=f"{index['rows']} rows at version {index['version']}, embedded by {index['model']}",
        mime_type=JSON_TYPE,
    )
