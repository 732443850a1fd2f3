"""Exact search by inner product, for the index, evaluation and mining.

`search_matrix` serves a few queries under a filter in two passes: an estimate of all products, by a matrix product or,
in a quarter of the time, from int8 codes (`peg_rag.index.codes`); then the exact scores of the rows that may be hits.
`exact_search` serves many queries, block by block, with at most `QUERY_ROWS` x `DOCUMENT_ROWS` scores in memory.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import InvalidInput
from peg_rag.index.codes import Codes, Estimates, bound_rounding, has_kernel
from peg_rag.index.encodings import Array

QUERY_ROWS = 512
DOCUMENT_ROWS = 32_768

GATHER_SHARE = 0.25  # when fewer rows than this pass the filter, copying them and multiplying only those is faster
GATHER_ROWS = 4096  # copied at a time
GROUP = 64

CODED_BYTES = 16 << 20  # of a matrix; a smaller one is searched in about a millisecond without codes
CODED_QUERIES = 4  # of a larger batch, one matrix product is faster
CODED_GATHER_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class RankedRows:
    """(m,) rows and their (m,) scores, best first."""

    rows: Array
    scores: Array

    @classmethod
    def empty(cls) -> "RankedRows":
        """No rows."""
        return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest rows of a matrix: `indices` (n, k) of integers and `scores` (n, k) float32, best first."""

    indices: NDArray[Any]
    scores: NDArray[np.float32]


def exact_search(queries: Array, documents: Array, k: int, *, block: int = DOCUMENT_ROWS) -> Neighbours:
    """The `k` rows of `documents` (m, dimension) with the largest inner product with each of `queries` (n, dimension).

    `k` is cut to the number of documents. Both sides are taken as float32; ties are in order of position.

    Args:
        block: documents whose scores are held at a time.

    Raises:
        InvalidInput: the shapes do not fit or `k` is below 1.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise InvalidInput(f"queries {queries.shape} and documents {documents.shape} must be (n, dim) with one dim")
    if k < 1:
        raise InvalidInput(f"k must be at least 1, got {k}")
    shape = (len(queries), min(k, len(documents)))
    best = Neighbours(np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float32))
    update_neighbours(best, queries, documents, block=block)
    return best


def update_neighbours(
    best: Neighbours, queries: Array, documents: Array, *, first: int = 0, block: int = DOCUMENT_ROWS
) -> None:
    """Let more documents compete with the neighbours so far, in place.

    Args:
        best: of the n queries; where there are none yet, the score is -inf.
        queries: (n, dimension).
        documents: (m, dimension), the rows `first` to `first` + m - 1 of all documents.
    """
    if not best.scores.shape[1]:
        return
    for query in range(0, len(queries), QUERY_ROWS):
        rows = slice(query, query + QUERY_ROWS)
        part = np.ascontiguousarray(queries[rows], dtype=np.float32)  # (rows, dimension)
        for document in range(0, len(documents), block):
            columns = np.asarray(documents[document : document + block], dtype=np.float32)  # (columns, dimension)
            products = _compute_products(part, columns)  # (rows, columns)
            _merge_products(best.indices[rows], best.scores[rows], products, first + document)


def _merge_products(indices: NDArray[Any], scores: NDArray[np.float32], products: Array, first: int) -> None:
    """Put better (rows, columns) products into the (rows, k) best, in place; column 0 is the document `first`."""
    k = scores.shape[1]
    for row, line in enumerate(products):
        better = np.flatnonzero(line > scores[row, -1])
        if len(better):
            candidates = np.concatenate([scores[row], line[better]])
            order = select_best(candidates, k)
            indices[row, : len(order)] = np.concatenate([indices[row], better + first])[order]
            scores[row, : len(order)] = candidates[order]


def select_best(scores: Array, k: int) -> Array:
    """Positions of the k largest of (n,) scores, best first, ties in order of position; -inf is never selected."""
    least = _bound_kth(scores, k)
    positions = np.flatnonzero(scores >= least if least > -np.inf else scores > -np.inf)
    values = scores[positions]
    if k < len(values):
        least = np.partition(values, len(values) - k)[len(values) - k]
        enough = values >= least
        positions = positions[enough]
        values = values[enough]
    return positions[np.argsort(-values, kind="stable")[:k]]


def _bound_kth(scores: Array, k: int) -> float:
    """A score that k of (n,) scores reach: the k-th largest of the maxima of groups, which takes one pass."""
    groups = len(scores) // GROUP
    if not 4 * k <= groups:
        return -np.inf
    maxima = scores[: groups * GROUP].reshape(groups, GROUP).max(axis=1)
    return float(np.partition(maxima, groups - k)[groups - k])


def inner_products(rows: Array, query: Array) -> Array:
    """(m,) products of (m, dimension) float32 rows with a (dimension,) query, each summed in the same order.

    A matrix product sums a row in another order in another place: equal rows would get unequal scores.
    """
    products: Array = np.vecdot(rows, query)
    return products


def search_matrix(
    matrix: Array, queries: Array, k: int, allowed: Array | None, codes: Codes | None = None
) -> list[RankedRows]:
    """The k best allowed rows of an (n, dimension) matrix for each of (queries, dimension); unit rows, float32.

    A row's score depends on nothing but the row and the query, so equal rows tie, in order of position.

    Args:
        allowed: (n,) bool, or None for all rows.
        codes: of the matrix, to read less of it where that pays.
    """
    if k <= 0 or not len(matrix):
        return [RankedRows.empty()] * len(queries)
    if codes is not None and not _pay_codes(matrix, queries, k):
        codes = None
    rows = None if allowed is None else np.flatnonzero(allowed)
    if rows is not None and len(rows) < (GATHER_SHARE if codes is None else CODED_GATHER_SHARE) * len(matrix):
        return search_rows(matrix[rows], rows, queries, k)
    if codes is None:
        rounding = bound_rounding(matrix.shape[1])
        estimates = [Estimates(line, rounding) for line in _compute_products(queries, matrix)]
    else:
        estimates = [codes.estimate(matrix, query) for query in queries]
    if allowed is not None:
        for estimate in estimates:
            estimate.values[~allowed] = -np.inf
    return [_rank_candidates(matrix, query, estimate, k) for query, estimate in zip(queries, estimates, strict=True)]


def search_rows(vectors: Array, rows: Array, queries: Array, k: int) -> list[RankedRows]:
    """`search_matrix` in (m, dimension) vectors that are the rows with the (m,) numbers `rows` of a larger matrix."""
    rankings = search_matrix(vectors, queries, k, None)
    return [RankedRows(rows[ranking.rows], ranking.scores) for ranking in rankings]


def _pay_codes(matrix: Array, queries: Array, k: int) -> bool:
    """Whether reading codes beats a matrix product: for a few queries, and few hits, of a large matrix."""
    is_large = matrix.nbytes >= CODED_BYTES and k <= len(matrix) // GROUP
    return is_large and len(queries) <= CODED_QUERIES and has_kernel()


def _compute_products(queries: Array, matrix: Array) -> Array:
    """(queries, n) inner products. For one query, matrix times vector: its threads wait less for each other."""
    products: Array = (matrix @ queries[0])[None] if len(queries) == 1 else queries @ matrix.T
    return products


def _rank_candidates(matrix: Array, query: Array, estimates: Estimates, k: int) -> RankedRows:
    """The k best rows: all rows that may reach the worst of the k with the best estimates are multiplied."""
    rows = np.sort(select_best(estimates.values, k))
    scores = _score_rows(matrix, rows, query)
    if len(rows) == k:
        rows = estimates.select_candidates(float(scores.min()))
        scores = _score_rows(matrix, rows, query)
    best = select_best(scores, k)
    return RankedRows(rows[best], scores[best])


def _score_rows(matrix: Array, rows: Array, query: Array) -> Array:
    """(m,) inner products of the (m,) `rows` of a matrix, copying some of them at a time."""
    if len(rows) == len(matrix):
        return inner_products(matrix, query)
    scores = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), GATHER_ROWS):
        part = slice(start, start + GATHER_ROWS)
        scores[part] = inner_products(matrix[rows[part]], query)
    return scores
