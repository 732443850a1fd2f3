"""The look of the files of `documents-16`."""

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
    FABRIC,
    INTERN,
    LOAN,
    LOAN_FIRST,
    LOAN_HEADERS,
    LOAN_SECOND,
    LOST,
    MARKET,
    SKILL,
    SOURCES,
)

PRINTED = "云津热气球飞行与体验乘客须知-2027.pdf"
_MADE = datetime(2026, 11, 28, 9, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 11pt/1.7 "Noto Sans CJK SC"; color: #2a2320; }
        h1 { font-size: 20pt; font-weight: normal; color: #8a3b12; text-align: center; }
        h2 { font-size: 13pt; font-weight: normal; color: #8a3b12; border-bottom: 1pt solid #8a3b12; }
        table { border-collapse: collapse; width: 100%; margin: 8pt 0; font-size: 9.5pt; }
        th { text-align: left; font-weight: normal; background: #f6e9df; }
        th, td { padding: 4pt 5pt; border-top: 0.5pt solid #cfae97; border-bottom: 0.5pt solid #cfae97; }
    """
_SCANS = {
    "墨缘斋装裱价目-照片.pdf": ScanStyle(turn=-1.3, seed=1681, noise=5.1, paper=237, row_height=58, shadow=27, lean=17),
    "铸造炉前化验记录-扫描件.pdf": ScanStyle(turn=1.9, seed=2816, noise=5.6, row_height=57, ink=41, outline=90),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "沣阳职业技能等级认定常见问题.html").write_text(SKILL, encoding="utf-8", newline="\n")
    (folder / "南站小商品市场搬迁通知.txt").write_bytes(MARKET.replace("\n", "\r\n").encode("gb18030"))
    (folder / "永宁职校岗位实习协调会纪要-20261127.md").write_text(INTERN, encoding="utf-8", newline="\n")
    (folder / "古镇景区失物招领登记-202611.csv").write_bytes(csv_text(LOST).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(LOAN, LOAN_SECOND, LOAN_FIRST))
    html = MailPart("html", _mail_page(), encoding="quoted-printable")
    mail = encode_mail(LOAN_HEADERS, [plain, html], boundary="----=_Part_16_20261125")
    (folder / "答复-远山近水巡展借展安排.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = ("".join(html_of_part(part) for part in mail) for mail in (LOAN, LOAN_SECOND, LOAN_FIRST))
    return (
        "<html><head><style>td, th { border: 1px solid #bbb; padding: 3px }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("金穗啤酒厂酿造车间作业手册.docx", "金穗啤酒厂　JS-NZ-06", "第6版　受控文件，不得带出厂区"),
        ("琅川市民宿管理条例.docx", "琅川市人民代表大会常务委员会公告　第27号", ""),
        ("直播带货服务合同-槐香食品.docx", "HX-ZB-2026-073", "槐香食品有限公司　热浪传媒有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "云梭面料报价与订单-2027春.xlsx", FABRIC, _MADE, width=13, title_size=14)
    name = "分拣中心新员工培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "砚峰天文馆与观星营地来宾手册-2027版.pdf": PdfStyle(
            mirrored_header("砚峰天文馆", "来宾手册　2027年版"),
            margin=20,
            text_size=11.5,
            cell_size=9.5,
            leading=1.7,
            fit_columns=True,
            grid="slategray",
            header_fill="lavender",
        ),
        "宏途中欧班列客户手册-2027版.pdf": PdfStyle(
            mirrored_header("宏途国际货运", "中欧班列客户手册"),
            columns=2,
            margin=16,
            gap=8,
            text_size=10.5,
            leading=1.7,
            cell_size=7.5,
            cell_padding=2,
            fit_columns=True,
            header_fill="mistyrose",
        ),
        "锐川LC系列激光切割机操作手册.pdf": PdfStyle(
            mirrored_header("锐川LC系列激光切割机", "RC-OM-0916"),
            margin=21,
            text_size=11,
            cell_size=9,
            leading=1.65,
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="云津热气球　乘客须知")
