"""What the answer to a question is expected to look like: the name of its column, its words, and its shape.

Why this exists: 什么药 asks for a name and 打了多少 for an amount, though both stand in one row. People ask in more
ways than patterns can list, so this was learned from written questions and what answers them
(`train/expected_answers.py`): from a question's character n-grams and word vectors, ridge regression predicts vectors
of the answer, in few dimensions, and which shapes it has. A statement is compared with that. No embedding model takes
part.
"""

import re
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from peg_rag.answering.likeness import mean_vector
from peg_rag.answering.statements import Cell, Statement
from peg_rag.answering.words import fold_text

Array = NDArray[np.float32]

EXPECTED = (
    "expected_shape",  # log odds of the value's shapes, above those of any answer
    "expected_column",  # cosine of the column's name and the expected one; 0 for a sentence
    "expected_value",
    "expected_text",
    "expected_shape_gap",  # how much better another cell of the row fits
    "expected_column_gap",
)
BUCKETS = 8192  # that a question's n-grams are hashed into
DIMENSIONS = 32  # of what is predicted of a column's name, a value and a text
_LONGEST = {"column": 40, "value": 80, "text": 120}  # characters
PARTS = tuple(_LONGEST)
_SHAPES = (
    r"\d\s*(?:元|块|万|亿)|[¥￥$]",
    r"\d\s*[%％‰折成]|百分之|[一二三四五六七八九]成",
    r"\d月|\d{4}[-/.]\d{1,2}|\d日|\d号|星期|[上中下]旬|\d/\d",
    r"\d[:：]\d{2}|\d点",
    r"\d\s*个?(?:年|月|天|日|星期|小时|分钟|秒|工作日)|半年",
    r"\d\s*[a-z℃°米克斤吨升]",
    r"\d{3,4}-\d{6,}|1\d{10}|(?<!\d)\d{4,8}(?!\d)",
    r"\d",
    r"、.*、|；|\n",
    r"[不无没免禁]",
    r"[a-z]+[-\d]",
)
SHAPES = len(_SHAPES)
_COMPILED_SHAPES = tuple(re.compile(pattern) for pattern in _SHAPES)
_UNIT = re.compile(r"[（(]([^（）()]{1,6})[)）]$")
_MERE_FIGURE = re.compile(r"[-+]?\d[\d,.]*")
_FIGURES = re.compile(r"\d+")
_LEAST = 0.01  # chance of a shape


@dataclass(frozen=True)
class Expectation:
    """Predicts what an answer looks like.

    Attributes:
        weights: (BUCKETS + dimension of a word vector, outputs), where the outputs are `DIMENSIONS` numbers for each of
            `PARTS` and a chance for each shape; whole numbers, times `scales`.
        scales: (outputs,)
        intercept: (outputs,)
        means: (parts, dimension of a word vector) that are subtracted before a projection.
        projections: (parts, dimension of a word vector, DIMENSIONS)
        usual: (SHAPES,) how many answers have each shape.
    """

    weights: NDArray[np.int8]
    scales: Array
    intercept: Array
    means: Array
    projections: Array
    usual: Array

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        weights = arrays.pop("weights")
        return cls(weights, **{name: array.astype(np.float32) for name, array in arrays.items()})

    def predict(self, question: str) -> Array:
        """(outputs,) for a folded question."""
        dimension = self.means.shape[1]
        buckets = hash_ngrams(question)
        rows = self.weights[buckets].astype(np.float32).sum(axis=0) / max(np.sqrt(len(buckets)), 1.0)
        rows += mean_vector(question) @ self.weights[-dimension:].astype(np.float32)
        return np.asarray(rows * self.scales + self.intercept, dtype=np.float32)

    def compare(self, question: str, statements: Sequence[Statement], parts: Sequence[Hashable]) -> Array:
        """(statements, len(EXPECTED)) how much statements look like the answer to a folded question.

        Args:
            parts: (statements,) the row that a cell is of, the sentence or the list.
        """
        predicted = self.predict(question)
        columns, values, texts = predicted[: len(PARTS) * DIMENSIONS].reshape(len(PARTS), DIMENSIONS)
        chances = np.clip(predicted[len(PARTS) * DIMENSIONS :], _LEAST, 1 - _LEAST)
        usual = np.clip(self.usual, _LEAST, 1 - _LEAST)
        odds = np.stack([np.log((1 - chances) / (1 - usual)), np.log(chances / usual)])  # (2, SHAPES)
        rows = np.zeros((len(statements), len(EXPECTED)), dtype=np.float32)
        for number, statement in enumerate(statements):
            column, value, text = fold_parts(statement)
            shapes = shapes_of(value)
            rows[number, 0] = odds[shapes, np.arange(SHAPES)].sum()
            rows[number, 1] = self.project(0, column) @ columns if column else 0.0
            rows[number, 2] = self.project(1, value) @ values
            rows[number, 3] = self.project(2, text) @ texts
        rows[:, 4:] = _measure_gaps(rows[:, :2], parts)
        return rows

    def project(self, part: int, text: str) -> Array:
        """(DIMENSIONS,) of unit length: a text in the space in which this part is predicted."""
        vector = (mean_vector(text) - self.means[part]) @ self.projections[part]
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-6), dtype=np.float32)


@cache
def load_expectation() -> Expectation:
    """The one that comes with the package."""
    return Expectation.load(Path(str(files("peg_rag") / "assets" / "expected_answers.npz")))


def fold_parts(statement: Statement) -> tuple[str, str, str]:
    """A statement's column, value and text, folded and cut; no column for a sentence or list."""
    cell = statement.cell
    column = cell.name if cell else ""
    value = _read_with_unit(cell) if cell else statement.text
    texts = zip(_LONGEST.values(), (column, value, statement.text), strict=True)
    folded = [fold_text(text)[:longest] for longest, text in texts]
    return folded[0], folded[1], folded[2]


def _read_with_unit(cell: Cell) -> str:
    """The value of a cell; a mere figure gets the unit that stands in brackets after the column's name."""
    unit = _UNIT.search(cell.name) if _MERE_FIGURE.fullmatch(cell.value) else None
    return f"{cell.value}{unit[1]}" if unit else cell.value


@lru_cache(maxsize=16384)
def shapes_of(value: str) -> NDArray[np.int64]:
    """(SHAPES,) 1 for each shape that a folded value has, else 0."""
    return np.array([int(shape.search(value) is not None) for shape in _COMPILED_SHAPES], dtype=np.int64)


@lru_cache(maxsize=256)
def hash_ngrams(question: str) -> NDArray[np.int64]:
    """The buckets of a folded question's runs of one to three characters, each once; figures count as one figure."""
    text = _FIGURES.sub("0", question)
    ngrams = {text[start : start + length] for length in (1, 2, 3) for start in range(len(text) - length + 1)}
    return np.array(sorted({zlib.crc32(ngram.encode()) % BUCKETS for ngram in ngrams}), dtype=np.int64)


def _measure_gaps(rows: Array, parts: Sequence[Hashable]) -> Array:
    """(statements, columns) how much less each has than the best of its row."""
    numbers = {part: number for number, part in enumerate(dict.fromkeys(parts))}
    owners = np.array([numbers[part] for part in parts], dtype=np.int64)
    best = np.full((len(numbers), rows.shape[1]), -np.inf, dtype=np.float32)
    np.maximum.at(best, owners, rows)
    return best[owners] - rows
