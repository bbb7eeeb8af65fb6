"""The `tridex` command: one thin function for each verb; the work is in the modules that it imports when it is called.

Late imports keep `tridex --help` under a second (torch and Ray take several). With `--json` a command prints exactly
one JSON document to stdout; everything else goes to stderr. Exit status: 0 done, 1 the work failed, 2 the request was
wrong.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipelines.config import BuildConfig, ConfigError, load_config


class _Group(TyperGroup):
    """Turns a wrong request into one message and exit status 2; a real failure keeps its traceback and status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            typer.echo(f"tridex: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            typer.echo("tridex: stopped; run the same command again to go on", err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Embed a corpus of any size with BGE models on Ray, and search it with everything those models give.",
)

ConfigFile = Annotated[Path | None, typer.Argument(help="YAML file; without one the defaults are used.")]
Input = Annotated[list[str] | None, typer.Option("--input", help="File, folder, glob or URI; may be repeated.")]
IndexUri = Annotated[str | None, typer.Option("--index", help="Folder or URI of the index.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY.PATH=VALUE over the config; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Index = Annotated[str, typer.Argument(help="Folder or URI of an index.")]


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def _required(value: str | None, option: str) -> str:
    if value is None:
        raise ConfigError(f"{option}: is needed here")
    return value


def _config(path: Path | None, inputs: list[str] | None, index: str | None, overrides: list[str] | None) -> BuildConfig:
    """Options over the file over the defaults."""
    sections = [f"input.paths={json.dumps(inputs)}"] if inputs else []
    sections += [f"index.uri={json.dumps(index)}"] if index else []
    return load_config(path, [*sections, *(overrides or [])])


@app.command()
def build(
    config: ConfigFile = None,
    input_paths: Input = None,
    index: IndexUri = None,
    overrides: Set = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove documents that are gone from the input.")] = False,
    as_json: Json = False,
) -> None:
    """Build an index, or bring it up to date: only new and changed documents are embedded."""
    extra = ["job.prune=true"] if prune else []
    job = _config(config, input_paths, index, [*(overrides or []), *extra])
    from pipelines.build import build_index

    summary = build_index(job)
    _print_json(summary.to_dict()) if as_json else typer.echo(summary.text(), err=True)


@app.command()
def retry(
    config: ConfigFile = None,
    input_paths: Input = None,
    index: IndexUri = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Try the rows in quarantine again, as their files are now."""
    job = _config(config, input_paths, index, overrides)
    from pipelines.build import retry as run

    summary = run(job)
    if as_json:
        _print_json({} if summary is None else summary.to_dict())
    else:
        typer.echo("the quarantine is empty" if summary is None else summary.text(), err=True)


@app.command()
def plan(
    config: ConfigFile = None,
    input_paths: Input = None,
    index: IndexUri = None,
    overrides: Set = None,
    tokens_per_second: Annotated[float | None, typer.Option(help="Of one actor; measured here if not given.")] = None,
    price: Annotated[float | None, typer.Option(help="Of the whole pool, an hour.")] = None,
    actors: Annotated[int | None, typer.Option(help="In each pool; what fits this machine if not given.")] = None,
    as_json: Json = False,
) -> None:
    """What a build will take: documents, tokens, truncation, bytes, hours, cost; and what will hurt."""
    job = _config(config, input_paths, index, overrides)
    from pipelines.plan import Pool, make_plan

    made = make_plan(job, Pool(tokens_per_second, price, actors))
    _print_json(made.to_dict()) if as_json else typer.echo(made.text())


@app.command()
def submit(
    config: ConfigFile = None,
    input_paths: Input = None,
    index: IndexUri = None,
    overrides: Set = None,
    address: Annotated[str | None, typer.Option(help="http://HOST:8265 of the cluster's dashboard.")] = None,
    job_id: Annotated[str | None, typer.Option("--job", help="Of this job; the same again goes on.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the log.")] = False,
    state: Annotated[bool, typer.Option("--status", help="Only say how the job stands.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the job; what it has finished is committed.")] = False,
    as_json: Json = False,
) -> None:
    """Run a build on a Ray cluster through Ray Jobs; with --status or --stop, look after one that was started."""
    from pipelines.submit import job_status, stop_job, submit_job

    if state or stop:
        attempt = (stop_job if stop else job_status)(_required(job_id, "--job"), address)
    else:
        job = _config(config, input_paths, index, overrides)
        attempt = submit_job(job, address=address, job_id=job_id, detach=detach)
    _print_json(attempt.to_dict()) if as_json else typer.echo(attempt.text(), err=True)
    if attempt.status == "FAILED":
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the corpus and the index are written.")] = Path("demo"),
) -> None:
    """Build an index from the documentation of Python's standard library and answer three questions."""
    from pipelines.build import build_index
    from pipelines.demo import QUESTIONS, write_corpus
    from pipelines.retrieval import open_index

    shutil.rmtree(folder, ignore_errors=True)
    written = write_corpus(folder / "corpus")
    typer.echo(f"{written:,} passages written to {folder / 'corpus'}", err=True)
    config = _config(None, [str(folder / "corpus" / "*.parquet")], str(folder / "index"), None)
    typer.echo(build_index(config).text(), err=True)
    index = open_index(str(folder / "index"))
    for question in QUESTIONS:
        typer.echo(f"\n? {question}\n{index.search(question, k=3)}")


@app.command()
def status(index: Index, as_json: Json = False) -> None:
    """What is in an index: rows, outputs, model, quarantine, coverage of its search indexes, last job."""
    from pipelines.store.status import read_status

    facts = read_status(index)
    _print_json(facts.to_dict()) if as_json else typer.echo(facts.text())


@app.command()
def optimize(index: Index, as_json: Json = False) -> None:
    """Join small fragments, bring the search indexes up to date, remove what nothing refers to any more."""
    from pipelines.store.maintain import optimize as run

    done = run(index)
    _print_json(done.to_dict()) if as_json else typer.echo(done.text(), err=True)


@app.command()
def search(
    index: Index,
    query: Annotated[list[str], typer.Argument(help="One query or several.")],
    k: Annotated[int, typer.Option("-k", help="Hits for each query.")] = 10,
    mode: Annotated[str, typer.Option(help="hybrid, dense, sparse, colbert or bm25.")] = "hybrid",
    where: Annotated[str | None, typer.Option(help="SQL filter over the index's columns.")] = None,
    rerank: Annotated[str | None, typer.Option(help="A reranker for the second stage.")] = None,
    as_json: Json = False,
) -> None:
    """Search an index; every hit shows each channel's score."""
    from pipelines.retrieval import open_index

    results = open_index(index).search(query, k=k, mode=mode, where=where, rerank=rerank)
    if as_json:
        _print_json([hits.to_dict() for hits in results])
        return
    for text, hits in zip(query, results, strict=True):
        typer.echo(f"? {text}\n{hits}\n")


Queries = Annotated[Path, typer.Option(help="JSON Lines with _id and text, or id<TAB>text.")]
Qrels = Annotated[Path, typer.Option(help="BEIR's three columns or TREC's four.")]
SearchFiles = Annotated[list[Path] | None, typer.Option("--search", help="YAML of `tridex tune`; may be repeated.")]


@app.command()
def evaluate(
    index: Index,
    queries: Queries,
    qrels: Qrels,
    search_configs: SearchFiles = None,
    rerank: Annotated[list[str] | None, typer.Option(help="Rerankers to measure as well.")] = None,
    candidates: Annotated[int, typer.Option(help="Rows of each channel that enter the union.")] = 200,
    runs: Annotated[Path | None, typer.Option(help="Folder for TREC run files.")] = None,
    as_json: Json = False,
) -> None:
    """nDCG@10, recall@100, MRR@10 and MAP of each channel, fusion and reranker, each tested against BM25."""
    from pipelines.config import read_search_config
    from pipelines.evaluation import evaluate as run
    from pipelines.evaluation import read_qrels, read_queries
    from pipelines.evaluation.report import rules_of
    from pipelines.retrieval import open_index
    from pipelines.retrieval.rerank import as_reranker

    asked, judged, opened = read_queries(queries), read_qrels(qrels), open_index(index)
    rules = rules_of(opened, {path.stem: read_search_config(path) for path in search_configs or []})
    models = {name: as_reranker(name, tuple(opened.channels)) for name in rerank or []}
    result = run(opened, asked, judged, rules=rules, rerankers=models, candidates=candidates)
    if runs is not None:
        result.write_runs(runs)
    _print_json(result.to_dict()) if as_json else typer.echo(result.text())


@app.command()
def tune(
    index: Index,
    queries: Queries,
    qrels: Qrels,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Search config to write.")] = None,
    folds: Annotated[int, typer.Option(help="Of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
    as_json: Json = False,
) -> None:
    """Choose fusion weights on judged queries; says so where the hybrid does not beat its best channel."""
    from pipelines.evaluation import read_qrels, read_queries
    from pipelines.evaluation import tune as run
    from pipelines.retrieval import open_index

    result = run(open_index(index), read_queries(queries), read_qrels(qrels), folds=folds, seed=seed)
    if output is not None:
        result.write(output)
    _print_json(result.to_dict()) if as_json else typer.echo(result.text())


def main() -> None:
    """Entry point of the console script."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal in the C locale
    app()
