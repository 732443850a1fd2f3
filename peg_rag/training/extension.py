"""Where components plug into training, and the base of their options.

A component is one file with its options and its code; the loss, the loop and the checkpoint know the protocols only.
Its options have a `kind` and a `build(stage)`, and one line in a union of `peg_rag.training.recipe` lets recipes name
it: `data.order`, `data.transforms`, `loss.masks`, `loss.candidates`.

A component is a pure function of the seed and the step, or it keeps its state in a `state_dict`. Either way a run that
is killed and resumed repeats every bit. No torch is imported here, so a recipe can be checked without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch import Tensor
    from torch.nn import Module

    from peg_rag.retriever import Encoder
    from peg_rag.training.data.batches import RankBatch
    from peg_rag.training.data.pairs import PairFile
    from peg_rag.training.data.sampler import PlannedBatch
    from peg_rag.training.loss.contrastive import Candidates, Pairs, Rivals
    from peg_rag.training.loss.masks import TileColumns, TileRows
    from peg_rag.training.run.grad_cache import StepBatch


class Options(BaseModel):
    """Options of a recipe: immutable, unknown keys refused, numbers finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


@dataclass(frozen=True)
class StageContext:
    """What a component is built from: a stage's data, and the model as it stands when the stage begins.

    Attributes:
        steps: of the stage.
        seed: of the run.
        rank, world: this process and how many there are.
        files, rows: `rows[i]` are the rows of `files[i]` that are trained on, (n,) int64.
        tokenizer: of the model that is trained.
        encoder: that model, as an encoder of texts.
        cache: a folder shared by runs, for what depends on the data and on a model that does not change.
        folder: a folder of the stage, for what must be the same when the run is resumed.
        model: the module that is trained, features → (n, d) vectors, for what follows its weights.
    """

    steps: int
    seed: int
    rank: int
    world: int
    files: "Sequence[PairFile]"
    rows: "Sequence[NDArray[Any]]"
    tokenizer: "Tokenizer"
    encoder: "Encoder"
    cache: Path
    folder: Path
    model: "Module | None" = None


class BatchSampler(Protocol):
    """Which rows make up which batch."""

    def batch(self, step: int) -> "PlannedBatch":
        """The rows of batch `step`, over all ranks; the same for the same step, however often it is asked."""


class RowOrder(Protocol):
    """The order in which a source's rows are taken: rows that stand together share a batch."""

    def rows(self, source: int, epoch: int) -> "NDArray[Any]":
        """A permutation of 0…n−1 for a source of n rows, the same for the same epoch."""


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

    def build(self, stage: "StageContext") -> "CandidateSource":
        """The source of a stage."""


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


@runtime_checkable
class RivalSource(Protocol):
    """A candidate source that remembers queries, too: more columns of the symmetric loss's other direction."""

    def rivals(self, pairs: "Pairs") -> "Rivals | None":
        """Further queries that this rank's documents meet; None where there are none."""


@runtime_checkable
class BatchObserver(Protocol):
    """What must see the texts of a batch, and not their vectors alone: a second encoder."""

    def observe(self, batch: "StepBatch", batch_tokens: int) -> None:
        """Look at this rank's share of a batch, before its loss; `batch_tokens`: rows × longest of a chunk."""


class CandidateMask(Protocol):
    """Candidates excluded as likely false negatives."""

    def hidden(self, rows: "TileRows", columns: "TileColumns") -> "Tensor":
        """(r, c) bool, true where the candidate is excluded; a sparse tensor where that is rare."""
