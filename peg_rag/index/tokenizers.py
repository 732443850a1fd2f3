"""From a text to its terms, for documents and queries alike.

A `split()` leaves a Chinese sentence as one token, and BM25 over such tokens finds nothing. Here a text becomes the
characters and character pairs of its Chinese, Japanese and Korean runs, plus lower-case words and numbers for the rest;
`jieba` words can be chosen instead. Terms are taken from the NFKC form of a text; the stored text is not touched.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from peg_rag.errors import InvalidInput
from peg_rag.extras import require
from peg_rag.index.encodings import Array

TOKENIZERS = ("bigram", "jieba")
TAIL_BITS = 16
MAX_TAIL = (1 << TAIL_BITS) - 1
TEXTS_AT_ONCE = 256  # larger arrays than theirs cost more in fresh memory than in arithmetic

_RUN = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_PIECES = re.compile(rf"[{_RUN}]+|[^\W_{_RUN}]+")
_IS_RUN = re.compile(rf"[{_RUN}]").match


class Address(NamedTuple):
    """Where the postings of a term are stored: in the row `head`, in the entries with this `tail`.

    All pairs with the same first character share a row and differ in the tail, which is the second character. That
    makes a fiftieth of the rows, so writing is fast.
    """

    head: str
    tail: int


class HeadNumbers:
    """Numbers heads: a character of a run has its code point, a word the next number when it first comes."""

    def __init__(self) -> None:
        self._number_by_word: dict[str, int] = {}

    def number_words(self, words: Iterable[str]) -> Array:
        """(words,) int64 numbers."""
        numbers = self._number_by_word
        return np.array([numbers.setdefault(word, _FIRST_WORD + len(numbers)) for word in words], dtype=np.int64)

    def spell(self, numbers: Array) -> list[str]:
        """The heads with these (n,) numbers."""
        words = list(self._number_by_word)
        return [chr(number) if number < _FIRST_WORD else words[number - _FIRST_WORD] for number in numbers.tolist()]


@dataclass(frozen=True, slots=True)
class Occurrences:
    """Occurrences of terms in some texts, as numbers.

    Attributes:
        codes: (occurrences,) int64: head number * 2**16 + tail, less than 2**48.
        rows: (occurrences,) int64, the row of the text.
    """

    codes: Array
    rows: Array


class Tokenizer(Protocol):
    """Splits a text into terms."""

    name: str

    def terms(self, text: str) -> list[str]:
        """The terms of one text, in order and with repetitions."""

    def address(self, term: str) -> Address:
        """Where the postings of a term are stored."""

    def iter_occurrences(self, texts: Sequence[str], heads: HeadNumbers) -> Iterator[Occurrences]:
        """The terms of many texts, in parts that a core's cache can hold.

        In each part the rows ascend, and either all tails are 0 or none is.
        """

    def find_occurrences(self, texts: Sequence[str], heads: HeadNumbers | None = None) -> Occurrences:
        """The terms of many texts at once."""
        parts = list(self.iter_occurrences(texts, heads or HeadNumbers()))
        none = np.empty(0, dtype=np.int64)
        codes = np.concatenate([none, *(part.codes for part in parts)])
        return Occurrences(codes, np.concatenate([none, *(part.rows for part in parts)]))


class BigramTokenizer(Tokenizer):
    """Characters and character pairs of Chinese, Japanese and Korean runs; lower-case words elsewhere."""

    name = "bigram"

    def terms(self, text: str) -> list[str]:
        terms: list[str] = []
        for piece in _PIECES.findall(normalize_text(text)):
            if _IS_RUN(piece):
                terms.extend(piece)
                terms.extend(map(str.__add__, piece, piece[1:]))
            else:
                terms.append(piece)
        return terms

    def address(self, term: str) -> Address:
        is_pair = len(term) == 2 and _IS_RUN(term) and ord(term[1]) <= MAX_TAIL
        if is_pair:
            return Address(term[0], ord(term[1]))
        return Address(term, 0)

    def iter_occurrences(self, texts: Sequence[str], heads: HeadNumbers) -> Iterator[Occurrences]:
        """`terms` of all texts in array operations, about fifteen times as fast as one by one."""
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            characters = _Characters.read(texts[start : start + TEXTS_AT_ONCE], start)
            yield from characters.find_occurrences(heads)


class JiebaTokenizer(Tokenizer):
    """Words of `jieba`'s search-engine mode: long words, and the short words inside them."""

    name = "jieba"

    def __init__(self) -> None:
        jieba = require("jieba", "jieba")
        jieba.setLogLevel("WARNING")
        self._cut: Callable[[str], Iterable[str]] = jieba.cut_for_search

    def terms(self, text: str) -> list[str]:
        return [word for word in self._cut(normalize_text(text)) if _PIECES.match(word)]

    def address(self, term: str) -> Address:
        return Address(term, 0)

    def iter_occurrences(self, texts: Sequence[str], heads: HeadNumbers) -> Iterator[Occurrences]:
        terms_by_text = [self.terms(text) for text in texts]
        numbers = heads.number_words(term for terms in terms_by_text for term in terms)
        yield Occurrences(
            numbers << TAIL_BITS, np.repeat(np.arange(len(texts)), [len(terms) for terms in terms_by_text])
        )


_FIRST_WORD = 0x40000  # lower head numbers are characters of runs
_CODE_POINTS = 0x110000
_RUN_KIND = 1  # bits of a character's kind
_WORD_KIND = 2
_CAPITAL_KIND = 4  # A to Z
_CHANGING_KIND = 8  # not among `_UNCHANGED`


@lru_cache(maxsize=1)
def _character_kinds() -> Array:
    """(0x110000,) uint8: what `_PIECES` takes a code point for, and whether normalising may change it."""
    kinds = np.full(_CODE_POINTS, _CHANGING_KIND, dtype=np.uint8)
    text = "".join(map(chr, range(0x20000)))  # all letters beyond the second plane are Chinese, and so part of runs
    for match in re.finditer(r"[^\W_]+", text):
        kinds[match.start() : match.end()] |= _WORD_KIND
    for match in re.finditer(f"[{_UNCHANGED}]+", text):
        kinds[match.start() : match.end()] &= ~np.uint8(_CHANGING_KIND)
    for first, last in re.findall(r"(.)-(.)", _RUN):
        run = slice(ord(first), ord(last) + 1)
        kinds[run] = kinds[run] & _CHANGING_KIND | _RUN_KIND
    kinds[ord("A") : ord("Z") + 1] |= _CAPITAL_KIND
    return kinds


@dataclass(frozen=True, slots=True)
class _Characters:
    """The characters of some normalised texts, and a line feed after each text.

    Attributes:
        codes: (characters,) int64 code points.
        kinds: (characters,) their kinds.
        rows: (characters,) the row of the text.
    """

    codes: Array
    kinds: Array
    rows: Array

    @classmethod
    def read(cls, texts: Sequence[str], first_row: int) -> "_Characters":
        """Normalise texts. Nearly all characters stay as they are, and only a text with others is handled by itself."""
        codes, kinds = cls._encode_texts(texts)
        is_changing = kinds & _CHANGING_KIND != 0
        if is_changing.any():
            texts = list(texts)
            ends = np.cumsum([len(text) + 1 for text in texts])
            for row in np.unique(np.searchsorted(ends, np.flatnonzero(is_changing), side="right")).tolist():
                texts[row] = normalize_text(texts[row])
            codes, kinds = cls._encode_texts(texts)
        is_capital = kinds & _CAPITAL_KIND != 0
        if is_capital.any():
            codes[is_capital] += ord("a") - ord("A")
        rows = np.arange(first_row, first_row + len(texts))
        return cls(codes, kinds, np.repeat(rows, [len(text) + 1 for text in texts]))

    @staticmethod
    def _encode_texts(texts: Sequence[str]) -> tuple[Array, Array]:
        joined = "\n".join([*texts, ""])
        codes = np.frombuffer(joined.encode("utf-32-le"), dtype="<u4").astype(np.int64)
        return codes, _character_kinds()[codes]

    def find_occurrences(self, heads: HeadNumbers) -> Iterator[Occurrences]:
        """The characters of runs, their pairs, and the words."""
        run = self.kinds & _RUN_KIND != 0
        followed = run[:-1] & run[1:]  # by another character of the run
        if self.codes.max() > MAX_TAIL:  # the pairs whose second is so large are heads of their own
            is_rare = followed & (self.codes[1:] > MAX_TAIL)
            followed &= ~is_rare
            starts = np.flatnonzero(is_rare)
            yield self._number_words(starts, starts + 2, heads)
        is_word = self.kinds & _WORD_KIND != 0
        if is_word.any():
            edges = np.flatnonzero(np.diff(is_word, prepend=False, append=False))
            yield self._number_words(edges[::2], edges[1::2], heads)
        codes = self.codes << TAIL_BITS
        yield Occurrences(codes[run], self.rows[run])
        codes[:-1] |= self.codes[1:]
        yield Occurrences(codes[:-1][followed], self.rows[:-1][followed])

    def _number_words(self, starts: Array, stops: Array, heads: HeadNumbers) -> Occurrences:
        text = self.codes.astype("<u4").tobytes().decode("utf-32-le")
        words = (text[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True))
        return Occurrences(heads.number_words(words) << TAIL_BITS, self.rows[starts])


# Texts that NFKC does not change in a way that matters to terms; matching is much faster than normalising.
_UNCHANGED = r" -~\n\u3001-\u3020\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff“”‘’—…·，！？；：（）％"
_is_unchanged = re.compile(f"[{_UNCHANGED}]*").fullmatch


def normalize_text(text: str) -> str:
    """NFKC (full-width letters become plain ones) and lower case."""
    return (text if _is_unchanged(text) else unicodedata.normalize("NFKC", text)).lower()


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
