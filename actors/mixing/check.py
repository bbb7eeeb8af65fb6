"""Checks that models can be mixed; errors name the first difference.

A sum of parameters means something only where position i of a tensor does the same work in every model: the same
architecture, the same vocabulary in the same order, the same shapes. Upstream checks none of this and fails late or not
at all: two tokenizers of one size give a model that loads, and embeds noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from actors.mixing.sources import Entry, Source
from actors.text.tokenizer import TextTokenizer, read_tokenizer

SUM_TOLERANCE = 1e-3
IRRELEVANT = frozenset({
    "_name_or_path", "_attn_implementation", "architectures", "attention_dropout", "attention_probs_dropout_prob",
    "attn_implementation", "auto_map", "classifier_dropout", "dtype", "gradient_checkpointing", "hidden_dropout_prob",
    "id2label", "initializer_range", "label2id", "output_past", "pretraining_tp", "problem_type", "torch_dtype",
    "transformers_version", "use_cache",
})  # fmt: skip
"""Keys of config.json that do not change what the model computes."""
PROBE = "The quick BROWN fox, naïve café; 1,234.5 kg\n\t  北京大学 <mask> привет"
"""Tells tokenizers of one vocabulary apart that lower-case, split or normalise differently."""
PROBE_LENGTH = 512


def normalised_weights(weights: Sequence[float], count: int) -> list[float]:
    """Scales the weights, one per model, to sum to exactly 1; ValueError if they sum to another number.

    The tolerance (1e-3, for thirds written with four digits) holds on both sides; upstream's holds above 1 only.
    """
    if len(weights) != count:
        raise ValueError(f"weights: {len(weights)} given for {count} models")
    for i, weight in enumerate(weights):
        if not math.isfinite(weight):
            raise ValueError(f"weights: weight {i} is {weight}")
    total = math.fsum(weights)
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"weights: must sum to 1, {list(weights)} sum to {total:g}")
    return [weight / total for weight in weights]


def check_alike(sources: Sequence[Source]) -> None:
    """Raises ValueError with the first difference of a model from the first one, in architecture or tensors."""
    first = sources[0]
    for other in sources[1:]:
        where = f"{first.name} and {other.name} cannot be mixed"
        _check_configs(first.config, other.config, where)
        _check_tensors(first.tensors, other.tensors, where)
        for head in sorted(first.heads.keys() | other.heads.keys()):
            if head not in first.heads or head not in other.heads:
                raise ValueError(f"{where}: only {(first if head in first.heads else other).name} has a {head}")
            _check_tensors(first.heads[head], other.heads[head], f"{where}: {head}")


def _check_configs(first: dict[str, Any], other: dict[str, Any], where: str) -> None:
    for key in ("model_type", *sorted((first.keys() & other.keys()) - IRRELEVANT)):
        if first.get(key) != other.get(key):
            raise ValueError(f"{where}: config.json has {key} {first.get(key)!r} and {other.get(key)!r}")


def _check_tensors(first: dict[str, Entry], other: dict[str, Entry], where: str) -> None:
    for name in [*first, *(name for name in other if name not in first)]:
        if name not in first or name not in other:
            raise ValueError(f"{where}: tensor {name} is in the {'first' if name in first else 'second'} only")
        one, two = first[name], other[name]
        if one.shape != two.shape:
            raise ValueError(f"{where}: tensor {name} has shape {one.shape} and {two.shape}")
        if one.dtype != two.dtype and not (one.dtype.is_floating_point and two.dtype.is_floating_point):
            raise ValueError(f"{where}: tensor {name} has dtype {one.dtype} and {two.dtype}")


def check_tokenizers(sources: Sequence[Source]) -> None:
    """Raises ValueError with the first entry that differs between two tokenizers.

    The same vocabulary may also split a probe text differently, which is refused as well.
    """
    first = read_tokenizer(sources[0].folder)
    for source in sources[1:]:
        difference = _tokenizer_difference(first, read_tokenizer(source.folder))
        if difference is not None:
            raise ValueError(f"{sources[0].name} and {source.name} cannot be mixed: {difference}")


def _tokenizer_difference(first: TextTokenizer, other: TextTokenizer) -> str | None:
    one, two = first.backend.get_vocab(), other.backend.get_vocab()
    differing = [(index, token) for token, index in one.items() if two.get(token) != index]
    if differing:
        index, token = min(differing)
        return f"their tokenizers give token {token!r} the id {index} and {two.get(token, 'none')}"
    if len(two) > len(one):
        return f"only the second tokenizer has token {min(two.keys() - one.keys(), key=two.__getitem__)!r}"
    ids, other_ids = (tokenizer.tokenise([PROBE], PROBE_LENGTH).ids.tolist() for tokenizer in (first, other))
    if ids != other_ids:
        return f"their tokenizers split one text differently: {first.decode(ids)!r} and {other.decode(other_ids)!r}"
    return None


def check_reranker(source: Source) -> None:
    """Raises ValueError if a checkpoint has no classifier."""
    if not any(name.startswith(("classifier.", "score.")) for name in source.tensors):
        raise ValueError(
            f"{source.name} has no classifier, so it is no reranker: is its model_type encoder or decoder?"
        )
