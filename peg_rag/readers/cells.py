"""What stands within the cells of a ruled table: lines that belong together, rows without a rule between them, frames.

Rules do not say all. An invoice's items stand one below the other in cells that are as high as all of them, or in one
frame as broad as the page, and a label may be turned on its side to fit into a narrow column.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from peg_rag.readers.blocks import Box
from peg_rag.readers.names import is_value
from peg_rag.readers.normalize import join_lines
from peg_rag.readers.pieces import Line, rounded_box
from peg_rag.readers.tables import Grid

_SNAP = 3.0  # points
_SAME_HEIGHT = 0.45  # of the type size that the middles of two lines of one row may differ
_PADDING = 4.0  # points between a cell's text and its rule
_LABELLED = re.compile(r"[^：:，。；]{0,25}[\u4e00-\u9fff）)]\s*[：:]")
_FIGURE = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class RuledCell:
    """A cell's box and its lines, which are those of the page set upright where the text is turned."""

    box: Box
    lines: list[Line]
    is_turned: bool = False

    @property
    def text(self) -> str:
        return self.join(self.lines)

    def join(self, lines: Sequence[Line]) -> str:
        """Some of its lines as one text, in which only what begins with a name of its own begins a line."""
        texts: list[list[str]] = []
        before: Line | None = None
        for line in lines:
            if before is None or (self._ends_early(before) and _are_labelled(before, line)):
                texts.append([line.text])
            else:
                texts[-1].append(line.text)
            before = line
        return "\n".join(map(join_lines, texts))

    def is_broken(self) -> bool:
        """Whether all lines but the last reach so far that a word may have been broken."""
        return not any(map(self._ends_early, self.lines[:-1]))

    def _ends_early(self, line: Line) -> bool:
        room = self.box[2] - self.box[0] - (line.x1 - line.x0)
        return self.is_turned or room > 1.2 * line.size + _PADDING


@dataclass(frozen=True, slots=True)
class RuledGrid:
    """A table's cells in rows of one length: texts, which are bold, which go on from the left; the rows' boxes."""

    texts: Grid
    bold: list[list[bool]]
    merged: list[list[bool]]
    rows: list[Box]


def build_grid(cells: Sequence[RuledCell], lefts: Sequence[float], tops: Sequence[float]) -> RuledGrid:
    """Cells in rows and columns, each filled over all that it spans.

    Args:
        lefts, tops: where columns and rows begin, in order.
    """
    left = lefts[0]
    right = max(cell.box[2] for cell in cells)
    bottoms = [*tops[1:], max(cell.box[3] for cell in cells)]
    grid = RuledGrid([], [], [], [])
    for top, bottom in zip(tops, bottoms, strict=True):
        row = [cell for cell in cells if cell.box[1] - _SNAP <= top < cell.box[3] - _SNAP]
        inside = [cell for cell in row if cell.box[1] >= top - _SNAP and cell.box[3] <= bottom + _SNAP]
        heights = _find_inner_rows(inside, left)
        ends = [*((upper + lower) / 2 for upper, lower in pairwise(heights)), bottom]
        for number, end in enumerate(ends):
            lines_by_cell = [
                _lines_at(cell, heights, number, is_first=cell.box[0] <= left + _SNAP) if cell in inside else cell.lines
                for cell in row
            ]
            _append_row(grid, row, lines_by_cell, lefts)
            grid.rows.append(rounded_box(left, ends[number - 1] if number else top, right, end))
    return grid


def _append_row(
    grid: RuledGrid, cells: Sequence[RuledCell], lines_by_cell: Sequence[Sequence[Line]], lefts: Sequence[float]
) -> None:
    """Add a row to a grid, but for its box: each cell, with its lines there, in all columns that it covers."""
    texts = [""] * len(lefts)
    bold = [False] * len(lefts)
    merged = [False] * len(lefts)
    for cell, lines in zip(cells, lines_by_cell, strict=True):
        text = cell.join(lines)
        for column in _find_columns(cell, lefts):
            texts[column] = text
            bold[column] = bool(lines) and all(line.bold for line in lines)
            merged[column] = lefts[column] > cell.box[0] + _SNAP
    grid.texts.append(texts)
    grid.bold.append(bold)
    grid.merged.append(merged)


def _find_columns(cell: RuledCell, lefts: Sequence[float]) -> list[int]:
    """The numbers of the columns that a cell covers."""
    return [column for column, x in enumerate(lefts) if cell.box[0] - _SNAP <= x < cell.box[2] - _SNAP]


def split_at_frames(cells: Sequence[RuledCell], frames: Sequence[RuledCell]) -> Iterator[list[RuledCell]]:
    """The cells above the first frame, those between two of them, and those below the last one."""
    top = float("-inf")
    for end, following in [*((frame.box[1], frame.box[3]) for frame in frames), (float("inf"), float("inf"))]:
        yield [cell for cell in cells if top - _SNAP <= cell.box[1] and cell.box[3] <= end + _SNAP]
        top = following


def _are_labelled(line: Line, following: Line) -> bool:
    return _LABELLED.match(line.text) is not None and _LABELLED.match(following.text) is not None


def _find_inner_rows(cells: Sequence[RuledCell], left: float) -> list[float]:
    """The heights of the rows that stand in the cells of one ruled row; none where it is one row.

    Rows are told by two cells that have as many lines, at the same heights. One of them holds nothing but figures that
    would have had room beside each other, and no text is broken at these heights or stands between two of them.

    Args:
        left: where the table begins; a line between two rows is their label there.
    """
    stacks = [cell for cell in cells if len(cell.lines) > 1 and not _is_upright_label(cell)]
    figures = [cell for cell in stacks if _holds_figures(cell) and not cell.is_broken()]
    if len(stacks) < 2 or not figures:
        return []
    longest = max(figures, key=lambda cell: len(cell.lines))
    heights = [line.middle for line in longest.lines]
    slack = _SAME_HEIGHT * longest.lines[0].size
    beside = [cell for cell in stacks if _are_heights(cell, heights, slack)]
    names = [cell for cell in stacks if not _holds_figures(cell)]
    if len(beside) < 2 or not all(_are_at_rows(cell, heights, slack) for cell in stacks):
        return []
    if any(cell.is_broken() and len(cell.lines) == len(heights) for cell in names if cell is not stacks[0]):
        return []
    single = [
        cell.lines[0] for cell in cells if len(cell.lines) == 1 and not cell.is_turned and cell.box[0] > left + _SNAP
    ]
    return [] if any(_stands_between(line, heights, slack) for line in single) else heights


def _stands_between(line: Line, heights: Sequence[float], slack: float) -> bool:
    """Whether a line is at the height of no row, but between two of them."""
    return any(upper + slack < line.middle < lower - slack for upper, lower in pairwise(heights))


def _is_upright_label(cell: RuledCell) -> bool:
    """Whether a cell's characters stand below one another, one in a line."""
    return all(len(line.text) == 1 and not line.text.isdigit() for line in cell.lines)


def _holds_figures(cell: RuledCell) -> bool:
    return all(is_value(line.text) and _FIGURE.search(line.text) for line in cell.lines)


def _are_heights(cell: RuledCell, heights: Sequence[float], slack: float) -> bool:
    lines = cell.lines
    return len(lines) == len(heights) and all(
        abs(line.middle - height) <= slack for line, height in zip(lines, heights, strict=True)
    )


def _are_at_rows(cell: RuledCell, heights: Sequence[float], slack: float) -> bool:
    """Whether a cell's figures are each in a row, or its text has lines in every row."""
    at_rows = [min(abs(line.middle - height) for height in heights) <= slack for line in cell.lines]
    return all(at_rows) or (not _holds_figures(cell) and len(cell.lines) > len(heights))


def _lines_at(cell: RuledCell, heights: Sequence[float], number: int, *, is_first: bool) -> list[Line]:
    """The lines of a cell in one of the rows within; what stands once at the left is the label of all of them."""
    if not heights or (is_first and (len(cell.lines) == 1 or _is_upright_label(cell))):
        return cell.lines
    return [line for line in cell.lines if _row_of(line, cell, heights) == number]


def _row_of(line: Line, cell: RuledCell, heights: Sequence[float]) -> int:
    """The row that a line is in: the nearest one, or the last above it where texts begin at the height of their row."""
    nearest = min(range(len(heights)), key=lambda number: abs(heights[number] - line.middle))
    slack = _SAME_HEIGHT * line.size
    if cell.lines[0].middle < heights[0] - slack:
        return nearest
    return max((number for number, height in enumerate(heights) if height <= line.middle + slack), default=nearest)
