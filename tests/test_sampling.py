"""Batches as a function of the step: shuffles, shares, no repeats, shards, seeking."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peg_rag.errors import DataError, InvalidInput
from peg_rag.training.data.sampler import (
    BatchPlan,
    Permutation,
    PlannedBatch,
    SourceRows,
    in_validation,
    shares,
    smallest_hashes,
)

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32 - 1)


def distinct_sources(sizes: list[int]) -> list[SourceRows]:
    """Every row brings two texts that no other row has."""
    sources, start = [], 0
    for i, n in enumerate(sizes):
        keys = np.arange(start, start + 2 * n, dtype=np.int64)
        sources.append(SourceRows(f"s{i}", keys[::2].copy(), keys[1::2].copy()))
        start += 2 * n
    return sources


def drawn(batch: PlannedBatch) -> list[tuple[int, int]]:
    return list(zip(batch.sources.tolist(), batch.rows.tolist(), strict=True))


@given(n=st.integers(1, 2_000), seed=SEEDS)
def test_a_permutation_sends_every_place_somewhere_else(n: int, seed: int) -> None:
    permuted = Permutation(n, seed)(np.arange(n))
    assert sorted(permuted.tolist()) == list(range(n))


@given(n=st.integers(1, 500), seed=SEEDS, part=st.lists(st.integers(0, 499), max_size=20))
def test_any_part_of_a_permutation_can_be_computed_alone(n: int, seed: int, part: list[int]) -> None:
    places = np.array([p % n for p in part], dtype=np.int64)
    permutation = Permutation(n, seed)
    assert permutation(places).tolist() == permutation(np.arange(n))[places].tolist()


def test_permutations_of_other_keys_and_tweaks_differ_and_are_spread() -> None:
    one, other = Permutation(1_000, 1), Permutation(1_000, 2)
    places = np.arange(1_000)
    assert (one(places) == other(places)).mean() < 0.02
    assert (one(places, 0) == one(places, 1)).mean() < 0.02
    assert abs(np.corrcoef(places, one(places))[0, 1]) < 0.1


def test_an_empty_domain_is_refused() -> None:
    with pytest.raises(InvalidInput, match="0 items"):
        Permutation(0)


@given(sizes=SIZES, alpha=st.floats(0, 1), slots=st.integers(1, 500))
def test_shares_add_up_and_are_within_one_of_exact(sizes: list[int], alpha: float, slots: int) -> None:
    counts = shares(sizes, [1.0] * len(sizes), alpha, slots)
    wanted = np.array(sizes, dtype=float) ** alpha
    assert counts.sum() == slots
    assert (np.abs(counts - wanted / wanted.sum() * slots) < 1).all()


def test_shares_follow_n_to_the_alpha_and_the_weights() -> None:
    assert shares([100, 10_000], [1, 1], 0.5, 110).tolist() == [10, 100]
    assert shares([100, 10_000], [1, 1], 0.0, 110).tolist() == [55, 55]
    assert shares([5, 5], [3, 1], 1.0, 8).tolist() == [6, 2]
    with pytest.raises(DataError, match="weight 0"):
        shares([5], [0.0], 1.0, 8)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 20), epochs=st.integers(1, 3), seed=SEEDS)
def test_mixed_batches_use_every_row_equally_often(sizes: list[int], batch: int, epochs: int, seed: int) -> None:
    total = sum(sizes) * epochs
    steps = -(-total // batch)
    plan = BatchPlan(
        distinct_sources(sizes), batch=batch, steps=steps, alpha=1.0, mixing="mixed", seed=seed, distinct=False
    )
    counts = Counter(pair for step in range(steps) for pair in drawn(plan.batch(step)))
    for source, slots in enumerate(plan.slot_counts.tolist()):
        uses = [counts[source, row] for row in range(sizes[source])]
        assert sum(uses) == slots
        assert max(uses) - min(uses) <= 1


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 20), steps=st.integers(1, 40), seed=SEEDS)
def test_batches_of_one_source_have_its_share_of_steps(sizes: list[int], batch: int, steps: int, seed: int) -> None:
    plan = BatchPlan(distinct_sources(sizes), batch=batch, steps=steps, alpha=0.5, seed=seed)
    used: Counter[int] = Counter()
    for step in range(steps):
        made = plan.batch(step)
        assert len(set(made.sources.tolist())) == 1
        assert len(made) == min(batch, sizes[made.sources[0]])
        assert len(set(made.rows.tolist())) == len(made)
        used[int(made.sources[0])] += 1
    assert [used[s] for s in range(len(sizes))] == plan.slot_counts.tolist()


@settings(max_examples=80, deadline=None)
@given(
    texts=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=50),
    batch=st.integers(1, 12),
    mixing=st.sampled_from(["one_source", "mixed"]),
    seed=SEEDS,
)
def test_no_text_stands_twice_in_a_batch(texts: list[tuple[int, int]], batch: int, mixing: str, seed: int) -> None:
    queries, positives = (np.array(side, dtype=np.int64) for side in zip(*texts, strict=True))
    source = SourceRows("repeats", queries, positives)
    plan = BatchPlan([source], batch=batch, steps=5, mixing=mixing, seed=seed)  # type: ignore[arg-type]
    for step in range(5):
        made = plan.batch(step)
        assert 1 <= len(made) <= batch
        in_rows = [{int(queries[row]), int(positives[row])} for row in made.rows]
        assert sum(map(len, in_rows)) == len(set().union(*in_rows))


def test_rows_that_repeat_a_text_give_way_to_others() -> None:
    """Half of the rows share one query: the batch is full all the same."""
    queries = np.array([0] * 100 + list(range(1, 101)), dtype=np.int64)
    plan = BatchPlan([SourceRows("s", queries, np.arange(1_000, 1_200))], batch=30, steps=50, seed=1)
    assert all(len(plan.batch(step)) == 30 for step in range(50))


@given(size=st.integers(0, 40), world=st.integers(1, 5))
def test_shards_are_equal_disjoint_and_in_order(size: int, world: int) -> None:
    batch = PlannedBatch(np.zeros(size, dtype=np.int64), np.arange(size))
    parts = [batch.shard(rank, world) for rank in range(world)]
    assert {len(part) for part in parts} == {size // world}
    assert np.concatenate([part.rows for part in parts]).tolist() == list(range(size // world * world))


def test_seeking_a_far_step_costs_no_replay_and_gives_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 100,000 of a plan looks at as many slots as step 0."""
    slots: list[int] = []
    locate = BatchPlan._locate_slots

    def count_slots(plan: BatchPlan, rows: Any) -> Any:
        slots.append(len(rows))
        return locate(plan, rows)

    monkeypatch.setattr(BatchPlan, "_locate_slots", count_slots)
    sources = distinct_sources([200_000, 50_000, 300])
    for mixing in ("one_source", "mixed"):
        plan = BatchPlan(sources, batch=512, steps=200_000, alpha=0.7, mixing=mixing, seed=5)
        slots.clear()
        far = plan.batch(100_000)
        assert slots == [1 if mixing == "one_source" else 512]
        again = BatchPlan(sources, batch=512, steps=200_000, alpha=0.7, mixing=mixing, seed=5)
        assert drawn(again.batch(100_000)) == drawn(far)


def test_seeds_decide() -> None:
    sources = distinct_sources([500, 400])
    plans = [BatchPlan(sources, batch=20, steps=10, seed=seed) for seed in (1, 1, 2)]
    batches = [[drawn(plan.batch(step)) for step in range(10)] for plan in plans]
    assert batches[0] == batches[1] != batches[2]


def test_nothing_to_sample_from_is_an_error() -> None:
    with pytest.raises(DataError, match="no source"):
        BatchPlan([], batch=2, steps=1)
    with pytest.raises(DataError, match="empty: no row is left"):
        BatchPlan([SourceRows("empty", np.zeros(0, np.int64), np.zeros(0, np.int64))], batch=2, steps=1)


@given(keys=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50), share=st.floats(0, 0.5))
def test_the_split_goes_by_the_text_alone(keys: list[int], share: float) -> None:
    array = np.array(keys, dtype=np.int64)
    mask = in_validation(array, share)
    assert mask.tolist() == [bool(in_validation(np.array([key], dtype=np.int64), share)[0]) for key in keys]
    assert (in_validation(array, share / 2) <= mask).all()  # a smaller share is part of a larger one


def test_the_split_has_about_its_share() -> None:
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 100_000)
    assert in_validation(keys, 0.03).mean() == pytest.approx(0.03, abs=0.003)


def test_a_sample_by_hash_does_not_depend_on_order() -> None:
    keys = np.random.default_rng(0).permutation(1_000).astype(np.int64)
    backwards = keys[::-1].copy()
    assert set(keys[smallest_hashes(keys, 50)]) == set(backwards[smallest_hashes(backwards, 50)])
