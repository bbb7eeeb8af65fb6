"""What is compared with FlagEmbedding: checkpoints, arguments and pairs, shared by the recorder and the test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """`load` goes to the constructor, `call` to compute_score; `env` is the release of transformers that can run it."""

    kind: str
    flag_class: str
    env: str
    checkpoint: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    fresh: bool = False
    """Upstream scores each pair in a new object: its dynamic rotary positions remember the longest text so far."""


def _encoder(kind: str, checkpoint: dict[str, Any] | None = None, /, **call: Any) -> Case:
    return Case(kind, "FlagReranker", "legacy", checkpoint or {}, {}, call)


def _instructed(kind: str) -> Case:
    load = {"query_instruction_for_rerank": "query", "query_instruction_format": "{}: {}"}
    load |= {"passage_instruction_for_rerank": "passage:\\n", "passage_instruction_format": "{}\\n{}"}
    return Case(kind, "FlagReranker", "legacy", {}, load)


def _llm(kind: str = "llama", checkpoint: dict[str, Any] | None = None, /, **call: Any) -> Case:
    return Case(kind, "FlagLLMReranker", "parity", checkpoint or {}, {}, call)


def _layers(checkpoint: dict[str, Any] | None = None, /, **call: Any) -> Case:
    return Case("minicpm", "LayerWiseFlagLLMReranker", "legacy", checkpoint or {}, {}, call)


def _light(checkpoint: dict[str, Any] | None = None, /, **call: Any) -> Case:
    return Case("cost_wise_gemma", "LightWeightFlagLLMReranker", "legacy", checkpoint or {}, {}, call)


DECODER_INSTRUCTIONS = {"query_instruction_for_rerank": "Q: ", "passage_instruction_for_rerank": "P: "}

CASES: dict[str, Case] = {
    "bert": _encoder("bert"),
    "bert_short": _encoder("bert", max_length=64),
    "bert_query_length": _encoder("bert", max_length=60, query_max_length=10),
    "bert_long_query": _encoder("bert", max_length=40, query_max_length=40),
    "bert_normalize": _encoder("bert", normalize=True),
    "bert_instructions": _instructed("bert"),
    "xlm_roberta": _encoder("xlm_roberta"),
    "xlm_roberta_short": _encoder("xlm_roberta", max_length=33),
    "xlm_roberta_no_room": _encoder("xlm_roberta", max_length=16),
    "xlm_roberta_instructions": _instructed("xlm_roberta"),
    "llama": _llm(),
    "llama_left": _llm("llama", {"tokenizer": {"side": "left"}}),
    "llama_bos_is_pad": _llm("llama", {"tokenizer": {"bos": "</s>"}}),
    "llama_no_bos": _llm("llama", {"tokenizer": {"bos": None}}),
    "llama_short": _llm(max_length=32),
    "llama_long_query": _llm(max_length=32, query_max_length=40),
    "llama_prompt": _llm(prompt="Is B the answer?"),
    "llama_instructions": Case("llama", "FlagLLMReranker", "parity", {}, DECODER_INSTRUCTIONS),
    "llama_lora": Case("llama", "FlagLLMReranker", "parity", lora=True),
    "gemma": _llm("gemma"),
    "gemma_normalize": _llm("gemma", normalize=True),
    "layerwise": _layers(),
    "layerwise_several": _layers(cutoff_layers=[2, 4, 6]),
    "layerwise_one": _layers(cutoff_layers=[3]),
    "layerwise_int": _layers(cutoff_layers=5),
    "layerwise_normalize": _layers(cutoff_layers=[2, 6], normalize=True),
    "layerwise_short": _layers(max_length=40, query_max_length=12),
    "layerwise_shared_head": _layers({"head_multi": False}, cutoff_layers=[2, 5]),
    "layerwise_linear_rope": _layers({"rope_scaling": {"type": "linear", "factor": 2.0}}, cutoff_layers=[4, 6]),
    "layerwise_dynamic_rope": _layers({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, cutoff_layers=[4, 6]),
    "layerwise_bias": _layers({"attention_bias": True, "start_layer": 4, "rope_theta": 500.0}, cutoff_layers=[4, 6]),
    "layerwise_dynamic_long": Case(
        "minicpm",
        "LayerWiseFlagLLMReranker",
        "legacy",
        {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 176},
        fresh=True,
    ),
    "layerwise_lora": Case("minicpm", "LayerWiseFlagLLMReranker", "legacy", lora=True),
    "lightweight": _light(),
    "lightweight_several": _light(cutoff_layers=[2, 4, 6]),
    "lightweight_one": _light(cutoff_layers=[4]),
    "lightweight_grid": _light({"layer_sep": 2}, cutoff_layers=[2, 4, 6]),
    "lightweight_ratio_2": _light(compress_layers=[2], compress_ratio=2),
    "lightweight_ratio_4": _light(compress_layers=[3], compress_ratio=4, cutoff_layers=[3, 5]),
    "lightweight_ratio_8": _light(compress_layers=[2, 4], compress_ratio=8, cutoff_layers=[2, 4, 6]),
    "lightweight_layer_0": _light(compress_layers=[0, 5], compress_ratio=2),
    "lightweight_short": _light(max_length=40, compress_layers=[2], compress_ratio=2, normalize=True),
    "lightweight_soft_caps": _light({"attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0}),
    "lightweight_window": _light({"sliding_window": 16}, compress_layers=[3], compress_ratio=2),
    "lightweight_no_caps": _light({"attn_logit_softcapping": None, "final_logit_softcapping": None}),
}
