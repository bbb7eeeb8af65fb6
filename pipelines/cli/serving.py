"""Defines commands that serve an index over HTTP, on Ray Serve, and over MCP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.extras import require_extra
from pipelines.cli.app import Index, Json, app, print_json
from pipelines.config import ConfigError, apply_override, expand_path, parse_override, validated

if TYPE_CHECKING:
    from pipelines.serving.settings import ServeConfig

Indexes = Annotated[list[str], typer.Argument(help="Folders or URIs of indexes, or NAME=URI.")]
Keys = Annotated[
    Path | None, typer.Option(help="YAML file of hashed keys; without it the server listens on loopback only.")
]
Aliases = Annotated[list[str] | None, typer.Option("--alias", help="NAME=INDEX or NAME=EMBEDDER; may be repeated.")]
AliasFile = Annotated[
    Path | None, typer.Option("--aliases", help="YAML file of aliases, reloaded when it changes.", callback=expand_path)
]
Rerankers = Annotated[
    list[str] | None, typer.Option("--reranker", help="Reranker that requests may name: MODEL or NAME=MODEL.")
]
ServeSet = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as limits.k=200; may be repeated.")]
Local = Annotated[
    Path | None,
    typer.Option(help="Folder that keeps local copies of the columns that scoring reads.", callback=expand_path),
]


@app.command()
def serve(
    indexes: Indexes,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    keys: Keys = None,
    any_host: Annotated[bool, typer.Option("--any-host", help="Listen on any address without a key file.")] = False,
    open_writes: Annotated[
        bool, typer.Option("--open-writes", help="Allow upserts and deletes without a key file.")
    ] = False,
    alias: Aliases = None,
    aliases: AliasFile = None,
    reranker: Rerankers = None,
    prewarm: Annotated[
        bool, typer.Option("--prewarm", help="Warm the models up and report readiness only then.")
    ] = False,
    refresh: Annotated[float, typer.Option(help="Seconds between checks for new versions.")] = 5,
    local: Local = None,
    overrides: ServeSet = None,
    ray: Annotated[bool, typer.Option("--ray", help="Serve by replicas on Ray Serve instead of one process.")] = False,
    replicas: Annotated[int, typer.Option(help="Replicas, with --ray.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="Address of a running Ray, with --ray; by default one is started here.")
    ] = None,
) -> None:
    """Serve indexes over HTTP: search, embeddings, reranking. MCP is at /mcp, a search page at /."""
    require_extra("serve-ray", "serving on Ray") if ray else require_extra("serve", "serving")
    config = serve_config(
        indexes, overrides, keys=keys, any_host=any_host, open_writes=open_writes,
        aliases=pairs(alias or [], "--alias"), aliases_file=aliases, rerankers=reranker or (), prewarm=prewarm,
        refresh_seconds=refresh, local=local,
    )  # fmt: skip
    if ray:
        from pipelines.serving.on_ray import serve_on_ray

        serve_on_ray(config, host, port, replicas, address)
        return
    from pipelines.serving.run import serve as run

    run(config, host, port)


@app.command()
def mcp(index: Index, overrides: ServeSet = None) -> None:
    """Serve an index to an agent over MCP. Reads standard input, writes standard output; read-only."""
    require_extra("serve", "serving")
    from pipelines.serving.run import serve_mcp

    serve_mcp(serve_config([index], overrides))


@app.command("serve-key")
def serve_key(
    name: Annotated[str, typer.Argument(help="Name of the key's owner.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="What the key allows: search, encode or write; may be repeated.")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--filter", help="SQL condition that every row shown to it meets.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create an API key and its entry for the key file. The key is printed once and stored nowhere."""
    import yaml

    from pipelines.serving.keys import SCOPES, new_key

    chosen = tuple(scope or ("search", "encode"))
    unknown = next((s for s in chosen if s not in SCOPES), None)
    if unknown is not None:
        raise ConfigError(f"--scope: {unknown!r} is unknown; there are {', '.join(SCOPES)}")
    token, key = new_key(name, chosen, where)  # type: ignore[arg-type]
    entry = key.model_dump(mode="json", exclude_none=True)
    if as_json:
        print_json({"key": token, "entry": entry})
        return
    typer.echo(
        f"{token}\n\n# into the file of --keys, below `keys:`\n{yaml.safe_dump([entry], sort_keys=False)}", nl=False
    )


def serve_config(indexes: list[str], overrides: list[str] | None, **given: Any) -> ServeConfig:
    """Builds the server's settings from options and overrides; ConfigError names the invalid key."""
    from pipelines.serving.settings import ServeConfig

    tree: dict[str, Any] = {"indexes": indexes, **given}
    for text in overrides or []:
        apply_override(tree, *parse_override(text))
    return validated(ServeConfig, tree)


def pairs(given: list[str], option: str) -> dict[str, str]:
    """Parses `NAME=VALUE` pairs; ConfigError quotes an invalid one."""
    found = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ConfigError(f"{option} {text!r}: expected NAME=VALUE")
        found[name] = value
    return found
