"""Answers by quotation from the passages of a prompt, in place of a language model.

Demos and tests run chains, query engines and agents where no language model is at hand. The frameworks' two models for
that, LangChain's `ExtractiveChatModel` and LlamaIndex's `ExtractiveLLM`, only translate messages; what a passage is
and how it is quoted is decided here. A prompt for cited answers numbers its passages `[1]`, `[2]`, … (or `Source 1:`,
as LlamaIndex does) at the start of a line. All other text is instruction.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peg_rag.answer import NOT_FOUND, Answer, extract_answer
from peg_rag.hits import Hit
from peg_rag.retriever import Encoder

MODEL_NAME = "peg-rag-extractive"
_MARK = re.compile(r"^(?:\[(\d+)\]|Source (\d+):)[ \t]*(?:\(source: .*\)$)?\n?", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n[ \t]*\n+")
_SENTENCE_END = re.compile(r"[。！？!?.…；;]\W*$")


@dataclass(frozen=True, slots=True)
class Reply:
    """What an extractive model answers.

    Attributes:
        text: sentences with the numbers of their passages, or `NOT_FOUND`.
        metadata: `extractive`, whether an answer was `found`, and the `confidence`.
    """

    text: str
    metadata: dict[str, Any]


def quote_passages(question: str, passages: Sequence[Hit], encoder: Encoder, threshold: float) -> Reply:
    """Answer a question with sentences of the passages; all of them are read.

    Raises:
        InvalidInput: a blank question, or a threshold outside 0-1.
    """
    answer = extract_answer(question, passages, encoder, threshold=threshold, max_hits=len(passages))
    metadata = {"extractive": True, "found": answer.found, "confidence": answer.confidence}
    return Reply("".join(cited_sentences(answer)) or NOT_FOUND, metadata)


def numbered_passages(text: str) -> list[Hit]:
    """The passages of a prompt, each from its number to the next; the number is the hit's id. None: an empty list.

    A number counts only if it is 1 or follows the one before, so that a `[7]` inside a passage does not cut it.
    """
    marks: list[re.Match[str]] = []
    for mark in _MARK.finditer(text):
        if _parse_number(mark) == len(marks) + 1:
            marks.append(mark)
    bounds = [mark.start() for mark in marks] + [len(text)]
    return [
        _make_hit(str(_parse_number(mark)), text[mark.end() : end]) for mark, end in zip(marks, bounds[1:], strict=True)
    ]


def paragraphs(text: str) -> list[Hit]:
    """The text cut at blank lines, for passages without numbers: they cannot be cited, and their id is empty."""
    return [_make_hit("", part) for part in _BLANK_LINES.split(text) if part.strip()]


def cited_sentences(answer: Answer) -> Iterator[str]:
    """The answer's sentences, each with the number that its passage had in the prompt, if it had one."""
    for sentence in answer.sentences:
        number = answer.sources[sentence.citation - 1].id
        yield f"{sentence.text}[{number}]" if number else sentence.text


def _parse_number(mark: re.Match[str]) -> int:
    return int(mark[1] or mark[2])


def _make_hit(number: str, text: str) -> Hit:
    """A passage as a hit. A first line that is no sentence is the passage's title: it says what the rest is about."""
    body = text.strip()
    first, _, remainder = body.partition("\n")
    has_title = remainder.strip() and not _SENTENCE_END.search(first)
    return Hit(number, body, score=0.0, metadata={"title": first} if has_title else {})
