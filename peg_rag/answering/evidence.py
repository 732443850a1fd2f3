"""What speaks for a statement as the answer to a question, as numbers that a scorer weighs.

Why this exists: whether 10天 answers a question about twelve years of service is decided by the column 法定年假, the
row 满10年不满20年, the file's year and the unit, not by how much the row resembles the question. Each number says one
such thing and has a name, so that what the scorer learned can be read.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from peg_rag.answering.cells import add_cell_gaps, cell_features
from peg_rag.answering.coverage import Rarities, covers_word, share_of_parts, share_of_text, share_of_words
from peg_rag.answering.expectation import EXPECTED
from peg_rag.answering.kinds import names_kind, rate_value
from peg_rag.answering.likeness import measure_likeness
from peg_rag.answering.matches import MATCHES
from peg_rag.answering.measures import lacks_measure
from peg_rag.answering.opposites import compare_opposites
from peg_rag.answering.passages import Passage, defined_words
from peg_rag.answering.question import Question
from peg_rag.answering.ranges import code_fit, range_fit, sentence_fit
from peg_rag.answering.statements import Statement, without_mark
from peg_rag.answering.terms import term_features
from peg_rag.answering.words import Word, fold_text

_YEAR = re.compile(r"(?<!\d)(20\d\d|19\d\d)(?!\d)")
_MONTH = re.compile(r"(?<!\d)20\d\d年\d{1,2}月")
_NEGATIVE = re.compile("[不没无未非勿禁拒免]|谢绝|除外")
# 能不能 and 有没有 ask, and 没收到 at the end of 收到没 does not stand here; 不好意思 says nothing.
_NEGATIVE_QUESTION = re.compile(
    r"(?<![能可会要是有行让准许用该])不(?!好意思|管|过|错|同|到位)(?![行？?]|$)|没(?!事|问题|收走)(?![？?有]|$)|(?<!能)不[能让许准]"
)
_SUPERSEDED = re.compile(r"暂定|拟定|待定|初定|原定|原计划|原先|原来|旧版|老版|以前|作废|停用|不再|已取消|废止|去年")
_ENDS = frozenset("。！？!?…；;.")
_HEAVIEST = 7.0  # weight of the rarest word
_LONGEST_SENTENCE = 200  # characters that are compared
_LONGEST_HEADING = 60
PLAIN_FEATURES = (
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
    "missing_near",  # the weight of the heaviest word that nothing at the statement is like
    "negation",  # the question says 不能 or 没, and the statement says so too
    "negation_conflict",  # the statement does not
    "missing_code",  # a code that is not there
    "year_conflict",  # another year, or month of a year, stands there, and not the one that was asked for
    "range_match",  # a number of the question lies in a range of the row
    "range_conflict",  # it lies outside
    "right_kind",  # the value is of the kind that is asked for
    "wrong_kind",  # a kind is asked for, and the value is of another
    "lacks_measure",  # a figure is asked for, and there is none of what is measured
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
    "pairs_telling_by_statement",  # of those, by the statement
    "pairs_gap",  # how much more the best statement says of the telling ones
    "pairs_statement_gap",
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
    "phrases",  # of the phrases that the thesaurus knows, as `pairs_telling`
    "phrases_by_statement",
    "phrases_gap",  # how much more the best statement says
    "phrases_missing",  # share that no hit of its file says
    "synonyms_column",  # of the column's name, by the question or other words for it
    "synonyms_column_rival",
    "synonyms_key",  # of the row's key
    "synonyms_key_gap",
    "synonyms_heading",  # of the nearest heading
    "synonyms_value",  # of a cell's value
    "source_words",  # of the file's name
    "hit_gap",  # how much better the best hit scores, of the difference between the best and the worst
    "older_mail",  # a line that a mail quotes
    "superseded",  # it says that it holds no more or not yet, and the question does not ask for that
    "column_run",  # of the column's name, the longest run of characters that the question has
    "column_run_rival",  # another column's, where it is longer
    "key_run",  # the same of the row's other values
    "key_run_length",
    "key_run_gap",  # how much longer that of another row of the table is
    "agreements",  # of the statement with the question, where they could exclude one another, see `opposites.py`
    "conflicts",
    "agreements_near",  # of the rest of the row and the nearest heading
    "conflicts_near",
    "synonyms_precision",  # of a sentence's words, by the question or other words for it
    "asks_list",
    "asks_number",
    "asks_time",
    "asks_name",
    "asks_polar",
    "asks_nothing",  # the question says no kind
    "words",  # of the question
    "terms",  # that its file has for the question, see `terms.py`
    "terms_said",  # of those, by the statement's column and row, or by what it stands under
    "terms_missing",
    "terms_beside",  # of those, by another column of its row alone
    "terms_gap",  # how much more the best statement says
    "cosine",
    "cosine_lead",  # above the mean of all statements, in spreads
    "cosine_gap",  # below the best
)
FEATURES = (*PLAIN_FEATURES, *EXPECTED, *MATCHES)
# How much more of the question the best statement says, by what is compared.
_GAPS = {
    "covered_gap": "covered",
    "statement_gap": "covered_by_statement",
    "telling_gap": "telling",
    "like_gap": "like",
    "like_statement_gap": "like_by_statement",
    "like_key_gap": "like_key",
    "pairs_gap": "pairs_telling",
    "pairs_statement_gap": "pairs_telling_by_statement",
    "phrases_gap": "phrases_by_statement",
    "synonyms_key_gap": "synonyms_key",
    "terms_gap": "terms_said",
}
_ASKED_KINDS = {
    "asks_list": frozenset({"how", "list", "rule", "reason"}),
    "asks_number": frozenset({"money", "percent", "duration", "size", "count"}),
    "asks_time": frozenset({"date", "time"}),
    "asks_name": frozenset({"person", "phone", "place", "name"}),
    "asks_polar": frozenset({"polar"}),
}


@dataclass(frozen=True, slots=True)
class _Reading:
    """A statement as it is compared with a question; all texts are folded.

    Attributes:
        row: what it states: the row and form of a cell; else the statement under its heading.
        near: the same under its file's name and headings.
        value: of the cell; else the statement without its mark.
        heading: the line it stands under, or the last of the headings that ingestion saw.
        in_range: numbers and codes of the question that lie in a range of it.
        has_conflict: a number lies outside of its ranges.
        by_statement: (question's words,) whether the statement says each.
        by_near: whether it or what it stands under does.
    """

    question: Question
    passage: Passage
    statement: Statement
    row: str
    near: str
    value: str
    heading: str
    in_range: frozenset[str]
    has_conflict: bool
    by_statement: list[bool]
    by_near: list[bool]

    @classmethod
    def of(cls, question: Question, passage: Passage, statement: Statement) -> Self:
        cell = statement.cell
        if cell:
            cells = (*statement.row, *passage.form)
            row = fold_text("\n".join(f"{c.name}: {c.value}" for c in cells))
            value = fold_text(cell.value)
            in_range, has_conflict = range_fit(question.quantities, statement.row)
            in_range |= code_fit(question.words, statement.row)
        else:
            row = fold_text(f"{statement.heading}\n{statement.text}")
            value = fold_text(without_mark(statement.text))
            in_range, has_conflict = sentence_fit(question.quantities, statement.text)
        in_range |= {word for word, name in defined_words(question, passage).items() if name in row}
        near = f"{passage.context}\n{fold_text(statement.heading)}\n{row}"
        by_statement = [covers_word(row, word) or word.text in in_range for word in question.words]
        by_near = [covers_word(near, word) or word.text in in_range for word in question.words]
        heading = fold_text(statement.heading) or fold_text(passage.last_heading)
        return cls(
            question, passage, statement, row, near, value, heading, in_range, has_conflict, by_statement, by_near
        )


def add_gaps(pairs: Sequence[tuple[Passage, Statement]], rows: Sequence[dict[str, float]]) -> None:
    """Compare the statements of all hits with the best of them."""
    for gap, name in _GAPS.items():
        best = max((row[name] for row in rows), default=0.0)
        for row in rows:
            row[gap] = best - row[name]
    add_cell_gaps(pairs, rows)


def features_of(question: Question, passage: Passage, statement: Statement, rarities: Rarities) -> dict[str, float]:
    """Everything in `PLAIN_FEATURES` but the gaps and the cosines, which compare the statements."""
    reading = _Reading.of(question, passage, statement)
    defined = defined_words(question, passage)
    return {
        **_question_features(question),
        **_place_features(reading),
        **_word_features(reading, rarities),
        **_kind_features(reading),
        **_pair_features(reading, rarities),
        **_phrase_features(reading, rarities),
        **_like_features(reading),
        **cell_features(question, passage, statement, reading.in_range, defined),
        **_opposite_features(reading),
        **term_features(question, statement, _write_own(reading)),
    }


def _write_own(reading: _Reading) -> str:
    """What the statement says and stands under; of its row's columns its own name alone."""
    statement = reading.statement
    if statement.cell is None:
        return reading.near
    values = [cell.value for cell in (*statement.row, *reading.passage.form)]
    row = fold_text("\n".join([statement.cell.name, *values]))
    return f"{reading.passage.context}\n{fold_text(statement.heading)}\n{row}"


def _question_features(question: Question) -> dict[str, float]:
    kinds = frozenset(question.kinds)
    kind_flags = {name: float(bool(kinds & group)) for name, group in _ASKED_KINDS.items()}
    return kind_flags | {"asks_nothing": float(not kinds), "words": min(len(question.words), 10) / 10}


def _place_features(reading: _Reading) -> dict[str, float]:
    """Where the statement stands and what form it has."""
    statement = reading.statement
    passage = reading.passage
    source = passage.context.split("\n", 1)[0]
    return {
        "rank": 1.0 / (1.0 + passage.rank),
        "hit_gap": passage.score_gap,
        "file_share": passage.file_share,
        "source_words": share_of_text(source[:_LONGEST_HEADING], reading.question.expanded),
        "older_mail": float(_is_quoted_line(passage.hit.text, statement.span[0])),
        "superseded": float(bool(_SUPERSEDED.search(reading.row)) and not _SUPERSEDED.search(reading.question.text)),
        "is_cell": float(statement.cell is not None),
        "is_list": float(statement.kind == "list"),
        "ends": float(statement.kind != "sentence" or statement.text[-1] in _ENDS),
        "length": min(len(statement.text), _LONGEST_SENTENCE) / _LONGEST_SENTENCE,
    }


def _word_features(reading: _Reading, rarities: Rarities) -> dict[str, float]:
    """How much of the question's words are said, and where."""
    question = reading.question
    words = question.words
    by_file = [
        is_near or covers_word(reading.passage.file_text, word)
        for is_near, word in zip(reading.by_near, words, strict=True)
    ]
    missing = [word for word, is_said in zip(words, by_file, strict=True) if not is_said]
    return {
        "covered": share_of_words(words, reading.by_near),
        "covered_by_statement": share_of_words(words, reading.by_statement),
        "covered_by_file": share_of_words(words, by_file),
        **_negation_features(question, reading.row),
        "fresh": _share_of_fresh_words(reading),
        "telling": share_of_parts(rarities.words, reading.by_near),
        "characters": _share_of_characters(question, reading.near),
        "missing": max((word.weight for word in missing), default=0.0) / _HEAVIEST,
        "missing_code": float(any(word.is_code for word in missing)),
        "year_conflict": _has_year_conflict(question, reading.near),
        "range_match": float(bool(reading.in_range)),
        "range_conflict": float(reading.has_conflict),
    }


def _kind_features(reading: _Reading) -> dict[str, float]:
    """Whether the statement is of the kind that is asked for, and how much of what it says the question says."""
    question = reading.question
    statement = reading.statement
    cell = statement.cell
    name = cell.name if cell else ""
    right, wrong = rate_value(question, reading.value, name)
    heading = statement.heading or reading.passage.last_heading
    sentence = "" if cell else fold_text(statement.text)[:_LONGEST_SENTENCE]
    return {
        "right_kind": right,
        "wrong_kind": wrong,
        "lacks_measure": float(lacks_measure(question, reading.value[:_LONGEST_SENTENCE], fold_text(name))),
        "column": names_kind(question, name or heading),
        "precision": 0.0 if cell else share_of_text(reading.row[:_LONGEST_SENTENCE], question.text),
        "synonyms_precision": share_of_text(sentence, question.expanded) if sentence else 0.0,
        "synonyms_heading": share_of_text(fold_text(heading)[:_LONGEST_HEADING], question.expanded) if heading else 0.0,
    }


def _opposite_features(reading: _Reading) -> dict[str, float]:
    """Where the statement and what it stands beside agree with the question, or exclude what it says."""
    question = reading.question.text
    statement = reading.statement
    said = fold_text(statement.cell.name) if statement.cell else reading.value[:_LONGEST_SENTENCE]
    beside = [other.value for other in statement.row if other is not statement.cell]
    near = f"{reading.heading}\n{fold_text(chr(10).join(beside))}"[:_LONGEST_SENTENCE]
    own = compare_opposites(question, said)
    other = compare_opposites(question, near)
    return {
        "agreements": float(own.agreements),
        "conflicts": float(own.conflicts),
        "agreements_near": float(other.agreements),
        "conflicts_near": float(other.conflicts),
    }


def _pair_features(reading: _Reading, rarities: Rarities) -> dict[str, float]:
    pairs = reading.question.pairs
    if not pairs:
        names = ("pairs", "pairs_by_statement", "pairs_telling", "pairs_telling_by_statement")
        return dict.fromkeys(names, 0.5) | {"pairs_missing": 0.0}
    by_near = [pair in reading.near for pair in pairs]
    by_row = [pair in reading.row for pair in pairs]
    return {
        "pairs": sum(by_near) / len(pairs),
        "pairs_by_statement": sum(by_row) / len(pairs),
        "pairs_telling": share_of_parts(rarities.pairs, by_near),
        "pairs_telling_by_statement": share_of_parts(rarities.pairs, by_row),
        "pairs_missing": sum(pair not in reading.passage.file_text for pair in pairs) / len(pairs),
    }


def _phrase_features(reading: _Reading, rarities: Rarities) -> dict[str, float]:
    phrases = reading.question.phrases
    if not phrases:
        return {"phrases": 0.5, "phrases_by_statement": 0.5, "phrases_missing": 0.0}
    return {
        "phrases": share_of_parts(rarities.phrases, [phrase.is_in(reading.near) for phrase in phrases]),
        "phrases_by_statement": share_of_parts(rarities.phrases, [phrase.is_in(reading.row) for phrase in phrases]),
        "phrases_missing": sum(not phrase.is_in(reading.passage.file_text) for phrase in phrases) / len(phrases),
    }


def _like_features(reading: _Reading) -> dict[str, float]:
    """What the statement says in words like those of the question."""
    words = reading.question.words
    passage = reading.passage
    by_heading = measure_likeness(words, reading.heading)  # (words,)
    by_row = np.maximum(np.array(reading.by_statement, dtype=np.float32), measure_likeness(words, reading.row))
    by_context = measure_likeness(words, passage.context)
    by_near = np.maximum.reduce([by_row, np.array(reading.by_near, dtype=np.float32), by_heading, by_context])
    by_passage = np.maximum(by_near, measure_likeness(words, passage.text))
    weights = np.array([word.weight for word in words], dtype=np.float32)
    total = float(weights.sum()) or 1.0
    cell = reading.statement.cell
    others = [other for other in reading.statement.row if other is not cell]
    column = _find_likeness(words, fold_text(cell.name)) if cell else 0.0
    rivals = [_find_likeness(words, fold_text(other.name)) for other in others[1:]]
    keys = [_find_likeness(words, fold_text(other.value)[:40]) for other in others]
    return {
        "like": float(by_near @ weights) / total,
        "like_by_statement": float(by_row @ weights) / total,
        "like_by_passage": float(by_passage @ weights) / total,
        "missing_near": float(((1 - by_near) * weights).max(initial=0.0)) / _HEAVIEST,
        "like_missing": float(((1 - by_passage) * weights).max(initial=0.0)) / _HEAVIEST,
        "like_column": column,
        "like_column_rival": max(0.0, max(rivals, default=0.0) - column),
        "like_key": max(keys, default=0.0),
        "like_heading": float(by_heading.max(initial=0.0)),
    }


@lru_cache(maxsize=16384)
def _find_likeness(words: tuple[Word, ...], text: str) -> float:
    """The likeness of the two words that are most alike; words that say little count less."""
    weights = np.array([min(word.weight, 3.0) / 3.0 for word in words], dtype=np.float32)
    return float((measure_likeness(words, text) * weights).max(initial=0.0))


def _negation_features(question: Question, text: str) -> dict[str, float]:
    is_negative = _NEGATIVE_QUESTION.search(question.text) is not None
    says_so = _NEGATIVE.search(text) is not None
    return {"negation": float(is_negative and says_so), "negation_conflict": float(is_negative and not says_so)}


def _share_of_fresh_words(reading: _Reading) -> float:
    """Of the words that the file and headings do not say, the share that the statement says."""
    headings = f"{reading.passage.context}\n{fold_text(reading.statement.heading)}"
    pairs = zip(reading.question.words, reading.by_statement, strict=True)
    fresh = [(word, is_said) for word, is_said in pairs if not covers_word(headings, word)]
    return share_of_words([word for word, _ in fresh], [is_said for _, is_said in fresh]) if fresh else 0.5


def _share_of_characters(question: Question, text: str) -> float:
    characters = {character for word in question.words for character in word.text}
    return len(characters & set(text)) / len(characters) if characters else 0.0


def _has_year_conflict(question: Question, text: str) -> float:
    years = set(_YEAR.findall(text)) if question.years else set()
    months = set(_MONTH.findall(question.text))
    other_months = set(_MONTH.findall(text)) if months else set()
    return float(bool(years and not question.years & years) or bool(other_months and not months & other_months))


def _is_quoted_line(text: str, place: int) -> bool:
    """Whether the line that holds a character begins with the mark that mails quote with."""
    return text[text.rfind("\n", 0, place) + 1 : place + 1].lstrip().startswith(">")
