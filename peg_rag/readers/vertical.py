"""Vertical Chinese text (竖排): columns of glyphs from the top down, the first at the page's right edge.

The page is looked at from its right side, so that its columns are lines one below the other, and everything that reads
lines reads them. A number of two digits side by side in a column stays as it is; longer horizontal runs are lines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any, TypeVar

from peg_rag.readers.pieces import Glyph, Item, Line

_FEWEST_PAIRS = 10  # of glyphs below one another
_MOST_ACROSS = 2  # glyphs side by side within a column
_SLACK = 0.3  # of the type size that two glyphs may be out of line
_STEP = 2.5  # type sizes to the next glyph at most
_HIGH = 1.5  # times its breadth that a column is high
_SAME_TYPE = 0.25  # of the usual breadth that a column of the same type may differ
_TYPE_SHARE = 0.75  # of a recognised column's breadth that its type is
_Piece = TypeVar("_Piece", Glyph, Line)


def is_vertical(chars: Sequence[Any]) -> bool:
    """Whether most glyphs of a page have the next one right below them."""
    pairs = list(pairwise(char for char in chars if not char["text"].isspace()))
    down = sum(_is_below(char, following) for char, following in pairs)
    across = sum(_is_beside(char, following) for char, following in pairs)
    return down >= _FEWEST_PAIRS and down > 2 * across


def split_vertical(chars: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The glyphs that stand in columns, and those that make horizontal lines, such as the page's number."""
    columns: list[Any] = []
    rows: list[Any] = []
    for run in _find_runs(chars):
        letters = sum(not char["text"].isspace() for char in run)
        (rows if letters > _MOST_ACROSS else columns).extend(run)
    return columns, rows


def turn_columns(glyphs: Sequence[Glyph], page_width: float) -> list[Glyph]:
    """Glyphs that stand in columns as those of lines; two side by side are as broad as both, in their order."""
    turned: list[Glyph] = []
    last: Glyph | None = None
    for glyph in glyphs:
        if last is not None and abs(glyph.middle - last.middle) < _SLACK * glyph.size and glyph.x0 - last.x0 > 0:
            broad = (min(last.x0, glyph.x0), max(last.x1, glyph.x1))
            turned[-1] = turn_piece(replace(last, x0=broad[0], x1=broad[1]), page_width)
            turned.append(turn_piece(replace(glyph, x0=broad[0], x1=broad[1]), page_width))
            last = None
        else:
            turned.append(turn_piece(glyph, page_width))
            last = glyph
    return turned


def are_columns(lines: Sequence[Item]) -> bool:
    """Whether most text of a scanned page stands in recognised lines that are higher than they are broad."""
    high = sum(len(line.text) for line in lines if isinstance(line, Line) and _is_high(line))
    return high >= _FEWEST_PAIRS and 2 * high > sum(len(line.text) for line in lines if isinstance(line, Line))


def turn_scan(lines: Sequence[Item], page_width: float) -> list[Item]:
    """The columns of a scanned page as lines from the top down, without what is no column, such as the page's number.

    The boxes that are kept are those on the page as it is.
    """
    columns = [line for line in lines if isinstance(line, Line) and _is_high(line)]
    usual = median(line.x1 - line.x0 for line in columns)
    turned: list[Item] = []
    for line in columns:
        breadth = line.x1 - line.x0
        if abs(breadth - usual) <= _SAME_TYPE * usual:
            breadth = usual  # boxes of one type differ by a fifth: the letters decide how broad they are
        turned.append(turn_piece(replace(line, size=_TYPE_SHARE * breadth), page_width))
    return turned


def _is_high(line: Line) -> bool:
    return line.bottom - line.top > _HIGH * (line.x1 - line.x0)


def turn_piece(piece: _Piece, page_width: float) -> _Piece:
    """A glyph or a line in the coordinates of the page seen from its right side."""
    return replace(piece, x0=piece.top, top=page_width - piece.x1, x1=piece.bottom, bottom=page_width - piece.x0)


def _find_runs(chars: Sequence[Any]) -> Iterator[list[Any]]:
    """Glyphs of which each stands right of the one before; a glyph in a column is a run of its own."""
    run: list[Any] = []
    for char in chars:
        if run and not char["text"].isspace() and not _is_beside(run[-1], char):
            yield run
            run = []
        if run or not char["text"].isspace():
            run.append(char)
    if run:
        yield run


def _is_below(char: Any, following: Any) -> bool:
    right, down = _steps(char, following)
    return abs(right) < _SLACK and 0.6 < down < _STEP


def _is_beside(char: Any, following: Any) -> bool:
    right, down = _steps(char, following)
    return abs(down) < _SLACK and 0.2 < right < _STEP


def _steps(char: Any, following: Any) -> tuple[float, float]:
    """From the middle of a glyph to that of the next, to the right and down, in type sizes."""
    size = max(char["size"], 1.0)
    right = (following["x0"] + following["x1"] - char["x0"] - char["x1"]) / 2
    down = (following["top"] + following["bottom"] - char["top"] - char["bottom"]) / 2
    return right / size, down / size
