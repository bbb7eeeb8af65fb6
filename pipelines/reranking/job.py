"""Reranks a run file over a pool of actors: the same documents with a reranker's scores come out.

The driver reads ids alone and pins a version of the index; actors read the texts they score. Finished queries are
appended to `OUTPUT.partial`, whose first line holds what they depend on, so a job that dies goes on where it stopped
when it is run again, and refuses to mix with scores of another request. The price: the driver holds the run file.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from pydantic import AfterValidator, Field
from ray.data import ActorPoolStrategy

from actors.arrow.isolate import isolate_failures
from actors.output_paths import refuse_file
from actors.outputs import IntArray
from actors.pool import pool_size
from pipelines.cluster.connect import as_config_error, run_on_worker, running
from pipelines.config import ComputeConfig, ConfigError, Model, PoolConfig, RayConfig, absolute_model, absolute_uri
from pipelines.evaluation.qrels import read_queries
from pipelines.evaluation.run_file import read_run, write_run
from pipelines.monitor.progress import format_duration
from pipelines.store.interrupt import interruptible
from pipelines.store.table import Snapshot, open_table

QUERIES_A_BATCH = 8
BLOCK = pa.schema(
    [("query_id", pa.string()), ("query", pa.string()), ("docs", pa.list_(pa.string())), ("rows", pa.list_(pa.int64()))]
)
"""One query: `rows` are positions in the index of its documents' chunks, `docs` the document of each of them."""
SCORED = pa.schema(
    [
        ("query_id", pa.string()),
        ("docs", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("error", pa.string()),
    ]
)


_AbsolutePath = Annotated[Path, AfterValidator(lambda path: Path(absolute_uri(path)))]
"""A local path with `~` expanded, the same in every process."""


class RerankConfig(Model):
    """Configures `rerank_run`. `model_options` are fields of `actors.rerankers.engine.RerankOptions`."""

    index: Annotated[str, AfterValidator(absolute_uri)]
    run: _AbsolutePath
    queries: _AbsolutePath
    output: _AbsolutePath
    model: Annotated[str, AfterValidator(absolute_model)]
    model_class: str | None = None
    revision: str | None = None
    peft_path: str | None = None
    trust_remote_code: bool = False
    model_options: dict[str, Any] = Field(default_factory=dict)
    depth: int = Field(100, gt=0)
    """Documents of each query that are scored and written."""
    tag: str = "tridex"
    force: bool = False
    """Replace `output` where it exists."""
    table: str = "documents"
    storage_options: dict[str, str] = Field(default_factory=dict)
    compute: ComputeConfig = ComputeConfig()
    pool: PoolConfig = PoolConfig()
    ray: RayConfig = RayConfig()


@dataclass(frozen=True, slots=True)
class RerankSummary:
    """Reports what a job did. missing: documents of the run that the index lacks; they are not in the output."""

    output: str
    queries: int
    documents: int
    missing: int
    resumed: int
    """Queries that an earlier, interrupted job had scored."""
    failed: tuple[str, ...]
    """`QUERY: what went wrong`; such queries are not in the output."""
    seconds: float


def rerank_run(config: RerankConfig) -> RerankSummary:
    """Scores the best `depth` documents of each query of a run file, and writes them as a run file.

    A document's score is that of its best chunk. Raises ConfigError before any work where the request is wrong: a file
    that is missing or malformed, a query without a text, an index that cannot be opened, an unfinished job of another
    request in the way.
    """
    started = time.monotonic()
    partial = PartialResults(config)
    if not partial.path.exists():  # else the output is this job's own: queries failed, and are tried again
        refuse_file(config.output, force=config.force)
    wanted, texts = read_run(config.run, config.depth), read_queries(config.queries)
    unknown = next((query for query in wanted if query not in texts), None)
    if unknown is not None:
        raise ConfigError(f"{config.run}: query {unknown!r} has no text in {config.queries}")
    done = partial.open(open_table(config.index, config.table, config.storage_options).version)
    snapshot = open_table(config.index, config.table, config.storage_options, partial.version)
    block, missing = plan_block(snapshot, {q: docs for q, docs in wanted.items() if q not in done}, texts)
    failed = []
    with closing(_score_batches(config, partial, block)) as scored_rows:
        for rows in scored_rows:
            failed += [f"{row['query_id']}: {row['error']}" for row in rows if row["error"] is not None]
            done |= partial.append([row for row in rows if row["error"] is None])
    write_run(config.output, ((query, done[query]) for query in wanted if query in done), config.tag)
    if not failed:
        partial.path.unlink()
    scored = sum(map(len, done.values()))
    return RerankSummary(
        str(config.output), len(done), scored, missing, partial.resumed, tuple(failed), time.monotonic() - started
    )


def plan_block(
    snapshot: Snapshot, wanted: Mapping[str, Sequence[str]], texts: Mapping[str, str]
) -> tuple[pa.Table, int]:
    """Builds a row for each query with the positions of its documents' chunks, and counts documents not in the index.

    A run may name documents or chunks; one pass over the id columns finds both.
    """
    places = _find_rows(snapshot, {document for documents in wanted.values() for document in documents})
    rows: list[dict[str, Any]] = []
    for query, documents in wanted.items():
        found = [(document, int(row)) for document in documents for row in places.get(document, ())]
        docs, positions = [document for document, _ in found], [row for _, row in found]
        rows.append({"query_id": query, "query": texts[query], "docs": docs, "rows": positions})
    missing = sum(document not in places for documents in wanted.values() for document in documents)
    return pa.Table.from_pylist(rows, schema=BLOCK), missing


def _find_rows(snapshot: Snapshot, ids: set[str]) -> dict[str, IntArray]:
    """Finds the positions of each document's chunks, or of the one chunk of that name."""
    wanted, first = pa.array(sorted(ids), pa.string()), 0
    places: dict[str, list[int]] = {}
    for batch in snapshot.scan(["doc_id", "chunk_id"]):
        for column in ("doc_id", "chunk_id"):
            hits = np.flatnonzero(pc.is_in(batch[column], wanted).to_numpy(zero_copy_only=False))
            for hit, name in zip(hits.tolist(), batch[column].take(pa.array(hits)).to_pylist(), strict=True):
                if first + hit not in places.setdefault(name, []):
                    places[name].append(first + hit)
        first += len(batch)
    return {name: np.array(rows, dtype=np.int64) for name, rows in places.items()}


class RerankActor:
    """Holds one reranker and one open index in a process; scores blocks of queries."""

    def __init__(self, config: RerankConfig, version: int) -> None:
        from actors.rerankers.registry import load_reranker

        self.snapshot = open_table(config.index, config.table, config.storage_options, version)
        self.reranker = load_reranker(
            config.model,
            model_class=config.model_class,  # type: ignore[arg-type]
            revision=config.revision,
            peft_path=config.peft_path,
            trust_remote_code=config.trust_remote_code,
            compute=config.compute.spec(),
            **config.model_options,
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        """Scores a block; a query that cannot be scored gets its `error` and fails no other query."""
        queries = block.to_pylist()
        found = isolate_failures(lambda part: self._score([queries[i] for i in part]), np.arange(len(queries)))
        rows = [row for _, part in found.parts for row in part]
        rows += [{"query_id": queries[f.row]["query_id"], "error": f.error} for f in found.failures]
        return pa.Table.from_pylist(rows, schema=SCORED)

    def _score(self, queries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        positions = np.concatenate([np.array(q["rows"], dtype=np.int64) for q in queries])
        unique, inverse = np.unique(positions, return_inverse=True)
        texts = self.snapshot.take(unique, ["text"])["text"].to_pylist()
        repeated = [query["query"] for query in queries for _ in query["rows"]]
        scores = self.reranker.score_pairs([(q, texts[i]) for q, i in zip(repeated, inverse.tolist(), strict=True)])[
            :, -1
        ]
        bounds = np.cumsum([len(query["rows"]) for query in queries])[:-1]
        parts = zip(queries, np.split(scores, bounds), strict=True)
        return [{"query_id": query["query_id"], **_best_chunks(query["docs"], part)} for query, part in parts]


def _best_chunks(documents: Sequence[str], scores: Any) -> dict[str, list[Any]]:
    """Keeps each document once, with the score of its best chunk."""
    best: dict[str, float] = {}
    for document, score in zip(documents, scores.tolist(), strict=True):
        best[document] = max(score, best.get(document, -np.inf))
    return {"docs": list(best), "scores": list(best.values())}


def _score_batches(config: RerankConfig, partial: PartialResults, block: pa.Table) -> Generator[list[dict[str, Any]]]:
    """Yields batches of scored queries as they arrive."""
    if not len(block):
        return
    started, done = time.monotonic(), 0
    with running(config.ray), interruptible():
        partial.confirm(_fingerprint(config))
        pool = config.pool.spec()
        batches = -(-len(block) // QUERIES_A_BATCH)
        data = ray.data.from_arrow(block).repartition(batches)
        data = data.map_batches(
            RerankActor,
            fn_constructor_args=(config, partial.version),
            batch_size=QUERIES_A_BATCH,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=max(1, min(batches, pool_size(pool, ray.cluster_resources())))),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
        )
        for table in data.iter_batches(batch_format="pyarrow", batch_size=None):
            done += len(table)
            if config.ray.progress:
                _print_progress(done, len(block), started)
            yield table.to_pylist()


def _fingerprint(config: RerankConfig) -> str:
    """Hashes the weights that a worker finds under the model's name, without loading them.

    ConfigError, before any actor starts, where it cannot find the model or its files.
    """
    with as_config_error("model", ValueError, TypeError):
        return run_on_worker(_open_model, config)


def _open_model(config: RerankConfig) -> str:
    from actors.checkpoints.loading import fingerprint
    from actors.rerankers.engine import RerankOptions
    from actors.rerankers.loading import open_checkpoint

    RerankOptions().changed(config.model_options)
    opened = open_checkpoint(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    return f"{fingerprint(opened.folder)} {opened.tokenizer.sha256}"


def _print_progress(done: int, total: int, started: float) -> None:
    left = (time.monotonic() - started) / done * (total - done)
    print(f"{done:,} of {total:,} queries, {format_duration(left)} left", file=sys.stderr, flush=True)


class PartialResults:
    """Appends to `OUTPUT.partial`: a line of JSON with what the scores depend on, then one per finished query."""

    def __init__(self, config: RerankConfig) -> None:
        self.path = config.output.with_name(config.output.name + ".partial")
        self.request = _score_inputs(config)
        self.version = 0
        self.weights: str | None = None
        self.resumed = 0

    def open(self, newest: int) -> dict[str, dict[str, float]]:
        """Reads the existing scores; `version` is then the index version that all scores are of."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if lines and not lines[0].startswith("{"):
            raise ConfigError(f"{self.path} exists and is no unfinished job: rename it, or name another output")
        if not whole:
            self.version = newest
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write([])
            return {}
        head = json.loads(whole[0])
        self.version, self.weights = int(head.pop("version")), head.pop("weights", None)
        self._refuse(next((key for key in self.request if head.get(key) != self.request[key]), None))
        done = {row["query_id"]: row["scores"] for row in map(json.loads, whole[1:])}
        self._write(whole[1:])
        self.resumed = len(done)
        return done

    def confirm(self, weights: str) -> None:
        """Raises ConfigError if the existing scores came from other weights of the same name."""
        self._refuse("model: its weights have changed" if self.weights not in (None, weights) else None)
        if self.weights is None:
            self.weights = weights
            self._write(self.path.read_text(encoding="utf-8").splitlines(keepends=True)[1:])

    def _refuse(self, differs: str | None) -> None:
        if differs is not None:
            raise ConfigError(
                f"{self.path} is of an unfinished job with another {differs}: finish that job, or delete the file"
            )

    def _write(self, scored: Sequence[str]) -> None:
        """Replaces the file by the head and lines of scores; a process that dies here leaves the old file."""
        head = json.dumps({**self.request, "version": self.version, "weights": self.weights})
        unfinished = self.path.with_name(f".{self.path.name}.writing")
        unfinished.write_text("".join([head + "\n", *scored]), encoding="utf-8")
        unfinished.replace(self.path)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """Adds finished queries and returns them."""
        scored = {row["query_id"]: dict(zip(row["docs"], row["scores"], strict=True)) for row in rows}
        with self.path.open("a", encoding="utf-8") as file:
            _write_lines(file, scored)
        return scored


def _write_lines(file: TextIO, scored: Mapping[str, Mapping[str, float]]) -> None:
    for query, scores in scored.items():
        file.write(json.dumps({"query_id": query, "scores": scores}, ensure_ascii=False) + "\n")


def _score_inputs(config: RerankConfig) -> dict[str, Any]:
    """Returns everything that the scores depend on, except the index's version."""
    same = config.model_dump(
        mode="json", exclude={"output", "tag", "force", "storage_options", "compute", "pool", "ray"}
    )
    digests = {name: hashlib.sha256(Path(same[name]).read_bytes()).hexdigest() for name in ("run", "queries")}
    return {**same, **digests, "dtype": config.compute.dtype}


def to_json(summary: RerankSummary) -> dict[str, Any]:
    """Formats the summary for `--json`."""
    return asdict(replace(summary, seconds=round(summary.seconds, 3)))
