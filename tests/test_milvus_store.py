"""What only Milvus has: counts of terms beside the documents, expressions of numbers, limits of its strings."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from store_fixtures import MilvusFile, milvus  # noqa: F401

from peg_rag.errors import InvalidInput, StoreError
from peg_rag.index.tokenizers import get_tokenizer
from peg_rag.stores.conditions import parse_filter
from peg_rag.stores.milvus import MilvusStore, _list_client_options
from peg_rag.stores.milvus_filters import compile_expression
from peg_rag.stores.milvus_terms import (
    ENTRIES_PER_ROW,
    ENTRY,
    MAX_TERM,
    TermChange,
    TermStatistics,
    count_terms,
    pack_entries,
    sum_entries,
    unpack_entries,
    weigh_document,
)

_numbers = itertools.count()
OpenStore = Callable[..., MilvusStore]


@pytest.fixture
def open_stores(milvus: MilvusFile) -> Iterator[OpenStore]:  # noqa: F811
    """Opens the same store any number of times."""
    url = milvus.url(f"own_{next(_numbers)}")
    stores: list[MilvusStore] = []

    def make(**options: Any) -> MilvusStore:
        stores.append(MilvusStore(url, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def read_counts(store: MilvusStore) -> dict[int, int]:
    return {int(entry["term"]): int(entry["count"]) for entry in store._read_statistics().entries}


def expect_counts(store: MilvusStore) -> dict[int, int]:
    texts = [record.text for record in store.get(where={})]
    counts = Counter(term for text in texts for term in count_terms(get_tokenizer("bigram"), text))
    return {**counts, MAX_TERM: len(texts)}


def test_counts_follow_every_write(open_stores: OpenStore) -> None:
    writer = open_stores()
    reader = open_stores()
    writer.upsert(["a", "b"], ["花呗花呗", "银行"], np.eye(2))
    assert read_counts(reader) == expect_counts(reader)
    writer.upsert(["a"], ["理财"], [[1.0, 1.0]])
    writer.delete(["b", "unknown"])
    writer.upsert(["c", "d"], ["花 abc", ""], np.eye(2))
    assert read_counts(reader) == read_counts(writer) == expect_counts(writer)
    assert len(writer._list_counts(0)) == 4
    writer.persist()
    assert len(writer._list_counts(0)) == 1
    assert read_counts(reader) == read_counts(writer) == expect_counts(writer)
    writer._client.insert(writer._counts, [{"key": 1, "age": 2**62, "packed": "", "vector": [1.0, 0.0]}])
    writer._client.delete(writer._name, filter='id == "c"')  # as another program might
    writer.recount()
    assert read_counts(reader) == expect_counts(writer)


def test_a_graph_is_built_and_dropped(open_stores: OpenStore) -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    store = open_stores(kind="hnsw")
    store.upsert([str(i) for i in range(200)], [""] * 200, vectors, [{"n": i % 20} for i in range(200)])
    flat = open_stores(kind="flat")
    flat.persist()
    assert open_stores().kind == "flat"
    assert len(flat.search(vectors[0], where={"n": 3})) == 10
    expected = [[hit.id for hit in flat.search(vector)] for vector in vectors[:5]]
    store.persist()
    assert open_stores().kind == "hnsw"
    hits = [[hit.id for hit in store.search(vector)] for vector in vectors[:5]]
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(hits, expected, strict=True)]) > 0.9


def test_limits_are_named(open_stores: OpenStore) -> None:
    store = open_stores()
    for ids, texts, metas, message in [
        (["a", "b"], ["", "字" * 30_000], None, "text 1 is longer than"),
        (["a" * 70_000], [""], None, "id 0 is longer than"),
        (["a"], [""], [{"x": "字" * 30_000}], "metadata 0 is longer than"),
        (["a"], [""], [{"x": list(range(5000))}], "metadata 0 has more values"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            store.upsert(ids, texts, np.ones((len(ids), 2)), metas)
    assert len(store) == 0


def test_foreign_collections_are_left_alone(open_stores: OpenStore, milvus: MilvusFile) -> None:  # noqa: F811
    store = open_stores()
    name = f"foreign_{next(_numbers)}"
    store._client.create_collection(name, dimension=4)
    with pytest.raises(StoreError, match=f"'{name}'.*not one of peg-rag's"):
        MilvusStore(milvus.url(name))
    assert store._client.has_collection(name)


def test_expressions_hold_only_numbers() -> None:
    where = {
        'x" or key > 0 or "': {"$in": ['"] or true', "\\", 1, None, True]},
        "$and": [{"n": {"$gt": 3.5, "$lt": 9}}, {"$not": {"s": '" == "'}}, {"q": {"$exists": False}}],
    }
    expression = compile_expression(parse_filter(where), lambda _expression, _test: [5])
    words = set(expression.replace("(", " ").replace(")", " ").replace(",", " ").split())
    allowed = {"array_contains", "facts", "or", "and", "not", ">", "<"}
    rest = {word for word in words - allowed if not word.lstrip("-").replace(".", "").isdigit()}
    assert all(word.startswith('numbers["f') and word[10:-2].isalnum() for word in rest), rest


def test_entries_are_packed_and_summed() -> None:
    change = TermChange()
    for text in ("花呗花呗", "花"):
        change.add(count_terms(get_tokenizer("bigram"), text))
    change.add(count_terms(get_tokenizer("bigram"), "花"), -1)
    entries = sum_entries(unpack_entries(change.pack()))
    assert dict(entries.tolist())[MAX_TERM] == 1
    assert len(entries) == 1 + len(count_terms(get_tokenizer("bigram"), "花呗花呗"))
    many = np.zeros(2 * ENTRIES_PER_ROW + 1, dtype=ENTRY)
    many["term"] = np.arange(len(many))
    packed = pack_entries(many)
    assert [len(text) <= 65_535 for text in packed] == [True] * 3
    assert (unpack_entries(packed) == many).all()


def test_weights_make_bm25() -> None:
    statistics = TermStatistics()
    entries = np.array([(7, 2), (9, 1), (MAX_TERM, 4)], dtype=ENTRY)
    statistics.add_rows([{"key": 1, "age": 5, "packed": pack_entries(entries)[0]}])
    statistics.add_rows([{"key": 1, "age": 5, "packed": pack_entries(entries)[0]}])  # the same row again
    query = statistics.weigh_query({7: 2, 8: 1})
    assert query == pytest.approx({7: 2 * np.log(1 + 2.5 / 2.5), 8: np.log(1 + 4.5 / 0.5)})
    document = weigh_document({7: 3, 8: 1}, average=4.0)
    assert document == pytest.approx({7: 3 * 2.2 / (3 + 1.2), 8: 2.2 / (1 + 1.2)})
    assert weigh_document({}, average=4.0) == {MAX_TERM: 1.0}


def test_urls_of_clusters() -> None:
    assert _list_client_options("milvus://me:p%40ss@host/db?secure=true") == {
        "uri": "https://host:19530",
        "token": "me:p@ss",
        "db_name": "db",
    }
    assert _list_client_options("milvus://host:1") == {"uri": "http://host:1"}
    with pytest.raises(InvalidInput, match=r"\*\.db"):
        _list_client_options("milvus:///folder/file")
