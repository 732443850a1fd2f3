"""The folder of uploaded files, in step with the index and the ledger whatever fails or is killed in between.

A file is prepared beside other writes: it is put into a hidden folder, read, cut and embedded there. Then, with the
ledger locked, its passages go into the index in one transaction, and that transaction decides. Before it nothing has
changed, so that an error leaves the store as it was; after it the write has happened, and what is left to do (moving
the file, dropping the passages of the version before, the ledger's entry) can be repeated. A note in the hidden folder
says what was under way, and the index says whether it happened: a start completes it, or discards it.

Costs three fsyncs for an upload besides those of the index and the ledger.
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from peg_rag.encoder import PEGEncoder
from peg_rag.errors import DataError, IndexBusy, InvalidInput
from peg_rag.files import write_atomically
from peg_rag.index import PEGIndex
from peg_rag.index.checks import check_unicode
from peg_rag.ingest import (
    LEDGER_FILE,
    Chunk,
    Chunking,
    _Entry,
    _file_digest,
    _Ledger,
    _ledger,
    _read_ledger,
    split,
    sync,
)
from peg_rag.reader_process import ReaderProcess
from peg_rag.readers import Section
from peg_rag.serving.logs import describe, log
from peg_rag.serving.names import safe_name

UPLOADS = "uploads"
OTHER_ROOT = "uploads (server)"  # in sources, where the store also holds a folder of somebody's that is named `uploads`
LOCK_TIMEOUT_S = 10.0
_STAGE = ".upload-"  # hidden, so that a sync passes them over
_NOTE_FILE = ".note.json"  # no upload's name begins with a dot

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StagedUpload:
    """A file that was read and embedded, and is not part of the store yet. vectors: (chunks, dimension)."""

    folder: Path
    name: str
    root: str
    entry: _Entry
    chunks: list[Chunk]
    vectors: NDArray[np.float32]

    @property
    def source(self) -> str:
        return f"{self.root}/{self.name}"


@dataclass(frozen=True, slots=True)
class _Note:
    """A write under way, as the hidden folder has it. `entry`: of the ledger, None for a deletion."""

    root: str
    name: str
    entry: _Entry | None

    @property
    def source(self) -> str:
        return f"{self.root}/{self.name}"

    def write(self, folder: Path) -> None:
        write_atomically(folder / _NOTE_FILE, json.dumps(asdict(self)).encode())
        _flush_folder(folder)
        _flush_folder(folder.parent)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The note in a folder; None where the write was not yet under way."""
        try:
            fields: dict[str, Any] = json.loads((folder / _NOTE_FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        entry = fields["entry"]
        return cls(fields["root"], fields["name"], _Entry(**entry) if entry else None)


class UploadFolder:
    """The uploaded files of a store.

    Args:
        store: the folder of the index and the ledger.
        model: remembered with the store.
        timeout_s: for a file to be read, in a process of its own.
    """

    def __init__(self, store: Path, index: PEGIndex, encoder: PEGEncoder, model: str | None, timeout_s: float) -> None:
        self.folder = store / UPLOADS
        self._store, self._index, self._encoder = store, index, encoder
        self._model, self._timeout_s = model, timeout_s
        self._write_lock = threading.Lock()
        self._readers = _Readers(timeout_s)
        self._claimed: str | None = None
        self._unfinished: list[Path] = []
        self.root = self._find_root()

    def name_of(self, source: str) -> str | None:
        """The name of an uploaded file; None for a file of another folder."""
        root, _, name = source.partition("/")
        return name if root == self.root and name == safe_name(name) else None

    def size_of(self, name: str) -> int | None:
        """Bytes of an uploaded file; None where it is missing."""
        try:
            return (self.folder / name).stat().st_size
        except OSError:
            return None

    # -- adding -------------------------------------------------------------------------------------------------------

    def stage(self, name: str, content: BinaryIO) -> StagedUpload:
        """Read and embed a file beside the store. What is not committed must be discarded.

        Raises:
            DataError: the file cannot be read; nothing remains of it.
        """
        folder = self.folder / f"{_STAGE}{secrets.token_hex(8)}"
        folder.mkdir(parents=True)
        try:
            return self._prepare(folder, name, content)
        except DataError as error:
            _remove_folder(folder)
            raise DataError(_without_folder(str(error), folder)) from error
        except BaseException:
            _remove_folder(folder)
            raise

    def commit(self, upload: StagedUpload) -> bool:
        """Make a staged file part of the store, in place of one of its name.

        Returns:
            Whether there was one.

        Raises:
            DataError: the index does not take what the file holds.
            IndexBusy: another process writes to the store. Whatever is raised, nothing has changed.
        """
        note = _Note(upload.root, upload.name, upload.entry)
        ids = [chunk.id for chunk in upload.chunks]
        texts = [chunk.text for chunk in upload.chunks]
        metadatas = [chunk.metadata for chunk in upload.chunks]
        with self._writing() as ledger:
            if upload.root != self.root:
                raise IndexBusy(f"another folder named {upload.root!r} has just been indexed; send the file again")
            self._check_finished(upload.source)
            replaced = (self.folder / upload.name).exists()
            try:
                self._decide(
                    ledger, upload.folder, note, lambda: self._index.upsert(ids, texts, upload.vectors, metadatas)
                )
            except InvalidInput as error:
                raise DataError(f"{upload.name} holds what the index does not take: {error}") from error
        return replaced

    def discard(self, upload: StagedUpload) -> None:
        """Remove what is left of a staged file; harmless after a commit."""
        if upload.folder not in self._unfinished:
            _remove_folder(upload.folder)

    # -- deleting -----------------------------------------------------------------------------------------------------

    def delete(self, source: str) -> bool:
        """Delete an uploaded file and its passages; whether it was one, and had any.

        Raises:
            IndexBusy: another process writes to the store. Whatever is raised, nothing has changed.
        """
        with self._writing() as ledger:
            name = self.name_of(source)
            if name is None or not self._index.count({"source": source}):
                return False
            self._check_finished(source)
            folder = self.folder / f"{_STAGE}{secrets.token_hex(8)}"
            folder.mkdir(parents=True)
            note = _Note(self.root, name, None)
            self._decide(ledger, folder, note, lambda: self._index.delete(where={"source": source}))
        return True

    # -- starting and stopping ----------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Complete or discard what a crash cut short, and index the files that the index lacks.

        Whatever is wrong with one of them, the server must start: it is logged, and tried again at the next start.
        """
        if not self.folder.is_dir():
            return
        self._unfinished = list(self.folder.glob(_STAGE + "*"))
        try:
            with self._writing() as ledger:
                self._claim(ledger)
            report = sync(self.folder, self._index, self._encoder, self._store, name=self.root, model=self._model)
        except Exception as error:
            log(logger, logging.WARNING, "uploads could not be brought in step", **describe(error))
        else:
            if report.failed:
                log(logger, logging.WARNING, "uploads could not be indexed", files=len(report.failed))

    def close(self) -> None:
        """End the processes that read files."""
        self._readers.close()

    # -- steps --------------------------------------------------------------------------------------------------------

    def _prepare(self, folder: Path, name: str, content: BinaryIO) -> StagedUpload:
        file = folder / name
        _write_file(file, content)
        sections = self._readers.read(file)
        state = file.stat()
        entry = _Entry(state.st_size, state.st_mtime_ns, _file_digest(file), Chunking().mark, 0)
        root = self.root
        chunks = list(split(sections, f"{root}/{name}", entry.version))
        entry.chunks = len(chunks)
        try:
            for number, chunk in enumerate(chunks):
                check_unicode(chunk.text, f"passage {number}")
            vectors = self._encoder.encode_documents([chunk.text for chunk in chunks])  # (chunks, dimension)
        except InvalidInput as error:
            raise DataError(f"{name} holds what cannot be embedded: {error}") from error
        return StagedUpload(folder, name, root, entry, chunks, vectors)

    @contextmanager
    def _writing(self) -> Iterator[_Ledger]:
        """The ledger, locked against other threads and processes; what was left unfinished is tried again first."""
        if not self._write_lock.acquire(timeout=LOCK_TIMEOUT_S):
            raise IndexBusy(f"another write to {self._store} takes long; try again later")
        try:
            with _ledger(self._store) as ledger:
                self._finish_all(ledger)
                self.root = self._find_root()
                yield ledger
        finally:
            self._write_lock.release()

    def _decide(self, ledger: _Ledger, folder: Path, note: _Note, change: Callable[[], object]) -> None:
        """Change the index under a note, then finish. Where the index has not changed, the note's folder goes."""
        try:
            self._claim(ledger)
            note.write(folder)
            change()
        except Exception as error:
            if not self._has_happened(note):
                _remove_folder(folder)
                raise
            log(logger, logging.WARNING, "a write raised after it had happened", **describe(error))
        self._unfinished.append(folder)
        self._finish_all(ledger)

    def _claim(self, ledger: _Ledger) -> None:
        """Have the ledger know where the uploads lie: in a copy of a store it names the original's."""
        if self._claimed == self.root:
            return
        with ledger._db:
            ledger._db.execute("INSERT OR REPLACE INTO roots VALUES (?, ?)", (self.root, str(self.folder.resolve())))
        if self._model is not None:
            ledger.remember("model", self._model)
        self._claimed = self.root

    def _has_happened(self, note: _Note) -> bool:
        """Whether the index has the note's change."""
        if note.entry is None:
            return not self._index.count({"source": note.source})
        return bool(self._index.count({"source": note.source, "version": note.entry.version}))

    def _finish_all(self, ledger: _Ledger) -> None:
        """Finish every write that is under way. One that cannot be finished now is kept for the next time."""
        for folder in list(self._unfinished):
            try:
                self._finish(ledger, folder)
            except Exception as error:
                log(logger, logging.WARNING, "a write is finished later", **describe(error))
            else:
                self._unfinished.remove(folder)

    def _check_finished(self, source: str) -> None:
        """Refuse to write over an earlier write of the same file that could not be finished."""
        notes = [_Note.read(folder) for folder in self._unfinished]
        if any(note is not None and note.source == source for note in notes):
            raise IndexBusy("an earlier change of this file is not finished; the log says why")

    def _finish(self, ledger: _Ledger, folder: Path) -> None:
        """Complete a write that the index has, discard one that it has not. Can be repeated."""
        note = _Note.read(folder)
        if note is not None and self._has_happened(note):
            if note.entry is None:
                (self.folder / note.name).unlink(missing_ok=True)
                ledger.forget([note.source])
            else:
                if (folder / note.name).exists():
                    (folder / note.name).replace(self.folder / note.name)
                self._index.delete(where={"source": note.source, "version": {"$ne": note.entry.version}})
                ledger.put(note.root, {note.source: note.entry})
            _flush_folder(self.folder)
        _remove_folder(folder)

    def _find_root(self) -> str:
        """What the uploads' sources begin with: `uploads`, unless that is somebody's folder of this name.

        Whose it is, the files tell: the ledger may name another place, where the store was copied or moved.
        """
        roots = (OTHER_ROOT, UPLOADS) if any(self.folder.glob("[!.]*")) else ()
        for root in roots:
            if any((self.folder / source.partition("/")[2]).is_file() for source in self._sources(root)):
                return root
        return OTHER_ROOT if self._sources(UPLOADS) else UPLOADS

    def _sources(self, root: str) -> list[str]:
        """The sources that the ledger has under a root."""
        file = self._store.resolve() / LEDGER_FILE
        if not file.is_file():
            return []
        try:
            return _read_ledger(file, "SELECT source FROM files WHERE root = ?", root)
        except sqlite3.DatabaseError as error:  # a write will say what is wrong with it
            log(logger, logging.WARNING, "the ledger could not be read", **describe(error))
            return []


class _Readers:
    """A reader process for each thread that reads: they are quick to ask again, and bound to their thread."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._by_thread: dict[int, ReaderProcess] = {}

    def read(self, file: Path) -> list[Section]:
        thread = threading.get_ident()
        if thread not in self._by_thread:
            self._by_thread[thread] = ReaderProcess(timeout_s=self._timeout_s)
        return self._by_thread[thread].read(file)

    def close(self) -> None:
        while self._by_thread:
            _, reader = self._by_thread.popitem()
            reader.close()


def _write_file(file: Path, content: BinaryIO) -> None:
    with file.open("xb") as stream:
        shutil.copyfileobj(content, stream, 1 << 20)
        stream.flush()
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    """Have the names in a folder survive a loss of power (where the system lets folders be flushed)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_folder(folder: Path) -> None:
    """Remove a hidden folder, the note first; or the file that an earlier version kept in its place."""
    if folder.is_dir():
        (folder / _NOTE_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


def _without_folder(message: str, folder: Path) -> str:
    return message.replace(f"{folder}{os.sep}", "")
