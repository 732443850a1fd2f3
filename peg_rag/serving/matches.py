"""Where the words of a question occur in a text, for a page to highlight them.

Chinese is written without spaces, so a "word" is any character bigram of the question's subject; overlapping matches
are merged into one span. Other words match whole, ignoring case. One pass over the text.
"""

import re
from collections.abc import Iterable, Iterator

from peg_rag.answer import subject_of

Span = tuple[int, int]

_MAX_SUBJECT_CHARACTERS = 1_000
_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_RUNS = re.compile(rf"(?P<cjk>[{_CJK}]+)|[^\W_{_CJK}]+")


class Matcher:
    """Finds the words of a question in texts.

    Args:
        question: the user's question; words that only ask ("what is", 什么是) are ignored.
    """

    def __init__(self, question: str) -> None:
        subject = subject_of(question[:_MAX_SUBJECT_CHARACTERS])
        self._terms = {term for run in _RUNS.finditer(subject) for term in _split_terms(run)}

    def find_spans(self, text: str) -> list[Span]:
        """[start, end) of every match, in characters and in order; the spans neither overlap nor touch."""
        return list(_merge_spans(self._find_terms(text)))

    def _find_terms(self, text: str) -> Iterator[Span]:
        for run in _RUNS.finditer(text):
            word = run[0]
            if run["cjk"] is None:
                if word.lower() in self._terms:
                    yield run.span()
                continue
            for offset in range(len(word)):
                start = run.start() + offset
                bigram = word[offset : offset + 2]
                if word[offset] in self._terms:  # the question is a single character
                    yield start, start + 1
                if bigram in self._terms:
                    yield start, start + len(bigram)


def _split_terms(run: re.Match[str]) -> list[str]:
    word = run[0]
    if run["cjk"] is None:
        return [word.lower()]
    return [word[start : start + 2] for start in range(len(word) - 1)] or [word]


def _merge_spans(spans: Iterable[Span]) -> Iterator[Span]:
    """Merge overlapping and adjacent spans, which come in order of their start."""
    start = end = -1
    for next_start, next_end in spans:
        if next_start > end:
            if end > start:
                yield start, end
            start = next_start
        end = max(end, next_end)
    if end > start:
        yield start, end
