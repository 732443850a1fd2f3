"""The look of the files of `documents-9`."""

from datetime import UTC, datetime
from pathlib import Path

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
    AUCTION,
    COMMITTEE,
    FERRY,
    KNIT,
    KNIT_FIRST,
    KNIT_HEADERS,
    KNIT_SECOND,
    MEDICAL,
    MUSIC,
    SOURCES,
)

PRINTED = "鹭汀房车露营地入营须知-2027.pdf"
_MADE = datetime(2026, 11, 27, 8, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 11.5pt/1.75 "Noto Sans CJK SC"; color: #222a24; }
        h1 { font-size: 22pt; font-weight: normal; color: #7a4b1e; border-bottom: 2pt solid #7a4b1e; }
        h2 { font-size: 13.5pt; font-weight: normal; color: #7a4b1e; margin-top: 16pt; }
        table { border-collapse: collapse; width: 100%; margin: 8pt 0; font-size: 10pt; }
        th { text-align: left; font-weight: normal; color: #7a4b1e; border-bottom: 1pt solid #7a4b1e; }
        th, td { padding: 4.5pt 5pt; }
        td { border-bottom: 0.5pt solid #dccbb6; }
    """
_SCANS = {
    "留影照相馆价目-照片.pdf": ScanStyle(turn=-1.4, seed=9107, noise=5, paper=236, row_height=56, shadow=34, lean=20),
    "岩茶审评记录-扫描件.pdf": ScanStyle(turn=1.9, seed=6343, noise=4.8, row_height=55, ink=42, outline=95),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "芷州医保常见问题.html").write_text(MEDICAL, encoding="utf-8", newline="\n")
    (folder / "松屿渡口码头改造通知.txt").write_bytes(FERRY.replace("\n", "\r\n").encode("gb18030"))
    (folder / "锦帆家园业委会纪要-20261122.md").write_text(COMMITTEE, encoding="utf-8", newline="\n")
    (folder / "秋拍成交登记-202611.csv").write_bytes(csv_text(AUCTION).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(KNIT, KNIT_SECOND, KNIT_FIRST), encoding="quoted-printable")
    mail = encode_mail(KNIT_HEADERS, [plain, MailPart("html", _mail_page())], boundary="----=_Part_9_20261125")
    (folder / "答复-27春夏羊绒排产.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = ("".join(html_of_part(part) for part in mail) for mail in (KNIT, KNIT_SECOND, KNIT_FIRST))
    return (
        "<html><head><style>table { border-collapse: collapse } td, th { border: 1px solid #aaa }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("临岐地铁车站客运作业手册.docx", "临岐地铁　LQ-KY-2026", "第6版　车控室留存一份，不得带离车站"),
        ("青岫市户外广告和招牌设施管理条例.docx", "青岫市人民代表大会常务委员会公告　第22号", ""),
        ("保安服务合同-星澜数据产业园.docx", "XL-BA-2026-019", "星澜数据产业园　盾垣保安服务有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "澜音琴行课程与学员-2027春.xlsx", MUSIC, _MADE, width=15, title_size=14)
    name = "加油站安全与服务培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "驿行租车客户服务手册-2027版.pdf": PdfStyle(
            mirrored_header("驿行租车", "客户服务手册　2027年版"),
            margin=22,
            text_size=11,
            cell_size=9.5,
            leading=1.65,
            fit_columns=True,
            grid="steelblue",
            header_fill="aliceblue",
        ),
        "第三届云河合唱节参演手册.pdf": PdfStyle(
            mirrored_header("第三届云河合唱节", "参演手册"),
            columns=2,
            margin=16,
            gap=8,
            text_size=10.5,
            leading=1.65,
            cell_size=7.5,
            cell_padding=2,
            fit_columns=True,
            header_fill="lavender",
        ),
        "叠纪DJ系列3D打印机用户手册.pdf": PdfStyle(
            mirrored_header("叠纪DJ系列3D打印机", "DJ-UM-11"),
            margin=20,
            text_size=11,
            cell_size=9,
            leading=1.7,
            step="{number}. {text}",
            grid="darkgray",
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="鹭汀房车露营地　入营须知")
