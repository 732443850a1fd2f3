"""Queues of vectors that a slowly moving copy of the model made: momentum contrast (CoCoSoDa, arXiv 2204.03293).

Vectors of earlier steps go stale as the model moves (`peg_rag.training.loss.queue`). A momentum encoder, whose weights
are the moving average of the model's (He et al. 2020, arXiv 1911.05722), makes vectors that agree with each other over
many more steps. It encodes the batch once more, without gradients and without dropout; its document vectors become
further negatives of later queries, and its query vectors, in the symmetric loss, of later documents. A text that stands
in the batch itself is left out, a known answer is masked, and a query never meets its own text.

Costs another copy of the weights, one more forward pass, (documents + queries) × dimension floats and a gather of as
many vectors over the ranks.
"""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from peg_rag.errors import InvalidInput
from peg_rag.training.extension import Options, StageContext
from peg_rag.training.loss.queue import VectorQueue, require_text_ids

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from peg_rag.training.loss.contrastive import Candidates, Pairs, Rivals
    from peg_rag.training.run.grad_cache import Rows, StepBatch


class MomentumOptions(Options):
    """Queues of a momentum encoder."""

    kind: Literal["momentum"]
    documents: int = Field(ge=1)
    """Document vectors that are remembered, over all ranks."""
    queries: int = Field(default=0, ge=0)
    """Query vectors that are remembered: further negatives of the documents, in the symmetric loss."""
    half_life: float = Field(default=0.01, gt=0)
    """Share of the stage after which half of the momentum encoder's weights is new."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the stage's steps before remembered vectors are used."""

    @property
    def max_candidates(self) -> int:
        """Candidates that this adds for every query, at most."""
        return self.documents

    def build(self, stage: StageContext) -> "MomentumQueues":
        """The queues of a stage, and a copy of its model.

        Raises:
            InvalidInput: the stage has no model to copy.
        """
        if stage.model is None:
            raise InvalidInput("a momentum encoder is a copy of the model that is trained; give StageContext.model")
        return MomentumQueues(self, stage.model, stage.steps)


class MomentumQueues:
    """A momentum encoder and its queues. A `CandidateSource`, a `RivalSource` and a `BatchObserver`.

    Args:
        model: features → (n, d) vectors; it is copied, and its weights are read at the beginning of every step.
    """

    def __init__(self, options: MomentumOptions, model: "Module", steps: int) -> None:
        self._model = model
        self._teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self._rate = 1 - 0.5 ** (1 / (options.half_life * steps))  # of the new weights, in each step
        self._first_step = round(options.warmup * steps)
        self._documents = VectorQueue(options.documents)
        self._queries = VectorQueue(options.queries) if options.queries else None
        self._answers: Tensor | None = None  # (k, 2) ids of remembered queries and of texts that answer them
        self._keys: tuple[Tensor, Tensor] | None = None  # of this step's queries (b, d) and documents (n, d)
        self._steps = 0  # taken so far

    def observe(self, batch: "StepBatch", batch_tokens: int) -> None:
        """Move the momentum encoder towards the model, and encode the batch with it."""
        import torch

        with torch.no_grad():
            if self._steps:  # the weights have moved since the last time
                for kept, current in zip(self._teacher.parameters(), self._model.parameters(), strict=True):
                    kept.lerp_(current, self._rate)
            queries = self._encode_rows(batch.queries, batch_tokens)
            self._keys = (queries, self._encode_rows(batch.documents, batch_tokens))

    def _encode_rows(self, rows: "Rows", batch_tokens: int) -> "Tensor":
        """Vectors (n, d), float32 or better, chunk by chunk."""
        import torch

        from peg_rag.batching import plan_batches

        vectors: Tensor | None = None
        for chunk in plan_batches(rows.lengths, batch_tokens):
            part = self._teacher(rows.features(chunk))
            if vectors is None:
                dtype = torch.promote_types(part.dtype, torch.float32)
                vectors = part.new_empty(len(rows.lengths), part.shape[1], dtype=dtype)
            vectors[torch.from_numpy(chunk).to(part.device)] = part.to(vectors.dtype)
        assert vectors is not None
        return vectors

    def candidates(self, queries: "Tensor", documents: "Tensor", pairs: "Pairs") -> "Candidates":
        """Remembered documents, less those of this batch; none before the warm-up is over."""
        from peg_rag.training.loss.contrastive import Candidates

        texts = require_text_ids(pairs)
        others = self._documents.select_others(texts)
        if others is None or self._steps < self._first_step:
            return Candidates(documents.detach()[:0], texts[:0])
        return Candidates(*others)

    def rivals(self, pairs: "Pairs") -> "Rivals | None":
        """Remembered queries, less those of this batch, with their known answers; None before the warm-up is over."""
        import torch

        from peg_rag.training.loss.contrastive import Rivals

        if self._queries is None or self._steps < self._first_step:
            return None
        others = self._queries.select_others(_require_query_ids(pairs))
        if others is None or self._answers is None:
            return None
        vectors, texts = others
        return Rivals(vectors, texts, self._answers[torch.isin(self._answers[:, 0], texts)])

    def update(self, documents: "Tensor", pairs: "Pairs") -> None:
        """Remember what the momentum encoder made of this step's texts."""
        if self._keys is None:
            raise InvalidInput("the momentum encoder was not shown the batch; call observe before the loss")
        queries, keys = self._keys
        self._documents.push(keys, require_text_ids(pairs))
        if self._queries is not None:
            self._queries.push(queries, _require_query_ids(pairs))
            self._remember_answers(self._queries, pairs)
        self._keys = None
        self._steps += 1

    def _remember_answers(self, queue: VectorQueue, pairs: "Pairs") -> None:
        """Keep the known answers of the queries that are remembered."""
        import torch

        from peg_rag.training.loss.collectives import Ranks

        answers = Ranks().gather(pairs.list_answers())
        if self._answers is not None:
            answers = torch.cat([self._answers, answers])
        assert queue.texts is not None
        self._answers = torch.unique(answers[torch.isin(answers[:, 0], queue.texts)], dim=0)

    def state_dict(self) -> dict[str, Any]:
        """The momentum encoder's weights, what is remembered, and how many steps were taken."""
        state: dict[str, Any] = {
            "steps": self._steps,
            "weights": dict(self._teacher.named_parameters()),
            "documents": self._documents.state_dict(),
        }
        if self._queries is not None:
            state["queries"] = self._queries.state_dict()
        if self._answers is not None:
            state["answers"] = self._answers
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint; its tensors must be on the device of the model."""
        import torch

        self._steps = state["steps"]
        with torch.no_grad():
            for name, parameter in self._teacher.named_parameters():
                parameter.copy_(state["weights"][name])
        self._documents.load_state_dict(state["documents"])
        if self._queries is not None:
            self._queries.load_state_dict(state["queries"])
        self._answers = state.get("answers")


def _require_query_ids(pairs: "Pairs") -> "Tensor":
    if pairs.query_text_ids is None:
        raise InvalidInput("a queue of queries needs their text ids; give pairs.query_text_ids")
    return pairs.query_text_ids
