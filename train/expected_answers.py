"""Learn what the answer to a question looks like, from the written questions: `peg_rag/assets/expected_answers.npz`.

    python train/expected_answers.py            # a minute: how often the right cell of a row fits best, by folds
    python train/expected_answers.py --write

Ridge regression from a question's character n-grams and the mean of its word vectors to the mean, over the statements
that answer it, of the vectors of their column, value and text (word vectors, projected on the first principal
components of all such texts), and of their shapes. `answer_scorer.py` learns from questions whose documents were left
out here.
"""

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from answer_documents import WrittenDocument, occurs, read_documents
from answer_documents import passages as document_passages
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import Ridge

from peg_rag.answering.expectation import (
    BUCKETS,
    DIMENSIONS,
    PARTS,
    SHAPES,
    Expectation,
    fold_parts,
    hash_ngrams,
    shapes_of,
)
from peg_rag.answering.likeness import mean_vector
from peg_rag.answering.passages import find_body
from peg_rag.answering.statements import Statement, start_of, statements_of
from peg_rag.answering.words import fold_text
from peg_rag.files import write_atomically

ASSET = Path(__file__).resolve().parent.parent / "peg_rag" / "assets" / "expected_answers.npz"
FOLDS = 5
PENALTY = 2.5

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class AnsweredQuestion:
    """A folded question, the statements of its document that answer it, and the row of each of them.

    Attributes:
        rows: the other cells of the rows that the right cells stand in, with them.
    """

    question: str
    right: tuple[Statement, ...]
    rows: tuple[tuple[Statement, ...], ...]


def read_answers(document: WrittenDocument) -> list[AnsweredQuestion]:
    """The questions about a document that its statements answer; where a cell does, the cells alone are kept."""
    statements = [
        (number, statement)
        for number, (text, metadata) in enumerate(document_passages([document]))
        for statement in statements_of(text, find_body(text, str(metadata.get("title") or "")))
    ]
    rows: dict[tuple[int, int], list[Statement]] = {}
    for number, statement in statements:
        rows.setdefault((number, start_of(statement)), []).append(statement)
    answers = []
    for case in document.cases:
        right = [pair for pair in statements if case.must and answers_question(pair[1], case.must)]
        right = [pair for pair in right if pair[1].cell] or right
        if right:
            of_rows = [rows[number, start_of(statement)] for number, statement in right if statement.cell]
            answers.append(
                AnsweredQuestion(
                    fold_text(case.question),
                    tuple(statement for _, statement in right),
                    tuple(tuple(row) for row in of_rows),
                )
            )
    return answers


def answers_question(statement: Statement, must: Sequence[str]) -> bool:
    """Whether a statement says all that a right answer says; of a row that does, a cell that says a part of it."""
    if all(occurs(literal, statement.text) for literal in must):
        return True
    row = "\n".join(f"{cell.name}: {cell.value}" for cell in statement.row)
    is_part = bool(statement.row) and any(occurs(literal, statement.text) for literal in must)
    return is_part and all(occurs(literal, row) for literal in must)


def fit_expectation(answers: Sequence[AnsweredQuestion]) -> Expectation:
    """Learn from questions and what answers them."""
    parts = [[fold_parts(statement) for statement in answer.right] for answer in answers]
    questions = _describe_questions([answer.question for answer in answers])
    means, projections = _find_components(parts)
    blank = np.zeros((1, len(PARTS) * DIMENSIONS + SHAPES), dtype=np.float32)
    unfitted = Expectation(blank.astype(np.int8), blank[0], blank[0], means, projections, blank[0, -SHAPES:])
    targets = [_describe_answer(unfitted, of_question) for of_question in parts]
    vectors = np.stack([vector for vector, _ in targets])  # (questions, parts, DIMENSIONS)
    shapes = np.stack([shape for _, shape in targets])
    has_column = np.array([bool(of_question[0][0]) for of_question in parts])
    fits = [
        _fit_ridge(questions[has_column], vectors[has_column, 0]),
        *(_fit_ridge(questions, vectors[:, part]) for part in range(1, len(PARTS))),
        _fit_ridge(questions, shapes),
    ]
    weights = np.concatenate([fit.coef_.T for fit in fits], axis=1)
    scales = np.abs(weights).max(axis=0) / 127 + 1e-9
    return Expectation(
        np.round(weights / scales).astype(np.int8),
        scales.astype(np.float32),
        np.concatenate([fit.intercept_ for fit in fits]).astype(np.float32),
        means,
        projections,
        shapes.mean(axis=0).astype(np.float32),
    )


def _describe_questions(questions: Sequence[str]) -> sparse.csr_matrix:
    """(questions, BUCKETS + dimension) as `Expectation.predict` reads a question."""
    buckets = [hash_ngrams(question) for question in questions]
    owners = np.repeat(np.arange(len(questions)), [len(row) for row in buckets])
    values = np.concatenate([np.full(len(row), 1 / np.sqrt(len(row))) for row in buckets])
    ngrams = sparse.csr_matrix((values, (owners, np.concatenate(buckets))), (len(questions), BUCKETS))
    vectors = np.stack([mean_vector(question) for question in questions])
    return sparse.hstack([ngrams, sparse.csr_matrix(vectors)]).tocsr()


def _find_components(parts: Sequence[Sequence[tuple[str, str, str]]]) -> tuple[Floats, Floats]:
    """(parts, dimension) means and (parts, dimension, DIMENSIONS) principal components of all texts of each part."""
    means = []
    projections = []
    for part in range(len(PARTS)):
        texts = sorted({texts[part] for of_question in parts for texts in of_question})
        vectors = np.stack([mean_vector(text) for text in texts])
        means.append(vectors.mean(axis=0))
        projections.append(np.linalg.svd(vectors - means[-1], full_matrices=False)[2][:DIMENSIONS].T)
    return np.stack(means).astype(np.float32), np.stack(projections).astype(np.float32)


def _describe_answer(expectation: Expectation, parts: Sequence[tuple[str, str, str]]) -> tuple[Floats, Floats]:
    """(parts, DIMENSIONS) and (SHAPES,): the mean over the statements that answer."""
    vectors = [[expectation.project(part, texts[part]) for part in range(len(PARTS))] for texts in parts]
    shapes = [shapes_of(texts[1]) for texts in parts]
    return np.mean(vectors, axis=0, dtype=np.float32), np.mean(shapes, axis=0, dtype=np.float32)


def _fit_ridge(questions: sparse.csr_matrix, targets: Floats) -> Ridge:
    return Ridge(alpha=PENALTY, solver="sparse_cg", tol=1e-3).fit(questions, targets)


def fold_of(number: int, stores: int) -> int:
    """The fold of the so many-th document, where every so many-th is of one store."""
    return (number % stores + number // stores) % FOLDS


def fit_folds(documents: Sequence[WrittenDocument], stores: int) -> list[Expectation]:
    """For each fold, what was learned from the documents of the others."""
    answers = [read_answers(document) for document in documents]
    return [
        fit_expectation(
            [
                answer
                for number, of_document in enumerate(answers)
                if fold_of(number, stores) != fold
                for answer in of_document
            ]
        )
        for fold in range(FOLDS)
    ]


def report_folds(documents: Sequence[WrittenDocument]) -> None:
    """Print how often the right cell of a row fits best, on the documents that were left out."""
    right = 0
    every = 0
    for fold, expectation in enumerate(fit_folds(documents, 1)):
        held_out = [document for number, document in enumerate(documents) if fold_of(number, 1) == fold]
        for answer in (answer for document in held_out for answer in read_answers(document)):
            for row in answer.rows[:1]:
                scores = expectation.compare(answer.question, row, [0] * len(row))
                right += row[int(np.argmax(scores[:, 0] + 3 * scores[:, 1]))] in answer.right
                every += 1
    print(f"{right / every:.3f} of {every} cells are what fits best in their row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    documents = read_documents()
    if not options.write:
        report_folds(documents)
        return
    expectation = fit_expectation([answer for document in documents for answer in read_answers(document)])
    save_expectation(expectation, ASSET)
    print(f"{ASSET}: {ASSET.stat().st_size:,} bytes")


def save_expectation(expectation: Expectation, path: Path) -> None:
    """Write what `Expectation.load` reads."""
    halves = ("scales", "intercept", "means", "projections", "usual")
    buffer = io.BytesIO()
    arrays = {name: getattr(expectation, name).astype(np.float32) for name in halves}
    arrays["projections"] = arrays["projections"].astype(np.float16)
    np.savez_compressed(buffer, weights=expectation.weights, **arrays)
    write_atomically(path, buffer.getvalue())


if __name__ == "__main__":
    main()
