"""Hits → an answer made of their own sentences, each with its source; or "not found". No language model is involved.

Why this exists: a question-answering page must work, and be tested, where no language model runs; and a reader who
sees the sentence itself with its source needs to believe nobody. The best sentences are those nearest to the question
by the encoder's cosine and by the question's terms they contain. Whether there is an answer at all is decided apart,
with a threshold: `THRESHOLD` was calibrated for `peg-mini` on 261 questions it was not trained on, 160 of them from a
field it does not know, each asked with and without the passage that answers it. Over 50 passages, answers are given
with precision 0.89 and recall 0.87; over 29,969 passages, with much that resembles an answer, with 0.53 and 0.86
(`benchmarks/calibrate_answer.py`, which also fits another model, and lists other thresholds).

Costs one encoding of the question and of the sentences of the first few hits.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from peg_rag.errors import InvalidInput
from peg_rag.hits import Hit
from peg_rag.index.tokenizers import get_tokenizer
from peg_rag.retriever import Encoder

NOT_FOUND = "在文档中没有找到答案。 / Not found in the documents."
THRESHOLD = 0.3  # the best F1 over small and large corpora (benchmarks/calibrate_answer.py)
MAX_HITS = 5
_BIAS, _PER_COSINE, _PER_LEAD, _PER_COVERAGE = -3.39, 1.53, 6.43, 3.45  # fitted for peg-mini
_LEXICAL_WEIGHT = 0.5  # of the share of the question's terms, beside the cosine
_NEARLY_AS_GOOD = 0.8  # of the best sentence's score, for a further sentence to be shown
_SAME_TERMS = 0.6  # share of common terms from which two sentences say the same
_LONG_SENTENCE = 120  # characters, beyond which a sentence is cut at semicolons

_SENTENCE = re.compile(r"[^。！？!?…\n]+(?:[。！？!?…]+[”’」』）)\"]*)?")
_CLAUSE = re.compile(r"[^；;]+[；;]?")
_WHOLE = re.compile(r"(?s).+")
_NUMERAL = r"[一二三四五六七八九十\d]{1,3}"
_ITEM = rf"[ \t]*(?:[-*•·]|\d{{1,2}}[.)）]|[（(]{_NUMERAL}[)）]|{_NUMERAL}、)[^\n]{{1,60}}(?:\n|$)"
_BLOCK = re.compile(rf"(?m)(?P<list>(?:^{_ITEM}){{2,8}})|[^\n]+")
# A short line that states nothing: no punctuation but a colon at its end, and no figure but its number.
_STATING = r"\d.。！？!?…：:；;，,|\n"
_HEADING = re.compile(
    rf"(?:#+ *)?(?:第{_NUMERAL}[章节条款]|{_NUMERAL}[、.]|[\d.]+\s)?[^-*•·{_STATING}][^{_STATING}]*[：:]?"
)
_LONGEST_HEADING = 50  # characters
_WORDS = re.compile(r"\w")
# What makes a question a question, and says nothing about its subject.
_ASKING = re.compile(
    r"请问|什么|怎么样|怎么办|怎么|怎样|如何|为什么|为何|哪[里儿些个位]?|多少|多久|几[点个年月]|是否|是不是|有没有|"
    r"能不能|可以|吗|呢|么|谁|的|了|是|有|在|和|与|吧|啊|\b(?:what|which|who|when|where|why|how|is|are|was|the|a|an|of|in|to)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class CitedSentence:
    """A sentence of a hit.

    Attributes:
        text: the sentence, as it stands in the hit.
        citation: number of its source in `Answer.sources`, from 1.
        start: its offset in the hit's text, in characters.
        score: nearness to the question; comparable within one answer only.
    """

    text: str
    citation: int
    start: int
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An extractive answer.

    Attributes:
        question: as it was asked.
        sentences: best first; empty when nothing was found.
        sources: the hits that the sentences cite.
        confidence: 0 to 1, how likely the hits answer the question at all.
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
    """Choose the sentences of the hits that answer the question.

    Args:
        hits: best first; the first `max_hits` are read.
        threshold: least confidence for an answer, from 0 (always answer) to 1. The default is for `peg-mini`.

    Raises:
        InvalidInput: a blank question, a threshold outside 0-1, or no sentence wanted.
    """
    if not question.strip() or not 0 <= threshold <= 1 or max_sentences < 1:
        raise InvalidInput(
            f"question={question!r}, threshold={threshold}, max_sentences={max_sentences}: expected a question that "
            "says something, a threshold from 0 to 1 and at least one sentence"
        )
    candidates = _candidates(question, hits[:max_hits], encoder)
    confidence = _evidence(candidates).confidence if candidates else 0.0
    chosen = _choose(candidates, max_sentences) if candidates and confidence >= threshold else []
    order = list(dict.fromkeys(c.hit for c in chosen))
    sentences = tuple(CitedSentence(c.text, order.index(c.hit) + 1, c.start, c.score) for c in chosen)
    return Answer(question, sentences, tuple(hits[i] for i in order), confidence)


def sentences_of(text: str) -> Iterator[tuple[int, str]]:
    """(offset, sentence) of a Chinese or English text.

    Long enumerations are cut at their semicolons. What alone says nothing stays with its neighbours: the items of a
    short list together, a heading with the first sentence under it.
    """
    heading: int | None = None  # where the line before begins, if it is one
    for block in _BLOCK.finditer(text):
        if not _WORDS.search(block[0]):  # a blank line, a rule
            continue
        is_heading = not block["list"] and _is_heading(block[0].strip())
        if heading is not None and is_heading:  # nothing stands under the one before
            yield from _stripped(text, heading, block.start())
        start = block.start() if heading is None or is_heading else heading
        heading = start if is_heading else None
        if heading is None:
            yield from _sentences_of_block(text, start, block)
    if heading is not None:
        yield from _stripped(text, heading, len(text))


def _is_heading(line: str) -> bool:
    return len(line) <= _LONGEST_HEADING and _HEADING.fullmatch(line) is not None


def _sentences_of_block(text: str, start: int, block: re.Match[str]) -> Iterator[tuple[int, str]]:
    """The sentences of a list or a line; the first begins at `start`, which is that of the heading if there is one."""
    pieces = [block] if block["list"] else _SENTENCE.finditer(text, block.start(), block.end())
    for piece in pieces:
        cuts = _CLAUSE if len(piece[0]) > _LONG_SENTENCE and piece is not block else _WHOLE
        for part in cuts.finditer(text, piece.start(), piece.end()):
            yield from _stripped(text, start if start < block.start() else part.start(), part.end())
            start = block.start()


def _stripped(text: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    """The piece without blanks at its ends, if it has a word in it."""
    piece = text[start:end]
    if len(_WORDS.findall(piece)) >= 2:
        yield start + len(piece) - len(piece.lstrip()), piece.strip()


def subject_of(question: str) -> str:
    """The question without the words that only ask; the question itself where nothing else is in it."""
    subject = re.sub(r"\s+", " ", _ASKING.sub(" ", question)).strip()
    return subject if _terms(subject) else question


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sentence, the hit it is of (place in the list), and how near it is to the question."""

    text: str
    hit: int
    start: int
    terms: frozenset[str]
    cosine: float
    coverage: float  # of the question's terms, by the sentence
    hit_coverage: float  # of the question's terms, by the whole hit

    @property
    def score(self) -> float:
        return self.cosine + _LEXICAL_WEIGHT * self.coverage


def _candidates(question: str, hits: Sequence[Hit], encoder: Encoder) -> list[_Candidate]:
    found = [(place, start, text) for place, hit in enumerate(hits) for start, text in _body_sentences(hit)]
    if not found:
        return []
    asked = encoder.encode_queries([question])[0]  # (dimension,)
    # A sentence is read under its heading: 三十天内 answers a question about deadlines as it stands under 期限.
    titles = [str(hit.metadata.get("title") or "") for hit in hits]
    read = [f"{titles[place]}\n{text}".strip() for place, _, text in found]
    cosines = encoder.encode_documents(read) @ asked  # (sentences,)
    wanted = _terms(subject_of(question))
    covered = [_coverage(wanted, _terms(hit.text)) for hit in hits]
    terms = [_terms(text) for text in read]
    return [
        _Candidate(text, place, start, own, float(cosine), _coverage(wanted, own), covered[place])
        for (place, start, text), own, cosine in zip(found, terms, cosines, strict=True)
    ]


def _body_sentences(hit: Hit) -> Iterator[tuple[int, str]]:
    """The hit's sentences, without the title that ingestion puts in its first line."""
    title = str(hit.metadata.get("title") or "")
    skip = hit.text.find("\n") + 1 if title and hit.text.startswith(title[:20]) else 0
    for start, sentence in sentences_of(hit.text[skip:]):
        yield start + skip, sentence


def _terms(text: str) -> frozenset[str]:
    """Words and character pairs; single characters say too little."""
    return frozenset(term for term in get_tokenizer("bigram").terms(text) if len(term) > 1)


def _coverage(wanted: frozenset[str], terms: frozenset[str]) -> float:
    return len(wanted & terms) / len(wanted) if wanted else 0.0


def _choose(candidates: list[_Candidate], count: int) -> list[_Candidate]:
    """The best sentence, and others nearly as good that say something else."""
    ranked = sorted(candidates, key=lambda c: -c.score)
    chosen: list[_Candidate] = []
    for candidate in ranked:
        if len(chosen) == count or candidate.score < _NEARLY_AS_GOOD * ranked[0].score:
            break
        if not any(_alike(candidate.terms, other.terms) for other in chosen):
            chosen.append(candidate)
    return chosen


def _alike(a: frozenset[str], b: frozenset[str]) -> bool:
    return len(a & b) >= _SAME_TERMS * max(1, min(len(a), len(b)))


def evidence(question: str, hits: Sequence[Hit], encoder: Encoder, max_hits: int = MAX_HITS) -> "Evidence":
    """What speaks for an answer in these hits; the calibration script fits `Evidence.confidence` on it."""
    candidates = _candidates(question, hits[:max_hits], encoder)
    return _evidence(candidates) if candidates else Evidence(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for an answer in a list of hits.

    Attributes:
        cosine: the best of a sentence.
        lead: how far it is above the best of the other hits; an answer stands out.
        coverage: the best share of the question's terms in one hit.
    """

    cosine: float
    lead: float
    coverage: float

    @property
    def confidence(self) -> float:
        """How likely the hits answer the question, 0 to 1: a logistic function fitted by the calibration script."""
        logit = _BIAS + _PER_COSINE * self.cosine + _PER_LEAD * self.lead + _PER_COVERAGE * self.coverage
        return 0.5 * (1.0 + math.tanh(0.5 * logit))


def _evidence(candidates: list[_Candidate]) -> Evidence:
    best: dict[int, float] = {}
    for candidate in candidates:
        best[candidate.hit] = max(best.get(candidate.hit, -1.0), candidate.cosine)
    ranked = sorted(best.values(), reverse=True)
    lead = ranked[0] - ranked[1] if len(ranked) > 1 else 0.0  # one hit alone does not stand out from anything
    return Evidence(ranked[0], lead, max(c.hit_coverage for c in candidates))
