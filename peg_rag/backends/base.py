"""The one method a backend must have, and the table that opens one by name."""

import importlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import InvalidInput
from peg_rag.models import Kind, ModelSpec


class Backend(Protocol):
    """Runs a model on one batch. `device` and `dtype` are names for people: `cpu`, `bfloat16`."""

    device: str
    dtype: str
    batch_tokens: int  # a good token budget for a batch on this device
    vocabulary_size: int  # rows in the table of token embeddings: token ids stay below it

    def embed(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Pooled vectors, not normalised, (rows, dimension), for rows of token ids of any lengths. Thread-safe."""
        ...

    def close(self) -> None:
        """Give the memory of the weights back."""
        ...


_BACKENDS = {
    "transformer": {"torch": "peg_rag.backends.torch_backend:TorchBackend"},
    "static": {"numpy": "peg_rag.backends.static_backend:StaticBackend"},
}


def backend_names(kind: Kind) -> list[str]:
    """The backends that run models of this kind, the one that `auto` takes first."""
    return list(_BACKENDS[kind])


def open_backend(name: str, spec: ModelSpec, *, device: str | None, dtype: str) -> Backend:
    """Load the model's weights into the backend of that name (`auto`: the first that runs this kind of model).

    Raises:
        InvalidInput: no such backend for this kind of model.
        DamagedModel: the weights cannot be read.
    """
    names = backend_names(spec.kind)
    name = names[0] if name == "auto" else name
    if name not in names:
        raise InvalidInput(
            f"backend={name!r}, but {spec.name} is a {spec.kind} model: 'auto' or one of {names} is expected"
        )
    module, cls = _BACKENDS[spec.kind][name].split(":")
    opened: Backend = getattr(importlib.import_module(module), cls)(spec, device=device, dtype=dtype)
    return opened
