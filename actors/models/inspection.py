"""Reports what a model would be loaded as, and why, without loading its weights."""

from __future__ import annotations

from collections.abc import Mapping

from actors.checkpoints.files import read_json
from actors.checkpoints.loading import head_file, resolve_folder
from actors.checkpoints.module_chain import ModuleChain, chain_width, pooling_modes
from actors.models.catalogue import EMBEDDERS, PUBLISHED, CatalogueEntry, short_name
from actors.models.identity import available_outputs
from actors.models.preparation import Preparation, load_preparation
from actors.spec import EmbedderSpec

Report = dict[str, object]
M3_OUTPUTS = "dense, sparse, colbert"


def catalogue_rows() -> list[dict[str, str | int]]:
    """Lists the models that are known by name: class, outputs, dimensions, pooling, length, licence, query prompt."""
    return [_row(name, entry) for name, entry in EMBEDDERS.items()]


def _row(name: str, entry: CatalogueEntry) -> dict[str, str | int]:
    return {
        "model": name,
        "model_class": entry.model_class,
        "outputs": M3_OUTPUTS if entry.model_class == "encoder-only-m3" else "dense",
        "dimensions": PUBLISHED[name][0],
        "pooling": entry.pooling,
        "max_length": entry.max_length,
        "licence": PUBLISHED[name][1],
        "query_prompt": entry.query_instruction_format.replace("\n", "\\n"),
        "own_code": "yes" if entry.own_code else "",
    }


def inspect_model(spec: EmbedderSpec) -> Report:
    """Reports class, reason, outputs, dimensions, lengths, prompts and modules of a model's folder.

    Raises CheckpointError or ValueError, as loading would, where the model cannot be run.
    """
    root = resolve_folder(spec.model, spec.revision, spec.cache_dir, spec.trust_remote_code)
    prepared = load_preparation(spec)
    known, config = prepared.spec, read_json(prepared.folder / "config.json") or {}
    chain = prepared.chain
    report: Report = {
        "model": spec.model,
        "folder": str(root),
        "model_class": known.model_class,
        "because": _reason(spec, prepared),
        "architecture": config.get("model_type"),
        "outputs": list(available_outputs(prepared)),
        "dimensions": _dimensions(prepared),
        "query_max_length": known.query_max_length,
        "passage_max_length": known.passage_max_length,
        "query_instruction": known.query_instruction,
        "passage_instruction": known.passage_instruction,
    }
    return report | (_describe_modules(chain) if chain is not None else {"pooling": known.pooling})


def _reason(spec: EmbedderSpec, prepared: Preparation) -> str:
    if spec.model_class is not None:
        return "the class was requested"
    if short_name(spec.model) in EMBEDDERS:
        return f"{short_name(spec.model)} is in FlagEmbedding's table"
    if prepared.chain is not None and prepared.chain.projection_in_root:
        return "config.json names HF_ColBERT, Stanford's layout"
    if prepared.chain is not None:
        return "it has sentence-transformers' modules.json"
    heads = [name for name in ("sparse_linear", "colbert_linear") if head_file(prepared.folder, name) is not None]
    if heads:
        return f"it has M3's heads: {', '.join(heads)}"
    return f"config.json names the architecture {(read_json(prepared.folder / 'config.json') or {}).get('model_type')}"


def _dimensions(prepared: Preparation) -> int:
    chain, cut, hidden = prepared.chain, prepared.spec.truncate_dim, prepared.hidden_size
    if chain is not None and chain.model_class == "sparse-encoder":
        return prepared.tokenizer.vocab_size
    width = hidden if chain is None else chain_width(chain, hidden)
    return min(width, cut or width)


def _describe_modules(chain: ModuleChain) -> Report:
    names = ["StaticEmbedding" if chain.is_static else "Transformer"]
    for module in chain.modules:
        names.append(f"Pooling ({', '.join(pooling_modes(module))})" if module.kind == "Pooling" else module.kind)
    late = chain.late
    return {
        "modules": names,
        "prompts": dict(chain.prompts),
        "queries": _describe_queries(chain),
        "markers": None if late is None else [late.query_marker, late.document_marker],
        "query_expansion": None if late is None or late.expansion is None else late.expansion.length,
        "skiplist": None if late is None else "".join(late.skiplist),
    }


def _describe_queries(chain: ModuleChain) -> str:
    if chain.query_table is not None:
        return "weights of a table, no model"
    if chain.query is None:
        return "the same modules"
    first = "StaticEmbedding" if chain.query.is_static else "Transformer"
    return f"a route of their own: {', '.join((first, *(module.kind for module in chain.query.modules)))}"


def as_lines(report: Mapping[str, object]) -> list[str]:
    """Formats a report for people, one line per field, empty fields left out."""
    return [f"{name}: {_shown(value)}" for name, value in report.items() if value is not None and value != ""]


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={text!r}" for name, text in value.items())
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)
