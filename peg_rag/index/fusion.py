"""Fusing rankings of the same query: reciprocal ranks by default, weighted, every component score kept by the caller.

Cosines and BM25 scores have no common scale. Reciprocal rank fusion looks only at the places; `convex` brings each
ranking's scores to 0-1 and adds them, which keeps how far apart they are.

Cost: a few microseconds per candidate.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Literal, TypeVar

from peg_rag.errors import InvalidInput

Key = TypeVar("Key", bound=Hashable)
Method = Literal["rrf", "convex"]
Weighting = Callable[[Mapping[str, Mapping[Key, float]]], Mapping[str, float]]
RRF_CONSTANT = 60


def fuse(
    rankings: Mapping[str, Mapping[Key, float]],
    weights: Mapping[str, float] | Weighting[Key] | None = None,
    *,
    method: Method = "rrf",
) -> dict[Key, float]:
    """Fused score of every document that some ranking knows, best first; equals keep the order they came in.

    Args:
        rankings: by name, the score of each document found, larger is better.
        weights: by name, how much a ranking counts, 1 when not given; or a function that looks at the rankings and
            answers with weights, to trust the more confident side more.
        method: `rrf` (reciprocal ranks) or `convex` (scores brought to 0-1).

    Raises:
        InvalidInput: an unknown method, a weight for a ranking that is not there, or a negative weight.

    Source: Cormack, Clarke and Büttcher, Reciprocal Rank Fusion outperforms Condorcet, SIGIR 2009 (`rrf`);
        Bruch, Gai and Ingber, An Analysis of Fusion Functions for Hybrid Retrieval, TOIS 2023 (`convex`).
    """
    if method not in ("rrf", "convex"):
        raise InvalidInput(f"unknown fusion method {method!r}; there are 'rrf' and 'convex'")
    parts = _reciprocal_ranks if method == "rrf" else _scaled
    fused: dict[Key, float] = {}
    for name, weight in _checked(rankings, weights(rankings) if callable(weights) else weights).items():
        for key, part in parts(rankings[name]).items():
            fused[key] = fused.get(key, 0.0) + weight * part
    return dict(sorted(fused.items(), key=lambda item: -item[1]))


def _checked(rankings: Mapping[str, object], weights: Mapping[str, float] | None) -> dict[str, float]:
    weights = weights or {}
    if unknown := set(weights) - set(rankings):
        raise InvalidInput(f"weights for {sorted(unknown)}, but the rankings are {sorted(rankings)}")
    if negative := [name for name, weight in weights.items() if not weight >= 0]:
        raise InvalidInput(f"fusion weights are 0 or more, not {weights[negative[0]]} for {negative[0]!r}")
    return {name: float(weights.get(name, 1.0)) for name in rankings}


def _reciprocal_ranks(ranking: Mapping[Key, float]) -> dict[Key, float]:
    ordered = sorted(ranking, key=lambda key: -ranking[key])
    return {key: 1.0 / (RRF_CONSTANT + place) for place, key in enumerate(ordered, start=1)}


def _scaled(ranking: Mapping[Key, float]) -> dict[Key, float]:
    if not ranking:
        return {}
    low, high = min(ranking.values()), max(ranking.values())
    return {key: (score - low) / (high - low) if high > low else 1.0 for key, score in ranking.items()}
