"""The look of the files of `documents-8`."""

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
    quoted_mail_text,
    scan_page,
    set_pdf,
)
from .content import (
    JUBILEE,
    RESTOCK,
    RESTOCK_FIRST,
    RESTOCK_HEADERS,
    RESTOCK_SECOND,
    ROADWORK,
    SHIPS,
    SOURCES,
    TOURS,
    VEHICLES,
)

PRINTED = "泊云市图书馆读者服务指南-2027.pdf"
_MADE = datetime(2026, 11, 27, 4, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 12pt/1.8 "Noto Sans CJK SC"; color: #1d2530; }
        h1 { font-size: 21pt; font-weight: normal; text-align: center; color: #1f5c4a; }
        h2 { font-size: 14pt; font-weight: normal; color: #1f5c4a; border-left: 5pt solid #1f5c4a; padding-left: 7pt; }
        table { border-collapse: collapse; width: 100%; margin: 8pt 0; font-size: 10.5pt; }
        th { background: #e3efe9; text-align: left; font-weight: normal; }
        th, td { padding: 4pt 6pt; border-bottom: 0.5pt solid #a9c4b9; }
    """
_SCANS = {
    "芦花荡钓场收费-照片.pdf": ScanStyle(turn=1.5, seed=8051, noise=5.5, paper=238, row_height=57, shadow=30, lean=22),
    "望岳府验房记录-扫描件.pdf": ScanStyle(turn=-2.1, seed=4219, noise=4.5, row_height=54, cell_left=14, ink=40),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "洮州车驾管常见问题.html").write_text(VEHICLES, encoding="utf-8", newline="\n")
    (folder / "柳溪路雨污分流施工通知.txt").write_bytes(ROADWORK.replace("\n", "\r\n").encode("gb18030"))
    (folder / "百年校庆筹备会纪要-20261123.md").write_text(JUBILEE, encoding="utf-8", newline="\n")
    (folder / "曹湾港船舶进出登记-202611.csv").write_bytes(csv_text(SHIPS).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(RESTOCK, RESTOCK_SECOND, RESTOCK_FIRST), encoding="quoted-printable")
    mail = encode_mail(RESTOCK_HEADERS, [plain, MailPart("html", _mail_page())], boundary="----=_Part_8_20261126")
    (folder / "回复-一季度海外仓补货批次.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = (
        "".join(html_of_part(part) for part in mail) for mail in (RESTOCK, RESTOCK_SECOND, RESTOCK_FIRST)
    )
    return (
        "<html><head><style>table { border-collapse: collapse } td, th { border: 1px solid #bbb }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("海鹘风电场运维人员手册.docx", "海鹘风电场　HH-YW-2026", "第4版　受控文件，打印件仅供参考"),
        ("砚州市住宅装饰装修管理条例.docx", "砚州市人民代表大会常务委员会公告　第17号", ""),
        ("食材采购配送合同-明德学校.docx", "MD-SC-2026-31", "濮川市明德学校　绿垄农产品配送有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "云帆旅行社团期与报名-2027春.xlsx", TOURS, _MADE, width=14, title_size=13)
    name = "生鲜区损耗培训-202611.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.43)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "暖杏母婴护理中心入住手册-2026冬.pdf": PdfStyle(
            _running_lines("暖杏母婴护理中心", "入住手册　2026年冬季版"),
            margin=23,
            text_size=11,
            cell_size=9,
            leading=1.7,
            fit_columns=True,
            grid="tan",
            header_fill="linen",
        ),
        "第六届环碧湖公路自行车赛参赛手册.pdf": PdfStyle(
            _running_lines("第六届环碧湖公路自行车赛", "参赛手册"),
            columns=2,
            margin=15,
            gap=8,
            text_size=10.5,
            leading=1.7,
            cell_size=7.5,
            cell_padding=2,
            fit_columns=True,
            header_fill="lightcyan",
        ),
        "醇朴CM系列商用咖啡机使用手册.pdf": PdfStyle(
            _running_lines("醇朴CM系列商用咖啡机", "CP-UM-08"),
            margin=21,
            text_size=11,
            cell_size=9.5,
            leading=1.65,
            step="{number}）{text}",
            grid="silver",
            header_fill="",
            cell_alignment="MIDDLE",
        ),
    }
    for name, style in styles.items():
        set_pdf(folder / name, SOURCES[name], style)
    for name, scan in _SCANS.items():
        scan_page(folder / name, SOURCES[name], scan)


def make_print(folder: Path) -> None:
    """The page that Chromium prints."""
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="泊云市图书馆　读者服务指南")


def _running_lines(left: str, right: str) -> Callable[[Any, Any, tuple[float, float]], None]:
    """A header of two ends above a line; the page's number at the outer edge below, left on even pages."""

    def decorate(canvas: Any, document: Any, size: tuple[float, float]) -> None:
        canvas.setFont("Sans", 8.5)
        canvas.drawString(48, size[1] - 40, left)
        canvas.drawRightString(size[0] - 48, size[1] - 40, right)
        canvas.line(48, size[1] - 46, size[0] - 48, size[1] - 46)
        number = f"- {document.page} -"
        if document.page % 2:
            canvas.drawRightString(size[0] - 48, 32, number)
        else:
            canvas.drawString(48, 32, number)

    return decorate
