"""Filters as Milvus expressions in which nothing but numbers stands, so that no value can break out of its place.

Milvus compares JSON by rules of its own, which differ between its editions. So every document carries *facts*: numbers
that stand for statements such as "the field `city` equals 北京". A test for equality, membership or existence asks
whether a document has a fact; ranges of numbers are compared by the server. What is left (substrings, patterns, ranges
of strings) is decided here, document by document, as in the embedded index.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from peg_rag.index.filters import compile_filter, dumps, register_functions
from peg_rag.stores.conditions import AllOf, AnyOf, Node, Not, Test

ALWAYS = "age >= 0"
NEVER = "age < 0"
MAX_EXACT = 2**53  # beyond, a number is not exact as a float
_ORDERS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
FindKeys = Callable[[str, Test], Sequence[int]]


def hash_text(text: str) -> int:
    """A number of 63 bits that stands for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def list_facts(metadata: Mapping[str, Any]) -> list[int]:
    """What may be asked of a document's metadata, as numbers."""
    return sorted({hash_text(fact) for key, value in metadata.items() for fact in _iter_facts(key, value)})


def pick_numbers(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The numeric fields, by the name that expressions use."""
    return {_number_name(key): value for key, value in metadata.items() if _is_number(value)}


def _iter_facts(key: str, value: Any) -> Iterator[str]:
    yield _field_fact(key)
    yield _kind_fact(key, value)
    if isinstance(value, list):
        yield _equal_fact(key, value)
        for element in value:
            yield _kind_fact(key, element)
            if not isinstance(element, list | dict):
                yield _element_fact(key, element)
    elif not isinstance(value, dict):
        yield _equal_fact(key, value)


def _field_fact(key: str) -> str:
    return dumps(["field", key])


def _kind_fact(key: str, value: Any) -> str:
    return dumps(["kind", key, "number" if _is_number(value) else type(value).__name__])


def _equal_fact(key: str, value: Any) -> str:
    return dumps(["equal", key, _canonical(value)])


def _element_fact(key: str, value: Any) -> str:
    return dumps(["element", key, _canonical(value)])


def _canonical(value: Any) -> Any:
    """A form that is the same for equal values: 1 equals 1.0, but lists are equal as JSON."""
    if isinstance(value, list):
        return ["list", dumps(value)]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number_name(key: str) -> str:
    return f"f{hash_text(key):x}"


def compile_expression(node: Node, find_keys: FindKeys) -> str:
    """The expression of a filter.

    Args:
        find_keys: the keys of the documents that pass a test, among those that pass an expression.
    """
    match node:
        case AllOf(()):
            return ALWAYS
        case AllOf(parts):
            return "(" + " and ".join(compile_expression(part, find_keys) for part in parts) + ")"
        case AnyOf(parts):
            return "(" + " or ".join(compile_expression(part, find_keys) for part in parts) + ")"
        case Not(part):
            return f"(not {compile_expression(part, find_keys)})"
        case Test():
            return _compile_test(node, find_keys)


def _compile_test(test: Test, find_keys: FindKeys) -> str:
    key = test.key
    operand = test.operand
    match test.operator:
        case "$eq":
            return _compile_equal(key, operand)
        case "$in":
            tests = [_compile_equal(key, value) for value in operand]
            tests += [_has_fact(_element_fact(key, value)) for value in operand]
            return f"({' or '.join(tests)})" if tests else NEVER
        case "$exists":
            return _has_fact(_field_fact(key)) if operand else f"(not {_has_fact(_field_fact(key))})"
        case "$contains" if not isinstance(operand, str):
            return _has_fact(_element_fact(key, operand))
        case operator if operator in _ORDERS and _is_number(operand) and abs(operand) <= MAX_EXACT:
            is_number = _has_fact(_kind_fact(key, 0))
            return f'({is_number} and numbers["{_number_name(key)}"] {_ORDERS[operator]} {dumps(operand)})'
        case _:
            kind = 0 if _is_number(operand) else ""
            return _list_keys(find_keys(_has_fact(_kind_fact(key, kind)), test))


def _compile_equal(key: str, operand: Any) -> str:
    equal = _has_fact(_equal_fact(key, operand))
    return f"({equal} or not {_has_fact(_field_fact(key))})" if operand is None else equal


def _has_fact(fact: str) -> str:
    return f"array_contains(facts, {hash_text(fact)})"


def _list_keys(keys: Sequence[int]) -> str:
    return f"(key in [{', '.join(map(str, keys))}])" if keys else NEVER


class FilterTester:
    """Decides tests for metadata at hand as the embedded index does: by its own SQL."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:")
        register_functions(self._connection)
        self._connection.execute("CREATE TABLE documents (key INTEGER PRIMARY KEY, metadata TEXT NOT NULL)")

    def select_keys(self, rows: Sequence[tuple[int, str]], test: Test) -> list[int]:
        """The keys whose metadata (JSON) passes."""
        condition = compile_filter({test.key: {test.operator: test.operand}})
        self._connection.execute("DELETE FROM documents")
        self._connection.executemany("INSERT INTO documents VALUES (?, ?)", rows)
        sql = f"SELECT key FROM documents WHERE {condition.sql}"
        return [key for (key,) in self._connection.execute(sql, condition.parameters)]

    def close(self) -> None:
        """Release the database in memory."""
        self._connection.close()
