"""PEG for LlamaIndex: `PEGEmbedding`, `PEGVectorStore`, `PEGRetriever` and `PEGReranker`. Adapters only.

The names are resolved when first touched: whoever only embeds imports neither the index nor the framework's stores.
"""

import importlib
from typing import TYPE_CHECKING, Any

from peg_rag.extras import require

if TYPE_CHECKING:
    from peg_rag.llama_index.embedding import PEGEmbedding as PEGEmbedding
    from peg_rag.llama_index.reranker import PEGReranker as PEGReranker
    from peg_rag.llama_index.retriever import PEGRetriever as PEGRetriever
    from peg_rag.llama_index.vector_store import PEGVectorStore as PEGVectorStore

require("llama_index.core", "llama-index")

_HOMES = {
    "PEGEmbedding": "peg_rag.llama_index.embedding",
    "PEGReranker": "peg_rag.llama_index.reranker",
    "PEGRetriever": "peg_rag.llama_index.retriever",
    "PEGVectorStore": "peg_rag.llama_index.vector_store",
}
__all__ = ["PEGEmbedding", "PEGReranker", "PEGRetriever", "PEGVectorStore"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
