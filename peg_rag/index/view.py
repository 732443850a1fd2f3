"""One state of the index in memory, and the ranking of documents in it.

A view is made once per state and never changed, so any number of threads search it while another is being made.
Documents are addressed by *slot*: the place of their block among the blocks that exist, times `BLOCK`, plus the
offset of their key in the block. Lengths, filter masks and BM25 scores are arrays over slots.

Cost: 4 bytes per document for its length, 16 for key and slot, and the vectors that are newer than the vector file.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from sqlite3 import Connection

import numpy as np

from peg_rag.index import rows
from peg_rag.index.checks import Query
from peg_rag.index.documents import BadRow
from peg_rag.index.filters import Condition
from peg_rag.index.fusion import Method, Weighting, fuse
from peg_rag.index.lexical import Tokenizer, bm25, query_weights
from peg_rag.index.rows import Blocks, State
from peg_rag.index.vectors import Array, Base, Found, Storage, best, nearest

Weights = Mapping[str, float] | Weighting[int]
MASKS_KEPT = 16
SCORES_AT_ONCE = 16 << 20  # inner products held at a time, for a batch of queries


@dataclass(frozen=True, slots=True)
class Scored:
    """(m,) slots, best first, the (m,) scores they are ordered by, and component scores by name."""

    slots: Array
    scores: Array
    parts: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class View:
    """What a search looks at.

    Attributes:
        base: the rows of the vector file, some of which may be gone.
        base_slots: (base rows,) -1 for rows of a block that is gone.
        base_alive: (base rows,) bool; None when none is gone.
        delta: (rows, dimension) unit rows newer than the file, all alive, with keys and slots.
    """

    state: State
    dimension: int
    storage: Storage
    blocks: Blocks
    base: Base
    base_slots: Array
    base_alive: Array | None
    delta_keys: Array
    delta: Array
    delta_slots: Array
    _masks: "OrderedDict[Condition, Array]" = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def at(
        cls, connection: Connection, state: State, base: Base, old: "View | None", storage: Storage, dimension: int
    ) -> "View":
        """The view of the state that a read transaction sees; the delta of an old view of the same base is kept."""
        keys = np.empty(0, dtype=np.int64) if old is None else old.delta_keys
        delta = np.empty((0, dimension), dtype=np.float32) if old is None else old.delta
        last = max([-1, *base.keys[-1:].tolist(), *keys[-1:].tolist()])
        more = list(rows.vectors_after(connection, last, dimension, storage))
        if more:
            keys = np.concatenate([keys, *(new for new, _ in more)])
            delta = np.concatenate([delta, *(new for _, new in more)]) if len(delta) else _stacked(more)
        blocks = Blocks.read(connection)
        alive = blocks.lengths > 0
        slots, base_slots = blocks.slots(keys), blocks.slots(base.keys)
        here, base_alive = _at(alive, slots), _at(alive, base_slots)
        if not here.all():
            keys, delta, slots = keys[here], delta[here], slots[here]
        with_length = int(np.count_nonzero(alive))
        with_vector = len(keys) + int(np.count_nonzero(base_alive))
        if not with_length == with_vector == state.documents:
            raise BadRow(f"of {state.documents} documents, {with_length} have a length and {with_vector} a vector")
        return cls(
            state, dimension, storage, blocks, base, base_slots, None if base_alive.all() else base_alive,
            keys, delta, slots,
        )  # fmt: skip

    # -- filters ------------------------------------------------------------------------------------------------------

    def mask(self, connection: Connection, condition: Condition) -> Array | None:
        """(slots,) bool of the documents that pass a filter; None when every document does. Recent ones are kept."""
        if condition.always:
            return None
        with self._lock:
            if condition in self._masks:
                self._masks.move_to_end(condition)
                return self._masks[condition]
        keys = np.array(rows.keys_where(connection, condition), dtype=np.int64)
        slots = self.blocks.slots(keys)
        if (slots < 0).any():
            raise BadRow("the length of a document is missing")
        mask = np.zeros(len(self.blocks.lengths), dtype=bool)
        mask[slots] = True
        with self._lock:
            self._masks[condition] = mask
            while len(self._masks) > MASKS_KEPT:
                self._masks.popitem(last=False)
        return mask

    # -- dense --------------------------------------------------------------------------------------------------------

    def nearest(self, connection: Connection, queries: Array, k: int, mask: Array | None) -> list[Found]:
        """The k nearest allowed documents (as slots) of each of (queries, dimension) unit rows, and their cosines."""
        base_allowed, delta_allowed = self.base_alive, None
        if mask is not None and len(mask):
            filtered = mask[self.base_slots]
            base_allowed = filtered if base_allowed is None else filtered & base_allowed
            delta_allowed = mask[self.delta_slots]
        found: list[Found] = []
        step = max(1, SCORES_AT_ONCE // max(1, len(self.base.keys) + len(self.delta)))
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            old = self.base.search(part, k, base_allowed, lambda keys: self._stored(connection, keys))
            new = nearest(self.delta, part, k, delta_allowed)
            found += [self._together(a, b, k) for a, b in zip(old, new, strict=True)]
        return found

    def _together(self, old: Found, new: Found, k: int) -> Found:
        slots = np.concatenate([self.base_slots[old.rows], self.delta_slots[new.rows]])
        scores = np.concatenate([old.scores, new.scores])
        order = np.argsort(-scores, kind="stable")[:k]
        return Found(slots[order], np.clip(scores[order], -1.0, 1.0))

    def vectors(self, connection: Connection, slots: Array) -> Array:
        """(n, dimension) unit rows of documents that are alive."""
        keys = self.blocks.keys(slots)
        vectors = np.empty((len(keys), self.dimension), dtype=np.float32)
        in_base = keys <= (self.base.keys[-1] if len(self.base.keys) else -1)
        if in_base.any():
            places = np.searchsorted(self.base.keys, keys[in_base])
            vectors[in_base] = self.base.vectors(places, lambda wanted: self._stored(connection, wanted))
        if not in_base.all():
            vectors[~in_base] = self.delta[np.searchsorted(self.delta_keys, keys[~in_base])]
        return vectors

    def _stored(self, connection: Connection, keys: Array) -> Array:
        return rows.vectors_of(connection, keys, self.dimension, self.storage)


def _at(alive: Array, slots: Array) -> Array:
    """(n,) whether the documents at these slots are alive; those at -1 are not."""
    return alive[slots] & (slots >= 0) if len(alive) else np.zeros(len(slots), dtype=bool)


def _stacked(chunks: Sequence[tuple[Array, Array]]) -> Array:
    return chunks[0][1] if len(chunks) == 1 else np.concatenate([vectors for _, vectors in chunks])


# -- ranking ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ranking:
    """How queries are answered in a view: what passes the filter, how text becomes terms, how two sides are fused."""

    view: View
    mask: Array | None
    tokenizer: Tokenizer
    weights: Weights | None
    method: Method

    def ranked(self, connection: Connection, query: Query) -> Iterator[Scored]:
        """The k best documents of each query."""
        if query.k == 0 or not len(self.view.blocks.lengths):
            nothing = Found.nothing()
            yield from [Scored(nothing.rows, nothing.scores, {})] * len(query)
        elif query.texts is None:
            for near in self.nearest(connection, query, query.k):
                yield Scored(near.rows, near.scores, {"dense": near.scores})
        elif query.vectors is None:
            for text in query.texts:
                scores = self._matches(connection, text)
                slots = self._best(scores, query.k)
                yield Scored(slots, scores[slots], {"lexical": scores[slots]})
        else:
            sides = zip(self.nearest(connection, query, query.fetch_k), query.vectors, query.texts, strict=True)
            for near, vector, text in sides:
                yield self._fused(connection, query, near, vector, self._matches(connection, text))

    def nearest(self, connection: Connection, query: Query, k: int) -> list[Found]:
        """The k nearest allowed documents of each query vector."""
        assert query.vectors is not None
        return self.view.nearest(connection, query.vectors, k, self.mask)

    def _matches(self, connection: Connection, text: str) -> Array:
        """(slots,) BM25 scores; 0 where no term of the text occurs."""
        terms = query_weights(self.tokenizer, text)
        return bm25(connection, terms, self.view.blocks.numbers, self.view.blocks.lengths)

    def _best(self, scores: Array, k: int) -> Array:
        allowed = scores > 0 if self.mask is None else self.mask & (scores > 0)
        return best(np.where(allowed, scores, -np.inf), k)

    def _fused(self, connection: Connection, query: Query, near: Found, vector: Array, matches: Array) -> Scored:
        """Fuse the candidates of both sides by both their scores, also where only one side brought them."""
        slots = np.union1d(near.rows, self._best(matches, query.fetch_k))  # (candidates,), oldest first
        dense = np.clip(self.view.vectors(connection, slots) @ vector, -1.0, 1.0)
        names, lexical = slots.tolist(), dict(zip(slots.tolist(), matches[slots].tolist(), strict=True))
        if self.method == "rrf":  # no common term: a score of 0, but no place
            lexical = {slot: score for slot, score in lexical.items() if score > 0}
        rankings = {"dense": dict(zip(names, dense.tolist(), strict=True)), "lexical": lexical}
        fused = fuse(rankings, self.weights, method=self.method)
        chosen = np.array(list(fused)[: query.k], dtype=np.int64)
        places = np.searchsorted(slots, chosen)
        scores = np.array([fused[slot] for slot in chosen.tolist()], dtype=np.float64)
        return Scored(chosen, scores, {"dense": dense[places], "lexical": matches[chosen], "fused": scores})


def marginal(nearness: Array, likeness: Array, k: int, diversity: float) -> list[int]:
    """Places chosen by maximal marginal relevance. nearness: (n,) to the query, likeness: (n, n) to each other."""
    chosen: list[int] = []
    nearest_chosen = np.zeros(len(nearness), dtype=np.float32)
    for _ in range(k):
        gain = (1 - diversity) * nearness - diversity * nearest_chosen
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        latest = likeness[chosen[-1]]
        nearest_chosen = latest if len(chosen) == 1 else np.maximum(nearest_chosen, latest)
    return chosen
