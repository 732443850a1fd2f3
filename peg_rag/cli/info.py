"""`peg-rag info`: the model that would be used, its pooling, its backend and device, and the installed versions."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated

import typer

from peg_rag.cli.messages import translate

if TYPE_CHECKING:
    from rich.table import Table

    from peg_rag.backend_speed import BackendSpeed
    from peg_rag.encoder import PEGEncoder

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "faiss-cpu",
    "langchain-core",
    "llama-index-core",
    "chromadb",
    "openvino",
    "onnxruntime",
)


def info(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Hub id, folder or peg-mini. Default: $PEG_RAG_MODEL, TownsWu/PEG."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, torch, numpy, openvino or onnx.")] = "auto",
    bench: Annotated[
        bool, typer.Option(help="Measure every backend that can run the model on this machine; takes minutes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the model, its pooling and dimension, the backend it runs on, and versions."""
    from rich.table import Table
    from rich.text import Text

    from peg_rag.cli.console import note, stdout
    from peg_rag.encoder import PEGEncoder

    with PEGEncoder(model, device=device, dtype=dtype, backend=backend) as encoder:
        description = _describe_model(encoder)
    speeds = None
    if bench:
        from peg_rag.backend_speed import measure_backends

        speeds = measure_backends(model, notify=note)
    versions = {"python": platform.python_version(), "peg-rag": version("peg-rag")} | _find_versions()
    if as_json:
        measured = {} if speeds is None else {"backends": [asdict(speed) for speed in speeds]}
        print(json.dumps(description | {"versions": versions} | measured, ensure_ascii=False, indent=2))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in description.items():
        table.add_row(name.replace("_", " "), Text("–" if value in (None, "") else str(value)))
    table.add_row("versions", ", ".join(f"{name} {number}" for name, number in versions.items()))
    stdout.print(table)
    if speeds is not None:
        stdout.print(_make_speed_table(speeds))


def _make_speed_table(speeds: "Sequence[BackendSpeed]") -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("backend", "device", "dtype"):
        table.add_column(translate(column), style="bold cyan" if column == "backend" else None, no_wrap=True)
    for column in ("passages, tokens/s", "one query, ms", "worst cosine to the first"):
        table.add_column(translate(column), justify="right")
    for speed in speeds:
        table.add_row(
            speed.backend,
            speed.device,
            speed.dtype,
            f"{speed.tokens_per_s:,.0f}",
            f"{speed.query_ms:.2f}",
            f"{speed.min_cosine:.5f}",
        )
    return table


def _describe_model(encoder: "PEGEncoder") -> dict[str, str | int | None]:
    spec = encoder.spec
    return {
        "model": spec.name,
        "revision": spec.revision,
        "folder": str(spec.path),
        "kind": spec.kind,
        "pooling": spec.pooling,
        "dimension": encoder.dimension,
        "max_length": spec.max_length,
        "query_prompt": spec.query_prompt,
        "document_prompt": spec.document_prompt,
        "identity": encoder.identity,
        "backend": encoder.backend_name,
        "device": encoder.device,
        "dtype": encoder.dtype,
    }


def _find_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return versions
