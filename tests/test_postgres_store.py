"""What only PostgreSQL has: segments and tombstones, writers side by side, an HNSW index, a server that may die."""

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from postgres_server import NO_SERVER, PostgresServer, find_binaries
from store_fixtures import make_folder, postgres  # noqa: F401

from peg_rag import PEGIndex
from peg_rag.errors import InvalidInput, StoreError
from peg_rag.stores import postgres as module
from peg_rag.stores.postgres import PostgresStore

_numbers = itertools.count()
OpenStore = Callable[..., PostgresStore]
WORDS = ["花呗", "银行卡", "逾期", "还款", "理财", "abc"]


@pytest.fixture
def open_stores(postgres: PostgresServer) -> Iterator[OpenStore]:  # noqa: F811
    """Opens the same store any number of times."""
    url = postgres.url(f"own_{next(_numbers)}")
    stores: list[PostgresStore] = []

    def make(**options: Any) -> PostgresStore:
        stores.append(PostgresStore(url, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def fetch(store: PostgresStore, sql: str) -> list[Any]:
    with store._pool.connection() as connection:
        return connection.execute(sql.format(name=store._name)).fetchall()


def write(store: Any, number: int, version: int = 0) -> None:
    rng = np.random.default_rng([number, version])
    text = "".join(rng.choice(WORDS, size=5)) + f" v{version}"
    store.upsert([f"d{number}"], [text], rng.normal(size=(1, 8)), [{"n": number, "v": version}])


def compare_lexical(store: PostgresStore, index: PEGIndex) -> None:
    for query in (*WORDS, "银行卡还款逾期"):
        hits = store.search(text=query, k=1000, mode="lexical")
        expected = index.search(text=query, k=1000, mode="lexical")
        assert {hit.id: pytest.approx(hit.score, abs=1e-4) for hit in hits} == {hit.id: hit.score for hit in expected}


def test_many_small_writes_stay_a_few_segments(open_stores: OpenStore) -> None:
    store = open_stores()
    index = PEGIndex()
    for number in range(3 * module.SEGMENTS):
        for target in (store, index):
            write(target, number)
    segments = fetch(store, "SELECT segment, documents FROM {name}_segments")
    assert len(segments) < module.SEGMENTS
    assert sum(documents for _, documents in segments) == len(index)
    assert fetch(store, "SELECT count(DISTINCT segment) FROM {name}_postings") == [(len(segments),)]
    compare_lexical(store, index)


def test_entries_of_deleted_documents_are_dropped(open_stores: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_DEAD", 10)
    store = open_stores()
    index = PEGIndex()
    for version in range(4):
        for number in range(10):
            for target in (store, index):
                write(target, number, version)
    (tombstones,) = fetch(store, "SELECT count(*) FROM {name}_tombstones")[0]
    assert tombstones <= 10 + 1
    assert len(store) == len(index) == 10
    compare_lexical(store, index)
    store.persist()
    assert fetch(store, "SELECT count(*) FROM {name}_tombstones") == [(0,)]
    assert fetch(store, "SELECT count(*) FROM {name}_segments") == [(1,)]
    ((entry_bytes,),) = fetch(store, "SELECT sum(length(entries)) FROM {name}_postings")
    fresh = open_stores()
    fresh.clear()
    for number in range(10):
        write(fresh, number, 3)
    fresh.persist()
    assert fetch(fresh, "SELECT sum(length(entries)) FROM {name}_postings") == [(entry_bytes,)]
    compare_lexical(fresh, index)


def test_long_words_and_ids(open_stores: OpenStore) -> None:
    store = open_stores()
    word = "a" * 10_000
    store.upsert(["x" * module.MAX_ID_BYTES], [f"{word} 花呗"], [[1.0, 0.0]])
    assert [len(hit.id) for hit in store.search(text=word)] == [module.MAX_ID_BYTES]
    assert store.search(text="a" * 9_999) == []
    with pytest.raises(InvalidInput, match="id 1 is longer than"):
        store.upsert(["y", "字" * 700], ["", ""], np.eye(2))
    assert len(store) == 1


def test_writers_of_the_same_documents_do_not_lose_any(open_stores: OpenStore) -> None:
    stores = [open_stores() for _ in range(4)]

    def work(writer: int) -> None:
        rng = np.random.default_rng(writer)
        for version in range(12):
            numbers = rng.permutation(6)[:3].tolist()
            texts = [f"银行{number} w{writer}v{version}" for number in numbers]
            stores[writer].upsert([f"d{number}" for number in numbers], texts, rng.normal(size=(3, 8)))
            if version == 6:
                stores[writer].persist()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    store = stores[0]
    assert sorted(store.ids()) == [f"d{number}" for number in range(6)]
    assert len(store) == 6
    for record in store.get(where={}):
        assert record.id in {hit.id for hit in store.search(text=record.text.split()[1])}
    assert len(store.search(text="银行", k=100, mode="lexical")) == 6
    totals = fetch(store, "SELECT sum(length) FROM {name}_documents")
    with store._open_view({}) as view:
        assert view.read_totals() == (6, totals[0][0])


def test_a_clear_beside_writers_leaves_whole_documents(open_stores: OpenStore) -> None:
    writer = open_stores()
    cleaner = open_stores()
    is_done = threading.Event()

    def write_on() -> None:
        for number in range(60):
            write(writer, number % 7, number)
        is_done.set()

    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(write_on)
        while not is_done.is_set():
            cleaner.clear()
        future.result()
    index = PEGIndex()
    for batch in cleaner.export():
        index.upsert(batch.ids, batch.texts, batch.vectors, batch.metadatas)
    compare_lexical(cleaner, index)
    assert len(cleaner) == len(index)


class Recorder:
    """A connection that remembers what it was told to execute."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.statements: list[tuple[str, Any]] = []

    def execute(self, sql: str, parameters: Any = None, **options: Any) -> Any:
        self.statements.append((sql, parameters))
        return self.connection.execute(sql, parameters, **options)


def test_an_index_in_graph_form_finds_behind_a_rare_filter(open_stores: OpenStore) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2000, 16)).astype(np.float32)
    ids = [str(i) for i in range(2000)]
    exact = open_stores()
    exact.upsert(ids, ids, vectors, [{"n": i % 100} for i in range(2000)])
    expected = [[hit.id for hit in exact.search(vector)] for vector in vectors[:20]]
    store = open_stores(kind="hnsw")
    store.persist()
    assert (store.kind, open_stores().kind) == ("hnsw", "hnsw")
    assert fetch(store, "SELECT count(*) FROM pg_indexes WHERE indexname = '{name}_vectors'") == [(1,)]
    for where in ({}, {"n": 7}):
        with store._open_view(where) as view:
            recorder: Any = Recorder(view.connection)
            replace(view, connection=recorder).rank_dense(vectors[0], 10)
            sql, parameters = recorder.statements[-1]
            view.connection.execute("SET LOCAL enable_seqscan = off")  # which is cheap for so few documents
            view.connection.execute("SET LOCAL enable_bitmapscan = off")
            plan = view.connection.execute(f"EXPLAIN {sql}", parameters).fetchall()
        assert any(f"{store._name}_vectors" in line for (line,) in plan), plan
    results = [[hit.id for hit in store.search(vector)] for vector in vectors[:20]]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(results, expected, strict=True)])
    assert recall > 0.9
    assert [hit.metadata["n"] for hit in store.search(vectors[0], where={"n": 7})] == [7] * 10
    back = open_stores(kind="flat")
    back.persist()
    assert open_stores().kind == "flat"
    assert [[hit.id for hit in back.search(vector)] for vector in vectors[:20]] == expected


def test_a_graph_has_its_limit(open_stores: OpenStore) -> None:
    with pytest.raises(InvalidInput, match="PostgreSQL has flat, hnsw"):
        open_stores(kind="ivfpq")
    store = open_stores(kind="hnsw")
    store.upsert(["a"], ["花呗"], np.ones((1, 2001)))
    with pytest.raises(InvalidInput, match="2,000 dimensions"):
        store.persist()
    assert open_stores().kind == "hnsw"
    assert [hit.id for hit in store.search(np.ones(2001))] == ["a"]


def test_no_password_in_errors() -> None:
    pytest.importorskip("psycopg_pool")
    with pytest.raises(StoreError) as caught:
        PostgresStore("postgresql://peg:s3cret@127.0.0.1:1/rag?collection=kb", timeout_s=1)
    assert "postgresql://127.0.0.1:1/rag?collection=kb" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.slow
def test_a_killed_server_loses_nothing_acknowledged() -> None:
    pytest.importorskip("psycopg_pool")
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(NO_SERVER)
    folder = make_folder()
    server = PostgresServer(binaries, folder, sync=True)
    server.start()
    try:
        with PostgresStore(server.url("kb"), timeout_s=10) as store:
            check_kills(server, store)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def check_kills(server: PostgresServer, store: PostgresStore) -> None:
    acknowledged: dict[str, int] = {}
    attempted: dict[str, int] = {}
    failures: list[StoreError] = []
    is_stopping = threading.Event()

    def write_on() -> None:
        version = 1
        while not is_stopping.is_set():
            number = version % 50
            attempted[f"d{number}"] = version
            try:
                write(store, number, version)
                acknowledged[f"d{number}"] = version
            except StoreError as error:
                failures.append(error)
            version += 1

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        for _ in range(5):
            is_stopping.wait(3.0)
            server.kill()
            server.start()
        is_stopping.wait(3.0)
    finally:
        is_stopping.set()
        writer.join()
    assert failures
    assert len(acknowledged) == 50
    records = {record.id: record.metadata["v"] for record in store.get(where={})}
    for name, version in acknowledged.items():
        assert version <= records[name] <= attempted[name]
    index = PEGIndex()
    for batch in store.export():
        index.upsert(batch.ids, batch.texts, batch.vectors, batch.metadatas)
    compare_lexical(store, index)
