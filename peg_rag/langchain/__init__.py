"""PEG for LangChain: `PEGEmbeddings`, `PEGVectorStore`, `PEGRetriever` and `PEGReranker`. Adapters only.

The names are resolved when first touched: whoever only embeds imports neither the index nor the framework's stores.
"""

import importlib
from typing import TYPE_CHECKING, Any

from peg_rag.extras import require

if TYPE_CHECKING:
    from peg_rag.langchain.embeddings import PEGEmbeddings as PEGEmbeddings
    from peg_rag.langchain.reranker import PEGReranker as PEGReranker
    from peg_rag.langchain.retriever import PEGRetriever as PEGRetriever
    from peg_rag.langchain.vectorstore import PEGVectorStore as PEGVectorStore

require("langchain_core", "langchain")

_HOMES = {
    "PEGEmbeddings": "peg_rag.langchain.embeddings",
    "PEGReranker": "peg_rag.langchain.reranker",
    "PEGRetriever": "peg_rag.langchain.retriever",
    "PEGVectorStore": "peg_rag.langchain.vectorstore",
}
__all__ = ["PEGEmbeddings", "PEGReranker", "PEGRetriever", "PEGVectorStore"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
