"""The look of the files of `documents-15`."""

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
    DRAGON,
    DRAGON_FIRST,
    DRAGON_HEADERS,
    DRAGON_SECOND,
    EMBROIDERY,
    FOREST,
    JOBLESS,
    SOURCES,
    TRIAGE,
    VILLAGE,
)

PRINTED = "和煦康复医院住院患者与家属须知-2027.pdf"
_MADE = datetime(2026, 11, 27, 18, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 11.5pt/1.7 "WenQuanYi Micro Hei"; color: #262420; }
        h1 { font-size: 20pt; font-weight: normal; color: #5a3e7a; border-bottom: 2pt double #5a3e7a; }
        h2 { font-size: 13.5pt; font-weight: normal; color: #5a3e7a; margin-top: 15pt; }
        table { border-collapse: collapse; width: 100%; margin: 7pt 0; font-size: 10pt; border-bottom: 1.2pt solid #5a3e7a; }
        th { text-align: center; font-weight: normal; border-top: 1.2pt solid #5a3e7a; border-bottom: 0.6pt solid #5a3e7a; }
        td { text-align: center; } th, td { padding: 4pt 3pt; } tr:nth-child(odd) td { background: #f5f2f8; }
    """
_SCANS = {
    "云裳裁缝铺改衣价目-照片.pdf": ScanStyle(
        turn=-1.5, seed=1553, noise=5.4, paper=237, row_height=56, shadow=30, lean=20
    ),
    "孕期检查登记表-扫描件.pdf": ScanStyle(turn=1.9, seed=2738, noise=5.3, row_height=57, ink=42, outline=90),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "澧阳失业金和就业补贴常见问题.html").write_text(JOBLESS, encoding="utf-8", newline="\n")
    (folder / "云岫林场封山防火和进山通告.txt").write_bytes(FOREST.replace("\n", "\r\n").encode("gb18030"))
    (folder / "石门湾村村民代表会议纪要-20261125.md").write_text(VILLAGE, encoding="utf-8", newline="\n")
    (folder / "县医院急诊分诊登记-202611.csv").write_bytes(csv_text(TRIAGE).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(DRAGON, DRAGON_SECOND, DRAGON_FIRST))
    html = MailPart("html", _mail_page(), encoding="quoted-printable")
    mail = encode_mail(DRAGON_HEADERS, [plain, html], boundary="----=_Part_15_20261125")
    (folder / "回复-端午龙舟打造和交船安排.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = (
        "".join(html_of_part(part) for part in mail) for mail in (DRAGON, DRAGON_SECOND, DRAGON_FIRST)
    )
    return (
        "<html><head><style>table { border-collapse: collapse } td, th { border: 1px solid #999; padding: 4px }"
        f"</style></head><body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("菌乡食用菌工厂化栽培作业手册.docx", "菌乡生物　JX-SC-06", "第6版　净区内不得携带纸质手册"),
        ("沔川市院前医疗急救条例.docx", "沔川市人民代表大会常务委员会公告　第26号", ""),
        ("马铃薯订单种植收购合同-穗丰食品.docx", "SF-MLS-2027-118", "穗丰食品有限公司　高台梁马铃薯种植专业合作社"),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "锦纤绣坊定制价目与订单-2027春.xlsx", EMBROIDERY, _MADE, width=13.5, title_size=13)
    name = "社区网格员上岗培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.45, row_height=0.41)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "青骢马术俱乐部骑手与寄养手册-2027版.pdf": PdfStyle(
            mirrored_header("青骢马术俱乐部", "骑手与寄养手册　2027年版"),
            margin=19,
            text_size=11,
            cell_size=9.5,
            leading=1.65,
            fit_columns=True,
            grid="darkolivegreen",
            header_fill="beige",
        ),
        "栖山殡仪馆和公墓治丧指南-2027版.pdf": PdfStyle(
            mirrored_header("栖山市殡葬服务中心", "治丧指南"),
            columns=2,
            margin=17,
            gap=8,
            text_size=10.5,
            leading=1.7,
            cell_size=7.5,
            cell_padding=2,
            fit_columns=True,
            header_fill="lavender",
        ),
        "旺雏FH系列禽蛋孵化机使用手册.pdf": PdfStyle(
            mirrored_header("旺雏FH系列禽蛋孵化机", "WC-FH-0319"),
            margin=20,
            text_size=10.5,
            cell_size=9,
            leading=1.65,
            step="{number}、{text}",
            grid="dimgray",
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="和煦康复医院　住院患者与家属须知")
