"""What the embedder goldens hold: texts, checkpoints and calls, shared by the recorder and the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from checkpoints import build, xlmr_tokenizer

TEXTS = [
    "",
    " ",
    "\n\n\t",
    "\u3000",
    "a",
    "what is the panda",
    "  leading and trailing  ",
    "two  spaces   inside",
    "the " * 700,
    "panda bear river query passage and more of the same over and over again. " * 60,
    "the the the the the the the the",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "x" * 300,
    "!!! ??? ... ,,, ;;; ---",
    "1234567890 3.14159 1e-9 0x1F",
    "HELLO World, CamelCase and snake_case",
    "naïve café résumé ÀÉÎÕÜ",
    "e\u0301 combining a\u0308 marks",
    "的是在一中国",
    "日本語の文、カタカナとひらがな。",
    "한국어 문장",
    "Привет, мир",
    "السلام عليكم",
    "שלום עולם",
    "สวัสดีชาวโลก",
    "हिन्दी में नमस्ते",
    "Ελληνικά γράμματα",
    "ქართული ენა",
    "Հայերեն",
    "தமிழ் ಕನ್ನಡ",
    "mixed English 中文 and русский together",
    "😀 emoji 🎉 and 👩\u200d👩\u200d👧 family",
    "<s> literal </s> specials <pad> <unk> <mask>",
    "[CLS] literal [SEP] specials [PAD] [UNK] [MASK]",
    "<|endoftext|> and <|im_end|>",
    "{braces} {} {0} {{}} {query!r}",
    "backslash \\n and real \n newline",
    "tab\tseparated\tvalues",
    "zero\u200bwidth\ufeff and \u00a0 no-break",
    "control \x00\x07 characters",
    "https://example.org/path?q=panda&x=1#frag",
    "def f(x): return {'a': [1, 2]}",
    "<b>html</b> &amp; entities",
    "ﬁ ligature ① circled Ｆｕｌｌ width",
    "…—–“quotes” ‘single’ «guillemets»",
    "end with newline\n",
    "query: what is a panda?",
    "A passage about the giant panda (Ailuropoda melanoleuca), a bear native to China.",
]
PAIRS = [*zip(TEXTS[4:40:3], TEXTS[5:41:3], strict=True), ("", "panda"), ("panda", ""), ("", "")]
EXAMPLES = [
    {"instruct": "Find the passage.", "query": "what is a panda", "response": "A bear."},
    {"query": "and the river", "response": "Water {with} braces."},
]

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One model object: which checkpoint, class and arguments, and what is called on it."""

    kind: str
    flag_class: str
    load: Mapping[str, Any] = field(default_factory=dict)
    calls: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"encode": {}})


ALL_CALLS: dict[str, dict[str, Any]] = {"encode": {}, "encode_queries": {}, "encode_corpus": {}}
QUERY_ARGUMENTS = {
    "query_instruction_for_retrieval": "Find {the} passage",
    "passage_instruction_for_retrieval": "Store: ",
    "query_max_length": 40,
    "passage_max_length": 100,
}
M3_CALLS = {
    "encode": {"return_sparse": True, "return_colbert_vecs": True, "max_length": 64},
    "encode_queries": {"return_sparse": True},
}
CASES: dict[str, Case] = {
    "bert_cls": Case("bert", "FlagModel", QUERY_ARGUMENTS, ALL_CALLS),
    "bert_mean": Case("bert", "FlagModel", {"pooling_method": "mean", "truncate_dim": 12}),
    "bert_raw": Case("bert", "FlagModel", {"normalize_embeddings": False}),
    "xlmr_mean": Case("xlmr", "FlagModel", {"pooling_method": "mean"}),
    "m3": Case("m3", "BGEM3FlagModel", {"query_max_length": 20}, M3_CALLS),
    "m3_small_colbert": Case("m3_small_colbert", "BGEM3FlagModel", {"colbert_dim": 16, "truncate_dim": 12,
        "query_instruction_for_retrieval": "find: "}, M3_CALLS),
    "m3_raw_mean": Case("m3", "BGEM3FlagModel", {"normalize_embeddings": False, "pooling_method": "mean"}, M3_CALLS),
    "mistral": Case("mistral", "FlagLLMModel", QUERY_ARGUMENTS, ALL_CALLS),
    "qwen3": Case("qwen3", "FlagLLMModel", {**QUERY_ARGUMENTS, "query_instruction_format": "Instruct: {}\\nQuery:{}"},
        ALL_CALLS),
    "gemma2": Case("gemma2", "FlagLLMModel", {**QUERY_ARGUMENTS, "query_instruction_format": "<instruct>{}\n<query>{}"},
        ALL_CALLS),
    "pseudo_moe": Case("qwen3", "FlagPseudoMoEModel", {"trust_remote_code": False, "use_bf16": False}, ALL_CALLS),
    "icl": Case("mistral", "FlagICLModel", {"query_max_length": 64, "passage_max_length": 100}, ALL_CALLS),
    "icl_examples": Case("mistral", "FlagICLModel", {**QUERY_ARGUMENTS, "examples_for_task": EXAMPLES}, ALL_CALLS),
}  # fmt: skip


def checkpoint(case: Case, folder: Path, *, for_upstream: bool = False) -> Path:
    """The case's checkpoint. Upstream gets XLM-R's tokenizer.json under the class that honours it."""
    build(case.kind, folder)
    if for_upstream and case.flag_class in ("FlagModel", "BGEM3FlagModel") and case.kind != "bert":
        xlmr_tokenizer(folder, tokenizer_class="PreTrainedTokenizerFast")
    return folder


def run(model: Any, case: Case) -> Arrays:
    """Every call of the case as flat arrays; M3's dicts and lists become ids, values and counts.

    Pairs are scored one at a time: in a batch, upstream's ColBERT score depends on the padding.
    """
    arrays: Arrays = {}
    for method, arguments in case.calls.items():
        result = getattr(model, method)(TEXTS, **arguments)
        parts = _flat_m3(result) if isinstance(result, dict) else {"dense": result}
        arrays.update({f"{method}.{name}": part for name, part in parts.items()})
    if case.flag_class == "BGEM3FlagModel":
        scores = model.compute_score(PAIRS, batch_size=1, weights_for_different_modes=[0.4, 0.2, 0.4])
        arrays.update({f"score.{name}": np.array(values, np.float32) for name, values in scores.items()})
    return arrays


def _flat_m3(result: Mapping[str, Any]) -> Arrays:
    rows = [sorted((int(k), float(v)) for k, v in row.items()) for row in result["lexical_weights"]]
    parts = {
        "dense": result["dense_vecs"],
        "sparse_counts": np.array([len(row) for row in rows], np.int32),
        "sparse_ids": np.array([k for row in rows for k, _ in row], np.int32),
        "sparse_weights": np.array([v for row in rows for _, v in row], np.float32),
    }
    if result["colbert_vecs"] is not None:
        parts["colbert_counts"] = np.array([len(row) for row in result["colbert_vecs"]], np.int32)
        parts["colbert"] = np.concatenate(result["colbert_vecs"])
    return parts
