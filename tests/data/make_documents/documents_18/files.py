"""The look of the files of `documents-18`."""

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
    BEES,
    CANE,
    DIG,
    SALT,
    SOURCES,
    TRIAL,
    TRIAL_FIRST,
    TRIAL_HEADERS,
    TRIAL_SECOND,
    VACCINE,
)

PRINTED = "铁砧拳击俱乐部会员与赛手手册-2027.pdf"
_MADE = datetime(2026, 11, 29, 9, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 10.5pt/1.75 "Noto Sans CJK SC"; color: #1d2329; }
        h1 { font-size: 21pt; font-weight: normal; color: #7a1420; border-bottom: 2pt solid #7a1420; }
        h2 { font-size: 13pt; font-weight: normal; color: #7a1420; }
        table { border-collapse: collapse; width: 100%; margin: 7pt 0; font-size: 9.5pt; }
        th { text-align: center; font-weight: normal; background: #ece6e6; }
        td { text-align: center; }
        th, td { padding: 4pt 5pt; border-top: 0.5pt solid #9c8f8f; border-bottom: 0.5pt solid #9c8f8f; }
    """
_SCANS = {
    "四季花坊花艺价目-照片.pdf": ScanStyle(
        turn=1.5, seed=1881, noise=5.3, paper=238, row_height=57, shadow=25, lean=18
    ),
    "茧站收茧评级单-扫描件.pdf": ScanStyle(turn=-2.0, seed=2818, noise=5.8, row_height=58, ink=40, outline=92),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "棠州预防接种常见问题.html").write_text(VACCINE, encoding="utf-8", newline="\n")
    (folder / "甜水河糖厂开榨和甘蔗砍运通知.txt").write_bytes(CANE.replace("\n", "\r\n").encode("gb18030"))
    (folder / "南屏盐场生产调度会纪要-20261126.md").write_text(SALT, encoding="utf-8", newline="\n")
    (folder / "考古工地出土小件登记-202611.csv").write_bytes(csv_text(DIG).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(TRIAL, TRIAL_SECOND, TRIAL_FIRST))
    html = MailPart("html", _mail_page(), encoding="quoted-printable")
    mail = encode_mail(TRIAL_HEADERS, [plain, html], boundary="----=_Part_18_20261126")
    (folder / "答复-高寒试车队行程安排.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = (
        "".join(html_of_part(part) for part in mail) for mail in (TRIAL, TRIAL_SECOND, TRIAL_FIRST)
    )
    return (
        "<html><head><style>td, th { border: 1px solid #aaa; padding: 4px }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("晶澈玻璃厂熔制和成型车间作业手册.docx", "晶澈玻璃厂　JC-RC-04", "第4版　受控文件，外来人员用后交回"),
        ("屿州市赶海和滩涂采捕管理条例.docx", "屿州市人民代表大会常务委员会公告　第12号", ""),
        ("仓储管理系统定制开发合同-禾丰种业.docx", "HF-RJ-2026-058", "禾丰种业有限公司　拾字科技有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "百花岭蜂场价目与订单-2027春.xlsx", BEES, _MADE, width=13, title_size=14)
    name = "密室逃脱店员上岗培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "海牙湾修造船厂船东手册-2027版.pdf": PdfStyle(
            mirrored_header("海牙湾修造船厂", "船东手册　2027年版"),
            margin=20,
            text_size=11.5,
            cell_size=9.5,
            leading=1.7,
            fit_columns=True,
            grid="steelblue",
            header_fill="aliceblue",
        ),
        "蓝屿潜水中心潜客手册-2027版.pdf": PdfStyle(
            mirrored_header("蓝屿潜水中心", "潜客手册"),
            columns=2,
            margin=16,
            gap=8,
            text_size=10.5,
            leading=1.7,
            cell_size=7.5,
            cell_padding=2,
            fit_columns=True,
            header_fill="lightcyan",
        ),
        "恒炬WM系列逆变电焊机使用手册.pdf": PdfStyle(
            mirrored_header("恒炬WM系列逆变电焊机", "HJ-UM-1107"),
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="铁砧拳击俱乐部　会员与赛手手册")
