"""Tables of a PDF with rules between their rows and blanks between their columns: what two rules enclose is a row.

Rules of one length may belong to several tables of a page, and to its titles. The text between two tables stands
between rules, too, and parts them; the header of the second, which often has no rule above it, stands at its end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from peg_rag.readers.layout import all_apart, are_prose, column_of, find_columns, has_table_lines, piece_rows
from peg_rag.readers.normalize import join_lines
from peg_rag.readers.pieces import Glyph, Line, Table, rounded_box

_LARGEST_GAP = 1.2  # of the type size, between two lines of one row
_LARGEST_PADDING = 1.6  # of the type size, between a row and its rule
_INDENT = 3.0  # type sizes from the left, within which text begins that is in no column
_LONG_LINE = 0.6  # of the rules' length


@dataclass(frozen=True, slots=True)
class _Band:
    """What stands between two heights: pieces of lines, those of one line together."""

    rows: list[list[Line]]
    top: float
    bottom: float

    @property
    def has_columns(self) -> bool:
        return any(len(row) > 1 for row in self.rows)


def read_banded_tables(
    glyphs: Sequence[Glyph], ends: tuple[float, float], rules: Sequence[float], page: int
) -> Iterator[Table]:
    """The tables among rules of one length, from the top down.

    Bands without columns are none. A band whose cells all have several lines may hold several rows: its table is left
    to be told by its lines.

    Args:
        glyphs: of the page, between the rules' ends.
        ends: where the rules begin and end.
        rules: their heights, from the top down.
    """
    heights = [min(0.0, rules[0]), *rules, max([rules[-1], *(glyph.bottom for glyph in glyphs)])]
    bands = [_Band(piece_rows(glyphs, top, bottom, page), top, bottom) for top, bottom in pairwise(heights)]
    for stretch in _split_bands(bands, ends):
        table = _read_stretch(stretch, ends, page)
        if table is not None:
            yield table


def _split_bands(bands: Sequence[_Band], ends: tuple[float, float]) -> Iterator[list[_Band]]:
    """The bands of each table; those above the first rule and below the last one hold a header or a row at most."""
    stretch: list[_Band] = []
    for number, band in enumerate(bands):
        is_outer = number in (0, len(bands) - 1)
        if not is_outer and not _parts_tables(band, ends):
            stretch += [band] if band.rows else []
            continue
        last = _find_row_below(band, ends[0]) if stretch else None
        yield [*stretch, last] if last is not None else stretch
        header = _find_row_above(band, ends[0])
        stretch = [header] if header is not None and (last is None or header.top >= last.bottom) else []
    yield stretch


def _parts_tables(band: _Band, ends: tuple[float, float]) -> bool:
    """Whether a band holds text that is in no table: lines from the left, apart from other lines or long ones."""
    free = [row[0] for row in band.rows if _is_free(row, ends[0])]
    if not free:
        return False
    if any(lower - upper > _LARGEST_GAP * free[0].size for upper, lower in _find_gaps(band.rows)):
        return True
    longest = max(line.x1 - line.x0 for line in free)
    return len(free) > 1 and len(free) == len(band.rows) and longest > _LONG_LINE * (ends[1] - ends[0])


def _is_free(row: Sequence[Line], left: float) -> bool:
    """Whether a line is one piece that begins where text does."""
    return len(row) == 1 and row[0].x0 < left + _INDENT * row[0].size


def _find_gaps(rows: Sequence[Sequence[Line]]) -> list[tuple[float, float]]:
    """Where each line ends and the next one begins."""
    ends = [max(piece.bottom for piece in row) for row in rows]
    starts = [min(piece.top for piece in row) for row in rows]
    return list(zip(ends, starts[1:], strict=False))


def _find_row_above(band: _Band, left: float) -> _Band | None:
    """The row that stands right above the rule below a band; None where text does."""
    rows = _take_row(band.rows[::-1], left)[::-1]
    if not any(len(row) > 1 for row in rows):
        return None
    last = max(rows[-1], key=lambda piece: piece.bottom)
    top = min(piece.top for piece in rows[0])
    return _Band(rows, top - 1, band.bottom) if band.bottom - last.bottom < _LARGEST_PADDING * last.size else None


def _find_row_below(band: _Band, left: float) -> _Band | None:
    """The row that stands right below the rule above a band; None where text does."""
    rows = _take_row(band.rows, left)
    if not any(len(row) > 1 for row in rows):
        return None
    first = min(rows[0], key=lambda piece: piece.top)
    bottom = max(piece.bottom for piece in rows[-1])
    return _Band(rows, band.top, bottom + 1) if first.top - band.top < _LARGEST_PADDING * first.size else None


def _take_row(rows: Sequence[list[Line]], left: float) -> list[list[Line]]:
    """The first lines, in either order, up to text that is in no column or a blank."""
    taken: list[list[Line]] = []
    for row in rows:
        if _is_free(row, left):
            break
        if taken and max(_find_distance(taken[-1], row), 0.0) > _LARGEST_GAP * row[0].size:
            break
        taken.append(row)
    return taken


def _find_distance(row: Sequence[Line], other: Sequence[Line]) -> float:
    """Between two lines, whichever is the upper one; below zero where they overlap."""
    tops = [min(piece.top for piece in pieces) for pieces in (row, other)]
    bottoms = [max(piece.bottom for piece in pieces) for pieces in (row, other)]
    return max(tops) - min(bottoms)


def _read_stretch(bands: Sequence[_Band], ends: tuple[float, float], page: int) -> Table | None:
    """The table of some bands, less the text at both ends."""
    numbers = [number for number, band in enumerate(bands) if band.has_columns]
    if len(numbers) < 2:
        return None
    bands = bands[numbers[0] : numbers[-1] + 1]
    rows = [row for band in bands for row in band.rows if not _is_title(band, ends[0])]
    columns = find_columns(rows)
    if columns is None or len(columns) < 2 or (len(columns) == 2 and are_prose(rows)):
        return None
    if max(len(band.rows) for band in bands) < 2 and not has_table_lines(rows):
        return None
    cells = [_read_band(band, columns) for band in bands]
    counts = [[len(cell) for cell in row if cell] for row in cells]
    for band, lines in zip(bands, counts, strict=True):
        if not _is_title(band, ends[0]) and (len(lines) < 2 or min(lines) > 1):
            return None
    boxes = [rounded_box(columns[0][0], band.top, columns[-1][1], band.bottom) for band in bands]
    return Table(
        [[join_lines([piece.text for piece in cell]) for cell in row] for row in cells],
        [[bool(cell) and all(piece.bold for piece in cell) for cell in row] for row in cells],
        page,
        ends[0],
        bands[0].top,
        ends[1],
        bands[-1].bottom,
        boxes,
        merged=all_apart(cells),
        columns=tuple(columns),
    )


def _is_title(band: _Band, left: float) -> bool:
    """Whether a band holds one text alone, from the left."""
    return all(_is_free(row, left) for row in band.rows)


def _read_band(band: _Band, columns: Sequence[tuple[float, float]]) -> list[list[Line]]:
    """The lines of each cell of a row."""
    cells: list[list[Line]] = [[] for _ in columns]
    for row in band.rows:
        for piece in row:
            cells[column_of(piece, columns)].append(piece)
    return cells
