"""Holds the figures of a plan and formats them as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.monitor.progress import format_duration, format_size
from pipelines.plan.changes import PlannedChanges
from pipelines.plan.predict import Prediction
from pipelines.store.skipped import Skipped, skipped_lines

BAR = 40
"""Characters of the histogram's longest bar."""


@dataclass(frozen=True, slots=True)
class EmbedderPlan:
    """Holds one embedder's figures for the whole input. Bytes are those of the stored columns, uncompressed."""

    name: str
    model: str
    actors: int
    tokens: int
    """That the model sees."""
    rows_truncated: float
    """Share of the rows that lose tokens."""
    tokens_truncated: float
    """Share of the tokens that is lost."""
    bytes: dict[str, float]
    """Of each output, as configured."""
    codec: str
    colbert_bytes: dict[str, float]
    """What the ColBERT output would take with each codec."""
    tokens_per_second: float | None
    """Of one actor; None if there was nothing to measure with."""
    measured: bool
    hours: float | None
    why: tuple[str, ...]
    """What the compute settings resolve to on this machine, and why; empty where a card's speed was predicted."""
    prediction: Prediction | None = None
    loading_seconds: float | None = None
    """Of one actor's weights and first pass, measured here."""
    working_actors: float = 1.0
    """At work on average: there may be fewer blocks than actors, or too few for every actor in the last round."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Holds the output of `tridex plan`: counts of the whole input, estimated from `sampled` documents."""

    sampled: int
    units: int
    input_bytes: int
    documents: int
    exact: bool
    """`documents` was counted, not estimated."""
    chunks: int
    bad_share: float
    """Of the sampled rows, those that would go to the quarantine."""
    bad_reasons: dict[str, int]
    text_bytes: float
    histogram: dict[str, int]
    """Chunks by their tokens before truncation: `16-31`, ..., `8192+`."""
    block_bytes: float
    """Of one block of embedded rows on its way through Ray's object store."""
    embedders: tuple[EmbedderPlan, ...]
    hours: float | None
    cost: float | None
    redo_seconds: float | None = None
    """Work that a crash may cost: filling a fragment, the least that is committed, and waiting for the commit."""
    skipped: tuple[Skipped, ...] = ()
    """Files that will not be read."""
    warnings: tuple[str, ...] = ()
    changes: PlannedChanges | None = None
    """What a build would do with the documents; None where there is no index yet."""
    seconds: float | None = None
    """Of a whole build on this machine, start-up included; None where the speed was stated."""

    @property
    def index_bytes(self) -> float:
        return self.text_bytes + sum(sum(e.bytes.values()) for e in self.embedders)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"index_bytes": self.index_bytes}

    def text(self) -> str:
        """Formats the plan for one screen: figures in columns, warnings last."""
        amounts = [*_input(self), *_changes(self), *_bars(self.histogram), *_outputs(self), *_time(self)]
        return "\n".join([*amounts, *skipped_lines(self.skipped), *_warnings(self)])


def _input(plan: Plan) -> Iterator[str]:
    about = "" if plan.exact else "about "
    yield f"input       {format_size(plan.input_bytes)} in {plan.units:,} {'unit' if plan.units == 1 else 'units'}"
    yield f"documents   {about}{plan.documents:,}, in {plan.chunks:,} chunks (from a sample of {plan.sampled:,})"
    if plan.bad_share:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in plan.bad_reasons.items())
        yield f"bad rows    {plan.bad_share:.1%} of the sample: {reasons}"


def _changes(plan: Plan) -> Iterator[str]:
    if plan.changes is not None:
        yield f"changes     {plan.changes.text()}"


def _bars(histogram: Mapping[str, int]) -> Iterator[str]:
    """Draws chunks by tokens, from the first non-empty bin to the last."""
    filled = [i for i, n in enumerate(histogram.values()) if n]
    if not filled:
        return
    most = max(histogram.values())
    yield "tokens      of a chunk, before truncation"
    for label, n in list(histogram.items())[filled[0] : filled[-1] + 1]:
        yield f"  {label:>10} {'█' * round(BAR * n / most):<{BAR}} {n:,}"


def _outputs(plan: Plan) -> Iterator[str]:
    yield f"index       {format_size(plan.index_bytes)}, of it text {format_size(plan.text_bytes)}"
    for e in plan.embedders:
        yield f"{e.name:<11} {e.model}: {e.tokens:,} tokens, {e.rows_truncated:.1%} of the rows truncated"
        for output, n in e.bytes.items():
            yield f"  {output:<9} {format_size(n)}{f' as {e.codec}' if output == 'colbert' else ''}"
        if e.colbert_bytes:
            yield "  codecs    " + ", ".join(f"{codec} {format_size(n)}" for codec, n in e.colbert_bytes.items())
        yield from (f"  {line}" for line in e.why)


def _time(plan: Plan) -> Iterator[str]:
    for e in plan.embedders:
        yield f"time        {_speed(e)}"
        if e.prediction is not None:
            yield f"  predicted {e.prediction.text()}"
    if plan.seconds is not None:
        yield f"in all      about {format_duration(plan.seconds)} on this machine, start-up and search indexes included"
    if plan.cost is not None:
        yield f"cost        {plan.cost:,.2f}"


def _speed(e: EmbedderPlan) -> str:
    if e.hours is None or e.tokens_per_second is None:
        return f"{e.name}: unknown, the sample holds no tokens"
    how = "measured here" if e.measured else "predicted" if e.prediction else "stated"
    actors = "1 actor" if e.actors == 1 else f"{e.actors:,} actors"
    speed = f"{actors} at {e.tokens_per_second:,.0f} tokens/s each, {how}"
    return f"{e.name}: {format_duration(e.hours * 3600)} ({speed})"


def _warnings(plan: Plan) -> Iterator[str]:
    yield from (f"warning     {line}" for line in plan.warnings)
