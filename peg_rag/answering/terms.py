"""The file's own terms for what a question says: 少年 for a child of twelve, 夜段 for seven in the evening.

Why this exists: a price list has columns for 少年 and 夜段, and says elsewhere that these are from 7 to 18 years and
from 17:00 to 21:00. Who asks has a number, a time or a day, and shares no word with the column. So a statement is
compared with the question as its file would put it.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from peg_rag.answering.definitions import OTHERWISE
from peg_rag.answering.question import Question, parse_question
from peg_rag.answering.ranges import number_spans
from peg_rag.answering.statements import Cell
from peg_rag.answering.times import TIMES, Span, has_figure_of_time, time_spans, times_said
from peg_rag.answering.words import Word, fold_text

_REST_OF_TIME = re.compile("(?:其余|其他|其它|别的)的?(?:日子|日期|时间|时段|月份|季节|[日天])[，,]?$")
_NEGATION = re.compile("(?:没有?|未|不是?|非|还没)[签办过有在]?$")
_UNITS = frozenset({"公斤", "公里", "小时", "分钟", "平方米", "厘米", "毫米", "钟头", "星期", "多少"})
_LIST_KINDS = frozenset({"how", "list", "rule", "reason"})
_OFTEN = 3  # times that a file's hits say a word, above which it tells no definition from another
_LONGEST_RANGE = 30  # characters
_MOST = 3  # terms of a question
Meanings = tuple[tuple[str, str], ...]


@lru_cache(maxsize=256)
def find_terms(question: Question, meanings: Meanings, file_text: str) -> tuple[str, ...]:
    """The names that a file gives to what a question says: to its numbers, times and days; if to none, to its words.

    Args:
        meanings: (name, meaning) of what the file defines, as it is written.
        file_text: what is known of the file, folded; a word that it says often tells no definition from another.
    """
    names = list(_names_by_number(question, meanings))
    if not names and not _LIST_KINDS & set(question.kinds):
        names = list(_names_by_word(question, meanings, file_text))
    return tuple(dict.fromkeys(name for name in names if fold_text(name) not in question.asked))[:_MOST]


def find_ranges(question: Question, row: Sequence[Cell]) -> tuple[str, ...]:
    """The names and values of a row that are ranges or times and hold what the question says in numbers: of columns
    the narrowest; of values the first of that measure, which names the row."""
    names = tuple(cell.name for cell in row if cell.name)
    values = tuple(cell.value for cell in row)
    return (*_find_columns(question, names), *_find_values(question, values))[:_MOST]


@lru_cache(maxsize=4096)
def _find_columns(question: Question, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_names_by_number(question, tuple((name, name) for name in names))))


@lru_cache(maxsize=4096)
def _find_values(question: Question, values: tuple[str, ...]) -> tuple[str, ...]:
    spans = [(value, _find_spans(fold_text(value))) for value in values if len(value) <= _LONGEST_RANGE]
    found = []
    for measure, said in _numbers_said(question):
        first = next(((value, of_value[measure]) for value, of_value in spans if measure in of_value), None)
        if first and any(_overlap(span, said) for span in first[1]) and fold_text(first[0]) not in question.asked:
            found.append(first[0])
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=4096)
def restate_question(question: Question, terms: tuple[str, ...]) -> Question:
    """The question with a file's terms for what it says, as if it said these, too."""
    if not terms:
        return question
    terms = tuple(dict.fromkeys(terms))
    added = [parse_question(term) for term in terms]
    return replace(
        question,
        terms=terms,
        text=f"{question.text}({'、'.join(term.text for term in added)})",
        words=(*question.words, *(word for term in added for word in term.words)),
        pairs=tuple(dict.fromkeys((*question.pairs, *(pair for term in added for pair in term.pairs)))),
        expanded="\n".join([question.expanded, *(term.text for term in added)]),
    )


def _names_by_number(question: Question, meanings: Meanings) -> Iterator[str]:
    """For each number, time or day the one name whose range holds it: the narrowest; where no range of its measure
    does, the name of all the rest."""
    meanings = tuple(dict.fromkeys(meanings))
    spans = [(name, _find_spans(fold_text(meaning))) for name, meaning in meanings if not meaning.endswith(OTHERWISE)]
    for measure, said in _numbers_said(question):
        own = [(span, name) for name, of_meaning in spans for span in of_meaning.get(measure, ())]
        holding = [(span, name) for span, name in own if _overlap(span, said)]
        names = {name for span, name in holding if all(_is_within(span, other) for other, _ in holding)}
        if own and not holding:
            names = _names_of_rest(meanings, {name for _, name in own})
            names = names or {name for name, meaning in meanings if measure in TIMES and _REST_OF_TIME.match(meaning)}
        if len(names) == 1:
            yield names.pop()


def _overlap(span: Span, other: Span) -> bool:
    return span[0] < other[1] and other[0] < span[1]


def _is_within(span: Span, other: Span) -> bool:
    return other[0] <= span[0] and span[1] <= other[1]


def _names_by_word(question: Question, meanings: Meanings, file_text: str) -> Iterator[str]:
    """For each telling word the one name whose meaning has it; where the question denies it, the name of the rest."""
    folded = [(name, fold_text(meaning)) for name, meaning in meanings if not meaning.endswith(OTHERWISE)]
    for word in question.words:
        if not _is_telling(word, file_text) or any(word.text in fold_text(name) for name, _ in folded):
            continue
        names = {name for name, meaning in folded if word.text in meaning}
        if len(names) == 1:
            is_denied = _NEGATION.search(question.asked[: question.asked.find(word.text)]) is not None
            yield from _names_of_rest(meanings, names) if is_denied else names


def _is_telling(word: Word, file_text: str) -> bool:
    is_figure = word.is_code or any(character.isdigit() for character in word.text)
    is_unit = word.text in _UNITS or "每" in word.text
    return len(word.text) > 1 and not is_figure and not is_unit and file_text.count(word.text) <= _OFTEN


def _names_of_rest(meanings: Meanings, names: set[str]) -> set[str]:
    """What the file calls all that has none of some names."""
    return {
        name for name, meaning in meanings if meaning.endswith(OTHERWISE) and meaning.removesuffix(OTHERWISE) in names
    }


@lru_cache(maxsize=1024)
def _numbers_said(question: Question) -> tuple[tuple[str, Span], ...]:
    """(measure, span) of a question's times, days and quantities."""
    text = question.asked
    quantities = [
        (quantity.measure, (quantity.value, math.nextafter(quantity.value, math.inf)))
        for quantity in question.quantities
        if quantity.measure
        and not has_figure_of_time(text[max(text.find(quantity.text) - 1, 0) :][: len(quantity.text) + 1])
    ]
    return (*times_said(text), *quantities)


@lru_cache(maxsize=8192)
def _find_spans(meaning: str) -> dict[str, list[Span]]:
    """By what is measured, the ranges of a folded meaning."""
    spans: dict[str, list[Span]] = {}
    numbers = () if has_figure_of_time(meaning) else number_spans(meaning)
    for measure, span in (*time_spans(meaning), *numbers):
        spans.setdefault(measure, []).append(span)
    return spans
