"""The bundled reranker's match features, computed for statements instead of passages.

They add runs of characters, their rarity among the statements, and the similarity of single words by the bundled
model's vectors. They do not depend on the model that made the index.
"""

from collections.abc import Sequence

import numpy as np

from peg_rag.reranking import load_reranker
from peg_rag.reranking.features import QUERY_UNITS, match_features, word_features
from peg_rag.reranking.units import Array, Units, split_units

_RUNS = (
    "units_coverage_local", "units_coverage_general", "units_of_document", "pairs_coverage_local", "pairs_window",
    "pairs_of_document", "threes_coverage_local", "longest_run", "longest_run_share", "longest_run_document",
)  # fmt: skip
_WORDS = ("words_best", "words_best_plain", "words_best_least", "words_like_0.6", "words_like_0.4", "words_window")
_COMPARED = ("units_coverage_local", "words_best", "words_window", "longest_run")
_NAMES = (*_RUNS, *_WORDS, *(f"{name}_behind" for name in _COMPARED))
MATCHES = (*(f"alone_{name}" for name in _NAMES), *(f"within_{name}" for name in _NAMES))


def match_texts(question: str, alone: Sequence[str], within: Sequence[str]) -> Array:
    """(texts, len(MATCHES)) of the statements by themselves and of those under their headings."""
    return np.concatenate([_measure_matches(question, alone), _measure_matches(question, within)], axis=1)


def _measure_matches(question: str, texts: Sequence[str]) -> Array:
    maker = load_reranker("mini").maker
    documents = split_units(texts)
    query = split_units([question])
    codes = query.codes[:QUERY_UNITS]
    query = Units(codes, query.rows[:QUERY_UNITS], np.array([0, len(codes)]))
    columns = match_features(query, documents, maker.rarity) | word_features(query, documents, maker.vectors)
    columns |= {f"{name}_behind": columns[name] - columns[name].max() for name in _COMPARED}
    return np.stack([columns[name] for name in _NAMES], axis=1).astype(np.float32)
