"""The look of the files of `documents-7`."""

from datetime import UTC, datetime
from pathlib import Path

from ..render import (
    MailPart,
    PdfStyle,
    ScanStyle,
    csv_text,
    encode_mail,
    html_of_part,
    lines_of_source,
    make_book,
    make_slides,
    make_word,
    mirrored_header,
    print_page,
    scan_page,
    set_pdf,
)
from .content import (
    AUDIT,
    AUDIT_FIRST,
    AUDIT_HEADERS,
    AUDIT_SECOND,
    BANQUET,
    FUND,
    HEATING,
    OUTAGE,
    SERVERS,
    SOURCES,
)

PRINTED = "岩与铁攀岩健身馆会员手册.pdf"
_MADE = datetime(2026, 11, 26, 3, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 12pt/1.8 "WenQuanYi Zen Hei"; color: #222; }
        h1 { font-size: 22pt; font-weight: normal; color: #8a3b12; }
        h2 { font-size: 14pt; font-weight: normal; color: #8a3b12; margin-top: 18pt; } li { margin: 2pt 0; }
        table { border-collapse: collapse; width: 100%; margin: 6pt 0; font-size: 11pt; }
        th { border-bottom: 1.2pt solid #8a3b12; text-align: left; font-weight: normal; }
        td { border-bottom: 0.4pt dotted #a98; }
        th, td { padding: 5pt 4pt; } tr:nth-child(odd) td { background: #fbf5f0; }
    """
_SCANS = {
    "永春堂推拿价目-照片.pdf": ScanStyle(turn=-1.6, seed=7019, noise=6, paper=236, row_height=55, shadow=32, lean=24),
    "粮食入库检验单-扫描件.pdf": ScanStyle(turn=2.3, seed=3177, noise=5, row_height=54, cell_left=16, ink=44),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the review, the mail and the records: the same bytes on every machine."""
    (folder / "睢川公积金常见问题.html").write_text(FUND, encoding="utf-8", newline="\n")
    (folder / "海棠里供暖注水通知.txt").write_bytes(HEATING.replace("\n", "\r\n").encode("gb18030"))
    (folder / "支付中断复盘-20261105.md").write_text(OUTAGE, encoding="utf-8", newline="\n")
    (folder / "服务器和网络设备台账-202611.csv").write_bytes(csv_text(SERVERS).encode("utf-8-sig"))
    plain = MailPart("plain", _mail_text())
    mail = encode_mail(AUDIT_HEADERS, [plain, MailPart("html", _mail_page())], boundary="----=_Part_7_20261125")
    (folder / "转发-德国客户审厂行程.eml").write_bytes(mail)


def _mail_text() -> str:
    """The plain version: a row a line, the older mails below it without marks."""
    parts = [*AUDIT, *AUDIT_SECOND, *AUDIT_FIRST]
    return "\n\n".join("\n".join(lines_of_source([part])) for part in parts) + "\n"


def _mail_page() -> str:
    """The same as a page, the older mails in divisions of their own."""
    newest, second, first = (
        "".join(html_of_part(part) for part in mail) for mail in (AUDIT, AUDIT_SECOND, AUDIT_FIRST)
    )
    return (
        "<html><head><style>td, th { border: 1px solid #999; padding: 2px 6px }</style></head>"
        f"<body>{newest}<div>{second}<div>{first}</div></div></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("栖云酒店客房部作业手册.docx", "栖云酒店　客房部", "QY-HK-2026　内部使用"),
        ("岚川市养犬管理条例.docx", "岚川市人民代表大会常务委员会公告　第9号", ""),
        ("档案数字化加工合同-规划馆.docx", "GHG-2026-SZ-007", "柘城市规划档案馆　墨痕数据科技有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "望潮楼宴席价目与订台-2027春节.xlsx", BANQUET, _MADE, width=15, title_size=14)
    name = "银行网点大堂服务培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "青禾实验幼儿园家长手册-2026学年.pdf": PdfStyle(
            mirrored_header("青禾实验幼儿园", "家长手册　2026学年", edge=48),
            margin=22,
            text_size=11.5,
            cell_size=9.5,
            leading=1.7,
            fit_columns=True,
            grid="darkgrey",
            header_fill="lightyellow",
        ),
        "澜海户外用品展参展商手册-2027.pdf": PdfStyle(
            mirrored_header("第九届澜海户外用品展", "参展商手册", edge=48),
            columns=2,
            margin=14,
            gap=7,
            text_size=10.5,
            leading=1.7,
            cell_size=7.5,
            cell_padding=2,
            fit_columns=True,
            header_fill="lavender",
        ),
        "天鹞T系列植保无人机用户手册.pdf": PdfStyle(
            mirrored_header("天鹞T系列植保无人机", "用户手册 V3.2", edge=48),
            margin=20,
            text_size=11.5,
            cell_size=9.5,
            leading=1.7,
            step="{number}. {text}",
            grid="grey",
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="岩与铁　清河店　南站店")
