"""Reranking: a second look at what a hybrid search found, small enough to be bundled and fast enough for a CPU."""

from peg_rag.reranking.mini import (
    MiniReranker,
    RankedText,
    blend,
    has_hybrid_scores,
    load_encoder,
    load_reranker,
    model_of_reranker,
)

__all__ = [
    "MiniReranker",
    "RankedText",
    "blend",
    "has_hybrid_scores",
    "load_encoder",
    "load_reranker",
    "model_of_reranker",
]
