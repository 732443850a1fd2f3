"""Fusion by hand, and its laws."""

from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peg_rag.errors import InvalidInput
from peg_rag.index import PEGIndex, fuse
from peg_rag.index.fusion import DENSE_SHARE, by_confidence, favour_lexical

DENSE = {"a": 0.9, "b": 0.5, "c": 0.1}
LEXICAL = {"b": 8.0, "d": 4.0, "a": 0.0}
BOTH = {"dense": DENSE, "lexical": LEXICAL}
ONE_EACH = {"dense": 1, "lexical": 1}


def test_convex_by_hand() -> None:
    fused = fuse(BOTH, ONE_EACH)
    assert fused == pytest.approx({"b": (0.5 + 1) / 2, "a": (1 + 0) / 2, "d": 0.5 / 2, "c": 0.0})
    assert list(fused) == ["b", "a", "d", "c"]


def test_reciprocal_ranks_by_hand() -> None:
    fused = fuse(BOTH, method="rrf")
    assert fused == pytest.approx({"a": 1 / 61 + 1 / 63, "b": 1 / 62 + 1 / 61, "c": 1 / 63, "d": 1 / 62})


def test_equal_scores_share_a_rank() -> None:
    fused = fuse({"x": {"a": 1.0, "b": 0.0, "c": 0.0}}, method="rrf")
    assert fused == pytest.approx({"a": 1 / 61, "b": 1 / 62, "c": 1 / 62})


@pytest.mark.parametrize("method", ["convex", "rrf"])
def test_a_weight_of_zero_leaves_the_other_ranking(method: Literal["convex", "rrf"]) -> None:
    fused = fuse(BOTH, {"lexical": 0}, method=method)
    assert [key for key in fused if key in DENSE] == list(DENSE)


def test_convex_normalises_the_weights() -> None:
    assert fuse(BOTH, {"dense": 3, "lexical": 1}) == pytest.approx(fuse(BOTH, {"dense": 0.75, "lexical": 0.25}))
    assert fuse(BOTH, {"dense": 0, "lexical": 0}) == dict.fromkeys("abcd", 0.0)


def test_a_weighting_function_gets_the_rankings() -> None:
    rankings_passed: dict[str, Mapping[str, float]] = {}

    def weigh(rankings: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        rankings_passed.update(rankings)
        return {"dense": 2.0}

    assert fuse(BOTH, weigh) == fuse(BOTH, {"dense": 2.0})
    assert rankings_passed == BOTH


def test_the_side_that_stands_out_weighs_more() -> None:
    flat = {str(i): 0.5 + i * 0.001 for i in range(20)}
    sharp = {"7": 30.0} | {str(i): 1.0 + i * 0.01 for i in range(20) if i != 7}
    weights = by_confidence({"dense": flat, "lexical": sharp})
    assert weights["lexical"] > 3 * weights["dense"] > 0
    assert next(iter(fuse({"dense": flat, "lexical": sharp}))) == "7"


def test_lexical_weighs_more_at_equal_confidence() -> None:
    sharp = {"7": 30.0} | {str(i): 1.0 + i * 0.01 for i in range(20) if i != 7}
    weights = favour_lexical({"dense": sharp, "lexical": sharp})
    assert weights["dense"] / sum(weights.values()) == pytest.approx(DENSE_SHARE)
    assert fuse(BOTH) == fuse(BOTH, favour_lexical)


def test_confidence_of_short_and_constant_rankings() -> None:
    nothing: dict[str, float] = {}
    alone = {"a": 3.0}
    equal = dict.fromkeys("abcd", 2.0)
    one_match = {"a": 2.0} | dict.fromkeys("bcd", 0.0)
    assert by_confidence({"n": nothing, "a": alone, "e": equal, "o": one_match}) == {"n": 1, "a": 1, "e": 0, "o": 10}


def test_no_ranking_and_empty_rankings() -> None:
    assert fuse({}) == fuse({"dense": {}, "lexical": {}}) == {}
    assert list(fuse({"dense": DENSE, "lexical": {}})) == list(DENSE)


@pytest.mark.parametrize(
    ("weights", "method"),
    [({"sparse": 1}, "rrf"), ({"dense": -1}, "convex"), ({"dense": float("nan")}, "rrf"), (None, "x")],
)
def test_invalid_arguments(weights: Mapping[str, float] | None, method: Any) -> None:
    with pytest.raises(InvalidInput):
        fuse(BOTH, weights, method=method)


scores = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-5, 5), max_size=8)


@given(scores, scores, st.sampled_from(["convex", "rrf"]))
def test_every_document_is_ranked_once_and_in_order(
    dense: dict[str, float], lexical: dict[str, float], method: Literal["convex", "rrf"]
) -> None:
    fused = fuse({"dense": dense, "lexical": lexical}, method=method)
    assert set(fused) == set(dense) | set(lexical)
    assert list(fused.values()) == sorted(fused.values(), reverse=True)
    assert all(0 <= score <= 1.0000001 for score in fused.values())


@given(scores.filter(lambda s: len(s) > 1), st.floats(0.1, 10), st.floats(-5, 5))
def test_convex_ignores_the_scale_of_a_ranking(dense: dict[str, float], factor: float, shift: float) -> None:
    moved = {key: factor * score + shift for key, score in dense.items()}
    if max(dense.values()) - min(dense.values()) > 1e-3:
        one, other = fuse({"x": dense}, {"x": 1}), fuse({"x": moved}, {"x": 1})
        assert one == pytest.approx(other, abs=1e-6)


def test_a_document_ranked_well_by_both_sides_comes_first() -> None:
    with PEGIndex() as index:
        index.upsert(
            ["both", "words", "meaning", *(f"n{i}" for i in range(5))],
            ["花呗怎么还款", "花呗还款", "别的话", *(f"无关{i}" for i in range(5))],
            [[0.9, 0.4], [-1, 0.2], [1, 0.3], *([-0.5, 1 + i] for i in range(5))],
        )
        assert index.search([1, 0.3], "花呗怎么还款", k=3)[0].id == "both"
        assert index.search([1, 0.3], "花呗还款", weights={"dense": 0}, k=1)[0].id == "words"
        assert index.search([1, 0.3], "花呗还款", weights={"lexical": 0}, k=1)[0].id == "meaning"
        by_place = index.search([1, 0.3], "花呗怎么还款", k=3, fusion="rrf")
        assert [hit.id for hit in by_place] == ["both", "words", "meaning"]
        assert by_place[1].scores["fused"] == pytest.approx(1 / 62 + 1 / 68)
