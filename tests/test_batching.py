import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peg_rag.batching import plan_batches
from peg_rag.errors import InvalidInput


@given(
    lengths=st.lists(st.integers(0, 600), max_size=200),
    budget=st.integers(1, 2000),
    cost=st.none() | st.integers(0, 500),
    workers=st.integers(1, 9),
)
def test_every_row_once_longest_first_within_the_budget(
    lengths: list[int], budget: int, cost: int | None, workers: int
) -> None:
    batches = plan_batches(lengths, budget, batch_cost=cost, workers=workers)
    flat = [int(i) for batch in batches for i in batch]
    assert sorted(flat) == list(range(len(lengths)))
    sizes = [max(1, lengths[i]) for i in flat]
    assert sizes == sorted(sizes, reverse=True)
    for batch in batches:
        longest = max(max(1, lengths[i]) for i in batch)
        assert len(batch) * longest <= budget or len(batch) == 1


@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("rows", [100, 1000, 4096])
def test_workers_finish_together(rows: int, workers: int) -> None:
    """Each takes the next batch when it is done with one; the time of a batch is its tokens, padding counted."""
    lengths = np.random.default_rng(0).lognormal(4.3, 0.7, rows).astype(int) + 2
    finished_at = np.zeros(workers)
    budget = 4096
    for batch in plan_batches(lengths, budget, workers=workers):
        finished_at[finished_at.argmin()] += len(batch) * lengths[batch].max()
    assert finished_at.max() - finished_at.min() <= budget / 4


def test_padding_is_small_on_texts_of_real_length_spread() -> None:
    lengths = np.random.default_rng(0).lognormal(4.3, 0.7, 4096).astype(int) + 2
    padded = sum(len(b) * lengths[b].max() for b in plan_batches(lengths, 4096))
    assert padded / lengths.sum() < 1.02
    unsorted = sum(len(c) * c.max() for c in np.array_split(lengths, 128))
    assert unsorted / lengths.sum() > 2


def find_least_cost(sizes: list[int], budget: int, cost: int) -> int:
    """Try every way to cut descending sizes into batches."""
    if not sizes:
        return 0
    most = max(1, budget // sizes[0])
    return min(
        cost + sizes[0] * rows + find_least_cost(sizes[rows:], budget, cost)
        for rows in range(1, min(most, len(sizes)) + 1)
    )


@given(
    lengths=st.lists(st.integers(1, 60), max_size=9),
    budget=st.integers(1, 200),
    cost=st.integers(0, 100),
)
def test_no_other_cut_of_the_sorted_rows_costs_less(lengths: list[int], budget: int, cost: int) -> None:
    batches = plan_batches(lengths, budget, batch_cost=cost)
    total = sum(cost + len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert total == find_least_cost(sorted(lengths, reverse=True), budget, cost)


def test_few_texts_of_unlike_lengths_are_split_where_padding_costs_more_than_a_batch() -> None:
    lengths = (np.random.default_rng(0).lognormal(3.5, 0.7, 32).astype(int) + 2).tolist()
    full = plan_batches(lengths, 1024)
    split = plan_batches(lengths, 1024, batch_cost=64)

    def count_padding(batches: list[np.ndarray]) -> int:
        padded: int = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
        return padded - int(sum(lengths))

    assert count_padding(full) > 0.5 * sum(lengths)
    assert count_padding(split) < 0.2 * sum(lengths)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_that_cannot_hold_anything_is_refused(budget: int) -> None:
    with pytest.raises(InvalidInput, match="must be 1 or more"):
        plan_batches([1, 2], budget)
