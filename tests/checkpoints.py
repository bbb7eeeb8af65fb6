"""Tiny random embedder checkpoints in the published layout, the same on every machine and release.

The weights come from numpy's PCG64, seeded by each parameter's name, not from torch's initialisation; the tokenizers
are written as JSON. `build(kind, folder)` makes any of KINDS.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    BertConfig,
    Gemma2Config,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    XLMRobertaConfig,
)

SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!'\"()[]{}<>|/-_=+*&%$#@"
    "的是在一中国日本語文カタひらがな한국어Приветмирالسلامعليכםשלוםนยाहिन्दीΕλληνικάქართულიहേതമിಕತ"
)
WORDS = ("the", "what", "is", "panda", "bear", "of", "and", "river", "query", "passage", "ing", "ed", "er", "re")
COMMON: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DECODER: dict[str, Any] = {**COMMON, "num_key_value_heads": 2, "max_position_embeddings": 2048, "head_dim": 8}


def build(kind: str, folder: Path) -> Path:
    """The checkpoint of this kind in `folder` (made if need be); the folder is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    KINDS[kind](folder)
    return folder


def save_weights(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """A model of this configuration with reproducible weights, saved as safetensors."""
    model: PreTrainedModel = AutoModel.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_values(name, tuple(parameter.shape)))
    model.save_pretrained(folder)
    return model


def _values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape, dtype=np.float32) * 0.15
    is_norm = "norm" in name.lower() and name.endswith("weight")
    return torch.from_numpy(values + 1 if is_norm else values)


def linear(name: str, width: int, hidden: int = 32) -> dict[str, torch.Tensor]:
    """A head's state dict."""
    return {"weight": _values(f"{name}.weight", (width, hidden)), "bias": _values(f"{name}.bias", (width,))}


def sparse_linear() -> dict[str, torch.Tensor]:
    """M3's sparse head, with a bias that makes about half of `m3`'s weights positive."""
    return {"weight": linear("sparse_linear", 1)["weight"], "bias": torch.tensor([1.25])}


def write_tokenizer(folder: Path, pipeline: dict[str, Any], config: dict[str, Any]) -> None:
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    _write_json(folder / "tokenizer.json", {"version": "1.0", **empty, **pipeline})
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _added(tokens: dict[str, int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": token, **flags, "lstrip": token == "<mask>"} for token, i in tokens.items()]


def _template(before: list[str], after: list[str], ids: dict[str, int]) -> dict[str, Any]:
    def special(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    pair = [{"Sequence": {"id": "B", "type_id": 0}}]
    single = [special(t) for t in before] + text + [special(t) for t in after]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + pair,
        "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in {*before, *after}},
    }


def bert_tokenizer(folder: Path) -> int:
    """WordPiece with BERT's normaliser; returns the number of tokens."""
    characters = list(dict.fromkeys(SCRIPTS.lower()))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *characters]
    vocab = {t: i for i, t in enumerate([*tokens, *(f"##{t}" for t in [*WORDS, *characters])])}
    specials = {t: vocab[t] for t in tokens[:5]}
    pipeline = {
        "added_tokens": _added(specials),
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(["[CLS]"], ["[SEP]"], specials),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    }  # fmt: skip
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    write_tokenizer(folder, pipeline, {"tokenizer_class": "BertTokenizer", "mask_token": "[MASK]", **names})
    return len(vocab)


def xlmr_tokenizer(folder: Path, tokenizer_class: str = "XLMRobertaTokenizerFast") -> int:
    """Unigram in the form of bge-m3's tokenizer.json: runs of spaces collapse, then Metaspace; no WhitespaceSplit."""
    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    pieces = dict.fromkeys(["▁", *(f"▁{w}" for w in WORDS), *WORDS, *SCRIPTS, *(f"▁{c}" for c in SCRIPTS[:40])])
    vocab = [*((t, 0.0) for t in specials), *((p, -2.0 - i / 50 - 3 * (len(p) == 1)) for i, p in enumerate(pieces))]
    specials["<mask>"] = len(vocab)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    pipeline = {
        "added_tokens": _added(specials),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}],
        },
        "pre_tokenizer": metaspace,
        "post_processor": _template(["<s>"], ["</s>"], specials),
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    more = {"unk_token": "<unk>", "mask_token": "<mask>", "tokenizer_class": tokenizer_class}
    write_tokenizer(folder, pipeline, {**names, **more})
    return len(vocab) + 1


def sentencepiece_bpe_tokenizer(folder: Path, tokenizer_class: str, padding_side: str, spaces: bool) -> int:
    """BPE with byte fallback, `<s>` before and `</s>` after a text: Mistral's (with a leading space) and Gemma's."""
    specials = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "<mask>": 4}
    vocab = {**specials, **{f"<0x{i:02X}>": 5 + i for i in range(256)}}
    for piece in dict.fromkeys(["▁", "\n", *SCRIPTS, *(c for w in WORDS for c in w)]):
        vocab.setdefault(piece, len(vocab))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizers = [{"type": "Prepend", "prepend": "▁"}, replace] if spaces else [replace]
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if spaces else []
    pipeline = {
        "added_tokens": _added(specials),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "post_processor": _template(["<s>"], ["</s>"], specials),
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": _bpe(vocab, unk_token="<unk>", byte_fallback=True, fuse_unk=True),
    }
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    flags = {"add_bos_token": True, "add_eos_token": True, "padding_side": padding_side, "mask_token": "<mask>"}
    write_tokenizer(folder, pipeline, {**names, **flags, "tokenizer_class": tokenizer_class})
    return len(vocab)


def byte_level_tokenizer(folder: Path) -> int:
    """Byte-level BPE with `<|endoftext|>` after a text, as Qwen3-Embedding's."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocab = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    specials = {"<|endoftext|>": len(vocab), "<|im_end|>": len(vocab) + 1}
    vocab.update(specials)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    pipeline = {
        "added_tokens": _added(specials),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "Sequence", "processors": [byte_level, _template([], ["<|endoftext|>"], specials)],
        },
        "decoder": byte_level,
        "model": _bpe(vocab),
    }  # fmt: skip
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
    write_tokenizer(folder, pipeline, {**names, "add_bos_token": False, "tokenizer_class": "Qwen2Tokenizer"})
    return len(vocab)


def _bpe(vocab: dict[str, int], **options: Any) -> dict[str, Any]:
    """Every word that can be spelled in `vocab` becomes a token, by merges from the left."""
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            merge = [word[: end - 1], word[end - 1 : end]]
            if merge not in merges:
                merges.append(merge)
                vocab.setdefault(word[:end], len(vocab))
    unset = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {"type": "BPE", **unset, **options, "vocab": vocab, "merges": merges}


def bert(folder: Path) -> None:
    size = bert_tokenizer(folder)
    save_weights(BertConfig(vocab_size=size, max_position_embeddings=512, **COMMON), folder)


def _xlmr(folder: Path, **options: Any) -> None:
    size = xlmr_tokenizer(folder, **options)
    save_weights(XLMRobertaConfig(vocab_size=size, max_position_embeddings=514, pad_token_id=1, **COMMON), folder)


def xlmr(folder: Path) -> None:
    _xlmr(folder)


def m3(folder: Path, colbert_dim: int = 32) -> None:
    """XLM-R with both heads as `.pt`, the way they are published."""
    _xlmr(folder)
    torch.save(sparse_linear(), folder / "sparse_linear.pt")
    torch.save(linear("colbert_linear", colbert_dim), folder / "colbert_linear.pt")


def m3_small_colbert(folder: Path) -> None:
    m3(folder, colbert_dim=16)


def mistral(folder: Path) -> None:
    size = sentencepiece_bpe_tokenizer(folder, "LlamaTokenizerFast", "left", spaces=True)
    save_weights(MistralConfig(vocab_size=size, sliding_window=None, **DECODER), folder)


def qwen3(folder: Path) -> None:
    save_weights(Qwen3Config(vocab_size=byte_level_tokenizer(folder), **DECODER), folder)


def gemma2(folder: Path) -> None:
    size = sentencepiece_bpe_tokenizer(folder, "GemmaTokenizerFast", "right", spaces=False)
    config = Gemma2Config(vocab_size=size, query_pre_attn_scalar=8, sliding_window=64, **DECODER)
    save_weights(config, folder)


def headless_m3(folder: Path) -> None:
    """The sparse head alone: ColBERT cannot be asked for."""
    _xlmr(folder)
    save_file(sparse_linear(), folder / "sparse_linear.safetensors")


KINDS: dict[str, Callable[[Path], None]] = {
    "bert": bert,
    "xlmr": xlmr,
    "m3": m3,
    "m3_small_colbert": m3_small_colbert,
    "m3_sparse_only": headless_m3,
    "mistral": mistral,
    "qwen3": qwen3,
    "gemma2": gemma2,
}
