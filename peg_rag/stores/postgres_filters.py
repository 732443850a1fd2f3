"""Filters as SQL conditions over a `jsonb` column, with every key and value a parameter.

`fields` is the metadata with NUL escaped (`peg_rag.index.filters.escape_text`), which PostgreSQL cannot store. Regular
expressions and patterns that ignore case mean what they mean in the embedded index, not what the server's own
operators and locale make of them: the distinct strings of the field are matched here, and the server is given those
that do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peg_rag.index.filters import dumps, escape_nul, escape_text, matches_like, matches_regex
from peg_rag.stores.conditions import AllOf, AnyOf, Node, Not, Test

_ORDERS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_PATTERNS: dict[str, Callable[[str, str], bool]] = {
    "$ilike": lambda text, pattern: matches_like(text, pattern, 1),
    "$regex": matches_regex,
}
FindStrings = Callable[[str], Sequence[str]]

# The strings that a field holds, alone or in a list; the parameter is the key, twice.
STRINGS_OF_FIELD = (
    "SELECT DISTINCT value #>> '{{}}' FROM {documents} CROSS JOIN LATERAL jsonb_array_elements("
    "CASE jsonb_typeof(fields -> %s) WHEN 'array' THEN fields -> %s WHEN 'string' THEN jsonb_build_array(fields -> %s) "
    "ELSE '[]' END) AS value WHERE jsonb_typeof(value) = 'string'"
)


@dataclass(frozen=True, slots=True)
class SqlCondition:
    """An SQL expression, which is never NULL, and its parameters."""

    sql: str
    parameters: tuple[Any, ...] = ()

    @property
    def matches_all(self) -> bool:
        """Whether every document passes."""
        return self.sql == "true"


def compile_condition(node: Node, find_strings: FindStrings) -> SqlCondition:
    """The condition of a filter.

    Args:
        find_strings: the distinct strings of a field, escaped, by its escaped key.
    """
    match node:
        case AllOf(()):
            return SqlCondition("true")
        case AllOf(parts):
            return _join([compile_condition(part, find_strings) for part in parts], "AND")
        case AnyOf(parts):
            return _join([compile_condition(part, find_strings) for part in parts], "OR")
        case Not(part):
            positive = compile_condition(part, find_strings)
            return SqlCondition(f"(NOT {positive.sql})", positive.parameters)
        case Test():
            return _compile_test(node, find_strings)


def _join(parts: Sequence[SqlCondition], word: str) -> SqlCondition:
    sql = f" {word} ".join(part.sql for part in parts)
    return SqlCondition(f"({sql})", tuple(parameter for part in parts for parameter in part.parameters))


def _compile_test(test: Test, find_strings: FindStrings) -> SqlCondition:
    key = escape_text(test.key)
    match test.operator:
        case "$eq":
            return _compile_equal(key, test.operand)
        case "$in":
            return _compile_in(key, test.operand)
        case "$exists":
            return SqlCondition(f"({'' if test.operand else 'NOT '}jsonb_exists(fields, %s))", (key,))
        case "$contains":
            return _compile_contains(key, test.operand)
        case "$like":
            return _compile_like(key, test.operand)
        case "$ilike" | "$regex":
            matches = _PATTERNS[test.operator]
            pattern = escape_text(test.operand)
            return _compile_in(key, [text for text in find_strings(key) if matches(text, pattern)], is_escaped=True)
        case _:
            return _compile_order(key, _ORDERS[test.operator], test.operand)


def _dump(value: Any, is_escaped: bool = False) -> str:
    """The JSON of an operand as it is in `fields`."""
    return dumps(value) if is_escaped else str(escape_nul(dumps(value)))


def _compile_equal(key: str, operand: Any) -> SqlCondition:
    if operand is None:
        return SqlCondition("(coalesce(jsonb_typeof(fields -> %s), 'null') = 'null')", (key,))
    if isinstance(operand, list):  # equal as text: [1] is not [1.0]
        same = "coalesce(jsonb_typeof(fields -> %s) = 'array' AND (fields -> %s)::text = (%s::jsonb)::text, false)"
        return SqlCondition(same, (key, key, _dump(operand)))
    value = _dump(operand)
    # The first part uses the index, the second is exact.
    pair = f"{{{dumps(key)}:{value}}}"
    return SqlCondition("(fields @> %s::jsonb AND coalesce(fields -> %s = %s::jsonb, false))", (pair, key, value))


def _compile_in(key: str, operand: Sequence[Any], *, is_escaped: bool = False) -> SqlCondition:
    values = [_dump(value, is_escaped) for value in operand]
    alone = SqlCondition("coalesce(fields -> %s = ANY (%s::text[]::jsonb[]), false)", (key, values))
    parts = [alone, _find_element(key, values)]
    if any(value is None for value in operand):
        parts.append(_compile_equal(key, None))
    return _join(parts, "OR")


def _find_element(key: str, values: list[str]) -> SqlCondition:
    """Whether a field is a list with one of the values."""
    elements = "jsonb_array_elements(CASE jsonb_typeof(fields -> %s) WHEN 'array' THEN fields -> %s ELSE '[]' END)"
    sql = f"EXISTS (SELECT 1 FROM {elements} AS element WHERE element = ANY (%s::text[]::jsonb[]))"
    return SqlCondition(sql, (key, key, values))


def _compile_contains(key: str, operand: Any) -> SqlCondition:
    in_list = _find_element(key, [_dump(operand)])
    if not isinstance(operand, str):
        return in_list
    return _join([_where_string(key, "strpos({text}, %s) > 0", escape_text(operand)), in_list], "OR")


def _where_string(key: str, test: str, operand: str) -> SqlCondition:
    """Whether a field is a string, `text`, that passes a test."""
    text = '((fields ->> %s) COLLATE "C")'
    sql = f"coalesce(jsonb_typeof(fields -> %s) = 'string' AND {test.format(text=text)}, false)"
    return SqlCondition(sql, (key, key, operand))


def _compile_like(key: str, operand: str) -> SqlCondition:
    pattern = _complete_escape(escape_text(operand))
    elements = "jsonb_array_elements(CASE jsonb_typeof(fields -> %s) WHEN 'array' THEN fields -> %s ELSE '[]' END)"
    in_list = (
        f"EXISTS (SELECT 1 FROM {elements} AS element WHERE jsonb_typeof(element) = 'string' "
        "AND (element #>> '{}') COLLATE \"C\" LIKE %s)"
    )
    return _join([_where_string(key, "{text} LIKE %s", pattern), SqlCondition(in_list, (key, key, pattern))], "OR")


def _complete_escape(pattern: str) -> str:
    """The pattern with a last backslash doubled, for PostgreSQL refuses one that escapes nothing."""
    backslashes = len(pattern) - len(pattern.rstrip("\\"))
    return pattern + "\\" if backslashes % 2 else pattern


def _compile_order(key: str, sign: str, operand: Any) -> SqlCondition:
    if isinstance(operand, str):
        return _where_string(key, f"{{text}} {sign} %s", escape_text(operand))
    # CASE, unlike AND, is guaranteed to stop early.
    sql = f"(CASE WHEN jsonb_typeof(fields -> %s) = 'number' THEN (fields -> %s)::numeric {sign} %s::text::numeric "
    return SqlCondition(sql + "ELSE false END)", (key, key, dumps(operand)))
