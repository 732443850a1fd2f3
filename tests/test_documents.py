"""The set of documents and questions is whole, and its judge tells right from wrong."""

import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

DOCUMENTS = Path(__file__).parent / "data" / "documents"
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from answers import KINDS, SETS, Question, Reply, judge, normalise, occurs, read_questions  # noqa: E402

QUESTIONS = read_questions()


def test_there_are_150_questions_of_the_promised_kinds() -> None:
    counts = Counter(question.kind for question in QUESTIONS)
    assert len(QUESTIONS) == 150
    assert set(counts) == set(KINDS)
    assert counts["table"] + counts["record"] == 60
    assert counts["scan"] == 15
    assert counts["unanswerable"] == 23


def test_the_halves_follow_from_the_hashes_of_the_ids() -> None:
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in QUESTIONS:
        by_kind[question.kind].append(question)
    first = 0
    for kind in sorted(by_kind):
        ordered = sorted(by_kind[kind], key=lambda q: hashlib.sha256(q.id.encode()).hexdigest())
        for place, question in enumerate(ordered):
            assert question.split == ("aside" if (place + first) % 2 else "open")
        first = (first + len(ordered)) % 2


def test_every_question_names_files_that_are_there_and_patterns_that_compile() -> None:
    for question in QUESTIONS:
        assert bool(question.files) == bool(question.must) == (question.kind != "unanswerable")
        assert all((DOCUMENTS / "files" / name).is_file() for name in question.files)
        for pattern in (*question.must, *question.must_not, *question.beside):
            re.compile(pattern.removeprefix("re:"))


def test_the_files_stay_small() -> None:
    assert sum(file.stat().st_size for file in (DOCUMENTS / "files").iterdir()) < 4_000_000


@pytest.mark.parametrize(
    ("pattern", "answer", "expected"),
    [
        ("600", "一线城市: 600元", True),
        ("600", "1600元", False),
        ("600", "600.5元", False),
        ("2,085", "净利润: 2085", True),
        ("门诊楼4层", "位置：⻔诊楼 4 层", True),
        ("re:6月0?3日", "6月03日", True),
    ],
)
def test_a_pattern_occurs_or_not(pattern: str, answer: str, expected: bool) -> None:
    assert occurs(pattern, normalise(answer)) is expected


@pytest.mark.parametrize(
    ("answer", "file", "verdict"),
    [
        ("一线城市: 600", "a.pdf", "exact"),
        ("一线城市: 600 | 其他: 380", "a.pdf", "right"),
        ("一线城市: 600，去年550", "a.pdf", "wrong"),
        ("一线城市: 600", "b.pdf", "wrong"),
        ("一线城市: 600" + "。" * 400, "a.pdf", "wrong"),
        ("", "", "declined"),
    ],
)
def test_an_answer_is_judged_by_its_words_and_its_file(answer: str, file: str, verdict: str) -> None:
    row: dict[str, Any] = json.loads('{"id": "x", "split": "open", "kind": "table", "question": "?"}')
    question = Question(**row, files=["a.pdf"], must=["600"], must_not=["550"], beside=["380"])
    assert judge(question, Reply(answer, file)) == verdict


def test_silence_is_right_where_nothing_answers() -> None:
    question = Question("x", "open", "unanswerable", [], "?", [], [], [])
    assert judge(question, Reply("")) == "exact"
    assert judge(question, Reply("600", "a.pdf")) == "wrong"


# -- the second set --------------------------------------------------------------------------------------------------


def test_the_second_set_parts_whole_documents() -> None:
    questions = read_questions(SETS["office"])
    assert len(questions) == len({question.id for question in questions}) == 280
    files = {path.name for path in (SETS["office"] / "files").iterdir()}
    splits: dict[str, set[str]] = {name: set() for name in files}
    for question in questions:
        assert question.kind in KINDS
        assert bool(question.files) == bool(question.must) == (question.kind != "unanswerable")
        for file in question.files:
            splits[file].add(question.split)
        for pattern in (*question.must, *question.must_not):
            if pattern.startswith("re:"):
                re.compile(pattern[3:])
    assert all(len(halves) == 1 for halves in splits.values())
