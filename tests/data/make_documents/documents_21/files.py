"""The look of the files of `documents-21`."""

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
    ANNALS,
    COINS,
    PROPS,
    RADIO,
    RESERVOIR,
    SOURCES,
    VESSEL,
    VESSEL_FIRST,
    VESSEL_HEADERS,
    VESSEL_SECOND,
)

PRINTED = "回声谷录音棚与配音服务手册-2027.pdf"
_MADE = datetime(2026, 11, 30, 10, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 10.5pt/1.65 "Noto Sans CJK SC"; color: #2a2226; }
        h1 { font-size: 21pt; font-weight: normal; color: #6b2145; border-bottom: 3pt double #6b2145; padding-bottom: 4pt; }
        h2 { font-size: 13pt; font-weight: normal; color: #6b2145; }
        table { border-collapse: collapse; width: 100%; margin: 6pt 0; font-size: 9pt; }
        th { text-align: left; font-weight: normal; color: #6b2145; border-bottom: 1.2pt solid #6b2145; }
        td { border-bottom: 0.5pt solid #c3a9b5; }
        th, td { padding: 4pt 5pt; }
    """
_SCANS = {
    "阿银打银铺工价-照片.pdf": ScanStyle(
        turn=1.3, seed=2701, noise=5.0, paper=238, row_height=55, shadow=30, lean=15, title_size=46
    ),
    "气象观测日记录-扫描件.pdf": ScanStyle(turn=-1.8, seed=733, noise=5.8, row_height=57, ink=40, outline=95),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "榆津业余无线电操作证和电台执照常见问题.html").write_text(RADIO, encoding="utf-8", newline="\n")
    (folder / "青螺水库放空检修和捕鱼通告.txt").write_bytes(RESERVOIR.replace("\n", "\r\n").encode("gb18030"))
    (folder / "乔溪县志编纂例会纪要-20261124.md").write_text(ANNALS, encoding="utf-8", newline="\n")
    (folder / "影视道具租借登记-202611.csv").write_bytes(csv_text(PROPS).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(VESSEL, VESSEL_SECOND, VESSEL_FIRST))
    html = MailPart("html", _mail_page(), encoding="quoted-printable")
    mail = encode_mail(VESSEL_HEADERS, [plain, html], boundary="----=_Part_21_20261125")
    (folder / "答复-鲲屿号春季航次站位和分工.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = (
        "".join(html_of_part(part) for part in mail) for mail in (VESSEL, VESSEL_SECOND, VESSEL_FIRST)
    )
    return (
        "<html><head><style>td, th { border: 1px solid #9ab; padding: 3px }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("净曜垃圾焚烧发电厂作业手册.docx", "净曜环保能源公司　JY-FS-12", "第4版　受控文件，每班一本，交班时点数"),
        ("淇泊市房屋白蚁防治条例.docx", "淇泊市人民代表大会常务委员会公告　第34号", ""),
        ("群雕铸铜制作安装合同-老码头公园.docx", "MT-DS-2026-058", "老码头公园建设指挥部　九鼎铸铜艺术有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "方圆堂钱币邮票价目与订单-2027春.xlsx", COINS, _MADE, width=15, title_size=14)
    name = "整理收纳师上岗培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "明允司法鉴定中心委托人手册-2027版.pdf": PdfStyle(
            mirrored_header("明允司法鉴定中心", "委托人手册　2027年版"),
            margin=20,
            text_size=11,
            cell_size=9,
            leading=1.65,
            fit_columns=True,
            grid="steelblue",
            header_fill="aliceblue",
        ),
        "松隐寺来寺须知-2027版.pdf": PdfStyle(
            mirrored_header("松隐寺客堂", "来寺须知"),
            columns=2,
            margin=16,
            gap=8,
            text_size=10.5,
            leading=1.7,
            cell_size=8,
            cell_padding=2,
            fit_columns=True,
            grid="tan",
            header_fill="linen",
        ),
        "瞰微XR系列通道式安检机使用手册.pdf": PdfStyle(
            mirrored_header("瞰微XR系列通道式安检机", "KW-UM-1187"),
            margin=21,
            text_size=10.5,
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="回声谷录音棚　录音与配音服务")
