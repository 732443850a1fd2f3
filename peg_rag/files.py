"""Files that are there whole or not at all. Costs one fsync for each."""

import os
from pathlib import Path
from typing import Any


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
