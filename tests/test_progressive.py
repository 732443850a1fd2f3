"""Progressive weights: the formulas, and a state that moves with the run and not with the number of steps."""

import math

import pytest
import torch

from peg_rag.errors import InvalidInput
from peg_rag.training.loss.contrastive import Pairs, tiled_loss
from peg_rag.training.loss.progressive import ProgressiveState
from peg_rag.training.recipe import LossOptions, ProgressiveOptions


@pytest.mark.parametrize("steps", [4, 10, 1000])
def test_t_halves_its_distance_per_half_life_whatever_the_number_of_steps(steps: int) -> None:
    state = ProgressiveState(ProgressiveOptions(strategy="curricular", half_life=0.25))
    for step in range(steps + 1):
        state.advance(0.8, 0.5 * step / steps)
    assert state.t == pytest.approx(0.8 * 0.75)


def test_a_repeated_step_does_not_move_t() -> None:
    state = ProgressiveState(ProgressiveOptions(strategy="curricular"))
    state.advance(0.8, 0.1)
    before = state.state_dict()
    state.advance(0.2, 0.1)
    assert state.state_dict() == before


def test_a_checkpoint_holds_the_state() -> None:
    options = ProgressiveOptions(strategy="curricular")
    straight, resumed = ProgressiveState(options), ProgressiveState(options)
    straight.advance(0.7, 0.2)
    resumed.load_state_dict(straight.state_dict())
    for state in (straight, resumed):
        state.advance(0.75, 0.3)
    assert straight.state_dict() == resumed.state_dict()


@pytest.mark.parametrize(
    ("strategy", "strengths"),
    [
        ("none", [0, 0, 0]),
        ("static", [5, 5, 5]),
        ("linear", [0, 1.25, 5]),
        ("cosine", [0, 2.5 - 1.25 * math.sqrt(2), 5]),
    ],
)
def test_ramps(strategy: str, strengths: list[float]) -> None:
    state = ProgressiveState(ProgressiveOptions(strategy=strategy, strength=5.0))  # type: ignore[arg-type]
    for progress, strength in zip((0.0, 0.25, 1.0), strengths, strict=True):
        state.advance(0.5, progress)
        assert state.strength == pytest.approx(strength)


def unit(*angles: float) -> torch.Tensor:
    """Unit vectors in the plane at these angles in radians; cosines are then those of the differences."""
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64)


def test_static_weights_are_the_exponential_of_the_cosine() -> None:
    """One query, a positive at cosine 0.5 and two negatives: L = −log(e^{z_p} / (e^{z_p} + Σ e^{3·s}·e^{z}))."""
    cosines = [0.5, 0.8, -0.3]
    state = ProgressiveState(ProgressiveOptions(strategy="static", strength=3.0))
    pairs = Pairs(torch.tensor([0]), torch.tensor([0, 0, 0]))
    loss = tiled_loss(unit(0.0), unit(*map(math.acos, cosines)), pairs, LossOptions(temperature=0.5), state).loss
    negatives = sum(math.exp(3.0 * s) * math.exp(2 * s) for s in cosines[1:])
    assert loss.item() == pytest.approx(-math.log(math.exp(1.0) / (math.exp(1.0) + negatives)))


def test_curricular_by_hand() -> None:
    """t = 0.4: the hard negative 0.8 becomes 0.8·(0.4 + 0.8), the easy one stays; t + s below 0 counts as 0."""
    state = ProgressiveState(ProgressiveOptions(strategy="curricular"))
    state.t = 0.4
    pairs = Pairs(torch.tensor([0]), torch.tensor([0, 0, 0]))
    for cosines, expected in [([0.5, 0.8, -0.3], [0.96, -0.3]), ([-0.9, -0.6, -0.2], [0.0, -0.2 * 0.2])]:
        loss = tiled_loss(unit(0.0), unit(*map(math.acos, cosines)), pairs, LossOptions(temperature=1.0), state).loss
        total = sum(math.exp(s) for s in [cosines[0], *expected])
        assert loss.item() == pytest.approx(math.log(total) - cosines[0])


def test_hard_negatives_count_less_early_and_more_late() -> None:
    pairs, options = Pairs(torch.tensor([0]), torch.tensor([0, 0])), LossOptions(temperature=0.1)
    state, losses = ProgressiveState(ProgressiveOptions(strategy="curricular")), []
    for state.t in (0.0, 0.2, 0.9):
        losses.append(tiled_loss(unit(0.0), unit(math.acos(0.5), math.acos(0.8)), pairs, options, state).loss.item())
    plain = tiled_loss(unit(0.0), unit(math.acos(0.5), math.acos(0.8)), pairs, options).loss.item()
    assert losses[0] < plain
    assert losses[1] == pytest.approx(plain)
    assert losses[2] > plain


@pytest.mark.parametrize("wrong", [{"strategy": "linaer"}, {"strength": -1.0}, {"half_life": 0.0}])
def test_wrong_options_raise(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProgressiveOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mean", "progress"), [(0.5, 1.5), (0.5, -0.1), (math.nan, 0.5)])
def test_a_progress_or_mean_that_cannot_be_raises(mean: float, progress: float) -> None:
    with pytest.raises(InvalidInput):
        ProgressiveState().advance(mean, progress)
