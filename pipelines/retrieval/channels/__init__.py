"""Opens the channels of an index from the one table that lists them (`pipelines.config.channels`)."""

from __future__ import annotations

from importlib import import_module

from pipelines.config import CHANNELS, Channel
from pipelines.retrieval.channels.base import ChannelSearch
from pipelines.retrieval.columns.cache import ColumnCache


def open_channels(columns: ColumnCache) -> dict[Channel, ChannelSearch]:
    """Opens every channel that the index holds, in the order of the table; reads no data yet."""
    opened: dict[Channel, ChannelSearch] = {}
    for name, spec in CHANNELS.items():
        module, _, class_name = spec.searcher.rpartition(".")
        searcher: type[ChannelSearch] = getattr(import_module(module), class_name)
        channel = searcher.open(columns)
        if channel is not None:
            opened[name] = channel
    return opened
