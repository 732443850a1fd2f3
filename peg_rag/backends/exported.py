"""What the backends of exported models share: where the files lie, whose weights they hold, and pooling in numpy.

`peg-rag export` writes each variant (a runtime and, maybe, int8) into a folder of its own inside the model folder,
beside the weights it was made from. A record holds their fingerprint, so that a stale export is never used after the
weights change.
"""

import os
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peg_rag.errors import DamagedModel, InvalidInput
from peg_rag.model_folder import read_object
from peg_rag.models import ModelSpec

COMPILED = "compiled"  # the folder of the exports inside a model folder
RECORD = "export.json"
RECORD_FORMAT = 1
RUNTIMES = {"openvino": "openvino", "onnx": "onnxruntime"}  # backend → the module that runs it


def variant_name(backend: str, dtype: str) -> str:
    """The folder of a variant: one for all float types of a backend, another for int8."""
    return f"{backend}-int8" if dtype == "int8" else backend


def variant_folder(folder: Path, backend: str, dtype: str) -> Path:
    return folder / COMPILED / variant_name(backend, dtype)


def is_exported(spec: ModelSpec, backend: str, dtype: str = "auto") -> bool:
    """Whether the model folder holds this variant and its runtime is installed."""
    record = variant_folder(spec.path, backend, dtype) / RECORD
    return record.is_file() and find_spec(RUNTIMES[backend]) is not None


def exported_file(spec: ModelSpec, backend: str, dtype: str, name: str) -> Path:
    """The file `name` of an exported variant.

    Raises:
        InvalidInput: the model was not exported for this backend and dtype.
        DamagedModel: the export was made from other weights, or is not whole.
    """
    folder = variant_folder(spec.path, backend, dtype)
    option = " --dtype int8" if dtype == "int8" else ""
    command = f"peg-rag export {spec.name} OUT --backend {backend}{option}"
    if not (folder / RECORD).is_file():
        raise InvalidInput(
            f"backend={backend!r} with dtype={dtype!r} needs a model that was exported for it: run `{command}` "
            "and open OUT"
        )
    record = read_object(folder / RECORD)
    if record.get("format") != RECORD_FORMAT or record.get("fingerprint") != spec.fingerprint:
        raise DamagedModel(f"{folder} was exported from other weights than those in {spec.path}; run `{command}` again")
    file = folder / name
    if not file.is_file():
        raise DamagedModel(f"{file} is missing; run `{command}` again")
    return file


def read_vocabulary_size(spec: ModelSpec) -> int:
    """Rows in the table of token embeddings."""
    size = read_object(spec.path / "config.json").get("vocab_size")
    if not isinstance(size, int):
        raise DamagedModel(f"{spec.path / 'config.json'} does not say vocab_size")
    return size


def read_thread_limit() -> int | None:
    """The threads that `OMP_NUM_THREADS` allows, which torch obeys by itself and these runtimes do not."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and int(value) else None


class ExportedBackend:
    """Runs an exported transformer on the CPU, one batch at a time; a subclass opens the runtime and calls it."""

    device = "cpu"
    dtype = "float32"
    batch_tokens = 1024

    def __init__(self, spec: ModelSpec) -> None:
        self.vocabulary_size = read_vocabulary_size(spec)
        self._pooling = spec.pooling
        self._pad = int(read_object(spec.path / "config.json").get("pad_token_id") or 0)
        self._lock = threading.Lock()  # one batch at a time: bounded memory, and no fight over cores
        self._model: Any = None

    def embed(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        ids = np.full((len(token_ids), max(map(len, token_ids))), self._pad, dtype=np.int64)  # (rows, tokens)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(token_ids):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        with self._lock:
            if self._model is None:
                raise InvalidInput("this backend is closed")
            states = self._compute_states(ids, mask)
        return pool_states(np.asarray(states, dtype=np.float32), mask, self._pooling)

    def close(self) -> None:
        with self._lock:
            self._model = None

    def _compute_states(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids and their mask (rows, tokens) → states of the last layer (rows, tokens, d)."""
        raise NotImplementedError


def pool_states(states: NDArray[np.float32], mask: NDArray[np.int64], pooling: str) -> NDArray[np.float32]:
    """As `torch_backend.pool`: token states (rows, tokens, d) and their mask (rows, tokens) → (rows, d)."""
    if pooling == "cls":
        return states[:, 0].copy()
    if pooling == "lasttoken":
        return np.asarray(states[np.arange(len(states)), mask.sum(axis=1) - 1], dtype=np.float32)
    is_token = mask[:, :, None].astype(bool)
    if pooling == "max":
        return np.asarray(np.where(is_token, states, -np.inf).max(axis=1), dtype=np.float32)
    summed = np.where(is_token, states, 0.0).sum(axis=1)
    return np.asarray(summed / mask.sum(axis=1, keepdims=True), dtype=np.float32)


def check_device(device: str | None, backend: str) -> None:
    """Exported models run on the CPU.

    Raises:
        InvalidInput: another device was asked for.
    """
    if device not in (None, "auto", "cpu"):
        raise InvalidInput(
            f"device={device!r}, but backend={backend!r} runs on the cpu; backend='torch' runs elsewhere"
        )
