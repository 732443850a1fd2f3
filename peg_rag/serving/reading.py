"""Reading an uploaded file once in a process of its own, before anything of it is kept.

Converters for PDF and Word meet files made to hang or to exhaust memory. A thread cannot be stopped and memory of this
process cannot be capped, so a file is first read where both can: what passes there is safe to read again. Costs a
start of Python and of the converter, about 0.1 s for text and a second for PDF and Word files.

`python -m peg_rag.serving.reading FILE` prints nothing and exits 0, or prints why the file cannot be read and exits 1.
"""

import subprocess
import sys
from pathlib import Path

from peg_rag.errors import DataError

MEMORY_BYTES = 4 << 30  # of address space


def check_readable(file: Path, name: str, timeout_s: float) -> None:
    """Read a file the hard way.

    Args:
        name: what the client calls the file; the error speaks of it by this name.

    Raises:
        DataError: it cannot be read, or not within `timeout_s` and `MEMORY_BYTES`.
    """
    command = [sys.executable, "-I", "-m", "peg_rag.serving.reading", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{name} could not be read within {timeout_s:.0f} s; split it, or save it as text") from error
    if done.returncode == 1 and done.stdout:
        raise DataError(done.stdout.decode(errors="replace").strip().replace(str(file), name))
    if done.returncode:
        raise DataError(f"{name} cannot be read: its converter gave up; save it again, or as text")


def _main(file: str) -> int:
    from peg_rag.errors import PegRagError
    from peg_rag.readers import read_sections

    _limit_memory()
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    try:
        read_sections(Path(file))
    except (PegRagError, MemoryError) as error:
        sys.stdout.write(str(error) or "the file needs too much memory to be read")
        return 1
    return 0


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on this system: time is limited all the same
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
