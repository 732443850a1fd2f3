"""Concurrent requests share batches and still get what they would get alone, whatever the others do."""

import asyncio
import gc
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHARACTERS, LetterEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from peg_rag import PEGEncoder, PEGIndex, Retriever
from peg_rag.cache import CachedEncoder
from peg_rag.errors import InvalidInput, PegRagError
from peg_rag.langchain import PEGEmbeddings, PEGRetriever, PEGVectorStore
from peg_rag.llama_index import PEGEmbedding
from peg_rag.microbatching import MicroBatcher

REPO = Path(__file__).resolve().parent.parent
QUERIES = [f"如何更换第{i}张银行卡" + "花" * (i % 7) for i in range(64)]
FLOAT32_TOLERANCE = 1e-5  # of a coordinate; other neighbours in a batch, other rounding


class HeldFunction:
    """Lengths of texts, (n, 1), once it is let go; fails on a text that says so."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.has_started = threading.Event()
        self.batches: list[list[str]] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.has_started.set()
        assert self.go.wait(30)
        self.batches.append(texts)
        if "fail" in texts:
            raise InvalidInput("a text says fail")
        return np.array([[len(text)] for text in texts], dtype=np.float32).reshape(len(texts), 1)


def make_batcher() -> MicroBatcher[Any]:
    return MicroBatcher(np.concatenate, batch_seconds=0.1, name="batcher under test")


def wait_for(go: threading.Event) -> Callable[[list[str]], NDArray[np.float32]]:
    """A batch function that occupies the thread until it may go."""

    def work(texts: list[str]) -> NDArray[np.float32]:
        assert go.wait(30)
        return np.zeros((len(texts), 1), dtype=np.float32)

    return work


def count_threads() -> int:
    return sum(thread.name.startswith("batcher under test") for thread in threading.enumerate())


@pytest.fixture
def busy() -> Any:
    """A batcher whose function is at work on a first request."""
    batcher = make_batcher()
    function = HeldFunction()
    batcher.submit(function, ["first"])
    assert function.has_started.wait(30)
    yield batcher, function
    function.go.set()
    batcher.close()


# -- the batcher ------------------------------------------------------------------------------------------------------


def test_requests_of_many_threads_share_a_batch(busy: Any) -> None:
    batcher, function = busy
    with ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(lambda n: batcher.submit(function, ["x" * n, "y"]), range(32)))
    function.go.set()
    for n, future in enumerate(futures):
        assert future.result(30).tolist() == [[n], [1]]
    assert [len(batch) for batch in function.batches] == [1, 64]


def test_two_threads_run_two_batches_at_a_time() -> None:
    batcher: MicroBatcher[Any] = MicroBatcher(np.concatenate, batch_seconds=0.1, threads=2, name="batcher under test")
    functions = [HeldFunction(), HeldFunction()]
    futures = [batcher.submit(function, [name]) for function, name in zip(functions, ("first", "last"), strict=True)]
    for function in functions:
        assert function.has_started.wait(30)
    for function in functions:
        function.go.set()
    assert [future.result(30).tolist() for future in futures] == [[[5]], [[4]]]
    batcher.close()
    assert count_threads() == 0


def test_slices_that_are_done_in_another_order_are_put_in_order() -> None:
    batcher: MicroBatcher[Any] = MicroBatcher(np.concatenate, batch_seconds=0.1, threads=2)
    batcher.rate = 1.0  # small batches
    overtaken = threading.Event()

    def work(texts: list[str]) -> np.ndarray:
        if "first" in texts:
            assert overtaken.wait(30)
        overtaken.set()
        return np.array([[len(text)] for text in texts])

    texts = ["first", *("y" * n for n in range(200))]
    assert batcher.submit(work, texts).result(60).ravel().tolist() == [len(text) for text in texts]
    batcher.close()


def test_cancelled_requests_are_not_computed(busy: Any) -> None:
    batcher, function = busy
    waiting = [batcher.submit(function, [name]) for name in ("kept", "gone", "last")]
    assert waiting[1].cancel()
    function.go.set()
    assert waiting[2].result(30).tolist() == [[4]]
    assert function.batches == [["first"], ["kept", "last"]]


def test_a_request_cancelled_while_its_batch_runs_does_not_disturb_the_batch() -> None:
    batcher = make_batcher()
    function = HeldFunction()
    first = batcher.submit(function, ["first"])
    assert function.has_started.wait(30)
    assert first.cancel()
    second = batcher.submit(function, ["second"])
    function.go.set()
    assert second.result(30).tolist() == [[6]]
    batcher.close()


def test_the_rest_of_a_large_request_is_dropped_when_it_is_cancelled(busy: Any) -> None:
    batcher, function = busy
    large: Future[Any] = batcher.submit(function, ["x" * 1_000] * 50)
    cancelled_after: list[int] = []

    def cancel_after_a_batch(texts: list[str]) -> np.ndarray:
        cancelled_after.append(len(function.batches))
        large.cancel()
        return np.zeros((len(texts), 1))

    other = batcher.submit(cancel_after_a_batch, ["other"])
    function.go.set()
    other.result(30)
    batcher.close()
    assert sum(map(len, function.batches)) < 51


@pytest.mark.parametrize("error", [InvalidInput("a text says fail"), MemoryError(), SystemExit(1)])
def test_an_error_reaches_only_the_request_at_fault(error: BaseException) -> None:
    batcher = make_batcher()
    go = threading.Event()

    def work(texts: list[str]) -> np.ndarray:
        assert go.wait(30)
        if "fail" in texts:
            raise error
        return np.array([[len(text)] for text in texts])

    futures = [batcher.submit(work, [text]) for text in ("first", "good", "fail", "other")]
    go.set()
    with pytest.raises(type(error)):
        futures.pop(2).result(30)
    assert [future.result(30).item() for future in futures] == [5, 4, 5]
    batcher.close()


def test_a_wrong_number_of_rows_is_an_error_and_never_a_mix_up() -> None:
    batcher = make_batcher()
    with pytest.raises(PegRagError, match="1 vectors for 2 texts"):
        batcher.submit(lambda texts: np.zeros((1, 2)), ["a", "b"]).result(30)
    batcher.close()


def test_rows_do_not_share_memory_with_those_of_others(busy: Any) -> None:
    batcher, function = busy
    futures = [batcher.submit(function, ["a"]) for _ in range(2)]
    function.go.set()
    rows = [future.result(30) for future in futures]
    assert all(each.base is None for each in rows)


def test_close_finishes_what_waits_ends_the_thread_and_refuses_more(busy: Any) -> None:
    batcher, function = busy
    waiting = [batcher.submit(function, ["x"]) for _ in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    function.go.set()
    closing.join(30)
    assert all(future.done() for future in waiting)
    assert count_threads() == 0
    with pytest.raises(PegRagError, match="closed"):
        batcher.submit(function, ["x"])
    batcher.close()


def test_a_batcher_that_is_dropped_takes_its_thread_along() -> None:
    batcher = make_batcher()
    batcher.submit(lambda texts: np.zeros((len(texts), 1)), ["a"]).result(30)
    dropped = weakref.ref(batcher)
    del batcher
    deadline = time.monotonic() + 30
    while (dropped() is not None or count_threads()) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert dropped() is None
    assert count_threads() == 0


def test_a_loop_that_ended_while_its_request_waited_does_not_stop_the_others(busy: Any) -> None:
    batcher, function = busy

    async def leave() -> None:
        asyncio.ensure_future(batcher.run(function, ["left behind"]))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(leave())
    other = batcher.submit(function, ["other"])
    function.go.set()
    assert other.result(30).tolist() == [[5]]
    assert function.batches == [["first"], ["other"]]


@settings(max_examples=30)
@given(
    requests=st.lists(st.lists(st.text("ab花", max_size=300), max_size=6), min_size=1, max_size=12),
    rate=st.sampled_from([0.0, 1.0, 1e9]),
    data=st.data(),
)
def test_every_request_gets_its_own_rows_in_its_own_order(requests: list[list[str]], rate: float, data: Any) -> None:
    letters = LetterEncoder()
    functions = [letters.encode_queries, letters.encode_documents]
    roles = data.draw(st.lists(st.sampled_from([0, 1]), min_size=len(requests), max_size=len(requests)))
    cancelled = data.draw(st.sets(st.integers(0, len(requests) - 1)))
    batcher = make_batcher()
    batcher.rate = rate
    held = HeldFunction()
    batcher.submit(held, ["first"])
    futures = [batcher.submit(functions[role], texts) for role, texts in zip(roles, requests, strict=True)]
    for i in cancelled:
        assert futures[i].cancel()
    held.go.set()
    for i, texts in enumerate(requests):
        if i not in cancelled:
            np.testing.assert_array_equal(futures[i].result(30), LetterEncoder()._encode(texts))
    batcher.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_a_queue_of_its_own(busy: Any) -> None:
    """The parent's thread is inside a batch, and its lock is held, when the child is made."""
    batcher, function = busy
    reads, writes = os.pipe()
    with batcher._lock:
        pid = os.fork()
    if pid == 0:
        rows = batcher.submit(lambda texts: np.array([[len(text)] for text in texts]), ["child"]).result(30)
        batcher.close()
        os.write(writes, json.dumps(rows.tolist()).encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as stream:
        assert json.load(stream) == [[5]]
    os.waitpid(pid, 0)
    parents = batcher.submit(function, ["parent"])
    function.go.set()
    assert parents.result(30).tolist() == [[6]]


# -- the encoder ------------------------------------------------------------------------------------------------------


def count_batches(encoder: PEGEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of each call of the encoder's backend, from now on."""
    backend = encoder._get_model()[1]
    sizes: list[int] = []
    embed = backend.embed

    def counting(token_ids: Any) -> Any:
        sizes.append(len(token_ids))
        return embed(token_ids)

    monkeypatch.setattr(backend, "embed", counting)
    return sizes


async def test_concurrent_queries_cost_few_batches(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PEGEncoder(tiny_bert, dtype="float32")
    alone = np.concatenate([encoder.encode_queries([query]) for query in QUERIES])
    sizes = count_batches(encoder, monkeypatch)
    go = threading.Event()
    encoder._batcher.submit(wait_for(go), ["busy"])
    tasks = [asyncio.create_task(encoder.aencode_queries([query])) for query in QUERIES]
    await asyncio.sleep(0)
    go.set()
    vectors = np.concatenate(await asyncio.gather(*tasks))
    np.testing.assert_allclose(vectors, alone, atol=FLOAT32_TOLERANCE)
    assert sum(sizes) == 64
    assert len(sizes) <= 4
    encoder.close()


@pytest.mark.parametrize("model", ["tiny_bert", "peg-mini"])
def test_several_loops_at_once_get_sequential_results(request: pytest.FixtureRequest, model: str) -> None:
    name = model if model == "peg-mini" else request.getfixturevalue(model)
    encoder = PEGEncoder(name, dtype="float32")
    rng = random.Random(0)
    texts = ["".join(rng.choices(CHARACTERS, k=rng.randint(1, 80))) for _ in range(200)]
    queries = encoder.encode_queries(texts)
    documents = encoder.encode_documents(texts)

    async def ask(seed: int) -> None:
        order = random.Random(seed).sample(range(len(texts)), 40)
        calls = [encoder.aencode_queries([texts[i]]) for i in order]
        calls += [encoder.aencode_documents([texts[i], texts[i - 1]]) for i in order]
        results = await asyncio.gather(*calls)
        tolerance = 0 if model == "peg-mini" else FLOAT32_TOLERANCE
        for i, query, pair in zip(order, results[:40], results[40:], strict=True):
            np.testing.assert_allclose(query, queries[[i]], rtol=0, atol=tolerance)
            np.testing.assert_allclose(pair, documents[[i, i - 1]], rtol=0, atol=tolerance)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: asyncio.run(ask(seed)), range(4)))
    encoder.close()


async def test_bad_calls_fail_alone_and_at_once() -> None:
    with PEGEncoder("peg-mini") as encoder:
        bad: list[Any] = [[" "], [None], "bare", ["好", ""]]
        outcomes: list[Any] = await asyncio.gather(
            *(encoder.aencode_queries(texts) for texts in [["花呗"], *bad, ["故宫"]]), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes[1:-1]] == [InvalidInput] * 4
        np.testing.assert_array_equal(np.concatenate(outcomes[::5]), encoder.encode_queries(["花呗", "故宫"]))
        assert (await encoder.aencode_queries([])).shape == (0, encoder.dimension)
        assert (await encoder.aencode_documents([""])).shape == (1, encoder.dimension)
        assert encoder.stats.blank == 1


async def test_close_while_calls_wait_answers_all_of_them(tiny_bert: Path) -> None:
    encoder = PEGEncoder(tiny_bert, dtype="float32")
    go = threading.Event()
    encoder._batcher.submit(wait_for(go), ["busy"])
    tasks = [asyncio.create_task(encoder.aencode_queries([query])) for query in QUERIES]
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(encoder.close))
    while not encoder._closed:
        await asyncio.sleep(0.01)
    go.set()
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    await closing
    assert all(isinstance(outcome, PegRagError) and "closed" in str(outcome) for outcome in outcomes)
    with pytest.raises(PegRagError, match="closed"):
        await encoder.aencode_queries(["花呗"])


async def test_an_encoder_is_pickled_and_dropped_as_before() -> None:
    encoder = PEGEncoder("peg-mini")
    vectors = await encoder.aencode_queries(["花呗"])
    copy = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(await copy.aencode_queries(["花呗"]), vectors)
    dropped = weakref.ref(copy)
    del copy
    deadline = time.monotonic() + 30
    while dropped() is not None and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert dropped() is None  # no garbage collection needed: the queue keeps no reference


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_an_encoder_works_in_a_forked_child() -> None:
    """In a process of its own: in this one the tests' other libraries have threads."""
    code = """
import asyncio, os
from peg_rag import PEGEncoder
encoder = PEGEncoder("peg-mini")
before = asyncio.run(encoder.aencode_queries(["花呗"]))
pid = os.fork()
after = asyncio.run(encoder.aencode_queries(["花呗"]))
assert (before == after).all()
encoder.close()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, timeout=120)


async def test_a_cached_encoder_shares_batches_too(tmp_path: Path) -> None:
    with CachedEncoder(PEGEncoder("peg-mini"), tmp_path / "vectors.db") as cached:
        calls = (cached.aencode_queries([query]) for query in QUERIES)
        vectors = np.concatenate(await asyncio.gather(*calls))
        np.testing.assert_array_equal(vectors, cached.encoder.encode_queries(QUERIES))
        assert (await cached.aencode_documents(["故宫"])).shape == (1, cached.dimension)
        assert cached.misses == 65


# -- the frameworks ---------------------------------------------------------------------------------------------------


class BusyEncoder(LetterEncoder):
    """Letters behind shared batches, whose thread is busy until told to go."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher = make_batcher()
        self.go = threading.Event()
        self.batcher.submit(wait_for(self.go), ["busy"])

    async def aencode_queries(self, texts: list[str]) -> Any:
        return await self.batcher.run(self.encode_queries, texts)

    async def aencode_documents(self, texts: list[str]) -> Any:
        return await self.batcher.run(self.encode_documents, texts)


@pytest.fixture
def busy_encoder() -> Any:
    encoder = BusyEncoder()
    yield encoder
    encoder.go.set()
    encoder.batcher.close()


async def gather_after_go(encoder: BusyEncoder, calls: list[Any]) -> list[Any]:
    tasks = [asyncio.create_task(call) for call in calls]
    for _ in range(50):  # LangChain's callbacks take a few turns of the loop
        await asyncio.sleep(0)
    encoder.calls.clear()
    encoder.go.set()
    return await asyncio.gather(*tasks)


async def test_the_embeddings_of_both_frameworks_share_batches(busy_encoder: BusyEncoder) -> None:
    langchain = PEGEmbeddings.from_encoder(busy_encoder)
    llama_index = PEGEmbedding.from_encoder(busy_encoder)
    texts = ["ab", "花呗", "c", "银行卡", "还", "款", "理财", "逾期"]
    calls = [
        langchain.aembed_query(texts[0]),
        langchain.aembed_queries(texts[1:2]),
        llama_index.aget_query_embedding(texts[2]),
        llama_index._aget_query_embedding(texts[3]),
        langchain.aembed_documents(texts[4:5]),
        llama_index.aget_text_embedding(texts[5]),
        llama_index.aget_text_embedding_batch(texts[6:7]),
        llama_index._aget_text_embeddings(texts[7:]),
    ]
    vectors = await gather_after_go(busy_encoder, calls)
    assert busy_encoder.calls == [("query", 4), ("document", 4)]
    flat = [vector[0] if isinstance(vector[0], list) else vector for vector in vectors]
    assert flat == busy_encoder._encode(texts).tolist()


async def test_concurrent_retrievals_are_encoded_together(busy_encoder: BusyEncoder) -> None:
    texts = ["花呗", "银行卡", "理财", "逾期"]
    store = PEGVectorStore.from_texts(texts, PEGEmbeddings.from_encoder(busy_encoder), ids=texts)
    retriever = PEGRetriever(vectorstore=store, k=1)
    plain = Retriever(store.index, busy_encoder, k=1)
    calls = [
        *(retriever.ainvoke(text) for text in texts),
        store.as_retriever(search_kwargs={"k": 1}).ainvoke("花呗"),
        store.as_retriever(search_type="hybrid", search_kwargs={"k": 1}).ainvoke("理财"),
        store.amax_marginal_relevance_search("逾期", k=1),
        plain.aretrieve("银行卡"),
    ]
    results = await gather_after_go(busy_encoder, calls)
    assert busy_encoder.calls == [("query", 8)]
    assert [hits[0].id for hits in results] == [*texts, "花呗", "理财", "逾期", "银行卡"]
    store.close()


async def test_an_async_retrieval_equals_the_plain_one() -> None:
    with PEGEncoder("peg-mini") as encoder:
        index = PEGIndex(identity=encoder.identity)
        texts = ["花呗可以更换银行卡", "故宫博物院周一闭馆", "差旅报销需要发票", "银行卡丢了先挂失"]
        index.upsert([str(i) for i in range(4)], texts, encoder.encode_documents(texts))
        retriever = Retriever(index, encoder, k=2)
        queries = ["怎么换银行卡", "周一开门吗"]
        for mode in ("dense", "lexical", "hybrid", "mmr"):
            assert await retriever.aretrieve_batch(queries, mode=mode) == retriever.retrieve_batch(queries, mode=mode)
        assert await retriever.aretrieve_batch([]) == []
        with pytest.raises(InvalidInput):
            await retriever.aretrieve(" ")
        index.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_64_concurrent_queries_are_nearly_as_fast_as_one_list() -> None:
    """How many times the sequential rate that is depends on the processor; benchmarks/results/concurrent_queries.md."""
    done = subprocess.run(
        [sys.executable, "benchmarks/concurrent_queries.py"], cwd=REPO, capture_output=True, text=True, encoding="utf-8"
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    transformer = done.stdout.partition("## peg-mini")[0]
    ratios = {row[1].strip(): float(row[3]) for row in map(split_row, transformer.splitlines()) if len(row) == 6}
    assert ratios["aencode_queries"] >= 0.8 * ratios["one list"]
    assert ratios["aencode_queries"] >= 2 * ratios["threads"]


def split_row(line: str) -> list[str]:
    """The cells of a table's row of numbers; nothing for other lines."""
    cells = line.split("|")
    return cells if len(cells) == 6 and cells[3].strip().replace(".", "").isdigit() else []
