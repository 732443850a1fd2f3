"""Where the words of a question stand in a text, for a page to mark them.

Chinese has no spaces, so that a "word" is any two neighbouring characters of the question's subject that the text has
next to each other too; where such pairs overlap they make one stretch. Other words match whole, whatever their case.
Costs one pass over the text.
"""

import re
from collections.abc import Iterable, Iterator

from peg_rag.answer import subject_of

Span = tuple[int, int]

_MAX_SUBJECT = 1_000  # characters; what is longer is no question
_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_PIECES = re.compile(rf"(?P<run>[{_CJK}]+)|[^\W_{_CJK}]+")


class Matcher:
    """Finds a question's words in texts.

    Args:
        question: as it was asked; the words that only ask are left out.
    """

    def __init__(self, question: str) -> None:
        self._wanted = {
            term for piece in _PIECES.finditer(subject_of(question[:_MAX_SUBJECT])) for term in _terms(piece)
        }

    def spans(self, text: str) -> list[Span]:
        """[start, end) of every stretch, in characters and in order; they neither overlap nor touch."""
        return list(_joined(self._found(text)))

    def _found(self, text: str) -> Iterator[Span]:
        for piece in _PIECES.finditer(text):
            start, word = piece.start(), piece[0]
            if piece["run"] is None:
                if word.lower() in self._wanted:
                    yield piece.span()
                continue
            for at in range(len(word)):
                if word[at] in self._wanted:  # a question of a single character
                    yield start + at, start + at + 1
                if word[at : at + 2] in self._wanted:
                    yield start + at, start + at + len(word[at : at + 2])


def _terms(piece: re.Match[str]) -> list[str]:
    word = piece[0]
    if piece["run"] is None:
        return [word.lower()]
    return [word[at : at + 2] for at in range(len(word) - 1)] or [word]


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    start = end = -1
    for next_start, next_end in spans:
        if next_start > end:
            if end > start:
                yield start, end
            start = next_start
        end = max(end, next_end)
    if end > start:
        yield start, end
