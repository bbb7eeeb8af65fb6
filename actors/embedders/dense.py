"""The classes whose result is one vector a text: a matrix, or a single vector for a single text."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from actors.embedders.flag_embedding import FlagEmbeddingCompat
from actors.outputs import Array, EmbeddingBatch
from actors.spec import ModelClass, Output
from actors.text.prompts import INSTRUCT


@dataclass(eq=False)
class DenseCompat(FlagEmbeddingCompat[Array | Tensor]):
    """Results: (n, d) float32, or (d,) for one str; float16 from half precision on an accelerator."""

    def _asked(self, chosen: dict[str, Any]) -> tuple[Output, ...]:
        return ("dense",)

    def _result(self, batch: EmbeddingBatch, chosen: dict[str, Any], one: bool) -> Array | Tensor:
        assert batch.dense is not None, "dense was asked for"
        vectors = batch.dense if self.pooling_method == "mean" else self._as_upstream(batch.dense)
        rows = vectors[0] if one else vectors
        return rows if chosen["convert_to_numpy"] else torch.from_numpy(rows).to(self.target_devices[0])


@dataclass(eq=False)
class FlagModel(DenseCompat):
    """BERT-like models: bge-*-en, bge-*-zh, e5, gte. pooling_method: cls, mean or last_token."""

    model_class: ClassVar[ModelClass] = "encoder-only-base"


@dataclass(eq=False)
class FlagLLMModel(DenseCompat):
    """Decoders: e5-mistral, bge-multilingual-gemma2, Qwen3-Embedding. The last token's state is the vector."""

    query_instruction_format: str = INSTRUCT
    pooling_method: str = "last_token"

    model_class: ClassVar[ModelClass] = "decoder-only-base"


@dataclass(eq=False)
class FlagPseudoMoEModel(FlagLLMModel):
    """Decoders with a choice of expert domains, e.g. `general`, `coding`, `reasoning`.

    The domain goes to checkpoints with code of their own that take one; any other checkpoint has none to choose from.
    """

    use_fp16: bool = False
    use_bf16: bool = True
    _: KW_ONLY
    domain_for_pseudo_moe: str | None = None

    model_class: ClassVar[ModelClass] = "decoder-only-pseudo_moe"
    call_options: ClassVar[tuple[str, ...]] = ("convert_to_numpy", "domain_for_pseudo_moe", "domain")

    @property
    def domain(self) -> str | None:
        """Upstream's second name for it."""
        return self.domain_for_pseudo_moe

    def _domain(self, chosen: dict[str, Any]) -> str | None:
        return next((chosen[k] for k in ("domain_for_pseudo_moe", "domain") if chosen[k] is not None), None)
