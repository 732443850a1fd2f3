"""`DevicePool`: one model on several devices, each in a worker process that stays until the pool is closed.

One process cannot keep several accelerators busy. Here each device has a process, which loads the weights once, and a
thread that feeds it. All take batches from one queue, so that no device waits while another has work left. A worker is
sent its next batch while it computes one, and vectors come back through a pipe.

Workers die: the kernel needs their memory, or a driver crashes. The batch of a dead worker goes back to the queue, and
the worker is started again; a batch over which three died is given up. An error in a worker is raised in the caller.
Callers take turns, batch by batch, so a query does not wait for a corpus. Workers end with the process that made the
pool, however it ends.

Costs the weights once for each device, and 0.1 ms for a batch to travel where a core is free.
"""

import io
import logging
import os
import signal
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from peg_rag.backends.messages import Header, pack_rows, read_message, rebuild_error, write_message
from peg_rag.batching import Batch
from peg_rag.errors import InvalidInput, PegRagError, WorkerDied
from peg_rag.models import ModelSpec
from peg_rag.processes import start_module

logger = logging.getLogger(__name__)

MAX_DEATHS = 3  # workers that may die over one batch
_BATCHES_AHEAD = 2  # the batch that a worker computes, and the next
_JOIN_SECONDS = 10.0
_PIPE_BUFFER_BYTES = 1 << 16
_WORKER_MODULE = "peg_rag.backends.worker"

Vectors = NDArray[np.float32]


class DevicePool:
    """A `Backend` of several devices.

    Args:
        name: of the backend; see `open_backend`.
        devices: of the workers; the same one may be there several times. CPU threads are divided among them.
        dtype: must come out as the same type on all devices.

    Raises:
        InvalidInput, DamagedModel: as `open_backend`, from a worker.
        WorkerDied: a worker died while it loaded the weights.
    """

    def __init__(self, name: str, spec: ModelSpec, *, devices: Sequence[str], dtype: str) -> None:
        self._process_id = os.getpid()
        self._queue = _BatchQueue(len(devices))
        settings = {"backend": name, "spec": asdict(spec) | {"path": str(spec.path.absolute())}, "dtype": dtype}
        threads = _divide_threads(len(devices))
        self._workers = [_Worker(self._queue, settings | {"device": device}, threads) for device in devices]
        # The threads hold no reference to the pool, so one that is dropped is closed, as all are when Python exits.
        self._finalizer = weakref.finalize(self, _close_workers, self._queue, self._workers, self._process_id)
        try:
            greetings = [worker.greeting.result() for worker in self._workers]
            for key in ("backend", "dtype"):
                _check_equal(key, devices, [greeting[key] for greeting in greetings])
        except BaseException:
            self.close()
            raise
        self.device = ",".join(greeting["device"] for greeting in greetings)
        self.dtype: str = greetings[0]["dtype"]
        self.backend_name: str = greetings[0]["backend"]
        self.vocabulary_size: int = min(greeting["vocabulary_size"] for greeting in greetings)

    @property
    def batch_tokens(self) -> int:
        """A good token budget for a batch on any of the devices; smaller once a worker ran out of memory."""
        return min(worker.batch_tokens for worker in self._workers)

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that run."""
        return [process.pid for worker in self._workers if (process := worker.process) is not None]

    def embed(self, token_ids: Sequence[Sequence[int]]) -> Vectors:
        """As a backend's: pooled vectors, (rows, dimension), from the first worker that is free."""
        batch = Batch(np.arange(len(token_ids)), [list(row) for row in token_ids])
        with closing(self.embed_batches([batch], max_rows=len(token_ids))) as results:
            return next(results)[1]

    def embed_batches(self, batches: Iterable[Batch], *, max_rows: int) -> Generator[tuple[Batch, Vectors], None, None]:
        """Each batch with its pooled vectors, (rows, dimension), in the order in which they are done.

        Close the iterator when it is left early; batches that no worker has begun are then dropped. The next batches
        are fetched while workers compute.

        Args:
            max_rows: about how many rows may be in the queue.

        Raises:
            WorkerDied: three workers died over a batch; `positions` are its rows.
            PegRagError: the pool is closed, or belongs to another process.
        """
        if os.getpid() != self._process_id:
            raise PegRagError(
                "this encoder's workers belong to the process that was forked; make a new encoder in the child"
            )
        call = _Call()
        rows = 0
        try:
            for batch in batches:
                self._queue.put(_Task(call, batch))
                rows += len(batch.rows)
                while rows > max_rows or not call.results.empty():
                    done = call.next_result()
                    rows -= len(done[0].rows)
                    yield done
            while rows:
                done = call.next_result()
                rows -= len(done[0].rows)
                yield done
        finally:
            self._queue.drop(call)

    def close(self) -> None:
        """End the workers. Calls that still wait fail."""
        self._finalizer()


@dataclass(eq=False, slots=True)
class _Call:
    """One caller's batches: those that no worker has yet, and the results of those that are done."""

    waiting: "deque[_Task]" = field(default_factory=deque)
    results: "SimpleQueue[tuple[Batch, Vectors | BaseException]]" = field(default_factory=SimpleQueue)
    is_dropped: bool = False

    def next_result(self) -> tuple[Batch, Vectors]:
        batch, result = self.results.get()
        if isinstance(result, BaseException):
            raise result
        return batch, result


@dataclass(eq=False, slots=True)
class _Task:
    """A batch on its way, and how many workers died over it."""

    call: _Call
    batch: Batch
    deaths: int = 0

    def finish(self, result: Vectors | BaseException) -> None:
        self.call.results.put((self.batch, result))


class _BatchQueue:
    """The tasks that no worker has yet. Callers take turns, a batch at a time."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._calls: deque[_Call] = deque()  # those with tasks, in turn
        self._size = 0
        self._condition = threading.Condition()
        self.is_closed = False

    def put(self, task: _Task) -> None:
        """Add a task at the end of its call.

        Raises:
            PegRagError: the queue is closed.
        """
        with self._condition:
            if self.is_closed:
                raise _make_closed_error()
            task.call.waiting.append(task)
            self._add_to_turns(task.call)

    def put_back(self, task: _Task) -> None:
        """Make a task that a worker gave up the next one of its call."""
        with self._condition:
            if self.is_closed:
                task.finish(_make_closed_error())
            elif not task.call.is_dropped:
                task.call.waiting.appendleft(task)
                self._add_to_turns(task.call)

    def take(self) -> _Task | None:
        """The next task, once there is one; None when the queue is closed."""
        with self._condition:
            while not self.is_closed and not self._size:
                self._condition.wait()
            return None if self.is_closed else self._pop()

    def take_ahead(self) -> _Task | None:
        """The next task, for a worker that is busy; None unless there are more than one for each worker."""
        with self._condition:
            return self._pop() if self._size > self._workers and not self.is_closed else None

    def drop(self, call: _Call) -> None:
        """Forget the tasks of a call."""
        with self._condition:
            call.is_dropped = True
            self._size -= len(call.waiting)
            call.waiting.clear()
            with suppress(ValueError):
                self._calls.remove(call)

    def close(self) -> None:
        """Fail all tasks, and have `take` return None."""
        with self._condition:
            self.is_closed = True
            while self._size:
                self._pop().finish(_make_closed_error())
            self._condition.notify_all()

    def _add_to_turns(self, call: _Call) -> None:
        self._size += 1
        if call not in self._calls:
            self._calls.append(call)
        self._condition.notify()

    def _pop(self) -> _Task:
        call = self._calls.popleft()
        task = call.waiting.popleft()
        if call.waiting:
            self._calls.append(call)
        self._size -= 1
        return task


class _Worker:
    """A device's process and the thread that starts, feeds and restarts it.

    `greeting` is the worker's first message; `process` is None between a death and the restart.
    """

    def __init__(self, queue: _BatchQueue, settings: dict[str, Any], threads: int) -> None:
        self.greeting: Future[Header] = Future()
        self.process: subprocess.Popen[bytes] | None = None
        self.batch_tokens = 0
        self._queue = queue
        self._settings = settings
        self._device: str = settings["device"]
        self._environment = {"OMP_NUM_THREADS": str(threads)}
        self._replies: BinaryIO = io.BytesIO()
        self._tasks: deque[_Task] = deque()  # sent and not answered
        self._lock = threading.RLock()  # a finalizer may run in the middle of any thread
        # A daemon, which Python does not wait for. On Linux the process ends with the thread that started it.
        self._thread = threading.Thread(target=self._run, name=f"embed on {self._device}", daemon=True)
        self._thread.start()

    def kill(self) -> None:
        with self._lock:
            if self.process is not None:
                self.process.kill()

    def join(self) -> None:
        """Wait for the thread, which waits for the process."""
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        try:
            self.greeting.set_result(self._start_process())
        except (EOFError, OSError) as error:
            self.greeting.set_exception(WorkerDied(f"{self._describe_death(error)} while it loaded the model"))
        except BaseException as error:
            self.greeting.set_exception(error)
        while not self._queue.is_closed:
            try:
                self._feed_process()
            except (EOFError, OSError) as error:
                self._recover(error)
            except Exception as error:  # ours: the thread goes on whatever happens, or the callers would hang
                self._fail_tasks(error)
        self._end_process()
        self._return_tasks()

    def _feed_process(self) -> None:
        """Send batches and receive vectors, until the queue is closed or the process dies."""
        while True:
            while len(self._tasks) < _BATCHES_AHEAD:
                task = self._queue.take_ahead() if self._tasks else self._queue.take()
                if task is None:
                    break
                self._send_task(task)
            if not self._tasks:
                return
            self._receive_result()

    def _send_task(self, task: _Task) -> None:
        if not self._tasks and self.process is not None and self.process.poll() is not None:
            self._end_process()  # it died when it had nothing to do, which is no fault of this task
        self._tasks.append(task)
        if self.process is None:
            self._start_process()
        assert self.process is not None
        assert self.process.stdin is not None
        write_message(self.process.stdin, {}, pack_rows(task.batch.token_ids))

    def _receive_result(self) -> None:
        header, content = read_message(self._replies)
        task = self._tasks.popleft()
        if "error" not in header:
            self.batch_tokens = header["batch_tokens"]
            task.finish(np.frombuffer(content, dtype=np.float32).reshape(header["shape"]))
            return
        error = rebuild_error(header["error"], self._device)
        task.finish(error)
        if not isinstance(error, PegRagError):  # after some errors of a driver every later batch would fail, too
            self._restart()

    def _recover(self, error: BaseException) -> None:
        """After the process died: charge the task that it computed, hand all tasks back and start it again."""
        if self._queue.is_closed:
            return
        death = self._describe_death(error)
        logger.warning("%s; it is started again", death)
        if self._tasks:
            task = self._tasks[0]
            task.deaths += 1
            if task.deaths == MAX_DEATHS:
                self._tasks.popleft()
                message = f"{MAX_DEATHS} worker processes died over them; at last {death}"
                task.finish(WorkerDied(message, positions=task.batch.rows.tolist()))
        self._restart()

    def _restart(self) -> None:
        """Hand all tasks back first: others need not wait for the start."""
        self._end_process()
        self._return_tasks()
        try:
            self._start_process()
        except Exception:  # it is tried again with the next task, whose caller then gets the error
            self._end_process()

    def _start_process(self) -> Header:
        """Start the process and wait until it has loaded the model; its greeting.

        Raises:
            EOFError: it died.
            Exception: what it raised.
        """
        with self._lock:
            if not self._queue.is_closed:
                self.process = start_module(_WORKER_MODULE, environment=self._environment, bufsize=0)
        if self.process is None or self._queue.is_closed:
            raise EOFError("the pool was closed")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._replies = os.fdopen(self.process.stdout.fileno(), "rb", _PIPE_BUFFER_BYTES, closefd=False)
        write_message(self.process.stdin, self._settings)
        greeting, _ = read_message(self._replies)
        if "error" in greeting:
            self._end_process()
            raise rebuild_error(greeting["error"], self._device)
        self.batch_tokens = greeting["batch_tokens"]
        return greeting

    def _end_process(self) -> int | None:
        """Kill the process if it still runs, and close its pipes; its exit status."""
        with self._lock:
            process = self.process
            self.process = None
        if process is None:
            return None
        process.kill()
        status = process.wait()
        for pipe in (process.stdin, self._replies, process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        return status

    def _return_tasks(self) -> None:
        while self._tasks:
            self._queue.put_back(self._tasks.pop())

    def _fail_tasks(self, error: Exception) -> None:
        while self._tasks:
            self._tasks.popleft().finish(error)

    def _describe_death(self, error: BaseException) -> str:
        status = self._end_process()
        if status is None:
            return f"the worker on {self._device} could not be started ({error})"
        if status >= 0:
            return f"the worker on {self._device} ended with status {status}"
        with suppress(ValueError):
            return f"the worker on {self._device} was killed by {signal.Signals(-status).name}"
        return f"the worker on {self._device} was killed by signal {-status}"


def _close_workers(queue: _BatchQueue, workers: Sequence[_Worker], process_id: int) -> None:
    if os.getpid() != process_id:  # a forked child, in which the locks may be held for ever
        return
    queue.close()
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def _divide_threads(workers: int) -> int:
    """CPU threads for each worker: its share of the cores, or fewer if `OMP_NUM_THREADS` says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // workers)
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(limit)) if limit.isdecimal() and int(limit) else share


def _check_equal(what: str, devices: Sequence[str], values: Sequence[str]) -> None:
    """Vectors of different types or backends differ by more than rounding."""
    if len(set(values)) > 1:
        choices = ", ".join(f"{value} on {device}" for device, value in zip(devices, values, strict=True))
        raise InvalidInput(f"{what} comes out as {choices}; give {what}= one value that all devices have")


def _make_closed_error() -> PegRagError:
    return PegRagError("this encoder is closed; make a new one")
