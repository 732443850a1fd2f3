"""Bounded queues in front of blocking work, which refuse requests early instead of growing without limit.

`EmbeddingQueue` embeds the texts of concurrent requests in shared batches: while the model works on one batch, the
requests that arrive form the next, so no timer is needed and a lone request never waits. Requests take turns, a slice
of their texts at a time, so a large request does not starve small ones. `WorkerPool` bounds all other blocking work
(searches, writes, conversions).
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
from peg_rag.serving.errors import Busy

InputType = Literal["document", "query"]
T = TypeVar("T")

BATCH_SECONDS = 0.5  # a batch is as large as the model can process in this time
FIRST_BATCH_CHARACTERS = 4_096  # before the rate was measured
MIN_BATCH_CHARACTERS = 1_024
MAX_BATCH_CHARACTERS = 65_536
_SLICES_PER_BATCH = 8
_RATE_MEMORY = 0.8  # weight of the earlier rate in the moving average


class TokenCounter(Protocol):
    """Counts the tokens of texts as the model sees them."""

    def count(self, texts: Sequence[str], input_type: InputType) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors, (n, dimension), of n texts, and the sum of their tokens."""

    vectors: NDArray[np.float32]
    tokens: int


@dataclass(eq=False, slots=True)
class _Job:
    """The texts of one request, how many of them are in a batch already, and the future of the result."""

    texts: Sequence[str]
    input_type: InputType
    result: "asyncio.Future[Embeddings]"
    position: int = 0
    parts: list[Embeddings] = field(default_factory=list)

    @property
    def has_more(self) -> bool:
        return self.position < len(self.texts)

    def take_slice(self, max_characters: int) -> list[str]:
        """The next texts: up to so many characters, but at least one text."""
        start = self.position
        size = 0
        while self.has_more:
            size += len(self.texts[self.position])
            if self.position > start and size >= max_characters:
                break
            self.position += 1
        return list(self.texts[start : self.position])

    def add_part(self, part: Embeddings) -> None:
        """Add the vectors of the next texts; the last part completes the result."""
        self.parts.append(part)
        count = sum(len(p.vectors) for p in self.parts)
        if count == len(self.texts) and not self.result.done():
            vectors = np.concatenate([p.vectors for p in self.parts])  # (texts, dimension)
            self.result.set_result(Embeddings(vectors, sum(p.tokens for p in self.parts)))

    def fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Slice:
    """Some texts of a job, as a part of a batch."""

    job: _Job
    texts: list[str]


class EmbeddingQueue:
    """Embeds the texts of concurrent requests in shared batches, one batch at a time, in its own thread.

    Args:
        max_characters: limit of the texts that wait, all together. An idle queue accepts any request.
        max_wait_s: a request that would wait longer, at the rate of recent batches, is refused.
    """

    def __init__(
        self, encoder: Encoder, counter: TokenCounter, *, max_characters: int = 4_000_000, max_wait_s: float = 30.0
    ) -> None:
        self._encoder = encoder
        self._counter = counter
        self._max_characters = max_characters
        self._max_wait_s = max_wait_s
        self._executor = ThreadPoolExecutor(1, "embed")
        self._jobs: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._worker: asyncio.Task[None] | None = None
        self._rate = 0.0  # characters per second; 0 until a batch was large enough to measure
        self.characters = 0  # waiting or being embedded

    def start(self) -> None:
        """Start the worker on the running event loop."""
        self._worker = asyncio.create_task(self._run_worker())

    async def close(self) -> None:
        """Finish the queued requests, then stop."""
        self._closing = True
        self._wake.set()
        if self._worker is not None:
            await self._worker
        self._executor.shutdown()

    async def embed(self, texts: Sequence[str], input_type: InputType) -> Embeddings:
        """Embed texts; the vectors are in the order of the texts.

        Raises:
            Busy: the queue is full.
            PegRagError: what the encoder raises on these texts.
        """
        characters = _count_characters(texts)
        self._check_capacity(characters)
        job = _Job(texts, input_type, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self.characters += characters
        self._wake.set()
        try:
            return await job.result
        finally:
            self.characters -= characters

    def _check_capacity(self, characters: int) -> None:
        wait_s = self.characters / self._rate if self._rate else 0.0
        is_full = self.characters > 0 and self.characters + characters > self._max_characters
        if self._closing or is_full or wait_s > self._max_wait_s:
            raise Busy("too many texts are waiting to be embedded; try again later", max(1.0, wait_s / 2))

    async def _run_worker(self) -> None:
        while True:
            batch = self._take_batch()
            if batch:
                await self._embed_batch(batch)
            elif self._closing:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    def _take_batch(self) -> list[_Slice]:
        """The next batch: jobs of one input type take turns, oldest first, a slice at a time, until it is full."""
        max_characters = self._batch_characters()
        batch: list[_Slice] = []
        postponed: list[_Job] = []
        size = 0
        while self._jobs and size < max_characters:
            job = self._jobs.popleft()
            if job.result.done():  # the request was cancelled
                continue
            if batch and job.input_type != batch[0].job.input_type:
                postponed.append(job)
                continue
            texts = job.take_slice(max_characters // _SLICES_PER_BATCH)
            size += _count_characters(texts)
            batch.append(_Slice(job, texts))
            if job.has_more:
                self._jobs.append(job)
        self._jobs.extendleft(reversed(postponed))
        return batch

    def _batch_characters(self) -> int:
        """What the model processes in `BATCH_SECONDS`, so that turns are short however slow the model is."""
        if not self._rate:
            return FIRST_BATCH_CHARACTERS
        return min(max(int(self._rate * BATCH_SECONDS), MIN_BATCH_CHARACTERS), MAX_BATCH_CHARACTERS)

    async def _embed_batch(self, batch: list[_Slice]) -> None:
        texts = [text for part in batch for text in part.texts]
        started_at = time.perf_counter()
        try:
            future = self._executor.submit(self._encode_and_count, texts, batch[0].job.input_type)
            vectors, tokens = await asyncio.wrap_future(future)
        except Exception as error:
            await self._retry_one_by_one(batch, error)
            return
        self._update_rate(_count_characters(texts), time.perf_counter() - started_at)
        start = 0
        for part in batch:
            stop = start + len(part.texts)
            part.job.add_part(Embeddings(vectors[start:stop], sum(tokens[start:stop])))
            start = stop

    def _update_rate(self, characters: int, seconds: float) -> None:
        """Update the moving average. Small batches are ignored: most of their time is overhead."""
        if characters < MIN_BATCH_CHARACTERS:
            return
        rate = characters / max(1e-6, seconds)
        if self._rate:
            self._rate = _RATE_MEMORY * self._rate + (1 - _RATE_MEMORY) * rate
        else:
            self._rate = rate

    async def _retry_one_by_one(self, batch: list[_Slice], error: Exception) -> None:
        """After a batch failed, run its requests separately, so that the error reaches only the one at fault."""
        if len(batch) == 1:
            batch[0].job.fail(error)
            return
        for part in batch:
            await self._embed_batch([part])

    def _encode_and_count(self, texts: list[str], input_type: InputType) -> tuple[NDArray[np.float32], list[int]]:
        encode = self._encoder.encode_queries if input_type == "query" else self._encoder.encode_documents
        return encode(texts), self._counter.count(texts, input_type)


def _count_characters(texts: Sequence[str]) -> int:
    """The characters of texts, plus one for each text, so that empty texts count too."""
    return sum(map(len, texts)) + len(texts)


class WorkerPool:
    """Runs blocking calls in a few threads, with a bounded queue in front of them.

    Args:
        max_waiting: calls in the queue; a further call is refused.
        max_wait_s: a call that leaves the queue later than this is refused as well.
    """

    def __init__(self, name: str, threads: int, max_waiting: int, *, max_wait_s: float = math.inf) -> None:
        self.name = name
        self._max_wait_s = max_wait_s
        self._executor = ThreadPoolExecutor(threads, name)
        self._max_pending = threads + max_waiting
        self.pending = 0  # running or waiting

    async def run(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        """Call a function in a thread. A call that is cancelled while it runs counts as pending until it ends.

        Raises:
            Busy: the queue is full, or the call waited too long.
        """
        if self.pending >= self._max_pending:
            raise self._busy_error()
        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + self._max_wait_s

        def call_in_time() -> T:
            if time.monotonic() > deadline:
                raise self._busy_error()
            return function(*args, **kwargs)

        self.pending += 1
        future: Future[T] = self._executor.submit(call_in_time)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release_slot))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Wait for the running calls; drop those that wait."""
        self._executor.shutdown(cancel_futures=True)

    def _busy_error(self) -> Busy:
        return Busy(f"too many requests are waiting ({self.name}); try again later")

    def _release_slot(self) -> None:
        self.pending -= 1
