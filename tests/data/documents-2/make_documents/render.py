"""Set the words as people's programs set them: Word, Excel, PowerPoint, a browser's page, a mailer, a scanner."""

import base64
import io
import re
import zipfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from .content import MAIL, MAIL_HEADERS, PRICES, SOURCES, csv_text

SANS_FONT = "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc"  # Debian: fonts-wqy-zenhei
SCAN_FONT = "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc"  # Debian: fonts-wqy-microhei
_MADE = datetime(2026, 11, 2, 1, tzinfo=UTC)
_DATE = re.compile(rb"(<dcterms:(?:created|modified)[^>]*>)[^<]*")
_PAGE = (1240, 1754)  # A4 at 150 dots an inch
_LEFT, _RIGHT = 115, 1125


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)


def make_texts(folder: Path) -> None:
    """The pages, the notice, the mail and the records: the same bytes on every machine."""
    for name in ("寄宿生管理规定.html", "居住证办事指南.html"):
        (folder / name).write_text(SOURCES[name], encoding="utf-8", newline="\n")
    notice = SOURCES["外墙清洗和水箱消毒通知.txt"]
    (folder / "外墙清洗和水箱消毒通知.txt").write_bytes(notice.replace("\n", "\r\n").encode("gb18030"))
    (folder / "仪器借用登记-2026.csv").write_bytes(csv_text().encode("utf-8-sig"))
    (folder / "回复-苏州展会时间安排.eml").write_bytes(_mail())


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    _make_guide(folder / "日间手术患者指南.docx")
    _make_prices(folder / "烘焙原料报价单-2026秋.xlsx")
    _make_slides(folder / "第二食堂改造推进会-20261012.pptx")


def make_pdfs(folder: Path) -> None:
    """Two set pages and a picture of one; needs the fonts."""
    _set_pdf(folder / "直饮水设备采购安装合同.pdf", "云溪县第三中学 合同编号YX3-2026-044", columns=1)
    _set_pdf(folder / "DF系列除湿机使用说明书.pdf", "DF系列除湿机 使用说明书 V1.4", columns=2)
    _scan_page(folder / "游泳馆公示-扫描件.pdf")


def _mail() -> bytes:
    """A mail as mailers send it: headers in encoded words, the text in base64 of UTF-8."""
    from email.header import Header
    from email.utils import formataddr, parseaddr

    lines = []
    for name, value in MAIL_HEADERS.items():
        person, address = parseaddr(value) if name in ("From", "To", "Cc") else ("", "")
        coded = formataddr((person, address)) if person else value
        lines.append(f"{name}: {coded if coded.isascii() else Header(value, 'utf-8').encode()}")
    lines += ["MIME-Version: 1.0", 'Content-Type: text/plain; charset="utf-8"', "Content-Transfer-Encoding: base64"]
    body = base64.encodebytes(MAIL.encode()).decode("ascii")
    return "\r\n".join([*lines, "", *body.splitlines(), ""]).encode("ascii")


def _make_guide(path: Path) -> None:
    from docx import Document

    document = Document()
    document.core_properties.title = path.stem
    document.core_properties.created = document.core_properties.modified = _MADE
    document.sections[0].header.paragraphs[0].text = "湖东区人民医院　日间手术患者指南"
    document.sections[0].footer.paragraphs[0].text = "祝您早日康复"
    for part in SOURCES[path.name]:
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
    _repack(path)


def _add_word_table(document: Any, rows: list[tuple[str, ...]]) -> None:
    """A table whose equal neighbours in the first column are one cell."""
    table = document.add_table(rows=0, cols=len(rows[0]), style="Table Grid")
    for row in rows:
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    for first, last in _runs([row[0] for row in rows]):
        for number in range(first + 1, last + 1):
            table.cell(number, 0).text = ""
        table.cell(first, 0).merge(table.cell(last, 0)).text = rows[first][0]


def _runs(values: list[Any]) -> list[tuple[int, int]]:
    """Where two or more equal values stand together: the first and the last place."""
    runs, start = [], 0
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] != values[start]:
            if i - start > 1:
                runs.append((start, i - 1))
            start = i
    return runs


def _make_prices(path: Path) -> None:
    from openpyxl import Workbook
    from openpyxl.styles import Alignment

    book = Workbook()
    book.remove(book.active)
    book.properties.title = path.stem
    book.properties.created = book.properties.modified = _MADE.replace(tzinfo=None)
    for name, rows in PRICES.items():
        sheet = book.create_sheet(name)
        width = max(len(row) for row in rows)
        for row in rows:
            sheet.append(row)
        for number, row in enumerate(rows, start=1):
            if len(row) == 1:
                sheet.merge_cells(start_row=number, start_column=1, end_row=number, end_column=width)
        heads = 2 if rows[1][0] == rows[2][0] else 1
        for first, last in _runs([row[0] for row in rows]):
            if first >= heads:
                sheet.merge_cells(start_row=first + 1, start_column=1, end_row=last + 1, end_column=1)
        if heads == 2:
            sheet.merge_cells("E2:F2")
            for column in "ABCDGH":
                sheet.merge_cells(f"{column}2:{column}3")
        sheet["A1"].alignment = Alignment(horizontal="center")
        for column in "ABCDEFGH":
            sheet.column_dimensions[column].width = 16
    book.save(path)
    _repack(path)


def _make_slides(path: Path) -> None:
    from pptx import Presentation
    from pptx.util import Inches

    deck = Presentation()
    deck.core_properties.title = path.stem
    deck.core_properties.created = deck.core_properties.modified = _MADE
    slide: Any = None
    frame: Any = None
    for part in SOURCES[path.name]:
        if isinstance(part, list):
            shape = slide.shapes.add_table(
                len(part), len(part[0]), Inches(0.5), Inches(1.7), Inches(9), Inches(0.4 * len(part))
            )
            slide.placeholders[1].element.getparent().remove(slide.placeholders[1].element)
            for r, row in enumerate(part):
                for c, text in enumerate(row):
                    shape.table.cell(r, c).text = text
        elif isinstance(part, str):
            if frame is None:
                frame = slide.placeholders[1].text_frame
                frame.text = part
            else:
                frame.add_paragraph().text = part
        elif part[0] == "notes":
            slide.notes_slide.notes_text_frame.text = part[1]
        else:
            slide = deck.slides.add_slide(deck.slide_layouts[0 if part[0] == "title" else 1])
            frame = None
            slide.shapes.title.text = part[1]
            if part[0] == "title":
                slide.placeholders[1].text = part[2]
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
    margin, gap = 17 * mm, 8 * mm
    frame_width = (width - 2 * margin - (columns - 1) * gap) / columns
    frames = [
        Frame(margin + i * (frame_width + gap), 20 * mm, frame_width, height - 42 * mm, id=str(i))
        for i in range(columns)
    ]
    document = BaseDocTemplate(str(path), pagesize=A4, invariant=1, title=path.stem)
    document.addPageTemplates(PageTemplate(frames=frames, onPage=partial(_decorate, header=header, size=A4)))
    document.build([flowable for part in SOURCES[path.name] for flowable in _flowables(part, frame_width - 14)])


def _decorate(canvas: Any, document: Any, header: str, size: tuple[float, float]) -> None:
    canvas.setFont("Sans", 8)
    canvas.drawString(48, size[1] - 40, header)
    canvas.line(48, size[1] - 45, size[0] - 48, size[1] - 45)
    canvas.drawCentredString(size[0] / 2, 32, f"- {document.page} -")


def _flowables(part: Any, width: float) -> list[Any]:
    from reportlab.lib import colors
    from reportlab.platypus import Paragraph, Spacer, Table

    if isinstance(part, str):
        return [Paragraph(part, _style(9.5))]
    if isinstance(part, list):
        cells = [[Paragraph(cell, _style(8.5)) for cell in row] for row in part]
        grid: list[Any] = [("GRID", (0, 0), (-1, -1), 0.5, colors.grey), ("VALIGN", (0, 0), (-1, -1), "MIDDLE")]
        table = Table(cells, colWidths=[width / len(part[0])] * len(part[0]), repeatRows=1, style=grid)
        return [table, Spacer(1, 8)]
    if part[0] == "steps":
        return [Paragraph(f"{i}. {step}", _style(9.5)) for i, step in enumerate(part[1:], start=1)]
    return [Paragraph(part[1], _style({"title": 17, "h1": 12.5, "h2": 10.5}[part[0]]))]


def _style(size: float) -> Any:
    from reportlab.lib.styles import ParagraphStyle

    before = size / 2 if size > 10 else 1
    return ParagraphStyle(
        "p", fontName="Sans", fontSize=size, leading=size * 1.5, wordWrap="CJK", spaceBefore=before, spaceAfter=3
    )


def _scan_page(path: Path) -> None:
    """Draw the page, turn it by 1.4 degrees, make it noisy, and put the picture into a PDF without text."""
    import numpy as np
    from PIL import Image, ImageFilter
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    image = _draw_page(SOURCES[path.name]).rotate(-1.4, Image.Resampling.BICUBIC, fillcolor=250)
    image = image.filter(ImageFilter.GaussianBlur(0.6))
    noise = np.random.default_rng(26).normal(0, 7, (_PAGE[1], _PAGE[0]))
    grey = np.clip(np.asarray(image, dtype=np.float64) + noise, 0, 255).astype(np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(grey).save(jpeg, "JPEG", quality=55)
    canvas = Canvas(str(path), pagesize=A4, invariant=1)
    canvas.drawImage(ImageReader(jpeg), 0, 0, *A4)
    canvas.save()


def _draw_page(story: list[Any]) -> Any:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", _PAGE, 250)
    draw, y = ImageDraw.Draw(image), 120.0
    title, text = ImageFont.truetype(SCAN_FONT, 40), ImageFont.truetype(SCAN_FONT, 26)
    for part in story:
        if isinstance(part, tuple):
            draw.text(((_PAGE[0] - draw.textlength(part[1], title)) / 2, y), part[1], 25, title)
            y += 90
        elif isinstance(part, list):
            width = (_RIGHT - _LEFT) / len(part[0])
            for row in part:
                for i, cell in enumerate(row):
                    x = _LEFT + i * width
                    draw.rectangle((x, y, x + width, y + 52), outline=70, width=2)
                    draw.text((x + 14, y + 11), cell, 30, text)
                y += 52
            y += 30
        else:
            for start in range(0, len(part), 38):
                draw.text((_LEFT, y), part[start : start + 38], 30, text)
                y += 46
            y += 10
    return image
