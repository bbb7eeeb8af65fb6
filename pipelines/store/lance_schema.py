"""Changes the metadata and the columns of a Lance schema together, for commits that need both in one step.

Lance's Python API changes either in a commit of its own; between the two an index would describe columns that it does
not have. A schema's own pickle form holds its metadata and its fields with their ids, from which a changed one is made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def change_schema(schema: Any, metadata: Mapping[str, str | None], drop: Sequence[str] = ()) -> Any:
    """Returns a `LanceSchema` without the columns `drop` and with changed metadata (None removes a key).

    Field ids stay as they are. RuntimeError if Lance's pickle form is not the one that is known.
    """
    make, (stored, *fields) = schema.__reduce__()
    kept: list[bytes] = []
    first = 0
    for field in schema.fields():
        size = sum(1 for _ in iterate_field_ids(field))
        kept += [] if field.name() in drop else fields[first : first + size]
        first += size
    tree = json.loads(stored) if isinstance(stored, str) else None
    if first != len(fields) or not isinstance(tree, dict):
        raise RuntimeError("this release of pylance pickles its schemas in another form: columns cannot be dropped")
    values = {key: list(value.encode()) for key, value in metadata.items() if value is not None}
    return make(json.dumps({k: v for k, v in tree.items() if k not in metadata} | values), *kept)


def iterate_field_ids(field: Any) -> Iterator[int]:
    """Yields the ids of a Lance field and of all fields below it; a data file names the leaves only."""
    yield field.id()
    for child in field.children():
        yield from iterate_field_ids(child)
