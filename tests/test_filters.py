"""Filters in SQL beside a brute-force evaluator of the same language in Python."""

import json
import re
import sqlite3
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peg_rag.errors import InvalidInput
from peg_rag.index import PEGIndex, filters
from peg_rag.index.filters import FIELD_OPERATORS, MAX_DEPTH, compile_filter, dumps, register_functions

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.dates()
    | st.just(np.float32(0.1))
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.none() | st.tuples(), inner),
)


@given(VALUES)
def test_json_is_that_of_the_encoder_of_python(value: Any) -> None:
    def encode(function: Callable[[Any], str]) -> str:
        try:
            return function(value)
        except (TypeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    assert encode(dumps) == encode(filters._ENCODER.encode)


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


def elements(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def texts_of(value: Any) -> list[str]:
    return [one for one in [value, *elements(value)] if isinstance(one, str)]


def like(text: str, pattern: str) -> bool:
    """By trying every way to share the text out."""
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(like(text[start:], pattern[1:]) for start in range(len(text) + 1))
    if pattern[0] == "\\" and len(pattern) > 1:
        return text[:1] == pattern[1] and like(text[1:], pattern[2:])
    return bool(text) and pattern[0] in ("_", text[0]) and like(text[1:], pattern[1:])


def field_matches(metadata: dict[str, Any], field: str, operator: str, operand: Any) -> bool:
    value = metadata.get(field)
    match operator:
        case "$eq":
            return equal(value, operand)
        case "$ne":
            return not equal(value, operand)
        case "$in":
            return any(equal(one, other) for one in [value, *elements(value)] for other in operand)
        case "$nin":
            return not field_matches(metadata, field, "$in", operand)
        case "$exists":
            return (field in metadata) is operand
        case "$like":
            return any(like(one, operand) for one in texts_of(value))
        case "$ilike":
            return any(like(one.lower(), operand.lower()) for one in texts_of(value))
        case "$regex":
            return any(re.search(operand, one) for one in texts_of(value))
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
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    | st.lists(st.sampled_from(CONTROLS), max_size=4).map("".join)
)
numbers = st.sampled_from([0, 1, -1, 1.0, 0.5, 2**53 + 1, 2**62, 1e300, 0.1, 0.30000000000000004]) | st.integers(
    -(2**63), 2**63 - 1
)
scalars = st.none() | st.booleans() | numbers | strings
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(keys, scalars, max_size=2)
metadatas = st.dictionaries(keys, values, max_size=4)


patterns = st.lists(st.sampled_from(["%", "_", "\\%", "\\_", "\\\\", *"xyXY北\x00\x01"]), max_size=5).map("".join)
regexes = st.sampled_from(["", "x", "^x", "x$|北", "(?i)X", "[0-9]+", "^.{2}$", "北.", "\\x00", "^$", "(x|y)*京?$"])


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    operator = draw(st.sampled_from(FIELD_OPERATORS))
    match operator:
        case "$in" | "$nin":
            return {operator: draw(st.lists(scalars, max_size=4))}
        case "$contains":
            return {operator: draw(scalars)}
        case "$exists":
            return {operator: draw(st.booleans())}
        case "$like" | "$ilike":
            return {operator: draw(patterns)}
        case "$regex":
            return {operator: draw(regexes)}
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


@pytest.mark.parametrize(
    ("where", "looks"),
    [
        ({"s": "a\x00"}, 1),
        ({"s": {"$ne": "a"}}, 2),
        ({"s": "a", "n": {"$gte": 0}}, 2),
        ({"$or": [{"s": "a"}, {"n": 1}]}, 6),
        ({"n": 1}, 6),
    ],
)
def test_nul_is_looked_for_only_in_metadata_that_may_match(where: dict[str, Any], looks: int) -> None:
    connection = sqlite3.connect(":memory:")
    register_functions(connection)
    patterns: list[str] = []
    connection.create_function("glob", 2, lambda pattern, _: patterns.append(pattern))
    connection.execute("CREATE TABLE documents (metadata TEXT)")
    documents = [{"s": s, "n": n} for n, s in enumerate(["a", "b", "a\x00", "a", "c", "d"])]
    connection.executemany("INSERT INTO documents VALUES (?)", [(dumps(document),) for document in documents])
    condition = compile_filter(where)
    connection.execute(f"SELECT count(*) FROM documents WHERE {condition.sql}", condition.parameters).fetchone()
    assert len(patterns) == looks


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
        ({"tags": {"$in": ["逾期", "退款"]}}, [0]),
        ({"tags": {"$in": [1.0, 2]}}, [0]),
        ({"tags": {"$in": [True, None]}}, [2, 3, 4, 5]),
        ({"tags": {"$nin": ["退款"]}}, [1, 2, 3, 4, 5]),
        ({"year": {"$exists": True}}, [0, 1, 2, 3]),
        ({'q"': {"$exists": True}}, [4]),
        ({"year": {"$exists": False}}, [4, 5]),
        ({"city": {"$like": "北京"}}, [0]),
        ({"city": {"$like": "北京%"}}, [0, 1]),
        ({"city": {"$like": "__"}}, [0]),
        ({"city": {"$like": "%京_"}}, [1]),
        ({"city": {"$like": "%%"}}, [0, 1, 4]),
        ({"tags": {"$like": "退%"}}, [0]),
        ({"city": {"$regex": "京$"}}, [0]),
        ({"tags": {"$regex": "^退"}}, [0]),
        ({"year": {"$regex": "2"}}, [2]),
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
        ({"s": {"$in": ["a\x00b", "a\x01"]}}, [2, 3, 5]),
        ({"s": {"$nin": ["a", "a\x00", None]}}, [2, 3, 4]),
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
        {"year": {"$near": "2"}},
        {"year": {"$regex": 2}},
        {"year": {"$regex": "(?=x)"}},
        {"year": {"$regex": r"(x)\1"}},
        {"year": {"$regex": "("}},
        {"year": {"$like": None}},
        {"year": {"$ilike": ["x"]}},
        {"year": {"$exists": 1}},
        {"year": {"$exists": None}},
        {"year": {"$in": [object()]}},
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
    with pytest.raises(InvalidInput, match=r"\$near.*year.*\$contains"):
        compile_filter({"year": {"$near": "2"}})


@pytest.mark.parametrize("operator", ["$like", "$ilike"])
def test_like_takes_every_character_but_two_literally(operator: str) -> None:
    documents: list[dict[str, Any]] = [{"s": text} for text in ("100%", "100x", "a_b", "acb", "a*b", "[a]", "a\nb", "")]
    for pattern, expected in (
        (r"100\%", [0]),
        ("100%", [0, 1]),
        (r"a\_b", [2]),
        ("a_b", [2, 3, 4, 6]),
        ("a*b", [4]),
        ("[a]", [5]),
        ("", [7]),
    ):
        assert find_matches(documents, {"s": {operator: pattern}}) == expected, pattern


def test_ilike_ignores_case_in_every_script() -> None:
    documents: list[dict[str, Any]] = [{"s": "GB/T 3324"}, {"s": "gb/t 3325"}, {"s": "ÜBER"}, {"s": ["Привет"]}]
    assert find_matches(documents, {"s": {"$ilike": "Gb/T%"}}) == [0, 1]
    assert find_matches(documents, {"s": {"$ilike": "über"}}) == [2]
    assert find_matches(documents, {"s": {"$ilike": "п%"}}) == [3]


@pytest.mark.timeout(30)  # a backtracking matcher would take longer than the universe has
@pytest.mark.parametrize("where", [{"$like": "%a" * 40 + "b"}, {"$regex": "(a*)*b"}, {"$regex": "(a|aa)+$b"}], ids=str)
def test_no_pattern_is_catastrophic(where: dict[str, Any]) -> None:
    assert find_matches([{"s": "a" * 20_000}], {"s": where}) == []


def test_dates_and_numpy_scalars_are_stored_plain_and_compared() -> None:
    china = timezone(timedelta(hours=8))
    documents: list[dict[str, Any]] = [
        {"day": date(2024, 5, 1), "at": datetime(2024, 5, 1, 7, 30, tzinfo=china)},
        {"day": date(2024, 5, 2), "at": datetime(2024, 5, 1, 0, 15, tzinfo=UTC)},
        {"n": np.int64(7), "x": np.float32(0.5), "b": np.bool_(True), "s": np.str_("京"), "l": [np.int8(1)]},
        {"day": np.datetime64("2024-05-03"), "at": np.datetime64("2024-05-03T01:02:03.000000004")},
    ]
    assert json.loads(dumps(documents[0])) == {"day": "2024-05-01", "at": "2024-04-30T23:30:00+00:00"}
    assert json.loads(dumps(documents[2])) == {"n": 7, "x": 0.5, "b": True, "s": "京", "l": [1]}
    assert json.loads(dumps(documents[3])) == {"day": "2024-05-03", "at": "2024-05-03T01:02:03"}
    for where, expected in (
        ({"day": date(2024, 5, 1)}, [0]),
        ({"day": {"$gte": date(2024, 5, 2)}}, [1, 3]),
        ({"day": {"$in": [date(2024, 5, 1), np.datetime64("2024-05-03")]}}, [0, 3]),
        ({"at": {"$lt": datetime(2024, 5, 1, 8, 0, tzinfo=china)}}, [0]),
        ({"at": datetime(2024, 5, 1, 8, 15, tzinfo=china)}, [1]),
        ({"n": np.int32(7), "x": np.float64(0.5), "b": np.True_, "s": np.str_("京")}, [2]),
        ({"l": {"$contains": np.int64(1)}}, [2]),
        ({"l": [np.int64(1)]}, [2]),
        ({"n": {"$in": np.array([7, 8]).tolist()}}, [2]),
    ):
        assert find_matches(documents, where) == expected, where


@pytest.mark.parametrize("value", [np.float32("nan"), np.complex64(1), np.timedelta64(1, "s"), np.zeros(2), object()])
def test_what_json_cannot_hold_is_refused_by_name(value: Any) -> None:
    with PEGIndex() as index, pytest.raises(InvalidInput, match="metadata 0 cannot be kept as JSON"):
        index.upsert(["a"], ["x"], np.eye(1), [{"v": value}])


def test_an_index_keeps_dates_as_iso_strings() -> None:
    with PEGIndex() as index:
        index.upsert(["a", "b"], ["x", "y"], np.eye(2), [{"day": date(2024, 5, 1)}, {"day": datetime(2024, 5, 2, 3)}])
        assert [record.metadata["day"] for record in index.get(where={})] == ["2024-05-01", "2024-05-02T03:00:00"]
        assert index.ids(where={"day": {"$lt": date(2024, 5, 2)}}) == ["a"]


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
