"""PEGIndex beside other processes and threads, and killed at any moment: no acknowledged write is lost or partial."""

import multiprocessing as mp
import os
import random
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peg_rag.errors import IndexBusy
from peg_rag.index import PEGIndex, compaction

DIMENSION = 16
BATCH = 20
SPAWN = mp.get_context("spawn")


def vector(number: int) -> np.ndarray:
    """The vector that document `number` must have."""
    return np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32)


def text(number: int) -> str:
    return f"第{number}号文件 花呗账单 {'长' * (number % 50)}"


def add(index: PEGIndex, numbers: list[int]) -> None:
    index.upsert(
        [f"d{n}" for n in numbers],
        [text(n) for n in numbers],
        np.array([vector(n) for n in numbers]),
        [{"n": n, "batch": n // BATCH} for n in numbers],
    )


# -- kill -9 ----------------------------------------------------------------------------------------------------------

Model = dict[int, int]  # document number → how many times it was written before
Operation = tuple[str, list[int]]


def versioned_text(number: int, version: int) -> str:
    return f"第{number}号文件 第{version}版 花呗账单 {'长' * (number % 50)}"


def versioned_vector(number: int, version: int) -> np.ndarray:
    return np.random.default_rng((number, version)).standard_normal(DIMENSION).astype(np.float32)


def predict_model(model: Model, operation: Operation) -> Model:
    """The model once an operation is carried out."""
    name, numbers = operation
    match name:
        case "upsert":
            return model | {number: model.get(number, -1) + 1 for number in numbers}
        case "delete" | "delete where":
            return {number: version for number, version in model.items() if number not in numbers}
        case "clear":
            return {}
    return model


def apply_operation(index: PEGIndex, model: Model, operation: Operation) -> None:
    name, numbers = operation
    match name:
        case "upsert":
            versions = predict_model(model, operation)
            index.upsert(
                [f"d{n}" for n in numbers],
                [versioned_text(n, versions[n]) for n in numbers],
                np.array([versioned_vector(n, versions[n]) for n in numbers]),
                [{"n": n, "version": versions[n]} for n in numbers],
            )
        case "delete":
            index.delete([f"d{n}" for n in numbers])
        case "delete where":
            index.delete(where={"n": {"$in": numbers}})
        case "clear":
            index.clear()
        case "persist":
            index.persist()


def next_operation(model: Model, chance: random.Random) -> Operation:
    kind = chance.choices(["upsert", "delete", "delete where", "persist", "clear"], [12, 4, 2, 2, 0.1])[0]
    match kind:
        case "upsert":
            return kind, chance.sample(range(600), chance.choice([1, 5, BATCH, 3 * BATCH]))
        case "delete" | "delete where":
            return kind, chance.sample(sorted(model), min(len(model), chance.choice([1, 5, BATCH])))
    return kind, []


def write_until_killed(path: Path, kind: Any, model: Model, seed: int, pipe: Any) -> None:
    """Write, delete and compact until killed; report to the parent before and after each call."""
    compaction.MIN_ROWS = 3 * BATCH
    chance = random.Random(seed)
    with PEGIndex(path, kind=kind) as index:
        while True:
            operation = next_operation(model, chance)
            pipe.send(operation)
            apply_operation(index, model, operation)
            pipe.send("done")
            model = predict_model(model, operation)


def check_everything(path: Path, possible: list[Model]) -> Model:
    """Compare the whole index with the possible models and return the one that it equals."""
    with PEGIndex(path) as index:
        records = index.get(where={})
        model = {record.metadata["n"]: record.metadata["version"] for record in records}
        assert model in possible, "the index differs from the acknowledged writes"
        assert {record.id: record.text for record in records} == {
            f"d{n}": versioned_text(n, version) for n, version in model.items()
        }
        assert sorted(index.ids()) == sorted(f"d{n}" for n in model)
        assert len(index) == index.count({"n": {"$gte": 0}}) == len(model)
        numbers = sorted(model)
        vectors = [versioned_vector(n, model[n]) for n in numbers]
        for number, hits in zip(numbers, index.search_batch(vectors, k=1), strict=True):
            assert (hits[0].id, hits[0].text) == (f"d{number}", versioned_text(number, model[number]))
            assert hits[0].score == pytest.approx(1.0, abs=1e-5)
        for number, hits in zip(numbers, index.search_batch(texts=[f"第{n}号" for n in numbers], k=600), strict=True):
            assert f"d{number}" in {hit.id for hit in hits}
        if numbers:
            assert {hit.id for hit in index.search(text="花呗", k=10**6)} == {f"d{n}" for n in numbers}
            assert {hit.id for hit in index.search(vectors[0], "花呗", k=10**6, fetch_k=10**6)} == {
                f"d{n}" for n in numbers
            }
    return model


def kill_repeatedly(path: Path, kills: int, longest_s: float, kind: str = "flat") -> None:
    """Kill a writing process again and again; after each kill, every document is compared with the model."""
    model: Model = {}
    chance = random.Random(7)
    acknowledged, cut_off = 0, 0
    for kill in range(kills):
        receiver, sender = SPAWN.Pipe(duplex=False)
        child = SPAWN.Process(target=write_until_killed, args=(path, kind, model, kill, sender))
        child.start()
        sender.close()
        messages = [receiver.recv()]  # the child is at work
        alive_until = time.monotonic() + chance.uniform(0, longest_s)
        while (left := alive_until - time.monotonic()) > 0:
            if receiver.poll(left):
                messages.append(receiver.recv())
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        with suppress(EOFError):
            while True:
                messages.append(receiver.recv())
        operations = [message for message in messages if message != "done"]
        finished = messages.count("done")
        for operation in operations[:finished]:
            model = predict_model(model, operation)
        possible = [model, *(predict_model(model, operation) for operation in operations[finished:])]
        model = check_everything(path, possible)
        acknowledged += finished
        cut_off += len(operations) - finished
    print(f"{kind}: {kills} kills, {acknowledged} acknowledged calls, {cut_off} cut off; {len(model)} documents left")


def test_a_few_kills(tmp_path: Path) -> None:
    kill_repeatedly(tmp_path / "kb", kills=3, longest_s=0.6)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("kind", "kills"), [("flat", 200), ("hnsw", 40)])
def test_many_kills(kind: str, kills: int, tmp_path: Path) -> None:
    if kind != "flat":
        pytest.importorskip("faiss")
    kill_repeatedly(tmp_path / "kb", kills, longest_s=1.0, kind=kind)


def check_after_a_kill(path: Path, events: list[tuple[str, int]]) -> None:
    added = {first for event, first in events if event == "added"}
    deleted = {first for event, first in events if event == "deleted"}
    begun = {first for event, first in events if event == "begin"}
    with PEGIndex(path) as index:
        present = {int(name[1:]) for name in index.ids()}
        for first in begun:
            batch = set(range(first, first + BATCH))
            stored = batch & present
            if first in deleted:
                assert stored == batch - {first}
            elif first in added:
                assert stored in (batch, batch - {first})
            else:
                assert stored in (batch, set(), batch - {first}), "a batch is stored in part"
        assert present <= {n for first in begun for n in range(first, first + BATCH)}
        assert len(index) == len(present) == index.count({"n": {"$gte": 0}})
        sample = random.Random(0).sample(sorted(present), min(30, len(present)))
        for number, record in zip(sample, index.get([f"d{n}" for n in sample]), strict=True):
            assert (record.text, record.metadata["n"]) == (text(number), number)
        for number, hits in zip(sample, index.search_batch([vector(n) for n in sample], k=1), strict=True):
            assert (hits[0].id, hits[0].text) == (f"d{number}", text(number))
            assert hits[0].score == pytest.approx(1.0, abs=1e-5)
        for number in sample[:10]:
            (hit,) = index.search(text=f"第{number}号", k=1)
            assert hit.id == f"d{number}"
        assert {hit.id for hit in index.search(vector(0), k=10**6)} == {f"d{n}" for n in present}


MOMENTS = [
    "peg_rag.index.tables.write_postings",
    "peg_rag.index.segment_file._link_file",
    "peg_rag.index.segment_file._write_rows",
    "peg_rag.index.segment_file.sync_stream",
    "peg_rag.index.segment_file.sync_folder",
    "peg_rag.index.tables.write_manifest",
    "peg_rag.index.compaction.remove_stray_files",
]


def die_at(path: Path, moment: str, with_links: bool) -> None:
    """Write until a certain function is about to run, or has just run, and die there."""
    import importlib

    if not with_links:
        Path.hardlink_to = refuse_link  # type: ignore[method-assign, assignment]
    index = PEGIndex(path)
    add(index, list(range(BATCH, 2 * BATCH)))
    module, name = moment.rsplit(".", 1)
    before = getattr(importlib.import_module(module), name)

    def call_and_die(*args: Any, **kwargs: Any) -> None:
        before(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(importlib.import_module(module), name, call_and_die)
    if name == "write_postings":
        add(index, list(range(2 * BATCH, 3 * BATCH)))
    index.persist()


def refuse_link(*_: Any) -> None:
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("with_links", [True, False], ids=["appended", "rewritten"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.rsplit(".", 1)[1])
def test_a_kill_at_each_step_of_a_write(moment: str, with_links: bool, tmp_path: Path) -> None:
    """Between writing rows and their commit, around the new name of the segment file, and after the commit."""
    path = tmp_path / "kb"
    with PEGIndex(path) as index:
        add(index, list(range(BATCH)))
        index.persist()
    child = SPAWN.Process(target=die_at, args=(path, moment, with_links))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    events = [(event, first) for first in (0, BATCH) for event in ("begin", "added")]
    check_after_a_kill(path, events)
    with PEGIndex(path) as index:
        add(index, list(range(2 * BATCH, 3 * BATCH)))
        index.persist()
        assert len(index) == 3 * BATCH
        assert index.search(vector(2 * BATCH), k=1)[0].id == f"d{2 * BATCH}"
    (file,) = path.glob("vectors-*")
    assert file.stat().st_size == 3 * BATCH * 4 * DIMENSION


# -- one writer, many readers -----------------------------------------------------------------------------------------


def read_until_stopped(path: Path, stop: Any, acknowledged: Any, results: Any) -> None:
    """Search all the time; whatever had been acknowledged before a query must be in its answer."""
    reads = 0
    try:
        with PEGIndex(path, read_only=True) as index:
            while not stop.is_set():
                count_acknowledged = acknowledged.value
                if count_acknowledged:
                    number = count_acknowledged - 1 - reads % min(count_acknowledged, 200)
                    (hit,) = index.search(vector(number), k=1)
                    assert (hit.id, hit.text) == (f"d{number}", text(number))
                    latest = count_acknowledged - 1
                    assert [r.text for r in index.get([f"d{latest}"])] == [text(latest)]
                    assert index.search(text=f"第{latest}号", k=1)[0].id == f"d{latest}"
                    assert index.search(vector(latest), k=1, where={"n": latest})[0].id == f"d{latest}"
                    assert len(index) >= count_acknowledged
                    reads += 1
        results.put(reads)
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")
        raise


def write_while_read(path: Path, readers: int, seconds: float) -> None:
    PEGIndex(path, dimension=DIMENSION).close()
    stop, results, acknowledged = SPAWN.Event(), SPAWN.Queue(), SPAWN.Value("q", 0)
    children = [
        SPAWN.Process(target=read_until_stopped, args=(path, stop, acknowledged, results)) for _ in range(readers)
    ]
    for child in children:
        child.start()
    count_written = 0
    give_up_at = time.monotonic() + seconds
    with PEGIndex(path) as index:
        while time.monotonic() < give_up_at:
            add(index, list(range(count_written, count_written + BATCH)))
            count_written += BATCH
            acknowledged.value = count_written
            if count_written % (10 * BATCH) == 0:
                index.persist()
            time.sleep(0.01)
        stop.set()
        answers = [results.get(timeout=60) for _ in children]
        for child in children:
            child.join()
        assert all(isinstance(answer, int) for answer in answers), answers
        assert sum(answers) > 0
        assert len(index) == count_written
        assert {hit.id for hit in index.search(vector(0), k=10**6)} == {f"d{n}" for n in range(count_written)}


def test_one_writer_two_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MIN_ROWS", 5 * BATCH)
    write_while_read(tmp_path / "kb", readers=2, seconds=4)


@pytest.mark.slow
def test_one_writer_eight_readers_for_half_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MIN_ROWS", 20 * BATCH)
    write_while_read(tmp_path / "kb", readers=8, seconds=30)


def write_some(path: Path, first: int, batches: int) -> None:
    with PEGIndex(path, timeout_s=60) as index:
        for batch in range(batches):
            add(index, list(range(first + batch * BATCH, first + (batch + 1) * BATCH)))


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path, batches = tmp_path / "kb", 10
    children = [SPAWN.Process(target=write_some, args=(path, 1000 * i, batches)) for i in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    with PEGIndex(path) as index:
        assert len(index) == 2 * batches * BATCH
        assert index.search(vector(1007), k=1)[0].id == "d1007"


def hold_write_lock(path: Path, is_held: Any, release: Any) -> None:
    with PEGIndex(path) as index, index._db.writing():
        is_held.set()
        release.wait(30)


def test_a_writer_in_another_process_delays_and_then_times_out(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    with PEGIndex(path, timeout_s=0.3) as index:
        add(index, [1])
        is_held, release = SPAWN.Event(), SPAWN.Event()
        child = SPAWN.Process(target=hold_write_lock, args=(path, is_held, release))
        child.start()
        assert is_held.wait(30)
        started = time.monotonic()
        with pytest.raises(IndexBusy, match="another process"):
            add(index, [2])
        assert time.monotonic() - started > 0.2
        assert index.search(vector(1), k=1)[0].id == "d1"  # readers do not wait
        release.set()
        child.join()
        add(index, [2])
        assert len(index) == 2


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, "kb"])
def test_threads_write_and_search_concurrently(
    path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MIN_ROWS", 4 * BATCH)
    with PEGIndex(None if path is None else tmp_path / path, timeout_s=60) as index:
        add(index, [0])
        stop = threading.Event()

        def write(first: int) -> None:
            for batch in range(5):
                add(index, list(range(first + batch * BATCH, first + (batch + 1) * BATCH)))

        def read() -> int:
            count = 0
            while not stop.is_set() or count == 0:
                (hit,) = index.search(vector(0), k=1)
                assert (hit.id, hit.text) == ("d0", text(0))
                assert index.search(vector(0), "第0号", k=3)[0].id == "d0"
                count += 1
            return count

        with ThreadPoolExecutor(12) as pool:
            readers = [pool.submit(read) for _ in range(9)]
            writers = [pool.submit(write, 1000 * (i + 1)) for i in range(3)]
            try:
                for writer in writers:
                    writer.result(60)
            finally:
                stop.set()
            assert all(reader.result(60) > 0 for reader in readers)
        assert len(index) == 1 + 3 * 5 * BATCH


# -- full disk --------------------------------------------------------------------------------------------------------


def write_with_little_room(path: Path, results: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with PEGIndex(path) as index:
        size = (path / "index.sqlite").stat().st_size + 200_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        first = BATCH
        try:
            while True:
                add(index, list(range(first, first + BATCH)))
                first += BATCH
        except OSError as error:
            hits = [hit.id for hit in index.search(vector(3), k=1)]
            results.put((first, str(error), hits, len(index)))


def test_no_room_for_the_file_keeps_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    with PEGIndex(path) as index:
        add(index, list(range(BATCH)))
    results = SPAWN.Queue()
    child = SPAWN.Process(target=write_with_little_room, args=(path, results))
    child.start()
    count_written, message, hits, count = results.get(timeout=60)
    child.join()
    assert "as it was before" in message
    assert hits == ["d3"]
    assert count == count_written
    with PEGIndex(path) as index:
        assert len(index) == count_written
        add(index, [10**6])
        assert index.search(vector(10**6), k=1)[0].id == f"d{10**6}"
