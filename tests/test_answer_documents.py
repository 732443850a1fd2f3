"""The written documents that the answer scorer learns from are whole: what is asked for stands where the file says."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))

from answer_documents import FOLDER, WrittenCase, WrittenDocument, occurs, passages, read_documents
from answer_scorer import HITS, HITS_TO_LEARN, LEFT_OUT, _choose_hits

from peg_rag.hits import Hit

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


def test_wordings_of_a_question_are_drawn_the_same_every_time() -> None:
    few = read_documents(wordings=1)
    assert few == read_documents(wordings=1)
    assert [document.text for document in few] == [document.text for document in DOCUMENTS]
    for document, whole in zip(few, DOCUMENTS, strict=True):
        assert set(document.cases) <= set(whole.cases)
    lines = sum(
        "|" in line
        for file in FOLDER.glob("*.txt")
        for part in file.read_text("utf-8").split("\n??\n")[1:]
        for line in part.split("\n## ")[0].splitlines()
    )
    assert sum(len(document.cases) for document in few) == lines


def test_an_answer_that_stands_deep_among_the_hits_is_learned_from() -> None:
    hits = [
        Hit(id=str(number), text=f"第{number}条", score=1.0, metadata={"source": "甲.md"}) for number in range(HITS + 1)
    ]
    for number, chosen in ((3, hits[:HITS_TO_LEARN]), (30, [*hits[: HITS_TO_LEARN - 1], hits[30]])):
        case = WrittenCase("问", "甲.md", (f"第{number}条",))
        assert _choose_hits(hits, case, LEFT_OUT + 1) == chosen
        assert _choose_hits(hits, case, LEFT_OUT) == hits[:HITS]
    assert _choose_hits(hits, WrittenCase("问", "", ()), LEFT_OUT + 1) == hits[:HITS_TO_LEARN]
