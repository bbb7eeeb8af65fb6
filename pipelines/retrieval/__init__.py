"""Opens and searches an index: `open_index(uri).search(...)`. Needs no Ray, and torch only to encode queries."""

from pipelines.retrieval.hits import Hit, Hits
from pipelines.retrieval.index import Index, open_index

__all__ = ["Hit", "Hits", "Index", "open_index"]
