"""The learned scorer: how well a statement answers, from what speaks for it; and each model's own calibration.

The scorer is a linear score and a few hundred small decision trees, both trained to put the right statement before the
others of its question (`train/answer_scorer.py`), and kept as JSON. Which of the best answers, if any, is decided by
trees of their own (`decision.py`). Two numbers turn their log odds into a confidence; since cosines differ between
embedding models, every model has its own. `benchmarks/calibrate_answer.py` fits them so that one threshold serves every
model, and they are kept in `answer.json` beside the model's weights; a model without that file gets the bundled
model's.
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

from peg_rag.answering.decision import DECISION
from peg_rag.answering.evidence import FEATURES
from peg_rag.errors import DamagedModel

CALIBRATION_FILE = "answer.json"
_BUNDLED_MODEL = "peg-mini"
_LACKS_MEASURE = DECISION.index("lacks_measure")
_RULED_OUT = 3.0  # log odds


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
    smaller: NDArray[np.int64]  # the node after this one, for values up to the threshold
    larger: NDArray[np.int64]
    value: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Forest:
    """All trees in one run of nodes, so that they are walked together; a leaf leads to itself."""

    roots: NDArray[np.int64]  # (trees,)
    feature: NDArray[np.int64]  # (nodes,)
    threshold: NDArray[np.float64]
    smaller: NDArray[np.int64]
    larger: NDArray[np.int64]
    value: NDArray[np.float64]

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """The sum of the trees' values (rows,)."""
        node = np.broadcast_to(self.roots, (len(rows), len(self.roots)))  # (rows, trees)
        every = np.arange(len(rows))[:, None]
        while True:
            is_smaller = rows[every, self.feature[node]] <= self.threshold[node]
            following = np.where(is_smaller, self.smaller[node], self.larger[node])
            if np.array_equal(following, node):
                return np.asarray(self.value[node].sum(axis=1), dtype=np.float64)
            node = following


@dataclass(frozen=True)
class AnswerScorer:
    """A linear score of `FEATURES` and gradient-boosted trees over them; and trees that decide.

    Attributes:
        linear: (len(FEATURES),) weights.
        trees: over `FEATURES`.
        decision: over `DECISION`.
    """

    linear: NDArray[np.float64]
    trees: tuple[_Tree, ...]
    decision: tuple[_Tree, ...]
    _forest: _Forest = field(init=False, repr=False)
    _deciding_forest: _Forest = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_forest", _join_trees(self.trees))
        object.__setattr__(self, "_deciding_forest", _join_trees(self.decision))

    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """How well statements answer, larger is better, of features (rows, len(FEATURES)): (rows,).

        Scores compare within one question.
        """
        return np.asarray(rows @ self.linear + self._forest.predict(rows), dtype=np.float64)

    def decide(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """The log odds that statements answer their question (rows,), of rows (rows, len(DECISION)).

        What surely lacks the figure that is asked for is all but ruled out; the trees saw too few that are read as an
        answer all the same.
        """
        return self._deciding_forest.predict(rows) - _RULED_OUT * rows[:, _LACKS_MEASURE]


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
    trees, decision = (tuple(_read_tree(tree) for tree in content[name]) for name in ("trees", "decision"))
    return AnswerScorer(linear, trees, decision)


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
        np.array(content["smaller"], dtype=np.int64),
        np.array(content["larger"], dtype=np.int64),
        np.array(content["value"], dtype=np.float64),
    )


def _join_trees(trees: tuple[_Tree, ...]) -> _Forest:
    sizes = np.array([len(tree.feature) for tree in trees])
    roots = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    is_leaf = np.concatenate([tree.feature < 0 for tree in trees])
    node = np.arange(len(is_leaf))
    smaller = np.concatenate([tree.smaller + root for tree, root in zip(trees, roots, strict=True)])
    larger = np.concatenate([tree.larger + root for tree, root in zip(trees, roots, strict=True)])
    return _Forest(
        roots,
        np.maximum(np.concatenate([tree.feature for tree in trees]), 0),
        np.concatenate([tree.threshold for tree in trees]),
        np.where(is_leaf, node, smaller),
        np.where(is_leaf, node, larger),
        np.concatenate([tree.value for tree in trees]),
    )
