"""`MetadataFilters` against LlamaIndex's own reading of them, on metadata and filters nobody thought of."""

from typing import Any

import pytest
from conftest import LetterEncoder
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from peg_rag.errors import InvalidInput
from peg_rag.llama_index import PEGVectorStore
from peg_rag.llama_index.filters import to_where

KEYS = st.sampled_from(["a", "b", "引'\""])
WORDS = st.text(alphabet="abAB%_\\花呗", max_size=3)
NUMBERS = st.integers(-2, 2) | st.sampled_from([0.5, -1.5])
LISTS = st.lists(WORDS, max_size=3) | st.lists(st.integers(-2, 2), max_size=3)
METADATA = st.dictionaries(KEYS, WORDS | NUMBERS | LISTS, max_size=3)
_NEEDS_LIST = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
_NEEDS_TEXT = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)


@st.composite
def one_filter(draw: st.DrawFn) -> MetadataFilter:
    operator = draw(st.sampled_from(FilterOperator))
    if operator in _NEEDS_LIST:  # an empty one means something else to LlamaIndex on a missing field
        value: Any = draw(
            st.lists(WORDS, min_size=1, max_size=3) | st.lists(st.integers(-2, 2), min_size=1, max_size=3)
        )
    elif operator is FilterOperator.IS_EMPTY:
        value = None
    else:
        value = draw(WORDS if operator in _NEEDS_TEXT else WORDS | NUMBERS)
    return MetadataFilter(key=draw(KEYS), value=value, operator=operator)


@settings(max_examples=60, deadline=None)
@given(
    metadatas=st.lists(METADATA, min_size=1, max_size=6),
    parts=st.lists(one_filter(), max_size=3),
    condition=st.sampled_from(FilterCondition),
)
def test_filters_mean_what_llama_index_means(
    metadatas: list[dict[str, Any]], parts: list[MetadataFilter], condition: FilterCondition
) -> None:
    filters = MetadataFilters(filters=[*parts], condition=condition)
    names = [f"n{number}" for number in range(len(metadatas))]
    matches = build_metadata_filter_fn(lambda name: metadatas[names.index(name)], filters)
    looked_up = {part.key for part in parts if part.operator in (FilterOperator.IN, FilterOperator.NIN)}
    assume(not any(isinstance(metadata.get(key), list) for metadata in metadatas for key in looked_up))  # see below
    try:
        expected = {name for name in names if matches(name)}
    except TypeError:  # a comparison that Python does not define; the index calls it no match
        assume(False)
    encoder, store = LetterEncoder(), PEGVectorStore()
    store.add(
        [
            TextNode(id_=name, text="花呗", metadata=metadata, embedding=encoder.encode_documents(["花呗"])[0].tolist())
            for name, metadata in zip(names, metadatas, strict=True)
        ]
    )
    assert {node.node_id for node in store.get_nodes(filters=filters)} == expected


def test_in_looks_at_the_elements_of_a_list() -> None:
    """LlamaIndex's own memory store never finds a list by IN."""
    encoder, store = LetterEncoder(), PEGVectorStore()
    embedding = encoder.encode_documents(["花呗"])[0].tolist()
    for name, tags in (("a", ["花呗", "逾期"]), ("b", ["还款"]), ("c", "花呗")):
        store.add([TextNode(id_=name, text="花呗", metadata={"tags": tags}, embedding=embedding)])
    for operator, expected in ((FilterOperator.IN, {"a", "c"}), (FilterOperator.NIN, {"b"})):
        filters = MetadataFilters(filters=[MetadataFilter(key="tags", value=["花呗", "借款"], operator=operator)])
        assert {node.node_id for node in store.get_nodes(filters=filters)} == expected


@pytest.mark.parametrize("operator", [FilterOperator.ANY, FilterOperator.ALL])
@pytest.mark.parametrize("value", ["退款", None])
def test_any_and_all_take_a_list_and_not_the_characters_of_a_string(operator: FilterOperator, value: Any) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="tags", value=value, operator=operator)])
    with pytest.raises(InvalidInput, match="'tags' take a list"):
        to_where(filters)
