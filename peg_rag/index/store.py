"""`PEGIndex`: documents, vectors and Chinese terms behind one transaction; dense, lexical and hybrid search with filters.

An embedded index for one machine: a folder with one SQLite file (the truth) and one vector file (made from it, mapped
into memory). Written documents are found by every process at its next query; a crash at any moment loses nothing that
was acknowledged. Filters are applied before the search, so a rare filter still finds its k documents.

How a search sees new documents: rows written after the vector file was made (the *delta*) are read from SQLite into
memory and multiplied exactly; rows deleted since are masked. `persist()` folds both into a new file; writing does so by
itself when the delta has grown past a fifth of the file.

Cost: disk, about 2 x 4 x dimension bytes per document plus its text and about 1 kB of postings. Memory, the mapped
vector file and 4 bytes per document.
"""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Literal, Self, cast, get_args

import numpy as np

from peg_rag.errors import DamagedIndex, IndexBusy, IndexMismatch, InvalidInput
from peg_rag.hits import Hit
from peg_rag.index import vectors as vec
from peg_rag.index.documents import BLOCK, Database, in_chunks
from peg_rag.index.filters import Condition, compile_filter, dumps
from peg_rag.index.fusion import Method, Weighting, fuse
from peg_rag.index.lexical import bm25, get_tokenizer, make_postings, query_weights, write_postings
from peg_rag.index.vectors import Base, Found, Kind, Stamp, Storage

Mode = Literal["dense", "lexical", "hybrid"]
Weights = Mapping[str, float] | Weighting[int]
UNKNOWN = "unknown"
METRIC = "cosine"
FILE_NAME = "index.sqlite"
MERGE_ROWS = 8192  # a delta smaller than this is never merged by itself
MERGE_SHARE = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """A stored document, as `get` returns it."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


class PEGIndex:
    """A persistent, incremental index of texts, vectors and metadata; in memory without a path.

    Safe to use from many threads, and from many processes at once: one writes, the others read. `with PEGIndex(…) as
    index:` closes it at the end; closing is not needed for what was written to last.
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
                FAISS). An index opened with another kind than it has is converted at the next `persist()`.
            storage: how SQLite keeps the vectors: `float32` (default for a new index), `float16` or `int8`. Scores are
                cosines with the vectors as kept.
            read_only: refuse to write, and never make or repair a file.
            timeout_s: how long to wait for another writer before `IndexBusy`.

        Raises:
            IndexMismatch: identity, dimension, tokenizer or storage differ from what the index has.
            DamagedIndex: the SQLite file cannot be read, or `read_only` and there is none.
            InvalidInput: an unknown name, or `path` is a file.
        """
        _check_choices(kind, storage, dimension)
        self.path = Path(path) if path is not None else None
        self._db = Database(_sqlite_file(self.path, read_only), read_only=read_only, timeout_s=timeout_s)
        self._view: _View | None = None
        self._view_lock = threading.RLock()
        self._in_memory = _EMPTY_BASE  # the base of an index without a path
        given = {"identity": identity, "dimension": dimension, "tokenizer": tokenizer, "storage": storage, "kind": kind}
        try:
            self._settings = self._agreed({name: str(value) for name, value in given.items() if value is not None})
        except BaseException:
            self._db.close()
            raise
        self._kind: Kind = kind or cast(Kind, self._settings["kind"])
        self._tokenizer = get_tokenizer(self._settings["tokenizer"])

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """The model that made the vectors, "unknown" if it was never said."""
        return self._settings["identity"]

    @property
    def dimension(self) -> int | None:
        """Of the vectors; None until the first are written."""
        if "dimension" not in self._settings:
            with self._db.reading() as connection:
                self._settings = _read_settings(connection)
        return int(self._settings["dimension"]) if "dimension" in self._settings else None

    @property
    def tokenizer(self) -> str:
        return self._settings["tokenizer"]

    @property
    def storage(self) -> Storage:
        return cast(Storage, self._settings["storage"])

    @property
    def kind(self) -> Kind:
        return self._kind

    @property
    def read_only(self) -> bool:
        return self._db.read_only

    def __len__(self) -> int:
        with self._db.reading() as connection:
            return _State.read(connection).documents

    def __repr__(self) -> str:
        return f"PEGIndex({str(self.path) if self.path else None!r}, kind={self.kind!r}, identity={self.identity!r})"

    # -- writing ------------------------------------------------------------------------------------------------------

    def upsert(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        vectors: np.ndarray | Sequence[Sequence[float]],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Add documents, replacing those whose id is there. All of them or, on an error, none.

        On return they are on disk and every reader finds them at its next query.

        Args:
            ids: (n,) non-empty strings. An id given twice counts once: the last one wins.
            texts: (n,) strings, stored as they are.
            vectors: (n, dimension) numbers; brought to length 1 here.
            metadatas: (n,) dicts of what JSON can hold, or None.

        Raises:
            InvalidInput: lengths differ, or a row cannot be used (the message names it).
            IndexBusy: another writer holds the index for longer than `timeout_s`.
            OSError: the disk is full; the index is as before.
        """
        rows = _checked_rows(ids, texts, vectors, metadatas, self.dimension)
        if not rows.ids:
            return
        with self._db.writing() as connection:
            self._settle_dimension(connection, rows.vectors.shape[1])
            state = _State.read(connection)
            gone = _remove(connection, _keys_of_ids(connection, rows.ids) if state.documents else [])
            self._insert(connection, state.next_key, rows)
            state.moved(documents=len(rows.ids) - gone, next_key=state.next_key + len(rows.ids)).write(connection)
        self._merge_if_due()

    def delete(self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Delete the documents with these ids, or those that match a filter; ids that are not there are passed over.

        Returns:
            How many documents were deleted.

        Raises:
            InvalidInput: neither ids nor a filter, both, or an empty filter (`clear()` empties the index).
        """
        if (ids is None) == (where is None) or where == {}:
            raise InvalidInput(
                "delete takes ids or a non-empty filter (where=…), one of them; clear() deletes everything"
            )
        condition = compile_filter(where) if where is not None else None
        names = _checked_ids(ids) if ids is not None else []
        with self._db.writing() as connection:
            keys = _keys_where(connection, condition) if condition else _keys_of_ids(connection, names)
            gone = _remove(connection, keys)
            if gone:
                _State.read(connection).moved(documents=-gone).write(connection)
        return gone

    def clear(self) -> None:
        """Delete every document; the settings (model, dimension, tokenizer) stay."""
        with self._db.writing() as connection:
            for table in ("documents", "bodies", "blocks", "postings"):
                connection.execute(f"DELETE FROM {table}")
            state = _State.read(connection)
            state.moved(documents=-state.documents).write(connection)

    def persist(self) -> None:
        """Fold everything written and deleted so far into a new vector file (in memory: a new matrix).

        Not needed to keep what was written, which is on disk already: it makes the next opening and search faster.
        """
        self._merge(forced=True)

    def close(self) -> None:
        """Close the files. The index cannot be used afterwards; closing twice is harmless."""
        self._db.close()
        self._view = None
        self._in_memory = _EMPTY_BASE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(
        self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> list[Record]:
        """The documents with these ids, in their order, those missing left out; or all that match a filter, oldest first.

        Raises:
            InvalidInput: both or neither of ids and where ({} is every document), or a negative limit.
        """
        if (ids is None) == (where is None):
            raise InvalidInput("get takes ids or a filter (where=…; {} for every document), one of them")
        if limit is not None and limit < 0:
            raise InvalidInput(f"limit is 0 or more, or None for no limit, not {limit}")
        names = _checked_ids(ids) if ids is not None else []
        condition = compile_filter(where) if where is not None else None
        with self._db.reading() as connection:
            keys = _keys_where(connection, condition) if condition else _keys_of_ids(connection, names)
            if condition:
                records = list(_documents(connection, keys[:limit]).values())
                return records
            by_id = {record.id: record for record in _documents(connection, keys).values()}
        return [by_id[name] for name in names if name in by_id][:limit]

    def ids(self, where: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of all documents, or of those that match a filter, oldest first."""
        condition = compile_filter(where or {})
        sql = f"SELECT id FROM documents WHERE {condition.sql} ORDER BY key"
        with self._db.reading() as connection:
            return [name for (name,) in connection.execute(sql, condition.parameters)]

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many documents there are, or match a filter."""
        if not where:
            return len(self)
        condition = compile_filter(where)
        with self._db.reading() as connection:
            sql = f"SELECT count(*) FROM documents WHERE {condition.sql}"
            return int(connection.execute(sql, condition.parameters).fetchone()[0])

    def search(
        self,
        vector: np.ndarray | Sequence[float] | None = None,
        text: str | None = None,
        *,
        k: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        weights: Weights | None = None,
        fetch_k: int | None = None,
        fusion: Method = "rrf",
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
            weights: for `hybrid`: how much `dense` and `lexical` count, or a function (see `peg_rag.index.fusion`).
            fetch_k: for `hybrid`: how many candidates each side brings; None: the larger of 100 and 4 k.
            fusion: for `hybrid`: `rrf` or `convex`.

        Returns:
            Hits whose `scores` hold `dense`, `lexical` and `fused` as far as the mode computes them. In `hybrid` both
            `dense` and `lexical` are there for every hit (0 BM25: no common term).

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
        vectors: np.ndarray | Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        *,
        k: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        weights: Weights | None = None,
        fetch_k: int | None = None,
        fusion: Method = "rrf",
    ) -> list[list[Hit]]:
        """`search` for many queries at once: (q, dimension) vectors and (q,) texts; one list of hits per query."""
        query = _Query.checked(vectors, texts, mode, k, fetch_k, self.dimension)
        condition = compile_filter(where or {})
        with self._snapshot() as (connection, view):
            mask = view.mask(connection, condition)
            ranked = _rank(connection, view, query, mask, self._tokenizer_weights, weights, fusion)
            return [self._hits(connection, view, scored, threshold) for scored in ranked]

    def mmr(
        self,
        vector: np.ndarray | Sequence[float],
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
        query = _Query.checked([vector], None, "dense", max(fetch_k, k), None, self.dimension)
        condition = compile_filter(where or {})
        with self._snapshot() as (connection, view):
            found = view.dense(connection, query, query.k, view.mask(connection, condition))[0]
            rows = view.vectors(connection, found.rows)
            chosen = _marginal(found.scores, rows @ rows.T, min(k, len(rows)), diversity)
            scored = _Scored(found.rows[chosen], found.scores[chosen], {"dense": found.scores[chosen]})
            return self._hits(connection, view, scored, threshold)

    # -- settings -----------------------------------------------------------------------------------------------------

    def _agreed(self, given: dict[str, str]) -> dict[str, str]:
        """The stored settings after comparing them with what was asked for; stored now if the index is new."""
        with self._db.reading() as connection:
            stored = _read_settings(connection)
        if not stored or ("dimension" not in stored and stored["identity"] == UNKNOWN and "identity" in given):
            if self._db.read_only:
                raise DamagedIndex(
                    f"the index at {self._db.name} is empty; write to it before opening it with read_only=True"
                )
            with self._db.writing() as connection:
                stored = _read_settings(connection)
                if not stored or "dimension" not in stored:
                    stored = _DEFAULTS | stored | given
                    _write_settings(connection, stored)
        get_tokenizer(stored["tokenizer"])
        for name in ("identity", "dimension", "tokenizer", "storage", "metric"):
            if name in given and name in stored and given[name] != stored[name]:
                raise IndexMismatch(_mismatch(self._db.name, name, stored[name], given[name]))
        return stored

    def _settle_dimension(self, connection: Connection, dimension: int) -> None:
        stored = _read_settings(connection)
        if "dimension" not in stored:
            stored["dimension"] = str(dimension)
            _write_settings(connection, stored)
        elif int(stored["dimension"]) != dimension:
            raise InvalidInput(
                f"vector 0 has {dimension} dimensions, the index has {stored['dimension']}; "
                "use the model that made the index, or make a new index"
            )
        self._settings = stored

    def _tokenizer_weights(self, text: str) -> dict[str, float]:
        return query_weights(self._tokenizer, text)

    # -- inserting ----------------------------------------------------------------------------------------------------

    def _insert(self, connection: Connection, key: int, rows: "_Rows") -> None:
        """Write documents under fresh keys, block by block."""
        start = 0
        while start < len(rows.ids):
            block, offset = divmod(key + start, BLOCK)
            part = slice(start, min(start + BLOCK - offset, len(rows.ids)))
            keys = range(key + part.start, key + part.stop)
            postings = make_postings(self._tokenizer, rows.texts[part], offset)
            connection.executemany(
                "INSERT INTO documents VALUES (?, ?, ?)", zip(keys, rows.ids[part], rows.metadatas[part], strict=True)
            )
            blobs = vec.to_blobs(rows.vectors[part], self.storage)
            connection.executemany(
                "INSERT INTO bodies VALUES (?, ?, ?)", zip(keys, rows.texts[part], blobs, strict=True)
            )
            write_postings(connection, block, postings)
            lengths = _read_lengths(connection, block)
            lengths[offset : offset + len(keys)] = postings.lengths + 1
            _write_lengths(connection, block, lengths)
            start = part.stop

    # -- merging ------------------------------------------------------------------------------------------------------

    def _merge_if_due(self) -> None:
        with self._db.reading() as connection:
            due = self._is_due(connection, _State.read(connection))
        if due:
            try:
                self._merge(forced=False)
            except IndexBusy:
                logger.info("another writer is at work; the merge is left to it")

    def _is_due(self, connection: Connection, state: "_State") -> bool:
        base = _count_base(connection)
        return state.next_key - 1 - base.last_key > max(MERGE_ROWS, MERGE_SHARE * base.rows)

    def _merge(self, *, forced: bool) -> None:
        """Write the vector file of the next generation and make it known, in one write transaction.

        The file is complete on disk before SQLite names it; a crash in between leaves a stray file and the old state.
        """
        dimension = self.dimension
        if dimension is None:
            return
        with self._db.writing() as connection:
            state = _State.read(connection)
            if not forced and not self._is_due(connection, state):
                return
            _purge(connection, state)
            chunks = _stored_vectors(connection, dimension, self.storage)
            if self.path is None:
                base = vec.build(self._kind, dimension, state.documents, chunks)
                stamp = Stamp(base.kind, 0, b"", base.keys.astype("<i8").tobytes())
                self._in_memory = base
            else:
                file = _vector_file(self.path, state.generation + 1, self._kind, state.documents)
                stamp = vec.write(self._kind, dimension, state.documents, chunks, file)
            _write_stamp(connection, stamp)
            _write_settings(connection, _read_settings(connection) | {"kind": self._kind})
            state.moved(generation=state.generation + 1).write(connection)
        if self.path is not None:
            _sweep(self.path, state.generation + 1)

    # -- views --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _snapshot(self) -> Iterator[tuple[Connection, "_View"]]:
        """A read transaction and the view of exactly its state."""
        while True:
            repair = False
            with self._db.reading() as connection:
                state = _State.read(connection)
                try:
                    view = self._view_at(connection, state)
                except _Unusable:
                    repair = True
                else:
                    if view.sequence == state.sequence:
                        yield connection, view
                        return
            if repair:
                self._merge(forced=True)

    def _view_at(self, connection: Connection, state: "_State") -> "_View":
        """The newest view, brought up to `state`; newer than asked for when another thread was first."""
        with self._view_lock:
            old = self._view
            if old is None or old.sequence < state.sequence:
                self._view = old = self._refreshed(connection, state, old)
            return old

    def _refreshed(self, connection: Connection, state: "_State", old: "_View | None") -> "_View":
        dimension = int(_read_settings(connection).get("dimension", 0))
        if old is not None and old.generation == state.generation:
            base, keys, delta = old.base, old.delta_keys, old.delta
        else:
            base = self._open_base(connection, state, dimension)
            keys, delta = np.empty(0, dtype=np.int64), np.empty((0, dimension), dtype=np.float32)
        last = max(int(part[-1]) for part in (base.keys, keys, [-1]) if len(part))
        for more_keys, more in _stored_vectors(connection, dimension, self.storage, after=last):
            keys, delta = np.concatenate([keys, more_keys]), np.concatenate([delta, more])
        return _View.made(connection, state, base, keys, delta, dimension, self.storage)

    def _open_base(self, connection: Connection, state: "_State", dimension: int) -> Base:
        if not state.generation:
            return _EMPTY_BASE
        if self.path is None:
            return self._in_memory
        stamp = _read_stamp(connection)
        file = _vector_file(self.path, state.generation, stamp.kind, len(stamp.rows()))
        try:
            return vec.load(file, stamp, dimension)
        except DamagedIndex as reason:
            logger.warning("%s; it is built again from %s", reason, self._db.name)
            if not self._db.read_only:
                raise _Unusable from reason
        return vec.build(self._kind, dimension, state.documents, _stored_vectors(connection, dimension, self.storage))

    def _hits(self, connection: Connection, view: "_View", scored: "_Scored", threshold: float | None) -> list[Hit]:
        keep = slice(None) if threshold is None else scored.scores >= threshold
        keys = view.keys_of(scored.slots[keep]).tolist()
        documents = _documents(connection, keys)
        columns = {name: values[keep].tolist() for name, values in scored.parts.items()}
        return [
            Hit(
                id=documents[key].id,
                text=documents[key].text,
                score=score,
                scores={name: values[i] for name, values in columns.items()},
                metadata=documents[key].metadata,
            )
            for i, (key, score) in enumerate(zip(keys, scored.scores[keep].tolist(), strict=True))
        ]


class _Unusable(Exception):
    """The vector file is missing or damaged and has to be built again."""


# -- what a search looks at ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _View:
    """One state of the index in memory; never changed, so searches in other threads may keep it.

    Documents are addressed by *slot*: the place of their block among the blocks that exist, times `BLOCK`, plus the key's
    offset in the block.
    """

    sequence: int
    generation: int
    blocks: np.ndarray  # (blocks,) block numbers, ascending
    lengths: np.ndarray  # (slots,) 1 + terms of the document; 0 where there is none
    base: Base
    base_slots: np.ndarray  # (rows,) slot of each row; -1 for rows of blocks that are gone
    delta_keys: np.ndarray
    delta: np.ndarray  # (delta rows, dimension) unit rows
    delta_slots: np.ndarray
    base_allowed: np.ndarray | None  # (rows,) bool; None when every row of the base is alive
    dimension: int
    storage: Storage
    masks: "OrderedDict[Condition, np.ndarray]" = field(default_factory=OrderedDict)
    masks_lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def made(
        cls,
        connection: Connection,
        state: "_State",
        base: Base,
        delta_keys: np.ndarray,
        delta: np.ndarray,
        dimension: int,
        storage: Storage,
    ) -> "_View":
        rows = connection.execute("SELECT block, lengths FROM blocks ORDER BY block").fetchall()
        blocks = np.array([block for block, _ in rows], dtype=np.int64)
        lengths = np.frombuffer(b"".join(blob for _, blob in rows), dtype="<u4")
        if len(lengths) != len(blocks) * BLOCK:
            raise DamagedIndex("a block of document lengths is not whole; restore the index from a copy")
        base_slots = _slots(blocks, base.keys)
        alive = (lengths[base_slots] > 0) & (base_slots >= 0) if len(lengths) else np.zeros(len(base.keys), bool)
        delta_slots = _slots(blocks, delta_keys)
        return cls(
            state.sequence, state.generation, blocks, lengths, base, base_slots, delta_keys, delta, delta_slots,
            None if alive.all() else alive, dimension, storage,
        )  # fmt: skip

    def keys_of(self, slots: np.ndarray) -> np.ndarray:
        return self.blocks[slots // BLOCK] * BLOCK + slots % BLOCK

    def fetch(self, connection: Connection) -> vec.Fetch:
        return lambda keys: _vectors_of(connection, keys, self.dimension, self.storage)

    def mask(self, connection: Connection, condition: Condition) -> np.ndarray | None:
        """(slots,) bool of the documents that pass a filter; None when there is no filter."""
        if condition.sql == "1":
            return None
        with self.masks_lock:
            if condition in self.masks:
                self.masks.move_to_end(condition)
                return self.masks[condition]
        mask = np.zeros(len(self.lengths), dtype=bool)
        mask[_slots(self.blocks, np.array(_keys_where(connection, condition), dtype=np.int64))] = True
        with self.masks_lock:
            self.masks[condition] = mask
            while len(self.masks) > 16:
                self.masks.popitem(last=False)
        return mask

    def dense(self, connection: Connection, query: "_Query", k: int, mask: np.ndarray | None) -> list[Found]:
        """The k nearest slots and their cosines for every query."""
        if query.vectors is None or not len(self.lengths):
            return [Found.nothing()] * len(query)
        base_allowed = self.base_allowed
        if mask is not None:
            base_allowed = mask[self.base_slots] if base_allowed is None else mask[self.base_slots] & base_allowed
        alive = self.lengths[self.delta_slots] > 0
        delta_allowed = alive if mask is None else alive & mask[self.delta_slots]
        delta = Base("flat", self.delta_keys, self.delta)
        results: list[Found] = []
        for start in range(0, len(query), 64):
            queries = query.vectors[start : start + 64]
            old = self.base.search(queries, k, base_allowed, self.fetch(connection))
            new = delta.search(queries, k, delta_allowed, self.fetch(connection))
            results += [self._merged(a, b, k) for a, b in zip(old, new, strict=True)]
        return results

    def _merged(self, old: Found, new: Found, k: int) -> Found:
        slots = np.concatenate([self.base_slots[old.rows], self.delta_slots[new.rows]])
        scores = np.concatenate([old.scores, new.scores])
        order = np.argsort(-scores, kind="stable")[:k]
        return Found(slots[order], np.clip(scores[order], -1.0, 1.0))

    def vectors(self, connection: Connection, slots: np.ndarray) -> np.ndarray:
        """(len(slots), dimension) unit rows of living documents."""
        keys = self.keys_of(slots)
        rows = np.empty((len(keys), self.dimension), dtype=np.float32)
        last = self.base.keys[-1] if len(self.base.keys) else -1
        old = keys <= last
        if old.any():
            rows[old] = self.base.vectors(np.searchsorted(self.base.keys, keys[old]), self.fetch(connection))
        rows[~old] = self.delta[np.searchsorted(self.delta_keys, keys[~old])]
        return rows


def _slots(blocks: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(n,) slots of keys; -1 for keys of blocks that do not exist."""
    if not len(blocks) or not len(keys):
        return np.full(len(keys), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(blocks, keys // BLOCK), len(blocks) - 1)
    return np.where(blocks[place] == keys // BLOCK, place * BLOCK + keys % BLOCK, -1)


_EMPTY_BASE = Base("flat", np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32))


# -- ranking --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Query:
    """What to search for, checked."""

    mode: Mode
    vectors: np.ndarray | None
    texts: Sequence[str] | None
    k: int
    fetch_k: int

    @classmethod
    def checked(
        cls,
        vectors: Any,
        texts: Sequence[str] | None,
        mode: Mode | None,
        k: int,
        fetch_k: int | None,
        dimension: int | None,
    ) -> "_Query":
        if mode is not None and mode not in get_args(Mode):
            raise InvalidInput(f"unknown mode {mode!r}; there are {', '.join(get_args(Mode))}")
        if vectors is None and texts is None:
            raise InvalidInput("a search needs a vector (dense), a text (lexical) or both (hybrid)")
        if mode is None:
            mode = "lexical" if vectors is None else "dense" if texts is None else "hybrid"
        if mode != "lexical" and vectors is None:
            raise InvalidInput(f"mode {mode!r} needs a query vector; encode the query first, or use mode='lexical'")
        if mode != "dense" and texts is None:
            raise InvalidInput(f"mode {mode!r} needs the query's text; give text=…, or use mode='dense'")
        for name, number in (("k", k), ("fetch_k", fetch_k)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
                raise InvalidInput(f"{name} is a whole number, 0 or more, not {number!r}")
        if texts is not None and (isinstance(texts, str) or not all(isinstance(text, str) for text in texts)):
            raise InvalidInput("query texts must be a list of strings")
        rows = None if mode == "lexical" else vec.unit_rows(vectors, dimension, what="query vector")
        if mode == "hybrid" and rows is not None and texts is not None and len(rows) != len(texts):
            raise InvalidInput(f"{len(rows)} query vectors but {len(texts)} query texts")
        return cls(
            mode, rows, None if mode == "dense" else texts, k, max(k, max(100, 4 * k) if fetch_k is None else fetch_k)
        )

    def __len__(self) -> int:
        return len(self.texts) if self.texts is not None else len(self.vectors) if self.vectors is not None else 0


@dataclass(frozen=True, slots=True)
class _Scored:
    """(m,) slots, best first, with the score they are ordered by and the component scores."""

    slots: np.ndarray
    scores: np.ndarray
    parts: Mapping[str, np.ndarray]


def _rank(
    connection: Connection,
    view: _View,
    query: _Query,
    mask: np.ndarray | None,
    weigh: Any,
    weights: Weights | None,
    method: Method,
) -> Iterator[_Scored]:
    if not query.k or not len(view.lengths):
        empty = Found.nothing()
        yield from [_Scored(empty.rows, empty.scores, {})] * len(query)
        return
    if query.mode == "dense":
        for found in view.dense(connection, query, query.k, mask):
            yield _Scored(found.rows, found.scores, {"dense": found.scores})
        return
    dense = view.dense(connection, query, query.fetch_k, mask) if query.mode == "hybrid" else [None] * len(query)
    for row, text in enumerate(query.texts or ()):
        scores = bm25(connection, weigh(text), view.blocks, view.lengths)
        allowed = (
            np.where(scores > 0, scores, -np.inf) if mask is None else np.where(mask & (scores > 0), scores, -np.inf)
        )
        near = dense[row]
        if near is None:
            top = vec.best(allowed, query.k)
            yield _Scored(top, scores[top], {"lexical": scores[top]})
        else:
            top = vec.best(allowed, query.fetch_k)
            assert query.vectors is not None
            yield _fused(
                connection, view, query.vectors[row], near, Found(top, scores[top]), scores, query.k, weights, method
            )


def _fused(
    connection: Connection,
    view: _View,
    vector: np.ndarray,
    near: Found,
    matched: Found,
    lexical: np.ndarray,
    k: int,
    weights: Weights | None,
    method: Method,
) -> _Scored:
    """Fuse two candidate lists, then look up the component score that one of them lacks."""
    rankings = {
        name: dict(zip(found.rows.tolist(), found.scores.tolist(), strict=True))
        for name, found in (("dense", near), ("lexical", matched))
    }
    fused = list(fuse(rankings, weights, method=method).items())[:k]
    slots = np.array([slot for slot, _ in fused], dtype=np.int64)
    scores = np.array([score for _, score in fused], dtype=np.float64)
    dense = np.clip(view.vectors(connection, slots) @ vector, -1.0, 1.0)
    return _Scored(slots, scores, {"dense": dense, "lexical": lexical[slots], "fused": scores})


def _marginal(nearness: np.ndarray, likeness: np.ndarray, k: int, diversity: float) -> list[int]:
    """Places chosen by maximal marginal relevance. nearness: (n,), likeness: (n, n)."""
    chosen: list[int] = []
    worst = np.zeros(len(nearness), dtype=np.float32)  # likeness to the most alike that was chosen
    for _ in range(k):
        gain = (1 - diversity) * nearness - diversity * worst
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        worst = likeness[chosen[-1]] if len(chosen) == 1 else np.maximum(worst, likeness[chosen[-1]])
    return chosen


# -- rows of the SQLite file ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _State:
    """The one row that says where the index stands; its sequence grows with every commit."""

    sequence: int
    next_key: int
    documents: int
    generation: int

    @classmethod
    def read(cls, connection: Connection) -> "_State":
        row = connection.execute("SELECT sequence, next_key, documents, generation FROM state").fetchone()
        if row is None:
            raise DamagedIndex("the index's state is missing from its SQLite file; restore it from a copy")
        return cls(*row)

    def moved(self, *, documents: int = 0, next_key: int | None = None, generation: int | None = None) -> "_State":
        return _State(
            self.sequence + 1,
            self.next_key if next_key is None else next_key,
            self.documents + documents,
            self.generation if generation is None else generation,
        )

    def write(self, connection: Connection) -> None:
        connection.execute(
            "UPDATE state SET sequence = ?, next_key = ?, documents = ?, generation = ?",
            (self.sequence, self.next_key, self.documents, self.generation),
        )


@dataclass(frozen=True, slots=True)
class _BaseCount:
    rows: int
    last_key: int


def _count_base(connection: Connection) -> _BaseCount:
    row = connection.execute("SELECT length(keys) / 8, substr(keys, -8) FROM base").fetchone()
    if row is None or not row[0]:
        return _BaseCount(0, -1)
    return _BaseCount(int(row[0]), int.from_bytes(row[1], "little"))


def _read_stamp(connection: Connection) -> Stamp:
    row = connection.execute("SELECT kind, size, checksums, keys FROM base").fetchone()
    if row is None:
        raise DamagedIndex("the record of the vector file is missing from the SQLite file; restore it from a copy")
    return Stamp(*row)


def _write_stamp(connection: Connection, stamp: Stamp) -> None:
    values = (stamp.kind, stamp.size, stamp.checksums, stamp.keys)
    connection.execute("INSERT OR REPLACE INTO base VALUES (1, ?, ?, ?, ?)", values)


def _read_settings(connection: Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, value FROM meta").fetchall())


def _write_settings(connection: Connection, settings: Mapping[str, str]) -> None:
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(settings.items()))


def _read_lengths(connection: Connection, block: int) -> np.ndarray:
    row = connection.execute("SELECT lengths FROM blocks WHERE block = ?", (block,)).fetchone()
    return np.zeros(BLOCK, dtype="<u4") if row is None else np.frombuffer(row[0], dtype="<u4").copy()


def _write_lengths(connection: Connection, block: int, lengths: np.ndarray) -> None:
    connection.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?)", (block, lengths.astype("<u4").tobytes()))


def _keys_of_ids(connection: Connection, ids: Sequence[str]) -> list[int]:
    keys: list[int] = []
    for part in in_chunks(ids):
        marks = ",".join("?" * len(part))
        keys += [key for (key,) in connection.execute(f"SELECT key FROM documents WHERE id IN ({marks})", part)]
    return keys


def _keys_where(connection: Connection, condition: Condition) -> list[int]:
    sql = f"SELECT key FROM documents WHERE {condition.sql} ORDER BY key"
    return [key for (key,) in connection.execute(sql, condition.parameters)]


def _remove(connection: Connection, keys: Sequence[int]) -> int:
    """Take documents out; their postings stay, masked by a length of 0, until the block is purged."""
    for table in ("documents", "bodies"):
        connection.executemany(f"DELETE FROM {table} WHERE key = ?", [(key,) for key in keys])
    by_block: dict[int, list[int]] = {}
    for key in keys:
        by_block.setdefault(key // BLOCK, []).append(key % BLOCK)
    for block, offsets in by_block.items():
        lengths = _read_lengths(connection, block)
        lengths[offsets] = 0
        _write_lengths(connection, block, lengths)
    return len(keys)


def _purge(connection: Connection, state: _State) -> None:
    """Drop the blocks whose documents are all gone."""
    for (block,) in connection.execute("SELECT block FROM blocks").fetchall():
        if block != state.next_key // BLOCK and not _read_lengths(connection, block).any():
            connection.execute("DELETE FROM postings WHERE block = ?", (block,))
            connection.execute("DELETE FROM blocks WHERE block = ?", (block,))


def _documents(connection: Connection, keys: Sequence[int]) -> dict[int, Record]:
    """Records by key, in the order of the keys."""
    rows: dict[int, Record] = {}
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        marks = ",".join("?" * len(part))
        sql = f"SELECT key, id, text, metadata FROM documents JOIN bodies USING (key) WHERE key IN ({marks})"
        found = {key: Record(name, text, json.loads(meta)) for key, name, text, meta in connection.execute(sql, part)}
        rows.update((key, found[key]) for key in part if key in found)
    return rows


def _vectors_of(connection: Connection, keys: np.ndarray, dimension: int, storage: Storage) -> np.ndarray:
    blobs: dict[int, bytes] = {}
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500].tolist()
        marks = ",".join("?" * len(part))
        blobs.update(connection.execute(f"SELECT key, vector FROM bodies WHERE key IN ({marks})", part))
    return vec.from_blobs([blobs[key] for key in keys.tolist()], dimension, storage)


def _stored_vectors(
    connection: Connection, dimension: int, storage: Storage, after: int = -1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All (n,) keys greater than `after` and their (n, dimension) vectors, a few thousand at a time."""
    cursor = connection.execute("SELECT key, vector FROM bodies WHERE key > ? ORDER BY key", (after,))
    while rows := cursor.fetchmany(4096):
        keys = np.array([key for key, _ in rows], dtype=np.int64)
        yield keys, vec.from_blobs([blob for _, blob in rows], dimension, storage)


# -- files and checks -------------------------------------------------------------------------------------------------------

_DEFAULTS = {"identity": UNKNOWN, "metric": METRIC, "tokenizer": "bigram", "storage": "float32", "kind": "flat"}

_CURES = {
    "identity": "open it with the model that made it, or index the documents again in another folder",
    "dimension": "use the model that made it, or index the documents again in another folder",
    "tokenizer": "leave tokenizer out to use the stored one, or index the documents again in another folder",
    "storage": "leave storage out to use the stored one, or index the documents again in another folder",
    "metric": "index the documents again in another folder",
}


def _mismatch(name: str, setting: str, stored: str, given: str) -> str:
    return f"the index at {name} was made with {setting} {stored!r}, but {given!r} was asked for; {_CURES[setting]}"


def _sqlite_file(path: Path | None, read_only: bool) -> Path | None:
    if path is None:
        if read_only:
            raise InvalidInput("an index in memory cannot be read_only: it would stay empty. Give a path")
        return None
    if path.exists() and not path.is_dir():
        raise InvalidInput(f"{path} is a file; an index is a folder, give the path of one (or of none yet)")
    if read_only and not (path / FILE_NAME).is_file():
        raise DamagedIndex(f"there is no index at {path} ({FILE_NAME} is missing), and read_only=True cannot make one")
    path.mkdir(parents=True, exist_ok=True)
    return path / FILE_NAME


def _vector_file(path: Path, generation: int, kind: Kind, rows: int) -> Path:
    return path / f"vectors-{generation}"


def _sweep(path: Path, generation: int) -> None:
    """Remove vector files of other generations; one that is still mapped elsewhere stays readable there."""
    for file in path.glob("vectors-*"):
        if file.name != f"vectors-{generation}":
            try:
                file.unlink()
            except OSError as error:
                logger.info("%s is left behind: %s", file, error)


def _check_choices(kind: str | None, storage: str | None, dimension: int | None) -> None:
    for name, value, known in (("kind", kind, vec.KINDS), ("storage", storage, vec.STORAGES)):
        if value is not None and value not in known:
            raise InvalidInput(f"unknown {name} {value!r}; there are {', '.join(known)}")
    if dimension is not None and (not isinstance(dimension, int) or dimension < 1):
        raise InvalidInput(f"dimension is a whole number, 1 or more, not {dimension!r}")


@dataclass(frozen=True, slots=True)
class _Rows:
    """Documents to write, checked, each id once."""

    ids: Sequence[str]
    texts: Sequence[str]
    vectors: np.ndarray
    metadatas: Sequence[str]


def _checked_rows(ids: Any, texts: Any, vectors: Any, metadatas: Any, dimension: int | None) -> _Rows:
    names, bodies = _checked_ids(ids), list(_checked_texts(texts))
    rows = vec.unit_rows(vectors, dimension)
    metas = [
        _metadata_json(row, meta)
        for row, meta in enumerate(metadatas if metadatas is not None else [None] * len(names))
    ]
    if not len(names) == len(bodies) == len(rows) == len(metas):
        raise InvalidInput(
            f"{len(names)} ids, {len(bodies)} texts, {len(rows)} vectors and {len(metas)} metadatas: one of each per document"
        )
    last = {name: row for row, name in enumerate(names)}
    if len(last) == len(names):
        return _Rows(names, bodies, rows, metas)
    keep = sorted(last.values())
    return _Rows([names[i] for i in keep], [bodies[i] for i in keep], rows[keep], [metas[i] for i in keep])


def _checked_ids(ids: Any) -> list[str]:
    if isinstance(ids, str | bytes):
        raise InvalidInput(f"ids is a list of strings, not the single {ids[:80]!r}")
    names = list(ids)
    for row, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise InvalidInput(f"id {row} is {name!r}; an id is a non-empty string")
        _check_unicode(name, f"id {row}")
    return names


def _checked_texts(texts: Any) -> Iterator[str]:
    if isinstance(texts, str | bytes):
        raise InvalidInput(f"texts is a list of strings, not the single {texts[:80]!r}")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInput(f"text {row} is {text!r}; a text is a string")
        _check_unicode(text, f"text {row}")
        yield text


def _check_unicode(text: str, what: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{what} holds a lone surrogate at {error.start}: it is no valid Unicode; clean it first"
        ) from error


def _metadata_json(row: int, metadata: Any) -> str:
    if metadata is None:
        return "{}"
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise InvalidInput(f"metadata {row} must be a dict with string keys, not {str(metadata)[:80]}")
    try:
        written = dumps(dict(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"metadata {row} cannot be kept as JSON: {error}; use strings, numbers, bools, lists, dicts"
        ) from error
    _check_unicode(written, f"metadata {row}")
    return written
