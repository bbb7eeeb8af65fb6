"""Compares an index's nDCG@10 with published figures of well-known models (`configs/published/ndcg10.yaml`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from actors.suggest import did_you_mean
from pipelines.config import InvalidRequest, find_packaged, read_yaml
from pipelines.evaluation.metrics import interval
from pipelines.evaluation.report import DECIDING, Evaluation

FILE = "configs/published/ndcg10.yaml"
NOT_COLLECTIONS = ("source", "channel")


@dataclass(frozen=True, slots=True)
class Published:
    """Holds one published figure."""

    model: str
    collection: str
    channel: str
    """The channel of an index that ranks as the published run did."""
    ndcg: float
    source: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Holds a published figure beside an index's own."""

    published: Published
    measured: float
    low: float
    high: float

    @property
    def agrees(self) -> bool:
        """Returns whether the published figure lies in the 95% interval of the measured one."""
        return self.low <= self.published.ndcg <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        p = self.published
        return {
            "model": p.model,
            "collection": p.collection,
            "channel": p.channel,
            "published": p.ndcg,
            "measured": self.measured,
            "interval": [self.low, self.high],
            "agrees": self.agrees,
            "source": p.source,
        }

    def text(self) -> str:
        """Returns two lines for a terminal."""
        p, verdict = self.published, "inside" if self.agrees else "OUTSIDE"
        return (
            f"published for {p.model} on {p.collection}: {DECIDING} {p.ndcg:.3f} ({p.source})\n"
            f"{p.channel} of this index: {self.measured:.4f}; the published figure lies {verdict} its 95% interval, "
            f"{self.low:.4f} to {self.high:.4f}"
        )


def find_published(expected: str, files: Iterable[Path]) -> Published:
    """Finds the figure of `MODEL` for the collection that the judged files' path names, or of `MODEL:COLLECTION`.

    InvalidRequest names what is unknown and lists what there is.
    """
    name, _, collection = expected.partition(":")
    table = _table()
    figures: Mapping[str, Mapping[str, Any]] = table["figures"]
    model = {known.lower(): known for known in figures}.get(name.rsplit("/", 1)[-1].lower())
    if model is None:
        raise InvalidRequest(
            f"--expect: {name!r} is unknown{did_you_mean(name, figures)}; there are {', '.join(figures)}"
        )
    row = figures[model]
    known = [key for key in row if key not in NOT_COLLECTIONS]
    found = _normalise_name(collection) if collection else _collection_of(files, known)
    if found not in known:
        raise InvalidRequest(
            f"--expect: no figure of {model} for {collection or 'the collection of these files'}; "
            f"say {model}:COLLECTION, one of {', '.join(known)}"
        )
    return Published(
        model, found, row.get("channel", _channel_of_model(model)), float(row[found]), table["sources"][row["source"]]
    )


def compare(published: Published, evaluation: Evaluation) -> Comparison:
    """Compares a published figure with the run of the same channel. InvalidRequest if the index lacks that channel."""
    if published.channel not in evaluation.values:
        raise InvalidRequest(f"--expect: {published.model} ranks by {published.channel}, which this index lacks")
    values = evaluation.values[published.channel][DECIDING]
    low, high = interval(values)
    return Comparison(published, float(values.mean()), low, high)


def _channel_of_model(model: str) -> str:
    return "bm25" if model == "bm25" else "dense"


def _normalise_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _collection_of(files: Iterable[Path], known: Iterable[str]) -> str | None:
    """Returns the known collection that a part of the files' paths names."""
    parts = {_normalise_name(part.split(".")[0]) for file in files for part in file.absolute().parts}
    parts |= {part.replace("-", "") for part in parts}
    return next((name for name in known if name in parts or name.replace("-", "") in parts), None)


@cache
def _table() -> Any:
    return read_yaml(find_packaged(FILE) or FILE)
