"""`PEGIndex`: documents, vectors and Chinese terms behind one transaction; dense, lexical and hybrid search.

An embedded index for one machine: a folder with one SQLite file (the truth) and one vector file (made from it, mapped
into memory). Written documents are found by every process at its next query; a crash at any moment loses nothing that
was acknowledged. Filters are applied before the search, so a rare filter still finds its k documents.

How a search sees new documents: rows that are newer than the vector file (the *delta*) are read from SQLite into memory
and multiplied exactly; rows that are gone are masked. `persist()` folds both into a new file; a write does so by itself
when enough has come together.

Cost: disk, 8 bytes per number of a vector (SQLite and the vector file) plus the text and about 1 kB of postings per 200
characters. Memory, the mapped vector file and 20 bytes per document. A write is one fsync.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Self, cast

import numpy as np

from peg_rag.errors import DamagedIndex, IndexBusy, IndexMismatch, InvalidInput, PegRagError
from peg_rag.extras import require
from peg_rag.hits import Hit
from peg_rag.index import rows, vectors
from peg_rag.index.checks import Documents, Mode, Query, checked_ids, whole_number
from peg_rag.index.documents import BLOCK, Database
from peg_rag.index.filters import compile_filter
from peg_rag.index.fusion import Method
from peg_rag.index.lexical import get_tokenizer, make_postings, write_postings
from peg_rag.index.rows import Backlog, Blocks, Record, Rows, State
from peg_rag.index.vectors import Array, Base, Kind, Stamp, Storage, sync_folder
from peg_rag.index.view import Ranking, Scored, View, Weights, marginal

__all__ = ["UNKNOWN", "Mode", "PEGIndex", "Record"]

UNKNOWN = "unknown"
FILE_NAME = "index.sqlite"
MERGE_NEW_ROWS = 8192  # fewer new rows are never folded in by themselves
MERGE_NEW_SHARE = 0.25
MERGE_DEAD_SHARE = 0.5
MERGE_RETRY_S = 60.0  # after a merge that failed, the next write so much later tries again
SPARSE_SHARE = 0.25  # a block with fewer of its documents left is given up

_DEFAULTS = {"identity": UNKNOWN, "metric": "cosine", "tokenizer": "bigram", "storage": "float32", "kind": "flat"}

logger = logging.getLogger(__name__)


class PEGIndex:
    """A persistent, incremental index of texts, vectors and metadata; in memory without a path.

    Safe to use from many threads, and from many processes at once: one writes at a time, the others read. A forked
    child opens its own: calls of an inherited index raise `ForkedIndex`. `with PEGIndex(…) as index:` closes it at the
    end; nothing that was written depends on closing.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        identity: str | None = None,
        dimension: int | None = None,
        tokenizer: str | None = None,
        kind: Kind | None = None,
        storage: Storage | None = None,
        read_only: bool = False,
        timeout_s: float = 10.0,
    ) -> None:
        """Open the index at `path`, or make one there.

        Args:
            path: a folder; made if it is not there. None: in memory, gone when closed.
            identity: names the model that makes the vectors (`PEGEncoder.identity`); stored with a new index (as
                "unknown" when None) and compared with the stored one later. None opens any index.
            dimension: of the vectors; None: that of the first vectors written.
            tokenizer: how texts become terms, `bigram` (default for a new index) or `jieba`.
            kind: how vectors are searched: `flat` (default for a new index; exact), `hnsw` or `ivfpq` (both need
                FAISS). An index opened as another kind than it was is converted by the next `persist()`.
            storage: how SQLite keeps the vectors: `float32` (default for a new index), `float16` or `int8`. Scores are
                cosines with the vectors as kept.
            read_only: refuse to write, and never make or repair a file; works on a read-only mount, too.
            timeout_s: how long to wait for another writer before `IndexBusy`.

        Raises:
            IndexMismatch: identity, dimension, tokenizer or storage differ from what the index has.
            DamagedIndex: the SQLite file cannot be read.
            ForkedIndex: a thread of the parent was using the index when this process was forked.
            InvalidInput: an unknown name, `path` is a file, or `read_only` and there is no index.
            MissingExtra: FAISS or jieba is asked for and not installed.
        """
        _check_choices(kind, storage, dimension)
        self.path = Path(path) if path is not None else None
        self._db = Database(_sqlite_file(self.path, read_only), read_only=read_only, timeout_s=timeout_s)
        self._view: View | None = None
        self._view_lock = threading.RLock()
        self._merge_not_before = 0.0  # on the monotonic clock
        self._memory_base = Base.empty()  # stands for the vector file when there is no path
        given = {"identity": identity, "dimension": dimension, "tokenizer": tokenizer, "storage": storage, "kind": kind}
        try:
            self._settings = self._agreed({name: str(value) for name, value in given.items() if value is not None})
            self._kind = kind or cast(Kind, self._settings["kind"])
            self._tokenizer = get_tokenizer(self._settings["tokenizer"])
        except BaseException:
            self._db.close()
            raise

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """The model that made the vectors; "unknown" if it was never said."""
        return self._settings["identity"]

    @property
    def dimension(self) -> int | None:
        """Of the vectors; None until the first are written."""
        if "dimension" not in self._settings:
            with self._db.reading() as connection:
                self._settings = rows.read_settings(connection)
        return int(self._settings["dimension"]) if "dimension" in self._settings else None

    @property
    def tokenizer(self) -> str:
        """How texts become terms: `bigram` or `jieba`."""
        return self._settings["tokenizer"]

    @property
    def storage(self) -> Storage:
        """How SQLite keeps the vectors."""
        return cast(Storage, self._settings["storage"])

    @property
    def kind(self) -> Kind:
        """How vectors are searched."""
        return self._kind

    @property
    def read_only(self) -> bool:
        """Whether writing is refused."""
        return self._db.read_only

    def __len__(self) -> int:
        with self._db.reading() as connection:
            return State.read(connection).documents

    def __repr__(self) -> str:
        return f"PEGIndex({str(self.path) if self.path else None!r}, kind={self.kind!r}, identity={self.identity!r})"

    # -- writing ------------------------------------------------------------------------------------------------------

    def upsert(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        vectors: Array | Sequence[Sequence[float]],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Add documents, replacing those whose id is there. All of them or, on an error, none.

        On return they are on disk, and every reader finds them at its next query.

        Args:
            ids: (n,) non-empty strings. An id given twice counts once: the last one wins.
            texts: (n,) strings, stored as they are.
            vectors: (n, dimension) numbers; brought to length 1 here.
            metadatas: (n,) dicts of what JSON can hold, or None.

        Raises:
            InvalidInput: the lengths differ, or a row cannot be used (the message names it).
            IndexBusy: another writer holds the index for longer than `timeout_s`.
            OSError: the disk is full; the index is as before.
        """
        given = Documents.checked(ids, texts, vectors, metadatas, self.dimension)
        if not given.ids:
            return
        with self._db.writing() as connection:
            self._settle(connection, given.vectors.shape[1])
            state = State.read(connection)
            replaced = rows.keys_of_ids(connection, given.ids) if state.documents else []
            gone = rows.remove_documents(connection, replaced)
            self._insert(connection, state.next_key, self._stored(given))
            added = len(given.ids)
            state.changed(next_key=state.next_key + added, documents=state.documents + added - gone).write(connection)
        self._merge_if_due()

    def delete(self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Delete the documents with these ids, or those that match a filter; ids that are not there are passed over.

        Returns:
            How many documents were deleted.

        Raises:
            InvalidInput: neither ids nor a filter, both, or an empty filter (`clear()` deletes everything).
        """
        if (ids is None) == (where is None) or where == {}:
            raise InvalidInput("delete takes either ids or a non-empty filter (where=…); clear() deletes everything")
        names = checked_ids(ids) if ids is not None else []
        condition = compile_filter(where) if where is not None else None
        with self._db.writing() as connection:
            keys = rows.keys_where(connection, condition) if condition else rows.keys_of_ids(connection, names)
            gone = rows.remove_documents(connection, keys)
            if gone:
                state = State.read(connection)
                state.changed(documents=state.documents - gone).write(connection)
        if gone:
            self._merge_if_due()
        return gone

    def clear(self) -> None:
        """Delete every document; the settings (model, dimension, tokenizer) stay."""
        with self._db.writing() as connection:
            rows.remove_everything(connection)
            State.read(connection).changed(documents=0).write(connection)
        self._merge_if_due()

    def persist(self) -> None:
        """Fold everything written and deleted so far into a new vector file (in memory: a new matrix).

        Not needed to keep what was written, which is on disk already: it makes opening and searching faster.

        Raises:
            IndexBusy: another writer holds the index for longer than `timeout_s`.
            OSError: there is no room for the vector file; the index is as before.
        """
        self._merge(lambda backlog, state: bool(backlog.new or backlog.gone) or self._settings["kind"] != self._kind)

    def close(self) -> None:
        """Close the files. The index cannot be used afterwards; closing twice is harmless."""
        self._db.close()
        self._view, self._memory_base = None, Base.empty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(
        self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> list[Record]:
        """The documents with these ids, in their order and without those missing; or all that match a filter.

        Args:
            where: a filter; {} is every document. The oldest come first.
            limit: at most so many.

        Raises:
            InvalidInput: neither ids nor a filter, both, or a negative limit.
        """
        if (ids is None) == (where is None):
            raise InvalidInput("get takes either ids or a filter (where=…; {} for every document)")
        limit = None if limit is None else whole_number(limit, "limit")
        names = checked_ids(ids) if ids is not None else []
        condition = compile_filter(where) if where is not None else None
        with self._db.reading() as connection:
            if condition:
                return list(rows.records(connection, rows.keys_where(connection, condition)[:limit]).values())
            found = rows.records(connection, rows.keys_of_ids(connection, names))
        by_id = {record.id: record for record in found.values()}
        return [by_id[name] for name in names if name in by_id][:limit]

    def ids(self, where: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of all documents, or of those that match a filter, oldest first."""
        condition = compile_filter(where or {})
        with self._db.reading() as connection:
            return rows.ids_where(connection, condition)

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many documents there are, or match a filter."""
        condition = compile_filter(where or {})
        with self._db.reading() as connection:
            return rows.count_where(connection, condition)

    def search(
        self,
        vector: Array | Sequence[float] | None = None,
        text: str | None = None,
        *,
        k: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        weights: Weights | None = None,
        fetch_k: int | None = None,
        fusion: Method = "convex",
    ) -> list[Hit]:
        """The k best documents for one query, best first; the older of equals first.

        Args:
            vector: (dimension,) query vector, for `dense` and `hybrid`.
            text: the query's text, for `lexical` and `hybrid`.
            k: how many; 0 gives none, more than there are gives all.
            mode: `dense` (cosine), `lexical` (BM25; only documents with a term of the query) or `hybrid` (both, fused).
                None: hybrid when both vector and text are given, else the one that is possible.
            where: a filter on the metadata (see `peg_rag.index.filters`), applied before the search.
            threshold: leave out hits whose `score` is lower.
            weights: for `hybrid`: how much `dense` and `lexical` count, or a function of the rankings; None: the side
                whose best hit stands out more counts more (`peg_rag.index.fusion.leaning_to_words`).
            fetch_k: for `hybrid`: how many candidates each side brings; None: the larger of 100 and 4 k.
            fusion: for `hybrid`: `convex` (scores brought to 0-1 and averaged) or `rrf` (reciprocal ranks).

        Returns:
            Hits whose `scores` hold `dense`, `lexical` and `fused` as far as the mode computes them. In `hybrid` both
            `dense` and `lexical` are there for every hit (a BM25 of 0: no common term).

        Raises:
            InvalidInput: the mode's query is missing, a vector of another dimension, a bad filter, a negative k.
        """
        return self.search_batch(
            None if vector is None else [vector],
            None if text is None else [text],
            k=k, mode=mode, where=where, threshold=threshold, weights=weights, fetch_k=fetch_k, fusion=fusion,
        )[0]  # fmt: skip

    def search_batch(
        self,
        vectors: Array | Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        *,
        k: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        weights: Weights | None = None,
        fetch_k: int | None = None,
        fusion: Method = "convex",
    ) -> list[list[Hit]]:
        """`search` for many queries at once: (q, dimension) vectors and (q,) texts; one list of hits per query."""
        query = Query.checked(vectors, texts, mode, k, fetch_k, self.dimension)
        condition = compile_filter(where or {})
        with self._snapshot() as (connection, view):
            ranking = Ranking(view, view.mask(connection, condition), self._tokenizer, weights, fusion)
            return [_hits(connection, view, scored, threshold) for scored in ranking.ranked(connection, query)]

    def mmr(
        self,
        vector: Array | Sequence[float],
        *,
        k: int = 10,
        fetch_k: int = 50,
        diversity: float = 0.5,
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
    ) -> list[Hit]:
        """k of the fetch_k nearest documents, chosen one by one to be near the query and unlike those chosen before.

        Args:
            diversity: 0 (only nearness, as `search`) to 1 (only unlikeness); LangChain's `lambda_mult` is 1 minus this.

        Returns:
            Hits in the order they were chosen; `score` is the cosine with the query.

        Source: Carbonell and Goldstein, The Use of MMR, Diversity-Based Reranking, SIGIR 1998.
        """
        if not 0 <= diversity <= 1:
            raise InvalidInput(f"diversity is between 0 and 1, not {diversity}")
        query = Query.checked([vector], None, "dense", k, fetch_k, self.dimension)
        condition = compile_filter(where or {})
        with self._snapshot() as (connection, view):
            ranking = Ranking(view, view.mask(connection, condition), self._tokenizer, None, "convex")
            (near,) = ranking.nearest(connection, query, query.fetch_k)
            vectors = view.vectors(connection, near.rows)
            chosen = marginal(near.scores, vectors @ vectors.T, min(k, len(vectors)), diversity)
            scores = near.scores[chosen]
            return _hits(connection, view, Scored(near.rows[chosen], scores, {"dense": scores}), threshold)

    # -- settings -----------------------------------------------------------------------------------------------------

    def _agreed(self, given: dict[str, str]) -> dict[str, str]:
        """The stored settings, after comparing them with those asked for. A new index takes them over."""
        with self._db.reading() as connection:
            stored = rows.read_settings(connection)
        if _is_open(stored, given) and not self._db.read_only:
            with self._db.writing() as connection:
                stored = rows.read_settings(connection)
                if _is_open(stored, given):
                    stored = _DEFAULTS | stored | given
                    rows.write_settings(connection, stored)
        if not stored:
            raise DamagedIndex(
                f"{self._db.name} was never finished by the process that began it; open it to write once"
            )
        self._compare(stored, given)
        return stored

    def _compare(self, stored: Mapping[str, str], given: Mapping[str, str]) -> None:
        for name in ("metric", "identity", "dimension", "tokenizer", "storage"):
            was, wanted = stored.get(name), ({"metric": _DEFAULTS["metric"]} | dict(given)).get(name)
            if was is not None and wanted is not None and was != wanted:
                raise IndexMismatch(f"{self._db.name} was made with {name} {was!r}, not {wanted!r}; {_CURES[name]}")

    def _settle(self, connection: Connection, dimension: int) -> None:
        """Inside a write: fix the dimension with the first vectors; notice what another process fixed meanwhile."""
        stored = rows.read_settings(connection)
        self._compare(stored, {"identity": self.identity, "dimension": str(dimension)})
        if "dimension" not in stored:
            stored["dimension"] = str(dimension)
            rows.write_settings(connection, stored)
        self._settings = stored

    # -- inserting ----------------------------------------------------------------------------------------------------

    def _stored(self, given: Documents) -> Rows:
        return Rows(given.ids, given.texts, given.metadatas, list(vectors.to_blobs(given.vectors, self.storage)))

    def _insert(self, connection: Connection, key: int, new: Rows) -> None:
        """Write documents under the keys from `key` on, block by block."""
        start = 0
        while start < len(new):
            block, offset = divmod(key + start, BLOCK)
            part = new.part(start, start + BLOCK - offset)
            postings = make_postings(self._tokenizer, part.texts, offset)
            rows.insert_documents(connection, range(key + start, key + start + len(part)), part)
            write_postings(connection, block, postings)
            rows.write_lengths(connection, block, slice(offset, offset + len(part)), postings.lengths + 1)
            start += len(part)

    # -- merging ------------------------------------------------------------------------------------------------------

    def _merge_if_due(self) -> None:
        """Merge after a write when enough has come together. The write is committed: nothing here may fail it."""
        if time.monotonic() < self._merge_not_before:
            return
        try:
            with self._db.reading() as connection:
                state = State.read(connection)
                due = _is_due(Backlog.read(connection, state), state)
            if due:
                self._merge(_is_due)
        except IndexBusy:
            logger.info("another writer is at work on %s; the merge is left to it", self._db.name)
        except Exception as error:
            self._merge_not_before = time.monotonic() + MERGE_RETRY_S
            logger.warning(
                "the vector file of %s could not be written (%s); what was written is safe and is found, only slower; "
                "the next try is in %d s", self._db.name, str(error) or type(error).__name__, MERGE_RETRY_S,
                exc_info=not isinstance(error, PegRagError | OSError | MemoryError),
            )  # fmt: skip

    def _merge(self, wanted: Any) -> None:
        """Write the vector file of the next generation and make it known, in one write transaction.

        The file is whole and on disk before SQLite names it: a crash in between leaves a stray file and the old state.
        """
        dimension = self.dimension
        if dimension is None:
            return
        with self._db.writing() as connection:
            state = State.read(connection)
            if not wanted(Backlog.read(connection, state), state):
                return
            if self.path is not None:
                _sweep(self.path, state.generation)  # makes room, where a crash has left something
            state = self._tidied(connection, state).changed(generation=state.generation + 1)
            if self.path is None:
                self._memory_base = self._merge_in_memory(connection, dimension, state)
            else:
                self._merge_on_disk(connection, self.path, dimension, state)
        self._merge_not_before = 0.0
        self._settings = self._settings | {"kind": self._kind}
        if self.path is not None:
            _sweep(self.path, state.generation)

    def _merge_in_memory(self, connection: Connection, dimension: int, state: State) -> Base:
        base = self._built(connection, self._kind, dimension, state)
        self._record_merge(connection, Stamp(base.kind, 0, b"", base.keys.tobytes()), state)
        return base

    def _merge_on_disk(self, connection: Connection, path: Path, dimension: int, state: State) -> None:
        try:
            self._record_merge(connection, self._written(connection, path, dimension, state), state)
        except BaseException:
            # Before the next writer may begin, who would use the same name.
            with suppress(OSError):
                _vector_file(path, state.generation).unlink(missing_ok=True)
            raise

    def _record_merge(self, connection: Connection, stamp: Stamp, state: State) -> None:
        rows.write_stamp(connection, stamp, state)
        rows.write_settings(connection, {"kind": self._kind})
        state.write(connection)

    def _written(self, connection: Connection, path: Path, dimension: int, state: State) -> Stamp:
        """Write the vector file of `state`: the old FAISS file and what is new, or anew when too much of it is dead."""
        file, old_file = _vector_file(path, state.generation), _vector_file(path, state.generation - 1)
        if state.generation > 1 and self._kind != "flat":
            old, backlog = rows.read_stamp(connection), Backlog.read(connection, state)
            if old.kind == self._kind and backlog.dead < 0.2 * backlog.rows and backlog.new < 2 * backlog.rows:
                more = rows.vectors_after(connection, int(old.rows()[-1]), dimension, self.storage)
                with suppress(DamagedIndex):
                    if (stamp := vectors.extend(old_file, old, state.documents, more, file)) is not None:
                        return stamp
        return vectors.write(self._kind, dimension, state.documents, self._source(connection, dimension), file)

    def _built(self, connection: Connection, kind: Kind, dimension: int, state: State) -> Base:
        return vectors.build(kind, dimension, state.documents, self._source(connection, dimension))

    def _source(self, connection: Connection, dimension: int) -> vectors.Source:
        return lambda every: rows.vectors_after(connection, -1, dimension, self.storage, every=every)

    def _tidied(self, connection: Connection, state: State) -> State:
        """Drop blocks without documents; when many have only a few left, move those together under new keys."""
        blocks = Blocks.read(connection)
        alive = blocks.alive()
        old = blocks.numbers != state.next_key // BLOCK
        sparse = old & (alive < SPARSE_SHARE * BLOCK)
        if sparse.sum() * 2 > len(alive) or sparse.sum() > 16:
            slots = np.flatnonzero(np.repeat(sparse, BLOCK) & (blocks.lengths > 0))
            keys = blocks.keys(slots).tolist()
            moved = rows.read_raw(connection, keys)
            rows.remove_documents(connection, keys)
            self._insert(connection, state.next_key, moved)
            state = state.changed(next_key=state.next_key + len(moved))
        else:
            sparse = old & (alive == 0)
        for block in blocks.numbers[sparse].tolist():
            rows.drop_block(connection, block)
        return state

    # -- views --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _snapshot(self) -> Iterator[tuple[Connection, View]]:
        """A read transaction and the view of exactly its state."""
        unusable: list[int] = []
        while True:
            try:
                with self._db.reading() as connection:
                    state = State.read(connection)
                    try:
                        view = self._view_at(connection, state, in_memory=unusable.count(state.generation) >= 2)
                    except _Unusable as reason:
                        unusable.append(state.generation)
                        problem = str(reason)
                    else:
                        if view.state.sequence == state.sequence:
                            yield connection, view
                            return
                        continue  # another thread has seen a later state; look again
            except IndexBusy:
                self._view = None  # it may have been read from a file that was changing
                raise
            self._repair(unusable, problem)

    def _repair(self, unusable: Sequence[int], problem: str) -> None:
        """Build the vector file again; the first time, it may only have been replaced while it was being opened."""
        if unusable.count(unusable[-1]) < 2:
            return
        logger.warning("%s; it is built again from %s", problem, self._db.name)
        if not self._db.read_only:
            try:
                self._merge(lambda _, state: state.generation == unusable[-1])
            except (IndexBusy, OSError) as error:
                logger.warning("the vector file could not be written (%s); searching in memory", error)

    def _view_at(self, connection: Connection, state: State, *, in_memory: bool) -> View:
        """The view of `state`, made now if need be; a later one when another thread was first."""
        with self._view_lock:
            view = self._view
            if view is None or view.state.sequence < state.sequence:
                dimension = int(rows.read_settings(connection).get("dimension", 0))
                if view is not None and view.state.generation != state.generation:
                    view = None
                base = self._base(connection, state, dimension, in_memory) if view is None else view.base
                view = self._view = View.at(connection, state, base, view, self.storage, dimension)
            return view

    def _base(self, connection: Connection, state: State, dimension: int, in_memory: bool) -> Base:
        if not state.generation:
            return Base.empty()
        if self.path is None:
            return self._memory_base
        stamp = rows.read_stamp(connection)
        if in_memory:
            return self._built(connection, stamp.kind, dimension, state)
        try:
            return vectors.load(_vector_file(self.path, state.generation), stamp, dimension)
        except DamagedIndex as reason:
            raise _Unusable(str(reason)) from reason


class _Unusable(Exception):
    """The vector file is missing or not what SQLite knows; it has to be built again."""


_CURES = {
    "metric": "index the documents again in another folder",
    "identity": "open it with the model that made it, or index the documents again in another folder",
    "dimension": "use the model that made it, or index the documents again in another folder",
    "tokenizer": "leave tokenizer out to use the stored one, or index the documents again in another folder",
    "storage": "leave storage out to use the stored one, or index the documents again in another folder",
}


def _is_open(stored: Mapping[str, str], given: Mapping[str, str]) -> bool:
    """Whether an index is new, or still empty and without a named model, so that it takes over what is asked for."""
    return not stored or ("dimension" not in stored and stored["identity"] == UNKNOWN and bool(given))


def _is_due(backlog: Backlog, _: State) -> bool:
    new, dead = (
        max(MERGE_NEW_ROWS, MERGE_NEW_SHARE * backlog.rows),
        max(MERGE_NEW_ROWS, MERGE_DEAD_SHARE * backlog.rows),
    )
    return backlog.new > new or backlog.dead > dead


def _hits(connection: Connection, view: View, scored: Scored, threshold: float | None) -> list[Hit]:
    # As float64, which hits have: beside float32 numbers, NumPy would round the threshold.
    keep = slice(None) if threshold is None else scored.scores.astype(np.float64) >= threshold
    keys = view.blocks.keys(scored.slots[keep]).tolist()
    documents = rows.records(connection, keys)
    scores = scored.scores[keep].tolist()
    parts = {name: values[keep].tolist() for name, values in scored.parts.items()}
    return [
        Hit(
            id=documents[key].id,
            text=documents[key].text,
            score=scores[place],
            scores={name: values[place] for name, values in parts.items()},
            metadata=documents[key].metadata,
        )
        for place, key in enumerate(keys)
    ]


def _sqlite_file(path: Path | None, read_only: bool) -> Path | None:
    if path is None:
        if read_only:
            raise InvalidInput("an index in memory cannot be read_only: it would stay empty. Give a path")
        return None
    if path.exists() and not path.is_dir():
        raise InvalidInput(f"{path} is a file; an index is a folder: give the path of one, or of none yet")
    if read_only and not (path / FILE_NAME).is_file():
        raise InvalidInput(f"there is no index at {path} ({FILE_NAME} is missing), and read_only=True cannot make one")
    _make_folder(path)
    return path / FILE_NAME


def _make_folder(path: Path) -> None:
    """Make a folder that outlasts a power loss: SQLite sees to what is in it, but not to its own name."""
    if path.is_dir():
        return
    _make_folder(path.absolute().parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.absolute().parent)


def _vector_file(path: Path, generation: int) -> Path:
    return path / f"vectors-{generation}"


def _sweep(path: Path, generation: int) -> None:
    """Remove vector files of other generations; one that is still mapped somewhere stays readable there."""
    for file in path.glob("vectors-*"):
        if file.name != f"vectors-{generation}":
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                logger.info("%s is left behind: %s", file, error)


def _check_choices(kind: str | None, storage: str | None, dimension: int | None) -> None:
    for name, value, known in (("kind", kind, vectors.KINDS), ("storage", storage, vectors.STORAGES)):
        if value is not None and value not in known:
            raise InvalidInput(f"unknown {name} {value!r}; there are {', '.join(known)}")
    if kind in ("hnsw", "ivfpq"):
        require("faiss", "faiss")
    if dimension is not None and whole_number(dimension, "dimension") < 1:
        raise InvalidInput(f"dimension is a whole number, 1 or more, not {dimension!r}")
