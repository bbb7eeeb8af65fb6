"""A small index without a model: blocks as the embed stage leaves them, with vectors made from the text's length."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.outputs import matrix_to_arrow
from pipelines.store.lease import Lease, acquire
from pipelines.store.schema import Identity, Target, documents_schema

Block = Callable[..., pa.Table]


@pytest.fixture
def identity() -> Identity:
    embedder = {"model": "toy", "weights": "abc", "dim": 4, "colbert_dim": 8, "outputs": ["dense", "colbert"]}
    codecs = {"dense": "float16", "colbert": "sign", "colbert_pooling": "none"}
    return Identity({"mode": "whole"}, "{title} {text}", {"toy": embedder | codecs})


@pytest.fixture
def target(tmp_path: Path, identity: Identity) -> Target:
    schema = documents_schema(identity, [pa.field("lang", pa.string())])
    return Target(str(tmp_path / "index"), schema, job="test", run=uuid.uuid4().hex)


@pytest.fixture
def another_run(target: Target) -> Target:
    return replace(target, run=uuid.uuid4().hex)


@pytest.fixture
def lease(target: Target) -> Iterator[Lease]:
    with acquire(target.uri, target.table, target.job, lease_seconds=30) as lease:
        yield lease


@pytest.fixture
def block() -> Block:
    return make_block


def make_block(
    ids: Sequence[str],
    *,
    chunks: Sequence[tuple[int, int]] | None = None,
    errors: Sequence[str | None] | None = None,
    replaces: Sequence[list[int] | None] | None = None,
    text: str = "text",
) -> pa.Table:
    """One row an id; `chunks` are (index, count) of each row."""
    n = len(ids)
    chunks = chunks or [(0, 1)] * n
    columns: dict[str, Any] = {
        "doc_id": pa.array(ids, pa.string()),
        "chunk_id": pa.array([f"{i}#{c[0]}" for i, c in zip(ids, chunks, strict=True)]),
        "chunk_index": pa.array([c[0] for c in chunks], pa.int32()),
        "chunk_count": pa.array([c[1] for c in chunks], pa.int32()),
        "start": pa.array([0] * n, pa.int64()),
        "end": pa.array([4] * n, pa.int64()),
        "text": pa.array([text] * n),
        "lang": pa.array(["en"] * n),
        "source": pa.array(["shard.parquet"] * n),
        "position": pa.array(range(n), pa.int64()),
        "content_hash": pa.array([blake2b(text.encode(), digest_size=16).digest()] * n, pa.binary(16)),
        "metadata_hash": pa.array([bytes(16)] * n, pa.binary(16)),
        "n_tokens": pa.array([3] * n, pa.int32()),
        "n_truncated": pa.array([i % 2 for i in range(n)], pa.int32()),
        "toy_dense": matrix_to_arrow(np.full((n, 4), len(text), np.float32)),
        "toy_colbert": pa.array([b"\x01\x02"] * n, pa.large_binary()),
        "error": pa.array(errors or [None] * n, pa.string()),
    }
    if replaces is not None:
        columns["replaces"] = pa.array(replaces, pa.list_(pa.uint64()))
    return pa.table(columns)
