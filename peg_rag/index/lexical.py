"""Chinese terms and BM25: the lexical half of the index.

A `split()` leaves a Chinese sentence as one token, and BM25 over such tokens finds nothing. Here a text becomes the
characters and character pairs of its Chinese (Japanese, Korean) runs, plus lower-case words and numbers for the rest;
`jieba` words can be chosen instead. Terms are made from the NFKC form of a text; the stored text is not touched.

Postings live in SQLite next to the documents, so they change in the same transaction: one row per block of keys and
term, three bytes per posting. SQLite's own full-text search was measured first: over characters and pairs of 50,000
passages it took 13 s to fill and 0.2-0.3 s per query, as it scores every match row by row and its k1 and b are fixed.

Characters count as much as pairs, and k1 and b are the usual 1.2 and 0.75: of those tried on held-out pairs
(`benchmarks/bm25.py`) the best on average.

Cost: about 1 s to index 10,000 passages of 200 characters; a query over 100,000 of them takes about 20 ms.
"""

import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np

from peg_rag.errors import InvalidInput
from peg_rag.extras import require
from peg_rag.index.documents import BLOCK, BadRow
from peg_rag.index.vectors import Array

TokenizerName = Literal["bigram", "jieba"]
TOKENIZERS = get_args(TokenizerName)
K1 = 1.2
B = 0.75

_RUN = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_PIECES = re.compile(rf"[{_RUN}]+|[^\W_{_RUN}]+")
_IS_RUN = re.compile(rf"[{_RUN}]").match

# One posting: second character of a pair (0: none), key within its block, occurrences (255 at most).
ENTRY = np.dtype([("tail", "<u2"), ("offset", "<u2"), ("count", "u1")])


class Address(NamedTuple):
    """Where the postings of a term are: in the row `head`, marked with `tail`.

    Pairs share the row of their first character, told apart by the second: a fiftieth of the rows, so writing is fast.
    """

    head: str
    tail: int


@dataclass(frozen=True, slots=True)
class Occurrences:
    """Every occurrence of every term in some texts, as numbers.

    Attributes:
        codes: (occurrences,) int64: number of the head * 2**16 + tail, less than 2**48.
        rows: (occurrences,) int64, the text it stands in.
        spell: the heads of (n,) numbers.
    """

    codes: Array
    rows: Array
    spell: Callable[[Array], list[str]]


class Tokenizer(Protocol):
    """Turns a text into terms, the same for documents and queries."""

    name: str

    def terms(self, text: str) -> list[str]:
        """The terms of one text, repeated ones included."""

    def address(self, term: str) -> Address:
        """Where the postings of a term are."""

    def occurrences(self, texts: Sequence[str]) -> Occurrences:
        """The terms of many texts at once."""


class BigramTokenizer:
    """Characters and character pairs of Chinese, Japanese and Korean runs; lower-case words elsewhere."""

    name = "bigram"

    def terms(self, text: str) -> list[str]:
        found: list[str] = []
        for piece in _PIECES.findall(normalized(text)):
            if _IS_RUN(piece):
                found.extend(piece)
                found.extend(map(str.__add__, piece, piece[1:]))
            else:
                found.append(piece)
        return found

    def address(self, term: str) -> Address:
        is_pair = len(term) == 2 and _IS_RUN(term) and ord(term[1]) <= _LAST_TAIL
        return Address(term[0], ord(term[1])) if is_pair else Address(term, 0)

    def occurrences(self, texts: Sequence[str]) -> Occurrences:
        """`terms` of all texts in array operations: about ten times as fast as one by one."""
        clean = [normalized(text) for text in texts]
        joined = "\n".join(clean)
        chars = np.frombuffer(joined.encode("utf-32-le"), dtype="<u4").astype(np.int64)  # (characters,)
        row = np.repeat(np.arange(len(clean)), [len(text) + 1 for text in clean])[: len(chars)]
        kind = _character_kinds()[chars]
        run = kind == _RUN_KIND
        singles = np.flatnonzero(run)
        pairs = np.flatnonzero(run[:-1] & run[1:])
        fits = chars[pairs + 1] <= _LAST_TAIL
        pairs, rare = pairs[fits], pairs[~fits]  # a pair whose second character does not fit a tail is its own head
        words, at = _words(joined, kind == _WORD_KIND)
        numbers, names = _numbered([*words, *(joined[i : i + 2] for i in rare)])
        codes = [chars[singles] << 16, chars[pairs] << 16 | chars[pairs + 1], numbers + _CODE_POINTS << 16]
        rows = [row[singles], row[pairs], row[at], row[rare]]
        return Occurrences(np.concatenate(codes), np.concatenate(rows), lambda heads: _spelled(heads, names))


class JiebaTokenizer:
    """Words as `jieba` cuts them for search engines (long words and the short ones inside them)."""

    name = "jieba"

    def __init__(self) -> None:
        jieba = require("jieba", "jieba")
        jieba.setLogLevel("WARNING")
        self._cut: Callable[[str], Iterable[str]] = jieba.cut_for_search

    def terms(self, text: str) -> list[str]:
        return [word for word in self._cut(normalized(text)) if _PIECES.match(word)]

    def address(self, term: str) -> Address:
        return Address(term, 0)

    def occurrences(self, texts: Sequence[str]) -> Occurrences:
        cut = [self.terms(text) for text in texts]
        numbers, names = _numbered([term for line in cut for term in line])
        rows = np.repeat(np.arange(len(cut)), [len(line) for line in cut])
        return Occurrences(numbers << 16, rows, lambda heads: [names[number] for number in heads.tolist()])


_CODE_POINTS = 0x110000  # heads below are single characters, above are words
_LAST_TAIL = 0xFFFF
_RUN_KIND, _WORD_KIND = 1, 2


@lru_cache(maxsize=1)
def _character_kinds() -> Array:
    """(0x110000,) uint8: for every code point, whether `_PIECES` counts it to a run, to a word or to neither."""
    kinds = np.zeros(_CODE_POINTS, dtype=np.uint8)
    # Beyond the second plane all letters are Chinese, and so part of runs.
    kinds[[code for code in range(0x20000) if chr(code).isalnum()]] = _WORD_KIND
    for first, last in re.findall(r"(.)-(.)", _RUN):
        kinds[ord(first) : ord(last) + 1] = _RUN_KIND
    return kinds


def _words(joined: str, is_word: Array) -> tuple[list[str], Array]:
    """The stretches of word characters, and (words,) where each begins."""
    edges = np.flatnonzero(np.diff(is_word, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    return [joined[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)], starts


def _numbered(words: Sequence[str]) -> tuple[Array, list[str]]:
    """(words,) int64 with one number per distinct word, and the distinct words in the order of their numbers."""
    number: dict[str, int] = {}
    numbers = [number.setdefault(word, len(number)) for word in words]
    return np.array(numbers, dtype=np.int64), list(number)


def _spelled(heads: Array, words: list[str]) -> list[str]:
    return [chr(head) if head < _CODE_POINTS else words[head - _CODE_POINTS] for head in heads.tolist()]


# Where NFKC changes nothing that terms are made of; looking is much faster than normalizing.
_UNCHANGED = re.compile(
    r"[ -~\n\u3001-\u3020\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff“”‘’—…·，！？；：（）％]*"
).fullmatch


def normalized(text: str) -> str:
    """The form that terms are made from: full-width letters become plain ones, capitals small."""
    return (text if _UNCHANGED(text) else unicodedata.normalize("NFKC", text)).lower()


@lru_cache(maxsize=4)
def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name: `bigram` or `jieba`.

    Raises:
        InvalidInput: an unknown name.
        MissingExtra: jieba is not installed.
    """
    if name == "bigram":
        return BigramTokenizer()
    if name == "jieba":
        return JiebaTokenizer()
    raise InvalidInput(f"unknown tokenizer {name!r}; there are 'bigram' and 'jieba'")


@dataclass(frozen=True, slots=True)
class Postings:
    """The terms of up to `BLOCK` texts that share a block.

    Attributes:
        heads: distinct heads.
        starts: (heads + 1,) where each head's entries start.
        entries: (postings,) of dtype `ENTRY`, by head, tail and offset.
        lengths: (texts,) number of terms in each text.
    """

    heads: list[str]
    starts: Array
    entries: Array
    lengths: Array

    def rows(self) -> Iterator[tuple[str, bytes]]:
        """(head, entries as bytes) pairs, as they are stored."""
        raw, size, starts = self.entries.tobytes(), ENTRY.itemsize, self.starts.tolist()
        for head, start, end in zip(self.heads, starts[:-1], starts[1:], strict=True):
            yield head, raw[start * size : end * size]


def make_postings(tokenizer: Tokenizer, texts: Sequence[str], first_offset: int = 0) -> Postings:
    """Count the terms of up to `BLOCK` texts, whose keys stand from `first_offset` on in their block."""
    found = tokenizer.occurrences(texts)
    packed = np.sort(found.codes * BLOCK + found.rows)
    first = np.flatnonzero(np.diff(packed, prepend=-1))  # where a new (term, text) begins
    codes, rows = np.divmod(packed[first], BLOCK)
    entries = np.empty(len(first), dtype=ENTRY)
    entries["tail"] = codes & _LAST_TAIL
    entries["offset"] = rows + first_offset
    entries["count"] = np.minimum(np.diff(first, append=len(packed)), 255)
    heads = codes >> 16
    starts = np.flatnonzero(np.diff(heads, prepend=-1))
    lengths = np.bincount(found.rows, minlength=len(texts)).astype(np.uint32)
    return Postings(found.spell(heads[starts]), np.append(starts, len(heads)), entries, lengths)


def write_postings(connection: sqlite3.Connection, block: int, postings: Postings) -> None:
    """Append to what the block already has."""
    connection.executemany(
        "INSERT INTO postings VALUES (?, ?, ?) "
        "ON CONFLICT DO UPDATE SET entries = CAST(entries || excluded.entries AS BLOB)",
        ((block, head, entries) for head, entries in postings.rows()),
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """All entries of one head in all blocks: (n,) slots (see `bm25`) and (n,) entries."""

    slots: Array
    entries: Array

    @classmethod
    def read(cls, connection: sqlite3.Connection, head: str, blocks: Array) -> "_Row":
        rows = connection.execute(
            "SELECT postings.block, entries FROM blocks CROSS JOIN postings "
            "ON postings.block = blocks.block AND postings.head = ?",
            (head,),
        ).fetchall()
        if not all(isinstance(blob, bytes) and not len(blob) % ENTRY.itemsize for _, blob in rows):
            raise BadRow(f"the postings of {head!r} are not whole")
        entries = np.frombuffer(b"".join(blob for _, blob in rows), dtype=ENTRY)
        if (entries["offset"] >= BLOCK).any():
            raise BadRow(f"the postings of {head!r} lead out of their block")
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

    The weight of a rare term is Lucene's, ln(1 + (N - n + 0.5) / (n + 0.5)), which is never negative.

    Args:
        terms: query terms and how much each counts.
        blocks: (blocks,) the blocks that exist, ascending; a document's slot is its key with the block's number
            replaced by the block's place in this list.
        lengths: (slots,) 1 + the number of terms of each document; 0 where there is none.

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009, section 3.4.
    """
    alive = lengths > 0
    documents = int(np.count_nonzero(alive))
    scores = np.zeros(len(lengths), dtype=np.float32)
    if not documents:
        return scores
    average = max((float(lengths.sum()) - documents) / documents, 1.0)
    norm = k1 * (1 - b + (b / average) * (lengths.astype(np.float32) - 1))
    rows = {head: _Row.read(connection, head, blocks) for head in {term.head for term in terms}}
    for term, weight in terms.items():
        row = rows[term.head]
        here = (row.entries["tail"] == term.tail) & alive[row.slots]
        slots, tf = row.slots[here], row.entries["count"][here].astype(np.float32)
        idf = np.log1p((documents - len(slots) + 0.5) / (len(slots) + 0.5))
        scores[slots] += np.float32(weight * idf * (k1 + 1)) * tf / (tf + norm[slots])
    return scores


def term_weights(terms: Sequence[str]) -> dict[str, float]:
    """How much each term of a query counts: as often as it occurs."""
    return {term: float(count) for term, count in Counter(terms).items()}


def query_weights(tokenizer: Tokenizer, text: str) -> dict[Address, float]:
    """The terms of a query, by address, and how much each counts."""
    return {tokenizer.address(term): weight for term, weight in term_weights(tokenizer.terms(text)).items()}
