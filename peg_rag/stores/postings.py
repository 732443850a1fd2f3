"""BM25 over postings that a server only stores: packed by the writer, scored by the reader.

A server's own full-text ranking is not BM25, and a row for each term of each passage takes ten times the space and
minutes to fill. So the postings of one write are packed into one value per head (`peg_rag.index.tokenizers`), nine
bytes an entry, which the server appends, merges and hands out without looking inside. The scores are those of the
embedded index.

Cost: about 3 kB per passage of 200 characters; a query reads the entries of its heads, some 45 bytes for each passage
that has one of its characters.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peg_rag.index.database import BLOCK
from peg_rag.index.encodings import Array
from peg_rag.index.lexical import K1, B, build_postings
from peg_rag.index.tokenizers import Address, Tokenizer

# One posting: the document's key, second character of a pair (0: none), terms in the document (65,535 at most),
# occurrences (255 at most).
ENTRY = np.dtype([("key", "<u4"), ("tail", "<u2"), ("length", "<u2"), ("count", "u1")])
MAX_KEY = (1 << 32) - 1
MAX_LENGTH = (1 << 16) - 1
_MAX_HEAD_BYTES = 200  # longer words are stored by their digest, for a server's index has a limit


@dataclass(frozen=True, slots=True)
class PackedPostings:
    """The postings of one write.

    Attributes:
        rows: (head, entries as bytes) pairs.
        lengths: (documents,) number of terms in each.
    """

    rows: list[tuple[str, bytes]]
    lengths: Array


def pack_postings(tokenizer: Tokenizer, keys: Array, texts: Sequence[str]) -> PackedPostings:
    """The postings of texts, whose (n,) keys ascend."""
    parts: dict[str, list[bytes]] = {}
    lengths: list[Array] = []
    for start in range(0, len(texts), BLOCK):
        postings = build_postings(tokenizer, texts[start : start + BLOCK])
        lengths.append(np.minimum(postings.lengths, MAX_LENGTH))
        for lists in (postings.singles, postings.pairs):
            entries = np.empty(len(lists.entries), dtype=ENTRY)
            offsets = lists.entries["offset"]
            entries["key"] = keys[start : start + BLOCK][offsets]
            entries["tail"] = lists.entries["tail"]
            entries["length"] = lengths[-1][offsets]
            entries["count"] = lists.entries["count"]
            raw = entries.tobytes()
            bounds = (lists.starts * ENTRY.itemsize).tolist()
            for head, first, last in zip(postings.heads, bounds[:-1], bounds[1:], strict=True):
                parts.setdefault(shorten_head(head), []).append(raw[first:last])
    return PackedPostings([(head, b"".join(blobs)) for head, blobs in parts.items()], np.concatenate(lengths))


def shorten_head(head: str) -> str:
    """The head as it is stored; a head is a word, so none begins with `#`."""
    raw = head.encode("utf-8", "surrogatepass")
    return head if len(raw) <= _MAX_HEAD_BYTES else "#" + hashlib.sha256(raw).hexdigest()


def drop_entries(blob: bytes, dead: Array) -> bytes:
    """Entries without those of (n,) dead keys, ascending."""
    entries = np.frombuffer(blob, dtype=ENTRY)
    return entries[~_are_among(entries["key"], dead)].tobytes()


@dataclass(frozen=True, slots=True)
class TermScores:
    """(n,) keys, ascending, and their (n,) BM25 scores, all above 0."""

    keys: Array
    scores: Array

    def best(self, k: int, allowed: Array | None) -> dict[int, float]:
        """The k best, equal ones in order of key.

        Args:
            allowed: (m,) keys, ascending; None for all.
        """
        keep = slice(None) if allowed is None else _are_among(self.keys, allowed)
        keys = self.keys[keep]
        scores = self.scores[keep]
        if k < len(scores):
            least = np.partition(scores, len(scores) - k)[len(scores) - k]
            candidates = scores >= least
            keys = keys[candidates]
            scores = scores[candidates]
        order = np.argsort(-scores, kind="stable")[:k]
        return dict(zip(keys[order].tolist(), scores[order].tolist(), strict=True))

    def of(self, keys: Sequence[int]) -> dict[int, float]:
        """The scores of some keys; those without a score are left out."""
        wanted = np.array(keys, dtype=np.int64)
        places = np.searchsorted(self.keys, wanted)
        inside = places < len(self.keys)
        hits = np.flatnonzero(inside)[self.keys[places[inside]] == wanted[inside]]
        return dict(zip(wanted[hits].tolist(), self.scores[places[hits]].tolist(), strict=True))


def score_terms(
    weights: Mapping[Address, float],
    blobs: Mapping[str, bytes],
    *,
    documents: int,
    terms: int,
    dead: Array,
) -> TermScores:
    """BM25 of every document for weighted query terms, as `peg_rag.index.lexical.bm25`.

    Args:
        weights: of the query's terms, by address.
        blobs: the entries of each head.
        documents, terms: how many there are in all.
        dead: (n,) keys of deleted documents, ascending, whose entries may still be there.
    """
    average = max(terms / documents, 1.0) if documents else 1.0
    entries_by_head = {head: _read_live_entries(blob, dead) for head, blob in blobs.items()}
    all_keys: list[Array] = []
    all_scores: list[Array] = []
    for term, weight in weights.items():
        entries = entries_by_head.get(shorten_head(term.head))
        if entries is None:
            continue
        matches = entries[entries["tail"] == term.tail]
        tf = matches["count"].astype(np.float32)
        norm = K1 * (1 - B + (B / average) * matches["length"].astype(np.float32))
        idf = np.log1p((documents - len(matches) + 0.5) / (len(matches) + 0.5))
        all_keys.append(matches["key"])
        all_scores.append(np.float32(weight * idf * (K1 + 1)) * tf / (tf + norm))
    if not all_keys:
        return TermScores(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64))
    keys, places = np.unique(np.concatenate(all_keys), return_inverse=True)
    scores = np.bincount(places, weights=np.concatenate(all_scores), minlength=len(keys))
    positive = scores > 0
    return TermScores(keys[positive].astype(np.int64), scores[positive])


def _read_live_entries(blob: bytes, dead: Array) -> Array:
    entries = np.frombuffer(blob, dtype=ENTRY)
    return entries[~_are_among(entries["key"], dead)] if len(dead) else entries


def _are_among(keys: Array, members: Array) -> Array:
    """(n,) bool: which of (n,) keys are among (m,) ascending members."""
    if not len(members):
        return np.zeros(len(keys), dtype=bool)
    places = np.minimum(np.searchsorted(members, keys), len(members) - 1)
    among: Array = members[places] == keys
    return among
