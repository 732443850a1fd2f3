"""The look of the files of `documents-4`."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..render import (
    MailPart,
    PdfStyle,
    ScanStyle,
    csv_text,
    encode_mail,
    html_of_part,
    make_book,
    make_slides,
    make_word,
    print_page,
    scan_page,
    set_pdf,
)
from .content import BLOOD, FREIGHT, MAIL, MAIL_HEADERS, OLD_MAIL, ORCHARD, SHIFTS, SOURCES, VET

PRINTED = "既有住宅加装电梯办事指南.pdf"
_MADE = datetime(2026, 11, 26, 3, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 10.5pt/1.6 "Noto Sans CJK SC"; } h1 { font-size: 18pt; text-align: center; }
        h2 { font-size: 12.5pt; border-left: 3pt solid #345; padding-left: 5pt; }
        table { border-collapse: collapse; width: 100%; } th { background: #dfe7f2; }
        th, td { border: 0.5pt solid #99a; padding: 3pt 6pt; text-align: center; }
    """
_SCANS = {
    "老年大学春季招生-扫描件.pdf": ScanStyle(turn=-2.7, seed=1126, noise=8, row_height=54, shadow=30),
    "汽车维修结算单-扫描件.pdf": ScanStyle(turn=1.7, seed=4427, noise=9, paper=240, cell_left=16, outline=95),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the mail and the records: the same bytes on every machine."""
    (folder / "安安动物医院就诊须知.html").write_text(VET, encoding="utf-8", newline="\n")
    (folder / "献血车进园区通知.txt").write_bytes(BLOOD.replace("\n", "\r\n").encode("gb18030"))
    (folder / "云岭果园农事记录-2026.csv").write_bytes(csv_text(ORCHARD).encode("utf-8-sig"))
    page = MailPart("html", _mail_page(), charset="gb18030")
    (folder / "转发-十二月巡演行程.eml").write_bytes(encode_mail(MAIL_HEADERS, [page]))


def _mail_page() -> str:
    """The mail is a page only, as Outlook sends it; the earlier mail stands below, marked as a quotation."""
    body = "".join(html_of_part(part) for part in MAIL)
    quotation = "".join(html_of_part(part) for part in OLD_MAIL)
    style = "p { margin: 0 0 8px } td, th { border: 1px solid #888 }"
    return (
        f"<html><head><style>{style}</style></head><body>{body}<hr><blockquote>{quotation}</blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("分析测试平台预约与收费办法.docx", "沧江大学分析测试平台文件", "沧测〔2026〕9号"),
        ("青榆羽毛球俱乐部会员手册.docx", "青榆羽毛球俱乐部", "打球让人年轻"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    for name, sheets in (("宁波拼箱运价与船期-2026年12月.xlsx", FREIGHT), ("冲压车间排班与点检-第49周.xlsx", SHIFTS)):
        make_book(folder / name, sheets, _MADE, width=14, title_size=13)
    make_slides(folder / "和悦城消防演练部署.pptx", SOURCES["和悦城消防演练部署.pptx"], _MADE)


def make_pdfs(folder: Path) -> None:
    """Two set documents and two pictures of pages; needs the fonts."""
    till = PdfStyle(_header_of("同舟收银系统 V5.3"), columns=2, grid="grey", step="{number}) {text}")
    set_pdf(folder / "同舟收银系统操作手册.pdf", SOURCES["同舟收银系统操作手册.pdf"], till)
    conference = PdfStyle(_header_of("BHM 2026　会议手册"), cell_alignment="MIDDLE", header_fill="lightgrey")
    set_pdf(folder / "桥梁健康监测会议手册.pdf", SOURCES["桥梁健康监测会议手册.pdf"], conference)
    for name, style in _SCANS.items():
        scan_page(folder / name, SOURCES[name], style)


def make_print(folder: Path) -> None:
    """The page that Chromium prints."""
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="砚山区住房和建设局")


def _header_of(header: str) -> Callable[[Any, Any, tuple[float, float]], None]:
    """A header whose sides change from page to page, and the page's number in the middle of the foot."""

    def decorate(canvas: Any, document: Any, size: tuple[float, float]) -> None:
        canvas.setFont("Sans", 8)
        if document.page % 2:
            canvas.drawRightString(size[0] - 51, size[1] - 40, header)
        else:
            canvas.drawString(51, size[1] - 40, header)
        canvas.line(51, size[1] - 46, size[0] - 51, size[1] - 46)
        canvas.drawCentredString(size[0] / 2, 34, str(document.page))

    return decorate
