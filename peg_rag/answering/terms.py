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
from peg_rag.answering.quantities import Quantity
from peg_rag.answering.question import Question, parse_term
from peg_rag.answering.ranges import number_spans
from peg_rag.answering.statements import Cell
from peg_rag.answering.times import TIMES, Span, is_within, overlap, time_spans, without_times
from peg_rag.answering.words import Word, fold_text

_REST_OF_TIME = re.compile("(?:其余|其他|其它|别的)的?(?:日子|日期|时间|时段|月份|季节|[日天])(?![^，,和及与])")
_DENIED_BEFORE = re.compile(r"(?:(?<!有)没有?|未|(?<![是能要可])不是?|无)[^,，。?？、]{0,5}$")
_DENIED_AFTER = re.compile(r"[^,，。?？、]{0,2}[没未][签办带交有]")
_BELOW_BEFORE = re.compile(r"(?:不到|不满|未满|不足|低于)$")
_BELOW_AFTER = re.compile(r"以下|以内")
_YEARS = re.compile(r"(?<!\d)(?:19|20)\d\d(?=年|[-/.])")
_PLACE = re.compile(r"(?:室|处|厅|馆|店|部|科|窗口|台|中心|站|院|楼|热线|电话|食堂)$")  # whose times define nothing
_UNITS = frozenset({"公斤", "公里", "小时", "分钟", "平方米", "厘米", "毫米", "钟头", "星期", "多少"})
_LIST_KINDS = frozenset({"how", "list", "rule", "reason"})
_MAX_OCCURRENCES = 3  # of a word in a file's hits, above which it tells no definition from another
_LONGEST_RANGE = 30  # characters
_MAX_TERMS = 3  # of a question
Meanings = tuple[tuple[str, str], ...]


@lru_cache(maxsize=256)
def find_terms(question: Question, meanings: Meanings, file_text: str) -> tuple[str, ...]:
    """The names that a file gives to what a question says.

    Numbers, times and days are looked up in the ranges of the definitions. Only if none has a name there, the
    question's telling words are looked up in their text.

    Args:
        meanings: (name, meaning) of what the file defines, as it is written.
        file_text: what is known of the file, folded; a word that it says often tells no definition from another.
    """
    names = list(_names_by_number(question, meanings))
    if not names and not _LIST_KINDS & set(question.kinds):
        names = list(_names_by_word(question, meanings, file_text))
    return tuple(dict.fromkeys(name for name in names if fold_text(name) not in question.asked))[:_MAX_TERMS]


def find_ranges(question: Question, row: Sequence[Cell]) -> tuple[str, ...]:
    """The ranges and times in a row that hold a number, time or day of the question.

    Of columns that are named by ranges, the narrowest that holds it; of the cells, the first that has a range of that
    measure, which is what the row is named by.
    """
    names = tuple(cell.name for cell in row if cell.name)
    values = tuple(cell.value for cell in row)
    return (*_find_columns(question, names), *_find_values(question, values))[:_MAX_TERMS]


@lru_cache(maxsize=4096)
def _find_columns(question: Question, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_names_by_number(question, tuple((name, name) for name in names))))


@lru_cache(maxsize=4096)
def _find_values(question: Question, values: tuple[str, ...]) -> tuple[str, ...]:
    spans = [(value, _find_spans(fold_text(value))) for value in values if len(value) <= _LONGEST_RANGE]
    found = []
    for measure, said in _numbers_said(question):
        value, own = next(((value, of_value[measure]) for value, of_value in spans if measure in of_value), ("", []))
        is_held = any(overlap(span, said) for span in own) and not _is_of_other_year(question, value)
        if is_held and fold_text(value) not in question.asked:
            found.append(value)
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=4096)
def restate_question(question: Question, terms: tuple[str, ...]) -> Question:
    """The question with a file's terms for what it says, as if it said these, too."""
    if not terms:
        return question
    terms = tuple(dict.fromkeys(terms))
    added = [parse_term(term) for term in terms]
    return replace(
        question,
        terms=terms,
        text=f"{question.text}({'、'.join(term.text for term in added)})",
        words=(*question.words, *(word for term in added for word in term.words)),
        pairs=tuple(dict.fromkeys((*question.pairs, *(pair for term in added for pair in term.pairs)))),
        expanded="\n".join([question.expanded, *(term.text for term in added)]),
    )


def _names_by_number(question: Question, meanings: Meanings) -> Iterator[str]:
    """For each number, time or day the one name whose range holds it, the narrowest; where no range of its measure
    does, the name of all the rest."""
    meanings = tuple(dict.fromkeys(meanings))
    spans = [
        (name, _find_spans(fold_text(meaning)))
        for name, meaning in meanings
        if not meaning.endswith(OTHERWISE) and not _is_of_other_year(question, meaning)
    ]
    for measure, said in _numbers_said(question):
        own = [(span, name) for name, of_meaning in spans for span in of_meaning.get(measure, ())]
        if measure == "clock":
            own = [(span, name) for span, name in own if not _PLACE.search(name)]
        holding = [(span, name) for span, name in own if overlap(span, said)]
        names = {name for span, name in holding if all(is_within(span, other) for other, _ in holding)}
        if own and not holding:
            names = _names_of_rest(meanings, {name for _, name in own})
            names = names or {name for name, meaning in meanings if measure in TIMES and _REST_OF_TIME.match(meaning)}
        if len(names) == 1:
            yield names.pop()


def _names_by_word(question: Question, meanings: Meanings, file_text: str) -> Iterator[str]:
    """For each telling word the one name whose meaning has it; where the question denies a word, the name of the rest
    alone."""
    folded = [(name, fold_text(meaning)) for name, meaning in meanings if not meaning.endswith(OTHERWISE)]
    found: list[str] = []
    denied: set[str] = set()
    for word in question.words:
        if not _is_telling(word, file_text) or any(word.text in fold_text(name) for name, _ in folded):
            continue
        names = {name for name, meaning in folded if word.text in meaning}
        if len(names) == 1:
            found += names
            denied |= names if _is_denied(question.asked, word.text) else set()
    yield from _names_of_rest(meanings, denied) if denied else found


def _is_denied(text: str, word: str) -> bool:
    before, _, after = text.partition(word)
    return _DENIED_BEFORE.search(before) is not None or _DENIED_AFTER.match(after) is not None


def _is_telling(word: Word, file_text: str) -> bool:
    is_figure = word.is_code or any(character.isdigit() for character in word.text)
    is_unit = word.text in _UNITS or "每" in word.text
    return len(word.text) > 1 and not is_figure and not is_unit and file_text.count(word.text) <= _MAX_OCCURRENCES


def _names_of_rest(meanings: Meanings, names: set[str]) -> set[str]:
    """What the file calls all that has none of some names."""
    return {
        name for name, meaning in meanings if meaning.endswith(OTHERWISE) and meaning.removesuffix(OTHERWISE) in names
    }


def _is_of_other_year(question: Question, text: str) -> bool:
    years = set(_YEARS.findall(text))
    return bool(years and question.years) and not years & question.years


@lru_cache(maxsize=1024)
def _numbers_said(question: Question) -> tuple[tuple[str, Span], ...]:
    """(measure, span) of a question's times, days and quantities. A holiday is told by its name, not by its weekday."""
    times = time_spans(question.asked)
    if any(measure == "holiday" for measure, _ in times):
        times = [(measure, span) for measure, span in times if measure != "weekday"]
    rest = without_times(question.asked)
    quantities = [(q.measure, _read_bound(rest, q)) for q in question.quantities if q.measure and q.text in rest]
    return (*times, *quantities)


def _read_bound(text: str, quantity: Quantity) -> Span:
    """A quantity as a range: the least one at it, or below it where less is said."""
    before, _, after = text.partition(quantity.text)
    if _BELOW_BEFORE.search(before) or _BELOW_AFTER.match(after):
        return math.nextafter(quantity.value, -math.inf), quantity.value
    return quantity.value, math.nextafter(quantity.value, math.inf)


@lru_cache(maxsize=8192)
def _find_spans(meaning: str) -> dict[str, list[Span]]:
    """By what is measured, the ranges of a folded meaning."""
    spans: dict[str, list[Span]] = {}
    for measure, span in (*time_spans(meaning), *number_spans(without_times(meaning))):
        spans.setdefault(measure, []).append(span)
    return spans
