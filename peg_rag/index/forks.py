"""Protects an index from corruption when its process forks.

SQLite remembers, once per process and file, which locks it holds. A forked child inherits that memory but not the
locks: it would write without any, and the log it writes to would be deleted by the next connection that its parent
closes. Opening the file anew does not help the child as long as it has inherited a connection to it, and closing that
connection is not safe either (https://www.sqlite.org/howtocorrupt.html, section 2.6).

So no connection is open during a fork. The fork waits for threads inside SQLite, blocks others, and closes the idle
connections; the parent reopens them when needed. In the child, the inherited index refuses every call: the child has
to open its own by path. If a thread does not leave SQLite within `WAIT_S`, the fork proceeds with a warning, and the
child can open every index except those that were in use.
"""

import concurrent.futures.thread  # noqa: F401  (see the last lines)
import ctypes
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from peg_rag.errors import ForkedIndex

WAIT_S = 10.0  # how long a fork waits for threads that use an index

logger = logging.getLogger(__name__)

_File = tuple[int, int]  # device and inode: a file may have several paths


class Connection(sqlite3.Connection):
    """A connection that is only closed by the process that opened it."""

    def __init__(self, database: str, *arguments: Any, **options: Any) -> None:
        self.process = os.getpid()
        self.file: _File | None = None
        self.fingerprint: object = None  # of the files, when they are read without locks
        super().__init__(database, *arguments, **options)

    def remember_file(self, path: Path) -> None:
        """Remember which file this is a connection to."""
        self.file = _identify_file(path)

    def __del__(
        self,
        getpid: Callable[[], int] = os.getpid,
        keep_forever: Callable[[Any], None] = ctypes.pythonapi.Py_IncRef,
        reference: Callable[[Any], Any] = ctypes.py_object,
    ) -> None:
        # The names are bound as defaults, because globals are cleared when the interpreter exits.
        if self.process != getpid():
            keep_forever(reference(self))


class Owner(Protocol):
    """A holder of connections, which is notified before a fork and, in the child, after it."""

    @property
    def name(self) -> str: ...

    def connections(self) -> list[Connection]: ...

    def before_fork(self) -> None: ...

    def after_fork(self, *, quiet: bool) -> None: ...


class Gate:
    """Threads pass it to use a connection; a fork closes it and waits until they have left."""

    def __init__(self) -> None:
        self._owners: WeakSet[Owner] = WeakSet()
        self._inherited: set[_File] = set()
        self._one_fork = threading.Lock()
        self._quiet = False
        self._reset_state()

    def _reset_state(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._inside: dict[int, int] = {}  # thread → how many times it has entered
        self._forking: int | None = None  # the thread that forks

    def passed(self) -> "_Passage":
        """Enter, after waiting for another thread that forks. A thread that is already inside never waits."""
        return _Passage(self)

    def enter(self, thread: int) -> None:
        """Count a thread in."""
        with self._lock:
            if self._forking is not None:
                self._changed.wait_for(lambda: self._forking in (None, thread) or thread in self._inside)
            self._inside[thread] = self._inside.get(thread, 0) + 1

    def leave(self, thread: int) -> None:
        """Count a thread out; only a fork waits for it."""
        with self._lock:
            self._inside[thread] = self._inside.get(thread, 0) - 1
            if self._inside[thread] <= 0:
                del self._inside[thread]
            if self._forking is not None:
                self._changed.notify_all()

    def register(self, owner: Owner) -> None:
        """Notify `owner` of forks for as long as it exists."""
        with self._changed:
            self._owners.add(owner)

    def refuse_inherited(self, file: Path) -> None:
        """Raise `ForkedIndex` where this process has inherited an open connection to the file."""
        if self._inherited and _identify_file(file) in self._inherited:
            raise ForkedIndex(
                f"{file} was in use by a thread when this process was forked, so it cannot be opened safely here; "
                "fork while no thread uses the index, close it first, or start the process with the `spawn` method"
            )

    # -- around a fork ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Before a fork, in the thread that forks."""
        self._one_fork.acquire()
        me = threading.get_ident()
        with self._changed:
            self._forking = me
            others_left = self._changed.wait_for(lambda: not self._inside.keys() - {me}, WAIT_S)
            self._quiet = others_left and me not in self._inside
            owners = list(self._owners)
        for owner in owners:
            owner.before_fork()
        if not self._quiet:
            names = ", ".join(sorted({owner.name for owner in owners if owner.connections()}))
            logger.warning("this process forks while a thread uses %s: the child will not be able to open it", names)

    def reopen(self) -> None:
        """After a fork, or a failed one, in the parent."""
        with self._changed:
            self._forking = None
            self._changed.notify_all()
        self._one_fork.release()

    def start_anew(self) -> None:
        """After a fork, in the child, which has no other thread."""
        self._one_fork = threading.Lock()
        self._reset_state()
        for owner in list(self._owners):
            self._inherited |= {connection.file for connection in owner.connections() if connection.file}
            owner.after_fork(quiet=self._quiet)
        self._quiet = False


class _Passage:
    """Inside the gate for the length of a `with` statement; on the way of every query, so without a generator."""

    __slots__ = ("_gate", "_thread")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._thread = threading.get_ident()  # the thread that leaves may be another: the one that collects garbage

    def __enter__(self) -> None:
        self._gate.enter(self._thread)

    def __exit__(self, *_: object) -> None:
        self._gate.leave(self._thread)


def _identify_file(file: Path) -> _File | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


GATE = Gate()

# Before a fork, the hooks registered last run first. Waiting for other threads must come before the hooks of `logging`
# and `concurrent.futures` take locks that those threads may need, hence the imports above.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=GATE.close, after_in_parent=GATE.reopen, after_in_child=GATE.start_anew)
