"""The learned scorer: how likely a statement answers, from what speaks for it; and each model's own calibration.

The scorer is a few hundred small decision trees, trained by `train/answer_scorer.py` and kept as JSON. Its output is
turned into a confidence by two numbers that belong to an embedding model, since cosines of two models differ. They are
fitted by `benchmarks/calibrate_answer.py` so that one threshold serves every model, and are kept in `answer.json`
beside the model's weights; a model without that file gets the bundled model's.
"""

import json
import math
from dataclasses import dataclass
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

    def predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """(rows,)"""
        node = np.zeros(len(rows), dtype=np.int64)
        every = np.arange(len(rows))
        while (inner := self.feature[node] >= 0).any():
            feature = np.maximum(self.feature[node], 0)
            goes_left = rows[every, feature] <= self.threshold[node]
            node = np.where(inner, np.where(goes_left, self.left[node], self.right[node]), node)
        return np.asarray(self.value[node], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class AnswerScorer:
    """Gradient-boosted trees over `FEATURES`."""

    bias: float
    trees: tuple[_Tree, ...]

    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """The log odds (rows,) that a statement answers, of features (rows, len(FEATURES))."""
        return self.bias + sum((tree.predict(rows) for tree in self.trees), np.zeros(len(rows)))


@cache
def load_scorer() -> AnswerScorer:
    """The scorer that comes with the package.

    Raises:
        DamagedModel: it was trained on other features, so the installation is not whole.
    """
    content = json.loads((files("peg_rag") / "assets" / "answer_scorer.json").read_text(encoding="utf-8"))
    if tuple(content["features"]) != FEATURES:
        raise DamagedModel("answer_scorer.json was trained on other features; install peg-rag again")
    return AnswerScorer(content["bias"], tuple(_tree(tree) for tree in content["trees"]))


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


def _tree(content: dict[str, list[float]]) -> _Tree:
    return _Tree(
        np.array(content["feature"], dtype=np.int64),
        np.array(content["threshold"], dtype=np.float64),
        np.array(content["left"], dtype=np.int64),
        np.array(content["right"], dtype=np.int64),
        np.array(content["value"], dtype=np.float64),
    )
