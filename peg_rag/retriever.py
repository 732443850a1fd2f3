"""`Retriever`: queries in, hits out, over two small protocols and with no framework in sight.

Anything that makes vectors (an `Encoder`: two methods) and anything that searches (a `Searcher`: one method) can stand
behind it, so evaluation, the command line and both frameworks' retrievers share one path from a query to its hits.
Many queries are encoded together, searched together and reranked together; one query is a list of one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import IndexMismatch, InvalidInput, UnsupportedSearch
from peg_rag.hits import Hit
from peg_rag.texts import check_texts

if TYPE_CHECKING:
    from peg_rag.reranking import MiniReranker

Mode = Literal["dense", "lexical", "hybrid", "mmr"]
MODES: tuple[Mode, ...] = ("dense", "lexical", "hybrid", "mmr")
BundledReranker = Literal["mini"]
BUNDLED_RERANKERS: tuple[BundledReranker, ...] = ("mini",)
RERANKED = 50  # candidates that a bundled reranker looks at
UNKNOWN = "unknown"  # the identity of vectors whose model cannot be named


class Encoder(Protocol):
    """Texts to vectors, queries and documents apart, as `PEGEncoder`. An `identity`, if any, names the vector space."""

    def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """Vectors (n, dimension) of queries."""
        ...

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """Vectors (n, dimension) of documents."""
        ...


class Searcher(Protocol):
    """Finds documents, as `PEGIndex`. One that cannot do a mode raises `UnsupportedSearch`."""

    def search_batch(
        self,
        vectors: NDArray[np.float32] | None = None,
        texts: Sequence[str] | None = None,
        *,
        k: int = 10,
        mode: Any = "dense",
        where: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        weights: Any = None,
        fetch_k: int | None = None,
        fusion: Any = "rrf",
    ) -> list[list[Hit]]:
        """At most `k` hits for each query, best first. Vectors (n, dimension) and texts are of the same n queries."""
        ...


class Reranker(Protocol):
    """Scores pairs of query and document; LangChain's `BaseCrossEncoder` is one."""

    def score(self, text_pairs: list[tuple[str, str]], /) -> Sequence[float]:
        """One score for each pair, larger is better."""
        ...


def identity_of(thing: Any) -> str:
    """The name of the vector space an encoder makes or a searcher holds, `unknown` where it gives none."""
    return str(getattr(thing, "identity", None) or UNKNOWN)


def check_same_model(searcher: Any, encoder: Any) -> None:
    """Refuse to compare vectors of two models, as far as both can be named.

    Raises:
        IndexMismatch: they are not the same.
    """
    made_by, asked_by = identity_of(searcher), identity_of(encoder)
    if made_by != asked_by and UNKNOWN not in (made_by, asked_by):
        raise IndexMismatch(
            f"the documents' vectors were made by {made_by}, but queries would be encoded by {asked_by}; "
            "open the index with the model that filled it, or index the documents again"
        )


@dataclass(frozen=True)
class Retriever:
    """Finds the documents for a query.

    Args:
        searcher: where the documents are; `PEGIndex`, or anything with its `search_batch` (and `mmr`, for that mode).
        encoder: makes the query vectors; `PEGEncoder`, or anything with its two methods.
        reranker: scores the candidates again, for example a cross-encoder; its score is then what hits are ordered by.
        k: hits for a query.
        mode: `dense`, `lexical`, `hybrid`, or `mmr` (dense, traded off against likeness among the hits).
        where: metadata filter, applied before the search.
        threshold: hits scoring less are left out, before any reranking.
        weights: how much `dense` and `lexical` count in hybrid mode; None for the searcher's own choice.
        fusion: `rrf` or `convex`, for hybrid mode; None for the searcher's own choice.
        fetch_k: candidates for each ranking, for MMR and for the reranker; None for four times k, 20 at least.
        diversity: for MMR, from 0 (only relevance counts) to 1 (only difference counts).
        rerank: `mini` for the bundled reranker, in mode `hybrid`; it looks at `fetch_k` candidates, 50 if None.

    Raises:
        IndexMismatch: the documents' vectors were made by another model than the encoder's.
        InvalidInput: an unknown mode or bundled reranker, two rerankers, or `rerank` in another mode than hybrid.
    """

    searcher: Searcher
    encoder: Encoder
    reranker: Reranker | None = None
    k: int = 10
    mode: Mode = "dense"
    where: Any = None
    threshold: float | None = None
    weights: Any = None
    fusion: str | None = None
    fetch_k: int | None = None
    diversity: float = 0.5
    rerank: BundledReranker | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidInput(f"mode {self.mode!r} is unknown; there are {', '.join(MODES)}")
        if self.rerank is not None:
            self._check_rerank(self.rerank)
        check_same_model(self.searcher, self.encoder)

    def retrieve(self, query: str, *, k: int | None = None, mode: Mode | None = None, where: Any = None) -> list[Hit]:
        """Hits for one query, best first. What is not given is as the retriever was made; `where={}` drops its filter.

        Raises:
            InvalidInput: the query is blank or not a string.
            UnsupportedSearch: the searcher cannot do this mode.
        """
        return self.retrieve_batch([query], k=k, mode=mode, where=where)[0]

    def retrieve_batch(
        self, queries: Sequence[str], *, k: int | None = None, mode: Mode | None = None, where: Any = None
    ) -> list[list[Hit]]:
        """`retrieve` for many queries at once: one call to the encoder, one search, one call to the reranker."""
        changes: dict[str, Any] = {
            name: value for name, value in (("k", k), ("mode", mode), ("where", where)) if value is not None
        }
        asked = replace(self, **changes)
        texts = check_texts(queries, what="queries")
        if not texts:
            return []
        found = asked._candidates(texts)
        if asked.rerank is not None:
            return asked._reranked_by_features(texts, found)
        return found if asked.reranker is None else asked._reranked(asked.reranker, texts, found)

    def _candidates(self, texts: list[str]) -> list[list[Hit]]:
        vectors = None if self.mode == "lexical" else self.encoder.encode_queries(texts)  # (queries, dimension)
        shared: dict[str, Any] = {"k": self._wanted(), "where": self.where or None, "threshold": self.threshold}
        if self.mode == "mmr":
            search = getattr(self.searcher, "mmr", None)
            if search is None or vectors is None:
                raise UnsupportedSearch(f"{type(self.searcher).__name__} cannot search for diverse hits (mode 'mmr')")
            fetch_k = self.fetch_k or _candidates_for(self._wanted())
            return [search(vector, **shared, fetch_k=fetch_k, diversity=self.diversity) for vector in vectors]
        own = {"weights": self.weights, "fusion": self.fusion, "fetch_k": self.fetch_k}
        given = {name: value for name, value in own.items() if value is not None}
        asked_by_text = None if self.mode == "dense" else texts
        return self.searcher.search_batch(vectors, asked_by_text, mode=self.mode, **shared, **given)

    def _wanted(self) -> int:
        """Hits to ask the searcher for: the reranker needs more to choose from."""
        if self.rerank is not None and self.k > 0:
            return max(self.k, self.fetch_k or RERANKED)
        return self.k if self.reranker is None or self.k == 0 else max(self.k, self.fetch_k or _candidates_for(self.k))

    def _reranked(self, reranker: Reranker, texts: list[str], found: list[list[Hit]]) -> list[list[Hit]]:
        pairs = [(text, hit.text) for text, hits in zip(texts, found, strict=True) for hit in hits]
        scores = [float(score) for score in reranker.score(pairs)] if pairs else []
        if len(scores) != len(pairs):
            raise InvalidInput(f"the reranker gave {len(scores)} scores for {len(pairs)} pairs of query and document")
        following = iter(scores)
        return [self._best([_rescored(hit, next(following)) for hit in hits]) for hits in found]

    def _reranked_by_features(self, texts: list[str], found: list[list[Hit]]) -> list[list[Hit]]:
        reranker = _load_reranker(str(self.rerank))
        scores = [reranker.score_hits(text, hits).tolist() for text, hits in zip(texts, found, strict=True)]
        return [self._best(list(map(_rescored, hits, row))) for hits, row in zip(found, scores, strict=True)]

    def _check_rerank(self, name: str) -> None:
        if name not in BUNDLED_RERANKERS:
            raise InvalidInput(f"rerank={name!r} is unknown; there is {', '.join(map(repr, BUNDLED_RERANKERS))}")
        if self.reranker is not None:
            raise InvalidInput(f"rerank={name!r} and a reranker of your own were both given; leave one out")
        if self.mode != "hybrid":
            raise InvalidInput(f"rerank={name!r} orders the hits of a hybrid search, not of mode {self.mode!r}")

    def _best(self, hits: list[Hit]) -> list[Hit]:
        return sorted(hits, key=lambda hit: -hit.score)[: self.k]


def _load_reranker(name: str) -> "MiniReranker":
    from peg_rag.reranking import load_reranker  # imported when first needed

    return load_reranker(name)


def _candidates_for(k: int) -> int:
    return max(4 * k, 20)


def _rescored(hit: Hit, score: float) -> Hit:
    return replace(hit, score=score, scores={**hit.scores, "rerank": score})
