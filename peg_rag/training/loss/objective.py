"""A loss over the vectors of a batch, with the state that a checkpoint must hold."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from peg_rag.training.loss.collectives import Ranks
from peg_rag.training.loss.contrastive import LossOptions, LossResult, Pairs, cosines, tiled_loss
from peg_rag.training.loss.progressive import ProgressiveOptions, ProgressiveState
from peg_rag.training.loss.tiles import Scratch, Tile


class Objective(Protocol):
    """A loss over the vectors of a batch, with state that a checkpoint must hold."""

    def __call__(self, queries: Tensor, documents: Tensor, labels: Any, progress: float) -> LossResult:
        """The loss of the batch of all ranks, and its gradients on this rank's vectors."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""


class Temperature(nn.Module):
    """A learned temperature: log(1/τ) is the parameter, 1/τ is kept at or below `max_scale` (as in CLIP).

    Keep it outside the module that DistributedDataParallel wraps: its gradient is already the sum over ranks.
    """

    def __init__(self, temperature: float, max_scale: float = 100.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(float(temperature)).log().neg())
        self.max_scale = max_scale

    def forward(self) -> Tensor:
        """1/τ, a scalar."""
        return self.log_scale.exp().clamp(max=self.max_scale)


class ContrastiveObjective:
    """`tiled_loss` with its progressive state and, when learned, its temperature."""

    def __init__(
        self,
        options: LossOptions | None = None,
        progressive: ProgressiveOptions | None = None,
        temperature: Temperature | None = None,
        tile: Tile | None = None,
    ) -> None:
        self.options = options or LossOptions()
        self.progressive = ProgressiveState(progressive)
        self.temperature, self.tile = temperature, tile
        self._scratch = Scratch()

    def __call__(self, queries: Tensor, documents: Tensor, labels: Pairs, progress: float) -> LossResult:
        """Move t by the positives of all ranks, then compute the loss; a learned temperature gets its gradient here."""
        ranks = Ranks()
        positives = cosines(queries, documents[labels.positives]).double()
        total, count = ranks.sum(torch.stack([positives.sum(), torch.ones_like(positives).sum()])).tolist()
        if np.isfinite(total):  # a broken vector is the loss's to report
            self.progressive.advance(total / count, progress)
        scale = None if self.temperature is None else self.temperature()
        result = tiled_loss(
            queries,
            documents,
            labels,
            self.options,
            self.progressive,
            scale=scale,
            tile=self.tile,
            ranks=ranks,
            scratch=self._scratch,
        )
        if scale is not None:
            scale.backward(result.scale_gradient.to(scale))
        return result

    def state_dict(self) -> dict[str, Any]:
        """The progressive state; the temperature is a module and is saved as one."""
        return self.progressive.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.progressive.load_state_dict(state)
