"""`peg-rag adapt docs/ -o my-model`: a model that finds more in documents like these."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from peg_rag.training.adapt.report import Adaptation, Judgement


def adapt(
    documents: Annotated[
        Path,
        typer.Argument(
            help="A folder of documents (txt, md, html, pdf, docx, csv, jsonl), a .txt of passages, or what "
            "`peg-rag feedback export` wrote."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the model goes.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Where to start: a hub id, a folder or a bundled name.")
    ] = "peg-mini",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; by default by the amount of text.")] = None,
    minutes: Annotated[float | None, typer.Option(help="About how long to train, instead of --steps.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the documents to judge by, never trained on.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Save a model that got worse, too.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model at --out.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best that is available.")] = None,
) -> None:
    """Adapt a model to documents without labels. Ctrl-C saves a checkpoint; the same command goes on with it.

    Exit code 3: files were skipped.
    """
    from peg_rag.cli.console import error, note, show
    from peg_rag.extras import require

    for package in ("accelerate", "datasets", "faiss", "ir_measures", "pydantic"):
        require(package, "train")
    from peg_rag.training.adapt.adapt import AdaptOptions
    from peg_rag.training.adapt.adapt import adapt as run

    options = AdaptOptions(steps=steps, minutes=minutes, held_out=held_out, seed=seed)
    adaptation = run(
        documents, model, out, options, force=force, overwrite=overwrite, device=device, show_progress=True
    )
    for reason in adaptation.failed:
        note(f"left out: {reason}")
    if adaptation.judgement is None:
        note("interrupted; a checkpoint is written, and the same command goes on from it")
        raise typer.Exit(130)
    show(_format_table(adaptation, adaptation.judgement))
    if not adaptation.saved:
        error("the model got worse and is not saved. Give it more text or fewer steps, or save it with --force")
        raise typer.Exit(1)
    note(f"→ {adaptation.folder}")
    if adaptation.failed:
        raise typer.Exit(3)


def _format_table(adaptation: "Adaptation", judgement: "Judgement") -> "Table":
    from rich.table import Table

    table = Table(f"{len(judgement.before.query_ids):,} held-out queries", box=None, padding=(0, 2, 0, 0))
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    for metric in judgement.before.values:
        table.add_row(metric, f"{judgement.before.mean(metric):.3f}", f"{judgement.after.mean(metric):.3f}")
    comparison = judgement.comparison
    table.caption = (
        f"{comparison.metric} {comparison.difference:+.3f} "
        f"(95 % interval {comparison.low:+.3f} to {comparison.high:+.3f}, p = {comparison.p:.3f}, "
        f"permutation test paired over queries); {adaptation.pairs:,} pairs of {adaptation.documents:,} documents, "
        f"{adaptation.steps:,} steps, {judgement.share:.2f} of the trained weights"
    )
    return table
