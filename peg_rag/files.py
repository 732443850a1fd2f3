"""Files that are there whole or not at all, which costs one fsync for each; and files that come packed."""

import gzip
import os
import sys
import zlib
from pathlib import Path
from typing import IO, Any

from peg_rag.extras import require_zstd


def write_atomically(file: Path, content: Any) -> None:
    """Write bytes (or any buffer) beside `file`, flush them to the disk and rename: the file is whole, or as it was.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


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
