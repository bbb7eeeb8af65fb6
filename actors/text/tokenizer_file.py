"""Reads a tokenizer.json with the `tokenizers` library alone, where transformers would add nothing to it.

transformers takes the pipeline from the file and applies tokenizer_config.json and special_tokens_map.json on top of
it. Where these only name special tokens that the file has, the result is the file's own pipeline, and the import of
transformers is saved. For every other folder `read_tokenizer_file` returns None, and the caller uses transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that have a name, in transformers' order."""
SIDES = ("left", "right")
WITHOUT_EFFECT = frozenset({
    "tokenizer_class", "model_max_length", "do_lower_case", "do_basic_tokenize", "tokenize_chinese_chars",
    "strip_accents", "never_split", "name_or_path", "special_tokens_map_file", "sp_model_kwargs", "max_length",
    "stride", "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id", "clean_up_tokenization_spaces",
})  # fmt: skip
"""Keys of tokenizer_config.json that do not change what a pipeline from a file makes of a text."""
ADDED_TOKEN = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """Holds the tokenizer, neither truncating nor padding, and the settings of the folder beside it."""

    backend: Tokenizer
    named: dict[str, int]
    """Ids of the special tokens by role."""
    truncates_left: bool


def read_tokenizer_file(folder: Path) -> TokenizerFile | None:
    """Reads the folder's tokenizer as transformers would load it; None if only transformers can decide."""
    file = folder / "tokenizer.json"
    if not file.is_file() or (folder / "added_tokens.json").exists():
        return None
    try:
        pipeline = json.loads(file.read_text(encoding="utf-8"))
        config = _read_object(folder / "tokenizer_config.json")
        added = {token["content"]: {key: token[key] for key in ADDED_TOKEN} for token in pipeline["added_tokens"]}
        if pipeline["post_processor"] is None or not _is_plain(config, added):
            return None
        roles = _roles(folder, config)
        if any(not added[token]["special"] for token in roles.values()):
            return None
        backend = Tokenizer.from_file(str(file))
        side = config.get("truncation_side", str((pipeline.get("truncation") or {}).get("direction", "Right")).lower())
    except Exception:  # damaged in whatever way: transformers finds the same, and the user sees its words
        return None
    if side not in SIDES or (pipeline.get("padding") is not None and "pad_token" not in roles):
        return None
    backend.no_truncation()
    backend.no_padding()
    return TokenizerFile(backend, {role: int(added[token]["id"]) for role, token in roles.items()}, side == "left")


def _read_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(found, dict):
        raise TypeError(f"{path} is not an object")
    return found


def _is_plain(config: dict[str, Any], added: dict[str, dict[str, Any]]) -> bool:
    """Returns whether tokenizer_config.json sets only tokens, lengths and sides, and no token that the file lacks."""
    for key, value in config.items():
        if key == "added_tokens_decoder":
            stated = {token["content"]: {"id": int(i), **token} for i, token in value.items()}
            if any(added.get(content) != token for content, token in stated.items()):
                return False
        elif key in ("additional_special_tokens", "extra_special_tokens"):
            if value:
                return False
        elif key in ("truncation_side", "padding_side"):
            if value not in SIDES:
                return False
        elif key not in WITHOUT_EFFECT and key not in ROLES:
            return False
    return True


def _roles(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Returns the special tokens by role; special_tokens_map.json counts where the config lists no added tokens."""
    stated = dict(config)
    if "added_tokens_decoder" not in config:
        overriding = _read_object(folder / "special_tokens_map.json")
        if not set(overriding) <= set(ROLES):
            raise KeyError(f"{folder}: special_tokens_map.json names more than the usual roles")
        stated |= overriding
    tokens = ((role, stated.get(role)) for role in ROLES)
    return {role: token if isinstance(token, str) else token["content"] for role, token in tokens if token is not None}
