"""`FeedbackStore`: ratings of answers in `feedback.sqlite`, beside the index.

Ratings are the one thing in a store that cannot be made again, so they have a file of their own that outlives an index
which is built anew, and each is on disk before it is acknowledged. A rating names passages and holds no text of theirs:
what is deleted from the index is gone from here, too. Ratings come at a reader's pace, so a connection is opened for
each, which keeps the store free of threads and locks; a write costs two or three fsyncs.
"""

import errno
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from peg_rag.errors import DamagedIndex, IndexBusy
from peg_rag.files import sync_folder

FEEDBACK_FILE = "feedback.sqlite"
SCHEMA_VERSION = 1

Vote = Literal["up", "down"]
_SCHEMA = """
CREATE TABLE ratings (
    id TEXT PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    question TEXT NOT NULL,
    vote TEXT NOT NULL CHECK (vote IN ('up', 'down')),
    reason TEXT NOT NULL,
    model TEXT NOT NULL
) STRICT;
CREATE TABLE rated_passages (
    rating TEXT NOT NULL REFERENCES ratings(id) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    passage TEXT NOT NULL,
    source TEXT NOT NULL,
    cited INTEGER NOT NULL,
    useful INTEGER NOT NULL,
    PRIMARY KEY (rating, passage)
) STRICT, WITHOUT ROWID;
CREATE INDEX ratings_by_time ON ratings (created_ms, id);
"""


@dataclass(frozen=True, slots=True)
class RatedPassage:
    """A passage that a rated answer showed.

    Attributes:
        cited: the answer cited it.
        useful: the reader chose it as what answers the question.
        source: of its document.
    """

    passage_id: str
    cited: bool
    useful: bool
    source: str = ""


@dataclass(frozen=True, slots=True)
class Rating:
    """A reader's judgement of an answer.

    Attributes:
        id: chosen by the client, so that a rating that is sent again, or changed, replaces itself.
        reason: in the reader's words; may be empty.
        model: identity of the model that searched.
        created_ms: milliseconds since 1970, UTC.
    """

    id: str
    question: str
    vote: Vote
    reason: str = ""
    passages: tuple[RatedPassage, ...] = ()
    model: str = ""
    created_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


class FeedbackStore:
    """The ratings of a store.

    Args:
        store: the folder of the index. The file is made by the first rating.
        timeout_s: to wait for another process that writes.
    """

    def __init__(self, store: str | Path, *, timeout_s: float = 5.0) -> None:
        self.file = Path(store) / FEEDBACK_FILE
        self._timeout_s = timeout_s

    def put(self, rating: Rating) -> bool:
        """Keep a rating, in place of one with its id. When this returns, it is on disk.

        Returns:
            Whether an earlier one was replaced.

        Raises:
            IndexBusy: another process is writing for long.
            DamagedIndex: the file cannot be read, or a newer version made it.
        """
        is_new = not self.file.exists()
        with self._begin_transaction(create=True) as connection:
            replaced = connection.execute("DELETE FROM ratings WHERE id = ?", (rating.id,)).rowcount > 0
            connection.execute(
                "INSERT INTO ratings VALUES (?, ?, ?, ?, ?, ?)",
                (rating.id, rating.created_ms, rating.question, rating.vote, rating.reason, rating.model),
            )
            rows = [
                (rating.id, place, passage.passage_id, passage.source, passage.cited, passage.useful)
                for place, passage in enumerate(rating.passages)
            ]
            connection.executemany("INSERT INTO rated_passages VALUES (?, ?, ?, ?, ?, ?)", rows)
        if is_new:
            sync_folder(self.file.parent)
        return replaced

    def read(self) -> list[Rating]:
        """Every rating, the oldest first.

        Raises:
            DamagedIndex: the file cannot be read, or a newer version made it.
        """
        if not self.file.exists():
            return []
        with self._begin_transaction() as connection:
            if _is_empty(connection):
                return []
            passages: dict[str, list[RatedPassage]] = {}
            query = "SELECT rating, passage, cited, useful, source FROM rated_passages ORDER BY rating, place"
            for rating, passage, cited, useful, source in connection.execute(query):
                passages.setdefault(rating, []).append(RatedPassage(passage, bool(cited), bool(useful), source))
            query = "SELECT id, question, vote, reason, model, created_ms FROM ratings ORDER BY created_ms, id"
            return [
                Rating(name, question, vote, reason, tuple(passages.get(name, ())), model, created_ms)
                for name, question, vote, reason, model, created_ms in connection.execute(query)
            ]

    def __len__(self) -> int:
        if not self.file.exists():
            return 0
        with self._begin_transaction() as connection:
            if _is_empty(connection):
                return 0
            return int(connection.execute("SELECT count(*) FROM ratings").fetchone()[0])

    @contextmanager
    def _begin_transaction(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection within one transaction, committed at the end of the block."""
        try:
            with closing(self._open_connection(create)) as connection:
                connection.execute("BEGIN IMMEDIATE" if create else "BEGIN")
                self._check_version(connection, create)
                yield connection
                connection.commit()
        except sqlite3.OperationalError as error:
            raise self._translate_error(error) from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            raise DamagedIndex(
                f"{self.file} cannot be read ({error}); move it away to begin anew, or restore it from a backup"
            ) from error

    def _translate_error(self, error: sqlite3.OperationalError) -> Exception:
        match error.sqlite_errorcode & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return IndexBusy(f"another process is writing to {self.file}; try again later")
            case sqlite3.SQLITE_FULL:
                return OSError(errno.ENOSPC, f"cannot keep a rating ({error}); free some space", str(self.file))
            case sqlite3.SQLITE_IOERR:
                return OSError(errno.EIO, f"cannot read or write the ratings ({error})", str(self.file))
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                return OSError(errno.EACCES, f"cannot open or write the ratings ({error})", str(self.file))
        return error

    def _open_connection(self, create: bool) -> sqlite3.Connection:
        """A connection; one that only reads may write where a process was killed in the middle of a rating.

        SQLite rolls such a rating back before it reads.
        """
        try:
            return self._open_file("rwc" if create else "ro")
        except sqlite3.OperationalError as error:
            if create or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
        return self._open_file("rw")

    def _open_file(self, mode: str) -> sqlite3.Connection:
        uri = f"{self.file.resolve().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=self._timeout_s, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_version(self, connection: sqlite3.Connection, create: bool) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0 and create:
            for statement in _SCHEMA.split(";"):  # `executescript` would commit
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION and not _is_empty(connection):
            raise DamagedIndex(
                f"{self.file} is of version {version} and this is peg-rag for version {SCHEMA_VERSION}; "
                "upgrade peg-rag, or move the file away to begin anew"
            )


def _is_empty(connection: sqlite3.Connection) -> bool:
    """Whether the file holds no tables: a process was killed before its first rating was kept."""
    return bool(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0)
