"""What a reader makes of a file, whatever its kind: headings, paragraphs, rows of tables and records, in their order.

Chunks are cut from sections. A section is what stands under one heading on one page, or a single row of a table with
the names of its columns, so a chunk never mixes a table with a text, and each knows its headings, page, sheet and row.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["text", "heading", "row", "record"]
Box = tuple[float, float, float, float]  # x0, top, x1, bottom in points from the top left corner of the page

SEPARATOR = "\n\n"  # between the blocks in a document's text
_TITLE_SEPARATOR = " > "


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stretch of text stands on a page: from character `start` of its block or section to the next place."""

    start: int
    page: int
    box: Box


@dataclass(frozen=True, slots=True)
class Heading:
    """A title; `level` 1 is the highest."""

    text: str
    level: int = 1
    page: int | None = None
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text: one paragraph, a list item, a block of code."""

    text: str
    page: int | None = None
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. `cells`: its values by column name; `captions`: titles above it within the table."""

    cells: tuple[tuple[str, str], ...]
    number: int | None = None
    captions: tuple[str, ...] = ()
    page: int | None = None
    sheet: str | None = None
    places: tuple[Place, ...] = ()

    @property
    def text(self) -> str:
        return row_text(self.cells)


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a data file: its text where a column holds it, else all columns; the other columns are `fields`."""

    text: str
    title: str = ""
    number: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    cells: tuple[tuple[str, str], ...] = ()
    sheet: str | None = None


Block = Heading | Paragraph | Row | Record


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of a file's text and where it stands.

    Attributes:
        text: clean text, never blank.
        start: characters of the document's text (see `document_text`) before this section.
        title: the headings it stands under, joined by ` > `, or a record's title.
        page: page of a PDF or slide of a presentation, from 1.
        row: line of a JSONL file, row of a sheet, record of a CSV file, row of a table, from 1.
        fields: the other columns of a record, where they are strings, numbers or booleans.
        kind: `text`; `heading` for a title with nothing under it; `row` of a table; `record` of a data file.
        sheet: of a workbook.
        cells: a row's values by column name, in the order of the columns.
        places: where its lines stand on the page, in the order of the text.
    """

    text: str
    start: int = 0
    title: str = ""
    page: int | None = None
    row: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "text"
    sheet: str | None = None
    cells: Mapping[str, str] = field(default_factory=dict)
    places: tuple[Place, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Section":
        places = tuple(Place(p["start"], p["page"], tuple(p["box"])) for p in value["places"])
        return cls(**{**value, "places": places})


def row_text(cells: Iterable[tuple[str, str]]) -> str:
    """A row with its header: `职级: P6-P7 | 住宿（一线城市）: 600元/晚`. Empty cells are left out."""
    return " | ".join(f"{name}: {value}" if name else value for name, value in cells if value)


def describe_comment(author: str, text: str, subject: str) -> str:
    """A comment in words: who says what, and on what: `批注（李敏）：改为百分之三（批注的是：“百分之五”）`."""
    writer = f"（{author}）" if author else ""
    return f"批注{writer}：{text}" + (f"（批注的是：{subject}）" if subject else "")


def document_text(blocks: Iterable[Block]) -> str:
    """The clean text of a whole document, in which `start` counts characters."""
    return SEPARATOR.join(block.text for block in blocks)


def sections_of(blocks: Iterable[Block]) -> Iterator[Section]:
    """Group blocks by heading and page: each row and each record by itself, paragraphs together."""
    builder = _SectionBuilder()
    for block in blocks:
        yield from builder.add(block)
    yield from builder.finish()


class _SectionBuilder:
    """The headings in force, the paragraphs that wait for their section's end, and the length of the text so far."""

    def __init__(self) -> None:
        self._trail: list[Heading] = []
        self._pending_heading: tuple[Heading, int] | None = None  # the last heading, while nothing stands under it
        self._paragraphs: list[Paragraph] = []
        self._start = 0  # of the first waiting paragraph
        self._length = 0

    def add(self, block: Block) -> Iterator[Section]:
        start = self._length
        self._length += len(block.text) + len(SEPARATOR)
        if isinstance(block, Heading):
            yield from self._flush_paragraphs()
            yield from self._add_heading(block, start)
            return
        self._pending_heading = None
        if isinstance(block, Paragraph):
            if self._paragraphs and block.page != self._paragraphs[-1].page:
                yield from self._flush_paragraphs()
            if not self._paragraphs:
                self._start = start
            self._paragraphs.append(block)
            return
        yield from self._flush_paragraphs()
        if isinstance(block, Row):
            yield self._row_section(block, start)
        else:
            yield self._record_section(block, start)

    def finish(self) -> Iterator[Section]:
        yield from self._flush_paragraphs()
        yield from self._flush_heading()

    def _add_heading(self, heading: Heading, start: int) -> Iterator[Section]:
        if self._pending_heading is not None and heading.level <= self._pending_heading[0].level:
            yield from self._flush_heading()
        self._trail = [above for above in self._trail if above.level < heading.level] + [heading]
        self._pending_heading = (heading, start)

    def _flush_heading(self) -> Iterator[Section]:
        """A title with nothing under it is kept: it may be all that a slide or a cover says."""
        if self._pending_heading is None:
            return
        heading, start = self._pending_heading
        self._pending_heading = None
        above = [other for other in self._trail if other.level < heading.level]
        if heading.text.strip():
            title = _join_titles([other.text for other in above])
            yield Section(heading.text, start, title, heading.page, kind="heading", places=heading.places)

    def _flush_paragraphs(self) -> Iterator[Section]:
        paragraphs = self._paragraphs
        self._paragraphs = []
        text = SEPARATOR.join(paragraph.text for paragraph in paragraphs)
        if not text.strip():
            return
        places: list[Place] = []
        offset = 0
        for paragraph in paragraphs:
            places += [Place(offset + place.start, place.page, place.box) for place in paragraph.places]
            offset += len(paragraph.text) + len(SEPARATOR)
        yield Section(text, self._start, self._full_title(), paragraphs[0].page, places=tuple(places))

    def _row_section(self, row: Row, start: int) -> Section:
        return Section(
            row.text,
            start,
            self._full_title(*row.captions),
            row.page,
            row.number,
            kind="row",
            sheet=row.sheet,
            cells=dict(row.cells),
            places=row.places,
        )

    def _record_section(self, record: Record, start: int) -> Section:
        return Section(
            record.text,
            start,
            self._full_title(record.title),
            row=record.number,
            fields=record.fields,
            kind="record",
            sheet=record.sheet,
            cells=dict(record.cells),
        )

    def _full_title(self, *more: str) -> str:
        return _join_titles([*(heading.text for heading in self._trail), *more])


def _join_titles(titles: Iterable[str]) -> str:
    return _TITLE_SEPARATOR.join(title for title in titles if title)
