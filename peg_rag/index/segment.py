"""A segment: the vectors of an index up to its last compaction, immutable and searched by inner product.

`flat` is a plain matrix that is mapped into memory and searched exactly (`peg_rag.index.exact`); a large one through an
int8 copy in memory (`peg_rag.index.codes`). `hnsw` (graph) and `ivfpq` (inverted lists of product codes) are FAISS
indexes: the first keeps full vectors and is fast and accurate, the second is about thirty times smaller, and its
candidates are rescored with the vectors in SQLite.

Documents written later are held in memory by `snapshot`, deleted ones are masked.

Cost: 4 bytes per number of a vector (`flat`, `hnsw`); a `flat` one that is searched often, 1 more in memory.
"""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from peg_rag.extras import require
from peg_rag.index.codes import Codes
from peg_rag.index.encodings import Array
from peg_rag.index.exact import RankedRows, search_matrix, search_rows

Kind = Literal["flat", "hnsw", "ivfpq"]
KINDS = ("flat", "hnsw", "ivfpq")

Chunks = Iterable[tuple[Array, Array]]  # (n,) keys and (n, dimension) unit rows, keys ascending
VectorSource = Callable[[int], Chunks]  # all rows for 1, every s-th row for s: a sample of all ages to train on
FetchVectors = Callable[[Array], Array]  # (n,) keys -> (n, dimension) vectors from SQLite

HNSW_LINKS = 32
HNSW_EF_SEARCH = 128
TRAINING_ROWS_PER_LIST = 64
MIN_IVFPQ_ROWS = 5_000  # with fewer rows there is too little to train product codes on
EXACT_ROWS = 4096  # so few rows that pass a filter are multiplied directly: faster than the graph, and exact


@dataclass(frozen=True, slots=True)
class Segment:
    """The vectors of one generation, mapped from a file or in memory, never changed.

    Attributes:
        kind: how it is searched.
        keys: (n,) int64 document keys, ascending.
        matrix: (n, dimension) float32 unit rows; None for `ivfpq`.
        graph: the FAISS index; None for `flat`.
        codes: a smaller copy of the matrix, for exact search.
    """

    kind: Kind
    keys: Array
    matrix: Array | None
    graph: Any = None
    codes: Codes = field(default_factory=Codes)

    @classmethod
    def empty(cls) -> "Segment":
        """A segment without documents."""
        return cls("flat", np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32))

    def search(self, queries: Array, k: int, allowed: Array | None, fetch: FetchVectors) -> list[RankedRows]:
        """The k best allowed rows for each of (queries, dimension) unit rows, best first.

        Args:
            allowed: (n,) bool, or None for all rows.
            fetch: reads vectors from SQLite by key, for the kind that keeps none.
        """
        if k <= 0 or not len(self.keys):
            return [RankedRows.empty()] * len(queries)
        if self.graph is not None and (allowed is None or np.count_nonzero(allowed) > self._exact_limit()):
            return self._search_graph(queries, k, allowed, fetch)
        if self.matrix is not None:
            codes = self.codes if self.graph is None else None
            return search_matrix(self.matrix, queries, k, allowed, codes)
        rows = np.flatnonzero(np.ones(len(self.keys)) if allowed is None else allowed)
        return search_rows(fetch(self.keys[rows]), rows, queries, k)

    def vectors(self, rows: Array, fetch: FetchVectors) -> Array:
        """(len(rows), dimension) float32 unit rows."""
        return fetch(self.keys[rows]) if self.matrix is None else self.matrix[rows]

    def _exact_limit(self) -> int:
        return EXACT_ROWS if self.matrix is None else max(EXACT_ROWS, len(self.keys) // 10)

    def _search_graph(self, queries: Array, k: int, allowed: Array | None, fetch: FetchVectors) -> list[RankedRows]:
        """Candidates from FAISS, rescored exactly."""
        count = k if self.kind == "hnsw" else max(4 * k, 100)
        share = 1.0 if allowed is None else np.count_nonzero(allowed) / len(allowed)
        # FAISS keeps only pointers to the selector and its bits: both names must live until the search is over.
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        selector = None if bits is None else import_faiss().IDSelectorBitmap(bits)
        parameters = self._search_parameters(count, share, selector)
        _, candidates = self.graph.search(queries, min(count, len(self.keys)), params=parameters)
        return [
            self._rescore_rows(query, rows[rows >= 0], k, fetch)
            for query, rows in zip(queries, candidates, strict=True)
        ]

    def _search_parameters(self, count: int, share: float, selector: Any) -> Any:
        """Search wider when a filter lets only a share of the visited rows through."""
        faiss = import_faiss()
        options = {} if selector is None else {"sel": selector}
        if self.kind == "hnsw":
            ef_search = int(max(HNSW_EF_SEARCH, 2 * count) / max(share, 0.1))
            return faiss.SearchParametersHNSW(efSearch=ef_search, **options)
        probes = int(max(32, self.graph.nlist // 16) / max(share, 0.1))
        return faiss.SearchParametersIVF(nprobe=min(probes, self.graph.nlist), **options)

    def _rescore_rows(self, query: Array, rows: Array, k: int, fetch: FetchVectors) -> RankedRows:
        rows = np.sort(rows)
        return search_rows(self.vectors(rows, fetch), rows, query[None], k)[0]


# -- building ---------------------------------------------------------------------------------------------------------


def build_segment(kind: Kind, dimension: int, total: int, source: VectorSource) -> Segment:
    """Build a segment of about `total` rows in memory. With fewer than `MIN_IVFPQ_ROWS` rows, `ivfpq` is flat."""
    if is_flat(kind, total):
        keys, rows = _concatenate_chunks(source(1), dimension)
        return Segment("flat", keys, rows)
    graph = _create_graph(kind, dimension, total)
    if not graph.is_trained:
        graph.train(_concatenate_chunks(source(max(1, total // (TRAINING_ROWS_PER_LIST * graph.nlist))), dimension)[1])
    return wrap_graph(kind, fill_graph(graph, source(1)), graph)


def is_flat(kind: Kind, total: int) -> bool:
    """Whether a segment of `total` rows is a plain matrix."""
    return kind == "flat" or (kind == "ivfpq" and total < MIN_IVFPQ_ROWS)


def count_lists(total: int) -> int:
    """How many inverted lists an `ivfpq` segment of `total` rows has."""
    return int(min(max(2 * total**0.5, 16), total / 39))  # FAISS wants at least 39 rows to train a list


def fill_graph(graph: Any, chunks: Chunks) -> Array:
    """Add all rows to a FAISS index and return their (n,) keys."""
    keys_added = [np.empty(0, dtype=np.int64)]
    for keys, rows in chunks:
        graph.add(rows)
        keys_added.append(keys)
    return np.concatenate(keys_added)


def wrap_graph(kind: Kind, keys: Array, graph: Any) -> Segment:
    """A segment around a FAISS index; the vectors of `hnsw` are viewed, not copied."""
    if kind != "hnsw":
        return Segment(kind, keys, None, graph)
    storage = import_faiss().downcast_index(graph.storage)
    if len(keys):
        matrix = import_faiss().rev_swig_ptr(storage.get_xb(), len(keys) * graph.d).reshape(len(keys), graph.d)
    else:
        matrix = np.empty((0, graph.d), dtype=np.float32)
    return Segment(kind, keys, matrix, graph)


def _create_graph(kind: Kind, dimension: int, total: int) -> Any:
    faiss = import_faiss()
    if kind == "hnsw":
        return faiss.IndexHNSWFlat(dimension, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    codes = next(m for m in range(max(dimension // 8, 1), 0, -1) if dimension % m == 0)
    graph = faiss.index_factory(dimension, f"IVF{count_lists(total)},PQ{codes}x8", faiss.METRIC_INNER_PRODUCT)
    # A quarter of FAISS's effort on the codes: candidates are rescored with the full vectors.
    graph.pq.cp.niter = 10
    graph.pq.cp.max_points_per_centroid = TRAINING_ROWS_PER_LIST
    return graph


def _concatenate_chunks(chunks: Chunks, dimension: int) -> tuple[Array, Array]:
    pairs = [(np.empty(0, dtype=np.int64), np.empty((0, dimension), dtype=np.float32)), *chunks]
    return np.concatenate([keys for keys, _ in pairs]), np.concatenate([rows for _, rows in pairs])


# -- FAISS ------------------------------------------------------------------------------------------------------------


def import_faiss() -> Any:
    """FAISS, or `MissingExtra` with the command that installs it."""
    return require("faiss", "faiss")


def _use_one_thread() -> None:
    """In a forked child: OpenMP would wait forever for threads that only the parent has."""
    if "faiss" in sys.modules:
        import_faiss().omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)
