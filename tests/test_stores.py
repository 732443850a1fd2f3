"""The same assertions over every store, and every server beside the embedded index."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LetterEncoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_fixtures import milvus, postgres  # noqa: F401
from test_filters import metadatas, wheres

from peg_rag import Hit, PEGIndex, Retriever
from peg_rag.errors import IndexMismatch, InvalidInput, PegRagError
from peg_rag.index.filters import dumps
from peg_rag.index.tokenizers import get_tokenizer
from peg_rag.stores import Store, open_store
from peg_rag.stores.urls import StoreUrl

SERVERS = ["postgres", "milvus"]
TEXTS = [
    "花呗可以更换绑定的银行卡吗",
    "银行卡逾期怎么还款",
    "借款的理财产品",
    "花呗还款日可以改吗？花呗",
    "Ａ abc card 银行",
    "",
]
_numbers = itertools.count()
OpenStore = Callable[..., Store]


@pytest.fixture(params=["embedded", *SERVERS])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store may be made."""
    if request.param == "embedded":
        return str(tmp_path / "kb")
    return _server_url(request, request.param)


@pytest.fixture(params=SERVERS)
def server_url(request: pytest.FixtureRequest) -> str:
    """Where a new store may be made on a server."""
    return _server_url(request, request.param)


def _server_url(request: pytest.FixtureRequest, server: str) -> str:
    url: str = request.getfixturevalue(server).url(f"test_{next(_numbers)}")
    return url


@pytest.fixture(params=["postgres", pytest.param("milvus", marks=pytest.mark.slow)])
def property_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store for many examples, of which Milvus takes seconds for each."""
    with open_store(_server_url(request, request.param)) as store:
        yield store


@pytest.fixture
def make_store(location: str) -> Iterator[OpenStore]:
    yield from _open_stores(location)


@pytest.fixture
def make_server_store(server_url: str) -> Iterator[OpenStore]:
    yield from _open_stores(server_url)


def _open_stores(location: str) -> Iterator[OpenStore]:
    """Opens the same store any number of times."""
    stores: list[Store] = []

    def make(**options: Any) -> Store:
        stores.append(open_store(location, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def fill(store: Store, texts: Sequence[str] = TEXTS, metas: Sequence[Mapping[str, Any]] | None = None) -> None:
    ids = [f"d{i}" for i in range(len(texts))]
    store.upsert(ids, texts, LetterEncoder().encode_documents(texts), metas)


# -- the contract -----------------------------------------------------------------------------------------------------


def test_documents_come_back_as_they_were_written(make_store: OpenStore) -> None:
    store = make_store()
    metas = [{"n": i, "f": 1e300, "list": [1, 1.0, None, {"b": "x\x00", "a": True}], "\x00": ""} for i in range(6)]
    texts = [*TEXTS[:5], "nul \x00 and \x01\x02\x03, 😀"]
    fill(store, texts, metas)
    records = store.get([f"d{i}" for i in (5, 0, 3)] + ["unknown"])
    assert [record.id for record in records] == ["d5", "d0", "d3"]
    assert [record.text for record in records] == [texts[5], texts[0], texts[3]]
    assert [json.dumps(record.metadata) for record in records] == [json.dumps(metas[i]) for i in (5, 0, 3)]
    assert store.ids() == [f"d{i}" for i in range(6)]
    assert len(store) == store.count() == 6
    assert store.count({"n": {"$gte": 4}}) == 2
    assert [record.id for record in store.get(where={}, limit=2)] == ["d0", "d1"]


def test_upsert_replaces_and_makes_young(make_store: OpenStore) -> None:
    store = make_store()
    fill(store)
    encoder = LetterEncoder()
    store.upsert(
        ["d1", "d1", "new"], ["旧", "理财", "x"], encoder.encode_documents(["旧", "理财", "x"]), [{}, {"a": 1}, {}]
    )
    assert store.ids() == ["d0", "d2", "d3", "d4", "d5", "d1", "new"]
    assert store.get(["d1"])[0].text == "理财"
    assert [hit.id for hit in store.search(text="旧", mode="lexical")] == []
    assert {hit.id for hit in store.search(text="理财", mode="lexical")} == {"d1", "d2"}
    assert len(store) == 7


def test_delete_by_id_and_filter(make_store: OpenStore) -> None:
    store = make_store()
    fill(store, metas=[{"n": i} for i in range(6)])
    assert store.delete(["d0", "d0", "unknown"]) == 1
    assert store.delete(where={"n": {"$gt": 3}}) == 2
    assert store.delete([]) == 0
    assert store.ids() == ["d1", "d2", "d3"]
    assert {hit.id for hit in store.search(text="银行", mode="lexical")} == {"d1"}
    bad_arguments: list[dict[str, Any]] = [{}, {"ids": ["d1"], "where": {"n": 1}}, {"where": {}}]
    for arguments in bad_arguments:
        with pytest.raises(InvalidInput, match="either ids or a non-empty filter"):
            store.delete(**arguments)
    store.clear()
    assert len(store) == 0
    assert store.ids() == []
    assert store.search(text="银行") == []
    assert store.search(np.ones(40)) == []


def test_a_rejected_write_changes_nothing(make_store: OpenStore) -> None:
    store = make_store()
    fill(store)
    vectors = LetterEncoder().encode_documents(["x", "y"])
    for ids, texts, rows, metas in [
        (["a", ""], ["x", "y"], vectors, None),
        (["a", "b"], ["x", None], vectors, None),
        (["a", "b"], ["x", "\ud800"], vectors, None),
        (["a", "b"], ["x", "y"], vectors[:, :3], None),
        (["a", "b"], ["x", "y"], vectors * [[1], [0]], None),
        (["a", "b"], ["x", "y"], vectors, [{}, {"a": float("nan")}]),
        (["a", "b"], ["x", "y"], vectors, [{}, {1: 2}]),
        (["a", "b"], ["x"], vectors, None),
    ]:
        with pytest.raises(InvalidInput):
            store.upsert(ids, texts, rows, metas)  # type: ignore[arg-type]
    assert store.ids() == [f"d{i}" for i in range(6)]


def test_the_model_is_recorded_and_checked(make_store: OpenStore) -> None:
    assert make_store().identity == "unknown"
    store = make_store(identity="first")  # still empty, and without a model
    assert (store.identity, store.dimension, store.tokenizer) == ("first", None, "bigram")
    fill(store)
    again = make_store()
    assert (again.identity, again.dimension) == ("first", 40)
    for option, value in [("identity", "second"), ("dimension", 3), ("tokenizer", "jieba")]:
        with pytest.raises(IndexMismatch, match=f"made with {option}"):
            make_store(**{option: value})
    with pytest.raises(InvalidInput, match="40"):
        again.upsert(["x"], ["x"], [[1.0, 2.0]])
    with pytest.raises(InvalidInput, match="40"):
        again.search([1.0, 2.0])


def test_two_open_stores_agree_on_the_dimension(make_store: OpenStore) -> None:
    first = make_store()
    second = make_store()
    first.upsert(["a"], ["x"], [[1.0, 0.0]])
    with pytest.raises((IndexMismatch, InvalidInput), match="dimension"):
        second.upsert(["b"], ["y"], [[1.0, 0.0, 0.0]])
    assert second.ids() == ["a"]


def test_read_only_stores_refuse_to_write(make_store: OpenStore) -> None:
    with pytest.raises(InvalidInput, match=r"no (store|index) at"):
        make_store(read_only=True)
    fill(make_store())
    store = make_store(read_only=True)
    assert len(store) == 6
    assert store.search(text="银行")
    for write in (lambda: fill(store), store.clear, lambda: store.delete(["d0"])):
        with pytest.raises(PegRagError, match="read_only"):
            write()


def test_the_retriever_searches_in_every_mode(make_store: OpenStore, letters: LetterEncoder) -> None:
    store = make_store(identity=letters.identity)
    fill(store, metas=[{"n": i} for i in range(6)])
    for mode in ("dense", "lexical", "hybrid", "mmr"):
        hits = Retriever(store, letters, mode=mode, k=3).retrieve("花呗还款")
        assert hits[0].id == "d3", mode
        assert hits == sorted(hits, key=lambda hit: -hit.score) or mode == "mmr"
        assert {hit.id for hit in Retriever(store, letters, mode=mode, where={"n": 1}).retrieve("花呗还款")} == {"d1"}
    with pytest.raises(IndexMismatch):
        Retriever(make_store(identity=letters.identity), type("Other", (LetterEncoder,), {"identity": "x"})())


def test_export_gives_everything_back(make_store: OpenStore) -> None:
    store = make_store()
    fill(store, metas=[{"n": i} for i in range(6)])
    assert list(make_store().export(["unknown"])) == []
    batches = list(store.export(batch_size=4))
    assert [list(batch.ids) for batch in batches] == [["d0", "d1", "d2", "d3"], ["d4", "d5"]]
    assert [text for batch in batches for text in batch.texts] == TEXTS
    assert [dict(metadata) for batch in batches for metadata in batch.metadatas] == [{"n": i} for i in range(6)]
    vectors = np.concatenate([batch.vectors for batch in batches])
    np.testing.assert_allclose(vectors, LetterEncoder().encode_documents(TEXTS), atol=1e-6)
    (batch,) = store.export(["d5", "d1", "unknown"])
    assert sorted(batch.ids) == ["d1", "d5"]


def test_k_threshold_and_batches(make_store: OpenStore) -> None:
    store = make_store()
    assert store.search_batch(texts=["a", "b"]) == [[], []]
    fill(store)
    vectors = LetterEncoder().encode_queries(["花呗", "银行卡"])
    assert [len(hits) for hits in store.search_batch(vectors, ["花呗", "银行卡"], k=2)] == [2, 2]
    assert store.search_batch(vectors, ["花呗", "银行卡"], k=0) == [[], []]
    assert store.search_batch([], []) == []
    hits = store.search(vectors[0], k=100)
    assert len(hits) == 6
    assert store.search(vectors[0], threshold=hits[1].score) == hits[:2]
    for bad in (
        {"mode": "dense"},
        {"text": "x", "mode": "best"},
        {"text": "x", "k": -1},
        {"text": "x", "where": {"$x": 1}},
    ):
        with pytest.raises(InvalidInput):
            store.search(**bad)


# -- beside the embedded index ----------------------------------------------------------------------------------------


def compare_hits(left: Sequence[Hit], right: Sequence[Hit]) -> None:
    """The same documents with the same scores; those that are next to equal may be in another order."""
    assert {hit.id for hit in left} == {hit.id for hit in right}
    by_id = {hit.id: hit for hit in right}
    for hit in left:
        other = by_id[hit.id]
        assert (hit.text, hit.metadata) == (other.text, other.metadata)
        assert hit.scores == pytest.approx(other.scores, abs=2e-4)
        assert hit.score == pytest.approx(other.score, abs=2e-4)
    np.testing.assert_allclose([hit.score for hit in left], [hit.score for hit in right], atol=2e-4)


def test_hybrid_search_is_that_of_the_embedded_index(
    make_server_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    store = make_server_store()
    index = PEGIndex()
    alphabet = "花呗银行卡绑定借款理财还逾期的了是在有和不 abc"
    texts = ["".join(rng.choice(list(alphabet), size=rng.integers(0, 40))) for _ in range(300)]
    vectors = rng.normal(size=(300, 16))
    metas = [{"n": i % 10} for i in range(300)]
    kept = [text for i, text in enumerate(texts) if i % 7]
    average = np.mean([len(get_tokenizer("bigram").terms(text)) for text in kept])
    monkeypatch.setattr("peg_rag.stores.milvus.choose_average", lambda _: average)  # else that of the first write
    for target in (store, index):
        for start in range(0, 300, 37):
            rows = slice(start, start + 37)
            target.upsert([f"d{i}" for i in range(300)][rows], texts[rows], vectors[rows], metas[rows])
        target.delete([f"d{i}" for i in range(0, 300, 7)])
    for query in range(8):
        vector = rng.normal(size=16)
        text = "".join(rng.choice(list(alphabet), size=6))
        for options in ({}, {"where": {"n": {"$lt": 2}}}, {"fusion": "rrf"}, {"weights": {"dense": 1, "lexical": 3}}):
            for mode in ("dense", "lexical", "hybrid"):
                arguments: dict[str, Any] = {"k": 20, "mode": mode, "fetch_k": 50, **options}
                compare_hits(store.search(vector, text, **arguments), index.search(vector, text, **arguments))
        mmr = [[hit.id for hit in one.mmr(vector, k=10, where={"n": query})] for one in (store, index)]
        assert mmr[0] == mmr[1]


def test_filters_are_those_of_the_embedded_index(property_store: Store) -> None:
    store = property_store
    index = PEGIndex()

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(metadatas, min_size=5, max_size=20), st.lists(wheres, min_size=5, max_size=10))
    def compare_filters(documents: list[dict[str, Any]], filters: list[dict[str, Any]]) -> None:
        documents = [json.loads(dumps(document)) for document in documents]
        ids = [str(i) for i in range(len(documents))]
        for target in (store, index):
            target.delete(target.ids())  # clear() is slow in Milvus
            target.upsert(ids, ids, np.ones((len(ids), 2)), documents)
        for where in filters:
            assert store.ids(where) == index.ids(where), where
            assert store.count(where) == index.count(where)

    compare_filters()


IDS = [f"d{i}" for i in range(6)]
writes = st.one_of(
    st.tuples(
        st.just("upsert"),
        st.lists(st.tuples(st.sampled_from(IDS), st.text("花呗银行a ", max_size=5), st.integers(0, 3)), max_size=5),
    ),
    st.tuples(st.just("delete"), st.lists(st.sampled_from(IDS), max_size=3)),
    st.tuples(st.just("delete_where"), st.integers(0, 3)),
    st.tuples(st.just("persist"), st.none()),
    st.tuples(st.just("clear"), st.none()),
)


def apply_write(store: Store, name: str, argument: Any) -> None:
    match name:
        case "upsert":
            texts = [text for _, text, _ in argument]
            metas = [{"n": number} for _, _, number in argument]
            store.upsert([doc for doc, _, _ in argument], texts, LetterEncoder().encode_documents(texts), metas)
        case "delete":
            store.delete(argument)
        case "delete_where":
            store.delete(where={"n": argument})
        case _:
            getattr(store, name)()


def test_any_sequence_of_writes_leaves_the_same_documents(property_store: Store) -> None:
    store = property_store
    index = PEGIndex()

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(writes, min_size=2, max_size=8))
    def compare_states(sequence: list[tuple[str, Any]]) -> None:
        for target in (store, index):
            target.delete(target.ids())
            for name, argument in sequence:
                apply_write(target, name, argument)
        assert store.ids() == index.ids()
        assert len(store) == len(index)
        hit_lists = [one.search(text="花呗 银行a", mode="lexical") for one in (store, index)]
        assert {hit.id: hit.text for hit in hit_lists[0]} == {hit.id: hit.text for hit in hit_lists[1]}

    compare_states()


# -- URLs -------------------------------------------------------------------------------------------------------------


def test_urls_are_taken_apart() -> None:
    url = StoreUrl.parse("postgresql://me:s3cret@db:5433/rag?sslmode=require&collection=kb&x=a%2Fb+c")
    assert url.server == "postgresql://me:s3cret@db:5433/rag?sslmode=require&x=a%2Fb+c"
    assert url.collection == "kb"
    assert url.shown == "postgresql://db:5433/rag?collection=kb"
    assert StoreUrl.parse("postgresql:///rag").server == "postgresql:///rag"
    assert StoreUrl.parse("postgresql:///rag").collection == "peg_rag"


@pytest.mark.parametrize("name", ["", "1a", "A", 'a"; DROP TABLE x', "a-b", "x" * 41, "a%27"])
def test_collections_are_plain_names(name: str) -> None:
    with pytest.raises(InvalidInput, match="collection="):
        StoreUrl.parse(f"postgresql:///rag?collection={name}")


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="postgresql://"):
        open_store("redis://localhost/kb")
    with pytest.raises(InvalidInput, match="malformed"):
        open_store("postgresql://host:port/kb")


@pytest.mark.parametrize("password", ["s3/cret", "s3#cret", "s3?cret"])
def test_a_malformed_url_does_not_show_its_password(password: str) -> None:
    with pytest.raises(InvalidInput, match=r"malformed.*%23") as caught:
        StoreUrl.parse(f"postgresql://me:{password}@db/rag")
    assert "s3" not in str(caught.value)
    with pytest.raises(InvalidInput, match="malformed"):
        StoreUrl.parse("postgresql://db/rag?collection=kb#2")
