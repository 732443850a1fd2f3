"""The look of the files of `documents-22`."""

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
    BIRDS,
    LION,
    MINERALS,
    POLAR,
    POLAR_FIRST,
    POLAR_HEADERS,
    POLAR_SECOND,
    RADIO,
    SLUICE,
    SOURCES,
)

PRINTED = "穗藏种质库存取服务指南-2027.pdf"
_MADE = datetime(2026, 12, 1, 10, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 10pt/1.65 "Noto Sans CJK SC"; color: #24231c; }
        h1 { font-size: 21pt; font-weight: normal; color: #4d6b1f; border-bottom: 3pt double #4d6b1f; }
        h2 { font-size: 13pt; font-weight: normal; color: #4d6b1f; border-left: 4pt solid #b9cf8a; padding-left: 6pt; }
        table { border-collapse: collapse; width: 100%; margin: 6pt 0; font-size: 9pt; }
        th { text-align: left; font-weight: normal; background: #eef3e2; border-bottom: 1pt solid #4d6b1f; }
        td { border-bottom: 0.4pt solid #c9cfba; }
        th, td { padding: 3.5pt 5pt; }
    """
_SCANS = {
    "点金铺打金修金价目-照片.pdf": ScanStyle(
        turn=1.5, seed=2206, noise=5.4, paper=234, row_height=58, shadow=30, lean=18
    ),
    "降落伞叠伞检查单-扫描件.pdf": ScanStyle(turn=-1.8, seed=873, noise=6.1, row_height=58, ink=44, outline=95),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "霁州业余无线电考试和执照常见问题.html").write_text(RADIO, encoding="utf-8", newline="\n")
    (folder / "石龙水库放水冲沙避让通告.txt").write_bytes(SLUICE.replace("\n", "\r\n").encode("gb18030"))
    (folder / "魁星醒狮团团务会纪要-20261126.md").write_text(LION, encoding="utf-8", newline="\n")
    (folder / "机场鸟情和鸟击登记-202611.csv").write_bytes(csv_text(BIRDS).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(POLAR, POLAR_SECOND, POLAR_FIRST))
    html = MailPart("html", _mail_page(), encoding="quoted-printable")
    mail = encode_mail(POLAR_HEADERS, [plain, html], boundary="----=_Part_22_20261126")
    (folder / "答复-极地站度夏物资装船安排.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = (
        "".join(html_of_part(part) for part in mail) for mail in (POLAR, POLAR_SECOND, POLAR_FIRST)
    )
    return (
        "<html><head><style>td, th { border: 1px solid #999; padding: 4px }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("寒潭鲟鱼子酱加工车间作业手册.docx", "寒潭渔业　HT-YZ-03", "第6版　受控文件，车间四本，不得带出更衣间"),
        ("泷川市溶洞保护和探洞管理条例.docx", "泷川市人民代表大会常务委员会公告　第17号", ""),
        ("铜钟铸造安装合同-望江塔院.docx", "WJ-ZZ-2026-019", "望江塔院管理委员会　洪声铸钟有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "晶簇矿物化石标本价目与订单-2027春.xlsx", MINERALS, _MADE, width=14, title_size=14)
    name = "蹦极跳台安全员上岗培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "翔云风洞试验中心委托方手册-2027版.pdf": PdfStyle(
            mirrored_header("翔云风洞试验中心", "委托方手册　2027年版"),
            margin=19,
            text_size=11.5,
            cell_size=9.5,
            leading=1.7,
            fit_columns=True,
            grid="steelblue",
            header_fill="aliceblue",
        ),
        "鲲舟飞机拆解与航材客户手册-2027版.pdf": PdfStyle(
            mirrored_header("鲲舟飞机拆解", "航材客户手册"),
            columns=2,
            margin=16,
            gap=8,
            text_size=10.5,
            leading=1.7,
            cell_size=8,
            cell_padding=2,
            fit_columns=True,
            grid="gray",
            header_fill="beige",
        ),
        "潜鳐UR系列水下机器人使用手册.pdf": PdfStyle(
            mirrored_header("潜鳐UR系列水下机器人", "QY-UM-1107"),
            margin=21,
            text_size=11,
            cell_size=9,
            leading=1.65,
            step="{number}) {text}",
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="穗藏种质库　存取服务指南")
