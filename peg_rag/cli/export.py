"""`peg-rag export MODEL OUT --backend openvino`: a model folder that runs faster on a CPU, checked against float32."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a transformer.")],
    out: Annotated[Path, typer.Argument(help="The folder to write, or one with the same weights to add to.")],
    backend: Annotated[str, typer.Option(help="openvino or onnx.")],
    dtype: Annotated[str, typer.Option(help="auto (floating point) or int8.")] = "auto",
    min_cosine: Annotated[
        float, typer.Option(min=-1.0, max=1.0, help="Refuse vectors that are farther than this from those of float32.")
    ] = 0.99,
    max_ndcg_loss: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Refuse where nDCG@10 is this much lower than in float32.")
    ] = 0.02,
) -> None:
    """Export a model for OpenVINO or ONNX Runtime; OUT then runs through it wherever a model is named."""
    from peg_rag.cli.console import note, show
    from peg_rag.export import export_model

    note(f"exporting for {backend}, then comparing with float32 …")
    report = export_model(model, out, backend=backend, dtype=dtype, min_cosine=min_cosine, max_ndcg_loss=max_ndcg_loss)
    show(
        f"{out}: {report.backend} {report.dtype}, {report.megabytes:,.1f} MB; cosine to float32 over {report.texts} "
        f"passages: mean {report.mean_cosine:.4f}, worst {report.min_cosine:.4f}; "
        f"nDCG@10 over {report.queries} queries {report.ndcg:.4f}, float32 {report.float32_ndcg:.4f}"
    )
