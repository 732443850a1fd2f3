"""`peg-rag train`: a recipe → a model folder; `--dry-run` says what it would take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from peg_rag.training.run.estimate import RunEstimate
    from peg_rag.training.run.train import TrainingResult


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; see train/recipes.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in stages.0.steps=100.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, to the same bits.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in output_dir.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe; print candidates, memory, hours.")
    ] = False,
    devices: Annotated[int, typer.Option(help="Devices that --dry-run estimates for.", min=1)] = 1,
) -> None:
    """Train a text-embedding model. Ctrl-C saves a checkpoint; for many devices, see train/README.md."""
    from peg_rag.training import Recipe

    checked = Recipe.load(recipe, overrides or [])
    if dry_run:
        from peg_rag.training.run.estimate import estimate_run

        _show_estimate(estimate_run(checked, devices=devices))
        return
    from peg_rag.training import train as run

    result = run(checked, resume=resume, overwrite=overwrite, show_progress=True)
    _show_result(result)
    if result.interrupted:
        raise typer.Exit(130)


def _show_result(result: "TrainingResult") -> None:
    from peg_rag.cli.console import stderr

    for stage in result.stages:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in stage.scores.items())
        stderr.print(f"{stage.name}: {stage.steps:,} steps{', ' + scores if scores else ''}", soft_wrap=True)
    if result.interrupted:
        stderr.print("interrupted; a checkpoint is written, and --resume goes on from it", soft_wrap=True)
    else:
        stderr.print(f"→ {result.folder}", soft_wrap=True)


def _show_estimate(estimate: "RunEstimate") -> None:
    from peg_rag.cli.console import stdout

    for line in estimate.lines():
        stdout.print(line, soft_wrap=True)
