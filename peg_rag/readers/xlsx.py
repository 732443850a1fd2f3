"""Excel workbooks: every row of every visible sheet with the names of its columns, values as Excel shows them.

A sheet may hold several tables, with titles above them and empty rows between; merged cells are filled. Costs about
50 times the file's size in memory (openpyxl), which is why sheets are read one after the other and let go.
"""

import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from peg_rag.errors import DataError
from peg_rag.extras import require
from peg_rag.readers.blocks import Block, Heading, Paragraph, Row, describe_comment
from peg_rag.readers.files import PartlyRead, check_zip, run_parser
from peg_rag.readers.names import is_name_row, is_value
from peg_rag.readers.normalize import clean_cell, clean_line, flatten_cell, join_lines
from peg_rag.readers.records import TEXT_COLUMNS, record_of
from peg_rag.readers.tables import Grid, Marks, guess_header, table_rows

_MOST_CELLS = 5_000_000
_MOST_TITLES = 3  # rows above a header
_DECIMALS = re.compile(r"0\.(0+)")
# What Excel writes above the comments of a thread for versions that know none.
_COMMENT_HEAD = re.compile(r"^\[(Threaded comment|线程批注|批注线程)\].*?(Comment|注释|批注)\s*[:：]\s*", re.DOTALL)
_QUOTED_ONLY = re.compile(r'"[^"]*"')
_QUOTED = re.compile(r'"([^"]*)"|\\(.)')
_CURRENCY = re.compile(r"\[\$([^\]-]*)[^\]]*\]")  # such as `[$€-2]`
_LITERAL = re.compile(r'"([^"]*)"|\\(.)|([¥￥$€£])')
_COLOUR = re.compile(r"\[[^\]]*\]")
_WEEKDAY = re.compile(r"a{3,4}", re.IGNORECASE)
_PLACED = re.compile(r"_.|\*.")  # blanks as wide as a character, and a character that fills the cell
# The usual form of 万: `0!.0,` puts a point before the last digit of the thousands.
_TEN_THOUSANDS = re.compile(r"0[!\\]\.0,")
_SCALE = re.compile(r"(?<=[0#?])(,+)(?![0#?,])")  # each comma behind the digits divides by a thousand
_FRACTION = re.compile(r"([#0?]\s+)?[#0?]+\s*/\s*(\?+|\d+)")
# A formula's value may be an empty text (t="str"), which is no value left out.
_NO_VALUE = re.compile(
    rb'<c\s(?:(?!t="str")[^>])*>\s*<f[^>]*>[^<]*</f>\s*(?:<v\s*/>|<v>\s*</v>)?\s*</c>',
)


def read_xlsx(data: bytes, path: Path, text_column: str | None) -> Iterator[Block]:
    check_zip(data, path)
    openpyxl = require("openpyxl", "ingest")
    book = run_parser(path, lambda: openpyxl.load_workbook(io.BytesIO(data), data_only=True, keep_links=False))
    run_parser(path, partial(_warn_of_formulas, data, path))
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
        clock = f"{hours}:{seconds // 60:02d}"
        return f"{clock}:{seconds % 60:02d}" if "s" in number_format.lower() or seconds % 60 else clock
    if isinstance(value, int | float):
        return _format_number(value, number_format)
    return clean_cell(str(value))


def _sheet_blocks(sheet: Any, path: Path, text_column: str | None) -> list[Block]:
    grid, merged = _read_grid(sheet, path)
    if not any(map(any, grid)):
        return []
    blocks: list[Block] = [Heading(clean_line(sheet.title), 1)]
    tables: list[_Table] = []
    for left, right in _find_tables_side_by_side(grid, merged):
        part = [row[left:right] for row in grid]
        spans = [row[left:right] for row in merged]
        for first, end in _find_regions(part):
            region = part[first:end]
            for start, stop in _find_repeated_tables(region, spans[first:end]):
                table = [row[start:stop] for row in region]
                table_spans = [row[start:stop] for row in spans[first:end]]
                rows = list(_region_blocks(table, table_spans, first, sheet.title, path, text_column))
                by_number = {block.number: block for block in rows if isinstance(block, Row) and block.number}
                tables.append(_Table(left + start, first, table, by_number))
                blocks += rows
    return [*blocks, *_read_comments(sheet, tables)]


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of a sheet: where it begins among the columns and rows shown, its cells, its rows by their numbers."""

    left: int
    top: int
    grid: Grid
    rows: dict[int, Row]

    def find_row(self, number: int, column: int) -> Row | None:
        """The row of that number, where the table has the column; columns count from 0 within the sheet."""
        return self.rows.get(number) if self.left <= column < self.left + len(self.grid[0]) else None

    def find_cell(self, number: int, column: int) -> int | None:
        """The place of a column's cell among those of the row of that number, which leaves empty cells out."""
        cells = self.rows[number].cells
        cell: int | None = None
        place = 0
        for text in self.grid[number - self.top - 1][: column - self.left + 1]:
            match = (index for index in range(place, len(cells)) if cells[index][1] == flatten_cell(text))
            cell = next(match, None) if text else None
            if cell is not None:
                place = cell + 1
        return cell


def _read_comments(sheet: Any, tables: Sequence[_Table]) -> Iterator[Row]:
    """The comments and notes on a sheet's cells, each with the first cell of its row and what it is on."""
    hidden = _hidden_columns(sheet)
    for cell in (cell for row in sheet.iter_rows() for cell in row if cell.comment is not None):
        author, text = _read_comment(cell.comment)
        if not text:
            continue
        column = cell.column - 1
        position = column - sum(other < column for other in hidden)
        place = f"{cell.coordinate} {flatten_cell(format_value(cell.value, cell.number_format))}".strip()
        captions: tuple[str, ...] = ()
        for table in tables:
            row = table.find_row(cell.row, position)
            if row is not None:
                number = None if column in hidden else table.find_cell(cell.row, position)
                place = _describe_place(cell, row, number)
                captions = row.captions
        yield Row((("", describe_comment(author, text, place)),), cell.row, captions, sheet=sheet.title)


def _read_comment(comment: Any) -> tuple[str, str]:
    """A comment's author and text, without what Excel writes before the text."""
    author = (comment.author or "").strip()
    text = _COMMENT_HEAD.sub("", comment.text or "").strip()
    text = text.removeprefix(f"{author}:").removeprefix(f"{author}：")
    return "" if author.startswith("tc=") else author, clean_line(text)  # of a thread, the author is an id


def _describe_place(cell: Any, row: Row, number: int | None) -> str:
    """What a comment is on, as `B2 打印纸，库存数量 120`: the label of its row, and its cell's name and value.

    Args:
        number: of the cell among those of the row; None where it has none.
    """
    name = row.cells[number][0] if number is not None else ""
    value = flatten_cell(format_value(cell.value, cell.number_format))
    label = row.cells[0][1] if row.cells and number != 0 else ""
    return f"{cell.coordinate} {'，'.join(filter(None, (label, f'{name} {value}'.strip())))}"


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
                yield record_of(_flatten_record(header.names, row), number, path, text_column, sheet)
        return
    for body in table_rows(grid, merged=merged):
        yield Row(body.cells, first + body.index + 1, body.captions, sheet=sheet)


def _flatten_record(names: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    """A record by its columns' names; only the text keeps its lines."""
    return {
        join_lines(name.split("\n")): value if name in TEXT_COLUMNS else flatten_cell(value)
        for name, value in zip(names, row, strict=False)
    }


def _read_grid(sheet: Any, path: Path) -> tuple[Grid, Marks]:
    """The sheet's cells as shown, with merged ones filled, and which are one with the cell at their left.

    Hidden columns are left out. Hidden rows are read, as they may only be filtered.
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
    hidden = _hidden_columns(sheet)
    return _without_columns(grid, merged, hidden)


def _without_columns(grid: Grid, merged: list[list[bool]], hidden: set[int]) -> tuple[Grid, Marks]:
    """The columns that are shown. One is merged with the shown one at its left if all between them are."""
    shown = [column for column in range(len(grid[0]) if grid else 0) if column not in hidden]
    spans = [
        [False, *(all(row[before + 1 : column + 1]) for before, column in pairwise(shown))][: len(shown)]
        for row in merged
    ]
    return [[row[column] for column in shown] for row in grid], spans


def _hidden_columns(sheet: Any) -> set[int]:
    """Numbers of the columns that are not shown, from 0."""
    hidden: set[int] = set()
    for dimension in sheet.column_dimensions.values():
        if dimension.hidden:
            hidden.update(range((dimension.min or 1) - 1, dimension.max or 0))
    return hidden


def _warn_of_formulas(data: bytes, path: Path) -> None:
    """Warn where cells hold formulas and no values, as in workbooks that a program wrote and Excel never opened."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sheets = [name for name in archive.namelist() if name.startswith("xl/worksheets/")]
        count = sum(len(_NO_VALUE.findall(archive.read(name))) for name in sheets)
    if count:
        message = (
            f"{path}: {count:,} formulas have no values (公式没有计算结果); open it in Excel or WPS and save it again"
        )
        warnings.warn(PartlyRead(message), stacklevel=2)


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


def _find_tables_side_by_side(grid: Grid, merged: Marks) -> list[tuple[int, int]]:
    """(first, end) of the columns of tables that stand beside each other with an empty column between them.

    A table may have an empty column within. Two tables are told by what one cannot have: both have a header, and they
    end in different rows, have a title each, or names in common.
    """
    columns = len(grid[0])
    filled = [any(row[column] for row in grid) for column in range(columns)]
    parts: list[tuple[int, int]] = []
    first = 0
    for column in range(columns + 1):
        if column == columns or not filled[column]:
            if column > first:
                parts.append((first, column))
            first = column + 1
    tables = [_describe_table(grid, merged, *part) for part in parts]
    if len(parts) < 2 or None in tables:
        return [(0, columns)]
    told = [table for table in tables if table is not None]
    names = [name for table in told for name in table.names]
    differ = len({table.end for table in told}) > 1 or len(set(names)) < len(names)
    return parts if differ or all(table.titles for table in told) else [(0, columns)]


def _find_repeated_tables(grid: Grid, merged: Marks) -> list[tuple[int, int]]:
    """(first, end) of the columns of tables beside each other without a blank column: one header, written again.

    The first column of each names its rows; a header of figures that repeats, as for two years, is of one table.
    """
    columns = len(grid[0])
    for header in range(min(_MOST_TITLES + 1, len(grid) - 1)):
        names = grid[header]
        period = _find_period(names)
        if not period:
            continue
        starts = range(0, columns, period)
        labels = [row[start] for row in grid[header + 1 :] for start in starts if row[start]]
        are_labels = bool(labels) and not any(map(is_value, labels))
        is_cut = any(row[start] for row in merged[header:] for start in starts[1:])
        titles_fit = all(
            len(set(filter(None, row[start : start + period]))) <= 1 for row in grid[:header] for start in starts
        )
        if are_labels and not is_cut and titles_fit:
            return [(start, start + period) for start in starts]
        break
    return [(0, columns)]


def _find_period(names: Sequence[str]) -> int:
    """After how many columns a header begins again and goes on to its end; 0 where it does not."""
    if not all(names) or not is_name_row(names):
        return 0
    for period in range(2, len(names) // 2 + 1):
        is_distinct = len(set(names[:period])) == period
        if is_distinct and len(names) % period == 0 and list(names) == list(names[:period]) * (len(names) // period):
            return period
    return 0


@dataclass(frozen=True, slots=True)
class _Columns:
    """What tells a table among columns of a sheet: names in its header, titles above it, the row after its last one."""

    names: tuple[str, ...]
    titles: int
    end: int


def _describe_table(grid: Grid, merged: Marks, left: int, right: int) -> _Columns | None:
    """The table in some columns of a sheet; None where they hold none, or several under one another."""
    rows = [number for number, row in enumerate(grid) if any(row[left:right])]
    if right - left < 2 or rows[-1] - rows[0] + 1 > len(rows):
        return None
    titles = 0
    while titles < len(rows) and len(set(filter(None, grid[rows[titles]][left:right]))) == 1:
        titles += 1
    body = [grid[number][left:right] for number in rows[titles:]]
    header = guess_header(body, merged=[merged[number][left:right] for number in rows[titles:]]) if body else None
    if header is None or not header.rows:
        return None
    return _Columns(header.names, titles, rows[-1] + 1)


def _is_title(row: list[str]) -> bool:
    return len(set(filter(None, row))) == 1


def _format_date(value: datetime | date | time, number_format: str) -> str:
    form = _COLOUR.sub("", number_format or "").lower()
    day = ""
    if isinstance(value, date):
        weekday = _format_weekday(value, form)
        if weekday and not set("ymd") & set(form):
            return weekday
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
        day = f"{day} {weekday}".strip()
    if isinstance(value, date) and not isinstance(value, datetime):
        return day
    has_time = isinstance(value, time) or "h" in form or (value.hour or value.minute or value.second)
    if not has_time:
        return day
    clock = f"{value.hour:02d}:{value.minute:02d}" + (f":{value.second:02d}" if "s" in form or value.second else "")
    if isinstance(value, time) or not ("y" in form or "d" in form):
        return clock
    return f"{day} {clock}"


def _format_weekday(value: date, form: str) -> str:
    """The day of the week where the format shows it (`aaaa`, or `"周"aaa`)."""
    match = _WEEKDAY.search(form)
    if match is None:
        return ""
    return ("星期" if len(match[0]) > 3 else "周") + "一二三四五六日"[value.weekday()]


def _format_number(value: int | float, number_format: str) -> str:
    form = (number_format or "General").split(";")[0]
    form = _COLOUR.sub("", _CURRENCY.sub(lambda match: f'"{match[1]}"', form))
    form = _PLACED.sub("", form)
    if _TEN_THOUSANDS.search(_QUOTED_ONLY.sub("", form)):
        form = _TEN_THOUSANDS.sub("0.0", form)
        value = value / 10_000
    plain = _QUOTED.sub("", form)
    if _WEEKDAY.search(plain) and value >= 1:
        return _format_date(datetime(1899, 12, 30) + timedelta(days=int(value)), number_format)
    fraction = _FRACTION.search(plain)
    if fraction:
        return _format_fraction(value, fraction[2])
    scale = _SCALE.search(plain)
    if scale:
        value = value / 1000 ** len(scale[1])
        plain = _SCALE.sub("", plain)
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
    before, after = _literals_of(form)
    sign = "-" if digits.startswith("-") else ""
    return f"{sign}{before}{digits.removeprefix('-')}{after}"


def _literals_of(form: str) -> tuple[str, str]:
    """What a number's format writes before and behind the digits."""
    first = re.search(r"[0#?]", _QUOTED.sub(lambda match: "_" * len(match[0]), form))
    position = first.start() if first else 0
    before = ""
    after = ""
    for match in _LITERAL.finditer(form):
        text = match[1] or match[2] or match[3] or ""
        if not text.strip():
            continue
        if match.start() < position:
            before += text
        else:
            after += text
    return before, after


def _format_fraction(value: int | float, denominator: str) -> str:
    """A number as Excel writes fractions: `1 1/2`, its denominator the given one or of so many digits."""
    if denominator.isdigit():
        divisor = int(denominator)
        whole, numerator = divmod(round(abs(value) * divisor), divisor)
    else:
        nearest = Fraction(abs(value)).limit_denominator(10 ** len(denominator) - 1)
        divisor = nearest.denominator
        whole, numerator = divmod(nearest.numerator, divisor)
    part = f"{numerator}/{divisor}" if numerator else ""
    sign = "-" if value < 0 else ""
    return sign + (" ".join(filter(None, (str(whole) if whole else "", part))) or "0")


def _format_general(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.11g}"
