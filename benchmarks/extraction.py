"""From hidden states to Arrow columns: our segment operations against a loop over tokens, as upstream extracts them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import normalize

from actors.network import heads
from actors.outputs import offsets_of
from benchmarks import shapes

SPECIAL = (0, 100, 101, 102)


def looped_sparse(weights: np.ndarray, ids: np.ndarray) -> pa.Array:
    """A dict for each text, filled token by token, padding included; then Arrow from Python values."""
    rows = []
    for row_weights, row_ids in zip(weights, ids.tolist(), strict=True):
        best: dict[str, float] = defaultdict(int)
        for weight, token in zip(row_weights, row_ids, strict=True):
            if token not in SPECIAL and weight > 0 and weight > best[str(token)]:
                best[str(token)] = weight
        rows.append({"indices": list(map(int, best)), "values": list(best.values())})
    kind = pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])
    return pa.array(rows, kind)


def listed_colbert(padded: torch.Tensor, lengths: np.ndarray) -> pa.Array:
    """Normalise the padded tensor, cut an array for each text, Arrow from the arrays' rows."""
    vectors = normalize(padded[:, 1:].float(), dim=-1).numpy()
    texts = [list(text[: length - 1]) for text, length in zip(vectors, lengths, strict=True)]
    return pa.array(texts, pa.list_(pa.list_(pa.float32())))


def seconds(function: Callable[[], object], least: float = 0.05) -> float:
    """CPU seconds of one call: ours takes 100 microseconds, so calls are repeated until `least` seconds are spent."""
    calls, start = 0, time.process_time()
    while time.process_time() - start < least:
        function()
        calls += 1
    return (time.process_time() - start) / calls


@torch.inference_mode()
def extraction(rounds: int, texts: int = 24, width: int = 1024) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lengths = shapes.lengths_of(shapes.corpus("linux-doc")[:4000], 512)[:: 4000 // texts][:texts]
    lengths[::-1].sort()
    offsets, total, longest = offsets_of(lengths), int(lengths.sum()), int(lengths.max())
    mask = torch.arange(longest) < torch.from_numpy(lengths)[:, None]
    padded = torch.randn(len(lengths), longest, width).bfloat16()
    padded_ids = torch.randint(0, 3000, mask.shape) * mask
    padded_weights = torch.relu(torch.randn(mask.shape)) * mask
    hidden, ids, weights = padded[mask], padded_ids[mask].numpy(), padded_weights[mask].numpy()
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "sparse": (
            lambda: heads.collect(weights, ids, offsets, SPECIAL).to_arrow(),
            lambda: looped_sparse(padded_weights.numpy(), padded_ids.numpy()),
        ),
        "colbert": (
            lambda: heads.colbert(hidden, offsets, None).to_arrow(),
            lambda: listed_colbert(padded, lengths),
        ),
    }
    print(f"\nextraction with Arrow, {len(lengths)} texts, {total} tokens, {width} dimensions, one thread, CPU time")
    for name, (ours, upstream) in pairs.items():
        ours()
        times = np.array([(seconds(ours), seconds(upstream)) for _ in range(rounds)])
        ratios = times[:, 1] / times[:, 0]
        mine, theirs = np.median(times, 0) / total * 1e6
        print(f"{name}: {np.median(ratios):.0f} times [{ratios.min():.0f}-{ratios.max():.0f}] faster, ", end="")
        print(f"{mine:.2f} against {theirs:.2f} microseconds a token")
