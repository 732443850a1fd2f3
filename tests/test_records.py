"""Each policy for bad rows, in each format."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peg_rag.errors import DataError
from peg_rag.records import BadRow, BadRows, GoodRow, parse_csv, parse_json_lines, read_parquet

JSON_LINES = ['{"a": 1}', "", "{", "[1]", '"text"', '{"a": 2}']
CSV_LINES = ["a,b\n", "1,2\n", "1\n", "1,2,3\n", "3,4\n"]


def test_raise_stops_at_the_first_bad_row_and_names_file_and_line() -> None:
    rows = parse_json_lines(JSON_LINES, "x.jsonl", bad_rows="raise")
    assert next(rows) == GoodRow(1, 1, {"a": 1})
    with pytest.raises(DataError, match=r"x\.jsonl, line 3 is not JSON"):
        next(rows)
    table = parse_csv(CSV_LINES, "x.csv", bad_rows="raise")
    assert next(table) == GoodRow(1, 2, {"a": "1", "b": "2"})
    with pytest.raises(DataError, match=r"x\.csv, line 3: 1 fewer fields than the header has"):
        next(table)


def test_skip_leaves_bad_rows_out_and_keeps_the_numbers_of_the_others() -> None:
    rows = list(parse_json_lines(JSON_LINES, "x.jsonl", bad_rows="skip"))
    assert rows == [GoodRow(1, 1, {"a": 1}), GoodRow(6, 6, {"a": 2})]
    table = list(parse_csv(CSV_LINES, "x.csv", bad_rows="skip"))
    assert [(row.number, row.line, row.value["b"]) for row in table] == [(1, 2, "2"), (4, 5, "4")]


def test_yield_gives_bad_rows_in_their_place() -> None:
    rows = list(parse_json_lines(JSON_LINES, "x.jsonl", bad_rows="yield"))
    assert [(row.line, row.problem) for row in rows if isinstance(row, BadRow)] == [
        (3, "not JSON"),
        (4, "not a JSON object"),
        (5, "not a JSON object"),
    ]
    table = list(parse_csv(CSV_LINES, "x.csv", bad_rows="yield"))
    assert [type(row) for row in table] == [GoodRow, BadRow, BadRow, GoodRow]
    assert {row.problem for row in table if isinstance(row, BadRow)} == {"another number of fields than the header"}


def test_strings_are_rows_where_they_are_allowed() -> None:
    rows = list(parse_json_lines(JSON_LINES, "x.jsonl", bad_rows="skip", strings=True))
    assert [row.value for row in rows] == [{"a": 1}, "text", {"a": 2}]


@pytest.mark.parametrize("line", ["NaN", "1e999", "-Infinity", r'"\ud800"', "1" * 5_000])
def test_strict_refuses_what_other_programs_cannot_read(line: str) -> None:
    row = f'{{"a": {line}}}'
    with pytest.raises(DataError, match="line 1 holds a"):
        list(parse_json_lines([row], "x.jsonl", bad_rows="raise", strict=True))


@pytest.mark.parametrize("policy", ["skip", "yield"])
@pytest.mark.parametrize("line", ["[" * 200_000, b'{"a": "\xff"}'])
def test_no_line_ends_a_run_that_goes_on(line: str | bytes, policy: BadRows) -> None:
    rows = list(parse_json_lines([line, '{"a": 1}'], "x.jsonl", bad_rows=policy))
    assert rows[-1] == GoodRow(2, 2, {"a": 1})
    assert len(rows) == (2 if policy == "yield" else 1)


@pytest.mark.parametrize(
    ("fields", "values"), [("exact", ["2", "4"]), ("fewer", ["2", None, "4"]), ("any", ["2", None, "2", "4"])]
)
def test_the_number_of_fields_that_is_allowed(fields: Any, values: list[str | None]) -> None:
    table = list(parse_csv(CSV_LINES, "x.csv", bad_rows="skip", fields=fields))
    assert [row.value["b"] for row in table] == values
    assert all(set(row.value) == {"a", "b"} for row in table)


def test_a_column_without_a_name_is_a_column() -> None:
    (row,) = parse_csv(["a,\n", "1,2\n"], "x.csv", bad_rows="raise")
    assert row.value == {"a": "1", "": "2"}


def test_broken_quoting_is_an_error_under_every_policy() -> None:
    with pytest.raises(DataError, match=r"x\.csv, line"):
        list(parse_csv(["a\n", "1\r2\n"], "x.csv", bad_rows="skip"))


@given(st.lists(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.none()))))
def test_json_that_was_written_comes_back(values: list[dict[str, object]]) -> None:
    lines = [json.dumps(value) for value in values]
    assert [row.value for row in parse_json_lines(lines, "x", bad_rows="raise")] == values


@given(st.lists(st.tuples(st.text('a,"\n甲 \t'), st.text("b\r\n,乙")), max_size=5))
def test_csv_that_was_written_comes_back(values: list[tuple[str, str]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *values])
    stream.seek(0)
    assert [tuple(row.value.values()) for row in parse_csv(stream, "x", bad_rows="raise")] == values


def test_parquet_gives_the_columns_that_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), file)
    assert [row.value for row in read_parquet(file, "cli")] == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert list(read_parquet(file, "cli", columns=["b"])) == [GoodRow(1, 1, {"b": "x"}), GoodRow(2, 2, {"b": "y"})]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a complete Parquet file"):
        list(read_parquet(file, "cli"))
