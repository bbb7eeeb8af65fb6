"""Decides a job's metadata columns: those of the config and its files, with the types that the index has already."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipelines.config import BuildConfig, plain_options
from pipelines.reading.columns import PLACES, with_types_of_index
from pipelines.reading.formats import READERS
from pipelines.reading.units import Unit, metadata_fields
from pipelines.store.datasets import open_dataset
from pipelines.store.schema import table_uri


def fields_of_job(config: BuildConfig, units: Sequence[Unit]) -> list[pa.Field]:
    """Returns the metadata columns of a job with the types of the index, where it has them and they hold the guess.

    Adds `heading` and `page` if the index has them from documents that the input lacks now.
    """
    uri, options = table_uri(config.index.uri, config.index.table), plain_options(config.index.storage_options)
    dataset = open_dataset(uri, options)
    schema = None if dataset is None else dataset.schema
    fields = with_types_of_index(metadata_fields(config.input, units), config.input.columns, schema)
    if schema is None or not any(READERS[unit.format].is_document for unit in units):
        return fields
    there = {*schema.names} - {field.name for field in fields}
    return [*fields, *(field for name, field in PLACES.items() if name in there)]
