"""`MicroBatcher`: concurrent requests share batches, so 64 callers cost the model about as much as one long list.

A model takes little longer for many short texts than for one. While it works on one batch, the requests that arrive
form the next: no timer is needed, a lone request never waits, and the busier the model, the larger the batches.
Requests take turns, a slice of their texts at a time, so a large request does not starve small ones. A request that
was cancelled is dropped before it is computed.

The work runs in one thread, or one for each device, which start with the requests and end with the batcher. Requests
may come from any thread and any event loop. A forked child starts with an empty queue and threads of its own.
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

from peg_rag.errors import PegRagError

FIRST_BATCH_CHARACTERS = 4_096  # before the rate was measured
MIN_BATCH_CHARACTERS = 1_024
MAX_BATCH_CHARACTERS = 65_536
_SLICES_PER_BATCH = 8
_RATE_MEMORY = 0.8  # weight of the earlier rate in the moving average


class Rows(Protocol):
    """One row for each text, such as an array of vectors."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Self: ...


R = TypeVar("R", bound=Rows)
BatchFunction = Callable[[list[str]], R]


@dataclass(eq=False, slots=True)
class _Job(Generic[R]):
    """The texts of one request, how many of them are in a batch already, and the future of the result."""

    function: BatchFunction[R]
    texts: Sequence[str]
    future: "Future[R]"
    lock: threading.RLock = field(default_factory=threading.RLock)
    position: int = 0
    parts: dict[int, R] = field(default_factory=dict)  # by the place of the part's first text

    @property
    def has_more(self) -> bool:
        return self.position < len(self.texts)

    def take_slice(self, max_characters: int) -> "_Slice[R]":
        """The next texts: up to so many characters, but at least one text."""
        start = self.position
        size = 0
        while self.has_more:
            size += len(self.texts[self.position])
            if self.position > start and size >= max_characters:
                break
            self.position += 1
        return _Slice(self, start, list(self.texts[start : self.position]))

    def add_part(self, start: int, part: R, join: Callable[[list[R]], R]) -> None:
        """Add the rows of the texts from `start` on; the part that was missing last completes the result."""
        with self.lock:
            if self.future.done():  # cancelled, or another part failed
                return
            self.parts[start] = part
            if sum(map(len, self.parts.values())) < len(self.texts):
                return
            try:
                result = join([self.parts[start] for start in sorted(self.parts)])
            except Exception as error:  # out of memory
                self.fail(error)
                return
            if self.future.set_running_or_notify_cancel():
                self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        with self.lock:
            if not self.future.done() and self.future.set_running_or_notify_cancel():
                self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Slice(Generic[R]):
    """Some texts of a job, from `start` on, as a part of a batch."""

    job: _Job[R]
    start: int
    texts: list[str]


class MicroBatcher(Generic[R]):
    """Calls functions of lists of texts, with the texts of concurrent requests in one list.

    Args:
        join: puts the rows of a request's parts, at least one, together; the result must not share their memory.
        batch_seconds: a batch is as large as the function can process in this time, by the rate of recent batches:
            about what a request may have to wait for one that came before it.
        threads: how many batches may run at a time.
        name: of the threads.
    """

    _lock: threading.Lock
    _jobs: deque[_Job[R]]
    _executor: ThreadPoolExecutor
    _running: int  # threads that have batches to run

    def __init__(
        self, join: Callable[[list[R]], R], *, batch_seconds: float, threads: int = 1, name: str = "embed"
    ) -> None:
        self._join = join
        self._batch_seconds = batch_seconds
        self._threads = threads
        self._name = name
        self._closed = False
        self.rate = 0.0  # characters per second; 0 until a batch was large enough to measure
        self._clear_queue()
        _batchers.add(self)

    async def run(self, function: BatchFunction[R], texts: Sequence[str]) -> R:
        """`submit`, and await the rows. Cancelling the task drops the request."""
        import asyncio  # not at the top: it doubles the time of importing this package

        return await asyncio.wrap_future(self.submit(function, texts))

    def submit(self, function: BatchFunction[R], texts: Sequence[str]) -> "Future[R]":
        """A future of the function's rows for these texts; cancelling it drops the request.

        Requests with equal functions share batches. When a batch fails, its requests run again one by one, so that an
        error reaches only the request at fault.

        Raises:
            PegRagError: the batcher is closed.
        """
        job = _Job(function, texts, Future[R]())
        with self._lock:
            if self._closed:
                raise PegRagError("this queue is closed and takes no more texts; make a new encoder")
            self._start_thread()
            self._jobs.append(job)
        return job.future

    def close(self) -> None:
        """Finish the requests in the queue, then end the threads."""
        with self._lock:
            self._closed = True
        self._executor.shutdown()

    def _clear_queue(self) -> None:
        """An empty queue and threads that start with the requests; for a new batcher and a forked child."""
        self._lock = threading.Lock()
        self._jobs = deque()
        self._running = 0
        # Its idle threads keep no reference to this object, so a batcher that is dropped takes the threads along.
        self._executor = ThreadPoolExecutor(self._threads, self._name)

    def _start_thread(self) -> None:
        """Have one more thread run batches, unless all do; with the lock held."""
        if self._running < self._threads:
            self._executor.submit(self._run_batches)
            self._running += 1

    def _run_batches(self) -> None:
        """Run until the queue is empty."""
        while True:
            with self._lock:
                batch = self._take_batch()
                if not batch:
                    self._running -= 1
                    return
                if self._jobs:
                    with suppress(RuntimeError):  # the batcher is closing, and the threads that run finish the queue
                        self._start_thread()
            self._run_batch(batch)

    def _take_batch(self) -> list[_Slice[R]]:
        """The next batch: jobs of one function take turns, oldest first, a slice at a time, until it is full."""
        max_characters = self._batch_characters()
        batch: list[_Slice[R]] = []
        postponed: list[_Job[R]] = []
        size = 0
        while self._jobs and size < max_characters:
            job = self._jobs.popleft()
            if job.future.done():  # the request was cancelled
                continue
            if batch and job.function != batch[0].job.function:
                postponed.append(job)
                continue
            part = job.take_slice(max_characters // _SLICES_PER_BATCH)
            size += count_characters(part.texts)
            batch.append(part)
            if job.has_more:
                self._jobs.append(job)
        self._jobs.extendleft(reversed(postponed))
        return batch

    def _batch_characters(self) -> int:
        """What is processed in `batch_seconds`, so that turns are short however slow the model is."""
        if not self.rate:
            return FIRST_BATCH_CHARACTERS
        return min(max(int(self.rate * self._batch_seconds), MIN_BATCH_CHARACTERS), MAX_BATCH_CHARACTERS)

    def _run_batch(self, batch: list[_Slice[R]]) -> None:
        texts = [text for part in batch for text in part.texts]
        started_at = time.perf_counter()
        try:
            rows = batch[0].job.function(texts)
            _check_rows(rows, texts)
        except BaseException as error:  # the thread goes on whatever happens, or every later request would hang
            self._retry_one_by_one(batch, error)
            return
        self._update_rate(count_characters(texts), time.perf_counter() - started_at)
        start = 0
        for part in batch:
            stop = start + len(part.texts)
            part.job.add_part(part.start, rows[start:stop], self._join)
            start = stop

    def _retry_one_by_one(self, batch: list[_Slice[R]], error: BaseException) -> None:
        """After a batch failed, run its requests separately, so that the error reaches only the one at fault."""
        if len(batch) == 1:
            batch[0].job.fail(error)
            return
        for part in batch:
            if not part.job.future.done():
                self._run_batch([part])

    def _update_rate(self, characters: int, seconds: float) -> None:
        """Update the moving average. Small batches are ignored: most of their time is overhead."""
        if characters < MIN_BATCH_CHARACTERS:
            return
        rate = characters / max(1e-6, seconds)
        if self.rate:
            self.rate = _RATE_MEMORY * self.rate + (1 - _RATE_MEMORY) * rate
        else:
            self.rate = rate


def count_characters(texts: Sequence[str]) -> int:
    """The characters of texts, plus one for each text, so that empty texts count too."""
    return sum(map(len, texts)) + len(texts)


def _check_rows(rows: Rows, texts: Sequence[str]) -> None:
    if len(rows) != len(texts):
        raise PegRagError(f"the encoder gave {len(rows)} vectors for {len(texts)} texts; one for each is expected")


_batchers: "weakref.WeakSet[MicroBatcher[Any]]" = weakref.WeakSet()


def _clear_queues() -> None:
    """In a forked child: the parent's threads are not there, and a lock may have been copied while it was held."""
    for batcher in _batchers:
        batcher._clear_queue()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_clear_queues)
