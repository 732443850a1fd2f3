"""Compaction: fold inserted and deleted documents into a new segment, and merge sparse blocks.

Searching stays fast only while most documents are in the segment and few of its rows are tombstones. Compaction runs
after a write when enough has changed, or on `PEGIndex.persist()`. The new file is complete and synced before SQLite
refers to it: a crash in between leaves a stray file, which the next compaction removes, and the old state.

Cost: only the new vectors are read from SQLite and appended to the file (`flat`), as long as no document is deleted, or
added to the graph (`hnsw`, `ivfpq`) until a fifth of its rows are tombstones; else all are read and written once. Those
that this process wrote last, up to `MAX_RECENT_BYTES`, are held in memory and not read.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from sqlite3 import Connection

import numpy as np

from peg_rag.errors import DamagedIndex, IndexBusy, PegRagError
from peg_rag.index import segment_file, tables
from peg_rag.index.database import BLOCK, Database
from peg_rag.index.encodings import Array, Storage
from peg_rag.index.segment import Kind, Segment, VectorSource, build_segment
from peg_rag.index.segment_file import Manifest, segment_path
from peg_rag.index.tables import Backlog, Blocks, IndexState
from peg_rag.index.tokenizers import Tokenizer

MIN_ROWS = 8192  # fewer inserted or deleted documents never start a compaction
INSERTED_SHARE = 0.25  # of the segment's rows
TOMBSTONE_SHARE = 0.5
RETRY_S = 60.0  # after a compaction that failed, writes wait so long before they try again
SPARSE_SHARE = 0.25  # a block with a smaller share of live documents is merged with others
MAX_SPARSE_BLOCKS = 16
EXTEND_TOMBSTONE_SHARE = 0.2  # a FAISS file with fewer tombstones is extended
EXTEND_GROWTH = 2.0  # by at most so many times its rows

MAX_RECENT_BYTES = 64 << 20

IsNeeded = Callable[[Backlog, IndexState], bool]

logger = logging.getLogger(__name__)


class RecentVectors:
    """The vectors that this process has committed last, of consecutive keys."""

    def __init__(self) -> None:
        self._chunks: list[tuple[Array, Array]] = []  # keys and rows
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, first_key: int, rows: Array) -> None:
        """Hold (n, dimension) rows that were committed under the n keys from `first_key` on."""
        with self._lock:
            if self._chunks and self._chunks[-1][0][-1] + 1 != first_key:
                self._drop_all()  # another process, or a faster thread, has written in between
            self._chunks.append((np.arange(first_key, first_key + len(rows)), rows))
            self._bytes += rows.nbytes
            if self._bytes > MAX_RECENT_BYTES:
                self._drop_all()

    def find(self, first_key: int, next_key: int) -> list[tuple[Array, Array]] | None:
        """The keys from `first_key` up to `next_key`, and their rows, in chunks; None unless all are held."""
        with self._lock:
            if not self._chunks or self._chunks[0][0][0] != first_key or self._chunks[-1][0][-1] + 1 != next_key:
                return None
            return list(self._chunks)

    def clear(self) -> None:
        """Hold none."""
        with self._lock:
            self._drop_all()

    def _drop_all(self) -> None:
        self._chunks.clear()
        self._bytes = 0


class Compactor:
    """Builds the segments of one index: in files below `folder`, or in memory when `folder` is None.

    Attributes:
        kind: the kind of the segments it builds.
        stored_kind: the kind in the settings, as last read.
    """

    def __init__(
        self, database: Database, folder: Path | None, tokenizer: Tokenizer, kind: Kind, storage: Storage
    ) -> None:
        self.kind = kind
        self.stored_kind: str = kind
        self.storage = storage
        self._database = database
        self._folder = folder
        self._tokenizer = tokenizer
        self._retry_at = 0.0  # on the monotonic clock
        self._memory_segment = Segment.empty()
        self._recent = RecentVectors()

    def remember_vectors(self, first_key: int, rows: Array) -> None:
        """Hold what was just committed, as far as it is what SQLite holds, for the next compaction."""
        if self._folder is not None and self.kind == "flat" and self.storage == "float32":
            self._recent.add(first_key, rows)

    def compact_if_due(self) -> None:
        """Compact after a write when enough has changed. The write is committed, so no error is raised here."""
        if time.monotonic() < self._retry_at:
            return
        try:
            with self._database.reading() as connection:
                state = IndexState.read(connection)
                is_needed = is_due(Backlog.read(connection, state), state)
            if is_needed:
                self.compact(is_due)
        except IndexBusy:
            logger.info("another process is writing to %s; compaction is left to it", self._database.name)
        except Exception as error:
            self._retry_at = time.monotonic() + RETRY_S
            logger.warning(
                "the vector file of %s could not be written (%s); all writes are safe and searchable, only slower; "
                "the next try is in %d s", self._database.name, str(error) or type(error).__name__, RETRY_S,
                exc_info=not isinstance(error, PegRagError | OSError | MemoryError),
            )  # fmt: skip

    def compact_changes(self) -> None:
        """Compact unless nothing has changed and the segment is of the right kind."""
        self.compact(lambda backlog, _: bool(backlog.inserted or backlog.deleted) or self.stored_kind != self.kind)

    def compact(self, is_needed: IsNeeded, *, extend: bool = True) -> None:
        """Build the segment of the next generation in one write transaction, if it is still needed then.

        Args:
            extend: whether it may be made from the file of the previous generation.

        Raises:
            IndexBusy: another writer holds the index for longer than the timeout.
            OSError: the disk is full or not writable; the index is as before.
        """
        dimension = self._read_dimension()
        if dimension is None:
            return
        with self._database.writing() as connection:
            state = IndexState.read(connection)
            if not is_needed(Backlog.read(connection, state), state):
                return
            if self._folder is not None:
                remove_stray_files(self._folder, state.generation)  # frees what a crash has left
            state = self._merge_sparse_blocks(connection, state).advance(generation=state.generation + 1)
            if self._folder is None:
                self._memory_segment = self._compact_in_memory(connection, dimension, state)
            else:
                self._compact_on_disk(connection, self._folder, dimension, state, extend=extend)
        self._retry_at = 0.0
        self.stored_kind = self.kind
        self._recent.clear()
        if self._folder is not None:
            remove_stray_files(self._folder, state.generation)

    def load_segment(self, connection: Connection, state: IndexState, dimension: int, *, in_memory: bool) -> Segment:
        """The segment of `state`, from its file, or rebuilt in memory when the file cannot be used.

        Raises:
            DamagedIndex: the file is missing or does not match its manifest.
        """
        if not state.generation:
            return Segment.empty()
        if self._folder is None:
            return self._memory_segment
        manifest = tables.read_manifest(connection)
        if in_memory:
            return build_segment(manifest.kind, dimension, state.documents, self._read_from(connection, dimension))
        return segment_file.load_segment(segment_path(self._folder, state.generation), manifest, dimension)

    def close(self) -> None:
        """Free what is held in memory."""
        self._memory_segment = Segment.empty()
        self._recent.clear()

    def _read_dimension(self) -> int | None:
        with self._database.reading() as connection:
            dimension = tables.read_settings(connection).get("dimension")
        return None if dimension is None else int(dimension)

    def _read_from(self, connection: Connection, dimension: int) -> VectorSource:
        return lambda every: tables.read_vectors_after(connection, -1, dimension, self.storage, every=every)

    # -- segments -----------------------------------------------------------------------------------------------------

    def _compact_in_memory(self, connection: Connection, dimension: int, state: IndexState) -> Segment:
        segment = build_segment(self.kind, dimension, state.documents, self._read_from(connection, dimension))
        self._record_segment(connection, Manifest.in_memory(segment), state)
        return segment

    def _compact_on_disk(
        self, connection: Connection, folder: Path, dimension: int, state: IndexState, *, extend: bool
    ) -> None:
        try:
            manifest = self._extend_segment(connection, folder, dimension, state) if extend else None
            manifest = manifest or self._write_segment(connection, folder, dimension, state)
            self._record_segment(connection, manifest, state)
        except BaseException:
            # Before the transaction ends: the next writer would use the same file name.
            with suppress(OSError):
                segment_path(folder, state.generation).unlink(missing_ok=True)
            raise

    def _record_segment(self, connection: Connection, manifest: Manifest, state: IndexState) -> None:
        tables.write_manifest(connection, manifest, state)
        tables.write_settings(connection, {"kind": self.kind})
        state.write(connection)

    def _write_segment(self, connection: Connection, folder: Path, dimension: int, state: IndexState) -> Manifest:
        file = segment_path(folder, state.generation)
        source = self._read_from(connection, dimension)
        return segment_file.write_segment(self.kind, dimension, state.documents, source, file)

    def _extend_segment(
        self, connection: Connection, folder: Path, dimension: int, state: IndexState
    ) -> Manifest | None:
        """Add the new documents to the previous segment file; None where building a new one is better or needed."""
        if state.generation == 1:
            return None
        old = tables.read_manifest(connection)
        backlog = Backlog.read(connection, state)
        if old.kind != self.kind or not old.keys or not can_extend(old.kind, backlog):
            return None
        chunks = tables.read_vectors_after(connection, int(old.read_keys()[-1]), dimension, self.storage)
        old_file = segment_path(folder, state.generation - 1)
        file = segment_path(folder, state.generation)
        if old.kind == "flat":
            recent = self._recent.find(state.next_key - backlog.inserted, state.next_key)
            return segment_file.append_rows(old_file, old, recent or chunks, file)
        with suppress(DamagedIndex):
            return segment_file.extend_segment(old_file, old, state.documents, chunks, file)
        return None

    # -- blocks -------------------------------------------------------------------------------------------------------

    def _merge_sparse_blocks(self, connection: Connection, state: IndexState) -> IndexState:
        """Drop empty blocks; when many blocks are sparse, move their documents together under new keys."""
        blocks = Blocks.read(connection)
        live = blocks.count_live()
        is_full = blocks.numbers != state.next_key // BLOCK  # every key of the block has been used
        is_sparse = is_full & (live < SPARSE_SHARE * BLOCK)
        if is_sparse.sum() * 2 > len(live) or is_sparse.sum() > MAX_SPARSE_BLOCKS:
            is_obsolete = is_sparse
            state = self._move_documents(connection, state, blocks, is_sparse)
        else:
            is_obsolete = is_full & (live == 0)
        for block in blocks.numbers[is_obsolete].tolist():
            tables.drop_block(connection, block)
        return state

    def _move_documents(
        self, connection: Connection, state: IndexState, blocks: Blocks, is_sparse: Array
    ) -> IndexState:
        """Delete the documents of sparse blocks and insert them again under the next keys."""
        slots = np.flatnonzero(np.repeat(is_sparse, BLOCK) & (blocks.lengths > 0))
        keys = blocks.keys_of_slots(slots).tolist()
        documents = tables.read_encoded_documents(connection, keys)
        tables.delete_documents(connection, keys)
        tables.insert_documents(connection, self._tokenizer, state.next_key, documents)
        return state.advance(next_key=state.next_key + len(documents))


def is_due(backlog: Backlog, _: IndexState) -> bool:
    """Whether enough has changed for a compaction to pay."""
    max_inserted = max(MIN_ROWS, INSERTED_SHARE * backlog.rows)
    max_tombstones = max(MIN_ROWS, TOMBSTONE_SHARE * backlog.rows)
    return backlog.inserted > max_inserted or backlog.tombstones > max_tombstones


def can_extend(kind: Kind, backlog: Backlog) -> bool:
    """Whether adding to a segment file beats building a new one; a `flat` one is kept free of tombstones."""
    if kind == "flat":
        return not backlog.tombstones
    few_tombstones = backlog.tombstones < EXTEND_TOMBSTONE_SHARE * backlog.rows
    return few_tombstones and backlog.inserted < EXTEND_GROWTH * backlog.rows


def remove_stray_files(folder: Path, generation: int) -> None:
    """Remove the segment files of other generations; a process that has one mapped can still read it."""
    for file in folder.glob("vectors-*"):
        if file != segment_path(folder, generation):
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                logger.info("%s is left behind: %s", file, error)
