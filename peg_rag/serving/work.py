"""Where requests meet the model: bounded lines of work that refuse early rather than grow without end.

`EmbeddingQueue` runs what many requests want embedded as one batch: while the model works on one batch the requests
that come in form the next, so there is no waiting timer and a lone request is never held up. Requests take turns by
slices, so a large one does not shut out the small. `Gate` bounds everything else that blocks (searches, writes).
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from peg_rag.retriever import Encoder
from peg_rag.serving.problems import Busy

Role = Literal["query", "document"]
T = TypeVar("T")

BATCH_SECONDS = 0.5  # a batch is as large as the model can do in this time
FIRST_BATCH_CHARACTERS = 4_096  # before anything was measured
MIN_BATCH_CHARACTERS = 1_024
MAX_BATCH_CHARACTERS = 65_536
_TURNS = 8  # slices in a full batch
_MEMORY = 0.8  # how much of the measured rate is kept when a new batch is measured


class TokenCounter(Protocol):
    """Counts tokens as the model sees them."""

    def count(self, texts: Sequence[str], role: Role) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors (n, dimension) of n texts, and the tokens they had together."""

    vectors: NDArray[np.float32]
    tokens: int


@dataclass(eq=False, slots=True)
class _Job:
    """One request's texts, how far they are embedded, and who waits for them."""

    texts: Sequence[str]
    role: Role
    done: "asyncio.Future[Embedded]"
    taken: int = 0
    parts: list[Embedded] = field(default_factory=list)

    def slice(self, characters: int) -> list[str]:
        """The next texts, up to that many characters but at least one."""
        start, size = self.taken, 0
        while self.taken < len(self.texts) and (self.taken == start or size + len(self.texts[self.taken]) < characters):
            size += len(self.texts[self.taken])
            self.taken += 1
        return list(self.texts[start : self.taken])

    def add(self, part: Embedded) -> None:
        self.parts.append(part)
        if sum(len(p.vectors) for p in self.parts) == len(self.texts) and not self.done.done():
            vectors = np.concatenate([p.vectors for p in self.parts])  # (texts, dimension)
            self.done.set_result(Embedded(vectors, sum(p.tokens for p in self.parts)))


class EmbeddingQueue:
    """Embeds the texts of concurrent requests in shared batches, one batch at a time, in a thread of its own.

    Args:
        max_characters: of texts waiting, together. An idle queue takes any request.
        max_wait_s: a request that would wait longer, at the rate of the last batches, is refused.
    """

    def __init__(
        self, encoder: Encoder, counter: TokenCounter, *, max_characters: int = 4_000_000, max_wait_s: float = 30.0
    ) -> None:
        self._encoder, self._counter = encoder, counter
        self._max_characters, self._max_wait_s = max_characters, max_wait_s
        self._thread = ThreadPoolExecutor(1, "embed")
        self._jobs: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._worker: asyncio.Task[None] | None = None
        self._rate = 0.0  # characters per second; 0 until a batch was large enough to measure
        self.characters = 0  # waiting or being embedded

    def start(self) -> None:
        """Begin to work, on the running event loop."""
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Finish what is queued, then stop."""
        self._closing = True
        self._wake.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def embed(self, texts: Sequence[str], role: Role) -> Embedded:
        """Vectors of the texts, in their order.

        Raises:
            Busy: too much is waiting already.
            PegRagError: what the encoder raises on these texts.
        """
        characters = sum(map(len, texts)) + len(texts)
        self._admit(characters)
        job = _Job(texts, role, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self.characters += characters
        self._wake.set()
        try:
            return await job.done
        finally:
            self.characters -= characters

    def _admit(self, characters: int) -> None:
        wait_s = self.characters / self._rate if self._rate else 0.0
        full = self.characters > 0 and self.characters + characters > self._max_characters
        if self._closing or full or wait_s > self._max_wait_s:
            raise Busy("too many texts are waiting to be embedded; try again later", max(1.0, wait_s / 2))

    async def _work(self) -> None:
        while True:
            parts = self._take()
            if parts:
                await self._embed(parts)
            elif self._closing:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    def _take(self) -> list[tuple[_Job, list[str]]]:
        """The next batch: requests of one role take turns, oldest first, a slice at a time, until it is full."""
        batch = self._batch_characters()
        taken: list[tuple[_Job, list[str]]] = []
        others: list[_Job] = []
        size = 0
        while self._jobs and size < batch:
            job = self._jobs.popleft()
            if job.done.done():  # nobody waits any more
                continue
            if taken and job.role != taken[0][0].role:
                others.append(job)
                continue
            texts = job.slice(batch // _TURNS)
            size += sum(map(len, texts)) + len(texts)
            taken.append((job, texts))
            if job.taken < len(job.texts):
                self._jobs.append(job)
        self._jobs.extendleft(reversed(others))
        return taken

    def _batch_characters(self) -> int:
        """What the model does in `BATCH_SECONDS`, so that nobody waits long for a turn, however slow the model is."""
        expected = int(self._rate * BATCH_SECONDS) if self._rate else FIRST_BATCH_CHARACTERS
        return min(max(expected, MIN_BATCH_CHARACTERS), MAX_BATCH_CHARACTERS)

    async def _embed(self, parts: list[tuple[_Job, list[str]]]) -> None:
        texts = [text for _, some in parts for text in some]
        started = time.perf_counter()
        try:
            whole = self._thread.submit(self._run, texts, parts[0][0].role)
            vectors, tokens = await asyncio.wrap_future(whole)
        except Exception as error:
            await self._apart(parts, error)
            return
        self._measure(sum(map(len, texts)) + len(texts), time.perf_counter() - started)
        start = 0
        for job, some in parts:
            stop = start + len(some)
            job.add(Embedded(vectors[start:stop], sum(tokens[start:stop])))
            start = stop

    def _measure(self, characters: int, seconds: float) -> None:
        """Learn the rate. A small batch says nothing of it: most of its time is not the texts'."""
        if characters >= MIN_BATCH_CHARACTERS:
            rate = characters / max(1e-6, seconds)
            self._rate = _MEMORY * self._rate + (1 - _MEMORY) * rate if self._rate else rate

    async def _apart(self, parts: list[tuple[_Job, list[str]]], error: Exception) -> None:
        """A batch failed: run its requests one by one, so that only the one at fault hears of it."""
        if len(parts) > 1:
            for part in parts:
                await self._embed([part])
        elif not parts[0][0].done.done():
            parts[0][0].done.set_exception(error)

    def _run(self, texts: list[str], role: Role) -> tuple[NDArray[np.float32], list[int]]:
        encode = self._encoder.encode_queries if role == "query" else self._encoder.encode_documents
        return encode(texts), self._counter.count(texts, role)


class Gate:
    """Runs blocking calls in a few threads, with a bounded line before them.

    Args:
        waiting: calls in the line; one more is refused.
        max_wait_s: a call that comes out of the line later than this is refused then.
    """

    def __init__(self, name: str, threads: int, waiting: int, *, max_wait_s: float = math.inf) -> None:
        self.name = name
        self._max_wait_s = max_wait_s
        self._threads = ThreadPoolExecutor(threads, name)
        self._most = threads + waiting
        self.pending = 0  # running or in line

    async def run(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        """The function's result. A call that is cancelled while it runs keeps its place until it ends.

        Raises:
            Busy: the line is full, or too slow.
        """
        if self.pending >= self._most:
            raise self._too_many()
        loop = asyncio.get_running_loop()
        latest = time.monotonic() + self._max_wait_s

        def start() -> T:
            if time.monotonic() > latest:
                raise self._too_many()
            return function(*args, **kwargs)

        self.pending += 1
        call: Future[T] = self._threads.submit(start)
        call.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        return await asyncio.wrap_future(call)

    def _too_many(self) -> Busy:
        return Busy(f"too many requests are waiting ({self.name}); try again later")

    def _leave(self) -> None:
        self.pending -= 1

    def close(self) -> None:
        """Wait for what runs; drop what is in line."""
        self._threads.shutdown(cancel_futures=True)
