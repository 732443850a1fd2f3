"""The segment's file: written atomically, checked against its manifest when opened, rebuilt from SQLite when damaged.

A file is written under a temporary name, synced and renamed. Its manifest (size, checksums, keys) is kept in SQLite, so
a file that was truncated, altered or left by another state is recognised. What a manifest describes is never changed
afterwards. A `flat` file may grow behind that, where no reader looks before SQLite has the next manifest.

Cost: verifying reads the file once, about 2 GB/s per core. Growing writes the new rows only.
"""

import mmap
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from peg_rag.errors import DamagedIndex, PegRagError
from peg_rag.files import sync_folder, sync_stream
from peg_rag.index.encodings import Array
from peg_rag.index.segment import (
    Chunks,
    Kind,
    Segment,
    VectorSource,
    build_segment,
    count_lists,
    fill_graph,
    import_faiss,
    is_flat,
    wrap_graph,
)

CHECKSUM_BYTES = 16 << 20  # covered by one checksum


@dataclass(frozen=True, slots=True)
class Manifest:
    """What SQLite knows about a segment file, so that any other content is recognised."""

    kind: Kind
    size: int
    checksums: bytes
    keys: bytes  # int64, ascending

    @classmethod
    def in_memory(cls, segment: Segment) -> "Manifest":
        """The manifest of a segment without a file."""
        return cls(segment.kind, 0, b"", segment.keys.tobytes())

    def read_keys(self) -> Array:
        """(n,) int64 document keys, ascending."""
        return np.frombuffer(self.keys, dtype="<i8")


def segment_path(folder: Path, generation: int) -> Path:
    """Where the segment of a generation is."""
    return folder / f"vectors-{generation}"


# -- writing ----------------------------------------------------------------------------------------------------------


class _SegmentWriter:
    """Writes to a segment file and keeps the checksums, so that nothing is read back."""

    def __init__(self, stream: BinaryIO, size: int = 0, checksums: bytes = b"") -> None:
        self._stream = stream
        self._size = size
        self._codes: list[int] = np.frombuffer(checksums, dtype="<u4").tolist()

    def write(self, content: Any) -> int:
        """Append bytes, or an array of them."""
        with memoryview(content) as view:
            self._stream.write(view)
            start = 0
            while start < len(view):
                place = self._size % CHECKSUM_BYTES
                with view[start : start + CHECKSUM_BYTES - place] as piece:
                    self._add_piece(piece, is_first=place == 0)
                    start += len(piece)
            return len(view)

    def _add_piece(self, piece: memoryview, *, is_first: bool) -> None:
        if is_first:
            self._codes.append(0)
        self._codes[-1] = zlib.crc32(piece, self._codes[-1])
        self._size += len(piece)

    def finish(self, kind: Kind, keys: Array) -> Manifest:
        """Make the content durable and describe it."""
        sync_stream(self._stream)
        return Manifest(
            kind, self._size, np.array(self._codes, dtype="<u4").tobytes(), keys.astype("<i8", copy=False).tobytes()
        )


def write_segment(kind: Kind, dimension: int, total: int, source: VectorSource, file: Path) -> Manifest:
    """Build a segment of about `total` rows and write it atomically.

    Raises:
        OSError: the disk is full or not writable; no partial file is left.
    """
    if is_flat(kind, total):
        with _replace_file(file) as writer:
            return writer.finish("flat", _write_rows(writer, source(1)))
    segment = build_segment(kind, dimension, total, source)
    return _write_graph(segment.graph, kind, segment.keys, file)


def extend_segment(old_file: Path, manifest: Manifest, total: int, chunks: Chunks, file: Path) -> Manifest | None:
    """Write a FAISS file with the rows of an old one and new rows.

    Returns:
        The new manifest, or None when the lists of an `ivfpq` file were trained on too few rows for `total`.

    Raises:
        DamagedIndex: the old file does not match its manifest.
        OSError: as `write_segment`.
    """
    _verify_file(old_file, manifest)
    graph = _read_graph(old_file)  # a copy in memory: adding to a mapped index aborts the process
    if manifest.kind == "ivfpq" and count_lists(total) > 2 * graph.nlist:
        return None
    keys = np.concatenate([manifest.read_keys(), fill_graph(graph, chunks)])
    return _write_graph(graph, manifest.kind, keys, file)


def append_rows(old_file: Path, manifest: Manifest, chunks: Chunks, file: Path) -> Manifest | None:
    """Write new rows behind those of a `flat` file, which gets a second name: the old one stays as valid as it was.

    Returns:
        The new manifest, or None where a file cannot have a second name, or has one already.

    Raises:
        OSError: as `write_segment`.
    """
    if not _link_file(old_file, file, manifest.size):
        return None
    with _explain_errors(file), file.open("r+b") as stream:
        try:
            stream.seek(manifest.size)
            writer = _SegmentWriter(stream, manifest.size, manifest.checksums)
            keys = np.concatenate([manifest.read_keys(), _write_rows(writer, chunks)])
            stream.truncate()  # a crash may have left more
            grown = writer.finish("flat", keys)
        except BaseException:
            with suppress(OSError):
                stream.truncate(manifest.size)
            raise
    sync_folder(file.parent)
    return grown


def _link_file(old_file: Path, file: Path, size: int) -> bool:
    """Give a file of `size` bytes or more a second name, unless a copy of the folder shares it in this way."""
    try:
        status = old_file.stat()
        if status.st_nlink > 1 or status.st_size < size:
            return False
        file.hardlink_to(old_file)
    except OSError:
        return False
    return True


@contextmanager
def _replace_file(file: Path) -> Iterator[_SegmentWriter]:
    """Write a file under a temporary name, which becomes `file` at the end; of a failed one, nothing remains."""
    temporary = file.with_name(file.name + ".part")
    with _explain_errors(file):
        try:
            with temporary.open("wb") as stream:
                yield _SegmentWriter(stream)
            temporary.replace(file)
            sync_folder(file.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def _explain_errors(file: Path) -> Iterator[None]:
    """Let errors of writing say what they mean, and name the final file."""
    try:
        yield
    except PegRagError:
        raise
    except OSError as error:
        reason = f"cannot write the vector file ({error.strerror or error}); the index is as it was before"
        raise OSError(error.errno, f"{reason}. Free some space", str(file)) from error


def _write_rows(writer: _SegmentWriter, chunks: Chunks) -> Array:
    keys_written = [np.empty(0, dtype=np.int64)]
    for keys, rows in chunks:
        writer.write(np.ascontiguousarray(rows, dtype="<f4").reshape(-1).view(np.uint8))
        keys_written.append(keys)
    return np.concatenate(keys_written)


def _write_graph(graph: Any, kind: Kind, keys: Array, file: Path) -> Manifest:
    # Through a Python file, which raises OSError and notices when the last block does not fit.
    with _replace_file(file) as writer:
        import_faiss().write_index(graph, import_faiss().PyCallbackIOWriter(writer.write))
        return writer.finish(kind, keys)


# -- opening ----------------------------------------------------------------------------------------------------------


def load_segment(file: Path, manifest: Manifest, dimension: int) -> Segment:
    """Verify a segment file and map it into memory.

    Raises:
        DamagedIndex: the file is missing or does not match its manifest; it can be rebuilt.
    """
    _verify_file(file, manifest)
    keys = manifest.read_keys()
    try:
        if manifest.kind != "flat":
            return wrap_graph(manifest.kind, keys, _read_graph(file, import_faiss().IO_FLAG_MMAP_IFC))
        if not len(keys):
            return Segment("flat", keys, np.empty((0, dimension), dtype=np.float32))
        matrix = np.memmap(file, dtype="<f4", mode="r", shape=(len(keys), dimension))
        return Segment("flat", keys, matrix.view(np.ndarray))
    except DamagedIndex:
        raise
    except (OSError, ValueError) as error:
        raise DamagedIndex(f"{file} cannot be read: {error}") from error


def _read_graph(file: Path, flags: int = 0) -> Any:
    try:
        return import_faiss().read_index(str(file), flags)
    except RuntimeError as error:
        raise DamagedIndex(f"{file} cannot be read: {error}") from error


def _verify_file(file: Path, manifest: Manifest) -> None:
    try:
        size = file.stat().st_size
        if size < manifest.size:
            raise DamagedIndex(f"{file} has {size} bytes, {manifest.size} were written")
        if compute_checksums(file, manifest.size) != manifest.checksums:
            raise DamagedIndex(f"{file} does not have the content that was written")
    except FileNotFoundError as error:
        raise DamagedIndex(f"{file} is missing") from error


def compute_checksums(file: Path, size: int) -> bytes:
    """CRC-32 of every `CHECKSUM_BYTES` of the first `size` bytes of a file, on all cores."""
    if not size:
        return b""
    with (
        file.open("rb") as handle,
        mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        codes = list(pool.map(lambda start: _compute_crc(view, start), range(0, size, CHECKSUM_BYTES)))
    return np.array(codes, dtype="<u4").tobytes()


def _compute_crc(view: memoryview, start: int) -> int:
    with view[start : start + CHECKSUM_BYTES] as piece:
        return zlib.crc32(piece)
