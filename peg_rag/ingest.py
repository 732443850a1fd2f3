"""A folder of files → chunks in an index, and back in step after every change: new files in, deleted ones out.

Why this exists: frameworks load documents but leave it to their users to notice that a file changed or went away, so
deleted files go on answering. Here a ledger beside the index (`sources.db`, SQLite) records what every file was when it
was indexed; only files whose content changed are read and embedded again.

Order makes it safe against a crash at any moment: a file is entered in the ledger as unfinished *before* its chunks
go into the index, its new chunks go in before its old ones leave, and it is marked finished last. So the ledger names
every file that has chunks in the index, and the next run completes whatever was cut short.

The index may be any store; that of a server has its ledger in a folder of this machine. A chunk whose text the store
has already, of the same file and by the same model, keeps its vector: a run that was cut short, a file with a new
paragraph and a ledger that was lost cost no embedding of what is there.

Costs one `stat` for an unchanged file; embedding dominates everything else.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from peg_rag.chunking import CHUNK_CHARACTERS, OVERLAP_CHARACTERS, Chunk, Chunking, split
from peg_rag.errors import DataError, InvalidInput, PegRagError
from peg_rag.ledger import LEDGER_FILE, FileEntry, Ledger, file_digest, file_of, model_of, open_ledger
from peg_rag.reader_process import TIMEOUT_S, ReaderProcess
from peg_rag.readers.kinds import SUFFIXES
from peg_rag.retriever import Encoder

if TYPE_CHECKING:
    from peg_rag.stores import Store

_GROUP_CHUNKS = 2048  # chunks that are embedded and stored together
_SLICE_CHUNKS = 128  # chunks between two reports of progress
_SOURCES_AT_A_TIME = 500  # in one filter


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
    reused: int = 0  # chunks stored with a vector that the store had
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
        return FolderFiles({_decode_name(name): root}, [])
    if not root.is_dir():
        raise InvalidInput(f"{path}: there is no such file or folder")
    files = FolderFiles({}, [])
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(names):
            full = Path(folder, file)
            if file.startswith((".", "~$")) or full.is_symlink() or not full.is_file():
                continue
            source = _decode_name(f"{name}/{full.relative_to(root).as_posix()}")
            if full.suffix.lower() in SUFFIXES:
                files.readable[source] = full
            else:
                files.others.append(source)
    return files


def sync(
    path: str | Path,
    index: "Store",
    encoder: Encoder,
    store: str | Path,
    *,
    name: str | None = None,
    model: str | None = None,
    chunking: Chunking | None = None,
    is_shared: bool = False,
    location: str | None = None,
    timeout_s: float = TIMEOUT_S,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> SyncReport:
    """Bring an index in step with a folder (or one file): changed files are embedded again, deleted ones leave.

    Files that cannot be read are reported and skipped; the version of such a file that was indexed earlier stays.
    Other folders in the same store are not touched. Safe to interrupt: run it again.

    Args:
        index: any store.
        store: where the ledger is kept: the index's own folder; for a store on a server, a folder of this machine.
        name: what the folder is called in `source`, for two folders of one name; default its own name.
        model: remembered with the store, for `model_of`.
        is_shared: others write to the index, too, so its number of chunks says nothing about these files: their chunks
            are counted by file and version.
        location: of a store on a server, without a password; kept in the ledger, which then is of no other store.
        timeout_s: a file, or a page of one, that takes longer to read is given up.

    Raises:
        InvalidInput: no such folder, the store holds another folder of that name, or the ledger is of another store.
        IndexBusy: another process is syncing into this store.
    """
    start = time.perf_counter()
    path = Path(path)
    chunking = chunking or Chunking()
    folder = list_files(path, name)
    files = folder.readable
    report = SyncReport(ignored=len(folder.others), other_kinds=folder.others)
    root = name or path.expanduser().resolve().name
    with open_ledger(Path(store)) as ledger, ReaderProcess(timeout_s=timeout_s) as reader:
        if location is not None:
            ledger.claim_store(location)
        ledger.claim_root(root, path.expanduser().resolve())
        if model is not None:
            ledger.set_model(model)
        job = _Sync(index, encoder, ledger, reader, root, chunking, report, on_progress, len(files), is_shared)
        job.remove(sorted(ledger.list_sources(root) - set(files)))
        job.refresh(files)
    report.seconds = time.perf_counter() - start
    return report


@dataclass(slots=True)
class _ChunkedFile:
    """A file that was read and waits to be embedded."""

    source: str
    entry: FileEntry
    chunks: list[Chunk]
    is_new: bool


@dataclass(slots=True)
class _Sync:
    """The steps of one `sync`."""

    index: "Store"
    encoder: Encoder
    ledger: Ledger
    reader: ReaderProcess
    root: str
    chunking: Chunking
    report: SyncReport
    on_progress: Callable[[Progress], None]
    files: int
    is_shared: bool = False
    files_done: int = 0
    is_complete: bool = True  # the index holds as many chunks as the ledger lists

    def remove(self, sources: list[str]) -> None:
        """Take deleted files out of the index, then out of the ledger."""
        for start in range(0, len(sources), _SOURCES_AT_A_TIME):
            batch = sources[start : start + _SOURCES_AT_A_TIME]
            self.index.delete(where={"source": {"$in": batch}, "version": {"$exists": True}})
            self.ledger.remove(batch)
        self.report.removed = sources

    def refresh(self, files: dict[str, Path]) -> None:
        """Embed new and changed files, a group of chunks at a time."""
        self.is_complete = self._has_all_chunks(sorted(self.ledger.list_sources(self.root)))
        group: list[_ChunkedFile] = []
        for source, path in files.items():
            try:
                file = self._chunk_if_changed(source, path)
            except (PegRagError, OSError) as error:
                self.report.failed.append(Failure(source, str(error)))
                file = None
            if file is not None:
                group.append(file)
            self.files_done += 1
            self._report_progress()
            if sum(len(file.chunks) for file in group) >= _GROUP_CHUNKS:
                self._store_files(group)
                group = []
        self._store_files(group)

    def _has_all_chunks(self, sources: list[str]) -> bool:
        """Whether the index holds as many chunks as the ledger lists."""
        if not self.is_shared:
            return self.index.count() >= self.ledger.count_chunks()
        for start in range(0, len(sources), _SOURCES_AT_A_TIME):
            batch = sources[start : start + _SOURCES_AT_A_TIME]
            entries = {source: entry for source in batch if (entry := self.ledger.get(source)) is not None}
            if self._count_indexed(entries) < sum(entry.chunks for entry in entries.values()):
                return False
        return True

    def _count_indexed(self, entries: dict[str, FileEntry]) -> int:
        """How many chunks of these versions of files the index holds."""
        versions = sorted({entry.version for entry in entries.values()})
        return self.index.count({"source": {"$in": list(entries)}, "version": {"$in": versions}})

    def _chunk_if_changed(self, source: str, path: Path) -> _ChunkedFile | None:
        """The file's chunks, or None where the index already has them."""
        state = path.stat()
        entry = FileEntry(state.st_size, state.st_mtime_ns, "", self.chunking.fingerprint, 0)
        previous = self.ledger.get(source)
        if previous is not None and self._is_indexed(source, previous):
            if (previous.size, previous.mtime_ns) == (entry.size, entry.mtime_ns):
                self.report.unchanged.append(source)
                return None
            entry.sha256 = file_digest(path)
            if entry.sha256 == previous.sha256:  # touched, not changed
                entry.chunks = previous.chunks
                self.ledger.put(self.root, {source: entry})
                self.report.unchanged.append(source)
                return None
        entry.sha256 = entry.sha256 or file_digest(path)
        chunks = self._read_chunks(source, path, entry.version)
        entry.chunks = len(chunks)
        return _ChunkedFile(source, entry, chunks, is_new=previous is None)

    def _is_indexed(self, source: str, entry: FileEntry) -> bool:
        """Whether the index has all chunks of an entry, cut as they would be now.

        They are counted file by file only where some are missing, as in an index that somebody emptied.
        """
        if not entry.is_finished or entry.fingerprint != self.chunking.fingerprint:
            return False
        return self.is_complete or self._count_indexed({source: entry}) == entry.chunks

    def _read_chunks(self, source: str, path: Path, version: str) -> list[Chunk]:
        sections = self.reader.read(
            path,
            text_column=self.chunking.text_column,
            max_bytes=self.chunking.max_file_bytes,
            on_page=lambda page, pages: self._report_progress(source, page, pages),
            on_remark=lambda remark: self.report.incomplete.append(Failure(source, remark)),
        )
        chunks = list(split(sections, source, version, self.chunking))
        _check_storable(chunks, path)
        return chunks

    def _store_files(self, group: list[_ChunkedFile]) -> None:
        """Announce, embed, insert, drop what was there before, confirm: in this order (see the module's docstring)."""
        if not group:
            return
        self.ledger.put(self.root, {file.source: FileEntry.unfinished() for file in group})
        chunks = [chunk for file in group for chunk in file.chunks]
        vectors = self._embed_chunks(chunks)  # (chunks, dimension)
        self.index.upsert([c.id for c in chunks], [c.text for c in chunks], vectors, [c.metadata for c in chunks])
        # In a store of many, a file that is new to this ledger may be there from a run with another one.
        self._drop_stale({f.source: f.entry.version for f in group if self.is_shared or not f.is_new})
        self.report.added += [file.source for file in group if file.is_new]
        self.report.changed += [file.source for file in group if not file.is_new]
        self.ledger.put(self.root, {file.source: file.entry for file in group})

    def _drop_stale(self, versions: dict[str, str]) -> None:
        """Delete the chunks of these sources that belong to another version than this; one scan for all of them.

        A document without a version is nobody's chunk: another program wrote it.
        """
        if not versions:
            return
        chunks = self.index.get(where={"source": {"$in": list(versions)}, "version": {"$exists": True}})
        stale = [c.id for c in chunks if c.metadata["version"] != versions[c.metadata["source"]]]
        if stale:
            self.index.delete(stale)

    def _embed_chunks(self, chunks: list[Chunk]) -> NDArray[np.float32]:
        """(chunks, dimension) vectors: those that the store has, and new ones."""
        vectors = self._find_vectors(chunks)
        missing = [chunk for chunk in chunks if chunk.id not in vectors]
        self.report.reused += len(chunks) - len(missing)
        for start in range(0, len(missing), _SLICE_CHUNKS):
            part = missing[start : start + _SLICE_CHUNKS]
            rows = self.encoder.encode_documents([chunk.text for chunk in part])
            vectors.update(zip([chunk.id for chunk in part], rows, strict=True))
            self.report.chunks += len(part)
            self._report_progress()
        return np.stack([vectors[chunk.id] for chunk in chunks])

    def _find_vectors(self, chunks: list[Chunk]) -> dict[str, NDArray[np.float32]]:
        """The vectors of chunks that the store has, by id: the id is made of the source and the text."""
        identity = getattr(self.encoder, "identity", None)
        if identity is None or self.index.identity != identity or not len(self.index):
            return {}
        texts = {chunk.id: chunk.text for chunk in chunks}
        return {
            name: documents.vectors[row]
            for documents in self.index.export(list(texts))
            for row, name in enumerate(documents.ids)
            if documents.texts[row] == texts[name]
        }

    def _report_progress(self, source: str = "", page: int = 0, pages: int = 0) -> None:
        self.on_progress(Progress(self.files_done, self.files, self.report.chunks, source, page, pages))


def _decode_name(name: str) -> str:
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
    "split",
    "sync",
]
