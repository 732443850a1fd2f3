"""The look of the files of `documents-13`."""

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
    COWS,
    GARDEN,
    MOULDS,
    MOULDS_FIRST,
    MOULDS_HEADERS,
    MOULDS_SECOND,
    PHONEFIX,
    PIGEONS,
    SOURCES,
    STAGE,
)

PRINTED = "浔州丝绸博物馆参观和研学须知-2027.pdf"
_MADE = datetime(2026, 11, 27, 10, tzinfo=UTC)
_PAGE_STYLE = """
        body { font: 11pt/1.75 "Noto Sans CJK SC"; color: #20282a; }
        h1 { font-size: 21pt; font-weight: normal; color: #22556b; border-bottom: 2pt solid #22556b; }
        h2 { font-size: 13.5pt; font-weight: normal; color: #22556b; margin-top: 16pt; }
        table { border-collapse: collapse; width: 100%; margin: 8pt 0; font-size: 10pt; }
        th { text-align: left; font-weight: normal; color: #22556b; border-bottom: 1pt solid #22556b; }
        th, td { padding: 4.5pt 5pt; }
        td { border-bottom: 0.5pt solid #bfd2da; }
    """
_SCANS = {
    "老范自行车修理价目-照片.pdf": ScanStyle(
        turn=1.6, seed=7313, noise=5.2, paper=240, row_height=56, shadow=28, lean=22
    ),
    "土壤检测报告单-扫描件.pdf": ScanStyle(turn=-1.8, seed=2741, noise=5.4, row_height=57, ink=40, outline=92),
}


def make(folder: Path) -> None:
    """Write every file of the set to a folder."""
    make_texts(folder)
    make_archives(folder)
    make_pdfs(folder)
    make_print(folder)


def make_texts(folder: Path) -> None:
    """The page, the notice, the minutes, the mail and the records: the same bytes on every machine."""
    (folder / "半亩田市民农园租地常见问题.html").write_text(GARDEN, encoding="utf-8", newline="\n")
    (folder / "安福会馆戏台修缮和票务通知.txt").write_bytes(STAGE.replace("\n", "\r\n").encode("gb18030"))
    (folder / "翔羽信鸽协会理事会纪要-20261124.md").write_text(PIGEONS, encoding="utf-8", newline="\n")
    (folder / "奶牛场兽医诊疗登记-202611.csv").write_bytes(csv_text(COWS).encode("gb18030"))
    plain = MailPart("plain", quoted_mail_text(MOULDS, MOULDS_SECOND, MOULDS_FIRST), encoding="quoted-printable")
    mail = encode_mail(MOULDS_HEADERS, [plain, MailPart("html", _mail_page())], boundary="----=_Part_13_20261124")
    (folder / "答复-一季度模具试模排期.eml").write_bytes(mail)


def _mail_page() -> str:
    """The same as a page: the second version quoted in the third, the first in the second."""
    newest, second, first = (
        "".join(html_of_part(part) for part in mail) for mail in (MOULDS, MOULDS_SECOND, MOULDS_FIRST)
    )
    return (
        "<html><head><style>table { border-collapse: collapse } td, th { border: 1px solid #aaa }</style></head>"
        f"<body>{newest}<blockquote>{second}<blockquote>{first}</blockquote></blockquote></body></html>"
    )


def make_archives(folder: Path) -> None:
    """The files of the office programs: zip archives, with the same members on every machine."""
    for name, header, footer in (
        ("岚溪纸业抄纸车间作业手册.docx", "岚溪纸业　LX-CZ-03", "第4版　机台各挂一本，车间办存底"),
        ("芦州市农田灌溉管理条例.docx", "芦州市人民代表大会常务委员会公告　第17号", ""),
        (
            "脚手架和塔机租赁合同-安澜桥工程.docx",
            "TJ-ZL-2026-094",
            "恒岳建设集团第四分公司　拓基建筑机具租赁有限公司",
        ),
    ):
        make_word(folder / name, SOURCES[name], _MADE, header=header, footer=footer)
    make_book(folder / "拓明数码快修价目与工单-2026冬.xlsx", PHONEFIX, _MADE, width=14, title_size=15)
    name = "拉链厂质检员上岗培训-202612.pptx"
    make_slides(folder / name, SOURCES[name], _MADE, table_top=1.5, row_height=0.42)


def make_pdfs(folder: Path) -> None:
    """Three set documents and two pictures of pages; needs the fonts."""
    styles = {
        "拾木共享木工坊会员手册-2027版.pdf": PdfStyle(
            mirrored_header("拾木共享木工坊", "会员手册　2027年版"),
            margin=22,
            text_size=12,
            cell_size=10,
            leading=1.7,
            fit_columns=True,
            grid="tan",
            header_fill="oldlace",
        ),
        "第四届云门滩风筝邀请赛参赛手册.pdf": PdfStyle(
            mirrored_header("第四届云门滩风筝邀请赛", "参赛手册"),
            columns=2,
            margin=16,
            gap=8,
            text_size=10.5,
            leading=1.75,
            cell_size=7.5,
            cell_padding=2,
            fit_columns=True,
            header_fill="aliceblue",
        ),
        "耘丰GD系列谷物烘干机用户手册.pdf": PdfStyle(
            mirrored_header("耘丰GD系列谷物烘干机", "GD-UM-07"),
            margin=20,
            text_size=11,
            cell_size=9,
            leading=1.7,
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
    print_page(folder / PRINTED, SOURCES[PRINTED], _MADE, style=_PAGE_STYLE, header="浔州丝绸博物馆　参观和研学须知")
