"""Whether the surest statement answers at all, from its score, its lead over the next one and what it leaves unsaid.

Why this exists: a statement's own score compares it with others of the same question. Whether to say "not found" is
another question: a score far ahead of everything else is worth more than the same among five like it, and a word of the
question that nothing in the file says is a warning however well the rest fits. The few best are weighed so, each beside
the others, and the likeliest of them goes first.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peg_rag.answering.candidates import MAX_ENCODED, Candidate
from peg_rag.answering.evidence import FEATURES
from peg_rag.answering.statements import start_of

_OF_SCORES = ("score", "lead", "lead_in_row", "lead_in_hits", "above_mean", "share", "count")
DECISION = (*_OF_SCORES, *FEATURES, *(f"{name}_ahead" for name in FEATURES))
DECIDED = 4  # best-scored statements of a question, of which the one that is likeliest to answer is said
_LONGEST_LEAD = 4.0
_BEST_FEW = 10  # statements whose mean score the best one's is compared with
_LOWEST = -10.0  # score of a rival where there is none


def part_of(candidate: Candidate) -> tuple[int, int]:
    """The hit and the row or sentence that a candidate is of: two cells of a row are no rivals of each other."""
    return candidate.place, start_of(candidate.statement)


def decision_rows(
    scores: NDArray[np.float64], features: NDArray[np.float32], parts: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best-scored candidates of one question, and what decides whether each of them answers.

    Args:
        scores: (candidates,)
        features: (candidates, len(FEATURES))
        parts: (candidates,) see `part_of`.

    Returns:
        Their numbers (candidates,), best first and `DECIDED` at most, and rows (candidates, len(DECISION)): how the
        score stands out, the features, and how much more each of them is than that of the best of another row or
        sentence.
    """
    order = np.argsort(-scores, kind="stable")[:DECIDED]
    return order, np.stack([_decision_row(scores, features, parts, int(number)) for number in order])


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
