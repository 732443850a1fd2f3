"""PEGIndex across forks: what was acknowledged stays, a child's inherited index says what to do, nothing hangs."""

import contextlib
import gc
import json
import multiprocessing as mp
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peg_rag.errors import ForkedIndex, PegRagError
from peg_rag.index import PEGIndex, forks, segment

if not hasattr(os, "fork"):
    pytest.skip("there is no fork", allow_module_level=True)

DIMENSION = 8
FORK = mp.get_context("fork")
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32)


def add(index: PEGIndex, *numbers: int) -> None:
    index.upsert([f"d{n}" for n in numbers], [f"第{n}号" for n in numbers], np.stack([vector(n) for n in numbers]))


def ids(path: Path) -> set[str]:
    with PEGIndex(path) as index:
        return set(index.ids())


class Child:
    """A forked process that runs a function; it stops at `wait()` until the parent calls `go_on()`."""

    def __init__(self, work: Callable[["Child"], Any]) -> None:
        from_parent, to_child = os.pipe()
        from_child, to_parent = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._reads, self._writes = from_parent, to_parent
            os.close(to_child)
            os.close(from_child)
            answer: Any = None
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)  # a child that hangs ends
            try:
                answer = work(self)
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}"
            finally:
                os.write(to_parent, json.dumps(answer).encode())
                os._exit(0)
        os.close(from_parent)
        os.close(to_parent)
        self._reads, self._writes = from_child, to_child

    def wait(self) -> None:
        """In the child: say that this point is reached, and wait for the parent."""
        os.write(self._writes, b".")
        assert os.read(self._reads, 1) == b"."

    def await_stop(self) -> None:
        """In the parent: until the child is at its next `wait()`."""
        assert os.read(self._reads, 1) == b"."

    def resume(self) -> None:
        os.write(self._writes, b".")

    def result(self) -> Any:
        answer = b""
        while piece := os.read(self._reads, 65536):
            answer += piece
        os.waitpid(self.pid, 0)
        os.close(self._reads)
        os.close(self._writes)
        return json.loads(answer)


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except ForkedIndex as error:
        return str(error)
    return "used"


# -- an inherited index is refused ------------------------------------------------------------------------------------


def test_a_child_cannot_write_into_a_log_that_its_parent_deletes(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    index = PEGIndex(path)
    add(index, 1)

    def work(child: Child) -> list[str]:
        refusals = [refusal(lambda: len(index)), refusal(lambda: add(index, 2))]
        child.wait()
        return [*refusals, refusal(lambda: add(index, 3))]

    child = Child(work)
    child.await_stop()
    index.close()
    child.resume()
    refusals = child.result()
    assert len(refusals) == 3
    assert all(f"PEGIndex({str(path)!r})" in message and "fork" in message for message in refusals), refusals
    assert ids(path) == {"d1"}


def list_calls(index: PEGIndex) -> dict[str, Callable[[], Any]]:
    return {
        "len": lambda: len(index),
        "upsert": lambda: add(index, 9),
        "delete": lambda: index.delete(["d1"]),
        "clear": index.clear,
        "persist": index.persist,
        "get": lambda: index.get(["d1"]),
        "ids": index.ids,
        "count": index.count,
        "search": lambda: index.search(vector(1)),
        "mmr": lambda: index.mmr(vector(1)),
    }


@pytest.mark.parametrize("first", ["len", "upsert", "delete", "clear", "persist", "search"])
def test_every_call_in_a_child_is_refused(first: str, tmp_path: Path) -> None:
    with PEGIndex(tmp_path / "kb") as index:
        add(index, 1, 2)

        def work(_: Child) -> dict[str, str]:
            calls = list_calls(index)
            return {name: refusal(calls[name]) for name in [first, *calls]}

        refusals = Child(work).result()
        assert set(refusals) == set(list_calls(index))
        assert all("PEGIndex(" in message for message in refusals.values()), refusals
        add(index, 3)
        assert index.ids() == ["d1", "d2", "d3"]


def test_closing_an_inherited_index_is_harmless(tmp_path: Path) -> None:
    index = PEGIndex(tmp_path / "kb")
    add(index, 1)
    holder = [index]

    def work(_: Child) -> str:
        holder[0].close()
        holder[0].close()
        holder.clear()
        gc.collect()
        return "closed"

    assert Child(work).result() == "closed"
    add(index, 2)
    with PEGIndex(tmp_path / "kb") as other:
        add(other, 3)
    assert set(index.ids()) == {"d1", "d2", "d3"}
    index.close()
    assert ids(tmp_path / "kb") == {"d1", "d2", "d3"}


def open_files() -> list[str]:
    files = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            files.append(str(link.readlink()))
    return files


@needs_proc
def test_the_child_inherits_no_open_file(tmp_path: Path) -> None:
    with PEGIndex(tmp_path / "kb") as index:
        add(index, 1)
        index.search(vector(1))
        assert Child(lambda _: [file for file in open_files() if "index.sqlite" in file]).result() == []


# -- a child that opens the index itself ------------------------------------------------------------------------------


def test_writes_of_a_child_survive_the_close_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    index = PEGIndex(path)
    add(index, 1)

    def work(child: Child) -> int:
        with PEGIndex(path) as own:
            add(own, 2)
            child.wait()
            add(own, 3)
            child.wait()
            return len(own)

    child = Child(work)
    child.await_stop()
    assert set(index.ids()) == {"d1", "d2"}
    index.close()
    child.resume()
    child.await_stop()
    with PEGIndex(path) as other:  # an unrelated writer, while the child is alive
        assert set(other.ids()) == {"d1", "d2", "d3"}
        add(other, 4)
    child.resume()
    assert child.result() == 4
    assert ids(path) == {"d1", "d2", "d3", "d4"}


@pytest.mark.parametrize("ending", ["exit", "kill"])
def test_prefork_workers_that_open_by_path(ending: str, tmp_path: Path) -> None:
    """As a server forks: the application is loaded once with the index open, then every worker opens its own."""
    path, workers, writes = tmp_path / "kb", 4, 12
    preloaded = PEGIndex(path, timeout_s=60)
    add(preloaded, 0)
    preloaded.search(vector(0))

    def work_as(number: int) -> Callable[[Child], Any]:
        def work(child: Child) -> int:
            assert "PEGIndex(" in refusal(lambda: len(preloaded))
            own = PEGIndex(path, timeout_s=60)
            for write in range(writes):
                add(own, 1000 * number + write)
                assert own.search(vector(1000 * number + write), k=1)[0].id == f"d{1000 * number + write}"
            child.wait()
            return len(own)

        return work

    children = [Child(work_as(number)) for number in range(1, workers + 1)]
    preloaded.close()
    for child in children:
        child.await_stop()
        if ending == "kill":
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
        else:
            child.resume()
            child.result()
    expected = {"d0"} | {f"d{1000 * n + w}" for n in range(1, workers + 1) for w in range(writes)}
    assert ids(path) == expected


def use_in_child(index: PEGIndex, path: Path, results: Any) -> None:
    message = refusal(lambda: index.search(vector(1), k=1))
    with PEGIndex(path) as own:
        add(own, 2)
        results.put((message, own.search(vector(1), k=1)[0].id))


def test_multiprocessing_with_the_fork_method(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    with PEGIndex(path) as index:
        add(index, 1)
        results = FORK.Queue()
        child = FORK.Process(target=use_in_child, args=(index, path, results))
        child.start()
        message, hit = results.get(timeout=60)
        child.join(60)
        assert child.exitcode == 0
        assert "PEGIndex(" in message
        assert hit == "d1"
        add(index, 3)
        assert index.search(vector(2), k=1)[0].id == "d2"
    assert ids(path) == {"d1", "d2", "d3"}


DAEMON = """
    import os, sys, time
    import numpy as np
    from peg_rag.errors import ForkedIndex
    from peg_rag.index import PEGIndex

    path, done = sys.argv[1:]
    index = PEGIndex(path)
    index.upsert(["before"], ["x"], np.eye(1, 4))
    {close}
    if os.fork():
        sys.exit()      # the interpreter ends in the usual way, and takes its objects down
    os.setsid()
    if os.fork():
        sys.exit()
    {inherited}
    own = PEGIndex(path)
    for number in range(20):
        own.upsert([f"daemon{{number}}"], ["x"], np.eye(1, 4))
        time.sleep(0.01)
    with open(done + ".part", "w") as file:
        file.write(str(len(own)))
    os.rename(done + ".part", done)
    sys.exit()          # without closing
"""
REFUSED = """
    try:
        index.upsert(["never"], ["x"], np.eye(1, 4))
    except ForkedIndex:
        pass
    else:
        os._exit(1)
"""


@pytest.mark.parametrize("close", ["", "index.close()"])
def test_daemonising(close: str, tmp_path: Path) -> None:
    path, done = tmp_path / "kb", tmp_path / "done"
    inherited = "" if close else textwrap.indent(textwrap.dedent(REFUSED), "    ")
    script = textwrap.dedent(DAEMON.format(close=close, inherited=inherited.strip("\n").lstrip()))
    subprocess.run([sys.executable, "-c", script, str(path), str(done)], check=True, timeout=120)
    for _ in range(3000):
        if done.exists():
            break
        time.sleep(0.02)
    assert done.read_text() == "21"
    assert ids(path) == {"before"} | {f"daemon{n}" for n in range(20)}


def test_a_grandchild(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    with PEGIndex(path) as index:
        add(index, 1)

        def work(_: Child) -> Any:
            own = PEGIndex(path)
            add(own, 2)

            def work_below(_: Child) -> str:
                messages = refusal(lambda: len(own)) + refusal(lambda: len(index))
                with PEGIndex(path) as lowest:
                    add(lowest, 3)
                return messages

            messages = Child(work_below).result()
            add(own, 4)
            return messages

        assert Child(work).result().count("PEGIndex(") == 2
        assert set(index.ids()) == {"d1", "d2", "d3", "d4"}


# -- threads at work while the process forks --------------------------------------------------------------------------


def test_forks_while_threads_write_and_search(tmp_path: Path) -> None:
    """Every child opens the index and writes; nobody hangs, every acknowledged write is there."""
    path = tmp_path / "kb"
    stop, written = threading.Event(), [0]
    failures: list[BaseException] = []
    with PEGIndex(path, timeout_s=60) as index:
        add(index, 0)

        def guarded(work: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                try:
                    while not stop.is_set():
                        work()
                except BaseException as error:
                    failures.append(error)

            return run

        def write() -> None:
            add(index, written[0] + 1)
            written[0] += 1

        def read() -> None:
            assert index.search(vector(0), k=1)[0].id == "d0"

        threads = [threading.Thread(target=guarded(work)) for work in (write, read, read)]
        for thread in threads:
            thread.start()
        try:
            for number in range(8):

                def work(_: Child, number: int = number) -> str:
                    message = refusal(lambda: add(index, 10**6))
                    with PEGIndex(path, timeout_s=60) as own:
                        add(own, 10**5 + number)
                    return message

                assert "PEGIndex(" in Child(work).result()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert ids(path) == {f"d{n}" for n in range(written[0] + 1)} | {f"d{10**5 + n}" for n in range(8)}


def test_a_fork_that_times_out_warns_and_its_child_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forks, "WAIT_S", 0.05)
    path, other_path = tmp_path / "kb", tmp_path / "other"
    with PEGIndex(path) as index, PEGIndex(other_path) as other:
        add(index, 1)
        add(other, 1)
        inside, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with index._db.writing() as connection:
                connection.execute("UPDATE state SET sequence = sequence + 1")
                inside.set()
                leave.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        assert inside.wait(60)

        def work(_: Child) -> list[str]:
            with PEGIndex(other_path) as own:
                add(own, 2)
            inherited = refusal(lambda: len(index))
            index.close()
            gc.collect()
            return [inherited, refusal(lambda: PEGIndex(path)), refusal(lambda: PEGIndex(path))]

        child = Child(work)
        messages = child.result()
        leave.set()
        thread.join()
        assert "fork" in caplog.text
        assert str(path) in caplog.text
        assert "PEGIndex(" in messages[0]
        assert all("spawn" in message for message in messages[1:]), messages
        add(index, 2)
        assert set(index.ids()) == set(other.ids()) == {"d1", "d2"}
    assert ids(path) == {"d1", "d2"}


def test_a_child_does_not_wait_for_a_writer_of_its_parent(tmp_path: Path) -> None:
    """A thread that stands in line to write keeps a lock that no thread of the child will ever release."""
    with PEGIndex(tmp_path / "kb", timeout_s=600) as index:
        add(index, 1)
        assert index._db._one_writer.acquire(timeout=1)
        assert "PEGIndex(" in Child(lambda _: refusal(lambda: add(index, 2))).result()
        index._db._one_writer.release()


def test_a_fork_inside_a_transaction_fails_only_in_the_child(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    with PEGIndex(path) as index:
        add(index, 1)

        def work_inside(context: Any) -> str | None:
            child = None

            def work(_: Child) -> str:
                with contextlib.suppress(ForkedIndex):
                    context.__exit__(None, None, None)
                return refusal(lambda: len(index))

            with context:
                child = Child(work)
            result: str | None = child.result()
            return result

        assert "PEGIndex(" in str(work_inside(index._db.reading()))
        assert "PEGIndex(" in str(work_inside(index._db.writing()))
        add(index, 2)
    assert ids(path) == {"d1", "d2"}


def test_the_index_survives_a_failed_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PEGIndex(tmp_path / "kb") as index:
        add(index, 1)
        forks.GATE.close()
        forks.GATE.reopen()
        add(index, 2)
        assert len(index) == 2


def test_an_index_in_memory_is_copied_by_a_fork() -> None:
    with PEGIndex() as index:
        add(index, 1)

        def work(_: Child) -> int:
            add(index, 2)
            assert index.search(vector(2), k=1)[0].id == "d2"
            return len(index)

        assert Child(work).result() == 2
        assert index.ids() == ["d1"]


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_a_child_can_search_every_kind(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS and OpenMP keep threads that a child does not have."""
    if kind != "flat":
        pytest.importorskip("faiss")
    monkeypatch.setattr(segment, "MIN_IVFPQ_ROWS", 500)
    path, n = tmp_path / "kb", 600
    vectors = np.random.default_rng(0).standard_normal((n, 16)).astype(np.float32)
    with PEGIndex(path, kind=kind) as index:
        index.upsert([f"d{i}" for i in range(n)], ["x"] * n, vectors)
        index.persist()
        index.search_batch(vectors[:64], k=5)

        def work(_: Child) -> int:
            with PEGIndex(path) as own:
                hits = own.search_batch(vectors[:64], k=5)
                own.upsert(["new"], ["x"], -vectors[:1])
                own.persist()
                return sum(hit[0].id == f"d{i}" for i, hit in enumerate(hits))

        assert Child(work).result() >= 60


def test_a_closed_database_stays_closed_in_a_child(tmp_path: Path) -> None:
    index = PEGIndex(tmp_path / "kb")
    index.close()

    def work(_: Child) -> str:
        try:
            len(index)
        except PegRagError as error:
            return str(error)
        return "used"

    assert "closed" in Child(work).result()


@needs_proc
def test_inherited_connections_are_never_closed(tmp_path: Path) -> None:
    """Whoever drops the last reference in a child must not reach SQLite: its `close` is not safe after a fork."""
    connection = sqlite3.connect(tmp_path / "x.sqlite", factory=forks.Connection)
    holder = [connection]
    del connection

    def work(_: Child) -> int:
        holder.clear()
        gc.collect()
        return sum("x.sqlite" in file for file in open_files())

    assert Child(work).result() == 1
