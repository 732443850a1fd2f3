"""Exported transformers through OpenVINO, which is at its best on Intel processors: bfloat16 (AMX, AVX-512) or int8.

`dtype="auto"` is bfloat16 where the processor multiplies it natively, as with torch, else float32; both run from one
file. int8 has weights of eight bits and activations quantised in groups as they come.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from peg_rag.backends.exported import ExportedBackend, check_device, exported_file, read_thread_limit
from peg_rag.errors import DamagedModel, InvalidInput
from peg_rag.extras import require
from peg_rag.models import ModelSpec

MODEL_FILE = "model.xml"
_INT8_GROUP = 32  # activations quantised together
_PRECISION = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


class OpenvinoBackend(ExportedBackend):
    """`dtype` is `auto`, `float32`, `bfloat16` or `int8`."""

    def __init__(self, spec: ModelSpec, *, device: str | None = None, dtype: str = "auto") -> None:
        check_device(device, "openvino")
        if dtype not in ("auto", *_PRECISION):
            raise InvalidInput(f"dtype={dtype!r}, but backend='openvino' runs in {', '.join(_PRECISION)}")
        super().__init__(spec)
        file = exported_file(spec, "openvino", dtype, MODEL_FILE)
        openvino = require("openvino", "openvino")
        core = openvino.Core()
        if dtype == "auto":
            capable = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            dtype = "bfloat16" if capable else "float32"
        self.dtype = dtype
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _PRECISION[dtype], "PERFORMANCE_HINT": "LATENCY"}
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _INT8_GROUP if dtype == "int8" else 0
        if threads := read_thread_limit():
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = core.compile_model(str(file), "CPU", options)
        except Exception as error:  # the runtime has one error for every kind of damage, with a trace of its own code
            raise DamagedModel(f"{file} cannot be opened ({str(error)[:200]}); export the model again") from error

    def _compute_states(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        states = self._model({"input_ids": ids, "attention_mask": mask})[0]
        return np.asarray(states, dtype=np.float32)
