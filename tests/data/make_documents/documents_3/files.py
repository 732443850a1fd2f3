"""The look of the files of `documents-3`."""

import html
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..render import (
    MailPart,
    PdfStyle,
    ScanStyle,
    csv_text,
    encode_mail,
    make_book,
    make_slides,
    make_word,
    print_page,
    scan_page,
    set_pdf,
)
from .content import HIKE, MAIL, MAIL_HEADERS, REPAIRS, SCHOOL, SOURCES, VALLEY

PRINTED = "栖岸联合办公价目与规则.pdf"
_MADE = datetime(2026, 11, 20, 2, tzinfo=UTC)
_PRINTED_AT = datetime(2026, 11, 20, 10, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 10.5pt/1.65 "Noto Sans CJK SC"; } h1 { font-size: 17pt; } h2 { font-size: 12.5pt; }
        table { border-collapse: collapse; width: 100%; } th { background: #e8efe9; }
        th, td { border-bottom: 0.6pt solid #777; padding: 3pt 6pt; text-align: left; }
    """


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the mail and the records: the same bytes on every machine."""
    (folder / "雾灵谷景区游客须知.html").write_text(VALLEY, encoding="utf-8", newline="\n")
    (folder / "徒步社十一月活动通知.txt").write_bytes(HIKE.replace("\n", "\r\n").encode("gb18030"))
    (folder / "酒店维修工单-2026年9月.csv").write_bytes(csv_text(REPAIRS).encode("gb18030"))
    page = "<html><body>" + "".join(f"<p>{html.escape(line)}</p>" for line in MAIL.splitlines()) + "</body></html>"
    versions = [MailPart("plain", MAIL, "quoted-printable"), MailPart("html", page)]
    mail = encode_mail(MAIL_HEADERS, versions, boundary="----=_Part_5127_20261119")
    (folder / "答复-山野来信付印安排.eml").write_bytes(mail)


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header in (
        ("潮水以西-第23天通告单.docx", "潮水以西摄制组　内部资料"),
        ("澜江水务2027届校园招聘公告.docx", "澜江水务集团有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header)
    make_book(folder / "顺途驾校收费与排期-2026冬.xlsx", SCHOOL, _MADE, width=15, title_size=14)
    make_slides(folder / "半程马拉松志愿者培训.pptx", SOURCES["半程马拉松志愿者培训.pptx"], _MADE)


def make_pdfs(folder: Path) -> None:
    """Two set pages and a picture of one; needs the fonts."""
    for name, header, columns in (
        ("低温仓作业与安全规定.pdf", "肥西低温仓　文件编号FX-WI-017", 1),
        ("ET系列电动搬运车手册.pdf", "ET系列电动搬运车 使用保养手册", 2),
    ):
        set_pdf(folder / name, SOURCES[name], PdfStyle(_header_of(header), columns))
    scan = folder / "桂花巷助餐点公示-扫描件.pdf"
    scan_page(scan, SOURCES[scan.name], ScanStyle(turn=2.2, seed=1120, noise=8))


def make_print(folder: Path) -> None:
    """The page that Chromium prints."""
    print_page(folder / PRINTED, SOURCES[PRINTED], _PRINTED_AT, style=_PAGE_STYLE, header="栖岸联合办公")


def _header_of(header: str) -> Any:
    def decorate(canvas: Any, document: Any, size: tuple[float, float]) -> None:
        canvas.setFont("Sans", 8)
        canvas.drawRightString(size[0] - 51, size[1] - 40, header)
        canvas.line(51, size[1] - 46, size[0] - 51, size[1] - 46)
        canvas.drawRightString(size[0] - 51, 36, f"第{document.page}页")

    return decorate
