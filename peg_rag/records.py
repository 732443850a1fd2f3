"""Rows of JSON Lines, CSV and Parquet files, with one rule for those that cannot be used.

A row may be cut off, hold another number of fields than the header, or be no JSON at all. What has to happen then
depends on who reads: an evaluation set that lost a line gives wrong scores, so its reader stops; a corpus from the web
always has bad lines, so training counts them and goes on. Each caller says so with `bad_rows`:

* `raise`: stop with a `DataError` that names the file and the line;
* `skip`: leave the row out;
* `yield`: give a `BadRow` in its place.

A file that cannot be read to its end is a `DataError` under every policy. Rows are read one at a time.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, overload

from peg_rag.errors import DataError, InvalidInput
from peg_rag.extras import require

BadRows = Literal["raise", "skip", "yield"]
FieldCount = Literal["exact", "fewer", "any"]
PARQUET_ROWS = 10_000  # read at a time
FIELD_CHARACTERS = 1 << 27  # of the longest CSV field


@dataclass(frozen=True, slots=True)
class GoodRow:
    """A row that can be used.

    Attributes:
        number: of the row in the file, from 1. In JSON Lines it is the line, blank ones counted.
        line: where the row ends in the file, from 1.
        value: the columns by name. In JSON Lines it may be a string, where the caller allows that.
    """

    number: int
    line: int
    value: Any


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        number, line: as in `GoodRow`.
        problem: in few words, the same for all rows that have it.
        message: the problem in full, with the file and the line.
    """

    number: int
    line: int
    problem: str
    message: str


@overload
def parse_json_lines(
    lines: Iterable[str | bytes],
    place: str | Path,
    *,
    bad_rows: Literal["raise", "skip"],
    strings: bool = False,
    strict: bool = False,
) -> Iterator[GoodRow]: ...
@overload
def parse_json_lines(
    lines: Iterable[str | bytes],
    place: str | Path,
    *,
    bad_rows: Literal["yield"],
    strings: bool = False,
    strict: bool = False,
) -> Iterator[GoodRow | BadRow]: ...
def parse_json_lines(
    lines: Iterable[str | bytes],
    place: str | Path,
    *,
    bad_rows: BadRows,
    strings: bool = False,
    strict: bool = False,
) -> Iterator[GoodRow | BadRow]:
    """The objects of JSON Lines; blank lines are left out.

    Args:
        place: the file, for messages.
        bad_rows: what happens to a line that is not JSON, or not an object.
        strings: a line may also be a JSON string.
        strict: numbers must be finite and strings must be Unicode, as the standard says and Python does not check.

    Raises:
        DataError: a line is bad, and `bad_rows` is `raise`.
    """
    return _apply_policy(_parse_json_lines(lines, place, strings, strict), bad_rows)


@overload
def parse_csv(
    stream: Iterable[str],
    place: str | Path,
    *,
    bad_rows: Literal["raise", "skip"],
    fields: FieldCount = "exact",
    delimiter: str = ",",
    quotes: bool = True,
) -> Iterator[GoodRow]: ...
@overload
def parse_csv(
    stream: Iterable[str],
    place: str | Path,
    *,
    bad_rows: Literal["yield"],
    fields: FieldCount = "exact",
    delimiter: str = ",",
    quotes: bool = True,
) -> Iterator[GoodRow | BadRow]: ...
def parse_csv(
    stream: Iterable[str],
    place: str | Path,
    *,
    bad_rows: BadRows,
    fields: FieldCount = "exact",
    delimiter: str = ",",
    quotes: bool = True,
) -> Iterator[GoodRow | BadRow]:
    """The rows below a header, as strings by column; a missing field is None.

    Args:
        stream: lines with their ends, opened with `newline=""`.
        place: the file, for messages.
        bad_rows: what happens to a row with another number of fields than `fields` allows.
        fields: `exact`, as many as the header has; `fewer`, or less than that; `any`, and what is more is left out.
        quotes: a field in double quotes may hold delimiters and line ends.

    Raises:
        DataError: a row is bad, and `bad_rows` is `raise`; or the quoting is broken, so that no row can be told.
    """
    return _apply_policy(_parse_csv(stream, place, fields, delimiter, quotes), bad_rows)


def list_text_columns(file: Path, extra: str) -> list[str]:
    """The columns of strings of a Parquet file.

    Raises:
        DataError: it is not a complete Parquet file.
        MissingExtra: pyarrow, which the extra `extra` brings, is missing.
    """
    pa = require("pyarrow", extra)
    pq = require("pyarrow.parquet", extra)
    try:
        schema = pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} is not a complete Parquet file: {error}") from error
    return [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]


def choose_text_column(file: Path, columns: Sequence[str], column: str | None = None) -> str:
    """The requested column, else `text`, else the only one.

    Raises:
        InvalidInput: the requested column is not there, or none was requested and there are several.
    """
    names = ", ".join(columns) or "none"
    if column is not None:
        if column not in columns:
            raise InvalidInput(f"{file} has no text column {column!r}; it has {names}")
        return column
    if "text" in columns:
        return "text"
    if len(columns) != 1:
        raise InvalidInput(f"which column of {file} holds the text? Say column (--column), one of: {names}")
    return columns[0]


def read_parquet(file: Path, extra: str, *, columns: Sequence[str] | None = None) -> Iterator[GoodRow]:
    """The rows of a Parquet file, of all columns or of some; none of them can be bad.

    Raises:
        MissingExtra: pyarrow, which the extra `extra` brings, is missing.
        DataError: this is not a complete Parquet file.
    """
    pa = require("pyarrow", extra)
    parquet = require("pyarrow.parquet", extra)
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=PARQUET_ROWS, columns=columns):
            for value in batch.to_pylist():
                number += 1
                yield GoodRow(number, number, value)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} is not a complete Parquet file: {error}") from error


def _apply_policy(rows: Iterator[GoodRow | BadRow], bad_rows: BadRows) -> Iterator[GoodRow | BadRow]:
    for row in rows:
        if isinstance(row, GoodRow) or bad_rows == "yield":
            yield row
        elif bad_rows == "raise":
            raise DataError(row.message)


def _parse_json_lines(
    lines: Iterable[str | bytes], place: str | Path, strings: bool, strict: bool
) -> Iterator[GoodRow | BadRow]:
    expected = "an object or a string is expected" if strings else "an object is expected"
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        here = f"{place}, line {number}"
        try:
            value = _load_strict_json(_decode_line(line)) if strict else json.loads(line)
        except RecursionError:
            yield BadRow(number, number, "not JSON", f"{here} is not JSON that can be read: it is nested too deeply")
        except _NotPortable as error:
            yield BadRow(number, number, "not JSON", f"{here} {error}")
        except ValueError as error:
            yield BadRow(number, number, "not JSON", f"{here} is not JSON: {error}")
        else:
            if isinstance(value, dict) or (strings and isinstance(value, str)):
                yield GoodRow(number, number, value)
            else:
                message = f"{here} is a JSON {type(value).__name__}; {expected}"
                yield BadRow(number, number, "not a JSON object", message)


def _parse_csv(
    stream: Iterable[str], place: str | Path, fields: FieldCount, delimiter: str, quotes: bool
) -> Iterator[GoodRow | BadRow]:
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_CHARACTERS))
    reader = csv.DictReader(stream, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE)
    try:
        for number, row in enumerate(reader, start=1):
            surplus = row.pop(None, ())
            missing = sum(value is None for value in row.values())
            if (surplus and fields != "any") or (missing and fields == "exact"):
                difference = f"{len(surplus)} more fields" if surplus else f"{missing} fewer fields"
                message = f"{place}, line {reader.line_num}: {difference} than the header has"
                yield BadRow(number, reader.line_num, "another number of fields than the header", message)
            else:
                yield GoodRow(number, reader.line_num, row)
    except csv.Error as error:
        raise DataError(f"{place}, line {reader.line_num}: {error}") from error


def _decode_line(line: str | bytes) -> str:
    return line.decode("utf-8") if isinstance(line, bytes) else line


class _NotPortable(Exception):
    """JSON that Python reads and that other programs, or the index, could not."""


def _load_strict_json(line: str) -> Any:
    """One line's value.

    Raises:
        ValueError: it is not JSON.
        _NotPortable: a number is NaN, infinite or of thousands of digits, or a string holds a lone surrogate.
    """
    try:
        value = json.loads(line, parse_constant=_refuse_number, parse_float=_parse_float)
        if "\\u" in line:  # an escape may stand for half a character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _NotPortable("holds a lone surrogate, which is no character; write the text as UTF-8") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise _NotPortable(f"holds a number that cannot be kept: {error}") from error
    return value


def _parse_float(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        _refuse_number(literal)
    return number


def _refuse_number(literal: str) -> NoReturn:
    raise ValueError(f"{literal[:40]} is not a finite number")
