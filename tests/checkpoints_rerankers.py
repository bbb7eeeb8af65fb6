"""Tiny random reranker checkpoints, written file by file in the published layout.

Nothing here goes through transformers: its initialisation order and its rewriting of configs differ between releases,
and the goldens are recorded under two of them. The values come from numpy's PCG64, which is stable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!'\"()-/的是在日本語кириаnلعरबनé"
WORDS = ("what", "is", "the", "a", "panda", "bear", "query", "passage", "answer", "to", "of", "and", "river", "city")

LONG = " ".join(f"the panda {i} is a bear of the river and the city," for i in range(60))
LONG_QUESTION = " ".join(f"what is the answer {i} to the query?" for i in range(40))

PAIRS: list[tuple[str, str]] = [
    ("what is panda?", "hi"),
    ("what is panda?", "The giant panda is a bear species endemic to the river and the city."),
    ("", "the river"),
    ("the query", ""),
    ("", ""),
    ("what is panda?", LONG),
    (LONG_QUESTION, "the answer"),
    (LONG_QUESTION, LONG),
    ("日本語 的 是?", "是在 日本 語。 panda"),
    ("река и ара", "каир бана ri city"),
    ("नल रब", "عربن the 🐼 panda"),
    ("  the   city ", "trailing space "),
    ("line\nbreak", "tab\tand\n\nlines"),
    ("Yes", "the answer is Yes"),
]
"""Empty and very long sides, several scripts, odd white space."""

Shapes = dict[str, tuple[int, ...]]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _unique(items: str) -> list[str]:
    return list(dict.fromkeys(items))


def _added(tokens: Mapping[str, int]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": token, **flags} for token, i in tokens.items()]


def _tokenizer(folder: Path, config: dict[str, Any], **parts: Any) -> None:
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    _write_json(folder / "tokenizer.json", {"version": "1.0", **empty, **parts})
    _write_json(folder / "tokenizer_config.json", {"model_max_length": 10**6, **config})


def _pair_template(first: str, middle: list[str], last: str, ids: Mapping[str, int], kind: int) -> dict[str, Any]:
    def special(token: str, type_id: int = 0) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": type_id}}

    head = [special(first), {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": [*head, special(last)],
        "pair": [
            *head,
            *[special(token) for token in middle],
            {"Sequence": {"id": "B", "type_id": kind}},
            special(last, kind),
        ],
        "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in {first, *middle, last}},
    }


def wordpiece(folder: Path) -> int:
    """A lower-casing BERT tokenizer; returns the size of the vocabulary."""
    pieces = _unique(CHARACTERS.lower())
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[3:], *pieces, *[f"##{c}" for c in pieces]]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    _tokenizer(
        folder,
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "unk_token": "[UNK]", "sep_token": "[SEP]"}
        | {"pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"},
        added_tokens=_added({t: ids[t] for t in vocab[:5]}),
        normalizer={"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
        | {"strip_accents": None, "lowercase": True},
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=_pair_template("[CLS]", ["[SEP]"], "[SEP]", ids, kind=1),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        model={"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
        | {"max_input_chars_per_word": 100, "vocab": ids},
    )
    (folder / "vocab.txt").write_text("\n".join(ids), encoding="utf-8")
    return len(ids)


def unigram(folder: Path) -> int:
    """An XLM-R tokenizer as published: Metaspace over the whole text, runs of spaces collapsed."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", *[f"▁{w}" for w in WORDS], *_unique(CHARACTERS), "<mask>"]
    scores = [
        0.0 if t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>") else -1.0 - 0.01 * i for i, t in enumerate(tokens)
    ]
    ids = {token: i for i, token in enumerate(tokens)}
    _tokenizer(
        folder,
        {"tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        | {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"},
        added_tokens=_added({t: ids[t] for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")}),
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}],
        },
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        post_processor=_pair_template("<s>", ["</s>", "</s>"], "</s>", ids, kind=0),
        decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        model={"type": "Unigram", "unk_id": 3, "vocab": [list(pair) for pair in zip(tokens, scores, strict=True)]}
        | {"byte_fallback": False},
    )
    return len(ids)


def byte_bpe(folder: Path, *, prefix_space: bool = True, bos: str | None = "<s>", side: str = "right") -> int:
    """A Llama tokenizer (`prefix_space`) or a Gemma one; every byte is a token, so nothing is unknown."""
    merges = [["Y", "e"], ["Ye", "s"], ["▁", "Yes"], ["t", "h"], ["th", "e"], ["▁", "the"], ["a", "n"], ["▁", "a"]]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], "▁", *_unique(CHARACTERS)]
    tokens += ["".join(pair) for pair in merges]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    space: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"} | ({"bos_token": bos} if bos else {})
    _tokenizer(
        folder,
        {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": side, "clean_up_tokenization_spaces": False}
        | names,
        added_tokens=_added({t: ids[t] for t in ("<unk>", "<s>", "</s>")}),
        normalizer=prepend if prefix_space else space,
        decoder={"type": "ByteFallback"},
        model={"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None}
        | {"end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": ids, "merges": merges},
    )
    return len(ids)


def _values(name: str, shape: tuple[int, ...], gemma: bool, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Scaled so that activations neither vanish nor explode, and attention is far from uniform."""
    noise = rng.standard_normal(shape)
    if len(shape) == 1:
        is_scale = name.endswith("norm.weight") or "LayerNorm.weight" in name
        return (0.2 * noise + (1.0 if is_scale and not gemma else 0.0)).astype(np.float32)
    scale = 0.4 if "embed" in name else 1.3 / shape[1] ** 0.5
    return (scale * noise).astype(np.float32)


def _save(folder: Path, config: dict[str, Any], shapes: Shapes, seed: int, *, gemma: bool = False) -> Path:
    rng = np.random.default_rng(seed)
    weights = {name: _values(name, shape, gemma, rng) for name, shape in sorted(shapes.items())}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    return folder


def _linear(name: str, out: int, width: int) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _encoder_shapes(root: str, config: dict[str, Any]) -> Shapes:
    h, f = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        f"{root}.embeddings.word_embeddings.weight": (config["vocab_size"], h),
        f"{root}.embeddings.position_embeddings.weight": (config["max_position_embeddings"], h),
        f"{root}.embeddings.token_type_embeddings.weight": (config["type_vocab_size"], h),
        **_linear(f"{root}.embeddings.LayerNorm", h, 0),
    }
    shapes[f"{root}.embeddings.LayerNorm.weight"] = (h,)
    for i in range(config["num_hidden_layers"]):
        layer = f"{root}.encoder.layer.{i}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= _linear(f"{layer}.{name}", h, h)
        shapes |= _linear(f"{layer}.intermediate.dense", f, h) | _linear(f"{layer}.output.dense", h, f)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}.{name}.weight": (h,), f"{layer}.{name}.bias": (h,)}
    return shapes


def _encoder_config(vocab: int, **changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "vocab_size": vocab,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        **changes,
    }


def bert(folder: Path, seed: int = 1, **changes: Any) -> Path:
    """BertForSequenceClassification: pooler, then one logit."""
    config = _encoder_config(wordpiece(folder), **changes)
    config |= {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "pad_token_id": 0}
    h, labels = config["hidden_size"], len(config["id2label"])
    shapes = _encoder_shapes("bert", config) | _linear("bert.pooler.dense", h, h) | _linear("classifier", labels, h)
    return _save(folder, config, shapes, seed)


def xlm_roberta(folder: Path, seed: int = 2, **changes: Any) -> Path:
    """XLMRobertaForSequenceClassification, the layout of bge-reranker-base, -large and -v2-m3."""
    defaults = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    config = _encoder_config(unigram(folder), **{**defaults, **changes})
    config |= {"model_type": "xlm-roberta", "architectures": ["XLMRobertaForSequenceClassification"]}
    config |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    h, labels = config["hidden_size"], len(config["id2label"])
    shapes = _encoder_shapes("roberta", config)
    shapes |= _linear("classifier.dense", h, h) | _linear("classifier.out_proj", labels, h)
    return _save(folder, config, shapes, seed)


def _decoder_shapes(config: dict[str, Any], norms: tuple[str, ...]) -> Shapes:
    h, f = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or h // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], h), "model.norm.weight": (h,)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        sizes = {"q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q)}
        shapes |= {f"{layer}.self_attn.{name}.weight": shape for name, shape in sizes.items()}
        if config.get("attention_bias"):
            shapes |= {f"{layer}.self_attn.{name}.bias": shape[:1] for name, shape in sizes.items()}
        shapes |= {f"{layer}.mlp.{name}.weight": (f, h) for name in ("gate_proj", "up_proj")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (h, f)} | {f"{layer}.{norm}.weight": (h,) for norm in norms}
    return shapes


def _decoder_config(vocab: int, **changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "vocab_size": vocab,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        **changes,
    }


TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def llama(folder: Path, seed: int = 3, *, tokenizer: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """LlamaForCausalLM with its own LM head."""
    config = _decoder_config(byte_bpe(folder, **(tokenizer or {})), **changes)
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    shapes = _decoder_shapes(config, TWO_NORMS) | {"lm_head.weight": (config["vocab_size"], config["hidden_size"])}
    return _save(folder, config, shapes, seed)


def gemma(folder: Path, seed: int = 4, **changes: Any) -> Path:
    """GemmaForCausalLM, the layout of bge-reranker-v2-gemma: the LM head is the embedding matrix."""
    config = _decoder_config(byte_bpe(folder, prefix_space=False), head_dim=16, **changes)
    config |= {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "hidden_activation": "gelu_pytorch_tanh"}
    return _save(folder, config | {"tie_word_embeddings": True}, _decoder_shapes(config, TWO_NORMS), seed, gemma=True)


def _heads(kind: str, count: int | None, vocab: int, hidden: int) -> Shapes:
    shape = (1 if kind == "simple" else vocab, hidden)
    inner = "weight" if kind == "raw" else "linear_head.weight"
    return {f"lm_head.{inner}": shape} if count is None else {f"lm_head.{k}.{inner}": shape for k in range(count)}


def minicpm(folder: Path, seed: int = 5, **changes: Any) -> Path:
    """LayerWiseMiniCPMForCausalLM: heads for the layers from `start_layer` to the last."""
    defaults = {"scale_emb": 4, "dim_model_base": 16, "scale_depth": 1.4, "start_layer": 2, "head_multi": True}
    config = _decoder_config(byte_bpe(folder), **{**defaults, "head_type": "simple", "rope_scaling": None, **changes})
    config |= {"model_type": "minicpm", "architectures": ["LayerWiseMiniCPMForCausalLM"], "tie_word_embeddings": False}
    count = config["num_hidden_layers"] - config["start_layer"] + 1 if config["head_multi"] else None
    heads = _heads(config["head_type"], count, config["vocab_size"], config["hidden_size"])
    return _save(folder, config, _decoder_shapes(config, TWO_NORMS) | heads, seed)


def cost_wise_gemma(folder: Path, seed: int = 6, **changes: Any) -> Path:
    """CostWiseGemmaForCausalLM on Gemma2 layers: heads on the grid start_layer, start_layer + layer_sep, ..."""
    defaults = {"start_layer": 2, "layer_sep": 1, "layer_wise": True, "query_pre_attn_scalar": 16, "head_dim": 16}
    defaults |= {"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    config = _decoder_config(byte_bpe(folder, prefix_space=False), **{**defaults, **changes})
    config |= {"model_type": "cost_wise_gemma", "architectures": ["CostWiseGemmaForCausalLM"]}
    config |= {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": False, "attention_bias": False}
    count = len(range(config["start_layer"], config["num_hidden_layers"] + 1, config["layer_sep"]))
    shapes = _decoder_shapes(config, FOUR_NORMS) | _heads("simple", count, 0, config["hidden_size"])
    return _save(folder, config, shapes, seed, gemma=True)


BUILDERS = {
    "bert": bert,
    "xlm_roberta": xlm_roberta,
    "llama": llama,
    "gemma": gemma,
    "minicpm": minicpm,
    "cost_wise_gemma": cost_wise_gemma,
}


def build(kind: str, folder: Path, **changes: Any) -> Path:
    """Writes a checkpoint of one of BUILDERS into `folder` and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return BUILDERS[kind](folder, **changes)


def lora(folder: Path, base: Path, seed: int = 7, rank: int = 4, alpha: int = 8) -> Path:
    """A LoRA adapter in peft's layout over the query and value projections of a decoder built above."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    rng = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[np.float32]] = {}
    adapted = [n for n in _decoder_shapes(config, TWO_NORMS) if n.endswith(("q_proj.weight", "v_proj.weight"))]
    for name in adapted:
        out, width = _decoder_shapes(config, TWO_NORMS)[name]
        name = name.removesuffix(".weight")
        weights[f"base_model.model.{name}.lora_A.weight"] = rng.standard_normal((rank, width)).astype(np.float32) * 0.2
        weights[f"base_model.model.{name}.lora_B.weight"] = rng.standard_normal((out, rank)).astype(np.float32) * 0.2
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _write_json(
        folder / "adapter_config.json",
        {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0}
        | {"target_modules": ["q_proj", "v_proj"], "bias": "none", "inference_mode": True}
        | {"base_model_name_or_path": str(base), "fan_in_fan_out": False},
    )
    return folder
