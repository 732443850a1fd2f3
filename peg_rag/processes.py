"""Child processes that run a module of this package, talk through pipes and never outlive the one that started them.

A child is a new interpreter, not a fork: it inherits no locks, threads or CUDA context, and a user's script needs no
`if __name__ == "__main__"`. Starting one costs the imports of its module.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO


def start_module(
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    stderr: int | None = None,
    bufsize: int = -1,
) -> "subprocess.Popen[bytes]":
    """Run `python -m module` with pipes to its stdin and from its stdout.

    Args:
        environment: variables to set in addition to this process's.
        stderr, bufsize: as in `subprocess.Popen`.
    """
    home = str(Path(__file__).resolve().parent.parent)
    python_path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        # -P: no module is taken from the working directory, which may be a stranger's folder.
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=bufsize,
        start_new_session=True,  # Ctrl-C is for the parent, which then closes the pipe
        env={**os.environ, **(environment or {}), "PYTHONPATH": python_path},
    )


def end_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    set_death_signal = 1  # PR_SET_PDEATHSIG in <sys/prctl.h>
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(0)


def take_stdout() -> BinaryIO:
    """The pipe to the parent, for this caller alone: whatever a library prints goes to stderr from now on."""
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return pipe
