"""Numbers and codes that lie in a range: 12年 in 满10年不满20年, 8000元 in 5,000元至20,000元, p6 in p4-p7.

Why this exists: tables of rules name their rows by ranges, people name the one number they have, and the two share no
character.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from peg_rag.answering.question import Quantity, Question
from peg_rag.answering.statements import Cell
from peg_rag.answering.words import Word, fold

_NUMBER_IN_RANGE = re.compile(r"([a-z]*)(\d+(?:\.\d+)?)([\u3400-\u9fff%]?)")
_GRADE = re.compile(r"([a-z]+)(\d+)")
_FROM = re.compile(r"以上|起|满(?<!不满)(?<!未满)|超过|大于|高于|≥|>|\+")
_UP_TO = re.compile(r"以下|以内|之内|内|不满|不足|未满|小于|低于|≤|<")
_BETWEEN = re.compile(r"\d[^\d]{0,3}(?:[-~～至到]|以上)[^\d]{0,3}\d")


@dataclass(frozen=True, slots=True)
class _Bounds:
    """A range of numbers: letters before them (p in p4-p7), their units, whether the upper end is outside."""

    prefix: str
    low: float
    high: float
    units: str
    excluded: bool

    def holds(self, value: float) -> bool:
        return self.low <= value < self.high if self.excluded else self.low <= value <= self.high


def range_fit(quantities: Iterable[Quantity], row: Sequence[Cell]) -> tuple[frozenset[str], bool]:
    """The numbers of a question that lie in a range of the row, and whether one lies outside of one with its unit."""
    fit = set()
    conflict = False
    for quantity in quantities:
        for cell in row:
            verdict = _in_range(quantity, fold(cell.value), fold(cell.name))
            if verdict:
                fit.add(quantity.text)
            elif verdict is not None:
                conflict = True
    return frozenset(fit), conflict and not fit


def code_fit(words: Iterable[Word], row: Sequence[Cell]) -> frozenset[str]:
    """The codes of a question that lie in a range of codes: p6 in p4-p7, p9 in p7及以上."""
    graded = [word for word in words if word.is_code and _GRADE.fullmatch(word.text)]
    texts = [fold(text) for cell in row for text in (cell.value, cell.name)] if graded else []
    return frozenset(word.text for word in graded if any(holds_code(text, word) for text in texts))


def fits(question: Question, cell: Cell, fit: frozenset[str]) -> bool:
    """Whether a number or code of the question lies in this cell's range."""
    if not fit:
        return False
    value = fold(cell.value)
    return any(holds_code(value, word) for word in question.words) or any(
        _in_range(quantity, value, fold(cell.name)) for quantity in question.quantities if quantity.text in fit
    )


def holds_code(text: str, word: Word) -> bool:
    code = _GRADE.fullmatch(word.text) if word.is_code else None
    bounds = _bounds(text) if code else None
    return bool(code and bounds and bounds.prefix == code[1] and bounds.holds(float(code[2])))


def _in_range(quantity: Quantity, value: str, name: str) -> bool | None:
    """None: the cell holds no range of this unit."""
    bounds = _bounds(value)
    if bounds is None or bounds.prefix:
        return None
    same_unit = quantity.unit in bounds.units if bounds.units else quantity.unit in (*name, "分", "")
    return bounds.holds(quantity.value) if quantity.unit and same_unit else None


@lru_cache(maxsize=4096)
def _bounds(value: str) -> _Bounds | None:
    """The bounds of a range such as 满10年不满20年, 80-84, p6-p7 or 7天以上; None for any other text."""
    if len(value) > 30 or re.search(r"\d{4}[-年/]\d|\d:\d", value):
        return None
    numbers = _NUMBER_IN_RANGE.findall(value)
    units = re.sub("[以及或至到]", "", "".join(unit for _, _, unit in numbers)).replace("日", "天").replace("块", "元")
    excluded = re.search(r"不满|不足|未满", value) is not None
    if len(numbers) == 2 and (_BETWEEN.search(value) or (_FROM.search(value) and _UP_TO.search(value))):
        return _Bounds(numbers[0][0], float(numbers[0][1]), float(numbers[1][1]), units, excluded)
    if len(numbers) == 1 and _UP_TO.search(value):
        return _Bounds(numbers[0][0], float("-inf"), float(numbers[0][1]), units, excluded)
    if len(numbers) == 1 and _FROM.search(value):
        return _Bounds(numbers[0][0], float(numbers[0][1]), float("inf"), units, False)
    return None
