"""Pages and groups ranked hits, to select which of them are returned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.retrieval.hits import Hit


@dataclass(frozen=True, slots=True)
class Grouping:
    """Limits the hits to `size` for each value of a column."""

    column: str
    size: int

    def key(self, hit: Hit) -> Any:
        """Returns the value by which the hit is grouped."""
        return getattr(hit, self.column) if self.column in ("doc_id", "chunk_id", "text") else hit.metadata[self.column]


def first_page(hits: Iterable[Hit], k: int, offset: int, grouping: Grouping | None) -> Iterator[Hit]:
    """Yields k hits after `offset`; with a grouping, k groups after `offset` groups, each with its best hits."""
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
