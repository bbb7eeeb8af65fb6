"""Generates the reference pages from the code when the documentation is built; MkDocs calls `on_files`.

Commands come from typer, settings from pydantic, HTTP from OpenAPI, metrics and the on-disk format from where they are
defined, and the benchmark and change pages from the files in the repository. Nothing of it is written twice.
"""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def on_files(files: Any, config: Any) -> Any:
    """MkDocs hook: adds the generated pages to those in the folder."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Path below `docs/` and Markdown of every generated page."""
    return {
        "reference/cli.md": cli(),
        "reference/config.md": settings(),
        "reference/python.md": python(),
        "reference/frameworks.md": frameworks(),
        "reference/http.md": http(),
        "reference/metrics.md": metrics(),
        "reference/format.md": disk_format(),
        "benchmarks.md": copied("benchmarks/RESULTS.md"),
        "research-log.md": copied("benchmarks/RESEARCH_LOG.md"),
        "changelog.md": copied("CHANGELOG.md"),
    }


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    cells = [[c.replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cli() -> str:
    """Every command with its arguments and options."""
    parts = [
        "# Command line",
        "Reading commands take `--json`: one JSON document on stdout, everything else on stderr. Exit status 0: done; "
        "1: the work failed; 2: the request was wrong, and the message names the key or argument; 130: interrupted.",
    ]
    for name, command in commands().items():
        usage = " ".join([f"tridex {name}", *_usage(command)])
        parts += [f"## tridex {name}", _sentence(command.help or ""), f"```text\n{usage}\n```"]
        rows = [_parameter(p) for p in command.params if p.name != "help"]
        parts.append(table(["", "default", "meaning"], rows))
    return "\n\n".join(parts) + "\n"


def commands() -> dict[str, Any]:
    """The commands by name."""
    import typer

    from pipelines.cli import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def _usage(command: Any) -> list[str]:
    shown = []
    for p in command.params:
        if p.param_type_name == "argument":
            name = p.metavar or (p.name or "").upper()
            name = name + "..." if p.nargs == -1 and not name.endswith("...") else name
            shown.append(name if p.required else f"[{name}]")
        elif p.required:
            shown.append(f"{p.opts[0]} {(p.name or '').upper()}")
    return [*shown, "[OPTIONS]"]


def _parameter(p: Any) -> list[str]:
    names = (
        ", ".join(f"`{name}`" for name in p.opts) if p.param_type_name == "option" else f"`{(p.name or '').upper()}`"
    )
    default = "required" if p.required else _default(p.default)
    return [names, default, p.help or ""]


def _default(value: Any) -> str:
    if value is None or value is False or value == () or callable(value) or "UNSET" in repr(value).upper():
        return ""
    return f"`{value}`"


def settings() -> str:
    """Every key of a job file, of a search file and of a server."""
    from pipelines.config import BuildConfig, SearchOptions
    from pipelines.serving.settings import ServeConfig

    parts = [
        "# Settings",
        "A job is a YAML file over these defaults; `--set key.path=value` wins over the file. `tridex config FILE` "
        "checks a file and prints it with every default; `tridex config --schema` prints the JSON Schema. An "
        "unknown key is refused, with the nearest known one.",
        "## Job files",
        *_model(BuildConfig, ""),
        "## Search options",
        "The keywords of `Index.search`, the options of `tridex search`, the keys of a search file (`--search`, "
        "`tridex tune -o`) and of an HTTP request.",
        _fields(SearchOptions),
        "## Server",
        "`tridex serve --set KEY=VALUE`.",
        *_model(ServeConfig, ""),
    ]
    return "\n\n".join(parts) + "\n"


def _model(model: Any, path: str) -> Iterator[str]:
    """A model's own keys as a table, then each model within it under a heading."""
    if path:
        yield f"### {path}"
        if doc := _own_doc(model):
            yield doc
    yield _fields(model)
    for name, field in model.model_fields.items():
        if inner := model_within(field.annotation):
            inside = f"{path}.{name}" if path else name
            yield from _model(inner, inside + (".0" if "tuple" in str(field.annotation) else ""))


def _own_doc(model: Any) -> str:
    return " ".join((model.__dict__.get("__doc__") or "").split())


def model_within(annotation: Any) -> Any:
    """The pydantic model in an annotation such as `tuple[EmbedderConfig, ...]` or `PictureConfig | None`."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := model_within(part))), None)


def _fields(model: Any) -> str:
    rows = []
    for name, field in model.model_fields.items():
        inner = model_within(field.annotation)
        default = "required" if field.is_required() else ("see below" if inner else f"`{_shown(field.default)}`")
        rows.append([f"`{name}`", _type(field.annotation), default, field.description or ""])
    return table(["key", "type", "default", "meaning"], rows)


def _shown(value: Any) -> str:
    """A default as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "[]" if value == () else str(value)


def _type(annotation: Any) -> str:
    """A type as a reader of YAML names it."""
    from pydantic import SecretStr

    names = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "true or false",
        type(None): "null",
        SecretStr: "secret",
    }
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in names:
        return names[annotation]
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if origin is typing.Annotated:
        return _type(arguments[0])
    if arguments:
        return " or ".join(dict.fromkeys(_type(part) for part in arguments if "SkipValidation" not in str(part)))
    return "keys below" if model_within(annotation) else getattr(annotation, "__name__", str(annotation))


def python() -> str:
    """The public names, each where it is defined; mkdocstrings writes the signatures and docstrings."""
    import actors
    import pipelines

    parts = ["# Python", "`from tridex import ...` gives every name on this page."]
    for title, package in (("Indexes and jobs", pipelines), ("Models", actors)):
        parts.append(f"## {title}")
        names = sorted(package.__all__, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
        parts += [f"::: {package._HOMES[name]}.{name}{_without_keys(name)}" for name in names]
    return "\n\n".join(parts) + "\n"


FIRST = ("open_index", "Index", "Hits", "Hit", "load_config", "build_index", "submit_job", "FlagAutoModel", "FlagModel")
"""What a reader looks for first; the rest follows by name."""


def _without_keys(name: str) -> str:
    """Settings have a page of their own, so their classes are not listed key by key."""
    return "\n    options:\n      members: false" if name.endswith("Config") else ""


def frameworks() -> str:
    """The adapters' classes."""
    modules = ["langchain", "llamaindex", "haystack", "dspy", "mteb", "lancedb", "documents", "export"]
    parts = ["# Adapters", "Each needs the extra of its name; [how to use them](../guides/frameworks.md)."]
    parts += [
        f"## {name}\n\n::: pipelines.integrations.{name}\n    options:\n      heading_level: 3" for name in modules
    ]
    return "\n\n".join(parts) + "\n"


def openapi() -> dict[str, Any]:
    """The OpenAPI document of the server; no index is opened for it."""
    from fastapi import FastAPI

    from pipelines.serving import routes_documents, routes_health, routes_models, routes_search

    app = FastAPI(title="tridex", version="1")
    for routes in (routes_search, routes_documents, routes_models, routes_health):
        app.include_router(routes.router)
    return app.openapi()


def http() -> str:
    """Every path of the server with the fields of its request and answer."""
    document = openapi()
    schemas = document["components"]["schemas"]
    parts = [
        "# HTTP",
        "What `tridex serve` answers; [how to run it](../guides/serving.md). `/openapi.json` on a running server is "
        'the same as a document. Errors are JSON: `{"error": {"code", "message", "field"}}`.',
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += [f"## {method.upper()} {path}", _sentence(operation.get("description") or operation["summary"])]
            parts += list(_operation(operation, schemas))
    return "\n\n".join(parts) + "\n"


def _operation(operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    if operation.get("parameters"):
        rows = [[f"`{p['name']}`", p["in"], p.get("description", "")] for p in operation["parameters"]]
        yield table(["parameter", "in", "meaning"], rows)
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body and (fields := _schema_rows(body, schemas)):
        yield "Request:"
        yield table(["field", "type", "default", "meaning"], fields)
    for status, answer in operation["responses"].items():
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        rows = _schema_rows(schema, schemas) if status == "200" else []
        if rows:
            yield "Answer:"
            yield table(["field", "type", "default", "meaning"], rows)
    others = {status: a["description"] for status, a in operation["responses"].items() if status != "200"}
    if others:
        yield "Otherwise: " + ", ".join(f"{status} {text.rstrip('.').lower()}" for status, text in others.items()) + "."


def _schema_rows(schema: dict[str, Any], schemas: dict[str, Any]) -> list[list[str]]:
    found = schemas.get(schema.get("$ref", "").rsplit("/", 1)[-1], schema)
    required = found.get("required", [])
    return [
        [
            f"`{name}`",
            _json_type(field),
            "required" if name in required else f"`{_shown(field['default'])}`" if "default" in field else "",
            field.get("description", ""),
        ]
        for name, field in found.get("properties", {}).items()
    ]


def _json_type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return field["$ref"].rsplit("/", 1)[-1]
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if parts := field.get("anyOf") or field.get("allOf"):
        return " or ".join(dict.fromkeys(_json_type(part) for part in parts))
    if field.get("type") == "array":
        return f"list of {_json_type(field.get('items', {}))}"
    return str(field.get("type", "anything"))


def metrics() -> str:
    """What a job and a server count for Prometheus."""
    from pipelines.monitor.metrics import COUNTERS, SECONDS
    from pipelines.serving.metrics import Metrics

    jobs = [[f"`tridex_{name}`", "counter", text] for name, text in COUNTERS.items()]
    jobs += [[f"`tridex_{name}`", "histogram", text] for name, text in SECONDS.items()]
    server = [[f"`{m.name}`", m.type, m.documentation] for m in Metrics().registry.collect()]
    return "\n\n".join(
        [
            "# Metrics",
            "For Prometheus; [how to watch them](../operations.md#monitoring).",
            "## Jobs",
            "On each Ray node's metrics port, with the labels `tridex_job` and `embedder`.",
            table(["name", "kind", "meaning"], [*jobs, ["`tridex_padding_share`", "gauge", "Share of padding"]]),
            "## Server",
            "At `/metrics` of `tridex serve`.",
            table(["name", "kind", "meaning"], server),
        ]
    )


def disk_format() -> str:
    """The columns of the tables that an index consists of."""
    from pipelines.store.lease import _SCHEMA as LEASES
    from pipelines.store.schema import FORMAT_VERSION, quarantine_schema
    from pipelines.store.schema import SYSTEM_COLUMNS as SYSTEM

    quarantine = [[f"`{f.name}`", f"`{f.type}`"] for f in quarantine_schema()]
    leases = [[f"`{f.name}`", f"`{f.type}`"] for f in LEASES]
    return "\n\n".join(
        [
            "# On-disk format",
            f"An index is a folder (or prefix) of Lance tables, format version {FORMAT_VERSION}. What each column is "
            "for, and how the tables are written, is in [Architecture](../architecture.md).",
            "## documents.lance",
            "One row per chunk: " + ", ".join(f"`{name}`" for name in SYSTEM) + "; the metadata columns of the job; "
            "and for each embedder `NAME_dense`, `NAME_sparse` and `NAME_colbert`, as far as it has them. The schema "
            "metadata holds the index's identity under `tridex.identity`, as JSON.",
            "## quarantine.lance",
            table(["column", "type"], quarantine),
            "## leases.lance",
            table(["column", "type"], leases),
        ]
    )


def copied(path: str) -> str:
    """A file of the repository as a page; links to files that are no pages become plain text."""
    text = (ROOT / path).read_text(encoding="utf-8")
    known = {"RESULTS.md": "benchmarks.md", "RESEARCH_LOG.md": "research-log.md"}

    def link(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        name, _, anchor = target.partition("#")
        page = known.get(Path(name).name)
        if target.startswith(("http", "#")):
            return match[0]
        return f"[{words}]({page}{'#' + anchor if anchor else ''})" if page else words

    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", link, text)


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?")) else text + "."


if __name__ == "__main__":
    for name, text in pages().items():
        print(f"{name}: {len(text.splitlines())} lines")
