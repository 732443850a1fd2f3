"""`Retriever`: queries in, hits out, over two small protocols and with no framework in sight.

Anything that makes vectors (an `Encoder`: two methods) and anything that searches (a `Searcher`: one method) can stand
behind it, so evaluation, the command line and both frameworks' retrievers share one path from a query to its hits.
Many queries are encoded together, searched together and reranked together; one query is a list of one. Concurrent
async calls are encoded together, too.

What a hybrid search finds is ordered anew by the bundled reranker where it was trained for the model (`peg-mini`):
2.9 points of nDCG@10 for 4 to 14 ms a query (`train/results/reranker.md`).
"""

import asyncio
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import IndexMismatch, InvalidInput, UnsupportedSearch
from peg_rag.hits import Hit
from peg_rag.texts import check_texts

if TYPE_CHECKING:
    from peg_rag.reranking import MiniReranker

Mode = Literal["dense", "lexical", "hybrid", "mmr"]
MODES: tuple[Mode, ...] = ("dense", "lexical", "hybrid", "mmr")
RerankChoice = Literal["auto", "mini", "none"]
RERANK_CHOICES: tuple[RerankChoice, ...] = get_args(RerankChoice)
RERANKED = 50  # candidates that the bundled reranker looks at
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


async def encode_queries_async(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors (n, dimension) of queries, in a batch with concurrent calls where the encoder can, else in a thread."""
    return await _encode_async(encoder, "aencode_queries", encoder.encode_queries, texts)


async def encode_documents_async(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors (n, dimension) of documents; as `encode_queries_async`."""
    return await _encode_async(encoder, "aencode_documents", encoder.encode_documents, texts)


async def _encode_async(
    encoder: Encoder, name: str, encode: Callable[[Sequence[str]], NDArray[np.float32]], texts: Sequence[str]
) -> NDArray[np.float32]:
    encode_async = getattr(encoder, name, None)
    if encode_async is None:
        return await asyncio.to_thread(encode, texts)
    vectors: NDArray[np.float32] = await encode_async(texts)
    return vectors


def check_same_model(searcher: Any, encoder: Any) -> None:
    """Refuse to compare vectors of two models, as far as both can be named.

    Raises:
        IndexMismatch: they are not the same.
    """
    document_model = identity_of(searcher)
    query_model = identity_of(encoder)
    if document_model != query_model and UNKNOWN not in (document_model, query_model):
        raise IndexMismatch(
            f"the documents' vectors were made by {document_model}, but queries would be encoded by {query_model}; "
            "open the index with the model that filled it, or index the documents again"
        )


def choose_bundled(
    rerank: RerankChoice | None, identity: str, *, weights: Any = None, fusion: str | None = None
) -> "MiniReranker | None":
    """The bundled reranker for a hybrid search; None where it is not wanted or, for `auto`, was not measured.

    It was trained and measured on `peg-mini`'s vectors and the index's own mix of both sides.

    Args:
        identity: names the vector space that is searched; `unknown` passes for `mini` and not for `auto`.
        weights, fusion: of the search; None for the index's own.

    Raises:
        InvalidInput: an unknown choice, or `mini` for vectors of another model.
    """
    is_wanted = _wants_bundled(rerank, identity, weights, fusion)
    return _load_reranker() if is_wanted else None


def check_rerank(rerank: RerankChoice | None, mode: Mode, identity: str) -> None:
    """Refuse what `choose_bundled` would, and `mini` where the search is not hybrid; loads nothing.

    Raises:
        InvalidInput: see above.
    """
    if rerank != "auto":
        _wants_bundled(rerank, identity)
    if rerank == "mini" and mode != "hybrid":
        raise InvalidInput(f"rerank='mini' orders the hits of a hybrid search, not of mode {mode!r}")


def _wants_bundled(rerank: str | None, identity: str, weights: Any = None, fusion: str | None = None) -> bool:
    if rerank is not None and rerank not in RERANK_CHOICES:
        raise InvalidInput(f"rerank={rerank!r} is unknown; there are {', '.join(map(repr, RERANK_CHOICES))} and None")
    if rerank is None or rerank == "none":
        return False
    model = _model_of_reranker()
    is_its_model = identity.partition("/")[0] == model
    if rerank == "auto":
        return is_its_model and weights is None and fusion in (None, "convex")
    if not is_its_model and identity != UNKNOWN:
        raise InvalidInput(
            f"rerank='mini' was trained on the scores of {model}, and the vectors are of {identity}; leave rerank out, "
            "or give a reranker of your own, such as a cross-encoder"
        )
    return True


@dataclass(frozen=True)
class Retriever:
    """Finds the documents for a query.

    Args:
        searcher: where the documents are; `PEGIndex`, or anything with its `search_batch` (and `mmr`, for that mode).
        encoder: makes the query vectors; `PEGEncoder`, or anything with its two methods.
        rerank: what orders the candidates anew. `auto`: the bundled reranker, where it was measured: hybrid search by
            the index's own mix, with `peg-mini`. `mini`: the same, or an error where it does not apply. `none` or None:
            nothing. Or an object with `score`, such as a cross-encoder, in any mode.
        k: hits for a query.
        mode: `dense`, `lexical`, `hybrid`, or `mmr` (dense, traded off against likeness among the hits).
        where: metadata filter, applied before the search.
        threshold: hits that score less in the search itself (in `hybrid`: whose `fused` score is less) are left out,
            whatever a reranker makes of them.
        weights: how much `dense` and `lexical` count in hybrid mode; None for the searcher's own choice.
        fusion: `rrf` or `convex`, for hybrid mode; None for the searcher's own choice.
        fetch_k: candidates for each ranking, for MMR and for the reranker; None for 50 for the bundled reranker, four
            times k, 20 at least, for another.
        diversity: for MMR, from 0 (only relevance counts) to 1 (only difference counts).
        reranker: deprecated; an object for `rerank`.

    Raises:
        IndexMismatch: the documents' vectors were made by another model than the encoder's.
        InvalidInput: an unknown mode or reranker, or `mini` in another mode than hybrid or for another model.
    """

    searcher: Searcher
    encoder: Encoder
    rerank: Reranker | RerankChoice | None = "auto"
    k: int = 10
    mode: Mode = "dense"
    where: Any = None
    threshold: float | None = None
    weights: Any = None
    fusion: str | None = None
    fetch_k: int | None = None
    diversity: float = 0.5
    reranker: InitVar[Reranker | None] = None

    def __post_init__(self, reranker: Reranker | None) -> None:
        if reranker is not None:
            self._adopt_reranker(reranker)
        if self.mode not in MODES:
            raise InvalidInput(f"mode {self.mode!r} is unknown; there are {', '.join(MODES)}")
        check_same_model(self.searcher, self.encoder)
        self._check_rerank()

    def retrieve(self, query: str, *, k: int | None = None, mode: Mode | None = None, where: Any = None) -> list[Hit]:
        """Hits for one query, best first. What is not given is as the retriever was made; `where={}` drops its filter.

        Raises:
            InvalidInput: the query is blank or not a string.
            UnsupportedSearch: the searcher cannot do this mode.
        """
        return self.retrieve_batch([query], k=k, mode=mode, where=where)[0]

    def retrieve_batch(
        self,
        queries: Sequence[str],
        *,
        k: int | None = None,
        mode: Mode | None = None,
        where: Any = None,
        vectors: NDArray[np.float32] | None = None,
    ) -> list[list[Hit]]:
        """`retrieve` for many queries at once: one call to the encoder, one search, one call to the reranker.

        Args:
            vectors: the queries' vectors (queries, dimension), where the caller has them; None to encode the queries.

        Raises:
            InvalidInput: a query is blank or not a string, or there is not one vector for each.
            UnsupportedSearch: the searcher cannot do this mode.
        """
        search = self._change_settings(k, mode, where)
        texts = check_texts(queries, what="queries")
        if vectors is not None and len(vectors) != len(texts):
            raise InvalidInput(f"{len(vectors):,} vectors for {len(texts):,} queries; one for each is expected")
        if not texts:
            return []
        if search.mode == "lexical":
            vectors = None
        elif vectors is None:
            vectors = search.encoder.encode_queries(texts)
        return search._search_and_rerank(texts, vectors)

    async def aretrieve(
        self, query: str, *, k: int | None = None, mode: Mode | None = None, where: Any = None
    ) -> list[Hit]:
        """`retrieve` off the event loop: the queries of concurrent calls are encoded together."""
        return (await self.aretrieve_batch([query], k=k, mode=mode, where=where))[0]

    async def aretrieve_batch(
        self, queries: Sequence[str], *, k: int | None = None, mode: Mode | None = None, where: Any = None
    ) -> list[list[Hit]]:
        """`retrieve_batch` off the event loop: the queries of concurrent calls are encoded together."""
        search = self._change_settings(k, mode, where)
        texts = check_texts(queries, what="queries")
        if not texts:
            return []
        vectors = None if search.mode == "lexical" else await encode_queries_async(search.encoder, texts)
        return await asyncio.to_thread(search._search_and_rerank, texts, vectors)

    def _change_settings(self, k: int | None, mode: Mode | None, where: Any) -> "Retriever":
        changes: dict[str, Any] = {
            name: value for name, value in (("k", k), ("mode", mode), ("where", where)) if value is not None
        }
        return replace(self, **changes)

    def _search_and_rerank(self, texts: list[str], vectors: NDArray[np.float32] | None) -> list[list[Hit]]:
        """Hits for each text; its vectors (queries, dimension) are None where the mode is lexical."""
        bundled = self._choose_bundled()
        if bundled is not None:
            return self._search_with_bundled(bundled, texts, vectors)
        if self.rerank is None or isinstance(self.rerank, str):
            return self._search(texts, vectors, self.k, self.threshold)
        return self._search_with_scorer(self.rerank, texts, vectors)

    def _search(
        self, texts: list[str], vectors: NDArray[np.float32] | None, k: int, threshold: float | None
    ) -> list[list[Hit]]:
        """k hits for each text as the searcher orders them."""
        arguments: dict[str, Any] = {"k": k, "where": self.where or None, "threshold": threshold}
        if self.mode == "mmr":
            search = getattr(self.searcher, "mmr", None)
            if search is None or vectors is None:
                raise UnsupportedSearch(f"{type(self.searcher).__name__} cannot search for diverse hits (mode 'mmr')")
            fetch_k = self.fetch_k or _count_candidates(k)
            return [search(vector, **arguments, fetch_k=fetch_k, diversity=self.diversity) for vector in vectors]
        settings = {"weights": self.weights, "fusion": self.fusion, "fetch_k": self.fetch_k}
        options = {name: value for name, value in settings.items() if value is not None}
        query_texts = None if self.mode == "dense" else texts
        return self.searcher.search_batch(vectors, query_texts, mode=self.mode, **arguments, **options)

    def _search_with_bundled(
        self, bundled: "MiniReranker", texts: list[str], vectors: NDArray[np.float32] | None
    ) -> list[list[Hit]]:
        """The bundled reranker compares a hit with the other candidates, so it sees those below the threshold too."""
        candidates = self.fetch_k or RERANKED
        hit_lists = self._search(texts, vectors, max(self.k, candidates) if self.k > 0 else self.k, None)
        return [
            self._apply_bundled(bundled, text, hits, candidates) for text, hits in zip(texts, hit_lists, strict=True)
        ]

    def _apply_bundled(self, bundled: "MiniReranker", text: str, hits: list[Hit], candidates: int) -> list[Hit]:
        if self.rerank == "auto" and not _has_hybrid_scores(hits):  # a searcher of another make may keep them to itself
            return [hit for hit in hits if self.threshold is None or hit.score >= self.threshold][: self.k]
        return bundled.rerank_hits(text, hits, candidates=candidates, threshold=self.threshold)[: self.k]

    def _search_with_scorer(
        self, scorer: Reranker, texts: list[str], vectors: NDArray[np.float32] | None
    ) -> list[list[Hit]]:
        k = max(self.k, self.fetch_k or _count_candidates(self.k)) if self.k > 0 else self.k
        hit_lists = self._search(texts, vectors, k, self.threshold)
        pairs = [(text, hit.text) for text, hits in zip(texts, hit_lists, strict=True) for hit in hits]
        scores = [float(score) for score in scorer.score(pairs)] if pairs else []
        if len(scores) != len(pairs):
            raise InvalidInput(f"the reranker gave {len(scores)} scores for {len(pairs)} pairs of query and document")
        remaining_scores = iter(scores)
        new_lists = [[_rescore(hit, next(remaining_scores)) for hit in hits] for hits in hit_lists]
        return [sorted(hits, key=lambda hit: -hit.score)[: self.k] for hits in new_lists]

    def _choose_bundled(self) -> "MiniReranker | None":
        if self.mode != "hybrid" or not (self.rerank is None or isinstance(self.rerank, str)):
            return None
        return choose_bundled(self.rerank, identity_of(self.encoder), weights=self.weights, fusion=self.fusion)

    def _check_rerank(self) -> None:
        if self.rerank is None or isinstance(self.rerank, str):
            check_rerank(self.rerank, self.mode, identity_of(self.encoder))
        elif not hasattr(self.rerank, "score"):
            kind = type(self.rerank).__name__
            raise InvalidInput(f"rerank is of type {kind}; an object with `score`, a name or None is expected")

    def _adopt_reranker(self, reranker: Reranker) -> None:
        warnings.warn("Retriever(reranker=…) is deprecated; write rerank=…", DeprecationWarning, stacklevel=4)
        if self.rerank != "auto":
            raise InvalidInput(f"reranker= and rerank={self.rerank!r} were both given; leave reranker= out")
        object.__setattr__(self, "rerank", reranker)


def _load_reranker() -> "MiniReranker":
    from peg_rag.reranking import load_reranker  # imported when first needed

    return load_reranker("mini")


def _model_of_reranker() -> str:
    from peg_rag.reranking import model_of_reranker

    return model_of_reranker("mini")


def _has_hybrid_scores(hits: Sequence[Hit]) -> bool:
    from peg_rag.reranking import has_hybrid_scores

    return has_hybrid_scores(hits)


def _count_candidates(k: int) -> int:
    return max(4 * k, 20)


def _rescore(hit: Hit, score: float) -> Hit:
    return replace(hit, score=score, scores={**hit.scores, "rerank": score})
