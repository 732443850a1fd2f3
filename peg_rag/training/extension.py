"""The four places where a component plugs into training, and the base of its options.

A component is one file: its options (a pydantic class with a `kind`), the code behind them, and a `build` that makes
the one from the other. One line in a union of `peg_rag.training.recipe` lets recipes name it, and a slow, obvious twin
in the tests says what it computes. Nothing else has to be touched: the loop, the loss and the checkpoint know the
protocols only.

A component is a pure function of the seed and the step, or it keeps its state in a `state_dict`. Either way a run that
is killed and resumed repeats every bit. No torch is imported here, so a recipe can be checked without it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

    from peg_rag.training.data.batches import RankBatch
    from peg_rag.training.data.sampler import PlannedBatch
    from peg_rag.training.loss.contrastive import Candidates, Pairs
    from peg_rag.training.loss.masks import TileColumns, TileRows


class Options(BaseModel):
    """Options of a recipe: immutable, unknown keys refused, numbers finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class BatchSampler(Protocol):
    """Which rows make up which batch."""

    def batch(self, step: int) -> "PlannedBatch":
        """The rows of batch `step`, over all ranks; the same for the same step, however often it is asked."""


class BatchTransform(Protocol):
    """What is in a batch: further documents, other tokens."""

    def __call__(self, batch: "RankBatch", step: int) -> "RankBatch":
        """One rank's share of batch `step`, changed. Runs in the data workers, so it keeps no state."""


class CandidateSource(Protocol):
    """Candidates besides the documents of the batch: more columns of the score matrix."""

    def candidates(self, queries: "Tensor", documents: "Tensor", pairs: "Pairs") -> "Candidates":
        """Further candidates of every query of this rank, given its vectors (b, d) and (n, d).

        Vectors with a graph to `queries` or `documents` pass their gradient on to these; vectors without one are
        constants, and the loss skips the matrix product of their gradient.
        """

    def update(self, documents: "Tensor", pairs: "Pairs") -> None:
        """Learn the documents (n, d) of the step that was just taken. Called once a step, on every rank."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: tensors, numbers, strings; the same on every rank."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""


class CandidateMask(Protocol):
    """Candidates that are no negatives of a query, because they may well answer it."""

    def hidden(self, rows: "TileRows", columns: "TileColumns") -> "Tensor":
        """(r, c) bool, true where the candidate is no negative; a sparse tensor where that is rare."""
