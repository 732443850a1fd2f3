"""The look of the files of `documents-5`."""

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
    make_book,
    make_slides,
    make_word,
    print_page,
    scan_page,
    set_pdf,
)
from .content import GAS, MAIL, MAIL_HEADERS, MARKET, PARTS, RENTAL, SCHOOL_BUS, SOURCES

PRINTED = "百草里药房门店员工守则.pdf"
_MADE = datetime(2026, 11, 27, 1, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 11.5pt/1.75 "Noto Sans CJK SC"; } h1 { font-size: 21pt; text-align: center; color: #1d5c3a; }
        h2 { font-size: 14pt; font-weight: normal; background: #e6f2ea; padding: 3pt 8pt; } h3 { font-size: 12pt; font-weight: normal; }
        table { border-collapse: collapse; width: 100%; } th { border-bottom: 1.2pt solid #1d5c3a; text-align: left; font-weight: normal; }
        td { border-bottom: 0.5pt solid #bbb; padding: 5pt 6pt; } li { margin: 2pt 0; }
    """
_SCANS = {
    "窑边陶艺工坊价目-扫描件.pdf": ScanStyle(turn=2.4, seed=5127, noise=8, paper=242, row_height=58, shadow=22),
    "印务加工单-扫描件.pdf": ScanStyle(turn=-1.9, seed=908, noise=7, row_height=52, cell_top=10, cell_left=14, ink=45),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the mail and the records: the same bytes on every machine."""
    (folder / "澄溪燃气居民用户指南.html").write_text(GAS, encoding="utf-8", newline="\n")
    (folder / "河坊早市摊位调整通知.txt").write_bytes(MARKET.replace("\n", "\r\n").encode("gb18030"))
    (folder / "备件台账-202611.csv").write_bytes(csv_text(PARTS).encode("utf-8"))
    part = MailPart("plain", MAIL, encoding="quoted-printable")
    (folder / "答复-新楼家具进场时间.eml").write_bytes(encode_mail(MAIL_HEADERS, [part]))


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("澜州市建筑垃圾运输管理办法.docx", "澜州市人民政府令　第87号", ""),
        ("青坡污水处理厂化验室作业规程.docx", "青坡水务　受控文件", "QP-HY-03　第4版"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    for name, sheets in (("灯光音响租赁价目-2027春.xlsx", RENTAL), ("校车线路与值班-2026冬.xlsx", SCHOOL_BUS)):
        make_book(folder / name, sheets, _MADE, width=15, title_size=14)
    make_slides(folder / "松鹤苑流感季照护部署.pptx", SOURCES["松鹤苑流感季照护部署.pptx"], _MADE, row_height=0.4)


def make_pdfs(folder: Path) -> None:
    """Two set documents and two pictures of pages; needs the fonts."""
    handbook = PdfStyle(
        _running_header("澄湖乳业员工手册", "人力资源部　2026年版"),
        columns=2,
        margin=19,
        gap=8,
        text_size=11.5,
        cell_size=8.5,
        cell_padding=3,
        fit_columns=True,
        leading=1.8,
        grid="darkgrey",
    )
    set_pdf(folder / "澄湖乳业员工手册-2026版.pdf", SOURCES["澄湖乳业员工手册-2026版.pdf"], handbook)
    header = _running_header("XJ系列商用洗碗机", "2026-C")
    manual = PdfStyle(header, margin=22, step="{number}. {text}", header_fill="lightgrey")
    set_pdf(folder / "洁浪商用洗碗机使用说明书.pdf", SOURCES["洁浪商用洗碗机使用说明书.pdf"], manual)
    for name, style in _SCANS.items():
        scan_page(folder / name, SOURCES[name], style)


def make_print(folder: Path) -> None:
    """The page that Chromium prints."""
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="百草里药房　门店员工守则")


def _running_header(left: str, right: str) -> Callable[[Any, Any, tuple[float, float]], None]:
    """A header on both sides, and the page's number at the outer edge of the foot."""

    def decorate(canvas: Any, document: Any, size: tuple[float, float]) -> None:
        canvas.setFont("Sans", 8)
        canvas.drawString(46, size[1] - 38, left)
        canvas.drawRightString(size[0] - 46, size[1] - 38, right)
        canvas.line(46, size[1] - 44, size[0] - 46, size[1] - 44)
        number = f"第 {document.page} 页"
        if document.page % 2:
            canvas.drawRightString(size[0] - 46, 32, number)
        else:
            canvas.drawString(46, 32, number)

    return decorate
