"""The look of the files of `documents-11`."""

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
    mirrored_header,
    print_page,
    quoted_mail_text,
    scan_page,
    set_pdf,
)
from .content import (
    FISH,
    KILN,
    KILN_FIRST,
    KILN_HEADERS,
    KILN_SECOND,
    METERS,
    OPERA,
    PASSPORT,
    PAWN,
    SOURCES,
)

PRINTED = "沧浪谷水上乐园游客须知-2027.pdf"
_MADE = datetime(2026, 11, 29, 8, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 11pt/1.7 "Noto Sans CJK SC"; color: #1d2b33; }
        h1 { font-size: 24pt; font-weight: normal; text-align: center; color: #0b6fa4; margin-bottom: 4pt; }
        h2 { font-size: 13pt; font-weight: normal; color: #0b6fa4; margin-top: 15pt; }
        table { border-collapse: collapse; width: 100%; margin: 8pt 0; font-size: 9.5pt; }
        th { color: #0b6fa4; font-weight: normal; border-top: 1.5pt solid #0b6fa4; border-bottom: 0.75pt solid #0b6fa4; }
        th, td { padding: 4pt 5pt; text-align: center; }
        tr:nth-child(odd) td { border-bottom: 0.5pt solid #9cc4da; }
    """
_SCANS = {
    "新翰快印价目-照片.pdf": ScanStyle(
        turn=1.4, seed=9137, noise=4.3, paper=236, row_height=54, ink=42, shadow=36, lean=20
    ),
    "充电站月度检测记录-扫描件.pdf": ScanStyle(
        turn=-1.9, seed=2684, noise=4.4, row_height=57, ink=38, outline=88, cell_left=14
    ),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "渌州护照和通行证办理问答.html").write_text(PASSPORT, encoding="utf-8", newline="\n")
    (folder / "锦云里换水表和泵房改造通知.txt").write_bytes(METERS.replace("\n", "\r\n").encode("gb18030"))
    (folder / "桐州越剧团例会纪要-20261123.md").write_text(OPERA, encoding="utf-8", newline="\n")
    (folder / "水产批发市场成交登记-202611.csv").write_bytes(csv_text(FISH).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(KILN, KILN_SECOND, KILN_FIRST), encoding="quoted-printable")
    mail = encode_mail(KILN_HEADERS, [plain, MailPart("html", _mail_page())], boundary="----=_Part_11_20261125")
    (folder / "回复-春节茶具烧窑排期.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = ("".join(html_of_part(part) for part in mail) for mail in (KILN, KILN_SECOND, KILN_FIRST))
    return (
        "<html><head><style>table { border-collapse: collapse } td, th { border: 1px solid #999 }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("沐河公交营运作业手册-第7版.docx", "沐河公交集团　MHGJ-YY-07", "营运部编　驾驶员人手一册"),
        ("临渚市噪声污染防治条例.docx", "临渚市人民代表大会常务委员会公告　第23号", ""),
        ("学生校服采购合同-尚进中学.docx", "SJ-XF-2026-018", "澧口市尚进中学　素衣坊服饰有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "裕丰典当息费与当票登记-2026冬.xlsx", PAWN, _MADE, width=16, title_size=13)
    name = "口腔门诊前台接诊培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.45)


def _banner(canvas: Any, document: Any, size: tuple[float, float]) -> None:
    """The name of the camp on the first page only, the page's number at the outer edge of every page."""
    canvas.setFont("Sans", 8.5)
    if document.page == 1:
        canvas.drawCentredString(size[0] / 2, size[1] - 40, "青藤户外教育　家长手册　请随身携带")
    outer = size[0] - 46 if document.page % 2 else 46
    canvas.drawCentredString(outer, 32, f"- {document.page} -")


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "凌翼无人机驾校学员手册-2027版.pdf": PdfStyle(
            mirrored_header("凌翼无人机驾驶培训学校", "学员手册　2027年版"),
            margin=21,
            text_size=10.5,
            cell_size=9,
            leading=1.65,
            fit_columns=True,
            grid="steelblue",
            header_fill="aliceblue",
        ),
        "青藤夏令营2027年家长手册.pdf": PdfStyle(
            _banner,
            columns=2,
            margin=15,
            gap=8,
            text_size=10,
            leading=1.7,
            cell_size=7.5,
            cell_padding=2,
            fit_columns=True,
            header_fill="lightyellow",
        ),
        "沐氧OX系列家用制氧机用户手册.pdf": PdfStyle(
            mirrored_header("沐氧OX系列家用制氧机", "OX-UM-2026-C"),
            margin=20,
            text_size=10.5,
            cell_size=9,
            leading=1.7,
            step="{number}) {text}",
            grid="gray",
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="沧浪谷水上乐园　游客须知")
