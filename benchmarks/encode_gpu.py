"""The run sheet for a GPU: correct first, then tokens a second by model, budget and way, beside what was predicted.

    python benchmarks/encode_gpu.py                      # under 10 minutes on one card; table and encode_gpu.json
    python benchmarks/encode_gpu.py --models m3 --json m3.json
    python benchmarks/encode_gpu.py --toy                # every code path in seconds, on a CPU

Random weights, random token ids; lengths follow the 33 quantiles of real passages below. Shapes: BERT-base (dense), M3
(three outputs), Qwen3-0.6B (dense), M3's cross-encoder. Each is first compared with fp32, text by text through
transformers' own forward; a cosine under 0.999 stops the run. `shrink` encodes ColBERT vectors on the device. Where the
card is in `pipelines.plan.predict`, the last column is what was predicted for it.

The peer is a rewriting of FlagEmbedding's loop over M3 (fp16, batches of 256 sorted by length and padded, transformers'
SDPA, a first batch run twice, a Python loop for lexical weights), because FlagEmbedding is not needed to run this.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import (
    AutoModel,
    BertConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    XLMRobertaConfig,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors.codecs.device_codec import DeviceCodec
from actors.compute.batch_executor import BatchExecutor
from actors.compute.batching import inverse_permutation
from actors.compute.cost import read_shape
from actors.compute.resolve import Compute, measure_matmul_flops
from actors.embedders.engine import EncodeRequest, Engine
from actors.network.backbone import wrap_backbone
from actors.network.first_token_encoder import FirstTokenEncoder
from actors.network.transformers_backbone import PACKED_ATTENTION, PackedTransformer
from actors.outputs import EmbeddingBatch, TokenBatch, offsets_of
from actors.spec import OUTPUTS, Output
from actors.transfers import to_device, to_host
from pipelines.plan.predict import CARDS, Card, predict

QUANTILES = (
    24, 79, 88, 93, 97, 101, 104, 108, 111, 114, 118, 120, 123, 127, 130, 133, 137,
    140, 144, 148, 153, 157, 162, 168, 174, 181, 190, 201, 215, 234, 268, 354, 512,
)  # fmt: skip
SPECIAL = frozenset({0, 1, 2, 3})
VOCABULARY = 30000
"""Token ids are drawn below this; the tables of word embeddings have their real sizes."""


@dataclass(frozen=True)
class Scale:
    divisor: int
    """Widths are divided by this."""
    layers: int | None
    texts: int
    rounds: int
    budgets: tuple[int, ...]
    peer_texts: int


FULL = Scale(1, None, 16384, 3, (16384, 65536, 131072), 2048)
TOY = Scale(16, 2, 24, 2, (512, 2048), 24)
MODELS = ("bert", "m3", "qwen3", "cross-encoder")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    way: str
    budget: int | None
    tokens_per_second: float
    of_matmul_rate: float
    predicted: float | None = None
    low: float | None = None
    high: float | None = None

    def text(self) -> str:
        told = "" if self.predicted is None else f"{self.predicted:,.0f} ({self.low:,.0f} to {self.high:,.0f})"
        budget = "" if self.budget is None else f", budget {self.budget}"
        share = f"{self.of_matmul_rate:.0%}"
        return f"| {self.model}: {self.way}{budget} | {self.tokens_per_second:,.0f} | {share} | {told} |"


def config_of(model: str, scale: Scale) -> PretrainedConfig:
    """The shape of one of MODELS; `scale` makes it small."""
    d = scale.divisor
    if model == "bert":
        return BertConfig(
            vocab_size=30522, hidden_size=768 // d, num_hidden_layers=scale.layers or 12,
            num_attention_heads=12 if d == 1 else 3, intermediate_size=3072 // d, max_position_embeddings=512,
        )  # fmt: skip
    if model == "qwen3":
        return Qwen3Config(
            vocab_size=151669 if d == 1 else VOCABULARY, hidden_size=1024 // d, num_hidden_layers=scale.layers or 28,
            num_attention_heads=16 if d == 1 else 4, num_key_value_heads=8 if d == 1 else 2,
            head_dim=128 if d == 1 else 16, intermediate_size=3072 // d, max_position_embeddings=32768,
        )  # fmt: skip
    return XLMRobertaConfig(
        vocab_size=250002 if d == 1 else VOCABULARY, hidden_size=1024 // d, num_hidden_layers=scale.layers or 24,
        num_attention_heads=16 // min(d, 4), intermediate_size=4096 // d, max_position_embeddings=8194,
        type_vocab_size=1, layer_norm_eps=1e-5,
    )  # fmt: skip


def sample(texts: int) -> TokenBatch:
    rng = np.random.default_rng(0)
    lengths = np.interp(rng.random(texts), np.linspace(0, 1, len(QUANTILES)), QUANTILES).astype(np.int64)
    ids = rng.integers(4, VOCABULARY, int(lengths.sum()), dtype=np.int32)
    offsets = offsets_of(lengths)
    ids[offsets[:-1]], ids[offsets[1:] - 1] = 0, 2
    return TokenBatch(ids, offsets, np.zeros(texts, np.int32))


@dataclass(frozen=True)
class Subject:
    """A model under test: transformers' own, its heads, and what is asked of it."""

    name: str
    model: PreTrainedModel
    heads: tuple[nn.Linear, nn.Linear]
    outputs: tuple[Output, ...]
    pooling: str

    def engine(self, budget: int, compiled: bool) -> Engine:
        compute = Compute(self.model.device, self.model.dtype, budget, None, compiled, ())
        backbone: Any = PackedTransformer(self.model) if self.name == "qwen3" else wrap_backbone(self.model, compute)
        sparse, colbert = self.heads if "colbert" in self.outputs else (None, None)
        return Engine(backbone, compute, self.outputs, self.pooling, True, None, sparse, colbert, SPECIAL)  # type: ignore[arg-type]

    @property
    def shape(self) -> Any:
        widths = {"colbert": self.model.config.hidden_size} if "colbert" in self.outputs else {}
        return read_shape(self.model.config, widths)


def subject(name: str, scale: Scale, device: torch.device) -> Subject:
    torch.manual_seed(0)
    config = config_of(name, scale)
    with torch.device(device):
        heads = nn.Linear(config.hidden_size, 1), nn.Linear(config.hidden_size, config.hidden_size)
        model = (
            AutoModel.from_config(config, attn_implementation="sdpa")
            if name == "qwen3"
            else AutoModel.from_config(config, add_pooling_layer=False)
        )
    outputs: tuple[Output, ...] = OUTPUTS if name == "m3" else ("dense",)
    return Subject(name, model.eval(), heads, outputs, "last_token" if name == "qwen3" else "cls")


def halve(one: Subject) -> None:
    """bf16, and transformers' attention replaced by the packed one where transformers' code runs."""
    one.model.bfloat16()
    for head in one.heads:
        head.bfloat16()
    if one.name == "qwen3":
        one.model.set_attn_implementation(PACKED_ATTENTION)


@torch.inference_mode()
def exact(one: Subject, tokens: TokenBatch) -> tuple[np.ndarray, np.ndarray | None]:
    """Dense and ColBERT vectors in fp32, one text at a time through transformers' own forward."""
    dense, vectors = [], []
    for start, stop in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        ids = torch.from_numpy(tokens.ids[start:stop].astype(np.int64)).to(one.model.device)
        hidden = one.model(ids[None]).last_hidden_state[0]
        dense.append(normalize(hidden[0 if one.pooling == "cls" else -1], dim=-1))
        if "colbert" in one.outputs:
            vectors.append(normalize(one.heads[1](hidden[1:]), dim=-1))
    return torch.stack(dense).cpu().numpy(), torch.cat(vectors).cpu().numpy() if vectors else None


def check(found: EmbeddingBatch, dense: np.ndarray, vectors: np.ndarray | None) -> dict[str, float]:
    """Worst cosines to fp32; raises AssertionError under 0.999."""
    assert found.dense is not None
    worst = {"dense": _worst(found.dense, dense)}
    if vectors is not None:
        assert found.colbert is not None
        worst["colbert"] = _worst(found.colbert.vectors, vectors)
    assert min(worst.values()) > 0.999, f"not close to fp32: {worst}"
    return worst


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


def score(encoder: FirstTokenEncoder, head: nn.Linear, tokens: TokenBatch, budget: int) -> np.ndarray:
    """The cross-encoder's way: first tokens' states, a score each, one copy to the host per batch, on two streams."""
    compute = Compute(encoder.device, torch.bfloat16, budget, None, False, ())

    @torch.inference_mode()
    def batch(rows: np.ndarray) -> np.ndarray:
        part = tokens.take(rows)
        ids = to_device(part.ids.astype(np.int64), encoder.device)
        return to_host(head(encoder.first_states(ids, part.offsets).float()))[0]

    order, parts = BatchExecutor(compute).run(tokens.lengths, batch)
    return np.concatenate(parts)[inverse_permutation(order)]


@torch.inference_mode()
def flag_batch(one: Subject, rows: list[np.ndarray]) -> list[object]:
    """Outputs of one padded batch, extracted as FlagEmbedding does."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), 1)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    mask = torch.from_numpy(np.arange(longest) < np.array([len(row) for row in rows])[:, None]).to(one.model.device)
    hidden = one.model(torch.from_numpy(ids).to(one.model.device), attention_mask=mask.long()).last_hidden_state
    dense = normalize(hidden[:, 0], dim=-1).cpu().numpy()
    weights = torch.relu(one.heads[0](hidden)).squeeze(-1).cpu().numpy()
    vectors = normalize(one.heads[1](hidden[:, 1:]) * mask[:, 1:, None].to(hidden.dtype), dim=-1).cpu().numpy()
    lexical = [_lexical(w, row) for w, row in zip(weights, ids.tolist(), strict=True)]
    return [dense, lexical, [v[: len(row) - 1] for v, row in zip(vectors, rows, strict=True)]]


def _lexical(weights: np.ndarray, ids: list[int]) -> dict[str, float]:
    best: dict[str, float] = {}
    for weight, token in zip(weights, ids, strict=True):
        if token not in SPECIAL and weight > 0 and weight > best.get(str(token), 0):
            best[str(token)] = weight
    return best


def flag_loop(one: Subject, tokens: TokenBatch) -> None:
    order = np.argsort(-tokens.lengths)
    rows = [tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]] for i in order]
    flag_batch(one, rows[:256])
    for start in range(0, len(rows), 256):
        flag_batch(one, rows[start : start + 256])


def card_of(device: torch.device) -> Card | None:
    """The data sheet of this card, by a word of its name."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device).lower().replace("-", " ").split()
    return next((card for name, card in CARDS.items() if name in words), None)


class Sheet:
    """Measures and collects rows; each is printed as it is there."""

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self.scale, self.device, self.card = scale, device, card_of(device)
        self.tokens = sample(scale.texts)
        shape = (16384 if device.type == "cuda" else 256, 1024 // scale.divisor, 4096 // scale.divisor)
        self.rate = measure_matmul_flops(device, torch.bfloat16, shape)
        self.rows: list[Row] = []
        self.cosines: dict[str, dict[str, float]] = {}

    def measure(
        self, one: Subject, way: str, budget: int | None, run: Callable[[], object], tokens: TokenBatch, stored: float
    ) -> None:
        seconds = median_seconds(run, self.scale.rounds, self.device)
        total = int(tokens.lengths.sum())
        flops = one.shape.product_flops * total + one.shape.attention_flops(tokens.lengths)
        told = None if self.card is None or stored < 0 else predict(self.card, one.shape, tokens.lengths, stored, 0.0)
        figures = (None, None, None) if told is None else (told.tokens_per_second, told.low, told.high)
        self.rows.append(Row(one.name, way, budget, total / seconds, flops / seconds / self.rate, *figures))
        print(self.rows[-1].text(), flush=True)

    def embedder(self, one: Subject, compiled: bool) -> None:
        few = sample(min(64, self.scale.texts))
        reference = exact(one, few)
        halve(one)
        request = EncodeRequest(one.outputs)
        self.cosines[one.name] = check(one.engine(4096, False).embed_tokens(few, request), *reference)
        width = one.model.config.hidden_size
        asks: list[tuple[str, int, DeviceCodec | None, bool]] = [("bf16", b, None, False) for b in self.scale.budgets]
        if "colbert" in one.outputs:
            asks.append(("bf16, shrink", self.scale.budgets[1], DeviceCodec("rotated_sign"), False))
        if compiled and one.name != "qwen3":
            asks.append(("bf16, compiled", self.scale.budgets[1], None, True))
        for way, budget, codec, compiles in asks:
            run = functools.partial(
                embed_blocks, one.engine(budget, compiles), self.tokens, EncodeRequest(one.outputs, device_codec=codec)
            )
            vector = 0.0 if "colbert" not in one.outputs else 2 * width if codec is None else codec.width(width)
            self.measure(one, way, budget, run, self.tokens, vector)
        if "colbert" in one.outputs:
            self.peer(one)

    def peer(self, one: Subject) -> None:
        peer = sample(self.scale.peer_texts)
        half = torch.float16 if self.device.type == "cuda" else torch.float32
        one.model.to(half), one.heads[0].to(half), one.heads[1].to(half)
        self.measure(one, f"FlagEmbedding's loop, {half}", None, lambda: flag_loop(one, peer), peer, -1.0)

    def cross_encoder(self, one: Subject) -> None:
        few, head = sample(min(64, self.scale.texts)), one.heads[0]
        expected = score(FirstTokenEncoder(one.model, torch.float32), head, few, 4096)
        encoder = FirstTokenEncoder(one.model, torch.bfloat16)
        worst = float(np.abs(score(encoder, head, few, 4096) - expected).max() / np.abs(expected).max())
        assert worst < 0.05, f"scores are not close to fp32: {worst}"
        self.cosines[one.name] = {"largest relative error of a score": worst}
        for budget in self.scale.budgets:
            self.measure(
                one, "bf16", budget, functools.partial(score, encoder, head, self.tokens, budget), self.tokens, 0
            )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--compile", action="store_true", help="also with torch.compile, which takes a minute per model"
    )
    parser.add_argument("--json", type=Path, default=None, help="where the figures go; encode_gpu.json on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    request = parser.parse_args(arguments)
    device = torch.device(request.device)
    sheet = Sheet(TOY if request.toy else FULL, device)
    print(f"bf16 products {sheet.rate / 1e12:.1f} TFLOP/s, {int(sheet.tokens.lengths.sum())} tokens\n")
    print("| model | tokens/s | share of the products' rate | predicted |\n|---|---|---|---|")
    for name in request.models:
        one = subject(name, sheet.scale, device)
        sheet.cross_encoder(one) if name == "cross-encoder" else sheet.embedder(one, request.compile)
    print("\nworst cosine to fp32:", json.dumps(sheet.cosines))
    path = request.json or (Path("encode_gpu.json") if device.type == "cuda" else None)
    if path is not None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        figures = {"device": name, "torch": torch.__version__, "matmul_flops": sheet.rate, "cosines": sheet.cosines}
        path.write_text(
            json.dumps({**figures, "rows": [asdict(row) for row in sheet.rows]}, indent=1), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
