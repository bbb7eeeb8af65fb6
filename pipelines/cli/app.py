"""Defines the `tridex` application, its global options and its error handling; commands are in the other modules.

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

from actors.extras import MissingExtraError
from actors.output_paths import OutputExists
from pipelines.cli.failures import describe_failure, is_closed_pipe
from pipelines.config import BuildConfig, ConfigError, WorkFailed, expand_path, load_config
from pipelines.config.plain_json import plain_json

CONFIG_SUFFIXES = (".yaml", ".yml")
SECTIONS = {
    "jobs": "Build and maintain an index",
    "searching": "Search and evaluate",
    "serving": "Serve",
    "models": "Models",
    "exports": "Settings and export",
}
"""Headings of `tridex --help`, by the module of this package that defines the commands below them."""
INTERRUPTED = 130
"""Exit status of a command that Ctrl-C or SIGTERM ended: what shells expect of SIGINT."""


class _Group(TyperGroup):
    """Lists commands by section, and turns errors into one line and an exit status.

    A wrong request exits with 2, a failure of the machine, network or files with 1. Only an error that must be a fault
    of this program keeps its traceback (`failures`).
    """

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes one definition list per section, summaries aligned over all of them."""
        commands = [(name, command) for name, command in self.commands.items() if not command.hidden]
        width = max(len(name) for name, _ in commands)
        for module, heading in SECTIONS.items():
            rows = [
                (name.ljust(width), command.get_short_help_str(formatter.width - width - 6))
                for name, command in commands
                if command.callback is not None and command.callback.__module__.endswith(f".{module}")
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ConfigError, MissingExtraError, OutputExists) as error:
            typer.echo(f"tridex: {error}", err=True)
            raise typer.Exit(2) from error
        except WorkFailed as error:
            typer.echo(f"tridex: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            typer.echo("tridex: stopped; run the same command again to go on", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            line = None if is_closed_pipe(error) else describe_failure(error)
            if line is None:
                raise
            typer.echo(f"tridex: {line}", err=True)
            raise typer.Exit(1) from error


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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Takes the options that come before a command."""


ConfigFile = Annotated[
    list[Path] | None,
    typer.Argument(help="YAML file of the job; optional. After --input: more inputs."),
]
Input = Annotated[list[str] | None, typer.Option("--input", help="File, folder, glob or URI; may be repeated.")]
IndexUri = Annotated[str | None, typer.Option("--index", help="Folder or URI of the index.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY.PATH=VALUE over the config's; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")]
Index = Annotated[str, typer.Argument(help="Folder or URI of an index.")]
Queries = Annotated[
    Path, typer.Option(help="Queries: JSON Lines with _id and text, or id<TAB>text.", callback=expand_path)
]
Qrels = Annotated[
    Path, typer.Option(help="Relevance judgements: BEIR's three columns or TREC's four.", callback=expand_path)
]


def print_json(value: Any) -> None:
    """Prints one document to stdout as strict JSON: NaN is null."""
    typer.echo(json.dumps(plain_json(value), indent=2, ensure_ascii=False, allow_nan=False))


def build_config(
    arguments: list[Path] | None, inputs: list[str] | None, index: str | None, overrides: list[str] | None
) -> BuildConfig:
    """Merges options over the file over the defaults; arguments from a shell glob after `--input` are inputs."""
    path, inputs = split_arguments(arguments or [], inputs or [])
    sections = [f"input.paths={json.dumps(inputs)}"] if inputs else []
    sections += [f"index.uri={json.dumps(index)}"] if index else []
    return load_config(path, [*sections, *(overrides or [])])


def split_arguments(arguments: list[Path], inputs: list[str]) -> tuple[Path | None, list[str]]:
    """Separates the config file from the inputs: all arguments after an `--input` are inputs."""
    files = [path for path in arguments if path.suffix.lower() in CONFIG_SUFFIXES] if inputs else arguments
    if len(files) > 1:
        named = ", ".join(str(path) for path in files)
        raise ConfigError(f"expected one config file, got {named}; name inputs with --input")
    if files and (files[0].is_dir() or files[0].suffix.lower() not in CONFIG_SUFFIXES):
        raise ConfigError(f"{files[0]}: is not a config file (.yaml); name inputs with --input")
    return (files[0] if files else None), [*inputs, *(str(path) for path in arguments if path not in files)]


def required(value: str | None, option: str) -> str:
    """Returns the option's value; ConfigError if it is missing."""
    if value is None:
        raise ConfigError(f"{option}: is required here")
    return value
