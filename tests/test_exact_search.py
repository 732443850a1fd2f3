"""Exact search: what it returns is that of brute force, ties included, with and without int8 codes."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from peg_rag import PEGIndex
from peg_rag.errors import InvalidInput
from peg_rag.index import codes, exact
from peg_rag.index.codes import STEPS, Codes, encode_rows
from peg_rag.index.exact import RankedRows, search_matrix, select_best

Array = NDArray[Any]


@pytest.fixture
def always_coded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search small matrices by codes too, in several threads, and without copying the rows that pass a filter."""
    monkeypatch.setattr(exact, "_pay_codes", lambda *_: True)
    monkeypatch.setattr(exact, "GATHER_SHARE", 0.0)
    monkeypatch.setattr(exact, "CODED_GATHER_SHARE", 0.0)
    monkeypatch.setattr(codes, "THREAD_BYTES", 64)
    monkeypatch.setattr(codes, "PART_BYTES", 256)


def to_unit(rows: Array) -> Array:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit: Array = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit


def make_codes(matrix: Array) -> Codes:
    """Codes of all rows."""
    complete = Codes()
    while complete.count < len(matrix):
        complete.estimate(matrix, matrix[0])
    return complete


def search_by_force(matrix: Array, query: Array, k: int, allowed: Array | None) -> RankedRows:
    """Multiply every row, sort all of them."""
    scores = np.vecdot(matrix, query)
    order = np.argsort(-scores, kind="stable")
    order = order[:k] if allowed is None else order[allowed[order]][:k]
    return RankedRows(order, scores[order])


def check_equal(left: RankedRows, right: RankedRows) -> None:
    assert left.rows.tolist() == right.rows.tolist()
    assert left.scores.tobytes() == right.scores.tobytes()


@st.composite
def hard_matrices(draw: st.DrawFn) -> Array:
    """Unit rows that are hard to tell apart: repeated, nearly equal, of one large number, of many scales, or zero."""
    dimension = draw(st.sampled_from([1, 2, 3, 17, 64, 130]))
    count = draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = rng.standard_normal((count, dimension))
    kind = draw(st.sampled_from(["random", "repeated", "near", "spikes", "scales", "signs", "zeros"]))
    if kind == "repeated":
        rows = rows[rng.integers(0, max(1, count // 20), count)]
    elif kind == "near":
        rows = rows[:1] + 1e-4 * rng.integers(-2, 3, rows.shape)
    elif kind == "spikes":
        rows *= 0.01
        rows[np.arange(count), rng.integers(0, dimension, count)] = 1.0
    elif kind == "scales":
        rows *= 10.0 ** rng.integers(-30, 30, rows.shape)
    elif kind == "signs":
        rows = np.sign(rows)
    elif kind == "zeros":
        rows[rng.random(count) < 0.5] = 0.0
    return to_unit(rows)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    matrix=hard_matrices(),
    k=st.sampled_from([1, 2, 10, 64, 1000]),
    share=st.sampled_from([None, 0.0, 0.02, 0.5, 1.0]),
    query_is_row=st.booleans(),
    seed=st.integers(0, 2**32),
    step=st.integers(0, STEPS + 1),
)
def test_codes_change_neither_hits_nor_scores_nor_ties(
    always_coded: None, matrix: Array, k: int, share: float | None, query_is_row: bool, seed: int, step: int
) -> None:
    rng = np.random.default_rng(seed)
    query = matrix[-1] if query_is_row and matrix[-1].any() else to_unit(rng.standard_normal((matrix.shape[1],)))
    allowed = None if share is None else rng.random(len(matrix)) < share
    expected = search_by_force(matrix, query, k, allowed)
    growing = Codes()
    for _ in range(step):
        growing.estimate(matrix, query)
    for coded in (None, growing, make_codes(matrix)):
        (ranking,) = search_matrix(matrix, query[None], k, allowed, coded)
        check_equal(ranking, expected)


@settings(max_examples=200, deadline=None)
@given(matrix=hard_matrices(), seed=st.integers(0, 2**32))
def test_no_estimate_is_further_off_than_its_bound(matrix: Array, seed: int) -> None:
    query = to_unit(np.random.default_rng(seed).standard_normal((matrix.shape[1],)))
    estimates = make_codes(matrix).estimate(matrix, query)
    assert estimates.errors is not None
    bounds = estimates.margin + estimates.weight * estimates.errors.astype(np.float64)
    exact_products = matrix.astype(np.float64) @ query.astype(np.float64)
    assert (np.abs(estimates.values - exact_products) <= bounds).all()
    assert (estimates.errors <= estimates.max_error).all()


@settings(max_examples=100, deadline=None)
@given(matrix=hard_matrices())
def test_a_row_is_within_its_error_of_its_codes(matrix: Array) -> None:
    row_codes, scales, errors = encode_rows(matrix)
    assert row_codes.min() >= -127
    lost = matrix.astype(np.float64) - row_codes * scales[:, None].astype(np.float64)
    np.testing.assert_allclose(errors, np.linalg.norm(lost, axis=1), rtol=1e-3, atol=1e-6)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 3000), st.sampled_from([1, 3, 40, 5000]), st.sampled_from([1, 3, 1000]),
    st.sampled_from([0.0, 0.5, 0.99, 1.0]), st.integers(0, 2**32),
)  # fmt: skip
def test_the_k_largest_are_selected_in_order_of_position(
    count: int, k: int, levels: int, masked: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, count).astype(np.float32)
    scores[rng.random(count) < masked] = -np.inf
    order = np.argsort(-scores, kind="stable")
    expected = order[scores[order] > -np.inf][:k]
    assert select_best(scores, k).tolist() == expected.tolist()


def test_few_rows_are_multiplied_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    matrix = to_unit(rng.standard_normal((50_000, 128)))
    complete = make_codes(matrix)
    multiplied = []

    def count_rows(rows: Array, query: Array) -> Array:
        multiplied.append(len(rows))
        products: Array = np.vecdot(rows, query)
        return products

    monkeypatch.setattr(exact, "inner_products", count_rows)
    for query in to_unit(rng.standard_normal((20, 128))):
        multiplied.clear()
        search_matrix(matrix, query[None], 10, None, complete)
        assert sum(multiplied) < 200


def test_the_first_search_encodes_nothing_and_each_later_one_a_part() -> None:
    matrix = to_unit(np.random.default_rng(0).standard_normal((1000, 8)))
    growing = Codes()
    counts = []
    for _ in range(STEPS + 3):
        growing.estimate(matrix, matrix[0])
        counts.append(growing.count)
    assert counts[0] == 0
    assert max(np.diff(counts)) == -(-1000 // STEPS)
    assert counts[STEPS:] == [1000] * 3


def test_a_batch_of_queries_is_ranked_as_one_by_one(always_coded: None) -> None:
    rng = np.random.default_rng(1)
    matrix = to_unit(rng.integers(-1, 2, (2000, 6)).astype(np.float64))  # many ties
    queries = to_unit(rng.standard_normal((40, 6)))
    batch = search_matrix(matrix, queries, 25, None)
    complete = make_codes(matrix)
    for query, ranking in zip(queries, batch, strict=True):
        check_equal(ranking, search_by_force(matrix, query, 25, None))
        check_equal(ranking, search_matrix(matrix, query[None], 25, None, complete)[0])


def test_threads_search_while_one_of_them_encodes(always_coded: None) -> None:
    rng = np.random.default_rng(2)
    matrix = to_unit(rng.standard_normal((5000, 32)))
    queries = to_unit(rng.standard_normal((200, 32)))
    expected = [search_by_force(matrix, query, 10, None) for query in queries]
    growing = Codes()
    with ThreadPoolExecutor(8) as pool:
        rankings = list(pool.map(lambda query: search_matrix(matrix, query[None], 10, None, growing)[0], queries))
    assert growing.count == len(matrix)
    for ranking, right in zip(rankings, expected, strict=True):
        check_equal(ranking, right)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_searches_with_threads_of_its_own(always_coded: None) -> None:
    matrix = to_unit(np.random.default_rng(3).standard_normal((3000, 16)))
    complete = make_codes(matrix)
    expected = search_matrix(matrix, matrix[:1], 5, None, complete)[0].rows.tolist()
    child = os.fork()
    if not child:
        hits = search_matrix(matrix, matrix[:1], 5, None, complete)[0].rows.tolist()
        os._exit(0 if hits == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("on_disk", [True, False])
def test_an_index_answers_the_same_with_codes(
    always_coded: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_disk: bool
) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((600, 24))
    vectors[300:330] = vectors[0]  # ties across the segment and the documents that came after it
    names = [str(i) for i in range(600)]
    with PEGIndex(tmp_path / "kb" if on_disk else None) as index:
        index.upsert(names[:310], names[:310], vectors[:310], [{"odd": i % 2} for i in range(310)])
        index.persist()
        index.upsert(names[310:], names[310:], vectors[310:], [{"odd": i % 2} for i in range(310, 600)])
        index.delete(names[20:40])
        queries = [*vectors[:3], *rng.standard_normal((STEPS + 2, 24))]
        coded = [search_index(index, query) for query in queries]
        monkeypatch.setattr(exact, "_pay_codes", lambda *_: False)
        plain = [search_index(index, query) for query in queries]
        with pytest.raises(InvalidInput, match="NaN"):
            index.search(np.full(24, np.nan))
    assert coded == plain
    assert [hit for hit, _ in plain[0][0]] == ["0", *names[300:330]]


def search_index(index: PEGIndex, query: Array) -> list[list[tuple[str, float]]]:
    answers = [index.search(query, k=31), index.search(query, k=5, where={"odd": 1}), index.search(query, k=1000)]
    return [[(hit.id, hit.score) for hit in hits] for hits in answers]


def test_without_the_int8_kernel_all_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "CODED_BYTES", 0)
    monkeypatch.setattr(exact, "has_kernel", lambda: False)
    monkeypatch.setattr(Codes, "estimate", lambda *_: pytest.fail("codes were used"))
    matrix = to_unit(np.random.default_rng(0).normal(size=(5000, 16)))
    [ranking] = search_matrix(matrix, matrix[:1], 3, None, Codes())
    assert ranking.rows.tolist() == search_by_force(matrix, matrix[0], 3, None).rows.tolist()
