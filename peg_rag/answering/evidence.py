"""What speaks for a statement as the answer to a question, as numbers between 0 and 1 that a scorer weighs.

Why this exists: whether 10天 answers a question about twelve years of service is decided by the column 法定年假, the
row 满10年不满20年, the file's year and the unit, not by how much the row resembles the question. Each number says one
such thing. They are few and named, so that what the scorer learned can be read.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from peg_rag.answering.kinds import looks, names_kind
from peg_rag.answering.likeness import likeness
from peg_rag.answering.passages import Passage, defined_words
from peg_rag.answering.question import Question
from peg_rag.answering.ranges import code_fit, fits, holds_code, range_fit, sentence_fit
from peg_rag.answering.statements import Cell, Statement, without_mark
from peg_rag.answering.words import SURNAMES, Word, fold, same_words, words_of

_YEAR = re.compile(r"(?<!\d)(20\d\d|19\d\d)(?!\d)")
_ENDS = frozenset("。！？!?…；;.")
_MIXED_CODE = re.compile(r"^(?=[^\u3400-\u9fff]*$)(?=.*[a-z])(?=.*\d)")
FEATURES = (
    "covered",  # of the question's words, by the statement, its headings and file
    "covered_by_statement",  # by the statement alone
    "covered_by_file",  # with whatever else of its file was found
    "fresh",  # of the words that its headings and file do not say, by the statement
    "telling",  # of the words that few of the hits say, by the statement, its headings and file
    "covered_gap",  # how much more the best statement covers
    "statement_gap",  # how much more the best statement covers by itself
    "telling_gap",
    "characters",  # of the question's characters, by the statement, its headings and file
    "ends",  # a sentence with its end, as titles have none
    "missing",  # the weight of the heaviest word that neither covers
    "missing_code",  # a code that is not there
    "year_conflict",  # another year stands there, and not the one that was asked for
    "range_match",  # a number of the question lies in a range of the row
    "range_conflict",  # it lies outside
    "looks",  # the value is of the kind that is asked for
    "looks_wrong",  # a kind is asked for, and the value is of another
    "column",  # the column's name, or the heading over a sentence, says that kind
    "asked_noun",  # the column's name says what 什么 or 哪个 asks for: 等级 in 什么等级
    "unit",  # 天 where 几天 was asked
    "column_words",  # of the column's name, by the question
    "column_rival",  # of the other columns' names, by the question, where this one has less
    "key_words",  # of the row's key, by the question
    "echo",  # of the value, by the question
    "is_cell",
    "is_list",
    "precision",  # of the statement's words, by the question
    "length",
    "rank",
    "pairs",  # of the question's pairs of characters, by the statement, its headings and file
    "pairs_by_statement",
    "pairs_telling",  # of those that few of the hits say, by the statement, its headings and file
    "pairs_told",  # of those, by the statement
    "pairs_gap",  # how much more the best statement says of the telling ones
    "pairs_told_gap",
    "pairs_missing",  # share that no hit of its file says
    "fit_gap",  # how much better another cell of the row fits what is asked for
    "key_gap",  # how much better the key of another row of the table fits
    "like",  # how much the question's words are covered by words like them, by the statement, its headings and file
    "like_by_statement",
    "like_by_passage",  # with whatever else its hit says
    "like_gap",  # how much more the best statement covers so
    "like_statement_gap",
    "like_missing",  # the weight of the heaviest word that has nothing like it
    "like_column",  # the column's name and the question's words
    "like_column_rival",  # another column's name, where this one's is less alike
    "like_key",  # the row's key and the question's words
    "like_key_gap",  # how much more the key of the best row is alike
    "like_heading",  # the nearest heading and the question's words
    "file_share",  # of the hits, the better the more, those of its file
    "asks_polar",
    "asks_nothing",  # the question says no kind
    "words",  # of the question
    "cosine",
    "cosine_lead",  # above the mean of all statements, in spreads
    "cosine_gap",  # below the best
)


def rarities(question: Question, passages: Sequence[Passage]) -> tuple[float, ...]:
    """How much each word of the question tells one hit from another: 0 for a word that all or none of them say."""
    texts = [f"{passage.context}\n{passage.text}" for passage in passages]
    counts = [sum(_covers_word(text, word) for text in texts) for word in question.words]
    return tuple(
        word.weight * math.log((len(texts) + 1) / (count + 0.5)) if count else 0.0
        for word, count in zip(question.words, counts, strict=True)
    )


def pair_rarities(question: Question, passages: Sequence[Passage]) -> tuple[float, ...]:
    """How much each pair of characters tells one hit from another, as `rarities`."""
    texts = [f"{passage.context}\n{passage.text}" for passage in passages]
    counts = [sum(pair in text for text in texts) for pair in question.pairs]
    return tuple(math.log((len(texts) + 1) / (count + 0.5)) if count else 0.0 for count in counts)


def lacks_code(question: Question, passage: Passage, statement: Statement) -> bool:
    """Whether the question names a code, such as E07, that neither the hit nor its headings, file or ranges say."""
    codes = [word for word in question.words if _MIXED_CODE.search(word.text)]
    if not codes:
        return False
    text = f"{passage.context}\n{fold(passage.hit.text)}\n" + "\n".join(fold(c.value) for c in passage.form)
    fit = code_fit(codes, statement.row)
    return any(not _covers_word(text, word) and word.text not in fit for word in codes)


def add_gaps(pairs: Sequence[tuple[Passage, Statement]], rows: Sequence[dict[str, float]]) -> None:
    """Compare the statements of all hits with the best of them."""
    for name, gap in (
        ("covered", "covered_gap"),
        ("covered_by_statement", "statement_gap"),
        ("telling", "telling_gap"),
        ("like", "like_gap"),
        ("like_by_statement", "like_statement_gap"),
        ("like_key", "like_key_gap"),
        ("pairs_telling", "pairs_gap"),
        ("pairs_told", "pairs_told_gap"),
    ):
        best = max((row[name] for row in rows), default=0.0)
        for row in rows:
            row[gap] = best - row[name]
    _add_cell_gaps(pairs, rows)


def _add_cell_gaps(pairs: Sequence[tuple[Passage, Statement]], rows: Sequence[dict[str, float]]) -> None:
    """Compare a cell with the others of its row, and its row with the others of its table."""
    best_fit: dict[object, float] = {}
    best_key: dict[object, float] = {}
    places = []
    for (passage, statement), row in zip(pairs, rows, strict=True):
        of_row = (passage.rank, statement.row[0].span) if statement.row else None
        of_table = (passage.context, statement.row[0].name) if statement.row else None
        fit = row["looks"] - row["looks_wrong"] + 0.5 * row["column"] + row["unit"] + row["column_words"]
        fit += row["asked_noun"]
        fit += row["like_column"] - row["echo"]
        key = row["key_words"] + row["like_key"] + row["range_match"] - row["range_conflict"]
        best_fit[of_row] = max(best_fit.get(of_row, -9.0), fit)
        best_key[of_table] = max(best_key.get(of_table, -9.0), key)
        places.append((of_row, of_table, fit, key))
    for row, (of_row, of_table, fit, key) in zip(rows, places, strict=True):
        row["fit_gap"] = best_fit[of_row] - fit if of_row else 0.0
        row["key_gap"] = best_key[of_table] - key if of_table else 0.0


def features_of(
    question: Question,
    passage: Passage,
    statement: Statement,
    rarity: Sequence[float],
    pair_rarity: Sequence[float],
) -> dict[str, float]:
    """Everything in `FEATURES` but the gaps and the cosines, which compare the statements.

    Args:
        rarity: see `rarities`.
        pair_rarity: see `pair_rarities`.
    """
    cell = statement.cell
    own = fold(f"{statement.heading}\n{statement.text}")
    cells = (*statement.row, *passage.form)
    row = fold("\n".join(f"{c.name}: {c.value}" for c in cells)) if cell else own
    near = f"{passage.context}\n{fold(statement.heading)}\n{row}"
    fit, conflict = range_fit(question.quantities, statement.row) if cell else (frozenset(), False)
    fit |= code_fit(question.words, statement.row) if cell else sentence_fit(question.quantities, statement.text)
    defined = defined_words(question, passage)
    fit |= {word for word, name in defined.items() if name in row}
    words = question.words
    covered = [_covers_word(near, word) or word.text in fit for word in words]
    by_file = [known or _covers_word(passage.file_text, word) for known, word in zip(covered, words, strict=True)]
    by_row = [_covers_word(row, word) or word.text in fit for word in words]
    headings = f"{passage.context}\n{fold(statement.heading)}"
    by_context = [_covers_word(headings, word) for word in words]
    told = sum(weight for weight, known in zip(rarity, covered, strict=True) if known)
    value = fold(cell.value) if cell else fold(without_mark(statement.text))
    likeness, unlikeness = looks(question, value, cell.name if cell else "")
    found = {
        "covered": _share_of_weight(words, covered),
        "covered_by_statement": _share_of_weight(words, by_row),
        "fresh": _fresh_share(words, by_row, by_context),
        "telling": told / sum(rarity) if sum(rarity) else 0.0,
        "covered_by_file": _share_of_weight(words, by_file),
        "characters": _share_of_characters(question, near),
        "missing": max((w.weight for w, known in zip(words, by_file, strict=True) if not known), default=0.0) / 7.0,
        "missing_code": float(any(w.is_code and not known for w, known in zip(words, by_file, strict=True))),
        "year_conflict": _year_conflict(question, near),
        "range_match": float(bool(fit)),
        "range_conflict": float(conflict),
        "ends": float(cell is not None or statement.kind == "list" or statement.text[-1] in _ENDS),
        "column": names_kind(question, cell.name if cell else statement.heading or passage.last_heading),
        "looks": likeness,
        "looks_wrong": unlikeness,
        "echo": _measure_echo(question, cell, value, fit) if cell else 0.0,
        "is_cell": float(cell is not None),
        "is_list": float(statement.kind == "list"),
        "precision": 0.0 if cell else _measure_precision(question, own),
        "length": min(len(statement.text), 200) / 200,
        "rank": 1.0 / (1.0 + passage.rank),
        "file_share": passage.file_share,
        "asks_polar": float("polar" in question.kinds),
        "asks_nothing": float(not question.kinds),
        "words": min(len(words), 10) / 10,
    }
    found |= _pair_features(question, passage, near, row, pair_rarity)
    found |= _like_features(question, passage, statement, row, covered, by_row)
    return found | (_cell_features(question, statement, cell, fit, passage.form, defined) if cell else _NO_CELL)


_NO_CELL = {"asked_noun": 0.0, "unit": 0.0, "column_words": 0.0, "column_rival": 0.0, "key_words": 0.0}


def _pair_features(
    question: Question, passage: Passage, near: str, row: str, rarity: Sequence[float]
) -> dict[str, float]:
    pairs = question.pairs
    if not pairs:
        return {"pairs": 0.5, "pairs_by_statement": 0.5, "pairs_telling": 0.5, "pairs_told": 0.5, "pairs_missing": 0.0}
    by_near = [pair in near for pair in pairs]
    by_row = [pair in row for pair in pairs]
    total = sum(rarity) or 1.0
    return {
        "pairs": sum(by_near) / len(pairs),
        "pairs_by_statement": sum(by_row) / len(pairs),
        "pairs_telling": sum(r for r, said in zip(rarity, by_near, strict=True) if said) / total,
        "pairs_told": sum(r for r, said in zip(rarity, by_row, strict=True) if said) / total,
        "pairs_missing": sum(pair not in passage.file_text for pair in pairs) / len(pairs),
    }


def _like_features(
    question: Question,
    passage: Passage,
    statement: Statement,
    row: str,
    covered: Sequence[bool],
    by_row: Sequence[bool],
) -> dict[str, float]:
    """What the statement says in words like those of the question."""
    words = question.words
    heading = fold(statement.heading) or fold(passage.last_heading)
    by_heading = likeness(words, heading)
    own = np.maximum(np.array(by_row, dtype=np.float32), likeness(words, row))  # (words,)
    near = np.maximum.reduce([own, np.array(covered, dtype=np.float32), by_heading, likeness(words, passage.context)])
    around = np.maximum(near, likeness(words, passage.text))
    weights = np.array([word.weight for word in words], dtype=np.float32)
    total = float(weights.sum()) or 1.0
    cell = statement.cell
    others = [other for other in statement.row if other is not cell]
    column = _find_likeness(words, fold(cell.name)) if cell else 0.0
    rivals = [_find_likeness(words, fold(other.name)) for other in others[1:]] if cell else []
    keys = [_find_likeness(words, fold(other.value)[:40]) for other in others]
    return {
        "like": float(near @ weights) / total,
        "like_by_statement": float(own @ weights) / total,
        "like_by_passage": float(around @ weights) / total,
        "like_missing": float(((1 - around) * weights).max(initial=0.0)) / 7.0,
        "like_column": column,
        "like_column_rival": max(0.0, max(rivals, default=0.0) - column),
        "like_key": max(keys, default=0.0),
        "like_heading": float(by_heading.max(initial=0.0)),
    }


@lru_cache(maxsize=16384)
def _find_likeness(words: tuple[Word, ...], text: str) -> float:
    """The likeness of the two words that are most alike; words that say little count less."""
    weights = np.array([min(word.weight, 3.0) / 3.0 for word in words], dtype=np.float32)
    return float((likeness(words, text) * weights).max(initial=0.0))


def _cell_features(
    question: Question,
    statement: Statement,
    cell: Cell,
    fit: frozenset[str],
    form: Sequence[Cell],
    defined: Mapping[str, str],
) -> dict[str, float]:
    others = [other for other in (*statement.row, *form) if other is not cell and other.value != cell.value]
    own = _name_share(question, cell.name, defined)
    # A column whose value the question says is the key, not a rival.
    rivals = [other for other in others if other.name != cell.name and _value_share(question, other) < 0.5]
    rival = max((_name_share(question, other.name, defined) for other in rivals), default=0.0)
    value = fold(cell.value)
    keys = [_value_share(question, other) for other in others]
    return {
        "asked_noun": float(len(question.noun) > 1 and question.noun[:2] in fold(cell.name)),
        "unit": float(bool(question.unit) and (question.unit in value or question.unit in cell.name)),
        "column_words": own,
        "column_rival": max(0.0, rival - own),
        "key_words": 1.0 if fit else max(keys, default=0.0),
    }


def key_cells(question: Question, statement: Statement) -> list[Cell]:
    """The cells to quote beside a cell, so that it says of whom: those the question names, else the row's first."""
    assert statement.cell is not None
    fit, _ = range_fit(question.quantities, statement.row)
    fit |= code_fit(question.words, statement.row)
    named = [
        cell
        for cell in statement.row
        if cell is not statement.cell and (_value_share(question, cell) >= 0.5 or fits(question, cell, fit))
    ]
    first = next((cell for cell in statement.row if cell is not statement.cell and not _is_serial(cell)), None)
    keys = named[:2] if named else [first] if first else []
    if (
        first
        and first not in keys
        and len(keys) < 2
        and statement.row.index(first) < statement.row.index(statement.cell)
    ):
        keys.append(first)
    return sorted(keys, key=lambda cell: cell.span)


def _is_serial(cell: Cell) -> bool:
    return cell.name in ("", "序号", "编号", "时段", "No.", "#", "ID", "id") and len(cell.value) <= 6


def _name_share(question: Question, name: str, defined: Mapping[str, str]) -> float:
    """How much of a column's name the question says; a range of codes in it counts as said where a code lies in it."""
    folded = fold(name)
    if any(holds_code(folded, word) for word in question.words) or any(known in folded for known in defined.values()):
        return 1.0
    return _share_of_text(folded, question.text)


def _value_share(question: Question, cell: Cell) -> float:
    return _share_of_text(fold(cell.value), question.text)


@lru_cache(maxsize=16384)
def _share_of_text(text: str, question: str) -> float:
    """The share of a short text's words, by weight, that a question says."""
    words = [word for word in words_of(text) if word.weight > 0] or words_of(text)
    total = sum(max(word.weight, 0.5) for word in words)
    said = sum(max(word.weight, 0.5) for word in words if _covers_word(question, word))
    return said / total if total else 0.0


def _measure_echo(question: Question, cell: Cell, value: str, fit: frozenset[str]) -> float:
    """How much of a value the question says; a range that its number lies in is what the row is named by."""
    if fits(question, cell, fit):
        return 1.0
    return _share_of_text(value[:60], question.text)


def _measure_precision(question: Question, text: str) -> float:
    return _share_of_text(text[:200], question.text)


@lru_cache(maxsize=65536)
def _compile_code(code: str) -> re.Pattern[str]:
    before = r"(?<!\d)(?<!\d\.)" if code[0].isdigit() else ""
    after = r"(?!\.?\d)" if code[-1].isdigit() else "(?![a-z])" if re.search(r"\d", code) and code[-1].isascii() else ""
    return re.compile(before + re.escape(code) + after)


def _covers_word(text: str, word: Word) -> bool:
    """Whether a folded text says a word: codes whole, years in any form."""
    if not word.is_code:
        return (
            word.text in text or _covers_most(text, word.text) or any(other in text for other in same_words(word.text))
        )
    year = re.fullmatch(r"((?:19|20)\d\d)[年版]?", word.text)
    return _compile_code(year[1] if year else word.text).search(text) is not None


def _covers_most(text: str, word: str) -> bool:
    """Half of the pairs of a word that was put together from characters; a person's name must be there whole."""
    if len(word) != 3 or word[0] in SURNAMES:
        return False
    return word[:2] in text or word[1:] in text


def _share_of_weight(words: Sequence[Word], covered: Sequence[bool]) -> float:
    total = sum(word.weight for word in words)
    return sum(word.weight for word, known in zip(words, covered, strict=True) if known) / total if total else 0.0


def _fresh_share(words: Sequence[Word], by_statement: Sequence[bool], by_context: Sequence[bool]) -> float:
    left = [(word, known) for word, known, old in zip(words, by_statement, by_context, strict=True) if not old]
    return _share_of_weight([word for word, _ in left], [known for _, known in left]) if left else 0.5


def _share_of_characters(question: Question, text: str) -> float:
    characters = {character for word in question.words for character in word.text}
    return len(characters & set(text)) / len(characters) if characters else 0.0


def _year_conflict(question: Question, text: str) -> float:
    years = set(_YEAR.findall(text)) if question.years else set()
    return float(bool(years) and not question.years & years)
