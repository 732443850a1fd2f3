"""PDF: words from pdfplumber's glyphs, tables from its rules, and the structure that a PDF does not store.

Pages are read one at a time and let go; what stays is their lines. Then the whole document says which lines run on
every page (headers, footers, page numbers), which type is the body's and which the headings', and which lines belong to
one paragraph, also over the end of a page. A page without text is a scan: the `ocr` extra reads it.

Costs 30 to 300 ms a page, most of it pdfminer's reading of glyphs; OCR takes seconds.
"""

import io
import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from peg_rag.errors import DataError, MissingExtra
from peg_rag.extras import require
from peg_rag.readers.bands import read_banded_tables
from peg_rag.readers.blocks import Block, Box, Heading, Paragraph, Place, Row
from peg_rag.readers.cells import RuledCell, build_grid, split_at_frames
from peg_rag.readers.continued import append_table, is_continued, pages_of, with_lone_rows
from peg_rag.readers.files import PartlyRead, encrypted, run_parser
from peg_rag.readers.layout import (
    in_reading_order,
    lines_of,
    read_framed_table,
    read_three_line_table,
    split_sheet,
)
from peg_rag.readers.normalize import is_wide, width
from peg_rag.readers.numbering import has_own_text, is_plain_heading, number_level
from peg_rag.readers.pieces import Glyph, Item, Line, Table, rounded_box
from peg_rag.readers.rules import (
    ends_at,
    find_banded_rules,
    find_missing_sides,
    find_open_ends,
    find_stripes,
    find_three_line_rules,
    snap_edges,
)
from peg_rag.readers.tables import table_rows
from peg_rag.readers.vertical import are_columns, is_vertical, split_vertical, turn_columns, turn_piece, turn_scan
from peg_rag.readers.watermarks import Style, remove_watermarks

OnPage = Callable[[int, int], None]

_BOLD = re.compile(r"bold|heavy|black|semibold|demi|[-,]bd\b|simhei|黑体", re.IGNORECASE)
_CID = re.compile(r"\(cid:\d+\)")
_PAGE_NUMBER = re.compile(
    r"[-–—~·•\s]*(第\s*[\d一二三四五六七八九十百]+\s*页?\s*[,，/共（(]*\s*(共?\s*[\d一二三四五六七八九十百]+\s*页)?[)）]?|"
    r"(page|p\.?)?\s*\d{1,4}\s*((/|of|共)\s*\d{1,4})?\s*页?|[ivxlc]{1,6})[-–—~·•\s]*$",
    re.IGNORECASE,
)
_FOOTNOTE = re.compile(r"^([①-⑳]|[\[［(（〔]\d{1,2}[\]］)）〕]|[*※†]|注\s?\d{0,2}[:：])\s?\S{4}|。$")
_SENTENCE_END = tuple("。！？；：!?;:…")
_COMMAS = ("、", "，")
_HEADING_END = tuple("。！？；，、,;!?")
_LIST_MARK = re.compile(
    r"([•●○◦▪■◆➢✓·–]|[-*]\s|[(（]?\d{1,2}[)）.、．](?!\d)|[①-⑳]|[(（][一二三四五六七八九十]{1,3}[)）]|[一二三四五六七八九十]{1,3}、|"
    r"第[一二三四五六七八九十百零〇\d]{1,6}[条章节款])"
)
_PART_NUMBER = re.compile(r"\d{1,2}([.．]\d{1,2}){1,3}\s")  # of a paragraph, or a figure within a sentence
_HYPHEN = re.compile(r"[a-z]-$")
_ADDRESS = re.compile(r"(@|://|www\.)[^\s@]*$")  # an address that is cut by the line's end goes on without a space
_CAPTION = re.compile(r"(表|附表|table|续表)\s*[\d一二三四五六七八九十]*", re.IGNORECASE)
_CONTENTS = re.compile(
    r"(目\s*录|(table of )?contents|list of (tables|figures|examples)|(表格?|插?图|插图|图表)(目录|清单|索引))$",
    re.IGNORECASE,
)
_DEEPEST_LEVEL = 9  # below all headings
_MOST_MARGIN_LINES = 3  # of a page's top or bottom that may run on every page
_LARGER = 1.12  # times the body's type, from which a line is a heading
_LONGEST_HEADING = 80  # half-widths
_FEWEST_CHARACTERS = 5  # below which a page with a picture is a scan
_VERTICAL_TURN = 270  # by which the columns of a page of vertical text are lines from the top down
_VERTICAL_MARGIN = 0.1  # of a page's height
_SNAP = 3.0  # points
_LONGEST_CELL = 2000  # characters


def read_pdf(data: bytes, path: Path, _: str | None, on_page: OnPage | None = None) -> Iterator[Block]:
    if not data[:1024].lstrip().startswith(b"%PDF") and b"%PDF" not in data[:1024]:
        raise DataError(f"{path} is not a PDF despite its extension")
    pages = run_parser(path, lambda: _read_pages(data, path, on_page or (lambda done, pages: None)))
    yield from _Document(pages).blocks()


@dataclass(slots=True)
class _Page:
    number: int
    width: float
    height: float
    items: list[Item]


# -- pages ------------------------------------------------------------------------------------------------------------


def _read_pages(data: bytes, path: Path, on_page: OnPage) -> list[_Page]:
    pdfplumber = require("pdfplumber", "ingest")
    logging.getLogger("pdfminer").setLevel(logging.CRITICAL)  # it remarks on every odd font
    try:
        document = pdfplumber.open(io.BytesIO(data))
    except Exception as error:
        if "password" in f"{type(error).__name__} {error!r}".lower():
            raise encrypted(path) from error
        raise
    pages: list[_Page] = []
    scans: list[int] = []
    watermarks: set[Style] = set()
    with document:
        total = len(document.pages)
        for number in range(total):
            page = document.pages[number]
            content = _read_page(page, number + 1, watermarks)
            if content is None:
                scans.append(number + 1)
                content = _Page(number + 1, float(page.width), float(page.height), [])
            pages.append(content)
            page.close()
            document.pages[number] = None  # the page's glyphs go with it
            on_page(number + 1 - len(scans), total)
    if scans:
        _recognise_pages(data, path, pages, scans, on_page)
    return pages


def _read_page(page: Any, number: int, watermarks: set[Style]) -> _Page | None:
    """A page's pieces of lines and tables, in no order yet; None for a scan.

    Args:
        watermarks: see `remove_watermarks`.
    """
    chars = remove_watermarks(page.chars, watermarks)
    turn = _find_turn(chars)
    if turn:
        turned = _turn_page(page, turn)
        content = _read_upright_page(turned, remove_watermarks(turned.chars, watermarks), number)
    elif is_vertical(chars):
        turn = _VERTICAL_TURN
        content = _read_vertical_page(page, chars, number)
    else:
        content = _read_upright_page(page, chars, number)
    if turn and content is not None:
        content.items = [_turn_back(item, turn, float(page.width), float(page.height)) for item in content.items]
    return content


def _read_vertical_page(page: Any, chars: Sequence[Any], number: int) -> _Page:
    """A page of vertical text, turned so that its columns are lines and the rightmost is the first."""
    width = float(page.width)
    height = float(page.height)
    columns, rows = split_vertical(chars)
    glyphs = turn_columns(_upright_glyphs(page, columns), width)
    lines = lines_of(_upright_glyphs(page, rows), number)
    margin = _VERTICAL_MARGIN * height  # where page numbers and running titles stand
    lines = [turn_piece(line, width) for line in lines if margin < line.top and line.bottom < height - margin]
    return _Page(number, height, width, [*lines_of(glyphs, number), *lines])


def _find_turn(chars: Sequence[Any]) -> int:
    """Degrees clockwise by which most of a page's text comes upright, such as a wide table on a tall page."""
    turns = Counter(_turn_of(char["matrix"]) for char in chars if not char["text"].isspace())
    return turns.most_common(1)[0][0] if turns else 0


def _turn_of(matrix: tuple[float, ...]) -> int:
    """Degrees clockwise by which a glyph comes upright; glyphs at an angle count as upright."""
    a, b, c, d = matrix[:4]
    if abs(b) > 10 * abs(a) and b * c < 0:
        return 90 if b > 0 else 270
    return 180 if a < 0 and d < 0 and abs(a) > 10 * abs(b) else 0


def _turn_page(page: Any, turn: int) -> Any:
    """The same page with its rotation changed by so many degrees."""
    source = page.page_obj
    source.rotate = (source.rotate + turn) % 360
    source.attrs = {**source.attrs, "Rotate": source.rotate}
    return type(page)(page.pdf, source, page_number=page.page_number, initial_doctop=page.initial_doctop)


def _turn_back(item: Item, turn: int, width: float, height: float) -> Item:
    """An item of a turned page, its box as on the page of that width and height as it is shown."""
    if isinstance(item, Line):
        return replace(item, tilted_box=_turn_box_back(item.box, turn, width, height))
    return replace(item, rows=[_turn_box_back(box, turn, width, height) for box in item.rows])


def _turn_box_back(box: Box, turn: int, width: float, height: float) -> Box:
    x0, top, x1, bottom = box
    if turn == 90:
        return rounded_box(top, height - x1, bottom, height - x0)
    if turn == 270:
        return rounded_box(width - bottom, x0, width - top, x1)
    return rounded_box(width - x1, height - bottom, width - x0, height - top)


def _read_upright_page(page: Any, chars: Sequence[Any], number: int) -> _Page | None:
    turned = [char for char in chars if _turn_of(char["matrix"])]
    straight = [char for char in chars if not _turn_of(char["matrix"])]
    if len(turned) > len(straight):  # the page could not be turned as a whole
        turned = []
        straight = list(chars)
    glyphs = _upright_glyphs(page, straight)
    if sum(not glyph.text.isspace() for glyph in glyphs) < _FEWEST_CHARACTERS and page.images:
        return None
    tables: list[Item] = []
    ends = find_open_ends(page)
    for table in _ruled_tables(page, ends):
        inside, glyphs = _split_by_box(glyphs, table.bbox)
        items = _read_ruled_items(table, inside, turned, page, number, ends)
        if items is None:
            glyphs += inside
        else:
            tables += items
    open_tables, glyphs = _read_open_tables(page, glyphs, number)
    tables += open_tables
    lines = _read_inverted(page, turned, tables, number)
    return _Page(number, float(page.width), float(page.height), [*lines_of(glyphs, number), *lines, *tables])


def _read_open_tables(page: Any, glyphs: list[Glyph], number: int) -> tuple[list[Item], list[Glyph]]:
    """The tables that have rules between rows but none between columns, and the glyphs outside them."""
    tables: list[Item] = []
    for x0, x1, rules in find_banded_rules(page):
        inside, _ = _split_by_box(glyphs, (x0, 0.0, x1, float(page.height)))
        for banded in read_banded_tables(inside, (x0, x1), rules, number):
            tables.append(banded)
            glyphs = _split_by_box(glyphs, (x0, banded.top, x1, banded.bottom))[1]
    for x0, x1, rules, braces in find_three_line_rules(page):
        inside, outside = _split_by_box(glyphs, (x0, rules[0], x1, rules[-1]))
        three_line = read_three_line_table(inside, rules, braces, number) if inside else None
        if three_line is not None:
            tables.append(three_line)
            glyphs = outside
    return tables, glyphs


def _read_inverted(page: Any, turned: Sequence[Any], tables: Sequence[Item], number: int) -> list[Line]:
    """The lines that stand upside down outside a page's tables, each in its place."""
    inverted = [char for char in turned if _turn_of(char["matrix"]) == 180]
    boxes = [(item.x0, item.top, item.x1, item.bottom) for item in tables]
    inverted = [char for char in inverted if not any(_is_within(char, box) for box in boxes)]
    return [_set_upright(line, page) for line in _read_turned(page, inverted, number)] if inverted else []


def _set_upright(line: Line, page: Any) -> Line:
    """A line that was read upside down, in its place on the page."""
    x0, top, x1, bottom = _turn_box_back((line.x0, line.top, line.x1, line.bottom), 180, page.width, page.height)
    return replace(line, x0=x0, top=top, x1=x1, bottom=bottom)


def _upright_glyphs(page: Any, chars: Sequence[Any]) -> list[Glyph]:
    """The upright glyphs of a page, each once: bold type is sometimes made by printing twice."""
    glyphs: list[Glyph] = []
    upright = [char for char in chars if char["upright"]]
    if len(upright) < len(chars) / 2:
        upright = list(chars)
    for char in upright:
        glyph = _make_glyph(char, (char["x0"], char["top"], char["x1"], char["bottom"]))
        is_outside = glyph.x1 <= 0 or glyph.x0 >= page.width or glyph.bottom <= 0 or glyph.top >= page.height
        if not is_outside:
            glyphs.append(glyph)
    return _take_once(glyphs)


def _take_once(glyphs: Sequence[Glyph]) -> list[Glyph]:
    """Glyphs with text, each of those once that are printed over one another."""
    distinct: dict[tuple[str, int, int], Glyph] = {}
    for glyph in glyphs:
        if glyph.text:
            distinct.setdefault((glyph.text, round(glyph.x0), round(glyph.top)), glyph)
    return list(distinct.values())


def _make_glyph(char: Any, box: Box) -> Glyph:
    return Glyph(_CID.sub("", char["text"]), *box, round(char["size"], 1), bool(_BOLD.search(char["fontname"])))


def _read_turned(page: Any, chars: Sequence[Any], number: int) -> list[Line]:
    """Glyphs on their side or upside down as lines in the order of reading, on the page turned for them."""
    width = float(page.width)
    height = float(page.height)
    turn = Counter(_turn_of(char["matrix"]) for char in chars).most_common(1)[0][0]
    glyphs = []
    for char in chars:
        if turn == 90:
            box = (height - char["bottom"], char["x0"], height - char["top"], char["x1"])
        elif turn == 270:
            box = (char["top"], width - char["x1"], char["bottom"], width - char["x0"])
        else:
            box = (width - char["x1"], height - char["bottom"], width - char["x0"], height - char["top"])
        glyphs.append(_make_glyph(char, box))
    return lines_of(_take_once(glyphs), number, keep_lines=True)


def _ruled_tables(page: Any, ends: list[dict[str, Any]]) -> list[Any]:
    """pdfplumber's tables of at least two rows and two columns, the largest first, none within another."""
    if not page.lines and not page.rects and not page.curves:
        return []
    verticals, horizontals = find_stripes(page)
    settings: dict[str, Any] = {"explicit_vertical_lines": [*find_missing_sides(page), *verticals]}
    settings["explicit_horizontal_lines"] = [*ends, *horizontals]
    settings = {name: lines for name, lines in settings.items() if lines}
    tables = [
        table
        for table in page.find_tables(settings)
        if len(table.cells) > 2 and (len(table.rows) > 1 or ends_at(ends, table.bbox[1]))  # the rest of a row
    ]
    tables.sort(key=lambda table: -_box_area(table.bbox))
    separate: list[Any] = []
    for table in tables:
        if not any(_boxes_overlap(table.bbox, other.bbox) for other in separate):
            separate.append(table)
    return separate


def _read_ruled_items(
    table: Any, glyphs: list[Glyph], turned: list[Any], page: Any, number: int, ends: list[dict[str, Any]]
) -> list[Item] | None:
    """A ruled table, or the tables above, within and below frames that hold one without rules; None for no table.

    Args:
        turned: glyphs of the page that lie on their side or upside down.
        ends: see `find_open_ends`.
    """
    cells = _read_cells(table.cells, glyphs, turned, page, number)
    frames: list[tuple[RuledCell, Table]] = []
    for cell in sorted(cells, key=lambda cell: cell.box[1]):
        is_broad = cell.box[0] <= table.bbox[0] + _SNAP and cell.box[2] >= table.bbox[2] - _SNAP
        inside = _split_by_box(glyphs, cell.box)[0] if is_broad and len(cell.lines) > 1 else []
        framed = read_framed_table(inside, cell.box, number) if inside else None
        if framed is not None:
            frames.append((cell, framed))
    if not frames:
        fewest = 1 if ends_at(ends, table.bbox[1]) else 2  # the rest of a row may be one cell
        whole = _make_table(cells, table.bbox, number, ends, fewest)
        return None if whole is None else [whole]
    items: list[Item] = [framed for _, framed in frames]
    for part in split_at_frames(cells, [cell for cell, _ in frames]):
        box = _box_around([cell.box for cell in part]) if part else table.bbox
        whole = _make_table(part, box, number, ends, 1) if part else None
        items += [whole] if whole is not None else [line for cell in part for line in cell.lines]
    return items


def _read_cells(
    boxes: Sequence[Box], glyphs: list[Glyph], turned: list[Any], page: Any, number: int
) -> list[RuledCell]:
    by_cell = _glyphs_by_cell(glyphs, boxes)
    cells = []
    for index, box in enumerate(boxes):
        lines = lines_of(by_cell[index], number, keep_lines=True)
        chars = [] if lines else [char for char in turned if _is_within(char, box)]
        if chars:
            lines = _read_turned(page, chars, number)
        cells.append(RuledCell(box, lines, bool(chars)))
    return cells


def _make_table(
    cells: Sequence[RuledCell], box: Box, page: int, ends: list[dict[str, Any]], fewest: int
) -> Table | None:
    """The grid of a ruled table's cells; None where it is no table.

    Args:
        ends: see `find_open_ends`.
        fewest: rows, and columns in use, of a table.
    """
    lefts = snap_edges(cell.box[0] for cell in cells)
    tops = snap_edges(cell.box[1] for cell in cells)
    if len(lefts) < 2 or len(tops) < fewest:
        return None
    grid = build_grid(cells, lefts, tops)
    texts = grid.texts
    filled = sum(bool(text) for row in texts for text in row)
    used_columns = sum(any(row[column] for row in texts) for column in range(len(lefts)))
    used_rows = sum(map(any, texts))
    if used_columns < fewest or used_rows < fewest or filled < 0.3 * used_columns * used_rows:
        return None
    if max(len(text) for row in texts for text in row) > _LONGEST_CELL:
        return None  # a frame around a page
    columns = tuple(pairwise([*lefts, box[2]]))
    return Table(texts, grid.bold, page, *box, grid.rows, ends_at(ends, box[3]), grid.merged, columns)


def _glyphs_by_cell(glyphs: list[Glyph], cells: Sequence[Box]) -> dict[int, list[Glyph]]:
    by_cell: dict[int, list[Glyph]] = defaultdict(list)
    order = sorted(range(len(cells)), key=lambda number: _box_area(cells[number]))
    for glyph in glyphs:
        x = (glyph.x0 + glyph.x1) / 2
        for number in order:
            x0, top, x1, bottom = cells[number]
            if x0 <= x <= x1 and top <= glyph.middle <= bottom:
                by_cell[number].append(glyph)
                break
    return by_cell


def _split_by_box(glyphs: list[Glyph], box: Box) -> tuple[list[Glyph], list[Glyph]]:
    inside: list[Glyph] = []
    outside: list[Glyph] = []
    for glyph in glyphs:
        if box[0] - 1 <= (glyph.x0 + glyph.x1) / 2 <= box[2] + 1 and box[1] - 1 <= glyph.middle <= box[3] + 1:
            inside.append(glyph)
        else:
            outside.append(glyph)
    return inside, outside


def _box_area(box: Any) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _box_around(boxes: Sequence[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return (min(lefts), min(tops), max(rights), max(bottoms))


def _is_within(char: Any, box: Box) -> bool:
    x = float(char["x0"] + char["x1"]) / 2
    y = float(char["top"] + char["bottom"]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _boxes_overlap(box: Box, other: Box) -> bool:
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    return wide > 1 and high > 1


def _recognise_pages(data: bytes, path: Path, pages: list[_Page], scans: list[int], on_page: OnPage) -> None:
    """Put the text of scanned pages in their places, or say how it is had."""
    from peg_rag.readers import ocr

    pages_done = len(pages) - len(scans)
    try:
        for number, lines in ocr.recognise_pages(data, scans):
            page = pages[number - 1]
            page.items = lines
            if are_columns(lines):
                page.items = turn_scan(lines, page.width)
                page.width, page.height = page.height, page.width
            pages_done += 1
            on_page(pages_done, len(pages))
    except MissingExtra as error:
        numbers = ", ".join(map(str, scans[:10]))
        if len(scans) > 10:
            numbers += " …"
        message = f"{path}: pages without text, scanned perhaps (扫描件): {numbers}. OCR reads them: {error}"
        if len(scans) == len(pages):
            raise MissingExtra(message) from error
        warnings.warn(PartlyRead(message), stacklevel=2)


# -- the document -----------------------------------------------------------------------------------------------------


class _Document:
    """All pages' lines, and what they say about each other."""

    def __init__(self, pages: list[_Page]) -> None:
        running = _running_lines(pages, _body_size(item for page in pages for item in page.items))
        self._items = [item for page in pages for item in _order_items(page, running)]
        lines = [item for item in self._items if isinstance(item, Line)]
        self._body = _body_size(lines)
        self._bold_body = sum(len(line.text) for line in lines if line.bold) > 0.5 * sum(
            len(line.text) for line in lines
        )
        self._pitch = _usual_pitch(lines)
        self._levels: dict[tuple[float, bool, int], int] = {}
        self._bold_numbers: dict[tuple[float, int], bool] = {}  # by size and level of the number

    def blocks(self) -> Iterator[Block]:
        parts = list(self._with_continued_tables())
        marks = [isinstance(part, Line) and self._is_heading(parts, number) for number, part in enumerate(parts)]
        self._levels = self._heading_levels([part for part, mark in zip(parts, marks, strict=True) if mark])
        paragraph_lines: list[Line] = []
        heading: list[Line] = []
        caption: str | None = None
        for part, mark in zip(parts, marks, strict=True):
            if heading and not (mark and isinstance(part, Line) and self._goes_on(heading[-1], part)):
                yield self._make_heading(heading)
                heading = []
            if isinstance(part, Line) and not mark:
                if paragraph_lines and not self._continues_sentence(paragraph_lines, part):
                    yield _make_paragraph(paragraph_lines)
                    paragraph_lines = []
                paragraph_lines.append(part)
                continue
            caption = None
            if paragraph_lines:
                block = _make_paragraph(paragraph_lines)
                if len(paragraph_lines) <= 2 and _CAPTION.match(block.text) and width(block.text) <= 60:
                    caption = block.text
                yield block
                paragraph_lines = []
            if isinstance(part, Line):
                heading.append(part)
            else:
                yield from _table_blocks(part, (caption,) if caption else ())
        if heading:
            yield self._make_heading(heading)
        if paragraph_lines:
            yield _make_paragraph(paragraph_lines)

    def _is_heading(self, parts: Sequence[Item], number: int) -> bool:
        line = parts[number]
        assert isinstance(line, Line)
        text = line.text
        if width(text) > _LONGEST_HEADING or text.endswith(_HEADING_END) or not any(map(str.isalpha, text)):
            return False
        if _is_beside(parts, number):
            return False
        if line.size >= _LARGER * self._body:
            return True
        if line.bold and not self._bold_body and line.size >= 0.95 * self._body:
            return not text.endswith((":", "："))
        if line.size < 0.95 * self._body or _is_full(line, None):
            return False
        if has_own_text(text, _text_beside(parts, number - 1), _text_beside(parts, number + 1)):
            return True
        return is_plain_heading(text) and not self._is_list_item(parts, number)

    def _is_list_item(self, parts: Sequence[Item], number: int) -> bool:
        """Whether a numbered line in the body's type has a neighbour of its kind: then it is one of a list."""
        line = parts[number]
        assert isinstance(line, Line)
        level = number_level(line.text)
        around = [parts[other] for other in (number - 1, number + 1) if 0 <= other < len(parts)]
        return any(isinstance(other, Line) and number_level(other.text) == level for other in around)

    def _style_of(self, line: Line) -> tuple[float, bool, int]:
        level = number_level(line.text)
        size = round(line.size * 2) / 2
        if level is None:
            return (size, line.bold, -1)
        return (size, self._bold_numbers.get((size, level), line.bold), level)

    def _heading_levels(self, lines: Sequence[Any]) -> dict[tuple[float, bool, int], int]:
        """Levels by size, then weight, then number; headings without a number rank with the first of their type."""
        weights: dict[tuple[float, int], Counter[bool]] = defaultdict(Counter)
        for line in lines:
            size, bold, number = self._style_of(line)
            weights[size, number][bold] += 1
        # Latin titles may be set in a bolder font than Chinese ones; a number says that they are of one level.
        self._bold_numbers = {key: count.most_common(1)[0][0] for key, count in weights.items()}
        styles = sorted({self._style_of(line) for line in lines}, key=lambda style: (-style[0], not style[1], style[2]))
        levels: dict[tuple[float, bool, int], int] = {}
        level = 0
        last: tuple[float, bool, int] | None = None
        for style in styles:
            if last is None or style[:2] != last[:2] or last[2] != -1:
                level += 1
            levels[style] = level
            last = style
        return levels

    def _goes_on(self, last: Line, line: Line) -> bool:
        """Whether a heading's second line: of its type, right below, without a number of its own."""
        is_near = line.page == last.page and 0 < line.top - last.top < 2.0 * last.size
        same_type = abs(line.size - last.size) < 0.3 and line.bold == last.bold
        return is_near and same_type and number_level(line.text) is None and not _LIST_MARK.match(line.text)

    def _make_heading(self, lines: Sequence[Line]) -> Heading:
        text, places = _join_lines(lines)
        level = self._levels[self._style_of(lines[0])]
        if _CONTENTS.match(text):
            level = _DEEPEST_LEVEL  # the chapters after it are not its own
        return Heading(text, level, lines[0].page, places)

    def _continues_sentence(self, paragraph: Sequence[Line], line: Line) -> bool:
        """Whether a line goes on in the sentence of the paragraph's last line."""
        last = paragraph[-1]
        if abs(line.size - last.size) > 0.15 * last.size or _begins_item(last, line):
            return False
        if last.text.endswith(_SENTENCE_END) and _PART_NUMBER.match(line.text):
            return False
        if not _is_full(last, line):
            return False
        is_elsewhere = line.page != last.page or line.top < last.top  # in the next column or page
        if is_elsewhere:
            indented = line.x0 - line.left_edge > 1.2 * line.size
            return not last.text.endswith((*_SENTENCE_END, ".")) and not indented
        if line.top - last.top > 1.4 * max(self._pitch * last.size, last.bottom - last.top):
            return False
        hanging = len(paragraph) == 1 and _LIST_MARK.match(last.text) is not None
        return line.x0 - last.x0 < (4.0 if hanging else 0.8) * line.size

    def _with_continued_tables(self) -> Iterator[Item]:
        """The items, with tables that go on on the next page put together under one header."""
        table: Table | None = None
        for item in with_lone_rows(self._items):
            if isinstance(item, Table):
                if table is not None and is_continued(table, item):
                    table = append_table(table, item)
                    continue
                if table is not None:
                    yield table
                table = item
                continue
            if table is not None:
                if re.match(r"[(（]?续\s*表", item.text) and item.page > table.page:
                    continue
                yield table
                table = None
            yield item
        if table is not None:
            yield table


def _order_items(page: _Page, running: set[int]) -> Iterator[Item]:
    """The items of a page in reading order, without the running lines; of two pages on a sheet, one after the other."""
    sheets = split_sheet([item for item in page.items if id(item) not in running], page.width, page.height)
    for items in sheets:
        yield from in_reading_order(items, page.width if len(sheets) == 1 else 0.0)


def _body_size(items: Iterable[Item]) -> float:
    """The size that most of the text outside of tables is set in."""
    sizes: Counter[float] = Counter()
    for item in items:
        if isinstance(item, Line):
            sizes[item.size] += len(item.text)
    return sizes.most_common(1)[0][0] if sizes else 10.0


def _running_lines(pages: Sequence[_Page], body: float) -> set[int]:
    """Ids of the lines that run on several pages at one height, number the page, or stand small at its edge."""
    places: dict[tuple[str, int], set[int]] = defaultdict(set)
    margins: list[tuple[_Page, Line]] = []
    for page in pages:
        for line in _margin_lines(page):
            margins.append((page, line))
            for height in _height_steps(line):
                places[(_running_key(line, body), height)].add(page.number)
    texts = sum(any(isinstance(item, Line) for item in page.items) for page in pages)
    enough = 2 if texts <= 4 else 3
    running: set[int] = set()
    for page, line in margins:
        in_zone = line.bottom < 0.14 * page.height or line.top > 0.86 * page.height
        repeats = max(len(places[(_running_key(line, body), height)]) for height in _height_steps(line))
        at_edge = line.bottom < 0.08 * page.height or line.top > 0.92 * page.height
        small = at_edge and line.size <= 0.9 * body and not _FOOTNOTE.search(line.text)
        if (in_zone and (repeats >= enough or _PAGE_NUMBER.match(line.text))) or small:
            running.add(id(line))
    for page in pages:  # what stands alone on its page is the page's text
        if all(id(item) in running for item in page.items):
            running -= {id(item) for item in page.items}
    return running


def _margin_lines(page: _Page) -> list[Line]:
    """The lines at the first and last few heights of a page."""
    lines = [item for item in page.items if isinstance(item, Line)]
    heights = sorted({round(line.middle / 3) for line in lines})
    outer = set(heights[:_MOST_MARGIN_LINES] + heights[-_MOST_MARGIN_LINES:])
    return [line for line in lines if round(line.middle / 3) in outer]


def _height_steps(line: Line) -> tuple[int, int]:
    """Two steps of a scale of heights, so that lines less than a step apart share one."""
    step = round(line.middle / 4)
    return step, step + 1


def _running_key(line: Line, body: float) -> str:
    """The text less its numbers, which count pages; but for large type, in which chapters are counted."""
    text = "".join(line.text.split())
    return text if line.size >= _LARGER * body else re.sub(r"\d+", "#", text)


def _usual_pitch(lines: Sequence[Line]) -> float:
    """From one line to the next, in type sizes: the median within paragraphs, as far as lines tell."""
    pitches = []
    for upper, lower in pairwise(lines):
        same_type = upper.page == lower.page and abs(upper.size - lower.size) < 0.3
        if same_type and 0 < lower.top - upper.top < 3 * upper.size and _is_full(upper, lower):
            pitches.append((lower.top - upper.top) / upper.size)
    return median(pitches) if pitches else 1.6


def _is_full(line: Line, following: Line | None) -> bool:
    """Whether the next line's first word would not have fitted behind this line."""
    if _HYPHEN.search(line.text):
        return True
    first = following.text if following else "字"
    word = re.match(r"[\w@.,/:%-]+", first, re.ASCII)
    space = 1.0 if word is None or is_wide(first[0]) else 0.5 * len(word[0])
    return line.x1 + (space + 1.0) * line.size > line.right_edge


def _begins_item(last: Line, line: Line) -> bool:
    """Whether a line begins an item, rather than goes on with a part that is referred to, as in `第三章、第六章`."""
    is_reference = line.text.startswith("第") and last.text.endswith(_COMMAS)
    return _LIST_MARK.match(line.text) is not None and not is_reference


def _is_beside(parts: Sequence[Item], number: int) -> bool:
    """Whether another piece of text stands in the same line: a bold label, not a heading."""
    line = parts[number]
    around = [parts[other] for other in (number - 1, number + 1) if 0 <= other < len(parts)]
    return any(
        isinstance(piece, Line)
        and isinstance(line, Line)
        and piece.page == line.page
        and abs(piece.middle - line.middle) < 0.4 * line.size
        for piece in around
    )


def _text_beside(parts: Sequence[Item], number: int) -> str:
    if not 0 <= number < len(parts):
        return ""
    part = parts[number]
    return part.text if isinstance(part, Line) else " ".join(part.grid[0])


def _join_lines(lines: Sequence[Line]) -> tuple[str, tuple[Place, ...]]:
    """The text of a paragraph's lines as one, and the place of each."""
    text = ""
    places: list[Place] = []
    for line in lines:
        if text:
            if text.endswith("-") and text[-2:-1].islower() and line.text[:1].islower():
                text = text[:-1]
            elif not is_wide(text[-1]) and not is_wide(line.text[0]) and not _ADDRESS.search(text[-80:]):
                text += " "
        places.append(Place(len(text), line.page, line.box))
        text += line.text
    return text, tuple(places)


def _make_paragraph(lines: Sequence[Line]) -> Paragraph:
    text, places = _join_lines(lines)
    return Paragraph(text, lines[0].page, places)


def _table_blocks(table: Table, captions: tuple[str, ...]) -> Iterator[Row]:
    pages = pages_of(table)
    for row in table_rows(table.grid, bold=table.bold, merged=table.merged):
        place = Place(0, pages[row.index], table.rows[row.index])
        yield Row(row.cells, row.index + 1, (*captions, *row.captions), pages[row.index], places=(place,))
