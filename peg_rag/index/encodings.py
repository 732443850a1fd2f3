"""Vectors on their way in and out of SQLite: validated, normalised, and encoded as float32, float16 or int8.

Every vector of an index has length 1, so that an inner product is a cosine. float16 and int8 take a half and a quarter
of the space in SQLite; decoding normalises again, because rounding changes the length a little.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import InvalidInput
from peg_rag.index.database import DamagedRow

Array = NDArray[Any]
Storage = Literal["float32", "float16", "int8"]
STORAGES: tuple[Storage, ...] = ("float32", "float16", "int8")


def unit_rows(vectors: Any, dimension: int | None, *, what: str = "vector") -> Array:
    """Normalise vectors to (n, dimension) float32 rows of length 1.

    Raises:
        InvalidInput: not a matrix of numbers, a wrong dimension, or a row with NaN, infinity or only zeros;
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
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    _check_lengths(lengths, what)
    if ((lengths > _SHORT) & (lengths < _LONG)).all():
        lengths = lengths.astype(np.float32)  # dividing by it takes a quarter of the time
    unit: Array = (rows / lengths[:, None]).astype(np.float32, copy=False)
    return unit


_SHORT = 2.0**-60  # lengths between these are precise as float32, and so are the quotients
_LONG = 2.0**60


def _check_lengths(lengths: Array, what: str) -> None:
    """Refuse rows without a direction; one with NaN or infinity has such a length: float64 does not overflow."""
    if ((lengths > 0) & (lengths < np.inf)).all():
        return
    finite = np.isfinite(lengths)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InvalidInput(f"{what} {row} holds NaN or infinity; check the model's output for that text")
    row = int(np.argmin(lengths))
    raise InvalidInput(f"{what} {row} is all zeros: it has no direction, so no cosine can be computed with it")


def to_blobs(rows: Array, storage: Storage) -> list[bytes]:
    """Encode (n, dimension) unit rows, one blob per row. An int8 blob starts with its float32 scale."""
    if storage == "int8":
        scales = np.abs(rows).max(axis=1, keepdims=True) / 127
        codes = np.rint(rows / scales).astype(np.int8)
        return [s.tobytes() + c.tobytes() for s, c in zip(scales.astype("<f4"), codes, strict=True)]
    encoded = rows.astype("<f4" if storage == "float32" else "<f2", copy=False)
    blobs: list[bytes] = encoded.view(f"V{encoded.shape[1] * encoded.itemsize}").ravel().tolist()
    return blobs


def from_blobs(blobs: Sequence[bytes], dimension: int, storage: Storage) -> Array:
    """Decode blobs to (n, dimension) float32 unit rows.

    Raises:
        DamagedRow: a blob of the wrong length, or with NaN, infinity or only zeros.
    """
    size = {"float32": 4 * dimension, "float16": 2 * dimension, "int8": 4 + dimension}[storage]
    if not set(map(type, blobs)) <= {bytes} or not set(map(len, blobs)) <= {size}:
        raise DamagedRow(f"a stored vector is not {size} bytes long")
    raw = np.frombuffer(b"".join(blobs), dtype=np.uint8).reshape(len(blobs), size)
    if storage == "float32":
        unit: Array = raw.view("<f4").astype(np.float32, copy=False)
    else:
        rows = (raw[:, 4:].view(np.int8) if storage == "int8" else raw.view("<f2")).astype(np.float32)
        with np.errstate(invalid="ignore"):
            unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(unit).all():
        raise DamagedRow("a stored vector holds NaN or infinity")
    return unit
