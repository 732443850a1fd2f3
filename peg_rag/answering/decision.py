"""Whether the surest statement answers at all, from its score, its lead over the next one and what it leaves unsaid.

Why this exists: a statement's own score compares it with others of the same question. Whether to say "not found" is
another question: a score far ahead of everything else is worth more than the same among five like it, and a word of the
question that nothing in the file says is a warning however well the rest fits.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peg_rag.answering.candidates import MAX_ENCODED, Candidate
from peg_rag.answering.evidence import FEATURES

_OF_SCORES = ("score", "lead", "lead_in_row", "lead_in_hits", "above_mean", "share", "count")
DECISION = (*_OF_SCORES, *FEATURES, *(f"{name}_ahead" for name in FEATURES))
_LONGEST_LEAD = 4.0
_BEST_FEW = 10  # statements whose mean score the best one's is compared with
_LOWEST = -10.0  # score of a rival where there is none


def part_of(candidate: Candidate) -> tuple[int, int]:
    """The hit and the row or sentence that a candidate is of: two cells of a row are no rivals of each other."""
    statement = candidate.statement
    return candidate.place, statement.row[0].span[0] if statement.row else statement.span[0]


def decision_row(
    scores: NDArray[np.float64], features: NDArray[np.float32], parts: Sequence[tuple[int, int]]
) -> NDArray[np.float32]:
    """(len(DECISION),) of one question's candidates: scores (candidates,), features (candidates, len(FEATURES)).

    How the best one's score stands out, its features, and how much more each of them is than that of the best one of
    another row or sentence.
    """
    best = int(np.argmax(scores))
    top = float(scores[best])
    is_of_row = np.array([part == parts[best] for part in parts])
    is_of_hit = np.array([part[0] == parts[best][0] for part in parts])
    is_other = np.arange(len(scores)) != best
    leads = [
        min(top - float(scores[mask].max(initial=_LOWEST)), _LONGEST_LEAD)
        for mask in (~is_of_row, is_of_row & is_other, ~is_of_hit)
    ]
    above = top - float(np.sort(scores)[-_BEST_FEW:].mean())
    share = 1.0 / float(np.exp(scores - top).sum())
    rival = best if is_of_row.all() else int(np.argmax(np.where(is_of_row, -np.inf, scores)))
    of_scores = [top, *leads, above, share, len(scores) / MAX_ENCODED]
    return np.array([*of_scores, *features[best], *(features[best] - features[rival])], dtype=np.float32)
