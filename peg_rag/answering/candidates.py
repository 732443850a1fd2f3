"""The statements of the hits, with the features by which the scorer orders them and the text that the reader reads.

Features that need no model are computed for all statements, and only the most promising statements are embedded. So the
cost stays at one encoding of the question and of `MAX_ENCODED` short texts, however many hits there are.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peg_rag.answering.cells import key_cells
from peg_rag.answering.coverage import RarityTable, lacks_code
from peg_rag.answering.evidence import FEATURES, PLAIN_FEATURES, add_gaps, features_of
from peg_rag.answering.expectation import Expectation, load_expectation
from peg_rag.answering.matches import match_texts
from peg_rag.answering.passages import Passage, passages_of, source_of_hit, start_of_body
from peg_rag.answering.question import Question, parse_question
from peg_rag.answering.reading import ContextualStatement, describe_statement
from peg_rag.answering.statements import Statement, announces_more, start_of, statements_of
from peg_rag.answering.terms import find_ranges, find_terms, restate_question
from peg_rag.answering.words import fold_text
from peg_rag.hits import Hit
from peg_rag.retriever import Encoder

MAX_ENCODED = 48
MAX_HITS = 40  # that are found by the question itself; those found by its terms stand behind them
_LIST_KINDS = frozenset({"how", "list", "rule", "reason"})
_ECHO = 0.9  # share of a cell's words, by weight, from which the question says it
_ALIKE = 0.85  # share of common characters from which a statement is the question itself
_QUESTION_END = re.compile(r"[?？][”’」』）)\"]*$")


_OLDER_MAIL = FEATURES.index("older_mail")
_RIGHT_KIND = FEATURES.index("right_kind")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A statement that may answer.

    Attributes:
        place: of its hit in the list of hits.
        spans: what is quoted of the hit: one stretch, or the cells that say of whom and what.
        features: (len(FEATURES),)
        question: that it may answer, with its file's terms.
        passage: that it stands in.
    """

    place: int
    statement: Statement
    spans: tuple[tuple[int, int], ...]
    features: NDArray[np.float32]
    question: Question
    passage: Passage

    def describe(self) -> ContextualStatement:
        """What the reader (`reading.py`) reads of it."""
        return describe_statement(self.question, self.passage, self.statement)

    @property
    def is_of_older_mail(self) -> bool:
        return bool(self.features[_OLDER_MAIL])

    @property
    def fit_of_kind(self) -> float:
        """How well it is of the kind that is asked for: a date, a figure, a name."""
        return float(self.features[_RIGHT_KIND])


def find_candidates(
    question: str, hits: Sequence[Hit], encoder: Encoder, expectation: Expectation | None = None
) -> list[Candidate]:
    """The statements of the hits, the most promising `MAX_ENCODED` of them, in no order.

    Args:
        expectation: what the answer is expected to look like; the one that comes with the package if not given.
    """
    parsed = parse_question(question)
    questions, pairs, rows = _rate_statements(parsed, passages_of(hits))
    order = sorted(range(len(pairs)), key=lambda i: -_estimate_promise(rows[i]))[:MAX_ENCODED]
    if not order:
        return []
    promising = [pairs[i] for i in order]
    spans = [quoted_spans(questions[i], pairs[i][1]) for i in order]
    headed = [_read_under_headings(*pair, quoted) for pair, quoted in zip(promising, spans, strict=True)]
    cosines = _compute_cosines(question, headed, encoder)
    matches = match_texts(question, [_read_alone(statement) for _, statement in promising], headed)
    parts = [(passage.rank, start_of(statement)) for passage, statement in promising]
    expected = (expectation or load_expectation()).compare(parsed.text, [pair[1] for pair in promising], parts)
    lead = (cosines - cosines.mean()) / (cosines.std() + 0.02) / 3  # (statements,)
    candidates = []
    for number, (passage, statement) in enumerate(promising):
        cosine = float(cosines[number])
        row = rows[order[number]] | {
            "cosine": cosine,
            "cosine_lead": float(lead[number]),
            "cosine_gap": float(cosines.max()) - cosine,
        }
        features = np.array(
            [*(row[name] for name in PLAIN_FEATURES), *expected[number], *matches[number]], dtype=np.float32
        )
        candidates.append(
            Candidate(passage.rank, statement, spans[number], features, questions[order[number]], passage)
        )
    return candidates


def _rate_statements(
    question: Question, passages: Sequence[Passage]
) -> tuple[list[Question], list[tuple[Passage, Statement]], list[dict[str, float]]]:
    """The statements that can answer, each with the question in its file's terms, its passage, and the features that
    need no model."""
    pairs = [
        (passage, statement)
        for passage in passages
        for statement in _body_statements(passage, question)
        if not lacks_code(question, passage, statement)
    ]
    terms = _find_terms_of_passages(question, passages)
    questions = [
        restate_question(question, (*terms[passage.rank], *find_ranges(question, statement.row)))
        for passage, statement in pairs
    ]
    table = RarityTable(passages)
    rarities = {restated: table.measure(restated) for restated in dict.fromkeys(questions)}
    rows = [
        features_of(restated, passage, statement, rarities[restated])
        for restated, (passage, statement) in zip(questions, pairs, strict=True)
    ]
    if "polar" not in question.kinds:  # a value that the question says is what it asks about
        numbers = [i for i, row in enumerate(rows) if row["echo"] < _ECHO]
        questions = [questions[i] for i in numbers]
        pairs = [pairs[i] for i in numbers]
        rows = [rows[i] for i in numbers]
    numbers = _without_excluded(pairs, rows)
    questions = [questions[i] for i in numbers]
    pairs = [pairs[i] for i in numbers]
    rows = [rows[i] for i in numbers]
    add_gaps(pairs, rows)
    return questions, pairs, rows


def _find_terms_of_passages(question: Question, passages: Sequence[Passage]) -> dict[int, tuple[str, ...]]:
    """By rank, the terms of each passage's file; whether a word is rare there does not change with the passages that
    were found by its terms (see `retrieval.py`)."""
    texts: dict[str, list[str]] = {}
    for passage in passages[:MAX_HITS]:
        texts.setdefault(source_of_hit(passage.hit), []).append(passage.text)
    joined = {source: "\n".join(own) for source, own in texts.items()}
    return {
        passage.rank: find_terms(question, passage.meanings, joined.get(source_of_hit(passage.hit), passage.file_text))
        for passage in passages
    }


def _without_excluded(pairs: Sequence[tuple[Passage, Statement]], rows: Sequence[dict[str, float]]) -> list[int]:
    """The statements but for cells whose column excludes what the question says, where one beside them says it:
    会员价 beside 非会员价, for somebody who is no member."""
    places = [(passage.rank, statement.row[0].span) if statement.row else None for passage, statement in pairs]
    agreeing = {place for place, row in zip(places, rows, strict=True) if row["agreements"] and not row["conflicts"]}
    return [
        number
        for number, (place, row) in enumerate(zip(places, rows, strict=True))
        if place is None or place not in agreeing or row["agreements"] or not row["conflicts"]
    ]


def quoted_spans(question: Question, statement: Statement) -> tuple[tuple[int, int], ...]:
    """What of the passage is quoted for a statement."""
    if statement.cell is None:
        return (statement.span,)
    cells = sorted([*key_cells(question, statement), statement.cell], key=lambda cell: cell.span)
    return tuple(cell.span for cell in cells)


def _body_statements(passage: Passage, question: Question) -> Iterator[Statement]:
    """A hit's statements, without the title that ingestion puts in its first line and without questions."""
    for statement in statements_of(passage.hit.text, start_of_body(passage.hit)):
        if statement.kind == "list" and question.kinds and not _LIST_KINDS & set(question.kinds):
            continue  # one of its items may answer
        said = statement.cell.value if statement.cell else statement.text
        says_nothing = statement.kind == "sentence" and announces_more(said)
        if not says_nothing and not _QUESTION_END.search(said) and not _is_copy(fold_text(said), question.asked):
            yield statement


def _is_copy(text: str, question: str) -> bool:
    """Whether a text says what the question says and nothing else."""
    if not 0.6 < len(text) / max(len(question), 1) < 1.6 or len(question) < 6:
        return False
    pairs = {question[i : i + 2] for i in range(len(question) - 1)}
    others = {text[i : i + 2] for i in range(len(text) - 1)}
    return len(pairs & others) >= _ALIKE * max(len(pairs), len(others))


def _estimate_promise(features: dict[str, float]) -> float:
    """A first guess, to choose what is worth embedding."""
    return (
        features["covered"]
        + 0.5 * features["telling"]
        + features["covered_by_statement"]
        + features["characters"]
        + features["like"]
        + features["pairs_telling"]
        + features["phrases"]
        + 0.5 * features["synonyms_key"]
        - 0.3 * features["fit_gap"]
        + 0.4 * features["right_kind"]
        + 0.5 * features["column_words"]
        + 0.5 * features["key_words"]
        - 0.5 * features["echo"]
        - 0.5 * features["range_conflict"]
        - 0.5 * features["year_conflict"]
        + 0.3 * features["rank"]
    )


def _read_under_headings(passage: Passage, statement: Statement, spans: Sequence[tuple[int, int]]) -> str:
    """What is embedded: the statement under its headings."""
    title = str(passage.hit.metadata.get("title") or "")
    quote = " ".join(passage.hit.text[start:end] for start, end in spans)
    return "\n".join(part for part in (title, statement.heading, quote) if part)


def _read_alone(statement: Statement) -> str:
    """A cell's whole row, or the statement."""
    return " ".join(f"{cell.name} {cell.value}" for cell in statement.row) or statement.text


def _compute_cosines(question: str, texts: list[str], encoder: Encoder) -> NDArray[np.float32]:
    """(texts,)"""
    vector = encoder.encode_queries([question])[0]  # (dimension,)
    return np.asarray(encoder.encode_documents(texts) @ vector, dtype=np.float32)
