"""Holds what all classes with FlagEmbedding's names share, embedders and rerankers alike.

Unknown arguments are refused with the nearest known one; upstream keeps whatever it is given, and ignores it. Copies
share the loaded weights, which no call changes; a pickle holds the arguments alone, and loading it loads the model, so
that it goes into a spawned DataLoader or to another machine with the same files.
"""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from actors.models.transformers_objects import load_transformers_tokenizer
from actors.spec import ComputeSpec
from actors.suggest import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Self

ComputeArgument = Literal["auto"] | ComputeSpec | None


class UpstreamModel:
    """Provides a base of dataclasses whose fields are constructor arguments; `__post_init__` loads the model."""

    trust_remote_code: bool

    def __new__(cls, *args: Any, **named: Any) -> Self:
        check_arguments(cls.__name__, named, (field.name for field in fields(cls) if field.init))  # type: ignore[arg-type]
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Loads the model."""
        raise NotImplementedError

    @property
    def _checkpoint_folder(self) -> Path:
        raise NotImplementedError

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the checkpoint's tokenizer as transformers loads it, with the ids that encoding uses."""
        return load_transformers_tokenizer(self._checkpoint_folder, self.trust_remote_code)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    def __copy__(self) -> Self:
        clone = object.__new__(type(self))
        vars(clone).update(vars(self))
        return clone

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = self.__copy__()
        vars(clone).update(copy.deepcopy(self.__getstate__(), memo))
        vars(clone).pop("model", None)  # a module that the caller may change; the copy loads its own
        return clone


def check_arguments(caller: str, given: Any, known: Any) -> None:
    """Raises TypeError for the first unknown argument name, with the nearest known one."""
    names = list(known)
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        raise TypeError(f"{caller} has no argument {unknown!r}{did_you_mean(unknown, names)}")


def compute_of(given: ComputeArgument, upstream: ComputeSpec) -> ComputeSpec:
    """Converts a `compute` argument to a ComputeSpec; None computes as FlagEmbedding does, on the same device."""
    if given is None:
        return upstream
    if given == "auto":
        return ComputeSpec(device=upstream.device)
    if isinstance(given, ComputeSpec):
        return replace(given, device=given.device or upstream.device)
    raise ValueError(f"compute must be 'auto', a ComputeSpec, or None for FlagEmbedding's numbers; got {given!r}")
