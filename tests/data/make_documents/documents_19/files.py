"""The look of the files of `documents-19`."""

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
    CLINIC,
    ESTATE,
    HAUL,
    HAUL_FIRST,
    HAUL_HEADERS,
    HAUL_SECOND,
    KOI,
    NOTARY,
    SENIOR,
    SOURCES,
)

PRINTED = "沂川市乒乓球联合会联赛手册-2027.pdf"
_MADE = datetime(2026, 11, 30, 9, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 10.5pt/1.7 "Noto Sans CJK SC"; color: #20242a; }
        h1 { font-size: 20pt; font-weight: normal; color: #1b4f72; border-left: 6pt solid #1b4f72; padding-left: 8pt; }
        h2 { font-size: 12.5pt; font-weight: normal; color: #1b4f72; }
        table { border-collapse: collapse; width: 100%; margin: 6pt 0; font-size: 9.5pt; }
        th { text-align: left; font-weight: normal; border-bottom: 1.2pt solid #1b4f72; }
        td { text-align: left; border-bottom: 0.4pt dotted #7f8c8d; }
        th, td { padding: 4pt 6pt; }
    """
_SCANS = {
    "剪云理发店价目-照片.pdf": ScanStyle(turn=-1.4, seed=1903, noise=5.4, paper=237, row_height=58, shadow=27, lean=16),
    "食堂留样登记单-扫描件.pdf": ScanStyle(turn=1.9, seed=2919, noise=5.9, row_height=59, ink=42, outline=94),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "宁淮公证办证常见问题.html").write_text(NOTARY, encoding="utf-8", newline="\n")
    (folder / "槐安里小区车位轮换和门禁换卡通知.txt").write_bytes(ESTATE.replace("\n", "\r\n").encode("gb18030"))
    (folder / "汀兰高中高三备考例会纪要-20261127.md").write_text(SENIOR, encoding="utf-8", newline="\n")
    (folder / "中学校医室就诊登记-202611.csv").write_bytes(csv_text(CLINIC).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(HAUL, HAUL_SECOND, HAUL_FIRST))
    html = MailPart("html", _mail_page(), encoding="quoted-printable")
    mail = encode_mail(HAUL_HEADERS, [plain, html], boundary="----=_Part_19_20261127")
    (folder / "答复-盾构机部件海运发运安排.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = ("".join(html_of_part(part) for part in mail) for mail in (HAUL, HAUL_SECOND, HAUL_FIRST))
    return (
        "<html><head><style>td, th { border: 1px solid #aaa; padding: 4px }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("杏花坞猕猴桃合作社种植和采收作业手册.docx", "杏花坞猕猴桃合作社　XH-ZY-03", "第3版　社员每户一册"),
        ("珩州市城市公园管理条例.docx", "珩州市人民代表大会常务委员会公告　第17号", ""),
        ("员工通勤班车租赁服务合同-皓元精密.docx", "HY-BC-2026-073", "皓元精密制造有限公司　通泰客运服务有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "碧漪锦鲤渔场价目与订单-2027春.xlsx", KOI, _MADE, width=14, title_size=14)
    name = "外卖骑手站点上岗培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "鲸湾集装箱码头客户服务手册-2027版.pdf": PdfStyle(
            mirrored_header("鲸湾集装箱码头", "客户服务手册　2027年版"),
            margin=19,
            text_size=11,
            cell_size=9,
            leading=1.7,
            fit_columns=True,
            grid="slategray",
            header_fill="lavender",
        ),
        "知柏医院影像中心受检者须知-2027版.pdf": PdfStyle(
            mirrored_header("知柏医院影像中心", "受检者须知"),
            columns=2,
            margin=16,
            gap=8,
            text_size=10.5,
            leading=1.7,
            cell_size=7.5,
            cell_padding=2,
            fit_columns=True,
            header_fill="honeydew",
        ),
        "沛然DG系列柴油发电机组使用手册.pdf": PdfStyle(
            mirrored_header("沛然DG系列柴油发电机组", "PR-UM-2093"),
            margin=21,
            text_size=11,
            cell_size=9,
            leading=1.65,
            step="{number}. {text}",
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="沂川市乒乓球联合会　联赛手册")
