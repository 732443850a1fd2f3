"""Export a transformer for a faster runtime, and prove that its vectors are still the model's.

A variant is written beside the weights, run on real Chinese passages and compared with torch in float32. Where a cosine
falls below the limit nothing is kept. Costs a minute and a copy of the weights for a BERT-large.
"""

import contextlib
import gzip
import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from peg_rag.backends.exported import COMPILED, RECORD, RECORD_FORMAT, RUNTIMES, variant_folder
from peg_rag.backends.onnx_backend import MODEL_FILE as ONNX_FILE
from peg_rag.backends.openvino_backend import MODEL_FILE as OPENVINO_FILE
from peg_rag.encoder import PEGEncoder
from peg_rag.errors import InvalidInput
from peg_rag.extras import require
from peg_rag.files import write_atomically
from peg_rag.models import CONFIG_FILE, CONFIG_FORMAT, ModelSpec, resolve

MIN_COSINE = 0.99
_CHECK_TEXTS = 64


@dataclass(frozen=True)
class ExportReport:
    """What an export gave. Cosines are between its vectors and those of torch in float32, over `texts` passages."""

    backend: str
    dtype: str
    folder: str
    megabytes: float
    texts: int
    mean_cosine: float
    min_cosine: float


def export_model(
    model: str | Path | None,
    out: str | Path,
    *,
    backend: str,
    dtype: str = "auto",
    min_cosine: float = MIN_COSINE,
    texts: Sequence[str] | None = None,
    revision: str | None = None,
) -> ExportReport:
    """Write a model folder that `PEGEncoder(out)` runs through another backend.

    Args:
        model: a hub id or a folder; a transformer.
        out: the folder to write; or a folder with the same weights, to which the variant is added.
        backend: `openvino` or `onnx`.
        dtype: `auto` (floating point) or `int8`.
        min_cosine: every text's vector must be at least this near to that of torch in float32.
        texts: what to compare on; None for passages of the demo.
        revision: a hub branch, tag or commit.

    Raises:
        InvalidInput: no transformer, an unknown backend or dtype, a folder that is in the way, or vectors that differ
            too much; nothing is left behind then.
        MissingExtra: the tools of this backend are not installed.
    """
    if backend not in RUNTIMES:
        raise InvalidInput(f"backend={backend!r}, but one of {', '.join(RUNTIMES)} is expected")
    if dtype not in ("auto", "int8"):
        raise InvalidInput(f"dtype={dtype!r}: export 'auto', which runs in every floating-point type, or 'int8'")
    spec = resolve(model, revision=revision)
    if spec.kind != "transformer":
        raise InvalidInput(f"{spec.name} is a static model, which runs in numpy and has nothing to gain from an export")
    _require_tools(backend, dtype)
    target = Path(out).expanduser()
    is_new = not target.exists()
    if not is_new:
        _check_target(target, spec, backend, dtype)
    work = target.with_name(f"{target.name}.part") if is_new else target
    variant = variant_folder(work, backend, dtype)
    try:
        if is_new:
            _copy_model(spec, work)
        variant.mkdir(parents=True)
        _write_variant(spec, variant, backend, dtype)
        _write_record(variant, {"fingerprint": spec.fingerprint})
        report = _compare_vectors(spec, work, backend, dtype, texts or _demo_texts())
        if not report.min_cosine >= min_cosine:
            raise InvalidInput(
                f"{spec.name} through {backend} in {report.dtype} gives vectors with a cosine of "
                f"{report.min_cosine:.4f} to those of float32 at worst (mean {report.mean_cosine:.4f}), and at least "
                f"{min_cosine} is asked for; nothing was written"
            )
        _write_record(variant, {"fingerprint": spec.fingerprint, **asdict(report)})
        if is_new:
            work.replace(target)
    except BaseException:
        shutil.rmtree(work if is_new else variant, ignore_errors=True)
        raise
    return report


def _require_tools(backend: str, dtype: str) -> None:
    modules = _TOOLS[backend]
    if (backend, dtype) == ("openvino", "int8"):
        modules = (*modules, "nncf")
    for module in modules:
        require(module, backend)


def _check_target(target: Path, spec: ModelSpec, backend: str, dtype: str) -> None:
    if resolve(target).fingerprint != spec.fingerprint:
        raise InvalidInput(f"{target} holds another model than {spec.name}; name a folder that is not there yet")
    folder = variant_folder(target, backend, dtype)
    if folder.exists():
        raise InvalidInput(f"{folder} exists; remove it to export again")


def _copy_model(spec: ModelSpec, out: Path) -> None:
    """The model folder without earlier exports, and with its name, pooling, length and prompts written down."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(spec.path, out, ignore=shutil.ignore_patterns(COMPILED, ".*"))
    config = {
        "format": CONFIG_FORMAT,
        "name": spec.name,
        "pooling": spec.pooling,
        "max_length": spec.max_length,
        "query_prompt": spec.query_prompt,
        "document_prompt": spec.document_prompt,
    }
    write_atomically(out / CONFIG_FILE, json.dumps(config, ensure_ascii=False, indent=2).encode())


def _write_variant(spec: ModelSpec, folder: Path, backend: str, dtype: str) -> None:
    import torch

    from peg_rag.backends.torch_backend import load_model

    body = _states_of(load_model(spec, torch.float32))
    with _quiet_exporters():
        _WRITERS[backend](body, spec, folder, dtype)


@contextlib.contextmanager
def _quiet_exporters() -> Iterator[None]:
    """No warnings, logs or prints: exporters tell of their every step."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _write_onnx(body: Any, spec: ModelSpec, folder: Path, dtype: str) -> None:
    import torch

    ids = torch.ones((2, 3), dtype=torch.long)
    shape = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", max=spec.max_length)}
    plain = folder / (ONNX_FILE if dtype == "auto" else "float.onnx")
    torch.onnx.export(
        body,
        (ids, torch.ones_like(ids)),
        str(plain),
        input_names=["input_ids", "attention_mask"],
        output_names=["states"],
        dynamic_shapes=(shape, shape),
        dynamo=True,
        external_data=sum(weight.numel() for weight in body.parameters()) > 400_000_000,  # a file may have 2 GB
        verbose=False,
    )
    if dtype == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(plain, folder / ONNX_FILE, weight_type=QuantType.QInt8, per_channel=True)
        for file in folder.glob("float.onnx*"):  # with its external data
            file.unlink()


def _write_openvino(body: Any, spec: ModelSpec, folder: Path, dtype: str) -> None:
    import openvino
    import torch

    ids = torch.ones((2, 3), dtype=torch.long)
    model = openvino.convert_model(body, example_input=(ids, torch.ones_like(ids)))
    for port, name in zip(model.inputs, ("input_ids", "attention_mask"), strict=True):
        port.get_tensor().set_names({name})
    if dtype == "int8":
        import nncf

        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    openvino.save_model(model, str(folder / OPENVINO_FILE), compress_to_fp16=False)


# By backend, as `RUNTIMES`: the modules that an export needs, and the function that writes one.
_TOOLS: dict[str, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
_WRITERS: dict[str, Callable[[Any, ModelSpec, Path, str], None]] = {
    "openvino": _write_openvino,
    "onnx": _write_onnx,
}


def _states_of(model: Any) -> Any:
    import torch

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return States().eval()


def _compare_vectors(spec: ModelSpec, folder: Path, backend: str, dtype: str, texts: Sequence[str]) -> ExportReport:
    settings: dict[str, Any] = {"pooling": spec.pooling, "max_length": spec.max_length, "device": "cpu"}
    with PEGEncoder(folder, backend="torch", dtype="float32", **settings) as reference:
        expected = reference.encode_documents(texts)  # (texts, dimension)
    with PEGEncoder(folder, backend=backend, dtype=dtype, **settings) as exported:
        vectors = exported.encode_documents(texts)
        served = exported.dtype
    cosines = (vectors * expected).sum(axis=1)
    size = sum(file.stat().st_size for file in variant_folder(folder, backend, dtype).iterdir())
    return ExportReport(
        backend=backend,
        dtype=served,
        folder=str(variant_folder(Path(), backend, dtype)),
        megabytes=round(size / 1e6, 1),
        texts=len(texts),
        mean_cosine=round(float(cosines.mean()), 6),
        min_cosine=round(float(np.min(cosines)), 6),
    )


def _demo_texts() -> list[str]:
    """Passages of the demo in lengths from a few characters to the whole."""
    archive = Path(str(files("peg_rag") / "assets" / "demo" / "passages.jsonl.gz"))
    with gzip.open(archive, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(_CHECK_TEXTS), strict=False)]
    return [text[: 4 * (i + 1)] if i % 2 else text[:400] for i, text in enumerate(texts)]


def _write_record(folder: Path, content: dict[str, Any]) -> None:
    record = {"format": RECORD_FORMAT, **content}
    write_atomically(folder / RECORD, json.dumps(record, ensure_ascii=False, indent=2).encode())
