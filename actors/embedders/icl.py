"""Implements in-context learning: examples before a query, a suffix after it, neither ever cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from actors.embedders.dense import DenseCompat
from actors.embedders.device_pool import Devices
from actors.outputs import TokenBatch
from actors.spec import ModelClass
from actors.text.prompts import TAGGED, InContext, examples_prefix

Examples = Sequence[Mapping[str, Any]]


@dataclass(eq=False)
class FlagICLModel(DenseCompat):
    """Embeds by bge-en-icl with examples `{"instruct", "query", "response"}`; instruct defaults to the query's."""

    query_instruction_format: str = TAGGED
    suffix: str = "\n<response>"
    devices: Devices = None
    examples_for_task: Examples | None = None
    examples_instruction_format: str = "<instruct>{}\n<query>{}\n<response>{}"
    trust_remote_code: bool = False
    cache_dir: str | None = None
    batch_size: int = 256
    query_max_length: int | None = None
    passage_max_length: int | None = None
    convert_to_numpy: bool = True
    truncate_dim: int | None = None
    _: KW_ONLY
    pooling_method: str | None = "last_token"

    model_class: ClassVar[ModelClass] = "decoder-only-icl"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set_examples()

    def set_examples(self, examples_for_task: Examples | None = None) -> None:
        """Prepends these examples to every query; None restores the constructor's."""
        examples = self.examples_for_task if examples_for_task is None else examples_for_task
        template, instruction = self.examples_instruction_format, self.query_instruction_for_retrieval
        self.prefix = "" if examples is None else examples_prefix(examples, template, instruction)

    def _queries(self, texts: list[str], max_length: int | None) -> TokenBatch:
        length = self.query_max_length if max_length is None else max_length
        in_context = InContext(self.prefix, self.suffix)
        return self.preparation.with_examples(in_context).tokenise(texts, "query", length)
