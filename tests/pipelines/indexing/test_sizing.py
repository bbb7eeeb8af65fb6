"""How many rows travel together."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.config import BuildConfig, load_config
from pipelines.indexing.sizing import BLOCKS_PER_ACTOR, MIN_BLOCK_ROWS, choose_block_rows, choose_fragment_rows


def config(batch_rows: int = 1000, **index: Any) -> BuildConfig:
    embedder = {"name": "m", "model": "x", "pool": {"batch_rows": batch_rows}}
    return load_config(input={"paths": ["a.jsonl"]}, index={"uri": "x", **index}, embedders=[embedder])


@pytest.mark.parametrize(
    ("rows", "actors", "expected"),
    [
        (None, 4, 1000),
        (10**8, 4, 1000),
        (4000, 2, MIN_BLOCK_ROWS),
        (20_000, 4, -(-20_000 // (4 * BLOCKS_PER_ACTOR))),
        (5, 1, MIN_BLOCK_ROWS),
    ],
)
def test_a_short_job_is_cut_finer(rows: int | None, actors: int, expected: int) -> None:
    assert choose_block_rows(config(), 2000, rows, actors) == expected


def test_a_block_fits_a_fragment_and_a_fragment_holds_whole_blocks() -> None:
    assert choose_block_rows(config(fragment_bytes=1_000_000), 50_000) == 20
    assert choose_fragment_rows(config(fragment_bytes=1_000_000), 50_000, 20) == 20
    assert choose_fragment_rows(config(fragment_bytes=1_000_000), 100, 3000) == 9000
    assert choose_fragment_rows(config(fragment_bytes=1_000_000), 10_000, 3000) == 3000
