"""Searches an index: `open_index(uri).search(...)`. Needs no Ray, and torch only to encode queries."""

from pipelines.retrieval.query import Index, open_index
from pipelines.retrieval.results import Hit, Hits

__all__ = ["Hit", "Hits", "Index", "open_index"]
