"""Further hits for an answer: a file is searched again with the terms that it has for the question.

Why this exists: who asks about 38 points finds the definition (40分以下的为重助), but the row that says what holds for
重助 shares no word with the question, and lies deep among the hits. Nor does the definition always share one: a father
of 61 is of the 常青组 by a sentence about 满50周岁.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from peg_rag.answering.definitions import find_definitions
from peg_rag.answering.passages import passages_of
from peg_rag.answering.question import parse_question
from peg_rag.answering.terms import find_terms, find_terms_by_number, says_number
from peg_rag.hits import Hit
from peg_rag.retriever import Retriever

MAX_FILES = 2  # that are searched again
HITS_OF_FILE = 12
_DEFINING = "本表所称 是指 称为 其余为"  # as definitions read
_DEFINITIONS_OF_FILE = 6


def retrieve_by_terms(
    question: str, hits: Sequence[Hit], retriever: Retriever, where: Mapping[str, Any] | None = None
) -> list[Hit]:
    """What the first files have for the question besides: the definitions of its numbers, then what is found for it in
    their terms (see `terms.py`), best first.

    Args:
        hits: that were found for the question itself; none of them is given again.
        where: metadata filter of the search, which holds for what is found, too.

    Raises:
        UnsupportedSearch: the searcher cannot do the retriever's mode.
    """
    found = {hit.id for hit in hits}
    last = min((hit.score for hit in hits), default=0.0)  # what was found by the question itself stays first
    definitions = _retrieve_definitions(question, hits, retriever, where)
    more = {hit.id: replace(hit, score=last) for hit in definitions if hit.id not in found}
    found |= set(more)
    for source, terms in _terms_of_files(question, [*hits, *more.values()]).items():
        restated = f"{question} {' '.join(terms)}"
        filtered = {**(where or {}), "source": source}
        own = retriever.retrieve(restated, k=HITS_OF_FILE, where=filtered)
        more |= {hit.id: replace(hit, score=min(hit.score, last)) for hit in own if hit.id not in found}
    return list(more.values())


def _retrieve_definitions(
    question: str, hits: Sequence[Hit], retriever: Retriever, where: Mapping[str, Any] | None
) -> list[Hit]:
    """Of the first files, the hits that define what a number of the question is called."""
    parsed = parse_question(question)
    sources = dict.fromkeys(hit.metadata.get("source") for hit in hits) if says_number(parsed) else {}
    definitions: list[Hit] = []
    for source in [source for source in sources if source][:MAX_FILES]:
        own = retriever.retrieve(_DEFINING, k=_DEFINITIONS_OF_FILE, where={**(where or {}), "source": source})
        definitions += [hit for hit in own if find_terms_by_number(parsed, find_definitions(hit.text))]
    return definitions


def _terms_of_files(question: str, hits: Sequence[Hit]) -> dict[Any, tuple[str, ...]]:
    """By source, the terms of the first files that have any."""
    parsed = parse_question(question)
    terms: dict[Any, tuple[str, ...]] = {}
    for passage in passages_of(hits):
        source = passage.hit.metadata.get("source")
        if source and source not in terms:
            terms[source] = find_terms(parsed, passage.meanings, passage.file_text)
    return dict([(source, own) for source, own in terms.items() if own][:MAX_FILES])
