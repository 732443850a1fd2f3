"""Set the words as people's programs set them: Word, Excel, PowerPoint, a browser's print, a mailer, a scanner.

A set of documents brings its words and its look; the same look and words make the same bytes. Its words are stories: a
story is a list of parts. A string is a paragraph, `("title" | "h1" | "h2", text)` a heading, `("steps", ...)` a
numbered list, `("notes", text)` a slide's notes, and a list of tuples is a table whose first row is its header. A row
of one cell goes over the whole width of its table.
"""

import base64
import csv
import html
import io
import quopri
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

SANS_FONT = "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc"  # Debian: fonts-wqy-zenhei
SCAN_FONT = "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc"  # Debian: fonts-wqy-microhei
CHROMIUM = "/usr/bin/chromium"
_DATE = re.compile(rb"(<dcterms:(?:created|modified)[^>]*>)[^<]*")
_PDF_DATE = re.compile(rb"(/(?:CreationDate|ModDate) \(D:)[^)]*\)")
_PAGE = (1240, 1754)  # A4 at 150 dots an inch


def lines_of_source(source: str | Sequence[Any]) -> list[str]:
    """What a page of text or a story says, a row or a paragraph a line, without marks of layout."""
    if isinstance(source, str):
        text = re.sub(r"<(script|style).*?</\1>", "", source, flags=re.DOTALL)
        text = re.sub(r"</t[dh]>\s*<t[dh][^>]*>", " | ", text)
        return [line for line in re.sub(r"<[^>]+>", "", text).splitlines() if line.strip()]
    return [line for part in source for line in _lines_of_part(part)]


def _lines_of_part(part: Any) -> list[str]:
    if isinstance(part, str):
        return [part]
    if isinstance(part, tuple):
        return list(part[1:])
    return [" | ".join(str(cell) for cell in row) for row in part]


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)  # ends lines in \r\n, as Excel does
    return text.getvalue()


def html_of_part(part: Any) -> str:
    """A part of a story as an element of a page."""
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, list):
        head, *body = part
        rows = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
        rows += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
    if part[0] == "steps":
        return "<ol>" + "".join(f"<li>{html.escape(step)}</li>" for step in part[1:]) + "</ol>"
    tag = {"title": "h1", "h1": "h2", "h2": "h3"}[part[0]]
    return f"<{tag}>{html.escape(part[1])}</{tag}>"


def mail_text(headers: Mapping[str, str], text: str) -> str:
    """What a mail says: its headers and its text."""
    return "\n".join([*(f"{name}: {value}" for name, value in headers.items()), "", text])


def quoted_mail_text(newest: Sequence[Any], second: Sequence[Any], first: Sequence[Any]) -> str:
    """The plain version of a mail: a row a line, the older mails below it with one and two marks."""
    lines = "\n\n".join("\n".join(lines_of_source([part])) for part in newest).splitlines()
    lines += ["", second[0], *(f"> {line}" for line in lines_of_source(second[1:]))]
    lines += [f"> {first[0]}", *(f"> > {line}" for line in lines_of_source(first[1:]))]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class MailPart:
    """A body of a mail: `kind` is plain or html, `encoding` quoted-printable or base64."""

    kind: str
    text: str
    encoding: str = "base64"
    charset: str = "utf-8"

    def lines(self) -> list[str]:
        data = self.text.encode(self.charset)
        coded = quopri.encodestring(data) if self.encoding == "quoted-printable" else base64.encodebytes(data)
        return [
            f'Content-Type: text/{self.kind}; charset="{self.charset}"',
            f"Content-Transfer-Encoding: {self.encoding}",
            "",
            *coded.decode("ascii").splitlines(),
            "",
        ]


def encode_mail(headers: Mapping[str, str], parts: Sequence[MailPart], boundary: str = "") -> bytes:
    """A mail as mailers send it: headers in encoded words, then one body or several versions of it."""
    lines = [f"{name}: {_encode_header(name, value)}" for name, value in headers.items()]
    lines.append("MIME-Version: 1.0")
    if not boundary:
        (part,) = parts
        return "\r\n".join([*lines, *part.lines()]).encode("ascii")
    lines += [f'Content-Type: multipart/alternative; boundary="{boundary}"', ""]
    for part in parts:
        lines += [f"--{boundary}", *part.lines()]
    return "\r\n".join([*lines, f"--{boundary}--", ""]).encode("ascii")


def _encode_header(name: str, value: str) -> str:
    from email.header import Header
    from email.utils import formataddr, getaddresses

    if name in ("From", "To", "Cc"):
        return ", ".join(formataddr(pair) for pair in getaddresses([value]))
    return value if value.isascii() else Header(value, "utf-8").encode()


def make_word(path: Path, story: Iterable[Any], made: datetime, *, header: str, footer: str = "") -> None:
    from docx import Document

    document = Document()
    document.core_properties.title = path.stem
    document.core_properties.created = document.core_properties.modified = made
    document.sections[0].header.paragraphs[0].text = header
    if footer:
        document.sections[0].footer.paragraphs[0].text = footer
    for part in story:
        if isinstance(part, str):
            document.add_paragraph(part)
        elif isinstance(part, list):
            _add_word_table(document, part)
        elif part[0] == "steps":
            for step in part[1:]:
                document.add_paragraph(step, style="List Number")
        else:
            document.add_heading(part[1], {"title": 0, "h1": 1, "h2": 2}[part[0]])
    document.save(str(path))
    _repack(path, made)


def _add_word_table(document: Any, rows: list[tuple[str, ...]]) -> None:
    """A table whose equal neighbours in the first column are one cell; a lone cell goes over the whole row."""
    table = document.add_table(rows=0, cols=len(rows[0]), style="Table Grid")
    for row in rows:
        cells = table.add_row().cells
        if len(row) == 1:
            cells[0].merge(cells[-1]).text = row[0]
        else:
            for cell, text in zip(cells, row, strict=True):
                cell.text = text
    for first, last in _runs([row[0] for row in rows]):
        for number in range(first + 1, last + 1):
            table.cell(number, 0).text = ""
        table.cell(first, 0).merge(table.cell(last, 0)).text = rows[first][0]


def _runs(values: Sequence[Any]) -> list[tuple[int, int]]:
    """Where two or more equal values stand together: the first and the last place."""
    runs = []
    start = 0
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] != values[start]:
            if i - start > 1:
                runs.append((start, i - 1))
            start = i
    return runs


def make_book(
    path: Path, sheets: Mapping[str, list[tuple[Any, ...]]], made: datetime, *, width: float, title_size: int = 0
) -> None:
    """A workbook: `width` is the columns', in characters; a `title_size` in points makes the titles bold."""
    from openpyxl import Workbook
    from openpyxl.styles import Alignment, Font

    book = Workbook()
    book.remove(book.active)
    book.properties.title = path.stem
    book.properties.created = book.properties.modified = made.replace(tzinfo=None)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
        for cells in sheet.iter_rows():
            for cell in cells:
                if isinstance(cell.value, date):
                    cell.number_format = 'm"月"d"日"'
        _merge_cells(sheet, rows)
        sheet["A1"].alignment = Alignment(horizontal="center")
        if title_size:
            sheet["A1"].font = Font(bold=True, size=title_size)
        for column in "ABCDEFGH":
            sheet.column_dimensions[column].width = width
    book.save(path)
    _repack(path, made)


def _merge_cells(sheet: Any, rows: list[tuple[Any, ...]]) -> None:
    """Merge as Excel's users do: titles and notes, equal neighbours in the first column, a header of two rows."""
    width = max(len(row) for row in rows)
    for number, row in enumerate(rows, start=1):
        if len(row) == 1:
            sheet.merge_cells(start_row=number, start_column=1, end_row=number, end_column=width)
    for first, last in _runs([row[0] if len(row) == width else object() for row in rows]):
        if first > 1:
            sheet.merge_cells(start_row=first + 1, start_column=1, end_row=last + 1, end_column=1)
    for first, last in _runs(rows[1]):
        sheet.merge_cells(start_row=2, start_column=first + 1, end_row=2, end_column=last + 1)
    for column, (upper, lower) in enumerate(zip(rows[1], rows[2], strict=False), start=1):
        if upper == lower:
            sheet.merge_cells(start_row=2, start_column=column, end_row=3, end_column=column)


def make_slides(
    path: Path, story: Iterable[Any], made: datetime, *, table_top: float = 1.6, row_height: float = 0.42
) -> None:
    """Slides: a heading begins one. The top and the rows of tables are in inches."""
    from pptx import Presentation
    from pptx.util import Inches

    deck = Presentation()
    deck.core_properties.title = path.stem
    deck.core_properties.created = deck.core_properties.modified = made
    slide: Any = None
    frame: Any = None
    bottom = 0
    for part in story:
        if isinstance(part, list):
            height = Inches(row_height * len(part))
            shape = slide.shapes.add_table(len(part), len(part[0]), Inches(0.5), Inches(table_top), Inches(9), height)
            for r, row in enumerate(part):
                for c, text in enumerate(row):
                    shape.table.cell(r, c).text = text
            slide.placeholders[1].element.getparent().remove(slide.placeholders[1].element)
            bottom = Inches(table_top + 0.3) + height
            frame = None
        elif isinstance(part, str):
            if frame is None:
                frame = slide.shapes.add_textbox(Inches(0.5), bottom, Inches(9), Inches(1)).text_frame
            paragraph = frame.add_paragraph() if frame.text else frame.paragraphs[0]
            paragraph.text = part
        elif part[0] == "notes":
            slide.notes_slide.notes_text_frame.text = part[1]
        else:
            slide = deck.slides.add_slide(deck.slide_layouts[0 if part[0] == "title" else 1])
            slide.shapes.title.text = part[1]
            frame = slide.placeholders[1].text_frame
            if part[0] == "title":
                frame.text = part[2]
    deck.save(str(path))
    _repack(path, made)


def _repack(path: Path, made: datetime) -> None:
    """Write a zip archive again, the same on every day: fixed times, the same order."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    stamp = made.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, made.timetuple()[:6])
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, _DATE.sub(lambda match: match[1] + stamp, data))


@dataclass(frozen=True)
class PdfStyle:
    """The look of pages that are set: lengths in millimetres, sizes in points.

    `decorate` draws the running header and the page's number; it gets the canvas, the document and the page's size.
    """

    decorate: Callable[[Any, Any, tuple[float, float]], None]
    columns: int = 1
    margin: float = 18
    gap: float = 7
    bottom: float = 22
    top: float = 24
    text_size: float = 10
    cell_size: float = 8.5
    heading_sizes: Mapping[str, float] = field(default_factory=lambda: {"title": 18, "h1": 13, "h2": 11})
    leading: float = 1.55  # times the size
    step: str = "（{number}）{text}"
    grid: str = "black"
    header_fill: str = "whitesmoke"  # empty for none
    cell_alignment: str = "TOP"
    cell_padding: float = 6  # points, left and right
    fit_columns: bool = False  # columns grow with the square root of their longest cell; otherwise all are alike
    space_before_table: float = 4  # points


def mirrored_header(left: str, right: str, edge: float = 50) -> Callable[[Any, Any, tuple[float, float]], None]:
    """For `PdfStyle.decorate`: a header of two ends above a line, which change places on even pages; the page's number in
    the middle below.

    Args:
        edge: points from the sides of the page.
    """

    def decorate(canvas: Any, document: Any, size: tuple[float, float]) -> None:
        first, last = (left, right) if document.page % 2 else (right, left)
        canvas.setFont("Sans", 8.5)
        canvas.drawString(edge, size[1] - 40, first)
        canvas.drawRightString(size[0] - edge, size[1] - 40, last)
        canvas.line(edge, size[1] - 46, size[0] - edge, size[1] - 46)
        canvas.drawCentredString(size[0] / 2, 32, f"第 {document.page} 页")

    return decorate


def set_pdf(path: Path, story: Iterable[Any], style: PdfStyle) -> None:
    """Set a story with ReportLab; needs the font of fonts-wqy-zenhei."""
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont
    from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate

    pdfmetrics.registerFont(TTFont("Sans", SANS_FONT, subfontIndex=0))
    width, height = A4
    margin = style.margin * mm
    gap = style.gap * mm
    bottom = style.bottom * mm
    frame_width = (width - 2 * margin - (style.columns - 1) * gap) / style.columns
    frame_height = height - (style.bottom + style.top) * mm
    frames = [
        Frame(margin + i * (frame_width + gap), bottom, frame_width, frame_height, id=str(i))
        for i in range(style.columns)
    ]
    document = BaseDocTemplate(str(path), pagesize=A4, invariant=1, title=path.stem)
    template = PageTemplate(frames=frames, onPage=lambda canvas, page: style.decorate(canvas, page, A4))
    document.addPageTemplates(template)
    document.build([flowable for part in story for flowable in _flowables(part, frame_width - 14, style)])


def _flowables(part: Any, width: float, style: PdfStyle) -> list[Any]:
    from reportlab.platypus import Paragraph, Spacer, Table

    def paragraph(text: str, size: float) -> Any:
        return Paragraph(text, _paragraph_style(size, style.leading))

    if isinstance(part, str):
        return [paragraph(part, style.text_size)]
    if isinstance(part, list):
        cells = [[paragraph(cell, style.cell_size) for cell in row] for row in part]
        widths = _column_widths(part, width, style.fit_columns)
        table = Table(cells, colWidths=widths, repeatRows=1, style=_table_style(style))
        space = [Spacer(1, style.space_before_table)] if style.space_before_table else []
        return [*space, table, Spacer(1, 8)]
    if part[0] == "steps":
        steps = (style.step.format(number=i, text=text) for i, text in enumerate(part[1:], start=1))
        return [paragraph(step, style.text_size) for step in steps]
    return [paragraph(part[1], style.heading_sizes[part[0]])]


def _column_widths(rows: Sequence[Sequence[str]], width: float, fit: bool) -> list[float]:
    columns = len(rows[0])
    if not fit:
        return [width / columns] * columns
    shares = [max(len(cell) for cell in column) ** 0.5 for column in zip(*rows, strict=True)]
    return [width * share / sum(shares) for share in shares]


def _table_style(style: PdfStyle) -> list[Any]:
    from reportlab.lib.colors import toColor

    commands: list[Any] = [("GRID", (0, 0), (-1, -1), 0.5, toColor(style.grid))]
    if style.header_fill:
        commands.append(("BACKGROUND", (0, 0), (-1, 0), toColor(style.header_fill)))
    commands += [(side, (0, 0), (-1, -1), style.cell_padding) for side in ("LEFTPADDING", "RIGHTPADDING")]
    return [*commands, ("VALIGN", (0, 0), (-1, -1), style.cell_alignment)]


def _paragraph_style(size: float, leading: float) -> Any:
    from reportlab.lib.styles import ParagraphStyle

    before = size / 2 if size > 10 else 1
    return ParagraphStyle(
        "p", fontName="Sans", fontSize=size, leading=size * leading, wordWrap="CJK", spaceBefore=before, spaceAfter=3
    )


def print_page(path: Path, story: Iterable[Any], made: datetime, *, style: str, header: str) -> None:
    """Print a page from Chromium; needs Playwright and Noto Sans CJK."""
    from playwright.sync_api import sync_playwright

    body = "\n".join(html_of_part(part) for part in story)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content(
            f"<html lang='zh-CN'><head><title>{path.stem}</title><style>{style}</style></head><body>{body}</body></html>"
        )
        line = "font-size:8px;width:100%;padding:0 1.6cm;font-family:'Noto Sans CJK SC'"
        page.pdf(
            path=path,
            format="A4",
            margin={"top": "2cm", "bottom": "2cm", "left": "1.8cm", "right": "1.8cm"},
            display_header_footer=True,
            header_template=f'<div style="{line}">{header}</div>',
            footer_template=f'<div style="{line};text-align:right"><span class="pageNumber"></span> / '
            '<span class="totalPages"></span></div>',
        )
        browser.close()
    stamp = made.strftime("%Y%m%d%H%M%S+00'00')").encode()
    path.write_bytes(_PDF_DATE.sub(lambda match: match[1] + stamp, path.read_bytes()))


@dataclass(frozen=True)
class ScanStyle:
    """The look of a scanned page: lengths in dots, greys from 0 to 255, the turn in degrees against the clock."""

    turn: float
    seed: int
    noise: float  # the standard deviation of the greys
    paper: int = 246
    left: int = 105
    right: int = 1135
    top: float = 115
    title_size: int = 42
    title_height: int = 95
    ink: int = 35
    row_height: int = 56
    cell_top: int = 12
    cell_left: int | None = None  # None centres the cells' text
    outline: int = 80
    after_table: int = 34
    line_length: int | None = None  # in characters; None breaks lines at the right margin
    shadow: float = 0  # how much darker the right edge is than the left one
    lean: int = 0  # how far each side leans inwards at the top, as when the page is photographed from below


def scan_page(path: Path, story: Iterable[Any], style: ScanStyle) -> None:
    """Draw the page, turn it, make it noisy, and put the picture into a PDF without text."""
    import numpy as np
    from PIL import Image, ImageFilter
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    image = _draw_page(story, style)
    if style.lean:
        width, height = _PAGE
        corners = (-style.lean, 0, 0, height, width, height, width + style.lean, 0)
        image = image.transform(_PAGE, Image.Transform.QUAD, corners, Image.Resampling.BICUBIC, fillcolor=style.paper)
    image = image.rotate(style.turn, Image.Resampling.BICUBIC, fillcolor=style.paper)
    image = image.filter(ImageFilter.GaussianBlur(0.6))
    noise = np.random.default_rng(style.seed).normal(0, style.noise, (_PAGE[1], _PAGE[0]))
    grey = np.asarray(image, dtype=np.float64) + noise - np.linspace(0, style.shadow, _PAGE[0])
    jpeg = io.BytesIO()
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=55)
    canvas = Canvas(str(path), pagesize=A4, invariant=1)
    canvas.drawImage(ImageReader(jpeg), 0, 0, *A4)
    canvas.save()


def _draw_page(story: Iterable[Any], style: ScanStyle) -> Any:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", _PAGE, style.paper)
    draw = ImageDraw.Draw(image)
    title = ImageFont.truetype(SCAN_FONT, style.title_size)
    text = ImageFont.truetype(SCAN_FONT, 26)
    y = style.top
    for part in story:
        if isinstance(part, tuple):
            draw.text(((_PAGE[0] - draw.textlength(part[1], title)) / 2, y), part[1], 25, title)
            y += style.title_height
        elif isinstance(part, list):
            for row in part:
                _draw_row(draw, row, y, text, style)
                y += style.row_height
            y += style.after_table
        else:
            for line in _break_lines(part, lambda line: float(draw.textlength(line, text)), style):
                draw.text((style.left, y), line, style.ink, text)
                y += 46
            y += 10
    return image


def _draw_row(draw: Any, row: Sequence[str], y: float, font: Any, style: ScanStyle) -> None:
    width = (style.right - style.left) / len(row)
    for i, cell in enumerate(row):
        x = style.left + i * width
        draw.rectangle((x, y, x + width, y + style.row_height), outline=style.outline, width=2)
        left = (width - draw.textlength(cell, font)) / 2 if style.cell_left is None else style.cell_left
        draw.text((x + left, y + style.cell_top), cell, style.ink, font)


def _break_lines(text: str, length: Callable[[str], float], style: ScanStyle) -> list[str]:
    if style.line_length is not None:
        return [text[start : start + style.line_length] for start in range(0, len(text), style.line_length)]
    lines = [""]
    for character in text:
        if length(lines[-1] + character) > style.right - style.left and character not in "，。；":
            lines.append("")
        lines[-1] += character
    return lines
