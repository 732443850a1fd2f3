"""The look of the files of `documents-14`."""

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
    BRIDGE,
    BUS,
    ENROL,
    HOTLINE,
    MEALS,
    SOURCES,
    SWIM,
    SWIM_FIRST,
    SWIM_HEADERS,
    SWIM_SECOND,
)

PRINTED = "青檐血液透析中心患者须知-2027.pdf"
_MADE = datetime(2026, 11, 27, 14, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 11pt/1.75 "Noto Sans CJK SC"; color: #20282c; }
        h1 { font-size: 21pt; font-weight: normal; color: #1f4e5f; text-align: center; }
        h2 { font-size: 13pt; font-weight: normal; color: #1f4e5f; border-left: 4pt solid #1f4e5f; padding-left: 6pt; }
        table { border-collapse: collapse; width: 100%; margin: 8pt 0; font-size: 9.5pt; }
        th { text-align: left; font-weight: normal; background: #e4eef1; }
        th, td { padding: 4pt 5pt; border-top: 0.5pt solid #9fb8c0; border-bottom: 0.5pt solid #9fb8c0; }
    """
_SCANS = {
    "明瞳视光配镜价目-照片.pdf": ScanStyle(
        turn=1.4, seed=1471, noise=5.2, paper=238, row_height=57, shadow=28, lean=18
    ),
    "短跑队体能测试表-扫描件.pdf": ScanStyle(turn=-1.8, seed=2614, noise=5.5, row_height=57, ink=40, outline=92),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "芜溪区义务教育入学常见问题.html").write_text(ENROL, encoding="utf-8", newline="\n")
    (folder / "锦屏大桥封桥绕行通告.txt").write_bytes(BRIDGE.replace("\n", "\r\n").encode("gb18030"))
    (folder / "青藜小学膳食委员会纪要-20261126.md").write_text(MEALS, encoding="utf-8", newline="\n")
    (folder / "市民热线工单登记-202611.csv").write_bytes(csv_text(HOTLINE).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(SWIM, SWIM_SECOND, SWIM_FIRST))
    html = MailPart("html", _mail_page(), encoding="quoted-printable")
    mail = encode_mail(SWIM_HEADERS, [plain, html], boundary="----=_Part_14_20261124")
    (folder / "答复-省青少年游泳锦标赛接待.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = ("".join(html_of_part(part) for part in mail) for mail in (SWIM, SWIM_SECOND, SWIM_FIRST))
    return (
        "<html><head><style>td, th { border: 1px solid #bbb; padding: 3px }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("长汐隧道管养作业手册.docx", "长汐隧道管养所　CX-GY-04", "第4版　受控文件，不得外借"),
        ("涪川市校外托管服务管理条例.docx", "涪川市人民代表大会常务委员会公告　第31号", ""),
        ("物业服务合同-云杪雅居.docx", "YM-WY-2026-041", "云杪雅居业主委员会　澄晖物业服务有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "飞燕机场巴士班线与包车-2027春.xlsx", BUS, _MADE, width=13, title_size=14)
    name = "陪检运送员上岗培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "凌霜冰上运动中心会员与学员手册-2027版.pdf": PdfStyle(
            mirrored_header("凌霜冰上运动中心", "会员与学员手册　2027年版"),
            margin=20,
            text_size=11.5,
            cell_size=9.5,
            leading=1.7,
            fit_columns=True,
            grid="steelblue",
            header_fill="aliceblue",
        ),
        "白沙群岛客滚轮渡乘船手册-2027版.pdf": PdfStyle(
            mirrored_header("白沙轮渡公司", "客滚轮渡乘船手册"),
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
        "护安AE系列自动体外除颤器使用手册.pdf": PdfStyle(
            mirrored_header("护安AE系列自动体外除颤器", "HA-IFU-0714"),
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="青檐血液透析中心　患者须知")
