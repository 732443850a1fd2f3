"""Stores that search by exact inner products, behind one small interface, for `exact_search.py`.

Each keeps documents of a number, a vector, a group to filter by and, for hybrid search, a text, in a folder of its own.
All search exactly, with the settings that their documentation recommends for that; full-text search has the
Chinese tokenizers that a store brings along. FAISS and usearch are libraries: here they get a file of
vectors and an array of groups, as a program that uses them would keep.

    pip install lancedb qdrant-client usearch zvec    # pymilvus, milvus-lite, faiss-cpu: peg-rag's extras
"""

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import numpy as np

from peg_rag.index import PEGIndex

BATCH = 5_000
FETCH = 100  # hits of each side that a hybrid search joins


class PeerStore(Protocol):
    """A store in a folder; opened again by making another object for the same folder."""

    def add(self, first: int, vectors: np.ndarray, groups: np.ndarray, texts: Sequence[str] | None) -> None:
        """Add (n, dimension) unit vectors under the numbers first, first + 1, …"""

    def finish(self) -> None:
        """Do what a store recommends after it was filled; what was added is then on the disk."""

    def search(self, vector: np.ndarray, k: int, group: int | None = None) -> list[int]:
        """Numbers of the k nearest documents, of a group or of all."""

    def search_hybrid(self, vector: np.ndarray, text: str, k: int, tokenizer: str) -> list[int]:
        """Numbers of the k best documents by vector and text."""

    def close(self) -> None: ...


class EmbeddedIndex:
    """`PEGIndex`."""

    tokenizers = ("bigram",)

    def __init__(self, folder: Path, dimension: int, tokenizers: Sequence[str] = ()) -> None:
        self._index = PEGIndex(folder / "kb")

    def add(self, first: int, vectors: np.ndarray, groups: np.ndarray, texts: Sequence[str] | None) -> None:
        ids = [str(number) for number in range(first, first + len(vectors))]
        self._index.upsert(ids, texts or [""] * len(ids), vectors, [{"group": group} for group in groups.tolist()])

    def finish(self) -> None:
        self._index.persist()

    def search(self, vector: np.ndarray, k: int, group: int | None = None) -> list[int]:
        where = None if group is None else {"group": group}
        return [int(hit.id) for hit in self._index.search(vector, k=k, where=where)]

    def search_hybrid(self, vector: np.ndarray, text: str, k: int, tokenizer: str) -> list[int]:
        return [int(hit.id) for hit in self._index.search(vector, text, k=k)]

    def close(self) -> None:
        self._index.close()


class VectorFile:
    """Vectors and groups in files, for a library that searches a matrix."""

    tokenizers: tuple[str, ...] = ()

    def __init__(self, folder: Path, dimension: int, tokenizers: Sequence[str] = ()) -> None:
        self._files = [folder / "vectors.npy", folder / "groups.npy"]
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        if self._files[0].exists():
            self._vectors = np.load(self._files[0])
            self._groups = np.load(self._files[1])

    def add(self, first: int, vectors: np.ndarray, groups: np.ndarray, texts: Sequence[str] | None) -> None:
        self._parts.append((vectors, groups))

    def finish(self) -> None:
        for file, arrays in zip(self._files, zip(*self._parts, strict=True), strict=True):
            with file.open("wb") as stream:
                np.save(stream, np.concatenate(arrays))
                stream.flush()
                os.fsync(stream.fileno())

    def search(self, vector: np.ndarray, k: int, group: int | None = None) -> list[int]:
        if group is None:
            return self.search_matrix(self._vectors, vector, k)
        rows = np.flatnonzero(self._groups == group)
        numbers: list[int] = rows[self.search_matrix(self._vectors[rows], vector, k)].tolist()
        return numbers

    def search_matrix(self, vectors: np.ndarray, vector: np.ndarray, k: int) -> list[int]:
        raise NotImplementedError

    def search_hybrid(self, vector: np.ndarray, text: str, k: int, tokenizer: str) -> list[int]:
        raise NotImplementedError

    def close(self) -> None: ...


class FaissFile(VectorFile):
    """The search of `IndexFlatIP`, without its copy of the vectors."""

    def search_matrix(self, vectors: np.ndarray, vector: np.ndarray, k: int) -> list[int]:
        import faiss

        numbers: list[int] = faiss.knn(vector[None], vectors, k, metric=faiss.METRIC_INNER_PRODUCT)[1][0].tolist()
        return numbers


class UsearchFile(VectorFile):
    def search_matrix(self, vectors: np.ndarray, vector: np.ndarray, k: int) -> list[int]:
        from usearch.index import MetricKind, search

        keys = search(vectors, vector, k, MetricKind.IP, exact=True, threads=os.cpu_count() or 1).keys
        return [int(key) for key in keys]


class MilvusLiteFile:
    """Milvus Lite with a FLAT index; BM25 of its own in hybrid search, joined by reciprocal ranks."""

    tokenizers = ("jieba",)

    def __init__(self, folder: Path, dimension: int, tokenizers: Sequence[str] = ()) -> None:
        import pymilvus

        self._milvus = pymilvus
        self._client = pymilvus.MilvusClient(str(folder / "milvus.db"))
        if not self._client.has_collection("documents"):
            self._create_collection(dimension, tokenizers)
        self._client.load_collection("documents")

    def _create_collection(self, dimension: int, tokenizers: Sequence[str]) -> None:
        kinds = self._milvus.DataType
        schema = self._client.create_schema(auto_id=False)
        schema.add_field("number", kinds.INT64, is_primary=True)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dimension)
        schema.add_field("group", kinds.INT64)
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type="FLAT", metric_type="IP")
        for tokenizer in tokenizers:
            analyzer = {"tokenizer": tokenizer}
            schema.add_field("text", kinds.VARCHAR, max_length=65_535, enable_analyzer=True, analyzer_params=analyzer)
            schema.add_field("sparse", kinds.SPARSE_FLOAT_VECTOR)
            function = self._milvus.Function("bm25", self._milvus.FunctionType.BM25, ["text"], ["sparse"])
            schema.add_function(function)
            indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
        self._client.create_collection("documents", schema=schema, index_params=indexes)

    def add(self, first: int, vectors: np.ndarray, groups: np.ndarray, texts: Sequence[str] | None) -> None:
        rows: list[dict[str, Any]] = [
            {"number": first + row, "vector": vectors[row].tolist(), "group": int(groups[row])}
            for row in range(len(vectors))
        ]
        for row, text in zip(rows, texts or (), strict=False):
            row["text"] = text
        self._client.insert("documents", rows)

    def finish(self) -> None:
        self._client.flush("documents")

    def search(self, vector: np.ndarray, k: int, group: int | None = None) -> list[int]:
        condition = "" if group is None else f"group == {group}"
        hits = self._client.search("documents", [vector.tolist()], anns_field="vector", limit=k, filter=condition)[0]
        return [hit["number"] for hit in hits]

    def search_hybrid(self, vector: np.ndarray, text: str, k: int, tokenizer: str) -> list[int]:
        requests = [
            self._milvus.AnnSearchRequest([vector.tolist()], "vector", {"metric_type": "IP"}, FETCH),
            self._milvus.AnnSearchRequest([text], "sparse", {"metric_type": "BM25"}, FETCH),
        ]
        hits = self._client.hybrid_search("documents", requests, self._milvus.RRFRanker(), limit=k)[0]
        return [hit["number"] for hit in hits]

    def close(self) -> None:
        self._client.close()


class LanceTable:
    """LanceDB without a vector index, which is its exact search; a bitmap index for the filter."""

    tokenizers = ("icu", "ngram 1–2")

    def __init__(self, folder: Path, dimension: int, tokenizers: Sequence[str] = ()) -> None:
        os.environ.setdefault("LANCEDB_LOG", "error")
        import lancedb
        import pyarrow as pa

        self._pa = pa
        self._dimension = dimension
        self._columns = [f"text{number}" for number in range(len(self.tokenizers))]
        fields = [("number", pa.int64()), ("vector", pa.list_(pa.float32(), dimension)), ("group", pa.int64())]
        fields += [(column, pa.string()) for column in self._columns]
        database = lancedb.connect(folder / "lance")
        self._table = database.create_table("documents", schema=pa.schema(fields), exist_ok=True)
        self._with_texts = bool(tokenizers)

    def add(self, first: int, vectors: np.ndarray, groups: np.ndarray, texts: Sequence[str] | None) -> None:
        columns: dict[str, Any] = {
            "number": np.arange(first, first + len(vectors)),
            "vector": self._pa.FixedSizeListArray.from_arrays(vectors.ravel(), self._dimension),
            "group": groups,
        }
        columns |= {column: list(texts) if texts else [""] * len(vectors) for column in self._columns}
        self._table.add(self._pa.table(columns))

    def finish(self) -> None:
        self._table.optimize()
        self._table.create_scalar_index("group", index_type="BITMAP")
        if self._with_texts:  # its defaults are for English
            plain = {"stem": False, "remove_stop_words": False}
            self._table.create_fts_index("text0", base_tokenizer="icu", **plain)
            self._table.create_fts_index(
                "text1", base_tokenizer="ngram", ngram_min_length=1, ngram_max_length=2, **plain
            )

    def search(self, vector: np.ndarray, k: int, group: int | None = None) -> list[int]:
        query = self._table.search(vector, vector_column_name="vector").distance_type("dot").select(["number"]).limit(k)
        if group is not None:
            query = query.where(f"`group` = {group}", prefilter=True)
        return self._read_numbers(query)

    def search_hybrid(self, vector: np.ndarray, text: str, k: int, tokenizer: str) -> list[int]:
        from lancedb.query import MatchQuery

        column = self._columns[self.tokenizers.index(tokenizer)]
        query = self._table.search(query_type="hybrid", vector_column_name="vector", fts_columns=column).vector(vector)
        query = query.distance_type("dot").text(MatchQuery(text, column)).select(["number"]).limit(FETCH)
        return self._read_numbers(query)[:k]

    @staticmethod
    def _read_numbers(query: Any) -> list[int]:
        numbers: list[int] = query.to_arrow()["number"].to_pylist()
        return numbers

    def close(self) -> None: ...


class QdrantFolder:
    """qdrant-client's local mode. Its BM25 splits at white space and punctuation alone, so there is no hybrid here."""

    tokenizers: tuple[str, ...] = ()

    def __init__(self, folder: Path, dimension: int, tokenizers: Sequence[str] = ()) -> None:
        import qdrant_client

        warnings.filterwarnings("ignore", message="Local mode is not recommended")
        self._models = qdrant_client.models
        self._client = qdrant_client.QdrantClient(path=str(folder / "qdrant"))
        if not self._client.collection_exists("documents"):
            parameters = self._models.VectorParams(size=dimension, distance=self._models.Distance.DOT)
            self._client.create_collection("documents", vectors_config=parameters)

    def add(self, first: int, vectors: np.ndarray, groups: np.ndarray, texts: Sequence[str] | None) -> None:
        numbers: list[int | str | UUID] = list(range(first, first + len(vectors)))
        payloads = [{"group": group} for group in groups.tolist()]
        self._client.upsert("documents", self._models.Batch(ids=numbers, vectors=vectors.tolist(), payloads=payloads))

    def finish(self) -> None: ...

    def search(self, vector: np.ndarray, k: int, group: int | None = None) -> list[int]:
        condition = None
        if group is not None:
            match = self._models.FieldCondition(key="group", match=self._models.MatchValue(value=group))
            condition = self._models.Filter(must=[match])
        hits = self._client.query_points(
            "documents", vector.tolist(), limit=k, query_filter=condition, with_payload=False
        )
        return [int(hit.id) for hit in hits.points]

    def search_hybrid(self, vector: np.ndarray, text: str, k: int, tokenizer: str) -> list[int]:
        raise NotImplementedError

    def close(self) -> None:
        self._client.close()


class ZvecFolder:
    """zvec with a flat index; its full-text search in hybrid search, joined by reciprocal ranks."""

    tokenizers = ("jieba", "ngram 1–2")

    def __init__(self, folder: Path, dimension: int, tokenizers: Sequence[str] = ()) -> None:
        import zvec

        self._zvec = zvec
        path = str(folder / "zvec")
        self._collection = zvec.open(path) if Path(path).exists() else self._create(path, dimension, tokenizers)

    def _create(self, path: str, dimension: int, tokenizers: Sequence[str]) -> Any:
        zvec = self._zvec
        inner_product = zvec.FlatIndexParam(metric_type=zvec.MetricType.IP)
        vector = zvec.VectorSchema("vector", zvec.DataType.VECTOR_FP32, dimension, index_param=inner_product)
        fields = [zvec.FieldSchema("group", zvec.DataType.INT64, index_param=zvec.InvertIndexParam())]
        for number, tokenizer in enumerate(tokenizers):
            name, _, _ = tokenizer.partition(" ")
            extra = json.dumps({"ngram_min": 1, "ngram_max": 2}) if name == "ngram" else ""
            parameters = zvec.FtsIndexParam(tokenizer_name=name, extra_params=extra)
            fields.append(zvec.FieldSchema(f"text{number}", zvec.DataType.STRING, index_param=parameters))
        schema = zvec.CollectionSchema("documents", fields=fields, vectors=vector)
        return zvec.create_and_open(path, schema)

    def add(self, first: int, vectors: np.ndarray, groups: np.ndarray, texts: Sequence[str] | None) -> None:
        documents = []
        for row in range(len(vectors)):
            fields: dict[str, Any] = {"group": int(groups[row])}
            if texts:
                fields |= {f"text{number}": texts[row] for number in range(len(self.tokenizers))}
            documents.append(self._zvec.Doc(id=str(first + row), fields=fields, vectors={"vector": vectors[row]}))
        for start in range(0, len(documents), 1000):
            for status in self._collection.insert(documents[start : start + 1000]):
                if not status.ok():
                    raise RuntimeError(status)

    def finish(self) -> None:
        self._collection.optimize()
        self._collection.flush()

    def search(self, vector: np.ndarray, k: int, group: int | None = None) -> list[int]:
        condition = None if group is None else f"group = {group}"
        query = self._zvec.Query("vector", vector=vector)
        hits = self._collection.query(query, topk=k, filter=condition, output_fields=[])
        return [int(hit.id) for hit in hits]

    def search_hybrid(self, vector: np.ndarray, text: str, k: int, tokenizer: str) -> list[int]:
        field = f"text{self.tokenizers.index(tokenizer)}"
        queries = [
            self._zvec.Query("vector", vector=vector),
            self._zvec.Query(field, fts=self._zvec.Fts(match_string=text)),
        ]
        ranker = self._zvec.RrfReRanker()
        return [int(hit.id) for hit in self._collection.query(queries, topk=FETCH, reranker=ranker, output_fields=[])][
            :k
        ]

    def close(self) -> None:
        self._collection.close()


_STORES: dict[str, tuple[str, Any]] = {  # the module that each needs
    "peg-rag": ("peg_rag", EmbeddedIndex),
    "FAISS, flat": ("faiss", FaissFile),
    "usearch, exact": ("usearch", UsearchFile),
    "zvec": ("zvec", ZvecFolder),
    "LanceDB": ("lancedb", LanceTable),
    "Milvus Lite": ("milvus_lite", MilvusLiteFile),
    "Qdrant, local": ("qdrant_client", QdrantFolder),
}


def list_stores() -> list[str]:
    """The stores that are installed."""
    return [name for name, (module, _) in _STORES.items() if importlib.util.find_spec(module)]


def open_store(name: str, folder: Path, dimension: int, tokenizers: Sequence[str] = ()) -> PeerStore:
    """A store in an existing folder, with full-text search by these of its tokenizers."""
    logging.disable(logging.INFO)
    store: PeerStore = _STORES[name][1](folder, dimension, tokenizers)
    return store


def list_tokenizers(name: str) -> tuple[str, ...]:
    """The Chinese tokenizers that a store brings along."""
    names: tuple[str, ...] = _STORES[name][1].tokenizers
    return names


def measure_bytes(folder: Path) -> int:
    """The size of all files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
