"""Everything between a text and the model: which checkpoint, which instruction, how many tokens.

It is the half of an embedder that needs no weights, so that tokenising workers can run it beside the models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from actors.checkpoints.loading import resolve_folder
from actors.models.catalogue import check_length, complete, max_positions
from actors.outputs import TokenBatch
from actors.spec import EmbedderSpec
from actors.text.prompts import PLAIN, InContext, instruct
from actors.text.tokenizer import TextTokenizer, read_tokenizer

Kind = Literal["passage", "query", "plain"]


@dataclass(frozen=True, slots=True)
class Preparation:
    """`spec` is complete (see `catalogue.complete`); `in_context` is set for in-context-learning embedders alone."""

    spec: EmbedderSpec
    folder: Path
    tokenizer: TextTokenizer
    positions: int | None
    in_context: InContext | None = None

    def tokenise(self, texts: Iterable[str], kind: Kind = "passage", max_length: int | None = None) -> TokenBatch:
        """Texts with this kind's instruction as token ids, cut to `max_length` (None: this kind's own).

        `plain` takes no instruction and a passage's length. Raises TypeError for anything but str, ValueError for a
        lone surrogate and for a length that the model has no positions for.
        """
        length = self._length(kind) if max_length is None else max_length
        check_length(length, self.positions, "max_length")
        written = self.write(texts, kind)
        if kind == "query" and self.in_context is not None:
            return self.in_context.tokenise(self.tokenizer, written, length)
        return self.tokenizer.tokenise(written, length)

    @property
    def room(self) -> int:
        """Tokens of its own that a passage may have, beside special tokens and the instruction; 1 at least."""
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


def load_preparation(spec: EmbedderSpec) -> Preparation:
    """Resolves the model, reads its tokenizer and completes the spec; loads no weights.

    A model that sees pictures has no heads, whatever its text half has.
    """
    if spec.picture_weights is not None:
        spec = replace(spec, model_class="encoder-only-base")
    folder = resolve_folder(spec.model, spec.revision, spec.cache_dir, spec.trust_remote_code)
    spec = complete(spec, folder)
    tokenizer = read_tokenizer(folder, trust_remote_code=spec.trust_remote_code)
    in_context = InContext() if spec.model_class == "decoder-only-icl" else None
    return Preparation(spec, folder, tokenizer, max_positions(folder), in_context)
