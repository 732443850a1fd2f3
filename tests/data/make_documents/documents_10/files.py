"""The look of the files of `documents-10`."""

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
    COOP,
    GIFTS,
    GIFTS_FIRST,
    GIFTS_HEADERS,
    GIFTS_SECOND,
    LEGAL,
    PETS,
    PROPERTY,
    SCHOOL,
    SOURCES,
)

PRINTED = "碧螺谷温泉来宾须知-2027.pdf"
_MADE = datetime(2026, 11, 28, 8, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 11.5pt/1.75 "Noto Sans CJK SC"; color: #24282c; }
        h1 { font-size: 22pt; font-weight: normal; color: #1f4e5f; border-bottom: 2pt solid #1f4e5f; }
        h2 { font-size: 13.5pt; font-weight: normal; color: #1f4e5f; margin-top: 16pt; }
        table { border-collapse: collapse; width: 100%; margin: 8pt 0; font-size: 10pt; }
        th { text-align: left; font-weight: normal; color: #1f4e5f; border-bottom: 1pt solid #1f4e5f; }
        th, td { padding: 4.5pt 5pt; }
        td { border-bottom: 0.5pt solid #bfd0d6; }
    """
_SCANS = {
    "老郑钟表维修价目-照片.pdf": ScanStyle(
        turn=-1.6, seed=4219, noise=5.2, paper=238, row_height=56, shadow=32, lean=18
    ),
    "助听器验配记录-扫描件.pdf": ScanStyle(turn=1.8, seed=7703, noise=5, row_height=55, ink=40, outline=92),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "汨阳不动产登记常见问题.html").write_text(PROPERTY, encoding="utf-8", newline="\n")
    (folder / "枫桥小学过渡校区搬迁通知.txt").write_bytes(SCHOOL.replace("\n", "\r\n").encode("gb18030"))
    (folder / "双河柑橘合作社理事会纪要-20261124.md").write_text(COOP, encoding="utf-8", newline="\n")
    (folder / "法律援助受理登记-202611.csv").write_bytes(csv_text(LEGAL).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(GIFTS, GIFTS_SECOND, GIFTS_FIRST), encoding="quoted-printable")
    mail = encode_mail(GIFTS_HEADERS, [plain, MailPart("html", _mail_page())], boundary="----=_Part_10_20261126")
    (folder / "答复-年货礼盒发货安排.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = (
        "".join(html_of_part(part) for part in mail) for mail in (GIFTS, GIFTS_SECOND, GIFTS_FIRST)
    )
    return (
        "<html><head><style>table { border-collapse: collapse } td, th { border: 1px solid #aaa }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("云麓动物园饲养作业手册.docx", "云麓动物园　YL-SY-2026", "第4版　各馆值班室留一本，不外借"),
        ("宁浦市古树名木保护条例.docx", "宁浦市人民代表大会常务委员会公告　第17号", ""),
        ("医用织物洗涤合同-泽和医院.docx", "ZH-XD-2026-044", "睦州泽和医院　白浪纺织洗涤有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "毛团宠物寄养价目与登记-2027春.xlsx", PETS, _MADE, width=15, title_size=14)
    name = "影城值班服务培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "稳当搬家客户服务手册-2027版.pdf": PdfStyle(
            mirrored_header("稳当搬家", "客户服务手册　2027年版"),
            margin=22,
            text_size=11,
            cell_size=9.5,
            leading=1.65,
            fit_columns=True,
            grid="seagreen",
            header_fill="honeydew",
        ),
        "第五届星砂杯机器人挑战赛参赛手册.pdf": PdfStyle(
            mirrored_header("第五届星砂杯机器人挑战赛", "参赛手册"),
            columns=2,
            margin=16,
            gap=8,
            text_size=10.5,
            leading=1.75,
            cell_size=7.5,
            cell_padding=2,
            fit_columns=True,
            header_fill="mistyrose",
        ),
        "迈途EW系列电动轮椅用户手册.pdf": PdfStyle(
            mirrored_header("迈途EW系列电动轮椅", "EW-UM-06"),
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="碧螺谷温泉　来宾须知")
