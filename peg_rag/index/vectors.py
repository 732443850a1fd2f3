"""The vectors of an index, searched by inner product: exact and memory-mapped by default, FAISS on request.

`flat` is a plain matrix file that is mapped and multiplied: exact, and with BLAS about twice as fast for one query as
`faiss.IndexFlatIP` (which scans on one core) and several times as fast for a batch. `hnsw` (graph) and `ivfpq`
(inverted lists of product codes) are FAISS indexes; the first keeps full vectors and is fast and accurate, the second
is about thirty times smaller and its candidates are scored again with the stored vectors.

A file is written once, under a temporary name, and never changed: rows that come later are held in memory by
`view.py`, rows that go are masked. SQLite keeps its size and checksums, and it can be built again from there any time.

Cost: 4 bytes per number in the file (`flat`, `hnsw`); checking a file reads it once, about 2 GB/s per core.
"""

import mmap
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import DamagedIndex, InvalidInput, PegRagError
from peg_rag.extras import require
from peg_rag.index.documents import BadRow

Array = NDArray[Any]
Kind = Literal["flat", "hnsw", "ivfpq"]
Storage = Literal["float32", "float16", "int8"]
KINDS = ("flat", "hnsw", "ivfpq")
STORAGES = ("float32", "float16", "int8")

CHECKED_BYTES = 16 << 20  # one checksum per so many bytes
HNSW_LINKS = 32
HNSW_EF_SEARCH = 128
ROWS_PER_LIST = 64  # to learn lists and codes from
LEAST_FOR_CODES = 5_000  # with fewer rows there is too little to learn product codes from
GATHERED_SHARE = 0.25  # fewer allowed rows than this are copied together and multiplied alone


# -- checking and storing vectors -------------------------------------------------------------------------------------


def unit_rows(vectors: Any, dimension: int | None, *, what: str = "vector") -> Array:
    """(n, dimension) float32 rows of length 1.

    Raises:
        InvalidInput: not a matrix of numbers, another dimension, or a row that holds NaN or infinity or only zeros;
            the message names the row.
    """
    try:
        rows = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what}s must be an (n, dimension) matrix of numbers: {error}") from error
    if rows.size == 0 and rows.ndim < 2:
        rows = rows.reshape(0, dimension or 0)
    if rows.ndim != 2:
        raise InvalidInput(f"{what}s must be an (n, dimension) matrix, not an array of shape {rows.shape}")
    if len(rows) and dimension is not None and rows.shape[1] != dimension:
        raise InvalidInput(
            f"{what} 0 has {rows.shape[1]} dimensions, the index has {dimension}; "
            "use the model that made the index, or make a new index"
        )
    _check_finite(rows, what)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    if len(zero := np.flatnonzero(lengths == 0)):
        raise InvalidInput(f"{what} {zero[0]} is all zeros: it has no direction, so no cosine can be computed with it")
    unit: Array = (rows / lengths[:, None]).astype(np.float32)
    return unit


def _check_finite(rows: Array, what: str) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise InvalidInput(f"{what} {row} holds NaN or infinity; check the model's output for that text")


def to_blobs(rows: Array, storage: Storage) -> Iterator[bytes]:
    """Unit rows as stored bytes. int8 rows carry a float32 scale in front of their numbers."""
    if storage == "int8":
        scales = np.abs(rows).max(axis=1, keepdims=True) / 127
        codes = np.rint(rows / scales).astype(np.int8)
        return (s.tobytes() + c.tobytes() for s, c in zip(scales.astype("<f4"), codes, strict=True))
    return (row.tobytes() for row in rows.astype("<f4" if storage == "float32" else "<f2"))


def from_blobs(blobs: Sequence[bytes], dimension: int, storage: Storage) -> Array:
    """(n, dimension) float32 rows, of length 1 again after the rounding of float16 and int8.

    Raises:
        BadRow: a blob of another length, or without a direction.
    """
    size = {"float32": 4 * dimension, "float16": 2 * dimension, "int8": 4 + dimension}[storage]
    if not all(isinstance(blob, bytes) and len(blob) == size for blob in blobs):
        raise BadRow(f"a stored vector is not {size} bytes long")
    raw = np.frombuffer(b"".join(blobs), dtype=np.uint8).reshape(len(blobs), size)
    if storage == "float32":
        unit: Array = raw.view("<f4").astype(np.float32, copy=False)
    else:
        rows = (raw[:, 4:].view(np.int8) if storage == "int8" else raw.view("<f2")).astype(np.float32)
        with np.errstate(invalid="ignore"):
            unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(unit).all():
        raise BadRow("a stored vector holds NaN or infinity")
    return unit


# -- exact search -----------------------------------------------------------------------------------------------------


def best(scores: Array, k: int) -> Array:
    """Places of the k largest of (n,) scores, best first, the earlier of equals first; -inf is never among them."""
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= least) if least > -np.inf else np.flatnonzero(scores > -np.inf)
    else:
        places = np.flatnonzero(scores > -np.inf)
    return places[np.argsort(-scores[places], kind="stable")[:k]]


def nearest(matrix: Array, queries: Array, k: int, allowed: Array | None) -> list["Found"]:
    """The k best allowed rows of an (n, dimension) matrix for each of (queries, dimension) unit rows, by multiplying.

    Args:
        allowed: (n,) bool, or None for all rows.
    """
    if k <= 0 or not len(matrix):
        return [Found.nothing()] * len(queries)
    rows = None if allowed is None else np.flatnonzero(allowed)
    if rows is not None and len(rows) < GATHERED_SHARE * len(matrix):
        return _top(_products(queries, matrix[rows]), rows, k)
    scores = _products(queries, matrix)
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return _top(scores, None, k)


def _products(queries: Array, matrix: Array) -> Array:
    """(queries, n) inner products. For one query, matrix times vector: its threads wait less for each other."""
    products: Array = (matrix @ queries[0])[None] if len(queries) == 1 else queries @ matrix.T
    return products


def _top(scores: Array, rows: Array | None, k: int) -> list["Found"]:
    """The k best of each line of (queries, m) scores, which belong to (m,) rows, or to rows 0 to m - 1."""
    places = [best(line, k) for line in scores]
    return [Found(p if rows is None else rows[p], line[p]) for p, line in zip(places, scores, strict=True)]


# -- the vector file --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Base:
    """The rows of one generation of the vector file, mapped (or in memory), never changed.

    Attributes:
        kind: how it is searched.
        keys: (n,) int64 document keys, ascending.
        matrix: (n, dimension) float32 unit rows; None for `ivfpq`.
        graph: the FAISS index; None for `flat`.
    """

    kind: Kind
    keys: Array
    matrix: Array | None
    graph: Any = None

    @classmethod
    def empty(cls) -> "Base":
        return cls("flat", np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32))

    def search(self, queries: Array, k: int, allowed: Array | None, fetch: "Fetch") -> list["Found"]:
        """The k best allowed rows for each of (queries, dimension) unit rows, best first.

        Args:
            allowed: (n,) bool, or None for all rows.
            fetch: reads stored vectors by key, for the kind that keeps none.
        """
        if k <= 0 or not len(self.keys):
            return [Found.nothing()] * len(queries)
        if self.graph is not None and (allowed is None or np.count_nonzero(allowed) > self._exact_limit()):
            return self._approximate(queries, k, allowed, fetch)
        if self.matrix is not None:
            return nearest(self.matrix, queries, k, allowed)
        rows = np.flatnonzero(np.ones(len(self.keys)) if allowed is None else allowed)
        return _top(_products(queries, fetch(self.keys[rows])), rows, k)

    def vectors(self, rows: Array, fetch: "Fetch") -> Array:
        """(len(rows), dimension) float32 unit rows."""
        return fetch(self.keys[rows]) if self.matrix is None else self.matrix[rows]

    def _exact_limit(self) -> int:
        """So few allowed rows are multiplied directly: faster than the graph and always right."""
        return 4096 if self.matrix is None else max(4096, len(self.keys) // 10)

    def _approximate(self, queries: Array, k: int, allowed: Array | None, fetch: "Fetch") -> list["Found"]:
        wanted = k if self.kind == "hnsw" else max(4 * k, 100)
        share = 1.0 if allowed is None else np.count_nonzero(allowed) / len(allowed)
        # FAISS keeps only pointers to the selector and its bits: both names must live until the search is over.
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        selector = None if bits is None else _faiss().IDSelectorBitmap(bits)
        _, found = self.graph.search(
            queries, min(wanted, len(self.keys)), params=self._parameters(wanted, share, selector)
        )
        return [self._scored(query, rows[rows >= 0], k, fetch) for query, rows in zip(queries, found, strict=True)]

    def _parameters(self, wanted: int, share: float, selector: Any) -> Any:
        """Search wider when a filter lets only a share of what is visited through."""
        faiss = _faiss()
        more = {} if selector is None else {"sel": selector}
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=int(max(HNSW_EF_SEARCH, 2 * wanted) / max(share, 0.1)), **more)
        probes = int(max(32, self.graph.nlist // 16) / max(share, 0.1))
        return faiss.SearchParametersIVF(nprobe=min(probes, self.graph.nlist), **more)

    def _scored(self, query: Array, rows: Array, k: int, fetch: "Fetch") -> "Found":
        rows = np.sort(rows)
        return _top(_products(query[None], self.vectors(rows, fetch)), rows, k)[0]


Fetch = Callable[[Array], Array]  # (n,) keys -> (n, dimension) stored vectors


@dataclass(frozen=True, slots=True)
class Found:
    """(m,) rows and their (m,) scores, best first."""

    rows: Array
    scores: Array

    @classmethod
    def nothing(cls) -> "Found":
        return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))


# -- making and opening the file --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stamp:
    """What SQLite remembers about a vector file, so that any other content is noticed."""

    kind: Kind
    size: int
    checksums: bytes
    keys: bytes  # int64, ascending

    def rows(self) -> Array:
        return np.frombuffer(self.keys, dtype="<i8")


Chunks = Iterable[tuple[Array, Array]]  # (n,) keys and (n, dimension) rows, keys ascending
Source = Callable[[int], Chunks]  # all rows for 1, every s-th row for s: a sample of all ages to learn from


def build(kind: Kind, dimension: int, total: int, source: Source) -> Base:
    """Build a base of about `total` rows in memory. With fewer than `LEAST_FOR_CODES` rows `ivfpq` is flat."""
    if kind == "flat" or (kind == "ivfpq" and total < LEAST_FOR_CODES):
        keys, rows = _stacked(source(1), dimension)
        return Base("flat", keys, rows)
    graph = _new_graph(kind, dimension, total)
    if not graph.is_trained:
        graph.train(_stacked(source(max(1, total // (ROWS_PER_LIST * graph.nlist))), dimension)[1])
    return _faiss_base(kind, _filled(graph, source(1)), graph)


def write(kind: Kind, dimension: int, total: int, source: Source, file: Path) -> Stamp:
    """Write a vector file as a whole or not at all: temporary name, fsync, rename, fsync of the folder.

    Raises:
        OSError: there is no room, or no right to write; no part of the file is left.
    """
    with _part_of(file) as part:
        if kind == "flat" or (kind == "ivfpq" and total < LEAST_FOR_CODES):
            return _published(part, file, "flat", _write_matrix(source(1), part))
        base = build(kind, dimension, total, source)
        _write_graph(base.graph, part)
        return _published(part, file, kind, base.keys)


def extend(old: Path, stamp: Stamp, total: int, chunks: Chunks, file: Path) -> Stamp | None:
    """Write a FAISS file with the rows of an old one and more; None when the codes were learned from too few rows.

    Raises:
        DamagedIndex: the old file is not the one SQLite knows.
        OSError: as `write`.
    """
    _verify(old, stamp)
    graph = _read_graph(old)  # a copy in memory: adding to a mapped index aborts the process
    if stamp.kind == "ivfpq" and _lists(total) > 2 * graph.nlist:
        return None
    keys = np.concatenate([stamp.rows(), _filled(graph, chunks)])
    with _part_of(file) as part:
        _write_graph(graph, part)
        return _published(part, file, stamp.kind, keys)


@contextmanager
def _part_of(file: Path) -> Iterator[Path]:
    """The temporary name of a file that is being written; nothing is left under it. Errors name the file."""
    part = file.with_name(file.name + ".part")
    try:
        yield part
    except PegRagError:
        raise
    except OSError as error:
        reason = f"cannot write the vector file ({error.strerror or error}); the index is as it was before"
        raise OSError(error.errno, f"{reason}. Free some space", str(file)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _write_graph(graph: Any, part: Path) -> None:
    # Through a Python file, whose errors are OSErrors and which notices a last block that does not fit.
    with part.open("wb") as handle:
        _faiss().write_index(graph, _faiss().PyCallbackIOWriter(handle.write))


def _read_graph(file: Path, flags: int = 0) -> Any:
    try:
        return _faiss().read_index(str(file), flags)
    except RuntimeError as error:
        raise DamagedIndex(f"{file} cannot be read: {error}") from error


def _published(part: Path, file: Path, kind: Kind, keys: Array) -> Stamp:
    with part.open("rb+") as handle:
        os.fsync(handle.fileno())
    stamp = Stamp(kind, part.stat().st_size, checksums(part), keys.astype("<i8").tobytes())
    part.replace(file)
    sync_folder(file.parent)
    return stamp


def _verify(file: Path, stamp: Stamp) -> None:
    try:
        size = file.stat().st_size
        if size != stamp.size:
            raise DamagedIndex(f"{file} has {size} bytes, {stamp.size} were written")
        if checksums(file) != stamp.checksums:
            raise DamagedIndex(f"{file} has other content than was written")
    except FileNotFoundError as error:
        raise DamagedIndex(f"{file} is missing") from error


def load(file: Path, stamp: Stamp, dimension: int) -> Base:
    """Map a vector file after checking that it is the one SQLite knows.

    Raises:
        DamagedIndex: missing, of another size or content; it can be built again.
    """
    _verify(file, stamp)
    keys = stamp.rows()
    try:
        if stamp.kind != "flat":
            return _faiss_base(stamp.kind, keys, _read_graph(file, _faiss().IO_FLAG_MMAP_IFC))
        if not len(keys):
            return Base("flat", keys, np.empty((0, dimension), dtype=np.float32))
        return Base("flat", keys, np.memmap(file, dtype="<f4", mode="r", shape=(len(keys), dimension)).view(np.ndarray))
    except DamagedIndex:
        raise
    except (OSError, ValueError) as error:
        raise DamagedIndex(f"{file} cannot be read: {error}") from error


def checksums(file: Path) -> bytes:
    """CRC-32 of every `CHECKED_BYTES` of a file, on all cores."""
    size = file.stat().st_size
    if not size:
        return b""
    with (
        file.open("rb") as handle,
        mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        codes = list(pool.map(lambda start: _crc(view, start), range(0, size, CHECKED_BYTES)))
    return np.array(codes, dtype="<u4").tobytes()


def _crc(view: memoryview, start: int) -> int:
    with view[start : start + CHECKED_BYTES] as piece:
        return zlib.crc32(piece)


def sync_folder(folder: Path) -> None:
    """Make a rename last; not every system can, and then there is nothing to do."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _faiss() -> Any:
    return require("faiss", "faiss")


def _use_one_thread() -> None:
    """In a forked child: OpenMP would wait for ever for threads that only its parent has."""
    if "faiss" in sys.modules:
        _faiss().omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)


def _stacked(chunks: Chunks, dimension: int) -> tuple[Array, Array]:
    pairs = [(np.empty(0, dtype=np.int64), np.empty((0, dimension), dtype=np.float32)), *chunks]
    return np.concatenate([keys for keys, _ in pairs]), np.concatenate([rows for _, rows in pairs])


def _write_matrix(chunks: Chunks, part: Path) -> Array:
    written = [np.empty(0, dtype=np.int64)]
    with part.open("wb") as handle:
        for keys, rows in chunks:
            handle.write(np.ascontiguousarray(rows, dtype="<f4").data)
            written.append(keys)
    return np.concatenate(written)


def _new_graph(kind: Kind, dimension: int, total: int) -> Any:
    faiss = _faiss()
    if kind == "hnsw":
        return faiss.IndexHNSWFlat(dimension, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    lists = _lists(total)
    codes = next(m for m in range(max(dimension // 8, 1), 0, -1) if dimension % m == 0)
    graph = faiss.index_factory(dimension, f"IVF{lists},PQ{codes}x8", faiss.METRIC_INNER_PRODUCT)
    # A quarter of FAISS's effort on the codes: candidates are scored again with the stored vectors.
    graph.pq.cp.niter, graph.pq.cp.max_points_per_centroid = 10, ROWS_PER_LIST
    return graph


def _lists(total: int) -> int:
    return int(min(max(2 * total**0.5, 16), total / 39))  # FAISS wants 39 rows and more to learn a list from


def _filled(graph: Any, chunks: Chunks) -> Array:
    """Add all rows to the graph; their (n,) keys."""
    added = [np.empty(0, dtype=np.int64)]
    for keys, rows in chunks:
        graph.add(rows)
        added.append(keys)
    return np.concatenate(added)


def _faiss_base(kind: Kind, keys: Array, graph: Any) -> Base:
    matrix = None
    if kind == "hnsw":
        storage = _faiss().downcast_index(graph.storage)
        if len(keys):
            matrix = _faiss().rev_swig_ptr(storage.get_xb(), len(keys) * graph.d).reshape(len(keys), graph.d)
        else:
            matrix = np.empty((0, graph.d), dtype=np.float32)
    return Base(kind, keys, matrix, graph)
