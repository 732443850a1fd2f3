"""One state of the index in memory: the segment, the documents newer than it (the *delta*), and what is deleted.

A snapshot is built once per state and never changed, so any number of threads search it while the next is being built.
Lengths, filter masks and BM25 scores are arrays over slots (`tables.Blocks`).

Cost: 4 bytes per document for its length, 16 for key and slot, and the vectors of the delta.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from sqlite3 import Connection

import numpy as np

from peg_rag.errors import DamagedIndex, IndexBusy
from peg_rag.index import tables
from peg_rag.index.compaction import Compactor
from peg_rag.index.database import DamagedRow, Database
from peg_rag.index.encodings import Array, Storage
from peg_rag.index.exact import RankedRows, search_matrix
from peg_rag.index.filters import Condition
from peg_rag.index.segment import Segment
from peg_rag.index.tables import Blocks, IndexState

MAX_CACHED_MASKS = 16
MAX_SCORES = 16 << 20  # inner products held at a time, for a batch of queries

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a search looks at.

    Attributes:
        segment: the vectors up to the last compaction, some of which may be deleted.
        segment_slots: (segment rows,) -1 for rows of a block that was dropped.
        segment_live: (segment rows,) bool; None when none is deleted.
        delta: (n, dimension) unit rows of the live documents newer than the segment, with keys and slots.
    """

    state: IndexState
    dimension: int
    storage: Storage
    blocks: Blocks
    segment: Segment
    segment_slots: Array
    segment_live: Array | None
    delta_keys: Array
    delta: Array
    delta_slots: Array
    _masks: "OrderedDict[Condition, Array]" = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(
        cls,
        connection: Connection,
        state: IndexState,
        segment: Segment,
        previous: "Snapshot | None",
        storage: Storage,
        dimension: int,
    ) -> "Snapshot":
        """The snapshot that a read transaction sees; the delta of a previous one of the same segment is reused."""
        keys = np.empty(0, dtype=np.int64) if previous is None else previous.delta_keys
        delta = np.empty((0, dimension), dtype=np.float32) if previous is None else previous.delta
        last_key = max([-1, *segment.keys[-1:].tolist(), *keys[-1:].tolist()])
        chunks = list(tables.read_vectors_after(connection, last_key, dimension, storage))
        if chunks:
            keys = np.concatenate([keys, *(chunk_keys for chunk_keys, _ in chunks)])
            delta = _append_chunks(delta, [vectors for _, vectors in chunks])
        blocks = Blocks.read(connection)
        live = blocks.lengths > 0
        slots = blocks.slots_of_keys(keys)
        segment_slots = blocks.slots_of_keys(segment.keys)
        delta_live = _select_live(live, slots)
        segment_live = _select_live(live, segment_slots)
        if not delta_live.all():
            keys = keys[delta_live]
            delta = delta[delta_live]
            slots = slots[delta_live]
        with_length = int(np.count_nonzero(live))
        with_vector = len(keys) + int(np.count_nonzero(segment_live))
        if not with_length == with_vector == state.documents:
            raise DamagedRow(f"of {state.documents} documents, {with_length} have a length and {with_vector} a vector")
        return cls(
            state, dimension, storage, blocks, segment, segment_slots, None if segment_live.all() else segment_live,
            keys, delta, slots,
        )  # fmt: skip

    # -- filters ------------------------------------------------------------------------------------------------------

    def build_mask(self, connection: Connection, condition: Condition) -> Array | None:
        """(slots,) bool of the documents that pass a filter; None when all do. The latest masks are cached."""
        if condition.matches_all:
            return None
        with self._lock:
            cached = self._masks.get(condition)
            if cached is not None:
                self._masks.move_to_end(condition)
                return cached
        keys = np.array(tables.find_keys(connection, condition), dtype=np.int64)
        slots = self.blocks.slots_of_keys(keys)
        if (slots < 0).any():
            raise DamagedRow("the length of a document is missing")
        mask = np.zeros(len(self.blocks.lengths), dtype=bool)
        mask[slots] = True
        with self._lock:
            self._masks[condition] = mask
            while len(self._masks) > MAX_CACHED_MASKS:
                self._masks.popitem(last=False)
        return mask

    # -- dense search -------------------------------------------------------------------------------------------------

    def search(self, connection: Connection, queries: Array, k: int, mask: Array | None) -> list[RankedRows]:
        """The k nearest allowed documents (as slots) of each of (queries, dimension) unit rows, and their cosines."""
        segment_allowed = self.segment_live
        delta_allowed = None
        if mask is not None and len(mask):
            in_mask = mask[self.segment_slots]
            segment_allowed = in_mask if segment_allowed is None else in_mask & segment_allowed
            delta_allowed = mask[self.delta_slots]
        rankings: list[RankedRows] = []
        step = max(1, MAX_SCORES // max(1, len(self.segment.keys) + len(self.delta)))
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            in_segment = self.segment.search(
                part, k, segment_allowed, lambda keys: self._read_vectors(connection, keys)
            )
            in_delta = search_matrix(self.delta, part, k, delta_allowed)
            rankings += [self._merge_rankings(a, b, k) for a, b in zip(in_segment, in_delta, strict=True)]
        return rankings

    def _merge_rankings(self, in_segment: RankedRows, in_delta: RankedRows, k: int) -> RankedRows:
        if not len(in_delta.rows):
            return RankedRows(self.segment_slots[in_segment.rows], np.clip(in_segment.scores, -1.0, 1.0))
        slots = np.concatenate([self.segment_slots[in_segment.rows], self.delta_slots[in_delta.rows]])
        scores = np.concatenate([in_segment.scores, in_delta.scores])
        order = np.argsort(-scores, kind="stable")[:k]
        return RankedRows(slots[order], np.clip(scores[order], -1.0, 1.0))

    def vectors(self, connection: Connection, slots: Array) -> Array:
        """(n, dimension) unit rows of live documents."""
        keys = self.blocks.keys_of_slots(slots)
        vectors = np.empty((len(keys), self.dimension), dtype=np.float32)
        in_segment = keys <= (self.segment.keys[-1] if len(self.segment.keys) else -1)
        if in_segment.any():
            rows = np.searchsorted(self.segment.keys, keys[in_segment])
            vectors[in_segment] = self.segment.vectors(rows, lambda keys: self._read_vectors(connection, keys))
        if not in_segment.all():
            vectors[~in_segment] = self.delta[np.searchsorted(self.delta_keys, keys[~in_segment])]
        return vectors

    def _read_vectors(self, connection: Connection, keys: Array) -> Array:
        return tables.read_vectors(connection, keys, self.dimension, self.storage)


def _select_live(live: Array, slots: Array) -> Array:
    """(n,) whether the documents at these slots are live; those at -1 are not."""
    return live[slots] & (slots >= 0) if len(live) else np.zeros(len(slots), dtype=bool)


def _append_chunks(delta: Array, chunks: Sequence[Array]) -> Array:
    if not len(delta) and len(chunks) == 1:
        return chunks[0]  # no copy
    return np.concatenate([delta, *chunks])


class SnapshotCache:
    """The latest snapshot of an index: rebuilt after every change, with a damaged segment file repaired on the way."""

    def __init__(self, database: Database, compactor: Compactor) -> None:
        self._database = database
        self._compactor = compactor
        self._latest: Snapshot | None = None
        self._lock = threading.RLock()

    def clear(self) -> None:
        """Forget the latest snapshot."""
        self._latest = None

    @contextmanager
    def open(self) -> Iterator[tuple[Connection, Snapshot]]:
        """A read transaction and the snapshot of exactly its state."""
        failed_generations: list[int] = []
        while True:
            try:
                with self._database.reading() as connection:
                    state = IndexState.read(connection)
                    try:
                        in_memory = failed_generations.count(state.generation) >= 2
                        snapshot = self._read_snapshot(connection, state, in_memory=in_memory)
                    except _UnusableSegment as reason:
                        failed_generations.append(state.generation)
                        problem = str(reason)
                    else:
                        if snapshot.state.sequence == state.sequence:
                            yield connection, snapshot
                            return
                        continue  # another thread has read a later state; start again
            except IndexBusy:
                self._latest = None  # it may have been read from a file that was changing
                raise
            self._repair_segment(failed_generations, problem)

    def _repair_segment(self, failed_generations: Sequence[int], problem: str) -> None:
        """Rebuild the segment file; on its first failure it may only have been replaced while it was being opened."""
        generation = failed_generations[-1]
        if failed_generations.count(generation) < 2:
            return
        logger.warning("%s; it is rebuilt from %s", problem, self._database.name)
        if not self._database.read_only:
            try:
                self._compactor.compact(lambda _, state: state.generation == generation, extend=False)
            except (IndexBusy, OSError) as error:
                logger.warning("the vector file could not be written (%s); searching in memory", error)

    def _read_snapshot(self, connection: Connection, state: IndexState, *, in_memory: bool) -> Snapshot:
        """The snapshot of `state`, or a later one when another thread was faster."""
        with self._lock:
            latest = self._latest
            if latest is None or latest.state.sequence < state.sequence:
                dimension = int(tables.read_settings(connection, state).get("dimension", 0))
                storage = self._compactor.storage
                if latest is not None and latest.state.generation == state.generation:
                    segment = latest.segment
                else:
                    latest = None
                    segment = self._load_segment(connection, state, dimension, in_memory=in_memory)
                latest = self._latest = Snapshot.read(connection, state, segment, latest, storage, dimension)
            return latest

    def _load_segment(self, connection: Connection, state: IndexState, dimension: int, *, in_memory: bool) -> Segment:
        try:
            return self._compactor.load_segment(connection, state, dimension, in_memory=in_memory)
        except DamagedIndex as reason:
            raise _UnusableSegment(str(reason)) from reason


class _UnusableSegment(Exception):
    """The segment file is missing or does not match its manifest; it has to be rebuilt."""
