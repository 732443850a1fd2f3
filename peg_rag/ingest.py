"""A folder of files → chunks in an index, and back in step after every change: new files in, deleted ones out.

Why this exists: frameworks load documents but leave it to their users to notice that a file changed or went away, so
deleted files go on answering. Here a ledger beside the index (`sources.db`, SQLite) records what every file was when it
was indexed; only files whose content changed are read and embedded again.

Order makes it safe against a crash at any moment: a file is entered in the ledger as unfinished *before* its chunks
go into the index, its new chunks go in before its old ones leave, and it is marked finished last. So the ledger names
every file that has chunks in the index, and the next run completes whatever was cut short.

Costs one `stat` for an unchanged file; embedding dominates everything else.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from peg_rag.chunking import CHUNK_CHARACTERS, OVERLAP_CHARACTERS, Chunk, Chunking, digest, split
from peg_rag.errors import DamagedIndex, DataError, IndexBusy, InvalidInput, PegRagError
from peg_rag.reader_process import TIMEOUT_S, ReaderProcess
from peg_rag.readers import read_sections
from peg_rag.readers.kinds import SUFFIXES
from peg_rag.retriever import Encoder

if TYPE_CHECKING:
    from peg_rag.index import PEGIndex

LEDGER_FILE = "sources.db"
_GROUP_CHUNKS = 2048  # chunks that are embedded and stored together
_SLICE_CHUNKS = 128  # chunks between two reports of progress
_LOCK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be read, or not all of it, and why."""

    source: str
    reason: str


@dataclass(slots=True)
class SyncReport:
    """What one `sync` did; the lists hold sources."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    incomplete: list[Failure] = field(default_factory=list)  # read but for some pages, such as scanned ones
    ignored: int = 0  # files of kinds that are not read
    other_kinds: list[str] = field(default_factory=list)  # those files
    chunks: int = 0  # embedded and stored
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a `sync` is.

    Attributes:
        done: files looked at.
        files: there are.
        chunks: embedded so far.
        source: the file that is being read, where it has pages.
        page: pages of it read so far.
        pages: it has; 0 where no such file is being read.
    """

    done: int
    files: int
    chunks: int
    source: str = ""
    page: int = 0
    pages: int = 0


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """What a folder holds: files that can be read, by source, and the sources of files of other kinds."""

    readable: dict[str, Path]
    others: list[str]


def read_file(path: str | Path, *, root: str | Path | None = None, chunking: Chunking | None = None) -> list[Chunk]:
    """The chunks of one file, as `sync` makes them; `source` is its path within `root` (default: its name).

    Raises:
        DataError: the file cannot be read.
        InvalidInput: it does not lie in `root`.
    """
    path, chunking = Path(path).resolve(), chunking or Chunking()
    folder = Path(root).resolve() if root is not None else path.parent
    if not path.is_relative_to(folder):
        raise InvalidInput(f"{path} does not lie in {folder}")
    sections = read_sections(path, text_column=chunking.text_column, max_bytes=chunking.max_file_bytes)
    source = _storable(path.relative_to(folder).as_posix())
    return list(split(sections, source, _version(_file_digest(path), chunking.mark), chunking))


def _check_storable(chunks: Sequence[Chunk], path: Path) -> None:
    """Refuse what the index would refuse, before the chunks of other files are stored together with these.

    Raises:
        DataError: names the file and the place within it.
    """
    for chunk in chunks:
        try:
            chunk.text.encode("utf-8")
            json.dumps(chunk.metadata, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            place = f"{path}, row {chunk.metadata['row']}" if "row" in chunk.metadata else str(path)
            raise DataError(f"{place} cannot be stored ({error}); correct it there") from error


def find_files(path: Path, name: str | None = None) -> tuple[dict[str, Path], int]:
    """The files under a folder that can be read, by source, and how many cannot; see `list_files`."""
    files = list_files(path, name)
    return files.readable, len(files.others)


def list_files(path: Path, name: str | None = None) -> FolderFiles:
    """The files under a folder, by source (`<folder's name>/<path within>`).

    Hidden files and folders, and those that Word leaves beside an open document, are left out; symbolic links are not
    followed. A path to one file gives that file.

    Raises:
        InvalidInput: there is no such file or folder.
    """
    root = path.expanduser().resolve()
    name = name or root.name
    if root.is_file():
        return FolderFiles({_storable(name): root}, [])
    if not root.is_dir():
        raise InvalidInput(f"{path}: there is no such file or folder")
    files = FolderFiles({}, [])
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(names):
            full = Path(folder, file)
            if file.startswith((".", "~$")) or full.is_symlink() or not full.is_file():
                continue
            source = _storable(f"{name}/{full.relative_to(root).as_posix()}")
            if full.suffix.lower() in SUFFIXES:
                files.readable[source] = full
            else:
                files.others.append(source)
    return files


def sync(
    path: str | Path,
    index: "PEGIndex",
    encoder: Encoder,
    store: str | Path,
    *,
    name: str | None = None,
    model: str | None = None,
    chunking: Chunking | None = None,
    timeout_s: float = TIMEOUT_S,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> SyncReport:
    """Bring an index in step with a folder (or one file): changed files are embedded again, deleted ones leave.

    Files that cannot be read are reported and skipped; the version of such a file that was indexed earlier stays.
    Other folders in the same store are not touched. Safe to interrupt: run it again.

    Args:
        store: the index's folder, where the ledger is kept.
        name: what the folder is called in `source`, for two folders of one name; default its own name.
        model: remembered with the store, for `model_of`.
        timeout_s: a file, or a page of one, that takes longer to read is given up.

    Raises:
        InvalidInput: no such folder, or the store holds another folder of that name.
        IndexBusy: another process is syncing into this store.
    """
    started = time.perf_counter()
    path, store, chunking = Path(path), Path(store), chunking or Chunking()
    folder = list_files(path, name)
    files = folder.readable
    report = SyncReport(ignored=len(folder.others), other_kinds=folder.others)
    root = name or path.expanduser().resolve().name
    with _ledger(store) as ledger, ReaderProcess(timeout_s=timeout_s) as reader:
        ledger.claim(root, path.expanduser().resolve())
        if model is not None:
            ledger.remember("model", model)
        job = _Sync(index, encoder, ledger, reader, root, chunking, report, on_progress, len(files))
        job.remove(sorted(ledger.sources(root) - set(files)))
        job.refresh(files)
    report.seconds = time.perf_counter() - started
    return report


def model_of(store: str | Path) -> str | None:
    """The model that a store was synced with, as it was given to `sync`; None for a store made otherwise."""
    file = Path(store).resolve() / LEDGER_FILE
    if not file.is_file():
        return None
    try:
        values = _read_ledger(file, "SELECT value FROM settings WHERE name = 'model'")
    except sqlite3.DatabaseError as error:
        raise _damaged(file, error) from error
    return values[0] if values else None


def file_of(store: str | Path, source: str) -> Path | None:
    """The file that a passage's `source` names; None where it is gone, or the store was not made by `sync`."""
    ledger = Path(store).resolve() / LEDGER_FILE
    if not ledger.is_file():
        return None
    query = (
        "SELECT roots.path || substr(files.source, length(roots.name) + 1) "
        "FROM files JOIN roots ON roots.name = files.root WHERE files.source = ?"
    )
    try:
        paths = _read_ledger(ledger, query, source)
    except sqlite3.DatabaseError as error:
        raise _damaged(ledger, error) from error
    return next((path for path in map(Path, paths) if path.is_file()), None)


def _read_ledger(file: Path, query: str, *parameters: str) -> list[str]:
    """The first column of a query, read without the ledger's lock: a store can be searched while it is synced.

    A process that was killed in the middle of a change leaves a journal, which SQLite rolls back before it reads; for
    that, and only then, the ledger is opened for writing.
    """
    try:
        return _select(file, "ro", query, parameters)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
            raise
    return _select(file, "rw", query, parameters)


def _select(file: Path, mode: str, query: str, parameters: tuple[str, ...]) -> list[str]:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode={mode}", uri=True)) as connection:
        return [str(row[0]) for row in connection.execute(query, parameters)]


@dataclass(slots=True)
class _Pending:
    """A file that was read and waits to be embedded."""

    source: str
    entry: "_Entry"
    chunks: list[Chunk]
    known: bool


@dataclass(slots=True)
class _Sync:
    """The steps of one `sync`."""

    index: "PEGIndex"
    encoder: Encoder
    ledger: "_Ledger"
    reader: ReaderProcess
    root: str
    chunking: Chunking
    report: SyncReport
    on_progress: Callable[[Progress], None]
    files: int
    done: int = 0

    def remove(self, sources: list[str]) -> None:
        """Take deleted files out of the index, then out of the ledger."""
        for start in range(0, len(sources), 500):
            some = sources[start : start + 500]
            self.index.delete(where={"source": {"$in": some}})
            self.ledger.forget(some)
        self.report.removed = sources

    def refresh(self, files: dict[str, Path]) -> None:
        """Embed new and changed files, a group of chunks at a time."""
        group: list[_Pending] = []
        whole = self.index.count() >= self.ledger.chunks()  # else somebody emptied the index: count every file's chunks
        for source, path in files.items():
            try:
                pending = self._read(source, path, whole)
            except (PegRagError, OSError) as error:
                self.report.failed.append(Failure(source, str(error)))
                pending = None
            if pending is not None:
                group.append(pending)
            self.done += 1
            self._tell()
            if sum(len(p.chunks) for p in group) >= _GROUP_CHUNKS:
                self._store(group)
                group = []
        self._store(group)

    def _read(self, source: str, path: Path, whole: bool) -> _Pending | None:
        """The file's chunks, or None where the index already has them."""
        known, state = self.ledger.get(source), path.stat()
        entry = _Entry(state.st_size, state.st_mtime_ns, "", self.chunking.mark, 0)
        if known and known.finished and known.mark == entry.mark and self._all_there(source, known, whole):
            if (known.size, known.mtime_ns) == (entry.size, entry.mtime_ns):
                self.report.unchanged.append(source)
                return None
            entry.sha256 = _file_digest(path)
            if entry.sha256 == known.sha256:  # touched, not changed
                entry.chunks = known.chunks
                self.ledger.put(self.root, {source: entry})
                self.report.unchanged.append(source)
                return None
        entry.sha256 = entry.sha256 or _file_digest(path)
        sections = self.reader.read(
            path,
            text_column=self.chunking.text_column,
            max_bytes=self.chunking.max_file_bytes,
            on_page=lambda page, pages: self._tell(source, page, pages),
            on_remark=lambda remark: self.report.incomplete.append(Failure(source, remark)),
        )
        chunks = list(split(sections, source, entry.version, self.chunking))
        _check_storable(chunks, path)
        entry.chunks = len(chunks)
        return _Pending(source, entry, chunks, known is not None)

    def _all_there(self, source: str, known: "_Entry", whole: bool) -> bool:
        return whole or self.index.count({"source": source}) == known.chunks

    def _store(self, group: list[_Pending]) -> None:
        """Announce, embed, insert, drop what was there before, confirm: in this order (see the module's docstring)."""
        if not group:
            return
        self.ledger.put(self.root, {p.source: _Entry.unfinished() for p in group})
        chunks = [chunk for p in group for chunk in p.chunks]
        vectors = self._embed([chunk.text for chunk in chunks])  # (chunks, dimension)
        self.index.upsert([c.id for c in chunks], [c.text for c in chunks], vectors, [c.metadata for c in chunks])
        self._drop_stale({p.source: p.entry.version for p in group if p.known})
        for p in group:
            (self.report.changed if p.known else self.report.added).append(p.source)
        self.ledger.put(self.root, {p.source: p.entry for p in group})

    def _drop_stale(self, versions: dict[str, str]) -> None:
        """Take out the chunks of these sources that are not of the version given; one scan for all of them."""
        if not versions:
            return
        found = self.index.get(where={"source": {"$in": list(versions)}})
        stale = [r.id for r in found if r.metadata["version"] != versions[r.metadata["source"]]]
        if stale:
            self.index.delete(stale)

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(texts), _SLICE_CHUNKS):
            parts.append(self.encoder.encode_documents(texts[start : start + _SLICE_CHUNKS]))
            self.report.chunks += len(parts[-1])
            self._tell()
        return np.concatenate(parts)

    def _tell(self, source: str = "", page: int = 0, pages: int = 0) -> None:
        self.on_progress(Progress(self.done, self.files, self.report.chunks, source, page, pages))


@dataclass(slots=True)
class _Entry:
    """A file as it was when it was indexed. An empty digest: its indexing was begun and not finished."""

    size: int
    mtime_ns: int
    sha256: str
    mark: str
    chunks: int

    @classmethod
    def unfinished(cls) -> "_Entry":
        return cls(0, 0, "", "", 0)

    @property
    def finished(self) -> bool:
        return bool(self.sha256)

    @property
    def version(self) -> str:
        return _version(self.sha256, self.mark)


class _Ledger:
    """The table of indexed files, and of the folders they came from."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.execute("PRAGMA synchronous = FULL")
        with self._db:
            self._db.execute("CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT")
            self._db.execute("CREATE TABLE IF NOT EXISTS roots (name TEXT PRIMARY KEY, path TEXT NOT NULL) STRICT")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS files (source TEXT PRIMARY KEY, root TEXT NOT NULL, size INTEGER NOT NULL, "
                "mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, mark TEXT NOT NULL, chunks INTEGER NOT NULL) STRICT"
            )

    def remember(self, name: str, value: str) -> None:
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def claim(self, root: str, path: Path) -> None:
        """Record where a folder lies. A folder that moved keeps its name; a second folder of that name is refused."""
        row = self._db.execute("SELECT path FROM roots WHERE name = ?", (root,)).fetchone()
        if row and row[0] != str(path) and Path(row[0]).exists():
            raise InvalidInput(
                f"this store already holds another {root!r}, from {row[0]}; give {path} a name of its own (--name)"
            )
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO roots VALUES (?, ?)", (root, str(path)))

    def sources(self, root: str) -> set[str]:
        return {row[0] for row in self._db.execute("SELECT source FROM files WHERE root = ?", (root,))}

    def chunks(self) -> int:
        return int(self._db.execute("SELECT coalesce(sum(chunks), 0) FROM files").fetchone()[0])

    def get(self, source: str) -> _Entry | None:
        row = self._db.execute(
            "SELECT size, mtime_ns, sha256, mark, chunks FROM files WHERE source = ?", (source,)
        ).fetchone()
        return _Entry(*row) if row else None

    def put(self, root: str, entries: dict[str, _Entry]) -> None:
        rows = [(source, root, e.size, e.mtime_ns, e.sha256, e.mark, e.chunks) for source, e in entries.items()]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def forget(self, sources: list[str]) -> None:
        with self._db:
            self._db.executemany("DELETE FROM files WHERE source = ?", [(source,) for source in sources])


@contextmanager
def _ledger(store: Path) -> Iterator[_Ledger]:
    """The store's ledger, held by this process alone."""
    from filelock import FileLock, Timeout

    store.mkdir(parents=True, exist_ok=True)
    file = store / LEDGER_FILE
    try:
        lock = FileLock(store / f".{LEDGER_FILE}.lock", timeout=_LOCK_TIMEOUT_S).acquire()
    except Timeout as error:
        raise IndexBusy(f"another process is indexing into {store}; wait for it to finish") from error
    with lock, closing(sqlite3.connect(file)) as connection:
        try:
            ledger = _Ledger(connection)
        except sqlite3.DatabaseError as error:
            raise _damaged(file, error) from error
        yield ledger


def _damaged(file: Path, error: Exception) -> DamagedIndex:
    return DamagedIndex(f"{file} cannot be read ({error}); delete it, and the next run indexes every file again")


def _version(sha256: str, mark: str) -> str:
    return digest(sha256, mark)[:16]


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _storable(name: str) -> str:
    """A path as text: bytes of a file name that are no UTF-8 are written out, as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


__all__ = [
    "CHUNK_CHARACTERS",
    "LEDGER_FILE",
    "OVERLAP_CHARACTERS",
    "Chunk",
    "Chunking",
    "Failure",
    "FolderFiles",
    "Progress",
    "SyncReport",
    "file_of",
    "find_files",
    "list_files",
    "model_of",
    "read_file",
    "split",
    "sync",
]
