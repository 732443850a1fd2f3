"""Exact nearest neighbours of many queries in one matrix product, for evaluation.

Scores must not depend on the settings of an approximate index. A search takes rows x columns x dimension
multiplications: 3,700 queries over 45,000 documents of 256 dimensions take about two seconds on two cores, and no more
than 512 x `block` scores are held at a time.
"""

from dataclasses import dataclass

import numpy as np
import torch

from peg_rag.errors import InvalidInput

ROWS = 512  # queries per block


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest rows of a matrix: `indices` (n, k) int64 and `scores` (n, k) float32, best first."""

    indices: np.ndarray
    scores: np.ndarray


def exact_search(queries: np.ndarray, documents: np.ndarray, k: int, *, block: int = 32_768) -> Neighbours:
    """The `k` rows of `documents` (n_documents, dim) with the largest inner product for each row of `queries` (n, dim).

    `k` is cut to the number of documents. Both sides are taken as float32.

    Raises:
        InvalidInput: the shapes do not fit or `k` is below 1.
    """
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise InvalidInput(f"queries {queries.shape} and documents {documents.shape} must be (n, dim) with one dim")
    if k < 1:
        raise InvalidInput(f"k must be at least 1, got {k}")
    query_rows, document_rows = (
        torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in (queries, documents)
    )
    k = min(k, len(documents))
    neighbours = Neighbours(np.empty((len(query_rows), k), np.int64), np.empty((len(query_rows), k), np.float32))
    for start in range(0, len(query_rows), ROWS):
        rows = slice(start, start + ROWS)
        scores, indices = _search_rows(query_rows[rows], document_rows, k, block)
        neighbours.scores[rows] = scores.numpy()
        neighbours.indices[rows] = indices.numpy()
    return neighbours


def _search_rows(rows: torch.Tensor, documents: torch.Tensor, k: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    best_scores, best_indices = torch.empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64)
    for start in range(0, len(documents), block):
        scores = rows @ documents[start : start + block].T  # (rows, block)
        top = scores.topk(min(k, scores.shape[1]), dim=1)
        candidates = torch.cat([best_scores, top.values], dim=1)  # (rows, up to 2k)
        best_scores, order = candidates.topk(min(k, candidates.shape[1]), dim=1)
        best_indices = torch.cat([best_indices, top.indices + start], dim=1).gather(1, order)
    return best_scores, best_indices
