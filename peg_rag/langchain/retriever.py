"""`PEGRetriever`: `peg_rag.Retriever` as a LangChain `BaseRetriever`, over any `VectorStore`.

Callbacks always see the scores, in the metadata of the documents they are given; the caller sees them on request.
`batch` encodes, searches and reranks all queries together, then reports each as its own run.
"""

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun, Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list, run_in_executor
from langchain_core.vectorstores import VectorStore
from pydantic import BaseModel, ConfigDict, Field

from peg_rag.errors import InvalidInput
from peg_rag.hits import Hit
from peg_rag.langchain.bridges import StoreSearcher, encoder_of
from peg_rag.langchain.vectorstore import PEGVectorStore, document_of
from peg_rag.passages import write_numbered_passages
from peg_rag.retriever import Mode, RerankChoice, Retriever, identity_of

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

SearchType = Literal["similarity", "lexical", "hybrid", "mmr"]
_MODES: dict[SearchType, Mode] = {"similarity": "dense", "lexical": "lexical", "hybrid": "hybrid", "mmr": "mmr"}
_TOOL_FIELDS = {"query", "k", "filter", "search_type"}


@dataclass
class SearchResult:
    """The hits of one query. LangChain's run returns only documents, so the hits are handed through it in this.

    Attributes:
        hits: best first; None until the query is searched, which `batch` does before the run and `invoke` within it.
    """

    hits: list[Hit] | None = None


class ToolInput(BaseModel):
    """What a model fills in to search."""

    query: str = Field(min_length=1, pattern=r"\S", description="What to look for: a question, or words.")


class PEGRetriever(BaseRetriever):
    """Retrieves from any LangChain vector store; lexical and hybrid search need a `PEGVectorStore`.

    `k`, `filter` and `search_type` are set here and can be changed in `invoke` and its kin.

    Raises:
        InvalidInput: the store has no embeddings; from `invoke`: the query is blank.
        UnsupportedSearch: from `invoke`: the store behind it cannot do the search type.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    vectorstore: VectorStore
    k: int = Field(default=4, ge=0, description="Documents for a query.")
    search_type: SearchType = Field(default="similarity", description="similarity, lexical, hybrid or mmr.")
    filter: Any = Field(default=None, description="Metadata filter, in the store's language.")
    score_threshold: float | None = Field(
        default=None, description="Documents that score less in the search itself are left out, before any reranking."
    )
    weights: dict[str, float] | None = Field(default=None, description="For hybrid: what dense and lexical count.")
    fusion: str | None = Field(default=None, description="For hybrid: rrf or convex.")
    fetch_k: int | None = Field(default=None, description="Candidates for fusion, MMR and the reranker.")
    lambda_mult: float = Field(default=0.5, ge=0, le=1, description="For mmr: 1 only relevance, 0 only difference.")
    rerank: BaseCrossEncoder | RerankChoice | None = Field(
        default="auto",
        description="What orders the candidates anew: a cross-encoder; `mini`, the bundled reranker, for hybrid search"
        "; `none`; or `auto`, the bundled one where it was measured, with peg-mini. See `peg_rag.Retriever`.",
    )
    with_scores: bool = Field(default=False, description="Put `score` and `scores` into the documents' metadata.")

    def __init__(self, **fields: Any) -> None:
        super().__init__(**_rename_reranker(fields))
        self._make_retriever()  # here and not in a validator, where pydantic would wrap the error

    def _make_retriever(self) -> Retriever:
        """Made anew for each search, as fields may be assigned to; it holds nothing."""
        store = self.vectorstore
        return Retriever(
            store.index if isinstance(store, PEGVectorStore) else StoreSearcher(store),
            encoder_of(store.embeddings),
            rerank=self.rerank,
            k=self.k,
            mode=_MODES[self.search_type],
            where=self.filter,
            threshold=self.score_threshold,
            weights=self.weights,
            fusion=self.fusion,
            fetch_k=self.fetch_k,
            diversity=1 - self.lambda_mult,
        )

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:  # noqa: A002
        """Documents for a query; `k`, `filter` and `search_type` may be given."""
        return self._invoke_with(SearchResult(), input, config, **kwargs)

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:  # noqa: A002
        """`invoke` off the event loop; the queries of concurrent calls are encoded together."""
        return await self._ainvoke_with(SearchResult(), input, config, **kwargs)

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """`invoke` for many queries, encoded and searched together."""
        results = self._search_or_defer(inputs, **kwargs)
        outcomes: list[Any] = []
        for query, run_config, result in zip(inputs, get_config_list(config, len(inputs)), results, strict=True):
            try:
                outcomes.append(self._invoke_with(result, query, run_config, **kwargs))
            except Exception as error:
                if not return_exceptions:
                    raise
                outcomes.append(error)
        return outcomes

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """`batch` off the event loop."""
        results = await run_in_executor(None, self._search_or_defer, inputs, **kwargs)
        outcomes: list[Any] = []
        for query, run_config, result in zip(inputs, get_config_list(config, len(inputs)), results, strict=True):
            try:
                outcomes.append(await self._ainvoke_with(result, query, run_config, **kwargs))
            except Exception as error:
                if not return_exceptions:
                    raise
                outcomes.append(error)
        return outcomes

    def _invoke_with(
        self, result: SearchResult, query: str, config: RunnableConfig | None, **kwargs: Any
    ) -> list[Document]:
        """Run one query as LangChain reports it, and return the documents as the caller wants them."""
        super().invoke(query, config, result=result, **kwargs)
        return self._make_documents(result)

    async def _ainvoke_with(
        self, result: SearchResult, query: str, config: RunnableConfig | None, **kwargs: Any
    ) -> list[Document]:
        await super().ainvoke(query, config, result=result, **kwargs)
        return self._make_documents(result)

    def _make_documents(self, result: SearchResult) -> list[Document]:
        make_document = _document_with_scores if self.with_scores else document_of
        return [make_document(hit) for hit in result.hits or []]

    def _search_or_defer(self, queries: list[str], **kwargs: Any) -> list[SearchResult]:
        """Search all queries together; when that fails, leave each to its own run, which reports the error."""
        try:
            return [SearchResult(hits) for hits in self._search_batch(queries, **kwargs)]
        except Exception:  # not lost: the query it belongs to raises it again, within its own run
            return [SearchResult() for _ in queries]

    def _search_batch(
        self,
        queries: list[str],
        *,
        k: int | None = None,
        filter: Any = None,  # noqa: A002
        search_type: SearchType | None = None,
    ) -> list[list[Hit]]:
        return self._make_retriever().retrieve_batch(queries, k=k, mode=_mode_of(search_type), where=filter)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Any = None,  # noqa: A002
        search_type: SearchType | None = None,
        result: SearchResult | None = None,
    ) -> list[Document]:
        if result is None:
            result = SearchResult()
        if result.hits is None:
            (result.hits,) = self._search_batch([query], k=k, filter=filter, search_type=search_type)
        return [_document_with_scores(hit) for hit in result.hits]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Any = None,  # noqa: A002
        search_type: SearchType | None = None,
        result: SearchResult | None = None,
    ) -> list[Document]:
        if result is None:
            result = SearchResult()
        if result.hits is None:
            retriever = self._make_retriever()
            result.hits = await retriever.aretrieve(query, k=k, mode=_mode_of(search_type), where=filter)
        return [_document_with_scores(hit) for hit in result.hits]

    def as_tool(
        self,
        args_schema: type[BaseModel] | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        arg_types: dict[str, type] | None = None,
    ) -> "BaseTool":
        """The retriever as a tool of an agent; what is not given says that documents are searched.

        The model reads the passages numbered, each under its file, headings and page; the message's `artifact` holds
        the documents. A blank query is a validation error, which agents give back to the model.

        Args:
            args_schema: what the model fills in, where `query` alone is not enough: fields besides `query` may be `k`,
                `filter` and `search_type`, as for `invoke`.
            name: of the tool; `search_documents`.
            description: which documents these are, and when to look there. The model chooses its tools by it.

        Raises:
            InvalidInput: the schema has no `query` or fields of other names, or `arg_types` are given.
        """
        from langchain_core.tools import StructuredTool

        schema = args_schema or ToolInput
        fields = set(schema.model_fields)
        if arg_types or "query" not in fields or fields - _TOOL_FIELDS:
            raise InvalidInput(
                f"arguments {sorted(arg_types or fields)}: the tool takes an args_schema with `query` and, if wanted, "
                "`k`, `filter` and `search_type`"
            )

        # `callbacks` are those of the tool's run, `config` would be that of its caller.
        def search(query: str, callbacks: Callbacks = None, **settings: Any) -> tuple[str, list[Document]]:
            return _tool_output(self.invoke(query, {"callbacks": callbacks}, **settings))

        async def asearch(query: str, callbacks: Callbacks = None, **settings: Any) -> tuple[str, list[Document]]:
            return _tool_output(await self.ainvoke(query, {"callbacks": callbacks}, **settings))

        return StructuredTool(
            name=name or "search_documents",
            description=description or "Search the documents for passages that answer a question.",
            func=search,
            coroutine=asearch,
            args_schema=schema,
            response_format="content_and_artifact",
        )

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        embeddings = self.vectorstore.embeddings
        model = getattr(embeddings, "model", None) or getattr(embeddings, "model_name", None)
        return LangSmithRetrieverParams(
            ls_retriever_name="peg",
            ls_vector_store_provider=type(self.vectorstore).__name__,
            ls_embedding_provider=type(embeddings).__name__,
            ls_embedding_model=identity_of(encoder_of(embeddings)) if model is None else str(model),
        )


def _rename_reranker(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with `rerank` in place of `reranker`, as it was called before 0.2."""
    if fields.get("reranker") is None:
        return {name: value for name, value in fields.items() if name != "reranker"}
    warnings.warn("PEGRetriever(reranker=…) is deprecated; write rerank=…", DeprecationWarning, stacklevel=3)
    if "rerank" in fields:
        raise InvalidInput(f"reranker= and rerank={fields['rerank']!r} were both given; leave reranker= out")
    renamed = dict(fields)
    renamed["rerank"] = renamed.pop("reranker")
    return renamed


def _tool_output(documents: list[Document]) -> tuple[str, list[Document]]:
    content = write_numbered_passages((document.metadata, document.page_content) for document in documents)
    return content, documents


def _mode_of(search_type: SearchType | None) -> Any:
    """The retriever's name of a search type; an unknown one is left to the retriever to refuse."""
    return None if search_type is None else _MODES.get(search_type, search_type)


def _document_with_scores(hit: Hit) -> Document:
    """The hit as a document with `score`, by which hits are ordered, and the component `scores` in its metadata."""
    metadata = {**hit.metadata, "scores": dict(hit.scores)}
    if not math.isnan(hit.score):  # a store without scores gives NaN
        metadata["score"] = float(hit.score)
    return Document(hit.text, id=hit.id or None, metadata=metadata)
