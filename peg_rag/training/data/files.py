"""Files of training rows: which files a source names, and what each of their lines holds."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peg_rag.errors import DataError
from peg_rag.files import open_packed, unreadable
from peg_rag.readers import encoding_of
from peg_rag.records import BadRow, GoodRow, parse_csv, parse_json_lines, read_parquet
from peg_rag.training.data.texts import clean_text
from peg_rag.training.recipe import SourceOptions, expand_path

SNIFFED_BYTES = 1 << 16  # that tell a text file's encoding


def source_files(source: SourceOptions, path: str = "sources") -> list[Path]:
    """The files of a source: its path with `$VARIABLES` expanded, a glob where it holds `*`.

    Raises:
        DataError: there is no such file.
        RecipeError: a variable is not set.
    """
    pattern = expand_path(source.path)
    if not any(c in pattern.name for c in "*?["):
        if not pattern.is_file():
            raise DataError(f"{path}: {pattern} does not exist; give the path of a .jsonl, .csv, .tsv or .parquet file")
        return [pattern]
    files = sorted(
        file
        for file in pattern.parent.glob(pattern.name)
        if not any(file.match(excluded) for excluded in source.exclude)
    )
    if not files:
        raise DataError(f"{path}: no file matches {pattern} (after leaving out {list(source.exclude)})")
    return files


def read_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Each row of a .jsonl, .csv, .tsv (also .gz, .zst) or .parquet file with its line; a str says what is wrong.

    Raises:
        DataError: the file is missing, of an unknown kind, or cannot be read to its end.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist")
    form = next((s for s in reversed(file.suffixes) if s not in (".gz", ".zst")), "")
    readers = {
        ".jsonl": _read_json_rows,
        ".json": _read_json_rows,
        ".csv": _read_csv_rows,
        ".tsv": _read_tsv_rows,
        ".parquet": _read_parquet_rows,
    }
    if form not in readers:
        raise DataError(
            f"{file}: unknown kind of file; .jsonl, .csv, .tsv (also with .gz or .zst) or .parquet is expected"
        )
    try:
        for row in readers[form](file):
            yield row.line, row.value if isinstance(row, GoodRow) else row.problem
    except unreadable(UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); is the file whole?") from error


def is_text_file(file: Path) -> bool:
    """Whether it holds a text in each line: .txt, also .gz and .zst."""
    return next((s for s in reversed(file.suffixes) if s not in (".gz", ".zst")), "") == ".txt"


def read_lines(file: Path) -> Iterator[str]:
    """The clean lines of a .txt file (also .gz, .zst) that are not blank.

    Raises:
        DataError: the file is missing, is not text, or cannot be read to its end.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist")
    try:
        with open_packed(file, "train") as stream:
            encoding = _guess_encoding(stream.read(SNIFFED_BYTES), file)
        with io.TextIOWrapper(open_packed(file, "train"), encoding=encoding, errors="replace", newline="\n") as lines:
            for line in lines:
                if text := clean_text(line):
                    yield text
    except unreadable() as error:
        raise DataError(f"{file} cannot be read ({error}); is the file whole?") from error


def _guess_encoding(head: bytes, file: Path) -> str:
    """UTF-8 unless more than a thousandth of the head is not: one bad line must not change how the others are read."""
    if b"\0" not in head and head.decode("utf-8", "replace").count("\ufffd") <= len(head) // 1_000:
        return "utf-8"
    return encoding_of(head, str(file))


def _read_json_rows(file: Path) -> Iterator[GoodRow | BadRow]:
    with open_packed(file, "train") as stream:
        yield from parse_json_lines(stream, file, bad_rows="yield")


def _read_csv_rows(file: Path) -> Iterator[GoodRow | BadRow]:
    with _open_csv(file) as stream:
        yield from parse_csv(stream, file, bad_rows="yield")


def _read_tsv_rows(file: Path) -> Iterator[GoodRow | BadRow]:
    with _open_csv(file) as stream:
        yield from parse_csv(stream, file, bad_rows="yield", delimiter="\t", quotes=False)


def _open_csv(file: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_packed(file, "train"), encoding="utf-8-sig", newline="")


def _read_parquet_rows(file: Path) -> Iterator[GoodRow | BadRow]:
    return read_parquet(file, "train")


def file_digest(file: Path) -> str:
    """A hash of the file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
