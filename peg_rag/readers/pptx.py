"""PowerPoint files: each slide under its title, in reading order, with its tables and the speaker's notes."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peg_rag.extras import require
from peg_rag.readers.blocks import Block, Heading, Paragraph, Row
from peg_rag.readers.diagrams import is_diagram, read_diagrams
from peg_rag.readers.files import check_zip, run_parser
from peg_rag.readers.normalize import clean, clean_cell, clean_line, width
from peg_rag.readers.numbering import format_number
from peg_rag.readers.slide_order import order_shapes
from peg_rag.readers.tables import Grid, table_rows, to_blocks
from peg_rag.readers.xlsx import format_value

_NOTES = "备注"
_NUMBER_FORMS = {
    "alphaLc": "lowerLetter",
    "alphaUc": "upperLetter",
    "romanLc": "lowerRoman",
    "romanUc": "upperRoman",
    "circleNum": "decimalEnclosedCircle",
    "ea1": "chineseCounting",
}
_NUMBER_MARKS = {"Period": ("", "."), "ParenBoth": ("(", ")"), "ParenR": ("", ")")}
_LONGEST_TITLE = 60  # half-widths


def read_pptx(data: bytes, path: Path, _: str | None) -> Iterator[Block]:
    check_zip(data, path)
    pptx = require("pptx", "ingest")
    yield from run_parser(path, lambda: list(_iterate_slides(pptx.Presentation(io.BytesIO(data)))))


def _iterate_slides(presentation: Any) -> Iterator[Block]:
    for number, slide in enumerate(presentation.slides, start=1):
        title = slide.shapes.title
        heading = ""
        if title is not None and title.has_text_frame:
            heading = clean_line(title.text_frame.text)
        shapes = [shape for shape in slide.shapes if title is None or shape.shape_id != title.shape_id]
        ordered = order_shapes(shapes)
        if not heading and _stands_out(ordered):
            heading = clean_line(ordered.pop(0).text_frame.text)
        yield Heading(heading, 1, number)
        for shape in ordered:
            yield from _shape_blocks(shape, number)
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            notes = clean(slide.notes_slide.notes_text_frame.text)
            if notes:
                yield Paragraph(f"{_NOTES}：{notes}", number)


def _stands_out(shapes: Sequence[Any]) -> bool:
    """Whether the first text of a slide is its title, drawn as a text box: one line in larger type than all else."""
    sizes = [_largest_type(shape) for shape in shapes]
    if not sizes or not sizes[0] or not shapes[0].has_text_frame:
        return False
    text = shapes[0].text_frame.text.strip()
    return "\n" not in text and width(text) <= _LONGEST_TITLE and sizes[0] > max(sizes[1:], default=0)


def _largest_type(shape: Any) -> int:
    """The largest type that runs of a shape's text are set in by themselves; 0 where none is."""
    if not shape.has_text_frame:
        return 0
    runs = (run for paragraph in shape.text_frame.paragraphs for run in paragraph.runs)
    return max((int(run.font.size or 0) for run in runs), default=0)


def _shape_blocks(shape: Any, page: int) -> Iterator[Block]:
    if getattr(shape, "has_table", False) and shape.has_table:
        yield from _table_rows(shape.table, page)
    elif getattr(shape, "has_chart", False) and shape.has_chart:
        yield from _chart_rows(shape.chart, page)
    elif is_diagram(shape._element):
        yield from (Paragraph(text, page) for text in read_diagrams(shape._element, shape.part))
    elif shape.has_text_frame:
        text = clean("\n".join(_numbered_lines(shape.text_frame.paragraphs)))
        if text:
            yield Paragraph(text, page)


def _numbered_lines(paragraphs: Sequence[Any]) -> Iterator[str]:
    """The paragraphs of a text with the numbers that the slide shows before them."""
    counts: dict[int, int] = {}  # by level
    for paragraph in paragraphs:
        text = paragraph.text.replace("\x0b", "\n")
        numbers = paragraph._p.xpath("./a:pPr/a:buAutoNum")
        level = paragraph.level
        counts = {other: count for other, count in counts.items() if other < level or (numbers and other == level)}
        if numbers and text.strip():
            counts[level] = counts[level] + 1 if level in counts else int(numbers[0].get("startAt") or 1)
            text = f"{_format_number(counts[level], numbers[0].get('type') or '')}{text}"
        yield text


def _format_number(number: int, scheme: str) -> str:
    """A number in one of PowerPoint's schemes, such as `arabicPeriod`, with a space behind it."""
    form = next((form for start, form in _NUMBER_FORMS.items() if scheme.startswith(start)), "decimal")
    before, after = next((marks for end, marks in _NUMBER_MARKS.items() if scheme.endswith(end)), ("", ""))
    return f"{before}{format_number(number, form)}{after} "


def _table_rows(table: Any, page: int) -> Iterator[Row]:
    rows = len(table.rows)
    columns = len(table.columns)
    grid: Grid = [[clean_cell(table.cell(r, c).text) for c in range(columns)] for r in range(rows)]
    merged = [[False] * columns for _ in range(rows)]
    for r in range(rows):
        for c in range(columns):
            cell = table.cell(r, c)
            if cell.is_merge_origin:
                for down in range(cell.span_height):
                    for right in range(cell.span_width):
                        grid[r + down][c + right] = grid[r][c]
                        merged[r + down][c + right] = right > 0
    header_rows = 1 if table.first_row and rows > 1 else None
    yield from to_blocks(table_rows(grid, header_rows=header_rows, merged=merged), page=page)


def _chart_rows(chart: Any, page: int) -> Iterator[Row]:
    """A chart's numbers as a table: a row for each category, a column for each series."""
    title = ""
    if chart.has_title and chart.chart_title.has_text_frame:
        title = clean_line(chart.chart_title.text_frame.text)
    labels: dict[tuple[int, str], list[tuple[str, str]]] = {}  # by category; the plots of a chart share them
    for plot in chart.plots:
        series = [(clean_line(str(one.name)), list(one.values), _number_format(one)) for one in plot.series]
        for number, category in enumerate(plot.categories):
            values = labels.setdefault((number, clean_line(str(category))), [])
            values += [
                (name, format_value(column[number], number_format))
                for name, column, number_format in series
                if number < len(column) and column[number] is not None
            ]
    for (number, category), values in labels.items():
        yield Row((("", category), *values), number + 1, (title,) if title else (), page)


def _number_format(series: Any) -> str:
    """How a series shows its numbers: as its labels say, else as the cells do that they were taken from."""
    for path in ("c:dLbls/c:numFmt", "../c:dLbls/c:numFmt"):
        for element in series._element.xpath(path):
            if element.get("sourceLinked") != "1":
                return str(element.get("formatCode") or "General")
    codes = series._element.xpath("c:val//c:formatCode")
    return codes[0].text or "General" if codes else "General"
