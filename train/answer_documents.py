"""Written documents and what people ask about them, for the answer scorer: `answers/*.txt`.

Each file of that folder holds documents (`## name.suffix`, then their text) and, after a line `??`, questions: wordings
of one question apart by ` / `, then `|` and what a right answer says (`;` between several), or `-` where the document
does not say. They are read, cut and indexed as any file is.
"""

import random
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peg_rag.chunking import split
from peg_rag.readers import read_sections

FOLDER = Path(__file__).resolve().parent / "answers"


@dataclass(frozen=True)
class WrittenCase:
    """A question and what a right answer says; nothing where no document answers.

    Attributes:
        file: that answers.
        must: what stands in the statement that answers, see `occurs`.
    """

    question: str
    file: str
    must: tuple[str, ...]


@dataclass(frozen=True)
class WrittenDocument:
    """A file's name and text, and the questions about it."""

    name: str
    text: str
    cases: tuple[WrittenCase, ...]


def read_documents(wordings: int | None = None) -> list[WrittenDocument]:
    """
    Args:
        wordings: of a question, at most, drawn for each document in the same way every time; all by default.
    """
    documents = []
    for path in sorted(FOLDER.glob("*.txt")):
        for part in re.split(r"^## (?=\S+\.\w+$)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            name, _, rest = part.partition("\n")
            text, _, questions = rest.partition("\n??\n")
            generator = random.Random(name)
            cases = [
                case
                for line in questions.strip().splitlines()
                for case in _choose_wordings(list(_cases(name, line)), wordings, generator)
            ]
            documents.append(WrittenDocument(name, text, tuple(cases)))
    return documents


def _choose_wordings(cases: list[WrittenCase], most: int | None, generator: random.Random) -> list[WrittenCase]:
    return cases if most is None or len(cases) <= most else generator.sample(cases, most)


def _cases(file: str, questions: str) -> Iterator[WrittenCase]:
    for line in questions.strip().splitlines():
        wordings, _, answer = line.rpartition("|")
        must = () if answer == "-" else tuple(answer.split(";"))
        for wording in wordings.split(" / "):
            yield WrittenCase(wording.strip(), file if must else "", must)


def passages(documents: list[WrittenDocument]) -> Iterator[tuple[str, dict[str, object]]]:
    """(text, metadata) of every chunk, as ingestion stores them."""
    with tempfile.TemporaryDirectory() as folder:
        for document in documents:
            path = Path(folder) / document.name
            path.write_text(document.text, encoding="utf-8")
            for chunk in split(read_sections(path), document.name, ""):
                yield chunk.text, chunk.metadata


def occurs(literal: str, text: str) -> bool:
    """Whether a text says it, blanks and commas in numbers aside; a figure is not part of a longer one."""
    literal = _plain(literal)
    before = r"(?<!\d)(?<!\d\.)" if literal[0].isdigit() else ""
    after = r"(?!\.?\d)" if literal[-1].isdigit() else ""
    return re.search(before + re.escape(literal) + after, _plain(text)) is not None


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", re.sub(r"(?<=\d),(?=\d{3})", "", text)).lower()
