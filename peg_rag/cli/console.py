"""Printing for all commands: results on stdout, everything else on stderr, with the column widths of Chinese text.

Text from documents is never interpreted as markup and loses its control characters, so that no document can control
the terminal.
"""

import io
import re
import sys
from contextlib import suppress
from itertools import accumulate

from rich.cells import cell_len, chop_cells
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from peg_rag.cli.messages import translate

stdout = Console(highlight=False, emoji=False)
stderr = Console(highlight=False, emoji=False, stderr=True)

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")
_HIGHLIGHT = "bold yellow"


def make_streams_lenient() -> None:
    """Replace what the terminal's encoding lacks, so that neither printing nor reading Chinese raises an error."""
    for stream in (sys.stdout, sys.stderr, sys.stdin):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def error(message: str) -> None:
    stderr.print(Text.assemble((translate("Error: "), "bold red"), message), soft_wrap=not stderr.is_terminal)


def warn(message: str) -> None:
    stderr.print(Text.assemble((translate("Warning: "), "bold yellow"), message), soft_wrap=not stderr.is_terminal)


def note(message: str) -> None:
    """Print a remark about the run on stderr."""
    stderr.print(Text(message, style="dim"), soft_wrap=not stderr.is_terminal)


def printable(text: str) -> str:
    """The text on one line, without control characters and direction overrides."""
    return re.sub(r"\s+", " ", _CONTROL.sub(" ", text)).strip()


def show(content: RenderableType) -> None:
    """Print on stdout, wrapped to the terminal's width; piped output is not wrapped."""
    stdout.print(content, soft_wrap=not stdout.is_terminal)


def show_piece(text: str) -> None:
    """Print a piece of a text that comes bit by bit, with its line breaks and without other control characters."""
    stdout.print(Text(_CONTROL.sub(" ", text)), end="", soft_wrap=True)


def prompt(mark: str) -> str:
    """Ask for a line of text, with the mark on stderr.

    Raises:
        EOFError: there are no more lines, or no standard input.
    """
    if sys.stdin is None:
        raise EOFError
    with suppress(ImportError):
        import readline  # noqa: F401  makes `input` delete and move by whole characters, which Chinese needs
    stderr.print(Text(mark, "bold cyan"), end="")
    return input()


def excerpt(text: str, terms: tuple[str, ...] = (), cells: int = 160) -> Text:
    """The text around the first of `terms`, at most `cells` columns wide, with the terms highlighted."""
    line = printable(text)
    positions = [line.lower().find(term.lower()) for term in terms]
    first = min((position for position in positions if position >= 0), default=0)
    if first > cells // 3:
        line = "…" + line[max(0, first - cells // 8) :]
    if cell_len(line) > cells:
        line = chop_cells(line, cells - 1)[0] + "…"
    text_excerpt = Text(line)
    if terms:
        text_excerpt.highlight_words(terms, style=_HIGHLIGHT, case_sensitive=False)
    return text_excerpt


def fold_text(text: Text, cells: int) -> Text:
    """Break the text into lines of `cells` columns at any character: rich breaks at spaces, which Chinese lacks."""
    lengths = [len(line) for line in chop_cells(text.plain, max(2, cells))]
    return Text("\n").join(text.divide(accumulate(lengths[:-1])))


class _Rate(ProgressColumn):
    """Steps per second, in the unit of the task: `add_task(..., unit="texts")`."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields.get('unit', '')}/s" if speed else "", style="progress.data.speed")


def progress() -> Progress:
    """Progress bars on stderr, as wide as the terminal; disabled when stderr is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=stderr,
        disable=not stderr.is_terminal,
    )
