"""The vector file grows in place: as if it were written anew, and safe for whoever reads it or has a copy."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peg_rag.index import PEGIndex, compaction, encodings, segment_file, tables
from peg_rag.index.database import Database
from peg_rag.index.encodings import unit_rows
from peg_rag.index.segment_file import Manifest, append_rows, compute_checksums, load_segment, write_segment

DIMENSION = 8


@pytest.fixture(autouse=True)
def no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A file that is rebuilt is warned of; a test that expects it clears the log."""
    yield
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def draw_vectors(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, DIMENSION)).astype(np.float32)


def rows(n: int) -> np.ndarray:
    """The rows that the file holds of them."""
    return unit_rows(draw_vectors(n), DIMENSION)


def add(index: PEGIndex, first: int, stop: int) -> None:
    names = [f"d{n}" for n in range(first, stop)]
    index.upsert(names, ["花呗"] * (stop - first), draw_vectors(stop)[first:])


def make_index(path: Path, count: int = 20) -> Path:
    """An index of one vector file, and the path of that file."""
    with PEGIndex(path) as index:
        add(index, 0, count)
        index.persist()
    return find_vector_file(path)


def find_vector_file(path: Path) -> Path:
    (file,) = path.glob("vectors-*")
    return file


def assert_finds_all(path: Path, count: int) -> None:
    with PEGIndex(path, read_only=True) as index:
        hits = index.search_batch(rows(count), k=1)
        assert [hit.id for (hit,) in hits] == [f"d{n}" for n in range(count)]
        assert len(index) == count


def as_chunks(sizes: list[int], first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for size in sizes:
        yield np.arange(first, first + size), rows(first + size)[first:]
        first += size


# -- the same as a file that is written anew --------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    appended=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4),
    leftover=st.integers(0, 300),
    piece=st.sampled_from([1, 32, 100, 256, 1 << 20]),
)
def test_appending_equals_writing_anew(
    appended: list[list[int]], leftover: int, piece: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_file, "CHECKSUM_BYTES", piece)
        file = folder / "vectors-0"
        manifest: Manifest | None = write_segment("flat", DIMENSION, 3, lambda _: as_chunks([3]), file)
        count = 3
        for number, sizes in enumerate(appended, start=1):
            assert manifest is not None
            with file.open("ab") as stream:
                stream.write(b"\xff" * leftover)  # of an append that was cut off
            manifest = append_rows(file, manifest, as_chunks(sizes, count), folder / f"vectors-{number}")
            file.unlink()
            file = folder / f"vectors-{number}"
            count += sum(sizes)
        assert manifest == write_segment("flat", DIMENSION, count, lambda _: as_chunks([count]), folder / "anew")
        assert file.read_bytes() == (folder / "anew").read_bytes() == rows(count).tobytes()
        assert manifest is not None
        assert manifest.checksums == compute_checksums(file, manifest.size)
        np.testing.assert_array_equal(load_segment(file, manifest, DIMENSION).matrix, rows(count))
        shutil.rmtree(folder)


def test_checksums_of_a_faiss_file_are_those_of_its_content(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    manifest = write_segment("hnsw", DIMENSION, 50, lambda _: as_chunks([50]), tmp_path / "vectors-1")
    assert manifest.size == (tmp_path / "vectors-1").stat().st_size
    assert manifest.checksums == compute_checksums(tmp_path / "vectors-1", manifest.size)


# -- in an index ------------------------------------------------------------------------------------------------------


def test_every_row_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write_rows = segment_file._write_rows

    def count_and_write(writer: Any, chunks: Any) -> np.ndarray:
        keys = write_rows(writer, chunks)
        written.append(len(keys))
        return keys

    monkeypatch.setattr(segment_file, "_write_rows", count_and_write)
    path = tmp_path / "kb"
    file = make_index(path)
    identity = file.stat().st_ino
    with PEGIndex(path) as index:
        assert index.search(rows(1)[0], k=1)[0].id == "d0"
        for first in range(20, 50, 10):
            add(index, first, first + 10)
            index.persist()
            assert index.search(rows(50)[first], k=1)[0].id == f"d{first}"
            assert index.search(rows(1)[0], k=1)[0].id == "d0"
    assert written == [20, 10, 10, 10]
    assert find_vector_file(path).name == "vectors-4"
    assert find_vector_file(path).stat().st_ino == identity
    assert find_vector_file(path).read_bytes() == rows(50).tobytes()
    assert_finds_all(path, 50)


def assert_holds_what_sqlite_holds(index: PEGIndex, path: Path) -> None:
    with index._db.reading() as connection:
        chunks = list(tables.read_vectors_after(connection, -1, DIMENSION, "float32"))
        manifest = tables.read_manifest(connection)
    assert find_vector_file(path).read_bytes() == b"".join(vectors.tobytes() for _, vectors in chunks)
    assert manifest.keys == b"".join(keys.tobytes() for keys, _ in chunks)


OPERATIONS = st.tuples(
    st.sampled_from(["first", "second"]),
    st.tuples(st.just("upsert"), st.lists(st.integers(0, 40), min_size=1, max_size=6))
    | st.tuples(st.just("new"), st.lists(st.integers(41, 10**6), min_size=1, max_size=6, unique=True))
    | st.tuples(st.just("delete"), st.lists(st.integers(0, 40), min_size=1, max_size=2))
    | st.tuples(st.sampled_from(["persist", "persist", "fail"]), st.just([])),
)


@settings(max_examples=30, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=12), room=st.sampled_from([100, 1 << 20]))
def test_vectors_held_in_memory_are_those_in_sqlite(
    operations: list[Any], room: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two writers of one index, each with the vectors that it wrote last; a write may fail at its commit."""
    path = tmp_path_factory.mktemp("held") / "kb"
    chance = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch, PEGIndex(path) as first, PEGIndex(path) as second:
        patch.setattr(compaction, "MAX_RECENT_BYTES", room)
        add(first, 0, 20)
        first.persist()
        for writer, (name, numbers) in operations:
            index = {"first": first, "second": second}[writer]
            match name:
                case "upsert" | "new":
                    vectors = chance.standard_normal((len(numbers), DIMENSION))
                    index.upsert([f"d{n}" for n in numbers], ["x"] * len(numbers), vectors)
                case "delete":
                    index.delete([f"d{n}" for n in numbers])
                case "fail":
                    with pytest.MonkeyPatch.context() as failing:
                        failing.setattr(Database, "_refuse_child", refuse_in_transaction)
                        with pytest.raises(OSError, match="No space"):
                            index.upsert(["d1", "failed"], ["x", "x"], chance.standard_normal((2, DIMENSION)))
                case "persist":
                    index.persist()
                    assert_holds_what_sqlite_holds(index, path)
        first.persist()
        assert_holds_what_sqlite_holds(first, path)
    shutil.rmtree(path.parent)


def refuse_in_transaction(database: Database) -> None:
    """Fail where a write has done all but its commit."""
    if any(connection.in_transaction for connection in database.connections()):
        raise OSError(28, "No space left on device")


def test_vectors_that_were_just_written_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    from_blobs = encodings.from_blobs

    def count_and_decode(blobs: Any, *arguments: Any) -> np.ndarray:
        decoded.append(len(blobs))
        return from_blobs(blobs, *arguments)

    path = tmp_path / "kb"
    make_index(path)
    with PEGIndex(path) as index:
        monkeypatch.setattr(tables, "from_blobs", count_and_decode)
        for first in range(20, 80, 10):
            add(index, first, first + 5)
            add(index, first + 5, first + 10)
            index.persist()
        assert decoded == []
        assert_holds_what_sqlite_holds(index, path)
    assert_finds_all(path, 80)


@pytest.mark.parametrize("deleted", ["d3", "d25"], ids=["in the file", "newer than the file"])
def test_a_file_with_deleted_rows_is_written_anew(deleted: str, tmp_path: Path) -> None:
    path = tmp_path / "kb"
    make_index(path)
    with PEGIndex(path) as index:
        add(index, 20, 30)
        index.delete([deleted])
        index.persist()
        assert find_vector_file(path).read_bytes() == np.delete(rows(30), int(deleted[1:]), axis=0).tobytes()
        add(index, 30, 40)
        index.persist()
        assert len(index.search(rows(1)[0], k=100)) == 39
    assert find_vector_file(path).stat().st_size == 39 * 4 * DIMENSION


def test_a_reader_keeps_its_rows_while_the_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    make_index(path)
    with PEGIndex(path) as index, PEGIndex(path, read_only=True) as reader:
        with reader._snapshots.open() as (_, snapshot):
            before = snapshot.segment.matrix
            assert before is not None
            add(index, 20, 30)
            index.persist()
            np.testing.assert_array_equal(before, rows(20))
        assert [hit.id for hit in reader.search(rows(30)[25], k=1)] == ["d25"]


def test_what_a_cut_off_append_left_is_ignored_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    file = make_index(path)
    with file.open("ab") as stream:
        stream.write(b"\xff" * 1000)
    (path / "vectors-2").hardlink_to(file)
    assert_finds_all(path, 20)
    with PEGIndex(path) as index:
        add(index, 20, 22)
        index.persist()
    assert find_vector_file(path).read_bytes() == rows(22).tobytes()
    assert_finds_all(path, 22)


def test_a_copy_that_shares_the_file_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "kb"
    file = make_index(path)
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(path / "index.sqlite", copy)
    (copy / "vectors-1").hardlink_to(file)
    for folder, other in ((path, "x"), (copy, "y")):
        with PEGIndex(folder) as index:
            index.upsert([other], [other], -rows(1))
            index.persist()
            assert index.search(-rows(1)[0], k=1)[0].id == other
    for folder in (path, copy):
        with PEGIndex(folder) as index:
            assert len(index.search(rows(1)[0], k=100)) == 21
    assert find_vector_file(path).stat().st_ino != find_vector_file(copy).stat().st_ino


def test_a_file_system_without_links_gets_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    path = tmp_path / "kb"
    make_index(path)
    monkeypatch.setattr(os, "link", refuse)
    with PEGIndex(path) as index:
        add(index, 20, 30)
        index.persist()
    assert find_vector_file(path).read_bytes() == rows(30).tobytes()
    assert_finds_all(path, 30)


def test_a_damaged_file_that_has_grown_is_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "kb"
    file = make_index(path)
    content = bytearray(file.read_bytes())
    content[100] ^= 4
    file.write_bytes(content)
    with PEGIndex(path) as index:
        add(index, 20, 30)
        index.persist()
    with PEGIndex(path) as index:
        hits = index.search_batch(rows(30), k=1)
        assert [hit.id for (hit,) in hits] == [f"d{n}" for n in range(30)]
    assert caplog.text.count("is rebuilt") == 1
    caplog.clear()
    assert find_vector_file(path).read_bytes() == rows(30).tobytes()
    assert_finds_all(path, 30)


def test_a_failed_append_leaves_the_file_as_long_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "kb"
    file = make_index(path)
    with PEGIndex(path) as index:
        add(index, 20, 30)
        with monkeypatch.context() as patch:
            patch.setattr(segment_file, "sync_stream", refuse)
            with pytest.raises(OSError, match=r"index is as it was before.*vectors-2"):
                index.persist()
        assert find_vector_file(path) == file
        assert file.read_bytes() == rows(20).tobytes()
        assert_finds_all(path, 30)
        index.persist()
    assert find_vector_file(path).read_bytes() == rows(30).tobytes()
