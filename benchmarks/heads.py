"""What heads are worth: every channel and hybrid of one encoder on whole BEIR collections, scored exhaustively.

BM25 is bm25s over stemmed words without stop words; `sparse idf` is the untrained start of the lexical head, fitted
on the collection; `... plain` are M3's scores, `... by rarity` weigh query tokens by it, and those named alone count
mentions and ask for neighbours as well, as search does for the packaged model. Hybrids are z-scores over the union of
the best 200 of their channels. Paired tests are random sign flips. Token states are kept in --cache, so a second head
costs seconds. Run:

    python benchmarks/heads.py --sparse actors/assets/all-MiniLM-L6-v2 --cache /tmp/states COLLECTION [COLLECTION/train]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import bm25s
import numpy as np
import numpy.typing as npt
import Stemmer
import torch
from torch import Tensor, nn

from actors.checkpoints.loading import load_head
from actors.codecs.sparse_weighting import weight_sparse
from actors.fitting.encoder import Encoder, encode_texts, load_encoder
from actors.fitting.mining import dense_vectors, document_frequency, idf, sparse_scores
from actors.fitting.result import FitConfig
from actors.fitting.sparse import idf_start, lexical_weights
from actors.fitting.states import States
from actors.outputs import IntArray, SparseVectors
from pipelines.config import Channel
from pipelines.evaluation import read_qrels, read_queries
from pipelines.evaluation.metrics import paired_p, per_query
from pipelines.evaluation.qrels import judged
from pipelines.retrieval.encoder import pieces
from pipelines.retrieval.fusion import FusionRule, fuse
from pipelines.retrieval.query_expansion import QueryExpander

Scores = npt.NDArray[np.float32]
DEPTH = 200
HYBRIDS: dict[str, dict[Channel, float]] = {
    "dense + sparse": {"dense": 1, "sparse": 0.5},
    "dense + bm25": {"dense": 1, "bm25": 0.5},
    "dense + colbert": {"dense": 1, "colbert": 2},
    "dense + sparse .1 + colbert": {"dense": 1, "sparse": 0.1, "colbert": 2},
    "dense + sparse .2 + colbert": {"dense": 1, "sparse": 0.2, "colbert": 2},
    "dense + bm25 .5 + colbert 3": {"dense": 1, "bm25": 0.5, "colbert": 3},
    "dense + bm25 .5 + colbert": {"dense": 1, "bm25": 0.5, "colbert": 2},
    "dense + sparse + bm25 + colbert": {"dense": 1, "sparse": 0.1, "bm25": 0.5, "colbert": 3},
}


def words(texts: list[str], ids: bool) -> list[list[str]]:
    return bm25s.tokenize(
        texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False, return_ids=ids
    )


def bm25(queries: list[str], passages: list[str]) -> Scores:
    retriever = bm25s.BM25()
    retriever.index(words(passages, True), show_progress=False)
    none = np.zeros(len(passages), np.float32)
    return np.stack([retriever.get_scores(q) if q else none for q in words(queries, False)])


@torch.inference_mode()
def late(queries: States, passages: States, head: nn.Linear | None, encoder: Encoder) -> tuple[Scores, Scores]:
    """float32 (queries, passages), twice: MaxSim with every passage, the plain mean over a query's tokens and one
    weighted by `token_weights`. Products are in bf16, short passages come first."""
    query, counts = _vectors(queries, np.arange(len(queries)), head)
    rarity = token_weights(queries, passages, encoder)
    owner = torch.from_numpy(np.repeat(np.arange(len(queries)), counts))
    results = tuple(np.zeros((len(queries), len(passages)), np.float32) for _ in range(2))
    order = np.argsort(passages.tokens.lengths, kind="stable")
    for rows in np.array_split(order, max(1, len(passages.tokens.ids) // 8192)):
        vectors, lengths = _vectors(passages, rows, head)
        bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
        best = torch.segment_reduce((vectors @ query.T).float(), "max", offsets=bounds)
        for result, weights in zip(results, (np.ones_like(rarity), rarity), strict=True):
            shares = torch.from_numpy(weights / np.bincount(owner, weights, len(queries))[owner].clip(1e-9)).float()
            result[:, rows] = torch.zeros(len(queries), len(rows)).index_add(0, owner, best.T * shares[:, None])
    return results[0], results[1]


def token_weights(queries: States, passages: States, encoder: Encoder) -> Scores:
    """What each ColBERT vector of the queries weighs: IDF, shared by the pieces of a word, as in a search."""
    tokens = queries.tokens
    ids = np.delete(tokens.ids, tokens.offsets[:-1])
    bounds = tokens.offsets - np.arange(len(tokens.offsets))
    shared = pieces(encoder.preparation.tokenizer.continuing[ids], bounds)
    return (rarities(passages, encoder.vocab)[ids] / np.sqrt(shared)).astype(np.float32)


def _vectors(texts: States, rows: IntArray, head: nn.Linear | None) -> tuple[Tensor, IntArray]:
    """ColBERT vectors of the texts in bf16, and their number for each text."""
    at = texts.positions(rows)
    first = np.isin(at, texts.tokens.offsets[:-1])
    states = texts.at(at[~first])
    vectors = torch.nn.functional.normalize(states if head is None else head(states), dim=-1)
    return vectors.bfloat16(), texts.tokens.lengths[rows] - 1


def rarities(passages: States, vocab: int) -> Scores:
    """IDF of every token id."""
    return idf(document_frequency(passages, vocab), len(passages))


def head_of(folder: Path, name: str) -> nn.Linear | None:
    loaded = load_head(folder, name)
    if loaded is None:
        return None
    layer = nn.Linear(loaded.weight.shape[1], loaded.weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(loaded.weight, False), nn.Parameter(loaded.bias, False)
    return layer


def hybrid(channels: Mapping[str, Scores], weights: dict[Channel, float]) -> Scores:
    """z-scored and summed over the union of each channel's best; passages outside it stay at the bottom."""
    used = {name: channels[name] for name in weights}
    result = np.full_like(next(iter(used.values())), -np.inf)
    depth = min(DEPTH, result.shape[1] - 1)
    for i in range(len(result)):
        rows = np.unique(np.concatenate([np.argpartition(-s[i], depth)[:depth] for s in used.values()]))
        result[i, rows] = fuse({name: s[i, rows] for name, s in used.items()}, FusionRule("zscore", weights))
    return result


def lexical_scores(encoder: Encoder, texts: tuple[States, States], named: Mapping[str, nn.Linear]) -> dict[str, Scores]:
    """For each head `NAME plain`, M3's scores, `NAME by rarity`, with query weights made sqrt(weight) x IDF, and as
    searched `NAME`, with mentions and neighbours besides.
    """
    asked, found = texts
    rarity, scores = rarities(found, encoder.vocab), {}
    neighbours = QueryExpander(encoder.backbone.words, encoder.preparation.tokenizer.names)
    for name, head in named.items():
        asks, holds = (lexical_weights(t, head, encoder.excluded) for t in (asked, found))
        root = np.sqrt(asks.weights) * rarity[asks.token_ids]
        weighed = SparseVectors(asks.offsets, asks.token_ids, root)
        scores[f"{name} plain"] = sparse_scores(asks, holds, encoder.vocab)
        scores[f"{name} by rarity"] = sparse_scores(weighed, holds, encoder.vocab)
        counted = weight_sparse(holds, found.tokens, "counted")
        scores[name] = sparse_scores(neighbours.expand(weighed), counted, encoder.vocab)
    return scores


def channels_of(
    encoder: Encoder, queries: list[str], passages: list[str], folders: list[Path], cache: Path
) -> dict[str, Scores]:
    asked = encode_texts(encoder, queries, "query", cache)
    found = encode_texts(encoder, passages, "passage", cache)
    fitted = {f"sparse {folder.name}": head_of(folder, "sparse_linear") for folder in folders[1:]}
    named = {
        "sparse idf": idf_start([found], encoder.vocab, 100_000, np.random.default_rng(0)),
        "sparse": head_of(folders[0], "sparse_linear"),
        **fitted,
    }
    plain, weighted = late(asked, found, head_of(folders[0], "colbert_linear"), encoder)
    return {
        "bm25": bm25(queries, passages),
        "dense": (dense_vectors(asked, encoder.pooling) @ dense_vectors(found, encoder.pooling).T).numpy(),
        **lexical_scores(encoder, (asked, found), {name: head for name, head in named.items() if head is not None}),
        "colbert plain": plain,
        "colbert": weighted,
    }


def measured(scores: Scores, ids: list[str], documents: list[str], qrels: Mapping[str, Mapping[str, int]]) -> Scores:
    """nDCG@10 of every query."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    run = {
        query: {documents[j]: float(values[j]) for j in row if np.isfinite(values[j])}
        for query, row, values in zip(ids, top, scores, strict=True)
    }
    return per_query(run, qrels, ids)["nDCG@10"]


def evaluate(folder: Path, encoder: Encoder, heads: list[Path], cache: Path, every: int) -> dict[str, Scores]:
    queries = judged(read_queries(folder / "queries.jsonl"), qrels := read_qrels(folder / "qrels.tsv"))
    ids = list(queries)[::every]
    corpus = folder / "corpus.jsonl" if (folder / "corpus.jsonl").is_file() else folder.parent / "corpus.jsonl"
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    documents, texts = [r["_id"] for r in rows], [f"{r.get('title') or ''} {r['text']}".strip() for r in rows]
    channels = channels_of(encoder, [queries[q] for q in ids], texts, heads, cache)
    everything = {**channels, **{name: hybrid(channels, weights) for name, weights in HYBRIDS.items()}}
    return {name: measured(scores, ids, documents, qrels) for name, scores in everything.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument(
        "--sparse", type=Path, nargs="+", required=True,
        help="folders with sparse_linear; the first is `sparse`, with its colbert_linear, others are `sparse FOLDER`",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="each n-th query of collections with over 2,000")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder(FitConfig(model=options.model, data=("-",), output="-"))
    for folder in options.collections:
        many = sum(1 for _ in (folder / "queries.jsonl").open()) > 2000
        results = evaluate(folder, encoder, options.sparse, options.cache, options.every if many else 1)
        best = max(("bm25", "dense", "sparse", "colbert"), key=lambda name: results[name].mean())
        print(f"\n{'/'.join(folder.parts[-2:])}: {len(results['bm25'])} queries, best channel {best}")
        for name, values in results.items():
            against = ", ".join(f"{paired_p(values, results[other]):.3f}" for other in ("bm25", best))
            print(f"| {name} | {values.mean():.4f} | {against} |", flush=True)


if __name__ == "__main__":
    main()
