"""`MiniReranker`: boosted trees that look again at what a hybrid search found.

A hybrid puts the right passage among its first fifty far more often than first. The trees see, for each of the fifty,
what a mean of vectors and a bag of words cannot: which parts of the query stand in it, how rare they are, how close
together, and how near its words come to each word of the query. How they were trained, and what each choice was worth,
is in `train/reranker.py` and `train/LOG.md`.

Cost: 3 to 5 ms a query for fifty candidates of up to 100 characters, 7 to 10 ms for those of 400, on one core; a
quarter of a second and some 75 MB once, at the first query.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from peg_rag.errors import DamagedModel, InvalidInput, UnsupportedSearch
from peg_rag.hits import Hit
from peg_rag.models import bundled_path
from peg_rag.reranking.features import FEATURES, Candidates, FeatureMaker, standardize
from peg_rag.reranking.rarity import Rarity
from peg_rag.reranking.texts import make_candidates
from peg_rag.reranking.trees import Trees
from peg_rag.reranking.units import Array
from peg_rag.reranking.vectors import TokenVectors
from peg_rag.texts import check_texts

if TYPE_CHECKING:
    from peg_rag.encoder import PEGEncoder

RERANKERS = {"mini": "reranker-mini"}
CANDIDATES = 50
FILE_NAME = "reranker.safetensors"
FORMAT = 1
_SIDES = ("dense", "lexical", "fused")


@dataclass(frozen=True, slots=True)
class RankedText:
    """A text's place among those that were ranked, and its score: 0 to 1, comparable within one query only."""

    index: int
    score: float


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

    def rerank_hits(
        self, query: str, hits: Sequence[Hit], *, candidates: int = CANDIDATES, threshold: float | None = None
    ) -> list[Hit]:
        """The first hits in a new order, then the rest in theirs; `score` falls from the first to the last.

        Args:
            hits: of a hybrid search, best first.
            candidates: how many of them are looked at.
            threshold: hits whose fused score is less are left out, of the result and not of the comparison.

        Raises:
            UnsupportedSearch: hits without the scores of a hybrid search.
        """
        if not hits:
            return []
        scores = self.score_hits(query, hits[:candidates]).tolist()
        head = [_rescore(hit, score) for hit, score in zip(hits[:candidates], scores, strict=True)]
        head.sort(key=lambda hit: -hit.score)
        tail = _continue_below(head[-1].score, hits[0].score, hits[candidates:])
        return [hit for hit in (*head, *tail) if threshold is None or hit.scores["fused"] >= threshold]

    def rank(self, query: str, texts: Sequence[str], *, encoder: "PEGEncoder | None" = None) -> list[RankedText]:
        """Texts that stand in no index, best first, each with its place among the texts as they were given.

        They are scored as a hybrid search would score them in an index that holds nothing else, and then reranked; of
        more than 50 the best fifty by those scores.

        Args:
            encoder: of `peg-mini`; None for the bundled one, which stays in memory.

        Raises:
            InvalidInput: a blank query, texts that are not a list of strings, or an encoder of another model.
        """
        texts = check_texts(texts, what="texts")
        encoder = encoder or load_encoder()
        if encoder.identity.partition("/")[0] != model_of_reranker("mini"):
            raise InvalidInput(f"the reranker was trained on peg-mini's vectors, not on those of {encoder.identity}")
        candidates = make_candidates(query, texts, encoder)
        sides = np.stack([candidates.dense, candidates.lexical, candidates.fused], axis=1).tolist()  # (texts, 3)
        rows = enumerate(zip(texts, sides, strict=True))
        hits = [Hit(str(n), text, scores[-1], dict(zip(_SIDES, scores, strict=True))) for n, (text, scores) in rows]
        hits.sort(key=lambda hit: -hit.score)
        return [RankedText(int(hit.id), hit.score) for hit in self.rerank_hits(query, hits)]

    def score(self, query: str, candidates: Candidates) -> Array:
        """(candidates,) scores from 0 to 1: the trees' and the fused ones, each in standard deviations from the mean,
        weighted by `share` and squashed, so that an average candidate scores 0.5.
        """
        trees = self.trees.predict(self.maker.make(query, candidates))
        return np.asarray(1 / (1 + np.exp(-blend(trees, candidates.fused, self.share))))


def blend(trees: Array, fused: Array, share: float) -> Array:
    """Both scores of one query's candidates in standard deviations from their means, averaged with a weight."""
    return share * standardize(trees) + (1 - share) * standardize(fused)


def has_hybrid_scores(hits: Sequence[Hit]) -> bool:
    """Whether every hit has the scores that the reranker looks at."""
    return all(side in hit.scores for side in _SIDES for hit in hits)


def _rescore(hit: Hit, score: float) -> Hit:
    return replace(hit, score=score, scores={**hit.scores, "rerank": score})


def _continue_below(floor: float, best: float, hits: Sequence[Hit]) -> Iterator[Hit]:
    """Hits that were not looked at, with the fused score as a share of the best one's, scaled to end below `floor`."""
    for hit in hits:
        yield replace(hit, score=floor * hit.score / best if best > 0 else 0.0)


@lru_cache(maxsize=1)
def load_reranker(name: str) -> MiniReranker:
    """The bundled reranker of that name; read once.

    Raises:
        InvalidInput: an unknown name.
    """
    return MiniReranker.load(_bundled_folder(name), TokenVectors.load(bundled_path("peg-mini")))


@lru_cache(maxsize=1)
def load_encoder() -> "PEGEncoder":
    """The bundled model, for texts that no index has vectors of; opened once."""
    from peg_rag.encoder import PEGEncoder

    return PEGEncoder("peg-mini")


@lru_cache(maxsize=1)
def model_of_reranker(name: str) -> str:
    """The model that the bundled reranker was made for, as its encoder's identity begins: `peg-mini@fingerprint`."""
    from safetensors import SafetensorError, safe_open

    file = _bundled_folder(name) / FILE_NAME
    try:
        with safe_open(file, "numpy") as stream:
            return str(json.loads((stream.metadata() or {})["reranker"])["model"])
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise DamagedModel(f"{file} is no reranker ({error}); install the package again") from error


def _bundled_folder(name: str) -> Path:
    if name not in RERANKERS:
        raise InvalidInput(f"reranker {name!r} is unknown; there is {', '.join(map(repr, RERANKERS))}")
    return bundled_path(RERANKERS[name])
