"""Grids of cells → rows that carry their header, for every kind of file that has tables.

Cells that were merged come filled, so a header over two columns stands in both. What the file does not say is guessed
from the cells: of its header (bold type, `th`, a repeated row), that names are short and hold no figures; of merged
cells, that neighbours of one text are one cell.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from peg_rag.readers.blocks import Block, Row
from peg_rag.readers.forms import FormPart, find_form, is_form_name, is_signature, read_pairs, read_value
from peg_rag.readers.names import (
    ends_in_name_word,
    is_code,
    is_labelled,
    is_name,
    is_name_row,
    is_note,
    is_point_in_time,
    is_value,
    is_whereabouts,
)
from peg_rag.readers.normalize import flatten_cell, join_lines, join_spaced, width
from peg_rag.readers.numbering import number_level

Grid = list[list[str]]  # rectangular
Marks = Sequence[Sequence[bool]]  # of a grid's cells

_CONTENT = re.compile(r"[:：]\s*\S")
_UNITS = ("单位", "金额单位", "币种")
_UNIT = re.compile(
    r"[（(]?[万千百亿]?(元|人|台|个|件|套|吨|公斤|千克|克|千米|公里|米|平方米|立方米|亩|小时|分钟|天|次|户|辆|千瓦时|度|升|%|‰|℃|"
    r"kg|g|t|km|m|mm|cm|m2|m3|m²|m³|㎡|h|min|s|kWh|kW|V|A|MPa|L|RMB|USD)(/\w{1,3})?[)）]?"
)
_TOTAL = re.compile(r"(合|小|总|共)\s*计|总额|平均(值|数|分)?$|total", re.IGNORECASE)
_SUBTOTAL = re.compile(r"小\s*计|subtotal", re.IGNORECASE)
_WEEKDAY = r"[（(]?(?:星期|周|礼拜)[一二三四五六日天][)）]?"
_DAY = re.compile(
    rf"(?:\d{{1,2}}月\d{{1,2}}[日号]?|(?:\d{{1,2}}[/.])?\d{{1,2}}[日号])\s*(?:{_WEEKDAY})?"
    rf"|(?:(?:\d{{1,2}}[/.])?\d{{1,2}}\s*)?{_WEEKDAY}"
)
_PLAIN_DAY = re.compile(r"(?:(\d{1,2})/)?(\d{1,2})")
_DAYS_OF_MONTH = (28, 31)  # of the shortest and the longest month
_PERSON = re.compile(r"(人|人员|姓名|名字|员工|老师|教师|讲师|主讲|司机|owner|assignee|contact)$|负责", re.IGNORECASE)
_HEADER_SAMPLE = 20  # rows that the header of a table below another is guessed from
_FEWEST_HEADER_CELLS = 3  # under notes beside one another, or with figures among the names
_LONGEST_CLAUSE = 28  # half-widths of a name with a comma
_DIGITS = re.compile(r"\d+")
_NUMBER = re.compile(r"\d+([.,，:：]\d+)*")
_RANGE = re.compile(
    r"(以[上下内外]|之内|不满|不到|未满|超过|起)$|[\dA-Za-z\u4e00-\u9fff]\s*[-–—~～至到]\s*\d|\d\S{0,3}[内外]$"
)


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of the body: (column name, value) pairs, titles above it within the table, row of the grid."""

    cells: tuple[tuple[str, str], ...]
    captions: tuple[str, ...]
    index: int


@dataclass(frozen=True, slots=True)
class Header:
    """The names of a table's columns and the rows of the grid that hold them; `pairs`: the names stand at the left."""

    names: tuple[str, ...]
    rows: int
    pairs: bool = False


def table_rows(
    grid: Grid, *, header_rows: int | None = None, bold: Marks | None = None, merged: Marks | None = None
) -> list[TableRow]:
    """The rows of a table's body, with their header.

    Args:
        grid: the cells' texts, merged cells filled, line breaks only where the author made them.
        header_rows: how many rows the header has, where the file says it.
        bold: which cells are set apart as names, where the file says it.
        merged: which cells are one with the cell at their left, where the file says it.
    """
    return [_flatten_row(row) for row in _find_rows(grid, header_rows, bold, merged)]


def _find_rows(grid: Grid, header_rows: int | None, bold: Marks | None, merged: Marks | None) -> list[TableRow]:
    columns = [c for c in range(max(map(len, grid), default=0)) if any(row[c] for row in grid)]
    cells = [[row[c] for c in columns] for row in grid]
    marks = [[row[c] for c in columns] for row in bold] if bold else None
    spans = [[row[c] for c in columns] for row in merged] if merged else guess_merged(cells)
    first, captions = _leading_captions(cells, spans)
    body = cells[first:]
    if not body:
        return [TableRow((("", caption),), (), i) for i, caption in enumerate(captions)]
    header_rows = header_rows - first if header_rows else None
    notes = list(_read_leading_notes(cells[:first], spans, captions))
    header = guess_header(body, header_rows, marks[first:] if marks else None, spans[first:])
    form = None if header_rows else find_form(body, spans[first:])
    if merged:
        _clear_repeated_sums(cells, spans)
    if form is not None and (not header.pairs or any(part.kind == "items" and part.first > 0 for part in form)):
        return [*notes, *_form_rows(cells, spans, form, first, captions)]
    if notes and not header_rows:  # pairs above a table, which may go on with pairs below it
        form = find_form(cells, spans)
        if form is not None and form[-1].kind == "pairs":
            return list(_form_rows(cells, spans, form, 0, []))
    if header.rows:
        _fill_labels(cells, spans, header.names, first + header.rows)
    rows = notes
    for part in _split_stacked(cells, spans, header, first, captions):
        rows += _body_rows(cells[: part.end], spans[: part.end], part.header, part.first, part.captions)
    return rows


def to_blocks(rows: Iterable[TableRow], *, page: int | None = None, sheet: str | None = None) -> Iterator[Row]:
    """Rows as blocks, numbered from 1 as in the grid."""
    for row in rows:
        yield Row(row.cells, row.index + 1, row.captions, page, sheet)


def with_inner_rows(
    blocks: Iterable[tuple[int, Block]], grid: Grid, inner_rows: Mapping[int, Sequence[Row]]
) -> Iterator[Block]:
    """The blocks of a table's rows, each followed by the rows of the tables within its cells.

    Args:
        blocks: with the row of the grid that each is of.
        inner_rows: by the row of the grid; they stand under the first cell of that row.
    """
    waiting = sorted(number for number, rows in inner_rows.items() if rows)

    def take_until(end: int) -> Iterator[Block]:
        while waiting and waiting[0] < end:
            number = waiting.pop(0)
            label = flatten_cell(next(filter(None, grid[number]), "")) if len(grid[number]) > 1 else ""
            for row in inner_rows[number]:
                yield replace(row, captions=(label, *row.captions) if label else row.captions)

    for number, block in blocks:
        yield from take_until(number)
        yield block
        yield from take_until(number + 1)
    yield from take_until(len(grid))


def guess_merged(grid: Grid) -> list[list[bool]]:
    """Which cells are one with the cell at their left, for files that do not say it: those of the same text."""
    return [[False, *(bool(before) and before == after for before, after in pairwise(row))] for row in grid]


def guess_header(
    grid: Grid, header_rows: int | None = None, bold: Marks | None = None, merged: Marks | None = None
) -> Header:
    """The header of a grid whose first row is no caption."""
    spans = merged or guess_merged(grid)
    if header_rows is not None and 0 < header_rows < len(grid):
        return Header(_merged_names(grid[:header_rows]), header_rows)
    if _are_pairs(grid, bold, spans):
        return Header((), 0, pairs=True)
    if len(grid) > 2 and _are_days(grid[0]):
        rows = 2 if _are_days(grid[1]) and grid[1][0] in ("", grid[0][0]) else 1
        return Header(_merged_names(grid[:rows]), rows)
    if not _is_header(grid, bold):
        return Header(("",) * len(grid[0]), 0)
    if len(grid) > 2 and _is_unit_row(grid[1]):
        return Header(_merged_names(grid[:2]), 2)
    if _has_open_header(grid):
        return Header(_merged_names([_fill_names(grid[0], grid[1]), grid[1]]), 2)
    rows = _count_header_rows(grid, spans)
    return Header(_merged_names(grid[:rows]), rows)


def _is_unit_row(row: Sequence[str]) -> bool:
    """Whether a row says the units of the columns that are named above it."""
    texts = [text for text in row if text]
    return not row[0] and bool(texts) and all(map(_UNIT.fullmatch, texts))


def _are_days(row: Sequence[str]) -> bool:
    """Whether a row has a name and then days, as above the shifts of a roster: `姓名 | 23日 | 24日`."""
    days = [text for text in row[1:] if text]
    if (row[0] and not is_name(row[0])) or len(days) < 3 or len(set(days)) < len(days):
        return False
    return all(map(_DAY.fullmatch, days)) or _are_consecutive_days(days)


def _are_consecutive_days(texts: Sequence[str]) -> bool:
    """Whether texts such as `30 | 31 | 1` or `12/30 | 12/31 | 1/1` count the days of a month, or of two."""
    matches = [_PLAIN_DAY.fullmatch(text) for text in texts]
    days = [(match[1], int(match[2])) for match in matches if match]
    shortest, longest = _DAYS_OF_MONTH
    if len(days) < len(texts) or not all(1 <= day <= longest for _, day in days):
        return False
    for (month, day), (next_month, next_day) in pairwise(days):
        begins_month = next_day == 1 and day >= shortest and (not month or next_month != month)
        if not begins_month and (next_month, next_day) != (month, day + 1):
            return False
    return True


def _has_open_header(grid: Grid) -> bool:
    """Whether names stand above several columns without being merged: the row below has names for the empty cells."""
    if len(grid) < 3 or not grid[0][0] or all(grid[0]):
        return False
    names = list(zip(grid[0], grid[1], strict=True))
    if not all(upper or lower for upper, lower in names) or not is_name_row(grid[1]):
        return False
    below = [text for text in grid[1] if text]
    has_values = any(is_value(text) for text, name in zip(grid[2], grid[1], strict=True) if name)
    return has_values and (len(set(below)) < len(below) or not grid[1][0])


def _fill_names(names: Sequence[str], below: Sequence[str]) -> list[str]:
    """The upper row of a header, each name over all columns up to the next one."""
    filled: list[str] = []
    for name, lower in zip(names, below, strict=True):
        filled.append(name or (filled[-1] if filled and lower else ""))
    return filled


def _flatten_row(row: TableRow) -> TableRow:
    """A row in one line: a break within a name only made it narrow, one within a value parts what stands there."""
    cells = tuple((join_spaced(join_lines(name.split("\n"))), flatten_cell(value)) for name, value in row.cells)
    return TableRow(cells, tuple(map(flatten_cell, row.captions)), row.index)


def _count_header_rows(grid: Grid, spans: Marks) -> int:
    """One, and those below a row of names over several columns."""
    rows = 1
    while rows + 1 < len(grid) and any(spans[rows - 1]) and is_name_row(grid[rows]):
        rows += 1
    return rows


def _fill_labels(cells: Grid, spans: Marks, names: Sequence[str], first: int) -> None:
    """Write the label of a group of rows, which stands in its first row alone, into the others.

    Args:
        names: of the columns.
        first: row of the body.
    """
    rows = [number for number in range(first, len(cells)) if len(set(filter(None, cells[number]))) > 1]
    columns = _count_label_columns(cells, spans, names, rows)
    above: list[str] = []
    for number in rows:
        row = cells[number]
        if _TOTAL.match(row[0]) or (not row[0] and _is_total(row[1])):
            above = []
        elif row[0]:
            above = row[:columns]
        elif above:
            above = [above[0], *(text or label for text, label in zip(row[1:columns], above[1:], strict=True))]
            row[:columns] = above


def _count_label_columns(cells: Grid, spans: Marks, names: Sequence[str], rows: Sequence[int]) -> int:
    """How many of the first columns hold labels of groups of rows: none, one or two.

    Empty cells of the first column are taken for such a group where the labels are words, days or hours, none is there
    twice, and the second column goes on, or the third one where the second has labels of its own. Nobody is put where
    a person's name is missing, nor a number where one is.
    """
    records = [number for number in rows if not any(map(_TOTAL.match, cells[number][:2]))]
    labels = [cells[number][0] for number in records if cells[number][0]]
    groups = [number for number in records if not cells[number][0]]
    if not groups or len(labels) < 2 or len(set(labels)) < len(labels):
        return 0
    if any(map(_is_figure, labels)) or _PERSON.search(names[0]):
        return 0
    if all(map(is_code, labels)) and 2 * len(groups) < len(labels):
        return 0
    if records[0] in groups or any(_is_note_row(cells[number], spans[number]) for number in rows):
        return 0
    columns = 1 if all(cells[number][1] for number in groups) else 2
    if len(names) <= columns or not _are_names(cells, records, groups, columns):
        return 0
    inner_labels = [cells[number][1] for number in records if cells[number][1]]
    if any(map(_is_figure, inner_labels)) or _PERSON.search(names[1]):
        return 1
    return columns


def _are_names(cells: Grid, records: Sequence[int], groups: Sequence[int], levels: int) -> bool:
    """Whether rows without a label of their own are told by the column behind the labels."""
    if any(not all(cells[number][1:levels]) for number in records if cells[number][0]):
        return False
    return all(cells[number][levels] and not _is_figure(cells[number][levels]) for number in groups)


def _clear_repeated_sums(cells: Grid, spans: Marks) -> None:
    """Empty all but the first cell of each sum over several columns: it is a sum of none of them."""
    for row, merged in zip(cells, spans, strict=True):
        if _TOTAL.match(row[0]):
            row[:] = ["" if is_merged else text for text, is_merged in zip(row, merged, strict=True)]


def _is_total(text: str) -> bool:
    """Whether a row of that name sums up more than a group."""
    return _TOTAL.match(text) is not None and _SUBTOTAL.match(text) is None


def _is_figure(text: str) -> bool:
    """Whether a text is a value that tells no rows apart, as days, hours, floors and classes do."""
    return is_value(text) and not is_point_in_time(text) and not is_whereabouts(text)


@dataclass(frozen=True, slots=True)
class _Stacked:
    """A table among others below one another: its header, which begins at `first`, and the titles above it."""

    header: Header
    first: int
    end: int
    captions: list[str]


def _split_stacked(cells: Grid, spans: Marks, header: Header, first: int, captions: list[str]) -> Iterator[_Stacked]:
    """The tables of a grid, where a title over the whole width and another header follow a table's last row."""
    above: list[str] | None = None  # the titles of all of them
    titles = captions
    index = first + header.rows
    while index < len(cells):
        row = cells[index]
        is_title = len(row) > 2 and _is_spanned(row, spans[index]) and not is_note(row[0])
        if is_title and _begins_another(cells, spans, header, index + 1):
            yield _Stacked(header, first, index, titles)
            if above is None:
                above = captions[:-1] if captions and _are_siblings(captions[-1], row[0]) else captions
            titles = [*above, row[0]]
            first = index + 1
            end = first + _HEADER_SAMPLE
            header = guess_header(cells[first:end], merged=spans[first:end])
            index = first + header.rows
        else:
            index += 1
    yield _Stacked(header, first, len(cells), titles)


def _body_rows(cells: Grid, spans: Marks, header: Header, first: int, captions: list[str]) -> list[TableRow]:
    rows = []
    group: tuple[str, ...] = ()
    body = range(first + header.rows, len(cells))
    notes = {index for index in body if any(cells[index]) and _is_note_row(cells[index], spans[index])}
    if all(index in notes or not any(cells[index]) for index in body):
        notes = set()  # names with values are what this table holds
    for index in body:
        row = cells[index]
        if not any(row) or row in cells[first : first + header.rows]:  # the header is repeated
            continue
        if len(row) > 2 and _is_spanned(row, spans[index]):  # a title over the whole width within the table
            group = (row[0],)
            if is_note(row[0]) or _TOTAL.match(row[0]) or not _has_record_below(cells, spans, notes, index):
                rows.append(TableRow((("", row[0]),), tuple(captions), index))
                group = ()
            continue
        if header.pairs:
            pairs = _pair_cells(row, spans[index])
        elif header.rows and index in notes:
            pairs = list(_read_notes(row, spans[index]))
            group = ()
        else:
            pairs = _name_cells(header.names, row, spans[index])
        rows.append(TableRow(tuple(pairs), (*captions, *group), index))
    if not any(name for row in rows for name, _ in row.cells):  # there are no records: the names are all there is
        named = range(first, first + header.rows)
        above = [TableRow(_read_nameless_cells(cells[index], spans[index]), tuple(captions), index) for index in named]
        return [row for row in above if row.cells] + rows
    return rows


def _has_record_below(cells: Grid, spans: Marks, notes: set[int], number: int) -> bool:
    """Whether a title within a table is followed by a record, not by another title, a note or the table's end."""
    below = number + 1
    return below < len(cells) and below not in notes and not _is_spanned(cells[below], spans[below])


def _begins_another(cells: Grid, spans: Marks, header: Header, number: int) -> bool:
    """Whether another table begins here, below its title: a row of names as in the header of the table above."""
    if not header.rows or number + 1 >= len(cells) or not is_name_row(cells[number]):
        return False
    names = [name for _, name in _read_nameless_cells(cells[number], spans[number])]
    known = sum(name in header.names or ends_in_name_word(name) for name in names)
    return len(names) > 1 and 2 * known > len(names) and not is_name_row(cells[number + 1])


def _are_siblings(title: str, other: str) -> bool:
    """Whether two titles are numbered alike or end alike, so that the second is not a part of the first."""
    return number_level(title) == number_level(other) and (number_level(title) is not None or title[-2:] == other[-2:])


def _form_rows(
    cells: Grid, spans: Marks, form: Sequence[FormPart], first: int, captions: list[str]
) -> Iterator[TableRow]:
    """The rows of a form: pairs as they stand, items with their header, both under the last title of the form."""
    group: tuple[str, ...] = ()
    for part in form:
        rows = range(first + part.first, first + part.end)
        if part.kind == "title":
            group = (cells[rows[0]][0],)
        elif part.kind == "items":
            header_rows = _count_header_rows(cells[rows.start : rows.stop], spans[rows.start : rows.stop])
            header = Header(_merged_names(cells[rows.start : rows.start + header_rows]), header_rows)
            end = rows.stop
            yield from _body_rows(cells[:end], spans[:end], header, rows.start, [*captions, *group])
        else:
            for row in filter(lambda row: any(cells[row]), rows):
                pairs = read_pairs if part.kind == "pairs" else _read_nameless_cells
                yield TableRow(pairs(cells[row], spans[row]), (*captions, *group), row)


def _read_nameless_cells(row: Sequence[str], spans: Sequence[bool]) -> tuple[tuple[str, str], ...]:
    """The cells of a row that no names stand above, merged ones once."""
    return tuple(("", text) for text, is_merged in zip(row, spans, strict=True) if text and not is_merged)


def _leading_captions(cells: Grid, spans: Marks) -> tuple[int, list[str]]:
    """Rows before the table proper: its title, its unit, who made it and when."""
    captions: list[str] = []
    first = 0
    while first < len(cells):
        if _count_texts(cells[first], spans[first]) <= 1 < len(cells[first]):
            if len(cells[first]) == 2 and not _has_body(cells[first + 1 :]):
                break
            captions += [value for value in cells[first] if value][:1]
        elif _is_bracketed(cells[first]) and _has_body(cells[first + 1 :]):
            captions.append("，".join(filter(None, cells[first])))
        elif _is_note_row(cells[first], spans[first]) and _begins_table(cells, spans, first + 1):
            captions += [value for value in cells[first] if value.startswith(_UNITS)]
        else:
            break
        first += 1
    return first, captions


def _read_leading_notes(cells: Grid, spans: Marks, captions: list[str]) -> Iterator[TableRow]:
    """The rows above a table that say something by themselves, such as `单位：万元`."""
    for number, row in enumerate(cells):
        if _count_texts(row, spans[number]) > 1:
            yield TableRow(_read_notes(row, spans[number]), tuple(captions[:1]), number)
        elif _CONTENT.search(row[0]) and row[0] != captions[0]:
            yield TableRow((("", row[0]),), tuple(captions[:1]), number)


def _read_notes(row: Sequence[str], spans: Sequence[bool]) -> tuple[tuple[str, str], ...]:
    return tuple(read_pairs(row, spans)) if is_signature(row, spans) else _read_nameless_cells(row, spans)


def _is_note_row(row: Sequence[str], spans: Sequence[bool]) -> bool:
    """Whether each cell that holds something is a name with its value, in one cell or in two."""
    texts = [text for _, text in _read_nameless_cells(row, spans)]
    return bool(texts) and (all(map(is_labelled, texts)) or is_signature(row, spans))


def _is_bracketed(row: Sequence[str]) -> bool:
    """Whether the cells are one remark, cut at its commas: （2027年1月起 | 不含税）."""
    texts = [text for text in row if text]
    inside = "".join(texts)[1:-1]
    return len(texts) > 1 and texts[0][0] in "（(" and texts[-1][-1] in "）)" and not re.search("[（()）]", inside)


def _begins_table(cells: Grid, spans: Marks, first: int) -> bool:
    """Whether a row of names begins a table here, after other notes perhaps."""
    number = first
    while number < len(cells) and _is_note_row(cells[number], spans[number]):
        number += 1
    if number + 1 >= len(cells):
        return False
    texts = [text for _, text in _read_nameless_cells(cells[number], spans[number])]
    return len(texts) >= _FEWEST_HEADER_CELLS and is_name_row(cells[number])


def _has_body(cells: Grid) -> bool:
    """Whether there are rows of several cells below."""
    return sum(sum(map(bool, row)) > 1 for row in cells) > 1


def _count_texts(row: Sequence[str], spans: Sequence[bool]) -> int:
    """How many cells hold something; merged ones count once."""
    return sum(bool(text) and not is_merged for text, is_merged in zip(row, spans, strict=True))


def _is_spanned(row: Sequence[str], spans: Sequence[bool]) -> bool:
    """One cell over the whole width, or a text in the first alone."""
    return len(row) > 1 and bool(row[0]) and (all(spans[1:]) or (not any(row[1:]) and len(row) > 2))


def _is_header(grid: Grid, bold: Marks | None) -> bool:
    if len(grid) < 2:
        return False
    if bold and all(bold[0]) and not all(map(all, bold)):
        return True
    if is_name_row(grid[0]) and len({text for text in grid[0] if text}) > 1:
        return True
    return _names_columns(grid[0], [row for row in grid[1:] if sum(map(bool, row)) > 1])


def _names_columns(names: Sequence[str], body: Grid) -> bool:
    """Whether a row with figures or clauses in it names the columns all the same: `项目 | 5公斤以下 | 5至15公斤`.

    No figure of it has the form of one below it. Besides, a name stands above figures, or figures of the row are
    ranges, or count on in one unit, as in `票种 | 1小时 | 2小时`.
    """
    if len(names) < _FEWEST_HEADER_CELLS or len(body) < 2 or not is_name(names[0]) or len(set(names)) < len(names):
        return False
    if not all(0 < width(name) <= _LONGEST_CLAUSE and not is_note(name) for name in names):
        return False
    columns = [[row[column] for row in body if row[column]] for column in range(len(names))]
    figures = [name for name in names if is_value(name)]
    for name, texts in zip(names, columns, strict=True):
        if is_value(name) and _shape_of(name) in map(_shape_of, texts):
            return False
    if any(not is_value(name) and _are_mostly_values(texts) for name, texts in zip(names, columns, strict=True)):
        return True
    if not all(is_value(name) or is_name(name) for name in names):
        return False
    return sum(_RANGE.search(figure) is not None for figure in figures) > 1 or _count_on(figures)


def _are_mostly_values(texts: Sequence[str]) -> bool:
    values = sum(map(is_value, texts))
    return values > 1 and 3 * values >= 2 * len(texts)


def _count_on(figures: Sequence[str]) -> bool:
    """Whether two or more figures have one unit or are times, each larger than the one before."""
    if len(figures) < 2 or len(set(map(_shape_of, figures))) > 1:
        return False
    if not any(map(str.isalpha, figures[0])) and not is_point_in_time(figures[0]):
        return False
    numbers = [tuple(map(int, _DIGITS.findall(figure))) for figure in figures]
    return all(before < after for before, after in pairwise(numbers))


def _shape_of(text: str) -> str:
    """A text with its numbers left out, which cells of one kind have in common: `#公斤以下`."""
    return _NUMBER.sub("#", text)


def _are_pairs(grid: Grid, bold: Marks | None, spans: Marks) -> bool:
    """Whether the table is a form: names in the first and third column, their values in the second and fourth."""
    columns = len(grid[0])
    if columns % 2:
        return False
    if bold:
        alternating = [column % 2 == 0 for column in range(columns)]
        styled = [list(row) for row in bold if any(row)]
        if styled and len(styled) >= len(bold) / 2 and all(row == alternating for row in styled):
            return True
        if bold[0] and all(bold[0]):
            return False
    names = list(_names_of_pairs(grid, spans))
    if not all(text and is_name(text) for text in names) or len(set(names)) < len(names):
        return False
    if all(text.endswith((":", "：")) for text in names):
        return True
    if any(ends_in_name_word(text) for text in grid[0][1::2]):
        return False
    if len(names) > 2 and sum(ends_in_name_word(text) for text in names) >= len(names) / 2:
        return True
    if len(names) > 2 and not any(map(is_form_name, grid[0][1::2])) and 2 * sum(map(is_form_name, names)) >= len(names):
        return True
    if columns > 2:
        return len(grid) == 1 or any(map(is_value, grid[0][1::2])) or _are_marked_pairs(grid[0], names)
    values = [row[column] for row in grid for column in range(1, columns, 2)]
    kinds = [is_value(text) for text in values if text]
    return bool(kinds) and (kinds[0] or not is_name(grid[0][1]) or len(grid) < 2)


def _are_marked_pairs(row: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a row has a code or a date beside its names, such as `ZT-2611-052`, which no name of the form is."""
    has_mark = any(is_code(text) or is_point_in_time(text) for text in row[1::2])
    return has_mark and not any(is_code(text) or is_point_in_time(text) for text in names)


def _names_of_pairs(grid: Grid, spans: Marks) -> Iterator[str]:
    """What stands where a form has its names: in every other column, but for a blank pair or a value's merged cells."""
    for row, merged in zip(grid, spans, strict=True):
        for column in range(0, len(row) - 1, 2):
            if not merged[column] and (row[column] or row[column + 1]):
                yield row[column]


def _pair_cells(row: Sequence[str], spans: Sequence[bool]) -> list[tuple[str, str]]:
    """(name, value) of each two columns; a value over several columns stands in all of them and counts once."""
    pairs: list[tuple[str, str]] = []
    for column in range(0, len(row) - 1, 2):
        name = row[column]
        value = "" if spans[column + 1] else row[column + 1]
        if spans[column]:  # the value before reaches into this column
            continue
        if name and spans[column + 1]:  # a text where a pair would be
            pairs.append(("", name))
        elif name or value:
            pairs += read_value(name.rstrip(":： "), value)
    return pairs


def _name_cells(names: Sequence[str], row: Sequence[str], spans: Sequence[bool]) -> list[tuple[str, str]]:
    """(name, value) of each cell that holds something; a label over the first columns stands in the first alone."""
    label = 1
    while label < len(row) and spans[label]:
        label += 1
    pairs: list[tuple[str, str]] = []
    for column, (name, value) in enumerate(zip(names, row, strict=False)):
        # A cell over several columns of one name counts once.
        repeated = bool(pairs) and pairs[-1] == (name, value) and (bool(name) or spans[column])
        if value and not repeated and not 0 < column < label:
            pairs.append((name, value))
    return pairs


def _merged_names(rows: Grid) -> tuple[str, ...]:
    """One name for each column: `住宿` over `一线城市` makes `住宿 一线城市`. Columns of one name are numbered."""
    names = []
    for column in range(len(rows[0])):
        parts = dict.fromkeys(row[column] for row in rows if row[column])
        names.append(" ".join(parts))
    repeats: dict[str, int] = {}
    distinct = []
    for position, name in enumerate(names):
        spanned = position > 0 and name == names[position - 1]
        if name and not spanned:
            repeats[name] = repeats.get(name, 0) + 1
        count = repeats.get(name, 1)
        distinct.append(f"{name} ({count})" if name and count > 1 else name)
    return tuple(distinct)
