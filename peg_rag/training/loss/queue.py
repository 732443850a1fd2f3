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


class VectorQueue:
    """The newest vectors, one for each text, the same on every rank.

    Args:
        size: vectors that are remembered, over all ranks.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.vectors: Tensor | None = None  # (m, d), the oldest first
        self.texts: Tensor | None = None  # (m,)

    def push(self, vectors: "Tensor", texts: "Tensor") -> None:
        """Remember this rank's vectors (n, d) of texts (n,); of many, every rank gives its share, the first ones."""
        import torch

        from peg_rag.training.loss.collectives import Ranks

        ranks = Ranks()
        share = -(-self._size // ranks.size)
        vectors = ranks.gather(vectors.detach()[:share])
        texts = ranks.gather(texts[:share])
        if self.vectors is not None and self.texts is not None:
            outdated = torch.isin(self.texts, texts)
            vectors = torch.cat([self.vectors[~outdated], vectors])
            texts = torch.cat([self.texts[~outdated], texts])
        self.vectors = vectors[-self._size :].clone()
        self.texts = texts[-self._size :].clone()

    def select_others(self, texts: "Tensor") -> "tuple[Tensor, Tensor] | None":
        """Vectors (k, d) and texts (k,) of what is remembered, less the given texts of all ranks; None before any."""
        import torch

        from peg_rag.training.loss.collectives import Ranks

        if self.vectors is None or self.texts is None:
            return None
        elsewhere = ~torch.isin(self.texts, Ranks().gather(texts))
        return self.vectors[elsewhere], self.texts[elsewhere]

    def state_dict(self) -> dict[str, Any]:
        """The vectors with their texts."""
        return {} if self.vectors is None else {"vectors": self.vectors, "texts": self.texts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint; its tensors must be on the device of the model."""
        self.vectors = state.get("vectors")
        self.texts = state.get("texts")


class DocumentQueue:
    """The newest document vectors. A `CandidateSource`."""

    def __init__(self, options: QueueOptions, steps: int) -> None:
        self._queue = VectorQueue(options.size)
        self._first_step = round(options.warmup * steps)
        self._steps = 0  # taken so far

    def candidates(self, queries: "Tensor", documents: "Tensor", pairs: "Pairs") -> "Candidates":
        """What is remembered, less the documents of this batch; nothing before the warm-up is over."""
        from peg_rag.training.loss.contrastive import Candidates

        texts = require_text_ids(pairs)
        others = self._queue.select_others(texts)
        if others is None or self._steps < self._first_step:
            return Candidates(documents.detach()[:0], texts[:0])
        return Candidates(*others)

    def update(self, documents: "Tensor", pairs: "Pairs") -> None:
        """Remember this step's documents; of many, positives first."""
        self._queue.push(documents, require_text_ids(pairs))
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The vectors with their texts, and how many steps were taken."""
        return {"steps": self._steps, **self._queue.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint; its tensors must be on the device of the model."""
        self._steps = state["steps"]
        self._queue.load_state_dict(state)


def require_text_ids(pairs: "Pairs") -> "Tensor":
    """The ids of the documents' texts.

    Raises:
        InvalidInput: there are none.
    """
    if pairs.document_text_ids is None:
        raise InvalidInput("a queue needs document text ids to mask known positives; give pairs.document_text_ids")
    return pairs.document_text_ids
