"""The segment's file: written atomically, checked against its manifest when opened, rebuilt from SQLite when damaged.

A file is written once under a temporary name, synced and renamed; it is never changed afterwards. Its manifest (size,
checksums, keys) is kept in SQLite, so a file that was truncated, altered or left by another state is recognised.

Cost: verifying reads the file once, about 2 GB/s per core.
"""

import mmap
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peg_rag.errors import DamagedIndex, PegRagError
from peg_rag.files import sync_file, sync_folder
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


def write_segment(kind: Kind, dimension: int, total: int, source: VectorSource, file: Path) -> Manifest:
    """Build a segment of about `total` rows and write it atomically.

    Raises:
        OSError: the disk is full or not writable; no partial file is left.
    """
    with _temporary_file(file) as temporary:
        if is_flat(kind, total):
            return _publish_file(temporary, file, "flat", _write_matrix(source(1), temporary))
        segment = build_segment(kind, dimension, total, source)
        _write_graph(segment.graph, temporary)
        return _publish_file(temporary, file, kind, segment.keys)


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
    with _temporary_file(file) as temporary:
        _write_graph(graph, temporary)
        return _publish_file(temporary, file, manifest.kind, keys)


@contextmanager
def _temporary_file(file: Path) -> Iterator[Path]:
    """The name that a file has while it is written; nothing remains under it. Errors name the final file."""
    temporary = file.with_name(file.name + ".part")
    try:
        yield temporary
    except PegRagError:
        raise
    except OSError as error:
        reason = f"cannot write the vector file ({error.strerror or error}); the index is as it was before"
        raise OSError(error.errno, f"{reason}. Free some space", str(file)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_matrix(chunks: Chunks, file: Path) -> Array:
    keys_written = [np.empty(0, dtype=np.int64)]
    with file.open("wb") as handle:
        for keys, rows in chunks:
            handle.write(np.ascontiguousarray(rows, dtype="<f4").data)
            keys_written.append(keys)
    return np.concatenate(keys_written)


def _write_graph(graph: Any, file: Path) -> None:
    # Through a Python file, which raises OSError and notices when the last block does not fit.
    with file.open("wb") as handle:
        import_faiss().write_index(graph, import_faiss().PyCallbackIOWriter(handle.write))


def _publish_file(temporary: Path, file: Path, kind: Kind, keys: Array) -> Manifest:
    """Sync a finished file and give it its final name."""
    sync_file(temporary)
    manifest = Manifest(kind, temporary.stat().st_size, compute_checksums(temporary), keys.astype("<i8").tobytes())
    temporary.replace(file)
    sync_folder(file.parent)
    return manifest


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
        if size != manifest.size:
            raise DamagedIndex(f"{file} has {size} bytes, {manifest.size} were written")
        if compute_checksums(file) != manifest.checksums:
            raise DamagedIndex(f"{file} does not have the content that was written")
    except FileNotFoundError as error:
        raise DamagedIndex(f"{file} is missing") from error


def compute_checksums(file: Path) -> bytes:
    """CRC-32 of every `CHECKSUM_BYTES` of a file, on all cores."""
    size = file.stat().st_size
    if not size:
        return b""
    with (
        file.open("rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        codes = list(pool.map(lambda start: _compute_crc(view, start), range(0, size, CHECKSUM_BYTES)))
    return np.array(codes, dtype="<u4").tobytes()


def _compute_crc(view: memoryview, start: int) -> int:
    with view[start : start + CHECKSUM_BYTES] as piece:
        return zlib.crc32(piece)
