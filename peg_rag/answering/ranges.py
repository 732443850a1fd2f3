"""Numbers and codes that lie in a range: 12年 in 满10年不满20年, 8000块 in 5,000元至2万元, p6 in p4-p7.

Why this exists: tables of rules name their rows by ranges, people name the one number they have, and the two share no
character.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from peg_rag.answering.quantities import Quantity, quantities_in
from peg_rag.answering.question import Question
from peg_rag.answering.statements import Cell
from peg_rag.answering.times import Span
from peg_rag.answering.words import Word, fold_text

_GRADE = re.compile(r"([a-z]+)(\d+)")
_FROM = re.compile(
    r"以上|及上|起|满(?<!不满)(?<!未满)|超过(?<!不超过)(?<!未超过)|大于(?<!不大于)|高于(?<!不高于)|不低于|不少于|≥|>|\+"
)
_UP_TO = re.compile(r"以下|以内|之内|(?<!国|市|省|室|户)内|不满|不足|不到|未满|小于|低于(?<!不低于)|不超过|≤|<|不高于")
_BETWEEN = re.compile(r"\d[^\d]{0,6}(?:[-~～—至到]|以上)[^\d]{0,4}\d")
_DATE = re.compile(r"\d{4}[-年/]\d|\d:\d|\d月\d")
_LONGEST = 30  # characters of a range
# 5至8栋 in 5至8栋为11月8日至11月14日
_SHORT_RANGE = re.compile(r"(?<![\d.])\d+(?:\.\d+)?[\u3400-\u9fff%]{0,2}?[-~～—至到]\d+(?:\.\d+)?[\u3400-\u9fff%]{1,2}")
_CLAUSE = re.compile(r"[^，。；;！？\n]+")


@dataclass(frozen=True, slots=True)
class _Bounds:
    """A range of numbers: letters before them (p in p4-p7), what they measure, whether the upper end is outside."""

    prefix: str
    low: float
    high: float
    measure: str
    excluded: bool

    def holds(self, value: float) -> bool:
        return self.low <= value < self.high if self.excluded else self.low <= value <= self.high


def range_fit(quantities: Sequence[Quantity], row: Sequence[Cell]) -> tuple[frozenset[str], bool]:
    """The numbers of a question that lie in a range of the row, and whether one lies outside of one of its measure.

    The row's first range of that measure is what names the row; those after it are what it says.
    """
    fit = set()
    conflict = False
    for quantity in quantities:
        verdict = next((v for cell in row if (v := _in_range(quantity, cell)) is not None), None)
        if verdict:
            fit.add(quantity.text)
        conflict = conflict or verdict is False
    return frozenset(fit), conflict and not fit


def sentence_fit(quantities: Sequence[Quantity], text: str) -> tuple[frozenset[str], bool]:
    """The numbers of a question that lie in a range of a sentence, and whether one lies in none of its measure."""
    if not quantities:
        return frozenset(), False
    clauses = [fold_text(clause) for clause in _CLAUSE.findall(text)]
    bounds = [_parse_bounds(piece) for clause in clauses for piece in (clause, *_SHORT_RANGE.findall(clause))]
    fit = set()
    conflict = False
    for quantity in quantities:
        verdicts = [b.holds(quantity.value) for b in bounds if b and b.measure and b.measure == quantity.measure]
        if any(verdicts):
            fit.add(quantity.text)
        conflict = conflict or (bool(verdicts) and not any(verdicts))
    return frozenset(fit), conflict and not fit


def number_spans(folded: str) -> Iterator[tuple[str, Span]]:
    """(measure, range) of the ranges of a folded text; the upper ends are outside."""
    for clause in _CLAUSE.findall(folded):
        for piece in dict.fromkeys((clause, *_SHORT_RANGE.findall(clause))):
            bounds = _parse_bounds(piece)
            if bounds and bounds.measure and not bounds.prefix:
                end = bounds.high if bounds.excluded else math.nextafter(bounds.high, math.inf)
                yield bounds.measure, (bounds.low, end)


def code_fit(words: Iterable[Word], row: Sequence[Cell]) -> frozenset[str]:
    """The codes of a question that lie in a range of codes: p6 in p4-p7, p9 in p7及以上."""
    graded = [word for word in words if word.is_code and _GRADE.fullmatch(word.text)]
    texts = [fold_text(text) for cell in row for text in (cell.value, cell.name)] if graded else []
    return frozenset(word.text for word in graded if any(holds_code(text, word) for text in texts))


def is_range_of(question: Question, cell: Cell, fit: frozenset[str]) -> bool:
    """Whether a number or code of the question lies in this cell's range."""
    if not fit:
        return False
    value = fold_text(cell.value)
    return any(holds_code(value, word) for word in question.words) or any(
        _in_range(quantity, cell) for quantity in question.quantities if quantity.text in fit
    )


def holds_code(text: str, word: Word) -> bool:
    code = _GRADE.fullmatch(word.text) if word.is_code else None
    bounds = _parse_bounds(text) if code else None
    return bool(code and bounds and bounds.prefix == code[1] and bounds.holds(float(code[2])))


def _in_range(quantity: Quantity, cell: Cell) -> bool | None:
    """None: the cell holds no range of this measure."""
    bounds = _parse_bounds(fold_text(cell.value))
    if bounds is None or bounds.prefix or not quantity.measure:
        return None
    if bounds.measure == quantity.measure:
        return bounds.holds(quantity.value)
    if bounds.measure:
        return None
    # A bare range has the unit that its column's name gives, as in 金额（元）, or none, as marks have.
    measures = {unit.measure for unit in quantities_in(_one_of_each_unit(fold_text(cell.name)))}
    if quantity.measure == "points" or quantity.measure in measures:
        return bounds.holds(quantity.value)
    return None


@lru_cache(maxsize=4096)
def _one_of_each_unit(name: str) -> str:
    """A column's name with a number before its last unit: 金额元 as 金额1元."""
    return re.sub(r"(万元|元|天|年|岁|米|公里|公斤|分|人|小时|分钟|平方米|mm|kg)(?=[^\u3400-\u9fff]*$)", r"1\1", name)


@lru_cache(maxsize=8192)
def _parse_bounds(value: str) -> _Bounds | None:
    """The bounds of a range such as 满10年不满20年, 80-84, p6-p7 or 7天以上; None for any other text."""
    if len(value) > _LONGEST or _DATE.search(value):
        return None
    value = value.replace("含", "")
    numbers = quantities_in(value)
    excluded = re.search(r"不满|不足|不到|未满", value) is not None
    if len(numbers) == 2 and (_BETWEEN.search(value) or (_FROM.search(value) and _UP_TO.search(value))):
        low, high = numbers
        return _Bounds(low.prefix, low.value, high.value, high.measure or low.measure, excluded)
    if len(numbers) == 1 and _UP_TO.search(value):
        return _Bounds(numbers[0].prefix, float("-inf"), numbers[0].value, numbers[0].measure, excluded)
    if len(numbers) == 1 and _FROM.search(value):
        return _Bounds(numbers[0].prefix, numbers[0].value, float("inf"), numbers[0].measure, False)
    return None
