"""PEG for LangChain: `PEGEmbeddings`, `PEGVectorStore` and `PEGRetriever`. Adapters only: the work is done below."""

from peg_rag.extras import require

require("langchain_core", "langchain")

from peg_rag.langchain.embeddings import PEGEmbeddings  # noqa: E402
from peg_rag.langchain.retriever import PEGRetriever  # noqa: E402
from peg_rag.langchain.vectorstore import PEGVectorStore  # noqa: E402

__all__ = ["PEGEmbeddings", "PEGRetriever", "PEGVectorStore"]
