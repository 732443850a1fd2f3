"""Measured retrieval quality: evaluation sets in, scores query by query out."""

from peg_rag.evaluation.datasets import (
    RetrievalDataset,
    SentencePairs,
    as_reranking,
    load_beir,
    load_dataset,
    load_dureader,
    load_sts,
    with_candidates,
)
from peg_rag.evaluation.metrics import METRICS, score_run
from peg_rag.evaluation.scoring import Evaluation, evaluate, evaluate_all, sts_spearman
from peg_rag.evaluation.significance import Comparison, compare
from peg_rag.evaluation.systems import BM25s, Candidates, Dense, Indexed, Reranked, RerankedHybrid, System
from peg_rag.index.exact import exact_search

__all__ = [
    "METRICS",
    "BM25s",
    "Candidates",
    "Comparison",
    "Dense",
    "Evaluation",
    "Indexed",
    "Reranked",
    "RerankedHybrid",
    "RetrievalDataset",
    "SentencePairs",
    "System",
    "as_reranking",
    "compare",
    "evaluate",
    "evaluate_all",
    "exact_search",
    "load_beir",
    "load_dataset",
    "load_dureader",
    "load_sts",
    "score_run",
    "sts_spearman",
    "with_candidates",
]
