"""The look of the files of `documents-17`."""

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
    BOLTS,
    CARE,
    FOOTBALL,
    PLOUGH,
    SOLAR,
    SOLAR_FIRST,
    SOLAR_HEADERS,
    SOLAR_SECOND,
    SOURCES,
    WILDLIFE,
)

PRINTED = "听溪睡眠医学中心患者须知-2027.pdf"
_MADE = datetime(2026, 11, 30, 9, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 11pt/1.7 "Noto Sans CJK SC"; color: #1f2630; }
        h1 { font-size: 20pt; font-weight: normal; color: #1f4e79; text-align: center; }
        h2 { font-size: 13pt; font-weight: normal; color: #1f4e79; border-bottom: 1pt solid #1f4e79; }
        table { border-collapse: collapse; width: 100%; margin: 8pt 0; font-size: 9.5pt; }
        th { text-align: left; font-weight: normal; background: #e4edf5; }
        th, td { padding: 4pt 5pt; border-top: 0.5pt solid #9db6cc; border-bottom: 0.5pt solid #9db6cc; }
    """
_SCANS = {
    "平安开锁配钥匙价目-照片.pdf": ScanStyle(
        turn=1.4, seed=1719, noise=5.0, paper=239, row_height=60, shadow=25, lean=18
    ),
    "混凝土浇筑旁站记录-扫描件.pdf": ScanStyle(turn=-1.8, seed=2917, noise=5.7, row_height=56, ink=43, outline=92),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "汀溪长期护理保险常见问题.html").write_text(CARE, encoding="utf-8", newline="\n")
    (folder / "柳林镇春耕代耕和农机作业通知.txt").write_bytes(PLOUGH.replace("\n", "\r\n").encode("gb18030"))
    (folder / "青岚少儿足球俱乐部教练组会议纪要-20261128.md").write_text(FOOTBALL, encoding="utf-8", newline="\n")
    (folder / "野生动物救护登记-202611.csv").write_bytes(csv_text(WILDLIFE).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(SOLAR, SOLAR_SECOND, SOLAR_FIRST))
    html = MailPart("html", _mail_page(), encoding="quoted-printable")
    mail = encode_mail(SOLAR_HEADERS, [plain, html], boundary="----=_Part_17_20261124")
    (folder / "回复-六所学校屋顶光伏进场安排.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = (
        "".join(html_of_part(part) for part in mail) for mail in (SOLAR, SOLAR_SECOND, SOLAR_FIRST)
    )
    return (
        "<html><head><style>td, th { border: 1px solid #bbb; padding: 3px }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("铂洋电镀车间作业手册.docx", "铂洋表面处理　BY-DD-09", "第9版　受控文件，复印无效"),
        ("泯州市单用途预付卡管理条例.docx", "泯州市人民代表大会常务委员会公告　第41号", ""),
        ("绿植租摆和养护合同-汇川金融中心.docx", "HC-LZ-2026-118", "汇川金融中心管理有限公司　半坡园艺有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "恒固紧固件报价与订单-2027春.xlsx", BOLTS, _MADE, width=13, title_size=14)
    name = "收费站收费员上岗培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.4)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "飞弯卡丁车赛车场车手手册-2027版.pdf": PdfStyle(
            mirrored_header("飞弯卡丁车赛车场", "车手手册　2027年版"),
            margin=20,
            text_size=11.5,
            cell_size=9.5,
            leading=1.7,
            fit_columns=True,
            grid="dimgray",
            header_fill="honeydew",
        ),
        "澜台花卉拍卖中心供货商与买家手册-2027版.pdf": PdfStyle(
            mirrored_header("澜台花卉拍卖中心", "供货商与买家手册"),
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
        "冽川IM系列商用制冰机使用手册.pdf": PdfStyle(
            mirrored_header("冽川IM系列商用制冰机", "LC-UM-0723"),
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="听溪睡眠医学中心　患者须知")
