"""From a text to its terms, for documents and queries alike.

A `split()` leaves a Chinese sentence as one token, and BM25 over such tokens finds nothing. Here a text becomes the
characters and character pairs of its Chinese, Japanese and Korean runs, plus lower-case words and numbers for the rest;
`jieba` words can be chosen instead. Terms are taken from the NFKC form of a text; the stored text is not touched.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from peg_rag.errors import InvalidInput
from peg_rag.extras import require
from peg_rag.index.encodings import Array

TOKENIZERS = ("bigram", "jieba")
MAX_TAIL = 0xFFFF

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


@dataclass(frozen=True, slots=True)
class Occurrences:
    """Every occurrence of every term in some texts, as numbers.

    Attributes:
        codes: (occurrences,) int64: head number * 2**16 + tail, less than 2**48.
        rows: (occurrences,) int64, the row of the text.
        spell_heads: turns (n,) head numbers into heads.
    """

    codes: Array
    rows: Array
    spell_heads: Callable[[Array], list[str]]


class Tokenizer(Protocol):
    """Splits a text into terms."""

    name: str

    def terms(self, text: str) -> list[str]:
        """The terms of one text, in order and with repetitions."""

    def address(self, term: str) -> Address:
        """Where the postings of a term are stored."""

    def find_occurrences(self, texts: Sequence[str]) -> Occurrences:
        """The terms of many texts at once."""


class BigramTokenizer:
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

    def find_occurrences(self, texts: Sequence[str]) -> Occurrences:
        """`terms` of all texts in array operations, about ten times as fast as one by one."""
        clean = [normalize_text(text) for text in texts]
        joined = "\n".join(clean)
        chars = np.frombuffer(joined.encode("utf-32-le"), dtype="<u4")  # (characters,)
        row = np.repeat(np.arange(len(clean)), [len(text) + 1 for text in clean])[: len(chars)]
        kind = _character_kinds()[chars]
        run = kind == _RUN_KIND
        heads = chars.astype(np.int64) << 16
        followed = run[:-1] & run[1:]  # by another character of the run
        rare_pairs = np.empty(0, dtype=np.int64)
        if len(chars) and chars.max() > MAX_TAIL:  # the pairs whose second is so large are heads of their own
            is_rare = followed & (chars[1:] > MAX_TAIL)
            rare_pairs = np.flatnonzero(is_rare)
            followed &= ~is_rare
        words, word_starts = _find_words(joined, kind == _WORD_KIND)
        numbers, names = _number_words([*words, *(joined[i : i + 2] for i in rare_pairs)])
        codes = [heads[run], heads[:-1][followed] | chars[1:][followed], numbers + _CODE_POINTS << 16]
        rows = [row[run], row[:-1][followed], row[word_starts], row[rare_pairs]]
        return Occurrences(np.concatenate(codes), np.concatenate(rows), lambda heads: _spell_heads(heads, names))


class JiebaTokenizer:
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

    def find_occurrences(self, texts: Sequence[str]) -> Occurrences:
        terms_by_text = [self.terms(text) for text in texts]
        numbers, names = _number_words([term for terms in terms_by_text for term in terms])
        rows = np.repeat(np.arange(len(texts)), [len(terms) for terms in terms_by_text])
        return Occurrences(numbers << 16, rows, lambda heads: [names[number] for number in heads.tolist()])


_CODE_POINTS = 0x110000  # lower head numbers are single characters, the others are words
_RUN_KIND = 1
_WORD_KIND = 2


@lru_cache(maxsize=1)
def _character_kinds() -> Array:
    """(0x110000,) uint8: whether `_PIECES` takes a code point for part of a run, part of a word, or neither."""
    kinds = np.zeros(_CODE_POINTS, dtype=np.uint8)
    # All letters beyond the second plane are Chinese, and so part of runs.
    kinds[[code for code in range(0x20000) if chr(code).isalnum()]] = _WORD_KIND
    for first, last in re.findall(r"(.)-(.)", _RUN):
        kinds[ord(first) : ord(last) + 1] = _RUN_KIND
    return kinds


def _find_words(joined: str, is_word: Array) -> tuple[list[str], Array]:
    """Maximal runs of word characters, and the (words,) position of each."""
    edges = np.flatnonzero(np.diff(is_word, prepend=False, append=False))
    starts = edges[::2]
    ends = edges[1::2]
    return [joined[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)], starts


def _number_words(words: Sequence[str]) -> tuple[Array, list[str]]:
    """Number the distinct words: the (words,) int64 number of each word, and the distinct words in order."""
    number_by_word: dict[str, int] = {}
    numbers = [number_by_word.setdefault(word, len(number_by_word)) for word in words]
    return np.array(numbers, dtype=np.int64), list(number_by_word)


def _spell_heads(heads: Array, words: list[str]) -> list[str]:
    return [chr(head) if head < _CODE_POINTS else words[head - _CODE_POINTS] for head in heads.tolist()]


# Texts that NFKC does not change in a way that matters to terms; matching is much faster than normalising.
_UNCHANGED = re.compile(
    r"[ -~\n\u3001-\u3020\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff“”‘’—…·，！？；：（）％]*"
).fullmatch


def normalize_text(text: str) -> str:
    """NFKC (full-width letters become plain ones) and lower case."""
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
