"""Pairs/s of a BERT-base-shaped cross-encoder with random weights against FlagReranker and sentence-transformers.

One query and 100 passages whose token counts follow the lengths of ordinary prose and documentation (log-normal,
median 85, cut at 480). All run in one process on one thread, by turns; time is the process's CPU time, so that other
work on the machine counts less; a ratio is the median over the rounds, with the smallest and largest beside it. Run:

    python benchmarks/rerank.py [--rounds 3] [--passages 100]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from actors.checkpoints.loading import resolve_folder
from actors.rerankers.registry import load_reranker
from actors.spec import ComputeSpec

Scorer = Callable[[str, list[str]], np.ndarray]


def make_checkpoint(folder: Path) -> Path:
    """BERT-base as transformers initialises it, with the packaged model's tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(num_labels=1)).save_pretrained(folder)
    packaged = resolve_folder("all-MiniLM-L6-v2")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(packaged / name, folder / name)
    return folder


def make_pairs(folder: Path, n: int) -> tuple[str, list[str]]:
    """A query of ten words and n passages, of words that are one token each."""
    words = [w for w in (folder / "vocab.txt").read_text(encoding="utf-8").split() if w.isalpha() and len(w) > 2]
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(85), 0.9, n), 8, 480).astype(int)
    return " ".join(rng.choice(words, 10)), [" ".join(rng.choice(words, k)) for k in lengths]


def scorers(folder: Path) -> dict[str, Scorer]:
    from FlagEmbedding import FlagReranker
    from sentence_transformers import CrossEncoder

    flag = FlagReranker(str(folder), devices="cpu")
    cross = CrossEncoder(str(folder), device="cpu", max_length=512, activation_fn=torch.nn.Identity())
    exact = load_reranker(str(folder), compute=ComputeSpec(dtype="fp32", device="cpu"))
    half = load_reranker(str(folder), compute=ComputeSpec(dtype="bf16", device="cpu"))
    return {
        "tridex bf16": half.score,
        "tridex fp32": exact.score,
        "CrossEncoder": lambda q, ps: np.array(cross.predict([(q, p) for p in ps])),
        "FlagReranker": lambda q, ps: np.array(flag.compute_score([(q, p) for p in ps])),
        "FlagReranker, batch_size=16": lambda q, ps: np.array(flag.compute_score([(q, p) for p in ps], batch_size=16)),
    }


def measure(name: str, scorer: Scorer, query: str, passages: list[str]) -> tuple[float, np.ndarray]:
    start = time.process_time()
    scores = scorer(query, passages)
    seconds = time.process_time() - start
    print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return seconds, scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passages", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_checkpoint(Path(temporary))
        query, passages = make_pairs(folder, arguments.passages)
        models = scorers(folder)
        for scorer in models.values():
            scorer(query, passages[:4])
        runs = [
            {name: measure(name, s, query, passages) for name, s in models.items()} for _ in range(arguments.rounds)
        ]
    report(runs, arguments.passages)


def report(runs: list[dict[str, tuple[float, np.ndarray]]], n: int) -> None:
    from scipy.stats import kendalltau

    expected = runs[0]["FlagReranker"][1]
    print(f"spread of the scores (standard deviation): {expected.std():.4f}")
    print("| | pairs/s/core | against FlagReranker | against CrossEncoder | Kendall tau | largest error |")
    print("|---|---|---|---|---|---|")
    for name in runs[0]:
        times = np.array([run[name][0] for run in runs])
        cells = [f"{n / np.median(times):.1f}"]
        for peer in ("FlagReranker", "CrossEncoder"):
            ratios = np.array([run[peer][0] for run in runs]) / times
            cells.append(f"{np.median(ratios):.2f} [{ratios.min():.2f}-{ratios.max():.2f}]")
        scores = runs[0][name][1]
        cells += [f"{kendalltau(expected, scores)[0]:.4f}", f"{np.abs(scores - expected).max():.1e}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
