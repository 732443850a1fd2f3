"""Progressive weighting: negatives count differently as training goes on, by how hard they are.

PEG's abstract says that it "progressively adjusts the weights of samples contributing to the loss within an extremely
large batch, based on the difficulty levels of negative samples" (arXiv 2311.11691); its formula is not public. What
stands here is our own reading, a choice of strategies to compare by ablation. With cosine s and scale 1/τ, the logit of
a negative is

* `none`: s/τ.
* `static`: s/τ + strength·sg(s), with sg = no gradient: the weight e^(strength·s) of hardness-weighted contrastive
  learning (Lan et al. 2025, arXiv 2503.04812, eq. 5).
* `linear`, `cosine`: the same, with a strength that grows from 0 along a line or a half cosine over the run.
* `curricular`, after CurricularFace (Huang et al. 2020, arXiv 2004.00288): a negative is hard when s > s_p − margin,
  s_p being the positive's cosine; a hard one becomes s·(t + s)/τ, t + s clamped at 0, with gradient through both
  factors. t follows the mean of s_p, from 0: early on hard negatives count less than they would, later more.
  CurricularFace's 0.99 a step is a half-life of 69 steps, however long the run; here it is a share of the run.

A negative within `TIE` of a threshold lies below it. Rounding depends on how a matrix product is cut into tiles, and a
negative with the very vector of the positive must not be hard in one tiling and easy in another.

The state is two floats: it costs one mean over the positives of a step and nothing else.
"""

import math
from collections.abc import Mapping
from typing import Any

from peg_rag.errors import InvalidInput
from peg_rag.training.recipe import ProgressiveOptions

TIE = 1e-5  # of cosine: several times the rounding of a float32 product of 1,024 dimensions


class ProgressiveState:
    """What progressive weighting remembers between steps. Moved once per step, then frozen until the next.

    Attributes:
        t: the moving average of the positives' cosine, from 0 (`curricular`).
        progress: how much of the run is over, 0 to 1, at the last `advance`.
    """

    def __init__(self, options: ProgressiveOptions | None = None) -> None:
        self.options = options or ProgressiveOptions()
        self.t = 0.0
        self.progress = 0.0

    def advance(self, mean_positive: float, progress: float) -> None:
        """Move to `progress`, given the mean cosine of the positives of the whole batch, over all ranks.

        A second call with the same progress changes nothing, so a step that is repeated stays the same step.
        """
        if not 0.0 <= progress <= 1.0:
            raise InvalidInput(f"progress={progress} is a fraction of the run and must lie between 0 and 1")
        if not math.isfinite(mean_positive):
            raise InvalidInput(f"mean_positive={mean_positive} is not a finite cosine")
        retained = 0.5 ** (max(progress - self.progress, 0.0) / self.options.half_life)
        self.t = retained * self.t + (1.0 - retained) * mean_positive
        self.progress = progress

    @property
    def strength(self) -> float:
        """What is added to a negative's logit per unit of its cosine, now."""
        ramps = {"static": 1.0, "linear": self.progress, "cosine": (1.0 - math.cos(math.pi * self.progress)) / 2.0}
        return self.options.strength * ramps.get(self.options.strategy, 0.0)

    @property
    def curricular(self) -> bool:
        """Whether hard negatives are re-scaled by t rather than weighted by a strength."""
        return self.options.strategy == "curricular"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"t": self.t, "progress": self.progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.t = float(state["t"])
        self.progress = float(state["progress"])
