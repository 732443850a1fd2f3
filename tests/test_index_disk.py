"""PEGIndex on a full or read-only disk: no write is lost or misreported, and every error has a type."""

import contextlib
import multiprocessing as mp
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peg_rag.errors import IndexBusy, PegRagError
from peg_rag.index import PEGIndex, compaction, segment_file

DIMENSION = 1024  # in int8, SQLite keeps a quarter of what the vector file takes
SPAWN = mp.get_context("spawn")


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIMENSION)).astype(np.float32)


def add(index: PEGIndex, first: int, count: int) -> None:
    names = [f"d{n}" for n in range(first, first + count)]
    index.upsert(names, ["x"] * count, rows(first + count)[first:], [{"n": n} for n in range(first, first + count)])


def vector_files(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("vectors-*"))


@contextlib.contextmanager
def mount_folder(*arguments: str) -> Iterator[None]:
    """Mount something; skips the test without the right to mount."""
    folder = arguments[-1]
    command = shutil.which("mount")
    if command is None or subprocess.run([command, *arguments], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


# -- no room for the vector file --------------------------------------------------------------------------------------


def write_beside_a_full_disk(path: Path, kind: Any, results: Any) -> None:
    """Files may grow to 6 MB: enough for int8 vectors in SQLite, too little for float32 in the vector file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    compaction.MIN_ROWS = 1900
    compaction.RETRY_S = 0
    if kind != "flat":
        import faiss

        faiss.omp_set_num_threads(1)  # more would compete on a busy machine
    try:
        with PEGIndex(path, kind=kind, storage="int8") as index:
            limit = 6 << 20
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            for first in range(0, 2000, 250):
                add(index, first, 250)
            refused = None
            try:
                index.persist()
            except OSError as error:
                refused = (type(error).__name__, str(error), str(path) in str(error))
            deleted = index.delete(["d0"])
            hits = [hit.id for hit in index.search(rows(2000)[7], k=1)]
            before = vector_files(path)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            add(index, 2000, 1)
            results.put((len(index), deleted, hits, refused, before, vector_files(path)))
    except BaseException as error:
        results.put(repr(error))
        raise


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_write_succeeds_without_room_for_the_vector_file(kind: str, tmp_path: Path) -> None:
    if kind != "flat":
        pytest.importorskip("faiss")
    results = SPAWN.Queue()
    child = SPAWN.Process(target=write_beside_a_full_disk, args=(tmp_path / "kb", kind, results))
    child.start()
    answer = results.get(timeout=120)
    child.join()
    assert not isinstance(answer, str), answer
    count, deleted, hits, refused, before, after = answer
    assert (count, deleted, hits) == (2000, 1, ["d7"])
    name, message, with_path = refused
    assert name == "OSError"
    assert "File too large" in message
    assert with_path
    assert before == []
    assert after == ["vectors-1"]  # retried by a later write, when there was room


def test_a_full_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(compaction, "MIN_ROWS", 1900)
    monkeypatch.setattr(compaction, "RETRY_S", 0)
    path = tmp_path / "small"
    path.mkdir()
    with mount_folder("-t", "tmpfs", "-o", "size=11m", "tmpfs", str(path)):
        with PEGIndex(path, storage="int8") as index:
            for first in range(0, 2000, 250):
                add(index, first, 250)
            assert "No space left" in caplog.text
            assert "vector file" in caplog.text
            assert len(index) == 2000
            assert vector_files(path) == []
            with pytest.raises(OSError, match="No space left") as error:
                index.persist()
            assert not isinstance(error.value, PegRagError)
            assert vector_files(path) == []
            subprocess.run(["mount", "-o", "remount,size=32m", str(path)], check=True)
            index.delete(["d0"])
            assert vector_files(path) == ["vectors-1"]
            assert index.search(rows(2000)[7], k=1)[0].id == "d7"
        with PEGIndex(path) as index:
            assert len(index) == 1999


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("failing", ["write", "fsync", "rename", "commit", "memory"])
def test_a_failed_compaction_is_retried_later(
    failing: str, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if kind != "flat":
        pytest.importorskip("faiss")
    monkeypatch.setattr(compaction, "MIN_ROWS", 10)
    path = tmp_path / "kb"
    with PEGIndex(path, kind=kind) as index:
        add(index, 0, 20)  # generation 1
        with monkeypatch.context() as patch:
            inject_failure(failing, patch)
            add(index, 20, 20)
            assert "next try" in caplog.text
            assert len(index) == 40
            assert index.search(rows(40)[33], k=1)[0].id == "d33"
            caplog.clear()
            add(index, 40, 1)  # not retried at once
            assert caplog.text == ""
            with pytest.raises(MemoryError if failing == "memory" else OSError):
                index.persist()
            assert not any(name.endswith(".part") for name in vector_files(path))
        monkeypatch.setattr(compaction, "RETRY_S", 0)
        index.persist()
        assert vector_files(path) == ["vectors-2"]
        assert index.search(rows(41)[40], k=1)[0].id == "d40"
    assert caplog.text == ""


def inject_failure(failing: str, patch: pytest.MonkeyPatch) -> None:
    """Make one step of a compaction fail from now on, but no step of an ordinary write."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def exhaust(*_: Any, **__: Any) -> None:
        raise MemoryError

    match failing:
        case "write":
            before = Path.open

            def open_file(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
                if self.name.startswith("vectors-") and ("w" in mode or "+" in mode):
                    return open("/dev/full", mode, *rest, **options)  # noqa: PTH123
                return before(self, mode, *rest, **options)

            patch.setattr(Path, "open", open_file)
        case "fsync":
            patch.setattr("peg_rag.files.os.fsync", refuse)
        case "rename":
            patch.setattr(Path, "replace", refuse)
            patch.setattr(Path, "hardlink_to", refuse)
        case "commit":
            patch.setattr("peg_rag.index.tables.write_manifest", refuse)
        case "memory":
            patch.setattr("peg_rag.index.segment_file._SegmentWriter.finish", exhaust)


def test_stray_files_are_removed_before_the_next_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kb"
    with PEGIndex(path) as index:
        add(index, 0, 5)
        (path / "vectors-1.part").write_bytes(b"x" * 1000)
        (path / "vectors-7").write_bytes(b"x" * 1000)
        names: list[list[str]] = []
        write_segment = segment_file.write_segment

        def list_and_write(*arguments: Any) -> Any:
            names.append(vector_files(path))
            return write_segment(*arguments)

        monkeypatch.setattr(segment_file, "write_segment", list_and_write)
        index.persist()
        assert names == [[]]
        assert vector_files(path) == ["vectors-1"]


# -- where nothing may be written -------------------------------------------------------------------------------------


@contextlib.contextmanager
def mount_read_only(path: Path, target: Path) -> Iterator[Path]:
    """The folder `path`, mounted read-only at `target`."""
    target.mkdir(exist_ok=True)
    with mount_folder("--bind", str(path), str(target)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], check=True)
        yield target


def copy_after_crash(path: Path, target: Path, *, with_shared_memory: bool) -> None:
    """Copy an index as a killed writer leaves it: with the last writes only in the log."""
    target.mkdir()
    for file in path.iterdir():
        if with_shared_memory or not file.name.endswith("-shm"):
            shutil.copy(file, target / file.name)


def test_a_read_only_mount(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    with PEGIndex(path) as index:
        add(index, 0, 30)
        index.persist()
        add(index, 30, 1)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with mount_read_only(path, tmp_path / "mount") as mount:
        with PEGIndex(mount, read_only=True) as reader:
            assert len(reader) == 31
            assert reader.search(rows(31)[30], k=1)[0].id == "d30"
            assert reader.search(text="x", k=100, where={"n": {"$gte": 5}}, mode="lexical")
            assert [record.id for record in reader.get(where={"n": 3})] == ["d3"]
            with pytest.raises(PegRagError, match="read_only"):
                reader.delete(["d0"])
        with pytest.raises(OSError, match="read_only=True"):
            PEGIndex(mount)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@pytest.mark.parametrize("with_shared_memory", [True, False])
def test_a_read_only_mount_with_a_log(with_shared_memory: bool, tmp_path: Path) -> None:
    """Acknowledged writes that are only in SQLite's log are found, though they cannot be checkpointed."""
    path, copy = tmp_path / "kb", tmp_path / "copy"
    with PEGIndex(path) as index:
        add(index, 0, 10)
        index.persist()
        add(index, 10, 1)
        copy_after_crash(path, copy, with_shared_memory=with_shared_memory)
    assert (copy / "index.sqlite-wal").stat().st_size > 0
    with mount_read_only(copy, tmp_path / "mount") as mount, PEGIndex(mount, read_only=True) as reader:
        assert len(reader) == 11
        assert reader.search(rows(11)[10], k=1)[0].id == "d10"
        assert reader.search(rows(11)[3], k=1)[0].id == "d3"


def test_a_reader_on_a_read_only_mount_follows_a_writer_elsewhere(tmp_path: Path) -> None:
    """Opened without a writer, it takes no locks; it must notice a writer that begins, checkpoints and ends."""
    path = tmp_path / "kb"
    with PEGIndex(path) as index:
        add(index, 0, 3)
    with mount_read_only(path, tmp_path / "mount") as mount, PEGIndex(mount, read_only=True) as reader:
        assert len(reader) == 3
        for generation in range(1, 4):
            with PEGIndex(path) as writer:
                add(writer, 3 * generation, 2)
                assert len(reader) == 3 + 3 * generation - 1
                add(writer, 3 * generation + 2, 1)
                assert reader.search(rows(3 * generation + 3)[-1], k=1)[0].id == f"d{3 * generation + 2}"
            assert len(reader) == 3 + 3 * generation
            assert reader.count({"n": {"$gte": 0}}) == 3 + 3 * generation


def test_a_change_during_a_read_without_locks_raises(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    with PEGIndex(path) as index:
        add(index, 0, 3)
    with mount_read_only(path, tmp_path / "mount") as mount, PEGIndex(mount, read_only=True) as reader:

        def read_beside_a_writer() -> None:
            with reader._db.reading() as connection:
                connection.execute("SELECT count(*) FROM documents").fetchone()
                with PEGIndex(path) as writer:
                    add(writer, 3, 1)

        with pytest.raises(IndexBusy, match="try again"):
            read_beside_a_writer()
        assert len(reader) == 4


def test_readers_on_a_read_only_mount_beside_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    with PEGIndex(path) as index:
        add(index, 0, 3)
    with mount_read_only(path, tmp_path / "mount") as mount:
        results, stop = SPAWN.Queue(), SPAWN.Event()
        children = [SPAWN.Process(target=read_until_stopped, args=(mount, stop, results)) for _ in range(2)]
        for child in children:
            child.start()
        for _ in children:
            assert results.get(timeout=60) == "ready"
        for number in range(3, 40):
            with PEGIndex(path, timeout_s=60) as writer:
                add(writer, number, 1)
        stop.set()
        answers = [results.get(timeout=60) for _ in children]
        for child in children:
            child.join()
    assert answers == [40, 40]


def read_until_stopped(mount: Path, stop: Any, results: Any) -> None:
    try:
        with PEGIndex(mount, read_only=True) as reader:
            results.put("ready")
            last = 0
            while not stop.is_set():
                with contextlib.suppress(IndexBusy):
                    count = len(reader)
                    assert count >= last
                    assert {hit.id for hit in reader.search(rows(1)[0], k=10**6)} >= {f"d{n}" for n in range(count)}
                    last = count
            results.put(len(reader))
    except BaseException as error:
        results.put(repr(error))
        raise
