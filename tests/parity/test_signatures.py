"""Arguments of every class with FlagEmbedding's name stand in upstream's order, so that positional calls mean the same.

The table is FlagEmbedding 1.4.2's. Where FlagEmbedding is installed (`make test-adapters`), it is checked against it.
"""

from __future__ import annotations

import importlib
import inspect
from importlib.util import find_spec
from typing import Any

import pytest

import tridex

START = ["model_name_or_path", "normalize_embeddings", "use_fp16", "use_bf16"]
START += ["query_instruction_for_retrieval", "query_instruction_format"]
LENGTHS = ["batch_size", "query_max_length", "passage_max_length"]
DECODER = ["devices", "trust_remote_code", "cache_dir", *LENGTHS, "convert_to_numpy", "truncate_dim"]
ENCODER = ["devices", "pooling_method", "trust_remote_code", "cache_dir"]
OUTPUTS = ["return_dense", "return_sparse", "return_colbert_vecs"]
EXAMPLES = ["examples_for_task", "examples_instruction_format"]
FORMATS = ["query_instruction_for_rerank", "query_instruction_format"]
FORMATS += ["passage_instruction_for_rerank", "passage_instruction_format"]
LLM_RERANKER = ["model_name_or_path", "peft_path", "use_fp16", "use_bf16", *FORMATS]
LLM_RERANKER += ["cache_dir", "trust_remote_code", "devices"]
LIMITS = ["batch_size", "query_max_length", "max_length", "normalize"]
CONSTRUCTORS = {
    "FlagModel": [*START, *ENCODER, *LENGTHS, "convert_to_numpy", "truncate_dim"],
    "BGEM3FlagModel": [*START, *ENCODER, "colbert_dim", *LENGTHS, *OUTPUTS, "truncate_dim"],
    "FlagLLMModel": [*START, *DECODER],
    "FlagICLModel": [*START, "suffix", "devices", *EXAMPLES, *DECODER[1:]],
    "FlagPseudoMoEModel": [*START, *DECODER, "domain_for_pseudo_moe"],
    "FlagReranker": ["model_name_or_path", "use_fp16", *FORMATS, "trust_remote_code", "cache_dir", "devices", *LIMITS],
    "FlagLLMReranker": [*LLM_RERANKER, "prompt", *LIMITS],
    "LayerWiseFlagLLMReranker": [*LLM_RERANKER, "cutoff_layers", "prompt", *LIMITS],
    "LightWeightFlagLLMReranker": [
        *LLM_RERANKER, "cutoff_layers", "compress_layers", "compress_ratio", "prompt", *LIMITS
    ],
}  # fmt: skip
DENSE, M3 = ["batch_size", "max_length", "convert_to_numpy"], ["batch_size", "max_length", *OUTPUTS]
FACTORY = ["model_name_or_path", "model_class"]
METHODS = {
    **{
        (name, method): [first, *(M3 if name == "BGEM3FlagModel" else DENSE)]
        for name in list(CONSTRUCTORS)[:5]
        for method, first in (("encode", "sentences"), ("encode_corpus", "corpus"), ("encode_queries", "queries"))
    },
    **{(name, "compute_score"): ["sentence_pairs"] for name in list(CONSTRUCTORS)[5:]},
    ("BGEM3FlagModel", "compute_score"): [
        "sentence_pairs", "batch_size", "max_query_length", "max_passage_length", "weights_for_different_modes"
    ],
    ("BGEM3FlagModel", "colbert_score"): ["q_reps", "p_reps"],
    ("BGEM3FlagModel", "convert_id_to_token"): ["lexical_weights"],
    ("BGEM3FlagModel", "compute_lexical_matching_score"): ["lexical_weights_1", "lexical_weights_2"],
    ("FlagAutoModel", "from_finetuned"): [
        *FACTORY, *START[1:5], "devices", "pooling_method", "trust_remote_code", "query_instruction_format",
        "truncate_dim",
    ],
    ("FlagAutoReranker", "from_finetuned"): [*FACTORY, "use_fp16", "trust_remote_code"],
}  # fmt: skip
STANDS_FOR = {
    "pooling_method": None,  # of a known name's pooling, else cls
    "query_max_length": None,  # of 512, or the model's positions
    "passage_max_length": None,
    "compress_layers": (8,),
}
"""Defaults that are written otherwise than upstream's, and mean the same."""
UNLIKE_UPSTREAM = {
    ("FlagPseudoMoEModel", "trust_remote_code"): False,  # a checkpoint's code runs on request only
    ("FlagAutoModel", "normalize_embeddings"): None,  # True, or what an unknown checkpoint's own files say
}


def positional(function: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = inspect.signature(function).parameters.values()
    return [p.name for p in named if p.kind in kinds and p.name != "self"]


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructors_begin_with_upstreams_arguments(name: str) -> None:
    expected = CONSTRUCTORS[name]
    assert positional(getattr(tridex, name))[: len(expected)] == expected


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_methods_begin_with_upstreams_arguments(name: str, method: str) -> None:
    expected = METHODS[name, method]
    assert positional(getattr(getattr(tridex, name), method))[: len(expected)] == expected


@pytest.mark.skipif(find_spec("FlagEmbedding") is None, reason="FlagEmbedding is not installed")
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_the_table_is_upstreams(name: str) -> None:
    upstream = getattr(importlib.import_module("FlagEmbedding"), name)
    assert positional(upstream) == CONSTRUCTORS[name]
    ours = defaults(getattr(tridex, name))
    for argument, value in defaults(upstream).items():
        same = STANDS_FOR.get(argument, value) if "Reranker" not in name or argument == "compress_layers" else value
        assert ours[argument] == UNLIKE_UPSTREAM.get((name, argument), same), argument


@pytest.mark.skipif(find_spec("FlagEmbedding") is None, reason="FlagEmbedding is not installed")
@pytest.mark.parametrize(("name", "method"), METHODS)
def test_the_table_of_methods_is_upstreams(name: str, method: str) -> None:
    assert positional(getattr(getattr(importlib.import_module("FlagEmbedding"), name), method)) == METHODS[name, method]
