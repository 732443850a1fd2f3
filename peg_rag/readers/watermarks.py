"""Glyphs of a PDF's page less its watermarks, which would stand in the middle of the sentences they are printed across.

A PDF does not say what is a watermark. Two kinds are told from text: glyphs at an angle on a page of upright text, and
pale glyphs that the page's text is printed over. Once seen, a pale style counts as a watermark's on later pages, too.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import Any

Style = tuple[str, int, tuple[float, ...]]  # font, size in points, colour
Char = dict[str, Any]  # pdfplumber's

_LEAST_SLOPE = 0.18  # tangent of 10°, beyond which a page is not merely crooked
_DARKEST_PALE = 0.55  # lightness, from 0 for black to 1 for white
_LIGHTEST_PALE = 0.985  # white text stands on dark ground
_FEWEST_PRINTED_OVER = 0.05  # of a style's glyphs
_CELL = 16.0  # points


def remove_watermarks(chars: Sequence[Char], known: set[Style]) -> list[Char]:
    """The glyphs of a page that are its text.

    Args:
        known: styles of watermarks on the pages before; those of this page are added.
    """
    straight = [char for char in chars if not _is_oblique(char["matrix"])]
    if 2 * len(straight) <= len(chars):
        straight = list(chars)
    pale: dict[Style, list[Char]] = defaultdict(list)
    dark: list[Char] = []
    for char in straight:
        if not char["text"].isspace():
            is_pale = _DARKEST_PALE <= _lightness_of(char.get("non_stroking_color")) <= _LIGHTEST_PALE
            (pale[_style_of(char)] if is_pale else dark).append(char)
    if not pale:
        return straight
    new = {style: marks for style, marks in pale.items() if style not in known}
    if new:
        cells = _group_by_cell(dark)
        known |= {style for style, marks in new.items() if _are_printed_over(marks, cells)}
    return [char for char in straight if _style_of(char) not in known]


def _is_oblique(matrix: Sequence[float]) -> bool:
    """Whether a glyph stands neither upright nor on its side."""
    across = abs(matrix[0])
    down = abs(matrix[1])
    return min(across, down) > _LEAST_SLOPE * max(across, down)


def _style_of(char: Char) -> Style:
    return (char["fontname"], round(char["size"]), _parts_of(char.get("non_stroking_color")))


def _parts_of(colour: Any) -> tuple[float, ...]:
    parts = colour if isinstance(colour, tuple | list) else (colour,)
    return tuple(round(float(part), 3) for part in parts if isinstance(part, int | float))


def _lightness_of(colour: Any) -> float:
    """How light a colour of one (grey), three (RGB) or four (CMYK) parts is; patterns and others count as black."""
    parts = _parts_of(colour)
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 3:
        return 0.3 * parts[0] + 0.59 * parts[1] + 0.11 * parts[2]
    if len(parts) == 4:
        cyan, magenta, yellow, black = parts
        return (1 - black) * (1 - 0.3 * cyan - 0.59 * magenta - 0.11 * yellow)
    return 0.0


def _group_by_cell(chars: Sequence[Char]) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """The middles of glyphs by the square of the page that they stand in."""
    cells: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for char in chars:
        x = (char["x0"] + char["x1"]) / 2
        y = (char["top"] + char["bottom"]) / 2
        cells[int(x // _CELL), int(y // _CELL)].append((x, y))
    return cells


def _are_printed_over(marks: Sequence[Char], cells: dict[tuple[int, int], list[tuple[float, float]]]) -> bool:
    count = sum(_is_printed_over(mark, cells) for mark in marks)
    return count >= max(2, _FEWEST_PRINTED_OVER * len(marks))


def _is_printed_over(mark: Char, cells: dict[tuple[int, int], list[tuple[float, float]]]) -> bool:
    """Whether the middle of another glyph lies within a glyph's box."""
    across = range(int(mark["x0"] // _CELL), int(mark["x1"] // _CELL) + 1)
    down = range(int(mark["top"] // _CELL), int(mark["bottom"] // _CELL) + 1)
    is_large = len(across) * len(down) > len(cells)  # a glyph may be said to be larger than any page
    near = cells if is_large else product(across, down)
    middles = (middle for cell in near for middle in cells.get(cell, ()))
    return any(mark["x0"] < x < mark["x1"] and mark["top"] < y < mark["bottom"] for x, y in middles)
