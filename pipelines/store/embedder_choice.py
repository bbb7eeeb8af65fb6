"""Chooses which embedder of an index stands for each output, and checks that the chosen ones read the same chunks.

An index may hold columns of several models. A search takes each output (dense, sparse, ColBERT) from one of them, so a
hybrid may join a dense model, a SPLADE model and a ColBERT model. All of them embed the same rows, cut by the first
embedder's tokens: a model that reads fewer tokens than a row has would score the beginning of the row against the
whole row of the others, so that such models are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from actors.spec import OUTPUTS, Output
from actors.suggest import did_you_mean
from pipelines.config import ConfigError, InvalidRequest
from pipelines.store.datasets import open_dataset
from pipelines.store.lease import Lease
from pipelines.store.schema import CHANNELS_KEY, Identity, Target, promotions

SPECIAL_TOKENS = 2
"""Tokens that a model adds to a text, as `chunk.size` counts them."""


def choose_embedders(
    identity: Identity,
    embedder: str | None = None,
    channels: Mapping[str, str] | None = None,
    metadata: Mapping[bytes, bytes] | None = None,
) -> dict[Output, str]:
    """Returns the embedder's name for each output that a search compares.

    embedder: one for all of its outputs. channels: one for each output. metadata: the schema's. Without both: what the
    index's config sets for channels, the promoted embedder, or the only one with each output. ConfigError names the
    unknown name, or what there is to choose from.
    """
    if embedder is not None and channels is not None:
        raise ConfigError("embedder and channels: name one embedder, or one for each channel, not both")
    if embedder is not None:
        return _outputs_of(identity, embedder)
    if channels is not None:
        return check_channels(identity, channels)
    if len(identity.embedders) == 1:
        return _outputs_of(identity, next(iter(identity.embedders)))
    if stored := read_channels(metadata):
        return check_channels(identity, stored)
    promoted = promotions(metadata)
    return _outputs_of(identity, promoted[0]) if promoted else _choose_only(identity)


def _outputs_of(identity: Identity, name: str) -> dict[Output, str]:
    if name not in identity.embedders:
        has = ", ".join(identity.embedders)
        raise ConfigError(f"embedder: the index has no {name!r}; it has {has}{did_you_mean(name, identity.embedders)}")
    return dict.fromkeys(identity.embedders[name]["outputs"], name)


def _choose_only(identity: Identity) -> dict[Output, str]:
    """Returns the only embedder with each output; ConfigError if an output has several, or if chunks are cut short."""
    givers, several = _embedders_by_output(identity)
    if several is None:
        chosen = {o: names[0] for o, names in givers.items() if names}
        check_windows(identity, chosen.values(), "embedder")
        return chosen
    example = ", ".join(f"{o}={names[0]}" for o, names in givers.items() if names)
    raise ConfigError(
        f"embedder: the index has several, name one of {', '.join(identity.embedders)}, or `tridex promote` one; "
        f"or name one for each channel, as in channels {example} ({several} is stored by {', '.join(givers[several])})"
    )


def _embedders_by_output(identity: Identity) -> tuple[dict[Output, list[str]], Output | None]:
    """Returns the embedders that store each output, and the first output that several store; None if none."""
    givers = {o: [n for n, e in identity.embedders.items() if o in e["outputs"]] for o in OUTPUTS}
    return givers, next((o for o, names in givers.items() if len(names) > 1), None)


def check_channels(identity: Identity, channels: Mapping[str, str]) -> dict[Output, str]:
    """Checks an embedder's name for each output against the index; InvalidRequest names the wrong one."""
    if not channels:
        raise InvalidRequest("channels: name an embedder for at least one channel")
    for output, name in channels.items():
        if output not in OUTPUTS:
            raise InvalidRequest(f"channels: {output!r} takes no model; models give {', '.join(OUTPUTS)}")
        if name not in identity.embedders:
            has = ", ".join(identity.embedders)
            near = did_you_mean(str(name), identity.embedders)
            raise InvalidRequest(f"channels.{output}: the index has no embedder {name!r}; it has {has}{near}")
        if output not in identity.embedders[name]["outputs"]:
            gives = ", ".join(identity.embedders[name]["outputs"])
            raise InvalidRequest(f"channels.{output}: {name!r} stores no {output} output; it stores {gives}")
    check_windows(identity, channels.values(), "channels")
    return {o: channels[o] for o in OUTPUTS if o in channels}


def check_windows(identity: Identity, names: Iterable[str], argument: str) -> None:
    """Raises InvalidRequest naming the first of the embedders that reads less than a chunk of this index holds.

    A single embedder is not checked: its own scores compare like with like.
    """
    chosen = list(dict.fromkeys(names))
    if len(chosen) < 2 or identity.chunk.get("mode") == "whole":
        return
    first, size = next(iter(identity.embedders)), identity.chunk.get("size", "auto")
    window = _length(identity.embedders[first]) if size == "auto" else int(size) + SPECIAL_TOKENS
    for name in chosen:
        length = _length(identity.embedders[name])
        if window is not None and length is not None and length < window:
            cut = f"chunk.size is {size}" if size != "auto" else f"chunks are cut for {first!r}"
            raise InvalidRequest(
                f"{argument}: the embedders disagree on chunks: {cut}, up to {window} tokens with special tokens, and "
                f"{name!r} reads {length}; build the index with chunk.size {max(1, length - SPECIAL_TOKENS)} or less"
            )


def _length(embedder: Mapping[str, Any]) -> int | None:
    length = embedder.get("passage_max_length")
    return None if length is None else int(length)


def check_defaults(identity: Identity, channels: Mapping[str, str], is_new: bool) -> None:
    """Checks what searches of an index will take by default. ConfigError under the key that a build's config has.

    is_new: also checks the models of a new index in which each output has one embedder, so that a job does not compute
    columns that cannot be searched together.
    """
    try:
        if channels:
            check_channels(identity, channels)
        elif is_new and len(identity.embedders) > 1 and _embedders_by_output(identity)[1] is None:
            check_windows(identity, identity.embedders, "embedders")
    except InvalidRequest as error:
        raise ConfigError(f"search.{error}" if channels else str(error)) from error


def channels_metadata(channels: Mapping[str, str]) -> dict[bytes, bytes]:
    """Returns the schema metadata that makes searches take these embedders; empty for none."""
    return {CHANNELS_KEY: json.dumps(dict(channels)).encode()} if channels else {}


def write_channels(target: Target, lease: Lease) -> None:
    """Stores the channels of the target's schema in a table that has others; the target's absence changes nothing."""
    wanted = (target.schema.metadata or {}).get(CHANNELS_KEY)
    dataset = open_dataset(target.documents_uri, target.storage_options)
    if wanted is None or dataset is None or (dataset.schema.metadata or {}).get(CHANNELS_KEY) == wanted:
        return
    lease.check()
    dataset.update_schema_metadata({CHANNELS_KEY.decode(): wanted.decode()})


def read_channels(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """Reads the embedders by output that the index's config names; empty if it names none."""
    text = (metadata or {}).get(CHANNELS_KEY)
    return {} if text is None else json.loads(text)
