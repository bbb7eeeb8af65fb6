"""BGE-M3's shape with three outputs on a GPU: correct first, then tokens a second beside FlagEmbedding's loop.

    python benchmarks/encode_gpu.py            # needs torch, transformers and pyarrow; about 5 minutes
    python benchmarks/encode_gpu.py --toy      # every code path in seconds, on a CPU

Random weights, random token ids; lengths follow the 33 quantiles of real passages below. The peer is a rewriting of
FlagEmbedding's loop (fp16, batches of 256 sorted by length and padded, transformers' SDPA, a first batch run twice, a
Python loop for lexical weights), because FlagEmbedding itself is not needed to run this.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel, XLMRobertaConfig, XLMRobertaModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors.codecs.device_codec import DeviceCodec
from actors.compute.resolve import Compute, measure_matmul_flops
from actors.embedders.engine import EncodeRequest, Engine
from actors.network.packed_encoder import PackedEncoder
from actors.outputs import EmbeddingBatch, TokenBatch, offsets_of
from actors.spec import OUTPUTS

QUANTILES = (
    24, 79, 88, 93, 97, 101, 104, 108, 111, 114, 118, 120, 123, 127, 130, 133, 137,
    140, 144, 148, 153, 157, 162, 168, 174, 181, 190, 201, 215, 234, 268, 354, 512,
)  # fmt: skip
SPECIAL = frozenset({0, 1, 2, 3})


@dataclass(frozen=True)
class Scale:
    layers: int
    width: int
    texts: int
    rounds: int
    budgets: tuple[int, ...]
    flag_texts: int


FULL = Scale(24, 1024, 16384, 5, (16384, 65536, 131072), 2048)
TOY = Scale(2, 64, 24, 2, (512, 2048), 24)


def shape(scale: Scale) -> XLMRobertaConfig:
    return XLMRobertaConfig(
        vocab_size=250002, hidden_size=scale.width, num_hidden_layers=scale.layers,
        num_attention_heads=scale.width // 64, intermediate_size=4 * scale.width, max_position_embeddings=8194,
        type_vocab_size=1, layer_norm_eps=1e-5,
    )  # fmt: skip


def sample(texts: int) -> TokenBatch:
    rng = np.random.default_rng(0)
    lengths = np.interp(rng.random(texts), np.linspace(0, 1, len(QUANTILES)), QUANTILES).astype(np.int64)
    ids = rng.integers(4, 250002, int(lengths.sum()), dtype=np.int32)
    offsets = offsets_of(lengths)
    ids[offsets[:-1]], ids[offsets[1:] - 1] = 0, 2
    return TokenBatch(ids, offsets, np.zeros(texts, np.int32))


def engine(model: PreTrainedModel, heads: tuple[nn.Linear, nn.Linear], budget: int, compiled: bool) -> Engine:
    compute = Compute(model.device, model.dtype, budget, None, compiled, ())
    backbone = PackedEncoder(model, compiled)
    return Engine(backbone, compute, OUTPUTS, "cls", True, None, *heads, SPECIAL)


@torch.inference_mode()
def flag_batch(model: PreTrainedModel, heads: tuple[nn.Linear, nn.Linear], rows: list[np.ndarray]) -> list[object]:
    """Three outputs of one padded batch, extracted as FlagEmbedding does."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), 1)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    mask = torch.from_numpy(np.arange(longest) < np.array([len(row) for row in rows])[:, None]).to(model.device)
    hidden = model(torch.from_numpy(ids).to(model.device), attention_mask=mask.long()).last_hidden_state
    dense = normalize(hidden[:, 0], dim=-1).cpu().numpy()
    weights = torch.relu(heads[0](hidden)).squeeze(-1).cpu().numpy()
    vectors = normalize(heads[1](hidden[:, 1:]) * mask[:, 1:, None].float(), dim=-1).cpu().numpy()
    lexical = [_lexical(w, row) for w, row in zip(weights, ids.tolist(), strict=True)]
    return [dense, lexical, [v[: len(row) - 1] for v, row in zip(vectors, rows, strict=True)]]


def _lexical(weights: np.ndarray, ids: list[int]) -> dict[str, float]:
    best: dict[str, float] = {}
    for weight, token in zip(weights, ids, strict=True):
        if token not in SPECIAL and weight > 0 and weight > best.get(str(token), 0):
            best[str(token)] = weight
    return best


def flag_loop(model: PreTrainedModel, heads: tuple[nn.Linear, nn.Linear], tokens: TokenBatch) -> None:
    order = np.argsort(-tokens.lengths)
    rows = [tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]] for i in order]
    flag_batch(model, heads, rows[:256])
    for start in range(0, len(rows), 256):
        flag_batch(model, heads, rows[start : start + 256])


@torch.inference_mode()
def exact(model: PreTrainedModel, colbert: nn.Linear, tokens: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
    """Dense and ColBERT vectors in fp32, one text at a time through transformers' own forward."""
    model, colbert = model.float(), colbert.float()
    dense, vectors = [], []
    for start, stop in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        ids = torch.from_numpy(tokens.ids[start:stop].astype(np.int64)).to(model.device)
        hidden = model(ids[None]).last_hidden_state[0]
        dense.append(normalize(hidden[0], dim=-1))
        vectors.append(normalize(colbert(hidden[1:]), dim=-1))
    return torch.stack(dense).cpu().numpy(), torch.cat(vectors).cpu().numpy()


def check(found: EmbeddingBatch, dense: np.ndarray, vectors: np.ndarray) -> str:
    """Worst cosines to fp32; raises AssertionError under 0.999."""
    assert found.dense is not None
    assert found.colbert is not None
    worst = {"dense": _worst(found.dense, dense), "colbert": _worst(found.colbert.vectors, vectors)}
    assert min(worst.values()) > 0.999, f"not close to fp32: {worst}"
    return ", ".join(f"{name} {value:.5f}" for name, value in worst.items())


def _worst(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.astype(np.float64) * b).sum(1).min())


def median_seconds(function: Callable[[], object], rounds: int, device: torch.device) -> float:
    function()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def embed_blocks(ours: Engine, tokens: TokenBatch, request: EncodeRequest, rows: int = 4096) -> None:
    """In blocks, as a job does, so that memory holds one block's vectors."""
    for start in range(0, len(tokens), rows):
        ours.embed_tokens(tokens.take(np.arange(start, min(start + rows, len(tokens)))), request)


def flop(config: XLMRobertaConfig, lengths: np.ndarray) -> float:
    h, f, n = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return float(2 * n * (4 * h * h + 2 * h * f) * lengths.sum() + 4 * n * h * (lengths**2).sum())


def bench(scale: Scale, device: torch.device, compiled: bool) -> None:
    torch.manual_seed(0)
    config = shape(scale)
    with torch.device(device):
        heads = nn.Linear(scale.width, 1), nn.Linear(scale.width, scale.width)
        model = XLMRobertaModel(config, add_pooling_layer=False).eval()
    few, tokens = sample(min(64, scale.texts)), sample(scale.texts)
    reference = exact(model, heads[1], few)
    model.bfloat16()
    for head in heads:
        head.bfloat16()
    found = engine(model, heads, 4096, compiled).embed_tokens(few, EncodeRequest(OUTPUTS))
    print("worst cosine to fp32:", check(found, *reference))
    rate = measure_matmul_flops(
        device, torch.bfloat16, (16384 if device.type == "cuda" else 256, scale.width, 4 * scale.width)
    )
    work, total = flop(config, tokens.lengths), int(tokens.lengths.sum())
    print(f"{total} tokens in {len(tokens)} texts; bf16 products {rate / 1e12:.1f} TFLOP/s\n")
    print("| encoder | tokens/s | share of the measured rate |\n|---|---|---|")
    asks = [(budget, None) for budget in scale.budgets] + [(scale.budgets[0], DeviceCodec("rotated_sign"))]
    for budget, device_codec in asks:
        ours = engine(model, heads, budget, compiled)
        run = functools.partial(embed_blocks, ours, tokens, EncodeRequest(OUTPUTS, device_codec=device_codec))
        seconds = median_seconds(run, scale.rounds, device)
        stored = "" if device_codec is None else ", ColBERT as signs"
        print(
            f"| tridex bf16, budget {budget}{stored} | {total / seconds:,.0f} | {work / seconds / rate:.0%} |",
            flush=True,
        )
    peer = sample(scale.flag_texts)
    half = torch.float16 if device.type == "cuda" else torch.float32
    model.to(half), heads[0].to(half), heads[1].to(half)
    seconds = median_seconds(lambda: flag_loop(model, heads, peer), min(3, scale.rounds), device)
    speed, share = peer.lengths.sum() / seconds, flop(config, peer.lengths) / seconds / rate
    print(f"| FlagEmbedding's loop, {half} | {speed:,.0f} | {share:.0%} |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    request = parser.parse_args(arguments)
    bench(TOY if request.toy else FULL, torch.device(request.device), request.compile)


if __name__ == "__main__":
    main()
