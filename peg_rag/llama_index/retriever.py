"""`PEGRetriever`: a query in, scored nodes out, over any LlamaIndex vector store that keeps text."""

from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.tools import FunctionTool
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from pydantic import BaseModel, Field

from peg_rag.errors import InvalidInput, UnsupportedSearch
from peg_rag.llama_index.vector_store import MODES, PEGVectorStore
from peg_rag.passages import write_numbered_passages
from peg_rag.retriever import RerankChoice, check_rerank, check_same_model, identity_of

_LEXICAL = (VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE)


class ToolInput(BaseModel):
    """What a model fills in to search."""

    query: str = Field(min_length=1, description="What to look for: a question, or words.")


class PEGRetriever(BaseRetriever):
    """Retrieves in `default`, `hybrid`, `text_search` and `mmr` mode; hybrid and text search need a `PEGVectorStore`.

    A `QueryBundle` that has an embedding keeps it; one with `custom_embedding_strs` gets the mean of theirs. The async
    methods never block the event loop. Hybrid hits of a `PEGVectorStore` are reranked as the store is set up
    (`rerank`); any other reranker goes into the query engine as a postprocessor, as with any retriever.

    Args:
        vector_store: where the nodes are.
        embed_model: makes the query vectors.
        similarity_top_k: nodes for a query.
        mode: how to search.
        filters: metadata filters, applied before the search.
        alpha: for hybrid: from 0 (only BM25 counts) to 1 (only the vectors count); None for equal weights.
        mmr_threshold: for MMR: 1 looks only at relevance, 0 only at difference; None for a half.
        doc_ids: look only at nodes made from these documents.
        rerank: `auto`, `mini` or `none`, for hybrid search; None for the store's own setting.
        vector_store_kwargs: further arguments of the store's `query`.

    Raises:
        IndexMismatch: the store's vectors were made by another model.
        UnsupportedSearch: the store has no lexical side, and the mode needs one.
        InvalidInput: the store keeps no text; or, from `retrieve`, the query is blank.
    """

    def __init__(
        self,
        vector_store: BasePydanticVectorStore,
        embed_model: BaseEmbedding,
        *,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        mode: VectorStoreQueryMode | str = VectorStoreQueryMode.DEFAULT,
        filters: MetadataFilters | None = None,
        alpha: float | None = None,
        mmr_threshold: float | None = None,
        doc_ids: list[str] | None = None,
        rerank: RerankChoice | None = None,
        vector_store_kwargs: dict[str, Any] | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        self._mode = _checked_mode(mode, vector_store)
        check_same_model(vector_store, embed_model)
        self._vector_store = vector_store
        self._embed_model = embed_model
        self._similarity_top_k = similarity_top_k
        self._filters = filters
        self._alpha = alpha
        self._mmr_threshold = mmr_threshold
        self._doc_ids = doc_ids
        self._kwargs = dict(vector_store_kwargs or {})
        if rerank is not None:
            self._kwargs |= _rerank_setting(rerank, self._mode, vector_store)
        super().__init__(callback_manager=callback_manager, verbose=verbose)

    def as_tool(self, *, name: str = "search_documents", description: str | None = None) -> FunctionTool:
        """The retriever as a tool of an agent.

        The model reads the passages numbered, each under its file, headings and page; `raw_output` holds the nodes. It
        searches for the words of the model alone: LlamaIndex's `RetrieverTool` would search for "query is …".

        Args:
            description: which documents these are, and when to look there. The model chooses its tools by it.
        """

        def search(query: str) -> list[NodeWithScore]:
            return self.retrieve(query)

        async def asearch(query: str) -> list[NodeWithScore]:
            return await self.aretrieve(query)

        return FunctionTool.from_defaults(
            search,
            name=name,
            description=description or "Search the documents for passages that answer a question.",
            fn_schema=ToolInput,
            async_fn=asearch,
            callback=_tool_content,
            async_callback=_async_tool_content,
        )

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        embedding = query_bundle.embedding
        if embedding is None and self._mode not in _LEXICAL:
            embedding = self._embed_model.get_agg_embedding_from_queries(_query_strings(query_bundle))
        return _with_scores(self._vector_store.query(self._make_query(query_bundle, embedding), **self._kwargs))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        embedding = query_bundle.embedding
        if embedding is None and self._mode not in _LEXICAL:
            embedding = await self._embed_model.aget_agg_embedding_from_queries(_query_strings(query_bundle))
        return _with_scores(await self._vector_store.aquery(self._make_query(query_bundle, embedding), **self._kwargs))

    def _make_query(self, bundle: QueryBundle, embedding: Embedding | None) -> VectorStoreQuery:
        return VectorStoreQuery(
            query_embedding=embedding,
            query_str=bundle.query_str,
            similarity_top_k=self._similarity_top_k,
            mode=self._mode,
            filters=self._filters,
            alpha=self._alpha,
            mmr_threshold=self._mmr_threshold,
            doc_ids=self._doc_ids,
        )


def _tool_content(nodes: list[NodeWithScore]) -> str:
    return write_numbered_passages((node.metadata, node.get_content(MetadataMode.NONE)) for node in nodes)


async def _async_tool_content(nodes: list[NodeWithScore]) -> str:
    return _tool_content(nodes)


def _checked_mode(mode: VectorStoreQueryMode | str, store: BasePydanticVectorStore) -> VectorStoreQueryMode:
    name = type(store).__name__
    modes = [each.value for each in MODES]
    if mode not in modes:
        raise InvalidInput(f"mode {mode!r} is unknown; there are {', '.join(modes)}")
    checked = VectorStoreQueryMode(mode)
    if not store.stores_text:
        raise InvalidInput(f"{name} keeps no text; use VectorStoreIndex.as_retriever(), which reads it from a docstore")
    if MODES[checked] in ("lexical", "hybrid") and not isinstance(store, PEGVectorStore):
        raise UnsupportedSearch(
            f"{name} is not known to have a lexical side for {checked.value} search; PEGVectorStore has"
        )
    return checked


def _rerank_setting(
    rerank: RerankChoice, mode: VectorStoreQueryMode, store: BasePydanticVectorStore
) -> dict[str, RerankChoice]:
    """For the store's `query`; nothing where it does not search both sides."""
    check_rerank(rerank, MODES[mode], identity_of(store))
    return {"rerank": rerank} if mode == VectorStoreQueryMode.HYBRID else {}


def _query_strings(bundle: QueryBundle) -> list[str]:
    return bundle.embedding_strs or [bundle.query_str]  # a blank query is left to the encoder to refuse


def _with_scores(result: VectorStoreQueryResult) -> list[NodeWithScore]:
    nodes = list(result.nodes or [])
    scores: list[float | None] = list(result.similarities) if result.similarities is not None else [None] * len(nodes)
    return [NodeWithScore(node=node, score=score) for node, score in zip(nodes, scores, strict=True)]
