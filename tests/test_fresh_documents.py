"""The fresh set of documents and questions is whole, made anew from its words, and fair: a right answer is there."""

import re
import sys
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FRESH = Path(__file__).parent / "data" / "documents-2"
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
sys.path.insert(0, str(FRESH))

from answers import (  # noqa: E402
    DOCUMENTS,
    KINDS,
    LONGEST_ANSWER,
    Question,
    Reply,
    judge,
    normalise,
    occurs,
    read_questions,
)
from make_documents import render  # noqa: E402
from make_documents.content import SOURCES, lines_of  # noqa: E402

QUESTIONS = read_questions(FRESH)
ANSWERABLE = [question for question in QUESTIONS if question.kind != "unanswerable"]


def test_there_are_80_questions_of_the_promised_kinds() -> None:
    counts = Counter(question.kind for question in QUESTIONS)
    assert len(QUESTIONS) == len({question.id for question in QUESTIONS}) == 80
    assert {question.split for question in QUESTIONS} == {"fresh"}
    assert set(counts) == set(KINDS)
    assert counts["table"] + counts["record"] == 28
    assert counts["scan"] == 7
    assert counts["unanswerable"] == 14


def test_the_files_are_those_of_the_sources_and_small() -> None:
    files = list((FRESH / "files").iterdir())
    assert {file.name for file in files} == set(SOURCES)
    assert sum(file.stat().st_size for file in files) < 1_500_000
    assert not {file.name for file in (DOCUMENTS / "files").iterdir()} & set(SOURCES)


def test_every_file_is_asked_about() -> None:
    assert {name for question in QUESTIONS for name in question.files} == set(SOURCES)


def test_an_unanswerable_question_names_nothing() -> None:
    for question in QUESTIONS:
        assert bool(question.files) == bool(question.must) == (question.kind != "unanswerable")
        assert question.must or not (question.must_not or question.beside)


@pytest.mark.parametrize("question", ANSWERABLE, ids=lambda question: question.id)
def test_a_short_stretch_of_the_source_is_a_right_answer(question: Question) -> None:
    for name in question.files:
        assert any(judge(question, Reply(text, name)) in ("right", "exact") for text in stretches(name))


@pytest.mark.parametrize("question", ANSWERABLE, ids=lambda question: question.id)
def test_every_pattern_is_about_something_in_the_sources(question: Question) -> None:
    whole = {name: normalise("\n".join(lines_of(name))) for name in SOURCES}
    for pattern in question.must:
        assert all(occurs(pattern, whole[name]) for name in question.files)
    for pattern in (*question.must_not, *question.beside):
        re.compile(pattern.removeprefix("re:"))
        assert any(occurs(pattern, text) for text in whole.values()), f"{pattern} tempts nobody"


def test_the_texts_are_made_anew_to_the_byte(tmp_path: Path) -> None:
    render.make_texts(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (FRESH / "files" / file.name).read_bytes()


def test_the_office_files_are_made_anew(tmp_path: Path) -> None:
    for module in ("docx", "openpyxl", "pptx"):
        pytest.importorskip(module)
    render.make_archives(tmp_path)
    for file in tmp_path.iterdir():
        with zipfile.ZipFile(file) as new, zipfile.ZipFile(FRESH / "files" / file.name) as kept:
            assert new.namelist() == kept.namelist()
            assert all(new.read(name) == kept.read(name) for name in new.namelist())


@pytest.mark.slow
@pytest.mark.skipif(not Path(render.SANS_FONT).exists(), reason="needs the fonts of fonts-wqy-zenhei")
@pytest.mark.skipif(not Path(render.SCAN_FONT).exists(), reason="needs the fonts of fonts-wqy-microhei")
def test_the_pdfs_are_made_anew(tmp_path: Path) -> None:
    pytest.importorskip("reportlab")
    pdfium = pytest.importorskip("pypdfium2")
    render.make_pdfs(tmp_path)
    for file in tmp_path.iterdir():
        new, kept = (pdfium.PdfDocument(path) for path in (file, FRESH / "files" / file.name))
        assert texts_of_pages(new) == texts_of_pages(kept)


def texts_of_pages(document: Any) -> list[str]:
    return [page.get_textpage().get_text_bounded() for page in document]


@cache
def stretches(name: str) -> list[str]:
    """All runs of lines of a file that are short enough for an answer."""
    lines = lines_of(name)
    runs = []
    for first in range(len(lines)):
        for last in range(first + 1, len(lines) + 1):
            run = normalise("\n".join(lines[first:last]))
            if len(run) > LONGEST_ANSWER:
                break
            runs.append(run)
    return runs
