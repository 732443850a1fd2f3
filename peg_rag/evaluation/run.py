"""`evaluate`: a retrieval system over an evaluation set, scored query by query."""

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np

from peg_rag.errors import InvalidInput
from peg_rag.evaluation.datasets import RetrievalDataset
from peg_rag.evaluation.metrics import METRICS, Run, score_run
from peg_rag.evaluation.search import exact_search


class Encoder(Protocol):
    """What turns texts into (n, dim) float32 unit vectors; `PEGEncoder` is one."""

    def encode_queries(self, texts: list[str], *, show_progress: bool = False) -> np.ndarray: ...

    def encode_documents(self, texts: list[str], *, show_progress: bool = False) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How one system did on one dataset.

    Attributes:
        dataset, system: their names.
        query_ids: the queries, in the order of `values`.
        values: metric → (n_queries,) float64.
        run: query id → document id → score of what was found, best first.
        seconds: wall-clock of encoding or indexing, and searching.
    """

    dataset: str
    system: str
    query_ids: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    run: Run
    seconds: float

    def mean(self, metric: str = "nDCG@10") -> float:
        """The metric's mean over the queries."""
        return float(self.values[metric].mean())


def evaluate(encoder: Encoder, dataset: RetrievalDataset, *, k: int = 100, show_progress: bool = False) -> Evaluation:
    """Encode the dataset, find each query's `k` nearest documents exactly, and score what was found.

    Raises:
        InvalidInput: `k` is below 100, so that Recall@100 could not be measured.
    """
    if k < 100:
        raise InvalidInput(f"k must be at least 100 for {', '.join(METRICS)}, got {k}")
    start = perf_counter()
    run = dense_run(encoder, dataset, k, show_progress=show_progress)
    seconds = perf_counter() - start
    name = getattr(encoder, "identity", type(encoder).__name__)
    return Evaluation(dataset.name, name, tuple(dataset.qrels), score_run(run, dataset.qrels), run, seconds)


def dense_run(encoder: Encoder, dataset: RetrievalDataset, k: int, *, show_progress: bool = False) -> Run:
    """Each query's `k` nearest documents by cosine: query id → document id → score."""
    documents = encoder.encode_documents(
        list(dataset.corpus.values()), show_progress=show_progress
    )  # (n_documents, dim)
    queries = encoder.encode_queries([dataset.queries[query] for query in dataset.qrels], show_progress=show_progress)
    found = exact_search(queries, documents, k)
    ids = list(dataset.corpus)
    return {
        query: {ids[column]: score for column, score in zip(columns, scores, strict=True)}
        for query, columns, scores in zip(dataset.qrels, found.indices.tolist(), found.scores.tolist(), strict=True)
    }
