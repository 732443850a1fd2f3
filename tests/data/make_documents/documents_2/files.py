"""The look of the files of `documents-2`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..render import (
    MailPart,
    PdfStyle,
    ScanStyle,
    csv_text,
    encode_mail,
    make_book,
    make_slides,
    make_word,
    scan_page,
    set_pdf,
)
from .content import LOANS, MAIL, MAIL_HEADERS, PRICES, SOURCES

_MADE = datetime(2026, 11, 2, 1, tzinfo=UTC)
_SCAN = ScanStyle(
    turn=-1.4,
    seed=26,
    noise=7,
    paper=250,
    left=115,
    right=1125,
    top=120,
    title_size=40,
    title_height=90,
    ink=30,
    row_height=52,
    cell_top=11,
    cell_left=14,
    outline=70,
    after_table=30,
    line_length=38,
)


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
    (folder / "仪器借用登记-2026.csv").write_bytes(csv_text(LOANS).encode("utf-8-sig"))
    (folder / "回复-苏州展会时间安排.eml").write_bytes(encode_mail(MAIL_HEADERS, [MailPart("plain", MAIL)]))


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    guide = folder / "日间手术患者指南.docx"
    make_word(guide, SOURCES[guide.name], _MADE, header="湖东区人民医院　日间手术患者指南", footer="祝您早日康复")
    make_book(folder / "烘焙原料报价单-2026秋.xlsx", PRICES, _MADE, width=16)
    slides = folder / "第二食堂改造推进会-20261012.pptx"
    make_slides(slides, SOURCES[slides.name], _MADE, table_top=1.7, row_height=0.4)


def make_pdfs(folder: Path) -> None:
    """Two set pages and a picture of one; needs the fonts."""
    for name, header, columns in (
        ("直饮水设备采购安装合同.pdf", "云溪县第三中学 合同编号YX3-2026-044", 1),
        ("DF系列除湿机使用说明书.pdf", "DF系列除湿机 使用说明书 V1.4", 2),
    ):
        set_pdf(folder / name, SOURCES[name], _pdf_style(header, columns))
    scan_page(folder / "游泳馆公示-扫描件.pdf", SOURCES["游泳馆公示-扫描件.pdf"], _SCAN)


def _pdf_style(header: str, columns: int) -> PdfStyle:
    def decorate(canvas: Any, document: Any, size: tuple[float, float]) -> None:
        canvas.setFont("Sans", 8)
        canvas.drawString(48, size[1] - 40, header)
        canvas.line(48, size[1] - 45, size[0] - 48, size[1] - 45)
        canvas.drawCentredString(size[0] / 2, 32, f"- {document.page} -")

    return PdfStyle(
        decorate,
        columns,
        margin=17,
        gap=8,
        bottom=20,
        top=22,
        text_size=9.5,
        heading_sizes={"title": 17, "h1": 12.5, "h2": 10.5},
        leading=1.5,
        step="{number}. {text}",
        grid="grey",
        header_fill="",
        cell_alignment="MIDDLE",
        space_before_table=0,
    )
