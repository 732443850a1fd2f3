"""PEG text embeddings for Chinese retrieval: native in LangChain and LlamaIndex, with the recipe to train your own.

The public names are resolved when first touched (PEP 562), so `import peg_rag` imports neither torch nor a framework.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peg_rag.encoder import PEGEncoder as PEGEncoder
    from peg_rag.hits import Hit as Hit
    from peg_rag.index import PEGIndex as PEGIndex
    from peg_rag.langchain import PEGEmbeddings as PEGEmbeddings
    from peg_rag.retriever import Retriever as Retriever

__version__ = "0.2.0"

_HOMES = {
    "PEGEmbeddings": "peg_rag.langchain",
    "PEGEncoder": "peg_rag.encoder",
    "PEGIndex": "peg_rag.index",
    "Retriever": "peg_rag.retriever",
    "Hit": "peg_rag.hits",
}
__all__ = ["Hit", "PEGEmbeddings", "PEGEncoder", "PEGIndex", "Retriever", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'peg_rag' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
