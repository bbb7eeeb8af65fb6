"""Computes mixing weights from a few examples: `softmax(-loss / temperature)` over each model's loss on them.

One model is in memory at a time. All of them see the same batches, so the losses can be compared.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from actors.embedders.base import Embedder
from actors.embedders.registry import load_embedder
from actors.spec import ComputeSpec, EmbedderSpec

SIMILARITY_SCALE = 20.0
"""1 / 0.05, the temperature that BGE models are trained with."""
IGNORED = -100
"""transformers' label for a token without loss."""


Example = Mapping[str, Any]
"""Embedders: `{"query": text, "pos": [text, ...], "neg": [...]}`; decoders: `{"input": text, "output": text}`."""


@dataclass(frozen=True, slots=True)
class ContrastiveBatch:
    queries: tuple[str, ...]
    passages: tuple[str, ...]
    positives: tuple[int, ...]
    """For each query, which passage is its positive; all others are negatives."""


def weights_from_losses(losses: Sequence[float], temperature: float) -> list[float]:
    """Computes softmax(-loss / temperature), which sums to 1."""
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return torch.softmax(-torch.tensor(losses, dtype=torch.float64) / temperature, 0).tolist()


def embedder_batches(examples: Sequence[Example], batch_size: int, negatives: int, seed: int) -> list[ContrastiveBatch]:
    """Batches each query with its first positive and up to `negatives` of its negatives, drawn with `seed`."""
    draw = random.Random(seed)
    batches = []
    for start in _starts(len(examples), batch_size):
        queries: list[str] = []
        passages: list[str] = []
        positives: list[int] = []
        for place, example in enumerate(examples[start : start + batch_size], start):
            query, pos, neg = _fields(example, place, "query", "pos", "neg")
            if not pos:
                raise ValueError(f"example_data: example {place} has no positive")
            queries.append(query)
            positives.append(len(passages))
            passages += [pos[0], *draw.sample(neg, min(negatives, len(neg)))]
        if len(passages) < 2:
            raise ValueError(f"example_data: example {start} is alone in its batch and has no negative")
        batches.append(ContrastiveBatch(tuple(queries), tuple(passages), tuple(positives)))
    return batches


def _fields(example: Example, place: int, *keys: str) -> list[Any]:
    missing = [key for key in keys if key not in example]
    if missing:
        raise ValueError(f"example_data: example {place} has no {missing[0]!r}; expected {', '.join(keys)}")
    return [example[key] for key in keys]


def _starts(count: int, batch_size: int) -> range:
    if not count:
        raise ValueError("example_data: at least one example is needed")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return range(0, count, batch_size)


@torch.inference_mode()
def embedder_loss(folder: Path, batches: Sequence[ContrastiveBatch], max_length: int) -> float:
    """Computes the mean cross-entropy of telling each query's positive from all other passages of its batch (CLS, unit
    vectors).

    A text is cut to `max_length` tokens, or to what the model has positions for where that is less.
    """
    compute = ComputeSpec(dtype="fp32")
    spec = EmbedderSpec(model=str(folder), model_class="encoder-only-base", pooling="cls", compute=compute)
    embedder = load_embedder(spec)
    length = min(max_length, embedder.preparation.positions or max_length)
    losses = []
    for batch in batches:
        queries, passages = (_dense(embedder, texts, length) for texts in (batch.queries, batch.passages))
        scores = queries @ passages.T * SIMILARITY_SCALE
        losses += cross_entropy(scores, torch.tensor(batch.positives), reduction="none").tolist()
    return _mean(losses, folder)


def _dense(embedder: Embedder, texts: Sequence[str], max_length: int) -> Tensor:
    dense = embedder.embed_tokens(embedder.tokenise(texts, "plain", max_length), ["dense"]).dense
    assert dense is not None, "dense was requested"
    return torch.from_numpy(dense)


@torch.inference_mode()
def decoder_loss(folder: Path, examples: Sequence[Example], batch_size: int, max_length: int) -> float:
    """Computes the mean over batches of the cross-entropy of a token of the output, the input given (an eos closes the
    output)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [_label_output(tokenizer, example, i, max_length) for i, example in enumerate(examples)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval().to(device)
    losses = []
    for start in _starts(len(rows), batch_size):
        ids, labels = map(list, zip(*rows[start : start + batch_size], strict=True))
        logits = model(pad_sequence(ids, batch_first=True).to(device)).logits[:, :-1].float()
        targets = pad_sequence(labels, batch_first=True, padding_value=IGNORED)[:, 1:].to(device)
        losses.append(cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED).item())
    return _mean(losses, folder)


def _label_output(
    tokenizer: PreTrainedTokenizerBase, example: Example, place: int, max_length: int
) -> tuple[Tensor, Tensor]:
    """Returns ids of input and output, int64 (n,), and the same as labels with the input's part ignored."""
    given, wanted = _fields(example, place, "input", "output")
    prompt, ids = tokenizer(given).input_ids, tokenizer(f"{given} {wanted}").input_ids
    ids = [*ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])][:max_length]
    if len(ids) <= len(prompt):
        raise ValueError(f"example_data: the input of example {place} fills max_input_length ({max_length}) alone")
    labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
    return torch.tensor(ids), torch.tensor(labels)


def _mean(losses: Sequence[float], folder: Path) -> float:
    mean = math.fsum(losses) / len(losses)
    if not math.isfinite(mean):
        raise ValueError(f"{folder}: its loss on the examples is {mean}")
    return mean
