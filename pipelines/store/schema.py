"""Defines the tables of an index, their columns, and the identity: the settings that it was built with.

The identity lies in the schema metadata of `documents`, so one atomic commit makes table and identity together and no
side file can get lost or disagree. It costs strictness: a field that differs refuses the table, even where the numbers
might have come out alike, because vectors of two models in one column cannot be told apart afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from actors.codecs import parameters as codec_parameters
from actors.codecs.parameters import ParametersByEmbedder
from pipelines.config import BuildConfig, ConfigError, absolute_model, absolute_uri

FORMAT_VERSION = 2
"""2: two hashes, `content_hash` over what is embedded and `metadata_hash` over the rest; 1 had one over both."""
IDENTITY_KEY = b"tridex.identity"
FILLING_KEY = b"tridex.filling"
"""Schema metadata: JSON list of columns that a job is adding and has not filled yet."""
CHANNELS_KEY = b"tridex.channels"
"""Schema metadata: JSON of the embedder that a search takes each output from, where the index's config names it."""
PROMOTED_KEY = b"tridex.promoted"
"""Schema metadata: JSON list of embedder names; searches that name none take the first, the rest is for a rollback."""
DROPPED_KEY = b"tridex.dropped"
"""Schema metadata: JSON, how often an embedder of each name was dropped: its side tables name this generation."""
QUARANTINE = "quarantine"
LEASES = "leases"
SKIPPED = "skipped"
FLOAT_CODECS = {"float16": pa.float16(), "float32": pa.float32()}

_HEAD = (
    pa.field("doc_id", pa.string()),
    pa.field("chunk_id", pa.string()),
    pa.field("chunk_index", pa.int32()),
    pa.field("chunk_count", pa.int32()),
    pa.field("start", pa.int64()),
    pa.field("end", pa.int64()),
    pa.field("text", pa.string()),
)
_TAIL = (
    pa.field("source", pa.string()),
    pa.field("content_hash", pa.binary(16)),
    pa.field("metadata_hash", pa.binary(16)),
    pa.field("n_tokens", pa.int32()),
    pa.field("n_truncated", pa.int32()),
)
SYSTEM_COLUMNS = tuple(f.name for f in (*_HEAD, *_TAIL))


def table_uri(uri: str, table: str) -> str:
    """Returns the path at which LanceDB keeps a table of the database at `uri`."""
    return f"{absolute_uri(uri).rstrip('/')}/{table}.lance"


@dataclass(frozen=True, slots=True)
class Identity:
    """Holds every setting that determines the numbers in an index's columns.

    chunk: mode, size, overlap. text: the template that joins title and text. embedders: for each column prefix what
    `Embedder.identity()` returns, and `outputs`, `dense` (dtype), `colbert` (codec), `colbert_pooling`, and `sparse`
    (codec) unless it is `max`.
    """

    chunk: Mapping[str, Any]
    text: str
    embedders: Mapping[str, Mapping[str, Any]]
    format_version: int = FORMAT_VERSION

    def to_metadata(self) -> dict[bytes, bytes]:
        tree = {
            "format_version": self.format_version,
            "chunk": dict(self.chunk),
            "text": self.text,
            "embedders": {name: dict(e) for name, e in self.embedders.items()},
        }
        return {IDENTITY_KEY: json.dumps(tree).encode()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> Identity | None:
        """Parses the identity; None if the schema has none, because tridex did not create the table."""
        text = (metadata or {}).get(IDENTITY_KEY)
        return None if text is None else cls(**json.loads(text))

    def difference(self, other: Identity) -> str | None:
        """Names the first field in which `other` (what the caller has) differs from this (what the index has)."""
        mine, theirs = dict(_iterate_leaves(self)), dict(_iterate_leaves(other))
        for key in sorted(mine.keys() | theirs.keys(), key=_order):
            if mine.get(key, _ABSENT) != theirs.get(key, _ABSENT):
                return f"{key}: index has {_show_leaf(mine, key)}, you have {_show_leaf(theirs, key)}"
        return None

    def additions(self, other: Identity) -> dict[str, tuple[str, ...]]:
        """Returns outputs by embedder that `other` has and this index lacks, if nothing else differs; else empty."""
        if self.difference(self.common(other)) is not None:
            return {}
        wanted = {
            name: [o for o in e["outputs"] if o not in self._outputs(name)] for name, e in other.embedders.items()
        }
        return {name: tuple(outputs) for name, outputs in wanted.items() if outputs}

    def common(self, other: Identity) -> Identity:
        """Returns `other` without the embedders and outputs that this index lacks."""
        kept = {
            name: {**e, "outputs": [o for o in e["outputs"] if o in self._outputs(name)]}
            for name, e in other.embedders.items()
            if name in self.embedders
        }
        return Identity(other.chunk, other.text, kept, other.format_version)

    def _outputs(self, name: str) -> Sequence[str]:
        return tuple(self.embedders.get(name, {}).get("outputs", ()))


_ABSENT = object()


def _show_leaf(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "nothing"


def _order(key: str) -> tuple[bool, bool, str]:
    """Sorts fields for comparison: the format version first; of an embedder the model's name, then the rest."""
    return key != "format_version", not key.endswith(".model"), key


def _iterate_leaves(identity: Identity) -> Iterator[tuple[str, Any]]:
    yield "format_version", identity.format_version
    yield from ((f"chunk.{key}", value) for key, value in identity.chunk.items())
    yield "text", identity.text
    for name, embedder in identity.embedders.items():
        for key, value in embedder.items():
            value = absolute_model(value) if key == "model" else value  # it may have been named by a relative path
            yield f"embedders.{name}.{key}", sorted(value) if isinstance(value, (list, tuple)) else value


def identity_of(
    config: BuildConfig,
    embedders: Mapping[str, Mapping[str, Any]],
    parameters: ParametersByEmbedder | None = None,
) -> Identity:
    """Returns the identity of the index that `config` builds; `embedders` maps names to `Embedder.identity()`.

    parameters: those of trained ColBERT codecs, by the embedder's name. The outputs are those in the
    config, or the identity's own `outputs` where the config leaves them open.
    """
    chunk = config.chunking.model_dump(include={"mode"} if config.chunking.mode == "whole" else None)
    if chunk.get("boundaries") != "sentences":  # indexes of before there was a choice were cut at words
        chunk.pop("boundaries", None)
    described = {
        e.name: {
            **embedders[e.name],
            "outputs": list(e.outputs or embedders[e.name]["outputs"]),
            "dense": e.codec.dense,
            "colbert": e.colbert_codec,
            "colbert_pooling": e.codec.colbert_pooling,
            **({"sparse": e.sparse_codec} if e.sparse_codec != "max" else {}),
            **_fingerprinted(e.name, parameters or {}),
        }
        for e in config.embedders
    }
    return Identity(chunk, config.input.template, described)


def _fingerprinted(name: str, parameters: ParametersByEmbedder) -> dict[str, str]:
    return {"codebook": codec_parameters.fingerprint(parameters[name])} if name in parameters else {}


def output_field(name: str, embedder: Mapping[str, Any], output: str) -> pa.Field:
    """Returns the column `NAME_OUTPUT` of one embedder as its identity describes it."""
    if output == "dense":
        kind: pa.DataType = pa.list_(FLOAT_CODECS[embedder["dense"]], embedder["dim"])
    elif output == "sparse":
        kind = pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])
    elif embedder["colbert"] in FLOAT_CODECS:
        kind = pa.list_(pa.list_(FLOAT_CODECS[embedder["colbert"]], embedder["colbert_dim"]))
    else:
        kind = pa.large_binary()
    return pa.field(f"{name}_{output}", kind)


def output_fields(identity: Identity) -> list[pa.Field]:
    return [output_field(name, e, o) for name, e in identity.embedders.items() for o in e["outputs"]]


def metadata_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Lists the user's own columns of this schema, in table order, without those that a job is still filling.

    Empty for a table without an identity.
    """
    identity = Identity.from_metadata(schema.metadata)
    if identity is None:
        return ()
    unfinished = json.loads((schema.metadata or {}).get(FILLING_KEY, b"[]"))
    made = {*SYSTEM_COLUMNS, *(f.name for f in output_fields(identity)), *unfinished}
    return tuple(name for name in schema.names if name not in made)


def promotions(metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """Lists the promoted embedder and those that were promoted before it, without those that were dropped."""
    identity = Identity.from_metadata(metadata)
    names = json.loads((metadata or {}).get(PROMOTED_KEY, b"[]"))
    return tuple(name for name in names if identity is not None and name in identity.embedders)


def only_embedder(identity: Identity) -> str | None:
    """Returns the name of the embedder of an index that has one; None if it has several."""
    names = tuple(identity.embedders)
    return names[0] if len(names) == 1 else None


def generation(metadata: Mapping[bytes, bytes] | None, name: str) -> int:
    """Returns how often an embedder of this name was dropped: what was made of an earlier one is void."""
    return int(json.loads((metadata or {}).get(DROPPED_KEY, b"{}")).get(name, 0))


def documents_schema(
    identity: Identity,
    metadata_fields: Sequence[pa.Field] = (),
    parameters: ParametersByEmbedder | None = None,
) -> pa.Schema:
    """Returns the schema of the `documents` table, with identity and codec parameters in its metadata.

    ConfigError names a metadata column that collides.
    """
    outputs = output_fields(identity)
    taken = {*SYSTEM_COLUMNS, *(f.name for f in outputs)}
    for column in metadata_fields:
        if column.name in taken:
            raise ConfigError(f"input.columns.metadata: {column.name!r} is a column that the index itself makes")
        taken.add(column.name)
    metadata = {**identity.to_metadata(), **codec_parameters.to_metadata(parameters or {})}
    return pa.schema([*_HEAD, *metadata_fields, *_TAIL, *outputs], metadata=metadata)


def quarantine_schema() -> pa.Schema:
    """Returns the schema of failed input rows; `position` is -1 if a whole file could not be read."""
    return pa.schema(
        [
            pa.field("source", pa.string()),
            pa.field("position", pa.int64()),
            pa.field("doc_id", pa.string()),
            pa.field("chunk_id", pa.string()),
            pa.field("error", pa.string()),
            pa.field("traceback", pa.string()),
            pa.field("job", pa.string()),
            pa.field("run", pa.string()),
            pa.field("time", pa.timestamp("us", "UTC")),
        ]
    )


@dataclass(frozen=True, slots=True)
class Target:
    """Describes a job's write target: small, picklable, sent to workers. `repr` hides secrets in `storage_options`."""

    uri: str
    schema: pa.Schema
    table: str = "documents"
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    job: str = "build"
    run: str = ""
    """One start of a driver; names its commits and its quarantine rows."""

    @property
    def documents_uri(self) -> str:
        return table_uri(self.uri, self.table)

    @property
    def quarantine_uri(self) -> str:
        return table_uri(self.uri, QUARANTINE)

    @property
    def metadata(self) -> tuple[str, ...]:
        """Returns the names of the metadata columns that the job writes."""
        return metadata_columns(self.schema)

    @property
    def identity(self) -> Identity:
        identity = Identity.from_metadata(self.schema.metadata)
        if identity is None:
            raise ValueError("Target.schema carries no identity: make it with documents_schema()")
        return identity
