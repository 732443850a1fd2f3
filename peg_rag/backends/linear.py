"""The products of `UnpaddedEncoder`: plain, fused by oneDNN or cuBLAS, in int8; all are x W + b on states (tokens, d).

torch calls the fused products in code of its own, but no document promises them: `pick_linear` tries them on a small
product first and takes the plain one where they are missing or answer something else.
"""

import logging
from typing import Protocol

import torch
from torch.nn import functional

logger = logging.getLogger(__name__)

_TYPICAL_TOKENS = 1024  # in a batch: what oneDNN lays the weights out for

_LARGEST_CODE = 126  # 127 might become 128 where bfloat16 rounds up, which is no byte any more
_SMALLEST = 1e-20  # a largest value below it is taken for this one


class Linear(Protocol):
    """x W + b for a weight (outputs, inputs) and a bias (outputs,)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None: ...

    def __call__(self, states: torch.Tensor) -> torch.Tensor: ...

    def add_to(self, residual: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """residual + x W + b."""
        ...

    def apply_gelu(self, states: torch.Tensor) -> torch.Tensor:
        """GELU of x W + b."""
        ...


class PlainLinear:
    """What torch documents: the slow twin of the others."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return functional.linear(states, self._weight, self._bias)

    def add_to(self, residual: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return self(states) + residual

    def apply_gelu(self, states: torch.Tensor) -> torch.Tensor:
        return functional.gelu(self(states))


class FusedLinear:
    """oneDNN's product with the weight in its own layout; GELU and the sum happen while the result is in the cache."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_TOKENS)
        self._bias = bias

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")
        return product

    def add_to(self, residual: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        multiply = torch.ops.mkldnn._linear_pointwise.binary
        total: torch.Tensor = multiply(states, residual, self._weight, self._bias, "add")
        return total

    def apply_gelu(self, states: torch.Tensor) -> torch.Tensor:
        multiply = torch.ops.mkldnn._linear_pointwise
        product: torch.Tensor = multiply(states, self._weight, self._bias, "gelu", [], "none")
        return product


class CublasLinear(PlainLinear):
    """cuBLAS's product, which applies GELU before the result leaves the chip: by tanh, 0.0005 from the exact one."""

    def apply_gelu(self, states: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch._addmm_activation(self._bias, states, self._weight.t(), use_gelu=True)
        return product


class Int8Linear:
    """Weights in int8 with a scale for each output; each token's state is rounded to 8 bits with a scale of its own.

    oneDNN multiplies unsigned by signed bytes, so states are stored with 128 added.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        scales = weight.float().abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127  # (outputs,)
        codes = (weight.float() / scales[:, None]).round().to(torch.int8)
        self._codes = torch.ops.onednn.qlinear_prepack(codes, [_TYPICAL_TOKENS, codes.shape[1]])
        self._scales = scales
        self._zeros = torch.zeros(1, dtype=torch.int32)
        self._bias = bias

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        largest = states.abs().amax(dim=1, keepdim=True)
        steps = _LARGEST_CODE / largest.clamp(min=_SMALLEST)  # (tokens, 1), of codes in one
        codes = (states * steps).round_().add_(128).to(torch.uint8)
        multiply = torch.ops.onednn.qlinear_pointwise
        product: torch.Tensor = multiply(
            codes, 1.0, 128, self._codes, self._scales, self._zeros, None, 1.0, 0, states.dtype, "none", [], ""
        )
        return torch.addcmul(self._bias, product, steps.reciprocal())

    def add_to(self, residual: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return self(states).add_(residual)

    def apply_gelu(self, states: torch.Tensor) -> torch.Tensor:
        return functional.gelu(self(states))


def pick_linear(dtype: torch.dtype, device: torch.device | str = "cpu") -> type[Linear]:
    """The fastest product of floating point that works on the device."""
    fastest: type[Linear] = FusedLinear if torch.device(device).type == "cpu" else CublasLinear
    return fastest if _agrees_with_plain(fastest, dtype, 0.02, device) else PlainLinear


def can_multiply_int8(dtype: torch.dtype) -> bool:
    """Whether the processor has instructions for products of bytes (VNNI) and torch calls them rightly."""
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
    return bool(has_vnni) and _agrees_with_plain(Int8Linear, dtype, 0.2)


def _agrees_with_plain(
    linear: type[Linear], dtype: torch.dtype, tolerance: float, device: torch.device | str = "cpu"
) -> bool:
    if torch.device(device).type == "cpu" and not torch.backends.mkldnn.is_available():
        return False
    weight = torch.linspace(-1, 1, 64 * 64).view(64, 64).to(device, dtype)
    bias = torch.linspace(-1, 1, 64).to(device, dtype)
    states = torch.linspace(-1, 1, 3 * 64).view(3, 64).to(device, dtype)
    plain = PlainLinear(weight, bias)
    try:
        other = linear(weight, bias)
        pairs = [
            (plain(states), other(states)),
            (plain.apply_gelu(states), other.apply_gelu(states)),
            (plain.add_to(states, states), other.add_to(states, states)),
        ]
    except (AttributeError, RuntimeError) as error:
        logger.info("%s cannot be used: %s", linear.__name__, str(error).splitlines()[0])
        return False
    return all(torch.allclose(one, two, rtol=0.02, atol=tolerance) for one, two in pairs)
