"""Defines commands that write files for other programs: an index as Parquet, settings as YAML or JSON Schema."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.app import ConfigFile, Index, IndexUri, Input, Json, Set, app, build_config, print_json
from pipelines.config import BuildConfig, InvalidRequest, expand_path


@app.command()
def export(
    index: Index,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write, new or empty.", callback=expand_path)
    ],
    to: Annotated[str, typer.Option(help="Format of the files: parquet.")] = "parquet",
    as_json: Json = False,
) -> None:
    """Write an index's table as Parquet files, bit for bit."""
    if to != "parquet":
        raise InvalidRequest(f"--to: {to!r} is unknown; there is parquet; docs/guides/export.md has others")
    from pipelines.integrations.export import export_parquet

    done = export_parquet(index, output)
    print_json(asdict(done)) if as_json else typer.echo(done.text(), err=True)


@app.command()
def config(
    file: ConfigFile = None,
    input_paths: Input = None,
    index: IndexUri = None,
    overrides: Set = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of job files instead.")] = False,
    as_json: Json = False,
) -> None:
    """Check a job's settings and print them with all defaults. Secrets stay hidden."""
    if schema:
        print_json(BuildConfig.model_json_schema())
        return
    settings = build_config(file, input_paths, index, overrides).model_dump(mode="json")
    if as_json:
        print_json(settings)
        return
    import yaml

    typer.echo(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip())
