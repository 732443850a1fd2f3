"""`MiniReranker`: boosted trees that look again at what a hybrid search found.

A hybrid puts the right passage among its first fifty far more often than first. The trees see, for each of the fifty,
what a mean of vectors and a bag of words cannot: which parts of the query stand in it, how rare they are, how close
together, and how near its words come to each word of the query. How they were trained, and what each choice was worth,
is in `train/reranker.py` and `train/LOG.md`.

Cost: 6 ms a query for fifty candidates of 100 characters, 12 to 15 ms for those of 400, on one core; half a second and
some 40 MB once, at the first query.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from peg_rag.errors import DamagedModel, InvalidInput, UnsupportedSearch
from peg_rag.hits import Hit
from peg_rag.models import bundled_path
from peg_rag.reranking.features import FEATURES, Candidates, FeatureMaker
from peg_rag.reranking.rarity import Rarity
from peg_rag.reranking.trees import Trees
from peg_rag.reranking.units import Array
from peg_rag.reranking.vectors import TokenVectors

RERANKERS = {"mini": "reranker-mini"}
CANDIDATES = 50
FILE_NAME = "reranker.safetensors"
FORMAT = 1
_SIDES = ("dense", "lexical", "fused")


@dataclass(frozen=True, slots=True)
class MiniReranker:
    """Orders the hits of a hybrid search anew.

    Attributes:
        maker: makes the features.
        trees: score them.
        share: how much the trees count, from 0 (nothing) to 1; the fused score counts the rest.
    """

    maker: FeatureMaker
    trees: Trees
    share: float

    @classmethod
    def load(cls, folder: Path, vectors: TokenVectors) -> Self:
        """Read what `save` wrote.

        Raises:
            DamagedModel: the file is missing, damaged, or was made for other features.
        """
        from safetensors import SafetensorError, safe_open

        file = folder / FILE_NAME
        try:
            with safe_open(file, "numpy") as stream:
                settings: dict[str, Any] = json.loads((stream.metadata() or {})["reranker"])
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            rarity = Rarity(tensors.pop("rarity_units"), tensors.pop("rarity_pairs"))
        except (SafetensorError, KeyError, OSError, ValueError) as error:
            raise DamagedModel(f"{file} is no reranker ({error}); install the package again") from error
        if settings.get("format") != FORMAT or tuple(settings.get("features", ())) != FEATURES:
            raise DamagedModel(f"{file} was made for other features than this version computes; install peg_rag again")
        trees = Trees.from_tensors(tensors, len(FEATURES))
        return cls(FeatureMaker(vectors, rarity), trees, float(settings["share"]))

    def save(self, folder: Path, *, model: str = "") -> None:
        """Write one file, without the token vectors; `model` says whose they are (`peg-mini@fingerprint`)."""
        from safetensors.numpy import save

        from peg_rag.files import write_atomically

        tensors = self.trees.tensors()
        tensors |= {"rarity_units": self.maker.rarity.units, "rarity_pairs": self.maker.rarity.pairs}
        settings = {"format": FORMAT, "features": FEATURES, "share": self.share, "model": model}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE_NAME, save(tensors, {"reranker": json.dumps(settings)}))

    def score_hits(self, query: str, hits: Sequence[Hit]) -> Array:
        """(hits,) scores, larger is better; they compare within one query only.

        Raises:
            UnsupportedSearch: hits without the scores of a hybrid search.
        """
        if not hits:
            return np.zeros(0)
        missing = next((side for side in _SIDES for hit in hits if side not in hit.scores), None)
        if missing is not None:
            raise UnsupportedSearch(
                f"the reranker needs hits with the scores {', '.join(_SIDES)}, and some have no {missing!r}; "
                "search a PEGIndex with mode='hybrid'"
            )
        scores = [np.array([hit.scores[side] for hit in hits], dtype=np.float64) for side in _SIDES]
        return self.score(query, Candidates([hit.text for hit in hits], *scores))

    def score(self, query: str, candidates: Candidates) -> Array:
        """(candidates,) scores: the trees' and the fused ones, each in standard deviations, weighted by `share`."""
        return blend(self.trees.predict(self.maker.make(query, candidates)), candidates.fused, self.share)


def blend(trees: Array, fused: Array, share: float) -> Array:
    """Both scores of one query's candidates in standard deviations from their means, averaged with a weight."""
    return share * _standardize(trees) + (1 - share) * _standardize(fused)


def _standardize(scores: Array) -> Array:
    deviation = float(scores.std())
    return (scores - scores.mean()) / deviation if deviation > 0 else np.zeros(len(scores))


@lru_cache(maxsize=1)
def load_reranker(name: str) -> MiniReranker:
    """The bundled reranker of that name; read once.

    Raises:
        InvalidInput: an unknown name.
    """
    if name not in RERANKERS:
        raise InvalidInput(f"reranker {name!r} is unknown; there is {', '.join(map(repr, RERANKERS))}")
    return MiniReranker.load(bundled_path(RERANKERS[name]), TokenVectors.load(bundled_path("peg-mini")))
