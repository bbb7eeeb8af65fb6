"""Defines commands that search an index and evaluate the ranking."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.output_paths import refuse_file, refuse_folder
from pipelines.cli.app import Force, Index, Json, Qrels, Queries, app, print_json
from pipelines.cli.search_options import SearchFile, read_options, takes_search_options
from pipelines.config import InvalidRequest, expand_path

if TYPE_CHECKING:
    from pipelines.retrieval.index import Index as OpenIndex

SearchFiles = Annotated[
    list[Path] | None, typer.Option("--search", help="Search config (YAML) of `tridex tune`; may be repeated.")
]
Local = Annotated[
    Path | None,
    typer.Option(help="Folder that keeps local copies of the columns that scoring reads.", callback=expand_path),
]
ONCE = 2**29
"""Bytes of columns that one command reads whole: for a few queries it is not worth reading more."""
PAGING = ("k", "rerank", "rerank_k", "group_by", "group_size", "offset", "columns", "scores")


@app.command()
@takes_search_options()
def search(
    index: Index,
    query: Annotated[list[str], typer.Argument(help="One or several queries.")],
    search_config: SearchFile = None,
    local: Local = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Search an index. Every hit shows its passage and its score in each channel."""
    from pipelines.retrieval import open_index
    from pipelines.retrieval.hits_text import hits_as_text, terminal_width

    options = read_options(search_config, given)
    if options.mode == "bm25" and given.get("scores") is None:
        options = options.model_copy(update={"scores": "used"})  # the others' would need the model
    opened = open_index(index, memory=ONCE, local=local)
    if options.mode == "hybrid":
        Thread(target=read_ahead, args=(opened,)).start()
    results = opened.search_with(query, options)
    if as_json:
        print_json([hits.to_dict() for hits in results])
        return
    colour, width = sys.stdout.isatty() and "NO_COLOR" not in os.environ, terminal_width()
    for hits in results:
        typer.echo(hits_as_text(hits, width, colour, options.columns or ()) + "\n")


def read_ahead(opened: OpenIndex) -> None:
    """Reads the columns that a hybrid search needs while the main thread imports torch and loads the model.

    A failure is left to the search, which reads what is missing and reports it.
    """
    with suppress(Exception):
        opened.warm()


@app.command()
@takes_search_options(*PAGING)
def explain(
    index: Index,
    query: Annotated[str, typer.Argument(help="The query.")],
    document: Annotated[str, typer.Argument(help="A document's or a chunk's id.")],
    search_config: SearchFile = None,
    local: Local = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Explain a document's score by channels and tokens."""
    from pipelines.retrieval import open_index

    options = read_options(search_config, given)
    told = open_index(index, memory=ONCE, local=local).explain_with(query, document, options)
    print_json(told.to_dict()) if as_json else typer.echo(str(told))


@app.command()
def show(
    index: Index,
    document: Annotated[str, typer.Argument(help="A document's or a chunk's id.")],
    as_json: Json = False,
) -> None:
    """Print a stored document: its chunks, positions and metadata."""
    from pipelines.retrieval.show import read_document
    from pipelines.store.table import open_table

    found = read_document(open_table(index), document)
    print_json(found.to_dict()) if as_json else typer.echo(str(found))


@app.command()
def rerank(
    index: Index,
    run: Annotated[
        Path, typer.Argument(help="Run file, TREC or JSON Lines: query id, document id.", callback=expand_path)
    ],
    queries: Queries,
    model: Annotated[str, typer.Option(help="Reranker: name, hub id or folder.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Run file to write; an unfinished one is resumed.", callback=expand_path),
    ],
    depth: Annotated[int, typer.Option(help="Documents per query to score.")] = 100,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE that overrides the job's settings; may be repeated.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Rerank a run file with the texts of an index. Runs on a pool of actors and resumes."""
    from pipelines.config import apply_override, parse_override, validated
    from pipelines.reranking.job import RerankConfig, rerank_run, to_json

    tree: dict[str, Any] = {
        "index": index, "run": run, "queries": queries, "output": output, "model": model, "depth": depth,
        "force": force,
    }  # fmt: skip
    for text in overrides or []:
        apply_override(tree, *parse_override(text))
    done = rerank_run(validated(RerankConfig, tree))
    print_json(to_json(done)) if as_json else typer.echo(
        f"{done.documents:,} documents of {done.queries:,} queries", err=True
    )
    if done.failed:
        typer.echo("\n".join(done.failed), err=True)
        raise typer.Exit(1)


@app.command()
def evaluate(
    index: Index,
    queries: Queries,
    qrels: Qrels,
    search_configs: SearchFiles = None,
    rerank: Annotated[list[str] | None, typer.Option(help="Reranker to measure as well; may be repeated.")] = None,
    candidates: Annotated[int, typer.Option(help="Rows per channel that enter the hybrid.")] = 200,
    runs: Annotated[Path | None, typer.Option(help="Folder to write TREC run files to.", callback=expand_path)] = None,
    expect: Annotated[
        str | None, typer.Option(help="MODEL or MODEL:COLLECTION whose published nDCG@10 is shown beside this index's.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure nDCG, recall, MRR and MAP of channels and rerankers. Each is compared with BM25 by a paired test."""
    from pipelines.config import read_search_config
    from pipelines.evaluation import evaluate as run
    from pipelines.evaluation import read_qrels, read_queries
    from pipelines.evaluation.published import compare, find_published
    from pipelines.evaluation.report import rules_of
    from pipelines.retrieval import open_index
    from pipelines.retrieval.rerank import as_reranker

    published = None if expect is None else find_published(expect, [queries, qrels])
    if runs is not None and not force:
        refuse_folder(runs, name="--runs")
    topics, judged, opened = read_queries(queries), read_qrels(qrels), open_index(index)
    rules = rules_of(opened, {path.stem: read_search_config(path) for path in search_configs or []})
    models = {name: as_reranker(name, tuple(opened.channels)) for name in rerank or []}
    result = run(opened, topics, judged, rules=rules, rerankers=models, candidates=candidates)
    if runs is not None:
        result.write_runs(runs, force=force)
    compared = None if published is None else compare(published, result)
    if as_json:
        print_json(result.to_dict() | ({} if compared is None else {"expected": compared.to_dict()}))
        return
    typer.echo(result.text() if compared is None else f"{result.text()}\n{compared.text()}")


@app.command()
def compare(
    index: Index,
    queries: Queries,
    b: Annotated[str, typer.Option("--b", help="The other embedder.")],
    a: Annotated[
        str | None, typer.Option("--a", help="One embedder of the index; by default the promoted one.")
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option(help="Relevance judgements, for nDCG@10 and a paired test.", callback=expand_path)
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Documents per ranking to compare.")] = 10,
    as_json: Json = False,
) -> None:
    """Compare two embedders of an index: overlap, ranks, nDCG@10."""
    from pipelines.evaluation import read_qrels, read_queries
    from pipelines.evaluation.compare import compare_embedders

    judgements = None if qrels is None else read_qrels(qrels)
    result = compare_embedders(index, a, b, read_queries(queries), judgements, k=k)
    print_json(result.to_dict()) if as_json else typer.echo(result.text())


@app.command()
def tune(
    index: Index,
    queries: Queries,
    qrels: Qrels,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Search config to write.", callback=expand_path)
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(help="Random seed of the folds.")] = 0,
    rerank: Annotated[
        str | None, typer.Option(help="Layerwise reranker whose earliest sufficient layer is chosen.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Choose fusion weights on judged queries.

    With --rerank, choose the layer at which a layerwise reranker stops. No file is written if the tuned hybrid does not
    beat its best channel.
    """
    from pipelines.evaluation import read_qrels, read_queries
    from pipelines.evaluation import tune as run
    from pipelines.retrieval import open_index

    if output is not None:
        refuse_file(output, force=force)
    opened, topics, judged = open_index(index), read_queries(queries), read_qrels(qrels)
    if rerank is not None:
        _tune_layers(opened, topics, judged, rerank, as_json)
        return
    result = run(opened, topics, judged, folds=folds, seed=seed)
    if output is not None:
        result.write(output, force=force)
    print_json(result.to_dict()) if as_json else typer.echo(result.text())


def _tune_layers(index: Any, queries: dict[str, str], qrels: Any, model: str, as_json: bool) -> None:
    from actors.rerankers.engine import Reranker
    from pipelines.evaluation.early_exit import choose_cutoff
    from pipelines.retrieval.rerank import as_reranker

    reranker = as_reranker(model, tuple(index.channels))
    if not isinstance(reranker, Reranker):
        raise InvalidRequest(f"rerank: {model!r} is a channel and has no layers to choose from")
    layer, table = choose_cutoff(index, queries, qrels, reranker)
    if as_json:
        print_json({"cutoff_layer": layer, "layers": [asdict(row) for row in table]})
        return
    for row in table:
        kept = "  <- chosen" if row.layer == layer else ""
        typer.echo(f"layer {row.layer:3}  {row.share:4.0%} of the layers  nDCG@10 {row.ndcg:.4f}  p {row.p:.4f}{kept}")
