"""`MilvusStore`: documents in Milvus, from the file of Milvus Lite to a cluster, by the same client.

A document is a row with its vector, its text, its terms as a sparse vector, and what filters may ask of its metadata.
BM25 is an inner product of sparse vectors (`peg_rag.stores.milvus_terms`), so a score depends on the documents and not
on how the server has laid them out.

Milvus has no transactions: a write of more than `BATCH` documents is several, each whole, and the counts of terms are
written after the documents. When a program dies between them, the counts stay a little off, until `recount()`.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args
from urllib.parse import unquote, urlsplit

import numpy as np

from peg_rag.errors import InvalidInput, PegRagError, StoreError
from peg_rag.extras import require
from peg_rag.index.encodings import Array
from peg_rag.index.tables import Documents, Record
from peg_rag.index.tokenizers import Tokenizer, get_tokenizer
from peg_rag.index.validation import DocumentBatch, validate_count, validate_ids
from peg_rag.stores.conditions import Test, parse_filter
from peg_rag.stores.milvus_filters import (
    ALWAYS,
    FilterTester,
    compile_expression,
    hash_text,
    list_facts,
    pick_numbers,
)
from peg_rag.stores.milvus_terms import (
    TermChange,
    TermStatistics,
    choose_average,
    count_terms,
    make_rows,
    pack_entries,
    weigh_document,
)
from peg_rag.stores.searching import ServerStore, View
from peg_rag.stores.settings import reconcile_settings
from peg_rag.stores.urls import StoreUrl

if TYPE_CHECKING:
    from pymilvus import MilvusClient

Kind = Literal["flat", "hnsw"]
MAX_BYTES = 65_535  # of a string
MAX_FACTS = 4096
MAX_HITS = 16_384  # of one search
BATCH = 1000
_KEYS_AT_A_TIME = 1000
_INDEX_TYPES = {"flat": "FLAT", "hnsw": "HNSW"}
_START_S = 60.0  # that Milvus Lite may take to start; it lives in this process
_FEW_ROWS = 100  # up to which one request reads the counts; an iterator over more costs several
_PROPERTY = "peg_rag.settings"  # of the collection


class AgedKey(NamedTuple):
    """When a document was written, then the number of its id: keys sort by age."""

    age: int
    key: int


class MilvusStore(ServerStore):
    """A store in Milvus; see `peg_rag.stores.Store` for its methods. Safe to use from many threads."""

    def __init__(
        self,
        url: str,
        *,
        identity: str | None = None,
        dimension: int | None = None,
        tokenizer: str | None = None,
        kind: Kind | None = None,
        read_only: bool = False,
        timeout_s: float = 10.0,
    ) -> None:
        """Open the store at a URL. Its collection is created by the first write, when the dimension is known.

        Args:
            url: `milvus://user:password@host:19530/database?collection=name`, with `&secure=true` for TLS; a token
                stands in the place of the user. `milvus:///path/to/file.db?collection=name` for Milvus Lite, which one
                process has open at a time.
            identity: names the model of the vectors (`PEGEncoder.identity`); stored with a new store and compared with
                the stored one later. None opens any store.
            dimension: of the vectors; None: that of the first vectors written.
            tokenizer: how texts are split into terms, `bigram` (default for a new store) or `jieba`.
            kind: how vectors are searched: `flat` (default for a new store; exact) or `hnsw`. A store of another kind
                is converted by the next `persist()`.
            read_only: refuse to write.
            timeout_s: how long to wait for the server.

        Raises:
            IndexMismatch: identity, dimension or tokenizer differ from those of the store.
            InvalidInput: an unknown name, or `read_only` without an existing store.
            StoreError: the server cannot be reached.
            MissingExtra: pymilvus, or milvus-lite for a file, is not installed.
        """
        self._milvus = require("pymilvus", "milvus")
        if kind is not None and kind not in get_args(Kind):
            raise InvalidInput(f"unknown kind {kind!r}; Milvus has {', '.join(get_args(Kind))}")
        location = StoreUrl.parse(url)
        self.url = location.shown
        self.read_only = read_only
        self._name = location.collection
        self._counts = f"{location.collection}_term_counts"
        self._statistics = TermStatistics()
        self._statistics_lock = threading.Lock()
        with self._translate_errors():
            self._client: MilvusClient = self._milvus.MilvusClient(
                **_list_client_options(location.server), timeout=timeout_s
            )
        try:
            options = {"identity": identity, "dimension": dimension, "tokenizer": tokenizer, "kind": kind}
            stored = self._read_settings()
            if stored:
                self._load_collections()
            if read_only and not stored:
                raise InvalidInput(f"there is no store at {self.url}, and read_only=True creates none")
            self._settings = reconcile_settings(stored, options, self.url)
            self._kind: Kind = kind or self._settings["kind"]  # type: ignore[assignment]
            self._tokenizer = get_tokenizer(self._settings["tokenizer"])
        except BaseException:
            self._client.close()
            raise

    # -- properties ---------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> str:
        """The model that made the vectors; "unknown" if none was named."""
        return self._settings["identity"]

    @property
    def dimension(self) -> int | None:
        """Dimension of the vectors; None until the first are written."""
        if "dimension" not in self._settings:
            self._settings = self._settings | self._read_settings()
        return int(self._settings["dimension"]) if "dimension" in self._settings else None

    @property
    def tokenizer(self) -> str:
        """How texts are split into terms: `bigram` or `jieba`."""
        return self._settings["tokenizer"]

    @property
    def kind(self) -> Kind:
        """How vectors are searched: `flat` or `hnsw`."""
        return self._kind

    def __repr__(self) -> str:
        return f"MilvusStore({self.url!r}, kind={self.kind!r}, identity={self.identity!r})"

    # -- writing ------------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Delete all documents; the settings (model, dimension, tokenizer) stay."""
        self._check_writable()
        with self._translate_errors():
            if self._exists():
                self._client.drop_collection(self._counts)
                self._client.drop_collection(self._name)
                self._settings = self._settings | {"since": str(time.time_ns())}
                self._create_collection()

    def persist(self) -> None:
        """Have the server write out and merge its segments, and build the vector index that `kind` asks for."""
        self._check_writable()
        with self._translate_errors():
            if not self._exists():
                return
            self._sum_counts()
            for name in (self._name, self._counts):
                self._client.flush(name)
                self._client.compact(name)
            if self._read_settings()["kind"] != self._kind:
                self._rebuild_index()
                self._store_settings({"kind": self._kind})

    def _sum_counts(self) -> None:
        """Replace the rows of the counts by as few as may be."""
        statistics = self._read_statistics()
        old = [row["key"] for row in self._list_counts(0)]
        packed = pack_entries(statistics.entries)
        if len(old) <= len(packed):
            return
        since = time.time_ns()
        self._client.insert(self._counts, make_rows(packed, age=since))
        self._store_settings({"since": str(since)})  # from now on readers leave older rows out
        for part in _split_values(old):
            self._client.delete(self._counts, ids=list(part))

    def recount(self) -> None:
        """Count the terms of all documents anew, as after a program that died while it was writing."""
        self._check_writable()
        with self._translate_errors():
            if not self._exists():
                return
            change = TermChange()
            with self._open_view({}) as view:
                for row in view.list_rows(["text"]):
                    change.add(count_terms(self._tokenizer, row["text"]))
            old = [row["key"] for row in self._list_counts(0)]
            since = time.time_ns()
            self._client.insert(self._counts, make_rows(change.pack(), age=since))
            self._store_settings({"since": str(since)})
            for part in _split_values(old):
                self._client.delete(self._counts, ids=list(part))

    def _list_counts(self, first_age: int) -> list[dict[str, Any]]:
        """Rows of the counts from some time on."""
        expression = f"age >= {first_age}"
        rows = self._query(expression, ["key", "age", "packed"], _FEW_ROWS, self._counts)
        if len(rows) < _FEW_ROWS:
            return rows
        view = MilvusView(self._client, self._counts, expression, self._tokenizer, TermStatistics())
        return view.list_rows(["packed"])

    def _read_statistics(self) -> TermStatistics:
        """The counts, with what was written since they were last read."""
        since = int(self._read_settings().get("since", 0))
        with self._statistics_lock:
            if since != self._statistics.since:
                self._statistics = TermStatistics(since)
            self._statistics.add_rows(self._list_counts(self._statistics.first_age()))
            return self._statistics

    def close(self) -> None:
        """Close the connection; closing twice is harmless."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_batch(self, batch: DocumentBatch) -> None:
        self._check_writable()
        first_age = time.time_ns()
        counts = [count_terms(self._tokenizer, text) for text in batch.texts]
        rows = [self._make_row(batch, row, first_age + row) for row in range(len(batch))]
        with self._translate_errors():
            self._confirm_collection(batch.vectors.shape[1], [sum(terms.values()) for terms in counts])
            average = float(self._settings["average"])
            for start in range(0, len(rows), BATCH):
                part = range(start, min(start + BATCH, len(rows)))
                change = self._count_old([rows[row]["key"] for row in part])
                for row in part:
                    rows[row]["sparse"] = weigh_document(counts[row], average)
                    change.add(counts[row])
                self._client.upsert(self._name, [rows[row] for row in part])
                self._client.insert(self._counts, make_rows(change.pack()))

    def _count_old(self, keys: Sequence[int]) -> TermChange:
        """What it takes off the counts when documents go, of those that are there."""
        change = TermChange()
        for row in self._query(f"key in {list(keys)}", ["text"], len(keys)):
            change.add(count_terms(self._tokenizer, row["text"]), -1)
        return change

    def _make_row(self, batch: DocumentBatch, row: int, age: int) -> dict[str, Any]:
        fields = json.loads(batch.metadatas[row])
        facts = list_facts(fields)
        name = batch.ids[row]
        for what, text in (("id", name), ("text", batch.texts[row]), ("metadata", batch.metadatas[row])):
            if len(text) * 4 > MAX_BYTES and len(text.encode()) > MAX_BYTES:
                raise InvalidInput(f"{what} {row} is longer than Milvus' {MAX_BYTES:,} bytes of a string; split it")
        if len(facts) > MAX_FACTS:
            raise InvalidInput(f"metadata {row} has more values than the {MAX_FACTS:,} that Milvus can filter by")
        return {
            "key": hash_text(name),
            "age": age,
            "id": name,
            "text": batch.texts[row],
            "metadata": batch.metadatas[row],
            "facts": facts,
            "numbers": pick_numbers(fields),
            "vector": batch.vectors[row].tolist(),
        }

    def _delete_ids(self, ids: Sequence[str]) -> int:
        self._check_writable()
        return self._delete_keys([hash_text(name) for name in dict.fromkeys(ids)])

    def _delete_matches(self, where: Mapping[str, Any]) -> int:
        self._check_writable()
        with self._open_view(where) as view:
            return self._delete_keys([key.key for key in view.list_keys()])

    def _delete_keys(self, keys: Sequence[int]) -> int:
        """Delete those that are there; returns how many."""
        deleted = 0
        with self._translate_errors():
            if not self._exists():
                return 0
            for part in _split_values(keys):
                change = self._count_old(part)
                if change.documents:
                    self._client.delete(self._name, ids=list(part))
                    self._client.insert(self._counts, make_rows(change.pack()))
                deleted -= change.documents
        return deleted

    # -- reading ------------------------------------------------------------------------------------------------------

    def ids(self, where: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of all documents, or of those that match a filter, oldest first."""
        with self._open_view(where or {}) as view:
            return [row["id"] for row in view.list_rows(["id"])]

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many documents there are, or match a filter."""
        with self._open_view(where or {}) as view:
            return view.count()

    def export(self, ids: Sequence[str] | None = None, *, batch_size: int = 1000) -> Iterator[Documents]:
        """The documents with these ids, or all, with their vectors, oldest first; as `PEGIndex.export`."""
        size = min(max(validate_count(batch_size, "batch_size"), 1), MAX_HITS)
        if ids is not None:
            keys = [hash_text(name) for name in validate_ids(ids)]
        else:
            with self._open_view({}) as view:
                keys = [key.key for key in view.list_keys()]
        for start in range(0, len(keys), size):
            with self._translate_errors():
                rows = self._read_rows(keys[start : start + size], ["id", "text", "metadata", "vector"])
            if rows:
                yield _make_documents(rows)

    def _get_ids(self, ids: Sequence[str]) -> dict[str, Record]:
        keys = [hash_text(name) for name in dict.fromkeys(ids)]
        with self._translate_errors():
            rows = self._read_rows(keys, ["id", "text", "metadata"])
        return {row["id"]: _make_record(row) for row in rows}

    def _get_matches(self, where: Mapping[str, Any], limit: int | None) -> list[Record]:
        with self._open_view(where) as view:
            keys = [key.key for key in view.list_keys()][:limit]
            return [_make_record(row) for row in self._read_rows(keys, ["id", "text", "metadata"])]

    def _read_rows(self, keys: Sequence[int], fields: list[str]) -> list[dict[str, Any]]:
        """The rows with these keys, oldest first."""
        if not self._exists():
            return []
        rows = [
            row
            for part in _split_values(keys)
            for row in self._query(f"key in {list(part)}", ["key", "age", *fields], len(part))
        ]
        return sorted(rows, key=lambda row: (row["age"], row["key"]))

    def _query(
        self, expression: str, fields: list[str], limit: int, collection: str | None = None
    ) -> list[dict[str, Any]]:
        name = collection or self._name
        rows = self._client.query(name, filter=expression, output_fields=fields, limit=max(limit, 1))
        return [dict(row) for row in rows]

    @contextmanager
    def _view(self, where: Mapping[str, Any]) -> Iterator[View[AgedKey]]:
        with self._open_view(where) as view:
            yield view

    @contextmanager
    def _open_view(self, where: Mapping[str, Any]) -> Iterator["MilvusView"]:
        tree = parse_filter(where)
        with self._translate_errors():
            exists = self._exists()
            expression = compile_expression(tree, self._find_keys) if exists else ALWAYS
            statistics = self._read_statistics() if exists else TermStatistics()
            yield MilvusView(self._client, self._name if exists else None, expression, self._tokenizer, statistics)

    def _find_keys(self, expression: str, test: Test) -> list[int]:
        """The documents that pass a test which Milvus cannot do, among those that pass an expression."""
        view = MilvusView(self._client, self._name, expression, self._tokenizer, TermStatistics())
        rows = [(row["key"], row["metadata"]) for row in view.list_rows(["metadata"])]
        tester = FilterTester()
        try:
            return tester.select_keys(rows, test)
        finally:
            tester.close()

    # -- the collection -----------------------------------------------------------------------------------------------

    def _exists(self) -> bool:
        return bool(self._client.has_collection(self._name))

    def _check_writable(self) -> None:
        if self.read_only:
            raise PegRagError(f"{self.url} was opened with read_only=True; open it without to write")

    def _read_settings(self) -> dict[str, str]:
        """What the store was made with; empty where it does not exist."""
        with self._translate_errors():
            if not self._exists():
                return {}
            properties = self._client.describe_collection(self._name).get("properties", {})
            if _PROPERTY not in properties:
                raise StoreError(f"the collection {self._name!r} at {self.url} is not one of peg-rag's; name another")
            settings: dict[str, str] = json.loads(properties[_PROPERTY])
        return settings

    def _load_collections(self) -> None:
        with self._translate_errors():
            for name in (self._name, self._counts):
                self._client.load_collection(name)

    def _store_settings(self, changes: Mapping[str, str]) -> None:
        self._settings = {**self._read_settings(), **changes}
        properties = {_PROPERTY: json.dumps(self._settings)}
        self._client.alter_collection_properties(self._name, properties=properties)

    def _confirm_collection(self, dimension: int, lengths: Sequence[int]) -> None:
        """In a write: create the collection, or refuse another model's vectors or another dimension."""
        stored = self._read_settings()
        if stored:
            reconcile_settings(stored, {"identity": self.identity, "dimension": dimension}, self.url)
            self._settings = stored
        else:
            average = str(choose_average(lengths))
            self._settings = self._settings | {"dimension": str(dimension), "average": average, "since": "0"}
            self._create_collection()

    def _create_collection(self) -> None:
        kinds = self._milvus.DataType
        schema = self._client.create_schema(enable_dynamic_field=False)
        schema.add_field("key", kinds.INT64, is_primary=True)
        schema.add_field("age", kinds.INT64)
        for name in ("id", "text", "metadata"):
            schema.add_field(name, kinds.VARCHAR, max_length=MAX_BYTES)
        schema.add_field("facts", kinds.ARRAY, element_type=kinds.INT64, max_capacity=MAX_FACTS)
        schema.add_field("numbers", kinds.JSON)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=int(self._settings["dimension"]))
        schema.add_field("sparse", kinds.SPARSE_FLOAT_VECTOR)
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type=_INDEX_TYPES[self._settings["kind"]], metric_type="IP")
        indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        properties = {_PROPERTY: json.dumps(self._settings)}
        self._client.create_collection(
            self._name, schema=schema, index_params=indexes, consistency_level="Strong", properties=properties
        )

        self._create_counts()

    def _create_counts(self) -> None:
        """The collection of the counts of terms; Milvus asks every collection for a vector."""
        kinds = self._milvus.DataType
        schema = self._client.create_schema(enable_dynamic_field=False)
        schema.add_field("key", kinds.INT64, is_primary=True)
        schema.add_field("age", kinds.INT64)
        schema.add_field("packed", kinds.VARCHAR, max_length=MAX_BYTES)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=2)
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type="FLAT", metric_type="IP")
        self._client.create_collection(self._counts, schema=schema, index_params=indexes, consistency_level="Strong")

    def _rebuild_index(self) -> None:
        self._client.release_collection(self._name)
        self._client.drop_index(self._name, "vector")
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type=_INDEX_TYPES[self._kind], metric_type="IP")
        self._client.create_index(self._name, indexes)
        self._client.load_collection(self._name)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except self._milvus.MilvusException as error:
            raise StoreError(f"Milvus at {self.url}: {' '.join(str(error.message).split())}") from error


@dataclass(frozen=True, slots=True)
class MilvusView:
    """The documents that pass a filter. `name`: of the collection; None where it does not exist yet."""

    client: "MilvusClient"
    name: str | None
    expression: str
    tokenizer: Tokenizer
    statistics: TermStatistics

    def count(self) -> int:
        """How many there are."""
        if self.name is None:
            return 0
        rows = self.client.query(self.name, filter=self.expression, output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def list_keys(self) -> list[AgedKey]:
        """All keys, oldest first."""
        return [AgedKey(row["age"], row["key"]) for row in self.list_rows([])]

    def list_rows(self, fields: list[str]) -> list[dict[str, Any]]:
        """All rows with these fields, oldest first."""
        if self.name is None:
            return []
        iterator = self.client.query_iterator(
            self.name, filter=self.expression, output_fields=["key", "age", *fields], batch_size=_KEYS_AT_A_TIME
        )
        rows: list[dict[str, Any]] = []
        try:
            while batch := iterator.next():
                rows += [dict(row) for row in batch]
        finally:
            iterator.close()
        return sorted(rows, key=lambda row: (row["age"], row["key"]))

    def rank_dense(self, vector: Array, k: int) -> dict[AgedKey, float]:
        return self._search("vector", vector.tolist(), k, self.expression)

    def rank_lexical(self, text: str, k: int) -> dict[AgedKey, float]:
        weights = self.statistics.weigh_query(count_terms(self.tokenizer, text))
        return self._search("sparse", weights, k, self.expression) if weights else {}

    def score_dense(self, vector: Array, keys: Sequence[AgedKey]) -> dict[AgedKey, float]:
        return self._score("vector", vector.tolist(), keys)

    def score_lexical(self, text: str, keys: Sequence[AgedKey]) -> dict[AgedKey, float]:
        weights = self.statistics.weigh_query(count_terms(self.tokenizer, text))
        return self._score("sparse", weights, keys) if weights else {}

    def read_records(self, keys: Sequence[AgedKey]) -> dict[AgedKey, Record]:
        rows = self._read_fields(keys, ["id", "text", "metadata"])
        return {key: _make_record(row) for key, row in rows.items()}

    def read_vectors(self, keys: Sequence[AgedKey]) -> Array:
        rows = self._read_fields(keys, ["vector"])
        return np.array([rows[key]["vector"] for key in keys], dtype=np.float32)

    def _read_fields(self, keys: Sequence[AgedKey], fields: list[str]) -> dict[AgedKey, dict[str, Any]]:
        if self.name is None:
            return {}
        rows: dict[AgedKey, dict[str, Any]] = {}
        for part in _split_values([key.key for key in keys]):
            expression = f"key in {list(part)}"
            names = ["key", "age", *fields]
            for row in self.client.query(self.name, filter=expression, output_fields=names, limit=len(part)):
                rows[AgedKey(row["age"], row["key"])] = dict(row)
        return rows

    def _score(self, field: str, query: Any, keys: Sequence[AgedKey]) -> dict[AgedKey, float]:
        scores: dict[AgedKey, float] = {}
        for part in _split_values([key.key for key in keys]):
            scores |= self._search(field, query, len(part), f"key in {list(part)}")
        return scores

    def _search(self, field: str, query: Any, k: int, expression: str) -> dict[AgedKey, float]:
        """Scores of the k best, best first, equal ones in order of age."""
        if self.name is None or k < 1:
            return {}
        parameters: dict[str, Any] = {"metric_type": "IP"}
        if field == "vector":
            parameters["params"] = {"ef": min(max(k, 100), MAX_HITS)}
        hits = self.client.search(
            self.name,
            data=[query],
            anns_field=field,
            limit=min(k, MAX_HITS),
            filter="" if expression == ALWAYS else expression,
            output_fields=["age"],
            search_params=parameters,
        )[0]
        scores = {AgedKey(hit["entity"]["age"], hit["key"]): float(hit["distance"]) for hit in hits}
        ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        if field == "vector":
            return {key: min(max(score, -1.0), 1.0) for key, score in ranked}
        return {key: score for key, score in ranked if score > 0}


def _list_client_options(server: str) -> dict[str, Any]:
    """Arguments of `MilvusClient` for a URL."""
    parts = urlsplit(server)
    if not parts.hostname:
        require("milvus_lite", "milvus")
        if not parts.path.endswith(".db"):
            raise InvalidInput(f"milvus://{parts.path}: a file named *.db is expected, or a host")
        return {"uri": unquote(parts.path)}
    scheme = "https" if "secure=true" in parts.query.split("&") else "http"
    options: dict[str, Any] = {"uri": f"{scheme}://{parts.hostname}:{parts.port or 19530}"}
    if parts.username:
        options["token"] = ":".join(unquote(part) for part in (parts.username, parts.password) if part)
    if parts.path.strip("/"):
        options["db_name"] = unquote(parts.path.strip("/"))
    return options


def _make_record(row: Mapping[str, Any]) -> Record:
    return Record(row["id"], row["text"], json.loads(row["metadata"]))


def _make_documents(rows: Sequence[Mapping[str, Any]]) -> Documents:
    records = [_make_record(row) for row in rows]
    return Documents(
        [record.id for record in records],
        [record.text for record in records],
        np.array([row["vector"] for row in rows], dtype=np.float32),
        [record.metadata for record in records],
    )


def _split_values(values: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(values), _KEYS_AT_A_TIME):
        yield values[start : start + _KEYS_AT_A_TIME]
