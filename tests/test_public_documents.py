"""The set of real public documents is whole and fair: what is in the repository is unchanged, and answers are there."""

import hashlib
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "data" / "public-documents"
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
sys.path.insert(0, str(FOLDER))

import fetch  # noqa: E402
from answers import LONGEST_ANSWER, Question, Reply, judge, present_questions, read_questions  # noqa: E402

from peg_rag.readers import Row, read_blocks  # noqa: E402

QUESTIONS = read_questions(FOLDER)
FETCHED = {document.name for document in fetch.DOCUMENTS}
each_answerable = pytest.mark.parametrize(
    "question",
    [
        # Two of the fetched documents have hundreds of pages.
        pytest.param(question, id=question.id, marks=[pytest.mark.slow] if FETCHED & set(question.files) else [])
        for question in QUESTIONS
        if question.kind != "unanswerable"
    ],
)


def test_there_are_50_questions_of_the_promised_kinds() -> None:
    counts = Counter(question.kind for question in QUESTIONS)
    assert len({question.id for question in QUESTIONS}) == len({question.question for question in QUESTIONS}) == 50
    assert {question.split for question in QUESTIONS} == {"open"}
    assert counts["table"] + counts["record"] == 20
    assert counts["unanswerable"] == 8
    for question in QUESTIONS:
        assert bool(question.files) == bool(question.must) == (question.kind != "unanswerable")


def test_every_document_is_asked_about_and_named_with_its_licence() -> None:
    shipped = {file.name for file in (FOLDER / "files").iterdir() if not file.name.startswith(".")} - FETCHED
    assert {name for question in QUESTIONS for name in question.files} == shipped | FETCHED
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(name in readme for name in shipped | FETCHED)
    assert sum((FOLDER / "files" / name).stat().st_size for name in shipped) < 1_000_000


def test_the_documents_in_the_repository_are_as_they_were_published() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    checksums = re.findall(r"^    ([0-9a-f]{64})  (\S+)$", readme, re.MULTILINE)
    assert len(checksums) == 6
    for checksum, name in checksums:
        assert hashlib.sha256((FOLDER / "files" / name).read_bytes()).hexdigest() == checksum


@each_answerable
def test_a_short_stretch_of_the_document_is_a_right_answer(question: Question) -> None:
    for name in question.files:
        if not (FOLDER / "files" / name).is_file():
            pytest.skip(f"{name} is not here; tests/data/public-documents/fetch.py fetches it")
        assert any(judge(question, Reply(text, name)) in ("right", "exact") for text in read_stretches(name))


def test_questions_about_documents_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "劳动合同法.md").write_text("第一条", encoding="utf-8")
    present = present_questions(QUESTIONS, tmp_path)
    assert {name for question in present for name in question.files} == {"劳动合同法.md"}
    assert sum(question.kind == "unanswerable" for question in present) == 8
    assert present_questions(QUESTIONS, FOLDER / "nowhere") == []


@cache
def read_stretches(name: str) -> tuple[str, ...]:
    """Rows and records, and every run of whole paragraphs of at most so many characters."""
    blocks = read_blocks(FOLDER / "files" / name)
    stretches = [block.text for block in blocks]
    texts = [block.text for block in blocks if not isinstance(block, Row)]
    for first in range(len(texts)):
        stretch = texts[first]
        for text in texts[first + 1 :]:
            stretch += text
            if len(stretch) > LONGEST_ANSWER:
                break
            stretches.append(stretch)
    return tuple(stretches)
