"""Implements the embedder of the pipeline: texts in, contiguous buffers out; model classes differ in data only.

Upstream has five classes with the same 250 lines; here pooling, template and heads are values of one engine, and the
five names translate arguments and return types (`flag_embedding.py` and the files beside it).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor, nn

from actors.checkpoints.files import CheckpointError
from actors.checkpoints.loading import check_weights, load_head
from actors.checkpoints.module_chain import ModuleChain
from actors.codecs.device_codec import DeviceCodec
from actors.compute.resolve import Compute, resolve_compute
from actors.embedders.engine import EncodeRequest, Engine
from actors.embedders.module_engine import ModuleEngine
from actors.models.identity import Identity, available_outputs, describe, head_folder
from actors.models.preparation import Kind, Preparation
from actors.network.backbone import Backbone, load_backbone, read_model_config
from actors.network.splade import QueryTable
from actors.network.vector_modules import load_chain
from actors.outputs import EmbeddingBatch, IntArray, TokenBatch, concat
from actors.spec import OUTPUTS, EmbedderSpec, Output
from actors.text.tokenizer import checked_texts

T = TypeVar("T")
R = TypeVar("R")

WINDOW = 8192
"""Texts that are sorted by length together: enough that batches hold texts of one length, few enough to overlap."""
STATIC_BUDGET = 65536
"""Tokens looked up at once in a static embedding."""
UNWEIGHTED = ("cls_token", "eos_token", "pad_token", "unk_token")
"""Tokens that get no lexical weight, where the checkpoint names them: M3's rule."""


class Embedder:
    """Embeds by one loaded model. It keeps no state between calls, so any number of threads may share it."""

    def __init__(self, preparation: Preparation, engine: Engine | ModuleEngine) -> None:
        self.preparation = preparation
        self.engine = engine
        self.spec = preparation.spec
        self.compute: Compute = engine.compute
        self.tokenizer = preparation.tokenizer
        self.outputs: tuple[Output, ...] = engine.outputs

    def __reduce__(self) -> tuple[Callable[[EmbedderSpec], Embedder], tuple[EmbedderSpec]]:
        """Pickles as its spec: unpickling loads the model again."""
        from actors.embedders.registry import load_embedder

        return load_embedder, (self.spec,)

    @property
    def dim(self) -> int:
        return self.engine.dim

    @property
    def colbert_dim(self) -> int | None:
        return self.engine.colbert_dim if "colbert" in self.outputs else None

    @property
    def vocab_size(self) -> int:
        return self.engine.backbone.vocab_size

    @property
    def input_embeddings(self) -> Tensor:
        """Returns each token's input embedding, (vocab_size, h), in the dtype of the pass."""
        return self.engine.backbone.words

    def tokenise(self, texts: Iterable[str], kind: Kind = "passage", max_length: int | None = None) -> TokenBatch:
        """Tokenises texts; see `Preparation.tokenise`."""
        return self.preparation.tokenise(texts, kind, max_length)

    def embed_tokens(
        self,
        tokens: TokenBatch,
        outputs: Sequence[Output] | None = None,
        device_codec: DeviceCodec | None = None,
        kind: Kind = "passage",
    ) -> EmbeddingBatch:
        """Computes the requested outputs (None: all that the model has), in the order of the texts.

        kind: what the tokens are of; some models treat queries differently.

        device_codec: ColBERT vectors come encoded. Raises ValueError for an output that this model has no head for.
        """
        requested = checked_outputs(outputs, self.outputs, self.spec.model)
        prompt_length = self.preparation.prompt_length(kind)
        request = EncodeRequest(requested, device_codec=device_codec, kind=kind, prompt_length=prompt_length)
        return self.engine.embed_tokens(tokens, request)

    def embed_rows(
        self,
        tokens: TokenBatch,
        table: pa.Table,
        rows: IntArray,
        outputs: Sequence[Output] | None = None,
        device_codec: DeviceCodec | None = None,
    ) -> EmbeddingBatch:
        """Embeds the rows of a block as `embed_tokens`; a multimodal model also reads the other columns."""
        return self.embed_tokens(tokens, outputs, device_codec)

    def embed_corpus(self, texts: Iterable[str], outputs: Sequence[Output] | None = None) -> EmbeddingBatch:
        """Embeds passages with their instruction and length; the next ones are tokenised during a pass.

        >>> batch = model.embed_corpus(["A panda eats bamboo.", "The river is deep."])
        >>> batch.dense.shape, batch.colbert.row(0).shape
        ((2, 384), (6, 384))
        """
        requested = checked_outputs(outputs, self.outputs, self.spec.model)
        tokenised = prefetch_one(partial(self.tokenise, kind="passage"), slices_of(checked_texts(texts), WINDOW))
        parts = [self.embed_tokens(tokens, requested) for tokens in tokenised]
        return concat(parts) if parts else self.embed_tokens(self.tokenise([]), requested)

    def embed_queries(self, texts: Iterable[str], outputs: Sequence[Output] | None = None) -> EmbeddingBatch:
        """Embeds queries with the query instruction and length.

        >>> passages = model.embed_corpus(["A panda eats bamboo.", "The river is deep."]).dense
        >>> (passages @ model.embed_queries(["what do pandas eat"]).dense[0]).argmax().item()
        0
        """
        return self.embed_tokens(self.tokenise(texts, "query"), outputs, kind="query")

    def scored_tokens(self, tokens: TokenBatch, kind: Kind) -> npt.NDArray[np.bool_]:
        """Returns which tokens have a ColBERT vector, bool (T,): M3 leaves out each text's first; others have rules."""
        if self.preparation.rules is not None:
            return self.preparation.rules.scored(tokens.ids, kind == "query")
        keep = np.ones(len(tokens.ids), bool)
        keep[tokens.offsets[:-1]] = False
        return keep

    def colbert_ids(self, tokens: TokenBatch) -> npt.NDArray[np.int32]:
        """Returns the token id of each ColBERT vector of these passages, in their order."""
        return tokens.ids[self.scored_tokens(tokens, "passage")]

    def identity(self) -> Identity:
        """Returns what an index must have been built with to be searched with this embedder."""
        return dict(self._identity)

    @cached_property
    def _identity(self) -> Identity:
        return describe(self.preparation)


def slices_of(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yields slices of `size` items, the last one shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))


def prefetch_one(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yields `map(function, items)`; a background thread computes the next item while the caller uses this one."""
    with ThreadPoolExecutor(1, "prefetch") as thread:
        coming: deque[Future[R]] = deque()
        for item in items:
            coming.append(thread.submit(function, item))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def checked_outputs(requested: Sequence[Output] | None, has: tuple[Output, ...], model: str) -> tuple[Output, ...]:
    """Returns the requested outputs (None: all); ValueError names what the model has."""
    if requested is None:
        return has
    missing = [output for output in requested if output not in has]
    if missing or not requested:
        why = f": the checkpoint has no {missing[0]} head" if missing and missing[0] in OUTPUTS else ""
        raise ValueError(f"{model} gives {', '.join(has)}, asked for {', '.join(requested) or 'nothing'}{why}")
    return tuple(requested)


def load_chain_engine(preparation: Preparation, chain: ModuleChain) -> ModuleEngine:
    """Loads the weights of a sentence-transformers chain, by its ComputeSpec's dtype and device."""
    spec, folder = preparation.spec, preparation.folder
    check_weights(folder)
    outputs = available_outputs(preparation)
    if chain.is_static:
        return _load_static_engine(preparation, chain)
    config = read_model_config(folder, spec.trust_remote_code)
    compute = resolve_compute(spec.compute, config, allows_int8=True)
    if chain.model_class == "sparse-encoder":
        from actors.network.splade_loading import load_splade  # imports transformers

        backbone, splade = load_splade(folder, compute, chain, spec)
        return ModuleEngine(backbone, compute, outputs, splade=splade, query_table=_query_table(preparation, backbone))
    backbone = load_backbone(folder, compute, trust_remote_code=spec.trust_remote_code)
    return _chain_engine(preparation, chain, backbone, compute)


def _load_static_engine(preparation: Preparation, chain: ModuleChain) -> ModuleEngine:
    """Loads static embeddings: on the CPU unless a device is named, because there is nothing to compute."""
    from actors.network.static_embedding import load_static_embedding

    spec = preparation.spec.compute
    placed = replace(spec, device=spec.device or "cpu", dtype="fp32", budget=spec.budget or STATIC_BUDGET)
    table = load_static_embedding(chain.transformer)
    compute = resolve_compute(placed, table)
    return _chain_engine(preparation, chain, table.to(compute.device), compute)


def _chain_engine(preparation: Preparation, chain: ModuleChain, backbone: Backbone, compute: Compute) -> ModuleEngine:
    spec, query = preparation.spec, None
    if preparation.query is not None and chain.query is not None:
        shared = chain.query.transformer == chain.transformer
        load = partial(_chain_engine, backbone=backbone, compute=compute) if shared else load_chain_engine
        query = load(preparation.query, chain.query)
    loaded = load_chain(chain, backbone.hidden_size, compute, spec.normalize)
    return ModuleEngine(
        backbone, compute, available_outputs(preparation), loaded, rules=preparation.rules,
        truncate_dim=spec.truncate_dim, normalize=bool(spec.normalize), query=query,
    )  # fmt: skip


def _query_table(preparation: Preparation, backbone: Backbone) -> QueryTable | None:
    chain, spec = preparation.chain, preparation.spec
    assert chain is not None, "a SPLADE model is a chain"
    if chain.query_table is None or preparation.query_tokenizer is None:
        return None
    from actors.network.splade_loading import read_query_table

    weight = read_query_table(chain.query_table, preparation.query_tokenizer)
    if len(weight) > backbone.vocab_size:
        raise CheckpointError(
            f"{chain.query_table}: the query table weighs {len(weight)} tokens, "
            f"the document model knows {backbone.vocab_size}: they are of different tokenizers"
        )
    return QueryTable(weight, spec.max_active_dims, spec.sparse_threshold or 0.0)


def load_engine(preparation: Preparation) -> Engine:
    """Loads the weights of a prepared model, in the dtype and on the device that its ComputeSpec resolves to."""
    spec, folder = preparation.spec, preparation.folder
    assert spec.pooling is not None, "the spec is complete"
    check_weights(folder)
    config = read_model_config(folder, spec.trust_remote_code)
    compute = resolve_compute(spec.compute, config, allows_int8=True)
    backbone = load_backbone(folder, compute, trust_remote_code=spec.trust_remote_code)
    outputs = available_outputs(preparation)
    sparse = _head(preparation, "sparse", compute, backbone.hidden_size) if "sparse" in outputs else None
    colbert = _head(preparation, "colbert", compute, backbone.hidden_size) if "colbert" in outputs else None
    named = preparation.tokenizer.named
    excluded = frozenset(named[role] for role in UNWEIGHTED if role in named)
    normalize, cut = bool(spec.normalize), spec.truncate_dim
    return Engine(backbone, compute, outputs, spec.pooling, normalize, cut, sparse, colbert, excluded)


def _head(preparation: Preparation, output: Output, compute: Compute, hidden_size: int) -> nn.Linear | None:
    """Loads the linear layer of this output; None if there is no file, which is the identity for ColBERT."""
    folder, name = head_folder(preparation), f"{output}_linear"
    loaded = load_head(folder, name)
    if loaded is None:
        return None
    width, requested = len(loaded.weight), 1 if output == "sparse" else preparation.spec.colbert_dim
    if loaded.weight.shape != (requested or width, hidden_size):
        found, expected = tuple(loaded.weight.shape), (requested or width, hidden_size)
        raise CheckpointError(f"{folder}: {name} has a weight of shape {found}, expected {expected}")
    linear = nn.Linear(hidden_size, width, device="meta")
    linear.weight, linear.bias = nn.Parameter(loaded.weight), nn.Parameter(loaded.bias)
    return linear.requires_grad_(False).to(compute.rounding or compute.dtype).to(compute.device, compute.dtype)
