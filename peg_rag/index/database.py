"""The SQLite file that is the source of truth of an index: texts, metadata, vectors and postings in one transaction.

Every committed write survives a crash of the process or the machine (WAL with `synchronous=FULL`); everything else an
index keeps, the segment file and arrays in memory, can be rebuilt from here. Readers see one snapshot for a whole
search and never block; one writer at a time, the next waits.

A document version has an integer *key* that is never reused: an update deletes the old key and adds a new one, so all
documents newer than a given key are found by one range scan. Keys are grouped in blocks of `BLOCK`; the row of a block
holds one length per key, 0 for a deleted document.

Cost: about 1 kB per document besides its text and vector, most of it postings. A write costs one fsync.
"""

import errno
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from peg_rag.errors import DamagedIndex, ForkedIndex, IndexBusy, IndexMismatch, InvalidInput, PegRagError
from peg_rag.index.filters import register_functions
from peg_rag.index.forks import GATE, Connection

SCHEMA_VERSION = 1
APPLICATION_ID = 0x50454731  # "PEG1"
BLOCK_BITS = 12  # of a key number the document in its block
BLOCK = 1 << BLOCK_BITS
READERS = 8
PAGE_BYTES = 16_384  # of a new file; of SQLite's 4,096, a row with text and vector leaves up to half of each page empty

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    sequence INTEGER NOT NULL,    -- one more with every committed change
    next_key INTEGER NOT NULL,
    documents INTEGER NOT NULL,
    generation INTEGER NOT NULL   -- of the vector file; 0 when there is none
);
CREATE TABLE documents (key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, metadata TEXT NOT NULL);
CREATE TABLE bodies (key INTEGER PRIMARY KEY, text TEXT NOT NULL, vector BLOB NOT NULL);
CREATE TABLE blocks (block INTEGER PRIMARY KEY, lengths BLOB NOT NULL);
CREATE TABLE postings (
    block INTEGER NOT NULL, head TEXT NOT NULL, entries BLOB NOT NULL, PRIMARY KEY (block, head)
) WITHOUT ROWID;
CREATE TABLE base (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    kind TEXT NOT NULL, size INTEGER NOT NULL, checksums BLOB NOT NULL, keys BLOB NOT NULL,
    next_key INTEGER NOT NULL, documents INTEGER NOT NULL  -- as they were when the file was made
);
INSERT INTO state VALUES (1, 0, 0, 0, 0);
"""

_SETTINGS = (
    "synchronous=FULL",
    "fullfsync=ON",  # macOS: reach the disk, not only its cache
    "cache_size=-32768",
    "temp_store=MEMORY",
    "trusted_schema=OFF",
    "secure_delete=OFF",
    f"journal_size_limit={64 << 20}",
)
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH}
_REFUSED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
_SHORT_READ = sqlite3.SQLITE_IOERR_SHORT_READ


class DamagedRow(Exception):
    """A row that this library cannot have written; `Database` raises it as `DamagedIndex` with the name of the file."""


class _FairSemaphore:
    """A semaphore that serves threads first come, first served.

    With `threading.Semaphore`, a thread that releases a slot can acquire it again before a waiting thread wakes up:
    readers in a loop then starve a writer for minutes.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def acquire(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for a slot; whether one was acquired."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            ticket = threading.Lock()
            ticket.acquire()
            self._waiting.append(ticket)
        if ticket.acquire(timeout=timeout):
            return True
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                return False
        return True  # handed over between the timeout and the lock

    def release(self) -> None:
        """Hand the slot to the thread that has waited longest, or free it."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


_Version = tuple[int, int, int]  # inode, size, modification time in ns


class _Fingerprint(NamedTuple):
    """Changes with every write to a database."""

    file: _Version | None
    log: _Version | None  # None also when it is empty


def _read_version(file: Path) -> _Version | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    if not status.st_size:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Database:
    """Connections to one SQLite file, or to one database in memory: many readers, one writer."""

    def __init__(self, file: Path | None, *, read_only: bool = False, timeout_s: float = 10.0) -> None:
        """Open a database, and create the schema in an empty file.

        Args:
            file: the SQLite file; None for a database in memory, whose one connection is shared by all threads.

        Raises:
            DamagedIndex: the file is not an SQLite file, or not an index.
            IndexMismatch: the file was written by another version of the schema.
            IndexBusy: another process locks the file for longer than `timeout_s`.
        """
        self.file = file
        self.read_only = read_only
        self.timeout_s = timeout_s
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()  # idle or in use
        self._process = os.getpid()
        self._closed = False
        self._create_locks()
        GATE.register(self)
        with self._translate_errors():
            self._prepare_schema()

    # -- transactions -------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection inside one read transaction: every statement sees the same snapshot.

        Raises:
            IndexBusy: on a read-only mount, another process began to write; discard what was read.
        """
        with self._borrow_connection() as connection:
            try:
                with self._translate_errors():
                    connection.execute("BEGIN")
                    try:
                        yield connection
                    finally:
                        if self._is_own_process():
                            connection.execute("ROLLBACK")
            finally:
                self._detect_change(connection)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection inside one write transaction, committed at the end, rolled back on any error.

        Raises:
            IndexBusy: another thread or process keeps writing for longer than `timeout_s`.
        """
        if self.read_only:
            raise PegRagError(f"the index at {self.name} was opened with read_only=True; open it without to write")
        self._refuse_child()  # it may have inherited a lock that no thread of it will release
        if not self._one_writer.acquire(timeout=self.timeout_s):
            raise IndexBusy(f"another thread has been writing to {self.name} for more than {self.timeout_s} s")
        try:
            with self._borrow_connection() as connection, self._translate_errors():
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    self._refuse_child()
                    connection.execute("COMMIT")
                finally:
                    if self._is_own_process() and connection.in_transaction:
                        connection.execute("ROLLBACK")
        finally:
            self._one_writer.release()

    def close(self) -> None:
        """Close all idle connections; those in use are closed when they are returned."""
        self._closed = True
        if self._is_own_process():
            with GATE.passed():
                self._close_idle()

    @property
    def name(self) -> str:
        """The file, for messages."""
        return str(self.file) if self.file else "memory"

    # -- connections --------------------------------------------------------------------------------------------------

    @contextmanager
    def _borrow_connection(self) -> Iterator[Connection]:
        if self._closed:
            raise PegRagError(f"the index at {self.name} is closed; open it again with PEGIndex({self.name!r})")
        self._refuse_child()
        if not self._slots.acquire(timeout=max(self.timeout_s, 60.0)):
            raise IndexBusy(f"all {READERS} connections to {self.name} are in use")
        try:
            with GATE.passed():
                with self._translate_errors():
                    connection = self._take_connection()
                try:
                    yield connection
                finally:
                    self._return_connection(connection)
        finally:
            if self._is_own_process():
                self._slots.release()

    def _take_connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.fingerprint is None or connection.fingerprint == self._read_fingerprint():
                return connection
            self._close_connection(connection)
        return self._connect()

    def _return_connection(self, connection: Connection) -> None:
        if not self._is_own_process():
            return
        if self._closed:
            self._close_connection(connection)
        else:
            self._idle.append(connection)

    def _close_idle(self) -> None:
        while self._idle:
            with suppress(IndexError):  # another thread closed the last one
                self._close_connection(self._idle.pop())

    def _close_connection(self, connection: Connection) -> None:
        connection.close()
        self._open.discard(connection)

    def _connect(self) -> Connection:
        if self.file is None:
            return self._open_connection(":memory:")
        GATE.refuse_inherited(self.file)
        if not self.read_only:
            return self._open_connection(self._build_uri("mode=rwc"))
        for _ in range(2):
            fingerprint = self._read_fingerprint()
            try:
                return self._open_connection(self._build_uri("mode=ro"))
            except sqlite3.OperationalError as error:
                if _get_code(error) & 0xFF not in _REFUSED:
                    raise
                problem = error
            if not self._sibling_file("-shm").exists():
                return self._connect_without_locks(fingerprint)
        raise problem

    def _connect_without_locks(self, fingerprint: "_Fingerprint") -> Connection:
        """Open a file in a folder where SQLite cannot create the shared memory (`-shm`) for its locks.

        As long as that file is missing, there is no writer. If one appears through another mount of the folder, the
        fingerprint changes: reads in progress fail, and the next read finds the writer's file and uses its locks.
        """
        if fingerprint.log is None:
            connection = self._open_connection(self._build_uri("mode=ro&immutable=1"))
        else:  # `immutable` would ignore the log
            vfs = "win32-none" if os.name == "nt" else "unix-none"
            connection = self._open_connection(self._build_uri(f"mode=ro&vfs={vfs}"), "locking_mode=EXCLUSIVE")
        connection.fingerprint = fingerprint
        return connection

    def _open_connection(self, target: str, *settings: str) -> Connection:
        connection = sqlite3.connect(
            target,
            uri=self.file is not None,
            timeout=self.timeout_s,
            isolation_level=None,
            check_same_thread=False,
            factory=Connection,
        )
        if self.file is not None:
            connection.remember_file(self.file)
        self._open.add(connection)
        register_functions(connection)
        try:
            for setting in (*settings, *_SETTINGS):
                connection.execute(f"PRAGMA {setting}")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log
        except BaseException:
            self._close_connection(connection)
            raise
        return connection

    def _build_uri(self, parameters: str) -> str:
        assert self.file is not None
        return f"{self.file.absolute().as_uri()}?{parameters}"

    def _sibling_file(self, suffix: str) -> Path:
        assert self.file is not None
        return self.file.with_name(self.file.name + suffix)

    def _read_fingerprint(self) -> "_Fingerprint":
        assert self.file is not None
        return _Fingerprint(_read_version(self.file), _read_version(self._sibling_file("-wal")))

    def _detect_change(self, connection: Connection) -> None:
        """Raise `IndexBusy` after reading without locks from a file that has changed meanwhile."""
        if connection.fingerprint is not None and connection.fingerprint != self._read_fingerprint():
            raise IndexBusy(f"another process began to write to {self.name} while it was read; try again")

    def _create_locks(self) -> None:
        self._slots = _FairSemaphore(1 if self.file is None else READERS)
        self._one_writer = threading.Lock()

    # -- forks --------------------------------------------------------------------------------------------------------

    def _is_own_process(self) -> bool:
        """Whether the database was opened by this process, rather than by one it was forked from."""
        return self._process == os.getpid()

    def _refuse_child(self) -> None:
        if self._is_own_process():
            return
        if self.file is None:
            raise ForkedIndex(
                "this process was forked while a thread used this index in memory, so its copy cannot be used; "
                "fork while no thread uses it, or make another index with PEGIndex()"
            )
        raise ForkedIndex(
            f"the index at {self.file.parent} was opened before this process was forked, and SQLite does not work "
            f"across a fork; open it here: PEGIndex({str(self.file.parent)!r})"
        )

    def connections(self) -> list[Connection]:
        """All open connections, idle or in use."""
        return list(self._open)

    def before_fork(self) -> None:
        """Close the idle connections, so that the child inherits none; a database in memory keeps its one."""
        if self.file is not None:
            self._close_idle()

    def after_fork(self, *, quiet: bool) -> None:
        """In the child: take over a database in memory, unless a thread was using it."""
        if self.file is None and quiet:
            self._create_locks()
            self._process = os.getpid()
            for connection in self._open:
                connection.process = self._process

    # -- opening ------------------------------------------------------------------------------------------------------

    def _prepare_schema(self) -> None:
        with self._borrow_connection() as connection:
            if not self._is_ready(connection):
                self._create_schema(connection)

    def _is_ready(self, connection: sqlite3.Connection) -> bool:
        """Whether this is an index of this schema; False for an empty file."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == APPLICATION_ID and version != SCHEMA_VERSION:
            raise IndexMismatch(
                f"{self.name} has schema version {version}, this peg_rag reads version {SCHEMA_VERSION}; "
                "open it with the version that wrote it, or index the documents again"
            )
        if tables and application != APPLICATION_ID:
            raise DamagedIndex(f"{self.name} is an SQLite file but not a peg_rag index; give another path")
        return bool(tables)

    def _create_schema(self, connection: sqlite3.Connection) -> None:
        if self.read_only:
            raise DamagedIndex(f"{self.name} is empty, and read_only=True cannot create an index")
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        self._enable_wal(connection)
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not self._is_ready(connection):  # another process may have been first
                for statement in SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _enable_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to WAL. SQLite's busy timeout does not cover this statement, so it is retried here."""
        give_up_at = time.monotonic() + self.timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if _get_code(error) & 0xFF not in _BUSY or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.02)

    # -- errors -------------------------------------------------------------------------------------------------------

    def _translate_errors(self) -> "_ErrorTranslation":
        return _ErrorTranslation(self)

    def translate_error(self, error: BaseException) -> Exception | None:
        """The public form of an error of SQLite or of a damaged row; None for any other."""
        if isinstance(error, sqlite3.DatabaseError):
            return self._translate_sqlite_error(error)
        return self._describe_damage(error) if isinstance(error, DamagedRow) else None

    def _translate_sqlite_error(self, error: sqlite3.DatabaseError) -> Exception:
        code = _get_code(error)
        kind = code & 0xFF
        if kind in _BUSY:
            return IndexBusy(
                f"another process has been writing to {self.name} for more than {self.timeout_s} s; "
                "try again, or open the index with a larger timeout_s"
            )
        if _is_damage(error):
            return self._describe_damage(error)
        if kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            number = errno.ENOSPC if kind == sqlite3.SQLITE_FULL else errno.EIO
            return OSError(number, f"cannot write ({error}); the index is as it was before. Free some space", self.name)
        if kind in _REFUSED:
            cure = "" if self.read_only else "; where nothing may be written, open it with read_only=True"
            return OSError(errno.EACCES, f"cannot open or write the index ({error}){cure}", self.name)
        if kind == sqlite3.SQLITE_TOOBIG:
            return InvalidInput(f"a text or the metadata of a document is larger than SQLite takes ({error}); split it")
        return error

    def _describe_damage(self, reason: Exception) -> DamagedIndex:
        return DamagedIndex(f"{self.name} is damaged ({reason}); restore it from a copy, or index the documents again")


class _ErrorTranslation:
    """Translates the errors of a `with` statement; on the way of every query, so without a generator."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        translation = None if error is None else self._database.translate_error(error)
        if translation is not None and translation is not error:
            raise translation from error


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether an error of SQLite, whichever of its codes it has, means damaged content."""
    code = _get_code(error)
    if code & 0xFF in _DAMAGED or code == _SHORT_READ:
        return True
    if code == sqlite3.SQLITE_ERROR:
        return any(word in str(error) for word in ("no such", "malformed", "JSON", " columns "))
    # Python's module reports text that is not UTF-8 without a code.
    return code == _NO_CODE and "decode" in str(error)


_NO_CODE = -1


def _get_code(error: sqlite3.DatabaseError) -> int:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return _NO_CODE if code is None else code
