"""`PEGIndex`: documents, vectors and terms behind one transaction; dense, lexical and hybrid search.

An embedded index for one machine: a folder with one SQLite file (the source of truth) and one segment file of vectors
(derived from it, mapped into memory). A write is visible to every process at its next query, and no acknowledged write
is lost in a crash. Filters are applied before the search, so a rare filter still finds its k documents.

A search looks at the segment and at the delta, the documents written since the segment was built; deleted documents are
masked. Compaction folds both into a new segment, on `persist()` or by itself after a write when enough has changed.

Cost: on disk, 8 bytes per number of a vector (SQLite and segment file), the text, and about 1 kB of postings per 200
characters. In memory, the mapped segment, 20 bytes per document, and up to 64 MiB of the vectors written since the last
compaction; of a `flat` segment of more than 16 MiB that is searched often, also a copy as int8, 1 byte per number. A
write takes one fsync.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Self, cast

import numpy as np

from peg_rag.errors import DamagedIndex, IndexMismatch, InvalidInput
from peg_rag.extras import require
from peg_rag.files import sync_folder
from peg_rag.hits import Hit
from peg_rag.index import tables
from peg_rag.index.compaction import Compactor
from peg_rag.index.database import Database
from peg_rag.index.encodings import STORAGES, Array, Storage, to_blobs
from peg_rag.index.filters import compile_filter
from peg_rag.index.fusion import Method
from peg_rag.index.ranking import Ranking, ScoredSlots, Weights
from peg_rag.index.segment import KINDS, Kind
from peg_rag.index.snapshot import Snapshot, SnapshotCache
from peg_rag.index.tables import Documents, EncodedDocuments, IndexState, Record
from peg_rag.index.term_weights import BundledTermWeights, TermWeights, find_term_weights
from peg_rag.index.tokenizers import get_tokenizer
from peg_rag.index.validation import DocumentBatch, Mode, QueryBatch, validate_count, validate_ids

__all__ = ["UNKNOWN", "Mode", "PEGIndex", "Record"]

UNKNOWN = "unknown"
FILE_NAME = "index.sqlite"

_METRIC = "cosine"
_DEFAULTS = {"identity": UNKNOWN, "metric": _METRIC, "tokenizer": "bigram", "storage": "float32", "kind": "flat"}


class PEGIndex:
    """A persistent, incremental index of texts, vectors and metadata; in memory without a path.

    Safe to use from many threads and many processes at once: one writes at a time, the others read. A forked child has
    to open its own; an inherited index raises `ForkedIndex`. `with PEGIndex(…) as index:` closes it at the end, but no
    write depends on closing.
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
        term_weights: TermWeights | BundledTermWeights | None = None,
        read_only: bool = False,
        timeout_s: float = 10.0,
    ) -> None:
        """Open the index at `path`, or create it.

        Args:
            path: a folder, created if it does not exist. None: an index in memory, lost when closed.
            identity: names the model of the vectors (`PEGEncoder.identity`); stored with a new index (as "unknown" when
                None) and compared with the stored one later. None opens any index.
            dimension: of the vectors; None: that of the first vectors written.
            tokenizer: how texts are split into terms, `bigram` (default for a new index) or `jieba`.
            kind: how vectors are searched: `flat` (default for a new index; exact), `hnsw` or `ivfpq` (both need
                FAISS). An existing index of another kind is converted by the next `persist()`.
            storage: the encoding of vectors in SQLite: `float32` (default for a new index), `float16` or `int8`. Scores
                are cosines with the decoded vectors.
            term_weights: learned weights for the terms of queries (`peg_rag.index.term_weights`): `mini`, the bundled
                ones, or your own; for the `bigram` tokenizer. Nothing of it is stored: any index can be opened with it.
            read_only: refuse to write, and never create or repair a file; works on a read-only mount, too.
            timeout_s: how long to wait for another writer before `IndexBusy`.

        Raises:
            IndexMismatch: identity, dimension, tokenizer or storage differ from those of the index.
            DamagedIndex: the SQLite file cannot be read.
            ForkedIndex: a thread of the parent was using the index when this process was forked.
            InvalidInput: an unknown name, `path` is a file, `read_only` without an existing index, or learned weights
                for terms of another tokenizer.
            MissingExtra: FAISS or jieba is needed and not installed.
        """
        _check_options(kind, storage, dimension)
        self.path = Path(path) if path is not None else None
        self._db = Database(_prepare_folder(self.path, read_only), read_only=read_only, timeout_s=timeout_s)
        options = {
            "identity": identity,
            "dimension": dimension,
            "tokenizer": tokenizer,
            "storage": storage,
            "kind": kind,
        }
        try:
            settings = self._reconcile_settings(
                {name: str(value) for name, value in options.items() if value is not None}
            )
            self._tokenizer = get_tokenizer(settings["tokenizer"])
            self._term_weights = find_term_weights(term_weights, self._tokenizer)
        except BaseException:
            self._db.close()
            raise
        self._compactor = Compactor(
            self._db,
            self.path,
            self._tokenizer,
            kind=kind or cast(Kind, settings["kind"]),
            storage=cast(Storage, settings["storage"]),
        )
        self._snapshots = SnapshotCache(self._db, self._compactor)
        self._remember_settings(settings)

    # -- properties ---------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """The model that made the vectors; "unknown" if none was named."""
        return self._settings["identity"]

    @property
    def dimension(self) -> int | None:
        """Dimension of the vectors; None until the first are written."""
        if "dimension" not in self._settings:
            with self._db.reading() as connection:
                self._remember_settings(tables.read_settings(connection))
        return int(self._settings["dimension"]) if "dimension" in self._settings else None

    @property
    def tokenizer(self) -> str:
        """How texts are split into terms: `bigram` or `jieba`."""
        return self._settings["tokenizer"]

    @property
    def storage(self) -> Storage:
        """The encoding of vectors in SQLite: `float32`, `float16` or `int8`."""
        return cast(Storage, self._settings["storage"])

    @property
    def kind(self) -> Kind:
        """How vectors are searched: `flat`, `hnsw` or `ivfpq`."""
        return self._compactor.kind

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self._db.read_only

    def __len__(self) -> int:
        with self._db.reading() as connection:
            return IndexState.read(connection).documents

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
        """Insert documents, replacing those with the same id. All of them or, on an error, none.

        When it returns they are on disk, and visible to every reader at its next query.

        Args:
            ids: (n,) non-empty strings. Of a repeated id, the last document is stored.
            texts: (n,) strings, stored unchanged.
            vectors: (n, dimension) numbers; normalised to length 1 here.
            metadatas: (n,) dicts that JSON can represent, or None.

        Raises:
            InvalidInput: the lengths differ, or a row is invalid (the message names it).
            IndexBusy: another writer holds the index for longer than `timeout_s`.
            OSError: the disk is full; the index is as before.
        """
        batch = DocumentBatch.validate(ids, texts, vectors, metadatas, self.dimension)
        if not len(batch):
            return
        with self._db.writing() as connection:
            self._confirm_settings(connection, batch.vectors.shape[1])
            state = IndexState.read(connection)
            replaced_keys = tables.find_keys_of_ids(connection, batch.ids) if state.documents else []
            replaced = tables.delete_documents(connection, replaced_keys)
            blobs = to_blobs(batch.vectors, self.storage)
            documents = EncodedDocuments(batch.ids, batch.texts, batch.metadatas, blobs)
            tables.insert_documents(connection, self._tokenizer, state.next_key, documents)
            state.advance(
                next_key=state.next_key + len(batch), documents=state.documents + len(batch) - replaced
            ).write(connection)
        self._compactor.remember_vectors(state.next_key, batch.vectors)
        self._compactor.compact_if_due()

    def delete(self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Delete the documents with these ids, or those that match a filter; unknown ids are ignored.

        Returns:
            How many documents were deleted.

        Raises:
            InvalidInput: neither ids nor a filter, both, or an empty filter (`clear()` deletes everything).
        """
        if (ids is None) == (where is None) or where == {}:
            raise InvalidInput("delete takes either ids or a non-empty filter (where=…); clear() deletes everything")
        names = validate_ids(ids) if ids is not None else []
        condition = compile_filter(where) if where is not None else None
        with self._db.writing() as connection:
            if condition is None:
                keys = tables.find_keys_of_ids(connection, names)
            else:
                keys = tables.find_keys(connection, condition)
            deleted = tables.delete_documents(connection, keys)
            if deleted:
                state = IndexState.read(connection)
                state.advance(documents=state.documents - deleted).write(connection)
        if deleted:
            self._compactor.compact_if_due()
        return deleted

    def clear(self) -> None:
        """Delete all documents; the settings (model, dimension, tokenizer) stay."""
        with self._db.writing() as connection:
            tables.delete_all_documents(connection)
            IndexState.read(connection).advance(documents=0).write(connection)
        self._compactor.compact_if_due()

    def persist(self) -> None:
        """Fold all changes so far into a new vector file (in memory: a new matrix).

        Writes are durable without it; it makes opening and searching faster.

        Raises:
            IndexBusy: another writer holds the index for longer than `timeout_s`.
            OSError: there is no room for the vector file; the index is as before.
        """
        self._compactor.compact_changes()

    def close(self) -> None:
        """Close the files. The index cannot be used afterwards; closing twice is harmless."""
        self._db.close()
        self._snapshots.clear()
        self._compactor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(
        self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> list[Record]:
        """The documents with these ids, in their order and without unknown ids; or all that match a filter.

        Args:
            where: a filter; {} matches every document. The oldest come first.
            limit: the largest number of documents to return.

        Raises:
            InvalidInput: neither ids nor a filter, both, or a negative limit.
        """
        if (ids is None) == (where is None):
            raise InvalidInput("get takes either ids or a filter (where=…; {} for every document)")
        limit = None if limit is None else validate_count(limit, "limit")
        names = validate_ids(ids) if ids is not None else []
        condition = compile_filter(where) if where is not None else None
        with self._db.reading() as connection:
            if condition:
                keys = tables.find_keys(connection, condition)[:limit]
                return list(tables.read_records(connection, keys).values())
            records = tables.read_records(connection, tables.find_keys_of_ids(connection, names))
        by_id = {record.id: record for record in records.values()}
        return [by_id[name] for name in names if name in by_id][:limit]

    def ids(self, where: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of all documents, or of those that match a filter, oldest first."""
        condition = compile_filter(where or {})
        with self._db.reading() as connection:
            return tables.find_ids(connection, condition)

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many documents there are, or match a filter."""
        condition = compile_filter(where or {})
        with self._db.reading() as connection:
            return tables.count_documents(connection, condition)

    def export(self, ids: Sequence[str] | None = None, *, batch_size: int = 1000) -> Iterator[Documents]:
        """The documents with these ids, or all, with their vectors, oldest first, `batch_size` at a time.

        Each batch is read by itself, so that a long export holds up nobody: a document that is replaced meanwhile may
        come twice, the later one last. Unknown ids are left out.
        """
        size = max(validate_count(batch_size, "batch_size"), 1)
        if ids is not None:
            names = validate_ids(ids)
            for start in range(0, len(names), size):
                with self._db.reading() as connection:
                    keys = sorted(tables.find_keys_of_ids(connection, names[start : start + size]))
                    documents = self._read_documents(connection, keys)
                if len(documents):
                    yield documents
            return
        key = -1
        while True:
            with self._db.reading() as connection:
                keys = tables.find_keys_after(connection, key, size)
                if not keys:
                    return
                documents = self._read_documents(connection, keys)
            yield documents
            key = keys[-1]

    def _read_documents(self, connection: Connection, keys: Sequence[int]) -> Documents:
        return tables.read_documents(connection, keys, self.dimension or 0, self.storage)

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
        """The k best documents for one query, best first; equal scores in order of age.

        Args:
            vector: (dimension,) query vector, for `dense` and `hybrid`.
            text: the query's text, for `lexical` and `hybrid`.
            k: how many hits; all documents when k is larger than the index.
            mode: `dense` (cosine), `lexical` (BM25; only documents with a term of the query) or `hybrid` (both, fused).
                None: hybrid with both vector and text, else the one that fits.
            where: a filter on the metadata (see `peg_rag.index.filters`), applied before the search.
            threshold: drop hits with a lower `score`.
            weights: for `hybrid`: the weights of `dense` and `lexical`, or a function of the rankings; None: the side
                whose best hit stands out more weighs more (`peg_rag.index.fusion.favour_lexical`).
            fetch_k: for `hybrid`: how many candidates each side contributes; None: the larger of 100 and 4 k.
            fusion: for `hybrid`: `convex` (min-max normalised scores, averaged) or `rrf` (reciprocal ranks).

        Returns:
            Hits whose `scores` hold `dense`, `lexical` and `fused` as far as the mode computes them. In `hybrid` every
            hit has both `dense` and `lexical` (a BM25 of 0: no common term).

        Raises:
            InvalidInput: the mode's query is missing, a vector of the wrong dimension, a bad filter, a negative k.
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
        queries = QueryBatch.validate(vectors, texts, mode, k, fetch_k, self.dimension)
        condition = compile_filter(where or {})
        with self._snapshots.open() as (connection, snapshot):
            mask = snapshot.build_mask(connection, condition)
            ranking = Ranking(snapshot, mask, self._tokenizer, weights, fusion, self._term_weights)
            return [_build_hits(connection, snapshot, best, threshold) for best in ranking.rank(connection, queries)]

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
        """k of the fetch_k nearest documents, each chosen to be near the query and unlike those chosen before it.

        Args:
            diversity: 0 (relevance only, as `search`) to 1 (diversity only); LangChain's `lambda_mult` is 1 minus this.

        Returns:
            Hits in the order in which they were chosen; `score` is the cosine with the query.

        Source: Carbonell and Goldstein, The Use of MMR, Diversity-Based Reranking, SIGIR 1998.
        """
        if not 0 <= diversity <= 1:
            raise InvalidInput(f"diversity is between 0 and 1, not {diversity}")
        queries = QueryBatch.validate([vector], None, "dense", k, fetch_k, self.dimension)
        condition = compile_filter(where or {})
        with self._snapshots.open() as (connection, snapshot):
            ranking = Ranking(snapshot, snapshot.build_mask(connection, condition), self._tokenizer)
            best = ranking.rank_diverse(connection, queries, diversity)
            return _build_hits(connection, snapshot, best, threshold)

    # -- settings -----------------------------------------------------------------------------------------------------

    def _reconcile_settings(self, options: dict[str, str]) -> dict[str, str]:
        """The stored settings, after comparing them with the options. A new index adopts the options."""
        with self._db.reading() as connection:
            stored = tables.read_settings(connection)
        if _is_undecided(stored, options) and not self._db.read_only:
            with self._db.writing() as connection:
                stored = tables.read_settings(connection)
                if _is_undecided(stored, options):
                    stored = _DEFAULTS | stored | options
                    tables.write_settings(connection, stored)
        if not stored:
            raise DamagedIndex(f"{self._db.name} was not created completely; open it for writing once to finish it")
        self._check_settings(stored, options)
        return stored

    def _check_settings(self, stored: Mapping[str, str], options: Mapping[str, str]) -> None:
        expected = {"metric": _METRIC, **options}
        for name, hint in _HINTS.items():
            if name in stored and name in expected and stored[name] != expected[name]:
                raise IndexMismatch(
                    f"{self._db.name} was made with {name} {stored[name]!r}, not {expected[name]!r}; {hint}"
                )

    def _confirm_settings(self, connection: Connection, dimension: int) -> None:
        """In a write: store the dimension of the first vectors, and adopt what another process has stored meanwhile."""
        stored = tables.read_settings(connection)
        self._check_settings(stored, {"identity": self.identity, "dimension": str(dimension)})
        if "dimension" not in stored:
            stored["dimension"] = str(dimension)
            tables.write_settings(connection, stored)
        self._remember_settings(stored)

    def _remember_settings(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self._compactor.stored_kind = settings["kind"]


_HINTS = {
    "metric": "index the documents again in another folder",
    "identity": "open it with the model that made it, or index the documents again in another folder",
    "dimension": "use the model that made it, or index the documents again in another folder",
    "tokenizer": "leave tokenizer out to use the stored one, or index the documents again in another folder",
    "storage": "leave storage out to use the stored one, or index the documents again in another folder",
}


def _is_undecided(stored: Mapping[str, str], options: Mapping[str, str]) -> bool:
    """Whether an index is new, or still empty and without a named model, so that it may adopt the options."""
    return not stored or ("dimension" not in stored and stored["identity"] == UNKNOWN and bool(options))


def _build_hits(connection: Connection, snapshot: Snapshot, ranking: ScoredSlots, threshold: float | None) -> list[Hit]:
    # Compare as float64, the type of a hit's score: NumPy would round the threshold to float32.
    keep = slice(None) if threshold is None else ranking.scores.astype(np.float64) >= threshold
    keys = snapshot.blocks.keys_of_slots(ranking.slots[keep]).tolist()
    records = tables.read_records(connection, keys)
    scores = ranking.scores[keep].tolist()
    components = {name: values[keep].tolist() for name, values in ranking.components.items()}
    return [
        Hit(
            id=records[key].id,
            text=records[key].text,
            score=scores[rank],
            scores={name: values[rank] for name, values in components.items()},
            metadata=records[key].metadata,
        )
        for rank, key in enumerate(keys)
    ]


def _check_options(kind: str | None, storage: str | None, dimension: int | None) -> None:
    for name, value, choices in (("kind", kind, KINDS), ("storage", storage, STORAGES)):
        if value is not None and value not in choices:
            raise InvalidInput(f"unknown {name} {value!r}; there are {', '.join(choices)}")
    if kind in ("hnsw", "ivfpq"):
        require("faiss", "faiss")
    if dimension is not None and validate_count(dimension, "dimension") < 1:
        raise InvalidInput(f"dimension is a whole number, 1 or more, not {dimension!r}")


def _prepare_folder(path: Path | None, read_only: bool) -> Path | None:
    """Create the folder of an index where allowed, and return the path of its SQLite file."""
    if path is None:
        if read_only:
            raise InvalidInput("an index in memory cannot be read_only: it would stay empty. Give a path")
        return None
    if path.exists() and not path.is_dir():
        raise InvalidInput(f"{path} is a file; an index is a folder: give a folder, which may not exist yet")
    if read_only and not (path / FILE_NAME).is_file():
        raise InvalidInput(f"there is no index at {path} ({FILE_NAME} is missing), and read_only=True creates none")
    _create_folder(path)
    return path / FILE_NAME


def _create_folder(path: Path) -> None:
    """Create a folder durably: SQLite syncs what is in it, but not its entry in the parent folder."""
    if path.is_dir():
        return
    _create_folder(path.absolute().parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.absolute().parent)
