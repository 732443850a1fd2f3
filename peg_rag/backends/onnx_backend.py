"""Exported transformers through ONNX Runtime: float32, or int8 weights with dynamically quantised activations.

A small, portable runtime. On processors without bfloat16 units int8 is the fast dtype here; where there are such units,
torch or OpenVINO in bfloat16 is faster at a higher precision.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from peg_rag.backends.exported import ExportedBackend, check_device, exported_file, read_thread_limit
from peg_rag.errors import DamagedModel, InvalidInput
from peg_rag.extras import require
from peg_rag.models import ModelSpec

MODEL_FILE = "model.onnx"


class OnnxBackend(ExportedBackend):
    """`dtype` is `auto` (float32), `float32` or `int8`."""

    def __init__(self, spec: ModelSpec, *, device: str | None = None, dtype: str = "auto") -> None:
        check_device(device, "onnx")
        if dtype not in ("auto", "float32", "int8"):
            raise InvalidInput(f"dtype={dtype!r}, but backend='onnx' runs in 'float32' or 'int8'")
        super().__init__(spec)
        self.dtype = "int8" if dtype == "int8" else "float32"
        file = exported_file(spec, "onnx", self.dtype, MODEL_FILE)
        runtime = require("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = read_thread_limit() or 0  # 0: one for each core
        try:
            self._model: Any = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has an error of its own for every kind of damage
            raise DamagedModel(f"{file} cannot be opened ({str(error)[:200]}); export the model again") from error

    def _compute_states(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        [states] = self._model.run(None, {"input_ids": ids, "attention_mask": mask})
        return np.asarray(states, dtype=np.float32)
