"""Unit tests of the server: file names, keys, the embedding queue, worker pools, the middleware."""

import asyncio
import threading
import unicodedata
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import LetterEncoder
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peg_rag import PEGIndex, Retriever
from peg_rag.errors import InvalidInput
from peg_rag.hits import Hit
from peg_rag.microbatching import MAX_BATCH_CHARACTERS
from peg_rag.serving.errors import Busy
from peg_rag.serving.filenames import MAX_BYTES, sanitize_filename
from peg_rag.serving.keys import ApiKeys
from peg_rag.serving.limits import queues
from peg_rag.serving.limits.middleware import LimitsMiddleware, Load
from peg_rag.serving.limits.queues import EmbeddingQueue, Embeddings, InputType, WorkerPool
from peg_rag.serving.metrics import Metrics
from peg_rag.serving.settings import ServerSettings
from peg_rag.serving.state import search_knowledge

KEYS = ["first-key-0123456789", "second-key-0123456789"]


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("手册.pdf", "手册.pdf"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\windows\\win.ini", "win.ini"),
        ("/etc/cron.d/x.txt", "x.txt"),
        ("..", "document"),
        ("", "document"),
        (".profile", "profile"),
        ("a\x00b\r\n.txt", "ab.txt"),
        ("invoice\u202efdp.txt", "invoicefdp.txt"),
        ("CON.txt", "_CON.txt"),
        ("a  b?.md", "a_b.md"),
    ],
)
def test_file_names_are_sanitized(given: str, safe: str) -> None:
    assert sanitize_filename(given) == safe


@given(st.text(max_size=400) | st.text("./\\ .\u202e\x00é\u0301a名", max_size=400))
def test_sanitized_names_stay_in_their_folder_and_are_stable(name: str) -> None:
    safe = sanitize_filename(name)
    assert safe == sanitize_filename(safe)
    assert not set(safe) & set('/\\\0:*?"<>|\n')
    assert not safe.startswith(".")
    assert 1 <= len(safe.encode()) <= MAX_BYTES
    assert unicodedata.is_normalized("NFC", safe)


# -- keys -------------------------------------------------------------------------------------------------------------


def test_only_whole_keys_are_accepted_and_digests_stored() -> None:
    keys = ApiKeys(KEYS)
    assert all(map(keys.accept, KEYS))
    for wrong in ("", KEYS[0][:-1], KEYS[0] + "x", KEYS[0].upper(), "鍵", "\ud800"):
        assert not keys.accept(wrong)
    assert not any(key in repr(vars(keys)) for key in KEYS)
    assert not ApiKeys().accept("")


def test_every_key_is_compared_for_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """No early end: the time of an answer says nothing about which key, if any, was near."""
    import hmac

    compared: list[bool] = []
    plain = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(one) == len(other))
        return plain(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = ApiKeys(KEYS)
    for presented in (*KEYS, "wrong"):
        compared.clear()
        keys.accept(presented)
        assert compared == [True, True]


def test_keys_come_from_the_environment_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEG_RAG_API_KEYS", f" {KEYS[0]} ,")
    file = tmp_path / "keys"
    file.write_text(f"# for the page\n\n{KEYS[1]}\n")
    assert all(map(ApiKeys.load(file).accept, KEYS))
    monkeypatch.delenv("PEG_RAG_API_KEYS")
    assert not ApiKeys.load()


@pytest.mark.parametrize("key", ["short", "has a space 0123456789", "钥匙钥匙钥匙钥匙钥匙钥匙钥匙钥匙"])
def test_unusable_keys_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="at least 16"):
        ApiKeys([key])
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(InvalidInput, match="holds no key"):
        ApiKeys.load(tmp_path / "empty")
    with pytest.raises(InvalidInput, match="cannot be read"):
        ApiKeys.load(tmp_path / "missing")


# -- the embedding queue ----------------------------------------------------------------------------------------------


class Lengths:
    """Counts a token for each character."""

    def count(self, texts: Sequence[str], role: str) -> list[int]:
        return [len(text) for text in texts]


class Held:
    """An encoder that waits to be let go, and fails on a text that says so."""

    def __init__(self, letters: LetterEncoder) -> None:
        self.letters = letters
        self.go = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[str]] = []

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
        self.started.set()
        assert self.go.wait(10)
        self.batches.append(list(texts))
        if "fail" in texts:
            raise InvalidInput("a text says fail")
        return self.letters.encode_documents(texts)

    encode_queries = encode_documents


@pytest.fixture
async def held(letters: LetterEncoder) -> AsyncIterator[tuple[Held, EmbeddingQueue]]:
    encoder = Held(letters)
    queue = EmbeddingQueue(encoder, Lengths(), max_characters=10_000)
    yield encoder, queue
    encoder.go.set()
    await queue.close()


async def occupied(encoder: Held, queue: EmbeddingQueue) -> asyncio.Task[Embeddings]:
    """A first request that the encoder is busy with."""
    first = asyncio.create_task(queue.embed(["first"], "document"))
    await asyncio.to_thread(encoder.started.wait, 10)
    return first


async def test_concurrent_searches_share_a_batch(held: tuple[Held, EmbeddingQueue]) -> None:
    encoder, queue = held
    index = PEGIndex(identity=encoder.letters.identity)
    index.upsert(["a", "b"], ["abc", "xyz"], encoder.letters.encode_documents(["abc", "xyz"]))
    knowledge = SimpleNamespace(
        search=lambda query, *, mode, k, vectors: Retriever(index, encoder.letters, None).retrieve_batch(
            [query], k=k, mode=mode, vectors=vectors
        )[0]
    )
    pool = WorkerPool("searches", 2, 100)
    state = SimpleNamespace(embedding_queue=queue, searches=pool)

    def search(query: str, mode: str = "hybrid") -> asyncio.Task[list[Hit]]:
        return asyncio.create_task(search_knowledge(state, knowledge, query, mode=mode, k=1))  # type: ignore[arg-type]

    first = search("ab")
    await asyncio.to_thread(encoder.started.wait, 10)
    others = [search("xy") for _ in range(20)]
    lexical = await search("abc", "lexical")  # needs no vector
    encoder.go.set()
    assert [hit.id for hit in await first + lexical] == ["a", "a"]
    assert {hits[0].id for hits in await asyncio.gather(*others)} == {"b"}
    assert encoder.batches == [["ab"], ["xy"] * 20]
    pool.close()


async def test_waiting_requests_share_a_batch_and_get_their_own_vectors(
    held: tuple[Held, EmbeddingQueue], letters: LetterEncoder
) -> None:
    encoder, queue = held
    first = await occupied(encoder, queue)
    texts = [[f"{'abc'[i % 3] * (i + 1)}", "b" * i] for i in range(20)]
    waiting = [asyncio.create_task(queue.embed(some, "document")) for some in texts]
    await asyncio.sleep(0)
    encoder.go.set()
    for some, embedded in zip(texts, await asyncio.gather(*waiting), strict=True):
        np.testing.assert_array_equal(embedded.vectors, letters.encode_documents(some))
        assert embedded.tokens == sum(map(len, some))
    await first
    assert [len(batch) for batch in encoder.batches] == [1, 40]
    assert queue.characters == 0


async def test_queries_and_documents_are_not_mixed(held: tuple[Held, EmbeddingQueue]) -> None:
    encoder, queue = held
    first = await occupied(encoder, queue)
    roles: list[InputType] = ["query", "document", "query", "document"]
    waiting = [asyncio.create_task(queue.embed([role], role)) for role in roles]
    await asyncio.sleep(0)
    encoder.go.set()
    await asyncio.gather(first, *waiting)
    assert encoder.batches[1:] == [["query", "query"], ["document", "document"]]


async def test_a_failing_request_fails_alone(held: tuple[Held, EmbeddingQueue]) -> None:
    encoder, queue = held
    first = await occupied(encoder, queue)
    good, bad, other = (asyncio.create_task(queue.embed([text], "document")) for text in ("good", "fail", "other"))
    await asyncio.sleep(0)
    encoder.go.set()
    await asyncio.gather(first, good, other)
    with pytest.raises(InvalidInput, match="says fail"):
        await bad


async def test_a_large_request_does_not_starve_a_small_one(letters: LetterEncoder) -> None:
    encoder = Held(letters)
    queue = EmbeddingQueue(encoder, Lengths())
    first = await occupied(encoder, queue)
    large = asyncio.create_task(queue.embed(["a" * 1000] * 100, "document"))
    small = asyncio.create_task(queue.embed(["small"], "document"))
    await asyncio.sleep(0)
    encoder.go.set()
    await small
    assert len((await large).vectors) == 100
    await first
    assert "small" in encoder.batches[1]
    assert len(encoder.batches) > 2
    assert all(sum(map(len, batch)) <= 1.25 * MAX_BATCH_CHARACTERS for batch in encoder.batches)
    await queue.close()


async def test_a_slow_model_gets_small_batches_and_a_fast_one_large(held: tuple[Held, EmbeddingQueue]) -> None:
    encoder, queue = held
    encoder.go.set()
    for rate, texts in ((100, 102), (10_000, 500), (10**9, 1_000)):
        encoder.batches.clear()
        queue._batcher.rate = rate  # characters per second, as if measured; half a second's worth makes a batch
        job = await queue.embed(["abcdefghi"] * 1_000, "document")  # ten characters each, as they are counted
        assert texts <= len(encoder.batches[0]) <= 1.25 * texts
        assert len(job.vectors) == 1_000


async def test_a_full_queue_refuses_and_an_idle_one_accepts_anything(held: tuple[Held, EmbeddingQueue]) -> None:
    encoder, queue = held
    first = await occupied(encoder, queue)
    with pytest.raises(Busy) as refused:
        await queue.embed(["x" * 10_000], "document")
    assert refused.value.status == 429
    assert (refused.value.retry_after_s or 0) >= 1
    encoder.go.set()
    await first
    assert len((await queue.embed(["x" * 20_000], "document")).vectors) == 1


async def test_a_request_that_would_wait_too_long_is_refused(held: tuple[Held, EmbeddingQueue]) -> None:
    encoder, queue = held
    first = await occupied(encoder, queue)
    queue._batcher.rate = 0.1  # characters per second, as if measured
    with pytest.raises(Busy) as refused:
        await queue.embed(["x"], "document")
    assert refused.value.retry_after_s == pytest.approx(6 / 0.1 / 2)
    encoder.go.set()
    await first


async def test_a_question_is_not_refused_while_a_client_embeds_a_corpus(held: tuple[Held, EmbeddingQueue]) -> None:
    encoder, queue = held
    queue._batcher.rate = 1_000  # characters per second, as if measured
    corpus = asyncio.create_task(queue.embed(["x" * 999] * 200, "document"))  # 200 seconds; an idle queue accepts it
    await asyncio.to_thread(encoder.started.wait, 10)
    with pytest.raises(Busy):
        await queue.embed(["x" * 999] * 200, "document")
    question = asyncio.create_task(queue.embed(["年假几天"], "query"))
    await asyncio.sleep(0)
    encoder.go.set()
    assert len((await question).vectors) == 1
    await corpus
    assert encoder.batches.index(["年假几天"]) < len(encoder.batches) - 1  # the corpus went on after it
    assert queue.characters == 0


async def test_cancelled_requests_are_not_embedded(held: tuple[Held, EmbeddingQueue]) -> None:
    encoder, queue = held
    first = await occupied(encoder, queue)
    gone = asyncio.create_task(queue.embed(["gone"], "document"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    encoder.go.set()
    await first
    await queue.embed(["last"], "document")
    assert encoder.batches == [["first"], ["last"]]


async def test_closing_finishes_queued_requests(held: tuple[Held, EmbeddingQueue]) -> None:
    encoder, queue = held
    first = await occupied(encoder, queue)
    second = asyncio.create_task(queue.embed(["second"], "document"))
    await asyncio.sleep(0)
    encoder.go.set()
    await queue.close()
    assert first.done()
    assert second.done()
    with pytest.raises(Busy):
        await queue.embed(["third"], "document")


# -- worker pools -----------------------------------------------------------------------------------------------------


async def test_a_full_pool_refuses_calls_and_counts_cancelled_calls_until_they_end() -> None:
    pool = WorkerPool("tests", threads=1, max_waiting=1)
    release = threading.Event()
    running = asyncio.create_task(pool.run(release.wait, 10))
    waiting = asyncio.create_task(pool.run(len, "abc"))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await pool.run(len, "")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert pool.pending == 2  # the cancelled call still occupies its thread
    release.set()
    assert await waiting == 3
    assert pool.pending == 0  # a slot is released before the caller gets its result
    pool.close()


async def test_a_call_that_waited_too_long_is_refused_when_its_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: SimpleNamespace = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(queues, "time", clock)
    pool = WorkerPool("tests", threads=1, max_waiting=2, max_wait_s=5)
    has_started = threading.Event()
    release = threading.Event()
    calls: list[int] = []

    def hold() -> bool:
        has_started.set()
        return release.wait(10)

    first = asyncio.create_task(pool.run(hold))
    assert await asyncio.to_thread(has_started.wait, 10)
    late = asyncio.create_task(pool.run(calls.append, 1))
    await asyncio.sleep(0)
    clock.now = 6.0
    release.set()
    assert await first
    with pytest.raises(Busy):
        await late
    assert not calls
    await pool.run(calls.append, 2)
    assert calls == [2]
    pool.close()


# -- the middleware ---------------------------------------------------------------------------------------------------


async def answer(
    app: ASGIApp,
    settings: ServerSettings | None = None,
    load: Load | None = None,
    body: Sequence[bytes] = (b"",),
    delay_s: float = 0.0,
    path: str = "/x",
) -> tuple[int, dict[str, str], bytes]:
    """Run one request through the middleware; (status, headers, body)."""
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": i + 1 < len(body)} for i, part in enumerate(body)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(delay_s)
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    middleware = LimitsMiddleware(app, settings or ServerSettings(), Metrics(), load or Load())
    await middleware({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("a secret text")


async def sleeps(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(10)


async def test_responses_carry_an_id_and_the_security_headers() -> None:
    status, headers, body = await answer(reads_all)
    assert (status, body) == (200, b"ok")
    assert len(headers["x-request-id"]) == 16
    assert "default-src 'none'" in headers["Content-Security-Policy".lower()]
    assert headers["x-content-type-options"] == "nosniff"


async def test_too_many_requests_at_once_are_refused_but_not_health_checks() -> None:
    settings, load = ServerSettings(max_in_flight=1), Load(in_flight=1)
    status, headers, _ = await answer(reads_all, settings, load)
    assert (status, headers["retry-after"]) == (429, "1")
    assert (await answer(reads_all, settings, load, path="/health/live"))[0] == 200
    assert (load.in_flight, load.held_bytes) == (1, 0)


async def test_the_total_size_of_request_bodies_is_limited() -> None:
    settings, load = ServerSettings(max_held_bytes=10), Load(held_bytes=6)
    assert (await answer(reads_all, settings, load, [b"abcd"]))[0] == 200
    assert (await answer(reads_all, settings, load, [b"abcd", b"e"]))[0] == 429
    assert load.held_bytes == 6


async def test_a_slow_body_times_out() -> None:
    settings = ServerSettings(body_timeout_s=0.2)
    status, headers, _ = await answer(reads_all, settings, body=[b"a"] * 100, delay_s=0.02)
    assert (status, headers["connection"]) == (408, "close")
    assert (await answer(reads_all, settings, delay_s=1))[0] == 408


async def test_a_slow_request_times_out() -> None:
    status, headers, _ = await answer(sleeps, ServerSettings(request_timeout_s=0.05))
    assert status == 503
    assert headers["retry-after"]


async def test_unexpected_errors_are_logged_without_their_message(caplog: pytest.LogCaptureFixture) -> None:
    status, headers, body = await answer(breaks)
    assert status == 500
    assert headers["x-request-id"].encode() in body
    assert b"secret" not in body
    fields = next(vars(record)["fields"] for record in caplog.records if record.message == "unexpected error")
    assert fields["error"] == "RuntimeError"
    assert "secret" not in str(fields)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "there is no store"),
        (["--private"], "needs a key"),
        (["--key-file", "nowhere"], "cannot be read"),
    ],
)
def test_invalid_options_are_refused_before_a_model_is_loaded(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peg_rag.cli.app import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PEG_RAG_API_KEYS", raising=False)
    monkeypatch.setenv("PEG_RAG_MODEL", "no-such/model")
    assert run(["serve", *arguments]) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())
