"""CSV, TSV and JSON Lines: a record is one passage, and a bad one is refused with its file and line."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from peg_rag.errors import DataError
from peg_rag.readers.blocks import Block, Record, row_text
from peg_rag.readers.files import decode
from peg_rag.readers.normalize import clean, clean_line

TEXT_COLUMNS = ("text", "content", "passage", "document", "body", "正文", "内容", "文本")
TITLE_COLUMNS = ("title", "标题", "name", "名称")


def read_csv(data: bytes, path: Path, text_column: str | None) -> Iterator[Block]:
    text = decode(data, str(path))
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        for number, row in enumerate(rows, start=1):
            if None in row:
                raise DataError(f"{path}, line {rows.line_num}: {len(row[None])} more fields than the header has")
            yield record_of(row, number, path, text_column)
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from error


def read_jsonl(data: bytes, path: Path, text_column: str | None) -> Iterator[Block]:
    for number, line in enumerate(decode(data, str(path)).split("\n"), start=1):
        if not line.strip():
            continue
        row = _load_json(line, f"{path}, line {number}")
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is a JSON {type(row).__name__}; an object or a string is expected")
        yield record_of(row, number, path, text_column)


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
    return clean_line(str(value))


def _load_json(line: str, place: str) -> Any:
    """One line's value, refused where it holds what no JSON may: NaN, infinite numbers, lone surrogates.

    Raises:
        DataError: begins with `place`.
    """
    try:
        value = json.loads(line, parse_constant=_refuse_number, parse_float=_parse_float)
        if "\\u" in line:  # an escape may stand for half a character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise DataError(f"{place} is not JSON that can be read: it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{place} holds a lone surrogate, which is no character; write the text as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}") from error
    except ValueError as error:  # a number of NaN, of infinite size or of thousands of digits
        raise DataError(f"{place} holds a number that cannot be kept: {error}") from error
    return value


def _parse_float(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        _refuse_number(literal)
    return number


def _refuse_number(literal: str) -> NoReturn:
    raise ValueError(f"{literal[:40]} is not a finite number")
