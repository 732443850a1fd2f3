"""Colloquial phrases and the words that documents use instead: 搞丢 for 遗失, 头一笔 for 预付款, 谁管 for 责任人.

People type as they speak, and often share no character with the document. Word vectors know which words occur in
similar contexts, but not that 打款 means 支付. The list was written by hand (`assets/thesaurus.txt`). Phrases are
matched as strings, so that it does not matter where a tokenizer cuts.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import islice

from peg_rag.answering.words import contains_word, fold_text, tokens_of

_LONGEST_PHRASE = 12  # characters
_LATIN = re.compile("[a-z]")


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase of a question and the words that documents use for it, the phrase itself not among them."""

    text: str
    synonyms: tuple[str, ...]

    def is_in(self, text: str) -> bool:
        """Whether a folded text says it in one way or another."""
        return any(contains_word(text, word) for word in (self.text, *self.synonyms))


@lru_cache(maxsize=256)
def find_phrases(folded: str) -> tuple[Phrase, ...]:
    """The phrases of a folded question that the thesaurus knows, each once.

    One that stands within a longer one, or a single character within a word, is left out.
    """
    table = _read_thesaurus()
    tokens = set(tokens_of(folded))
    spans = [
        (start, end)
        for start in range(len(folded))
        for end in range(start + 1, min(start + _LONGEST_PHRASE, len(folded)) + 1)
        if folded[start:end] in table
        and (end > start + 1 or folded[start] in tokens)
        and not _cuts_latin_word(folded, start, end)
    ]
    # 几点关 and 关灯 overlap, and both are said; 关 within 关灯 is not.
    places = [span for span in spans if not any(_is_within(span, other) for other in spans)]
    texts = dict.fromkeys(folded[start:end] for start, end in places)
    return tuple(Phrase(text, table[text]) for text in texts)


def _cuts_latin_word(text: str, start: int, end: int) -> bool:
    """Whether a span begins or ends between two Latin letters."""
    return any(
        _LATIN.match(text[place - 1 : place]) and _LATIN.match(text[place : place + 1]) for place in (start, end)
    )


def _is_within(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return other[0] <= span[0] and span[1] <= other[1] and span != other


@cache
def _read_thesaurus() -> dict[str, tuple[str, ...]]:
    """Phrases, folded, with the words that answer them; a single character is a phrase only where it is asked with."""
    table: dict[str, dict[str, None]] = defaultdict(dict)
    for questions, answers in _read_lines():
        for phrase in questions:
            table[phrase].update(dict.fromkeys(word for word in answers + questions if word != phrase))
        for word in answers:
            if len(word) > 1:
                table[word].update(dict.fromkeys(phrase for phrase in questions if phrase != word))
    return {phrase: tuple(synonyms) for phrase, synonyms in table.items()}


def _read_lines() -> Iterator[tuple[list[str], list[str]]]:
    """(question's phrases, words that answer them) of each line, folded.

    The file is folded at once, which takes half the time of folding every phrase by itself.
    """
    text = (files("peg_rag") / "assets" / "thesaurus.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    sides = [side.split() for line in lines for side in line.split(" : ")]
    folded = fold_text.__wrapped__("|".join(phrase for side in sides for phrase in side)).split("|")
    phrases = iter(folded)
    folded_sides = [list(islice(phrases, len(side))) for side in sides]
    return zip(folded_sides[::2], folded_sides[1::2], strict=True)
