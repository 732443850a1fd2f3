"""Excel workbooks: every row of every visible sheet with the names of its columns, values as Excel shows them.

A sheet may hold several tables, with titles above them and empty rows between; merged cells are filled. Costs about
50 times the file's size in memory (openpyxl), which is why sheets are read one after the other and let go.
"""

import io
import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from peg_rag.errors import DataError
from peg_rag.extras import require
from peg_rag.readers.blocks import Block, Heading, Paragraph, Row
from peg_rag.readers.files import check_zip, run_parser
from peg_rag.readers.normalize import clean_line
from peg_rag.readers.records import TEXT_COLUMNS, record_of
from peg_rag.readers.tables import Grid, Marks, guess_header, table_rows

_MOST_CELLS = 5_000_000
_DECIMALS = re.compile(r"0\.(0+)")
_QUOTED = re.compile(r'"([^"]*)"|\\(.)')
_COLOUR = re.compile(r"\[[^\]]*\]")


def read_xlsx(data: bytes, path: Path, text_column: str | None) -> Iterator[Block]:
    check_zip(data, path)
    openpyxl = require("openpyxl", "ingest")
    book = run_parser(path, lambda: openpyxl.load_workbook(io.BytesIO(data), data_only=True, keep_links=False))
    for sheet in book.worksheets:
        if sheet.sheet_state == "visible":
            yield from run_parser(path, partial(_sheet_blocks, sheet, path, text_column))


def format_value(value: Any, number_format: str) -> str:
    """A cell's value as Excel shows it, for the usual formats: dates, times, percent, decimals, thousands, currency."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, datetime | date | time):
        return _format_date(value, number_format)
    if isinstance(value, timedelta):
        hours, seconds = divmod(round(value.total_seconds()), 3600)
        return f"{hours}:{seconds // 60:02d}:{seconds % 60:02d}"
    if isinstance(value, int | float):
        return _format_number(value, number_format)
    return clean_line(str(value))


def _sheet_blocks(sheet: Any, path: Path, text_column: str | None) -> list[Block]:
    grid, merged = _read_grid(sheet, path)
    if not any(map(any, grid)):
        return []
    blocks: list[Block] = [Heading(clean_line(sheet.title), 1)]
    for first, end in _find_regions(grid):
        blocks += _region_blocks(grid[first:end], merged[first:end], first, sheet.title, path, text_column)
    return blocks


def _region_blocks(
    grid: Grid, merged: Marks, first: int, sheet: str, path: Path, text_column: str | None
) -> Iterator[Block]:
    """The rows of one table in a sheet; `first`: the row of the sheet that the grid begins with, from 0."""
    columns = [c for c in range(len(grid[0])) if any(row[c] for row in grid)]
    grid = [[row[c] for c in columns] for row in grid]
    merged = [[row[c] for c in columns] for row in merged]
    if len(columns) == 1:
        yield from (Paragraph(row[0]) for row in grid if row[0])
        return
    header = guess_header(grid, merged=merged) if len(grid) > 1 else None
    if header is not None and header.rows == 1 and (text_column or set(TEXT_COLUMNS) & set(header.names)):
        for number, row in enumerate(grid[1:], start=first + 2):
            if any(row):
                yield record_of(dict(zip(header.names, row, strict=False)), number, path, text_column, sheet)
        return
    for body in table_rows(grid, merged=merged):
        yield Row(body.cells, first + body.index + 1, body.captions, sheet=sheet)


def _read_grid(sheet: Any, path: Path) -> tuple[Grid, Marks]:
    """The sheet's cells as shown, with merged ones filled, and which are one with the cell at their left.

    Hidden rows are read too, as they may only be filtered.
    """
    if sheet.max_row * sheet.max_column > _MOST_CELLS:
        raise DataError(
            f"{path}: sheet {sheet.title!r} spans {sheet.max_row:,} × {sheet.max_column:,} cells; "
            f"at most {_MOST_CELLS:,} are read. Delete its empty rows and columns, or save it as CSV"
        )
    grid = [[format_value(cell.value, cell.number_format) for cell in row] for row in sheet.iter_rows()]
    merged = [[False] * len(row) for row in grid]
    for area in sheet.merged_cells.ranges:
        text = grid[area.min_row - 1][area.min_col - 1] if area.min_row <= len(grid) else ""
        for row in range(area.min_row - 1, min(area.max_row, len(grid))):
            for column in range(area.min_col - 1, min(area.max_col, len(grid[row]))):
                grid[row][column] = text
                merged[row][column] = column >= area.min_col
    return grid, merged


def _find_regions(grid: Grid) -> Iterator[tuple[int, int]]:
    """(first, end) of the stretches of rows between empty ones; a title alone belongs to what follows."""
    first: int | None = None
    for number, row in enumerate([*grid, []]):
        if any(row):
            if first is None:
                first = number
        elif first is not None and (number - first > 1 or number == len(grid) or not _is_title(grid[first])):
            yield first, number
            first = None


def _is_title(row: list[str]) -> bool:
    return len(set(filter(None, row))) == 1


def _format_date(value: datetime | date | time, number_format: str) -> str:
    form = _COLOUR.sub("", number_format or "").lower()
    day = ""
    if isinstance(value, date):
        if "年" in form:
            day = f"{value.year}年{value.month}月" + (f"{value.day}日" if "d" in form else "")
        elif "月" in form:
            day = f"{value.month}月{value.day}日"
        elif "/" in form:
            day = f"{value.year}/{value.month}/{value.day}"
        elif "y" in form and "d" not in form:
            day = f"{value.year}-{value.month:02d}"
        else:
            day = f"{value.year}-{value.month:02d}-{value.day:02d}"
    if isinstance(value, date) and not isinstance(value, datetime):
        return day
    has_time = isinstance(value, time) or "h" in form or (value.hour or value.minute or value.second)
    if not has_time:
        return day
    clock = f"{value.hour:02d}:{value.minute:02d}" + (f":{value.second:02d}" if "s" in form or value.second else "")
    if isinstance(value, time) or not ("y" in form or "d" in form):
        return clock
    return f"{day} {clock}"


def _format_number(value: int | float, number_format: str) -> str:
    form = _COLOUR.sub("", (number_format or "General").split(";")[0])
    plain = _QUOTED.sub("", form)
    literals = [match[1] or match[2] or "" for match in _QUOTED.finditer(form)]
    match = _DECIMALS.search(plain)
    decimals = len(match[1]) if match else 0
    if "%" in plain:
        return f"{value * 100:.{decimals}f}%"
    if not ("0" in plain or "#" in plain) or "E" in plain:
        return _format_general(value)
    digits = f"{value:.{decimals}f}"
    if "#,##0" in plain or ",0" in plain:
        digits = f"{value:,.{decimals}f}"
    if "#" in plain.split(".")[-1] and "." in plain:
        digits = _format_general(value)
    elif re.fullmatch(r"0{2,}", plain.strip()) and value >= 0:
        digits = digits.zfill(len(plain.strip()))
    before = "".join(sign for sign in "¥￥$€£" if sign in plain or sign in "".join(literals))
    after = "".join(text for text in literals if text.strip() and text not in "¥￥$€£")
    return f"{before[:1]}{digits}{after}"


def _format_general(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.11g}"
