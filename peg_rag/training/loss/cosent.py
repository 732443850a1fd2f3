"""CoSENT: a ranking loss for graded pairs, where similarity has degrees and there is no one right answer.

For pairs with cosines s and grades y, `log(1 + Σ_{y_i > y_j} e^{(s_j − s_i)/τ})`: every two pairs in the wrong order
cost (Su, 2022, https://kexue.fm/archives/8847). Sorted by grade the double sum is a running log-sum-exp, so a batch of
b pairs costs O(b log b) and never a b × b matrix.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from peg_rag.errors import InvalidInput, TrainingError
from peg_rag.training.loss.collectives import Ranks
from peg_rag.training.loss.contrastive import LossMetrics, LossResult


def cosent_loss(similarities: Tensor, grades: Tensor, scale: float = 20.0) -> Tensor:
    """The loss of cosines (b,) whose order should follow `grades` (b,); a scalar with a graph.

    Pairs of equal grade are not compared; a batch of one grade only has loss 0.
    """
    if similarities.ndim != 1 or similarities.shape != grades.shape:
        raise InvalidInput(
            f"similarities {tuple(similarities.shape)} and grades {tuple(grades.shape)} must be (b,) both"
        )
    order = torch.argsort(grades)
    sorted_grades, logits = grades[order], similarities[order] * scale  # (b,)
    lower = torch.searchsorted(sorted_grades, sorted_grades)  # (b,) how many pairs have a lower grade
    graded = lower > 0
    if not bool(graded.any()):
        return similarities.sum() * 0.0
    below = torch.logcumsumexp(logits, 0)[lower[graded] - 1]  # log Σ over pairs of lower grade
    total = torch.logsumexp(below - logits[graded], 0)
    return torch.logaddexp(total, torch.zeros_like(total))  # softplus, but exact above 20 too


class CosentObjective:
    """CoSENT over the pairs of all ranks, as an objective of `CachedStep`; `labels` are (b,) grades."""

    def __init__(self, scale: float = 20.0) -> None:
        if not scale > 0:
            raise InvalidInput(f"scale={scale} must be more than 0")
        self.scale = scale

    def __call__(self, queries: Tensor, documents: Tensor, labels: Tensor, progress: float) -> LossResult:
        """First and second sentences (b, d) each → loss and gradients. `progress` plays no part."""
        ranks = Ranks()
        with torch.enable_grad():
            first, second = queries.detach().requires_grad_(), documents.detach().requires_grad_()
            rank_similarities = functional.cosine_similarity(first.float(), second.float())  # (b,)
            similarities = ranks.gather(rank_similarities.detach()).requires_grad_()
            grades = ranks.gather(labels)
            loss = cosent_loss(similarities, grades, self.scale)
        if not bool(loss.isfinite()):
            raise TrainingError("NaN or infinite loss: a vector holds NaN or infinity, on this or another rank")
        loss.backward()
        assert similarities.grad is not None
        rank_similarities.backward(similarities.grad[ranks.own_slice(rank_similarities)])
        assert first.grad is not None
        assert second.grad is not None
        return LossResult(loss.detach(), first.grad, second.grad, self._make_metrics(loss, similarities, grades))

    def _make_metrics(self, loss: Tensor, similarities: Tensor, grades: Tensor) -> LossMetrics:
        best = float(similarities.detach()[grades == grades.max()].mean())
        order = float(torch.corrcoef(torch.stack([similarities.detach().double(), grades.double()]))[0, 1])
        return LossMetrics(float(loss.detach()), order, best, 0.0, 0.0, 0.0, 1.0 / self.scale)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""
