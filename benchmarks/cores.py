"""All cores of a machine in three ways: a process for each, lanes in one process, or every product split over threads.

    python -m benchmarks.cores [--texts 4000] [--rounds 3]

Texts are those of linux-doc in their order, embedded in blocks of 1,000 by the packaged model, dense and ColBERT, wall
clock, by turns; models are loaded and warm before a clock starts.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import torch

from actors.embedders.base import Embedder
from actors.embedders.registry import load_embedder
from actors.spec import ComputeSpec, EmbedderSpec
from benchmarks import shapes

BLOCK = 1000
CORES = os.cpu_count() or 1
model: Embedder


def start(threads: int, split: bool) -> None:
    """Loads this process's model; `split`: threads work on the same product, not each on a batch of its own."""
    global model
    torch.set_num_threads(threads)
    model = load_embedder(EmbedderSpec(model="all-MiniLM-L6-v2", compute=ComputeSpec(threads=threads)))
    if split:
        model.engine.executor.width = 1


def embed(texts: list[str]) -> int:
    return int(model.embed_corpus(texts, ["dense", "colbert"]).n_tokens.sum())


def rate(pool: ProcessPoolExecutor, blocks: list[list[str]]) -> float:
    """Tokens a second."""
    began = time.perf_counter()
    tokens = sum(pool.map(embed, blocks))
    return tokens / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    texts = shapes.corpus("linux-doc")[: arguments.texts]
    blocks = [texts[i : i + BLOCK] for i in range(0, len(texts), BLOCK)]
    ways = {
        f"{CORES} processes of one thread": (CORES, 1, False),
        f"one process of {CORES} lanes": (1, CORES, False),
        f"one process, products split over {CORES} threads": (1, CORES, True),
    }
    pools = {
        name: ProcessPoolExecutor(n, get_context("spawn"), start, (threads, split))
        for name, (n, threads, split) in ways.items()
    }
    for pool in pools.values():
        list(pool.map(embed, [texts[:200]] * (2 * CORES)))
    rounds = [{name: rate(pool, blocks) for name, pool in pools.items()} for _ in range(arguments.rounds)]
    first = next(iter(ways))
    for name in ways:
        ratios = [found[name] / found[first] for found in rounds]
        spread = f"{median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        print(f"{name}: {median(found[name] for found in rounds):,.0f} tokens/s, {spread} of the first")


if __name__ == "__main__":
    main()
