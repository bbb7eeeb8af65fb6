"""The encoder beside its peers, strictly alternating in one process; prints ratios first.

    python -m benchmarks.encode steady --model minilm        # the forward pass alone: nobody pads
    python -m benchmarks.encode single --model minilm        # one text a call
    python -m benchmarks.encode used --model minilm --ray    # Ray Data over blocks of 1,000 documents
    python -m benchmarks.encode padding                      # what each computes beyond the real tokens
    python -m benchmarks.encode heads                        # sparse and ColBERT extraction

With one thread the clock is the process's CPU time, so that other work on the machine disturbs less; with several it
is the wall clock. A ratio is the median over rounds of (peer's seconds / ours), with the range of the rounds.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from actors.compute.batching import padding_share, plan_batches
from actors.compute.resolve import cpu_has_bf16, measure_matmul_flops
from actors.spec import OUTPUTS, Output
from benchmarks import peers, shapes
from benchmarks.peers import CLOCKS, SIZE, Subject

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
Vectors = dict[str, np.ndarray]
SAMPLE = {"minilm": (3, SIZE), "bert-base": (3, 16), "m3": (3, 4), "qwen3": (3, 4)}
"""(batches, texts in each) of the steady sample: about a minute a round for the slowest peer."""


def subjects(folder: Path, kind: str, longest: int, threads: int) -> list[Subject]:
    """Ours first; every ratio is against it."""
    clock = CLOCKS["cpu" if threads == 1 else "wall"]
    outputs: tuple[Output, ...] = OUTPUTS if kind == "m3" else ("dense",)
    size = SAMPLE[kind][1]
    found = [Subject("tridex auto", peers.ours(folder, kind, "auto", outputs, longest, threads), clock)]
    found.append(Subject("tridex fp32", peers.ours(folder, kind, "fp32", outputs, longest, threads), clock))
    flag = Subject("FlagEmbedding fp32", peers.flag(folder, kind, outputs, longest, size), clock)
    found.append(peers.without_first_pass(flag))
    if kind == "minilm":
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            transformer = peers.sentence_transformers(folder, dtype, longest)
            found.append(Subject(f"sentence-transformers {name}", transformer, clock))
            found.append(
                Subject(f"transformers sorted {name}", peers.plain_transformers(folder, dtype, longest), clock)
            )
    return found


def steady(kind: str, corpus: str, longest: int, threads: int, rounds: int, layers: int | None) -> None:
    torch.set_num_threads(threads)
    texts = shapes.whole_batches(shapes.corpus(corpus)[::4], longest, *SAMPLE[kind])
    lengths = shapes.lengths_of(texts, longest)
    with tempfile.TemporaryDirectory() as scratch:
        found = subjects(shapes.checkpoint(kind, Path(scratch), layers), kind, longest, threads)
    batches = np.split(np.arange(len(texts)), SAMPLE[kind][0])
    share = padding_share(lengths, batches)
    print(
        f"\n{kind}, {corpus}: {len(texts)} texts, {lengths.sum()} tokens, {threads} threads, {rounds} rounds;", end=" "
    )
    print(f"the peers' batches hold {share:.1%} padding", flush=True)
    for subject in found:
        subject.encode(texts[: SAMPLE[kind][1]])
    results = [[subject.timed(texts) for subject in found] for _ in range(rounds)][-1]
    report(found, results, int(lengths.sum()), kind, layers)


def single(kind: str, longest: int, threads: int, rounds: int) -> None:
    """One short text a call: what a query costs, FlagEmbedding's first pass included."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        found = subjects(shapes.checkpoint(kind, Path(scratch)), kind, longest, threads)
    for subject in found:
        subject.encode(["a warm up"])
    for _ in range(4 * rounds):
        for subject in found:
            subject.timed(["how does the scheduler pick the next task"])
    print(f"\n{kind}, one text a call, {threads} threads, {4 * rounds} rounds, milliseconds (median)")
    for subject in found:
        whole = np.array(subject.seconds) + np.array(subject.left_out)
        print(f"{subject.name}: {np.median(whole) * 1e3:.1f}")


def report(
    found: list[Subject], results: list[dict[str, np.ndarray]], tokens: int, kind: str, layers: int | None
) -> None:
    mine, exact = np.array(found[0].seconds), results[1]
    print("| encoder | tridex auto is faster by | tokens/s | cosine to fp32, mean / worst |\n|---|---|---|---|")
    for subject, result in zip(found, results, strict=True):
        ratios = np.array(subject.seconds) / mine
        cosines = " ".join(f"{key} {cosine(result[key], exact[key])}" for key in result)
        speed = tokens / np.median(subject.seconds)
        faster = f"{np.median(ratios):.2f} [{ratios.min():.2f}-{ratios.max():.2f}]"
        print(f"| {subject.name} | {faster} | {speed:.0f} | {cosines} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process, all encoders loaded: {peak:.1f} GiB")
    if kind != "qwen3":
        fraction_of_peak(kind, layers, tokens / float(np.median(mine)), found[0].clock)


def cosine(a: np.ndarray, b: np.ndarray) -> str:
    a, b = a.astype(np.float64), b.astype(np.float64)
    values = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return f"{values.mean():.5f} / {values.min():.5f}"


def fraction_of_peak(kind: str, layers: int | None, speed: float, clock: Callable[[], float]) -> None:
    """Time that the layers' products would take at their own measured rate, as a share of the time taken."""
    shape = shapes.PACKAGED if kind == "minilm" else None
    config = shapes.config(kind, layers) if shape is None else _packaged_config()
    h, f, n = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    dtype = torch.bfloat16 if cpu_has_bf16() else torch.float32
    products = [(4096, h, 3 * h), (4096, h, h), (4096, h, f), (4096, f, h)]
    rates = [measure_matmul_flops(torch.device("cpu"), dtype, product, clock) for product in products]
    seconds = n * sum(2 * k * m / rate for (_, k, m), rate in zip(products, rates, strict=True))
    print(f"{dtype} products at this model's shapes: {', '.join(f'{rate / 1e12:.2f}' for rate in rates)} TFLOP/s")
    print(f"tridex auto reaches {seconds * speed:.0%} of them (attention, norms, heads, tokenising count as loss)")


@functools.cache
def _packaged_config() -> object:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(shapes.PACKAGED)


def padding(longest: int, budget: int, window: int = 1000) -> None:
    """Padding share of blocks of 1,000 documents: what padded batches would hold, and what our packing adds."""
    from actors.compute.batching import round_up_tokens

    lengths = shapes.lengths_of(shapes.corpus("linux-doc")[: 12 * window], longest)
    blocks = [lengths[start : start + window] for start in range(0, len(lengths) - window + 1, window)]
    padded = np.mean([padding_share(block, plan_batches(block, budget)) for block in blocks])
    sums = np.array([block[rows].sum() for block in blocks for rows in plan_batches(block, budget)])
    packed = 1 - sums.sum() / sum(map(round_up_tokens, sums.tolist()))
    print(f"\npadding share, blocks of {window}, budget {budget}: padded {padded:.2%}, packed {packed:.2%}")
    upstream = sum(flag_tokens(block) for block in blocks) / sum(int(block.sum()) for block in blocks)
    print(f"FlagEmbedding computes {upstream:.2f} times the real tokens: padding, and a first batch run twice")


def flag_tokens(lengths: np.ndarray, size: int = 256) -> int:
    """Tokens that FlagEmbedding computes for a call: batches of 256 sorted by length, the first one twice."""
    ordered = np.sort(lengths)[::-1]
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return sum(int(batch[0]) * len(batch) for batch in [batches[0], *batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mode", choices=["steady", "single", "used", "heads", "padding"])
    parser.add_argument("--model", default="minilm", choices=sorted(SAMPLE))
    parser.add_argument("--corpus", default="linux-doc", choices=["linux-doc", "scifact"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has; a layer costs the same")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--ray", action="store_true", help="used: Ray Data with two actors, not this process alone")
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32"])
    ask = parser.parse_args()
    longest = 256 if ask.model == "minilm" else 512
    if ask.mode == "steady":
        steady(ask.model, ask.corpus, longest, ask.threads, ask.rounds, ask.layers)
    elif ask.mode == "single":
        single(ask.model, longest, ask.threads, ask.rounds)
    elif ask.mode == "used":
        from benchmarks.used import used

        torch.set_num_threads(ask.threads)
        used(ask.model, longest, ask.blocks, ask.rounds, ask.layers, ask.dtype, ask.ray)
    elif ask.mode == "heads":
        from benchmarks.extraction import extraction

        extraction(ask.rounds)
    else:
        padding(longest, 4096)


if __name__ == "__main__":
    main()
