"""Fetches, decodes and resizes pictures on CPU workers, so that model actors only embed.

What travels on is 150 kB of pixels a picture instead of megabytes; what the index keeps is a thumbnail and, where the
input named one, the path or URI. A picture that cannot be used marks its row with an error, as a bad text does.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from actors.arrow.blocks import set_row_errors
from actors.extras import require_extra
from pipelines.config import ConfigError, InputConfig, PictureConfig
from pipelines.reading.files import READ_ERRORS, filesystem, redact
from pipelines.store.schema import Identity

if TYPE_CHECKING:
    from actors.vision.preprocess import Prepared

PIXELS, THUMBNAIL = "pixels", "thumbnail"
PICTURE_ROWS = 256
"""Decoded pictures per block: 150 kB each."""
DECODING: dict[str, Any] = {"num_cpus": 0.5, "batch_format": "pyarrow", "batch_size": PICTURE_ROWS}
"""Half a CPU, which a pool of actors always leaves free."""


def check_pillow(config: InputConfig) -> None:
    """Raises MissingExtraError if pictures are configured and Pillow is not installed."""
    if config.pictures is not None:
        require_extra("vision", "input.pictures: reading pictures")


def stored_fields(config: InputConfig, fields: Sequence[pa.Field]) -> list[pa.Field]:
    """Returns the index's metadata columns for the columns read: pictures are stored as thumbnails, URIs unchanged."""
    if config.pictures is None:
        return list(fields)
    column = next(field for field in fields if field.name == config.pictures.column)
    if not _is_picture_type(column.type):
        raise ConfigError(f"input.pictures.column: {column.name!r} is {column.type}, not binary and not a string")
    kept = [field for field in fields if field.name != column.name or pa.types.is_string(field.type)]
    return [*kept, pa.field(THUMBNAIL, pa.binary())] if config.pictures.thumbnail else kept


def _is_picture_type(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def with_pictures(data: ray.data.Dataset, config: InputConfig, identity: Identity) -> ray.data.Dataset:
    """Adds `pixels` and `thumbnail` to documents if the job has pictures."""
    if config.pictures is None:
        return data
    sizes = {e["picture_size"] for e in identity.embedders.values() if "picture_size" in e}
    if len(sizes) > 1:
        raise ConfigError(f"embedders: their pictures have {sorted(sizes)} pixels a side; one size a job is possible")
    return data.map_batches(decode, fn_kwargs={"config": config, "size": sizes.pop()}, **DECODING)


def decode(table: pa.Table, config: InputConfig, size: int) -> pa.Table:
    """Adds `pixels` (uint8, size x size x 3, as bytes) and `thumbnail`; null for a row without a picture.

    A row whose picture cannot be used, or that has neither picture nor text, gets an error and loses its text.
    """
    from actors.vision.preprocess import PictureError  # torch and Pillow, which jobs without pictures do not load

    pictures = config.pictures
    assert pictures is not None, "the job has pictures"
    made: list[Prepared | None] = [None] * len(table)
    failures: dict[int, str] = {}
    for i, row in enumerate(table.select([pictures.column, "text", "source", "error"]).to_pylist()):
        if row["error"] is None:
            try:
                made[i] = _prepare_picture(row[pictures.column], row, config, size)
            except (PictureError, ConfigError, *READ_ERRORS) as error:
                failures[i] = redact(str(error), config.storage_options)
    return _with_columns(_failed(table, failures), made, pictures)


def _prepare_picture(
    picture: bytes | str | None, row: dict[str, Any], config: InputConfig, size: int
) -> Prepared | None:
    from actors.vision.preprocess import PictureError, prepare

    limits = config.pictures
    assert limits is not None, "the job has pictures"
    if picture is None:
        if not row["text"].strip():
            raise PictureError("there is neither a text nor a picture")
        return None
    name = None
    if isinstance(picture, str):
        name = _resolve_path(picture, row["source"])
        picture = _fetch_picture(name, config, limits.max_bytes)
    return prepare(picture, size=size, max_pixels=limits.max_pixels, thumbnail_side=limits.thumbnail, name=name)


def _resolve_path(uri: str, source: str) -> str:
    """Resolves a relative path against the folder of the file that contains it."""
    return uri if "://" in uri else posixpath.join(posixpath.dirname(source), uri)


def _fetch_picture(uri: str, config: InputConfig, max_bytes: int) -> bytes:
    from actors.vision.preprocess import PictureError

    client, path = filesystem(uri, config.storage_options)
    with client.open_input_stream(path) as stream:
        data: bytes = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise PictureError(f"{uri}: is longer than max_bytes ({max_bytes:,})")
    return data


def _failed(table: pa.Table, failures: dict[int, str]) -> pa.Table:
    """Sets errors on failed rows and nulls their text, so that later stages skip them."""
    if not failures:
        return table
    bad = pa.array([i in failures for i in range(len(table))])
    text = pc.if_else(bad, pa.scalar(None, pa.string()), table.column("text"))
    return set_row_errors(table.set_column(table.column_names.index("text"), "text", text), failures)


def _with_columns(table: pa.Table, made: Sequence[Prepared | None], config: PictureConfig) -> pa.Table:
    pixels = pa.array([None if p is None else p.pixels.tobytes() for p in made], pa.binary())
    table = table.append_column(PIXELS, pixels)
    if config.thumbnail:
        table = table.append_column(
            THUMBNAIL, pa.array([None if p is None else p.thumbnail for p in made], pa.binary())
        )
    kept = pa.types.is_string(table.schema.field(config.column).type)
    return table if kept else table.drop_columns([config.column])
