"""Commands that ask an index, and measure how well it answers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.app import Index, Json, Qrels, Queries, app, print_json
from pipelines.config import ConfigError

SearchFiles = Annotated[list[Path] | None, typer.Option("--search", help="YAML of `tridex tune`; may be repeated.")]
SearchFile = Annotated[Path | None, typer.Option("--search", help="YAML of `tridex tune`; options here win over it.")]
Mode = Annotated[str | None, typer.Option(help="hybrid (default), dense, sparse, colbert or bm25.")]
Where = Annotated[str | None, typer.Option(help="SQL filter over the index's columns.")]
Weights = Annotated[str | None, typer.Option(help="Of the hybrid: dense=1,bm25=0.5,colbert=3.")]
FusionRule = Annotated[str | None, typer.Option("--fusion", help="zscore, weighted, rrf or dbsf.")]
Depth = Annotated[int | None, typer.Option("--candidates", help="Rows of each channel that enter the hybrid (200).")]
Exact = Annotated[bool, typer.Option("--exact", help="No approximate index; ColBERT scans the table.")]
Local = Annotated[Path | None, typer.Option(help="Folder for local copies of what scoring reads, kept for later.")]
ONCE = 2**29
"""Bytes of columns that one command reads whole: for a few queries it is not worth reading more."""


@app.command()
def search(
    index: Index,
    query: Annotated[list[str], typer.Argument(help="One query or several.")],
    k: Annotated[int, typer.Option("-k", help="Hits for each query.")] = 10,
    search_config: SearchFile = None,
    mode: Mode = None,
    where: Where = None,
    weights: Weights = None,
    fusion: FusionRule = None,
    candidates: Depth = None,
    rerank: Annotated[str | None, typer.Option(help="A reranker for the second stage, or colbert.")] = None,
    rerank_k: Annotated[int | None, typer.Option(help="Hits that the reranker scores (100).")] = None,
    group_by: Annotated[
        str, typer.Option(help="A column: at most --group-size hits of each value; or none.")
    ] = "doc_id",
    group_size: Annotated[int, typer.Option(help="Hits of each group.")] = 1,
    offset: Annotated[int, typer.Option(help="Hits (or groups) to skip.")] = 0,
    columns: Annotated[str | None, typer.Option(help="Metadata columns to show, separated by commas; all.")] = None,
    exact: Exact = False,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Search an index; every hit shows each channel's score."""
    from pipelines.retrieval import open_index

    options = _search_options(
        search_config,
        mode=mode,
        weights=weights,
        fusion=fusion,
        candidates=candidates,
        rerank=rerank,
        rerank_k=rerank_k,
    )
    shown = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    groups = None if group_by == "none" else group_by
    page = {"group_by": groups, "group_size": group_size, "offset": offset, "columns": shown}
    results = open_index(index, memory=ONCE, local=local).search(
        query, k=k, where=where, exact=exact, **page, **options
    )
    if as_json:
        print_json([hits.to_dict() for hits in results])
        return
    for text, hits in zip(query, results, strict=True):
        typer.echo(f"? {text}\n{hits}\n")


@app.command()
def explain(
    index: Index,
    query: Annotated[str, typer.Argument(help="The query.")],
    document: Annotated[str, typer.Argument(help="A document's or a chunk's id.")],
    search_config: SearchFile = None,
    mode: Mode = None,
    where: Where = None,
    weights: Weights = None,
    fusion: FusionRule = None,
    candidates: Depth = None,
    exact: Exact = False,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Why a document has its score: each channel's part, shared words, and the token that each query token matched."""
    from pipelines.retrieval import open_index

    options = _search_options(search_config, mode=mode, weights=weights, fusion=fusion, candidates=candidates)
    options = {key: value for key, value in options.items() if not key.startswith("rerank")}
    opened = open_index(index, memory=ONCE, local=local)
    told = opened.explain(query, document, where=where, exact=exact, **options)
    print_json(told.to_dict()) if as_json else typer.echo(str(told))


def _search_options(path: Path | None, **given: Any) -> dict[str, Any]:
    """Arguments of `Index.search`: what was given on the command line over what the file says."""
    from pipelines.config import read_search_config

    chosen = {} if path is None else read_search_config(path).model_dump(exclude_none=True)
    if given.get("weights") is not None:
        given["weights"] = _weights(given["weights"])
    return {**chosen, **{key: value for key, value in given.items() if value is not None}}


def _weights(text: str) -> dict[str, float]:
    """`dense=1,bm25=0.5` to a mapping; ConfigError names the part at fault."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        channel, sign, number = (piece.strip() for piece in part.partition("="))
        try:
            weights[channel] = float(number)
        except ValueError:
            sign = ""
        if not (channel and sign):
            raise ConfigError(f"--weights: {part.strip()!r}: expected CHANNEL=NUMBER, as in dense=1,bm25=0.5")
    return weights


@app.command()
def rerank(
    index: Index,
    run: Annotated[Path, typer.Argument(help="Run file, TREC or JSON Lines: query id, document id.")],
    queries: Queries,
    model: Annotated[str, typer.Option(help="A reranker: name, hub id or folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run file to write; an unfinished one is resumed.")],
    depth: Annotated[int, typer.Option(help="Documents of each query that are scored.")] = 100,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the job; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Rerank a run file, with the texts from an index, over a pool of actors; resumable."""
    from pipelines.config import apply_override, parse_override, validated
    from pipelines.reranking.job import RerankConfig, rerank_run, to_json

    tree: dict[str, Any] = {
        "index": index, "run": run, "queries": queries, "output": output, "model": model, "depth": depth,
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
    print_json(result.to_dict()) if as_json else typer.echo(result.text())


@app.command()
def tune(
    index: Index,
    queries: Queries,
    qrels: Qrels,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Search config to write.")] = None,
    folds: Annotated[int, typer.Option(help="Of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
    rerank: Annotated[str | None, typer.Option(help="A layered reranker: choose its earliest good layer.")] = None,
    as_json: Json = False,
) -> None:
    """Choose fusion weights on judged queries, or how early a layered reranker may stop.

    Says so where the hybrid does not beat its best channel.
    """
    from pipelines.evaluation import read_qrels, read_queries
    from pipelines.evaluation import tune as run
    from pipelines.retrieval import open_index

    opened, asked, judged = open_index(index), read_queries(queries), read_qrels(qrels)
    if rerank is not None:
        _tune_layers(opened, asked, judged, rerank, as_json)
        return
    result = run(opened, asked, judged, folds=folds, seed=seed)
    if output is not None:
        result.write(output)
    print_json(result.to_dict()) if as_json else typer.echo(result.text())


def _tune_layers(index: Any, queries: dict[str, str], qrels: Any, model: str, as_json: bool) -> None:
    from pipelines.evaluation.early_exit import choose_cutoff
    from pipelines.retrieval.rerank import as_reranker

    layer, table = choose_cutoff(index, queries, qrels, as_reranker(model, tuple(index.channels)))
    if as_json:
        print_json({"cutoff_layer": layer, "layers": [asdict(row) for row in table]})
        return
    for row in table:
        kept = "  <- chosen" if row.layer == layer else ""
        typer.echo(f"layer {row.layer:3}  {row.share:4.0%} of the layers  nDCG@10 {row.ndcg:.4f}  p {row.p:.4f}{kept}")
