"""What the verbs print with: results on stdout, everything else on stderr, Chinese widths counted by rich.

Text out of documents is never read as markup and loses its control characters, so that no document can paint the
terminal.
"""

import io
import re
import sys
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

stdout = Console(highlight=False, emoji=False)
stderr = Console(highlight=False, emoji=False, stderr=True)

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")
_HIGHLIGHT = "bold yellow"


def utf8_streams() -> None:
    """Chinese must never stop the command: a terminal that cannot show a character shows a replacement."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def error(message: str) -> None:
    stderr.print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=not stderr.is_terminal)


def warn(message: str) -> None:
    stderr.print(Text.assemble(("Warning: ", "bold yellow"), message), soft_wrap=not stderr.is_terminal)


def note(message: str) -> None:
    """Say something about the work itself, on stderr."""
    stderr.print(Text(message, style="dim"), soft_wrap=not stderr.is_terminal)


def printable(text: str) -> str:
    """The text in one line, without control characters and direction overrides."""
    return re.sub(r"\s+", " ", _CONTROL.sub(" ", text)).strip()


def show(what: RenderableType) -> None:
    """Print on stdout, folded to a terminal's width; piped output keeps its lines whole."""
    stdout.print(what, soft_wrap=not stdout.is_terminal)


def excerpt(text: str, terms: tuple[str, ...] = (), cells: int = 160) -> Text:
    """The part of a text around the first of `terms`, at most `cells` columns wide, with the terms highlighted."""
    line = printable(text)
    first = min((at for term in terms if (at := line.lower().find(term.lower())) >= 0), default=0)
    start = max(0, first - cells // 8) if first > cells // 3 else 0
    part = ("…" if start else "") + line[start:]
    shown = Text(part if cell_len(part) <= cells else chop_cells(part, cells - 1)[0] + "…")
    if terms:
        shown.highlight_words(terms, style=_HIGHLIGHT, case_sensitive=False)
    return shown


def folded(text: Text, cells: int) -> Text:
    """The text in lines of `cells` columns, cut anywhere: rich breaks lines at spaces, of which Chinese has few."""
    lengths = [len(line) for line in chop_cells(text.plain, max(2, cells))]
    return Text("\n").join(text.divide(accumulate(lengths[:-1])))


class _Rate(ProgressColumn):
    """Finished steps per second, in the unit the task was added with: `add_task(..., unit="texts")`."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields.get('unit', '')}/s" if speed else "", style="progress.data.speed")


def progress() -> Progress:
    """Progress bars on stderr that narrow with the terminal; nothing when stderr is no terminal."""
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
