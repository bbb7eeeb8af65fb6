"""Ids as keys: equal ids meet, different ids do not, however the keys are cut."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.store.ids import as_keys, assign_partitions, hash_ids, number_keys


def test_keys_are_blake2b() -> None:
    keys = hash_ids(pa.array(["a", "", "ü"]))
    want = [blake2b(s.encode(), digest_size=16).digest() for s in ("a", "", "ü")]
    assert [k.tobytes() for k in keys] == want
    assert hash_ids(pa.array([], pa.string())).shape == (0, 2)


def test_words_follow_a_slice() -> None:
    values = [bytes([i]) * 16 for i in range(5)]
    assert [k.tobytes() for k in as_keys(pa.array(values, pa.binary(16)).slice(2, 2))] == values[2:4]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30))
def test_groups_are_the_distinct_keys(pairs: list[tuple[int, int]]) -> None:
    keys = np.array(pairs, np.uint64).reshape(-1, 2)
    codes, n = number_keys(keys)
    assert n == len(set(pairs))
    for i, a in enumerate(pairs):
        for j, b in enumerate(pairs):
            assert (codes[i] == codes[j]) == (a == b)


def test_partitions_cover_all_keys_evenly() -> None:
    keys = hash_ids(pa.array([str(i) for i in range(30_000)]))
    counts = np.bincount(assign_partitions(keys, 7), minlength=7)
    assert counts.sum() == 30_000
    assert counts.min() > 0.9 * 30_000 / 7
    assert assign_partitions(np.full((1, 2), 2**64 - 1, np.uint64), 7).tolist() == [6]
