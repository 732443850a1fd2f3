"""The written documents that the answer scorer learns from are whole: what is asked for stands where the file says."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))

from answer_documents import FOLDER, WrittenDocument, occurs, passages, read_documents

DOCUMENTS = read_documents()


def name_of(document: WrittenDocument) -> str:
    return document.name


def test_every_document_of_every_file_is_read() -> None:
    headings = sum(
        line.startswith("??") for file in FOLDER.glob("*.txt") for line in file.read_text("utf-8").split("\n")
    )
    assert len(DOCUMENTS) == headings
    assert max(Counter(map(name_of, DOCUMENTS)).values()) == 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_a_passage_says_what_answers(document: WrittenDocument) -> None:
    texts = [text for text, _ in passages([document])]
    missing = [
        (case.question, case.must)
        for case in document.cases
        if case.must and not any(all(occurs(literal, text) for literal in case.must) for text in texts)
    ]
    assert not missing
    assert document.cases
    assert all(case.question for case in document.cases)
