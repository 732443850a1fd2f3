"""Plain text and Markdown. Both are read line by line, in time linear in their length."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from peg_rag.readers.blocks import Block, Heading, Paragraph
from peg_rag.readers.files import decode
from peg_rag.readers.names import is_name_row
from peg_rag.readers.normalize import clean, clean_cell, clean_line, is_wide, join_lines, width
from peg_rag.readers.numbering import has_own_text, is_plain_heading, number_level
from peg_rag.readers.tables import Grid, table_rows, to_blocks

_HEADING = re.compile(r"(#{1,6})\s")
_FENCE = re.compile(r"\s*(```|~~~)")
_UNDERLINE = re.compile(r"(=+|-{2,})\s*$")  # below a title
_ITEM = re.compile(r"\s*([-*+>|]|\d+[.)])\s")
_FRONT_MATTER = re.compile(r"[\w-]+:|[\s#-]|$")
_MOST_FRONT_MATTER = 50  # lines
# Pictures. No part can match across another's start, so a search is linear.
_PICTURE = re.compile(r"!\[[^\[\]]*\]\([^()]*\)")
_RULE = re.compile(r"\|?[ \t|:-]*-[ \t|:-]*\|?$")
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_CELL_END = re.compile(r"(?<!\\)\|")
# Tables drawn with characters: rules of box-drawing characters or of `+---+`, and rows between upright bars.
_DRAWN_RULE = re.compile(r"\s*([┌┏╔├┠┣╟╠└┗╚┬┴┼╦╩╬─━═╌┄┈╴╶╪╫╞╡]{3,}[┐┓╗┤┨┫╢╣┘┛╝─━═│┃║]*|\+([-=]+\+){2,})\s*$")
_GAP = re.compile(r"\t+|[ \u3000]{2,}|\u3000")
_FEWEST_ALIGNED = 3  # lines, and columns where only blanks part them
_LEAST_WRAP = 50  # half-widths of the lines of a text that was broken at a fixed width
_MOST_WRAP = 90
_FEWEST_WRAPPED = 3  # lines
_OWN_LINE = re.compile(
    r"^[\s\u3000>|+*•●○▪◆·#=_~-]|^\d+[.、)）]|^[（(]|^[一二三四五六七八九十]+、|^$|\t| {3}|"
    r"^[^\s:：]{1,20}[:：] ?\S{1,40}$"  # a name and its value
)
_DRAWN_BARS = re.compile(r"[│┃║|]")


def read_plain(data: bytes, path: Path, _: str | None) -> Iterator[Block]:
    yield from plain_blocks(clean(decode(data, str(path))))


def read_markdown(data: bytes, path: Path, _: str | None) -> Iterator[Block]:
    yield from markdown_blocks(clean(without_markup(decode(data, str(path)))))


def plain_blocks(text: str) -> Iterator[Block]:
    """Paragraphs at empty lines, tables that are drawn or aligned with blanks, and headings that their numbers make.

    Lines that a program broke at a fixed width are put together.
    """
    wrap_width = _find_wrap_width(text)
    headings = _find_headings(text)
    first = 0
    for paragraph in text.split("\n\n"):
        lines = paragraph.split("\n")
        table = _find_drawn_table(lines) or _find_aligned_table(lines)
        paragraph_lines: list[str] = []
        for number, line in enumerate(lines):
            if number not in table and first + number not in headings:
                paragraph_lines.append(line)
                continue
            if number not in table or number == table.start:
                yield from _read_paragraph(_join_wrapped(paragraph_lines, wrap_width))
                paragraph_lines = []
            if number not in table:
                yield Heading(clean_line(line), (number_level(line.strip()) or 0) + 1)
            elif number == table.start:
                rows = [lines[row] for row in table]
                yield from _read_drawn_table(rows) if _DRAWN_RULE.match(line) else _read_aligned_table(rows)
        yield from _read_paragraph(_join_wrapped(paragraph_lines, wrap_width))
        first += len(lines) + 1


def _find_headings(text: str) -> set[int]:
    """The numbers of the lines that are headings."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n")) if line.strip()]
    headings = set()
    for place, (number, line) in enumerate(lines):
        before = lines[place - 1][1] if place else ""
        after = lines[place + 1][1] if place + 1 < len(lines) else ""
        if is_plain_heading(line) or has_own_text(line, before, after):
            headings.add(number)
    return headings


def _find_wrap_width(text: str) -> int:
    """The half-widths at which a program broke the lines of a text; 0 where its lines are its author's."""
    lines = text.split("\n")
    if max(map(len, lines)) > _MOST_WRAP:
        return 0
    longest = max(map(width, lines))
    if not _LEAST_WRAP <= longest <= _MOST_WRAP:
        return 0
    pairs = [(line, following) for line, following in pairwise(lines) if _may_go_on(line, following)]
    full = sum(_is_full(line, following, longest) for line, following in pairs)
    return longest if full >= _FEWEST_WRAPPED and 2 * full >= len(pairs) else 0


def _join_wrapped(lines: list[str], wrap_width: int) -> list[str]:
    joined: list[str] = []
    last = ""
    for line in lines:
        if wrap_width and joined and _may_go_on(last, line) and _is_full(last, line, wrap_width):
            joined[-1] = join_lines([joined[-1], line])
        else:
            joined.append(line)
        last = line
    return joined


def _may_go_on(line: str, following: str) -> bool:
    """Whether a line's sentence may go on in the next line: no indent, item, quotation or table there."""
    return bool(line.strip()) and not any(_OWN_LINE.search(text) for text in (line.lstrip(), following))


def _is_full(line: str, following: str, wrap_width: int) -> bool:
    """Whether the next line's first word had no room left."""
    word = following[0] if is_wide(following[0]) else following.split(maxsplit=1)[0]
    return width(line) + width(word) + (not is_wide(word[0])) > wrap_width - 1


def markdown_blocks(text: str) -> Iterator[Block]:
    """Headings, tables with bars, and paragraphs; a `#` or a `|` inside a code fence is neither."""
    lines = text.split("\n")
    first = _find_front_matter(lines)
    if first:
        yield from _read_front_matter(lines[1 : first - 1])
    paragraph_lines: list[str] = []
    table: list[str] = []
    fenced = False
    for line, following in zip(lines[first:], [*lines[first + 1 :], ""], strict=True):
        if _FENCE.match(line):
            fenced = not fenced
        if not fenced and _UNDERLINE.match(line) and len(paragraph_lines) == 1:
            if _ITEM.match(paragraph_lines[0]):  # then it is a rule
                yield from _read_paragraph(paragraph_lines)
            else:
                yield Heading(_heading_text(paragraph_lines[0]), 1 if line.startswith("=") else 2)
            paragraph_lines = []
            continue
        mark = None if fenced else _HEADING.match(line + "\n")
        in_table = not fenced and (
            line.lstrip().startswith("|") or ("|" in line and (bool(table) or _is_rule(following)))
        )
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


def _is_rule(line: str) -> bool:
    """Whether a line parts the header of a table from its body."""
    return "|" in line and _RULE.match(line.strip()) is not None


def _find_front_matter(lines: list[str]) -> int:
    """The line behind the names and values between `---` that a file begins with; 0 where there are none."""
    if lines[0] != "---":
        return 0
    end = next((number for number, line in enumerate(lines[1:_MOST_FRONT_MATTER], start=1) if line == "---"), 0)
    return end + 1 if end and all(_FRONT_MATTER.match(line) for line in lines[1:end]) else 0


def _read_front_matter(lines: list[str]) -> Iterator[Block]:
    titles = [line for line in lines if line.startswith("title:")]
    for title in titles[:1]:
        yield Heading(clean_line(title.removeprefix("title:")).strip("\"'"), 1)
    yield from _read_paragraph([line for line in lines if line not in titles[:1]])


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


def _find_drawn_table(lines: list[str]) -> range:
    """The lines of a paragraph from a table's first rule to its last, with nothing but rows between; else none."""
    rules = [number for number, line in enumerate(lines) if _DRAWN_RULE.match(line)]
    if len(rules) < 2:
        return range(0)
    table = range(rules[0], rules[-1] + 1)
    rows = [lines[number] for number in table if number not in rules]
    if not rows or not all(len(_DRAWN_BARS.findall(row)) > 2 for row in rows):
        return range(0)
    return table


def _find_aligned_table(lines: list[str]) -> range:
    """The lines of the first run with the same number of columns, parted by tabs or several blanks; else none."""
    columns = [len(_split_aligned(line)) for line in lines]
    start = 0
    while start < len(lines):
        end = start + 1
        while end < len(lines) and columns[end] == columns[start]:
            end += 1
        fewest = 2 if "\t" in lines[start].strip() else _FEWEST_ALIGNED
        if columns[start] >= fewest and end - start >= _FEWEST_ALIGNED and is_name_row(_split_aligned(lines[start])):
            return range(start, end)
        start = end
    return range(0)


def _read_aligned_table(lines: list[str]) -> Iterator[Block]:
    grid = [_split_aligned(line) for line in lines]
    merged = [[False] * len(row) for row in grid]
    yield from to_blocks(table_rows(grid, header_rows=1, merged=merged))


def _split_aligned(line: str) -> list[str]:
    return [clean_line(cell) for cell in _GAP.split(line.strip())]


def _read_drawn_table(lines: list[str]) -> Iterator[Block]:
    """What stands between two rules is one row, its cells' lines joined; without inner rules each line is a row."""
    ruled: list[list[list[str]]] = []  # the lines between two rules, by their cells
    for line in lines:
        if _DRAWN_RULE.match(line):
            ruled.append([])
        else:
            ruled[-1].append([cell.strip() for cell in _DRAWN_BARS.split(line.strip())[1:-1]])
    ruled = [rows for rows in ruled if rows]
    has_inner_rules = len(ruled) > 2
    grid: Grid = []
    for rows in ruled:
        grid += [_join_cells(rows)] if has_inner_rules else rows
    columns = max(map(len, grid))
    grid = [row + [""] * (columns - len(row)) for row in grid]
    merged = [[False] * columns for _ in grid]
    header_rows = len(ruled[0]) if len(ruled) == 2 else None
    yield from to_blocks(table_rows(grid, header_rows=header_rows, merged=merged))


def _join_cells(rows: list[list[str]]) -> list[str]:
    columns = max(map(len, rows))
    parts = [[row[column] for row in rows if column < len(row)] for column in range(columns)]
    return [clean_line(join_lines(cell)) for cell in parts]


def _split_cells(line: str) -> list[str]:
    inner = line.removeprefix("|").removesuffix("|")
    return [_clean_markdown_cell(cell.replace("\\|", "|")) for cell in _CELL_END.split(inner)]


def _clean_markdown_cell(text: str) -> str:
    lines = [line.strip("*_ `") for line in _LINE_BREAK.split(text)]
    return clean_cell("\n".join(lines))
