"""`peg-rag index docs/ --store kb`: indexes a folder of documents; running it again updates the store.

The store is a folder, or a URL. The ledger of files lies in that folder; for a URL, in one of this machine.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peg_rag.cli.messages import translate
from peg_rag.readers.kinds import KINDS, hint_for_suffix

if TYPE_CHECKING:
    from peg_rag.ingest import SyncReport

_MAX_FAILURES = 20  # listed one by one
_MAX_NAMES = 3  # listed per unsupported file type


def index(
    documents: Annotated[Path, typer.Argument(help=f"A folder, or one file: {KINDS}.")],
    store: Annotated[
        str, typer.Option("--store", "-s", help="A folder or the URL of a store; created if it does not exist.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Hub id, folder or peg-mini. Default: the store's, $PEG_RAG_MODEL, TownsWu/PEG."
        ),
    ] = None,
    chunk: Annotated[int, typer.Option(min=50, help="Maximum length of a chunk, in characters.")] = 400,
    overlap: Annotated[int, typer.Option(min=0, help="Maximum overlap of neighbouring chunks, in characters.")] = 80,
    column: Annotated[
        str | None,
        typer.Option("--column", "-c", help="The text column of csv and jsonl files. Default: text, content, 正文 …"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The folder's name in the sources of passages. Default: its own name.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="How the store searches vectors: flat (exact) or hnsw. Default: as it is, flat.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="Where to note which files a store on a server holds. Default: a folder of its own below "
            "$XDG_STATE_HOME or ~/.local/state."
        ),
    ] = None,
) -> None:
    """Index a folder: embed new and changed files, remove deleted ones. Exit code 3: files were skipped."""
    from peg_rag.cli.console import progress
    from peg_rag.cli.knowledge import absolute_model, locate_ledger, show_location
    from peg_rag.encoder import PEGEncoder
    from peg_rag.ingest import Chunking, Progress, find_files, model_of, sync
    from peg_rag.stores import is_url, open_store

    notes = locate_ledger(store, ledger)
    chunking = Chunking(chunk, overlap, column)
    files, _ = find_files(documents, name)
    model = model or model_of(notes) or _find_model(store)
    with (
        PEGEncoder(model, device=device) as encoder,
        open_store(store, identity=encoder.identity, dimension=encoder.dimension, kind=kind) as target,
        progress() as bars,
    ):
        reading = bars.add_task(translate("read"), total=len(files), unit="files")
        paging = bars.add_task(translate("pages"), total=None, visible=False, unit="pages")
        embedding = bars.add_task(translate("embed"), total=None, unit="chunks")

        def show(state: Progress) -> None:
            bars.update(reading, completed=state.done)
            bars.update(paging, completed=state.page, total=state.pages or None, visible=state.pages > 0)
            bars.update(embedding, completed=state.chunks)

        report = sync(
            documents,
            target,
            encoder,
            notes,
            name=name,
            model=absolute_model(model, encoder.spec.name),
            chunking=chunking,
            is_shared=is_url(store),
            location=show_location(store) if is_url(store) else None,
            on_progress=show,
        )
        bars.update(embedding, total=report.chunks)
        has_changes = bool(report.added or report.changed or report.removed)
        if kind is not None or (is_url(store) and has_changes):
            target.persist()
        total = len(target)
    _print_report(report, total, show_location(store))
    if report.failed:
        raise typer.Exit(3)


def _find_model(store: str) -> str | None:
    """The bundled model that made a store on a server; None for another, and where there is no store yet."""
    from peg_rag.models import bundled_model_of
    from peg_rag.stores import is_url, open_store

    if not is_url(store):
        return None
    with open_store(store) as present:
        return bundled_model_of(present.identity)


def _print_report(report: "SyncReport", total: int, store: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from peg_rag.cli.console import printable, show, stdout, warn

    for failure in report.failed[:_MAX_FAILURES]:
        warn(translate("skipped: {reason}").format(reason=printable(failure.reason)))
    if len(report.failed) > _MAX_FAILURES:
        number = len(report.failed) - _MAX_FAILURES
        warn(translate("… and {number} more files were skipped").format(number=number))
    for partial in report.incomplete[:_MAX_FAILURES]:
        warn(translate("read in part: {reason}").format(reason=printable(partial.reason)))
    for line in _describe_unsupported(report.other_kinds):
        warn(translate("not read: {reason}").format(reason=printable(line)))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan")
    table.add_column(justify="right")
    added = translate("added")
    rows = {
        added: len(report.added),
        translate("changed"): len(report.changed),
        translate("unchanged"): len(report.unchanged),
        translate("removed"): len(report.removed),
        translate("skipped"): len(report.failed),
        translate("unsupported type"): report.ignored,
    }
    for label, number in rows.items():
        if number or label == added:
            table.add_row(label, _count_files(number))
    table.add_row(translate("embedded"), _count_chunks(report.chunks))
    if report.reused:
        table.add_row(translate("embedded before"), _count_chunks(report.reused))
    table.add_row(translate("in the store"), _count_chunks(total))
    stdout.print(table)
    hint = translate('{store} is ready ({seconds:.1f} s). Try: peg-rag ask {store} "…"')
    show(Text(hint.format(store=store, seconds=report.seconds), style="dim"))


def _describe_unsupported(sources: Sequence[str]) -> Iterator[str]:
    """A line for each unsupported file type: the number of files, some of their names, and what to do with it."""
    kinds: dict[str, list[str]] = {}
    for source in sources:
        kinds.setdefault(Path(source).suffix.lower(), []).append(source)
    for suffix, names in sorted(kinds.items(), key=lambda item: -len(item[1])):
        examples = ", ".join(names[:_MAX_NAMES])
        if len(names) > _MAX_NAMES:
            examples += ", …"
        line = f"{_count_files(len(names))} named *{suffix} ({examples})"
        hint = hint_for_suffix(suffix)
        yield f"{line}; {hint}" if hint else line


def _count_files(number: int) -> str:
    return (translate("{number:,} file") if number == 1 else translate("{number:,} files")).format(number=number)


def _count_chunks(number: int) -> str:
    return (translate("{number:,} chunk") if number == 1 else translate("{number:,} chunks")).format(number=number)
