"""PEG for LlamaIndex: `PEGEmbedding`, `PEGVectorStore` and `PEGRetriever`. Adapters only: the work is done below."""

from peg_rag.extras import require

require("llama_index.core", "llama-index")

from peg_rag.llama_index.embedding import PEGEmbedding  # noqa: E402
from peg_rag.llama_index.retriever import PEGRetriever  # noqa: E402
from peg_rag.llama_index.vector_store import PEGVectorStore  # noqa: E402

__all__ = ["PEGEmbedding", "PEGRetriever", "PEGVectorStore"]
