"""A copy of a segment's vectors as int8, so that an exact search reads a quarter of the bytes.

Searching all vectors takes as long as reading them from memory. The codes give an estimate of every inner product and a
bound of its error; only the few rows that can be among the k best by that bound are then multiplied as float32
(`exact.rank_estimates`). So the hits, scores and ties are those of a search without codes.

A row v is approximated by v' = scale x codes, with codes of -127 to 127, and a query q in the same way by q'. From
q.v - q'.v' = q.(v - v') + (q - q').v' and the Cauchy-Schwarz inequality, an estimate q'.v' is wrong by at most
|q| |v - v'| + |q - q'| |v'|: about 0.015 for unit vectors of 512 dimensions. The lengths |v - v'| are kept.

Cost: in memory 1 byte per number and 8 per row, nothing on disk. The copy grows with the searches, from the second on,
by a sixteenth of the rows each: opening an index and asking one question costs nothing more, and no search waits for
all rows.
"""

import functools
import importlib.util
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from peg_rag.index.encodings import Array

STEPS = 16  # searches until all rows are encoded
BLOCK_ROWS = 256  # encoded at a time: they stay in the cache of a core
MAX_CODE = 127
PART_BYTES = 2 << 20  # of codes, multiplied at a time
THREAD_BYTES = 8 << 20  # of codes, for which another thread pays
MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class Estimates:
    """Approximate inner products of one query with all rows of a matrix.

    The product with row i differs from `values[i]` by at most `margin + weight * errors[i]`.

    Attributes:
        values: (n,) float32; -inf for rows that are not allowed.
        margin: of every row.
        errors: (n,) float32, or None where the margin is all.
        weight: of the errors.
        max_error: the largest of the errors.
    """

    values: Array
    margin: float
    errors: Array | None = None
    weight: float = 0.0
    max_error: float = 0.0

    def select_candidates(self, least: float) -> Array:
        """(m,) rows, ascending, whose product may be `least` or more."""
        rows = np.flatnonzero(self.values >= least - self.margin - self.weight * self.max_error)
        if self.errors is None:
            return rows
        return rows[self.values[rows] + self.weight * self.errors[rows] >= least - self.margin]


@functools.cache
def has_kernel() -> bool:
    """Whether numkong can be imported; it has no wheels for some platforms, where all rows are read as float32."""
    return importlib.util.find_spec("numkong") is not None


def bound_rounding(dimension: int) -> float:
    """How far a float32 inner product of two unit vectors may be from another one, summed in another order.

    Each is within dimension x 2^-24 of the exact one; some more covers the length of vectors that float32 makes 1.
    """
    return (dimension + 16) * 2.0**-23


class Codes:
    """The int8 copy of one (n, dimension) float32 matrix of unit rows, which never changes; every call passes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._searches = 0
        self._count = 0  # rows encoded
        self._codes = np.empty((0, 0), dtype=np.int8)
        self._scales = np.empty(0, dtype=np.float32)
        self._errors = np.empty(0, dtype=np.float32)
        self._max_error = 0.0

    @property
    def count(self) -> int:
        """How many rows are encoded."""
        return self._count

    def estimate(self, matrix: Array, query: Array) -> Estimates:
        """Estimate the products of a (dimension,) unit query with all rows: from codes as far as there are any.

        Any number of threads may search at once; one of them encodes the next rows.
        """
        if self._count < len(matrix) and self._lock.acquire(blocking=False):
            try:
                self._encode_more(matrix)
            finally:
                self._lock.release()
        count = self._count  # may grow meanwhile
        values = np.empty((1, len(matrix)), dtype=np.float32)
        np.matmul(matrix[count:], query, out=values[0, count:])
        rounding = bound_rounding(len(query))
        if not count:
            return Estimates(values[0], rounding)
        codes, scales, errors = encode_rows(query[None])
        self._multiply_codes(codes, values[:, :count])
        values[0, :count] *= scales[0]
        # |q| is 1, |v'| at most 1 + |v - v'|.
        error = float(errors[0])
        return Estimates(values[0], rounding + error, self._errors, 1.0 + error, self._max_error)

    def _multiply_codes(self, codes: Array, values: Array) -> None:
        """Put the products of a (1, dimension) query's codes with the first rows into (1, count) `values`."""
        import numkong

        def multiply(part: slice) -> None:
            # As float32, sums are exact up to 2^24. Into int32, numkong 7.8 writes thirty times as slowly.
            numkong.cdist(codes, self._codes[part], "dot", out=values[:, part])
            values[0, part] *= self._scales[part]

        parts = iter(_split_rows(values.shape[1], codes.shape[1]))

        def multiply_parts() -> None:
            for part in parts:
                multiply(part)

        helpers = [_open_pool().submit(multiply_parts) for _ in range(_count_helpers(values.shape[1] * codes.shape[1]))]
        multiply_parts()
        for helper in helpers:
            if not helper.cancel():  # on a busy machine one may not have begun
                helper.result()

    def _encode_more(self, matrix: Array) -> None:
        self._searches += 1
        if self._searches == 1:
            return
        if not self._count:
            self._codes = np.empty(matrix.shape, dtype=np.int8)
            self._scales = np.empty(len(matrix), dtype=np.float32)
            self._errors = np.zeros(len(matrix), dtype=np.float32)  # rows without codes have no error
        stop = min(len(matrix), self._count + -(-len(matrix) // STEPS))
        for start in range(self._count, stop, BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, stop))
            self._codes[rows], self._scales[rows], self._errors[rows] = encode_rows(matrix[rows])
        self._max_error = max(self._max_error, float(self._errors[self._count : stop].max(initial=0.0)))
        self._count = stop


def encode_rows(rows: Array) -> tuple[Array, Array, Array]:
    """Encode (n, dimension) float32 rows: (n, dimension) int8 codes, (n,) scales and (n,) lengths of what is lost."""
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    scales = np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(MAX_CODE)
    rounded = rows / scales[:, None]
    np.rint(rounded, out=rounded)
    codes = rounded.astype(np.int8)
    rounded *= scales[:, None]
    rounded -= rows
    return codes, scales, np.sqrt(np.vecdot(rounded, rounded))


def _split_rows(count: int, dimension: int) -> list[slice]:
    """Parts of about `PART_BYTES` of codes: threads take one after the other, so that none waits long for another."""
    rows = max(1, PART_BYTES // dimension)
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def _count_helpers(size: int) -> int:
    """How many threads help with `size` bytes of codes."""
    return min(MAX_THREADS, os.cpu_count() or 1, size // THREAD_BYTES + 1) - 1


@functools.cache
def _open_pool() -> ThreadPoolExecutor:
    """The threads that help the one that searches; they are started when first needed."""
    return ThreadPoolExecutor(MAX_THREADS - 1, "peg-rag-codes")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_pool.cache_clear)  # a child has none of the threads
