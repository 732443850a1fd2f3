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

from peg_rag.answering.cells import longest_run
from peg_rag.answering.definitions import OTHERWISE, PARTIES
from peg_rag.answering.quantities import Quantity, quantities_in
from peg_rag.answering.question import Question, character_pairs, parse_term
from peg_rag.answering.ranges import number_spans
from peg_rag.answering.statements import Cell, Statement
from peg_rag.answering.times import TIMES, Span, is_within, overlap, time_spans, without_times
from peg_rag.answering.words import Word, fold_text

_REST_OF_TIME = re.compile("(?:其余|其他|其它|别的)的?(?:日子|日期|时间|时段|月份|季节|[日天])(?![^，,和及与])")
_DENIED_BEFORE = re.compile(r"(?:(?<!有)没有?|未|(?<![是能要可])不是?|无)[^,，。?？、]{0,5}$")
_DENYING = re.compile(r"(?:(?:不|没有?|未|无|非|免)(?:[含带包送配附要需]|提供|包含|包括)?|禁止|谢绝)[^，,；;]{0,6}$")
_DENIED_AFTER = re.compile(r"[^,，。?？、]{0,2}[没未][签办带交有]")
_BELOW_BEFORE = re.compile(r"(?:不到|不满|未满|不足|低于)$")
_BELOW_AFTER = re.compile(r"以下|以内")
_BOUND = re.compile(r"不到|不满|未满|不足|低于|超过|高于|大于|以上|以下|以内")
_LEADING_PLACE = re.compile(r"^[\u3400-\u9fff]{2,3}[省市县](?=[\u3400-\u9fff]{3})")
_HEAD = 2  # characters that a company is known by
_LONGEST_PERSON = 4  # characters of a name
_YEARS = re.compile(r"(?<!\d)(?:19|20)\d\d(?=年|[-/.])")
_PLACE = re.compile(r"(?:室|处|厅|馆|店|部|科|窗口|台|中心|站|院|楼|热线|电话|食堂)$")  # whose times define nothing
_UNITS = frozenset({"公斤", "公里", "小时", "分钟", "平方米", "厘米", "毫米", "钟头", "星期", "多少"})
_LIST_KINDS = frozenset({"how", "list", "rule", "reason"})
_MAX_OCCURRENCES = 3  # of a word in a file's hits, above which it tells no definition from another
_LONGEST_RANGE = 30  # characters
_SHORTEST_RUN = 3  # characters that a meaning shares with the question
_MAX_TERMS = 3  # of a question
_TOLERANCE = 1e-9  # of quantities in other units
Meanings = tuple[tuple[str, str], ...]


@lru_cache(maxsize=256)
def find_terms(question: Question, meanings: Meanings, file_text: str) -> tuple[str, ...]:
    """The names that a file gives to what a question says.

    Numbers, times and days are looked up in the ranges of the definitions, and runs of characters in their text; only
    if none has a name there, the question's telling words, and then pairs of characters that are no word. Where a
    list or a way to do something is asked for, only numbers are. The names of a contract's parties are always found.

    Args:
        meanings: (name, meaning) of what the file defines, as it is written.
        file_text: what is known of the file, folded; a word that it says often tells no definition from another.
    """
    parties = list(_names_of_parties(question, meanings))
    names = list(_names_by_number(question, meanings))
    if not _LIST_KINDS & set(question.kinds):
        names += _names_by_run(question, meanings, file_text)
        words = [word.text for word in question.words if _is_telling(word, file_text)]
        names = names or list(_names_by_word(question, meanings, words))
        names = names or list(_names_by_word(question, meanings, _unknown_pairs(question, file_text)))
    names = [*parties, *names]
    return tuple(dict.fromkeys(name for name in names if fold_text(name) not in question.asked))[:_MAX_TERMS]


def says_number(question: Question) -> bool:
    """Whether a question says a number with a unit, a time or a day, which a definition may name."""
    return bool(_numbers_said(question))


def find_terms_by_number(question: Question, meanings: Meanings) -> tuple[str, ...]:
    """The names that a file gives to the numbers, times and days of a question, see `find_terms`."""
    return tuple(_names_by_number(question, meanings))


def find_ranges(question: Question, row: Sequence[Cell]) -> tuple[str, ...]:
    """The ranges and times in a row that hold a number, time or day of the question.

    Of columns that are named by ranges, the narrowest that holds it; of the cells, the first that has a range of that
    measure, which is what the row is named by; otherwise the first that is a single quantity of that measure, if it
    equals the question's: 120厘米 for 1.2米.
    """
    names = tuple(cell.name for cell in row if cell.name)
    values = tuple(cell.value for cell in row)
    return (*_find_columns(question, names), *_find_values(question, values))[:_MAX_TERMS]


@lru_cache(maxsize=4096)
def _find_columns(question: Question, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_names_by_number(question, tuple((name, name) for name in names))))


@lru_cache(maxsize=4096)
def _find_values(question: Question, values: tuple[str, ...]) -> tuple[str, ...]:
    folded = {value: fold_text(value) for value in values if len(value) <= _LONGEST_RANGE}
    ranges = [(value, _find_spans(text)) for value, text in folded.items()]
    is_bound = _BOUND.search(question.asked) is not None
    quantities = [] if is_bound else [(value, _span_of_quantity(text)) for value, text in folded.items()]
    found = []
    for measure, said in _numbers_said(question):
        named = ((value, spans[measure]) for value, spans in (*ranges, *quantities) if measure in spans)
        value, own = next(named, ("", []))
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


def term_features(question: Question, statement: Statement, near: str) -> dict[str, float]:
    """Shares of the file's terms for the question: said by a statement, and said by the columns beside it alone.

    Args:
        near: what the statement says and stands under, folded; of a row without the names of its other columns.
    """
    terms = [fold_text(term) for term in question.terms]
    cell = statement.cell
    rivals = {fold_text(other.name) for other in statement.row if cell and other.name != cell.name}
    said = [term in near for term in terms]
    beside = [not is_said and any(term in name for name in rivals) for term, is_said in zip(terms, said, strict=True)]
    share = 1 / max(len(terms), 1)
    return {
        "terms": len(terms) / _MAX_TERMS,
        "terms_said": share * sum(said),
        "terms_missing": share * (len(terms) - sum(said)),
        "terms_beside": share * sum(beside),
    }


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


def _names_of_parties(question: Question, meanings: Meanings) -> Iterator[str]:
    """What a contract calls those that the question names: 乙方 for 拾字, where 乙方 is 拾字科技有限公司.

    A company is known by the beginning of its name, a person by the whole name.
    """
    parties = [(name, _LEADING_PLACE.sub("", fold_text(meaning))) for name, meaning in meanings if name in PARTIES]
    known = {name: meaning if len(meaning) <= _LONGEST_PERSON else meaning[:_HEAD] for name, meaning in parties}
    said = [name for name, own in known.items() if len(own) >= _HEAD and own in question.asked]
    yield from (name for name in said if list(known.values()).count(known[name]) == 1)


def _names_by_run(question: Question, meanings: Meanings, file_text: str) -> Iterator[str]:
    """The names of the meanings that alone share a run of characters with the question.

    Where these are ranges of what the question has a number of, the number decides. Of names for things of one sort,
    as 一类生 and 二类生, the one whose meaning has most in common with the question is meant.
    """
    found: dict[str, int] = {}
    has_figure = bool(_numbers_said(question) or question.quantities)
    folded = [(name, fold_text(meaning)) for name, meaning in meanings if _is_definition(name, meaning)]
    asked = without_times(question.asked)
    for name, meaning in folded:
        run = _find_run(meaning, asked)
        if len(run) < _SHORTEST_RUN or run.startswith("每") or _cuts_figure(meaning, run) or _cuts_figure(asked, run):
            continue
        is_telling = file_text.count(run) <= _MAX_OCCURRENCES
        is_alone = sum(run in other for _, other in folded) == 1 and not any(run in fold_text(own) for own, _ in folded)
        is_range = has_figure and bool(_find_spans(meaning))
        is_meant = _denies(meaning, run) == _is_denied(question.asked, run)
        if is_telling and is_alone and not is_range and is_meant:
            found[name] = len(set(character_pairs(meaning)) & set(question.pairs))
    for name, common in found.items():
        if all(common > own for other, own in found.items() if other != name and other[-1] == name[-1]):
            yield name


def _cuts_figure(text: str, run: str) -> bool:
    """Whether a figure stands right before a run: 天出结果 in 第2天出结果."""
    return text[max(text.find(run) - 1, 0)].isdigit() and not text.startswith(run)


@lru_cache(maxsize=16384)
def _find_run(text: str, question: str) -> str:
    """The longest run of characters that two texts share."""
    length = longest_run(text, question)
    starts = range(len(text) - length + 1)
    return next(text[start : start + length] for start in starts if text[start : start + length] in question)


def _is_definition(name: str, meaning: str) -> bool:
    return name not in PARTIES and not meaning.endswith(OTHERWISE)


def _names_by_word(question: Question, meanings: Meanings, words: Sequence[str]) -> Iterator[str]:
    """For each word the one name whose meaning has it; where the question denies a word, the name of the rest
    alone."""
    folded = [(name, fold_text(meaning)) for name, meaning in meanings if _is_definition(name, meaning)]
    found: list[str] = []
    denied: set[str] = set()
    for word in words:
        names = {name for name, meaning in folded if word in meaning}
        is_denied = _is_denied(question.asked, word)
        if denying := {name for name, meaning in folded if _denies(meaning, word)}:
            names = denying if is_denied else set()
            is_denied = False
        if len(names) == 1 and (is_denied or not any(word in fold_text(name) for name, _ in folded)):
            found += names
            denied |= names if is_denied else set()
    yield from _names_of_rest(meanings, denied) if denied else found


def _denies(meaning: str, word: str) -> bool:
    """Whether a definition says a word as what is not: 打药 in 不打药的检查."""
    before, found, _ = meaning.partition(word)
    return bool(found) and _DENYING.search(before) is not None


def _is_denied(text: str, word: str) -> bool:
    """Whether a question says a word as what is not."""
    before, _, after = text.partition(word)
    if before[-2:] in (f"{word[0]}没", f"{word[0]}不"):  # 登没登记 asks
        return False
    return _DENIED_BEFORE.search(before) is not None or _DENIED_AFTER.match(after) is not None


def _unknown_pairs(question: Question, file_text: str) -> list[str]:
    """Characters that stand together and are in no longer word of the question, as 水膜, which is cut into two."""
    known = {character for word in question.words if len(word.text) > 1 for character in word.text}
    pairs = [pair for pair in question.pairs if not known & set(pair) and not _cuts_figure(question.asked, pair)]
    return [pair for pair in pairs if file_text.count(pair) <= _MAX_OCCURRENCES]


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
def _span_of_quantity(value: str) -> dict[str, list[Span]]:
    """By its measure, a folded value that is one quantity and nothing else."""
    quantities = quantities_in(value)
    if len(quantities) != 1 or quantities[0].text != value or not quantities[0].measure:
        return {}
    size = quantities[0].value
    return {quantities[0].measure: [(size * (1 - _TOLERANCE), size * (1 + _TOLERANCE))]}


@lru_cache(maxsize=8192)
def _find_spans(meaning: str) -> dict[str, list[Span]]:
    """By what is measured, the ranges of a folded meaning."""
    spans: dict[str, list[Span]] = {}
    for measure, span in (*time_spans(meaning), *number_spans(without_times(meaning))):
        spans.setdefault(measure, []).append(span)
    return spans
