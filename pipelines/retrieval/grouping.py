"""Paging and grouping: which of the ranked hits are shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.config import ConfigError
from pipelines.retrieval.hits import Hit


@dataclass(frozen=True, slots=True)
class Grouping:
    """At most `size` hits for each value of a column."""

    column: str
    size: int

    def key(self, hit: Hit) -> Any:
        return getattr(hit, self.column) if self.column in ("doc_id", "chunk_id", "text") else hit.metadata[self.column]


def check_page(**numbers: int) -> None:
    """ConfigError for a number of the request that is no integer or too small; only `offset` may be 0."""
    for name, value in numbers.items():
        least = 0 if name == "offset" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}: must be an integer of at least {least}, got {value!r}")


def first_page(hits: Iterable[Hit], k: int, offset: int, grouping: Grouping | None) -> Iterator[Hit]:
    """k hits after `offset`; with a grouping, k groups after `offset` groups, each with its best hits together."""
    if grouping is None:
        yield from list(hits)[offset : offset + k]
        return
    groups: dict[Any, list[Hit]] = {}
    for hit in hits:
        members = groups.setdefault(grouping.key(hit), [])
        if len(members) < grouping.size:
            members.append(hit)
    for members in list(groups.values())[offset : offset + k]:
        yield from members
