"""A filter as a small tree, for stores that translate it into a query language of their own.

The embedded index compiles the filter language to SQLite and decides what is valid; here its verdict is taken first,
so every store refuses the same filters with the same words, and a translator sees only five kinds of nodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peg_rag.index.filters import GROUP_OPERATORS, compile_filter, plain_scalar


@dataclass(frozen=True, slots=True)
class AllOf:
    """All parts hold; with no parts, always."""

    parts: tuple["Node", ...] = ()


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One part holds at least."""

    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: "Node"


@dataclass(frozen=True, slots=True)
class Test:
    """A field compared with an operand.

    Attributes:
        operator: `$eq $in $gt $gte $lt $lte $contains $exists $like $ilike $regex`; the negative ones are `Not`.
        operand: JSON scalars, or lists of them.
    """

    key: str
    operator: str
    operand: Any


Node = AllOf | AnyOf | Not | Test
_OPPOSITES = {"$ne": "$eq", "$nin": "$in"}


def parse_filter(where: Mapping[str, Any]) -> Node:
    """The tree of a filter.

    Raises:
        InvalidInput: as `peg_rag.index.filters.compile_filter`.
    """
    compile_filter(where)
    return _parse_group(where)


def _parse_group(where: Mapping[str, Any]) -> Node:
    return _join([_parse_clause(key, value) for key, value in where.items()])


def _join(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _parse_clause(key: str, value: Any) -> Node:
    if key == "$not":
        return Not(_parse_group(value))
    if key in GROUP_OPERATORS:
        parts = [_parse_group(part) for part in value]
        return AnyOf(tuple(parts)) if key == "$or" else _join(parts)
    return _parse_field(key, value)


def _parse_field(key: str, value: Any) -> Node:
    operators = value if isinstance(value, Mapping) else {"$eq": value}
    return _join([_parse_test(key, operator, operand) for operator, operand in operators.items()])


def _parse_test(key: str, operator: str, operand: Any) -> Node:
    if operator == "$not":
        return Not(_parse_field(key, operand))
    if operator in _OPPOSITES:
        return Not(_parse_test(key, _OPPOSITES[operator], operand))
    return Test(key, operator, _plain_operand(operand))


def _plain_operand(operand: Any) -> Any:
    if isinstance(operand, list | tuple | set | frozenset):
        return [_plain_operand(value) for value in operand]
    return plain_scalar(operand)
