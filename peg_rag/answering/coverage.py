"""Which words of a question a text contains, as they are or as synonyms, and how rare each of them is among the hits.

A code must match whole, a year may be written in any form, and a word that every passage contains is no reason to
prefer one of them.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from peg_rag.answering.passages import Passage
from peg_rag.answering.question import Question
from peg_rag.answering.ranges import code_fit
from peg_rag.answering.statements import Statement
from peg_rag.answering.thesaurus import Phrase
from peg_rag.answering.words import Word, contains_word, fold_text, list_words

_MIXED_CODE = re.compile(r"^(?=[^\u3400-\u9fff]*$)(?=.*[a-z])(?=.*\d)")
_LEAST_WEIGHT = 0.5  # of a word in a name or value, which is short


@dataclass(frozen=True, slots=True)
class Rarities:
    """The inverse document frequency, among the hits, of each part of a question.

    Attributes:
        words: (question's words,) times the words' weights.
        pairs: (question's pairs of characters,)
        phrases: (question's phrases,) with their synonyms.
    """

    words: tuple[float, ...]
    pairs: tuple[float, ...]
    phrases: tuple[float, ...]


class RarityTable:
    """How rare the parts of questions are among some passages; what was counted once is kept."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._texts = [f"{passage.context}\n{passage.text}" for passage in passages]
        self._words: dict[Word, float] = {}
        self._pairs: dict[str, float] = {}
        self._phrases: dict[Phrase, float] = {}

    def measure(self, question: Question) -> Rarities:
        for word in question.words:
            if word not in self._words:
                rarity = _measure_rarity(covers_word(text, word) for text in self._texts)
                self._words[word] = word.weight * rarity
        for pair in question.pairs:
            if pair not in self._pairs:
                self._pairs[pair] = _measure_rarity(pair in text for text in self._texts)
        for phrase in question.phrases:
            if phrase not in self._phrases:
                self._phrases[phrase] = _measure_rarity(phrase.is_in(text) for text in self._texts)
        return Rarities(
            tuple(self._words[word] for word in question.words),
            tuple(self._pairs[pair] for pair in question.pairs),
            tuple(self._phrases[phrase] for phrase in question.phrases),
        )


def _measure_rarity(is_contained: Iterable[bool]) -> float:
    """The inverse document frequency of a term, given which texts contain it; 0 if none does."""
    flags = list(is_contained)
    count = sum(flags)
    return math.log((len(flags) + 1) / (count + 0.5)) if count else 0.0


def lacks_code(question: Question, passage: Passage, statement: Statement) -> bool:
    """Whether the question names a code, such as E07, that neither the hit nor its headings, file or ranges say."""
    codes = [word for word in question.words if _MIXED_CODE.search(word.text)]
    if not codes:
        return False
    text = f"{passage.context}\n{fold_text(passage.hit.text)}\n" + "\n".join(fold_text(c.value) for c in passage.form)
    in_range = code_fit(codes, statement.row)
    return any(not covers_word(text, word) and word.text not in in_range for word in codes)


def covers_word(text: str, word: Word) -> bool:
    """Whether a folded text says a word: codes and Latin words whole, years in any form."""
    if word.is_code and word.text.isascii() and word.text.isalpha():
        return contains_word(text, word.text)
    if word.is_code:
        return _compile_code(word.text).search(text) is not None
    if word.text in text:
        return True
    return any(contains_word(text, synonym) for synonym in word.synonyms)


@lru_cache(maxsize=65536)
def _compile_code(code: str) -> re.Pattern[str]:
    year = re.fullmatch(r"((?:19|20)\d\d)[年版]?", code)
    code = year[1] if year else code
    before = r"(?<!\d)(?<!\d\.)" if code[0].isdigit() else ""
    after = r"(?!\.?\d)" if code[-1].isdigit() else "(?![a-z])" if re.search(r"\d", code) and code[-1].isascii() else ""
    return re.compile(before + re.escape(code) + after)


def share_of_words(words: Sequence[Word], coverage: Sequence[bool]) -> float:
    """The share of words, by weight, that are covered."""
    total = sum(word.weight for word in words)
    covered = sum(word.weight for word, is_covered in zip(words, coverage, strict=True) if is_covered)
    return covered / total if total else 0.0


def share_of_parts(weights: Sequence[float], coverage: Sequence[bool]) -> float:
    """The share of the sum of weights that is covered."""
    total = sum(weights)
    covered = sum(weight for weight, is_covered in zip(weights, coverage, strict=True) if is_covered)
    return covered / total if total else 0.0


@lru_cache(maxsize=16384)
def share_of_text(text: str, question: str) -> float:
    """The share of a short text's words, by weight, that a question says."""
    every = list_words(text)
    words = [word for word in every if word.weight > 0] or every
    weights = [max(word.weight, _LEAST_WEIGHT) for word in words]
    return share_of_parts(weights, [covers_word(question, word) for word in words])
