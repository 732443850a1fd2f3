"""Reranking: a second look at what a hybrid search found, small enough to be bundled and fast enough for a CPU."""

from peg_rag.reranking.mini import MiniReranker, blend, load_reranker

__all__ = ["MiniReranker", "blend", "load_reranker"]
