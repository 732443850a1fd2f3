"""`evaluate`: systems over evaluation sets, scored query by query."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from peg_rag.errors import InvalidInput
from peg_rag.evaluation.datasets import RetrievalDataset, SentencePairs
from peg_rag.evaluation.metrics import Run, score_run
from peg_rag.evaluation.systems import Dense, System
from peg_rag.extras import require
from peg_rag.retriever import Encoder


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How one system did on one dataset.

    Attributes:
        dataset, system: their names.
        query_ids: the queries, in the order of `values`.
        values: metric → (n_queries,) float64.
        run: query id → document id → score of what was found.
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


def evaluate(
    system: Encoder | System, dataset: RetrievalDataset, *, k: int = 100, show_progress: bool = False
) -> Evaluation:
    """Let a system rank the dataset's documents for each query, and score the first `k`.

    Args:
        system: an encoder, whose nearest documents are then found exactly, or any `System`.

    Raises:
        InvalidInput: `k` is below 100, so that Recall@100 could not be measured.
    """
    if k < 100:
        raise InvalidInput(f"k must be at least 100 (Recall@100 and MAP@100 need it), got {k}")
    system = as_system(system)
    start = perf_counter()
    run = system.run(dataset, k, show_progress=show_progress)
    seconds = perf_counter() - start
    return Evaluation(dataset.name, system.name, tuple(dataset.qrels), score_run(run, dataset.qrels), run, seconds)


def evaluate_all(
    systems: Sequence[Encoder | System], datasets: Sequence[RetrievalDataset], *, show_progress: bool = False
) -> Iterator[Evaluation]:
    """Every system on every dataset, one result at a time, dataset by dataset."""
    for dataset in datasets:
        for system in systems:
            yield evaluate(system, dataset, show_progress=show_progress)


def sts_spearman(encoder: Encoder, pairs: SentencePairs, *, show_progress: bool = False) -> float:
    """Spearman's rank correlation between the cosines of the pairs and their labels, in [-1, 1]; ties share ranks."""
    stats = require("scipy.stats", "eval")
    first = encoder.encode_queries(list(pairs.first), show_progress=show_progress)  # (n, dim)
    second = encoder.encode_queries(list(pairs.second), show_progress=show_progress)  # (n, dim)
    cosines = np.einsum("nd,nd->n", first, second)
    return float(stats.spearmanr(cosines, pairs.labels).statistic)


def as_system(system: Encoder | System) -> System:
    """The system itself, or an encoder as one, under its identity."""
    if isinstance(system, System):
        return system
    return Dense(system, getattr(system, "identity", type(system).__name__))
