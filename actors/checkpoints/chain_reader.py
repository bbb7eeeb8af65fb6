"""Parses the modules, prompts, lengths and markers of a sentence-transformers or PyLate folder.

Sentence-transformers stores a model as a chain of modules (`modules.json`); PyLate and Stanford's ColBERT add markers,
query expansion and skip lists. This module turns the JSON files into one `ModuleChain`. What the chain cannot run is
refused with its name, because running a part of a chain gives wrong vectors without a word.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.checkpoints.files import CheckpointError, read_json
from actors.checkpoints.module_chain import RUNNABLE, LateInteraction, ModuleChain, ModuleConfig, QueryExpansion
from actors.spec import ModelClass

FAMILIES: dict[str, ModelClass] = {
    "SentenceTransformer": "sentence-transformer",
    "SparseEncoder": "sparse-encoder",
    "MultiVectorEncoder": "multi-vector-encoder",
    "ColBERT": "multi-vector-encoder",
}
"""`model_type` of config_sentence_transformers.json -> class."""
LIBRARIES = frozenset({"sentence_transformers", "pylate"})
"""Packages whose modules are known here; a module of another package is code of the checkpoint's own."""
TRANSFORMERS = frozenset({"Transformer", "MLMTransformer"})
IGNORED = frozenset({"Dropout"})
"""Modules that do nothing outside training."""
OWN_SETTINGS = (
    "sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
    "sentence_camembert_config.json", "sentence_albert_config.json", "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)  # fmt: skip
OLD_NAMES = {
    "model_args": "model_kwargs", "config_args": "config_kwargs",
    "tokenizer_args": "processor_kwargs", "tokenizer_kwargs": "processor_kwargs",
}  # fmt: skip
WITHOUT_EFFECT = frozenset({
    "trust_remote_code", "revision", "token", "local_files_only", "cache_dir", "subfolder", "use_safetensors",
    "low_cpu_mem_usage", "device_map", "attn_implementation", "torch_dtype", "dtype", "add_pooling_layer", "use_cache",
    "use_memory_efficient_attention", "unpad_inputs", "reference_compile", "output_attentions", "output_hidden_states",
    "return_dict",
})  # fmt: skip
"""Stored arguments that change where and how a model is loaded or computed; precision is the call's choice."""
PYLATE_KEYS = frozenset({
    "query_prefix", "document_prefix", "query_length", "document_length", "attend_to_expansion_tokens",
    "do_query_expansion", "skiplist_words",
})  # fmt: skip


def read_module_chain(folder: Path, model_class: ModelClass | None = None) -> ModuleChain | None:
    """Reads the chain of a folder; None if it is no sentence-transformers, PyLate or Stanford ColBERT checkpoint.

    model_class: what to read the folder as; None reads its class from its own files. Raises CheckpointError for a
    module that cannot be run here, with its name and what it would need.
    """
    stored = read_json(folder / "config_sentence_transformers.json") or {}
    family = model_class or _family(folder, stored)
    if (folder / "modules.json").is_file():
        return _read_modules(folder, family or "sentence-transformer", stored)
    if _is_stanford(folder):
        return _read_stanford(folder)
    if model_class == "sparse-encoder":
        pooling = ModuleConfig("SpladePooling", folder, {"pooling_strategy": "max"})
        return ModuleChain(model_class, folder, (pooling,))
    if model_class == "sentence-transformer":
        return ModuleChain(model_class, folder, (ModuleConfig("Pooling", folder, _default_pooling(folder)),))
    return None


def _family(folder: Path, stored: Mapping[str, Any]) -> ModelClass | None:
    named = stored.get("model_type")
    if named is None:
        marked = "query_prefix" in stored or "document_prefix" in stored
        return "multi-vector-encoder" if marked else None
    if named not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(
            f"{folder / 'config_sentence_transformers.json'} names model_type {named!r}; an embedder is one of {known}"
        )
    return FAMILIES[named]


def _default_pooling(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json") or {}
    causal = (config.get("architectures") or [""])[0].endswith("ForCausalLM") and config.get("is_causal", True)
    return {"pooling_mode": "lasttoken" if causal else "mean"}


def _read_modules(folder: Path, family: ModelClass, stored: Mapping[str, Any]) -> ModuleChain:
    listed = list_modules(folder)
    if not listed:
        raise CheckpointError(f"{folder / 'modules.json'} lists no modules")
    document, query = (expand_routes(folder, listed, task) for task in ("document", "query"))
    chain = _build_chain(folder, document, family, stored)
    if [(m.kind, m.folder) for m in query] == [(m.kind, m.folder) for m in document]:
        return chain
    if [module.kind for module in query] == ["SparseStaticEmbedding"]:
        return replace(chain, query_table=query[0].folder)
    if chain.model_class != "sentence-transformer":
        raise CheckpointError(
            f"{folder / 'modules.json'}: its Router sends queries through {', '.join(m.kind for m in query)}; "
            f"in a {chain.model_class} a SparseStaticEmbedding, or the modules of the documents, is supported"
        )
    return replace(chain, query=_build_chain(folder, query, family, stored))


def _build_chain(
    folder: Path, listed: list[ModuleConfig], family: ModelClass, stored: Mapping[str, Any]
) -> ModuleChain:
    first, rest = listed[0], [module for module in listed[1:] if module.kind not in IGNORED]
    if first.kind == "StaticEmbedding":
        return _static_chain(folder, first, rest, family, stored)
    if first.kind not in TRANSFORMERS:
        raise CheckpointError(
            f"{folder / 'modules.json'} begins with {first.kind}, which does not run here; a chain that begins with a "
            "Transformer or a StaticEmbedding does"
        )
    if any(module.kind == "SpladePooling" for module in rest):
        family = "sparse-encoder"
    settings = _transformer_settings(first, family)
    late = _late_interaction(stored, settings, rest) if family == "multi-vector-encoder" else None
    rest = _late_modules(folder, rest, late) if late is not None else rest
    _check_kinds(folder / "modules.json", rest, family)
    pylate = late is not None and late.strips
    return ModuleChain(
        family,
        first.folder,
        tuple(rest),
        prompts=_named_prompts(stored),
        default_prompt=stored.get("default_prompt_name"),
        max_length=settings.get("max_seq_length"),
        query_length=_query_length(stored, settings, late),
        document_length=(stored.get("document_length") or 180) if pylate else settings.get("document_length"),
        lower_case=bool(settings.get("do_lower_case")),
        tokenizer_options=settings.get("processor_kwargs") or {},
        truncate_dim=stored.get("truncate_dim"),
        max_active_dims=stored.get("max_active_dims"),
        late=late,
        similarity=_similarity(stored),
    )


def _similarity(stored: Mapping[str, Any]) -> str:
    return str(stored.get("similarity_fn_name") or "cosine")


def _static_chain(
    folder: Path, first: ModuleConfig, rest: list[ModuleConfig], family: ModelClass, stored: Mapping[str, Any]
) -> ModuleChain:
    """Reads a StaticEmbedding: the mean of its tokens' rows, cut only where tokenizer.json says so."""
    mean = ModuleConfig("Pooling", first.folder, {"pooling_mode": "mean"})
    modules = (mean, *rest)
    _check_kinds(folder / "modules.json", list(modules), family)
    tokenizer = read_json(first.folder / "tokenizer.json")
    if tokenizer is None:
        raise CheckpointError(f"{first.folder} holds no tokenizer.json, as a StaticEmbedding needs")
    return ModuleChain(
        family, first.folder, modules, prompts=_named_prompts(stored), default_prompt=stored.get("default_prompt_name"),
        max_length=(tokenizer.get("truncation") or {}).get("max_length"), truncate_dim=stored.get("truncate_dim"),
        is_static=True, similarity=_similarity(stored),
    )  # fmt: skip


def _named_prompts(stored: Mapping[str, Any]) -> dict[str, str]:
    return {name: text or "" for name, text in {"query": "", "document": "", **_prompts(stored)}.items()}


def _prompts(stored: Mapping[str, Any]) -> Mapping[str, str | None]:
    prompts: Mapping[str, str | None] = stored.get("prompts") or {}
    if stored.get("model_type") == "ColBERT":
        return {name: text for name, text in prompts.items() if text}
    return prompts


def _query_length(stored: Mapping[str, Any], settings: Mapping[str, Any], late: LateInteraction | None) -> int | None:
    if late is None:
        return settings.get("query_length")
    if late.expansion is not None and late.expansion.truncate:
        return late.expansion.length
    return (stored.get("query_length") or 32) if late.strips else settings.get("query_length")


def list_modules(folder: Path) -> list[ModuleConfig]:
    """Lists the modules of modules.json. CheckpointError if it is no such list, or runs code of its own."""
    listed = read_json(folder / "modules.json")
    try:
        pairs = [(str(module["type"]), str(module.get("path", ""))) for module in listed]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / 'modules.json'} is no list of modules with a type: {error}") from error
    return [_module(folder, reference, folder / path) for reference, path in pairs]


def _module(root: Path, reference: str, folder: Path) -> ModuleConfig:
    """Parses one module; `reference` is a dotted class. Rejects code that lies in the folder itself."""
    *package, kind = reference.split(".")
    if package and package[0] not in LIBRARIES:
        raise CheckpointError(
            f"{root / 'modules.json'} runs its own code ({reference} in {package[0]}.py), which tridex does not run; "
            "a version of this model for transformers alone would be needed"
        )
    kind = {"IDF": "SparseStaticEmbedding"}.get(kind, kind)
    name = "router_config.json" if kind in ("Router", "Asym") else "config.json"
    config = {} if kind in TRANSFORMERS else read_json(folder / name) or read_json(folder / "config.json") or {}
    return ModuleConfig(kind, folder, config)


def expand_routes(folder: Path, listed: Sequence[ModuleConfig], task: str) -> list[ModuleConfig]:
    """Returns the modules that a task's texts go through: every Router (once Asym) replaced by its route."""
    expanded: list[ModuleConfig] = []
    for module in listed:
        expanded += _route(folder, module, task) if module.kind in ("Router", "Asym") else [module]
    return expanded


def _route(folder: Path, router: ModuleConfig, task: str) -> list[ModuleConfig]:
    """Chooses a Router's route in sentence-transformers' order. CheckpointError if it has none for the task."""
    types, structure = router.config.get("types") or {}, router.config.get("structure") or {}
    mapped = (router.config.get("parameters") or {}).get("route_mappings") or {}
    keys = [str(key) for key in ((task, "text"), (task, None), (None, "text"), (None, None))]
    name = next((mapped[key] for key in keys if key in mapped), task if task in structure else "text")
    if name not in structure:
        raise CheckpointError(
            f"{folder / 'modules.json'}: its Router has the routes {', '.join(structure) or 'none'}, "
            f"of which none is for a {task}'s text; it needs query and document"
        )
    return [_module(folder, str(types[module]), router.folder / module) for module in structure[name]]


def _transformer_settings(module: ModuleConfig, family: ModelClass) -> dict[str, Any]:
    """Reads sentence_bert_config.json (or its old names); rejects what needs more than text in a forward pass."""
    where, settings = read_transformer_settings(module.folder)
    task = settings.get("transformer_task", "fill-mask" if module.kind == "MLMTransformer" else None)
    expected = "fill-mask" if family == "sparse-encoder" else "feature-extraction"
    if task not in (None, expected):
        raise CheckpointError(f"{where} has transformer_task {task!r}; a {family} runs {expected}")
    text = (settings.get("modality_config") or {}).get("text") or {}
    methods = "message" in (settings.get("modality_config") or {}) or text.get("method", "forward") != "forward"
    if methods or text.get("method_output_name", "last_hidden_state") not in (
        "last_hidden_state", ["last_hidden_state"], "logits", ["logits"]
    ):  # fmt: skip
        raise CheckpointError(
            f"{where} feeds texts through {settings['modality_config']}; only plain text is supported"
        )
    if processing := settings.get("processing_kwargs"):
        raise CheckpointError(f"{where} sets processing_kwargs {json.dumps(processing)}, which are not supported")
    return settings


def read_transformer_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Reads the settings that sentence-transformers stores of a Transformer: the file, and {} if there is none.

    Tokenizer arguments come out as `processor_kwargs`, their newest name. Raises CheckpointError for stored arguments
    of the model or its configuration that would change its numbers: they are not applied, and ignoring them is wrong.
    """
    for name in OWN_SETTINGS:
        settings: dict[str, Any] = read_json(folder / name) or {}
        if settings:
            break
    where = folder / name
    for old, new in OLD_NAMES.items():
        if old in settings:
            settings.setdefault(new, settings.pop(old))
    config = read_json(folder / "config.json") or {}
    for section in ("model_kwargs", "config_kwargs"):
        for key, value in (settings.get(section) or {}).items():
            stated = section == "config_kwargs" and key in config and config[key] == value
            if key not in WITHOUT_EFFECT and not stated:
                raise CheckpointError(
                    f"{where} sets {section} {key}={json.dumps(value)}, which tridex does not apply; "
                    "write it into config.json if the model needs it, or remove it if it does not"
                )
    return where, settings


def _late_interaction(
    stored: Mapping[str, Any], settings: Mapping[str, Any], modules: list[ModuleConfig]
) -> LateInteraction:
    if stored.get("model_type") == "ColBERT" or PYLATE_KEYS & set(stored):
        return _pylate(stored)
    mask = next((module.config for module in modules if module.kind == "MultiVectorMask"), {})
    tasks = mask.get("skiplist_tasks") or ["document"]
    keep = mask.get("keep_only_token_ids")
    return LateInteraction(
        expansion=_expansion(settings.get("query_expansion")),
        skiplist=tuple(mask.get("skiplist_words") or ()),
        skip_tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
        keep_only=None if keep is None else tuple(keep),
    )


def _expansion(config: Mapping[str, Any] | None) -> QueryExpansion | None:
    if config is None:
        return None
    truncate = config.get("strategy") == "fixed"
    return QueryExpansion(int(config["length"]), bool(config.get("attend")), truncate, config.get("token"))


def _pylate(stored: Mapping[str, Any]) -> LateInteraction:
    """Reads a PyLate chain; defaults: `[Q] ` and `[D] `, 32 query tokens padded with the mask token, no punctuation."""
    expands = stored.get("do_query_expansion") is not False
    length = stored.get("query_length") or 32
    skiplist = stored.get("skiplist_words")
    query, document = stored.get("query_prefix"), stored.get("document_prefix")
    return LateInteraction(
        query_marker="[Q] " if query is None else query or None,
        document_marker="[D] " if document is None else document or None,
        expansion=QueryExpansion(length, bool(stored.get("attend_to_expansion_tokens"))) if expands else None,
        skiplist=tuple(string.punctuation if skiplist is None else skiplist),
        skips_unknown=True,
        strips=True,
    )


def _late_modules(folder: Path, modules: list[ModuleConfig], late: LateInteraction) -> list[ModuleConfig]:
    """Completes a late-interaction chain by the mask and the normalisation that PyLate does not write."""
    dense = [module for module in modules if module.kind == "Dense"]
    if not dense and late.strips:
        raise CheckpointError(f"{folder / 'modules.json'} has no Dense: PyLate would add an untrained projection")
    if not late.strips:
        return modules
    return [*dense, ModuleConfig("Normalize", folder, {"module_input_name": "token_embeddings"})]


def _check_kinds(file: Path, modules: list[ModuleConfig], family: ModelClass) -> None:
    unknown = [module.kind for module in modules if module.kind not in RUNNABLE[family]]
    if unknown:
        runs = ", ".join(sorted(RUNNABLE[family]))
        raise CheckpointError(
            f"{file} lists {', '.join(dict.fromkeys(unknown))}, which tridex does not run in a {family}; "
            f"after the Transformer it runs {runs}"
        )
    if family == "sentence-transformer" and [m.kind for m in modules].count("Pooling") != 1:
        raise CheckpointError(f"{file} has {[m.kind for m in modules].count('Pooling')} Pooling modules; one is needed")


def _is_stanford(folder: Path) -> bool:
    return "HF_ColBERT" in ((read_json(folder / "config.json") or {}).get("architectures") or [])


def _read_stanford(folder: Path) -> ModuleChain:
    """Reads ColBERTv2's layout: `linear.weight` among the encoder's weights, settings in artifact.metadata."""
    metadata = read_json(folder / "artifact.metadata") or {}
    length = metadata.get("query_maxlen") or 32
    late = LateInteraction(
        query_marker=metadata.get("query_token_id") or "[unused0]",
        document_marker=metadata.get("doc_token_id") or "[unused1]",
        expansion=QueryExpansion(length, bool(metadata.get("attend_to_mask_tokens"))),
        skiplist=tuple(string.punctuation) if metadata.get("mask_punctuation", True) else (),
    )
    token_level = {"module_input_name": "token_embeddings"}
    identity = "torch.nn.modules.linear.Identity"
    modules = (
        ModuleConfig("Dense", folder, {**token_level, "bias": False, "activation_function": identity}),
        ModuleConfig("Normalize", folder, token_level),
    )
    return ModuleChain(
        "multi-vector-encoder", folder, modules, query_length=length,
        document_length=metadata.get("doc_maxlen") or 180, late=late, projection_in_root=True,
    )  # fmt: skip
