"""`peg-rag feedback`: readers' ratings, exported as an evaluation set, and a report of whether search got better."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from peg_rag.evaluation import System
    from peg_rag.feedback.report import Store

feedback = typer.Typer(no_args_is_help=True, help="Ratings of answers: an evaluation set, and a report.")

StoreArgument = Annotated[Path, typer.Argument(help="A folder made by `peg-rag index`, whose server was rated.")]


@feedback.command("export")
def export(
    store: StoreArgument,
    out: Annotated[
        Path, typer.Argument(help="A folder for corpus.jsonl, queries.jsonl and qrels/test.tsv, in BEIR's form.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write the ratings as a set that `peg-rag evaluate` scores and `peg-rag adapt` trains on.

    Exit code 3: some judged passages are no longer in the index.
    """
    from peg_rag.cli.console import note, show
    from peg_rag.feedback import FeedbackStore
    from peg_rag.feedback.export import export_feedback
    from peg_rag.index import PEGIndex

    ratings = FeedbackStore(store).read()
    with PEGIndex(store, read_only=True) as index:
        report = export_feedback(ratings, index, out, overwrite=overwrite)
    show(
        f"{report.ratings:,} ratings → {report.queries:,} questions, {report.relevant:,} relevant and "
        f"{report.wrong:,} wrong passages, among {report.passages:,}"
    )
    unanswered = report.queries - report.answered
    if unanswered:
        note(f"{unanswered:,} questions have no relevant passage yet: every system scores 0 on them")
    note(f"→ {out}")
    if report.gone:
        note(f"left out: {report.gone:,} judgements of passages that are no longer in the index")
        raise typer.Exit(3)


@feedback.command("report")
def report(
    store: StoreArgument,
    out: Annotated[Path, typer.Argument(help="The HTML page to write.")] = Path("feedback.html"),
    against: Annotated[
        list[str] | None,
        typer.Option(help="An earlier store (a folder), or a model, to compare with; may be repeated."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the model the store was made with.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
) -> None:
    """Show thumbs over time, and how the present index does on the questions that readers judged."""
    from peg_rag.cli.console import note, show
    from peg_rag.extras import require
    from peg_rag.feedback import FeedbackStore
    from peg_rag.feedback.report import METRICS, score_systems, write_report

    for module in ("ir_measures", "matplotlib", "scipy"):
        require(module, "eval")
    ratings = FeedbackStore(store).read()
    with ExitStack() as stack:
        present = _open_store(store, model, device, stack)
        systems = [present, *(_open_system(name, model, device, stack) for name in against or [])]
        judgements, results = score_systems(ratings, present.index, systems)
    write_report(out, ratings, judgements, results)
    up = sum(rating.vote == "up" for rating in ratings)
    show(f"{len(ratings):,} ratings, {up:,} useful; {len(judgements.answered):,} questions with a relevant passage")
    for result in results:
        show("  ".join([result.system, *(f"{metric} {result.mean(metric):.3f}" for metric in METRICS)]))
    note(f"→ {out}")


def _open_system(name: str, model: str | None, device: str | None, stack: ExitStack) -> "System":
    """An earlier store, by `model` where it names none, or a model over the passages of the present one."""
    from peg_rag.encoder import PEGEncoder
    from peg_rag.evaluation import Indexed
    from peg_rag.index.store import FILE_NAME
    from peg_rag.ingest import model_of

    folder = Path(name)
    if (folder / FILE_NAME).is_file():
        store = _open_store(folder, model_of(folder) or model, device, stack)
        return replace(store, name=f"store {folder}")  # its name may be that of the present one
    encoder = stack.enter_context(PEGEncoder(name, device=device))
    return Indexed("hybrid", encoder, f"model {encoder.spec.name}")


def _open_store(folder: Path, model: str | None, device: str | None, stack: ExitStack) -> "Store":
    from peg_rag.encoder import PEGEncoder
    from peg_rag.feedback.report import Store
    from peg_rag.index import PEGIndex
    from peg_rag.ingest import model_of

    encoder = stack.enter_context(PEGEncoder(model or model_of(folder), device=device))
    index = stack.enter_context(PEGIndex(folder, identity=encoder.identity, read_only=True))
    return Store(index, encoder, f"store {folder.name}")
