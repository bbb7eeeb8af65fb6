"""A mask of rows becomes the bytes that Lance makes of the same rows as a list."""

from __future__ import annotations

import numpy as np
import pytest
from lance.dataset import serialize_row_addrs

from pipelines.store.row_sets import serialize_row_mask
from pipelines.store.table import Fragment, Rows


def rows_with_deletions() -> Rows:
    live = np.sort(np.random.default_rng(0).permutation(100_000)[:70_000]).astype(np.uint32)
    return Rows(
        (
            Fragment(0, 0, 100_000, None),
            Fragment(7, 100_000, 70_000, live),
            Fragment(8, 170_000, 0, np.zeros(0, np.uint32)),
            Fragment(3, 170_000, 200_000, None),
        )
    )


@pytest.mark.parametrize("share", [0, 0.0001, 0.05, 0.5, 1])
def test_the_bytes_are_lances_own(share: float) -> None:
    rows = rows_with_deletions()
    allowed = np.random.default_rng(1).random(len(rows)) < share
    addresses = rows.addresses(np.flatnonzero(allowed))
    assert serialize_row_mask(allowed, rows) == serialize_row_addrs(addresses.tolist())


@pytest.mark.parametrize("share", [0, 0.0001, 0.5, 1])
def test_the_mask_of_addresses_is_that_of_their_positions(share: float) -> None:
    for rows in (rows_with_deletions(), Rows((Fragment(2, 0, 500, None), Fragment(0, 500, 80, None))), Rows(())):
        allowed = np.random.default_rng(3).random(len(rows)) < share
        addresses = np.random.default_rng(4).permutation(rows.addresses(np.flatnonzero(allowed)))
        np.testing.assert_array_equal(rows.mask(addresses), allowed)


def test_containers_of_4096_and_4097_rows() -> None:
    rows = Rows((Fragment(0, 0, 70_000, None),))
    for count in (4096, 4097, 65_536, 65_537):
        allowed = np.arange(70_000) < count
        assert serialize_row_mask(allowed, rows) == serialize_row_addrs(list(range(count)))


def test_positions_and_addresses_are_inverse_and_unknown_addresses_are_minus_one() -> None:
    rows = rows_with_deletions()
    positions = np.random.default_rng(2).permutation(len(rows))
    np.testing.assert_array_equal(rows.positions(rows.addresses(positions)), positions)
    gone = np.setdiff1d(np.arange(100_000), rows.fragments[1].live)[0]
    unknown = np.array([1 << 32, 100_000, (7 << 32) | gone, 8 << 32, 99 << 32], np.uint64)
    assert rows.positions(unknown).tolist() == [-1] * 5
    assert Rows(()).positions(unknown).tolist() == [-1] * 5
