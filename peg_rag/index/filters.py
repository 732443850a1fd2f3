"""Metadata filters compiled to one SQL condition, so that filtering comes before the search and costs no recall.

A store that filters after the search returns nothing for a rare filter. Here a filter becomes an SQL expression over
the JSON of the metadata, evaluated by SQLite, and only the documents that pass are searched. Values and keys are SQL
parameters, never part of the SQL text.

The language is a subset of MongoDB's, as in Chroma and Pinecone::

    {"year": 2023}                                     the same as {"year": {"$eq": 2023}}
    {"year": {"$gte": 2020, "$lt": 2024}}              all conditions on one field
    {"city": {"$in": ["北京", "上海"]}, "draft": False}   all fields
    {"$or": [{"tags": {"$contains": "退款"}}, {"$not": {"lang": "zh"}}]}

Semantics:

* A key names a top-level field literally, dots and quotes included; it must not begin with `$`.
* `$eq` compares values of the same JSON type: numbers with numbers (1 equals 1.0), strings with strings, `True` only
  with `True`. Two lists are equal if their JSON is the same. `None` matches a field that is null or missing.
* `$in` matches a field that equals one of the values, and a list with such an element, as in MongoDB and Pinecone.
* `$ne` and `$nin` are the opposites of `$eq` and `$in`: they match documents without the field.
* `$exists` matches documents that have the field (`True`), null included, or do not have it (`False`).
* `$gt $gte $lt $lte` order numbers, or strings by code point. Missing fields and other types do not match.
* `$contains` finds a substring in a string, and an equal element in a list.
* `$like` compares a whole string, or the elements of a list, with a pattern: `%` stands for any text, `_` for one
  character, and a backslash takes their meaning away. `$ilike` ignores case.
* `$regex` searches a string, or the elements of a list, for a regular expression of RE2, which takes time linear in the
  text whatever the expression; so there are no look-arounds and no backreferences. `(?i)` in front ignores case. It
  needs `peg-rag[regex]`.
* A `datetime` or `date` is stored and compared as its ISO 8601 string, with a time zone in UTC; so the order is right
  among dates, among times without a zone and among times with one. NumPy scalars count as Python's.
* Strings may hold any character. SQLite's JSON functions would end them at NUL, so NUL is escaped for them.
* `{"$in": []}` matches nothing; an empty `$and` or `$or` is an error.

Cost: one scan of the metadata, about 0.1 s for 100,000 documents; for a string, `$eq` first searches
the raw JSON text, which is several times faster. `$like`, `$ilike` and `$regex` call Python for each string of the
field.
"""

import json
import math
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any

import numpy as np

from peg_rag.errors import InvalidInput
from peg_rag.extras import require

GROUP_OPERATORS = ("$and", "$or", "$not")  # each is compiled in `_compile_clause`
MAX_DEPTH = 50
_PARSER_STACK = 50  # entries left for nesting; SQLite has 100 by default, and one condition takes up to half

_NUMBER = "('integer', 'real')"
_ORDERS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


@dataclass(frozen=True, slots=True)
class Condition:
    """An SQL expression over `documents.metadata`, which is 1 or 0 but never NULL, and its parameters."""

    sql: str
    parameters: tuple[Any, ...] = ()
    stack: int = 0  # entries of the parser's stack that the nesting of conditions takes
    opposite: "Condition | None" = None  # of a negation: what it negates
    needle: str | None = None  # is in the metadata of every document that passes

    @property
    def matches_all(self) -> bool:
        """Whether this is the empty filter, which matches every document."""
        return self.sql == "1"

    def negate(self) -> "Condition":
        """The opposite condition."""
        return self.opposite or Condition(f"(NOT {self.sql})", self.parameters, self.stack + 2, opposite=self)


def dumps(value: Any) -> str:
    """The canonical JSON of metadata, so that a filter can search for a piece of it as text."""
    if _encode_in_c is None:
        return _ENCODER.encode(value)
    try:
        return "".join(_encode_in_c(value, 0))
    except (TypeError, ValueError, RecursionError):
        return _ENCODER.encode(value)  # which says what is wrong


def plain_scalar(value: Any) -> Any:
    """A date, a time or a NumPy scalar as the value that JSON holds for it; anything else unchanged.

    Times with a zone are converted to UTC, so that their strings are in the order of time; not-a-time becomes None.
    """
    if isinstance(value, np.datetime64):
        moment = value.item()
        # NumPy gives an integer for units finer than Python's microseconds.
        return plain_scalar(value.astype("datetime64[us]").item() if isinstance(moment, int) else moment)
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, date):
        return value
    if value != value:  # pandas.NaT
        return None
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    return value.isoformat()


def plain_metadata(value: Any) -> Any:
    """Metadata with every date, time and NumPy scalar in it replaced by the value that JSON holds for it."""
    if isinstance(value, Mapping):
        return {key: plain_metadata(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_metadata(item) for item in value]
    return plain_scalar(value)


def _encode_scalar(value: Any) -> Any:
    plain = plain_scalar(value)
    if plain is value or isinstance(plain, np.generic):
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    return plain


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_encode_scalar)


def _make_encoder() -> Callable[[Any, int], Iterable[str]] | None:
    """The encoder in C that `_ENCODER` makes anew for every value, which takes longer than encoding metadata."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return None
    try:
        encode: Callable[[Any, int], Iterable[str]] = make(
            None, _encode_scalar, json.encoder.encode_basestring, None, ":", ",", False, False, False
        )
    except TypeError:  # another version of Python
        return None
    return encode


_encode_in_c = _make_encoder()

# NUL is escaped by three other characters, and those are escaped likewise: the order of strings is preserved, and a
# substring matches only where it occurs.
_ESCAPED = {0: "\x01\x02\x02", 1: "\x01\x02\x03", 2: "\x01\x03\x02", 3: "\x01\x03\x03"}
_JSON_ESCAPE = re.compile(r"\\(?:u000([0-3])|.)")
_ESCAPED_TEXT = re.compile("|".join(_ESCAPED.values()))
_UNESCAPED = {text: chr(code) for code, text in _ESCAPED.items()}
_METADATA = "documents.metadata"


def register_functions(connection: sqlite3.Connection) -> None:
    """Give a connection the SQL functions that conditions call."""
    connection.create_function("escape_nul", 1, escape_nul, deterministic=True)
    connection.create_function("matches_like", 3, matches_like, deterministic=True)
    connection.create_function("matches_regex", 2, matches_regex, deterministic=True)


def escape_nul(text: Any) -> Any:
    """JSON text with NUL escaped in its strings; other values unchanged."""
    return _JSON_ESCAPE.sub(_replace_escape, text) if isinstance(text, str) else text


def _replace_escape(escape: re.Match[str]) -> str:
    return escape[0] if escape[1] is None else dumps(_ESCAPED[int(escape[1])])[1:-1]


def compile_filter(where: Mapping[str, Any]) -> Condition:
    """Translate a filter to SQL. An empty filter matches every document.

    Raises:
        InvalidInput: for an unknown operator, an operand of the wrong kind, or nesting deeper than `MAX_DEPTH` levels.
    """
    plain = _compile_group(where, depth=0)
    if plain.stack > _PARSER_STACK:
        raise InvalidInput("the filter is nested deeper than SQLite can parse; flatten it with $in, $and or $or")
    if not plain.parameters:
        return plain
    return _allow_nul(plain) if plain.opposite is None else _allow_nul(plain.opposite).negate()


def _allow_nul(plain: Condition) -> Condition:
    """The condition for metadata with and without NUL; only those with one are escaped before they are compared."""
    escaped = plain.sql.replace(_METADATA, f"escape_nul({_METADATA})")
    # GLOB is faster than instr for one pattern, and AND faster than CASE where its order does not matter.
    compare = f"(CASE WHEN {_METADATA} GLOB '*\\u000*' THEN {escaped} ELSE {plain.sql} END)"
    if plain.needle is None:
        return Condition(compare, plain.parameters * 2)
    return Condition(f"(instr({_METADATA}, ?) AND {compare})", (plain.needle, *plain.parameters, *plain.parameters))


def _compile_group(where: Any, depth: int) -> Condition:
    _check_depth(depth)
    if not isinstance(where, Mapping):
        raise InvalidInput(f"a filter is a dict such as {{'year': {{'$gte': 2023}}}}, not {where!r}")
    return _join_conditions([_compile_clause(key, value, depth) for key, value in where.items()], "AND")


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"the filter is nested deeper than {MAX_DEPTH} levels; flatten it with $in, $and or $or")


def _compile_clause(key: Any, value: Any, depth: int) -> Condition:
    if not isinstance(key, str):
        raise InvalidInput(f"a filter's keys are field names or operators (strings), not {key!r}")
    if key in ("$and", "$or"):
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
            raise InvalidInput(f"{key} takes a non-empty list of filters, not {value!r}")
        return _join_conditions([_compile_group(part, depth + 1) for part in value], key[1:].upper())
    if key == "$not":
        return _compile_group(value, depth + 1).negate()
    if key.startswith("$"):
        raise InvalidInput(
            f"unknown operator {key!r} in a filter; between fields there are {', '.join(GROUP_OPERATORS)}"
        )
    return _compile_field(_Field.for_key(key), key, value if isinstance(value, Mapping) else {"$eq": value}, depth)


def _compile_field(field: "_Field", key: str, operators: Mapping[str, Any], depth: int) -> Condition:
    _check_depth(depth)
    if not operators:
        raise InvalidInput(f"the filter on {key!r} has no operator; there are {', '.join(FIELD_OPERATORS)}")
    parts = []
    for operator, operand in operators.items():
        if operator not in FIELD_OPERATORS:
            valid_operators = ", ".join(FIELD_OPERATORS)
            raise InvalidInput(f"unknown operator {operator!r} on field {key!r}; there are {valid_operators}")
        if operator == "$not":
            inner = operand if isinstance(operand, Mapping) else {"$eq": operand}
            parts.append(_compile_field(field, key, inner, depth + 1).negate())
        else:
            parts.append(_OPERATORS[operator](field, operator, _plain_operand(operand)))
    return _join_conditions(parts, "AND")


def _plain_operand(operand: Any) -> Any:
    if isinstance(operand, list | tuple | set | frozenset):
        return [plain_scalar(value) for value in operand]
    return plain_scalar(operand)


def _join_conditions(parts: Sequence[Condition], word: str) -> Condition:
    """Join as a balanced tree: SQLite limits the depth of an expression to 1,000, and a filter may have more parts.

    The more nested side comes first, for SQLite's parser is done with it when it reads the other.
    """
    if not parts:
        return Condition("1")
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left = _join_conditions(parts[:middle], word)
    right = _join_conditions(parts[middle:], word)
    if right.stack > left.stack:
        left, right = right, left
    stack = max(left.stack + 1, right.stack + 3)
    needle = left.needle or right.needle if word == "AND" else None
    return Condition(f"({left.sql} {word} {right.sql})", left.parameters + right.parameters, stack, needle=needle)


@dataclass(frozen=True, slots=True)
class _Field:
    """The SQL expressions of one field: its JSON type (NULL when missing) and its value."""

    type: str
    value: str
    parameter: str  # of both expressions
    fragment: str | None  # the JSON text of the key, when the field has a JSON path

    @classmethod
    def for_key(cls, key: str) -> "_Field":
        if key and dumps(key) == f'"{key}"':
            path = f'$."{key}"'
            return cls(f"json_type({_METADATA}, ?)", f"json_extract({_METADATA}, ?)", path, f'"{key}":')
        # A JSON path cannot contain quotes, backslashes or control characters: iterate over the object instead.
        walk = f"FROM json_each({_METADATA}) AS field WHERE field.key = ?"
        return cls(f"(SELECT field.type {walk})", f"(SELECT field.value {walk})", escape_text(key), None)

    def where_type(self, test: str, then: Condition) -> Condition:
        """`then` for fields whose type passes `test`, else 0. CASE, unlike AND, is guaranteed to stop early."""
        return Condition(
            f"(CASE WHEN {self.type} {test} THEN {then.sql} ELSE 0 END)",
            (self.parameter, *then.parameters),
            then.stack,
        )

    def where_element(self, test: Condition) -> Condition:
        """Whether the field is a list with an element, `element`, that passes `test`."""
        elements = f"EXISTS (SELECT 1 FROM json_each({self.value}) AS element WHERE {test.sql})"
        return self.where_type("= 'array'", Condition(elements, (self.parameter, *test.parameters), test.stack))

    def compare(self, sign: str, right: Condition) -> Condition:
        return Condition(f"{self.value} {sign} {right.sql}", (self.parameter, *right.parameters))


def escape_text(value: str) -> str:
    """A string in the form that is compared in SQL: without NUL.

    Raises:
        InvalidInput: a lone surrogate.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"a filter's strings must be valid Unicode: {value[:80]!r} holds a lone surrogate"
        ) from error
    return value.translate(_ESCAPED)


def unescape_text(value: str) -> str:
    """The string that `escape_text` was given."""
    return _ESCAPED_TEXT.sub(lambda escape: _UNESCAPED[escape[0]], value)


def _operand_kind(value: Any, operator: str) -> str:
    """`null`, `bool`, `number` or `text`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return "number"
    if isinstance(value, str):
        return "text"
    raise InvalidInput(f"{operator} compares with a string, a finite number, a bool or None, not {value!r}")


def _number_literal(value: float) -> Condition:
    # Parsed by SQLite's JSON parser, like the stored value, so that both round alike.
    return Condition("json_extract(?, '$')", (dumps(value),))


def _compile_equal(field: _Field, operator: str, operand: Any) -> Condition:
    if isinstance(operand, list | tuple):
        try:
            same = field.compare("=", Condition("?", (escape_text(escape_nul(dumps(list(operand)))),)))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{operator} cannot compare with {operand!r}: {error}") from error
        return field.where_type("= 'array'", same)
    match _operand_kind(operand, operator):
        case "null":
            return Condition(f"(ifnull({field.type}, 'null') = 'null')", (field.parameter,))
        case "bool":
            return Condition(f"(ifnull({field.type}, '') = ?)", (field.parameter, "true" if operand else "false"))
        case "number":
            return field.where_type(f"IN {_NUMBER}", field.compare("=", _number_literal(operand)))
        case _:
            exact = field.where_type("= 'text'", field.compare("=", Condition("?", (escape_text(operand),))))
            if field.fragment is None:
                return exact
            needle = field.fragment + dumps(operand)
            return Condition(
                f"(CASE WHEN instr({_METADATA}, ?) THEN {exact.sql} ELSE 0 END)",
                (escape_nul(needle), *exact.parameters),
                needle=needle,
            )


def _compile_in(field: _Field, operator: str, operand: Any) -> Condition:
    if not isinstance(operand, list):
        raise InvalidInput(f"{operator} takes a list of values, not {operand!r}")
    groups: dict[str, list[Any]] = {}
    for value in operand:
        groups.setdefault(_operand_kind(value, operator), []).append(value)
    parts = []
    tests = []
    for kind, values in groups.items():
        distinct = list(dict.fromkeys(values))
        tests.append(_test_element(kind, distinct))
        if kind in ("null", "bool") or len(distinct) == 1:
            parts += [_compile_equal(field, operator, value) for value in distinct]
        else:
            test = "= 'text'" if kind == "text" else f"IN {_NUMBER}"
            parts.append(field.where_type(test, field.compare("IN", _list_literal(distinct))))
    if not parts:
        return Condition("0")
    return _join_conditions([*parts, field.where_element(_join_conditions(tests, "OR"))], "OR")


def _list_literal(values: Sequence[Any]) -> Condition:
    escaped = [escape_text(value) if isinstance(value, str) else value for value in values]
    return Condition("(SELECT value FROM json_each(?))", (dumps(escaped),))


def _test_element(kind: str, values: Sequence[Any]) -> Condition:
    """Whether an element of a list, `element`, is one of these values of one kind."""
    match kind:
        case "null":
            return Condition("element.type = 'null'")
        case "bool":
            names = tuple("true" if value else "false" for value in values)
            return Condition(f"element.type IN ({', '.join('?' * len(names))})", names)
        case "number":
            listed = _list_literal(values)
            return Condition(f"(element.type IN {_NUMBER} AND element.value IN {listed.sql})", listed.parameters)
        case _:
            listed = _list_literal(values)
            return Condition(f"(element.type = 'text' AND element.value IN {listed.sql})", listed.parameters)


def _compile_exists(field: _Field, operator: str, operand: Any) -> Condition:
    if not isinstance(operand, bool):
        raise InvalidInput(f"{operator} takes True or False, not {operand!r}")
    return Condition(f"({field.type} IS {'NOT ' if operand else ''}NULL)", (field.parameter,))


def _compile_order(field: _Field, operator: str, operand: Any) -> Condition:
    kind = _operand_kind(operand, operator)
    if kind == "number":
        return field.where_type(f"IN {_NUMBER}", field.compare(_ORDERS[operator], _number_literal(operand)))
    if kind == "text":
        return field.where_type("= 'text'", field.compare(_ORDERS[operator], Condition("?", (escape_text(operand),))))
    raise InvalidInput(f"{operator} orders numbers or strings, not {operand!r}")


def _compile_contains(field: _Field, operator: str, operand: Any) -> Condition:
    in_list = field.where_element(_test_element(_operand_kind(operand, operator), [operand]))
    if not isinstance(operand, str):
        return in_list
    substring = Condition(f"instr({field.value}, ?) > 0", (field.parameter, escape_text(operand)))
    return _join_conditions([field.where_type("= 'text'", substring), in_list], "OR")


# -- patterns ---------------------------------------------------------------------------------------------------------


def _compile_like(field: _Field, operator: str, operand: Any) -> Condition:
    if not isinstance(operand, str):
        raise InvalidInput(f"{operator} takes a pattern such as 'GB/T%', not {operand!r}")
    return _call_for_texts(field, "matches_like", escape_text(operand), int(operator == "$ilike"))


def _compile_regex(field: _Field, operator: str, operand: Any) -> Condition:
    if not isinstance(operand, str):
        raise InvalidInput(f"{operator} takes a regular expression as a string, not {operand!r}")
    pattern = escape_text(operand)
    re2 = require("re2", "regex")
    try:
        _parse_regex(operand)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise InvalidInput(
            f"{operator} cannot use {operand!r}: {reason}; it takes the syntax of RE2, which has no look-around and no "
            "backreference"
        ) from error
    return _call_for_texts(field, "matches_regex", pattern)


def _call_for_texts(field: _Field, function: str, *arguments: str | int) -> Condition:
    """Call a function of SQL with the field's string, and with the strings among its elements."""
    marks = ", ?" * len(arguments)
    in_text = Condition(f"{function}({field.value}{marks})", (field.parameter, *arguments))
    in_list = Condition(f"(element.type = 'text' AND {function}(element.value{marks}))", arguments)
    return _join_conditions([field.where_type("= 'text'", in_text), field.where_element(in_list)], "OR")


@dataclass(frozen=True, slots=True)
class _Segment:
    """A piece of a `$like` pattern between two `%`; it matches texts of one length."""

    pattern: re.Pattern[str]
    width: int


def matches_like(text: str, pattern: str, ignores_case: int) -> bool:
    """Whether an escaped text matches an escaped `$like` pattern."""
    text = unescape_text(text)
    if ignores_case:
        text = text.lower()
    first, *others = _parse_like(pattern, bool(ignores_case))
    if not others:
        return first.pattern.fullmatch(text) is not None
    *middle, last = others
    place = first.pattern.match(text)
    for segment in middle:
        # The first place is the best: it leaves the most text to the segments that follow.
        place = place and segment.pattern.search(text, place.end())
    tail = len(text) - last.width
    return place is not None and place.end() <= tail and last.pattern.match(text, tail) is not None


@lru_cache(maxsize=64)
def _parse_like(pattern: str, ignores_case: bool) -> tuple[_Segment, ...]:
    pattern = unescape_text(pattern)
    if ignores_case:
        pattern = pattern.lower()
    segments: list[list[str]] = [[]]
    for match in re.finditer(r"(?s)\\(.)|(.)", pattern):
        literal, plain = match.groups()
        if plain == "%":
            segments.append([])
        else:
            segments[-1].append("." if plain == "_" else re.escape(literal or plain))
    return tuple(_Segment(re.compile("".join(segment), re.DOTALL), len(segment)) for segment in segments)


def matches_regex(text: str, pattern: str) -> bool:
    """Whether a regular expression is found in an escaped text; both are escaped."""
    return _parse_regex(unescape_text(pattern)).search(unescape_text(text)) is not None


@lru_cache(maxsize=64)
def _parse_regex(pattern: str) -> Any:
    re2 = require("re2", "regex")
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def _negate_operator(positive: Callable[[_Field, str, Any], Condition]) -> Callable[[_Field, str, Any], Condition]:
    return lambda field, operator, operand: positive(field, operator, operand).negate()


_OPERATORS: dict[str, Callable[[_Field, str, Any], Condition]] = {
    "$eq": _compile_equal,
    "$ne": _negate_operator(_compile_equal),
    "$in": _compile_in,
    "$nin": _negate_operator(_compile_in),
    **dict.fromkeys(_ORDERS, _compile_order),
    "$contains": _compile_contains,
    "$exists": _compile_exists,
    "$like": _compile_like,
    "$ilike": _compile_like,
    "$regex": _compile_regex,
}
FIELD_OPERATORS = (*_OPERATORS, "$not")
