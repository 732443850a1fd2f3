"""The look of the files of `documents-12`."""

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
    ALARMS,
    HIVES,
    HIVES_FIRST,
    HIVES_HEADERS,
    HIVES_SECOND,
    HOUSING,
    LIBRARY,
    PIANO,
    RENTAL,
    SOURCES,
)

PRINTED = "梅坞社区卫生服务中心就诊须知-2027.pdf"
_MADE = datetime(2026, 11, 27, 9, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 11pt/1.8 "Noto Sans CJK SC"; color: #2a2526; }
        h1 { font-size: 22pt; font-weight: normal; color: #6b2d3c; border-bottom: 2pt solid #6b2d3c; }
        h2 { font-size: 13.5pt; font-weight: normal; color: #6b2d3c; margin-top: 16pt; }
        table { border-collapse: collapse; width: 100%; margin: 8pt 0; font-size: 10pt; }
        th { text-align: left; font-weight: normal; color: #6b2d3c; border-bottom: 1pt solid #6b2d3c; }
        th, td { padding: 4.5pt 5pt; }
        td { border-bottom: 0.5pt solid #dcc6cb; }
    """
_SCANS = {
    "正音琴坊调律价目-照片.pdf": ScanStyle(
        turn=-1.5, seed=5127, noise=5.4, paper=239, row_height=57, shadow=30, lean=20
    ),
    "慢病随访记录-扫描件.pdf": ScanStyle(turn=1.7, seed=8819, noise=5.3, row_height=56, ink=42, outline=95),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "甘棠公租房常见问题.html").write_text(HOUSING, encoding="utf-8", newline="\n")
    (folder / "鹤鸣路图书馆闭馆还书通知.txt").write_bytes(LIBRARY.replace("\n", "\r\n").encode("gb18030"))
    (folder / "弦外钢琴学校教务会纪要-20261125.md").write_text(PIANO, encoding="utf-8", newline="\n")
    (folder / "消防站出警登记-202611.csv").write_bytes(csv_text(ALARMS).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(HIVES, HIVES_SECOND, HIVES_FIRST), encoding="quoted-printable")
    mail = encode_mail(HIVES_HEADERS, [plain, MailPart("html", _mail_page())], boundary="----=_Part_12_20261125")
    (folder / "答复-春季蜂群转场安排.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = (
        "".join(html_of_part(part) for part in mail) for mail in (HIVES, HIVES_SECOND, HIVES_FIRST)
    )
    return (
        "<html><head><style>table { border-collapse: collapse } td, th { border: 1px solid #aaa }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("星芽幼儿园保育作业手册.docx", "星芽幼儿园　XY-BY-2026", "第6版　每班留一本，保健室存底"),
        ("蒲原市养蜂和蜜源植物保护条例.docx", "蒲原市人民代表大会常务委员会公告　第23号", ""),
        ("冷库仓储服务合同-鲜途生鲜.docx", "BX-CC-2026-187", "鲜途生鲜商贸有限公司　冰弦冷链物流有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "安巢租房房源与租客-2027春.xlsx", RENTAL, _MADE, width=14, title_size=15)
    name = "捷鹿租车交车还车培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "囍棠宴会中心婚宴客户手册-2027版.pdf": PdfStyle(
            mirrored_header("囍棠宴会中心", "婚宴客户手册　2027年版"),
            margin=22,
            text_size=12,
            cell_size=10,
            leading=1.7,
            fit_columns=True,
            grid="rosybrown",
            header_fill="seashell",
        ),
        "第三届企业专职消防队技能比武参赛手册.pdf": PdfStyle(
            mirrored_header("第三届企业专职消防队技能比武", "参赛手册"),
            columns=2,
            margin=16,
            gap=8,
            text_size=10.5,
            leading=1.75,
            cell_size=7.5,
            cell_padding=2,
            fit_columns=True,
            header_fill="lightyellow",
        ),
        "升悦VH系列家用电梯用户手册.pdf": PdfStyle(
            mirrored_header("升悦VH系列家用电梯", "VH-UM-11"),
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="梅坞社区卫生服务中心　就诊须知")
