"""`PEGVectorStore`: the embedded index as a LangChain `VectorStore`. It adds nothing to their cost."""

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables.config import run_in_executor
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from numpy.typing import NDArray

from peg_rag.errors import InvalidInput, UnsupportedSearch
from peg_rag.hits import Hit
from peg_rag.langchain.bridges import encoder_of
from peg_rag.retriever import Retriever, encode_queries_async, identity_of
from peg_rag.stores import open_store
from peg_rag.texts import check_texts

Filter = Mapping[str, Any]
_OWN_SEARCH_TYPES = ("hybrid", "lexical")


class PEGVectorStore(VectorStore):
    """A persistent, incremental store with metadata filters, and dense, lexical and hybrid search.

    Scores are cosines, larger is better. Relevance scores are cosines cut to 0-1, in hybrid search too: its fused score
    compares the hits of one query with each other, so the best one scores about 1 however irrelevant it is.

    Adding a document whose id is there replaces it, and what was added is on disk when the call returns. Filters are
    those of `peg_rag.index.filters` and come before the search. The search methods take `filter`, `mode` (`dense`,
    `lexical`, `hybrid`), `score_threshold`, `weights`, `fusion` and `fetch_k`. The async methods never block the event
    loop, and the queries of concurrent searches are encoded together.

    Args:
        embedding: turns texts into vectors; any LangChain `Embeddings`.
        path: the folder of the index, or the URL of a store on a server (`postgresql://…`, `milvus://…`); None for
            memory.
        index_options: `kind`, `storage`, `tokenizer`, `term_weights`, `read_only`, `timeout_s`, as far as the store has
            them; see `peg_rag.stores.open_store`.

    Raises:
        IndexMismatch: the index was made by another model (an `Embeddings` of another make counts as "unknown").
    """

    def __init__(self, embedding: Embeddings, path: str | Path | None = None, **index_options: Any) -> None:
        self._embedding = embedding
        self._encoder = encoder_of(embedding)
        self.index = open_store(path, identity=identity_of(self._encoder), **index_options)

    @property
    def embeddings(self) -> Embeddings:
        return self._embedding

    def close(self) -> None:
        """Close the index's files; the embeddings stay open."""
        self.index.close()

    # -- writing ------------------------------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, replacing those whose id is there; all of them or, on an error, none. Returns the ids.

        Args:
            texts: embedded in one call, whatever `batch_size` other stores would need.
            metadatas: one dict for each text.
            ids: one for each text; one that is None is made up.

        Raises:
            InvalidInput: an item cannot be used, or the numbers of texts, metadatas and ids differ.
        """
        bodies = check_texts(texts)
        requested_ids: Sequence[str | None] = ids if ids is not None else [None] * len(bodies)
        names = [str(uuid.uuid4()) if name is None else name for name in requested_ids]
        if len(names) != len(bodies):
            raise InvalidInput(f"{len(bodies)} texts but {len(names)} ids; give one id for each text")
        if bodies:
            self.index.upsert(names, bodies, self._encoder.encode_documents(bodies), metadatas or None)
        return names

    def delete(self, ids: list[str] | None = None, *, filter: Filter | None = None, **kwargs: Any) -> bool:  # noqa: A002
        """Delete by id, or what matches a filter; everything when neither is given. Unknown ids are ignored."""
        if ids is None and filter is None:
            self.index.clear()
        else:
            self.index.delete(ids, where=filter)
        return True

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | Path | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store at `path` with these texts added to what is there."""
        store = cls(embedding, path, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    # -- reading ------------------------------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, those missing left out."""
        return [
            Document(record.text, id=record.id, metadata=dict(record.metadata)) for record in self.index.get(list(ids))
        ]

    def as_retriever(self, **kwargs: Any) -> "PEGVectorStoreRetriever":
        """LangChain's own retriever over this store, which knows `search_type` `hybrid` and `lexical`, too.

        `PEGRetriever` offers more: reranking, scores in the metadata, queries in batches.

        Args:
            kwargs: `search_type`: `similarity` (default), `mmr`, `similarity_score_threshold`, `hybrid` or `lexical`;
                `search_kwargs`: arguments of the search. A `score_threshold` among them is a relevance score, 0 to 1,
                for `similarity_score_threshold` and `hybrid`, and a BM25 score for `lexical`.
        """
        tags = kwargs.pop("tags", None) or self._get_retriever_tags()
        return PEGVectorStoreRetriever(vectorstore=self, tags=tags, **kwargs)

    def search(self, query: str, search_type: str, **kwargs: Any) -> list[Document]:
        """The documents for a query, by one of the search types of `as_retriever`.

        Raises:
            InvalidInput: `mode` names another search than the search type.
        """
        if search_type in _OWN_SEARCH_TYPES and kwargs.pop("mode", search_type) != search_type:
            raise InvalidInput(f"search_type={search_type!r} and another mode were both given; leave mode out")
        if search_type == "lexical":
            return self.similarity_search(query, mode="lexical", **kwargs)
        if search_type == "hybrid":
            pairs = self.similarity_search_with_relevance_scores(query, mode="hybrid", **kwargs)
            return [document for document, _ in pairs]
        return super().search(query, search_type, **kwargs)

    async def asearch(self, query: str, search_type: str, **kwargs: Any) -> list[Document]:
        """`search` off the event loop."""
        if search_type == "lexical":
            return await self.asimilarity_search(query, mode="lexical", **kwargs)
        if search_type == "hybrid":
            pairs = await self.asimilarity_search_with_relevance_scores(query, mode="hybrid", **kwargs)
            return [document for document, _ in pairs]
        return await super().asearch(query, search_type, **kwargs)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The k documents nearest to the query; see the class for what else can be asked."""
        return [document_of(hit) for hit in self._retrieve_hits(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """`similarity_search` with scores, larger is better: a cosine, a BM25 score or a fused score by `mode`."""
        return [(document_of(hit), hit.score) for hit in self._retrieve_hits(query, k, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """`similarity_search` off the event loop."""
        return [document_of(hit) for hit in await self._aretrieve_hits(query, k, **kwargs)]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """`similarity_search_with_score` off the event loop."""
        return [(document_of(hit), hit.score) for hit in await self._aretrieve_hits(query, k, **kwargs)]

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """The k documents nearest to a vector."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, **kwargs)]

    def similarity_search_with_score_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Filter | None = None,  # noqa: A002
        score_threshold: float | None = None,
    ) -> list[tuple[Document, float]]:
        """The k documents nearest to a vector, with their cosines."""
        hits = self.index.search(_as_vector(embedding), k=k, where=filter, threshold=score_threshold, mode="dense")
        return [(document_of(hit), hit.score) for hit in hits]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """k of the fetch_k documents nearest to the query, chosen to differ; `lambda_mult` 1 looks only at nearness."""
        vector = self._encoder.encode_queries([query])[0]  # (dimension,)
        return self._search_mmr(vector, k, fetch_k, lambda_mult, **kwargs)

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """`max_marginal_relevance_search` off the event loop."""
        vector = (await encode_queries_async(self._encoder, [query]))[0]  # (dimension,)
        return await run_in_executor(None, self._search_mmr, vector, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """`max_marginal_relevance_search` for a vector."""
        return self._search_mmr(_as_vector(embedding), k, fetch_k, lambda_mult, **kwargs)

    def _retrieve_hits(self, query: str, k: int, **settings: Any) -> list[Hit]:
        return self._make_retriever(k, **settings).retrieve(query)

    async def _aretrieve_hits(self, query: str, k: int, **settings: Any) -> list[Hit]:
        return await self._make_retriever(k, **settings).aretrieve(query)

    def _make_retriever(
        self,
        k: int,
        *,
        filter: Filter | None = None,  # noqa: A002
        score_threshold: float | None = None,
        **settings: Any,
    ) -> Retriever:
        return Retriever(self.index, self._encoder, k=k, where=filter, threshold=score_threshold, **settings)

    def _search_mmr(
        self,
        vector: NDArray[np.float32],
        k: int,
        fetch_k: int,
        lambda_mult: float,
        filter: Filter | None = None,  # noqa: A002
    ) -> list[Document]:
        hits = self.index.mmr(vector, k=k, fetch_k=fetch_k, diversity=1 - lambda_mult, where=filter)
        return [document_of(hit) for hit in hits]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return _clip_cosine

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        _check_relevance(kwargs)
        return [_with_relevance(hit) for hit in self._retrieve_hits(query, k, **kwargs)]

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        _check_relevance(kwargs)
        return [_with_relevance(hit) for hit in await self._aretrieve_hits(query, k, **kwargs)]


class PEGVectorStoreRetriever(VectorStoreRetriever):
    """What `PEGVectorStore.as_retriever` returns: LangChain's retriever with `hybrid` and `lexical` search."""

    vectorstore: VectorStore  # a PEGVectorStore
    allowed_search_types: ClassVar[Collection[str]] = (*VectorStoreRetriever.allowed_search_types, *_OWN_SEARCH_TYPES)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        if self.search_type in _OWN_SEARCH_TYPES:
            return self.vectorstore.search(query, self.search_type, **(self.search_kwargs | kwargs))
        return super()._get_relevant_documents(query, run_manager=run_manager, **kwargs)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        if self.search_type in _OWN_SEARCH_TYPES:
            return await self.vectorstore.asearch(query, self.search_type, **(self.search_kwargs | kwargs))
        return await super()._aget_relevant_documents(query, run_manager=run_manager, **kwargs)


def _check_relevance(settings: Mapping[str, Any]) -> None:
    if settings.get("mode") == "lexical":
        raise UnsupportedSearch(
            "BM25 scores have no upper end, so lexical search has no relevance score; use mode 'hybrid' or "
            "'dense', or similarity_search(score_threshold=…) with a BM25 score"
        )


def _with_relevance(hit: Hit) -> tuple[Document, float]:
    return document_of(hit), _clip_cosine(hit.scores["dense"])


def _clip_cosine(cosine: float) -> float:
    return min(1.0, max(0.0, float(cosine)))


def document_of(hit: Hit) -> Document:
    """The hit as a LangChain document, without its scores."""
    return Document(hit.text, id=hit.id or None, metadata=dict(hit.metadata))


def _as_vector(embedding: Sequence[float]) -> NDArray[np.float32]:
    return np.asarray(embedding, dtype=np.float32)
