"""Hits → an answer made of their own words, each with its source; or "not found". No language model is involved.

Why this exists: a question-answering page must work, and be tested, where no language model runs; and a reader who
sees the document's own words with their source needs to believe nobody. A sentence is quoted whole, a list with the
line that introduces it, a table with the cell and the row it stands in.

A scorer orders the statements of the hits. A small transformer reads the twelve best, each in its context, and boosted
trees give each of these the odds that it answers; all were trained on questions with known answers
(`train/answer_scorer.py`). The likeliest statement is the answer if its confidence, which is calibrated for each
embedding model (`benchmarks/calibrate_answer.py`), reaches the threshold.

It costs one encoding of the question and of at most 48 statements, and the reading of twelve.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from peg_rag.answering.candidates import MAX_HITS, Candidate, find_candidates
from peg_rag.answering.cells import find_telling_cell, named_together, rate_cell
from peg_rag.answering.decision import choose_best, decision_rows, part_of
from peg_rag.answering.passages import table_of
from peg_rag.answering.question import parse_question
from peg_rag.answering.reading import load_reader
from peg_rag.answering.scorer import calibration_of, load_scorer
from peg_rag.answering.statements import names_cases, sentences_of
from peg_rag.errors import InvalidInput
from peg_rag.hits import Hit
from peg_rag.index.tokenizers import get_tokenizer
from peg_rag.retriever import Encoder

__all__ = [
    "MAX_HITS",
    "NOT_FOUND",
    "THRESHOLD",
    "Answer",
    "CitedSentence",
    "extract_answer",
    "sentences_of",
    "subject_of",
]

NOT_FOUND = "在文档中没有找到答案。 / Not found in the documents."
THRESHOLD = 0.5  # of the confidence, which is calibrated so that this serves every model
_CELL_SEPARATOR = " | "
_NEARLY_AS_SURE = 0.75  # of the best statement's confidence, for a further one to be shown
_SAME_TERMS = 0.6  # share of common terms from which two sentences say the same
_HALF_AS_SURE = 0.5  # of the best cell's confidence, for another cell of its row to be shown with it
_LIST_KINDS = frozenset({"how", "list"})
_NEARLY_AS_NEW = 0.4  # of an older mail's confidence, for the newer mail's statement to be shown in its place
_PARTS = re.compile(r"[，,、；;？?]|还有|以及")  # between two questions in one
# What makes a question a question, and says nothing about its subject.
_ASKING = re.compile(
    r"请问|什么|怎么样|怎么办|怎么|怎样|如何|为什么|为何|哪[里儿些个位]?|多少|多久|几[点个年月]|是否|是不是|有没有|"
    r"能不能|可以|吗|呢|么|谁|的|了|是|有|在|和|与|吧|啊|\b(?:what|which|who|when|where|why|how|is|are|was|the|a|an|of|in|to)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class CitedSentence:
    """A statement of a hit.

    Attributes:
        text: a sentence or list as it stands in the hit; of a row, the cells that say of whom and what, as each of them
            stands there, joined by ` | `.
        citation: number of its source in `Answer.sources`, from 1.
        start: offset of the first character in the hit's text.
        score: confidence that it answers, from 0 to 1.
        spans: the stretches of the hit's text that are quoted: offsets from, to.
    """

    text: str
    citation: int
    start: int
    score: float
    spans: tuple[tuple[int, int], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Answer:
    """An extractive answer.

    Attributes:
        question: as it was asked.
        sentences: best first; empty when nothing was found.
        sources: the hits that the sentences cite.
        confidence: 0 to 1, how likely the best statement of the hits answers the question; where two cells of a row are
            shown, how likely one of them does.
    """

    question: str
    sentences: tuple[CitedSentence, ...]
    sources: tuple[Hit, ...]
    confidence: float

    @property
    def found(self) -> bool:
        return bool(self.sentences)

    @property
    def text(self) -> str:
        """The sentences with their citation marks, or `NOT_FOUND`."""
        return "".join(f"{s.text}[{s.citation}]" for s in self.sentences) or NOT_FOUND


def extract_answer(
    question: str,
    hits: Sequence[Hit],
    encoder: Encoder,
    *,
    threshold: float = THRESHOLD,
    max_sentences: int = 3,
    max_hits: int = MAX_HITS,
) -> Answer:
    """Choose what of the hits answers the question.

    Args:
        hits: best first; the first `max_hits` are read.
        threshold: least confidence for an answer, from 0 (always answer) to 1.
        max_sentences: most statements to quote; further ones only where they are nearly as sure as the best.

    Raises:
        InvalidInput: a blank question, a threshold outside 0-1, or no sentence wanted.
    """
    if not question.strip() or not 0 <= threshold <= 1 or max_sentences < 1:
        raise InvalidInput(
            f"question={question!r}, threshold={threshold}, max_sentences={max_sentences}: expected a question that "
            "says something, a threshold from 0 to 1 and at least one sentence"
        )
    passages = hits[:max_hits]
    ranked = _join_rival_cell(rank_candidates(question, passages, encoder))
    confidence = ranked[0][0] if ranked else 0.0
    statements = (
        _choose_statements(question, ranked, passages, max_sentences) if ranked and confidence >= threshold else []
    )
    places = list(dict.fromkeys(candidate.place for _, candidate in statements))
    sentences = tuple(
        CitedSentence(
            _quote_statement(candidate, passages[candidate.place].text),
            places.index(candidate.place) + 1,
            candidate.spans[0][0],
            sureness,
            candidate.spans,
        )
        for sureness, candidate in statements
    )
    return Answer(question, sentences, tuple(passages[place] for place in places), confidence)


def rank_candidates(question: str, hits: Sequence[Hit], encoder: Encoder) -> list[tuple[float, Candidate]]:
    """(confidence, statement) of the hits' statements, the surest first."""
    candidates = find_candidates(question, hits, encoder)
    confidence = calibration_of(encoder).confidence
    odds = score_candidates(candidates)
    pairs = [(confidence(score), candidate) for score, candidate in zip(odds.tolist(), candidates, strict=True)]
    return sorted(pairs, key=lambda pair: -pair[0])


def score_candidates(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """(candidates,) Log odds that each answers.

    Only the best few are read and weighed. The others keep the order of their scores, none above the lowest of those.
    """
    if not candidates:
        return np.zeros(0)
    scorer = load_scorer()
    features = np.stack([candidate.features for candidate in candidates])
    scores = scorer.score(features)  # (candidates,)
    best = choose_best(scores)
    reading = load_reader().read([candidates[number].describe() for number in best])
    odds = scorer.decide(decision_rows(scores, features, [part_of(candidate) for candidate in candidates], reading))
    scores += odds.min() - scores[best].min()
    scores[best] = odds
    return scores


def _join_rival_cell(ranked: list[tuple[float, Candidate]]) -> list[tuple[float, Candidate]]:
    """The best cell together with another of its row that is at least half as sure: one of the two is the answer, and
    the names of their columns tell which."""
    if not ranked or ranked[0][1].statement.kind != "cell":
        return ranked
    sureness, best = ranked[0]
    for place, (other_sureness, other) in enumerate(ranked[1:], 1):
        if other_sureness < _HALF_AS_SURE * sureness:
            break
        if part_of(other) == part_of(best) and other.statement.kind == "cell":
            both = replace(best, spans=tuple(sorted({*best.spans, *other.spans})))
            return [(min(1.0, sureness + other_sureness), both), *ranked[1:place], *ranked[place + 1 :]]
    return ranked


def subject_of(question: str) -> str:
    """The question without the words that only ask; the question itself where nothing else is in it."""
    subject = re.sub(r"\s+", " ", _ASKING.sub(" ", question)).strip()
    return subject if _extract_terms(subject) else question


def _choose_statements(
    question: str, ranked: list[tuple[float, Candidate]], hits: Sequence[Hit], count: int
) -> list[tuple[float, Candidate]]:
    """The surest statement, and sentences nearly as sure that say something else. A cell answers alone."""
    best = _whole_list(question, _newer_text_first(ranked))
    best = _join_asked_cells(question, best, ranked)
    best = _tell_rows_apart(best, ranked, hits)
    statements = [best]
    for sureness, candidate in ranked[1:] if best[1].statement.kind == "sentence" else ():
        if len(statements) == count or sureness < max(_NEARLY_AS_SURE * best[0], THRESHOLD):
            break
        if candidate.statement.kind != "sentence":
            continue
        text = _quote_statement(candidate, hits[candidate.place].text)
        if not any(_says_same(text, _quote_statement(other, hits[other.place].text)) for _, other in statements):
            statements.append((sureness, candidate))
    return statements


def _newer_text_first(ranked: list[tuple[float, Candidate]]) -> list[tuple[float, Candidate]]:
    """A line of an older mail gives way to the newer mail's statement about the same, where there is one: 展位定了 says
    no date."""
    sureness, best = ranked[0]
    if not best.is_of_older_mail:
        return ranked
    for i, (other_sureness, other) in enumerate(ranked):
        is_of_kind = other.fit_of_kind >= best.fit_of_kind
        if not other.is_of_older_mail and is_of_kind and other_sureness >= _NEARLY_AS_NEW * sureness:
            return [(sureness, other), *ranked[:i], *ranked[i + 1 :]]
    return ranked


def _whole_list(question: str, ranked: list[tuple[float, Candidate]]) -> tuple[float, Candidate]:
    """The surest statement; where the question asks for a list or how to do something, a list nearly as sure, or one
    that has it as an item, unless the question is how to do something and the items are separate cases."""
    sureness, best = ranked[0]
    kinds = _LIST_KINDS & set(parse_question(question).kinds)
    if best.statement.kind == "list" or not kinds:
        return ranked[0]
    for other_sureness, other in ranked[1:]:
        if other.statement.kind != "list":
            continue
        is_item = _contains_item(other, best) and ("list" in kinds or not names_cases(other.statement.text))
        if is_item or other_sureness >= _NEARLY_AS_SURE * sureness:
            return sureness, other
    return ranked[0]


def _join_asked_cells(
    question: str, best: tuple[float, Candidate], ranked: list[tuple[float, Candidate]]
) -> tuple[float, Candidate]:
    """The surest cell with others of its row, where the question asks for two things: 叫什么，电话几号."""
    if best[1].statement.kind != "cell":
        return best
    questions = [parse_question(part) for part in _PARTS.split(question) if len(part.strip()) > 1]
    questions = [part for part in questions if part.kinds]
    row = [
        other for _, other in ranked if other.place == best[1].place and other.statement.row == best[1].statement.row
    ]
    cells = [max(row, key=lambda other: rate_cell(part, other.statement)) for part in questions]
    spans = {*best[1].spans, *(span for cell in cells for span in cell.spans)} if len(cells) > 1 else set()
    if joined := named_together(parse_question(question), best[1].statement):
        spans |= {*best[1].spans, *(cell.span for cell in joined)}
    return (best[0], replace(best[1], spans=tuple(sorted(spans)))) if spans else best


def _tell_rows_apart(
    best: tuple[float, Candidate], ranked: list[tuple[float, Candidate]], hits: Sequence[Hit]
) -> tuple[float, Candidate]:
    """Adds a cell where another row of the table would be quoted with the same words and another value."""
    sureness, candidate = best
    if candidate.statement.kind != "cell":
        return best
    table = table_of(hits[candidate.place])
    others = [other.statement for _, other in ranked if table_of(hits[other.place]) == table]
    quoted = [cell for cell in candidate.statement.row if cell.span in candidate.spans]
    telling = find_telling_cell(quoted, candidate.statement, others)
    if telling is None:
        return best
    return sureness, replace(candidate, spans=tuple(sorted({*candidate.spans, telling.span})))


def _contains_item(outer: Candidate, inner: Candidate) -> bool:
    """Whether a list has the other statement as an item."""
    start, end = inner.statement.span
    first, last = outer.statement.span
    return outer.place == inner.place and first <= start and end <= last


def _quote_statement(candidate: Candidate, text: str) -> str:
    return _CELL_SEPARATOR.join(text[start:end] for start, end in candidate.spans)


def _says_same(a: str, b: str) -> bool:
    terms = _extract_terms(a)
    other_terms = _extract_terms(b)
    fewest = max(1, min(len(terms), len(other_terms)))
    return a in b or b in a or len(terms & other_terms) >= _SAME_TERMS * fewest


def _extract_terms(text: str) -> frozenset[str]:
    """Words and character pairs; single characters say too little."""
    return frozenset(term for term in get_tokenizer("bigram").terms(text) if len(term) > 1)
