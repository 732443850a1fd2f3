"""BM25 over postings in SQLite: the lexical half of the index.

Postings live next to the documents, so they change in the same transaction: one row per block of keys and head of a
term, five bytes per posting. SQLite's own full-text search was measured first: over characters and pairs of 50,000
passages it took 13 s to fill and 0.2-0.3 s per query, as it scores every match row by row and its k1 and b are fixed.

Characters count as much as pairs, and k1 and b are the usual 1.2 and 0.75: of the settings tried on held-out pairs
(`benchmarks/bm25.py`) the best on average.

Cost: about 0.15 s to index 10,000 passages of 200 characters; a query over 100,000 of them takes about 20 ms.
"""

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from peg_rag.index.database import BLOCK, BLOCK_BITS, DamagedRow
from peg_rag.index.encodings import Array
from peg_rag.index.term_weights import TermWeights
from peg_rag.index.tokenizers import MAX_TAIL, TAIL_BITS, Address, HeadNumbers, Tokenizer

K1 = 1.2
B = 0.75

# One posting: second character of a pair (0: none), key within its block, occurrences (255 at most).
ENTRY = np.dtype([("tail", "<u2"), ("offset", "<u2"), ("count", "u1")])
ENTRIES_AT_ONCE = 65_536  # counted at a time, in the cache of a core


@dataclass(frozen=True, slots=True)
class PostingLists:
    """Postings by head.

    Attributes:
        starts: (heads + 1,) where each head's entries start.
        entries: (postings,) of dtype `ENTRY`, by head, tail and offset.
    """

    starts: Array
    entries: Array


@dataclass(frozen=True, slots=True)
class Postings:
    """The terms of up to `BLOCK` texts that share a block.

    Attributes:
        heads: distinct heads.
        singles: the postings of the terms that are a head alone.
        pairs: the postings of the terms with a tail.
        lengths: (texts,) number of terms in each text.
    """

    heads: list[str]
    singles: PostingLists
    pairs: PostingLists
    lengths: Array

    def pack_entries(self) -> list[bytes]:
        """The entries of each head as they are stored."""
        singles = self.singles.entries.tobytes()
        pairs = self.pairs.entries.tobytes()
        starts = (self.singles.starts * ENTRY.itemsize).tolist()
        pair_starts = (self.pairs.starts * ENTRY.itemsize).tolist()
        bounds = zip(starts, starts[1:], pair_starts, pair_starts[1:], strict=False)
        return [singles[a:b] + pairs[c:d] for a, b, c, d in bounds]


def build_postings(tokenizer: Tokenizer, texts: Sequence[str], first_offset: int = 0) -> Postings:
    """Count the terms of up to `BLOCK` texts, whose keys start at `first_offset` in their block.

    Characters and pairs are sorted apart: half as many at a time, and characters as half as long numbers.
    """
    heads = HeadNumbers()
    singles: list[Array] = [np.empty(0, dtype=np.uint32)]
    pairs: list[Array] = [np.empty(0, dtype=np.int64)]
    lengths = np.zeros(len(texts), dtype=np.uint32)
    for part in tokenizer.iter_occurrences(texts, heads):
        if not len(part.rows):
            continue
        rows = np.arange(part.rows[0], part.rows[-1] + 2)
        lengths[rows[:-1]] += np.diff(np.searchsorted(part.rows, rows)).astype(np.uint32)
        if part.codes[0] & MAX_TAIL:
            pairs.append((part.codes << BLOCK_BITS) | part.rows)
        else:
            packed = (part.codes >> TAIL_BITS << BLOCK_BITS) | part.rows
            singles.append(packed.astype(np.uint32) if packed.max() < 1 << 32 else packed)
    numbers, single_entries = _count_terms(np.concatenate(singles), first_offset, has_tails=False)
    pair_numbers, pair_entries = _count_terms(np.concatenate(pairs), first_offset, has_tails=True)
    starts = np.flatnonzero(_differs_from_previous(numbers))
    names = heads.spell(numbers[starts])  # of all heads: that of a pair is also a term by itself
    pair_starts = np.searchsorted(pair_numbers, numbers[starts])
    return Postings(
        names,
        PostingLists(np.append(starts, len(single_entries)), single_entries),
        PostingLists(np.append(pair_starts, len(pair_entries)), pair_entries),
        lengths,
    )


def _count_terms(packed: Array, first_offset: int, *, has_tails: bool) -> tuple[Array, Array]:
    """Count (occurrences,) terms, each a number of head, tail (if there are tails) and row, which are sorted here.

    Returns:
        (postings,) head numbers, ascending, and (postings,) entries.
    """
    packed.sort()
    starts = np.flatnonzero(_differs_from_previous(packed))  # where a new (term, text) pair begins
    bounds = np.append(starts, len(packed))
    entries = np.empty(len(starts), dtype=ENTRY)
    numbers = np.empty(len(starts), dtype=np.int32)
    for start in range(0, len(starts), ENTRIES_AT_ONCE):
        part = slice(start, start + ENTRIES_AT_ONCE)
        terms = packed[starts[part]]
        entries["offset"][part] = (terms & (BLOCK - 1)) + first_offset
        entries["count"][part] = np.minimum(np.diff(bounds[start : start + len(terms) + 1]), 255)
        terms >>= BLOCK_BITS
        entries["tail"][part] = terms & MAX_TAIL if has_tails else 0
        numbers[part] = terms >> TAIL_BITS if has_tails else terms
    return numbers, entries


def _differs_from_previous(values: Array) -> Array:
    """(n,) bool: True for the first value and for each that is not that before it."""
    differs = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    return differs


def write_postings(connection: sqlite3.Connection, block: int, postings: Postings) -> None:
    """Append postings to those that the block already has."""
    connection.executemany(
        "INSERT INTO postings VALUES (?, ?, ?) "
        "ON CONFLICT DO UPDATE SET entries = CAST(entries || excluded.entries AS BLOB)",
        zip(repeat(block), postings.heads, postings.pack_entries(), strict=False),
    )


@dataclass(frozen=True, slots=True)
class _HeadPostings:
    """All postings of one head, in all blocks: (n,) slots (see `bm25`) and (n,) entries."""

    slots: Array
    entries: Array

    @classmethod
    def read(cls, connection: sqlite3.Connection, head: str, blocks: Array) -> "_HeadPostings":
        rows = connection.execute(
            "SELECT postings.block, entries FROM blocks CROSS JOIN postings "
            "ON postings.block = blocks.block AND postings.head = ?",
            (head,),
        ).fetchall()
        if not all(isinstance(blob, bytes) and not len(blob) % ENTRY.itemsize for _, blob in rows):
            raise DamagedRow(f"the postings of {head!r} are not whole")
        entries = np.frombuffer(b"".join(blob for _, blob in rows), dtype=ENTRY)
        if (entries["offset"] >= BLOCK).any():
            raise DamagedRow(f"the postings of {head!r} point outside of their block")
        sizes = [len(blob) // ENTRY.itemsize for _, blob in rows]
        first = np.searchsorted(blocks, [block for block, _ in rows]) * BLOCK
        return cls(np.repeat(first, sizes) + entries["offset"], entries)


def bm25(
    connection: sqlite3.Connection,
    terms: Mapping[Address, float],
    blocks: Array,
    lengths: Array,
    *,
    k1: float = K1,
    b: float = B,
) -> Array:
    """BM25 score of every document for weighted query terms: (slots,) float32, 0 where no term occurs.

    The inverse document frequency is Lucene's, ln(1 + (N - n + 0.5) / (n + 0.5)), which is never negative.

    Args:
        terms: the weight of each query term.
        blocks: (blocks,) the blocks that exist, ascending; a document's slot is its key with the block's number
            replaced by the block's place in this list.
        lengths: (slots,) 1 + the number of terms of each document; 0 for a deleted document.

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009, section 3.4.
    """
    live = lengths > 0
    documents = int(np.count_nonzero(live))
    scores = np.zeros(len(lengths), dtype=np.float32)
    if not documents:
        return scores
    average = max((float(lengths.sum()) - documents) / documents, 1.0)
    norm = k1 * (1 - b + (b / average) * (lengths.astype(np.float32) - 1))
    postings_by_head = {head: _HeadPostings.read(connection, head, blocks) for head in {term.head for term in terms}}
    for term, weight in terms.items():
        postings = postings_by_head[term.head]
        matching = (postings.entries["tail"] == term.tail) & live[postings.slots]
        slots = postings.slots[matching]
        tf = postings.entries["count"][matching].astype(np.float32)
        idf = np.log1p((documents - len(slots) + 0.5) / (len(slots) + 0.5))
        scores[slots] += np.float32(weight * idf * (k1 + 1)) * tf / (tf + norm[slots])
    return scores


def term_weights(terms: Sequence[str]) -> dict[str, float]:
    """The weight of each term of a query: how often it occurs."""
    return {term: float(count) for term, count in Counter(terms).items()}


def query_weights(tokenizer: Tokenizer, text: str, learned: TermWeights | None = None) -> dict[Address, float]:
    """The weight of each term of a query, by address; multiplied by what was learned about it, if anything."""
    weights = term_weights(tokenizer.terms(text))
    if learned is not None:
        weights = learned.weigh(weights)
    return {tokenizer.address(term): weight for term, weight in weights.items()}
