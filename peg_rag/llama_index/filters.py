"""LlamaIndex's `MetadataFilters` in the index's own filter language."""

import re
from collections.abc import Callable
from typing import Any

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from peg_rag.errors import InvalidInput, UnsupportedSearch

Where = dict[str, Any]
_SAME_MEANING = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.CONTAINS: "$contains",
    FilterOperator.TEXT_MATCH: "$contains",
}
_COMPOSED: dict[FilterOperator, Callable[[str, Any], Where]] = {
    FilterOperator.TEXT_MATCH_INSENSITIVE: lambda key, value: {key: {"$ilike": f"%{_escape_pattern(value)}%"}},
    FilterOperator.ANY: lambda key, values: any_of(_contain_each(key, values)),
    FilterOperator.ALL: lambda key, values: all_of(_contain_each(key, values)),
    FilterOperator.IS_EMPTY: lambda key, _: any_of([{key: None}, {key: ""}, {key: []}]),
}


def to_where(filters: MetadataFilters | None) -> Where:
    """The filter as a dict; {}, which matches everything, for none.

    Raises:
        UnsupportedSearch: an operator the index does not have.
        InvalidInput: `ANY` or `ALL` without a list.
    """
    if filters is None or not filters.filters:
        return {}
    parts = [
        to_where(part) if isinstance(part, MetadataFilters) else _translate_filter(part) for part in filters.filters
    ]
    match filters.condition:
        case FilterCondition.OR:
            return any_of(parts)
        case FilterCondition.NOT:  # none of them matches
            return {"$not": any_of(parts)}
        case _:
            return all_of(parts)


def all_of(parts: list[Where]) -> Where:
    """What matches all parts; everything for none."""
    if len(parts) > 1:
        return {"$and": parts}
    return parts[0] if parts else {}


def any_of(parts: list[Where]) -> Where:
    """What matches one part at least; nothing for none."""
    return {"$or": parts} if parts else {"$not": {}}


def _translate_filter(part: MetadataFilter) -> Where:
    if part.operator in _SAME_MEANING:
        return {part.key: {_SAME_MEANING[part.operator]: part.value}}
    if part.operator in _COMPOSED:
        return _COMPOSED[part.operator](part.key, part.value)
    raise UnsupportedSearch(
        f"the filter operator {part.operator.name} on {part.key!r} is not supported; there are "
        + ", ".join(operator.name for operator in (*_SAME_MEANING, *_COMPOSED))
    )


def _contain_each(key: str, values: Any) -> list[Where]:
    """A filter for each value; a string is refused, whose characters would be taken for the values."""
    if not isinstance(values, list):
        raise InvalidInput(f"ANY and ALL on {key!r} take a list of values, not {values!r}")
    return [{key: {"$contains": value}} for value in values]


def _escape_pattern(text: Any) -> str:
    """A text as a `$like` pattern that matches only itself."""
    return re.sub(r"([\\%_])", r"\\\1", str(text))
