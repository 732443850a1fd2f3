"""A prompt's numbered passages → hits, and an answer's citations back → those numbers.

A language model reads a whole prompt; an extractive answerer needs to know what in it is a passage and what is an
instruction. So the frameworks' extractive models agree on what prompts for cited answers write anyway: passages that
are numbered `[1]`, `[2]`, … (or `Source 1:`, as LlamaIndex does) at the start of a line. All else is instruction.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from peg_rag.answer import Answer
from peg_rag.hits import Hit

NO_PASSAGES = "没有找到相关的段落。 / No passages found."
_MARK = re.compile(r"^(?:\[(\d+)\]|Source (\d+):)[ \t]*(?:\(source: .*\)$)?\n?", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n[ \t]*\n+")
_SENTENCE_END = re.compile(r"[。！？!?.…；;]\W*$")


def numbered_passages(text: str) -> list[Hit]:
    """The passages of a prompt, each from its number to the next; the number is the hit's id. None: an empty list.

    A number counts only if it is 1 or follows the one before, so that a `[7]` inside a passage does not cut it.
    """
    marks: list[re.Match[str]] = []
    for mark in _MARK.finditer(text):
        if _number(mark) == len(marks) + 1:
            marks.append(mark)
    bounds = [mark.start() for mark in marks] + [len(text)]
    return [_hit(str(_number(mark)), text[mark.end() : end]) for mark, end in zip(marks, bounds[1:], strict=True)]


def write_numbered_passages(passages: Iterable[tuple[Mapping[str, Any], str]]) -> str:
    """(metadata, text) of passages as a tool shows them to a model: numbered, with file, headings and page above.

    `numbered_passages` reads the texts back.
    """
    shown = []
    for number, (metadata, text) in enumerate(passages, start=1):
        place = place_of(metadata)
        shown.append(f"[{number}] (source: {place})\n{text}" if place else f"[{number}] {text}")
    return "\n\n".join(shown) or NO_PASSAGES


def place_of(metadata: Mapping[str, Any]) -> str:
    """Where a passage stands: file, headings, sheet, page or row, as far as they are known."""
    parts = [str(metadata.get(name) or "") for name in ("source", "title", "sheet")]
    parts += [f"{name} {metadata[name]}" for name in ("page", "row") if metadata.get(name)]
    return " · ".join(" ".join(part.split()) for part in parts if part.strip())


def paragraphs(text: str) -> list[Hit]:
    """The text cut at blank lines, for passages that nobody numbered: they cannot be cited, and their id is empty."""
    return [_hit("", part) for part in _BLANK_LINES.split(text) if part.strip()]


def cited_sentences(answer: Answer) -> Iterator[str]:
    """The answer's sentences, each with the number that its passage had in the prompt, if it had one."""
    for sentence in answer.sentences:
        number = answer.sources[sentence.citation - 1].id
        yield f"{sentence.text}[{number}]" if number else sentence.text


def _number(mark: re.Match[str]) -> int:
    return int(mark[1] or mark[2])


def _hit(number: str, text: str) -> Hit:
    """A first line that is no sentence is taken for the passage's title: it says what the rest is about."""
    body = text.strip()
    first, _, rest = body.partition("\n")
    titled = rest.strip() and not _SENTENCE_END.search(first)
    return Hit(number, body, score=0.0, metadata={"title": first} if titled else {})
