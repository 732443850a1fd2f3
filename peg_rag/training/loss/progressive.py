"""Progressive weighting: negatives (and queries) count differently as training goes on, by how hard they are.

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

The state is a handful of floats: it costs one mean over the positives of a step and nothing else.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from peg_rag.errors import InvalidInput

Strategy = Literal["none", "static", "linear", "cosine", "curricular"]


@dataclass(frozen=True, kw_only=True)
class ProgressiveOptions:
    """How negatives and queries are weighted over a run; see the module for the formulas.

    strategy: one of `none`, `static`, `linear`, `cosine`, `curricular`.
    strength: of `static`, and at the end of the run of `linear` and `cosine`; in logits per unit of cosine.
    margin: a negative is hard when its cosine exceeds the positive's minus this (`curricular`, and the hard share).
    half_life: of the moving average behind t, as a fraction of the run. CurricularFace's 0.99 per step is a half-life
        of 69 steps; in a run of 100 steps that barely moves, hence the fraction.
    query_focus: exponent g of the query weights ((1 − s_p)/2)^(g·progress), scaled to mean 1: as training goes on, a
        query whose positive is near counts less. 0 turns them off.
    """

    strategy: Strategy = "none"
    strength: float = 5.0
    margin: float = 0.0
    half_life: float = 0.02
    query_focus: float = 0.0

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise InvalidInput(f"strategy={self.strategy!r} is not one of {', '.join(get_args(Strategy))}")
        if self.strength < 0 or self.query_focus < 0 or self.half_life <= 0:
            raise InvalidInput(
                f"strength={self.strength} and query_focus={self.query_focus} must be 0 or more, "
                f"half_life={self.half_life} more than 0"
            )


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
        kept = 0.5 ** (max(progress - self.progress, 0.0) / self.options.half_life)
        self.t = kept * self.t + (1.0 - kept) * mean_positive
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

    @property
    def focus(self) -> float:
        """How much more queries far from their positives weigh, now; at 0 all weigh alike."""
        return self.options.query_focus * self.progress

    def query_weights(self, positives: Tensor) -> Tensor:
        """Unnormalised weights (b,) of queries whose positives have the cosines `positives` (b,); no gradient."""
        distance = ((1.0 - positives.detach()) / 2.0).clamp_(min=1e-6)
        return distance.pow_(self.focus)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"t": self.t, "progress": self.progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.t, self.progress = float(state["t"]), float(state["progress"])
