"""The written documents that the answer scorer learns from are whole: what is asked for stands where the file says."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))

from answer_documents import FOLDER, WrittenCase, WrittenDocument, occurs, passages, read_documents
from answer_scorer import (
    HITS,
    HITS_TO_LEARN,
    LEFT_OUT,
    Group,
    _choose_hits,
    _without_hit,
    _without_row,
    _without_statement,
    load_groups,
    pack_reading,
    save_groups,
)
from reader import Reading

from peg_rag.answering.evidence import FEATURES
from peg_rag.answering.reading import READER, ContextualStatement, load_reader
from peg_rag.hits import Hit
from peg_rag.models import bundled_path

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


def test_an_answer_is_taken_out_with_its_line_or_alone() -> None:
    rows = "配件: 门胶条 | 价钱: 58元\n配件: 压缩机 | 价钱: 1,300元\n"
    hit = Hit(id="1", text=rows, score=1.0, metadata={"source": "甲.md"})
    case = WrittenCase("换压缩机多少钱", "甲.md", ("1,300元",))
    assert _without_hit(hit, case) is None
    assert (_without_statement(hit, case) or hit).text == "配件: 门胶条 | 价钱: 58元\n配件: 压缩机\n"
    assert (_without_row(hit, case) or hit).text == "配件: 门胶条 | 价钱: 58元\n"
    other = WrittenCase("换压缩机多少钱", "乙.md", ("1,300元",))
    assert all(take_out(hit, other) == hit for take_out in (_without_hit, _without_row, _without_statement))


def make_group(question: str, rows: list[ContextualStatement]) -> Group:
    features = np.arange(len(rows) * len(FEATURES), dtype=np.float32).reshape(len(rows), -1)
    parts = [(number, 0) for number in range(len(rows))]
    return Group("written", question, features, np.eye(len(rows))[0], parts, rows, 1)


def test_what_the_reader_learns_is_what_it_reads_for_an_answer(tmp_path: Path) -> None:
    question = "晚上七点多少钱"
    rows = [
        ContextualStatement(f"{question}（夜段）", "夜段: 580元", "课: 单人"),
        ContextualStatement(question, "日段: 420元", "课: 双人"),
    ]
    save_groups(tmp_path / "rows.npz", [make_group(question, rows)])
    [group] = load_groups(tmp_path / "rows.npz")
    assert (group.question, group.described, group.right.tolist()) == (question, rows, [1, 0])
    tokenizer = Tokenizer.from_file(str(bundled_path(READER) / "tokenizer.json"))
    pack_reading([group], [np.array([0.1, 0.2])], tokenizer, tmp_path / "reading.npz")
    packed = Reading(tmp_path / "reading.npz")
    expected = load_reader()._encode(rows[::-1])  # the best-scored first
    assert [packed.write_row(row) for row in range(2)] == [ids.tolist() for ids in expected]
