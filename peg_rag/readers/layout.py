"""Glyphs of a page → lines in reading order, and tables, with the boxes they stand in.

A page says where each glyph is and nothing of words, columns or tables. Here glyphs become lines, a wide gap within a
line divides it, lines on both sides of a gutter become columns, and pieces that stand under one another over several
lines become the cells of a table without rules. All sizes are measured in the type size of the line at hand.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from peg_rag.readers.blocks import Box
from peg_rag.readers.names import is_labelled, is_name
from peg_rag.readers.normalize import is_wide, join_lines, replace_characters
from peg_rag.readers.pieces import Glyph, Item, Line, Rule, Table, rounded_box
from peg_rag.readers.tables import Grid, guess_header, guess_merged

_SAME_LINE = 0.45  # of the type size that the middles of two glyphs on one line may differ
_WORD_GAP = 0.2  # of the type size, beyond which a gap between Latin letters is a space
_PIECE_GAP = 1.6  # of the type size, beyond which a line falls into pieces
_TIGHT_PIECE_GAP = 1.0  # the same where no space stands in the gap
_FRAMED_GAP = 0.5  # the same where a frame holds nothing but a table
_FEWEST_COLUMN_LINES = 4
_MOST_LINES = 3_000  # on a page that is searched for columns, which takes time with their square
_WIDE_SHEET = 1.2  # times its height, from which a sheet may hold two pages side by side
_LEAST_FOLD = 0.03  # of a sheet's width, between the two pages
_LEAST_PAGE = 0.2  # of a sheet's width that the text of one of its pages takes up
_FEWEST_TABLE_LINES = 3
_MOST_TABLE_LINES = 300  # of a table without rules
_TABLES_APART = 1.4  # of the usual pitch, from which a line of names begins another table
_FEW_LINES = 8  # on a page; where no two end at one place, the right margin is taken to be as wide as the left one
_COLUMN_FILL = 0.7  # of a column's width that its long lines take up, or it is a column of a table
_LONG_LINES = 0.3  # of a column's lines that are long ones
_MOST_LINES_LONG = 0.6  # the same where there are more than two columns
_MARKER = re.compile(r"([(（]?[\dA-Za-z一二三四五六七八九十]{1,3}[.、．)）]|[\d.]{1,8}|[•●○◦▪■◆➢✓·–—-])$")
_TOUCHING = 1.0  # points that a text reaches into a column at least to be in it
_CLAUSE = re.compile(r"[，。；、]")
_PROSE_WIDTH = 14  # type sizes
_FIGURE = re.compile(r"\d")
_LEADERS = re.compile(r"(?:[.．·…‥]\s?){4,}\s*[\divxIVX]{1,5}\s*$")  # an entry of a table of contents


def lines_of(glyphs: Iterable[Glyph], page: int, *, keep_lines: bool = False, is_tight: bool = False) -> list[Line]:
    """The pieces of lines that glyphs make up, from the top down, each from the left.

    Args:
        keep_lines: do not split a line at its gaps.
        is_tight: split it at narrow gaps, too.
    """
    lines: list[Line] = []
    for row in _group_rows(list(glyphs)):
        pieces = [row] if keep_lines else _split_row(row, _FRAMED_GAP if is_tight else _TIGHT_PIECE_GAP)
        row_lines = [_make_line(piece, page) for piece in pieces]
        lines += _join_markers([line for line in row_lines if line.text])
    return lines


def in_reading_order(items: Sequence[Item], page_width: float = 0.0) -> list[Item]:
    """Columns one after the other, what spans them in its place, tables without rules put together.

    Args:
        page_width: in points, for a page with too few lines to show where they end.
    """
    bands = _split_columns(items)
    if bands is not None:
        return [item for band in bands for item in in_reading_order(band)]
    ordered = sorted(items, key=lambda item: (item.top, item.x0))
    ordered = [item for row in _visual_rows(ordered) for item in row]
    lines = [item for item in ordered if isinstance(item, Line)]
    left_edge = min((line.x0 for line in lines), default=0.0)
    right_edge = max((line.x1 for line in lines), default=0.0)
    if len(lines) < _FEW_LINES and sum(line.x1 > right_edge - 1.5 * line.size for line in lines) < 2:
        right_edge = max(right_edge, page_width - left_edge)
    items_with_edges = [
        replace(item, left_edge=left_edge, right_edge=right_edge) if isinstance(item, Line) else item
        for item in ordered
    ]
    return list(_with_tables(items_with_edges))


def split_sheet(items: Sequence[Item], width: float, height: float) -> list[Sequence[Item]]:
    """The items of the two pages that a wide sheet holds side by side, or all items where it is one page.

    Nothing stands in the middle of such a sheet, and one of its halves at least is filled with lines of text.

    Args:
        width: of the sheet, in points.
    """
    if width < _WIDE_SHEET * height:
        return [items]
    left = [item for item in items if item.x1 < width / 2]
    right = [item for item in items if item.x0 > width / 2]
    if not left or not right or len(left) + len(right) < len(items):
        return [items]
    if min(item.x0 for item in right) - max(item.x1 for item in left) < _LEAST_FOLD * width:
        return [items]
    return [left, right] if any(_are_page_lines(half, width) for half in (left, right)) else [items]


def _are_page_lines(items: Sequence[Item], sheet_width: float) -> bool:
    lines = [item for item in items if isinstance(item, Line)]
    if len(lines) < _FEWEST_COLUMN_LINES:
        return False
    left_edge = min(line.x0 for line in lines)
    right_edge = max(line.x1 for line in lines)
    is_broad = right_edge - left_edge > _LEAST_PAGE * sheet_width
    return is_broad and _fills_column(lines, left_edge, right_edge)


def read_three_line_table(
    glyphs: Sequence[Glyph], rules: Sequence[float], braces: Sequence[Rule], page: int
) -> Table | None:
    """A table with a rule above, one below and one under its header (三线表), whose header has several lines.

    None where the header is one line: then the lines tell the table as they do without rules.

    Args:
        glyphs: between the first rule and the last one.
        rules: the heights of the three.
        braces: short rules within the header, under a name over several columns.
    """
    names = piece_rows(glyphs, rules[0], rules[1], page)
    body = piece_rows(glyphs, rules[1], rules[2], page)
    columns = find_columns(body) if body else None
    if columns is None or len(columns) < 3 or sum(len(row) > 1 for row in names) < 2:
        return None
    header = [_spread_names(row, columns, braces) for row in names]
    for column in range(len(columns)):
        texts = [row[column] for row in header if row[column]]
        if len(texts) == 1:  # the name of a single column, which may stand between the lines of the others
            for row in header:
                row[column] = texts[0]
    header = [row for row, pieces in zip(header, names, strict=True) if len(pieces) > 1]
    grid, _, boxes = _read_rows(body, columns)
    left = min(columns[0][0], *(piece.x0 for row in names for piece in row))
    right = max(columns[-1][1], *(piece.x1 for row in names for piece in row))
    top = rounded_box(left, rules[0], right, rules[1])
    return Table(
        [*header, *grid],
        [*([True] * len(columns) for _ in header), *([False] * len(columns) for _ in grid)],
        page,
        left,
        rules[0],
        right,
        rules[2],
        [*(top for _ in header), *boxes],
        merged=[*guess_merged(header), *all_apart(grid)],
        columns=tuple(columns),
    )


def read_framed_table(glyphs: Sequence[Glyph], box: Box, page: int) -> Table | None:
    """A table within a frame, its columns told by blanks, as of the items on an invoice; None for other text.

    Blanks between its rows are of no matter: the frame says what belongs to it.
    """
    rows = piece_rows(glyphs, box[1], box[3], page, is_tight=True)
    if len(rows) < 2 or len(rows[0]) < 3 or not all(is_name(piece.text) for piece in rows[0]):
        return None
    columns = find_columns(rows)
    if columns is None or len(columns) < 3 or len(rows[1]) < 2:
        return None
    grid, bold, boxes = _read_rows(rows, columns, names_wrap=True)
    return Table(grid, bold, page, *box, boxes, merged=all_apart(grid), columns=tuple(columns))


def all_apart(rows: Sequence[Sequence[object]]) -> list[list[bool]]:
    """No cell is one with its neighbour: a blank parts them."""
    return [[False] * len(row) for row in rows]


def match_columns(columns: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> list[int] | None:
    """For each column of a table the number of the other table's column that it stands under; None where they differ.

    A column of as many may be so narrow that it stands under none, but it may not reach into another one.
    """
    if not columns or len(columns) > len(others):
        return None
    places: list[int] = []
    for number, (start, end) in enumerate(columns):
        touched = [place for place, (x0, x1) in enumerate(others) if min(end, x1) - max(start, x0) > _TOUCHING]
        if not touched and len(columns) == len(others):
            touched = [number]
        if len(touched) != 1 or (places and touched[0] <= places[-1]):
            return None
        places += touched
    return places


def read_lone_rows(rows: Sequence[Sequence[Line]], table: Table) -> Table | None:
    """Lines of pieces as rows of a table on another page; None where they do not stand under its columns.

    Args:
        rows: of several pieces each, from the top down.
    """
    grid: Grid = []
    bold: list[list[bool]] = []
    for row in rows:
        places = match_columns([(piece.x0, piece.x1) for piece in row], table.columns)
        is_signature = all(piece.text.endswith((":", "：")) or is_labelled(piece.text) for piece in row)
        if places is None or places[0] > 0 or 2 * len(row) <= len(table.columns) or is_signature:
            return None
        pieces = dict(zip(places, row, strict=True))
        grid.append([pieces[place].text if place in pieces else "" for place in range(len(table.columns))])
        bold.append([place in pieces and pieces[place].bold for place in range(len(table.columns))])
    top = rows[0][0].top
    bottom = rows[-1][0].bottom
    boxes = [rounded_box(row[0].x0, row[0].top, row[-1].x1, row[0].bottom) for row in rows]
    page = rows[0][0].page
    merged = all_apart(grid)
    return Table(grid, bold, page, table.x0, top, table.x1, bottom, boxes, merged=merged, columns=table.columns)


def _spread_names(row: Sequence[Line], columns: Sequence[tuple[float, float]], braces: Sequence[Rule]) -> list[str]:
    """The names in a line of a header, each in all columns that it stands above."""
    names = [""] * len(columns)
    for piece in row:
        spans = [
            (x0, x1)
            for height, x0, x1 in braces
            if 0 <= height - piece.bottom < 1.5 * piece.size and x0 < (piece.x0 + piece.x1) / 2 < x1
        ]
        x0, x1 = spans[0] if spans else (piece.x0, piece.x1)
        for number, (start, end) in enumerate(columns):
            if min(x1, end) - max(x0, start) > 0:
                names[number] = join_lines([names[number], piece.text])
    return names


def piece_rows(
    glyphs: Sequence[Glyph], top: float, bottom: float, page: int, *, is_tight: bool = False
) -> list[list[Line]]:
    """The pieces of lines between two heights, those of one line together."""
    between = [glyph for glyph in glyphs if top <= glyph.middle < bottom]
    rows = _visual_rows(lines_of(between, page, is_tight=is_tight))
    return [[piece for piece in row if isinstance(piece, Line)] for row in rows]


def _group_rows(glyphs: list[Glyph]) -> list[list[Glyph]]:
    """Glyphs whose middles are at one height, each row from the left."""
    rows: list[list[Glyph]] = []
    middle = size = 0.0
    for glyph in sorted(glyphs, key=lambda glyph: glyph.middle):
        if rows and glyph.middle - middle <= _SAME_LINE * max(size, glyph.size):
            rows[-1].append(glyph)
            if glyph.size > size:  # the line's own type, not that of an index beside it
                middle = glyph.middle
                size = glyph.size
        else:
            rows.append([glyph])
            middle = glyph.middle
            size = glyph.size
    return [sorted(row, key=lambda glyph: glyph.x0) for row in rows]


def _split_row(row: list[Glyph], tight_gap: float) -> list[list[Glyph]]:
    pieces: list[list[Glyph]] = []
    last: Glyph | None = None
    spaced = False
    for glyph in row:
        if glyph.text.isspace() and glyph.text != "\u3000":
            spaced = True
            continue
        if last is not None:
            gap = (glyph.x0 - last.x1) / max(last.size, glyph.size, 1.0)
            max_gap = _PIECE_GAP if spaced else tight_gap
            if gap > max_gap:
                pieces.append([])
            elif spaced:
                pieces[-1].append(replace(glyph, text=" ", x0=last.x1, x1=glyph.x0))
        else:
            pieces.append([])
        pieces[-1].append(glyph)
        last = glyph
        spaced = False
    return pieces


def _make_line(piece: list[Glyph], page: int) -> Line:
    text = ""
    last: Glyph | None = None
    for glyph in piece:
        if last is not None and text and not text[-1].isspace() and not glyph.text[:1].isspace():
            latin = not (is_wide(last.text[-1:]) or is_wide(glyph.text[:1]))
            if latin and glyph.x0 - last.x1 > _WORD_GAP * glyph.size:
                text += " "
        text += glyph.text
        last = glyph
    letters = [glyph for glyph in piece if not glyph.text.isspace()] or piece
    sizes = [glyph.size for glyph in letters]
    shown = " ".join(replace_characters(text).replace("\u3000", " ").split())
    return Line(
        shown,
        page,
        min(glyph.x0 for glyph in letters),
        min(glyph.top for glyph in letters),
        max(glyph.x1 for glyph in letters),
        max(glyph.bottom for glyph in letters),
        median(sizes),
        all(glyph.bold for glyph in letters),
    )


def _join_markers(pieces: list[Line]) -> list[Line]:
    """A number or bullet that stands off from its text is part of it, and belongs to no table."""
    lines: list[Line] = []
    for piece in pieces:
        before = lines[-1] if lines else None
        if (
            before is not None
            and len(pieces) == 2
            and _MARKER.match(before.text)
            and piece.x0 - before.x1 < 5 * piece.size
        ):
            lines[-1] = _merge_lines(before, piece)
        else:
            lines.append(piece)
    return lines


def _merge_lines(first: Line, second: Line) -> Line:
    return replace(
        second,
        text=f"{first.text} {second.text}",
        x0=first.x0,
        top=min(first.top, second.top),
        bottom=max(first.bottom, second.bottom),
        bold=first.bold and second.bold,
    )


def _split_columns(items: Sequence[Item]) -> list[list[Item]] | None:
    """The items in bands to be read one after the other; None where they stand in one column."""
    lines = [item for item in items if isinstance(item, Line)]
    if not 2 * _FEWEST_COLUMN_LINES <= len(lines) <= _MOST_LINES:
        return None
    gutter = _find_gutter(items, lines)
    if gutter is None:
        return None
    bands: list[list[Item]] = []
    left_column: list[Item] = []
    right_column: list[Item] = []
    for item in sorted(items, key=lambda item: item.top):
        if item.x1 <= gutter:
            left_column.append(item)
        elif item.x0 >= gutter:
            right_column.append(item)
        else:
            bands += _order_columns(left_column, right_column)
            bands.append([item])
            left_column = []
            right_column = []
    bands += _order_columns(left_column, right_column)
    merged: list[list[Item]] = []
    spans_before = False
    for band in filter(None, bands):  # items in one column that follow one another are read together
        spans = len(band) == 1 and band[0].x0 < gutter < band[0].x1
        if spans and spans_before:
            merged[-1] += band
        else:
            merged.append(band)
        spans_before = spans
    return merged if len(merged) > 1 else None


def _order_columns(left_column: list[Item], right_column: list[Item]) -> list[list[Item]]:
    """What stands above both columns, the left one, the right one, and a title below both, whatever side it is on."""
    if not left_column or not right_column:
        return [left_column, right_column]
    first = min(item.top for item in left_column)
    ends = [
        number
        for number, (item, following) in enumerate(pairwise(right_column), start=1)
        if item.bottom <= first and following.top - item.bottom > 0.8 * (item.bottom - item.top)
    ]
    above = right_column[: ends[-1]] if ends else []
    right_column = right_column[len(above) :]
    end = max((item.bottom for item in right_column), default=0.0)
    size = median([item.size for item in left_column if isinstance(item, Line)] or [0.0])
    below = next(
        (
            number
            for number, item in enumerate(left_column)
            if right_column and isinstance(item, Line) and item.top >= end and (item.bold or item.size > 1.1 * size)
        ),
        len(left_column),
    )
    return [above, left_column[:below], right_column, left_column[below:]]


def _find_gutter(items: Sequence[Item], lines: Sequence[Line]) -> float | None:
    """Where a vertical line parts two columns of text and few lines cross it."""
    best: tuple[int, float] | None = None
    left_edge = min(item.x0 for item in items)
    right_edge = max(item.x1 for item in items)
    for x in sorted({line.x0 - 0.5 for line in lines}):
        if not left_edge + 0.2 * (right_edge - left_edge) < x < left_edge + 0.8 * (right_edge - left_edge):
            continue
        left_lines = [line for line in lines if line.x1 <= x]
        right_lines = [line for line in lines if line.x0 >= x]
        crossing = len(lines) - len(left_lines) - len(right_lines)
        shorter = min(len(left_lines), len(right_lines))
        if shorter < _FEWEST_COLUMN_LINES or crossing > shorter:
            continue
        if not _stand_side_by_side([i for i in items if i.x1 <= x], [i for i in items if i.x0 >= x]):
            continue
        left_end = max(line.x1 for line in left_lines)
        if not (_fills_column(left_lines, left_edge, left_end) or _fill_columns(left_lines, left_edge, left_end)):
            continue
        if not (_fills_column(right_lines, x, right_edge) or _fill_columns(right_lines, x, right_edge)):
            continue
        if best is None or crossing < best[0]:
            best = (crossing, x)
    return None if best is None else best[1]


def _fills_column(lines: Sequence[Line], left_edge: float, right_edge: float, long_lines: float = _LONG_LINES) -> bool:
    width = right_edge - left_edge
    size = median(line.size for line in lines)
    widths = sorted((line.x1 - line.x0 for line in lines), reverse=True)
    return width > 10 * size and widths[int(long_lines * len(widths))] >= _COLUMN_FILL * width


def _fill_columns(lines: Sequence[Line], left_edge: float, right_edge: float) -> bool:
    """Whether lines make up several columns that most of them fill; tables of three columns rarely have long cells."""
    columns: list[list[Line]] = []
    end = left_edge
    for line in sorted(lines, key=lambda line: line.x0):
        if columns and line.x0 < end:
            columns[-1].append(line)
            end = max(end, line.x1)
        else:
            columns.append([line])
            end = line.x1
    if len(columns) < 2 or min(map(len, columns)) < _FEWEST_COLUMN_LINES:
        return False
    starts = [min(line.x0 for line in column) for column in columns]
    ends = [*(max(line.x1 for line in column) for column in columns[:-1]), right_edge]
    return all(
        _fills_column(column, start, end, _MOST_LINES_LONG)
        for column, start, end in zip(columns, starts, ends, strict=True)
    )


def _stand_side_by_side(left: Sequence[Item], right: Sequence[Item]) -> bool:
    top = max(min(item.top for item in left), min(item.top for item in right))
    bottom = min(max(item.bottom for item in left), max(item.bottom for item in right))
    heights = [max(item.bottom for item in side) - min(item.top for item in side) for side in (left, right)]
    return bottom - top >= 0.4 * min(heights)


def _visual_rows(items: Sequence[Item]) -> list[list[Item]]:
    """Items at one height together, from the left; a table is a row of its own."""
    rows: list[list[Item]] = []
    for item in sorted(items, key=lambda item: item.middle):
        before = rows[-1][0] if rows else None
        if (
            isinstance(before, Line)
            and isinstance(item, Line)
            and item.middle - before.middle <= _SAME_LINE * max(item.size, before.size)
        ):
            rows[-1].append(item)
        else:
            rows.append([item])
    return [sorted(row, key=lambda item: item.x0) for row in rows]


def _with_tables(items: Sequence[Item]) -> Iterator[Item]:
    """The items, with runs of lines whose pieces stand in columns made into tables, and contents left out."""
    run: list[list[Line]] = []
    for row in _visual_rows(items):
        pieces = [piece for piece in row if isinstance(piece, Line)]
        if pieces and _LEADERS.search(" ".join(piece.text for piece in pieces)):
            continue
        if len(pieces) == len(row) and _continues_table(run, pieces):
            run.append(pieces)
            continue
        yield from _table_or_lines(run)
        run = []
        if len(pieces) > 1:
            run = [pieces]
        else:
            yield from row
    yield from _table_or_lines(run)


def _continues_table(run: list[list[Line]], pieces: list[Line]) -> bool:
    """Whether a line may be the next of a table: near the last one, each piece under one column or beside all."""
    if not run or len(run) >= _MOST_TABLE_LINES:
        return False
    height = pieces[0].bottom - pieces[0].top
    if pieces[0].top - max(piece.bottom for piece in run[-1]) > 2.5 * height:
        return False
    columns = find_columns([*run, pieces])
    if columns is None or len(columns) < max(map(len, run)):
        return False
    if len(pieces) > 1:
        return True
    # A piece alone is the rest of a cell above, unless it stands where a line of text would begin.
    return pieces[0].x0 > columns[0][1] and pieces[0].x1 <= max(piece.x1 for row in run for piece in row) + 1


def has_table_lines(run: Sequence[Sequence[Line]]) -> bool:
    """Whether there are enough lines of several pieces; two are, where both have the same three or more."""
    counts = [len(row) for row in run if len(row) > 1]
    return len(counts) >= _FEWEST_TABLE_LINES or (len(counts) == 2 and counts[0] == counts[1] >= 3)


def find_columns(rows: Sequence[Sequence[Line]]) -> list[tuple[float, float]] | None:
    """The horizontal extents of a table's columns; None where two pieces of a line would share one."""
    extents: list[tuple[float, float]] = []
    for x0, x1 in sorted((piece.x0, piece.x1) for row in rows for piece in row):
        if extents and x0 < extents[-1][1]:
            extents[-1] = (extents[-1][0], max(extents[-1][1], x1))
        else:
            extents.append((x0, x1))
    for row in rows:
        places = [column_of(piece, extents) for piece in row]
        if len(set(places)) < len(places):
            return _aligned_columns(rows)
    return extents


def _aligned_columns(rows: Sequence[Sequence[Line]]) -> list[tuple[float, float]] | None:
    """The columns of the fullest lines, where their pieces begin, end or have their middles under one another.

    A long name over a narrow column may reach into the next one, so that the columns' extents overlap.
    """
    most = max(map(len, rows))
    full = [row for row in rows if len(row) == most]
    if len(full) < 2 or most < 3:
        return None
    starts: list[float] = []
    for number in range(most):
        pieces = [row[number] for row in full]
        slack = 1.5 * pieces[0].size
        edges = ([p.x0 for p in pieces], [p.x1 for p in pieces], [(p.x0 + p.x1) / 2 for p in pieces])
        if all(max(edge) - min(edge) > slack for edge in edges):
            return None
        starts.append(min(piece.x0 for piece in pieces))
    columns = list(zip(starts, [*starts[1:], max(row[-1].x1 for row in full) + 1], strict=True))
    for row in rows:
        places = [column_of(piece, columns) for piece in row]
        if len(set(places)) < len(places):
            return None
    return columns


def are_prose(run: Sequence[Sequence[Line]]) -> bool:
    """Whether two columns of a few lines are text: long lines, most with a comma or a full stop."""
    lines = [piece for row in run for piece in row]
    clauses = sum(_CLAUSE.search(line.text) is not None for line in lines)
    return 2 * clauses > len(lines) and median(line.x1 - line.x0 for line in lines) > _PROSE_WIDTH * lines[0].size


def _find_second_table(run: Sequence[Sequence[Line]]) -> int:
    """The line that another table begins with: names alone, set apart from the line above; 0 if there is none."""
    pitches = [lower[0].middle - upper[0].middle for upper, lower in pairwise(run)]
    for number in range(2, len(run) - 2):
        is_apart = pitches[number - 1] >= _TABLES_APART * median(pitches)
        if is_apart and len(run[number]) > 1 and _are_column_names(run[number], run[number + 1 :]):
            return number
    return 0


def _are_column_names(row: Sequence[Line], rows: Sequence[Sequence[Line]]) -> bool:
    """Whether a line has no figures, or those of a header such as `4小时` that the lines below tell."""
    if not any(_FIGURE.search(piece.text) for piece in row):
        return True
    columns = find_columns([row, *rows])
    if columns is None or _FIGURE.search(row[0].text):
        return False
    grid, _, _ = _read_rows([row, *rows], columns)
    return guess_header(grid).rows > 0


def _ends_cell(run: Sequence[Sequence[Line]]) -> bool:
    """Whether the piece alone in the last line is the end of a cell: as near to its rest as no two rows are."""
    last = run[-1][0]
    if len(run) < 3 or not any(abs(piece.x0 - last.x0) < 1 for piece in run[-2]):
        return False
    left = min(row[0].x0 for row in run)
    starts = [row[0].middle for row in run if row[0].x0 < left + last.size]
    rows = [lower - upper for upper, lower in pairwise(starts)]
    return bool(rows) and last.middle - run[-2][0].middle < 0.9 * min(rows)


def column_of(piece: Line, extents: Sequence[tuple[float, float]]) -> int:
    return next((number for number, (_, x1) in enumerate(extents) if piece.x0 < x1), len(extents) - 1)


def _table_or_lines(run: list[list[Line]]) -> Iterator[Item]:
    start = _find_second_table(run)
    if start:
        yield from _table_or_lines(run[:start])
        yield from _table_or_lines(run[start:])
        return
    while run and len(run[-1]) == 1 and not _ends_cell(run):  # text under the table
        tail = run.pop()
        yield from _table_or_lines(run)
        yield from tail
        return
    columns = find_columns(run) if has_table_lines(run) else None
    if columns is None:
        yield from (piece for row in run for piece in row)
        return
    if len(columns) == 2 and are_prose(run):
        for column in range(2):
            yield from (piece for row in run for piece in row if column_of(piece, columns) == column)
        return
    grid, bold, boxes = _read_rows(run, columns)
    first = run[0][0]
    yield Table(
        grid,
        bold,
        first.page,
        min(box[0] for box in boxes),
        boxes[0][1],
        max(box[2] for box in boxes),
        boxes[-1][3],
        boxes,
        merged=all_apart(grid),
        columns=tuple(columns),
    )


def _continues_name(
    above: Sequence[Line], row: Sequence[Line], columns: Sequence[tuple[float, float]], is_close: bool
) -> bool:
    """Whether a line is the rest of the name above it: alone, and close below or where the name had no more room."""
    name = above[0]
    has_no_room = column_of(name, columns) == 0 and columns[1][0] - name.x1 < 2 * name.size
    return len(row) == 1 and (is_close or has_no_room)


def _read_rows(
    run: Sequence[Sequence[Line]], columns: Sequence[tuple[float, float]], *, names_wrap: bool = False
) -> tuple[Grid, list[list[bool]], list[Box]]:
    """Lines of pieces as the rows of a table, what is wrapped put together: texts, which are bold, and their boxes.

    Args:
        names_wrap: a text in the first column alone may be the rest of the one above it, which the header is not.
    """
    grid: Grid = []
    bold: list[list[bool]] = []
    boxes: list[Box] = []
    pitches = [lower[0].middle - upper[0].middle for upper, lower in pairwise(run)]
    pitch = median(pitches or [0.0])
    for number, row in enumerate(run):
        cells = [""] * len(columns)
        marks = [False] * len(columns)
        for piece in row:
            place = column_of(piece, columns)
            cells[place] = piece.text
            marks[place] = piece.bold
        lefts, tops, rights, bottoms = zip(*(piece.box for piece in row), strict=True)
        box = (min(lefts), min(tops), max(rights), max(bottoms))
        is_close = number > 0 and pitches[number - 1] < 0.8 * pitch
        if cells[0]:
            is_wrapped = names_wrap and number > 1 and _continues_name(run[number - 1], row, columns, is_close)
        else:
            is_wrapped = is_close or len(row) == 1
        if is_wrapped and grid:
            grid[-1] = [join_lines([above, below]) for above, below in zip(grid[-1], cells, strict=True)]
            above = boxes[-1]
            boxes[-1] = (min(above[0], box[0]), above[1], max(above[2], box[2]), box[3])
        else:
            grid.append(cells)
            bold.append(marks)
            boxes.append(box)
    return grid, bold, boxes
