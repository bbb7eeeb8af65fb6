"""A search that has been checked."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.config import Channel
from pipelines.retrieval.channels import Filter
from pipelines.retrieval.fusion import Rule
from pipelines.retrieval.grouping import Grouping
from pipelines.retrieval.rerank import Reranker


@dataclass(frozen=True, slots=True)
class Request:
    """A search, checked. See `Index.search` for the meaning of each field."""

    k: int
    mode: str
    rule: Rule
    where: Filter | None
    candidates: int
    columns: tuple[str, ...]
    grouping: Grouping | None
    offset: int
    reranker: Reranker | None
    rerank_k: int
    exact: bool = False

    @property
    def searched(self) -> tuple[Channel, ...]:
        """Channels that bring candidates."""
        if self.mode != "hybrid":
            return (self.mode,)  # type: ignore[return-value]
        return tuple(c for c, w in self.rule.weights.items() if w > 0)

    @property
    def effective_rule(self) -> Rule:
        """The rule as a fusion: one channel alone is its raw score."""
        return self.rule if self.mode == "hybrid" else Rule("weighted", {self.searched[0]: 1.0})

    @property
    def depth(self) -> int:
        """How many rows must be ranked before paging."""
        wanted = self.offset + self.k
        return max(wanted, self.rerank_k) if self.reranker else wanted
