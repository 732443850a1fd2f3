"""`peg-rag index docs/ --store kb`: a folder of documents → a store to search, kept in step by running it again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peg_rag.readers.kinds import KINDS, cure_of

if TYPE_CHECKING:
    from peg_rag.ingest import SyncReport

_SOME = 20  # failures that are listed one by one
_SOME_NAMES = 3  # files of a kind that is not read


def index(
    documents: Annotated[Path, typer.Argument(help=f"A folder, or one file: {KINDS}.")],
    store: Annotated[Path, typer.Option("--store", "-s", help="The folder of the store; made when it is not there.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Hub id, folder or peg-mini. Default: the store's, $PEG_RAG_MODEL, TownsWu/PEG."
        ),
    ] = None,
    chunk: Annotated[int, typer.Option(min=50, help="Longest chunk, in characters.")] = 400,
    overlap: Annotated[int, typer.Option(min=0, help="Characters that neighbouring chunks may share.")] = 80,
    column: Annotated[
        str | None,
        typer.Option("--column", "-c", help="The text column of csv and jsonl files. Default: text, content, 正文 …"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the folder is called in sources. Default: its own name.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.")] = None,
) -> None:
    """Index a folder: only changed files are embedded again, deleted ones leave. Exit code 3: files were skipped."""
    from peg_rag.cli.console import progress
    from peg_rag.encoder import PEGEncoder
    from peg_rag.index import PEGIndex
    from peg_rag.ingest import Chunking, Progress, find_files, model_of, sync

    chunking = Chunking(chunk, overlap, column)
    files, _ = find_files(documents, name)
    chosen = model or model_of(store)
    with (
        PEGEncoder(chosen, device=device) as encoder,
        PEGIndex(store, identity=encoder.identity, dimension=encoder.dimension) as target,
        progress() as bars,
    ):
        reading = bars.add_task("read", total=len(files), unit="files")
        paging = bars.add_task("pages", total=None, visible=False, unit="pages")
        embedding = bars.add_task("embed", total=None, unit="chunks")

        def show(state: Progress) -> None:
            bars.update(reading, completed=state.done)
            bars.update(paging, completed=state.page, total=state.pages or None, visible=state.pages > 0)
            bars.update(embedding, completed=state.chunks)

        report = sync(
            documents,
            target,
            encoder,
            store,
            name=name,
            model=_remembered(chosen, encoder.spec.name),
            chunking=chunking,
            on_progress=show,
        )
        bars.update(embedding, total=report.chunks)
        total = len(target)
    _print(report, total, store)
    if report.failed:
        raise typer.Exit(3)


def _remembered(model: str | None, name: str) -> str:
    """What will find the model again from any working directory."""
    folder = Path(model).expanduser() if model else None
    return str(folder.resolve()) if folder and folder.is_dir() else (model or name)


def _print(report: "SyncReport", total: int, store: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from peg_rag.cli.console import printable, show, stdout, warn

    for failure in report.failed[:_SOME]:
        warn(f"skipped: {printable(failure.reason)}")
    if len(report.failed) > _SOME:
        warn(f"… and {len(report.failed) - _SOME} more files were skipped")
    for partial in report.incomplete[:_SOME]:
        warn(f"read in part: {printable(partial.reason)}")
    for line in _other_kinds(report.other_kinds):
        warn(f"not read: {printable(line)}")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan")
    table.add_column(justify="right")
    rows = {
        "added": len(report.added),
        "changed": len(report.changed),
        "unchanged": len(report.unchanged),
        "removed": len(report.removed),
        "skipped": len(report.failed),
        "other kinds": report.ignored,
    }
    for label, number in rows.items():
        if number or label == "added":
            table.add_row(label, _count(number, "file"))
    table.add_row("embedded", _count(report.chunks, "chunk"))
    table.add_row("in the store", _count(total, "chunk"))
    stdout.print(table)
    show(Text(f'{store} is ready ({report.seconds:.1f} s). Try: peg-rag ask {store} "…"', style="dim"))


def _other_kinds(sources: Sequence[str]) -> Iterator[str]:
    """A line for each kind of file that is not read: how many, some of their names, and the cure where there is one."""
    kinds: dict[str, list[str]] = {}
    for source in sources:
        kinds.setdefault(Path(source).suffix.lower(), []).append(source)
    for suffix, names in sorted(kinds.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(names[:_SOME_NAMES]) + (", …" if len(names) > _SOME_NAMES else "")
        cure = cure_of(suffix)
        yield f"{_count(len(names), 'file')} named *{suffix} ({shown})" + (f"; {cure}" if cure else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
