"""sentence-transformers' compiled backends, ONNX Runtime and OpenVINO, for `embed.py --peer-backends`.

Both need optimum, whose releases ask for older transformers than this project has, so each runs in a Python environment
of its own, as a process that embeds what it is sent:

    python -m venv onnx && onnx/bin/pip install "sentence-transformers[onnx]" "datasets<5"
    python -m venv openvino && openvino/bin/pip install "sentence-transformers[openvino]" datasets
    python benchmarks/embed.py --peer-backends onnx/bin/python openvino/bin/python

The models are exported, quantised and loaded by sentence-transformers' own functions. Requests and answers are lines of
JSON; the seconds in an answer are those of `encode` alone.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

CALIBRATION_TEXTS = 16  # for the speed, any will do


# -- in the benchmark's process ---------------------------------------------------------------------------------------


class PeerProcess:
    """An environment's Python with those backends that it can load.

    Args:
        python: the interpreter of an environment with sentence-transformers and optimum.
        model: the folder of a transformer.
        exports: an empty folder for the exported models.
        texts: Chinese texts to calibrate static quantisation with.
        threads: that every backend computes on.
        clock: `time.perf_counter` or `time.process_time`, which is then of that process.
    """

    def __init__(
        self, python: str, model: Path, exports: Path, texts: list[str], threads: int, clock: Callable[[], float]
    ) -> None:
        arguments = [str(model), "--exports", str(exports), "--threads", str(threads), "--clock", clock.__name__]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [python, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.backends: dict[str, dict[str, Any]] = self._ask({"calibration": texts})

    def embed(self, name: str, batch_size: int, texts: list[str]) -> tuple[np.ndarray, float]:
        """The (texts, width) vectors, and the seconds that took."""
        answer = self._ask({"name": name, "batch_size": batch_size, "texts": texts})
        return np.asarray(answer["vectors"], dtype=np.float32), float(answer["seconds"])

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the peers' process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


# -- in the environment with optimum ----------------------------------------------------------------------------------


class Backends:
    """The backends that this environment can load, and why it cannot load the others."""

    def __init__(self, model: Path, exports: Path, threads: int, clock: Callable[[], float]) -> None:
        self._model = model
        self._exports = exports
        self._threads = threads
        self._clock = clock
        self.models: dict[str, Any] = {}
        self.descriptions: dict[str, dict[str, Any]] = {}

    def load_all(self, calibration: list[str]) -> None:
        self._load("ONNX, float32", "float32", self.load_onnx)
        self._load("ONNX, int8", "int8", self.load_onnx_int8)
        self._load("OpenVINO, float32", "float32", lambda: self.load_openvino("f32"))
        self._load("OpenVINO, bfloat16", "bfloat16", lambda: self.load_openvino("bf16"))
        self._load("OpenVINO, int8", "int8", lambda: self.load_openvino_int8(calibration))

    def _load(self, name: str, dtype: str, load: Callable[[], tuple[Any, dict[str, Any]]]) -> None:
        try:
            self.models[name], options = load()
            gc.collect()  # what the export and the quantisation leave behind is larger than the model
        except Exception as error:  # sentence-transformers has a plain Exception for a missing package
            self.descriptions[name] = {"skipped": f"{type(error).__name__}: {str(error)[:300]}"}
        else:
            self.descriptions[name] = {"dtype": dtype, "configuration": options}

    def load_onnx(self) -> tuple[Any, dict[str, Any]]:
        from sentence_transformers import SentenceTransformer

        folder = self._exports / "onnx"
        if not folder.exists():
            exported = SentenceTransformer(str(self._model), backend="onnx", model_kwargs={"export": True})
            exported.save_pretrained(str(folder))
            del exported
        return self._open_onnx("onnx/model.onnx")

    def load_onnx_int8(self) -> tuple[Any, dict[str, Any]]:
        """Dynamic quantisation, with the settings for AVX-512 VNNI."""
        from sentence_transformers import export_dynamic_quantized_onnx_model

        model = self.models.get("ONNX, float32") or self.load_onnx()[0]
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", str(self._exports / "onnx"))
        return self._open_onnx("onnx/model_qint8_avx512_vnni.onnx")

    def _open_onnx(self, file_name: str) -> tuple[Any, dict[str, Any]]:
        import onnxruntime
        from sentence_transformers import SentenceTransformer

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = self._threads
        options: dict[str, Any] = {"file_name": file_name, "provider": "CPUExecutionProvider"}
        model = SentenceTransformer(
            str(self._exports / "onnx"), backend="onnx", model_kwargs={**options, "session_options": session}
        )
        return model, options | list_versions("optimum-onnx", "onnxruntime")

    def load_openvino(self, precision: str) -> tuple[Any, dict[str, Any]]:
        from sentence_transformers import SentenceTransformer

        folder = self._exports / "openvino"
        if not folder.exists():
            exported = SentenceTransformer(str(self._model), backend="openvino", model_kwargs={"export": True})
            exported.save_pretrained(str(folder))
            del exported
        return self._open_openvino("openvino/openvino_model.xml", {"INFERENCE_PRECISION_HINT": precision})

    def load_openvino_int8(self, calibration: list[str]) -> tuple[Any, dict[str, Any]]:
        """Static quantisation; what stays in floats is in the type that OpenVINO chooses."""
        from optimum.intel import OVQuantizationConfig
        from sentence_transformers import export_static_quantized_openvino_model

        texts = self._exports / "calibration"
        texts.mkdir()
        lines = [json.dumps({"text": text}) for text in calibration[:CALIBRATION_TEXTS]]
        (texts / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        model, _ = self.load_openvino("f32")  # another one than is measured: it is quantised in place
        export_static_quantized_openvino_model(
            model,
            OVQuantizationConfig(num_samples=CALIBRATION_TEXTS),
            str(self._exports / "openvino"),
            dataset_name=str(texts),
            dataset_config_name="default",
            dataset_split="train",
            column_name="text",
        )
        return self._open_openvino("openvino/openvino_model_qint8_quantized.xml", {})

    def _open_openvino(self, file_name: str, precision: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        from sentence_transformers import SentenceTransformer

        settings = {"INFERENCE_NUM_THREADS": self._threads, "PERFORMANCE_HINT": "LATENCY", **precision}
        options: dict[str, Any] = {"file_name": file_name, "ov_config": settings}
        model = SentenceTransformer(str(self._exports / "openvino"), backend="openvino", model_kwargs=options)
        return model, options | list_versions("optimum-intel", "openvino")

    def embed(self, name: str, batch_size: int, texts: list[str]) -> dict[str, Any]:
        started = self._clock()
        vectors = self.models[name].encode(texts, batch_size=batch_size, show_progress_bar=False)
        seconds = self._clock() - started
        return {"seconds": seconds, "vectors": vectors.tolist()}


def list_versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in ("sentence-transformers", *packages)}


def serve(backends: Backends, questions: IO[str], answers: IO[str]) -> None:
    """Load what can be loaded at the first question, then embed."""
    for line in questions:
        question = json.loads(line)
        if "calibration" in question:
            backends.load_all(question["calibration"])
            answer: dict[str, Any] = backends.descriptions
        else:
            answer = backends.embed(**question)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--exports", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--clock", choices=["perf_counter", "process_time"], required=True)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the libraries print must not get among the answers
    backends = Backends(options.model, options.exports, options.threads, getattr(time, options.clock))
    serve(backends, sys.stdin, answers)


if __name__ == "__main__":
    main()
