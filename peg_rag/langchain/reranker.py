"""`PEGReranker`: the bundled reranker as a LangChain document compressor, over any retriever's documents."""

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field

from peg_rag.reranking import load_reranker


class PEGReranker(BaseDocumentCompressor):
    """Orders documents by how well they answer a query, and keeps the first ones.

    For documents of other retrievers, in `ContextualCompressionRetriever` for instance: a hybrid `PEGRetriever` has
    reranked its own already, with the counts of the whole index. No model is needed beyond the bundled `peg-mini`.

    Raises:
        InvalidInput: from `compress_documents`: the query is blank.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: int | None = Field(default=None, ge=1, description="Documents to keep; None for all.")

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Copies of the documents, best first, with `relevance_score`, from 0 to 1, in their metadata."""
        ranking = load_reranker("mini").rank(query, [document.page_content for document in documents])
        return [_copy_with_score(documents[each.index], each.score) for each in ranking[: self.top_n]]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """`compress_documents` off the event loop."""
        return await run_in_executor(None, self.compress_documents, documents, query, callbacks)


def _copy_with_score(document: Document, score: float) -> Document:
    metadata: dict[str, Any] = {**document.metadata, "relevance_score": score}
    return document.model_copy(update={"metadata": metadata})
