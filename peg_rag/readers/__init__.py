"""Files as they are found in the world → headings, paragraphs, rows and records that know where they stand.

Retrieval is only as good as the text it is given, and folders hold GB18030 text without a byte-order mark, tables that
lose their columns, PDFs that break Chinese lines in mid-sentence and files whose name lies. Every reader here gives
blocks (see `peg_rag.readers.blocks`) or a `DataError` that names the file and the cure. There is one module for each
family of formats; the libraries behind them are imported when first needed.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

from peg_rag.errors import DataError
from peg_rag.readers.blocks import Block, Heading, Paragraph, Place, Record, Row, Section, document_text, sections_of
from peg_rag.readers.files import MAX_FILE_BYTES, PartlyRead, decode, encoding_of, read_bytes
from peg_rag.readers.kinds import SUFFIXES, hint_for_suffix
from peg_rag.readers.normalize import clean

OnPage = Callable[[int, int], None]  # pages read so far, pages of the document
_Reader = Callable[[bytes, Path, str | None], Iterator[Block]]


def read_blocks(
    path: Path,
    *,
    text_column: str | None = None,
    max_bytes: int = MAX_FILE_BYTES,
    on_page: OnPage | None = None,
) -> list[Block]:
    """The blocks of one file in their order, by the reader for its suffix (see `SUFFIXES`).

    Args:
        text_column: the column of a CSV, sheet or JSONL file that holds the text; None for the first of
            `records.TEXT_COLUMNS` that is there, else all columns as `name: value`.
        max_bytes: larger files are refused.
        on_page: told how many pages of how many are read, for kinds of files that have pages.

    Warns:
        PartlyRead: pages of it are scans, and the extra `ocr` is not installed.

    Raises:
        DataError: the file cannot be read, is empty, encrypted, too large, damaged, or not what its name says.
        MissingExtra: a library for this kind of file is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = hint_for_suffix(suffix) or f"expected one of {', '.join(SUFFIXES)}"
        raise DataError(f"{path}: unsupported file type {path.suffix}; {hint}")
    data = read_bytes(path, max_bytes)
    blocks = [block for block in _find_reader(suffix, on_page)(data, path, text_column) if not _is_blank(block)]
    if not any(block.text.strip() for block in blocks):
        raise DataError(f"{path} holds no text")
    return blocks


def read_sections(
    path: Path,
    *,
    text_column: str | None = None,
    max_bytes: int = MAX_FILE_BYTES,
    on_page: OnPage | None = None,
) -> list[Section]:
    """As `read_blocks`, grouped into sections: one for each heading and page, row and record."""
    blocks = read_blocks(path, text_column=text_column, max_bytes=max_bytes, on_page=on_page)
    return [section for section in sections_of(blocks) if section.text.strip()]


def _find_reader(suffix: str, on_page: OnPage | None) -> _Reader:
    module, function = SUFFIXES[suffix].split(":")
    reader: Callable[..., Iterator[Block]] = getattr(import_module(f"peg_rag.readers.{module}"), function)
    return partial(reader, on_page=on_page) if suffix == ".pdf" else reader


def _is_blank(block: Block) -> bool:
    return not isinstance(block, Heading) and not block.text.strip()


__all__ = [
    "MAX_FILE_BYTES",
    "SUFFIXES",
    "Block",
    "Heading",
    "Paragraph",
    "PartlyRead",
    "Place",
    "Record",
    "Row",
    "Section",
    "clean",
    "decode",
    "document_text",
    "encoding_of",
    "hint_for_suffix",
    "read_blocks",
    "read_sections",
    "sections_of",
]
