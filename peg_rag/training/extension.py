"""The four places where a component plugs into training, and the base of its options.

A component is one file with its options and its code, and the loss and the checkpoint know the protocols only. Recipes
can name candidate sources so far: their options have the form of `CandidateOptions`, and one line in the union of
`peg_rag.training.recipe` adds them. Samplers, transforms and masks need options of their own there, and a call in
`peg_rag.training.run.train`.

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


class CandidateOptions(Protocol):
    """Options of a candidate source: a subclass of `Options` with these members."""

    @property
    def kind(self) -> str:
        """The name in recipes; a `Literal` with one value, by which the union is told apart."""

    @property
    def max_candidates(self) -> int:
        """Candidates that the source adds for every query, at most: for estimates of memory and time."""

    def build(self, steps: int) -> "CandidateSource":
        """The source of a stage of so many steps."""


class CandidateSource(Protocol):
    """Candidates besides the documents of the batch: more columns of the score matrix."""

    def candidates(self, queries: "Tensor", documents: "Tensor", pairs: "Pairs") -> "Candidates":
        """Further candidates, given this rank's query (b, d) and document (n, d) vectors.

        Vectors with a graph to `queries` or `documents` pass their gradient on to these; vectors without one are
        constants, and the loss skips the matrix product of their gradient.
        """

    def update(self, documents: "Tensor", pairs: "Pairs") -> None:
        """Add this batch's document vectors (n, d); called after the loss and before the parameters change."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: tensors, numbers, strings; the same on every rank."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""


class CandidateMask(Protocol):
    """Candidates excluded as likely false negatives."""

    def hidden(self, rows: "TileRows", columns: "TileColumns") -> "Tensor":
        """(r, c) bool, true where the candidate is excluded; a sparse tensor where that is rare."""
