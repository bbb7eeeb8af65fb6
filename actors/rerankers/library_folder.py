"""Parses cross-encoder folders of sentence-transformers, and separates them from those of FlagEmbedding's classes.

Both libraries read the same transformers checkpoints and score them differently: sentence-transformers cuts a pair by
`longest_first`, applies the activation that the folder names, and may end in a LogitScore over a language model. A
folder that names sentence-transformers is run as that library runs it; the others are FlagEmbedding's, as before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from actors.checkpoints.chain_reader import list_modules, read_transformer_settings
from actors.checkpoints.files import CheckpointError, read_json
from actors.models.catalogue import max_positions
from actors.rerankers.loading import read_config_json

Format = Literal["flat", "structured"]
ACTIVATIONS = frozenset({"Identity", "Sigmoid", "Tanh", "ReLU", "GELU", "SiLU", "Softplus", "LogSigmoid"})
LEGACY_KEY = "sbert_ce_default_activation_function"
QWEN3_JUDGE = "Judge whether the Document meets the requirements"
"""Of Qwen3-Reranker's system prompt."""


@dataclass(frozen=True, slots=True)
class CrossEncoderFolder:
    """Describes a folder as `sentence_transformers.CrossEncoder` runs it.

    activation: of torch.nn, applied to the logit. logits: token ids whose logits are subtracted (LogitScore), the
    second may be None; None for a classification head. messages: how a chat template takes contents, None without one.
    """

    folder: Path
    activation: str
    max_length: int | None
    prompt: str = ""
    logits: tuple[int, int | None] | None = None
    messages: Format | None = None
    lower_case: bool = False
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)


def describe_pipeline(found: CrossEncoderFolder) -> str:
    """Returns what determines the scores besides weights and tokenizer: sha256 of activation, joining and template."""
    template = read_chat_template(found.folder) if found.messages is not None else ""
    parts = (found.activation, found.prompt, found.logits, found.messages, found.lower_case, template)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def read_cross_encoder(folder: Path, requested: bool = False) -> CrossEncoderFolder | None:
    """Reads a folder that names sentence-transformers; None for others. requested: read any sequence classifier as one.

    Raises CheckpointError for a module, an activation or a setting that cannot be run here, with its name.
    """
    stored = read_json(folder / "config_sentence_transformers.json") or {}
    modules = list_modules(folder) if (folder / "modules.json").is_file() else []
    has_score = any(module.kind == "LogitScore" for module in modules)
    if modules and (requested or has_score or stored.get("model_type") == "CrossEncoder"):
        kinds = [module.kind for module in modules if module.kind != "Dropout"]
        if kinds not in (["Transformer"], ["Transformer", "LogitScore"]):
            raise CheckpointError(
                f"{folder / 'modules.json'} lists {', '.join(kinds)}; tridex runs a cross-encoder of a Transformer "
                "alone, or of a Transformer and a LogitScore"
            )
        score = next((module.config for module in modules if module.kind == "LogitScore"), None)
        return _describe(modules[0].folder, stored, score)
    config = read_json(folder / "config.json") or {}
    if requested or "sentence_transformers" in config or LEGACY_KEY in config:
        return _describe(folder, stored, None) if _is_classifier(config) else None
    return None


def _is_classifier(config: Mapping[str, Any]) -> bool:
    return any("ForSequenceClassification" in name for name in config.get("architectures") or [])


def _describe(folder: Path, stored: Mapping[str, Any], score: Mapping[str, Any] | None) -> CrossEncoderFolder:
    where, settings = read_transformer_settings(folder)
    if processing := settings.get("processing_kwargs"):
        raise CheckpointError(f"{where} sets processing_kwargs {json.dumps(processing)}, which are not supported")
    prompts = stored.get("prompts") or {}
    options = settings.get("processor_kwargs") or {}
    return CrossEncoderFolder(
        folder,
        _activation(folder, stored),
        options.get("model_max_length") or settings.get("max_seq_length"),
        prompts.get(stored.get("default_prompt_name") or "") or "",
        None if score is None else _logit_ids(folder, score),
        _message_format(folder, settings),
        bool(settings.get("do_lower_case")),
        options,
    )


def _activation(folder: Path, stored: Mapping[str, Any]) -> str:
    """Returns the name in torch.nn; like sentence-transformers, a class outside of torch is not imported: Sigmoid."""
    config = read_config_json(folder)
    within = (config.get("sentence_transformers") or {}).get("activation_fn")
    path = str(stored.get("activation_fn") or within or config.get(LEGACY_KEY) or "torch.nn.Sigmoid")
    name = path.rsplit(".", 1)[-1] if path.startswith("torch.") else "Sigmoid"
    if name not in ACTIVATIONS:
        raise CheckpointError(f"{folder}: the activation {path} is not supported; known are {', '.join(ACTIVATIONS)}")
    return name


def _logit_ids(folder: Path, score: Mapping[str, Any]) -> tuple[int, int | None]:
    if "true_token_id" not in score:
        raise CheckpointError(f"{folder}: its LogitScore has no true_token_id")
    no = score.get("false_token_id")
    return int(score["true_token_id"]), None if no is None else int(no)


def _message_format(folder: Path, settings: Mapping[str, Any]) -> Format | None:
    """Returns how messages are written for the chat template; None where texts are read without one."""
    message = (settings.get("modality_config") or {}).get("message")
    if message is None:
        return None
    if message.get("format") in ("flat", "structured"):
        return "flat" if message["format"] == "flat" else "structured"
    template = read_chat_template(folder)
    marks = ("content[0]", ".type", "'type'", '"type"', "message.content[")
    return "structured" if any(mark in template for mark in marks) or not template else "flat"


def read_chat_template(folder: Path) -> str:
    """Returns a folder's chat template; "" if it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = (read_json(folder / "tokenizer_config.json") or {}).get("chat_template")
    return template if isinstance(template, str) else ""


def default_length(folder: Path, stated: int | None, tokenizer: int | None) -> int:
    """Returns the tokens of a pair that sentence-transformers keeps: the folder's, the tokenizer's or the model's."""
    config = read_config_json(folder)
    rows = config.get("max_position_embeddings")
    limits = [n for n in (tokenizer, rows if isinstance(rows, int) and rows > 0 else None) if n is not None]
    length = stated or min(limits, default=512)
    return min(length, max_positions(folder) or length)


def is_qwen3_reranker(name: str, folder: Path) -> bool:
    """Tells a Qwen3-Reranker by its name or by its chat template."""
    config = read_json(folder / "config.json") or {}
    causal = any("ForCausalLM" in kind for kind in config.get("architectures") or [])
    return causal and (name.startswith("Qwen3-Reranker") or QWEN3_JUDGE in read_chat_template(folder))
