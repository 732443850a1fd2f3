"""Set the words as people's programs set them: Word, Excel, PowerPoint, a browser's print, a mailer, a scanner."""

import base64
import html
import io
import quopri
import re
import zipfile
from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

from .content import HIKE, MAIL, MAIL_HEADERS, SCHOOL, SOURCES, VALLEY, csv_text

SANS_FONT = "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc"  # Debian: fonts-wqy-zenhei
SCAN_FONT = "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc"  # Debian: fonts-wqy-microhei
CHROMIUM = "/usr/bin/chromium"
PRINTED = "栖岸联合办公价目与规则.pdf"
_MADE = datetime(2026, 11, 20, 2, tzinfo=UTC)
_DATE = re.compile(rb"(<dcterms:(?:created|modified)[^>]*>)[^<]*")
_PDF_DATE = re.compile(rb"(/(?:CreationDate|ModDate) \(D:)[^)]*\)")
_PAGE = (1240, 1754)  # A4 at 150 dots an inch
_LEFT, _RIGHT = 105, 1135
_BOUNDARY = "----=_Part_5127_20261119"


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    print_page(folder / PRINTED)


def make_texts(folder: Path) -> None:
    """The page, the notice, the mail and the records: the same bytes on every machine."""
    (folder / "雾灵谷景区游客须知.html").write_text(VALLEY, encoding="utf-8", newline="\n")
    (folder / "徒步社十一月活动通知.txt").write_bytes(HIKE.replace("\n", "\r\n").encode("gb18030"))
    (folder / "酒店维修工单-2026年9月.csv").write_bytes(csv_text().encode("gb18030"))
    (folder / "答复-山野来信付印安排.eml").write_bytes(_mail())


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    _make_word(folder / "潮水以西-第23天通告单.docx", "潮水以西摄制组　内部资料")
    _make_word(folder / "澜江水务2027届校园招聘公告.docx", "澜江水务集团有限公司")
    _make_book(folder / "顺途驾校收费与排期-2026冬.xlsx")
    _make_slides(folder / "半程马拉松志愿者培训.pptx")


def make_pdfs(folder: Path) -> None:
    """Two set pages and a picture of one; needs the fonts."""
    _set_pdf(folder / "低温仓作业与安全规定.pdf", "肥西低温仓　文件编号FX-WI-017", columns=1)
    _set_pdf(folder / "ET系列电动搬运车手册.pdf", "ET系列电动搬运车 使用保养手册", columns=2)
    _scan_page(folder / "桂花巷助餐点公示-扫描件.pdf")


def print_page(path: Path) -> None:
    """Print a page from Chromium; needs Playwright and Noto Sans CJK."""
    from playwright.sync_api import sync_playwright

    style = """
        body { font: 10.5pt/1.65 "Noto Sans CJK SC"; } h1 { font-size: 17pt; } h2 { font-size: 12.5pt; }
        table { border-collapse: collapse; width: 100%; } th { background: #e8efe9; }
        th, td { border-bottom: 0.6pt solid #777; padding: 3pt 6pt; text-align: left; }
    """
    body = "\n".join(_html(part) for part in SOURCES[path.name])
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
            header_template=f'<div style="{line}">栖岸联合办公</div>',
            footer_template=f'<div style="{line};text-align:right"><span class="pageNumber"></span> / '
            '<span class="totalPages"></span></div>',
        )
        browser.close()
    path.write_bytes(_PDF_DATE.sub(rb"\g<1>20261120100000+00'00')", path.read_bytes()))


def _html(part: Any) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, list):
        head, *body = part
        rows = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
        rows += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
    tag = {"title": "h1", "h1": "h2"}[part[0]]
    return f"<{tag}>{html.escape(part[1])}</{tag}>"


def _mail() -> bytes:
    """A mail as mailers send it: headers in encoded words, the text once plain and once as a page."""
    lines = [f"{name}: {_encode_header(name, value)}" for name, value in MAIL_HEADERS.items()]
    lines += ["MIME-Version: 1.0", f'Content-Type: multipart/alternative; boundary="{_BOUNDARY}"', ""]
    plain = quopri.encodestring(MAIL.encode()).decode("ascii")
    page = "<html><body>" + "".join(f"<p>{html.escape(line)}</p>" for line in MAIL.splitlines()) + "</body></html>"
    for kind, encoding, body in (
        ("plain", "quoted-printable", plain),
        ("html", "base64", base64.encodebytes(page.encode()).decode("ascii")),
    ):
        lines += [f"--{_BOUNDARY}", f'Content-Type: text/{kind}; charset="utf-8"']
        lines += [f"Content-Transfer-Encoding: {encoding}", "", *body.splitlines(), ""]
    return "\r\n".join([*lines, f"--{_BOUNDARY}--", ""]).encode("ascii")


def _encode_header(name: str, value: str) -> str:
    from email.header import Header
    from email.utils import formataddr, getaddresses

    if name in ("From", "To", "Cc"):
        return ", ".join(formataddr(pair) for pair in getaddresses([value]))
    return value if value.isascii() else Header(value, "utf-8").encode()


def _make_word(path: Path, header: str) -> None:
    from docx import Document

    document = Document()
    document.core_properties.title = path.stem
    document.core_properties.created = document.core_properties.modified = _MADE
    document.sections[0].header.paragraphs[0].text = header
    for part in SOURCES[path.name]:
        if isinstance(part, str):
            document.add_paragraph(part)
        elif isinstance(part, list):
            _add_word_table(document, part)
        elif part[0] == "steps":
            for step in part[1:]:
                document.add_paragraph(step, style="List Number")
        else:
            document.add_heading(part[1], {"title": 0, "h1": 1}[part[0]])
    document.save(str(path))
    _repack(path)


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


def _make_book(path: Path) -> None:
    from openpyxl import Workbook
    from openpyxl.styles import Alignment, Font

    book = Workbook()
    book.remove(book.active)
    book.properties.title = path.stem
    book.properties.created = book.properties.modified = _MADE.replace(tzinfo=None)
    for name, rows in SCHOOL.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
        for cells in sheet.iter_rows():
            for cell in cells:
                if isinstance(cell.value, date):
                    cell.number_format = 'm"月"d"日"'
        _merge_cells(sheet, rows)
        sheet["A1"].alignment = Alignment(horizontal="center")
        sheet["A1"].font = Font(bold=True, size=14)
        for column in "ABCDEFGH":
            sheet.column_dimensions[column].width = 15
    book.save(path)
    _repack(path)


def _merge_cells(sheet: Any, rows: list[tuple[Any, ...]]) -> None:
    """Merge as Excel's users do: titles and notes, equal neighbours in the first column, a header of two rows."""
    width = max(len(row) for row in rows)
    for number, row in enumerate(rows, start=1):
        if len(row) == 1:
            sheet.merge_cells(start_row=number, start_column=1, end_row=number, end_column=width)
    for column in range(1, width + 1):
        values = [row[column - 1] if len(row) == width else object() for row in rows]
        for first, last in _runs(values):
            if column == 1 or first == 1:
                sheet.merge_cells(start_row=first + 1, start_column=column, end_row=last + 1, end_column=column)
    for first, last in _runs(rows[1]):
        sheet.merge_cells(start_row=2, start_column=first + 1, end_row=2, end_column=last + 1)


def _make_slides(path: Path) -> None:
    from pptx import Presentation
    from pptx.util import Inches

    deck = Presentation()
    deck.core_properties.title = path.stem
    deck.core_properties.created = deck.core_properties.modified = _MADE
    slide: Any = None
    frame: Any = None
    bottom = 0
    for part in SOURCES[path.name]:
        if isinstance(part, list):
            height = Inches(0.42 * len(part))
            shape = slide.shapes.add_table(len(part), len(part[0]), Inches(0.5), Inches(1.6), Inches(9), height)
            for r, row in enumerate(part):
                for c, text in enumerate(row):
                    shape.table.cell(r, c).text = text
            slide.placeholders[1].element.getparent().remove(slide.placeholders[1].element)
            bottom = Inches(1.9) + height
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
    _repack(path)


def _repack(path: Path) -> None:
    """Write a zip archive again, the same on every day: fixed times, the same order."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    stamp = _MADE.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name, _MADE.timetuple()[:6])
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, _DATE.sub(lambda match: match[1] + stamp, data))


def _set_pdf(path: Path, header: str, columns: int) -> None:
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont
    from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate

    pdfmetrics.registerFont(TTFont("Sans", SANS_FONT, subfontIndex=0))
    width, height = A4
    margin = 18 * mm
    gap = 7 * mm
    frame_width = (width - 2 * margin - (columns - 1) * gap) / columns
    frames = [
        Frame(margin + i * (frame_width + gap), 22 * mm, frame_width, height - 46 * mm, id=str(i))
        for i in range(columns)
    ]
    document = BaseDocTemplate(str(path), pagesize=A4, invariant=1, title=path.stem)
    document.addPageTemplates(PageTemplate(frames=frames, onPage=partial(_decorate, header=header, size=A4)))
    document.build([flowable for part in SOURCES[path.name] for flowable in _flowables(part, frame_width - 14)])


def _decorate(canvas: Any, document: Any, header: str, size: tuple[float, float]) -> None:
    canvas.setFont("Sans", 8)
    canvas.drawRightString(size[0] - 51, size[1] - 40, header)
    canvas.line(51, size[1] - 46, size[0] - 51, size[1] - 46)
    canvas.drawRightString(size[0] - 51, 36, f"第{document.page}页")


def _flowables(part: Any, width: float) -> list[Any]:
    from reportlab.lib import colors
    from reportlab.platypus import Paragraph, Spacer, Table

    if isinstance(part, str):
        return [Paragraph(part, _style(10))]
    if isinstance(part, list):
        cells = [[Paragraph(cell, _style(8.5)) for cell in row] for row in part]
        grid: list[Any] = [
            ("GRID", (0, 0), (-1, -1), 0.5, colors.black),
            ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ]
        table = Table(cells, colWidths=[width / len(part[0])] * len(part[0]), repeatRows=1, style=grid)
        return [Spacer(1, 4), table, Spacer(1, 8)]
    if part[0] == "steps":
        return [Paragraph(f"（{i}）{step}", _style(10)) for i, step in enumerate(part[1:], start=1)]
    return [Paragraph(part[1], _style({"title": 18, "h1": 13, "h2": 11}[part[0]]))]


def _style(size: float) -> Any:
    from reportlab.lib.styles import ParagraphStyle

    before = size / 2 if size > 10 else 1
    return ParagraphStyle(
        "p", fontName="Sans", fontSize=size, leading=size * 1.55, wordWrap="CJK", spaceBefore=before, spaceAfter=3
    )


def _scan_page(path: Path) -> None:
    """Draw the page, turn it by 2.2 degrees, make it noisy, and put the picture into a PDF without text."""
    import numpy as np
    from PIL import Image, ImageFilter
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    image = _draw_page(SOURCES[path.name]).rotate(2.2, Image.Resampling.BICUBIC, fillcolor=246)
    image = image.filter(ImageFilter.GaussianBlur(0.6))
    noise = np.random.default_rng(1120).normal(0, 8, (_PAGE[1], _PAGE[0]))
    grey = np.clip(np.asarray(image, dtype=np.float64) + noise, 0, 255).astype(np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(grey).save(jpeg, "JPEG", quality=55)
    canvas = Canvas(str(path), pagesize=A4, invariant=1)
    canvas.drawImage(ImageReader(jpeg), 0, 0, *A4)
    canvas.save()


def _draw_page(story: list[Any]) -> Any:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", _PAGE, 246)
    draw = ImageDraw.Draw(image)
    title = ImageFont.truetype(SCAN_FONT, 42)
    text = ImageFont.truetype(SCAN_FONT, 26)
    y = 115.0
    for part in story:
        if isinstance(part, tuple):
            draw.text(((_PAGE[0] - draw.textlength(part[1], title)) / 2, y), part[1], 25, title)
            y += 95
        elif isinstance(part, list):
            width = (_RIGHT - _LEFT) / len(part[0])
            for row in part:
                for i, cell in enumerate(row):
                    x = _LEFT + i * width
                    draw.rectangle((x, y, x + width, y + 56), outline=80, width=2)
                    draw.text((x + (width - draw.textlength(cell, text)) / 2, y + 12), cell, 35, text)
                y += 56
            y += 34
        else:
            line = ""
            for character in part:
                if draw.textlength(line + character, text) > _RIGHT - _LEFT and character not in "，。；":
                    draw.text((_LEFT, y), line, 35, text)
                    y += 46
                    line = ""
                line += character
            draw.text((_LEFT, y), line, 35, text)
            y += 56
    return image
