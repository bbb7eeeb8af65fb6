"""Prepares texts for a model: resolves the checkpoint, adds the instruction, tokenises, truncates.

It is the half of an embedder that needs no weights, so that tokenising workers can run it beside the models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from actors.checkpoints.chain_reader import read_module_chain
from actors.checkpoints.files import CheckpointError, read_json
from actors.checkpoints.loading import head_file, resolve_folder
from actors.checkpoints.module_chain import RUNNABLE, ModuleChain, chain_width, static_width
from actors.models.catalogue import (
    EMBEDDERS,
    ENCODERS,
    check_length,
    complete,
    max_positions,
    refuse_own_code,
    short_name,
)
from actors.outputs import TokenBatch
from actors.spec import EmbedderSpec
from actors.text.late_interaction import TokenRules, token_rules
from actors.text.prompts import PLAIN, InContext, instruct
from actors.text.tokenizer import TextTokenizer, read_chain_tokenizer, read_library_tokenizer, read_tokenizer

Kind = Literal["passage", "query", "plain"]
UNLIMITED = 2**20
"""Tokens of a query that no model reads (inference-free SPLADE), where its tokenizer states no length."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """Prepares texts by a complete `spec` (see `catalogue.complete`); `in_context`: for in-context-learning models."""

    spec: EmbedderSpec
    folder: Path
    tokenizer: TextTokenizer
    positions: int | None
    in_context: InContext | None = None
    chain: ModuleChain | None = None
    """What a sentence-transformers or PyLate folder runs; `folder` is then its transformer's."""
    rules: TokenRules | None = None
    query: Preparation | None = None
    """Prepares queries instead, where a Router sends them through modules of their own."""
    query_tokenizer: TextTokenizer | None = None
    """Set where queries are a table's weights (inference-free SPLADE): no special tokens."""

    def tokenise(self, texts: Iterable[str], kind: Kind = "passage", max_length: int | None = None) -> TokenBatch:
        """Tokenises texts with this kind's instruction, cut to `max_length` (None: this kind's own).

        `plain` takes no instruction and a passage's length. Raises TypeError for anything but str, ValueError for a
        lone surrogate and for a length that the model has no positions for.
        """
        if kind == "query" and self.query is not None:
            return self.query.tokenise(texts, kind, max_length)
        length = self._length(kind) if max_length is None else max_length
        is_table = kind == "query" and self.query_tokenizer is not None
        check_length(length, None if is_table else self.positions, "max_length")
        written = self.write(texts, kind)
        if kind == "query" and self.in_context is not None:
            return self.in_context.tokenise(self.tokenizer, written, length)
        if kind == "query" and self.query_tokenizer is not None:
            return self.query_tokenizer.tokenise_bare(written, length)
        if self.rules is not None:
            return self.rules.tokenise(written, kind == "query", length)
        return self.tokenizer.tokenise(written, length)

    def prompt_length(self, kind: Kind) -> int:
        """Returns the leading prompt tokens that the checkpoint leaves out of its pooling; else 0."""
        if kind == "query" and self.query is not None:
            return self.query.prompt_length(kind)
        prompt = self.spec.query_instruction if kind == "query" else self.spec.passage_instruction
        if self.chain is None or self.chain.include_prompt or kind == "plain" or not prompt:
            return 0
        tokens = self.tokenizer.tokenise([prompt], self._length(kind))
        return len(tokens.ids) - int(len(tokens.ids) > 0 and int(tokens.ids[-1]) in self.tokenizer.special_ids)

    @property
    def hidden_size(self) -> int:
        """Returns the width of the token states that the outputs are made of; reads configuration files."""
        trusted = self.spec.trust_remote_code
        return hidden_size(self.folder, trusted) if self.chain is None else chain_hidden_size(self.chain, trusted)

    @property
    def room(self) -> int:
        """Returns the tokens left for a passage beside special tokens and the instruction; at least 1."""
        return max(1, self._length("passage") - int(self.tokenise([""]).lengths[0]))

    def write(self, texts: Iterable[str], kind: Kind) -> list[str]:
        """Returns the texts with this kind's instruction."""
        spec = self.spec
        if kind == "query":
            return instruct(texts, spec.query_instruction, spec.query_instruction_format or PLAIN)
        return instruct(texts, spec.passage_instruction if kind == "passage" else None, spec.passage_instruction_format)

    def _length(self, kind: Kind) -> int:
        length = self.spec.query_max_length if kind == "query" else self.spec.passage_max_length
        assert length is not None, "the spec is complete"
        return length

    def with_examples(self, in_context: InContext) -> Preparation:
        return replace(self, in_context=in_context)


def load_preparation(spec: EmbedderSpec, *, chains: bool = True) -> Preparation:
    """Resolves the model, reads its tokenizer and completes the spec; loads no weights.

    A sentence-transformers folder is prepared as that library would, unless its name or class is FlagEmbedding's or
    `chains` is False. A model that sees pictures has no heads, whatever its text half has.
    Raises ValueError where the spec asks for int8 and the model has no int8 forward.
    """
    if spec.picture_weights is not None:
        spec = replace(spec, model_class="encoder-only-base")
    folder = resolve_folder(spec.model, spec.revision, spec.cache_dir, spec.trust_remote_code)
    chain = find_chain(spec, folder) if chains else None
    if spec.compute.dtype == "int8":
        _check_int8(spec, folder if chain is None else chain.transformer, chain)
    if chain is not None:
        return _prepare_chain(spec, chain)
    spec = complete(spec, folder)
    tokenizer = read_tokenizer(folder, trust_remote_code=spec.trust_remote_code)
    in_context = InContext() if spec.model_class == "decoder-only-icl" else None
    return Preparation(spec, folder, tokenizer, max_positions(folder), in_context)


def _check_int8(spec: EmbedderSpec, folder: Path, chain: ModuleChain | None) -> None:
    config = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    is_splade = chain is not None and chain.model_class == "sparse-encoder"
    is_static = chain is not None and (chain.is_static or chain.query is not None)
    if kind in ENCODERS and not is_splade and not is_static and spec.picture_weights is None:
        return
    kind = "a model of static embeddings or routes" if is_static else kind
    what = "SPLADE" if is_splade else "a model of pictures" if spec.picture_weights is not None else kind
    raise ValueError(f"compute.dtype int8 is for BERT and XLM-RoBERTa embedders; {what} takes fp32, bf16 or fp16")


def find_chain(spec: EmbedderSpec, folder: Path) -> ModuleChain | None:
    """Returns the module chain that this spec runs; None if FlagEmbedding's table, class or heads decide instead.

    Raises CheckpointError if the spec asks for a class that the folder cannot be read as.
    """
    if spec.model_class in RUNNABLE:
        chain = read_module_chain(folder, spec.model_class)
        if chain is None:
            raise CheckpointError(
                f"{folder} has no modules.json and is no ColBERT checkpoint, as {spec.model_class} needs"
            )
        return chain
    has_heads = any(head_file(folder, name) for name in ("sparse_linear", "colbert_linear"))
    if spec.model_class is not None or has_heads or short_name(spec.model) in EMBEDDERS:
        return None
    return read_module_chain(folder)


def _prepare_chain(spec: EmbedderSpec, chain: ModuleChain) -> Preparation:
    chain = chain.with_pooling(spec.pooling)
    spec = replace(spec, normalize=_normalizes_in_the_end(spec, chain))
    query, folder = None, chain.transformer
    if chain.query is not None:
        query = _prepare_query(spec, chain, chain.query)
        spec = replace(spec, query_max_length=None)
    if not spec.trust_remote_code and not chain.is_static:
        refuse_own_code(spec.model, folder, False)
    tokenizer = read_chain_tokenizer(chain)
    query_tokenizer = None if chain.query_table is None else _query_tokenizer(chain.query_table, tokenizer)
    rules = None if chain.late is None else token_rules(chain.late, tokenizer)
    complete_spec = replace(
        spec,
        model_class=chain.model_class,
        query_instruction=_instruction(spec.query_instruction, chain, "query", spec.query_prompt),
        query_instruction_format=spec.query_instruction_format or PLAIN,
        passage_instruction=_instruction(spec.passage_instruction, chain, "passage", spec.passage_prompt),
        query_max_length=_chain_length(spec.query_max_length, chain, "query", query_tokenizer or tokenizer),
        passage_max_length=_chain_length(spec.passage_max_length, chain, "passage", tokenizer),
        truncate_dim=spec.truncate_dim or chain.truncate_dim,
        max_active_dims=spec.max_active_dims or chain.max_active_dims,
    )
    if query is not None:
        complete_spec = replace(complete_spec, query_max_length=query.spec.query_max_length)
    return Preparation(
        complete_spec, folder, tokenizer, _positions(chain),
        chain=chain, rules=rules, query_tokenizer=query_tokenizer, query=query,
    )  # fmt: skip


def _normalizes_in_the_end(spec: EmbedderSpec, chain: ModuleChain) -> bool | None:
    """Returns `normalize` of the complete spec: True if dot products rank as the library's cosine only with it."""
    is_dense = chain.model_class == "sentence-transformer"
    is_decided = spec.normalize is not None or not spec.cosine_as_dot
    if is_decided or not is_dense or chain.similarity != "cosine":
        return spec.normalize
    return None if chain.is_normalized and spec.truncate_dim is None else True


def _prepare_query(spec: EmbedderSpec, chain: ModuleChain, route: ModuleChain) -> Preparation:
    """Prepares the route of queries. CheckpointError if its vectors are not as wide as the documents'."""
    query = _prepare_chain(replace(spec, passage_max_length=None), route)
    widths = [chain_width(part, chain_hidden_size(part)) for part in (route, chain)]
    if widths[0] != widths[1]:
        raise CheckpointError(
            f"{chain.transformer.parent}: its Router gives queries {widths[0]} dimensions and documents {widths[1]}"
        )
    return query


def _positions(chain: ModuleChain) -> int | None:
    return None if chain.is_static else max_positions(chain.transformer)


def chain_hidden_size(chain: ModuleChain, trust_remote_code: bool = False) -> int:
    """Returns the width of the token states that a chain begins with."""
    return static_width(chain.transformer) if chain.is_static else hidden_size(chain.transformer, trust_remote_code)


def hidden_size(folder: Path, trust_remote_code: bool = False) -> int:
    """Returns the width of the model's states; from transformers if config.json does not call it `hidden_size`."""
    stated = (read_json(folder / "config.json") or {}).get("hidden_size")
    if stated is not None:
        return int(stated)
    from transformers import AutoConfig

    size: int = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).hidden_size
    return size


def _instruction(given: str | None, chain: ModuleChain, kind: Kind, name: str | None) -> str:
    return chain.prompt(kind, name) if given is None else given


def _chain_length(requested: int | None, chain: ModuleChain, kind: Kind, tokenizer: TextTokenizer) -> int:
    """Returns the requested length, else the folder's for this kind, else its own; at most the model's positions."""
    if kind == "query" and chain.query_table is not None:
        return requested or tokenizer.max_length or UNLIMITED
    own = chain.query_length if kind == "query" else chain.document_length
    limits = [chain.max_length] if chain.max_length is not None else [tokenizer.max_length, _stated_positions(chain)]
    general = min((limit for limit in limits if limit is not None and limit > 0), default=UNLIMITED)
    positions = _positions(chain)
    if requested is not None:
        check_length(requested, positions, "query_max_length" if kind == "query" else "passage_max_length")
        return requested
    return min(own or general, positions or own or general)


def _stated_positions(chain: ModuleChain) -> int | None:
    """Returns `max_position_embeddings` as the model's configuration has it; None without one (T5's are relative)."""
    if chain.is_static:
        return None
    config = read_json(chain.transformer / "config.json") or {}
    if "max_position_embeddings" in config or config.get("auto_map"):
        return config.get("max_position_embeddings")
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(chain.transformer), "max_position_embeddings", None)


def _query_tokenizer(folder: Path, documents: TextTokenizer) -> TextTokenizer:
    """Reads the tokenizer beside a query table, which must number tokens as the document model does."""
    if not (folder / "tokenizer_config.json").is_file():
        return documents
    tokenizer = read_library_tokenizer(folder, {})
    if tokenizer.backend.get_vocab() != documents.backend.get_vocab():
        raise CheckpointError(
            f"{folder}: the query table's tokenizer numbers tokens otherwise than the document model's; "
            "its weights would land on other words"
        )
    return tokenizer
