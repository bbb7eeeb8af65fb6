from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.compute.batching import inverse_permutation, padding_share, plan_batches, round_up_tokens
from actors.outputs import IntArray

LENGTHS = st.lists(st.integers(0, 600), max_size=200).map(lambda values: np.array(values, dtype=np.int64))
BUDGETS = st.integers(1, 2000)


@given(LENGTHS, BUDGETS)
def test_every_text_is_in_exactly_one_batch(lengths: IntArray, budget: int) -> None:
    rows = np.concatenate([np.zeros(0, np.int64), *plan_batches(lengths, budget)])
    assert sorted(rows.tolist()) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS)
def test_the_budget_holds_and_only_a_longer_text_breaks_it_alone(lengths: IntArray, budget: int) -> None:
    for batch in plan_batches(lengths, budget):
        assert lengths[batch].sum() <= budget or len(batch) == 1


@given(LENGTHS, BUDGETS)
def test_the_longest_come_first(lengths: IntArray, budget: int) -> None:
    rows = np.concatenate([np.zeros(0, np.int64), *plan_batches(lengths, budget)])
    assert (np.diff(lengths[rows]) <= 0).all()


@given(LENGTHS, BUDGETS)
def test_batches_of_several_texts_differ_by_less_than_two_texts(lengths: IntArray, budget: int) -> None:
    short = lengths[lengths <= budget // 2]
    sizes = [short[batch].sum() for batch in plan_batches(short, budget)]
    assert max(sizes, default=0) - min(sizes, default=0) <= 2 * short.max(initial=0)


@given(LENGTHS, BUDGETS)
def test_what_fits_into_one_pass_is_one_pass(lengths: IntArray, budget: int) -> None:
    short = lengths[lengths <= budget // 2]
    if short.sum() <= budget:
        assert len(plan_batches(short, budget)) == min(1, len(short))


@given(LENGTHS, BUDGETS)
def test_inverse_restores_the_order(lengths: IntArray, budget: int) -> None:
    batches = plan_batches(lengths, budget)
    joined = np.concatenate([np.zeros(0, np.int64), *batches])
    assert joined[inverse_permutation(batches)].tolist() == list(range(len(lengths)))


@given(LENGTHS, BUDGETS)
def test_padding_share_is_what_padding_would_add(lengths: IntArray, budget: int) -> None:
    batches = plan_batches(lengths, budget)
    padded = sum(int(lengths[b].max()) * len(b) for b in batches)
    share = padding_share(lengths, batches)
    assert 0 <= share < 1 or padded == 0
    assert (1 - share) * padded == pytest.approx(lengths.sum() if padded else 0)


def test_a_block_of_equal_lengths_has_no_padding() -> None:
    lengths = np.full(64, 30, dtype=np.int64)
    assert padding_share(lengths, plan_batches(lengths, 256)) == 0


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="budget must be at least 1 token, got 0"):
        plan_batches(np.array([3]), 0)


@given(st.integers(1, 100_000))
def test_rounding_adds_little_and_leaves_few_sizes(tokens: int) -> None:
    size = round_up_tokens(tokens)
    assert 0 <= size - tokens < max(16, tokens / 31)
    assert round_up_tokens(size) == size


def test_a_stream_of_batches_comes_in_few_sizes() -> None:
    assert len({round_up_tokens(tokens) for tokens in range(3500, 4097)}) <= 11
