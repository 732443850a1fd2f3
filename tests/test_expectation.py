"""What an answer is expected to look like: compared with the formulas written out, and on plain questions."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peg_rag.answering.expectation import (
    BUCKETS,
    DIMENSIONS,
    EXPECTED,
    PARTS,
    SHAPES,
    fold_parts,
    hash_ngrams,
    load_expectation,
    shapes_of,
)
from peg_rag.answering.likeness import mean_vector
from peg_rag.answering.statements import Statement, start_of, statements_of
from peg_rag.answering.words import fold_text

TABLE = (
    "日期: 11月17日 | 设备: 160吨压力机 | 按急停的人: 郝东来 | 原因: 光电保护误报 | 停机（分钟）: 75\n"
    "日期: 11月20日 | 设备: 冲床 | 按急停的人: 梅师傅 | 原因: 手套卷入 | 停机（分钟）: 30\n\n急停后须由班长复位。"
)
COLUMN = EXPECTED.index("expected_column")
SHAPE = EXPECTED.index("expected_shape")


def read_table() -> tuple[list[Statement], list[int]]:
    statements = list(statements_of(TABLE))
    return statements, [start_of(statement) for statement in statements]


@given(st.text(alphabet="几多少号月日12啥 a", min_size=0, max_size=12))
def test_ngrams_are_hashed_once_each_and_figures_alike(question: str) -> None:
    plain = "".join("" if a in "12" and b in "12" else b for a, b in zip("x" + question, question, strict=False))
    plain = plain.replace("1", "0").replace("2", "0")
    expected = set()
    for start in range(len(plain)):
        for end in range(start + 1, min(start + 3, len(plain)) + 1):
            expected.add(zlib.crc32(plain[start:end].encode()) % BUCKETS)
    assert hash_ngrams(question).tolist() == sorted(expected)


@pytest.mark.parametrize("question", ["谁按的急停", "停了多少分钟", "为啥停机", "x"])
def test_features_equal_the_formulas_written_out(question: str) -> None:
    expectation = load_expectation()
    statements, parts = read_table()
    text = fold_text(question)
    dimension = expectation.means.shape[1]
    weights = expectation.weights.astype(np.float64) * expectation.scales
    inputs = np.zeros(BUCKETS + dimension)
    buckets = hash_ngrams(text)
    for bucket in buckets:
        inputs[bucket] = 1 / np.sqrt(len(buckets))
    inputs[BUCKETS:] = mean_vector(text)
    outputs = inputs @ weights + expectation.intercept
    rows = expectation.compare(text, statements, parts)
    for statement, row in zip(statements, rows, strict=True):
        odds = 0.0
        column, value, said = fold_parts(statement)
        for number, has_shape in enumerate(shapes_of(value)):
            chance = min(max(outputs[len(PARTS) * DIMENSIONS + number], 0.01), 0.99)
            usual = min(max(float(expectation.usual[number]), 0.01), 0.99)
            odds += np.log(chance / usual) if has_shape else np.log((1 - chance) / (1 - usual))
        cosines = [
            float(expectation.project(part, words) @ outputs[part * DIMENSIONS : (part + 1) * DIMENSIONS])
            for part, words in enumerate((column, value, said))
        ]
        expected = [odds, cosines[0] if column else 0.0, *cosines[1:]]
        assert np.allclose(row[:4], expected, atol=1e-3)
    for name, gap in (("expected_shape", "expected_shape_gap"), ("expected_column", "expected_column_gap")):
        values = rows[:, EXPECTED.index(name)]
        for i, part in enumerate(parts):
            best = max(values[j] for j, other in enumerate(parts) if other == part)
            assert rows[i, EXPECTED.index(gap)] == pytest.approx(best - values[i], abs=1e-5)


@pytest.mark.parametrize(
    ("question", "column"),
    [("谁按的急停", "按急停的人"), ("机器停了多久", "停机（分钟）"), ("为啥停的", "原因"), ("哪天的事", "日期")],
)
def test_the_column_that_is_asked_for_fits_best(question: str, column: str) -> None:
    statements, parts = read_table()
    row = [number for number, part in enumerate(parts) if part == parts[0]]
    scores = load_expectation().compare(fold_text(question), [statements[i] for i in row], [0] * len(row))
    best = row[int(np.argmax(scores[:, SHAPE] + 3 * scores[:, COLUMN]))]
    cell = statements[best].cell
    assert cell is not None
    assert cell.name == column


def test_no_statement_gives_no_rows() -> None:
    assert load_expectation().compare("谁", [], []).shape == (0, len(EXPECTED))


def test_shapes_are_one_for_each_pattern() -> None:
    assert shapes_of("1370元").shape == (SHAPES,)
    assert shapes_of("1370元").sum() == 3  # money, digits, and four figures
