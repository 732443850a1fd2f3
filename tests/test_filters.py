"""Filters in SQL beside a brute-force evaluator of the same language in Python."""

import json
import sqlite3
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peg_rag.errors import InvalidInput
from peg_rag.index import PEGIndex
from peg_rag.index.filters import FIELD_OPERATORS, MAX_DEPTH, compile_filter, dumps, register_functions

# -- the reference implementation -------------------------------------------------------------------------------------

ORDERS = {
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}


def kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return repr(value)
    return "number" if isinstance(value, int | float) else type(value).__name__


def equal(a: Any, b: Any) -> bool:
    if isinstance(b, list):
        return isinstance(a, list) and dumps(a) == dumps(b)
    return kind(a) == kind(b) and a == b


def field_matches(metadata: dict[str, Any], field: str, operator: str, operand: Any) -> bool:
    value = metadata.get(field)
    match operator:
        case "$eq":
            return equal(value, operand)
        case "$ne":
            return not equal(value, operand)
        case "$in":
            return any(equal(value, one) for one in operand)
        case "$nin":
            return not any(equal(value, one) for one in operand)
        case "$contains":
            if isinstance(value, str):
                return isinstance(operand, str) and operand in value
            return isinstance(value, list) and any(equal(one, operand) for one in value)
        case "$not":
            return not matches(metadata, {field: operand})
        case _:
            ordered = kind(operand) in ("number", "str") and kind(value) == kind(operand)
            return ordered and ORDERS[operator](value, operand)


def matches(metadata: dict[str, Any], where: dict[str, Any]) -> bool:
    for key, value in where.items():
        if key == "$and":
            passed = all(matches(metadata, part) for part in value)
        elif key == "$or":
            passed = any(matches(metadata, part) for part in value)
        elif key == "$not":
            passed = not matches(metadata, value)
        elif isinstance(value, dict):
            passed = all(field_matches(metadata, key, operator, operand) for operator, operand in value.items())
        else:
            passed = field_matches(metadata, key, "$eq", value)
        if not passed:
            return False
    return True


def find_matches(metadatas: list[dict[str, Any]], where: dict[str, Any]) -> list[int]:
    connection = sqlite3.connect(":memory:")
    register_functions(connection)
    connection.execute("CREATE TABLE documents (key INTEGER PRIMARY KEY, metadata TEXT)")
    connection.executemany("INSERT INTO documents VALUES (?, ?)", enumerate(map(dumps, metadatas)))
    condition = compile_filter(where)
    sql = f"SELECT key FROM documents WHERE {condition.sql} ORDER BY key"
    keys = [key for (key,) in connection.execute(sql, condition.parameters)]
    connection.close()
    return keys


# -- random metadata and filters --------------------------------------------------------------------------------------

KEYS = ["a", "年份", "a.b", 'q"uote', "back\\slash", "", "$..a", "new\nline", "[0]", "a\x00", "a\x00b", "\x00", "\x01"]
keys = st.sampled_from(KEYS)
CONTROLS = [
    "\x00",
    "\x01",
    "\x02",
    "\x03",
    "\x04",
    "x",
    "\\",
    "u0000",
    "\n",
]  # NUL and its neighbours, and what looks like it
strings = (
    st.sampled_from(
        ["", "x", "xy", "北京", '"', "1", "true", "é", "😀", "null", '","a":"x', "x\x00", "x\x00y", "\\u0000"]
    )
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=4)
    | st.lists(st.sampled_from(CONTROLS), max_size=4).map("".join)
)
numbers = st.sampled_from([0, 1, -1, 1.0, 0.5, 2**53 + 1, 2**62, 1e300, 0.1, 0.30000000000000004]) | st.integers(
    -(2**63), 2**63 - 1
)
scalars = st.none() | st.booleans() | numbers | strings
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(keys, scalars, max_size=2)
metadatas = st.dictionaries(keys, values, max_size=4)


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    operator = draw(st.sampled_from(FIELD_OPERATORS))
    match operator:
        case "$in" | "$nin":
            return {operator: draw(st.lists(scalars, max_size=4))}
        case "$contains":
            return {operator: draw(scalars)}
        case "$eq" | "$ne":
            return {operator: draw(scalars | st.lists(scalars, max_size=2))}
        case "$not":
            return {operator: {"$eq": draw(scalars)}}
        case _:
            return {operator: draw(numbers | strings)}


fields = st.dictionaries(keys.filter(lambda key: not key.startswith("$")), conditions() | scalars, max_size=2)
wheres = st.recursive(
    fields,
    lambda inner: (
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda parts: {"$or": parts}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda part: {"$not": part}, inner)
    ),
    max_leaves=4,
)


def compare(documents: list[dict[str, Any]], where: dict[str, Any]) -> None:
    documents = [json.loads(dumps(document)) for document in documents]
    assert find_matches(documents, where) == [i for i, document in enumerate(documents) if matches(document, where)]


@settings(max_examples=300, deadline=None)
@given(st.lists(metadatas, min_size=1, max_size=8), wheres)
def test_sql_and_python_agree(documents: list[dict[str, Any]], where: dict[str, Any]) -> None:
    compare(documents, where)


@pytest.mark.slow
def test_sql_and_python_agree_10_000_times() -> None:
    count = 0

    @settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(metadatas, min_size=1, max_size=8), wheres)
    def compare_and_count(documents: list[dict[str, Any]], where: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        compare(documents, where)

    compare_and_count()
    assert count >= 10_000


# -- the definitions, one by one --------------------------------------------------------------------------------------

DOCUMENTS: list[dict[str, Any]] = [
    {"year": 2023, "city": "北京", "tags": ["退款", 1]},
    {"year": 2023.0, "city": "北京市", "tags": []},
    {"year": "2023", "draft": True},
    {"year": None, "draft": 1},
    {"a.b": {"c": 1}, 'q"': "x", "city": ""},
    {},
]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"year": 2023}, [0, 1]),
        ({"year": "2023"}, [2]),
        ({"year": None}, [3, 4, 5]),
        ({"year": {"$ne": None}}, [0, 1, 2]),
        ({"year": {"$ne": 2023}}, [2, 3, 4, 5]),
        ({"draft": True}, [2]),
        ({"draft": 1}, [3]),
        ({"year": {"$in": [2023, "2023"]}}, [0, 1, 2]),
        ({"year": {"$in": []}}, []),
        ({"year": {"$nin": [2023]}}, [2, 3, 4, 5]),
        ({"year": {"$gte": 2023}}, [0, 1]),
        ({"year": {"$gt": 2022, "$lt": 2023.5}}, [0, 1]),
        ({"city": {"$gt": "北京"}}, [1]),
        ({"city": {"$contains": "北京"}}, [0, 1]),
        ({"city": {"$contains": ""}}, [0, 1, 4]),
        ({"tags": {"$contains": "退款"}}, [0]),
        ({"tags": {"$contains": 1}}, [0]),
        ({"tags": {"$contains": True}}, []),
        ({"tags": []}, [1]),
        ({"tags": {"$eq": ["退款", 1]}}, [0]),
        ({"a.b": {"$ne": None}}, [4]),
        ({'q"': "x"}, [4]),
        ({"city": ""}, [4]),
        ({"$not": {"year": {"$gte": 0}}}, [2, 3, 4, 5]),
        ({"year": {"$not": {"$gte": 0}}}, [2, 3, 4, 5]),
        ({"$or": [{"draft": True}, {"city": "北京"}]}, [0, 2]),
        ({"$and": [{"year": 2023}, {"city": "北京市"}]}, [1]),
        ({"$or": [{"year": {"$eq": n}} for n in range(1000, 3000)]}, [0, 1]),
        ({"missing": {"$lt": 5}}, []),
    ],
)
def test_each_operator(where: dict[str, Any], expected: list[int]) -> None:
    assert find_matches(DOCUMENTS, where) == expected
    assert [i for i, document in enumerate(DOCUMENTS) if matches(document, where)] == expected


NUL_DOCUMENTS: list[dict[str, Any]] = [
    {"s": "a"},
    {"s": "a\x00"},
    {"s": "a\x00b"},
    {"s": "a\x01"},
    {"s": "a\\u0000b"},
    {"s": ["a", "a\x00b"]},
    {"s\x00": "a"},
    {"s": "a", "other": "\x00"},
    {'q"': "a", 'q"\x00': "b"},
]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"s": "a"}, [0, 7]),
        ({"s": "a\x00"}, [1]),
        ({"s": "a\x00b"}, [2]),
        ({"s": "a\\u0000b"}, [4]),
        ({"s": {"$in": ["a\x00b", "a\x01"]}}, [2, 3]),
        ({"s": {"$nin": ["a", "a\x00", None]}}, [2, 3, 4, 5]),
        ({"s": {"$gt": "a"}}, [1, 2, 3, 4]),
        ({"s": {"$gt": "a\x00", "$lte": "a\x01"}}, [2, 3]),
        ({"s": {"$lt": "a\x00b"}}, [0, 1, 7]),
        ({"s": {"$contains": "\x00"}}, [1, 2]),
        ({"s": {"$contains": "\x02"}}, []),
        ({"s": {"$contains": "\x00b"}}, [2]),
        ({"s": {"$contains": "a\x00b"}}, [2, 5]),
        ({"s": {"$contains": "a"}}, [0, 1, 2, 3, 4, 5, 7]),
        ({"s": ["a", "a\x00b"]}, [5]),
        ({"s": ["a", "a"]}, []),
        ({"s\x00": "a"}, [6]),
        ({'q"': "a"}, [8]),
        ({'q"': "b"}, []),
        ({'q"\x00': "b"}, [8]),
    ],
)
def test_strings_do_not_end_at_nul(where: dict[str, Any], expected: list[int]) -> None:
    assert find_matches(NUL_DOCUMENTS, where) == expected
    assert [i for i, document in enumerate(NUL_DOCUMENTS) if matches(document, where)] == expected


def test_a_string_with_nul_finds_and_deletes_a_document() -> None:
    with PEGIndex() as index:
        index.upsert(["a", "b"], ["x", "y"], np.eye(2), [{"path": "dir\x00one"}, {"path": "dir\x00two"}])
        assert [hit.id for hit in index.search([1, 1], k=5, where={"path": "dir\x00two"})] == ["b"]
        assert index.delete(where={"path": "dir"}) == 0
        assert index.delete(where={"path": "dir\x00one"}) == 1
        assert index.ids() == ["b"]


def nested(depth: int) -> dict[str, Any]:
    where: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        where = {"$not": where}
    return where


@pytest.mark.parametrize(
    "where",
    [
        {"year": {"$regex": "2"}},
        {"$xor": [{}]},
        {"$and": []},
        {"$or": {}},
        {"$or": "abc"},
        {"$and": [1]},
        {"year": {}},
        {"year": {"$in": "abc"}},
        {"year": {"$in": [{}]}},
        {"year": {"$gt": None}},
        {"year": {"$gt": True}},
        {"year": {"$gt": [1]}},
        {"year": {"$eq": {"a": 1}}},
        {"year": {"$eq": object()}},
        {"year": float("nan")},
        {"year": [object()]},
        {"year": "\ud800"},
        {1: 2},
        "year",
        ["year"],
        nested(1000),
    ],
)
def test_invalid_filters(where: Any) -> None:
    with pytest.raises(InvalidInput):
        compile_filter(where)


def test_an_unknown_operator_lists_the_valid_ones() -> None:
    with pytest.raises(InvalidInput, match=r"\$regex.*year.*\$contains"):
        compile_filter({"year": {"$regex": "2"}})


def nested_in_a_field(depth: int) -> dict[str, Any]:
    operators: dict[str, Any] = {"$eq": 1}
    for _ in range(depth):
        operators = {"$not": operators}
    return {"a": operators}


@pytest.mark.parametrize("build", [nested, nested_in_a_field])
def test_too_deep_a_filter_says_so(build: Callable[[int], dict[str, Any]]) -> None:
    assert find_matches([{"a": 1}, {"a": 2}], build(MAX_DEPTH)) == [0]
    with pytest.raises(InvalidInput, match=f"nested deeper than {MAX_DEPTH} levels"):
        compile_filter(build(MAX_DEPTH + 1))


LEAVES: list[dict[str, Any]] = [
    {"a": 1},
    {"a": {"$contains": "x"}},
    {'q"': {"$contains": "x"}},
    {'q"': {"$nin": ["x", "y", 1, 2, None, True]}},
]


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
@pytest.mark.parametrize("joins", [["$and"], ["$and", "$or"], ["$not", "$and"], ["$or", "$not"]], ids=str)
def test_a_deep_filter_is_evaluated_or_refused_but_never_an_error_of_sqlite(
    joins: list[str], leaf: dict[str, Any]
) -> None:
    documents: list[dict[str, Any]] = [{"a": 1, 'q"': "x"}, {"a": "xy"}, {"a": ["x"], 'q"': ["x"]}, {}]
    where = leaf
    for depth in range(MAX_DEPTH):
        join = joins[depth % len(joins)]
        where = {"$not": where} if join == "$not" else {join: [leaf, where]}
        try:
            compile_filter(where)
        except InvalidInput:
            break
        compare(documents, where)
    assert depth > 20


def test_a_field_without_operators_lists_them() -> None:
    with pytest.raises(InvalidInput, match=r"'year' has no operator; there are .*\$contains"):
        compile_filter({"year": {}})


def test_values_and_keys_never_enter_the_sql_text() -> None:
    evil = "x') OR 1=1; DROP TABLE documents; --"
    condition = compile_filter({evil: {"$eq": evil, "$contains": evil, "$in": [evil, 1], "$gt": evil}})
    assert "DROP" not in condition.sql
    assert find_matches([{evil: "y"}, {evil: 1}], {evil: evil}) == []
