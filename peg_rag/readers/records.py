"""CSV, TSV and JSON Lines: a record is one passage, and a bad one is refused with its file and line."""

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peg_rag.errors import DataError
from peg_rag.readers.blocks import Block, Heading, Paragraph, Record, row_text
from peg_rag.readers.files import decode
from peg_rag.readers.forms import is_form_name
from peg_rag.readers.names import ends_in_name_word, is_labelled, is_name, is_value
from peg_rag.readers.normalize import clean, clean_cell, clean_line, flatten_cell
from peg_rag.records import parse_csv, parse_json_lines

TEXT_COLUMNS = ("text", "content", "passage", "document", "body", "正文", "内容", "文本")
TITLE_COLUMNS = ("title", "标题", "name", "名称")
_MOST_PREAMBLE = 8  # lines above a header
_MOST_TITLES = 3  # lines between an empty one and the header of another table
_EMPTY_LINE = re.compile(r"\n[,;|\t \"]*\r?\n")
_DELIMITERS = (",", ";", "\t", "|")
_DELIMITER_LINE = re.compile(r"sep=([,;|\t])\r?\n", re.IGNORECASE)  # tells Excel the delimiter
_FEWEST_COLUMNS = 3  # below which only comments stand above a table
_COMMENT = re.compile(r"[#%]|//")
_SAMPLE_LINES = 20  # that the delimiter is guessed from
_SAMPLE_CHARACTERS = 20_000


def read_csv(data: bytes, path: Path, text_column: str | None) -> Iterator[Block]:
    text = decode(data, str(path))
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    hint = _DELIMITER_LINE.match(text)
    if hint:
        text = text[hint.end() :]
        delimiter = hint[1]
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _guess_delimiter(text)
    tables = _split_tables(text, delimiter)
    has_titles = len(tables) > 1 and all(titles for titles, _ in tables[1:])
    count = 0  # records of the tables above
    for number, (titles, table) in enumerate(tables, start=1):
        stream = io.StringIO(table, newline="")
        above = titles if number > 1 else _read_preamble(stream, delimiter)
        for line in above:
            yield Heading(line) if has_titles and line == above[-1] else Paragraph(line)
        lines = _number_repeated_names(stream, delimiter)
        place = path if number == 1 else f"{path}, table {number}"
        row_number = 0
        for row in parse_csv(lines, place, bad_rows="raise", fields="fewer", delimiter=delimiter):
            row_number = row.number
            yield record_of(row.value, count + row_number, path, text_column if number == 1 else None)
        count += row_number


def read_jsonl(data: bytes, path: Path, text_column: str | None) -> Iterator[Block]:
    lines = decode(data, str(path)).split("\n")
    for row in parse_json_lines(lines, path, bad_rows="raise", strings=True, strict=True):
        value = row.value
        if isinstance(value, str):
            value = {"text": value}
        yield record_of(value, row.number, path, text_column)


def _split_tables(text: str, delimiter: str) -> list[tuple[list[str], str]]:
    """The tables below one another in a CSV file: the titles above each but the first, and its lines from its header.

    Another table begins below an empty line, perhaps with a title, where a row of names is followed by a record.
    """
    if not _EMPTY_LINE.search(text):
        return [([], text)]
    try:
        rows, starts = _read_rows(text, delimiter)
    except csv.Error:  # which is reported where the records are read
        return [([], text)]
    tables: list[tuple[list[str], str]] = []
    titles: list[str] = []
    start = 0
    first = 0  # row of the table at hand
    end = 0  # behind the last row that is not empty
    for number, row in enumerate(rows):
        if not any(row):
            continue
        header = _skip_titles(rows, number)
        above = rows[first : min(end, first + _MOST_PREAMBLE + 2)]
        if end < number and header + 1 < len(rows) and _begins_table(above, rows[header], rows[header + 1]):
            tables.append((titles, text[start : starts[end]]))
            titles = [next(filter(None, row)) for row in rows[number:header]]
            start = starts[header]
            first = header
        end = number + 1
    return [*tables, (titles, text[start:])]


def _read_rows(text: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    """The cells of all lines, and where in the text each line begins, the end of the text included.

    Raises:
        csv.Error: the text is no CSV.
    """
    stream = io.StringIO(text, newline="")
    rows: list[list[str]] = []
    starts = [0]
    for row in csv.reader(iter(stream.readline, ""), delimiter=delimiter):
        rows.append([clean_line(cell) for cell in row])
        starts.append(stream.tell())
    return rows, starts


def _skip_titles(rows: list[list[str]], number: int) -> int:
    """The first row from here on that is no title of a table."""
    end = min(len(rows), number + _MOST_TITLES)
    while number < end and sum(map(bool, rows[number])) == 1:
        number += 1
    return number


def _begins_table(above: list[list[str]], header: list[str], below: list[str]) -> bool:
    """Whether a row holds names and the row below it a record, and those above both are a table of their own.

    Most names are such as columns have; or some are, the record has figures, and the columns are not as many as above.

    Args:
        above: the first rows of the table above.
    """
    names = list(filter(None, header))
    record = list(filter(None, below))
    if len(names) < 2 or len(set(names)) < len(names) or not 2 <= len(record) <= len(names):
        return False
    if not all(is_name(name) and not is_value(name) for name in names) or _are_pairs(names, record):
        return False
    texts = [list(filter(None, row)) for row in above]
    columns = max(map(len, [*texts, names]))
    table = [row for row in texts if len(row) > 1 and not _stands_above(row, columns)]
    if len(table) < 2:  # it is what may stand above the names below it
        return False
    known = sum(map(ends_in_name_word, names))
    is_other = table[0] == names or len(table[0]) != len(names)
    return 2 * known >= len(names) or (known > 0 and is_other and any(map(is_value, record)))


def _are_pairs(cells: list[str], below: list[str]) -> bool:
    """Whether two rows hold names and values in turn, as `审批人 | 王芳` above `审批日期 | 3月2日`."""
    names = [*cells[::2], below[0]]
    return len(cells) % 2 == 0 and all(map(_is_pair_name, names)) and not any(map(_is_pair_name, cells[1::2]))


def _is_pair_name(text: str) -> bool:
    return is_form_name(text.rstrip(":："))


def _guess_delimiter(text: str) -> str:
    """A comma, unless it divides the first records unevenly or not at all, and another delimiter all of them alike."""
    columns = {delimiter: _count_columns(text, delimiter) for delimiter in _DELIMITERS}
    if columns[","] > 1:
        return ","
    best = max(_DELIMITERS, key=lambda delimiter: columns[delimiter])
    return best if columns[best] > 1 else ","


def _count_columns(text: str, delimiter: str) -> int:
    """How many columns all of the first records have; 0 where they differ."""
    lines = text[:_SAMPLE_CHARACTERS].splitlines(keepends=True)
    stream = io.StringIO("".join(lines[:_SAMPLE_LINES]), newline="")
    try:
        widths = [len(row) for row in csv.reader(stream, delimiter=delimiter) if any(row)]
    except csv.Error:  # which is reported where the records are read
        return 0
    if len(text) > stream.tell() and len(widths) > 2:
        widths.pop()  # it may be cut
    return widths[0] if len(set(widths)) == 1 else 0


def _number_repeated_names(stream: io.StringIO, delimiter: str) -> Iterator[str]:
    """The lines from the header on, in which the second column of a name is `name (2)`: none hides another."""
    start = stream.tell()
    try:
        names = next(csv.reader(iter(stream.readline, ""), delimiter=delimiter), [])
    except csv.Error:  # which is reported where the records are read
        names = []
    if len(set(names)) == len(names):
        stream.seek(start)
        yield from iter(stream.readline, "")
        return
    header = io.StringIO(newline="")
    csv.writer(header, delimiter=delimiter).writerow(_distinct_names(names))
    yield header.getvalue()
    yield from iter(stream.readline, "")


def _distinct_names(names: list[str]) -> list[str]:
    distinct: list[str] = []
    for name in names:
        number = 1
        candidate = name
        while candidate in distinct:
            number += 1
            candidate = f"{name} ({number})" if name.strip() else candidate + " "  # blanks go when it is shown
        distinct.append(candidate)
    return distinct


def _read_preamble(stream: io.StringIO, delimiter: str) -> list[str]:
    """What a program writes above the header: a title, the time of the export. The stream then stands at the header.

    They are titles and comments in one cell or two, or names with their values, where the header and the first record
    fill most of the columns.
    """
    rows: list[list[str]] = []
    starts = [0]  # of each row in the stream
    with contextlib.suppress(csv.Error):  # which is reported where the records are read
        for row in csv.reader(iter(stream.readline, ""), delimiter=delimiter):
            rows.append([clean_line(cell) for cell in row if cell.strip()])
            starts.append(stream.tell())
            if len(rows) == _MOST_PREAMBLE + 2:
                break
    columns = max(map(len, rows), default=0)
    is_above = [_stands_above(row, columns) for row in rows]
    header = is_above.index(False) if False in is_above else 0
    has_table = columns >= 2 and is_above[header : header + 2] == [False, False]
    count = header if has_table and not any(set(row) & set(TEXT_COLUMNS) for row in rows[:header]) else 0
    stream.seek(starts[count])
    return [" ".join(row) for row in rows[:count] if row]


def _stands_above(row: list[str], columns: int) -> bool:
    if columns < _FEWEST_COLUMNS:
        return not row or (len(row) == 1 and _COMMENT.match(row[0]) is not None)
    is_short = len(row) <= min(2, 0.6 * columns)
    return is_short or (len(row) < columns and all(map(is_labelled, row)))


def record_of(
    row: Mapping[str, Any], number: int, path: Path, text_column: str | None, sheet: str | None = None
) -> Record:
    """A record's text column is the text, its title column the title, the rest are fields.

    Without a text column all columns are the text, with their names, as in a row of a table.

    Raises:
        DataError: `text_column` is not there, or holds no string.
    """
    if text_column is not None and text_column not in row:
        raise DataError(f"{path}, record {number} has no column {text_column!r}; it has {', '.join(map(str, row))}")
    column = text_column or next((name for name in TEXT_COLUMNS if isinstance(row.get(name), str)), None)
    if column is None:
        cells = tuple((clean_line(str(name)), _format_value(value)) for name, value in row.items() if _is_plain(value))
        return Record(row_text(cells), number=number, cells=cells, sheet=sheet)
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise DataError(f"{path}, record {number}: {column!r} is a {type(value).__name__}; a string is expected")
    title = next((name for name in TITLE_COLUMNS if name != column and isinstance(row.get(name), str)), None)
    fields = {
        str(name): item for name, item in row.items() if name not in (column, title) and _is_plain(item) and item != ""
    }
    return Record(clean(value or ""), clean_line(row[title]) if title else "", number, fields, sheet=sheet)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def _format_value(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return flatten_cell(clean_cell(str(value)))
