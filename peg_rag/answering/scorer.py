"""The learned scorer: how likely a statement answers, from what speaks for it; and each model's own calibration.

The scorer is a few hundred small decision trees, trained by `train/answer_scorer.py` and kept as JSON. Its output is
turned into a confidence by two numbers that belong to an embedding model, since cosines of two models differ. They are
fitted by `benchmarks/calibrate_answer.py` so that one threshold serves every model, and are kept in `answer.json`
beside the model's weights; a model without that file gets the bundled model's.
"""

import json
import math
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peg_rag.answering.evidence import FEATURES
from peg_rag.errors import DamagedModel

CALIBRATION_FILE = "answer.json"
_BUNDLED_MODEL = "peg-mini"


@dataclass(frozen=True, slots=True)
class Calibration:
    """confidence = 1 / (1 + exp(-(slope · score + intercept)))"""

    slope: float
    intercept: float

    def confidence(self, score: float) -> float:
        return 0.5 * (1.0 + math.tanh(0.5 * (self.slope * score + self.intercept)))


@dataclass(frozen=True, slots=True)
class _Tree:
    feature: NDArray[np.int64]  # (nodes,), negative at a leaf
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Forest:
    """All trees in one run of nodes, so that they are walked together; a leaf leads to itself."""

    roots: NDArray[np.int64]  # (trees,)
    feature: NDArray[np.int64]  # (nodes,)
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: NDArray[np.float64]

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """The sum of the trees' values (rows,)."""
        node = np.broadcast_to(self.roots, (len(rows), len(self.roots)))  # (rows, trees)
        every = np.arange(len(rows))[:, None]
        while True:
            goes_left = rows[every, self.feature[node]] <= self.threshold[node]
            following = np.where(goes_left, self.left[node], self.right[node])
            if np.array_equal(following, node):
                return np.asarray(self.value[node].sum(axis=1), dtype=np.float64)
            node = following


@dataclass(frozen=True)
class AnswerScorer:
    """Gradient-boosted trees over `FEATURES` and a linear score of them.

    Attributes:
        bias: of the trees' sum.
        linear: (1 + len(FEATURES),) of the linear score, its bias first.
        decision: (1 + len(DECISION),) weights of what decides whether the best statement answers, the bias first.
    """

    bias: float
    linear: NDArray[np.float64]
    decision: NDArray[np.float64]
    trees: tuple[_Tree, ...]
    _forest: _Forest = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_forest", _join_trees(self.trees))

    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """The log odds (rows,) that a statement answers, of features (rows, len(FEATURES))."""
        return self.bias + self._forest.predict(with_linear_score(rows, self.linear))

    def decide(self, row: NDArray[np.float64]) -> float:
        """The log odds that the best statement of a question answers it, of a row (len(DECISION),)."""
        return float(self.decision[0] + row @ self.decision[1:])


def with_linear_score(rows: NDArray[np.float32], linear: NDArray[np.float64]) -> NDArray[np.float32]:
    """(rows, len(FEATURES) + 1): the features and their linear score."""
    score = linear[0] + rows @ linear[1:]
    return np.column_stack([rows, score]).astype(np.float32)


@cache
def load_scorer() -> AnswerScorer:
    """The scorer that comes with the package.

    Raises:
        DamagedModel: it was trained on other features, so the installation is not whole.
    """
    content = json.loads((files("peg_rag") / "assets" / "answer_scorer.json").read_text(encoding="utf-8"))
    if tuple(content["features"]) != FEATURES:
        raise DamagedModel("answer_scorer.json was trained on other features; install peg-rag again")
    linear = np.array(content["linear"], dtype=np.float64)
    decision = np.array(content["decision"], dtype=np.float64)
    return AnswerScorer(content["bias"], linear, decision, tuple(_read_tree(tree) for tree in content["trees"]))


def calibration_of(encoder: Any) -> Calibration:
    """The calibration of an encoder's model, or the bundled model's where it has none.

    Raises:
        DamagedModel: its file is not what `benchmarks/calibrate_answer.py` writes.
    """
    folder = getattr(getattr(encoder, "spec", None), "path", None)
    return _read_calibration(str(folder) if folder else None)


@cache
def _read_calibration(folder: str | None) -> Calibration:
    file = Path(folder) / CALIBRATION_FILE if folder else None
    if file is None or not file.is_file():
        text = (files("peg_rag") / "assets" / _BUNDLED_MODEL / CALIBRATION_FILE).read_text(encoding="utf-8")
    else:
        text = file.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        return Calibration(float(content["slope"]), float(content["intercept"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedModel(
            f"{file}: {error}; fit it again with benchmarks/calibrate_answer.py, or delete it"
        ) from error


def _read_tree(content: dict[str, list[float]]) -> _Tree:
    return _Tree(
        np.array(content["feature"], dtype=np.int64),
        np.array(content["threshold"], dtype=np.float64),
        np.array(content["left"], dtype=np.int64),
        np.array(content["right"], dtype=np.int64),
        np.array(content["value"], dtype=np.float64),
    )


def _join_trees(trees: tuple[_Tree, ...]) -> _Forest:
    sizes = np.array([len(tree.feature) for tree in trees])
    roots = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    is_leaf = np.concatenate([tree.feature < 0 for tree in trees])
    own = np.arange(len(is_leaf))
    left = np.concatenate([tree.left + root for tree, root in zip(trees, roots, strict=True)])
    right = np.concatenate([tree.right + root for tree, root in zip(trees, roots, strict=True)])
    return _Forest(
        roots,
        np.maximum(np.concatenate([tree.feature for tree in trees]), 0),
        np.concatenate([tree.threshold for tree in trees]),
        np.where(is_leaf, own, left),
        np.where(is_leaf, own, right),
        np.concatenate([tree.value for tree in trees]),
    )
