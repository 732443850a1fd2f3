"""HTML: the headings, paragraphs and tables of a page's main content, without its navigation, advertising and footer.

Where the main content begins and ends is trafilatura's judgement, but it leaves out titles, commands and boxes in
between, which are kept here unless they are links. The structure is taken from the page itself, for an extractor's text
has lost which cells were merged and which heading is of what level. Where the extractor keeps next to nothing, as of a
page that is all table, everything outside of navigation stays.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peg_rag.errors import DataError
from peg_rag.extras import require
from peg_rag.readers.blocks import Block, Heading, Paragraph, Row
from peg_rag.readers.files import decode, run_parser
from peg_rag.readers.names import is_name
from peg_rag.readers.normalize import clean, clean_cell, clean_line, flatten_cell, is_wide, replace_characters
from peg_rag.readers.numbering import format_number, has_own_text, is_plain_heading, number_level
from peg_rag.readers.tables import table_rows, to_blocks, with_inner_rows

_SKIPPED = {
    "script", "style", "noscript", "template", "svg", "math", "iframe", "object", "head", "button", "select", "input",
    "textarea", "canvas", "audio", "video", "map", "dialog", "datalist", "rp", "rt",
}  # fmt: skip
_BOILERPLATE_TAGS = {"nav", "footer", "aside", "menu"}
_BOILERPLATE_ROLES = {"navigation", "banner", "contentinfo", "search", "complementary", "menu", "menubar", "dialog"}
_BOILERPLATE_NAMES = re.compile(
    r"(^|[-_ ])(nav|navbar|navigation|menu|breadcrumbs?|sidebar|footer|cookies?|pagination|share|social|advert|ads?|"
    r"skip-link|toc|catlinks|noprint|mw-editsection|copyright|related|recommend)([-_ ]|$)",
    re.IGNORECASE,
)
_INLINE = {
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "del", "dfn", "em", "font", "i", "img", "ins",
    "kbd", "label", "mark", "o:p", "q", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup",
    "time", "tt", "u", "var", "wbr",
}  # fmt: skip
_TABLE_LINES = "./tr | ./thead/tr | ./tbody/tr | ./tfoot/tr"
_WORD_TITLE = "MsoTitle"  # a class in pages that Word saved
_STRUCK = ("s", "del", "strike")
_FIRST_NUMBERED_LEVEL = 2  # of headings that no tag marks: below the page's title
_LEVELS = {f"h{level}": level for level in range(1, 7)}
_LONGEST_SPAN = 1000  # cells that a rowspan or colspan may claim
_MOST_CELLS = 1_000_000
_BOX_NAMES = re.compile(r"(^|[-_ ])sidebar([-_ ]|$)", re.IGNORECASE)  # DocBook calls a box in the text a sidebar
_HAS_PARAGRAPH = "peg-paragraph"  # an attribute set during the walk
_SHORTEST_PARAGRAPH = 20  # characters
_MOST_LINKED = 0.5  # of a block's text, above which it is navigation
_CONTENTS_LINKED = 0.7  # the same for a table of contents
_FEWEST_LINKS = 2  # in one
_FEWEST_KEPT = 0.2  # of the text, below which the extractor's choice is not believed
_ITEM_NUMBER = re.compile(r"^(\d+|[A-Za-z]{1,5})\. ")  # was put before an item of a numbered list here
_BARE_NUMBER = re.compile(r"\s*(\d+|[A-Za-z]{1,5})\.\s*")
_NUMBER_FORMS = {"a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}  # by an `ol`'s type
_LONGEST_DEFINITION = 300  # characters of a definition that makes a row with its term
_TOO_DEEP = "depth"  # in libxml2's message
_BREAK = "\u2028"  # in a paragraph's text, until it is put together
_BLANKS = re.compile(r"[ \t\r\f\v]+")


def read_html(data: bytes, path: Path, _: str | None) -> Iterator[Block]:
    text = decode(data, str(path))
    yield from run_parser(path, lambda: page_blocks(text, str(path)))


def page_blocks(text: str, name: str) -> list[Block]:
    """The main content of a web page; `name` stands in errors."""
    tree = _parse_html(text, name)
    if tree is None:
        return []
    walk = _Walk(boilerplate=False)
    blocks = [*walk.blocks(tree)]
    main_blocks = _keep_main_content(blocks, walk.linked_shares, _main_text(text))
    if _text_length(main_blocks) < _FEWEST_KEPT * _text_length(blocks):
        main_blocks = blocks
    title = clean_line(" ".join(tree.xpath("//head/title//text()")))
    return _add_title(_mark_numbered_headings(main_blocks), title)


def fragment_blocks(text: str, name: str) -> list[Block]:
    """All of a page or a piece of one, such as the body of an e-mail or a chapter of a book."""
    tree = _parse_html(text, name)
    return [] if tree is None else _mark_numbered_headings([*html_blocks(tree, boilerplate=True)])


def is_contents_page(text: str, name: str) -> bool:
    """Whether a page is a table of contents: nearly all its text is in links."""
    tree = _parse_html(text, name)
    if tree is None:
        return False
    body = "".join("".join(tree.xpath("//body//text()")).split())
    links = ["".join("".join(link.itertext()).split()) for link in tree.xpath("//body//a[@href]")]
    return sum(map(bool, links)) >= _FEWEST_LINKS and sum(map(len, links)) > _CONTENTS_LINKED * len(body)


def html_blocks(tree: Any, *, boilerplate: bool) -> Iterator[Block]:
    """The blocks of a parsed page, in their order. `boilerplate`: whether navigation and footers are kept."""
    yield from _Walk(boilerplate).blocks(tree)


def _table_blocks(table: Any) -> Iterator[Block]:
    """The rows of a table element, each followed by those of the tables in its cells, under the row's label."""
    caption = clean_line(" ".join(table.xpath("./caption//text()")))
    lines = table.xpath(_TABLE_LINES)
    cells, header_rows = _read_cells(lines)
    grid = [[cell.text for cell in row] for row in cells]
    body = table_rows(
        grid,
        header_rows=header_rows or None,
        bold=[[cell.is_name for cell in row] for row in cells],
        merged=[[cell.is_merged for cell in row] for row in cells],
    )
    inner = {
        number: [row for within in line.xpath(".//table") for row in _inner_rows(within)]
        for number, line in enumerate(lines)
    }
    blocks = ((row.index, block) for row, block in zip(body, to_blocks(body), strict=True))
    for block in with_inner_rows(blocks, grid, inner):
        yield replace(block, captions=(caption, *block.captions)) if caption and isinstance(block, Row) else block


def _inner_rows(table: Any) -> list[Row]:
    return [block for block in _table_blocks(table) if isinstance(block, Row)]


def _read_cells(lines: Sequence[Any]) -> tuple[list[list["_Cell"]], int]:
    """The grid of a table's lines, and how many of the first are its header."""
    grid: dict[tuple[int, int], _Cell] = {}
    header_rows = 0
    only_names = True
    for number, line in enumerate(lines):
        column = 0
        cells = line.xpath("./td | ./th")
        for cell in cells:
            while (number, column) in grid:
                column += 1
            text = _cell_text(cell)
            height = min(_cell_span(cell, "rowspan"), len(lines) - number)
            for right in range(_cell_span(cell, "colspan")):
                for down in range(height):
                    grid.setdefault((number + down, column + right), _Cell(text, cell.tag == "th", right > 0))
            if len(grid) > _MOST_CELLS:
                raise ValueError(f"a table of more than {_MOST_CELLS:,} cells")
        only_names = only_names and (
            line.getparent().tag == "thead" or (bool(cells) and all(c.tag == "th" for c in cells))
        )
        header_rows += only_names
    columns = 1 + max((column for _, column in grid), default=-1)
    return [[grid.get((row, column), _NO_CELL) for column in range(columns)] for row in range(len(lines))], header_rows


@dataclass(frozen=True, slots=True)
class _Cell:
    """A position of a table's grid; `is_merged`: one with the cell at its left."""

    text: str
    is_name: bool = False
    is_merged: bool = False


_NO_CELL = _Cell("")


class _Walk:
    """A walk over a page's elements in their order, without recursion: pages may be nested thousands deep."""

    def __init__(self, boilerplate: bool) -> None:
        self.linked_shares: list[float] = []  # of each block's text, what is in links
        self._boilerplate = boilerplate
        self._buffer: list[str] = []
        self._links = 0  # elements around that are links
        self._linked = 0  # characters of the buffer in links
        self._preformatted = 0
        self._numbers: list[int | None] = []  # of the lists around: the next item's number, None where it has none

    def blocks(self, tree: Any) -> Iterator[Block]:
        for block, linked in self._blocks_with_links(tree):
            self.linked_shares.append(linked / max(len("".join(block.text.split())), 1))
            yield block

    def _blocks_with_links(self, tree: Any) -> Iterator[tuple[Block, int]]:
        """Each block and how many of its characters, without blanks, are in links."""
        etree = require("lxml.etree", "ingest")
        walk = etree.iterwalk(tree, events=("start", "end", "comment", "pi"))
        for event, element in walk:
            tag = element.tag if isinstance(element.tag, str) else ""
            if event == "start":
                if self._is_skipped(element, tag):
                    walk.skip_subtree()
                    element.set("peg-skip", "1")
                    continue
                yield from self._start_element(element, tag, walk)
            else:
                if event == "end":
                    yield from self._end_element(element, tag)
                    _mark_parent(element, tag)
                self._append_text(element.tail or "")
        yield from self._flush_text()

    def _append_text(self, text: str) -> None:
        self._buffer.append(text)
        if self._links:
            self._linked += len("".join(text.split()))

    def _is_skipped(self, element: Any, tag: str) -> bool:
        if tag in _SKIPPED or element.get("hidden") is not None or element.get("aria-hidden") == "true":
            return True
        if self._boilerplate or tag in ("html", "body", "main", "article", "table", "tr", "td"):
            return False
        names = f"{element.get('class') or ''} {element.get('id') or ''}"
        if len(names) < 300 and _BOX_NAMES.search(names) and _stands_in_text(element):
            names = _BOX_NAMES.sub(" ", names)
        return (
            tag in _BOILERPLATE_TAGS
            or element.get("role") in _BOILERPLATE_ROLES
            or bool(len(names) < 300 and _BOILERPLATE_NAMES.search(names))
        )

    def _start_element(self, element: Any, tag: str, walk: Any) -> Iterator[tuple[Block, int]]:
        if tag == "br":
            self._buffer.append(_BREAK)
        elif tag == "table" and _is_data_table(element):
            yield from self._flush_text()
            for block in _table_blocks(element):
                yield block, 0
            walk.skip_subtree()
            element.set("peg-skip", "1")
            return
        elif tag == "dl" and (rows := _read_terms(element)):
            yield from self._flush_text()
            for row in rows:
                yield row, 0
            walk.skip_subtree()
            element.set("peg-skip", "1")
            return
        elif tag not in _INLINE:
            yield from self._flush_text()
        if tag == "pre":
            self._preformatted += 1
        if tag in ("ul", "ol"):
            self._numbers.append(_read_number(element, "start", 1) if tag == "ol" else None)
        if tag == "li" and self._numbers and self._numbers[-1] is not None:
            number = _read_number(element, "value", self._numbers[-1])
            form = _NUMBER_FORMS.get(element.getparent().get("type"), "decimal")
            self._buffer.append(f"{format_number(number, form)}. ")
            self._numbers[-1] = number + 1
        self._links += tag == "a" and element.get("href") is not None
        self._append_text(element.text or "")

    def _end_element(self, element: Any, tag: str) -> Iterator[tuple[Block, int]]:
        if element.get("peg-skip"):
            return
        self._links -= tag == "a" and element.get("href") is not None
        level = 1 if element.get("class") == _WORD_TITLE else _LEVELS.get(tag)
        if level is not None:
            text, linked = self._take_text()
            title = clean_line(text)
            if title:
                yield Heading(title, level), linked
        elif tag in _STRUCK:
            self._buffer.append(" ")  # what is struck out is no part of the word behind it
        elif tag not in _INLINE and tag != "br":
            yield from self._flush_text()
        if tag == "li":
            self._take_text()  # the number of an empty item
        if tag == "pre":
            self._preformatted -= 1
        if tag in ("ul", "ol") and self._numbers:
            self._numbers.pop()

    def _flush_text(self) -> Iterator[tuple[Block, int]]:
        if self._numbers and _BARE_NUMBER.fullmatch("".join(self._buffer)):
            return  # an item's number stays with its first paragraph
        text, linked = self._take_text()
        if text:
            yield Paragraph(text), linked

    def _take_text(self) -> tuple[str, int]:
        """The text that waits, and how many of its characters are in links."""
        text = "".join(self._buffer)
        linked = self._linked
        self._buffer.clear()
        self._linked = 0
        return (clean(text) if self._preformatted else _collapse_spaces(text)), linked


def _read_number(element: Any, name: str, default: int) -> int:
    value = (element.get(name) or "").strip()
    return int(value) if re.fullmatch(r"-?\d{1,9}", value) else default


def _read_terms(element: Any) -> list[Row]:
    """A list of terms as rows of a term and its definition; none where it holds more than that, or is navigation."""
    length = len("".join(element.itertext()))
    if len("".join(element.xpath(".//a[@href]//text()"))) > _MOST_LINKED * length:
        return []
    items = element.xpath("./dt | ./dd | ./div/dt | ./div/dd")
    pairs: list[tuple[list[str], list[str]]] = []
    for item in items:
        text = flatten_cell(_cell_text(item))
        if item.tag == "dt":
            if not is_name(text):
                return []
            if not pairs or pairs[-1][1]:
                pairs.append(([], []))
            pairs[-1][0].append(text)
        elif not pairs or len(text) > _LONGEST_DEFINITION or item.xpath("boolean(.//ul | .//ol | .//table | .//pre)"):
            return []
        else:
            pairs[-1][1].append(text)
    return [Row((("、".join(terms), flatten_cell("\n".join(texts))),)) for terms, texts in pairs]


def _stands_in_text(element: Any) -> bool:
    """Whether an element follows a paragraph of its parent, as a box in a text does and a column of a page does not."""
    parent = element.getparent()
    return parent is not None and parent.get(_HAS_PARAGRAPH) is not None


def _mark_parent(element: Any, tag: str) -> None:
    """Note on the parent of a paragraph that it has one; each element is looked at once, however many boxes follow."""
    parent = element.getparent()
    if tag in ("p", "div") and parent is not None and parent.get(_HAS_PARAGRAPH) is None and _is_paragraph(element):
        parent.set(_HAS_PARAGRAPH, "1")


def _is_paragraph(element: Any) -> bool:
    """Whether an element holds text of some length and no other block."""
    if any(isinstance(child.tag, str) and child.tag not in _INLINE for child in element):
        return False
    return len("".join(element.itertext()).strip()) >= _SHORTEST_PARAGRAPH


def _collapse_spaces(text: str) -> str:
    """Inline text as a browser shows it, but for a line break of the source between Chinese characters: it goes."""
    lines = (_flowed_line(line) for line in text.split(_BREAK))
    return "\n".join(filter(None, lines))


def _flowed_line(text: str) -> str:
    flowed = ""
    for line in (_BLANKS.sub(" ", line).strip() for line in replace_characters(text).split("\n")):
        if flowed and line:
            flowed += "" if is_wide(flowed[-1]) and is_wide(line[0]) else " "
        flowed += line
    return flowed


def _cell_text(cell: Any) -> str:
    """All text of a cell, a line for each block within it."""
    return clean_cell(_collapse_spaces("".join(_in_order(cell))))


def _in_order(cell: Any) -> Iterator[str]:
    etree = require("lxml.etree", "ingest")
    walk = etree.iterwalk(cell, events=("start", "end", "comment", "pi"))
    for event, element in walk:
        if event == "start":
            if element.tag in _SKIPPED or element.tag == "table":  # whose rows are read apart
                walk.skip_subtree()
                continue
            if element.tag not in _INLINE and element is not cell:
                yield _BREAK
            yield element.text or ""
        elif element is not cell:
            if element.tag not in _INLINE and event == "end":
                yield _BREAK
            yield element.tail or ""


def _cell_span(cell: Any, name: str) -> int:
    try:
        return min(max(int(cell.get(name) or 1), 1), _LONGEST_SPAN)
    except ValueError:
        return 1


def _is_data_table(table: Any) -> bool:
    """Whether a table holds data, rather than the layout of a page: no headings within, several cells."""
    if table.get("role") == "presentation" or table.xpath("boolean(.//h1 | .//h2 | .//h3)"):
        return False
    if table.xpath("boolean(.//table)"):
        return _holds_tables_of_data(table)
    return int(table.xpath("count(.//td | .//th)")) > 1


def _holds_tables_of_data(table: Any) -> bool:
    """Whether tables stand in the cells of a table of data: it has a header, and a label in each row that holds one."""
    if table.xpath("boolean(.//table//table | .//table[@role='presentation'])"):
        return False
    lines = [line.xpath("./td | ./th") for line in table.xpath(_TABLE_LINES)]
    lines = [cells for cells in lines if cells]
    if len(lines) < 2 or min(map(len, lines)) < 2 or len({sum(map(_columns_of, cells)) for cells in lines}) > 1:
        return False
    names = [cell for number, cells in enumerate(lines) for cell in (cells if number == 0 else cells[:1])]
    return all(_is_label(cell) for cell in names)


def _columns_of(cell: Any) -> int:
    return _cell_span(cell, "colspan")


def _is_label(cell: Any) -> bool:
    """Whether a cell of a table holds a name and nothing else, such as links or another table."""
    text = _cell_text(cell)
    return bool(text) and is_name(text) and not cell.xpath("boolean(.//a | .//ul | .//ol | .//table | .//img)")


def _parse_html(text: str, name: str) -> Any:
    html = require("lxml.html", "ingest")
    if not text.strip():
        return None
    parser = html.HTMLParser(huge_tree=True, encoding="utf-8")
    tree = html.document_fromstring(text.encode("utf-8"), parser=parser, ensure_head_body=True)
    if any(_TOO_DEEP in entry.message for entry in parser.error_log):  # what lies deeper is not in the tree
        raise DataError(f"{name} is nested too deeply to be read; save it as text")
    return tree


def _main_text(text: str) -> str:
    """The main content as trafilatura has it, without blanks; empty where it finds none."""
    trafilatura = require("trafilatura", "ingest")
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it remarks on pages without main content
    extracted = trafilatura.extract(
        text, favor_recall=True, include_tables=True, include_comments=False, deduplicate=False
    )
    return "".join(replace_characters(extracted or "").split())


def _keep_main_content(blocks: list[Block], linked_shares: list[float], main: str) -> list[Block]:
    """The extractor's choice, and what it left out in between: titles, commands and boxes, but no lists of links."""
    kept = [number for number, block in enumerate(blocks) if _is_main_content(block, main)]
    if not kept:
        return []
    first = kept[0]
    while first and isinstance(blocks[first - 1], Heading):
        first -= 1
    chosen = set(kept)
    return [
        blocks[number]
        for number in range(first, kept[-1] + 1)
        if number in chosen or linked_shares[number] < _MOST_LINKED
    ]


def _is_main_content(block: Block, main: str) -> bool:
    if isinstance(block, Row):
        texts = ["".join(text.split()) for cell in block.cells for text in cell if len(text) > 1]
        # A row of single characters says too little to be looked for.
        return not texts or any(text in main for text in texts)
    text = "".join(_ITEM_NUMBER.sub("", block.text).split())
    return text[:40] in main and text[-40:] in main


def _mark_numbered_headings(blocks: list[Block]) -> list[Block]:
    """On a page that marks no headings, as Word saves it, those that their numbers make."""
    if any(isinstance(block, Heading) and block.level > 1 for block in blocks):
        return blocks
    texts = ["", *(block.text for block in blocks), ""]
    marked: list[Block] = []
    for before, block, after in zip(texts, blocks, texts[2:], strict=False):
        is_heading = isinstance(block, Paragraph) and (
            is_plain_heading(block.text) or has_own_text(block.text, before, after)
        )
        level = (number_level(block.text) or 0) + _FIRST_NUMBERED_LEVEL
        marked.append(Heading(clean_line(block.text), level) if is_heading else block)
    return marked


def _text_length(blocks: list[Block]) -> int:
    return sum(len(block.text) for block in blocks if not isinstance(block, Heading))


def _add_title(blocks: list[Block], title: str) -> list[Block]:
    """What stands under no heading stands under the page's title."""
    if title and blocks and not isinstance(blocks[0], Heading):
        return [Heading(title, 1), *blocks]
    return blocks
