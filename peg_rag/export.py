"""Export a transformer for a faster runtime, and prove that its vectors are still the model's.

A variant is written beside the weights, run on real Chinese passages and compared with torch in float32: the cosines of
its vectors, and nDCG@10 where titles of papers are to find the ends of their abstracts. Where either falls too far,
nothing is kept. Costs some two minutes and a copy of the weights for a BERT-large.
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
from importlib.util import find_spec
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
MAX_NDCG_LOSS = 0.02
_CHECK_TEXTS = 64
_CHECK_PAPERS = 128
_ENDING = 30  # characters of an abstract; whole ones are found too easily for a difference to show
_DEPTH = 10  # of nDCG


@dataclass(frozen=True)
class ExportReport:
    """What an export gave, compared with torch in float32.

    Attributes:
        mean_cosine, min_cosine: between its vectors and those of float32, over `texts` passages.
        ndcg, float32_ndcg: nDCG@10 of both, where `queries` titles are to find the ends of their abstracts.
    """

    backend: str
    dtype: str
    folder: str
    megabytes: float
    texts: int
    mean_cosine: float
    min_cosine: float
    queries: int
    ndcg: float
    float32_ndcg: float


def export_model(
    model: str | Path | None,
    out: str | Path,
    *,
    backend: str,
    dtype: str = "auto",
    min_cosine: float = MIN_COSINE,
    max_ndcg_loss: float = MAX_NDCG_LOSS,
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
        max_ndcg_loss: nDCG@10 on bundled titles and ends of abstracts may be this much lower than in float32.
        texts: what to compare vectors on; None for passages of the demo.
        revision: a hub branch, tag or commit.

    Raises:
        InvalidInput: no transformer, an unknown backend or dtype, a folder that is in the way, or vectors or nDCG that
            differ too much; nothing is left behind then.
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
    if is_new:
        shutil.rmtree(work, ignore_errors=True)
    try:
        write_variant(spec, work, backend, dtype)
        report = _compare_vectors(spec, work, backend, dtype, texts or read_texts(_CHECK_TEXTS))
        if not report.min_cosine >= min_cosine:
            raise InvalidInput(
                f"{spec.name} through {backend} in {report.dtype} gives vectors with a cosine of "
                f"{report.min_cosine:.4f} to those of float32 at worst (mean {report.mean_cosine:.4f}), and at least "
                f"{min_cosine} is asked for; nothing was written"
            )
        if not report.float32_ndcg - report.ndcg <= max_ndcg_loss:
            raise InvalidInput(
                f"{spec.name} through {backend} in {report.dtype} has an nDCG@{_DEPTH} of {report.ndcg:.4f} over "
                f"{report.queries} queries, float32 has {report.float32_ndcg:.4f}, and a loss of at most "
                f"{max_ndcg_loss} is allowed; nothing was written"
            )
        _write_record(variant, {"fingerprint": spec.fingerprint, **asdict(report)})
        if is_new:
            work.replace(target)
    except BaseException:
        shutil.rmtree(work if is_new else variant, ignore_errors=True)
        raise
    return report


def write_variant(spec: ModelSpec, folder: Path, backend: str, dtype: str) -> None:
    """Export into a model folder, which is made if it does not exist, without comparing any vectors."""
    if not folder.exists():
        _copy_model(spec, folder)
    variant = variant_folder(folder, backend, dtype)
    variant.mkdir(parents=True)
    _convert_model(spec, variant, backend, dtype)
    _write_record(variant, {"fingerprint": spec.fingerprint})


def can_export(backend: str, dtype: str) -> bool:
    """Whether the tools for an export are installed."""
    return all(find_spec(module) is not None for module in _list_tools(backend, dtype))


def _require_tools(backend: str, dtype: str) -> None:
    for module in _list_tools(backend, dtype):
        require(module, backend)


def _list_tools(backend: str, dtype: str) -> tuple[str, ...]:
    """The modules that an export needs."""
    return (*_TOOLS[backend], "nncf") if (backend, dtype) == ("openvino", "int8") else _TOOLS[backend]


def _check_target(target: Path, spec: ModelSpec, backend: str, dtype: str) -> None:
    if resolve(target).fingerprint != spec.fingerprint:
        raise InvalidInput(f"{target} holds another model than {spec.name}; name a folder that is not there yet")
    folder = variant_folder(target, backend, dtype)
    if folder.exists():
        raise InvalidInput(f"{folder} exists; remove it to export again")


def _copy_model(spec: ModelSpec, out: Path) -> None:
    """The model folder without earlier exports, and with its name, pooling, length and prompts written down."""
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


def _convert_model(spec: ModelSpec, folder: Path, backend: str, dtype: str) -> None:
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
    papers = read_papers(_CHECK_PAPERS)
    with PEGEncoder(folder, backend="torch", dtype="float32", **settings) as reference:
        expected = reference.encode_documents(texts)  # (texts, dimension)
        expected_ndcg = _score_retrieval(reference, papers)
    with PEGEncoder(folder, backend=backend, dtype=dtype, **settings) as exported:
        vectors = exported.encode_documents(texts)
        ndcg = _score_retrieval(exported, papers)
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
        queries=len(papers),
        ndcg=round(ndcg, 6),
        float32_ndcg=round(expected_ndcg, 6),
    )


def _score_retrieval(encoder: PEGEncoder, papers: Sequence[tuple[str, str]]) -> float:
    """Mean nDCG@10 where each title's one relevant document is the end of its own abstract."""
    queries = encoder.encode_queries([title for title, _ in papers])
    documents = encoder.encode_documents([abstract[-_ENDING:] for _, abstract in papers])
    scores = queries @ documents.T  # (papers, papers)
    ranks = 1 + (scores > scores.diagonal()[:, None]).sum(axis=1)
    return float(np.where(ranks <= _DEPTH, 1 / np.log2(1 + ranks), 0.0).mean())


def read_papers(count: int) -> list[tuple[str, str]]:
    """Titles and abstracts of the first papers of the demo."""
    papers = (passage for passage in _read_passages() if passage["id"].startswith("paper-"))
    return [(paper["title"], paper["text"]) for paper, _ in zip(papers, range(count), strict=False)]


def read_texts(count: int) -> list[str]:
    """The first passages of the demo in lengths from a few characters to the whole."""
    texts = [passage["text"] for passage, _ in zip(_read_passages(), range(count), strict=False)]
    return [text[: 4 * (i + 1)] if i % 2 else text[:400] for i, text in enumerate(texts)]


def _read_passages() -> Iterator[dict[str, str]]:
    packed = Path(str(files("peg_rag") / "assets" / "demo" / "passages.jsonl.gz"))
    with gzip.open(packed, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _write_record(folder: Path, content: dict[str, Any]) -> None:
    record = {"format": RECORD_FORMAT, **content}
    write_atomically(folder / RECORD, json.dumps(record, ensure_ascii=False, indent=2).encode())
