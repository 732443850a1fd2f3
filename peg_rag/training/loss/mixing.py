"""Hard negatives that are made, not found: mixtures in vector space (MoCHi, Kalantidis et al. 2020, arXiv 2010.01028).

Of a query's nearest negatives in the batch two are mixed, norm(α·n_i + (1−α)·n_j) with α uniform in (0, 1), or one is
mixed with the query itself, norm(β·q + (1−β)·n_j) with β uniform in (0, 0.5): harder than what either is alone. A
mixture is a negative of its own query only, for to others it may lie near an answer. Known answers are never mixed.
Unlike in MoCHi, whose negatives come from a memory without gradients, gradients flow back through the mixtures.

Costs another product of queries and documents (2·b·n·d operations, of this rank's own documents) and, for s mixtures a
query, 2·s·d operations and s·d floats each in the loss.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from peg_rag.errors import InvalidInput
from peg_rag.training.extension import Options, StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from peg_rag.training.loss.contrastive import Candidates, Pairs

ROWS_AT_ONCE = 512  # of the score matrix from which the nearest are taken
_SALT = 23


class MixingOptions(Options):
    """Synthetic hard negatives."""

    kind: Literal["mixing"]
    nearest: int = Field(default=32, ge=2)
    """Negatives that are mixed are among so many of a query's nearest."""
    pairs: int = Field(default=16, ge=0)
    """Mixtures of two negatives, for each query."""
    with_query: int = Field(default=16, ge=0)
    """Mixtures of a negative and the query, for each query."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the stage's steps before anything is mixed."""

    @model_validator(mode="after")
    def _check_counts(self) -> "MixingOptions":
        if not self.pairs + self.with_query:
            raise ValueError("pairs and with_query are both 0: nothing would be mixed; raise one of them")
        return self

    @property
    def max_candidates(self) -> int:
        """Candidates that this adds for every query."""
        return self.pairs + self.with_query

    def build(self, stage: StageContext) -> "Mixing":
        """The source of a stage."""
        return Mixing(self, stage.steps, seed=stage.seed, rank=stage.rank)


class Mixing:
    """Mixtures of a query's nearest negatives. A `CandidateSource`."""

    def __init__(self, options: MixingOptions, steps: int, *, seed: int = 0, rank: int = 0) -> None:
        self._options = options
        self._first_step = round(options.warmup * steps)
        self._seed = seed
        self._rank = rank
        self._steps = 0  # taken so far

    def candidates(self, queries: "Tensor", documents: "Tensor", pairs: "Pairs") -> "Candidates":
        """Mixtures for each query, with a graph to both sides; none before the warm-up is over."""
        import torch

        from peg_rag.training.loss.contrastive import Candidates

        width = min(self._options.nearest, len(documents))
        if self._steps < self._first_step or width < 2:
            return Candidates(documents.detach()[:0], pairs.positives[:0])
        units = [torch.nn.functional.normalize(side, dim=1) for side in (queries, documents)]
        nearest, counts = _find_nearest(units[0].detach(), units[1].detach(), pairs, width)
        rows = (counts >= 2).nonzero().squeeze(1)  # a mixture needs two negatives
        draws = self._draw_numbers(len(queries))[:, rows.cpu()].to(queries)  # (3, m, count)
        first, second = _choose_pairs(nearest[rows], counts[rows], draws[0], draws[1])
        vectors = self._mix_vectors(units[0][rows], units[1][first], units[1][second], draws[2])
        owners = rows.repeat_interleave(self._options.max_candidates)
        texts = torch.full_like(owners, torch.iinfo(torch.int64).min)  # of no text
        return Candidates(vectors.flatten(0, 1), texts, owners)

    def _draw_numbers(self, rows: int) -> "Tensor":
        """Uniform numbers for both places and the share of each mixture of each query, (3, rows, count)."""
        import numpy as np
        import torch

        seed = np.random.SeedSequence([self._seed, self._rank, self._steps, _SALT]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        return torch.rand(3, rows, self._options.max_candidates, generator=generator, dtype=torch.float64)

    def _mix_vectors(self, queries: "Tensor", first: "Tensor", second: "Tensor", shares: "Tensor") -> "Tensor":
        """Mixtures (m, count, d) of queries (m, d) and two negatives of each mixture (m, count, d)."""
        import torch

        with_query = torch.arange(self._options.max_candidates, device=shares.device) >= self._options.pairs  # (count,)
        shares = torch.where(with_query, 0.5 * shares, shares).unsqueeze(2)  # (m, count, 1)
        partners = torch.where(with_query[:, None], queries[:, None], first)
        return shares * partners + (1 - shares) * second

    def update(self, documents: "Tensor", pairs: "Pairs") -> None:
        """Count the step."""
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """How many steps were taken."""
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self._steps = state["steps"]


def _find_nearest(queries: "Tensor", documents: "Tensor", pairs: "Pairs", width: int) -> "tuple[Tensor, Tensor]":
    """The nearest negatives of each query, nearest first (b, width), and how many of these there are (b,)."""
    import torch

    from peg_rag.training.loss.masks import AnswerMask, TileColumns, TileRows

    if pairs.query_text_ids is None or pairs.document_text_ids is None:
        raise InvalidInput("mixing needs text ids to leave known answers out; give those of queries and documents")
    mask = AnswerMask(pairs.query_text_ids, pairs.document_text_ids, pairs.list_answers())
    nearest = []
    counts = []
    for start in range(0, len(queries), ROWS_AT_ONCE):
        part = slice(start, min(start + ROWS_AT_ONCE, len(queries)))
        scores = queries[part] @ documents.T  # (r, n)
        texts = pairs.query_text_ids[part]
        rows = TileRows(part, texts, texts, scores[:, 0])
        columns = TileColumns(slice(0, len(documents)), pairs.document_text_ids[None], scores, 1.0)
        cells = mask.hidden(rows, columns).coalesce().indices()
        scores[cells[0], cells[1]] = -torch.inf
        best = scores.topk(width, dim=1)
        nearest.append(best.indices)
        counts.append((best.values > -torch.inf).sum(1))
    return torch.cat(nearest), torch.cat(counts)


def _choose_pairs(nearest: "Tensor", counts: "Tensor", first: "Tensor", second: "Tensor") -> "tuple[Tensor, Tensor]":
    """Two different negatives for each mixture, by uniform numbers (m, count) → documents (m, count) each."""
    counts = counts[:, None]
    place = (first * counts).long()  # (m, count)
    other = (place + 1 + (second * (counts - 1)).long()) % counts
    return nearest.gather(1, place), nearest.gather(1, other)
