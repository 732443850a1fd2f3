"""The look of the files of `documents-20`."""

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
    FISH,
    LANTERN,
    MARRIAGE,
    RESCUE,
    ROADS,
    SOURCES,
    STATION,
    STATION_FIRST,
    STATION_HEADERS,
    STATION_SECOND,
)

PRINTED = "衡准计量校准中心客户手册-2027.pdf"
_MADE = datetime(2026, 11, 30, 9, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 10pt/1.7 "Noto Sans CJK SC"; color: #20262b; }
        h1 { font-size: 20pt; font-weight: normal; color: #0d4a66; border-left: 6pt solid #0d4a66; padding-left: 8pt; }
        h2 { font-size: 13pt; font-weight: normal; color: #0d4a66; border-bottom: 0.5pt dotted #0d4a66; }
        table { border-collapse: collapse; width: 100%; margin: 6pt 0; font-size: 9pt; }
        th { text-align: left; font-weight: normal; border-top: 1.5pt solid #0d4a66; border-bottom: 0.8pt solid #0d4a66; }
        td { border-bottom: 0.4pt solid #b7c3c9; }
        th, td { padding: 3.5pt 5pt; }
        tr:nth-child(odd) td { background: #f3f7f9; }
    """
_SCANS = {
    "一剪堂理发烫染价目-照片.pdf": ScanStyle(
        turn=-1.4, seed=2027, noise=5.2, paper=236, row_height=56, shadow=28, lean=17
    ),
    "阀门试压记录单-扫描件.pdf": ScanStyle(turn=1.9, seed=2146, noise=5.9, row_height=58, ink=42, outline=90),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "濂州婚姻和收养登记常见问题.html").write_text(MARRIAGE, encoding="utf-8", newline="\n")
    (folder / "浮梁桥元宵灯会观灯和交通通告.txt").write_bytes(LANTERN.replace("\n", "\r\n").encode("gb18030"))
    (folder / "苍鹰救援队队务会纪要-20261127.md").write_text(RESCUE, encoding="utf-8", newline="\n")
    (folder / "道路病害巡查登记-202611.csv").write_bytes(csv_text(ROADS).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(STATION, STATION_SECOND, STATION_FIRST))
    html = MailPart("html", _mail_page(), encoding="quoted-printable")
    mail = encode_mail(STATION_HEADERS, [plain, html], boundary="----=_Part_20_20261127")
    (folder / "答复-一季度天线检修窗口.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = (
        "".join(html_of_part(part) for part in mail) for mail in (STATION, STATION_SECOND, STATION_FIRST)
    )
    return (
        "<html><head><style>td, th { border: 1px solid #aaa; padding: 4px }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("坦途沥青拌合站作业手册.docx", "坦途路面材料公司　TT-LQ-07", "第5版　受控文件，每班一本，不得带出站外"),
        ("渚源市城市道路挖掘和占用管理条例.docx", "渚源市人民代表大会常务委员会公告　第21号", ""),
        ("大会语言服务合同-海博会.docx", "HB-YY-2026-033", "海博会组委会　信达雅语言服务有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "澄波水族价目与订单-2027春.xlsx", FISH, _MADE, width=14, title_size=14)
    name = "外卖骑手上岗培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "云帷大剧院租场与演出服务手册-2027版.pdf": PdfStyle(
            mirrored_header("云帷大剧院", "租场与演出服务手册　2027年版"),
            margin=20,
            text_size=11.5,
            cell_size=9.5,
            leading=1.7,
            fit_columns=True,
            grid="indianred",
            header_fill="mistyrose",
        ),
        "泰岳保险经纪客户服务手册-2027版.pdf": PdfStyle(
            mirrored_header("泰岳保险经纪", "客户服务手册"),
            columns=2,
            margin=16,
            gap=8,
            text_size=10.5,
            leading=1.7,
            cell_size=8,
            cell_padding=2,
            fit_columns=True,
            grid="gray",
            header_fill="lavender",
        ),
        "劲刃CS系列汽油链锯使用手册.pdf": PdfStyle(
            mirrored_header("劲刃CS系列汽油链锯", "JR-UM-2031"),
            margin=21,
            text_size=11,
            cell_size=9,
            leading=1.65,
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="衡准计量校准中心　客户手册")
