"""The `tridex` command, its options and how it fails; the commands themselves are in the modules beside this one.

Late imports keep `tridex --help` under a second (torch and Ray take several). With `--json` a command prints exactly
one JSON document to stdout; everything else goes to stderr. Exit status: 0 done, 1 the work failed, 2 the request was
wrong, 130 interrupted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from actors.output_paths import OutputExists
from pipelines.config import BuildConfig, ConfigError, WorkFailed, load_config
from pipelines.config.plain_json import plain_json

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C or SIGTERM ended: what shells expect of SIGINT."""


class _Group(TyperGroup):
    """Turns a wrong request into one message and exit status 2, a failure that explains itself into one and status 1.

    Any other failure keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ConfigError, OutputExists) as error:
            typer.echo(f"tridex: {error}", err=True)
            raise typer.Exit(2) from error
        except WorkFailed as error:
            typer.echo(f"tridex: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            typer.echo("tridex: stopped; run the same command again to go on", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Embed a corpus of any size with BGE models on Ray, and search it with everything those models give.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from tridex import __version__

        typer.echo(f"tridex {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Takes the options that come before a command."""


ConfigFile = Annotated[Path | None, typer.Argument(help="YAML file; without one the defaults are used.")]
Input = Annotated[list[str] | None, typer.Option("--input", help="File, folder, glob or URI; may be repeated.")]
IndexUri = Annotated[str | None, typer.Option("--index", help="Folder or URI of the index.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY.PATH=VALUE over the config; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")]
Index = Annotated[str, typer.Argument(help="Folder or URI of an index.")]
Queries = Annotated[Path, typer.Option(help="JSON Lines with _id and text, or id<TAB>text.")]
Qrels = Annotated[Path, typer.Option(help="BEIR's three columns or TREC's four.")]


def print_json(value: Any) -> None:
    """Prints one document to stdout that any strict parser reads: NaN is null."""
    typer.echo(json.dumps(plain_json(value), indent=2, ensure_ascii=False, allow_nan=False))


def build_config(
    path: Path | None, inputs: list[str] | None, index: str | None, overrides: list[str] | None
) -> BuildConfig:
    """Options over the file over the defaults."""
    sections = [f"input.paths={json.dumps(inputs)}"] if inputs else []
    sections += [f"index.uri={json.dumps(index)}"] if index else []
    return load_config(path, [*sections, *(overrides or [])])


def required(value: str | None, option: str) -> str:
    """The option's value; ConfigError where it was left out."""
    if value is None:
        raise ConfigError(f"{option}: is needed here")
    return value
