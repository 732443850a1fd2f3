"""Whether the surest statement answers at all, from its score, its lead over the next one and what it leaves unsaid.

Why this exists: a statement's own score compares it with others of the same question. Whether to say "not found" is
another question: 0.6 far ahead of everything else is worth more than 0.6 among five like it, and a word of the question
that nothing in the file says is a warning however well the rest fits.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peg_rag.answering.candidates import Candidate
from peg_rag.answering.evidence import FEATURES

_OF_BEST = (
    "missing", "missing_code", "pairs_missing", "like_missing", "like", "pairs_telling", "telling", "looks_wrong",
    "column", "is_cell", "is_list", "file_share", "words", "asks_polar", "asks_nothing", "rank", "cosine",
)  # fmt: skip
DECISION = ("score", "lead", "lead_in_row", "above_mean", *_OF_BEST)
_COLUMNS = [FEATURES.index(name) for name in _OF_BEST]
_LONGEST_LEAD = 4.0
_BEST_FEW = 10  # statements whose mean score the best one's is compared with


def part_of(candidate: Candidate) -> tuple[int, int]:
    """The row or sentence that a candidate is of: two cells of a row are no rivals of each other."""
    statement = candidate.statement
    return candidate.place, statement.row[0].span[0] if statement.row else statement.span[0]


def decision_row(
    scores: NDArray[np.float64], features: NDArray[np.float32], parts: Sequence[tuple[int, int]]
) -> NDArray[np.float64]:
    """(len(DECISION),) of one question's candidates: scores (candidates,), features (candidates, len(FEATURES))."""
    best = int(np.argmax(scores))
    pairs = list(zip(scores.tolist(), parts, strict=True))
    elsewhere = max((score for score, part in pairs if part != parts[best]), default=-10.0)
    in_row = max((s for i, (s, part) in enumerate(pairs) if part == parts[best] and i != best), default=-10.0)
    top = float(scores[best])
    leads = [min(top - score, _LONGEST_LEAD) for score in (elsewhere, in_row)]
    above = top - float(np.sort(scores)[-_BEST_FEW:].mean())
    return np.array([top, *leads, above, *features[best, _COLUMNS]], dtype=np.float64)
