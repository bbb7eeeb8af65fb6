"""Trains M3's lexical and late-interaction heads for a frozen encoder: `fit_heads`.

Texts are encoded once; all training and choosing happens on cached states. Every variant is measured on queries that
were held out of training, and the simplest one that is not beaten is kept: an untrained head is a valid answer.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from actors.fitting import colbert, sparse
from actors.fitting.card import write_checkpoint
from actors.fitting.data import Rng, Source, read_source, split
from actors.fitting.encoder import Encoder, encode_texts, load_encoder
from actors.fitting.losses import contrastive, distillation, l1
from actors.fitting.mining import (
    Floats,
    Mined,
    bm25,
    dense_vectors,
    document_frequency,
    maxsim,
    mine_candidates,
    sparse_scores,
)
from actors.fitting.result import FitConfig, FitResult, Score, SourceReport
from actors.fitting.select import Doubles, choose_variant, ndcg
from actors.fitting.states import States
from actors.fitting.train import Loss, average_layers, scale_output, train
from actors.output_paths import refuse_folder
from actors.outputs import IntArray

START_SAMPLE = 100_000
REGULAR_SAMPLE = 4_000
SHARES = (0.25, 0.5, 0.75)
"""Share of the trained weights in averages with the IDF initialisation."""
COLBERT_CANDIDATES = 8
COLBERT_BATCH = 8
COLBERT_RATE = 3e-4


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Holds one source, encoded, mined and split into training rows and held-out rows."""

    source: Source
    queries: States
    passages: States
    mined: Mined
    train: IntArray
    held: IntArray

    def positives(self) -> list[list[int]]:
        return [self.source.positives[row] for row in self.held]

    def held_queries(self) -> States:
        at = self.queries.positions(self.held)
        return States(self.queries.tokens.take(self.held), self.queries.hidden[at], self.queries.weighted[at])


Results = dict[str, list[Doubles]]
"""nDCG@10 of the held-out queries of every task, by variant, simplest variant first."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Holds the head that was kept, the name of its variant, and the scores of all variants."""

    head: nn.Linear
    name: str
    results: Results


def fit_heads(config: FitConfig, progress: Callable[[str], None] = lambda line: None) -> FitResult:
    """Fits both heads, writes the checkpoint to `config.output`, and reports which variants were kept and why.

    The same config, data and machine give the same heads. `progress` gets a line for each stage. Raises ValueError
    (CheckpointError, TrainingError among them) that names the file, line, option or step at fault; nothing is written
    then.
    """
    started = time.monotonic()
    refuse_folder(config.output)
    rng = np.random.default_rng(config.seed)
    sources = [read_source(Path(path), config.queries, config.passages, rng) for path in config.data]
    encoder = load_encoder(config)
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(config.cache or temporary)
        tasks = [_task(source, encoder, config, cache, rng, progress) for source in sources]
        progress("fitting the sparse head")
        lexical = _fit_sparse(tasks, encoder, config, rng)
        progress(f"sparse: {lexical.name} is kept; fitting the ColBERT head")
        late = _fit_colbert(tasks, encoder, config, rng)
        progress(f"colbert: {late.name} is kept")
        result = _result(config, encoder, tasks, (lexical, late), started)
    folder = None if config.heads_only else encoder.preparation.folder
    implied = config.heads_only and late.name == "identity"
    write_checkpoint(folder, lexical.head, None if implied else late.head, result)
    return result


def _task(
    source: Source, encoder: Encoder, config: FitConfig, cache: Path, rng: Rng, progress: Callable[[str], None]
) -> Task:
    progress(f"{source.name}: encoding {len(source.queries)} queries and {len(source.passages)} passages")
    queries = encode_texts(encoder, source.queries, "query", cache)
    passages = encode_texts(encoder, source.passages, "passage", cache)
    progress(f"{source.name}: mining candidates")
    dense = dense_vectors(queries, encoder.pooling), dense_vectors(passages, encoder.pooling)
    mined = mine_candidates(source, queries, passages, dense, encoder.vocab, config.candidates, rng)
    return Task(source, queries, passages, mined, *split(source, config.dev_share, rng))


def _fit_sparse(tasks: Sequence[Task], encoder: Encoder, config: FitConfig, rng: Rng) -> Fitted:
    collections = [task.passages for task in tasks]
    start = sparse.idf_start(collections, encoder.vocab, START_SAMPLE, rng)
    heads = {} if config.sparse == "trained" else {"idf": start}
    if config.sparse != "idf":
        losses = [_sparse_loss(task, encoder, config, rng) for task in tasks]
        trained = train(start, losses, config.steps, config.batch, config.learning_rate, config.seed)
        if config.sparse == "auto":
            heads |= {f"{share:.0%} trained": average_layers(start, trained, share) for share in SHARES}
        heads["trained"] = trained
    kept = _choose_head(
        heads, {name: [_sparse_ndcg(task, head, encoder) for task in tasks] for name, head in heads.items()}
    )
    return replace(kept, head=scale_output(kept.head, sqrt(_spread_ratio(tasks, kept.head, encoder))))


def _spread_ratio(tasks: Sequence[Task], head: nn.Linear, encoder: Encoder) -> float:
    """Measures how much more dense scores vary among a query's candidates than lexical ones, on held-out queries.

    Scores are products of two weights: scaled by its root, lexical scores vary as much as dense ones, so that sums
    with M3's weights (1, .3, 1) mean what they say.
    """
    dense, lexical = 0.0, 0.0
    for task in tasks:
        queries, rows = task.held_queries(), task.mined.rows[task.held]
        query_vectors, passage_vectors = (
            dense_vectors(queries, encoder.pooling),
            dense_vectors(task.passages, encoder.pooling),
        )
        dense += _spread((query_vectors @ passage_vectors.T).numpy(), rows)
        query_weights, passage_weights = (
            sparse.lexical_weights(texts, head, encoder.excluded) for texts in (queries, task.passages)
        )
        lexical += _spread(sparse_scores(query_weights, passage_weights, encoder.vocab), rows)
    return dense / lexical if lexical else 1.0


def _spread(scores: Floats, rows: IntArray) -> float:
    """Computes the mean deviation of a query's scores over its candidates, whose rows are given."""
    return float(np.take_along_axis(scores, rows, axis=1).std(axis=1).mean())


def _sparse_loss(task: Task, encoder: Encoder, config: FitConfig, rng: Rng) -> tuple[str, int, Loss]:
    shared = sparse.gather_shared_tokens(task.queries, task.passages, task.mined, task.train, encoder.vocab)
    teacher = torch.from_numpy(config.sharpness * task.mined.teacher[task.train])
    weighted = np.flatnonzero(task.passages.weighted)
    others = task.passages.at(np.sort(rng.permutation(weighted)[:REGULAR_SAMPLE]))

    def loss(head: nn.Linear, rows: IntArray) -> Tensor:
        scores = shared.scores(head, rows)
        total = distillation(scores, teacher[torch.from_numpy(rows)]) + config.contrast * contrastive(scores)
        return total + config.l1 * l1(torch.relu(head(others))) if config.l1 else total

    return task.source.name, len(task.train), loss


def _sparse_ndcg(task: Task, head: nn.Linear, encoder: Encoder) -> Doubles:
    queries = sparse.lexical_weights(task.held_queries(), head, encoder.excluded)
    passages = sparse.lexical_weights(task.passages, head, encoder.excluded)
    return ndcg(sparse_scores(queries, passages, encoder.vocab), task.positives())


def _fit_colbert(tasks: Sequence[Task], encoder: Encoder, config: FitConfig, rng: Rng) -> Fitted:
    hidden = encoder.backbone.hidden_size
    if config.colbert_dim is None:
        name, start = "identity", colbert.identity(hidden)
    else:
        name = f"pca {config.colbert_dim}"
        start = colbert.pca_projection([task.passages for task in tasks], config.colbert_dim, START_SAMPLE, rng)
    heads = {} if config.colbert == "trained" else {name: start}
    if config.colbert in ("auto", "trained"):
        losses = [_colbert_loss(task, config) for task in tasks]
        steps = max(1, config.steps // 4)
        heads["trained"] = train(start, losses, steps, COLBERT_BATCH, COLBERT_RATE, config.seed)
    return _choose_head(heads, {name: [_colbert_ndcg(task, head) for task in tasks] for name, head in heads.items()})


def _colbert_loss(task: Task, config: FitConfig) -> tuple[str, int, Loss]:
    count = min(COLBERT_CANDIDATES, config.candidates)
    teacher = torch.from_numpy(config.sharpness * task.mined.teacher)

    def loss(head: nn.Linear, rows: IntArray) -> Tensor:
        at = task.train[rows]
        scores = colbert.scores(head, task.queries, task.passages, task.mined, at, count)
        return contrastive(scores) + distillation(scores, teacher[torch.from_numpy(at), :count])

    return task.source.name, len(task.train), loss


def _colbert_ndcg(task: Task, head: nn.Linear) -> Doubles:
    """Computes nDCG of the order of the mined candidates alone.

    MaxSim with all passages would take longer than the training.
    """
    scores = maxsim(task.held_queries(), task.passages, task.mined.rows[task.held], head)
    return ndcg(scores, [np.flatnonzero(np.isin(rows, right)).tolist() for rows, right in _candidates(task)])


def _candidates(task: Task) -> Iterator[tuple[IntArray, list[int]]]:
    return zip(task.mined.rows[task.held], task.positives(), strict=True)


def _choose_head(heads: dict[str, nn.Linear], results: Results) -> Fitted:
    name = choose_variant(results)
    return Fitted(heads[name], name, results)


def _baselines(tasks: Sequence[Task], encoder: Encoder) -> Results:
    results: Results = {"bm25": [], "dense": []}
    for task in tasks:
        queries, right = task.held_queries(), task.positives()
        dense = dense_vectors(queries, encoder.pooling) @ dense_vectors(task.passages, encoder.pooling).T
        results["dense"].append(ndcg(dense.numpy(), right))
        results["bm25"].append(ndcg(bm25(queries, task.passages, encoder.vocab), right))
    return results


def _scores(output: str, results: Results, tasks: Sequence[Task], kept: str = "") -> Iterator[Score]:
    for variant, parts in results.items():
        for task, values in zip(tasks, parts, strict=True):
            yield Score(output, variant, task.source.name, float(values.mean()), variant == kept)


def _result(
    config: FitConfig, encoder: Encoder, tasks: Sequence[Task], fitted: tuple[Fitted, Fitted], started: float
) -> FitResult:
    lexical, late = fitted
    reports = [SourceReport(t.source.name, len(t.train), len(t.held), len(t.passages)) for t in tasks]
    scores = [
        *_scores("baseline", _baselines(tasks, encoder), tasks),
        *_scores("sparse", lexical.results, tasks, lexical.name),
        *_scores("colbert", late.results, tasks, late.name),
    ]
    passages = sum(len(task.passages) for task in tasks)
    weights = sum(len(sparse.lexical_weights(t.passages, lexical.head, encoder.excluded).weights) for t in tasks)
    distinct = sum(int(document_frequency(task.passages, encoder.vocab).sum()) for task in tasks)
    return FitResult(
        config, lexical.name, late.name, tuple(reports), tuple(scores),
        weights / passages, distinct / passages, time.monotonic() - started,
    )  # fmt: skip
