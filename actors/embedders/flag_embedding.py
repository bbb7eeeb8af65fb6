"""Holds what FlagEmbedding's five embedder classes share: their arguments, and encode, encode_queries, encode_corpus.

Arguments are dataclass fields in upstream's order with upstream's defaults: here the six that every class begins with,
in each class the others, whose order differs between upstream's classes. They stay attributes and are read at every
call, as upstream, so `model.query_max_length = 64` works. A class defines how queries are tokenised and what a result
looks like; the rest is here and in the engine.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from torch import nn

from actors.checkpoints.loading import check_weights
from actors.compute.resolve import cpu_has_bf16
from actors.embedders.base import checked_outputs, load_engine
from actors.embedders.device_pool import DevicePool, Devices, device_names
from actors.embedders.engine import EncodeRequest, Engine
from actors.models.catalogue import known_pooling, published_pooling
from actors.models.compat import ComputeArgument, UpstreamModel, check_arguments, compute_of
from actors.models.identity import available_outputs
from actors.models.preparation import load_preparation
from actors.models.transformers_objects import load_module
from actors.outputs import Array, EmbeddingBatch, TokenBatch
from actors.spec import ComputeSpec, EmbedderSpec, ModelClass, Output
from actors.text.prompts import PLAIN, instruct

Result = TypeVar("Result")
NO_EFFECT = frozenset({"pad_to_multiple_of"})
"""Call arguments of upstream's that choose how it pads; nothing is padded here."""
CALL_ARGUMENTS = ("batch_size", "max_length", "instruction", "instruction_format")
TextOrTexts = str | Sequence[str]
UPSTREAM_NAMES = {
    "model": "model_name_or_path",
    "normalize": "normalize_embeddings",
    "pooling": "pooling_method",
}
"""What FlagEmbedding calls a field of EmbedderSpec, where it has another name for it."""
READ_AT_EVERY_CALL = frozenset({"query_instruction_format", "passage_instruction_format"})
"""Attributes that may be changed after loading, as upstream: encode reads them, the spec does not hold them."""


class ArgumentsOfEachClass(UpstreamModel):
    """Declares the arguments that each class lists as fields of its own, in its own order."""

    devices: Devices
    """One device, or several that share every list of texts; None: all accelerators, else the CPU."""
    pooling_method: str | None
    """cls, mean or last_token. None: the catalogue's for this model name, else cls."""
    cache_dir: str | None
    batch_size: int
    """An upper bound of batch_size x max_length tokens: batches are cut by tokens, see `actors.compute.batching`."""
    query_max_length: int | None
    """None: 512, or the model's positions where it has fewer."""
    passage_max_length: int | None
    convert_to_numpy: bool
    truncate_dim: int | None


@dataclass(eq=False)
class FlagEmbeddingCompat(ArgumentsOfEachClass, ABC, Generic[Result]):
    """Wraps an embedder in FlagEmbedding's interface. Errors: see `load_embedder`, `Preparation.tokenise`."""

    model_name_or_path: str
    normalize_embeddings: bool = True
    use_fp16: bool = True
    """Half precision on an accelerator; on a CPU the weights are rounded to it and fp32 computes, as upstream."""
    use_bf16: bool = False
    """bfloat16, on a CPU as well where the processor multiplies it; elsewhere it only rounds the weights, as upstream.
    A class whose own default it is (FlagPseudoMoEModel) keeps upstream's numbers; see `compute`."""
    query_instruction_for_retrieval: str | None = None
    query_instruction_format: str = PLAIN
    _: KW_ONLY
    passage_instruction_for_retrieval: str | None = None
    passage_instruction_format: str = PLAIN
    revision: str | None = None
    device: Devices = None
    """Another name for `devices`; upstream keeps it and ignores it."""
    compute: ComputeArgument = None
    """None: FlagEmbedding's numbers to the last digit. "auto": what jobs use, the fastest that this machine does well.
    Or a ComputeSpec."""

    model_class: ClassVar[ModelClass]
    call_options: ClassVar[tuple[str, ...]] = ("convert_to_numpy",)
    """Arguments of encode that replace the attribute of the same name for one call."""

    def __post_init__(self) -> None:
        if self.devices is None:
            self.devices = self.device
        self.target_devices = device_names(self.devices)
        self.pooling_method = self.pooling_method or known_pooling(str(self.model_name_or_path)) or "cls"
        self.preparation = load_preparation(self._spec(self.target_devices[0]))
        self._warn_of_other_pooling()
        spec = self.preparation.spec
        self.query_max_length, self.passage_max_length = spec.query_max_length, spec.passage_max_length
        self.outputs = available_outputs(self.preparation)
        self.runner: Engine | DevicePool
        if len(self.target_devices) == 1:
            self.runner = load_engine(self.preparation)
        else:
            check_weights(self.preparation.folder)
            self.runner = DevicePool(spec, self.target_devices)

    def _warn_of_other_pooling(self) -> None:
        published = published_pooling(str(self.model_name_or_path), self.preparation.folder)
        if published is not None and published != self.pooling_method:
            warnings.warn(
                f"{self.model_name_or_path} was published with pooling_method={published!r}, "
                f"{self.pooling_method!r} pools it: similarities may mean little",
                stacklevel=4,
            )

    @property
    def _checkpoint_folder(self) -> Path:
        return self.preparation.folder

    @cached_property
    def model(self) -> nn.Module:
        """Returns transformers' module for direct use; loads it now, in addition to what encodes."""
        module: nn.Module = load_module(
            "AutoModel", self._checkpoint_folder, self.target_devices[0], self.trust_remote_code
        )
        return module

    def _spec(self, device: str) -> EmbedderSpec:
        """Builds the spec of the attributes that are named for a field of it, or stand for one in UPSTREAM_NAMES."""
        names = {f.name: UPSTREAM_NAMES.get(f.name, f.name) for f in fields(EmbedderSpec)}
        given = {field: getattr(self, name) for field, name in names.items() if hasattr(self, name)}
        given = {field: value for field, value in given.items() if field not in READ_AT_EVERY_CALL}
        explicit = self.use_bf16 and not type(self).use_bf16
        compute = compute_of(self.compute, precision(self.use_fp16, self.use_bf16, device, explicit))
        return EmbedderSpec(**{**given, "model": str(self.model_name_or_path), "compute": compute})

    def _encode_texts(
        self, given: TextOrTexts, batch_size: int | None, max_length: int | None, instruction: str | None,
        instruction_format: str | None, options: dict[str, Any],
    ) -> Result:  # fmt: skip
        """Encodes texts as they are (or with `instruction`), cut to passage_max_length; one str gives one row."""
        texts = instruct(as_list(given), instruction, instruction_format or PLAIN)
        return self._encode(given, self._passages(texts, max_length), batch_size, options)

    def _encode_corpus(
        self, given: TextOrTexts, batch_size: int | None, max_length: int | None, options: dict[str, Any]
    ) -> Result:
        texts = instruct(as_list(given), self.passage_instruction_for_retrieval, self.passage_instruction_format)
        return self._encode(given, self._passages(texts, max_length), batch_size, options)

    def _encode_queries(
        self, given: TextOrTexts, batch_size: int | None, max_length: int | None, options: dict[str, Any]
    ) -> Result:
        texts = instruct(as_list(given), self.query_instruction_for_retrieval, self.query_instruction_format)
        return self._encode(given, self._queries(texts, max_length), batch_size, options)

    def embed_corpus(self, texts: Iterable[str], outputs: Sequence[Output] | None = None) -> EmbeddingBatch:
        """Encodes as `encode_corpus`: every output of the model (or those requested) as contiguous buffers."""
        written = instruct(texts, self.passage_instruction_for_retrieval, self.passage_instruction_format)
        return self._embed(self._passages(written, None), outputs)

    def embed_queries(self, texts: Iterable[str], outputs: Sequence[Output] | None = None) -> EmbeddingBatch:
        """Encodes as `encode_queries`: every output of the model (or those requested) as contiguous buffers."""
        written = instruct(texts, self.query_instruction_for_retrieval, self.query_instruction_format)
        return self._embed(self._queries(written, None), outputs)

    def stop_self_pool(self) -> None:
        """Stops the processes of several devices; the next call starts them again."""
        if isinstance(self.runner, DevicePool):
            self.runner.close()

    def _passages(self, texts: list[str], max_length: int | None) -> TokenBatch:
        length = self.passage_max_length if max_length is None else max_length
        return self.preparation.tokenise(texts, "plain", length)

    def _queries(self, texts: list[str], max_length: int | None) -> TokenBatch:
        length = self.query_max_length if max_length is None else max_length
        return self.preparation.tokenise(texts, "plain", length)

    def _encode(self, given: object, tokens: TokenBatch, batch_size: int | None, options: dict[str, Any]) -> Result:
        chosen = self._chosen(options)
        batch = self._embed(tokens, self._requested_outputs(chosen), batch_size, domain=self._domain(chosen))
        return self._result(batch, chosen, isinstance(given, str))

    def _embed(
        self, tokens: TokenBatch, outputs: Sequence[Output] | None, batch_size: int | None = None, **options: Any
    ) -> EmbeddingBatch:
        rows = self.batch_size if batch_size is None else batch_size
        if rows < 1:
            raise ValueError(f"batch_size must be at least 1, got {rows}")
        budget = rows * int(tokens.lengths.max(initial=1))
        requested = checked_outputs(outputs, self.outputs, self.model_name_or_path)
        return self.runner.embed_tokens(tokens, EncodeRequest(requested, max(budget, 1), **options))

    def _chosen(self, options: dict[str, Any]) -> dict[str, Any]:
        """Returns every call option: as given, else the attribute. TypeError for an argument that does not exist."""
        check_arguments(f"{type(self).__name__}.encode", options, (*CALL_ARGUMENTS, *self.call_options, *NO_EFFECT))
        given = {name: options.get(name) for name in self.call_options}
        return {name: getattr(self, name) if value is None else value for name, value in given.items()}

    def _as_upstream(self, values: Array) -> Array:
        """Converts to float16 if upstream's pass on an accelerator gives it, else float32."""
        on_cpu = self.target_devices[0].startswith("cpu")
        half = self.use_fp16 and not self.use_bf16 and not on_cpu and self.compute is None
        return values.astype(np.float16) if half else values

    def _domain(self, chosen: dict[str, Any]) -> str | None:
        return None

    @abstractmethod
    def _requested_outputs(self, chosen: dict[str, Any]) -> tuple[Output, ...]:
        """Returns the outputs that these call options request."""

    @abstractmethod
    def _result(self, batch: EmbeddingBatch, chosen: dict[str, Any], one: bool) -> Result:
        """Converts outputs to what the class returns for a list, or for one text."""


def as_list(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def precision(use_fp16: bool, use_bf16: bool, device: str, explicit_bf16: bool = False) -> ComputeSpec:
    """Chooses bf16 before fp16 before fp32. On a CPU both only round the weights: upstream computes in fp32 there.

    explicit_bf16: bf16 was set by name, and is computed in where the processor has it.
    """
    if not (use_fp16 or use_bf16):
        return ComputeSpec(dtype="fp32", device=device)
    half: Literal["bf16", "fp16"] = "bf16" if use_bf16 else "fp16"
    if device.startswith("cpu") and not (explicit_bf16 and cpu_has_bf16()):
        return ComputeSpec(dtype="fp32", rounding=half, device=device)
    return ComputeSpec(dtype=half, device=device)
