"""Reports what a reranker's folder would be loaded as, and why, without loading its weights."""

from __future__ import annotations

from actors.checkpoints.files import read_json
from actors.checkpoints.loading import resolve_folder
from actors.models.catalogue import short_name
from actors.rerankers.library_folder import CrossEncoderFolder, is_qwen3_reranker, read_cross_encoder

FLAG_EMBEDDING = ("ForSequenceClassification", "LayerWiseMiniCPM", "CostWiseGemma")
"""Parts of architectures that are rerankers wherever they come from; a causal model may be an embedder, too."""


def inspect_reranker(model: str) -> dict[str, object] | None:
    """Reports class, reason, length, activation and prompt of a reranker; None for what is no reranker by its files."""
    from actors.rerankers.registry import RERANKERS, class_of

    folder = resolve_folder(model, None, None, False)
    name, config = short_name(model), read_json(folder / "config.json") or {}
    architectures = [str(found) for found in config.get("architectures") or []]
    report: dict[str, object] = {"model": model, "folder": str(folder), "architecture": config.get("model_type")}
    found = None if name in RERANKERS else read_cross_encoder(folder)
    if found is not None:
        return report | _describe_cross_encoder(found)
    if name not in RERANKERS and is_qwen3_reranker(name, folder):
        why = "its name or its chat template is Qwen3-Reranker's"
        return report | {"model_class": "qwen3-reranker", "because": why, "score": "the probability of 'yes'"}
    if name in RERANKERS or any(part in kind for kind in architectures for part in FLAG_EMBEDDING):
        known = f"{name} is in FlagEmbedding's table" if name in RERANKERS else f"config.json names {architectures[0]}"
        return report | {"model_class": class_of(model, folder), "because": known, "score": "the raw logit"}
    return None


def _describe_cross_encoder(found: CrossEncoderFolder) -> dict[str, object]:
    score = "classification head" if found.logits is None else f"logits of the tokens {found.logits}"
    return {
        "model_class": "cross-encoder",
        "because": "its files name sentence-transformers",
        "score": f"{score}, then {found.activation}",
        "max_length": found.max_length or "the tokenizer's",
        "prompt": found.prompt,
        "pairs": "the chat template's roles query and document" if found.messages else "the tokenizer's pair",
    }
