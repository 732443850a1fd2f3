"""Word files: headings by style, outline level, number or type, automatic numbers as shown, tables with merged cells.

python-docx opens the file and knows its styles and tables; the body's text is walked here, because text boxes, content
controls and automatic numbers (第一条, 1.1) are not among what it calls a paragraph's text.
"""

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from peg_rag.extras import require
from peg_rag.readers.blocks import Block, Heading, Paragraph, Row, describe_comment
from peg_rag.readers.diagrams import read_diagrams
from peg_rag.readers.files import check_zip, run_parser
from peg_rag.readers.normalize import clean, clean_cell, clean_line, width
from peg_rag.readers.numbering import format_number, has_own_text, is_plain_heading, number_level
from peg_rag.readers.symbols import read_symbol
from peg_rag.readers.tables import Grid, table_rows, to_blocks, with_inner_rows

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_HEADING_STYLE = re.compile(r"(?:heading|标题)\s*([1-9])$", re.IGNORECASE)
_LEFT_OUT = {f"{_W}del", f"{_W}moveFrom", f"{_MC}Fallback", f"{_W}instrText", f"{_W}delText", f"{_W}rt"}
_USUAL_SIZE = 10.0  # points, where a document says none
_LONGEST_HEADING = 60  # half-widths
_FIRST_NUMBERED_LEVEL = 3  # of headings that no style marks: below those set in larger type
_UNNUMBERED_LEVEL = 20
_SENTENCE_END = tuple("。！？；;，,、….!?")


def read_docx(data: bytes, path: Path, _: str | None) -> Iterator[Block]:
    check_zip(data, path)
    docx = require("docx", "ingest")
    yield from run_parser(path, lambda: list(_Reader(docx.Document(io.BytesIO(data))).blocks()))


@dataclass(frozen=True, slots=True)
class _Text:
    """A paragraph as it reads, before it is known whether it is a heading."""

    text: str
    level: int | None  # a heading's by its style, or None
    bold: bool
    size: float | None  # points
    notes: tuple[str, ...] = ()  # footnotes and endnotes that it refers to
    comments: tuple[str, ...] = ()  # that end in it


@dataclass(frozen=True, slots=True)
class _Cell:
    """A table's cell: its text, whether all of it is bold, the rows of tables within, its notes and comments."""

    text: str
    bold: bool
    rows: list[Row]
    notes: list[str]
    comments: list[str]


class _Reader:
    def __init__(self, document: Any) -> None:
        self._document = document
        self._numbers = _Numbers(document)
        self._notes = _read_notes(document)
        self._comments = _read_comments(document)
        self._commented: dict[str | None, list[str]] = {}  # the words that comments are on, by their ids
        self._styles = {style.style_id: style for style in document.styles if style.style_id}
        self._default_style = next((style for style in self._styles.values() if _is_default(style.element)), None)
        self._default_size = _read_default_size(document)
        self._carried = ""  # the text of a paragraph whose end was deleted: it goes on in the next one

    def blocks(self) -> Iterator[Block]:
        parts = list(self._read_children(self._document.element.body))
        sizes: Counter[float | None] = Counter()
        for part in parts:
            if isinstance(part, _Text):
                sizes[part.size] += len(part.text)
        body_size = sizes.most_common(1)[0][0] if sizes else None
        comments: list[str] = []
        for number, part in enumerate(parts):
            if not isinstance(part, _Text):
                yield part
                continue
            level = part.level
            if level is None:
                level = self._guess_level(part, body_size)
            if level is None and has_own_text(part.text, *(_text_beside(parts, number + step) for step in (-1, 1))):
                level = _FIRST_NUMBERED_LEVEL + (number_level(part.text) or 0)
            if level is None and part.text:
                yield Paragraph(part.text)
            elif level is not None:
                yield from map(_make_comment, comments)  # at the end of their section
                comments = []
                yield Heading(clean_line(part.text), level)
            for note in part.notes:
                yield Paragraph(note)
            comments += part.comments
        comments += [_describe_comment(comment, "") for comment in self._comments.values()]  # on no text
        yield from map(_make_comment, comments)

    def _read_children(self, container: Any) -> Iterator[_Text | Block]:
        for element in container:
            if element.tag == f"{_W}p":
                yield from self._read_paragraph(element)
            elif element.tag == f"{_W}tbl":
                yield from self._read_table(element)
            elif element.tag == f"{_W}sdt" and not _is_contents(element) and not _is_placeholder(element):
                for content in element.iterfind(f"{_W}sdtContent"):
                    yield from self._read_children(content)
            elif element.tag in (f"{_W}ins", f"{_W}moveTo", f"{_W}customXml", f"{_W}smartTag"):
                yield from self._read_children(element)
        if self._carried:  # nothing follows that it could go on in
            yield _Text(self._carried, None, False, None)
            self._carried = ""

    def _read_paragraph(self, element: Any) -> Iterator[_Text | Block]:
        text = clean(self._carried + _text_of(element))
        self._carried = ""
        style = self._style_of(element)
        if element.find(f"{_W}pPr/{_W}rPr/{_W}del") is not None:
            self._carried = text
        elif text and not (style is not None and _is_contents_style(style)):
            number = self._numbers.next(element, style)
            size, bold = self._type_of(element, style)
            notes = self._notes_of(element)
            comments = tuple(self._comments_of(element))
            yield _Text(f"{number}{text}", self._level_of(element, style), bold, size, notes, comments)
        yield from map(Paragraph, read_diagrams(element, self._document.part))
        for box in element.iter(f"{_W}txbxContent"):
            if not any(parent.tag == f"{_MC}Fallback" for parent in box.iterancestors()):
                yield from self._read_children(box)

    def _notes_of(self, element: Any) -> tuple[str, ...]:
        references = element.xpath(".//w:footnoteReference | .//w:endnoteReference")
        notes = (self._notes.get((_local_name(reference), reference.get(f"{_W}id"))) for reference in references)
        return tuple(filter(None, notes))

    def _comments_of(self, element: Any) -> Iterator[str]:
        """The comments that end in a paragraph, each with the words that it is on, here or from a paragraph above."""
        if not self._comments:
            return
        for part in element.iter(f"{_W}commentRangeStart", f"{_W}commentRangeEnd", f"{_W}r"):
            if part.tag == f"{_W}commentRangeStart":
                self._commented[part.get(f"{_W}id")] = []
                continue
            if part.tag == f"{_W}commentRangeEnd":
                words = self._commented.pop(part.get(f"{_W}id"), [])
                comment = self._comments.pop(part.get(f"{_W}id"), None)
                if comment is not None:
                    yield _describe_comment(comment, clean_line("".join(words)))
                continue
            if not any(parent.tag in _LEFT_OUT for parent in part.iterancestors()):
                for words in self._commented.values():
                    words.append(_text_of([part]))
            for reference in part.iterfind(f"{_W}commentReference"):
                comment = self._comments.pop(reference.get(f"{_W}id"), None)
                if comment is not None:  # on no words in particular
                    yield _describe_comment(comment, "")

    def _style_of(self, element: Any) -> Any:
        style_id = element.find(f"{_W}pPr/{_W}pStyle")
        if style_id is None:
            return self._default_style
        return self._styles.get(style_id.get(f"{_W}val"), self._default_style)

    def _level_of(self, element: Any, style: Any) -> int | None:
        """A heading's level by its own outline level or its style's, or by the names that Word and WPS give."""
        outline_level = element.find(f"{_W}pPr/{_W}outlineLvl")
        if outline_level is not None:
            return _outline_level(outline_level)
        steps = 0
        while style is not None and steps < 20:
            name = (style.name or "").strip()
            match = _HEADING_STYLE.match(name)
            if match:
                return int(match[1])
            if name.lower() in ("title", "标题"):
                return 0
            outline = style.element.find(f"{_W}pPr/{_W}outlineLvl")
            if outline is not None:
                return _outline_level(outline)
            style = style.base_style
            steps += 1
        return None

    def _type_of(self, element: Any, style: Any) -> tuple[float | None, bool]:
        """The size most of the paragraph is set in, and whether all of it is bold."""
        size, bold = _style_type(style)
        size = size or self._default_size
        sizes: Counter[float | None] = Counter()
        all_bold = True
        for run in element.iter(f"{_W}r"):
            text = "".join(t.text or "" for t in run.iterfind(f"{_W}t"))
            if not text.strip():
                continue
            run_size = run.find(f"{_W}rPr/{_W}sz")
            run_bold = run.find(f"{_W}rPr/{_W}b")
            sizes[size if run_size is None else _half_points(run_size)] += len(text)
            all_bold = all_bold and (bold if run_bold is None else _is_on(run_bold))
        if not sizes:
            return size, False
        return sizes.most_common(1)[0][0], all_bold

    def _guess_level(self, part: _Text, body_size: float | None) -> int | None:
        """Headings that were only set in larger or bold type, or are numbered like chapters."""
        text = part.text.strip()
        if "\n" in text or width(text) > _LONGEST_HEADING or text.endswith(_SENTENCE_END):
            return None
        if part.size and body_size and part.size >= 1.15 * body_size:
            return 1 if number_level(text) is None else 2
        level = number_level(text)
        if part.bold and not text.endswith(("：", ":")):
            return _UNNUMBERED_LEVEL if level is None else _FIRST_NUMBERED_LEVEL + level
        if is_plain_heading(text):
            return _FIRST_NUMBERED_LEVEL + (level or 0)
        return None

    def _read_table(self, element: Any) -> Iterator[_Text | Block]:
        table = require("docx.table", "ingest").Table(element, self._document)
        grid: Grid = []
        bold: list[list[bool]] = []
        merged: list[list[bool]] = []
        header_rows = 0
        cells_read: dict[Any, _Cell] = {}
        inner_rows: dict[int, list[Row]] = {}  # of tables within cells, by the row of the grid
        notes: list[str] = []
        comments: list[str] = []
        for row in table.rows:
            if row._tr.find(f"{_W}trPr/{_W}del") is not None:
                continue
            cells = row.cells
            for cell in cells:
                if cell._tc not in cells_read:
                    content = cells_read[cell._tc] = self._read_cell(cell._tc)
                    inner_rows.setdefault(len(grid), []).extend(content.rows)
                    notes += content.notes
                    comments += content.comments
            before = [None] * row.grid_cols_before
            after = [None] * row.grid_cols_after
            elements = [*before, *(cell._tc for cell in cells), *after]
            if header_rows == len(grid) and row._tr.find(f"{_W}trPr/{_W}tblHeader") is not None:
                header_rows += 1
            grid.append([cells_read[element].text if element is not None else "" for element in elements])
            bold.append([element is not None and cells_read[element].bold for element in elements])
            merged.append([False, *(before is not None and before is after for before, after in pairwise(elements))])
        columns = max(map(len, grid), default=0)
        grid = [row + [""] * (columns - len(row)) for row in grid]
        bold = [row + [False] * (columns - len(row)) for row in bold]
        merged = [row + [False] * (columns - len(row)) for row in merged]
        blocks: Iterator[tuple[int, Block]]
        if columns == 1:  # a box around text
            blocks = ((number, Paragraph(row[0])) for number, row in enumerate(grid) if row[0])
        else:
            body = table_rows(grid, header_rows=header_rows or None, bold=bold, merged=merged)
            blocks = ((row.index, block) for row, block in zip(body, to_blocks(body), strict=True))
        yield from with_inner_rows(blocks, grid, inner_rows)
        yield from map(Paragraph, notes)
        if comments:
            yield _Text("", None, False, None, comments=tuple(comments))

    def _read_cell(self, element: Any) -> _Cell:
        parts = list(self._read_children(element))
        texts = [part for part in parts if not isinstance(part, Row)]
        bold = bool(texts) and all(isinstance(part, _Text) and part.bold for part in texts)
        notes = [note for part in texts if isinstance(part, _Text) for note in part.notes]
        text = clean_cell("\n".join(part.text for part in texts))
        comments = [comment for part in texts if isinstance(part, _Text) for comment in part.comments]
        return _Cell(text, bold, [part for part in parts if isinstance(part, Row)], notes, comments)


def _text_beside(parts: Sequence[_Text | Block], number: int) -> str:
    return parts[number].text if 0 <= number < len(parts) else ""


def _read_notes(document: Any) -> dict[tuple[str, str | None], str]:
    """The texts of footnotes and endnotes, by the kind of their references and their ids."""
    notes: dict[tuple[str, str | None], str] = {}
    for relation in document.part.rels.values():
        kind = relation.reltype.rsplit("/", 1)[-1]
        if kind not in ("footnotes", "endnotes") or relation.is_external:
            continue
        root = require("docx.oxml", "ingest").parse_xml(relation.target_part.blob)
        for note in root:
            if note.get(f"{_W}type") is None:  # the others are the rules above the notes
                text = clean_line("\n".join(_text_of(paragraph) for paragraph in note.iterfind(f"{_W}p")))
                notes[(f"{kind.removesuffix('s')}Reference", note.get(f"{_W}id"))] = text
    return notes


def _read_comments(document: Any) -> dict[str | None, tuple[str, str]]:
    """The authors and texts of comments by their ids."""
    comments: dict[str | None, tuple[str, str]] = {}
    for relation in document.part.rels.values():
        if relation.reltype.rsplit("/", 1)[-1] == "comments" and not relation.is_external:
            root = require("docx.oxml", "ingest").parse_xml(relation.target_part.blob)
            for comment in root.iterfind(f"{_W}comment"):
                text = clean_line("\n".join(_text_of(paragraph) for paragraph in comment.iterfind(f"{_W}p")))
                if text:
                    comments[comment.get(f"{_W}id")] = ((comment.get(f"{_W}author") or "").strip(), text)
    return comments


def _describe_comment(comment: tuple[str, str], words: str) -> str:
    author, text = comment
    return describe_comment(author, text, f"“{words}”" if words else "")


def _make_comment(text: str) -> Row:
    """A comment as a passage of its own."""
    return Row((("", text),))


def _local_name(element: Any) -> str:
    return str(element.tag).rsplit("}", 1)[-1]


@dataclass
class _Level:
    start: int
    form: str
    text: str


@dataclass
class _Numbers:
    """The automatic numbers of a document's paragraphs, counted as Word counts them."""

    document: Any
    _levels: dict[tuple[str, int], _Level] = field(default_factory=dict)
    _abstract: dict[str, str] = field(default_factory=dict)
    _counts: dict[str, dict[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        part = next((r.target_part for r in self.document.part.rels.values() if r.reltype.endswith("/numbering")), None)
        root = getattr(part, "element", None)
        if root is None:
            return
        for definition in root.iterfind(f"{_W}abstractNum"):
            for level in definition.iterfind(f"{_W}lvl"):
                key = (definition.get(f"{_W}abstractNumId"), int(level.get(f"{_W}ilvl")))
                self._levels[key] = _Level(
                    int(_read_value(level, "start") or 1),
                    _read_value(level, "numFmt") or "decimal",
                    _read_value(level, "lvlText") or "",
                )
        for number in root.iterfind(f"{_W}num"):
            self._abstract[number.get(f"{_W}numId")] = _read_value(number, "abstractNumId") or ""

    def next(self, element: Any, style: Any) -> str:
        """The number that Word shows before this paragraph, with a space behind it; bullets and none are empty."""
        number_id, level = _numbering_of(element.find(f"{_W}pPr/{_W}numPr"))
        steps = 0
        while number_id is None and style is not None and steps < 20:
            number_id, level = _numbering_of(style.element.find(f"{_W}pPr/{_W}numPr"))
            style = style.base_style
            steps += 1
        abstract = self._abstract.get(number_id or "0")
        definition = self._levels.get((abstract or "", level))
        if abstract is None or definition is None:
            return ""
        counts = self._counts.setdefault(abstract, {})
        counts[level] = counts.get(level, definition.start - 1) + 1
        for deeper in [other for other in counts if other > level]:
            del counts[deeper]
        if definition.form in ("bullet", "none"):
            return ""
        text = re.sub(r"%(\d)", lambda match: self._format_number(abstract, int(match[1]) - 1, counts), definition.text)
        return f"{text} " if text else ""

    def _format_number(self, abstract: str, level: int, counts: dict[int, int]) -> str:
        definition = self._levels.get((abstract, level))
        if definition is None:
            return ""
        return format_number(counts.get(level, definition.start), definition.form)


def _text_of(paragraph: Any) -> str:
    """A paragraph's text as it reads: without deletions, with formulas, without the text boxes anchored in it."""
    parts: list[str] = []
    stack = [iter(paragraph)]
    while stack:
        element = next(stack[-1], None)
        if element is None:
            stack.pop()
        elif element.tag in (f"{_W}t", f"{_M}t"):
            parts.append(element.text or "")
        elif element.tag in (f"{_W}tab", f"{_W}ptab"):
            parts.append("\t")
        elif element.tag in (f"{_W}br", f"{_W}cr"):
            parts.append("\n")
        elif element.tag == f"{_W}noBreakHyphen":
            parts.append("-")
        elif element.tag == f"{_W}sym":
            parts.append(read_symbol(element.get(f"{_W}font") or "", element.get(f"{_W}char") or ""))
        elif element.tag == f"{_W}checkBox":
            parts.append("☑" if _is_checked(element) else "☐")
        elif _is_hidden(element):
            continue
        elif element.tag not in _LEFT_OUT and element.tag not in (f"{_W}txbxContent", f"{_W}pPr"):
            stack.append(iter(element))
    return "".join(parts)


def _is_hidden(element: Any) -> bool:
    """Whether an element is text that Word does not show, or the words that ask to fill in a field."""
    if element.tag == f"{_W}r":
        vanish = element.find(f"{_W}rPr/{_W}vanish")
        return vanish is not None and _is_on(vanish)
    return bool(element.tag == f"{_W}sdt" and _is_placeholder(element))


def _is_placeholder(element: Any) -> bool:
    """Whether a content control shows the words that ask to fill it in."""
    placeholder = element.find(f"{_W}sdtPr/{_W}showingPlcHdr")
    return placeholder is not None and _is_on(placeholder)


def _is_checked(element: Any) -> bool:
    """Whether a box of a form field is ticked: as somebody left it, else as it was at first."""
    for name in ("checked", "default"):
        state = element.find(f"{_W}{name}")
        if state is not None:
            return _is_on(state)
    return False


def _is_default(element: Any) -> bool:
    return element.get(f"{_W}type") == "paragraph" and element.get(f"{_W}default") in ("1", "true", "on")


def _read_default_size(document: Any) -> float:
    """The size of text that no style says anything of."""
    sizes = document.styles.element.xpath("./w:docDefaults/w:rPrDefault/w:rPr/w:sz")
    return (_half_points(sizes[0]) if sizes else None) or _USUAL_SIZE


def _is_contents(element: Any) -> bool:
    """Whether a content control is the table of contents."""
    gallery = element.find(f"{_W}sdtPr/{_W}docPartObj/{_W}docPartGallery")
    return gallery is not None and "contents" in (gallery.get(f"{_W}val") or "").lower()


def _is_contents_style(style: Any) -> bool:
    return bool(re.match(r"(toc|目录)\s*\d", (style.name or ""), re.IGNORECASE))


def _style_type(style: Any) -> tuple[float | None, bool]:
    size: float | None = None
    bold: bool | None = None
    steps = 0
    while style is not None and steps < 20:
        own_size = style.element.find(f"{_W}rPr/{_W}sz")
        own_bold = style.element.find(f"{_W}rPr/{_W}b")
        if size is None and own_size is not None:
            size = _half_points(own_size)
        if bold is None and own_bold is not None:
            bold = _is_on(own_bold)
        style = getattr(style, "base_style", None)
        steps += 1
    return size, bool(bold)


def _half_points(element: Any) -> float | None:
    try:
        return float(element.get(f"{_W}val")) / 2
    except (TypeError, ValueError):
        return None


def _is_on(element: Any) -> bool:
    return element.get(f"{_W}val") not in ("0", "false", "off")


def _outline_level(element: Any) -> int | None:
    value = element.get(f"{_W}val") or ""
    return int(value) + 1 if value.isdigit() and int(value) < 9 else None


def _numbering_of(element: Any) -> tuple[str | None, int]:
    if element is None:
        return None, 0
    level = _read_value(element, "ilvl") or "0"
    return _read_value(element, "numId"), int(level) if level.isdigit() else 0


def _read_value(element: Any, name: str) -> str | None:
    child = element.find(f"{_W}{name}")
    return None if child is None else child.get(f"{_W}val")
