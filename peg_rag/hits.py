"""`Hit`: what every search returns, in place of bare tuples whose order nobody remembers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Hit:
    """One document found for a query.

    Attributes:
        id: the document's id in its store.
        text: the document's text.
        score: what the hits are ordered by, larger is better: a cosine (dense), a BM25 score (lexical), a fused
            score (hybrid) or a reranker's score. The bundled reranker's is between 0 and 1, an average candidate has
            0.5, and it compares with other hits of the same query only.
        scores: the component scores that are known, by name: `dense`, `lexical`, `fused`, `rerank`.
        metadata: the document's metadata.
    """

    id: str
    text: str
    score: float
    scores: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
