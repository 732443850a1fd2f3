"""Atomic changes of the uploaded files: folder, index and ledger stay consistent through errors and crashes.

A file is staged in parallel with other writes: copied to a hidden folder, read, split and embedded. Then, with the
ledger locked, its passages are written to the index in one transaction, which is the commit point. An error before it
leaves the store unchanged. After it the write is permanent, and the remaining steps (moving the file, deleting the
passages of the earlier version, updating the ledger) are idempotent. A note in the hidden folder describes the write,
and the index tells whether it was committed: at the next start it is completed, or discarded.

Costs three fsyncs per upload in addition to those of the index and the ledger.
"""

import json
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from peg_rag.chunking import Chunk, Chunking, split
from peg_rag.encoder import PEGEncoder
from peg_rag.errors import DamagedIndex, DataError, IndexBusy, InvalidInput, PegRagError
from peg_rag.files import sync_folder, sync_stream, write_atomically
from peg_rag.index import PEGIndex
from peg_rag.index.validation import check_unicode
from peg_rag.ingest import sync
from peg_rag.ledger import FileEntry, Ledger, file_digest, list_sources, open_ledger
from peg_rag.reader_process import ReaderProcess
from peg_rag.readers import Section
from peg_rag.serving.filenames import sanitize_filename
from peg_rag.serving.logs import describe_exception, log

UPLOADS = "uploads"
OTHER_ROOT = "uploads (server)"  # in sources, if the store also indexes another folder named `uploads`
LOCK_TIMEOUT_S = 10.0
_STAGING_PREFIX = ".upload-"  # hidden, so that `sync` ignores it
_NOTE_FILE = ".note.json"  # no upload has a name that starts with a dot

logger = logging.getLogger(__name__)

OnStep = Callable[[str, int, int], None]  # step (`reading` or `indexing`), done, of how many; 0 where not known


def ignore_step(step: str, done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True)
class StagedUpload:
    """A file that was read and embedded but is not part of the store yet. vectors: (chunks, dimension)."""

    folder: Path
    name: str
    root: str
    entry: FileEntry
    chunks: list[Chunk]
    vectors: NDArray[np.float32]

    @property
    def source(self) -> str:
        return f"{self.root}/{self.name}"


@dataclass(frozen=True, slots=True)
class _Note:
    """A write in progress, as recorded in the hidden folder. `entry`: the new ledger entry; None for a deletion."""

    root: str
    name: str
    entry: FileEntry | None

    @property
    def source(self) -> str:
        return f"{self.root}/{self.name}"

    def write(self, folder: Path) -> None:
        write_atomically(folder / _NOTE_FILE, json.dumps(asdict(self)).encode())
        sync_folder(folder)
        sync_folder(folder.parent)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The note in a folder; None if the write had not started."""
        try:
            fields: dict[str, Any] = json.loads((folder / _NOTE_FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        entry = fields["entry"]
        if entry is None:
            return cls(fields["root"], fields["name"], None)
        if "mark" in entry:  # of a note that version 0.1 left
            entry["fingerprint"] = entry.pop("mark")
        return cls(fields["root"], fields["name"], FileEntry(**entry))


class UploadFolder:
    """The uploaded files of a store.

    Args:
        store: the folder of the index and the ledger.
        model: the name or folder of the model, saved in the store.
        timeout_s: for a file to be read, in a separate process.
    """

    def __init__(self, store: Path, index: PEGIndex, encoder: PEGEncoder, model: str | None, timeout_s: float) -> None:
        self.folder = store / UPLOADS
        self._store = store
        self._index = index
        self._encoder = encoder
        self._model = model
        self._write_lock = threading.Lock()
        self._readers = _ThreadReaders(timeout_s)
        self._registered_root: str | None = None
        self._unfinished: list[Path] = []
        self.root = self._find_root()

    def name_of(self, source: str) -> str | None:
        """The name of an uploaded file; None for a file of another folder."""
        root, _, name = source.partition("/")
        return name if root == self.root and name == sanitize_filename(name) else None

    def path_of(self, source: str) -> Path | None:
        """Where an uploaded file lies; None for a file of another folder."""
        name = self.name_of(source)
        return self.folder / name if name else None

    def size_of(self, name: str) -> int | None:
        """The size of an uploaded file in bytes; None if it is missing."""
        try:
            return (self.folder / name).stat().st_size
        except OSError:
            return None

    # -- adding -------------------------------------------------------------------------------------------------------

    def stage(self, name: str, content: BinaryIO, on_step: OnStep = ignore_step) -> StagedUpload:
        """Read and embed a file without changing the store. The caller must commit or discard it.

        Args:
            on_step: called from this thread; what it raises ends the work, and nothing remains of the file.

        Raises:
            DataError: the file cannot be read; nothing remains of it.
        """
        folder = self.folder / f"{_STAGING_PREFIX}{secrets.token_hex(8)}"
        folder.mkdir(parents=True)
        try:
            return self._read_and_embed(folder, name, content, on_step)
        except DataError as error:
            _remove_folder(folder)
            raise DataError(_hide_folder(str(error), folder)) from error
        except BaseException:
            _remove_folder(folder)
            raise

    def commit(self, upload: StagedUpload) -> bool:
        """Add a staged file to the store, in place of one of the same name. An error changes nothing.

        Returns:
            Whether a file was replaced.

        Raises:
            DataError: the index does not accept the content.
            IndexBusy: another process writes to the store.
        """
        note = _Note(upload.root, upload.name, upload.entry)
        ids = [chunk.id for chunk in upload.chunks]
        texts = [chunk.text for chunk in upload.chunks]
        metadatas = [chunk.metadata for chunk in upload.chunks]
        with self._lock_ledger() as ledger:
            if upload.root != self.root:
                raise IndexBusy(f"another folder named {upload.root!r} has just been indexed; send the file again")
            self._check_no_unfinished_write(upload.source)
            replaced = (self.folder / upload.name).exists()
            try:
                self._commit_change(
                    ledger, upload.folder, note, lambda: self._index.upsert(ids, texts, upload.vectors, metadatas)
                )
            except InvalidInput as error:
                raise DataError(f"{upload.name} holds what the index does not accept: {error}") from error
        return replaced

    def discard(self, upload: StagedUpload) -> None:
        """Remove what is left of a staged file; does nothing after a commit."""
        if upload.folder not in self._unfinished:
            _remove_folder(upload.folder)

    # -- deleting -----------------------------------------------------------------------------------------------------

    def delete(self, source: str) -> bool:
        """Delete an uploaded file and its passages. An error changes nothing.

        Returns:
            Whether there was such an uploaded file with passages.

        Raises:
            IndexBusy: another process writes to the store.
        """
        with self._lock_ledger() as ledger:
            name = self.name_of(source)
            if name is None or not self._index.count({"source": source}):
                return False
            self._check_no_unfinished_write(source)
            folder = self.folder / f"{_STAGING_PREFIX}{secrets.token_hex(8)}"
            folder.mkdir(parents=True)
            note = _Note(self.root, name, None)
            self._commit_change(ledger, folder, note, lambda: self._index.delete(where={"source": source}))
        return True

    # -- starting and stopping ----------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Complete or discard the writes that a crash interrupted, and index files that the index lacks.

        The server must start in any case: errors are logged, and the files tried again at the next start.
        """
        if not self.folder.is_dir():
            return
        self._unfinished = list(self.folder.glob(_STAGING_PREFIX + "*"))
        try:
            with self._lock_ledger() as ledger:
                self._register_root(ledger)
            report = sync(self.folder, self._index, self._encoder, self._store, name=self.root, model=self._model)
        except Exception as error:
            log(logger, logging.WARNING, "uploads could not be synchronised", **describe_exception(error))
        else:
            if report.failed:
                log(logger, logging.WARNING, "uploads could not be indexed", files=len(report.failed))

    def close(self) -> None:
        """Stop the processes that read files."""
        self._readers.close()

    # -- steps --------------------------------------------------------------------------------------------------------

    def _read_and_embed(self, folder: Path, name: str, content: BinaryIO, on_step: OnStep) -> StagedUpload:
        file = folder / name
        on_step("reading", 0, 0)
        _write_file(file, content)
        sections = self._readers.read(file, lambda page, pages: on_step("reading", page, pages))
        state = file.stat()
        entry = FileEntry(state.st_size, state.st_mtime_ns, file_digest(file), Chunking().fingerprint, 0)
        root = self.root
        chunks = list(split(sections, f"{root}/{name}", entry.version))
        entry.chunks = len(chunks)
        on_step("indexing", 0, len(chunks))
        try:
            for number, chunk in enumerate(chunks):
                check_unicode(chunk.text, f"passage {number}")
            vectors = self._encoder.encode_documents([chunk.text for chunk in chunks])  # (chunks, dimension)
        except InvalidInput as error:
            raise DataError(f"{name} holds what cannot be embedded: {error}") from error
        on_step("indexing", len(chunks), len(chunks))
        return StagedUpload(folder, name, root, entry, chunks, vectors)

    @contextmanager
    def _lock_ledger(self) -> Iterator[Ledger]:
        """Open the ledger, locked against other threads and processes, and retry unfinished writes first."""
        if not self._write_lock.acquire(timeout=LOCK_TIMEOUT_S):
            raise IndexBusy(f"another write to {self._store} is taking long; try again later")
        try:
            with open_ledger(self._store) as ledger:
                self._finish_writes(ledger)
                self.root = self._find_root()
                yield ledger
        finally:
            self._write_lock.release()

    def _commit_change(self, ledger: Ledger, folder: Path, note: _Note, change: Callable[[], object]) -> None:
        """Write the note, change the index, then finish. If the index did not change, remove the note's folder."""
        try:
            self._register_root(ledger)
            note.write(folder)
            change()
        except Exception as error:
            if not self._is_committed(note):
                _remove_folder(folder)
                raise
            log(
                logger,
                logging.WARNING,
                "an error was raised after the commit",
                **describe_exception(error),
            )
        self._unfinished.append(folder)
        self._finish_writes(ledger)

    def _register_root(self, ledger: Ledger) -> None:
        """Record in the ledger where the uploads are; in the copy of a store it names the original's folder."""
        if self._registered_root == self.root:
            return
        ledger.set_root(self.root, self.folder.resolve())
        if self._model is not None:
            ledger.set_model(self._model)
        self._registered_root = self.root

    def _is_committed(self, note: _Note) -> bool:
        """Whether the index contains the change that a note describes."""
        if note.entry is None:
            return not self._index.count({"source": note.source})
        return bool(self._index.count({"source": note.source, "version": note.entry.version}))

    def _finish_writes(self, ledger: Ledger) -> None:
        """Finish every committed write. One that cannot be finished now is retried by the next write."""
        for folder in list(self._unfinished):
            try:
                self._finish_write(ledger, folder)
            except Exception as error:
                log(logger, logging.WARNING, "a write could not be finished yet", **describe_exception(error))
            else:
                self._unfinished.remove(folder)

    def _check_no_unfinished_write(self, source: str) -> None:
        """Refuse to change a file whose earlier write could not be finished."""
        notes = [_Note.read(folder) for folder in self._unfinished]
        if any(note is not None and note.source == source for note in notes):
            raise IndexBusy("an earlier change of this file is not finished; the log gives the reason")

    def _finish_write(self, ledger: Ledger, folder: Path) -> None:
        """Complete a write that was committed, or discard it. Idempotent."""
        note = _Note.read(folder)
        if note is not None and self._is_committed(note):
            if note.entry is None:
                (self.folder / note.name).unlink(missing_ok=True)
                ledger.remove([note.source])
            else:
                if (folder / note.name).exists():
                    (folder / note.name).replace(self.folder / note.name)
                self._index.delete(where={"source": note.source, "version": {"$ne": note.entry.version}})
                ledger.put(note.root, {note.source: note.entry})
            sync_folder(self.folder)
        _remove_folder(folder)

    def _find_root(self) -> str:
        """The first part of the uploads' sources: `uploads`, unless another indexed folder has that name.

        The files decide which folder it is: after a store was copied or moved, the ledger names the old place.
        """
        roots = (OTHER_ROOT, UPLOADS) if any(self.folder.glob("[!.]*")) else ()
        for root in roots:
            if any((self.folder / source.partition("/")[2]).is_file() for source in self._list_sources(root)):
                return root
        return OTHER_ROOT if self._list_sources(UPLOADS) else UPLOADS

    def _list_sources(self, root: str) -> list[str]:
        """The sources that the ledger lists under a root."""
        try:
            return list_sources(self._store, root)
        except (DamagedIndex, IndexBusy) as error:  # the next write raises it
            log(logger, logging.WARNING, "the ledger could not be read", **describe_exception(error))
            return []


class _ThreadReaders:
    """One reader process per thread, kept for the next file: a process may only be used by the thread that made it."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._by_thread: dict[int, ReaderProcess] = {}

    def read(self, file: Path, on_page: Callable[[int, int], None]) -> list[Section]:
        thread = threading.get_ident()
        if thread not in self._by_thread:
            self._by_thread[thread] = ReaderProcess(timeout_s=self._timeout_s)
        reader = self._by_thread[thread]
        try:
            return reader.read(file, on_page=on_page)
        except PegRagError:
            raise
        except BaseException:  # of `on_page`: the process still reads this file and would answer the next with it
            reader.close()
            raise

    def close(self) -> None:
        while self._by_thread:
            _, reader = self._by_thread.popitem()
            reader.close()


def _write_file(file: Path, content: BinaryIO) -> None:
    with file.open("xb") as stream:
        shutil.copyfileobj(content, stream, 1 << 20)
        sync_stream(stream)


def _remove_folder(folder: Path) -> None:
    """Remove a hidden folder, the note first; or the hidden file of an earlier version."""
    if folder.is_dir():
        (folder / _NOTE_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


def _hide_folder(message: str, folder: Path) -> str:
    """Remove a folder's path from a message that clients will see."""
    return message.replace(f"{folder}{os.sep}", "")
