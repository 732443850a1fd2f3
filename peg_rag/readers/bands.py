"""Tables of a PDF with rules between their rows and blanks between their columns: what two rules enclose is a row.

Rules of one length may belong to several tables of a page, and to its titles. The text between two tables stands
between rules, too, and parts them; the header of the second, which often has no rule above it, stands at its end.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import median

from peg_rag.readers.layout import all_apart, are_prose, column_of, find_columns, has_table_lines, lines_of, piece_rows
from peg_rag.readers.names import is_name
from peg_rag.readers.normalize import join_lines
from peg_rag.readers.pieces import Glyph, Line, Table, rounded_box

_LARGEST_GAP = 1.2  # of the type size, between two lines of one row
_LARGEST_PADDING = 1.6  # of the type size, between a row and its rule
_LARGEST_ROW_GAP = 2.5  # of the type size, between the rows of a table
_INDENT = 3.0  # type sizes from the left, within which text begins that is in no column
_LEAST_GUTTER = 0.35  # of the type size, between columns; more than a space
_FEWEST_ROWS = 4  # that tell such columns
_LARGER = 1.12  # times the type of the rows, from which a text is a heading
_LONG_LINE = 0.6  # of the rules' length


@dataclass(frozen=True, slots=True)
class _Band:
    """What stands between two heights: pieces of lines, those of one line together, and the glyphs of all."""

    rows: list[list[Line]]
    glyphs: list[Glyph]
    top: float
    bottom: float

    @property
    def has_columns(self) -> bool:
        return any(len(row) > 1 for row in self.rows)


@dataclass(frozen=True, slots=True)
class _Row:
    """The lines of a row within a band of more; `is_single`: no other row stands beside it without a rule between."""

    rows: list[list[Line]]
    is_single: bool = True

    def make_band(self, band: _Band) -> _Band:
        """The part of a band that is the row."""
        pieces = [piece for row in self.rows for piece in row]
        top = min(piece.top for piece in pieces) - 1
        bottom = max(piece.bottom for piece in pieces) + 1
        rows = sorted(self.rows, key=lambda row: row[0].middle)
        glyphs = [glyph for glyph in band.glyphs if top <= glyph.middle <= bottom]
        if top - band.top < band.bottom - bottom:
            return _Band(rows, glyphs, band.top, bottom)
        return _Band(rows, glyphs, top, band.bottom)


_NO_ROW = _Row([])


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
    bands = [_read_band(glyphs, top, bottom, page) for top, bottom in pairwise(heights)]
    for stretch in _split_bands(bands, ends):
        table = _read_stretch(stretch, ends, page)
        if table is not None:
            yield table


def _read_band(glyphs: Sequence[Glyph], top: float, bottom: float, page: int) -> _Band:
    between = [glyph for glyph in glyphs if top <= glyph.middle < bottom]
    return _Band(piece_rows(between, top, bottom, page), between, top, bottom)


def _split_bands(bands: Sequence[_Band], ends: tuple[float, float]) -> Iterator[list[_Band]]:
    """The bands of each table; those above the first rule and below the last one hold a header or a row at most."""
    stretch: list[_Band] = []
    is_whole = True
    parting = _find_parting(bands, ends)
    for number, band in enumerate(bands):
        if number not in parting:
            stretch += [band] if band.rows else []
            continue
        last = _take_row(band, band.rows, ends[0]) if stretch else _NO_ROW
        if is_whole and last.is_single:
            yield [*stretch, last.make_band(band)] if last.rows else stretch
        first = _take_row(band, band.rows[::-1], ends[0])
        if last.rows and first.rows and first.rows[0] in last.rows:
            first = _NO_ROW
        stretch = [first.make_band(band)] if first.rows else []
        is_whole = first.is_single
    if is_whole:
        yield stretch


def _find_parting(bands: Sequence[_Band], ends: tuple[float, float]) -> set[int]:
    """The numbers of the bands that are not of one table with those above them."""
    parting = {number for number, band in enumerate(bands) if _parts_tables(band, ends)} | {0, len(bands) - 1}
    sizes = [piece.size for band in bands if band.has_columns for row in band.rows for piece in row]
    for is_title, group in groupby(range(1, len(bands) - 1), key=lambda number: _is_title(bands[number], ends[0])):
        numbers = list(group)
        if (
            is_title
            and sizes
            and _are_headings([bands[number] for number in numbers], bands[numbers[-1] + 1], ends, median(sizes))
        ):
            parting.update(numbers)
    return parting


def _are_headings(bands: Sequence[_Band], following: _Band, ends: tuple[float, float], size: float) -> bool:
    """Whether texts between the rows of tables are titles and paragraphs above another one, not titles within one.

    Args:
        following: the band below them.
        size: of the type that the rows are set in.
    """
    lines = [row[0] for band in bands for row in band.rows]
    if not lines:
        return False
    if any(not band.rows for band in bands) or max(line.size for line in lines) >= _LARGER * size:
        return True
    names = [piece for row in following.rows for piece in row]
    if len(names) > 1 and all(piece.bold and is_name(piece.text) for piece in names):
        return True
    return len(bands) > 1 and max(line.x1 - line.x0 for line in lines) > _LONG_LINE * (ends[1] - ends[0])


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


def _take_row(band: _Band, rows: Sequence[list[Line]], left: float) -> _Row:
    """The row that stands beside a rule; none where text does.

    Args:
        rows: of the band, those next to the rule first.
    """
    taken: list[list[Line]] = []
    for row in rows:
        if _is_free(row, left) or (taken and _find_distance(taken[-1], row) > _LARGEST_GAP * row[0].size):
            break
        taken.append(row)
    if not any(len(row) > 1 for row in taken) or _find_padding(taken[0], band) > _LARGEST_PADDING * taken[0][0].size:
        return _NO_ROW
    beyond = rows[len(taken)] if len(taken) < len(rows) else []
    has_more = len(beyond) > 1 and _find_distance(taken[-1], beyond) < _LARGEST_ROW_GAP * beyond[0].size
    return _Row(taken, not has_more)


def _find_padding(row: Sequence[Line], band: _Band) -> float:
    """Between a line and the nearer end of its band."""
    return min(min(piece.top for piece in row) - band.top, band.bottom - max(piece.bottom for piece in row))


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
    columns = _find_columns(bands, ends)
    if columns is None:
        return None
    cells = [_read_cells(band, columns, page) for band in bands]
    for band, row in zip(bands, cells, strict=True):
        counts = [len(cell) for cell in row if cell]
        if not _is_title(band, ends[0]) and (len(counts) < 2 or min(counts) > 1):
            return None
    boxes = [rounded_box(columns[0][0], band.top, columns[-1][1], band.bottom) for band in bands]
    return Table(
        [[join_lines([line.text for line in cell]) for cell in row] for row in cells],
        [[bool(cell) and all(line.bold for line in cell) for cell in row] for row in cells],
        page,
        ends[0],
        bands[0].top,
        ends[1],
        bands[-1].bottom,
        boxes,
        merged=all_apart(cells),
        columns=tuple(columns),
    )


def _find_columns(bands: Sequence[_Band], ends: tuple[float, float]) -> list[tuple[float, float]] | None:
    """The columns of a table: by its wide gaps, or by narrow ones that go through all its rows; None for no table."""
    told = [band for band in bands if not _is_title(band, ends[0])]
    rows = [row for band in told for row in band.rows]
    columns = find_columns(rows)
    gutters = _find_gutters([glyph for band in told for glyph in band.glyphs])
    if len(told) >= _FEWEST_ROWS and len(gutters) > max(1, len(columns or [])):
        return gutters
    if columns is None or len(columns) < 2 or (len(columns) == 2 and are_prose(rows)):
        return None
    is_wrapped = max(len(band.rows) for band in bands) > 1
    return columns if is_wrapped or has_table_lines(rows) else None


def _find_gutters(glyphs: Sequence[Glyph]) -> list[tuple[float, float]]:
    """Where the text of columns begins and ends, however near to each other they are."""
    columns: list[tuple[float, float]] = []
    for glyph in sorted(glyphs, key=lambda glyph: glyph.x0):
        if glyph.text.isspace():
            continue
        if columns and glyph.x0 - columns[-1][1] < _LEAST_GUTTER * glyph.size:
            columns[-1] = (columns[-1][0], max(columns[-1][1], glyph.x1))
        else:
            columns.append((glyph.x0, glyph.x1))
    return columns


def _is_title(band: _Band, left: float) -> bool:
    """Whether a band holds one text alone, from the left."""
    return all(_is_free(row, left) for row in band.rows)


def _read_cells(band: _Band, columns: Sequence[tuple[float, float]], page: int) -> list[list[Line]]:
    """The lines of each cell of a row."""
    cells: list[list[Line]] = [[] for _ in columns]
    gutters = [(end, start) for (_, end), (start, _) in pairwise(columns)]
    if not all(_is_blank(gutter, band) for gutter in gutters):  # a text over several columns
        for row in band.rows:
            for piece in row:
                cells[column_of(piece, columns)].append(piece)
        return cells
    starts = [start for start, _ in columns[1:]]
    by_column: list[list[Glyph]] = [[] for _ in columns]
    for glyph in band.glyphs:
        by_column[bisect_right(starts, glyph.x0 + 0.1)].append(glyph)
    return [lines_of(glyphs, page, keep_lines=True) for glyphs in by_column]


def _is_blank(gutter: tuple[float, float], band: _Band) -> bool:
    """Whether there is a blank between two columns, and nothing stands in it."""
    end, start = gutter
    letters = (glyph for glyph in band.glyphs if not glyph.text.isspace())
    return start > end and not any(glyph.x0 < start - 0.1 and glyph.x1 > end + 0.1 for glyph in letters)
