"""Every statement of the hits with what speaks for it: the rows that a scorer was trained on and ranks.

Features that need no model are computed for all statements; the most promising ones alone are embedded, so the cost
stays at one encoding of the question and of `MAX_ENCODED` short texts however many hits there are.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peg_rag.answering.evidence import FEATURES, add_gaps, features_of, key_cells, lacks_code, pair_rarities, rarities
from peg_rag.answering.passages import Passage, passages_of
from peg_rag.answering.question import Question, parse_question
from peg_rag.answering.statements import Statement, statements_of
from peg_rag.answering.words import fold
from peg_rag.hits import Hit
from peg_rag.retriever import Encoder

MAX_ENCODED = 48
_LIST_KINDS = frozenset({"how", "list", "rule", "reason"})
_ECHO = 0.9  # share of a cell's words, by weight, from which the question says it
_ALIKE = 0.85  # share of common characters from which a statement is the question itself
_QUESTION_END = re.compile(r"[?？][”’」』）)\"]*$")


_WRONG_KIND = FEATURES.index("looks_wrong")
_FIT_FOR = [FEATURES.index(name) for name in ("looks", "column", "unit", "column_words")]
_FIT_AGAINST = [FEATURES.index(name) for name in ("looks_wrong", "column_rival")]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A statement that may answer.

    Attributes:
        place: of its hit in the list of hits.
        spans: what is quoted of the hit: one stretch, or the cells that say of whom and what.
        features: (len(FEATURES),)
    """

    place: int
    statement: Statement
    spans: tuple[tuple[int, int], ...]
    features: NDArray[np.float32]

    @property
    def is_of_wrong_kind(self) -> bool:
        return bool(self.features[_WRONG_KIND])

    @property
    def fit(self) -> float:
        """How well the kind of the value and the column's name fit the question."""
        return round(float(self.features[_FIT_FOR].sum() - self.features[_FIT_AGAINST].sum()), 3)


def find_candidates(question: str, hits: Sequence[Hit], encoder: Encoder) -> list[Candidate]:
    """The statements of the hits, the most promising `MAX_ENCODED` of them, in no order."""
    parsed = parse_question(question)
    passages = passages_of(hits)
    pairs = [
        (passage, statement)
        for passage in passages
        for statement in _body_statements(passage, parsed)
        if not lacks_code(parsed, passage, statement)
    ]
    if not pairs:
        return []
    rarity = rarities(parsed, passages)
    pair_rarity = pair_rarities(parsed, passages)
    plain = [features_of(parsed, passage, statement, rarity, pair_rarity) for passage, statement in pairs]
    if "polar" not in parsed.kinds:  # a value that the question says is what it asks about
        kept = [i for i, features in enumerate(plain) if features["echo"] < _ECHO]
        pairs = [pairs[i] for i in kept]
        plain = [plain[i] for i in kept]
    if not pairs:
        return []
    add_gaps(pairs, plain)
    order = sorted(range(len(pairs)), key=lambda i: -_estimate_promise(plain[i]))[:MAX_ENCODED]
    spans = {i: quoted_spans(parsed, pairs[i][1]) for i in order}
    cosines = _compute_cosines(question, [_read_text(pairs[i][0], pairs[i][1], spans[i]) for i in order], encoder)
    mean = float(cosines.mean())
    spread = float(cosines.std()) + 0.02
    best = float(cosines.max())
    candidates = []
    for i, cosine in zip(order, cosines.tolist(), strict=True):
        passage, statement = pairs[i]
        known = plain[i] | {"cosine": cosine, "cosine_lead": (cosine - mean) / spread / 3, "cosine_gap": best - cosine}
        row = np.array([known[name] for name in FEATURES], dtype=np.float32)
        candidates.append(Candidate(passage.rank, statement, spans[i], row))
    return candidates


def quoted_spans(question: Question, statement: Statement) -> tuple[tuple[int, int], ...]:
    """What of the passage is quoted for a statement."""
    if statement.cell is None:
        return (statement.span,)
    cells = sorted([*key_cells(question, statement), statement.cell], key=lambda cell: cell.span)
    return tuple(cell.span for cell in cells)


def _body_statements(passage: Passage, question: Question) -> Iterator[Statement]:
    """A hit's statements, without the title that ingestion puts in its first line and without questions."""
    text = passage.hit.text
    title = str(passage.hit.metadata.get("title") or "")
    body = text.find("\n") + 1 if title and text.startswith(title[:20]) else 0
    for statement in statements_of(text, body):
        if statement.kind == "list" and question.kinds and not _LIST_KINDS & set(question.kinds):
            continue  # one of its items may answer
        said = statement.cell.value if statement.cell else statement.text
        if not _QUESTION_END.search(said) and not _is_copy(fold(said), question.text):
            yield statement


def _is_copy(text: str, question: str) -> bool:
    """Whether a text says what the question says and nothing else."""
    if not 0.6 < len(text) / max(len(question), 1) < 1.6 or len(question) < 6:
        return False
    pairs = {question[i : i + 2] for i in range(len(question) - 1)}
    own = {text[i : i + 2] for i in range(len(text) - 1)}
    return len(pairs & own) >= _ALIKE * max(len(pairs), len(own))


def _estimate_promise(features: dict[str, float]) -> float:
    """A first guess, to choose what is worth embedding."""
    return (
        features["covered"]
        + 0.5 * features["telling"]
        + features["covered_by_statement"]
        + features["characters"]
        + features["like"]
        + features["pairs_telling"]
        - 0.3 * features["fit_gap"]
        + 0.4 * features["looks"]
        + 0.5 * features["column_words"]
        + 0.5 * features["key_words"]
        - 0.5 * features["echo"]
        - 0.5 * features["range_conflict"]
        - 0.5 * features["year_conflict"]
        + 0.3 * features["rank"]
    )


def _read_text(passage: Passage, statement: Statement, spans: Sequence[tuple[int, int]]) -> str:
    """What is embedded: the statement under its headings."""
    title = str(passage.hit.metadata.get("title") or "")
    quote = " ".join(passage.hit.text[start:end] for start, end in spans)
    return "\n".join(part for part in (title, statement.heading, quote) if part)


def _compute_cosines(question: str, texts: list[str], encoder: Encoder) -> NDArray[np.float32]:
    """(texts,)"""
    vector = encoder.encode_queries([question])[0]  # (dimension,)
    return np.asarray(encoder.encode_documents(texts) @ vector, dtype=np.float32)
