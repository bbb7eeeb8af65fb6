"""Defines commands that build and maintain an index."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.extras import require_extra
from actors.output_paths import refuse_folder
from pipelines.cli.app import ConfigFile, Index, IndexUri, Input, Json, Set, app, build_config, print_json, required
from pipelines.config import ConfigError, RayConfig, expand_path


@app.command()
def build(
    config: ConfigFile = None,
    input_paths: Input = None,
    index: IndexUri = None,
    overrides: Set = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove documents that are gone from the input.")] = False,
    drop_column: Annotated[
        list[str] | None, typer.Option("--drop-column", help="Metadata column to drop from the index; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build or update an index. Only new and changed documents are embedded."""
    extra = ["job.prune=true"] if prune else []
    extra += [f"job.drop_columns={json.dumps(drop_column)}"] if drop_column else []
    job = build_config(config, input_paths, index, [*(overrides or []), *extra])
    if job.ray.progress and sys.stderr.isatty():
        typer.echo("loading ...", nl=False, err=True)  # importing Ray takes seconds; the first phase takes the line
    from pipelines.indexing.build import build_index

    summary = build_index(job)
    print_json(summary.to_dict()) if as_json else typer.echo(summary.text(), err=True)


@app.command()
def watch(
    config: ConfigFile = None,
    input_paths: Input = None,
    index: IndexUri = None,
    overrides: Set = None,
    every: Annotated[str, typer.Option(help="From one look at the input to the next: 30s, 5m, 1h.")] = "60s",
    prune: Annotated[bool, typer.Option("--prune", help="Remove documents that are gone from the input.")] = False,
    prune_limit: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the documents that --prune removes at most; 0.1.")
    ] = None,
    metrics: Annotated[Path | None, typer.Option(help="File for metrics in Prometheus' text format.")] = None,
    keep_minutes: Annotated[
        float, typer.Option(min=0, help="Keep files that a search on an older version may still read.")
    ] = 60,
    as_json: Json = False,
) -> None:
    """Keep an index up to date with its input until interrupted.

    A look with nothing to do costs a listing.
    """
    extra = ["job.prune=true"] if prune else []
    job = build_config(config, input_paths, index, [*(overrides or []), *extra])
    from datetime import timedelta

    from pipelines.indexing.watch import watch as run

    keep = timedelta(minutes=keep_minutes)
    state = run(job, every=parse_seconds(every), prune_limit=prune_limit, metrics=metrics, keep_versions=keep)
    print_json(state.to_dict()) if as_json else typer.echo(state.text(), err=True)


def parse_seconds(text: str) -> float:
    """Parses `30s`, `5m`, `1h` or a number of seconds; ConfigError quotes anything else."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in "smh" and text else (text, "s")
    try:
        return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    except ValueError:
        raise ConfigError(f"--every {text!r}: expected a time such as 30s, 5m or 1h") from None


@app.command()
def retry(
    config: ConfigFile = None,
    input_paths: Input = None,
    index: IndexUri = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Try the quarantined rows again, as their files are now. --index alone takes the rest from the last run."""
    if config is None and not input_paths and index is not None:
        from pipelines.monitor.memory import last_config

        job = last_config(index, overrides or [])
    else:
        job = build_config(config, input_paths, index, overrides)
    from pipelines.indexing.build import retry as run

    summary = run(job)
    if as_json:
        print_json({} if summary is None else summary.to_dict())
    else:
        typer.echo("the quarantine is empty" if summary is None else summary.text(), err=True)


@app.command()
def plan(
    config: ConfigFile = None,
    input_paths: Input = None,
    index: IndexUri = None,
    overrides: Set = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Tokens per second of one actor; by default measured here.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price per hour of the whole pool.")] = None,
    actors: Annotated[int | None, typer.Option(help="Actors per pool; by default as many as fit this machine.")] = None,
    on: Annotated[str | None, typer.Option(help="Predict the speed on t4, l4, a10, a100, h100 or h200.")] = None,
    as_json: Json = False,
) -> None:
    """Estimate a build: tokens, truncation, bytes, hours, cost. Warns of settings that cost recall or time."""
    job = build_config(config, input_paths, index, overrides)
    from pipelines.plan import Pool, make_plan

    made = make_plan(job, Pool(tokens_per_second, price, actors, on))
    print_json(made.to_dict()) if as_json else typer.echo(made.text())


@app.command()
def submit(
    config: ConfigFile = None,
    input_paths: Input = None,
    index: IndexUri = None,
    overrides: Set = None,
    address: Annotated[str | None, typer.Option(help="URL of the cluster's dashboard, http://HOST:8265.")] = None,
    job_id: Annotated[
        str | None, typer.Option("--job", help="Id of the job; a job with the same id resumes it.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Python interpreter on the cluster; by default found there.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(help="Environment variable NAME=VALUE, no secrets; may be repeated.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once the job is submitted, without following its log.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Follow the log of a job that is running already.")] = False,
    state: Annotated[bool, typer.Option("--status", help="Print the state of a job.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop a job; finished documents are committed first.")] = False,
    as_json: Json = False,
) -> None:
    """Run a build on a Ray cluster through Ray Jobs. --follow, --status and --stop act on a running job."""
    from pipelines.cluster.submit import follow_job, job_status, stop_job, submit_job

    if state or stop or follow:
        look_after = stop_job if stop else follow_job if follow else job_status
        attempt = look_after(required(job_id, "--job"), address)
    else:
        job = build_config(config, input_paths, index, overrides)
        attempt = submit_job(
            job, address=address, job_id=job_id, detach=detach, python=python, env=variables(env or [])
        )
    print_json(attempt.to_dict()) if as_json else typer.echo(attempt.text(), err=True)
    if attempt.status == "FAILED":
        raise typer.Exit(1)


def variables(given: list[str]) -> dict[str, str]:
    """Parses `NAME=VALUE` variables; ConfigError quotes an invalid one."""
    pairs = [text.partition("=") for text in given]
    wrong = next((name for name, sign, _ in pairs if not sign or not name), None)
    if wrong is not None:
        raise ConfigError(f"--env {wrong!r}: expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


@app.command()
def status(index: Index, as_json: Json = False) -> None:
    """Show an index: rows, model, quarantine, last job."""
    from pipelines.store.status import read_status

    facts = read_status(index)
    print_json(facts.to_dict()) if as_json else typer.echo(facts.text())


@app.command()
def check(
    index: Index,
    repair: Annotated[bool, typer.Option("--repair", help="Make again what the table suffices for.")] = False,
    remove_lost: Annotated[
        bool,
        typer.Option("--remove-lost", help="With --repair: remove documents that have lost rows; build embeds them."),
    ] = False,
    remove_orphans: Annotated[
        bool, typer.Option("--remove-orphans", help="With --repair: remove files that nothing refers to.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every invariant of an index. The exit status is 1 if one is broken."""
    if (remove_lost or remove_orphans) and not repair:
        raise ConfigError("--remove-lost and --remove-orphans: need --repair; a check alone changes nothing")
    if repair:
        from pipelines.integrity.repair import repair_index

        done = repair_index(index, remove_lost=remove_lost, remove_orphans=remove_orphans)
        print_json(done.to_dict()) if as_json else typer.echo(done.text())
        sound = done.check.sound
    else:
        from pipelines.integrity.check import check_index

        report = check_index(index)
        print_json(report.to_dict()) if as_json else typer.echo(report.text())
        sound = report.sound
    if not sound:
        raise typer.Exit(1)


@app.command()
def optimize(
    index: Index,
    vectors: Annotated[str, typer.Option(help="Vector index: auto, none, IVF_PQ, IVF_RQ or IVF_HNSW_SQ.")] = "auto",
    filter_column: Annotated[
        list[str] | None, typer.Option(help="Column to index for filters, beside the metadata; repeatable.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster whose workers build the vector indexes.")] = None,
    as_json: Json = False,
) -> None:
    """Compact an index, update its search indexes, free disk space."""
    if address is not None:
        require_extra("distributed", "building a vector index on Ray")
    from pipelines.search_indexes.update import update_indexes
    from pipelines.store.maintain import optimize as run

    done = run(index)
    selection: dict[str, Any] = {"vectors": vectors, "filter_columns": filter_column or ()}
    if address is None:
        built = update_indexes(index, **selection)
    else:
        from pipelines.cluster.connect import running
        from pipelines.indexing.distributed_vectors import create_on_ray

        with running(RayConfig(address=address)):
            built = update_indexes(index, **selection, create=create_on_ray)
    print_json(done.to_dict() | {"indexes": built.to_dict()}) if as_json else typer.echo(
        f"{done.text()}\n{built.text()}"
    )


@app.command()
def migrate(index: Index, as_json: Json = False) -> None:
    """Bring an index to the newest format, without embedding."""
    from pipelines.store.migrate import migrate_index

    done = migrate_index(index)
    print_json(done.to_dict()) if as_json else typer.echo(done.text())


@app.command()
def backup(
    index: Index,
    destination: Annotated[str, typer.Argument(help="Folder or URI that holds nothing.")],
    as_json: Json = False,
) -> None:
    """Copy an index elsewhere, verified by checksums."""
    from pipelines.backup import back_up_index

    done = back_up_index(index, destination)
    print_json(done.to_dict()) if as_json else typer.echo(done.text())


@app.command()
def restore(
    backup: Annotated[str, typer.Argument(help="Folder or URI of a backup.")],
    index: Annotated[str, typer.Argument(help="Folder or URI of the new index; it must hold nothing.")],
    as_json: Json = False,
) -> None:
    """Make an index of a backup, verified by checksums."""
    from pipelines.backup import restore_index

    done = restore_index(backup, index)
    print_json(done.to_dict()) if as_json else typer.echo(done.text("restored to"))


@app.command()
def promote(
    index: Index,
    name: Annotated[str | None, typer.Argument(help="Embedder for searches that name none.")] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Promote the previously promoted embedder again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Switch searches and servers to another embedder, or back."""
    from pipelines.store.promote import promote_embedder as run
    from pipelines.store.promote import roll_back_embedder

    if rollback and name is not None:
        raise ConfigError("--rollback: takes no name, it promotes the previous embedder")
    done = roll_back_embedder(index) if rollback else run(index, required(name, "NAME"))
    print_json(done.to_dict()) if as_json else typer.echo(done.text())


@app.command()
def drop(
    index: Index,
    name: Annotated[str, typer.Argument(help="Embedder to remove.")],
    keep_minutes: Annotated[
        float, typer.Option(help="Keep files that a search on an older version may still read; 0: free them now.")
    ] = 60,
    as_json: Json = False,
) -> None:
    """Remove an embedder and its search indexes. The promoted one is refused."""
    from datetime import timedelta

    from pipelines.search_indexes.drop import drop_embedder

    done = drop_embedder(index, name, keep_versions=timedelta(minutes=keep_minutes))
    print_json(done.to_dict()) if as_json else typer.echo(done.text())


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option(help="Folder to write: a new one, or one that the demo made.", callback=expand_path)
    ] = Path("demo"),
) -> None:
    """Index the standard library's documentation and search it."""
    from pipelines.cli.demo import MARKER, QUESTIONS, check_model, claim_folder, write_corpus
    from pipelines.indexing.build import build_index
    from pipelines.retrieval import open_index

    config = build_config(None, [str(folder / "corpus" / "*.parquet")], str(folder / "index"), None)
    refuse_folder(folder, marker=MARKER, name="--folder")
    check_model(config.embedders[0])
    claim_folder(folder)
    written = write_corpus(folder / "corpus")
    typer.echo(f"{written:,} passages written to {folder / 'corpus'}", err=True)
    typer.echo(build_index(config).text(), err=True)
    index = open_index(str(folder / "index"))
    for question in QUESTIONS:
        typer.echo(f"\n? {question}\n{index.search(question, k=3)}")
