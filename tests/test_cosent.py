"""CoSENT by running sums is held to the double sum it stands for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peg_rag.errors import InvalidInput, TrainingError
from peg_rag.training.loss.cosent import CosentObjective, cosent_loss


def double_sum(similarities: torch.Tensor, grades: torch.Tensor, scale: float) -> torch.Tensor:
    """The definition: log(1 + Σ over all i, j with grade i above grade j of e^{scale·(s_j − s_i)})."""
    wrong = (similarities[None, :] - similarities[:, None]) * scale  # (b, b)
    above = grades[:, None] > grades[None, :]
    return torch.log1p((wrong.exp() * above).sum())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), b=st.integers(1, 20), grades=st.integers(1, 5))
def test_equals_the_double_sum(seed: int, b: int, grades: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarities = (2 * torch.rand(b, generator=generator, dtype=torch.float64) - 1).requires_grad_()
    labels = torch.randint(0, grades, (b,), generator=generator)
    expected = double_sum(similarities, labels, 20.0)
    (gradient,) = torch.autograd.grad(expected, similarities)
    ours = cosent_loss(similarities, labels)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-9)
    (our_gradient,) = torch.autograd.grad(ours, similarities)
    assert (our_gradient - gradient).abs().max() < 1e-9


def test_large_scales_stay_finite() -> None:
    similarities = torch.tensor([1.0, -1.0], requires_grad=True)
    loss = cosent_loss(similarities, torch.tensor([0.0, 1.0]), scale=200.0)
    assert loss.item() == pytest.approx(400.0)


def test_objective_lowers_the_loss_along_its_gradient() -> None:
    torch.manual_seed(0)
    left, right, grades = torch.randn(12, 4).double(), torch.randn(12, 4).double(), torch.rand(12)
    objective = CosentObjective()
    before = objective(left, right, grades, 0.0)
    assert before.query_gradient.shape == before.document_gradient.shape == (12, 4)
    step = 1e-4 / before.query_gradient.norm()
    after = objective(left - step * before.query_gradient, right - step * before.document_gradient, grades, 0.0)
    decrease = step * (before.query_gradient.square().sum() + before.document_gradient.square().sum())
    assert (before.loss - after.loss).item() == pytest.approx(decrease.item(), rel=1e-2)


def test_bad_input_raises() -> None:
    with pytest.raises(InvalidInput, match="must be"):
        cosent_loss(torch.zeros(3), torch.zeros(2))
    with pytest.raises(InvalidInput, match="scale"):
        CosentObjective(scale=0.0)
    with pytest.raises(TrainingError, match="NaN or infinite loss"):
        CosentObjective()(torch.full((2, 3), math.nan), torch.ones(2, 3), torch.tensor([0.0, 1.0]), 0.0)
