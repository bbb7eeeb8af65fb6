"""What bf16 does to the ranking of a trained cross-encoder: Kendall tau and nDCG@10 against fp32.

Random weights say little about it: their scores lie so close together that any error turns neighbours round. No trained
reranker can be had without a model hub, so one is trained here for some minutes: the packaged encoder with a new head,
on questions and sentences (one sentence that answers, seven neighbours of it or strangers), a softmax over the eight.

    python benchmarks/rerank_precision.py TRAIN TEST [--steps 400] [--queries 50]

TRAIN, TEST: folders with corpus.jsonl, queries.jsonl, qrels.tsv. Candidates: the dense channel's best 100.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.checkpoint import resolve_folder
from actors.registry import load_embedder
from actors.rerankers.registry import load_reranker
from actors.spec import ComputeSpec, EmbedderSpec
from pipelines.evaluation.qrels import read_qrels, read_queries

PACKAGED = "all-MiniLM-L6-v2"


def collection(folder: Path) -> tuple[list[str], list[str], list[int]]:
    """Sentences, questions, and for each question the number of a sentence that answers it."""
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    numbers = {row["_id"]: i for i, row in enumerate(rows)}
    queries, qrels = read_queries(folder / "queries.jsonl"), read_qrels(folder / "qrels.tsv")
    judged = [(queries[q], numbers[max(found, key=found.__getitem__)]) for q, found in qrels.items()]
    return [row["text"] for row in rows], [q for q, _ in judged], [answer for _, answer in judged]


def train(folder: Path, out: Path, steps: int, questions: int = 8, choices: int = 8) -> None:
    sentences, queries, answers = collection(folder)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    packaged = resolve_folder(PACKAGED)
    tokenizer = AutoTokenizer.from_pretrained(packaged)
    model = AutoModelForSequenceClassification.from_pretrained(packaged, num_labels=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-4, total_steps=steps)
    for step in range(steps):
        rows = rng.integers(0, len(queries), questions)
        near = np.array(answers)[rows, None] + rng.choice([-3, -2, -1, 1, 2, 3], (questions, choices // 2 - 1))
        far = rng.integers(0, len(sentences), (questions, choices // 2))
        picked = np.hstack([np.array(answers)[rows, None], near, far]).clip(0, len(sentences) - 1)
        pairs = [(queries[row], sentences[i]) for row, line in zip(rows, picked, strict=True) for i in line]
        encoded = tokenizer(
            [q for q, _ in pairs], [s for _, s in pairs],
            padding=True, truncation=True, max_length=96, return_tensors="pt",
        )  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**encoded).logits.view(questions, choices)
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.zeros(questions, dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def compare(model: Path, folder: Path, n: int) -> None:
    sentences, queries, answers = collection(folder)
    chosen = np.random.default_rng(1).choice(len(queries), n, replace=False)
    embedder = load_embedder(EmbedderSpec(model=PACKAGED))
    corpus = embedder.embed_corpus(sentences, ["dense"]).dense
    asked = embedder.embed_queries([queries[i] for i in chosen], ["dense"]).dense
    assert corpus is not None
    assert asked is not None
    best = np.argsort(-(asked @ corpus.T), axis=1, kind="stable")[:, :100]
    scores = {
        dtype: np.stack([
            load.score(queries[i], [sentences[j] for j in line]) for i, line in zip(chosen, best, strict=True)
        ])
        for dtype in ("fp32", "bf16")
        if (load := load_reranker(str(model), compute=ComputeSpec(dtype=dtype, device="cpu")))
    }  # fmt: skip
    taus = [kendalltau(a, b)[0] for a, b in zip(scores["fp32"], scores["bf16"], strict=True)]
    spread, error = scores["fp32"].std(axis=1).mean(), np.abs(scores["fp32"] - scores["bf16"]).max()
    print(f"{n} queries x 100 sentences: tau mean {np.mean(taus):.4f}, worst {np.min(taus):.4f}")
    print(f"spread of a query's scores {spread:.3f}, largest error {error:.4f}")
    found = best == np.array(answers)[chosen, None]
    print(f"nDCG@10, dense order: {ndcg(found):.4f}")
    for dtype, values in scores.items():
        print(f"nDCG@10, {dtype}: {ndcg(np.take_along_axis(found, np.argsort(-values, axis=1), axis=1)):.4f}")


def ndcg(found: np.ndarray) -> float:
    """One relevant document a query: 1 / log2(rank + 1) within the first ten."""
    return float((found[:, :10] / np.log2(np.arange(2, 12))).sum(axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--queries", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary)
        train(arguments.train, model, arguments.steps)
        compare(model, arguments.test, arguments.queries)


if __name__ == "__main__":
    main()
