"""What the worker processes of a `DevicePool` and the pool say to each other, as bytes on a pipe.

A message is a line of JSON and an array's bytes, whose number the line names. Nothing is unpickled. An error travels as
the names of its classes, its message and its traceback, and is raised again as the nearest class known on this side.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from itertools import chain
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

import peg_rag.errors  # noqa: F401  a class of it is looked up by name

Header = dict[str, Any]


def write_message(stream: IO[bytes], header: Header, array: NDArray[Any] | None = None) -> None:
    """Write a message; the stream may be unbuffered."""
    content = memoryview(b"" if array is None else array.tobytes())
    _write_bytes(stream, memoryview(json.dumps(header | {"bytes": content.nbytes}).encode() + b"\n"))
    _write_bytes(stream, content)
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[Header, bytearray]:
    """The next message of a buffered stream.

    Raises:
        EOFError: the other side is gone, maybe in the middle of a message.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the pipe was closed")
    header: Header = json.loads(line)
    content = bytearray(header["bytes"])
    view = memoryview(content)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the pipe was closed in the middle of a message")
        view = view[count:]
    return header, content


def pack_rows(rows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Rows of token ids as one array: the number of rows, the length of each, then all ids."""
    lengths = list(map(len, rows))
    count = 1 + len(rows) + sum(lengths)
    return np.fromiter(chain([len(rows)], lengths, chain.from_iterable(rows)), dtype=np.int32, count=count)


def unpack_rows(content: bytearray) -> list[list[int]]:
    """The inverse of `pack_rows`."""
    values = np.frombuffer(content, dtype=np.int32)
    count = int(values[0])
    ends = np.cumsum(values[1 : 1 + count])
    return [row.tolist() for row in np.split(values[1 + count :], ends[:-1])] if count else []


def describe_error(error: BaseException) -> dict[str, Any]:
    """What `rebuild_error` needs."""
    names = [[cls.__module__, cls.__qualname__] for cls in type(error).__mro__]
    return {"classes": names, "message": str(error), "traceback": "".join(traceback.format_exception(error))}


def rebuild_error(description: dict[str, Any], device: str) -> Exception:
    """The error of the worker on that device, with the worker's traceback as a note."""
    for module, name in description["classes"]:
        cls = getattr(sys.modules.get(module), name, None)
        if not (isinstance(cls, type) and issubclass(cls, Exception)):
            continue
        try:
            error = cls(description["message"])
        except TypeError:  # its constructor wants more than a message; its parent's may not
            continue
        error.add_note(f"In the worker process on {device}:\n{description['traceback']}")
        return error
    return RuntimeError(description["message"])


def _write_bytes(stream: IO[bytes], content: memoryview) -> None:
    while content:
        content = content[stream.write(content) :]
