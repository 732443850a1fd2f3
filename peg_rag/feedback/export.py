"""Ratings → a BEIR folder, which `peg-rag evaluate` scores and `peg-rag adapt` trains on.

People disagree and change their minds, so what is exported is what most of them said of a question and a passage. The
corpus is the index as it is now: a judgement of a passage that is gone cannot be scored and is left out. Costs one
reading of the index.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peg_rag.errors import DataError, InvalidInput
from peg_rag.feedback.store import RatedPassage, Rating
from peg_rag.files import open_atomically, write_atomically

if TYPE_CHECKING:
    from peg_rag.index import PEGIndex

CHOSEN = 2  # grade of a passage that a reader chose
CITED = 1  # grade of a passage that an answer cited which a reader found useful
WRONG = 0
_BATCH = 1_000  # passages read at a time


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export holds.

    Attributes:
        ratings: that there are.
        queries: questions with a judgement.
        answered: those of them with a relevant passage; no system can score on the others.
        relevant, wrong: judgements.
        gone: judgements of passages that are no longer in the index; left out.
        passages: in the corpus.
    """

    ratings: int
    queries: int
    answered: int
    relevant: int
    wrong: int
    gone: int
    passages: int


@dataclass(frozen=True, slots=True)
class Judgements:
    """Questions and the grades of their passages.

    Attributes:
        queries: id → question.
        qrels: id of the question → id of the passage → grade.
        gone: judgements that were left out.
    """

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    gone: int

    @property
    def answered(self) -> dict[str, dict[str, int]]:
        """The questions with a relevant passage."""
        return {query: grades for query, grades in self.qrels.items() if max(grades.values()) > WRONG}


def collect_judgements(ratings: Iterable[Rating], index: "PEGIndex") -> Judgements:
    """The judgements that ratings make, the oldest rating first.

    A passage that a reader chose is relevant (2), whatever the vote: under a thumb down it is the right passage that
    the answer missed. One that was cited under a thumb up is relevant (1), under a thumb down it is not (0). Where
    ratings disagree, the majority counts; where as many say one thing as the other, the newest.
    """
    questions: dict[str, str] = {}
    votes: dict[str, dict[str, list[int]]] = {}
    for rating in ratings:
        query = query_id(rating.question)
        for passage in rating.passages:
            grade = _grade_of(rating, passage)
            if grade is not None:
                questions.setdefault(query, rating.question.strip())
                votes.setdefault(query, {}).setdefault(passage.passage_id, []).append(grade)
    names = {name for passages in votes.values() for name in passages}
    present = {record.id for batch in _batch_ids(sorted(names)) for record in index.get(batch)}
    qrels: dict[str, dict[str, int]] = {}
    left_out = 0
    for query, passages in votes.items():
        grades = {name: _majority_grade(passage_grades) for name, passage_grades in passages.items() if name in present}
        left_out += len(passages) - len(grades)
        if grades:
            qrels[query] = grades
    return Judgements({query: questions[query] for query in qrels}, qrels, left_out)


def query_id(question: str) -> str:
    """The same for questions that differ in width, case and spaces only."""
    normalised = "".join(unicodedata.normalize("NFKC", question).casefold().split())
    return hashlib.sha256(normalised.encode()).hexdigest()[:16]


def export_feedback(
    ratings: Sequence[Rating], index: "PEGIndex", out: str | Path, *, overwrite: bool = False
) -> ExportReport:
    """Write `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv` to a folder.

    Args:
        overwrite: replace the files of an earlier export.

    Raises:
        InvalidInput: the folder holds something, and `overwrite` is not set.
        DataError: no rating judges a passage of the index, or the id of one breaks the table of judgements.
    """
    folder = Path(out)
    if folder.is_file() or (not overwrite and folder.is_dir() and any(folder.iterdir())):
        raise InvalidInput(f"{folder} is not empty; name another folder, or replace an earlier export (--overwrite)")
    judgements = collect_judgements(ratings, index)
    if not judgements.qrels:
        raise DataError(
            f"{len(ratings)} ratings judge no passage of the index, so there is nothing to export; a rating judges "
            "the passages that its answer cited, or that its reader chose"
        )
    _check_ids(judgements)
    passages = 0
    with open_atomically(folder / "corpus.jsonl") as stream:
        for batch in _batch_ids(index.ids()):
            for record in index.get(batch):
                stream.write(_format_line({"_id": record.id, "title": "", "text": record.text}))
                passages += 1
    queries = [_format_line({"_id": query, "text": question}) for query, question in judgements.queries.items()]
    write_atomically(folder / "queries.jsonl", b"".join(queries))
    lines = ["query-id\tcorpus-id\tscore\n"]
    for query, passage, grade in _list_grades(judgements):
        lines.append(f"{query}\t{passage}\t{grade}\n")
    write_atomically(folder / "qrels" / "test.tsv", "".join(lines).encode())
    grades = [grade for _, _, grade in _list_grades(judgements)]
    relevant = sum(grade > WRONG for grade in grades)
    return ExportReport(
        ratings=len(ratings),
        queries=len(judgements.queries),
        answered=len(judgements.answered),
        relevant=relevant,
        wrong=len(grades) - relevant,
        gone=judgements.gone,
        passages=passages,
    )


def _grade_of(rating: Rating, passage: RatedPassage) -> int | None:
    """What a rating says of a passage; None where it says nothing."""
    if passage.useful:
        return CHOSEN
    if not passage.cited:
        return None
    return CITED if rating.vote == "up" else WRONG


def _majority_grade(grades: Sequence[int]) -> int:
    """The highest of the grades that the majority stands behind. The last is the newest."""
    relevant = [grade for grade in grades if grade > WRONG]
    wrong = len(grades) - len(relevant)
    if len(relevant) == wrong:
        return grades[-1]
    if len(relevant) < wrong:
        return WRONG
    return max(relevant)


def _check_ids(judgements: Judgements) -> None:
    for _, passage, _ in _list_grades(judgements):
        if any(character in passage for character in "\t\r\n"):
            raise DataError(
                f"the id {passage!r} holds a tab or a line break, which the table of judgements cannot hold; index the "
                "passage under another id"
            )


def _list_grades(judgements: Judgements) -> Iterator[tuple[str, str, int]]:
    for query, grades in judgements.qrels.items():
        for passage, grade in grades.items():
            yield query, passage, grade


def _batch_ids(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _BATCH):
        yield ids[start : start + _BATCH]


def _format_line(row: dict[str, str]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
