"""Defines the search options once, for `Index.search`, the commands, YAML files, evaluation and HTTP.

To add an option, add a field to `SearchOptions` and its type to `SearchKeywords`, which is what editors and mypy see.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, TypedDict, TypeVar, runtime_checkable

from pydantic import BeforeValidator, ConfigDict, Field, SkipValidation, ValidationError, field_validator

from actors.spec import Output
from actors.suggest import did_you_mean
from pipelines.config.channels import MODES, Channel, Mode
from pipelines.config.describe import describe_errors
from pipelines.config.settings import InvalidRequest, Model

Fusion = Literal["zscore", "weighted", "rrf", "dbsf"]
FUSIONS: tuple[Fusion, ...] = ("zscore", "weighted", "rrf", "dbsf")
F = TypeVar("F", bound=Callable[..., Any])


@runtime_checkable
class Reranker(Protocol):
    """Scores passages against a query: one number for each, higher for a better answer."""

    def score(self, query: str, passages: Sequence[str], /) -> Iterable[float]:
        """Returns one score per passage, in order."""
        ...


def _at_least(least: int) -> BeforeValidator:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"must be an integer of at least {least}, got {value!r}")
        return value

    return BeforeValidator(check, json_schema_input_type=int)


def _one_of(names: Sequence[str]) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value is not None and value not in names:
            near = did_you_mean(str(value), names)
            raise ValueError(f"{value!r} is unknown; there are {', '.join(names)}{near}")
        return value

    return BeforeValidator(check)


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
        raise ValueError(f"must be a number that is 0 or more, got {value!r}")
    return value


def _smoothing(value: Any) -> float | None:
    return None if value is None else _weight(value)


Positive = Annotated[int, _at_least(1)]
Weight = Annotated[float, BeforeValidator(_weight)]


class SearchOptions(Model):
    """Holds the options of a search, validated for form; outputs that the index lacks are refused by the search.

    SearchOptions(mode="bm25", k=3)  # the three best by full text
    SearchOptions(weights={"dense": 1, "colbert": 2})  # a hybrid of two channels
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    k: Positive = Field(10, description="Hits per query.")
    mode: Annotated[Mode, _one_of(MODES)] = Field(
        "hybrid", description=f"One of {', '.join(MODES)}: all channels fused, or one channel alone."
    )
    where: str | None = Field(
        None, description="SQL condition over the index's columns, applied in every channel before its best are taken."
    )
    weights: dict[str, Weight] | None = Field(
        None, description="Weight of each channel in the hybrid, as in dense=1,bm25=0.5; by default the model's."
    )
    fusion: Annotated[Fusion | None, _one_of(FUSIONS)] = Field(
        None, description=f"How scores are joined: {', '.join(FUSIONS)}; by default what is best for the index's model."
    )
    smoothing: Annotated[float | None, BeforeValidator(_smoothing)] = Field(
        None, description="Weight of near documents' scores in a hit's score; 0: none; by default the model's."
    )
    candidates: Positive = Field(200, description="Rows of each channel that enter the hybrid.")
    rerank: str | SkipValidation[Reranker] | None = Field(
        None, description="Second stage: a channel's name (colbert), or a reranker's name or folder."
    )
    rerank_k: Positive = Field(100, description="Hits that the second stage scores.")
    group_by: str | None = Field(
        "doc_id", description="Column: at most group_size hits of each of its values; none: every chunk for itself."
    )
    group_size: Positive = Field(1, description="Hits of each group.")
    offset: Annotated[int, _at_least(0)] = Field(0, description="Hits (or groups) to skip.")
    columns: tuple[str, ...] | None = Field(None, description="Metadata columns to return; by default all.")
    exact: bool = Field(False, description="No approximate index; ColBERT scans the table however large it is.")
    scores: Annotated[Literal["all", "used"], _one_of(("all", "used"))] = Field(
        "all", description="Channels whose scores hits carry: all of the index, or those that the ranking used."
    )
    channels: dict[str, str] | None = Field(
        None, description="Embedder behind each output, as in dense=qwen,sparse=splade; by default the index's own."
    )

    @field_validator("where", mode="before")
    @classmethod
    def _where_is_text(cls, where: Any) -> Any:
        if where is not None and not isinstance(where, str):
            raise ValueError(f"expected a SQL condition as a string, got {type(where).__name__}")
        return where

    @field_validator("rerank", mode="before")
    @classmethod
    def _reranker_scores(cls, rerank: Any) -> Any:
        if rerank is None or isinstance(rerank, str) or callable(getattr(rerank, "score", None)):
            return rerank
        raise ValueError(f"expected a name or an object with .score(query, passages), got {rerank!r}")

    @field_validator("columns", mode="before")
    @classmethod
    def _columns_are_names(cls, columns: Any) -> Any:
        if isinstance(columns, str):
            raise ValueError(f"expected a list of names, got {columns!r}")
        return columns

    @field_validator("weights")
    @classmethod
    def _some_weight(cls, weights: dict[str, float] | None) -> dict[str, float] | None:
        if weights is not None and not sum(weights.values()) > 0:
            raise ValueError("at least one must be above 0")
        return weights


SearchConfig = SearchOptions
"""The name in programs of before; a search file (`configs/search/*.yaml`) holds some of the options."""


class SearchKeywords(TypedDict, total=False):
    """Types the keyword arguments of `Index.search` and similar methods, beside `k`; see `SearchOptions`."""

    mode: Mode
    where: str | None
    weights: Mapping[Channel, float] | None
    fusion: Fusion | None
    smoothing: float | None
    candidates: int
    rerank: str | Reranker | None
    rerank_k: int
    group_by: str | None
    group_size: int
    offset: int
    columns: Sequence[str] | None
    exact: bool
    scores: Literal["all", "used"]
    channels: Mapping[Output, str] | None


def search_options(**values: Any) -> SearchOptions:
    """Validates a search's options; InvalidRequest names the invalid one and the nearest known one.

    >>> search_options(k=5, mode="dense").candidates
    200
    >>> search_options(mode="densest")
    Traceback (most recent call last):
        ...
    pipelines.config.settings.InvalidRequest: mode: must be one of
    """
    try:
        return SearchOptions(**values)
    except ValidationError as error:
        raise InvalidRequest(describe_errors(error, SearchOptions, values)) from error


def spell_out_options(method: F) -> F:
    """Replaces `**options` in a method's signature by every search option with its default, for `help`."""
    fields, hints = SearchOptions.model_fields, SearchKeywords.__annotations__
    signature = inspect.signature(method)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=fields[name].default, annotation=hint)
        for name, hint in hints.items()
    ]
    method.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return method
