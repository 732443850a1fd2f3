"""Filters in SQL beside a brute-force evaluator of the same language in Python."""

import json
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peg_rag.errors import InvalidInput
from peg_rag.index.filters import compile_filter, dumps

# -- the slow twin ----------------------------------------------------------------------------------------------------

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


def test_field(metadata: dict[str, Any], field: str, operator: str, operand: Any) -> bool:
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


test_field.__test__ = False  # a helper, whatever its name


def matches(metadata: dict[str, Any], where: dict[str, Any]) -> bool:
    for key, value in where.items():
        if key == "$and":
            passed = all(matches(metadata, part) for part in value)
        elif key == "$or":
            passed = any(matches(metadata, part) for part in value)
        elif key == "$not":
            passed = not matches(metadata, value)
        elif isinstance(value, dict):
            passed = all(test_field(metadata, key, operator, operand) for operator, operand in value.items())
        else:
            passed = test_field(metadata, key, "$eq", value)
        if not passed:
            return False
    return True


def passing(metadatas: list[dict[str, Any]], where: dict[str, Any]) -> list[int]:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE documents (key INTEGER PRIMARY KEY, metadata TEXT)")
    connection.executemany("INSERT INTO documents VALUES (?, ?)", enumerate(map(dumps, metadatas)))
    condition = compile_filter(where)
    sql = f"SELECT key FROM documents WHERE {condition.sql} ORDER BY key"
    found = [key for (key,) in connection.execute(sql, condition.parameters)]
    connection.close()
    return found


# -- random metadata and filters --------------------------------------------------------------------------------------

KEYS = ["a", "年份", "a.b", 'q"uote', "back\\slash", "", "$..a", "new\nline", "[0]"]
keys = st.sampled_from(KEYS)
strings = st.sampled_from(["", "x", "xy", "北京", '"', "1", "true", "é", "😀", "null", '","a":"x']) | st.text(
    st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), max_size=4
)
numbers = st.sampled_from([0, 1, -1, 1.0, 0.5, 2**53 + 1, 2**62, 1e300, 0.1, 0.30000000000000004]) | st.integers(
    -(2**63), 2**63 - 1
)
scalars = st.none() | st.booleans() | numbers | strings
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(keys, scalars, max_size=2)
metadatas = st.dictionaries(keys, values, max_size=4)


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    operator = draw(st.sampled_from(["$eq", "$ne", "$in", "$nin", "$contains", "$gt", "$gte", "$lt", "$lte", "$not"]))
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


@settings(max_examples=200, deadline=None)
@given(st.lists(metadatas, min_size=1, max_size=8), wheres)
def test_sql_and_python_agree(documents: list[dict[str, Any]], where: dict[str, Any]) -> None:
    documents = [json.loads(dumps(document)) for document in documents]
    assert passing(documents, where) == [i for i, document in enumerate(documents) if matches(document, where)]


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
    assert passing(DOCUMENTS, where) == expected
    assert [i for i, document in enumerate(DOCUMENTS) if matches(document, where)] == expected


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
        {"year": "nul\x00"},
        {"year": "\ud800"},
        {1: 2},
        "year",
        ["year"],
        nested(1000),
    ],
)
def test_what_is_refused(where: Any) -> None:
    with pytest.raises(InvalidInput):
        compile_filter(where)


def test_an_unknown_operator_is_named_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"\$regex.*year.*\$contains"):
        compile_filter({"year": {"$regex": "2"}})


def test_values_and_keys_never_enter_the_sql_text() -> None:
    evil = "x') OR 1=1; DROP TABLE documents; --"
    condition = compile_filter({evil: {"$eq": evil, "$contains": evil, "$in": [evil, 1], "$gt": evil}})
    assert "DROP" not in condition.sql
    assert passing([{evil: "y"}, {evil: 1}], {evil: evil}) == []
