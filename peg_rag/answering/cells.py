"""What a cell answers, by its column's name, the rest of its row and the rows of its table.

Why this exists: 10天 answers a question about twelve years of service because its column is 法定年假 and its row
满10年不满20年. The other cells of the row are its rivals, and one or two of them are quoted beside it to say of whom.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

from peg_rag.answering.coverage import share_of_text
from peg_rag.answering.kinds import names_kind, rate_value
from peg_rag.answering.passages import Passage
from peg_rag.answering.question import Question
from peg_rag.answering.ranges import code_fit, holds_code, is_range_of, range_fit
from peg_rag.answering.statements import Cell, Statement
from peg_rag.answering.words import fold_text

_LONGEST_VALUE = 60  # characters of a value that are compared
_SAID = 0.5  # share of a value's words from which the question says it
_NO_CELL = {"asked_noun": 0.0, "unit": 0.0, "column_words": 0.0, "column_rival": 0.0, "key_words": 0.0, "echo": 0.0}
_NO_SYNONYMS = {"synonyms_column": 0.0, "synonyms_column_rival": 0.0, "synonyms_key": 0.0, "synonyms_value": 0.0}
_NO_RUNS = {"column_run": 0.0, "column_run_rival": 0.0, "key_run": 0.0, "key_run_length": 0.0}
_LONGEST_RUN = 8  # characters
_JOINS = frozenset({"和", "与", "及", "以及", "还有", "、", "跟"})
_FIGURE = re.compile(r"\d+(?:\.\d+)?")
_MODEL = re.compile(r"[a-z]+-?\d+(?:[-./]\d+)+")
_NAME_UNIT = re.compile(r"[（(].*")
_UNIT_IN_NAME = re.compile(r"元|万元|小时|分钟|天|个|名|年|月|/|:")


def cell_features(
    question: Question, passage: Passage, statement: Statement, in_range: frozenset[str], defined: Mapping[str, str]
) -> dict[str, float]:
    """How a cell's column, key and value fit the question; zeros for a sentence or list.

    Args:
        in_range: numbers and codes of the question that lie in a range of the row.
        defined: see `passages.defined_words`.
    """
    cell = statement.cell
    if cell is None:
        return _NO_CELL | _NO_SYNONYMS | _NO_RUNS
    rest = [other for other in (*statement.row, *passage.form) if other is not cell]
    beside = [other for other in rest if other.value != cell.value]
    share = _share_of_name(question, cell.name, defined)
    # A column whose value the question says is the key, not a rival.
    rivals = [other for other in beside if other.name != cell.name and _share_of_value(question, other) < _SAID]
    rival = max((_share_of_name(question, other.name, defined) for other in rivals), default=0.0)
    value = fold_text(cell.value)
    keys = [_share_of_value(question, other) for other in beside]
    return {
        "asked_noun": float(bool(question.noun) and question.noun[:2] in fold_text(cell.name)),
        "unit": float(bool(question.unit) and (question.unit in value or question.unit in cell.name)),
        "column_words": share,
        "column_rival": max(0.0, rival - share),
        "key_words": 1.0 if in_range else max(keys, default=0.0),
        "echo": _measure_echo(question, cell, value, in_range),
        **_synonym_features(question, cell, rest),
        **_run_features(question, cell, beside),
    }


def _run_features(question: Question, cell: Cell, beside: Sequence[Cell]) -> dict[str, float]:
    """The longest run of characters that the question shares with the column's name and with the row's other cells.

    A name cut otherwise than the question is still known by it: 报修人 by 谁报修的.
    """
    run = _measure_run(fold_text(cell.name), question.text)
    rivals = [_measure_run(fold_text(other.name), question.text) for other in beside if other.name != cell.name]
    keys = [(fold_text(other.value)[:_LONGEST_VALUE], other) for other in beside]
    lengths = [(longest_run(value, question.text), len(value)) for value, _ in keys]
    return {
        "column_run": run,
        "column_run_rival": max(0.0, max(rivals, default=0.0) - run),
        "key_run": max((length / max(whole, 1) for length, whole in lengths if length > 1), default=0.0),
        "key_run_length": min(max((length for length, _ in lengths), default=0), _LONGEST_RUN) / _LONGEST_RUN,
    }


@lru_cache(maxsize=16384)
def _measure_run(name: str, question: str) -> float:
    """The share of a column's name that its longest run in the question is, from two characters on."""
    name = _UNIT_IN_NAME.sub("", name) or name
    length = longest_run(name, question)
    return length / len(name) if length > 1 or length == len(name) > 0 else 0.0


@lru_cache(maxsize=65536)
def longest_run(text: str, question: str) -> int:
    """How many characters the longest run has that two short texts share."""
    longest = 0
    for start in range(len(text)):
        while start + longest < len(text) and text[start : start + longest + 1] in question:
            longest += 1
    return longest


def _synonym_features(question: Question, cell: Cell, rest: Sequence[Cell]) -> dict[str, float]:
    """How much of the column's name, the key and the value the question says, be it in other words."""
    column = share_of_text(fold_text(cell.name), question.expanded)
    rivals = [share_of_text(fold_text(other.name), question.expanded) for other in rest if other.name != cell.name]
    keys = [share_of_text(fold_text(other.value)[:_LONGEST_VALUE], question.expanded) for other in rest]
    return {
        "synonyms_column": column,
        "synonyms_column_rival": max(0.0, max(rivals, default=0.0) - column),
        "synonyms_key": max(keys, default=0.0),
        "synonyms_value": share_of_text(fold_text(cell.value)[:_LONGEST_VALUE], question.expanded),
    }


def add_cell_gaps(pairs: Sequence[tuple[Passage, Statement]], rows: Sequence[dict[str, float]]) -> None:
    """Compare a cell with the others of its row, and its row with the others of its table."""
    best_columns: dict[object, float] = {}
    best_keys: dict[object, float] = {}
    best_runs: dict[object, float] = {}
    places = []
    for (passage, statement), row in zip(pairs, rows, strict=True):
        of_row = (passage.rank, statement.row[0].span) if statement.row else None
        of_table = (passage.context, statement.row[0].name) if statement.row else None
        column = _rate_column(row)
        key = row["key_words"] + row["like_key"] + row["synonyms_key"] + row["range_match"] - row["range_conflict"]
        best_columns[of_row] = max(best_columns.get(of_row, -9.0), column)
        best_keys[of_table] = max(best_keys.get(of_table, -9.0), key)
        best_runs[of_table] = max(best_runs.get(of_table, 0.0), row["key_run_length"])
        places.append((of_row, of_table, column, key))
    for row, (of_row, of_table, column, key) in zip(rows, places, strict=True):
        row["fit_gap"] = best_columns[of_row] - column if of_row else 0.0
        row["key_gap"] = best_keys[of_table] - key if of_table else 0.0
        row["key_run_gap"] = best_runs[of_table] - row["key_run_length"] if of_table else 0.0


def _rate_column(row: Mapping[str, float]) -> float:
    """How well a cell's column and kind of value fit."""
    kind = row["right_kind"] - row["wrong_kind"] + 0.5 * row["column"] + row["unit"]
    name = row["column_words"] + row["asked_noun"] + row["like_column"] + row["synonyms_column"]
    return kind + name - row["echo"]


def rate_cell(question: Question, statement: Statement) -> float:
    """How well a cell's name and value fit what a question asks for; a sentence fits worst."""
    cell = statement.cell
    if cell is None:
        return -9.0
    right, wrong = rate_value(question, fold_text(cell.value), cell.name)
    name = share_of_text(fold_text(cell.name), question.expanded)
    return right - wrong + names_kind(question, cell.name) + 2 * name


def named_together(question: Question, statement: Statement) -> list[Cell]:
    """The cells whose names a question joins by 和: 件号 and 单价 in 承载轮的件号和单价."""
    names = [(fold_text(_NAME_UNIT.sub("", cell.name)), cell) for cell in statement.row]
    named = [(question.text.find(name), name, cell) for name, cell in names if len(name) > 1 and name in question.text]
    places = sorted(named, key=lambda place: place[:2])
    joined = [
        (cell, other)
        for (start, name, cell), (following, _, other) in pairwise(places)
        if question.text[start + len(name) : following] in _JOINS
    ]
    cells = list(dict.fromkeys(cell for pair in joined for cell in pair))
    return cells if statement.cell in cells else []


def key_cells(question: Question, statement: Statement) -> list[Cell]:
    """The cells to quote beside a cell, so that it says of whom: those the question names, else the row's first."""
    assert statement.cell is not None
    in_range, _ = range_fit(question.quantities, statement.row)
    in_range |= code_fit(question.words, statement.row)
    others = [cell for cell in statement.row if cell is not statement.cell]
    keys = [
        cell for cell in others if _share_of_value(question, cell) >= _SAID or is_range_of(question, cell, in_range)
    ][:2]
    first = next((cell for cell in others if not _is_serial(cell)), None)
    if first and first not in keys and (not keys or (len(keys) < 2 and first.span < statement.cell.span)):
        keys.append(first)
    return sorted(keys, key=lambda cell: cell.span)


def find_telling_cell(quoted: Sequence[Cell], statement: Statement, others: Iterable[Statement]) -> Cell | None:
    """The cell that tells a row from the rows of which the same would be quoted with another value; None if there are
    no such rows, or no cell tells them apart.

    Args:
        quoted: the cells of the row that are quoted.
        statement: a cell.
        others: statements of the same table, those of this row among them.
    """
    own = statement.cell
    assert own is not None
    keys = {_name_and_value(cell) for cell in quoted if cell != own and not _is_serial(cell)}
    rows = [
        {_name_and_value(cell) for cell in other.row}
        for other in others
        if other.cell is not None and other.cell.name == own.name and other.cell.value != own.value
    ]
    rivals = [row for row in rows if keys and keys <= row and _name_and_value(own) not in row]
    rest = [cell for cell in statement.row if cell not in (*quoted, own) and not _is_serial(cell)]
    differences = [sum(_name_and_value(cell) not in rival for rival in rivals) for cell in rest]
    most = max(differences, default=0)
    return rest[differences.index(most)] if most else None


def _name_and_value(cell: Cell) -> tuple[str, str]:
    return cell.name, cell.value


def _is_serial(cell: Cell) -> bool:
    return cell.name in ("", "序号", "编号", "时段", "No.", "#", "ID", "id") and len(cell.value) <= 6


def _share_of_name(question: Question, name: str, defined: Mapping[str, str]) -> float:
    """How much of a column's name the question says; a range of codes in it counts as said where a code lies in it."""
    folded = fold_text(name)
    if any(holds_code(folded, word) for word in question.words) or any(term in folded for term in defined.values()):
        return 1.0
    return share_of_text(folded, question.text)


def _share_of_value(question: Question, cell: Cell) -> float:
    """How much of a value the question says; the 32 of LT50-32 says nothing of 32 metres."""
    value = fold_text(cell.value)
    return share_of_text(value, _MODEL.sub(" ", question.text) if _FIGURE.fullmatch(value) else question.text)


def _measure_echo(question: Question, cell: Cell, value: str, in_range: frozenset[str]) -> float:
    """How much of a value the question says; a range that its number lies in is what the row is named by."""
    if is_range_of(question, cell, in_range):
        return 1.0
    return share_of_text(value[:_LONGEST_VALUE], question.asked)
