"""Several devices: the vectors of one, whatever dies on the way, and no process left behind."""

import asyncio
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import CHARACTERS
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_files import static_model

from peg_rag import PEGEncoder
from peg_rag.backends import pool as pools
from peg_rag.backends.exported import read_thread_limit
from peg_rag.backends.messages import describe_error, pack_rows, rebuild_error, unpack_rows
from peg_rag.batching import Batch
from peg_rag.cache import CachedEncoder
from peg_rag.errors import DamagedModel, InvalidInput, PegRagError, WorkerDied

REPO = Path(__file__).resolve().parent.parent
TEXTS = [f"第{i}条：" + "花呗银行卡"[: i % 6] * (i % 9) for i in range(300)]
FLOAT32_TOLERANCE = 1e-5  # of a coordinate; other neighbours in a batch, other rounding
TIMEOUT_S = 120.0
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(static_model(tmp_path_factory.mktemp("models") / "small", CHARACTERS))


@pytest.fixture(scope="module")
def encoder(model: str) -> Iterator[PEGEncoder]:
    """Of two workers; batches of a few texts."""
    with PEGEncoder(model, devices=["cpu", "cpu"], batch_tokens=64) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def expected(model: str) -> np.ndarray:
    with PEGEncoder(model) as one:
        return one.encode_documents(TEXTS)


def pool_of(encoder: PEGEncoder) -> pools.DevicePool:
    pool = encoder._get_model()[1]
    assert isinstance(pool, pools.DevicePool)
    return pool


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_over(monkeypatch: pytest.MonkeyPatch, row: int, times: int) -> list[int]:
    """Kill the workers that are sent the batch with this row, so many times; the ids of those that were killed."""
    killed: list[int] = []
    send = pools._Worker._send_task

    def stop_send_kill(worker: pools._Worker, task: Any) -> None:
        process = worker.process
        if process is None or row not in task.batch.rows or len(killed) == times:
            send(worker, task)
            return
        process.send_signal(signal.SIGSTOP)  # it must not answer before it dies
        killed.append(process.pid)
        send(worker, task)
        process.kill()

    monkeypatch.setattr(pools._Worker, "_send_task", stop_send_kill)
    return killed


# -- vectors ----------------------------------------------------------------------------------------------------------


def test_vectors_and_names_are_those_of_one_device(encoder: PEGEncoder, model: str, expected: np.ndarray) -> None:
    with PEGEncoder(model) as one:
        np.testing.assert_array_equal(encoder.encode_documents(TEXTS), expected)
        np.testing.assert_array_equal(encoder.encode_queries(TEXTS[:1]), one.encode_queries(TEXTS[:1]))
        assert (encoder.identity, encoder.fingerprint) == (one.identity, one.fingerprint)
        assert (encoder.device, encoder.dtype, encoder.backend_name) == ("cpu,cpu", one.dtype, one.backend_name)


@settings(max_examples=30)
@given(texts=st.lists(st.text(CHARACTERS[:20] + " ", max_size=60), max_size=40))
def test_every_text_gets_its_own_vector_in_its_own_place(encoder: PEGEncoder, model: str, texts: list[str]) -> None:
    with PEGEncoder(model) as one:
        np.testing.assert_array_equal(encoder.encode_documents(texts), one.encode_documents(texts))


def test_texts_of_many_windows(encoder: PEGEncoder, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peg_rag.encoder.WINDOW_TEXTS", 7)
    np.testing.assert_array_equal(encoder.encode_documents(TEXTS), expected)


def test_a_transformer_agrees_within_rounding(tiny_bert: Path) -> None:
    with (
        PEGEncoder(tiny_bert, dtype="float32", devices=["cpu", "cpu"], batch_tokens=200) as encoder,
        PEGEncoder(tiny_bert, dtype="float32", device="cpu", batch_tokens=200) as one,
    ):
        vectors = encoder.encode_documents(TEXTS)
        np.testing.assert_allclose(vectors, one.encode_documents(TEXTS), rtol=0, atol=FLOAT32_TOLERANCE)
        np.testing.assert_array_equal(encoder.encode_documents(TEXTS), vectors)  # whoever computes which batch


def test_progress_counts_the_texts_of_all_workers(encoder: PEGEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    texts_before = encoder.stats.texts
    encoder.encode_documents(TEXTS, show_progress=True)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err
    assert encoder.stats.texts - texts_before == len(TEXTS)


def test_one_device_needs_no_process(model: str) -> None:
    with PEGEncoder(model, devices=["cpu"]) as encoder:
        assert encoder.device == "cpu"
        assert not isinstance(encoder._get_model()[1], pools.DevicePool)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"devices": "cpu,cpu"}, "a list of names"),
        ({"devices": []}, "a list of names"),
        ({"devices": ["cpu", None]}, "a list of names"),
        ({"devices": ["cpu", "cpu"], "device": "cpu"}, "one of the two"),
    ],
)
def test_devices_that_cannot_be_are_refused(model: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        PEGEncoder(model, **options)


def test_workers_must_come_out_equal() -> None:
    pools._check_equal("dtype", ["cpu", "cuda:0"], ["float32", "float32"])
    with pytest.raises(InvalidInput, match="float32 on cpu, bfloat16 on cuda:0"):
        pools._check_equal("dtype", ["cpu", "cuda:0"], ["float32", "bfloat16"])


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(10), raising=False)
    assert [pools._divide_threads(workers) for workers in (1, 3, 20)] == [10, 3, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [pools._divide_threads(workers) for workers in (3, 20)] == [2, 1]


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("0", None), ("2,1", None), (None, None)])
def test_exported_models_keep_to_the_limit(
    monkeypatch: pytest.MonkeyPatch, value: str | None, threads: int | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert read_thread_limit() == threads


# -- callers ----------------------------------------------------------------------------------------------------------


def test_threads_share_the_workers(encoder: PEGEncoder, expected: np.ndarray) -> None:
    def encode(start: int) -> np.ndarray:
        return encoder.encode_documents(TEXTS[start:])

    with ThreadPoolExecutor(8) as threads:
        for start, vectors in enumerate(threads.map(encode, range(24))):
            np.testing.assert_array_equal(vectors, expected[start:])


async def test_async_calls_share_the_workers(encoder: PEGEncoder, expected: np.ndarray) -> None:
    assert encoder._batcher._threads == 2
    calls = [encoder.aencode_documents(TEXTS[start:]) for start in range(24)]
    for start, vectors in enumerate(await asyncio.gather(*calls)):
        np.testing.assert_array_equal(vectors, expected[start:])


def test_callers_take_turns() -> None:
    queue = pools._BatchQueue(workers=2)
    corpus = pools._Call()
    query = pools._Call()
    for call, count in ((corpus, 5), (query, 1)):
        for number in range(count):
            queue.put(pools._Task(call, Batch(np.array([number]), [[1]])))
    first = queue.take()
    second = queue.take()
    assert first is not None
    assert second is not None
    assert (first.call, second.call) == (corpus, query)
    queue.put_back(first)  # the next of its call
    again = queue.take()
    assert again is first
    assert queue.take_ahead() is not None
    assert queue.take_ahead() is not None
    assert queue.take_ahead() is None  # two are left, one for each worker
    queue.drop(corpus)
    queue.put_back(first)  # of a call that was dropped
    queue.close()
    assert queue.take() is None
    with pytest.raises(PegRagError, match="closed"):
        queue.put(first)


def test_a_call_that_is_left_early_drops_its_batches(encoder: PEGEncoder) -> None:
    pool = pool_of(encoder)
    fetched: list[int] = []

    def make_batches() -> Iterator[Batch]:
        for number in range(1000):
            fetched.append(number)
            yield Batch(np.array([number]), [[1, 2, 3]])

    results = pool.embed_batches(make_batches(), max_rows=10)
    next(results)
    results.close()
    assert len(fetched) <= 12  # no more are fetched than may wait
    assert pool._queue._size == 0
    assert pool.embed([[1, 2, 3]]).shape == (1, encoder.spec.dimension)


def test_a_pickle_makes_workers_of_its_own(encoder: PEGEncoder, expected: np.ndarray) -> None:
    with pickle.loads(pickle.dumps(encoder)) as copy:
        np.testing.assert_array_equal(copy.encode_documents(TEXTS), expected)
        assert not set(pool_of(copy).process_ids) & set(pool_of(encoder).process_ids)


# -- deaths -----------------------------------------------------------------------------------------------------------


@needs_signals
@pytest.mark.parametrize("deaths", [1, pools.MAX_DEATHS - 1])
def test_the_batch_of_a_killed_worker_is_done_again(
    encoder: PEGEncoder,
    expected: np.ndarray,
    deaths: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    killed = kill_over(monkeypatch, row=5, times=deaths)
    done: list[int] = []
    embed = pools.DevicePool.embed_batches

    def count_rows(pool: Any, batches: Any, *, max_rows: int) -> Iterator[Any]:
        for batch, vectors in embed(pool, batches, max_rows=max_rows):
            done.extend(batch.rows.tolist())
            yield batch, vectors

    monkeypatch.setattr(pools.DevicePool, "embed_batches", count_rows)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(encoder.encode_documents(TEXTS), expected)
    assert sorted(done) == list(range(len(TEXTS)))  # each once
    assert len(set(killed)) == deaths
    assert caplog.text.count("was killed by SIGKILL; it is started again") == deaths
    wait_until(lambda: len(pool_of(encoder).process_ids) == 2)
    assert not set(killed) & set(pool_of(encoder).process_ids)


@needs_signals
def test_three_deaths_over_a_batch_name_its_texts(
    encoder: PEGEncoder, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [TEXTS[5], *TEXTS]  # twice in the list, once in a batch
    monkeypatch.setattr(pools, "_BATCHES_AHEAD", 1)  # or a worker may die over the batch before
    killed = kill_over(monkeypatch, row=0, times=pools.MAX_DEATHS)
    with pytest.raises(WorkerDied, match=r"documents\[0\].*3 worker processes died.*SIGKILL.*batch_tokens") as caught:
        encoder.encode_documents(texts)
    assert len(set(killed)) == 3
    error = caught.value
    assert {0, 6} <= set(error.positions)
    assert len(error.positions) < 30
    assert error.texts == [texts[position] for position in error.positions]
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.positions, copy.texts, str(copy)) == (error.positions, error.texts, str(error))
    np.testing.assert_array_equal(encoder.encode_documents(TEXTS), expected)  # the encoder can still be used


async def test_positions_of_an_async_call_are_those_in_its_list(
    encoder: PEGEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peg_rag.microbatching.FIRST_BATCH_CHARACTERS", 80)  # a request goes in slices
    encoder._batcher.rate = 0.0
    monkeypatch.setattr(encoder, "encode_queries", refuse_text(encoder.encode_queries, TEXTS[200]))
    with pytest.raises(WorkerDied, match=r"queries\[200\] could not be embedded: poison;") as caught:
        await encoder.aencode_queries(TEXTS)
    assert caught.value.positions == [200]


def test_positions_of_a_cached_encoder_are_those_in_its_list(model: str, tmp_path: Path) -> None:
    with CachedEncoder(PEGEncoder(model), tmp_path / "vectors.db") as cached:
        cached.encode_documents(TEXTS[:100])
        cached.encoder.encode_documents = refuse_text(cached.encoder.encode_documents, TEXTS[150])  # type: ignore[method-assign]
        with pytest.raises(WorkerDied, match=r"documents\[150\] could not be embedded"):
            cached.encode_documents(TEXTS)


def refuse_text(encode: Any, poison: str) -> Any:
    def encode_or_die(texts: list[str], **options: Any) -> Any:
        if poison in texts:
            raise WorkerDied("poison", texts=[poison], positions=[texts.index(poison)])
        return encode(texts, **options)

    return encode_or_die


@needs_signals
def test_a_worker_that_was_killed_at_rest_is_started_again(encoder: PEGEncoder, expected: np.ndarray) -> None:
    killed = pool_of(encoder).process_ids
    for process_id in killed:
        os.kill(process_id, signal.SIGKILL)
    np.testing.assert_array_equal(encoder.encode_documents(TEXTS), expected)


def test_an_error_in_a_worker_is_raised_as_it_is(encoder: PEGEncoder, expected: np.ndarray) -> None:
    with pytest.raises(IndexError, match="999999") as caught:
        pool_of(encoder).embed([[1, 999_999]])
    assert "In the worker process on cpu:" in caught.value.__notes__[0]
    assert "static_backend.py" in caught.value.__notes__[0]
    np.testing.assert_array_equal(encoder.encode_documents(TEXTS), expected)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (InvalidInput("a"), InvalidInput),
        (MemoryError("a"), MemoryError),
        (FileNotFoundError("a"), FileNotFoundError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a"), UnicodeError),
        (type("Local", (KeyError,), {})("a"), KeyError),
    ],
)
def test_errors_travel(error: Exception, raised: type) -> None:
    rebuilt = rebuild_error(describe_error(error), "cpu")
    assert type(rebuilt) is raised
    assert "a" in str(rebuilt)


def test_a_model_that_cannot_be_loaded_is_the_caller_s_error(model: str, tmp_path: Path) -> None:
    children = set(psutil.Process().children())
    with pytest.raises(InvalidInput, match="static model, which runs on the cpu"):
        PEGEncoder(model, devices=["cpu", "cuda:0"])
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    encoder = PEGEncoder(folder, devices=["cpu", "cpu"])
    weights = next(folder.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4])
    for worker in pool_of(encoder)._workers:
        worker.kill()
    with pytest.raises(DamagedModel, match="safetensors"):
        encoder.encode_documents(["花呗"])
    encoder.close()
    assert set(psutil.Process().children()) <= children


def test_other_weights_under_the_same_name_are_refused(model: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(model, tmp_path / "model"))
    with PEGEncoder(folder, devices=["cpu", "cpu"]) as encoder:
        weights = next(folder.rglob("model.safetensors"))
        save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
        for worker in pool_of(encoder)._workers:
            worker.kill()
        with pytest.raises(PegRagError, match="not those that this encoder began with"):
            encoder.encode_documents(["花呗"])


@given(rows=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=5))
def test_rows_travel(rows: list[list[int]]) -> None:
    assert unpack_rows(bytearray(pack_rows(rows).tobytes())) == rows


# -- the end ----------------------------------------------------------------------------------------------------------


def test_close_ends_the_workers_and_fails_the_calls_that_wait(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PEGEncoder(model, devices=["cpu", "cpu"], batch_tokens=64)
    pool = pool_of(encoder)
    processes = [psutil.Process(process_id) for process_id in pool.process_ids]
    threads = [worker._thread for worker in pool._workers]
    for process in processes:
        process.suspend()
    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(encoder.encode_documents, TEXTS) for _ in range(2)]
        wait_until(lambda: all(worker._tasks for worker in pool._workers))
        encoder.close()
        for call in calls:
            with pytest.raises(PegRagError, match="closed"):
                call.result(TIMEOUT_S)
    assert not any(process.is_running() for process in processes)
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(PegRagError, match="closed"):
        encoder.encode_documents(["花呗"])
    encoder.close()


def test_an_encoder_that_is_dropped_takes_its_workers_along(model: str) -> None:
    encoder = PEGEncoder(model, devices=["cpu", "cpu"])
    processes = [psutil.Process(process_id) for process_id in pool_of(encoder).process_ids]
    del encoder
    wait_until(lambda: not any(process.is_running() for process in processes))


SCRIPT = """
import os, sys, threading
from peg_rag import PEGEncoder
encoder = PEGEncoder(sys.argv[1], devices=["cpu", "cpu"])
pool = encoder._get_model()[1]
print(*pool.process_ids, flush=True)
how = sys.argv[2]
sys.stdin.readline()  # the workers are known to the test now
if how == "error":
    raise ZeroDivisionError
if how == "os._exit":
    os._exit(1)
if how == "work":
    while True:
        encoder.encode_documents([f"花呗{i}" for i in range(5000)])
"""


@needs_signals
@pytest.mark.parametrize("how", ["return", "error", "os._exit", "SIGINT", "SIGTERM", "SIGKILL"])
def test_no_worker_outlives_the_process(model: str, how: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    arguments = [sys.executable, str(tmp_path / "script.py"), model, "work" if how.startswith("SIG") else how]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, cwd=REPO) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stderr is not None
        workers = [psutil.Process(int(name)) for name in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.stdin.write(b"\n")
        parent.stdin.flush()
        if how.startswith("SIG"):
            parent.send_signal(signal.Signals[how])
        says = parent.stderr.read().decode()  # to its end: the workers hold the other end of the pipe, too
        parent.wait(TIMEOUT_S)
    wait_until(lambda: not any(is_alive(worker) for worker in workers))
    assert {"error": "ZeroDivisionError", "SIGINT": "KeyboardInterrupt"}.get(how, "") in says
    assert says.count("Traceback") == (how in ("error", "SIGINT"))


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_is_told_to_make_its_own(model: str) -> None:
    """In a process of its own: in this one the tests' other libraries have threads."""
    code = """
import os, sys
from peg_rag import PEGEncoder
from peg_rag.errors import PegRagError
encoder = PEGEncoder(sys.argv[1], devices=["cpu", "cpu"])
pid = os.fork()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
    encoder.encode_documents(["花呗"])
else:
    try:
        encoder.encode_documents(["花呗"])
    except PegRagError as error:
        assert "in the child" in str(error)
        encoder.close()
        sys.exit(0)
    sys.exit(1)
"""
    subprocess.run([sys.executable, "-c", code, model], cwd=REPO, check=True, timeout=TIMEOUT_S)


def test_a_script_needs_no_main_guard(model: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom peg_rag import PEGEncoder\n"
        "print(PEGEncoder(sys.argv[1], devices=['cpu', 'cpu']).encode_documents(['花呗']).shape[0])\n"
    )
    done = subprocess.run([sys.executable, script, model], cwd=REPO, check=True, capture_output=True, timeout=TIMEOUT_S)
    assert done.stdout.split() == [b"1"]
    assert done.stderr == b""
