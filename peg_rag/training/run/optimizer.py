"""AdamW over the parameters, and a learning rate that is a function of the step."""

import math

import torch
from torch import nn

from peg_rag.training.recipe import OptimizerOptions


def build_optimizer(model: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """AdamW; weight decay is for matrices, and leaves biases and normalisation alone."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    device = next(model.parameters()).device.type
    return torch.optim.AdamW(
        groups,
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        fused=device in ("cpu", "cuda", "mps"),
    )


def learning_rate(options: OptimizerOptions, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: up along a line while warming up, then as the schedule says."""
    if step < options.warmup_steps:
        return options.learning_rate * step / options.warmup_steps
    progress = (step - options.warmup_steps) / max(steps - options.warmup_steps, 1)
    factors = {"linear": 1.0 - progress, "cosine": (1.0 + math.cos(math.pi * progress)) / 2.0, "constant": 1.0}
    return options.learning_rate * factors[options.schedule]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step, for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(model: nn.Module, limit: float | None) -> float:
    """Scale the gradients down to a norm of `limit`, if any; the norm they had."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
    return float(norm)
