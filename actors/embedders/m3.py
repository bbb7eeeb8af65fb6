"""Implements BGE-M3: dense vectors, lexical weights and token vectors from one pass, in upstream's containers.

Upstream's containers cost a Python object for each lexical weight; `embed_corpus` gives the same numbers as buffers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, TypedDict, cast, overload

import numpy as np
import torch
from torch import Tensor

from actors.embedders.dense import Floats
from actors.embedders.device_pool import Devices
from actors.embedders.flag_embedding import FlagEmbeddingCompat, TextOrTexts
from actors.embedders.pair_scores import lexical_score, pair_scores
from actors.models.identity import head_folder
from actors.models.transformers_objects import M3Module, load_module
from actors.outputs import Array, EmbeddingBatch, SparseVectors
from actors.spec import EmbedderSpec, ModelClass, Output
from actors.text.pairs import listed_pairs

Weights = Mapping[str, float]
Pair = tuple[str, str] | Sequence[str]
RETURNS: dict[str, Output] = {"return_dense": "dense", "return_sparse": "sparse", "return_colbert_vecs": "colbert"}


Lexical = defaultdict[str, np.float32]


class M3Outputs(TypedDict):
    """Types the result for a list of texts; None for outputs that were not requested, whatever the annotations."""

    dense_vecs: Floats
    """(n, d)"""
    lexical_weights: list[Lexical]
    """One {token id: weight} for each text."""
    colbert_vecs: list[Floats]
    """One (tokens - 1, d) for each text."""


class M3Output(TypedDict):
    """Types the result for one text; None for outputs that were not requested, whatever the annotations."""

    dense_vecs: Floats
    lexical_weights: Lexical
    colbert_vecs: Floats


@dataclass(eq=False)
class BGEM3FlagModel(FlagEmbeddingCompat[dict[str, Any]]):
    """Embeds by bge-m3 and models of its kind.

    encode* return `{"dense_vecs": (n, d) float32, "lexical_weights": [{str(token id): weight}], "colbert_vecs":
    [(tokens - 1, d)]}`, None for what was not requested, and single values for a single str.

    >>> flag = BGEM3FlagModel("all-MiniLM-L6-v2", use_fp16=False, devices="cpu")
    >>> found = flag.encode(["A panda eats bamboo."], return_sparse=True)
    >>> found["dense_vecs"].shape, len(found["lexical_weights"])
    ((1, 384), 1)
    """

    devices: Devices = None
    pooling_method: str | None = None
    trust_remote_code: bool = False
    cache_dir: str | None = None
    colbert_dim: int = -1
    """Checked against the head where positive."""
    batch_size: int = 256
    query_max_length: int | None = None
    passage_max_length: int | None = None
    return_dense: bool = True
    return_sparse: bool = False
    return_colbert_vecs: bool = False
    truncate_dim: int | None = None
    _: KW_ONLY
    convert_to_numpy: bool = True

    model_class: ClassVar[ModelClass] = "encoder-only-m3"
    call_options: ClassVar[tuple[str, ...]] = (*RETURNS, "convert_to_numpy")

    @overload
    def encode(
        self, sentences: str, batch_size: int | None = None, max_length: int | None = None,
        return_dense: bool | None = None, return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None, *, instruction: str | None = None,
        instruction_format: str | None = None, **options: Any,
    ) -> M3Output: ...  # fmt: skip
    @overload
    def encode(
        self, sentences: Sequence[str], batch_size: int | None = None, max_length: int | None = None,
        return_dense: bool | None = None, return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None, *, instruction: str | None = None,
        instruction_format: str | None = None, **options: Any,
    ) -> M3Outputs: ...  # fmt: skip
    def encode(
        self, sentences: TextOrTexts, batch_size: int | None = None, max_length: int | None = None,
        return_dense: bool | None = None, return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None, *, instruction: str | None = None,
        instruction_format: str | None = None, **options: Any,
    ) -> M3Output | M3Outputs:  # fmt: skip
        """Encodes texts as they are (or with `instruction`), cut to passage_max_length.

        Arguments that are None take the attribute of the same name. Raises TypeError for anything but texts.
        """
        options |= dict(zip(RETURNS, (return_dense, return_sparse, return_colbert_vecs), strict=True))
        found = self._encode_texts(sentences, batch_size, max_length, instruction, instruction_format, options)
        return cast("M3Output | M3Outputs", found)

    @overload
    def encode_corpus(
        self, corpus: str, batch_size: int | None = None, max_length: int | None = None,
        return_dense: bool | None = None, return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None, **options: Any,
    ) -> M3Output: ...  # fmt: skip
    @overload
    def encode_corpus(
        self, corpus: Sequence[str], batch_size: int | None = None, max_length: int | None = None,
        return_dense: bool | None = None, return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None, **options: Any,
    ) -> M3Outputs: ...  # fmt: skip
    def encode_corpus(
        self, corpus: TextOrTexts, batch_size: int | None = None, max_length: int | None = None,
        return_dense: bool | None = None, return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None, **options: Any,
    ) -> M3Output | M3Outputs:  # fmt: skip
        """Encodes texts with the passage instruction, cut to passage_max_length."""
        options |= dict(zip(RETURNS, (return_dense, return_sparse, return_colbert_vecs), strict=True))
        found = self._encode_corpus(corpus, batch_size, max_length, options)
        return cast("M3Output | M3Outputs", found)

    @overload
    def encode_queries(
        self, queries: str, batch_size: int | None = None, max_length: int | None = None,
        return_dense: bool | None = None, return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None, **options: Any,
    ) -> M3Output: ...  # fmt: skip
    @overload
    def encode_queries(
        self, queries: Sequence[str], batch_size: int | None = None, max_length: int | None = None,
        return_dense: bool | None = None, return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None, **options: Any,
    ) -> M3Outputs: ...  # fmt: skip
    def encode_queries(
        self, queries: TextOrTexts, batch_size: int | None = None, max_length: int | None = None,
        return_dense: bool | None = None, return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None, **options: Any,
    ) -> M3Output | M3Outputs:  # fmt: skip
        """Encodes texts with the query instruction, cut to query_max_length."""
        options |= dict(zip(RETURNS, (return_dense, return_sparse, return_colbert_vecs), strict=True))
        found = self._encode_queries(queries, batch_size, max_length, options)
        return cast("M3Output | M3Outputs", found)

    @cached_property
    def model(self) -> M3Module:
        """Returns transformers' module and the two heads, for direct use; loads them beside what encodes."""
        module = load_module("AutoModel", self._checkpoint_folder, self.target_devices[0], self.trust_remote_code)
        return M3Module(module, head_folder(self.preparation), str(self.pooling_method), self.normalize_embeddings)

    def _spec(self, device: str) -> EmbedderSpec:
        return replace(super()._spec(device), colbert_dim=self.colbert_dim if self.colbert_dim > 0 else None)

    def _requested_outputs(self, chosen: dict[str, Any]) -> tuple[Output, ...]:
        return tuple(output for name, output in RETURNS.items() if chosen[name])

    def _result(self, batch: EmbeddingBatch, chosen: dict[str, Any], one: bool) -> dict[str, Any]:
        colbert = batch.colbert
        result: dict[str, Any] = {
            "dense_vecs": None if batch.dense is None else self._as_upstream(batch.dense),
            "lexical_weights": None if batch.sparse is None else self._lexical_weights(batch.sparse),
            "colbert_vecs": None if colbert is None else [colbert.row(i) for i in range(len(colbert))],
        }
        return {name: value[0] if one and value is not None else value for name, value in result.items()}

    def _lexical_weights(self, sparse: SparseVectors) -> list[defaultdict[str, Any]]:
        weights = self._as_upstream(sparse.weights)
        keys = list(map(str, sparse.token_ids.tolist()))
        bounds = zip(sparse.offsets[:-1].tolist(), sparse.offsets[1:].tolist(), strict=True)
        return [defaultdict(int, zip(keys[i:j], weights[i:j], strict=True)) for i, j in bounds]

    def convert_id_to_token(
        self, lexical_weights: Weights | Sequence[Weights]
    ) -> dict[str, float] | list[dict[str, float]]:
        """Converts ids to token texts. Upstream's rule: a list of one gives its only element."""
        rows = [lexical_weights] if isinstance(lexical_weights, Mapping) else lexical_weights
        named = [{self.preparation.tokenizer.decode([int(key)]): weight for key, weight in row.items()} for row in rows]
        return named[0] if len(named) == 1 else named

    def compute_lexical_matching_score(
        self, lexical_weights_1: Weights | Sequence[Weights], lexical_weights_2: Weights | Sequence[Weights]
    ) -> float | Array:
        """Sums products over shared ids: a number for two dicts, (n1, n2) for two lists."""
        if isinstance(lexical_weights_1, Mapping) and isinstance(lexical_weights_2, Mapping):
            return lexical_score(lexical_weights_1, lexical_weights_2)
        if isinstance(lexical_weights_1, list) and isinstance(lexical_weights_2, list):
            return np.array([[lexical_score(a, b) for b in lexical_weights_2] for a in lexical_weights_1])
        raise ValueError(
            "lexical weights must be two dicts or two lists of dicts, "
            f"got {type(lexical_weights_1).__name__} and {type(lexical_weights_2).__name__}"
        )

    def colbert_score(self, q_reps: Array, p_reps: Array) -> Tensor:
        """Averages over the query's tokens the best dot product with a passage token: a 0-d tensor."""
        return torch.from_numpy(np.asarray(q_reps) @ np.asarray(p_reps).T).amax(-1).sum() / len(q_reps)

    @overload
    def compute_score(  # type: ignore[overload-overlap]
        self, sentence_pairs: tuple[str, str], batch_size: int | None = None, max_query_length: int | None = None,
        max_passage_length: int | None = None, weights_for_different_modes: Sequence[float] | None = None,
    ) -> dict[str, float]: ...  # fmt: skip
    @overload
    def compute_score(
        self, sentence_pairs: Iterable[Pair], batch_size: int | None = None, max_query_length: int | None = None,
        max_passage_length: int | None = None, weights_for_different_modes: Sequence[float] | None = None,
    ) -> dict[str, list[float]]: ...  # fmt: skip
    def compute_score(
        self, sentence_pairs: Pair | Iterable[Pair], batch_size: int | None = None, max_query_length: int | None = None,
        max_passage_length: int | None = None, weights_for_different_modes: Sequence[float] | None = None,
    ) -> dict[str, float] | dict[str, list[float]]:  # fmt: skip
        """Scores by every mode, and weighted sums of them; weights are for dense, sparse, colbert, 1 each by default.

        One pair gives floats, a list gives lists. No instruction and no truncate_dim, as upstream. A pair's score does
        not depend on its batch (upstream's ColBERT score has a floor of 0 for tokens whose passage is padded).
        """
        listed = listed_pairs(sentence_pairs)
        if not listed:
            return cast("dict[str, list[float]]", [])  # as upstream
        one = isinstance(listed[0], str)
        pairs = _checked_pairs([listed] if one else listed)
        weights = _checked_weights(weights_for_different_modes)
        queries = self._queries([query for query, _ in pairs], max_query_length)
        passages = self._passages([passage for _, passage in pairs], max_passage_length)
        outputs = tuple(RETURNS.values())
        both = [self._embed(x, outputs, batch_size, ignore_truncate_dim=True) for x in (queries, passages)]
        scores = pair_scores(both[0], both[1], weights)
        return {name: values[0] for name, values in scores.items()} if one else scores


def _checked_pairs(pairs: Any) -> list[tuple[str, str]]:
    for i, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"pair {i} must be two str, got {pair!r}")
    return [(query, passage) for query, passage in pairs]


def _checked_weights(weights: Sequence[float] | None) -> tuple[float, float, float]:
    if weights is None:
        return 1.0, 1.0, 1.0
    if len(weights) != 3:
        raise ValueError(f"weights_for_different_modes are three, for dense, sparse, colbert; got {len(weights)}")
    return weights[0], weights[1], weights[2]
