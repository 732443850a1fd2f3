"""Ranking the documents of a snapshot for a query: dense, lexical or hybrid, and for diversity."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from sqlite3 import Connection

import numpy as np

from peg_rag.index.encodings import Array
from peg_rag.index.exact import RankedRows, inner_products, select_best
from peg_rag.index.fusion import Method, Weighting, fuse
from peg_rag.index.lexical import bm25, query_weights
from peg_rag.index.snapshot import Snapshot
from peg_rag.index.term_weights import TermWeights
from peg_rag.index.tokenizers import Tokenizer
from peg_rag.index.validation import QueryBatch

Weights = Mapping[str, float] | Weighting[int]


@dataclass(frozen=True, slots=True)
class ScoredSlots:
    """(m,) slots, best first, the (m,) scores they are ordered by, and component scores by name."""

    slots: Array
    scores: Array
    components: Mapping[str, Array]

    @classmethod
    def dense(cls, ranking: RankedRows) -> "ScoredSlots":
        """Slots ordered by cosine alone."""
        return cls(ranking.rows, ranking.scores, {"dense": ranking.scores})


@dataclass(frozen=True, slots=True)
class Ranking:
    """How queries are answered in a snapshot.

    Attributes:
        mask: (slots,) bool of the documents that pass the filter; None when all do.
        weights, method: how `fusion.fuse` combines the dense and the lexical scores.
        learned: what the terms of queries are worth beyond their rarity; None: nothing is known.
    """

    snapshot: Snapshot
    mask: Array | None
    tokenizer: Tokenizer
    weights: Weights | None = None
    method: Method = "convex"
    learned: TermWeights | None = None

    def rank(self, connection: Connection, queries: QueryBatch) -> Iterator[ScoredSlots]:
        """The k best documents of each query."""
        if queries.k == 0 or not len(self.snapshot.blocks.lengths):
            nothing = RankedRows.empty()
            yield from [ScoredSlots(nothing.rows, nothing.scores, {})] * len(queries)
        elif queries.texts is None:
            for ranking in self.search_dense(connection, queries, queries.k):
                yield ScoredSlots.dense(ranking)
        elif queries.vectors is None:
            for text in queries.texts:
                scores = self._score_terms(connection, text)
                slots = self._select_matches(scores, queries.k)
                yield ScoredSlots(slots, scores[slots], {"lexical": scores[slots]})
        else:
            rankings = self.search_dense(connection, queries, queries.fetch_k)
            for ranking, vector, text in zip(rankings, queries.vectors, queries.texts, strict=True):
                yield self._rank_hybrid(connection, queries, ranking, vector, self._score_terms(connection, text))

    def search_dense(self, connection: Connection, queries: QueryBatch, k: int) -> list[RankedRows]:
        """The k nearest allowed documents of each query vector."""
        assert queries.vectors is not None
        return self.snapshot.search(connection, queries.vectors, k, self.mask)

    def rank_diverse(self, connection: Connection, queries: QueryBatch, diversity: float) -> ScoredSlots:
        """The nearest `fetch_k` documents of one query vector, reduced to k by maximal marginal relevance."""
        (nearest,) = self.search_dense(connection, queries, queries.fetch_k)
        vectors = self.snapshot.vectors(connection, nearest.rows)
        positions = select_diverse(nearest.scores, vectors @ vectors.T, min(queries.k, len(vectors)), diversity)
        return ScoredSlots.dense(RankedRows(nearest.rows[positions], nearest.scores[positions]))

    def _score_terms(self, connection: Connection, text: str) -> Array:
        """(slots,) BM25 scores; 0 where no term of the text occurs."""
        terms = query_weights(self.tokenizer, text, self.learned)
        return bm25(connection, terms, self.snapshot.blocks.numbers, self.snapshot.blocks.lengths)

    def _select_matches(self, scores: Array, k: int) -> Array:
        allowed = scores > 0 if self.mask is None else self.mask & (scores > 0)
        return select_best(np.where(allowed, scores, -np.inf), k)

    def _rank_hybrid(
        self, connection: Connection, queries: QueryBatch, nearest: RankedRows, vector: Array, term_scores: Array
    ) -> ScoredSlots:
        """Fuse the candidates of both sides by both scores, including candidates that only one side contributed."""
        slots = np.union1d(nearest.rows, self._select_matches(term_scores, queries.fetch_k))  # (candidates,) by age
        names = slots.tolist()
        dense = np.clip(inner_products(self.snapshot.vectors(connection, slots), vector), -1.0, 1.0)
        lexical = dict(zip(names, term_scores[slots].tolist(), strict=True))
        if self.method == "rrf":  # a document without a common term has a score, 0, but no rank
            lexical = {slot: score for slot, score in lexical.items() if score > 0}
        rankings = {"dense": dict(zip(names, dense.tolist(), strict=True)), "lexical": lexical}
        fused = fuse(rankings, self.weights, method=self.method)
        best = np.array(list(fused)[: queries.k], dtype=np.int64)
        positions = np.searchsorted(slots, best)
        scores = np.array([fused[slot] for slot in best.tolist()], dtype=np.float64)
        return ScoredSlots(best, scores, {"dense": dense[positions], "lexical": term_scores[best], "fused": scores})


def select_diverse(relevance: Array, similarity: Array, k: int, diversity: float) -> list[int]:
    """Choose k positions by maximal marginal relevance.

    Args:
        relevance: (n,) similarity to the query.
        similarity: (n, n) similarity to each other.
        diversity: 0 to 1, the weight of the similarity to what was chosen before.
    """
    selection: list[int] = []
    redundancy = np.zeros(len(relevance), dtype=np.float32)  # largest similarity to a selected one
    for _ in range(k):
        gain = (1 - diversity) * relevance - diversity * redundancy
        gain[selection] = -np.inf
        selection.append(int(np.argmax(gain)))
        latest = similarity[selection[-1]]
        redundancy = latest if len(selection) == 1 else np.maximum(redundancy, latest)
    return selection
