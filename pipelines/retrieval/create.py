"""Creates an empty index for `Index.upsert`: for programs that add documents one by one instead of in a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa

from pipelines.config import BuildConfig, ConfigError, EmbedderConfig, validated
from pipelines.retrieval.index import Index, open_index
from pipelines.store import lease
from pipelines.store.commit import create_or_open
from pipelines.store.datasets import open_dataset
from pipelines.store.embedder_choice import check_defaults
from pipelines.store.schema import Target, documents_schema, identity_of, table_uri

WRITER = "upsert"


def create_index(
    uri: str | Path,
    *,
    embedder: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    chunk: Mapping[str, Any] | None = None,
    metadata: Mapping[str, pa.DataType] | None = None,
    table: str = "documents",
    storage_options: Mapping[str, str] | None = None,
) -> Index:
    """Creates an index without documents, and opens it.

    embedder: the keys of `embedders.0` in a job's config, or a list of several; None takes the packaged model. chunk:
    the keys of `chunk`. metadata: name and Arrow type of each metadata column.

        create_index("./idx", embedder={"name": "m3", "model": "BAAI/bge-m3"}, metadata={"year": pa.int64()})

    Raises ConfigError if there is an index already, and for a codec that is trained on a corpus.
    """
    options = dict(storage_options or {})
    embedders = [embedder or {}] if embedder is None or isinstance(embedder, Mapping) else list(embedder)
    tree: dict[str, Any] = {
        "input": {"paths": [str(uri)]},
        "index": {"uri": str(uri), "table": table, "storage_options": options},
        "embedders": [dict(e) for e in embedders],
        "chunk": dict(chunk or {}),
    }
    config = validated(BuildConfig, tree)
    place = config.index.uri
    if open_dataset(table_uri(place, table), options) is not None:
        raise ConfigError(f"{place}: there is a table {table!r} already; open it with `open_index`")
    target = Target(place, _build_schema(config, metadata or {}), table, options, WRITER, uuid4().hex)
    with lease.acquire(place, table, WRITER, storage_options=options) as held:
        create_or_open(target, held)
    return open_index(place, table=table, storage_options=options)


def _build_schema(config: BuildConfig, metadata: Mapping[str, pa.DataType]) -> pa.Schema:
    if any(embedder.colbert_codec == "pq" for embedder in config.embedders):
        raise ConfigError("embedder.codec.colbert: pq is trained on a corpus; build the index with `tridex build`")
    identity = identity_of(config, {embedder.name: _describe_embedder(embedder) for embedder in config.embedders})
    check_defaults(identity, {}, is_new=True)
    return documents_schema(identity, [pa.field(name, kind) for name, kind in metadata.items()])


def _describe_embedder(embedder: EmbedderConfig) -> dict[str, Any]:
    from actors.models.identity import available_outputs, describe
    from actors.models.preparation import load_preparation

    try:
        preparation = load_preparation(embedder.spec())
    except ValueError as error:
        raise ConfigError(f"embedder ({embedder.model}): {error}") from error
    return {**describe(preparation), "outputs": list(available_outputs(preparation))}


def add_metadata_columns(index: Index, fields: Sequence[pa.Field]) -> None:
    """Adds empty metadata columns under the index's lease; existing documents get null.

    Raises ConfigError for a name that the index uses itself.
    """
    snapshot = index.snapshot
    documents_schema(snapshot.identity, list(fields))
    options = dict(snapshot.storage_options)
    with lease.acquire(snapshot.uri, snapshot.table, WRITER, storage_options=options):
        dataset = open_dataset(table_uri(snapshot.uri, snapshot.table), options)
        if dataset is None:
            raise ConfigError(f"{snapshot.uri}: the table {snapshot.table!r} is gone")
        new = [field for field in fields if field.name not in dataset.schema.names]
        if new:
            dataset.add_columns(pa.schema(new))
