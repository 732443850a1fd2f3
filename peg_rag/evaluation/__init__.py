"""Measured retrieval quality: evaluation sets in, scores query by query out."""

from peg_rag.evaluation.datasets import RetrievalDataset, SentencePairs, load_beir, load_sts
from peg_rag.evaluation.metrics import METRICS, score_run
from peg_rag.evaluation.run import Evaluation, evaluate
from peg_rag.evaluation.search import exact_search

__all__ = [
    "METRICS",
    "Evaluation",
    "RetrievalDataset",
    "SentencePairs",
    "evaluate",
    "exact_search",
    "load_beir",
    "load_sts",
    "score_run",
]
