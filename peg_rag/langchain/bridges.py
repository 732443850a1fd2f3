"""Any LangChain `Embeddings` as an encoder and any LangChain `VectorStore` as a searcher, for `peg_rag.Retriever`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from numpy.typing import NDArray

from peg_rag.errors import InvalidInput, UnsupportedSearch
from peg_rag.hits import Hit
from peg_rag.langchain.embeddings import PEGEmbeddings
from peg_rag.retriever import Encoder

# What stores call a search by vector that also answers with scores; the base class knows none.
_BY_VECTOR = ("similarity_search_with_score_by_vector", "similarity_search_by_vector_with_relevance_scores")


class EmbeddingsEncoder:
    """A LangChain `Embeddings` of another make behind the encoder's two methods.

    Its vector space has no name, unless it is a cache (`CacheBackedEmbeddings`) around `PEGEmbeddings`: then it is
    theirs. Such a cache needs `namespace=embeddings.identity`, or it may hand out the vectors of another model.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings

    @property
    def identity(self) -> str | None:
        """The name of the vector space, where it is known."""
        inner = getattr(self.embeddings, "underlying_embeddings", None)
        return None if inner is None else getattr(encoder_of(inner), "identity", None)

    def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """Vectors (n, dimension); one by one, since that is all the interface has."""
        return np.array([self.embeddings.embed_query(text) for text in texts], dtype=np.float32)

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """Vectors (n, dimension)."""
        return np.array(self.embeddings.embed_documents(list(texts)), dtype=np.float32)


def encoder_of(embeddings: Embeddings | None) -> Encoder:
    """The encoder behind LangChain embeddings.

    Raises:
        InvalidInput: there are none.
    """
    if embeddings is None:
        raise InvalidInput(
            "the vector store has no embeddings, so a query cannot be turned into a vector; give it some"
        )
    return embeddings.encoder if isinstance(embeddings, PEGEmbeddings) else EmbeddingsEncoder(embeddings)


class StoreSearcher:
    """A LangChain `VectorStore` of another make behind the searcher's one method: dense search and MMR only.

    Filters are handed on as they are, in the store's own language. Scores are the store's relevance (0-1) where it
    defines one, else its raw score; a store that gives no scores by vector has NaN.
    """

    def __init__(self, store: VectorStore) -> None:
        self.store = store

    def search_batch(
        self,
        vectors: NDArray[np.float32] | None = None,
        texts: Sequence[str] | None = None,
        *,
        k: int = 10,
        mode: Any = "dense",
        where: Any = None,
        threshold: float | None = None,
        weights: Any = None,
        fetch_k: int | None = None,
        fusion: Any = "rrf",
    ) -> list[list[Hit]]:
        """At most `k` hits for each of the vectors (n, dimension).

        Raises:
            UnsupportedSearch: any mode but `dense`.
        """
        name = type(self.store).__name__
        if mode != "dense" or vectors is None:
            raise UnsupportedSearch(f"{name} has no lexical side, so it cannot do {mode} search; PEGVectorStore can")
        hit_lists = [self._search_by_vector(vector.tolist(), k, where) for vector in vectors]
        return [[hit for hit in hits if threshold is None or hit.score >= threshold] for hits in hit_lists]

    def mmr(
        self,
        vector: NDArray[np.float32],
        *,
        k: int,
        fetch_k: int,
        diversity: float,
        where: Any = None,
        threshold: float | None = None,
    ) -> list[Hit]:
        """At most `k` hits for one vector (dimension,), traded off against likeness among them; without scores.

        Raises:
            UnsupportedSearch: a threshold was given, which needs scores.
        """
        if threshold is not None:
            raise UnsupportedSearch(f"{type(self.store).__name__} gives no scores with MMR, so no threshold can be set")
        documents = self.store.max_marginal_relevance_search_by_vector(
            vector.tolist(), k=k, fetch_k=fetch_k, lambda_mult=1 - diversity, **_filter_arguments(where)
        )
        return [_hit_of(document) for document in documents]

    def _search_by_vector(self, vector: list[float], k: int, where: Any) -> list[Hit]:
        search = next((method for name in _BY_VECTOR if (method := getattr(self.store, name, None))), None)
        if k == 0:
            return []
        if search is None:
            documents = self.store.similarity_search_by_vector(vector, k=k, **_filter_arguments(where))
            return [_hit_of(document) for document in documents]
        relevance = self._relevance_function()
        return [
            _hit_of(document, relevance(float(score)))
            for document, score in search(vector, k=k, **_filter_arguments(where))
        ]

    def _relevance_function(self) -> Callable[[float], float]:
        try:
            return self.store._select_relevance_score_fn()
        except NotImplementedError:
            return lambda score: score


def _filter_arguments(where: Any) -> dict[str, Any]:
    return {} if where is None else {"filter": where}


def _hit_of(document: Document, score: float | None = None) -> Hit:
    scores: Mapping[str, float] = {}
    total = float("nan")
    if score is not None:
        scores = {"dense": score}
        total = score
    return Hit(document.id or "", document.page_content, total, scores, document.metadata)
