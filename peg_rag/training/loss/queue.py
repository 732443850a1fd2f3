"""Stale document vectors as further negatives: cross-batch memory (Wang et al. 2020, arXiv 1912.06798).

The vectors of recent steps are nearly what the model would make of the same documents now, once it changes slowly; so
the newest `size` of them serve as candidates that need no encoding. They are constants: the gradient of the queries
flows, theirs does not. Early on the model moves too fast for that, hence `warmup`.

Costs size × dimension floats, a gather of as many vectors over the ranks, and 4·size·dimension operations a query.
A document that stands in the batch itself is left out, and one that is known to answer a query is masked for it by the
loss: a query's own positive may still be in the queue.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from peg_rag.errors import InvalidInput
from peg_rag.training.extension import Options, StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from peg_rag.training.loss.contrastive import Candidates, Pairs


class QueueOptions(Options):
    """A queue of the documents of recent steps."""

    kind: Literal["queue"]
    size: int = Field(ge=1)
    """Document vectors that are remembered, over all ranks."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the stage's steps before queued vectors are used."""

    @property
    def max_candidates(self) -> int:
        """Candidates that this adds for every query, at most."""
        return self.size

    def build(self, stage: StageContext) -> "DocumentQueue":
        """The queue of a stage."""
        return DocumentQueue(self, stage.steps)


class DocumentQueue:
    """The newest document vectors, one for each text, the same on every rank. A `CandidateSource`."""

    def __init__(self, options: QueueOptions, steps: int) -> None:
        self._size = options.size
        self._first_step = round(options.warmup * steps)
        self._steps = 0  # taken so far
        self._vectors: Tensor | None = None  # (m, d), the oldest first
        self._texts: Tensor | None = None  # (m,)

    def candidates(self, queries: "Tensor", documents: "Tensor", pairs: "Pairs") -> "Candidates":
        """What is remembered, less the documents of this batch; nothing before the warm-up is over."""
        import torch

        from peg_rag.training.loss.collectives import Ranks
        from peg_rag.training.loss.contrastive import Candidates

        texts = _require_text_ids(pairs)
        if self._vectors is None or self._texts is None or self._steps < self._first_step:
            return Candidates(documents.detach()[:0], texts[:0])
        elsewhere = ~torch.isin(self._texts, Ranks().gather(texts))
        return Candidates(self._vectors[elsewhere], self._texts[elsewhere])

    def update(self, documents: "Tensor", pairs: "Pairs") -> None:
        """Remember this step's documents; of many, every rank gives its share, positives first."""
        import torch

        from peg_rag.training.loss.collectives import Ranks

        ranks = Ranks()
        share = -(-self._size // ranks.size)
        vectors = ranks.gather(documents.detach()[:share])
        texts = ranks.gather(_require_text_ids(pairs)[:share])
        if self._vectors is not None and self._texts is not None:
            outdated = torch.isin(self._texts, texts)
            vectors = torch.cat([self._vectors[~outdated], vectors])
            texts = torch.cat([self._texts[~outdated], texts])
        self._vectors = vectors[-self._size :].clone()
        self._texts = texts[-self._size :].clone()
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The vectors with their texts, and how many steps were taken."""
        state: dict[str, Any] = {"steps": self._steps}
        if self._vectors is not None:
            state |= {"vectors": self._vectors, "texts": self._texts}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint; its tensors must be on the device of the model."""
        self._steps = state["steps"]
        self._vectors = state.get("vectors")
        self._texts = state.get("texts")


def _require_text_ids(pairs: "Pairs") -> "Tensor":
    if pairs.document_text_ids is None:
        raise InvalidInput("a queue needs document text ids to mask known positives; give pairs.document_text_ids")
    return pairs.document_text_ids
