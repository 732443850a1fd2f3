"""A loss over the vectors of a batch, with the state that a checkpoint must hold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from peg_rag.training.extension import CandidateMask, CandidateSource, RivalSource
from peg_rag.training.loss.collectives import Ranks
from peg_rag.training.loss.contrastive import Candidates, LossResult, Pairs, Rivals, cosines, tiled_loss
from peg_rag.training.loss.progressive import ProgressiveState
from peg_rag.training.loss.tiles import Scratch, Tile
from peg_rag.training.loss.trust import trust_weights
from peg_rag.training.recipe import LossOptions


class Objective(Protocol):
    """A loss over the vectors of a batch, with state that a checkpoint must hold."""

    def __call__(self, queries: Tensor, documents: Tensor, labels: Any, progress: float) -> LossResult:
        """The loss of the batch of all ranks, and its gradients on this rank's vectors."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""


class ContrastiveObjective:
    """`tiled_loss` with its progressive state and the sources of further candidates.

    Args:
        options: what to compute.
        sources: of candidates besides the batch; their state is part of this one's.
        masks: besides those that the options ask for.
        tile: None chooses by size and device.
    """

    def __init__(
        self,
        options: LossOptions | None = None,
        *,
        sources: Sequence[CandidateSource] = (),
        masks: Sequence[CandidateMask] = (),
        tile: Tile | None = None,
    ) -> None:
        self.options = options or LossOptions()
        self.progressive = ProgressiveState(self.options.progressive)
        self.sources = sources
        self.masks = masks
        self.tile = tile
        self._scratch = Scratch()

    def __call__(self, queries: Tensor, documents: Tensor, labels: Pairs, progress: float) -> LossResult:
        """Move t by the positives of all ranks, weigh the pairs, compute the loss, then update the sources."""
        ranks = Ranks()
        positives = cosines(queries, documents[labels.positives]).double()
        total, count = ranks.sum(torch.stack([positives.sum(), torch.ones_like(positives).sum()])).tolist()
        if math.isfinite(total):  # a broken vector is the loss's to report
            self.progressive.advance(total / count, progress)
            labels = self._weigh_pairs(labels, positives, progress, ranks)
        queries = queries.detach().requires_grad_(bool(self.sources))
        documents = documents.detach().requires_grad_(bool(self.sources))
        result = tiled_loss(
            queries,
            documents,
            labels,
            self.options,
            self.progressive,
            candidates=self._collect_candidates(queries, documents, labels),
            rivals=self._collect_rivals(labels),
            masks=self.masks,
            tile=self.tile,
            ranks=ranks,
            scratch=self._scratch,
        )
        for source in self.sources:
            source.update(documents.detach(), labels)
        return result

    def _weigh_pairs(self, pairs: Pairs, positives: Tensor, progress: float, ranks: Ranks) -> Pairs:
        """Pairs with their trust as a further factor of their weights, once it is time."""
        trust = self.options.trust
        if trust is None or progress < trust.start:
            return pairs
        weights = trust_weights(positives, trust, ranks)
        if pairs.query_weights is not None:
            weights = weights * pairs.query_weights.to(weights)
        return replace(pairs, query_weights=weights)

    def _collect_candidates(self, queries: Tensor, documents: Tensor, labels: Pairs) -> list[Candidates]:
        with torch.enable_grad():
            candidates = [source.candidates(queries, documents, labels) for source in self.sources]
        return [extra for extra in candidates if len(extra.texts)]

    def _collect_rivals(self, labels: Pairs) -> list[Rivals]:
        if not self.options.symmetric:
            return []
        rivals = [source.rivals(labels) for source in self.sources if isinstance(source, RivalSource)]
        return [extra for extra in rivals if extra is not None and len(extra.texts)]

    def state_dict(self) -> dict[str, Any]:
        """The state of the progressive weights and of the sources."""
        state = self.progressive.state_dict()
        if self.sources:
            state["sources"] = [source.state_dict() for source in self.sources]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.progressive.load_state_dict(state)
        for source, content in zip(self.sources, state.get("sources", []), strict=True):
            source.load_state_dict(content)
