"""Implements the classes whose result is one vector per text: a matrix, or a single vector for a single text."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors.embedders.device_pool import Devices
from actors.embedders.flag_embedding import FlagEmbeddingCompat, TextOrTexts
from actors.outputs import EmbeddingBatch
from actors.spec import ModelClass, Output
from actors.text.prompts import INSTRUCT

Floats = npt.NDArray[np.float32]


@dataclass(eq=False)
class DenseCompat(FlagEmbeddingCompat[Floats | Tensor]):
    """Returns vectors (n, d) float32, or (d,) for one str; float16 from half precision on an accelerator."""

    @overload
    def encode(
        self, sentences: TextOrTexts, batch_size: int | None = None, max_length: int | None = None,
        convert_to_numpy: Literal[True] | None = None, *, instruction: str | None = None,
        instruction_format: str | None = None, **options: Any,
    ) -> Floats: ...  # fmt: skip
    @overload
    def encode(
        self, sentences: TextOrTexts, batch_size: int | None = None, max_length: int | None = None, *,
        convert_to_numpy: Literal[False], instruction: str | None = None, instruction_format: str | None = None,
        **options: Any,
    ) -> Tensor: ...  # fmt: skip
    def encode(
        self, sentences: TextOrTexts, batch_size: int | None = None, max_length: int | None = None,
        convert_to_numpy: bool | None = None, *, instruction: str | None = None,
        instruction_format: str | None = None, **options: Any,
    ) -> Floats | Tensor:  # fmt: skip
        """Encodes texts as they are (or with `instruction`), cut to passage_max_length. One str gives one vector.

        Arguments that are None take the attribute of the same name. Raises TypeError for anything but texts.
        """
        options["convert_to_numpy"] = convert_to_numpy
        return self._encode_texts(sentences, batch_size, max_length, instruction, instruction_format, options)

    @overload
    def encode_corpus(
        self, corpus: TextOrTexts, batch_size: int | None = None, max_length: int | None = None,
        convert_to_numpy: Literal[True] | None = None, **options: Any,
    ) -> Floats: ...  # fmt: skip
    @overload
    def encode_corpus(
        self, corpus: TextOrTexts, batch_size: int | None = None, max_length: int | None = None, *,
        convert_to_numpy: Literal[False], **options: Any,
    ) -> Tensor: ...  # fmt: skip
    def encode_corpus(
        self, corpus: TextOrTexts, batch_size: int | None = None, max_length: int | None = None,
        convert_to_numpy: bool | None = None, **options: Any,
    ) -> Floats | Tensor:  # fmt: skip
        """Encodes texts with the passage instruction, cut to passage_max_length."""
        options["convert_to_numpy"] = convert_to_numpy
        return self._encode_corpus(corpus, batch_size, max_length, options)

    @overload
    def encode_queries(
        self, queries: TextOrTexts, batch_size: int | None = None, max_length: int | None = None,
        convert_to_numpy: Literal[True] | None = None, **options: Any,
    ) -> Floats: ...  # fmt: skip
    @overload
    def encode_queries(
        self, queries: TextOrTexts, batch_size: int | None = None, max_length: int | None = None, *,
        convert_to_numpy: Literal[False], **options: Any,
    ) -> Tensor: ...  # fmt: skip
    def encode_queries(
        self, queries: TextOrTexts, batch_size: int | None = None, max_length: int | None = None,
        convert_to_numpy: bool | None = None, **options: Any,
    ) -> Floats | Tensor:  # fmt: skip
        """Encodes texts with the query instruction, cut to query_max_length."""
        options["convert_to_numpy"] = convert_to_numpy
        return self._encode_queries(queries, batch_size, max_length, options)

    def _requested_outputs(self, chosen: dict[str, Any]) -> tuple[Output, ...]:
        return ("dense",)

    def _result(self, batch: EmbeddingBatch, chosen: dict[str, Any], one: bool) -> Floats | Tensor:
        assert batch.dense is not None, "dense was requested"
        vectors = batch.dense if self.pooling_method == "mean" else self._as_upstream(batch.dense)
        rows = vectors[0] if one else vectors
        return rows if chosen["convert_to_numpy"] else torch.from_numpy(rows).to(self.target_devices[0])


@dataclass(eq=False)
class FlagModel(DenseCompat):
    """Embeds by BERT-like models: bge-*-en, bge-*-zh, e5, gte. pooling_method: cls, mean or last_token."""

    devices: Devices = None
    pooling_method: str | None = None
    trust_remote_code: bool = False
    cache_dir: str | None = None
    batch_size: int = 256
    query_max_length: int | None = None
    passage_max_length: int | None = None
    convert_to_numpy: bool = True
    truncate_dim: int | None = None

    model_class: ClassVar[ModelClass] = "encoder-only-base"


@dataclass(eq=False)
class FlagLLMModel(DenseCompat):
    """Embeds by decoders (e5-mistral, bge-multilingual-gemma2, Qwen3-Embedding): the state of the last token."""

    query_instruction_format: str = INSTRUCT
    devices: Devices = None
    trust_remote_code: bool = False
    cache_dir: str | None = None
    batch_size: int = 256
    query_max_length: int | None = None
    passage_max_length: int | None = None
    convert_to_numpy: bool = True
    truncate_dim: int | None = None
    _: KW_ONLY
    pooling_method: str | None = "last_token"

    model_class: ClassVar[ModelClass] = "decoder-only-base"


@dataclass(eq=False)
class FlagPseudoMoEModel(FlagLLMModel):
    """Embeds by decoders with a choice of expert domains, e.g. `general`, `coding`, `reasoning`.

    The domain goes to checkpoints with code of their own that take one; any other checkpoint has none to choose from.
    """

    use_fp16: bool = False
    use_bf16: bool = True
    domain_for_pseudo_moe: str | None = None

    model_class: ClassVar[ModelClass] = "decoder-only-pseudo_moe"
    call_options: ClassVar[tuple[str, ...]] = ("convert_to_numpy", "domain_for_pseudo_moe", "domain")

    @property
    def domain(self) -> str | None:
        """Returns `domain_for_pseudo_moe`, by upstream's second name."""
        return self.domain_for_pseudo_moe

    def _domain(self, chosen: dict[str, Any]) -> str | None:
        return next((chosen[k] for k in ("domain_for_pseudo_moe", "domain") if chosen[k] is not None), None)
