"""BM25 as an inner product: what a document's terms weigh is stored with it, what they are worth is counted beside.

Milvus' own BM25 function takes its statistics from whatever it happens to search together (in Milvus Lite one segment,
and under a filter only what passes), so the same document scores otherwise from day to day. Here a document's sparse
vector holds the saturated count of each term, which depends on the document and on an average length that is fixed
when the collection is made; the query's holds the inverse document frequency, from counts that every write adds to.

The counts are rows of a second collection, which a reader reads once and then keeps up with. `persist()` sums them up.
"""

import base64
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peg_rag.index.encodings import Array
from peg_rag.index.lexical import K1, B
from peg_rag.index.tokenizers import Tokenizer

# How many documents of a write have a term; negative when documents were deleted.
ENTRY = np.dtype([("term", "<u4"), ("count", "<i4")])
MAX_TERM = (1 << 32) - 2  # the largest index of a sparse vector in Milvus
ENTRIES_PER_ROW = 6000  # 64,000 characters as Base64
USUAL_LENGTH = 400.0  # terms of a passage, weighing as much as `USUAL_DOCUMENTS` of them in the average
USUAL_DOCUMENTS = 2
OVERLAP_NS = 60 * 10**9  # rows this much older than the newest are asked for again, as clocks differ


def count_terms(tokenizer: Tokenizer, text: str) -> Counter[int]:
    """How often each term occurs in a text, by its number."""
    return Counter(zlib.crc32(term.encode("utf-8", "surrogatepass")) % MAX_TERM for term in tokenizer.terms(text))


def choose_average(lengths: Sequence[int]) -> float:
    """The average length that a collection is made with, from the lengths of its first documents, in terms."""
    return (sum(lengths) + USUAL_LENGTH * USUAL_DOCUMENTS) / (len(lengths) + USUAL_DOCUMENTS)


def weigh_document(counts: Mapping[int, int], average: float) -> dict[int, float]:
    """The sparse vector of a document: BM25 without the inverse document frequency.

    A document without terms gets one that no query has, for Milvus refuses an empty vector.
    """
    if not counts:
        return {MAX_TERM: 1.0}
    norm = K1 * (1 - B + B * sum(counts.values()) / average)
    return {term: count * (K1 + 1) / (count + norm) for term, count in counts.items()}


@dataclass(slots=True)
class TermChange:
    """What a write changes in the counts.

    Attributes:
        documents: more of them, or fewer.
        counts: of documents, by term.
    """

    documents: int = 0
    counts: Counter[int] = field(default_factory=Counter)

    def add(self, terms: Iterable[int], sign: int = 1) -> None:
        """One more document with these distinct terms, or one fewer."""
        self.documents += sign
        for term in terms:
            self.counts[term] += sign

    def pack(self) -> list[str]:
        """As strings that Milvus can store."""
        pairs = [(term, count) for term, count in self.counts.items() if count]
        entries = np.array([(MAX_TERM, self.documents), *pairs], dtype=ENTRY)
        return pack_entries(entries)


def pack_entries(entries: Array) -> list[str]:
    """(n,) entries as strings that Milvus can store."""
    parts = [entries[start : start + ENTRIES_PER_ROW] for start in range(0, len(entries), ENTRIES_PER_ROW)]
    return [base64.b64encode(part.tobytes()).decode() for part in parts]


def unpack_entries(packed: Iterable[str]) -> Array:
    """(n,) entries; those of the same term stand by themselves."""
    return np.frombuffer(b"".join(base64.b64decode(text) for text in packed), dtype=ENTRY)


def sum_entries(entries: Array) -> Array:
    """(terms,) entries by term, ascending, with those of the same term summed up and zeros left out."""
    terms, places = np.unique(entries["term"], return_inverse=True)
    counts = np.bincount(places, weights=entries["count"], minlength=len(terms)).astype(np.int64)
    kept = counts != 0
    result = np.empty(int(kept.sum()), dtype=ENTRY)
    result["term"] = terms[kept]
    result["count"] = counts[kept]
    return result


@dataclass(slots=True)
class TermStatistics:
    """The counts as far as they have been read.

    Attributes:
        since: rows older than this have been summed up in a newer one.
        newest: the time of the newest row, in nanoseconds.
        rows: those that have been added.
        entries: (terms,) ascending by term; the number of documents stands under `MAX_TERM`.
    """

    since: int = 0
    newest: int = 0
    rows: set[int] = field(default_factory=set)
    entries: Array = field(default_factory=lambda: np.empty(0, dtype=ENTRY))

    def add_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in rows of `key`, `age` and `packed`, if they are new."""
        fresh = [row for row in rows if row["key"] not in self.rows]
        if not fresh:
            return
        self.rows.update(row["key"] for row in fresh)
        self.newest = max(self.newest, *(row["age"] for row in fresh))
        added = unpack_entries(row["packed"] for row in fresh)
        self.entries = sum_entries(np.concatenate([self.entries, added]))

    def first_age(self) -> int:
        """Rows from this time on may be new."""
        return max(self.since, self.newest - OVERLAP_NS)

    def weigh_query(self, counts: Mapping[int, int]) -> dict[int, float]:
        """The sparse vector of a query: how often each term occurs, times its inverse document frequency."""
        documents = max(self._count(MAX_TERM), 0)
        weights = {}
        for term, count in counts.items():
            matches = min(max(self._count(term), 0), documents)
            weights[term] = count * float(np.log1p((documents - matches + 0.5) / (matches + 0.5)))
        return weights

    def _count(self, term: int) -> int:
        place = int(np.searchsorted(self.entries["term"], term))
        is_there = place < len(self.entries) and self.entries["term"][place] == term
        return int(self.entries["count"][place]) if is_there else 0


def make_rows(packed: Sequence[str], *, age: int | None = None) -> list[dict[str, Any]]:
    """Rows for the collection of counts; their keys are random, as many may write."""
    moment = time.time_ns() if age is None else age
    keys = np.random.default_rng().integers(0, 2**63 - 1, size=len(packed)).tolist()
    return [
        {"key": key, "age": moment, "packed": text, "vector": [1.0, 0.0]}
        for key, text in zip(keys, packed, strict=True)
    ]
