"""The `Backend` protocol and the registry that opens backends by name."""

import importlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from peg_rag.backends.exported import COMPILED, is_exported
from peg_rag.errors import InvalidInput
from peg_rag.models import Kind, ModelSpec


class Backend(Protocol):
    """Runs a model on one batch. `device` and `dtype` are names for people: `cpu`, `bfloat16`.

    `open_backend` calls the class as `NameBackend(spec, device=…, dtype=…)`. `PEGEncoder.backend_name` is the name of
    the class in lower case without `Backend`, so the static model's `numpy` backend reports `static`.
    """

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
    "transformer": {
        "torch": "peg_rag.backends.torch_backend:TorchBackend",
        "openvino": "peg_rag.backends.openvino_backend:OpenvinoBackend",
        "onnx": "peg_rag.backends.onnx_backend:OnnxBackend",
    },
    "static": {"numpy": "peg_rag.backends.static_backend:StaticBackend"},
}


def backend_names(kind: Kind) -> list[str]:
    """The backends that run models of this kind, the one that `auto` takes first."""
    return list(_BACKENDS[kind])


def name_backend(backend: object) -> str:
    """`torch`, `static` (what the name `numpy` opens), `openvino` or `onnx`."""
    return type(backend).__name__.removesuffix("Backend").lower()


def open_backend(name: str, spec: ModelSpec, *, device: str | None, dtype: str) -> Backend:
    """Load the model's weights into the backend of that name.

    `auto` is numpy for a static model. For a transformer on the CPU it is what the folder was exported for by
    `peg-rag export`, in floating point if there is a choice; else torch, which also runs on accelerators.

    Raises:
        InvalidInput: no such backend for this kind of model.
        DamagedModel: the weights cannot be read.
    """
    names = backend_names(spec.kind)
    if name == "auto":
        name, dtype = _choose_backend(spec, device, dtype)
    if name not in names:
        raise InvalidInput(
            f"backend={name!r}, but {spec.name} is a {spec.kind} model: 'auto' or one of {names} is expected"
        )
    module, cls = _BACKENDS[spec.kind][name].split(":")
    opened: Backend = getattr(importlib.import_module(module), cls)(spec, device=device, dtype=dtype)
    return opened


def _choose_backend(spec: ModelSpec, device: str | None, dtype: str) -> tuple[str, str]:
    """→ (backend, dtype)."""
    default = backend_names(spec.kind)[0]
    if not (spec.path / COMPILED).is_dir() or device not in (None, "auto", "cpu"):
        return default, dtype
    from peg_rag.backends.torch_backend import pick_device

    if pick_device(device) != "cpu":
        return default, dtype
    dtypes = ("auto", "int8") if dtype == "auto" else (dtype,)
    choices = [("openvino", choice) for choice in dtypes if choice != "float16"]
    choices += [("onnx", choice) for choice in dtypes if choice not in ("float16", "bfloat16")]
    return next(((name, choice) for name, choice in choices if is_exported(spec, name, choice)), (default, dtype))
