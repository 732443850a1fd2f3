"""Search over what a server ranks: validation, fusion and hits, the same for every store that is not embedded.

A store brings a `View`: one consistent state of its documents, asked for the best documents of each side and for the
scores of documents that are known. Everything else is here, and is what the embedded index does.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from peg_rag.errors import InvalidInput
from peg_rag.hits import Hit
from peg_rag.index.encodings import Array
from peg_rag.index.fusion import Method, fuse
from peg_rag.index.ranking import Weights, select_diverse
from peg_rag.index.tables import Record
from peg_rag.index.validation import DocumentBatch, Mode, QueryBatch, validate_count, validate_ids

Key = TypeVar("Key", bound=Any)  # of a document; keys are in order of age


class View(Protocol[Key]):
    """One state of the documents that pass a filter. Rankings are dicts of scores by key, best first."""

    def rank_dense(self, vector: Array, k: int) -> dict[Key, float]:
        """The k documents nearest to a (dimension,) unit vector, with their cosines; equal ones in order of age."""

    def rank_lexical(self, text: str, k: int) -> dict[Key, float]:
        """The k best documents that share a term with the text, with their BM25 scores; equal ones in order of age."""

    def score_dense(self, vector: Array, keys: Sequence[Key]) -> dict[Key, float]:
        """The cosines of documents."""

    def score_lexical(self, text: str, keys: Sequence[Key]) -> dict[Key, float]:
        """The BM25 scores of documents; those without a common term may be left out."""

    def read_records(self, keys: Sequence[Key]) -> dict[Key, Record]:
        """Documents by key."""

    def read_vectors(self, keys: Sequence[Key]) -> Array:
        """(n, dimension) unit vectors of (n,) keys."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Scores by name, by key. `order` is best first, and by the scores called `name`."""

    order: Sequence[Any]
    name: str
    components: Mapping[str, Mapping[Any, float]]


class ServerStore(ABC):
    """The part of a `Store` that is the same for all servers."""

    @property
    @abstractmethod
    def dimension(self) -> int | None:
        """Dimension of the vectors; None until the first are written."""

    @abstractmethod
    def _view(self, where: Mapping[str, Any]) -> AbstractContextManager[View[Any]]:
        """One state of the documents that pass a filter."""

    @abstractmethod
    def _write_batch(self, batch: DocumentBatch) -> None:
        """Insert valid documents, replacing those with the same id; at least one."""

    @abstractmethod
    def _delete_ids(self, ids: Sequence[str]) -> int:
        """Delete documents by id."""

    @abstractmethod
    def _delete_matches(self, where: Mapping[str, Any]) -> int:
        """Delete the documents that match a filter."""

    @abstractmethod
    def _get_ids(self, ids: Sequence[str]) -> dict[str, Record]:
        """Documents by id."""

    @abstractmethod
    def _get_matches(self, where: Mapping[str, Any], limit: int | None) -> list[Record]:
        """Documents that match a filter, oldest first."""

    @abstractmethod
    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many documents there are, or match a filter."""

    def __len__(self) -> int:
        return self.count()

    def upsert(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        vectors: Array | Sequence[Sequence[float]],
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Insert documents, replacing those with the same id; as `PEGIndex.upsert`.

        Raises:
            InvalidInput: the lengths differ, or a row is invalid (the message names it).
            IndexMismatch: the vectors have another dimension than those stored.
            StoreError: the server cannot be reached or refused the documents.
        """
        batch = DocumentBatch.validate(ids, texts, vectors, metadatas, self.dimension)
        if len(batch):
            self._write_batch(batch)

    def delete(self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Delete the documents with these ids, or those that match a filter; unknown ids are ignored.

        Returns:
            How many documents were deleted.

        Raises:
            InvalidInput: neither ids nor a filter, both, or an empty filter (`clear()` deletes everything).
            StoreError: the server cannot be reached.
        """
        if (ids is None) == (where is None) or where == {}:
            raise InvalidInput("delete takes either ids or a non-empty filter (where=…); clear() deletes everything")
        if where is not None:
            return self._delete_matches(where)
        names = validate_ids(ids)
        return self._delete_ids(names) if names else 0

    def get(
        self, ids: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None, limit: int | None = None
    ) -> list[Record]:
        """The documents with these ids, in their order and without unknown ids; or all that match a filter.

        Raises:
            InvalidInput: neither ids nor a filter, both, or a negative limit.
            StoreError: the server cannot be reached.
        """
        if (ids is None) == (where is None):
            raise InvalidInput("get takes either ids or a filter (where=…; {} for every document)")
        limit = None if limit is None else validate_count(limit, "limit")
        if where is not None:
            return self._get_matches(where, limit)
        names = validate_ids(ids)
        records = self._get_ids(names) if names else {}
        return [records[name] for name in names if name in records][:limit]

    def search(
        self,
        vector: Array | Sequence[float] | None = None,
        text: str | None = None,
        *,
        k: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        weights: Weights | None = None,
        fetch_k: int | None = None,
        fusion: Method = "convex",
    ) -> list[Hit]:
        """The k best documents for one query, best first; as `PEGIndex.search`."""
        return self.search_batch(
            None if vector is None else [vector],
            None if text is None else [text],
            k=k, mode=mode, where=where, threshold=threshold, weights=weights, fetch_k=fetch_k, fusion=fusion,
        )[0]  # fmt: skip

    def search_batch(
        self,
        vectors: Array | Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        *,
        k: int = 10,
        mode: Mode | None = None,
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        weights: Weights | None = None,
        fetch_k: int | None = None,
        fusion: Method = "convex",
    ) -> list[list[Hit]]:
        """`search` for many queries at once: (q, dimension) vectors and (q,) texts; one list of hits per query."""
        queries = QueryBatch.validate(vectors, texts, mode, k, fetch_k, self.dimension)
        with self._view(where or {}) as view:
            if queries.k == 0 or not len(queries):
                return [[] for _ in range(len(queries))]
            return [
                _build_hits(view, _rank(view, queries, row, weights, fusion), threshold) for row in range(len(queries))
            ]

    def mmr(
        self,
        vector: Array | Sequence[float],
        *,
        k: int = 10,
        fetch_k: int = 50,
        diversity: float = 0.5,
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
    ) -> list[Hit]:
        """k of the fetch_k nearest documents, chosen to be unlike each other; as `PEGIndex.mmr`."""
        if not 0 <= diversity <= 1:
            raise InvalidInput(f"diversity is between 0 and 1, not {diversity}")
        queries = QueryBatch.validate([vector], None, "dense", k, fetch_k, self.dimension)
        assert queries.vectors is not None
        with self._view(where or {}) as view:
            nearest = view.rank_dense(queries.vectors[0], queries.fetch_k) if queries.k else {}
            if not nearest:
                return []
            keys = list(nearest)
            rows = view.read_vectors(keys)
            cosines = np.fromiter(nearest.values(), dtype=np.float32, count=len(keys))
            positions = select_diverse(cosines, rows @ rows.T, min(queries.k, len(keys)), diversity)
            return _build_hits(view, Ranked([keys[i] for i in positions], "dense", {"dense": nearest}), threshold)


def _rank(view: View[Any], queries: QueryBatch, row: int, weights: Weights | None, method: Method) -> Ranked:
    if queries.texts is None:
        assert queries.vectors is not None
        nearest = view.rank_dense(queries.vectors[row], queries.k)
        return Ranked(list(nearest), "dense", {"dense": nearest})
    text = queries.texts[row]
    if queries.vectors is None:
        matches = view.rank_lexical(text, queries.k)
        return Ranked(list(matches), "lexical", {"lexical": matches})
    return _rank_hybrid(view, queries, queries.vectors[row], text, weights, method)


def _rank_hybrid(
    view: View[Any], queries: QueryBatch, vector: Array, text: str, weights: Weights | None, method: Method
) -> Ranked:
    """Fuse the candidates of both sides by both scores, including candidates that only one side contributed."""
    dense = view.rank_dense(vector, queries.fetch_k)
    lexical = view.rank_lexical(text, queries.fetch_k)
    keys = sorted({*dense, *lexical})  # by age, as equal fused scores keep this order
    dense |= view.score_dense(vector, [key for key in keys if key not in dense])
    lexical |= view.score_lexical(text, [key for key in keys if key not in lexical])
    keys = [key for key in keys if key in dense]
    dense = {key: min(max(dense[key], -1.0), 1.0) for key in keys}
    lexical = {key: lexical.get(key, 0.0) for key in keys}
    ranked_terms = lexical
    if method == "rrf":  # a document without a common term has a score, 0, but no rank
        ranked_terms = {key: score for key, score in lexical.items() if score > 0}
    fused = fuse({"dense": dense, "lexical": ranked_terms}, weights, method=method)
    components = {"dense": dense, "lexical": lexical, "fused": fused}
    return Ranked(list(fused)[: queries.k], "fused", components)


def _build_hits(view: View[Any], ranked: Ranked, threshold: float | None) -> list[Hit]:
    scores = ranked.components[ranked.name]
    keys = [key for key in ranked.order if threshold is None or scores[key] >= threshold]
    records = view.read_records(keys)
    return [
        Hit(
            id=records[key].id,
            text=records[key].text,
            score=scores[key],
            scores={name: values[key] for name, values in ranked.components.items()},
            metadata=records[key].metadata,
        )
        for key in keys
        if key in records
    ]
