"""The fresh sets of documents are whole, made anew from their words, and fair: a right answer is there."""

import re
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
sys.path.insert(0, str(DATA))

import make_documents.documents_2.content  # noqa: E402
import make_documents.documents_2.files  # noqa: E402
import make_documents.documents_3.content  # noqa: E402
import make_documents.documents_3.files  # noqa: E402
import make_documents.documents_4.content  # noqa: E402
import make_documents.documents_4.files  # noqa: E402
import make_documents.documents_5.content  # noqa: E402
import make_documents.documents_5.files  # noqa: E402
import make_documents.documents_6.content  # noqa: E402
import make_documents.documents_6.files  # noqa: E402
import make_documents.documents_7.content  # noqa: E402
import make_documents.documents_7.files  # noqa: E402
import make_documents.documents_8.content  # noqa: E402
import make_documents.documents_8.files  # noqa: E402
import make_documents.documents_9.content  # noqa: E402
import make_documents.documents_9.files  # noqa: E402
import make_documents.documents_10.content  # noqa: E402
import make_documents.documents_10.files  # noqa: E402
import make_documents.documents_11.content  # noqa: E402
import make_documents.documents_11.files  # noqa: E402
import make_documents.documents_12.content  # noqa: E402
import make_documents.documents_12.files  # noqa: E402
import make_documents.documents_13.content  # noqa: E402
import make_documents.documents_13.files  # noqa: E402
import make_documents.documents_14.content  # noqa: E402
import make_documents.documents_14.files  # noqa: E402
import make_documents.documents_15.content  # noqa: E402
import make_documents.documents_15.files  # noqa: E402
import make_documents.documents_16.content  # noqa: E402
import make_documents.documents_16.files  # noqa: E402
import make_documents.documents_17.content  # noqa: E402
import make_documents.documents_17.files  # noqa: E402
import make_documents.documents_18.content  # noqa: E402
import make_documents.documents_18.files  # noqa: E402
import make_documents.documents_19.content  # noqa: E402
import make_documents.documents_19.files  # noqa: E402
import make_documents.documents_20.content  # noqa: E402
import make_documents.documents_20.files  # noqa: E402
import make_documents.documents_21.content  # noqa: E402
import make_documents.documents_21.files  # noqa: E402
import make_documents.documents_22.content  # noqa: E402
import make_documents.documents_22.files  # noqa: E402
from answers import (  # noqa: E402
    DOCUMENTS,
    KINDS,
    LONGEST_ANSWER,
    Question,
    Reply,
    judge,
    list_questions,
    normalise,
    occurs,
    read_questions,
)
from make_documents.render import CHROMIUM, SANS_FONT, SCAN_FONT, lines_of_source  # noqa: E402


@dataclass(frozen=True, eq=False)
class FreshSet:
    """A folder of documents and questions, with the scripts that make its files."""

    name: str
    sources: Mapping[str, Any]  # the words of each file
    maker: Any
    searches: int  # questions for a cell of a table or a record
    scans: int
    unanswerable: int
    split: str = "fresh"  # open, once answering was developed with it

    @property
    def files(self) -> Path:
        return DATA / self.name / "files"

    @property
    def questions(self) -> list[Question]:
        return read_questions(DATA / self.name)


SETS = (
    FreshSet(
        "documents-2",
        make_documents.documents_2.content.SOURCES,
        make_documents.documents_2.files,
        searches=28,
        scans=7,
        unanswerable=14,
        split="open",
    ),
    FreshSet(
        "documents-3",
        make_documents.documents_3.content.SOURCES,
        make_documents.documents_3.files,
        searches=32,
        scans=8,
        unanswerable=13,
        split="open",
    ),
    FreshSet(
        "documents-4",
        make_documents.documents_4.content.SOURCES,
        make_documents.documents_4.files,
        searches=32,
        scans=8,
        unanswerable=13,
        split="open",
    ),
    FreshSet(
        "documents-5",
        make_documents.documents_5.content.SOURCES,
        make_documents.documents_5.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-6",
        make_documents.documents_6.content.SOURCES,
        make_documents.documents_6.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-7",
        make_documents.documents_7.content.SOURCES,
        make_documents.documents_7.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-8",
        make_documents.documents_8.content.SOURCES,
        make_documents.documents_8.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-9",
        make_documents.documents_9.content.SOURCES,
        make_documents.documents_9.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-10",
        make_documents.documents_10.content.SOURCES,
        make_documents.documents_10.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-11",
        make_documents.documents_11.content.SOURCES,
        make_documents.documents_11.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-12",
        make_documents.documents_12.content.SOURCES,
        make_documents.documents_12.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-13",
        make_documents.documents_13.content.SOURCES,
        make_documents.documents_13.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-14",
        make_documents.documents_14.content.SOURCES,
        make_documents.documents_14.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-15",
        make_documents.documents_15.content.SOURCES,
        make_documents.documents_15.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-16",
        make_documents.documents_16.content.SOURCES,
        make_documents.documents_16.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-17",
        make_documents.documents_17.content.SOURCES,
        make_documents.documents_17.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-18",
        make_documents.documents_18.content.SOURCES,
        make_documents.documents_18.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-19",
        make_documents.documents_19.content.SOURCES,
        make_documents.documents_19.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-20",
        make_documents.documents_20.content.SOURCES,
        make_documents.documents_20.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-21",
        make_documents.documents_21.content.SOURCES,
        make_documents.documents_21.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
    FreshSet(
        "documents-22",
        make_documents.documents_22.content.SOURCES,
        make_documents.documents_22.files,
        searches=32,
        scans=8,
        unanswerable=12,
        split="open",
    ),
)


def name_of(fresh: FreshSet) -> str:
    return fresh.name


each_set = pytest.mark.parametrize("fresh", SETS, ids=name_of)
each_answerable = pytest.mark.parametrize(
    ("fresh", "question"),
    [
        pytest.param(fresh, question, id=f"{fresh.name}-{question.id}")
        for fresh in SETS
        for question in fresh.questions
        if question.kind != "unanswerable"
    ],
)
needs_fonts = pytest.mark.skipif(
    not (Path(SANS_FONT).exists() and Path(SCAN_FONT).exists()),
    reason="needs the fonts of fonts-wqy-zenhei and fonts-wqy-microhei",
)


@each_set
def test_there_are_80_questions_of_the_promised_kinds(fresh: FreshSet) -> None:
    questions = fresh.questions
    counts = Counter(question.kind for question in questions)
    assert len(questions) == len({question.id for question in questions}) == 80
    assert {question.split for question in questions} == {fresh.split}
    assert set(counts) == set(KINDS)
    assert counts["table"] + counts["record"] == fresh.searches
    assert counts["scan"] == fresh.scans
    assert counts["unanswerable"] == fresh.unanswerable


@each_set
def test_the_files_are_those_of_the_sources_and_small(fresh: FreshSet) -> None:
    files = list(fresh.files.iterdir())
    assert {file.name for file in files} == set(fresh.sources)
    assert sum(file.stat().st_size for file in files) < 1_500_000


def test_no_two_sets_share_a_file_or_a_question() -> None:
    folders = (DOCUMENTS / "files", *(fresh.files for fresh in SETS))
    names = [file.name for folder in folders for file in folder.iterdir()]
    assert len(names) == len(set(names))
    questions = [question for fresh in SETS for question in fresh.questions]
    assert (
        len({question.id for question in questions})
        == len({question.question for question in questions})
        == 80 * len(SETS)
    )


@each_set
def test_every_file_is_asked_about(fresh: FreshSet) -> None:
    assert {name for question in fresh.questions for name in question.files} == set(fresh.sources)


@each_set
def test_the_questions_are_listed_without_asking_them(fresh: FreshSet, capsys: pytest.CaptureFixture[str]) -> None:
    list_questions(fresh.questions, fresh.files)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [question.id for question in fresh.questions]
    with pytest.raises(FileNotFoundError, match=re.escape(fresh.questions[0].files[0])):
        list_questions(fresh.questions, fresh.files / "elsewhere")


@each_set
def test_an_unanswerable_question_names_nothing(fresh: FreshSet) -> None:
    for question in fresh.questions:
        assert bool(question.files) == bool(question.must) == (question.kind != "unanswerable")
        assert question.must or not (question.must_not or question.beside)


@each_answerable
def test_a_short_stretch_of_the_source_is_a_right_answer(fresh: FreshSet, question: Question) -> None:
    for name in question.files:
        stretches = stretches_of(fresh, name)
        assert any(judge(question, Reply(text, name)) in ("right", "exact") for text in stretches)


@each_answerable
def test_every_pattern_is_about_something_in_the_sources(fresh: FreshSet, question: Question) -> None:
    whole = texts_of(fresh)
    for pattern in question.must:
        assert all(occurs(pattern, whole[name]) for name in question.files)
    for pattern in (*question.must_not, *question.beside):
        re.compile(pattern.removeprefix("re:"))
        assert any(occurs(pattern, text) for text in whole.values()), f"{pattern} tempts nobody"


@each_set
def test_the_texts_are_made_anew_to_the_byte(fresh: FreshSet, tmp_path: Path) -> None:
    fresh.maker.make_texts(tmp_path)
    for file in made_files(tmp_path):
        assert file.read_bytes() == (fresh.files / file.name).read_bytes()


@each_set
def test_the_office_files_are_made_anew(fresh: FreshSet, tmp_path: Path) -> None:
    for module in ("docx", "openpyxl", "pptx"):
        pytest.importorskip(module)
    fresh.maker.make_archives(tmp_path)
    for file in made_files(tmp_path):
        with zipfile.ZipFile(file) as new, zipfile.ZipFile(fresh.files / file.name) as kept:
            assert new.namelist() == kept.namelist()
            assert all(new.read(name) == kept.read(name) for name in new.namelist())


@pytest.mark.slow
@needs_fonts
@each_set
def test_the_pdfs_are_made_anew(fresh: FreshSet, tmp_path: Path) -> None:
    pytest.importorskip("reportlab")
    fresh.maker.make_pdfs(tmp_path)
    for file in made_files(tmp_path):
        assert texts_of_pages(file) == texts_of_pages(fresh.files / file.name)


@pytest.mark.slow
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Chromium")
@pytest.mark.parametrize("fresh", [fresh for fresh in SETS if hasattr(fresh.maker, "PRINTED")], ids=name_of)
def test_the_printed_page_is_made_anew(fresh: FreshSet, tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    fresh.maker.make_print(tmp_path)
    name = fresh.maker.PRINTED
    assert texts_of_pages(tmp_path / name) == texts_of_pages(fresh.files / name)


def texts_of_pages(path: Path) -> list[str]:
    pdfium = pytest.importorskip("pypdfium2")
    return [page.get_textpage().get_text_bounded() for page in pdfium.PdfDocument(path)]


def made_files(folder: Path) -> list[Path]:
    files = list(folder.iterdir())
    assert files
    return files


@cache
def texts_of(fresh: FreshSet) -> dict[str, str]:
    return {name: normalise("|".join(lines_of_source(source))) for name, source in fresh.sources.items()}


@cache
def stretches_of(fresh: FreshSet, name: str) -> list[str]:
    """All runs of lines of a file that are short enough for an answer."""
    lines = lines_of_source(fresh.sources[name])
    runs = []
    for first in range(len(lines)):
        for last in range(first + 1, len(lines) + 1):
            run = normalise("\n".join(lines[first:last]))
            if len(run) > LONGEST_ANSWER:
                break
            runs.append(run)
    return runs
