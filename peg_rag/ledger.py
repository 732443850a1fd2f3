"""The ledger of a store: which files are indexed, in which version, and which folders they came from.

`ingest` and the server's uploads both have to know what the index already holds, and both have to finish what a crash
cut short. The ledger is a small SQLite database beside the index (`sources.db`). One process at a time may write to it;
reading needs no lock, so a store can be searched while it is updated.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from peg_rag.chunking import digest
from peg_rag.errors import DamagedIndex, IndexBusy, InvalidInput

LEDGER_FILE = "sources.db"
LOCK_TIMEOUT_S = 5.0


@dataclass(slots=True)
class FileEntry:
    """A file as it was when it was indexed.

    Attributes:
        size: bytes.
        mtime_ns: time of the last modification, in nanoseconds.
        sha256: digest of the content; empty while the file is being indexed.
        fingerprint: of the settings it was cut with, see `Chunking.fingerprint`.
        chunks: their number.
    """

    size: int
    mtime_ns: int
    sha256: str
    fingerprint: str
    chunks: int

    @classmethod
    def unfinished(cls) -> Self:
        """The entry of a file whose indexing has started."""
        return cls(0, 0, "", "", 0)

    @property
    def is_finished(self) -> bool:
        return bool(self.sha256)

    @property
    def version(self) -> str:
        """What the metadata of the file's chunks carry as `version`."""
        return digest(self.sha256, self.fingerprint)[:16]


class Ledger:
    """An open ledger; `open_ledger` makes one. A change is on disk when its method returns."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._connection.execute("PRAGMA synchronous = FULL")
        with self._connection as db:
            db.execute("CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT")
            db.execute("CREATE TABLE IF NOT EXISTS roots (name TEXT PRIMARY KEY, path TEXT NOT NULL) STRICT")
            db.execute(
                "CREATE TABLE IF NOT EXISTS files (source TEXT PRIMARY KEY, root TEXT NOT NULL, size INTEGER NOT NULL, "
                "mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, mark TEXT NOT NULL, chunks INTEGER NOT NULL) STRICT"
            )

    def set_model(self, model: str) -> None:
        """Record the model that the store is embedded with, for `model_of`."""
        with self._connection as db:
            db.execute("INSERT OR REPLACE INTO settings VALUES ('model', ?)", (model,))

    def claim_store(self, location: str) -> None:
        """Record which store on a server the ledger is of.

        Raises:
            InvalidInput: it is another store's.
        """
        row = self._connection.execute("SELECT value FROM settings WHERE name = 'store'").fetchone()
        if row and row[0] != location:
            raise InvalidInput(f"this ledger is that of {row[0]}; give {location} one of its own (--ledger)")
        with self._connection as db:
            db.execute("INSERT OR REPLACE INTO settings VALUES ('store', ?)", (location,))

    def claim_root(self, root: str, path: Path) -> None:
        """Record where a folder lies. A folder that moved keeps its name.

        Raises:
            InvalidInput: another folder, which still exists, has that name.
        """
        row = self._connection.execute("SELECT path FROM roots WHERE name = ?", (root,)).fetchone()
        if row and row[0] != str(path) and Path(row[0]).exists():
            raise InvalidInput(
                f"this store already holds another {root!r}, from {row[0]}; give {path} a name of its own (--name)"
            )
        self.set_root(root, path)

    def set_root(self, root: str, path: Path) -> None:
        """Record where a folder lies, whatever the ledger said before."""
        with self._connection as db:
            db.execute("INSERT OR REPLACE INTO roots VALUES (?, ?)", (root, str(path)))

    def list_sources(self, root: str) -> set[str]:
        """The files of a folder."""
        return {row[0] for row in self._connection.execute("SELECT source FROM files WHERE root = ?", (root,))}

    def count_chunks(self) -> int:
        """The chunks of all files."""
        return int(self._connection.execute("SELECT coalesce(sum(chunks), 0) FROM files").fetchone()[0])

    def get(self, source: str) -> FileEntry | None:
        """The entry of a file; None where it was never indexed."""
        row = self._connection.execute(
            "SELECT size, mtime_ns, sha256, mark, chunks FROM files WHERE source = ?", (source,)
        ).fetchone()
        return FileEntry(*row) if row else None

    def put(self, root: str, entries: dict[str, FileEntry]) -> None:
        """Add or replace the entries of a folder's files, by source; all of them or none."""
        rows = [(source, root, e.size, e.mtime_ns, e.sha256, e.fingerprint, e.chunks) for source, e in entries.items()]
        with self._connection as db:
            db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def remove(self, sources: list[str]) -> None:
        """Remove the entries of files; all of them or none."""
        with self._connection as db:
            db.executemany("DELETE FROM files WHERE source = ?", [(source,) for source in sources])


@contextmanager
def open_ledger(store: Path) -> Iterator[Ledger]:
    """The ledger of a store, locked for this process; made where there is none.

    Raises:
        IndexBusy: another process holds it for longer than `LOCK_TIMEOUT_S`.
        DamagedIndex: it is no ledger.
    """
    from filelock import FileLock, Timeout

    store.mkdir(parents=True, exist_ok=True)
    file = store / LEDGER_FILE
    try:
        lock = FileLock(store / f".{LEDGER_FILE}.lock", timeout=LOCK_TIMEOUT_S).acquire()
    except Timeout as error:
        raise IndexBusy(f"another process is indexing into {store}; wait for it to finish") from error
    with lock, closing(sqlite3.connect(file)) as connection:
        try:
            ledger = Ledger(connection)
        except sqlite3.DatabaseError as error:
            raise _damage_error(file, error) from error
        yield ledger


def model_of(store: str | Path) -> str | None:
    """The model that a store was synced with, as it was given to `sync`.

    Of a store made otherwise, such as a copy, the bundled model that made its vectors; None if that was another.

    Raises:
        DamagedIndex: the ledger or the index cannot be read.
    """
    models = select_column(store, "SELECT value FROM settings WHERE name = 'model'")
    return models[0] if models else _find_bundled_model(Path(store))


def _find_bundled_model(store: Path) -> str | None:
    from peg_rag.index import PEGIndex
    from peg_rag.index.store import FILE_NAME
    from peg_rag.models import bundled_model_of

    if not (store / FILE_NAME).is_file():
        return None
    with PEGIndex(store, read_only=True) as index:
        return bundled_model_of(index.identity)


def file_of(store: str | Path, source: str) -> Path | None:
    """The file that a passage's `source` names; None where it is gone, or the store was not made by `sync`.

    Raises:
        DamagedIndex: the ledger cannot be read.
    """
    query = (
        "SELECT roots.path || substr(files.source, length(roots.name) + 1) "
        "FROM files JOIN roots ON roots.name = files.root WHERE files.source = ?"
    )
    return next((path for path in map(Path, select_column(store, query, source)) if path.is_file()), None)


def list_sources(store: str | Path, root: str) -> list[str]:
    """The indexed files of a folder, read without the lock.

    Raises:
        DamagedIndex: the ledger cannot be read.
    """
    return select_column(store, "SELECT source FROM files WHERE root = ?", root)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def select_column(store: str | Path, query: str, *parameters: str) -> list[str]:
    """The first column of a query, read without the lock; empty where the store has no ledger.

    A process that was killed in the middle of a change leaves a journal, which SQLite rolls back before it reads; for
    that, and only then, the ledger is opened for writing.

    Raises:
        IndexBusy: another process is in the middle of a write.
        DamagedIndex: the ledger cannot be read.
    """
    file = Path(store).resolve() / LEDGER_FILE
    if not file.is_file():
        return []
    try:
        try:
            return _run_query(file, "ro", query, parameters)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
        return _run_query(file, "rw", query, parameters)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", -1) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise IndexBusy(f"another process is writing to {file}; try again later") from error
        raise _damage_error(file, error) from error


def _run_query(file: Path, mode: str, query: str, parameters: tuple[str, ...]) -> list[str]:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode={mode}", uri=True)) as connection:
        return [str(row[0]) for row in connection.execute(query, parameters)]


def _damage_error(file: Path, error: Exception) -> DamagedIndex:
    return DamagedIndex(f"{file} cannot be read ({error}); delete it, and the next run indexes every file again")
