"""Defines commands about models: list, inspect, fit M3 heads to an encoder, blend several models into one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from pipelines.cli.app import Json, app, print_json
from pipelines.config import ConfigError, apply_override, expand_path, parse_override


@app.command("models")
def list_models(as_json: Json = False) -> None:
    """List the models known by name. Others are read from their folder: `tridex inspect`."""
    from actors.models.inspection import catalogue_rows

    rows = catalogue_rows()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        typer.echo("  ".join(str(value) for value in row.values() if value != ""))


@app.command("inspect")
def inspect(
    model: Annotated[str, typer.Argument(help="A name, hub id or folder.")],
    model_class: Annotated[str | None, typer.Option(help="Load it as this class.")] = None,
    query_prompt: Annotated[str | None, typer.Option(help="Name of a stored prompt for queries.")] = None,
    passage_prompt: Annotated[str | None, typer.Option(help="Name of a stored prompt for passages.")] = None,
    as_json: Json = False,
) -> None:
    """Show how a model would be loaded, and why. No weights are read."""
    from actors.models.inspection import as_lines, inspect_model
    from actors.rerankers.inspection import inspect_reranker
    from actors.spec import EmbedderSpec

    known = cast(Any, model_class)
    spec = EmbedderSpec(model=model, model_class=known, query_prompt=query_prompt, passage_prompt=passage_prompt)
    try:
        report = (inspect_reranker(model) if model_class is None else None) or inspect_model(spec)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    if as_json:
        print_json(report)
    else:
        typer.echo("\n".join(as_lines(report)))


@app.command("fit-heads")
def fit_heads(
    model: Annotated[str, typer.Argument(help="Encoder: name, hub id or folder; it is not changed.")],
    output: Annotated[str, typer.Argument(help="Folder to write.")],
    data: Annotated[list[str], typer.Option(help="Pairs (.jsonl), a BEIR folder, or unlabelled text; repeatable.")],
    sparse: Annotated[str, typer.Option(help="auto, idf or trained.")] = "auto",
    colbert: Annotated[str, typer.Option(help="auto, identity, pca or trained.")] = "auto",
    colbert_dim: Annotated[
        int | None, typer.Option(help="Dimensions of ColBERT vectors; by default the encoder's.")
    ] = None,
    queries: Annotated[int | None, typer.Option(help="Largest number of queries from one source.")] = None,
    passages: Annotated[int | None, typer.Option(help="Largest number of passages from one source.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    l1: Annotated[float | None, typer.Option(help="Weight of sparsity; larger gives fewer non-zero weights.")] = None,
    contrast: Annotated[float | None, typer.Option(help="Weight of the contrastive loss.")] = None,
    heads_only: Annotated[bool, typer.Option("--heads-only", help="Leave the encoder's files out.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed; equal seeds give equal heads.")] = 0,
    note: Annotated[
        list[str] | None, typer.Option(help="Line for the model card, such as a source and its licence; repeatable.")
    ] = None,
    cache: Annotated[str | None, typer.Option(help="Folder that keeps token states for the next run.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Fit M3's sparse and ColBERT heads to an encoder. Keeps the simplest heads that no others beat."""
    from actors.fitting import FitConfig
    from actors.fitting import fit_heads as run

    given: dict[str, Any] = {
        "sparse": sparse, "colbert": colbert, "colbert_dim": colbert_dim, "queries": queries, "passages": passages,
        "steps": steps, "l1": l1, "contrast": contrast, "heads_only": heads_only, "seed": seed,
        "notes": tuple(note or ()), "cache": cache,
    }  # fmt: skip
    for text in overrides or []:
        apply_override(given, *parse_override(text))
    options = {key: value for key, value in given.items() if value is not None}
    try:
        result = run(
            FitConfig(model=model, data=tuple(data), output=output, **options), lambda line: typer.echo(line, err=True)
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    if as_json:
        print_json(asdict(result))
    else:
        typer.echo(
            f"{result.output}: sparse {result.sparse}, ColBERT {result.colbert}; README.md has the scores", err=True
        )


@app.command()
def mix(
    models: Annotated[list[str], typer.Argument(help="Models to mix: names, hub ids or folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", callback=expand_path)],
    kind: Annotated[str, typer.Option("--type", help="encoder, decoder or reranker.")] = "encoder",
    weight: Annotated[list[float] | None, typer.Option(help="Weight of each model; they sum to 1.")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="JSON Lines of examples: weights follow from each model's loss on them.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Temperature of the softmax over the losses.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Random seed of the negatives.")] = 0,
    as_json: Json = False,
) -> None:
    """Merge fine-tuned models by a weighted sum of parameters. Holds one shard in memory."""
    from actors.mixing import mix_models, mix_models_with_data

    try:
        if examples is None:
            mixed = mix_models(models, cast(Any, kind), weight or [], output)
        else:
            rows = [json.loads(line) for line in examples.read_text(encoding="utf-8").splitlines() if line.strip()]
            mixed = mix_models_with_data(
                models, cast(Any, kind), rows, temperature=temperature, output_path=output, seed=seed
            )
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    facts = {"folder": str(mixed.folder), "models": mixed.names, "weights": mixed.weights, "losses": mixed.losses}
    shares = ", ".join(f"{w:.4f} {name}" for w, name in zip(mixed.weights, mixed.names, strict=True))
    print_json(facts) if as_json else typer.echo(f"{mixed.folder}: {shares}", err=True)
