"""Tiny random checkpoints in the layouts of sentence-transformers 6, PyLate and Stanford's ColBERT.

Each is written file by file over the encoders of `checkpoints.py`; `build_chain(kind, folder)` makes any of CHAINS.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import (
    COMMON,
    DECODER,
    _values,
    bert_tokenizer,
    byte_level_tokenizer,
    sentencepiece_bpe_tokenizer,
    xlmr_tokenizer,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    Gemma3TextConfig,
    GteConfig,
    ModernBertConfig,
    MPNetConfig,
    NomicBertConfig,
    PreTrainedConfig,
    Qwen3Config,
    T5Config,
    XLMRobertaConfig,
)

WIDTH = COMMON["hidden_size"]
Module = tuple[str, Mapping[str, Any], Mapping[str, torch.Tensor]]
"""Dotted class, config.json, weights."""


def build_chain(kind: str, folder: Path) -> Path:
    """The checkpoint of this kind in `folder` (made if need be); the folder is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    CHAINS[kind](folder)
    return folder


def save_model(config: PreTrainedConfig, folder: Path, auto: Any = AutoModel) -> None:
    """A model of this configuration with values that depend on the parameters' names alone."""
    model = auto.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_values(name, tuple(parameter.shape)))
    model.tie_weights()
    model.save_pretrained(folder)


def encoder(folder: Path, kind: str, auto: Any = AutoModel) -> None:
    """The transformer of a chain, with its tokenizer."""
    sizes = {"max_position_embeddings": 1024}
    if kind == "bert":
        config: PreTrainedConfig = BertConfig(vocab_size=bert_tokenizer(folder), **COMMON, max_position_embeddings=512)
    elif kind == "distilbert":
        config = DistilBertConfig(vocab_size=bert_tokenizer(folder), dim=WIDTH, n_layers=2, n_heads=4, hidden_dim=64)
    elif kind == "xlmr":
        size = xlmr_tokenizer(folder)
        config = XLMRobertaConfig(vocab_size=size, max_position_embeddings=514, pad_token_id=1, **COMMON)
    elif kind == "mpnet":
        size = xlmr_tokenizer(folder, "PreTrainedTokenizerFast")
        config = MPNetConfig(vocab_size=size, max_position_embeddings=514, pad_token_id=1, **COMMON)
    elif kind == "modernbert":
        size, ids = bert_tokenizer(folder), {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
        config = ModernBertConfig(
            vocab_size=size, local_attention=16, global_attn_every_n_layers=3, bos_token_id=2, eos_token_id=3,
            **ids, **{**COMMON, "num_hidden_layers": 4}, **sizes,
        )  # fmt: skip
    elif kind == "nomic":
        config = NomicBertConfig(vocab_size=bert_tokenizer(folder), head_dim=8, **COMMON, **sizes)
    elif kind == "gte":
        config = GteConfig(vocab_size=xlmr_tokenizer(folder, "PreTrainedTokenizerFast"), **COMMON, **sizes)
    elif kind == "qwen3":
        config = Qwen3Config(vocab_size=byte_level_tokenizer(folder), **DECODER)
    elif kind == "gemma3":
        size = sentencepiece_bpe_tokenizer(folder, "PreTrainedTokenizerFast", "right", spaces=False)
        config = Gemma3TextConfig(
            vocab_size=size, query_pre_attn_scalar=8, sliding_window=32, use_bidirectional_attention=True, **DECODER
        )
    elif kind == "t5":
        size = sentencepiece_bpe_tokenizer(folder, "PreTrainedTokenizerFast", "right", spaces=True)
        config = T5Config(vocab_size=size, d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    else:
        raise ValueError(kind)
    save_model(config, folder, auto)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def modules_json(folder: Path, modules: Sequence[Module], transformer: str = "Transformer") -> None:
    """modules.json and a folder for each module after the transformer."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"sentence_transformers.models.{transformer}"}]
    for i, (reference, config, weights) in enumerate(modules, start=1):
        path = f"{i}_{reference.rsplit('.', 1)[-1]}"
        listed.append({"idx": i, "name": str(i), "path": path, "type": reference})
        write_json(folder / path / "config.json", config)
        if weights:
            save_file(dict(weights), folder / path / "model.safetensors")
    write_json(folder / "modules.json", listed)


def settings(folder: Path, family: str, **stored: Any) -> None:
    write_json(folder / "config_sentence_transformers.json", {"model_type": family, **stored})


def pooling(mode: str | Sequence[str], width: int = WIDTH, **more: Any) -> Module:
    chosen = mode if isinstance(mode, str) else list(mode)
    config = {"embedding_dimension": width, "pooling_mode": chosen, **more}
    return "sentence_transformers.sentence_transformer.modules.Pooling", config, {}


def dense(name: str, width: int, out: int, activation: str = "linear.Identity", **config: Any) -> Module:
    bias = config.pop("bias", True)
    weights = {"linear.weight": _values(f"{name}.weight", (out, width))}
    if bias:
        weights["linear.bias"] = _values(f"{name}.bias", (out,))
    if config.get("use_residual") and width != out:
        weights["residual.weight"] = _values(f"{name}.residual", (out, width))
    stated = {"in_features": width, "out_features": out, "bias": bias, **config}
    stated["activation_function"] = f"torch.nn.modules.{activation}"
    return "sentence_transformers.models.Dense", stated, weights


NORMALIZE: Module = ("sentence_transformers.models.Normalize", {}, {})
TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
TOKEN_NORMALIZE: Module = ("sentence_transformers.base.modules.Normalize", TOKENS, {})


def layer_norm(width: int) -> Module:
    weights = {"norm.weight": _values("norm.weight", (width,)) + 0.2, "norm.bias": _values("norm.bias", (width,))}
    return "sentence_transformers.models.LayerNorm", {"dimension": width}, weights


def chain(
    kind: str, *modules: Module, family: str = "SentenceTransformer", transformer: Mapping[str, Any] | None = None,
    **stored: Any,
) -> Callable[[Path], None]:  # fmt: skip
    """A sentence-transformers folder over an encoder."""

    def write(folder: Path) -> None:
        encoder(folder, kind)
        modules_json(folder, modules)
        settings(folder, family, **stored)
        write_json(folder / "sentence_bert_config.json", transformer or {})

    return write


PROMPTS = {"prompts": {"query": "query: ", "document": "passage: ", "Clustering": "cluster the the "}}
MASK = "sentence_transformers.multi_vector_encoder.modules.MultiVectorMask"


def splade(kind: str, transformer: str = "MLMTransformer", pool: Mapping[str, Any] | None = None, **stored: Any) -> Any:
    def write(folder: Path) -> None:
        encoder(folder, kind, AutoModelForMaskedLM)
        config = {"pooling_strategy": "max", "activation_function": "relu", **(pool or {})}
        modules_json(
            folder, [("sentence_transformers.sparse_encoder.models.SpladePooling", config, {})],
            f"x.{transformer}".removeprefix("x."),
        )  # fmt: skip
        listed = json.loads((folder / "modules.json").read_text())
        room = "sparse_encoder.models" if transformer == "MLMTransformer" else "base.modules"
        listed[0]["type"] = f"sentence_transformers.{room}.{transformer}"
        write_json(folder / "modules.json", listed)
        settings(folder, "SparseEncoder", **stored)
        task = {} if transformer == "MLMTransformer" else {"transformer_task": "fill-mask"}
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": 200, **task})

    return write


def inference_free(folder: Path) -> None:
    """OpenSearch's doc-v3: a Router with a SPLADE document route and a table of IDF weights for queries."""
    document, query = folder / "document_0_MLMTransformer", folder / "query_0_SparseStaticEmbedding"
    for place in (document, query, folder / "document_1_SpladePooling"):
        place.mkdir(parents=True, exist_ok=True)
    encoder(document, "distilbert", AutoModelForMaskedLM)
    write_json(document / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    size = bert_tokenizer(query)
    weight = torch.from_numpy(np.abs(_values("idf", (size,)).numpy()))
    weight[:5] = 0
    save_file({"weight": weight}, query / "model.safetensors")
    write_json(query / "config.json", {"frozen": False})
    pool = {"pooling_strategy": "max", "activation_function": "log1p_relu", "word_embedding_dimension": size}
    write_json(folder / "document_1_SpladePooling" / "config.json", pool)
    types = {
        query.name: "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding",
        document.name: "sentence_transformers.sparse_encoder.models.MLMTransformer",
        "document_1_SpladePooling": "sentence_transformers.sparse_encoder.models.SpladePooling",
    }
    structure = {"query": [query.name], "document": [document.name, "document_1_SpladePooling"]}
    parameters = {"default_route": "document", "allow_empty_key": True}
    write_json(folder / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}]
    write_json(folder / "modules.json", listed)
    settings(folder, "SparseEncoder", prompts={"query": "", "document": ""}, similarity_fn_name="dot")


def pylate(kind: str, *modules: Module, **stored: Any) -> Callable[[Path], None]:
    """PyLate's layout; `[Q] ` and `[D] ` are tokens of their own with trained embeddings."""

    def write(folder: Path) -> None:
        encoder(folder, kind)
        add_markers(folder, ("[Q] ", "[D] "))
        modules_json(folder, modules)
        for i, (_, config, _) in enumerate(modules, start=1):
            kept = {k: v for k, v in config.items() if k not in TOKENS}
            write_json(folder / f"{i}_Dense" / "config.json", kept)
        listed = json.loads((folder / "modules.json").read_text())
        for entry in listed[1:]:
            entry["type"] = "pylate.models.Dense.Dense"
        write_json(folder / "modules.json", listed)
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": 299, "do_lower_case": False})
        defaults = {
            "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 24, "document_length": 90,
            "attend_to_expansion_tokens": False, "skiplist_words": list(string.punctuation),
            "do_query_expansion": True, "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "MaxSim",
        }  # fmt: skip
        settings(folder, "ColBERT", **{**defaults, **stored})

    return write


def add_markers(folder: Path, markers: Sequence[str]) -> None:
    """Adds tokens at the end of the vocabulary, and rows for them to the word embeddings."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    size = config["vocab_size"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    tokenizer["added_tokens"] += [{"id": size + i, "content": m, **flags} for i, m in enumerate(markers)]
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "config.json", {**config, "vocab_size": size + len(markers)})
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith(("word_embeddings.weight", "tok_embeddings.weight")))
    rows = _values("markers", (len(markers), weights[name].shape[1]))
    save_file({**weights, name: torch.cat([weights[name], rows])}, folder / "model.safetensors", {"format": "pt"})


def stanford(folder: Path) -> None:
    """ColBERTv2's layout: the projection among the encoder's weights, `[unused0]` and `[unused1]` as markers."""
    encoder(folder, "bert")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for new, old in (("[unused0]", "##q"), ("[unused1]", "##z")):
        vocabulary[new] = vocabulary.pop(old)
    write_json(folder / "tokenizer.json", tokenizer)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "architectures": ["HF_ColBERT"]})
    weights = {f"bert.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    weights["linear.weight"] = _values("linear.weight", (8, WIDTH))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    metadata = {
        "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 32, "doc_maxlen": 100,
        "attend_to_mask_tokens": False, "mask_punctuation": True,
    }  # fmt: skip
    write_json(folder / "artifact.metadata", metadata)


def multi_vector(kind: str, expansion: Mapping[str, Any] | None, **mask: Any) -> Callable[[Path], None]:
    """Sentence-transformers' MultiVectorEncoder: text prompts as markers, a mask module, lengths in the transformer."""
    transformer = {
        "max_seq_length": 300,
        "query_length": None if expansion else 40,
        "document_length": 120,
        "query_expansion": expansion,
    }
    return chain(
        kind, dense("late", WIDTH, 8, bias=False, **TOKENS), (MASK, mask, {}), TOKEN_NORMALIZE,
        family="MultiVectorEncoder", transformer={k: v for k, v in transformer.items() if v is not None},
        prompts={"query": "query: ", "document": "passage: "}, similarity_fn_name="maxsim",
    )  # fmt: skip


def static_table(folder: Path, size: int, width: int, model2vec: bool = False) -> None:
    """The weights of a StaticEmbedding in `folder`: sentence-transformers', or model2vec's with half of the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    if not model2vec:
        save_file({"embedding.weight": _values("static", (size, width))}, folder / "model.safetensors")
        return
    rows = size // 2
    tensors = {
        "embeddings": _values("static", (rows, width)),
        "mapping": torch.arange(size) % rows,
        "weights": _values("factors", (size,)).abs() + 0.1,
    }
    save_file(tensors, folder / "model.safetensors")


def static(model2vec: bool, *modules: Module, **stored: Any) -> Callable[[Path], None]:
    """static-retrieval-mrl-en-v1's layout (a folder for the table), or potion-base's (everything in the root)."""

    def write(folder: Path) -> None:
        inner = folder if model2vec else folder / "0_StaticEmbedding"
        inner.mkdir(parents=True, exist_ok=True)
        size = bert_tokenizer(inner)
        (inner / "tokenizer_config.json").unlink()
        static_table(inner, size, 24, model2vec)
        modules_json(folder, modules, "StaticEmbedding")
        if model2vec:
            write_json(folder / "config.json", {"model_type": "model2vec", "architectures": ["StaticModel"]})
        else:
            listed = json.loads((folder / "modules.json").read_text())
            listed[0]["path"] = "0_StaticEmbedding"
            write_json(folder / "modules.json", listed)
        if stored:
            settings(folder, "SentenceTransformer", **stored)

    return write


def router(folder: Path, routes: Mapping[str, Sequence[Module]], parameters: Mapping[str, Any]) -> None:
    """router_config.json and the folders of its modules."""
    types, structure = {}, {}
    for route, modules in routes.items():
        structure[route] = [f"{route}_{i}_{m[0].rsplit('.', 1)[-1]}" for i, m in enumerate(modules)]
        for path, (reference, config, weights) in zip(structure[route], modules, strict=True):
            types[path] = reference
            write_json(folder / path / "config.json", config)
            if weights:
                save_file(dict(weights), folder / path / "model.safetensors")
    stored = {"types": types, "structure": structure, "parameters": dict(parameters)}
    write_json(folder / "router_config.json", stored)


def router_after_pooling(folder: Path) -> None:
    """One transformer, a projection for queries and one for documents, as an asymmetric model was saved as Asym."""
    encoder(folder, "bert")
    modules_json(folder, [pooling("mean"), ("sentence_transformers.models.Asym", {}, {}), NORMALIZE])
    routes = {"query": [dense("q", WIDTH, 12)], "document": [dense("d", WIDTH, 12)]}
    router(folder / "2_Asym", routes, {"allow_empty_key": True})
    settings(folder, "SentenceTransformer", **PROMPTS)


def router_static_queries(folder: Path) -> None:
    """Queries by a static table, documents by a transformer (Router.for_query_document)."""
    reference = "sentence_transformers.base.modules.router.Router"
    write_json(folder / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": reference},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": NORMALIZE[0]},
    ])  # fmt: skip
    write_json(folder / "1_Normalize" / "config.json", {})
    modules = "sentence_transformers.sentence_transformer.modules"
    routes: dict[str, list[Module]] = {
        "query": [(f"{modules}.StaticEmbedding", {}, {})],
        "document": [("sentence_transformers.base.modules.Transformer", {}, {}), pooling("mean")],
    }
    router(folder, routes, {"default_route": "document", "route_mappings": {"('query', None)": "query"}})
    queries = folder / "query_0_StaticEmbedding"
    static_table(queries, bert_tokenizer(queries), WIDTH)
    (queries / "tokenizer_config.json").unlink()
    encoder(folder / "document_0_Transformer", "distilbert")
    settings(folder, "SentenceTransformer", **PROMPTS)


CHAINS: dict[str, Callable[[Path], None]] = {
    "mean_dense_tanh": chain(
        "bert", pooling("mean"), dense("d", WIDTH, 24, "activation.Tanh"), NORMALIZE, **PROMPTS,
        transformer={"max_seq_length": 100},
    ),
    "joined_poolings": chain("bert", pooling(["cls", "max", "mean_sqrt_len_tokens"]), layer_norm(3 * WIDTH)),
    "max_not_normalised": chain("distilbert", pooling("max"), transformer={"max_seq_length": 64}),
    "legacy_weighted_mean": chain(
        "qwen3",
        ("sentence_transformers.models.Pooling",
         {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": False,
          "pooling_mode_weightedmean_tokens": True}, {}),
        **PROMPTS, transformer={"max_seq_length": 700},
    ),
    "qwen3_last_token": chain("qwen3", pooling("lasttoken", include_prompt=True), NORMALIZE, **PROMPTS),
    "prompt_left_out": chain("bert", pooling("mean", include_prompt=False), **PROMPTS),
    "prompt_left_out_cls": chain(
        "bert", pooling(["cls", "weightedmean", "lasttoken"], include_prompt=False), **PROMPTS
    ),
    "embedding_gemma": chain(
        "gemma3", pooling("mean"), dense("one", WIDTH, 64, bias=False), dense("two", 64, WIDTH, bias=False), NORMALIZE,
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
    "truncated": chain("xlmr", pooling("mean"), NORMALIZE, truncate_dim=20, default_prompt_name="x",
        prompts={"x": "default: "}, transformer={"max_seq_length": 512}),
    "residual": chain("mpnet", pooling("cls"), dense("r", WIDTH, 20, use_residual=True), NORMALIZE,
        transformer={"max_seq_length": 512}),
    "modernbert": chain("modernbert", pooling("cls"), NORMALIZE, **PROMPTS),
    "nomic": chain("nomic", pooling("mean"), NORMALIZE, prompts={"query": "search_query: ", "document": "search: "}),
    "gte": chain("gte", pooling("cls"), NORMALIZE),
    "t5": chain("t5", pooling("mean"), dense("t", WIDTH, 24, bias=False), NORMALIZE,
        transformer={"max_seq_length": 256}),
    "t5_unlimited": chain("t5", pooling("mean"), NORMALIZE),
    "static": static(False, **PROMPTS, truncate_dim=16),
    "static_model2vec": static(True, NORMALIZE),
    "router_after_pooling": router_after_pooling,
    "router_static_queries": router_static_queries,
    "lower_case": chain("qwen3", pooling("mean"), transformer={"do_lower_case": True, "max_seq_length": 64}),
    "splade_bert": splade("bert"),
    "splade_task": splade("distilbert", "Transformer", max_active_dims=12),
    "splade_sum": splade("xlmr", pool={"pooling_strategy": "sum"}),
    "splade_modernbert": splade("modernbert", pool={"activation_function": "log1p_relu"}),
    "inference_free": inference_free,
    "multi_vector": multi_vector("bert", None, skiplist_words=list(string.punctuation)),
    "multi_vector_expanded": multi_vector(
        "modernbert", {"strategy": "fixed", "attend": False, "token": None, "length": 32},
        skiplist_words=["!", "nothing"], skiplist_tasks=["query", "document"],
    ),
    "multi_vector_min": multi_vector("xlmr", {"strategy": "min", "attend": True, "length": 12}),
    "pylate": pylate("bert", dense("late", WIDTH, 8, bias=False, **TOKENS)),
    "pylate_two_dense": pylate(
        "modernbert", dense("a", WIDTH, 64, bias=False, use_residual=True), dense("b", 64, 8, bias=False),
        attend_to_expansion_tokens=True,
    ),
    "pylate_plain": pylate("bert", dense("late", WIDTH, 8, bias=False), do_query_expansion=False, skiplist_words=[]),
    "stanford": stanford,
}  # fmt: skip
SENTENCE_TRANSFORMERS = tuple(kind for kind in CHAINS if not kind.startswith("pylate"))
PYLATE = tuple(kind for kind in CHAINS if kind.startswith("pylate"))
