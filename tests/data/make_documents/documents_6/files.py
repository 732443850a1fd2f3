"""The look of the files of `documents-6`."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
    print_page,
    scan_page,
    set_pdf,
)
from .content import (
    CAMERAS,
    CARD,
    GARAGE,
    MINUTES,
    MOVE,
    MOVE_FIRST,
    MOVE_HEADERS,
    MOVE_SECOND,
    NURSERY,
    SOURCES,
)

PRINTED = "云杉岭滑雪场2026-27雪季票价和须知.pdf"
_MADE = datetime(2026, 11, 27, 2, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 13.5pt/1.9 "WenQuanYi Micro Hei"; color: #223; } h1 { font-size: 20pt; font-weight: normal; color: #14507a; }
        h2 { font-size: 14pt; font-weight: normal; border-bottom: 1.5pt solid #14507a; } li { margin: 1pt 0; }
        table { border-collapse: collapse; width: 100%; margin: 8pt 0; } th { background: #d9e8f3; font-weight: normal; }
        th, td { border-bottom: 0.6pt solid #9bb; border-top: 0.6pt solid #9bb; padding: 6pt 5pt; text-align: center; }
    """
_SCANS = {
    "雪松干洗店价目表-照片.pdf": ScanStyle(turn=1.3, seed=6031, noise=6, paper=238, row_height=54, shadow=36, lean=26),
    "和顺大厦电梯维保记录-扫描件.pdf": ScanStyle(turn=-2.2, seed=1712, noise=5, row_height=54, cell_left=14, ink=42),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "汀州通交通卡常见问题.html").write_text(CARD, encoding="utf-8", newline="\n")
    (folder / "云栖雅苑地库翻新通知.txt").write_bytes(GARAGE.replace("\n", "\r\n").encode("gb18030"))
    (folder / "节能改造周例会纪要-20261119.md").write_text(MINUTES, encoding="utf-8", newline="\n")
    (folder / "摄影协会器材登记.csv").write_bytes(csv_text(CAMERAS).encode("gb18030"))
    plain = MailPart("plain", _mail_text(), encoding="quoted-printable")
    mail = encode_mail(MOVE_HEADERS, [plain, MailPart("html", _mail_page())], boundary="----=_Part_6_20261124")
    (folder / "回复-机房搬迁停机窗口.eml").write_bytes(mail)


def _mail_text() -> str:
    """The plain version as mailers make it of the page: a row a line, the older mails with one and two marks."""
    lines = "\n\n".join("\n".join(lines_of_source([part])) for part in MOVE).splitlines()
    lines += ["", *(f"> {line}" for line in lines_of_source(MOVE_SECOND))]
    lines += [">", *(f"> > {line}" for line in lines_of_source(MOVE_FIRST))]
    return "\n".join(lines) + "\n"


def _mail_page() -> str:
    """The same as a page: the second mail quoted in the third, the first in the second."""
    newest, second, first = ("".join(html_of_part(part) for part in mail) for mail in (MOVE, MOVE_SECOND, MOVE_FIRST))
    quotations = f"<blockquote>{second}<blockquote>{first}</blockquote></blockquote>"
    return (
        f"<html><head><style>td, th {{ border: 1px solid #777 }}</style></head><body>{newest}{quotations}</body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("远恒物流驾驶员手册-202609.docx", "远恒物流　安全管理部", "YH-AQ-2026-05"),
        ("沅平市电动自行车管理条例.docx", "沅平市人民代表大会常务委员会公告　第14号", ""),
        ("厂房租赁合同-启锐五金.docx", "合同编号：BH-ZL-2026-041", "滨河园区资产经营有限公司"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "绿岗苗圃价目与发货-2027春.xlsx", NURSERY, _MADE, width=16, title_size=13)
    name = "客服热线新人培训-202611.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.45)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "望江医院住院患者及家属须知.pdf": PdfStyle(
            _running_lines("望江医院　住院患者及家属须知", "第7版　请保留至出院"),
            margin=24,
            text_size=11.5,
            cell_size=9.5,
            leading=1.7,
            fit_columns=True,
            grid="silver",
        ),
        "安途境内旅行意外保障计划投保须知.pdf": PdfStyle(
            _running_lines("安途境内旅行意外保障计划", "AT-JN-26"),
            columns=2,
            margin=16,
            gap=9,
            text_size=12,
            leading=1.75,
            cell_size=9,
            cell_padding=3,
            fit_columns=True,
            step="{number}）{text}",
            header_fill="lightblue",
        ),
        "锐风RF系列螺杆空压机维护手册.pdf": PdfStyle(
            _running_lines("RF系列螺杆空压机", "RF-M-0926"),
            margin=20,
            text_size=11.5,
            cell_size=9.5,
            leading=1.75,
            step="{number}. {text}",
            header_fill="lightgrey",
            cell_alignment="MIDDLE",
        ),
    }
    for name, style in styles.items():
        set_pdf(folder / name, SOURCES[name], style)
    for name, scan in _SCANS.items():
        scan_page(folder / name, SOURCES[name], scan)


def make_print(folder: Path) -> None:
    """The page that Chromium prints."""
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="云杉岭滑雪场　票价和须知")


def _running_lines(header: str, footer: str) -> Callable[[Any, Any, tuple[float, float]], None]:
    """A header in the middle, and a foot with a line on the left and the page's number on the right."""

    def decorate(canvas: Any, document: Any, size: tuple[float, float]) -> None:
        canvas.setFont("Sans", 8.5)
        canvas.drawCentredString(size[0] / 2, size[1] - 40, header)
        canvas.line(48, 46, size[0] - 48, 46)
        canvas.drawString(48, 33, footer)
        canvas.drawRightString(size[0] - 48, 33, f"- {document.page} -")

    return decorate
