"""How rare a unit, or a pair of units, is in Chinese text at large.

Fifty candidates all share the query's theme, so counting among them says which of its words tell them apart, but not
which words carry meaning. This table says that: a byte for each of some hashed units and pairs, 320 kB in all. Two that
share a place count as the commoner one would.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from peg_rag.reranking.units import Array, Units

UNIT_BITS = 16
PAIR_BITS = 18
_FIRST = np.uint64(0x9E3779B97F4A7C15)
_SECOND = np.uint64(0xC2B2AE3D27D4EB4F)


@dataclass(frozen=True, slots=True)
class Rarity:
    """Inverse document frequencies, in steps of 1 / 255 of the largest.

    Attributes:
        units: (2**16,) uint8.
        pairs: (2**18,) uint8.
    """

    units: Array
    pairs: Array

    @classmethod
    def of(cls, unit_counts: Array, pair_counts: Array, documents: int) -> Self:
        """From the number of documents that each hashed unit and pair stands in."""
        return cls(_in_bytes(unit_counts, documents), _in_bytes(pair_counts, documents))

    def of_units(self, codes: Array) -> Array:
        """(n,) rarity, 0 to 1, of (n,) units."""
        return self.units[hash_units(codes)] / 255.0

    def of_pairs(self, codes: Array) -> Array:
        """(n,) rarity, 0 to 1, of (n, 2) pairs of units."""
        return self.pairs[hash_pairs(codes)] / 255.0


def count_documents(batches: Iterable[Units]) -> tuple[Array, Array, int]:
    """In how many documents each hashed unit and pair stands, and how many documents there are."""
    units = np.zeros(1 << UNIT_BITS, dtype=np.int64)
    pairs = np.zeros(1 << PAIR_BITS, dtype=np.int64)
    documents = 0
    for batch in batches:
        documents += len(batch)
        units += _per_document(batch.rows, hash_units(batch.codes), UNIT_BITS)
        together = np.flatnonzero(batch.rows[1:] == batch.rows[:-1])
        both = np.stack([batch.codes[together], batch.codes[together + 1]], axis=1)
        pairs += _per_document(batch.rows[together], hash_pairs(both), PAIR_BITS)
    return units, pairs, documents


def hash_units(codes: Array) -> Array:
    """(n,) places in the table of units."""
    return np.asarray((codes.astype(np.uint64) * _FIRST) >> np.uint64(64 - UNIT_BITS))


def hash_pairs(codes: Array) -> Array:
    """(n,) places in the table of pairs, of (n, 2) codes."""
    both = codes.astype(np.uint64)
    mixed = both[:, 0] * _FIRST + both[:, 1] * _SECOND
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _FIRST
    return np.asarray(mixed >> np.uint64(64 - PAIR_BITS))


def _per_document(rows: Array, places: Array, bits: int) -> Array:
    distinct = np.unique(rows << bits | places.astype(np.int64))
    return np.bincount(distinct & ((1 << bits) - 1), minlength=1 << bits)


def _in_bytes(counts: Array, documents: int) -> Array:
    idf = np.log((documents + 1) / (counts + 1))
    return np.asarray(np.round(255 * idf / np.log(documents + 1)), dtype=np.uint8)
