"""Bounded queues in front of blocking work, which refuse requests early instead of growing without limit.

`EmbeddingQueue` embeds the texts of concurrent requests in shared batches (`peg_rag.microbatching`) and refuses those
that would wait too long. `WorkerPool` bounds all other blocking work (searches, writes, conversions).
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from peg_rag.microbatching import MicroBatcher, count_characters
from peg_rag.retriever import Encoder
from peg_rag.serving.errors import Busy

InputType = Literal["document", "query"]
T = TypeVar("T")

TURN_CHARACTERS = 1_024  # of each other request, that even the smallest may wait for
BATCH_SECONDS = 0.5  # a batch is as large as the model can process in this time


class TokenCounter(Protocol):
    """Counts the tokens of texts as the model sees them."""

    def count(self, texts: Sequence[str], input_type: InputType) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors, (n, dimension), of n texts, and the tokens of each text, (n,)."""

    vectors: NDArray[np.float32]
    token_counts: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """The tokens of all texts."""
        return int(self.token_counts.sum())

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: slice) -> "Embeddings":
        return Embeddings(self.vectors[index], self.token_counts[index])


class EmbeddingQueue:
    """Embeds the texts of concurrent requests in shared batches, one batch at a time, in its own thread.

    Args:
        max_characters: limit of the texts that wait, all together. An idle queue accepts any request.
        max_wait_s: a request that would wait longer, at the rate of recent batches, is refused.

    Requests take turns, so one waits for about as much of every other as it has itself. A question is accepted and
    answered within a few batches even while a client embeds a corpus.
    """

    def __init__(
        self, encoder: Encoder, counter: TokenCounter, *, max_characters: int = 4_000_000, max_wait_s: float = 30.0
    ) -> None:
        self._encoder = encoder
        self._counter = counter
        self._max_characters = max_characters
        self._max_wait_s = max_wait_s
        self._batcher = MicroBatcher(_join_embeddings, batch_seconds=BATCH_SECONDS)
        self._closing = False
        self._requests: dict[object, int] = {}  # characters of those that wait or are being embedded

    @property
    def characters(self) -> int:
        """Of the texts that wait or are being embedded."""
        return sum(self._requests.values())

    async def close(self) -> None:
        """Finish the queued requests, then stop."""
        self._closing = True
        await asyncio.to_thread(self._batcher.close)

    async def embed(self, texts: Sequence[str], input_type: InputType) -> Embeddings:
        """Embed texts; the vectors are in the order of the texts.

        Raises:
            Busy: the queue is full.
            PegRagError: what the encoder raises on these texts.
        """
        characters = count_characters(texts)
        self._check_capacity(characters)
        request = object()
        self._requests[request] = characters
        try:
            if input_type == "query":
                return await self._batcher.run(self._embed_queries, texts)
            return await self._batcher.run(self._embed_documents, texts)
        finally:
            del self._requests[request]

    def _check_capacity(self, characters: int) -> None:
        rate = self._batcher.rate
        turn = max(characters, TURN_CHARACTERS)
        ahead = sum(min(size, turn) for size in self._requests.values())
        wait_s = ahead / rate if rate else 0.0
        is_full = ahead > 0 and ahead + characters > self._max_characters
        if self._closing or is_full or wait_s > self._max_wait_s:
            raise Busy("too many texts are waiting to be embedded; try again later", max(1.0, wait_s / 2))

    def _embed_queries(self, texts: list[str]) -> Embeddings:
        return Embeddings(self._encoder.encode_queries(texts), self._count_tokens(texts, "query"))

    def _embed_documents(self, texts: list[str]) -> Embeddings:
        return Embeddings(self._encoder.encode_documents(texts), self._count_tokens(texts, "document"))

    def _count_tokens(self, texts: list[str], input_type: InputType) -> NDArray[np.int64]:
        return np.array(self._counter.count(texts, input_type), dtype=np.int64)


def _join_embeddings(parts: list[Embeddings]) -> Embeddings:
    vectors = np.concatenate([part.vectors for part in parts])  # (texts, dimension)
    return Embeddings(vectors, np.concatenate([part.token_counts for part in parts]))


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
