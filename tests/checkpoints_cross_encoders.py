"""Tiny random cross-encoders in the layouts of sentence-transformers, and a Qwen3-Reranker as published."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from checkpoints import COMMON, DECODER, _added, _bpe, write_tokenizer
from checkpoints_chains import modules_json, save_model, settings, write_json
from checkpoints_rerankers import PAIRS, bert, unigram, wordpiece, xlm_roberta
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

JUDGE_TEMPLATE = (
    "<|im_start|>system\n"
    "{%- set asked = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | list -%}"
    "{{ asked[0] if asked else 'Judge whether the Document meets the requirements.' }}<|im_end|>\n<|im_start|>user\n"
    "<Query>: {{ (messages | selectattr('role', 'eq', 'query') | list)[0]['content'] }}\n"
    "<Document>: {{ (messages | selectattr('role', 'eq', 'document') | list)[0]['content'] }}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def build_cross_encoder(kind: str, folder: Path) -> Path:
    """Writes the checkpoint of this kind into `folder` (made if need be) and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    CROSS_ENCODERS[kind](folder)
    return folder


def chat_tokenizer(folder: Path, template: str | None = None) -> tuple[int, int, int]:
    """A byte-level tokenizer of Qwen's kind without special tokens around a text; size, `yes` and `no`."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocab = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    specials = {t: len(vocab) + i for i, t in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))}
    vocab.update(specials)
    model = _bpe(vocab)
    for word in ("yes", "no"):
        for end in range(2, len(word) + 1):
            merge = [word[: end - 1], word[end - 1 : end]]
            if merge not in model["merges"]:
                model["merges"].append(merge)
                vocab.setdefault(word[:end], len(vocab))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    pipeline = {
        "added_tokens": _added(specials), "normalizer": {"type": "NFC"}, "pre_tokenizer": byte_level,
        "post_processor": byte_level, "decoder": byte_level, "model": model,
    }  # fmt: skip
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
    more = {} if template is None else {"chat_template": template}
    write_tokenizer(folder, pipeline, {**names, **more, "add_bos_token": False, "tokenizer_class": "Qwen2Tokenizer"})
    return len(vocab), vocab["yes"], vocab["no"]


def classifier(config: PreTrainedConfig, folder: Path, **stored: Any) -> None:
    """A sequence classifier with one label; `stored` goes into config.json."""
    config.num_labels = 1
    save_model(config, folder, AutoModelForSequenceClassification)
    written = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**written, **stored})


def _activation(name: str) -> dict[str, Any]:
    return {"sentence_transformers": {"activation_fn": f"torch.nn.modules.{name}", "version": "4.1.0"}}


def legacy_identity(folder: Path) -> None:
    """ms-marco-MiniLM's layout of before version 4."""
    bert(folder, sbert_ce_default_activation_function="torch.nn.modules.linear.Identity")
    _limit(folder, 512)


def _limit(folder: Path, length: int) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**config, "model_max_length": length})


def saved_by_six(folder: Path) -> None:
    """A folder as version 6 saves it: modules.json, settings, a prompt and a length of its own."""
    xlm_roberta(folder)
    _limit(folder, 512)
    modules_json(folder, [])
    settings(folder, "CrossEncoder", activation_fn="torch.nn.modules.activation.Tanh", prompts={"q": "query: "},
             default_prompt_name="q")  # fmt: skip
    task = {"transformer_task": "sequence-classification", "max_seq_length": 41}
    write_json(folder / "sentence_bert_config.json", task)


def modernbert(pool: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        size = wordpiece(folder)
        ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        sizes = {**COMMON, "num_hidden_layers": 4, "max_position_embeddings": 1024}
        config = ModernBertConfig(
            vocab_size=size, local_attention=16, global_attn_every_n_layers=3, classifier_pooling=pool, **ids, **sizes
        )
        classifier(config, folder, **_activation("activation.Sigmoid"))

    return write


def deberta(folder: Path) -> None:
    """mxbai-rerank-v1's layout: DeBERTa-v2 with relative positions."""
    config = DebertaV2Config(
        vocab_size=unigram(folder), relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"],
        share_att_key=True, norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
        max_position_embeddings=512, pooler_hidden_size=COMMON["hidden_size"], **COMMON,
    )  # fmt: skip
    classifier(config, folder, **_activation("activation.Sigmoid"))


def other(kind: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        config: PreTrainedConfig
        if kind == "distilbert":
            config = DistilBertConfig(vocab_size=wordpiece(folder), dim=32, n_layers=2, n_heads=4, hidden_dim=64)
        elif kind == "electra":
            config = ElectraConfig(vocab_size=wordpiece(folder), embedding_size=32, **COMMON)
        else:
            sizes = {"vocab_size": unigram(folder), "max_position_embeddings": 514, "type_vocab_size": 1}
            config = RobertaConfig(pad_token_id=1, **sizes, **COMMON)
        classifier(config, folder, **_activation("linear.Identity"))
        _limit(folder, 512)

    return write


def decoder_classifier(folder: Path) -> None:
    """Qwen3ForSequenceClassification, which reads the last token."""
    size, _, _ = chat_tokenizer(folder)
    config = Qwen3Config(vocab_size=size, pad_token_id=256, **DECODER)
    classifier(config, folder, **_activation("activation.Sigmoid"))
    _limit(folder, 300)


def logit_score(config_class: Any, stored: Mapping[str, Any], no: bool = True) -> Callable[[Path], None]:
    """A causal model with LogitScore, read through a chat template: Qwen3-Reranker and mxbai-rerank-v2 in version 6."""

    def write(folder: Path) -> None:
        size, yes, refuse = chat_tokenizer(folder, JUDGE_TEMPLATE)
        save_model(config_class(vocab_size=size, **DECODER), folder, AutoModelForCausalLM)
        config = {"true_token_id": yes, "false_token_id": refuse if no else None, "module_input_name": "causal_logits"}
        modules_json(folder, [("sentence_transformers.cross_encoder.modules.logit_score.LogitScore", config, {})])
        settings(folder, "CrossEncoder", **stored)
        method = {"method": "forward", "method_output_name": "logits"}
        transformer = {
            "transformer_task": "text-generation",
            "modality_config": {"text": method, "message": {**method, "format": "flat"}},
            "module_output_name": "causal_logits",
        }
        write_json(folder / "sentence_bert_config.json", transformer)
        _limit(folder, 400)

    return write


def qwen3_reranker(folder: Path) -> None:
    """As published in 2025: a causal model, its prompt only on the model card."""
    size, _, _ = chat_tokenizer(folder)
    save_model(Qwen3Config(vocab_size=size, **DECODER), folder, AutoModelForCausalLM)
    _limit(folder, 131072)


def pairs_of(kind: str) -> list[tuple[str, str]]:
    """The pairs that judge a kind: without special tokens there is nothing to score in two empty texts."""
    return [pair for pair in PAIRS if any(pair)] if kind == "decoder_classifier" else PAIRS


CROSS_ENCODERS: dict[str, Callable[[Path], None]] = {
    "legacy_identity": legacy_identity,
    "saved_by_six": saved_by_six,
    "modernbert_cls": modernbert("cls"),
    "modernbert_mean": modernbert("mean"),
    "deberta": deberta,
    "distilbert": other("distilbert"),
    "electra": other("electra"),
    "roberta": other("roberta"),
    "decoder_classifier": decoder_classifier,
    "logit_score": logit_score(Qwen3Config, {"activation_fn": "torch.nn.modules.activation.Sigmoid"}),
    "logit_score_prompted": logit_score(
        Qwen2Config,
        {
            "activation_fn": "torch.nn.Identity",
            "prompts": {"web": "Judge it."},
            "default_prompt_name": "web",
        },
    ),
    "logit_score_one": logit_score(Qwen2Config, {"activation_fn": "torch.nn.modules.linear.Identity"}, no=False),
    "Qwen3-Reranker-tiny": qwen3_reranker,
}
