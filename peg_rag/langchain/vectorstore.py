"""`PEGVectorStore`: the embedded index as a LangChain `VectorStore`. It adds nothing to their cost."""

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from numpy.typing import NDArray

from peg_rag.errors import InvalidInput
from peg_rag.hits import Hit
from peg_rag.index import PEGIndex
from peg_rag.langchain.bridges import encoder_of
from peg_rag.retriever import Retriever, identity_of
from peg_rag.texts import check_texts

Filter = Mapping[str, Any]


class PEGVectorStore(VectorStore):
    """A persistent, incremental store with metadata filters, and dense, lexical and hybrid search.

    Scores are cosines, larger is better; relevance scores are cosines cut to 0-1. Adding a document whose id is there
    replaces it, and what was added is on disk when the call returns. Filters are those of `peg_rag.index.filters`
    and come before the search. The search methods take `filter`, `mode` (`dense`, `lexical`, `hybrid`),
    `score_threshold`, `weights`, `fusion` and `fetch_k`. The async methods run in a thread.

    Args:
        embedding: turns texts into vectors; any LangChain `Embeddings`.
        path: the folder of the index; None for memory.
        index_options: `kind`, `storage`, `tokenizer`, `term_weights`, `read_only`, `timeout_s`; see
            `peg_rag.index.PEGIndex`.

    Raises:
        IndexMismatch: the index was made by another model (an `Embeddings` of another make counts as "unknown").
    """

    def __init__(self, embedding: Embeddings, path: str | Path | None = None, **index_options: Any) -> None:
        self._embedding = embedding
        self._encoder = encoder_of(embedding)
        self.index = PEGIndex(path, identity=identity_of(self._encoder), **index_options)

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

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The k documents nearest to the query; see the class for what else can be asked."""
        return [document_of(hit) for hit in self._retrieve(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """`similarity_search` with scores, larger is better: a cosine, a BM25 score or a fused score by `mode`."""
        return [(document_of(hit), hit.score) for hit in self._retrieve(query, k, **kwargs)]

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

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """`max_marginal_relevance_search` for a vector."""
        return self._search_mmr(_as_vector(embedding), k, fetch_k, lambda_mult, **kwargs)

    def _retrieve(
        self,
        query: str,
        k: int,
        *,
        filter: Filter | None = None,  # noqa: A002
        score_threshold: float | None = None,
        **settings: Any,
    ) -> list[Hit]:
        retriever = Retriever(self.index, self._encoder, k=k, where=filter, threshold=score_threshold, **settings)
        return retriever.retrieve(query)

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
        return lambda cosine: min(1.0, max(0.0, cosine))


def document_of(hit: Hit) -> Document:
    """The hit as a LangChain document, without its scores."""
    return Document(hit.text, id=hit.id or None, metadata=dict(hit.metadata))


def _as_vector(embedding: Sequence[float]) -> NDArray[np.float32]:
    return np.asarray(embedding, dtype=np.float32)
