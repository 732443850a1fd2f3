"""Plain text and Markdown. Both are read line by line, in time linear in their length."""

import re
from collections.abc import Iterator
from pathlib import Path

from peg_rag.readers.blocks import Block, Heading, Paragraph
from peg_rag.readers.files import decode
from peg_rag.readers.normalize import clean, clean_line
from peg_rag.readers.numbering import is_plain_heading, number_level
from peg_rag.readers.tables import Grid, table_rows, to_blocks

_HEADING = re.compile(r"(#{1,6})\s")
_FENCE = re.compile(r"\s*(```|~~~)")
# Pictures. No part can match across another's start, so a search is linear.
_PICTURE = re.compile(r"!\[[^\[\]]*\]\([^()]*\)")
_RULE = re.compile(r"\|?[ \t|:-]*-[ \t|:-]*\|?$")
_CELL_END = re.compile(r"(?<!\\)\|")


def read_plain(data: bytes, path: Path, _: str | None) -> Iterator[Block]:
    yield from plain_blocks(clean(decode(data, str(path))))


def read_markdown(data: bytes, path: Path, _: str | None) -> Iterator[Block]:
    yield from markdown_blocks(clean(without_markup(decode(data, str(path)))))


def plain_blocks(text: str) -> Iterator[Block]:
    """Paragraphs at empty lines; a short line that is numbered like a chapter is a heading."""
    for paragraph in text.split("\n\n"):
        lines = paragraph.split("\n")
        paragraph_lines: list[str] = []
        for line in lines:
            if is_plain_heading(line.strip()):
                yield from _read_paragraph(paragraph_lines)
                paragraph_lines = []
                yield Heading(clean_line(line), (number_level(line.strip()) or 0) + 1)
            else:
                paragraph_lines.append(line)
        yield from _read_paragraph(paragraph_lines)


def markdown_blocks(text: str) -> Iterator[Block]:
    """ATX headings, tables with pipes, and paragraphs; a `#` or a `|` inside a code fence is neither."""
    paragraph_lines: list[str] = []
    table: list[str] = []
    fenced = False
    for line in text.split("\n"):
        if _FENCE.match(line):
            fenced = not fenced
        mark = None if fenced else _HEADING.match(line + "\n")
        in_table = not fenced and line.lstrip().startswith("|")
        if mark or in_table or (not fenced and not line.strip()):
            yield from _read_paragraph(paragraph_lines)
            paragraph_lines = []
        if table and not in_table:
            yield from _read_table(table)
            table = []
        if mark:
            yield Heading(_heading_text(line[mark.end() :]), len(mark[1]))
        elif in_table:
            table.append(line.strip())
        elif line.strip() or fenced:
            paragraph_lines.append(line)
    yield from _read_paragraph(paragraph_lines)
    yield from _read_table(table)


def without_markup(text: str) -> str:
    """Markdown less what nobody searches for: comments and pictures. Linear in time."""
    pieces = []
    position = 0
    while (start := text.find("<!--", position)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        pieces.append(text[position:start])
        position = end + 3
    return _PICTURE.sub("", "".join([*pieces, text[position:]]))


def _read_paragraph(lines: list[str]) -> Iterator[Paragraph]:
    text = "\n".join(lines).strip("\n")
    if text.strip():
        yield Paragraph(text)


def _heading_text(text: str) -> str:
    title = text.strip()
    closing = title.rstrip("#")
    if closing != title and (not closing or closing[-1:].isspace()):
        title = closing
    return clean_line(title).strip("*_ ")


def _read_table(lines: list[str]) -> Iterator[Block]:
    rules = [number for number, line in enumerate(lines) if _RULE.match(line)]
    grid: Grid = [_split_cells(line) for number, line in enumerate(lines) if number not in rules]
    columns = max(map(len, grid), default=0)
    grid = [row + [""] * (columns - len(row)) for row in grid]
    header_rows = 1 if rules and rules[0] == 1 else None
    merged = [[False] * columns for _ in grid]  # Markdown has no merged cells
    yield from to_blocks(table_rows(grid, header_rows=header_rows, merged=merged))


def _split_cells(line: str) -> list[str]:
    inner = line.removeprefix("|").removesuffix("|")
    return [clean_line(cell.replace("\\|", "|")).strip("*_ `") for cell in _CELL_END.split(inner)]
