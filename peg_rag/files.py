"""Atomic and durable writes, and packed files.

An atomic write costs one fsync. It survives the death of the process; to survive a power failure, the new name needs
`sync_folder` as well.
"""

import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from peg_rag.extras import require_zstd


def write_atomically(file: Path, content: Any) -> None:
    """Write bytes (or any buffer) to `file` through `open_atomically`.

    Raises:
        OSError: the disk is full or the folder cannot be written; `file` is as it was.
    """
    with open_atomically(file) as stream:
        stream.write(content)


@contextmanager
def open_atomically(file: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `file` for writing; at the end of the block, sync it and rename it to `file`.

    An error within the block leaves `file` as it was, and no temporary file. Missing parent folders are created.

    Raises:
        OSError: the disk is full or the folder cannot be written; `file` is as it was.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            yield stream
            sync_stream(stream)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def sync_stream(stream: BinaryIO) -> None:
    """Make what was written to an open file durable.

    Raises:
        OSError: the disk is full or failed.
    """
    stream.flush()
    os.fsync(stream.fileno())


def sync_file(file: Path) -> None:
    """Make the content of a closed file durable.

    Raises:
        OSError: the disk is full or failed.
    """
    with file.open("rb+") as stream:  # Windows syncs only what is open for writing
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable, on the systems that can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make all files below a folder durable, and their names.

    Raises:
        OSError: the disk is full or failed.
    """
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(folder)


def open_packed(file: Path, extra: str) -> IO[bytes]:
    """Open for reading, unpacking .gz and .zst by their suffix; what a cut off or damaged file raises: `unreadable`.

    Raises:
        MissingExtra: a .zst needs the extra `extra`.
        OSError: the file cannot be opened.
    """
    if file.suffix == ".gz":
        return gzip.open(file, "rb")  # type: ignore[return-value]
    if file.suffix == ".zst":
        zstd = require_zstd(extra)
        stream: IO[bytes] = zstd.open(file, "rb", options={zstd.DecompressionParameter.window_log_max: 31})
        return stream
    return file.open("rb")


def unreadable(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What damaged files raise while they are read, and `more`; zstd is imported by whoever opened such a file."""
    zstd = sys.modules.get("compression.zstd") or sys.modules.get("backports.zstd")
    return (OSError, EOFError, zlib.error, *more, *([zstd.ZstdError] if zstd else []))
