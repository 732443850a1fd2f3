"""Pairs whose positive the model finds improbable count less: robustness to wrong labels.

In scraped pairs some positives answer another question. A model that has seen a part of the data gives these a low
cosine, so from `start` on a query weighs σ((s_p − m + ½·sd) / (½·sd)), where s_p is its positive's cosine, m and sd are
the mean and the deviation of the batch's: about 0.73 at the mean, 0.5 half a deviation below it, 0.05 two below. On
clean data the hardest pairs lose weight as well, which costs some tenths of a point; hence opt-in. Our own reading of
PEG's second limitation, noise in its data (arXiv 2311.11691).
"""

from typing import TYPE_CHECKING

from pydantic import Field

from peg_rag.training.extension import Options

if TYPE_CHECKING:
    from torch import Tensor

    from peg_rag.training.loss.collectives import Ranks

SMALLEST_DEVIATION = 1e-6  # of cosines: below it all positives are alike, and so are the weights


class TrustOptions(Options):
    """Weights of queries by the cosine of their positive."""

    start: float = Field(default=0.2, ge=0, lt=1)
    """Share of the stage after which queries are weighed."""
    width: float = Field(default=0.5, gt=0)
    """In standard deviations: how far below the mean the weight is a half, and how steeply it falls."""


def trust_weights(positives: "Tensor", options: TrustOptions, ranks: "Ranks") -> "Tensor":
    """Weights (b,) of this rank's queries, float64, from the cosines of their positives (b,) and of all ranks'."""
    import torch

    values = positives.double()
    sums = ranks.sum(torch.stack([values.sum(), values.square().sum(), torch.ones_like(values).sum()]))
    mean = sums[0] / sums[2]
    deviation = (sums[1] / sums[2] - mean.square()).clamp(min=0).sqrt()
    if deviation < SMALLEST_DEVIATION:
        return torch.ones_like(values)
    width = options.width * deviation
    return torch.sigmoid((values - mean + width) / width)
