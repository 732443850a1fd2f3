"""Whether the surest statement answers at all, from its score, its lead over the next one and what it leaves unsaid.

Why this exists: a statement's own score compares it with others of the same question. Whether to say "not found" is
another question: a score far ahead of everything else is worth more than the same among five like it, and a word of the
question that nothing in the file says is a warning however well the rest fits. So the few best are read in their
context (`reading.py`), each is weighed beside the others by boosted trees, and the likeliest goes first.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peg_rag.answering.candidates import MAX_ENCODED, Candidate
from peg_rag.answering.evidence import FEATURES
from peg_rag.answering.statements import start_of

_OF_SCORES = ("score", "lead", "lead_in_row", "lead_in_hits", "above_mean", "share", "count")
_OF_READING = ("reading", "reading_lead", "reading_lead_in_row", "reading_share", "reading_none")
DECISION = (*_OF_SCORES, *_OF_READING, *FEATURES, *(f"{name}_ahead" for name in FEATURES))
DECIDED = 12  # best-scored statements of a question that are read and weighed
_LONGEST_LEAD = 4.0
_BEST_FEW = 10  # statements whose mean score the best one's is compared with
_LOWEST = -10.0  # score of a rival where there is none


def part_of(candidate: Candidate) -> tuple[int, int]:
    """The hit and the row or sentence that a candidate is of: two cells of a row are no rivals of each other."""
    return candidate.place, start_of(candidate.statement)


def choose_best(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of the best-scored candidates, at most `DECIDED`, best first."""
    return np.argsort(-scores, kind="stable")[:DECIDED]


def decision_rows(
    scores: NDArray[np.float64],
    features: NDArray[np.float32],
    parts: Sequence[tuple[int, int]],
    reading: NDArray[np.float64],
) -> NDArray[np.float32]:
    """The rows from which the trees decide whether each of the best-scored candidates of one question answers.

    Args:
        scores: (candidates,)
        features: (candidates, len(FEATURES))
        parts: (candidates,) see `part_of`.
        reading: (best,) the reader's log odds of the candidates that `choose_best(scores)` gives.

    Returns:
        (best, len(DECISION)): how far the score and the reader's log odds stand out, the features, and by how much each
        feature exceeds that of the best candidate of another row or sentence.
    """
    best = choose_best(scores)
    rows = np.stack([_decision_row(scores, features, parts, int(number)) for number in best])
    readings = _compare_readings(reading, [parts[number] for number in best])
    of_scores = len(_OF_SCORES)
    return np.concatenate([rows[:, :of_scores], readings, rows[:, of_scores:]], axis=1)


def _compare_readings(reading: NDArray[np.float64], parts: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    """How far the reader's log odds of each candidate stand out, (best, len(_OF_READING)).

    Beside the log odds: their leads over the best of other rows and over the best of the same row, the probability of
    the candidate among all of these and "nothing answers", and the probability of "nothing answers".
    """
    numbers = np.arange(len(reading))
    is_of_row = np.array([[part == other for other in parts] for part in parts])  # (best, best)
    top = max(0.0, float(reading.max()))
    chances = np.exp(reading - top)
    none = np.exp(-top)
    total = chances.sum() + none
    rows = []
    for number in numbers:
        leads = [
            float(np.clip(reading[number] - reading[mask].max(initial=_LOWEST), -_LONGEST_LEAD, _LONGEST_LEAD))
            for mask in (~is_of_row[number], is_of_row[number] & (numbers != number))
        ]
        rows.append([reading[number], *leads, chances[number] / total, none / total])
    return np.array(rows, dtype=np.float32)


def _decision_row(
    scores: NDArray[np.float64], features: NDArray[np.float32], parts: Sequence[tuple[int, int]], number: int
) -> NDArray[np.float32]:
    own = float(scores[number])
    is_of_row = np.array([part == parts[number] for part in parts])
    is_of_hit = np.array([part[0] == parts[number][0] for part in parts])
    is_other = np.arange(len(scores)) != number
    leads = [
        float(np.clip(own - float(scores[mask].max(initial=_LOWEST)), -_LONGEST_LEAD, _LONGEST_LEAD))
        for mask in (~is_of_row, is_of_row & is_other, ~is_of_hit)
    ]
    above = own - float(np.sort(scores)[-_BEST_FEW:].mean())
    share = 1.0 / float(np.exp(scores - own).sum())
    rival = number if is_of_row.all() else int(np.argmax(np.where(is_of_row, -np.inf, scores)))
    of_scores = [own, *leads, above, share, len(scores) / MAX_ENCODED]
    return np.array([*of_scores, *features[number], *(features[number] - features[rival])], dtype=np.float32)
