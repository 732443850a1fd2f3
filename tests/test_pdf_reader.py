"""PDFs made with reportlab: columns, running lines, tables over a page's end, headings, boxes, scans, passwords."""

import io
import math
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Table, TableStyle

from peg_rag.errors import DataError, MissingExtra
from peg_rag.reader_process import ReaderProcess
from peg_rag.readers import PartlyRead, Section, document_text, read_blocks, read_sections
from peg_rag.readers.layout import read_framed_table
from peg_rag.readers.pieces import Glyph, Line
from peg_rag.readers.vertical import are_columns

pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; on Debian: apt-get install chromium")
WIDTH, HEIGHT = A4
Page = Callable[[Canvas], None]


def make_pdf(path: Path, *pages: Page, **options: Any) -> Path:
    canvas = Canvas(str(path), pagesize=A4, **options)
    for draw in pages:
        draw(canvas)
        canvas.showPage()
    canvas.save()
    return path


def write(canvas: Canvas, x: float, top: float, *lines: str, size: float = 10, pitch: float = 1.6) -> None:
    canvas.setFont("STSong-Light", size)
    for number, line in enumerate(lines):
        canvas.drawString(x, HEIGHT - top - size - number * pitch * size, line)


def draw_table(canvas: Canvas, x: float, top: float, rows: list[list[str]], *style: Any, widths: Any = 100) -> None:
    columns = len(rows[0])
    table = Table(rows, colWidths=widths if isinstance(widths, list) else [widths] * columns, rowHeights=20)
    grid = [("GRID", (0, 0), (-1, -1), 0.5, colors.black), ("FONT", (0, 0), (-1, -1), "STSong-Light", 10)]
    table.setStyle(TableStyle([*grid, *style]))
    table.wrapOn(canvas, WIDTH, HEIGHT)
    table.drawOn(canvas, x, HEIGHT - top - 20 * len(rows))


def print_page(path: Path, body: str) -> Path:
    """A web page as Chromium prints it."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    style = (
        "body{font:12px 'Noto Sans CJK SC'} table{border-collapse:collapse;width:100%} td{border:1px solid;padding:5px}"
    )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_content(f"<!DOCTYPE html><style>{style}</style>{body}")
        page.pdf(path=path, format="A4")
        browser.close()
    return path


def html_rows(*rows: str) -> str:
    """Rows of a table of HTML from their cells, which bars part; `3*` before a cell makes it three columns broad."""
    html = ""
    for row in rows:
        cells = [cell.partition("*") if cell[1:2] == "*" else ("1", "", cell) for cell in row.split("|")]
        html += "<tr>" + "".join(f"<td colspan={span}>{text}</td>" for span, _, text in cells) + "</tr>"
    return html


def texts(sections: list[Section]) -> list[tuple[str, str]]:
    return [(section.title, section.text) for section in sections]


def test_lines_of_a_sentence_are_joined_and_paragraphs_kept_apart(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        write(canvas, 72, 100, "员工因公出差应当提前三个工作日提交申请，写明事由、行程和预算，并由直属主", size=12)
        write(canvas, 72, 120, "管批准。The approved application is attached to the claim with a copy, un-", size=12)
        write(canvas, 72, 140, "less it was urgent.", size=12)
        write(canvas, 96, 160, "住宿费凭发票报销。", size=12)

    [section] = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert section.text == (
        "员工因公出差应当提前三个工作日提交申请，写明事由、行程和预算，并由直属主管批准。"
        "The approved application is attached to the claim with a copy, unless it was urgent.\n\n住宿费凭发票报销。"
    )
    assert section.page == 1
    for place in section.places:
        assert (place.page, place.box[0]) in ((1, 72.0), (1, 96.0))
    assert [section.text[place.start :][:2] for place in section.places] == ["员工", "管批", "le", "住宿"]


def test_columns_are_read_one_after_the_other(tmp_path: Path) -> None:
    left = [f"左栏第{n}行写满了这一栏的宽度直到右边" for n in "一二三四五六"]
    right = [f"右栏第{n}行也写满了这一栏的宽度到边" for n in "一二三四五六"]

    def page(canvas: Canvas) -> None:
        write(canvas, 150, 60, "两栏都在这个标题之下", size=18)
        write(canvas, 60, 110, *left, size=12)
        write(canvas, 310, 114, *right, size=12)
        write(canvas, 60, 300, "横贯两栏的一行文字把上面和下面分开，读到这里时两栏都已经读完了。", size=12)

    [section] = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert section.title == "两栏都在这个标题之下"
    assert section.text.startswith("".join(left + right))
    assert section.text.index("右栏第六行") < section.text.index("横贯两栏")


def test_headers_footers_and_page_numbers_are_left_out(tmp_path: Path) -> None:
    def page(number: int) -> Page:
        def draw(canvas: Canvas) -> None:
            write(canvas, 72, 30, "海川公司 员工手册", size=9)
            write(canvas, 72, 120, f"这一页说的是第{'一二三四'[number]}件事情。", size=12)
            write(canvas, 290, HEIGHT - 40, f"第 {number + 1} 页 共 4 页", size=9)

        return draw

    sections = read_sections(make_pdf(tmp_path / "a.pdf", *map(page, range(4))))
    assert [(s.page, s.text) for s in sections] == [(n + 1, f"这一页说的是第{'一二三四'[n]}件事情。") for n in range(4)]


def test_chapters_that_begin_their_pages_are_no_running_lines(tmp_path: Path) -> None:
    def page(number: int) -> Page:
        def draw(canvas: Canvas) -> None:
            write(canvas, 72, 60, f"第{number}章 标准", size=16)
            write(canvas, 72, 120, f"这一章说的是第{number}件事情，要记住。", size=12)

        return draw

    sections = read_sections(make_pdf(tmp_path / "a.pdf", *map(page, range(1, 5))))
    assert [section.title for section in sections] == [f"第{number}章 标准" for number in range(1, 5)]


def test_a_sentence_over_the_end_of_a_page_is_whole(tmp_path: Path) -> None:
    line = "这一行写满了整个版面的宽度并且在句子中间就到了页面的尽头所以句"

    def first(canvas: Canvas) -> None:
        write(canvas, 72, 700, "前面的一行同样写满了整个版面的宽度这样才看得出右边界在哪里呢，", line, size=12)

    def second(canvas: Canvas) -> None:
        write(canvas, 72, 100, "子在下一页继续。", size=12)
        write(canvas, 96, 120, "另起一段。", size=12)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", first, second))
    assert [(s.page, s.text[-10:]) for s in sections] == [(1, "所以句子在下一页继续。"[-10:]), (2, "另起一段。")]
    assert [place.page for place in sections[0].places] == [1, 1, 2]


def test_headings_nest_by_size_and_number(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        write(canvas, 200, 60, "差旅制度", size=20)
        write(canvas, 72, 110, "第一章 总则", size=15)
        write(canvas, 72, 140, "本制度适用于全体员工。", size=10)
        write(canvas, 72, 170, "第二章 标准", size=15)
        write(canvas, 72, 200, "2.1 住宿", size=12)
        write(canvas, 72, 230, "住宿费不超过六百元。", size=10)
        write(canvas, 72, 260, "一、附则", size=10)
        write(canvas, 72, 290, "本制度自发布之日起施行，此前的规定同时废止。", size=10)

    assert texts(read_sections(make_pdf(tmp_path / "a.pdf", page))) == [
        ("差旅制度 > 第一章 总则", "本制度适用于全体员工。"),
        ("差旅制度 > 第二章 标准 > 2.1 住宿", "住宿费不超过六百元。"),
        ("差旅制度 > 第二章 标准 > 2.1 住宿 > 一、附则", "本制度自发布之日起施行，此前的规定同时废止。"),
    ]


def test_chapters_do_not_stand_under_the_list_of_tables(tmp_path: Path) -> None:
    def contents(canvas: Canvas) -> None:
        write(canvas, 72, 80, "表格目录", size=20)
        write(canvas, 72, 140, "表1是软件包的清单，表2是命令的清单，表3是快捷键的清单，都按章节的次序排列。")

    def chapter(canvas: Canvas) -> None:
        write(canvas, 72, 80, "第一章 入门", size=18)
        write(canvas, 72, 120, "这一章说明怎样登录系统，怎样看帮助，怎样在出错的时候找到原因，一步一步地做。")

    sections = read_sections(make_pdf(tmp_path / "a.pdf", contents, chapter))
    assert [section.title for section in sections] == ["表格目录", "第一章 入门"]


def test_numbered_titles_of_one_size_are_of_one_level_whatever_their_weight(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        write(canvas, 72, 80, "第一章 入门", size=18)
        for number, title in enumerate(("1.1 文件", "1.2 目录", "1.3 Midnight Commander", "1.4 命令")):
            top = 120 + 80 * number
            canvas.setFont("STSong-Light" if title != "1.3 Midnight Commander" else "Helvetica-Bold", 14)
            canvas.drawString(72, HEIGHT - top - 14, title)
            write(canvas, 72, top + 30, f"这里是第{number}节的内容，一句话说完，不再多写，只为有一段正文在标题的下面。")

    titles = [section.title for section in read_sections(make_pdf(tmp_path / "a.pdf", page))]
    assert titles[-1] == "第一章 入门 > 1.4 命令"


def test_a_numbered_list_is_no_row_of_headings(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        write(canvas, 72, 100, "报销须提交：", "一、发票原件", "二、审批单", "三、行程单", size=12)

    [section] = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert section.text == "报销须提交：\n\n一、发票原件\n\n二、审批单\n\n三、行程单"


def test_a_table_gives_rows_with_header_and_merged_cells(tmp_path: Path) -> None:
    rows = [
        ["职级", "住宿", "", "补助"],
        ["", "一线城市", "其他", ""],
        ["P6", "600元/晚", "380元/晚", "120元"],
        ["P8", "800元/晚", "500元/晚", ""],
    ]
    spans = [("SPAN", (0, 0), (0, 1)), ("SPAN", (1, 0), (2, 0)), ("SPAN", (3, 0), (3, 1)), ("SPAN", (3, 2), (3, 3))]

    def page(canvas: Canvas) -> None:
        write(canvas, 72, 80, "表1 差旅标准", size=10)
        draw_table(canvas, 72, 110, rows, *spans)
        write(canvas, 72, 220, "以上均含税。", size=10)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert [(s.kind, s.text) for s in sections] == [
        ("text", "表1 差旅标准"),
        ("row", "职级: P6 | 住宿 一线城市: 600元/晚 | 住宿 其他: 380元/晚 | 补助: 120元"),
        ("row", "职级: P8 | 住宿 一线城市: 800元/晚 | 住宿 其他: 500元/晚 | 补助: 120元"),
        ("text", "以上均含税。"),
    ]
    assert sections[1].title == "表1 差旅标准"
    assert sections[1].cells["住宿 其他"] == "380元/晚"
    assert [place.box for place in sections[1].places] == [(72.0, 150.0, 472.0, 170.0)]


def test_a_table_over_the_end_of_a_page_keeps_its_header(tmp_path: Path) -> None:
    def first(canvas: Canvas) -> None:
        write(canvas, 72, 60, "请假审批的权限见下面的表格，从上到下读。", size=10)
        draw_table(canvas, 72, 700, [["天数", "审批人"], ["1天", "主管"], ["3天", "经理"]])

    def second(canvas: Canvas) -> None:
        draw_table(canvas, 72, 60, [["7天", "总监"], ["", "总裁"]], ("SPAN", (0, 0), (0, 1)))
        write(canvas, 72, 140, "其余从略。", size=10)

    rows = [s for s in read_sections(make_pdf(tmp_path / "a.pdf", first, second)) if s.kind == "row"]
    assert [(s.page, s.text) for s in rows] == [
        (1, "天数: 1天 | 审批人: 主管"),
        (1, "天数: 3天 | 审批人: 经理"),
        (2, "天数: 7天 | 审批人: 总监"),
        (2, "天数: 7天 | 审批人: 总裁"),
    ]


def test_a_table_without_rules_gives_rows_too(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        write(canvas, 72, 80, "各地区的收入见下，单位为万元。", size=10)
        rows = [("地区", "收入", "占比"), ("华东", "8,203", "44%"), ("华南", "4,474", "24%"), ("海外", "", "6%")]
        for number, row in enumerate(rows):
            for column, cell in enumerate(row):
                write(canvas, 72 + 120 * column, 110 + 18 * number, cell, size=10)

    rows = [s.text for s in read_sections(make_pdf(tmp_path / "a.pdf", page)) if s.kind == "row"]
    assert rows == [
        "地区: 华东 | 收入: 8,203 | 占比: 44%",
        "地区: 华南 | 收入: 4,474 | 占比: 24%",
        "地区: 海外 | 占比: 6%",
    ]


def test_two_tables_without_rules_stay_two(tmp_path: Path) -> None:
    first = [("场次", "时间", "深水区"), ("早场", "6:30", "开放"), ("午场", "12:00", "关闭"), ("晚场", "18:30", "关闭")]
    second = [
        ("票种", "价格", "说明"),
        ("单次", "35元", "限2小时"),
        ("月卡", "388元", "本人"),
        ("年卡", "980元", "停卡"),
    ]

    def page(canvas: Canvas) -> None:
        for number, row in enumerate([*first, *second]):
            gap = 14 if number >= len(first) else 0
            for column, cell in enumerate(row):
                write(canvas, 72 + 120 * column, 110 + 18 * number + gap, cell, size=10)

    rows = [s.text for s in read_sections(make_pdf(tmp_path / "a.pdf", page)) if s.kind == "row"]
    assert rows[2:4] == ["场次: 晚场 | 时间: 18:30 | 深水区: 关闭", "票种: 单次 | 价格: 35元 | 说明: 限2小时"]
    assert len(rows) == 6


def test_a_table_with_inner_rules_and_no_frame_keeps_its_cells_whole(tmp_path: Path) -> None:
    rows = [
        ["命令", "说明"],
        ["chmod 600 foo", "使其他人无法读写现有文件\n（并且所有人都无法执行）"],
        ["pwd", "显示当前目录"],
        ["tree", ""],
        ["mv foo bar", "将现有文件移动到新的位置\n（必须存在目标目录）"],
    ]

    def page(canvas: Canvas) -> None:
        write(canvas, 72, 80, "下面是一些常用的命令。")
        table = Table(rows, colWidths=[150, 250], rowHeights=[18, 32, 18, 18, 32])
        inner = [("INNERGRID", (0, 0), (-1, -1), 0.5, colors.black), ("FONT", (0, 0), (-1, -1), "STSong-Light", 10)]
        ends = [(name, (0, row), (-1, row), 0.5, colors.black) for name, row in (("LINEABOVE", 0), ("LINEBELOW", -1))]
        table.setStyle(TableStyle([*inner, *ends, ("VALIGN", (0, 0), (-1, -1), "MIDDLE")]))
        table.wrapOn(canvas, WIDTH, HEIGHT)
        table.drawOn(canvas, 72, HEIGHT - 300)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert [section.text for section in sections if section.kind == "row"] == [
        "命令: chmod 600 foo | 说明: 使其他人无法读写现有文件（并且所有人都无法执行）",
        "命令: pwd | 说明: 显示当前目录",
        "命令: tree",
        "命令: mv foo bar | 说明: 将现有文件移动到新的位置（必须存在目标目录）",
    ]


DUTIES = [
    ("安全员", ("每日巡查现场，填写隐患台账，督促整", "改，参加每周一的安全例会并汇报"), "每月600元"),
    ("班长", ("安排当日生产，核对产量",), "每月400元"),
    ("资料员", ("收集图纸与会议纪要，按月归档，装订", "成册后登记"), "每月300元"),
]
DUTY_ROWS = [f"职务: {name} | 职责: {''.join(lines)} | 津贴: {pay}" for name, lines, pay in DUTIES]


def test_rows_between_horizontal_rules_keep_their_wrapped_cells(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        write(canvas, 72, 80, "各岗位的职责与津贴见下面的表格，由人力资源部解释。")
        canvas.line(72, HEIGHT - 70, 472, HEIGHT - 70)
        for x, name in zip((72, 152, 392), ("职务", "职责", "津贴"), strict=True):
            write(canvas, x, 124, name)
        for number, (name, lines, pay) in enumerate(DUTIES):
            top = 140 + 30 * number
            canvas.line(72, HEIGHT - top, 472, HEIGHT - top)
            write(canvas, 72, top + 10, name)  # in the middle of the row, as is what stands at the right
            write(canvas, 152, top + 10 - 6 * (len(lines) - 1), *lines, pitch=1.2)
            write(canvas, 392, top + 10, pay)
        for top in (120, 230):
            canvas.line(72, HEIGHT - top, 472, HEIGHT - top)
        write(canvas, 72, 250, "津贴随当月工资发放。")

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert [section.text for section in sections if section.kind == "row"] == DUTY_ROWS
    assert [section.text for section in sections if section.kind == "text"] == [
        "各岗位的职责与津贴见下面的表格，由人力资源部解释。",
        "津贴随当月工资发放。",
    ]
    assert [place.box for place in sections[1].places] == [(72.0, 140.0, 435.9, 170.0)]


def test_the_last_wrapped_cell_within_a_frame_is_whole(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        canvas.rect(66, HEIGHT - 240, 420, 124)
        for x, name in zip((72, 152, 392), ("职务", "职责", "津贴"), strict=True):
            write(canvas, x, 124, name)
        for number, (name, lines, pay) in enumerate(DUTIES):
            top = 144 + 32 * number
            write(canvas, 72, top, name)
            write(canvas, 152, top, *lines, pitch=1.2)
            write(canvas, 392, top, pay)
        write(canvas, 72, 250, "津贴随当月工资发放。")

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert [section.text for section in sections] == [*DUTY_ROWS, "津贴随当月工资发放。"]


def test_bands_of_several_rows_are_not_one_row(tmp_path: Path) -> None:
    rows = [("片区", "门店", "店长"), ("东区", "一店", "何洁"), ("东区", "二店", "邵峰"), ("西区", "三店", "葛亮")]

    def page(canvas: Canvas) -> None:
        for number, row in enumerate(rows):
            for column, cell in enumerate(row):
                write(canvas, 72 + 120 * column, 104 + 16 * number, cell)
        for top in (100, 118, 151, 168):
            canvas.line(72, HEIGHT - top, 432, HEIGHT - top)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert [section.text for section in sections] == [
        f"片区: {area} | 门店: {shop} | 店长: {name}" for area, shop, name in rows[1:]
    ]


def test_three_columns_are_read_one_after_the_other(tmp_path: Path) -> None:
    columns = [[f"第{name}栏的第{line}行文字写满一整行" for line in "一二三四五六"] for name in "甲乙丙"]

    def page(canvas: Canvas) -> None:
        for number, lines in enumerate(columns):
            write(canvas, 50 + 170 * number, 80, *lines)

    [section] = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert section.text == "".join(line for lines in columns for line in lines)


def test_a_table_of_three_columns_is_no_text_in_columns(tmp_path: Path) -> None:
    rows = [("工序", "操作要求", "检查方法"), *((f"工序{n}", "扭矩不小于四十牛米每侧", "目测") for n in "甲乙丙丁戊")]

    def page(canvas: Canvas) -> None:
        for number, row in enumerate(rows):
            for column, cell in enumerate(row):
                write(canvas, 72 + 150 * column, 110 + 18 * number, cell)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert sections[0].text == "工序: 工序甲 | 操作要求: 扭矩不小于四十牛米每侧 | 检查方法: 目测"


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_text_that_lies_on_its_side_is_read_and_keeps_its_place(tmp_path: Path, turn: int) -> None:
    def page(canvas: Canvas) -> None:
        if turn == 90:  # the reader turns the page clockwise
            canvas.translate(WIDTH, 0)
        elif turn == 180:
            canvas.translate(WIDTH, HEIGHT)
        else:
            canvas.translate(0, HEIGHT)
        canvas.rotate({90: 90, 180: 180, 270: 270}[turn])
        canvas.setFont("STSong-Light", 10)
        canvas.drawString(100, 450, "横向打印的设备清单如下，共两项。")
        table = Table([["设备", "数量"], ["水泵", "3台"], ["风机", "5台"]], colWidths=100, rowHeights=20)
        grid = [("GRID", (0, 0), (-1, -1), 0.5, colors.black), ("FONT", (0, 0), (-1, -1), "STSong-Light", 10)]
        table.setStyle(TableStyle(grid))
        table.wrapOn(canvas, 400, 400)
        table.drawOn(canvas, 100, 300)

    text, first, second = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert text.text == "横向打印的设备清单如下，共两项。"
    assert (first.text, second.text) == ("设备: 水泵 | 数量: 3台", "设备: 风机 | 数量: 5台")
    # The first row lies between 320 and 340 above the turned page's bottom, from 100 to 300 to the right.
    expected = {
        90: (WIDTH - 340, HEIGHT - 300, WIDTH - 320, HEIGHT - 100),
        180: (WIDTH - 300, 320, WIDTH - 100, 340),
        270: (320, 100, 340, 300),
    }[turn]
    assert first.places[0].box == pytest.approx(expected, abs=1)


def test_rules_without_columns_between_them_are_no_table(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        for number in range(4):
            write(canvas, 72, 100 + 60 * number, "一条横线隔开两段话，")
            canvas.line(72, HEIGHT - 130 - 60 * number, 400, HEIGHT - 130 - 60 * number)
        canvas.line(250, HEIGHT - 500, 250, HEIGHT - 600)

    assert {section.kind for section in read_sections(make_pdf(tmp_path / "a.pdf", page))} == {"text"}


def test_a_form_gives_names_and_values(tmp_path: Path) -> None:
    rows = [["设备名称", "测量机"], ["规格型号", "CMM-8106"], ["到货日期", "2025年4月9日"], ["购置价格", "368,000元"]]
    path = make_pdf(tmp_path / "a.pdf", lambda canvas: draw_table(canvas, 72, 100, rows))
    assert [s.text for s in read_sections(path)] == [f"{name}: {value}" for name, value in rows]


def test_a_table_of_contents_is_left_out(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        write(
            canvas,
            72,
            80,
            "1 总则 .................................. 3",
            "2 标准 .................................. 5",
            size=10,
        )
        write(canvas, 72, 140, "正文从这里开始。", size=10)

    assert [s.text for s in read_sections(make_pdf(tmp_path / "a.pdf", page))] == ["正文从这里开始。"]


def test_offsets_count_in_the_documents_text(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        write(canvas, 72, 60, "标题在此", size=20)
        write(canvas, 72, 110, "正文一段。", size=10)
        draw_table(canvas, 72, 140, [["名", "值"], ["甲", "1"], ["乙", "2"]])

    path = make_pdf(tmp_path / "a.pdf", page)
    whole = document_text(read_blocks(path))
    for section in read_sections(path):
        assert whole[section.start :].startswith(section.text)


def test_an_encrypted_pdf_says_so_in_two_languages(tmp_path: Path) -> None:
    lock = StandardEncryption("secret", ownerPassword="owner")
    path = make_pdf(tmp_path / "a.pdf", lambda canvas: write(canvas, 72, 80, "密"), encrypt=lock)
    with pytest.raises(DataError, match=r"a\.pdf is encrypted \(文件已加密\)"):
        read_sections(path)


def picture_page(canvas: Canvas) -> None:
    """A page that shows text in a picture only."""
    from PIL import Image, ImageDraw
    from reportlab.lib.utils import ImageReader

    picture = Image.new("RGB", (1200, 300), "white")
    ImageDraw.Draw(picture).text((40, 100), "HOTEL LIMIT 600 YUAN", fill="black", font_size=60)
    canvas.drawImage(ImageReader(picture), 50, 500, width=480, height=120)


def test_scans_without_the_extra_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    from peg_rag.readers import ocr

    ocr._load_engine.cache_clear()
    with pytest.raises(MissingExtra, match=r"扫描件.*pip install 'peg-rag\[ocr\]'"):
        read_sections(make_pdf(tmp_path / "a.pdf", picture_page))
    mixed = make_pdf(tmp_path / "b.pdf", picture_page, lambda canvas: write(canvas, 72, 80, "这一页有文字。"))
    with pytest.warns(PartlyRead, match=r"b\.pdf.*扫描件"):
        assert [(s.page, s.text) for s in read_sections(mixed)] == [(2, "这一页有文字。")]


def test_the_places_of_a_tilted_scan_are_those_on_the_page() -> None:
    from peg_rag.readers.layout import in_reading_order
    from peg_rag.readers.ocr import _recognize_lines
    from peg_rag.readers.pieces import Table as PageTable

    angle = math.radians(3)

    def turn(x: float, y: float) -> tuple[float, float]:
        return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)

    names, prices, boxes = ["项目", "成人票", "儿童票"], ["价格", "60元", "30元"], []
    for row in range(3):
        for x in (100, 900):
            y = 1000 + 60 * row
            boxes.append([turn(x, y), turn(x + 200, y), turn(x + 200, y + 40), turn(x, y + 40)])
    texts = [text for pair in zip(names, prices, strict=True) for text in pair]
    result = SimpleNamespace(boxes=np.array(boxes), txts=texts, scores=[0.9] * 6)
    [table] = in_reading_order(_recognize_lines(result, 1, scale=2.0), 800.0)
    assert isinstance(table, PageTable)
    assert table.grid == [["项目", "价格"], ["成人票", "60元"], ["儿童票", "30元"]]
    corners = np.array(boxes[2:4]).reshape(-1, 2) / 2  # of the second row, in points
    expected = [*corners.min(axis=0), *corners.max(axis=0)]
    assert table.rows[1] == pytest.approx(expected, abs=0.1)


def recognise_tilted(rows: list[list[str]], degrees: float, *, step: int = 4) -> list[Line]:
    """The lines of a tilted page's rows, 200 pixels to a column; the ends of boxes stand at multiples of a step."""
    from peg_rag.readers.ocr import _recognize_lines

    sine = math.sin(math.radians(degrees))
    boxes = []
    for number, row in enumerate(rows):
        for column, text in enumerate(row):
            x0 = 100 + 200 * column
            x1 = x0 + 36 * len(text)
            top, end = (step * round((1000 + 50 * number + x * sine) / step) for x in (x0, x1))
            boxes.append([[x0, top], [x1, end], [x1, end + 40], [x0, top + 40]])
    texts = [text for row in rows for text in row]
    result = SimpleNamespace(boxes=np.array(boxes, dtype=float), txts=texts, scores=[0.9] * len(texts))
    lines = _recognize_lines(result, 1, scale=2.0)
    assert all(isinstance(line, Line) for line in lines)
    return [line for line in lines if isinstance(line, Line)]


@pytest.mark.parametrize("degrees", [-3, -1.7, 0, 1.1, 2.8])
@pytest.mark.parametrize("notes", [[], [["称样五克，沸水冲泡三次。"], ["评语当场宣读，送样人没有异议，每样八十元。"]]])
def test_the_rows_of_a_tilted_table_stay_whole_though_short_boxes_are_upright(
    degrees: float, notes: list[list[str]]
) -> None:
    from peg_rag.readers.layout import in_reading_order
    from peg_rag.readers.pieces import Table as PageTable

    rows = [["样号", "汤色", "香气", "滋味", "总分"], ["A1", "88", "90", "94", "92"], ["B1", "90", "91", "89", "90"]]
    rows += [["B2", "84", "86", "82", "80"], ["D1", "85", "83", "90", "79"]]
    items = in_reading_order(recognise_tilted([*rows, *notes], degrees), 800.0)
    assert [item.grid for item in items if isinstance(item, PageTable)] == [rows]


def test_a_line_that_was_cut_at_a_comma_is_no_row_of_the_table_below() -> None:
    from peg_rag.readers.ocr import _join_broken_lines

    def line(text: str, x0: float, x1: float) -> Line:
        return Line(text, 1, x0, 80, x1, 100, 15, bold=False)

    lines = [
        line("旧牌子不算）", 165, 238),
        line("(2026年11月起", 69, 160),
        line("项目", 300, 333),
        line("价格", 347, 380),
    ]
    joined = _join_broken_lines(lines)
    assert [line.text for line in joined] == ["(2026年11月起 旧牌子不算）", "项目", "价格"]
    assert joined[0].box == (69, 80, 238, 100)


def test_a_dash_alone_in_a_cell_is_no_number() -> None:
    rows = [["项目", "机械表"], ["换电池", "一"], ["换机芯", "不做"]]
    assert "—" in [line.text for line in recognise_tilted(rows, 0)]
    rows = [["节次", "课程"], ["一", "语文"], ["二", "数学"]]
    assert "一" in [line.text for line in recognise_tilted(rows, 0)]


def test_a_form_and_the_table_below_it_are_two_though_a_measure_names_a_column() -> None:
    from peg_rag.readers.layout import in_reading_order
    from peg_rag.readers.pieces import Table as PageTable

    form = [["编号", "YC-27"], ["地点", "东门外"], ["业主", "汝先生"]]
    table = [["塘名", "4小时", "全天"], ["莲塘", "60元", "90元"], ["苇塘", "80元", "99元"], ["柳塘", "50元", "70元"]]
    lines = recognise_tilted([*form, [], *table], 0)
    items = in_reading_order(lines, 800.0)
    assert [item.grid[0] for item in items if isinstance(item, PageTable)] == [form[0], table[0]]


def test_the_title_of_a_scan_is_told_by_the_breadth_of_its_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peg_rag.readers.ocr import _measure_type

    def line(text: str, top: float, letter: float) -> Line:
        x1 = 72 + letter * len(text)
        return Line(text, 1, 72, top, x1, top + 20, size=15, bold=False)

    title = line("老郑钟表维修价目", 60, 22)
    texts = ["换电池等着就好", "进过水的先看，晾干另收。", "老座钟上门修，上发条的另加。"]
    lines = _measure_type([title, *(line(text, 120 + 27 * number, 14) for number, text in enumerate(texts))])
    assert [line.size for line in lines] == [pytest.approx(15 * 22 / 14), 15, 15, 15]
    monkeypatch.setattr("peg_rag.readers.ocr.recognise_pages", lambda data, numbers: [(1, lines)])
    [section] = read_sections(make_pdf(tmp_path / "a.pdf", picture_page))
    assert section.title == "老郑钟表维修价目"
    assert _measure_type([]) == []


def test_scans_are_read_where_the_extra_is_there(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    [section] = read_sections(make_pdf(tmp_path / "a.pdf", picture_page))
    assert "600" in section.text + section.title
    assert section.page == 1


def test_progress_has_a_total_and_an_interrupted_reader_tells_what_it_left_out(tmp_path: Path) -> None:
    pages = [lambda canvas, n=n: write(canvas, 72, 120, f"页的内容{n}是这些。", size=12) for n in range(5)]
    path = make_pdf(tmp_path / "a.pdf", *pages)
    steps: list[tuple[int, int]] = []
    with ReaderProcess() as reader:
        sections = reader.read(path, on_page=lambda page, total: steps.append((page, total)))
    assert steps == [(number, 5) for number in range(1, 6)]
    assert sections == read_sections(path)


def test_radicals_are_stored_as_they_are_typed(tmp_path: Path) -> None:
    from peg_rag.readers.layout import lines_of
    from peg_rag.readers.pieces import Glyph

    glyphs = [Glyph(text, 10 * n, 0, 10 * n + 10, 10, 10, False) for n, text in enumerate("⼯⻓⻔⼾⻅")]
    assert lines_of(glyphs, 1)[0].text == "工长门户见"


def test_the_memory_of_a_page_goes_with_it(tmp_path: Path) -> None:
    """pdfplumber keeps every page's glyphs while the document is open; here the pages are let go."""
    import gc

    import pdfplumber.page

    alive = []
    path = make_pdf(tmp_path / "a.pdf", *[lambda canvas: write(canvas, 72, 80, "页")] * 6)

    def count(page: int, total: int) -> None:
        gc.collect()
        alive.append(sum(isinstance(o, pdfplumber.page.Page) and "_objects" in vars(o) for o in gc.get_objects()))

    from peg_rag.readers.pdf import read_pdf

    list(read_pdf(path.read_bytes(), path, None, on_page=count))
    assert max(alive) <= 1


def test_a_stranger_that_names_itself_pdf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(io.BytesIO(b"PK\x03\x04").getvalue() * 100)
    with pytest.raises(DataError, match="not a PDF"):
        read_sections(tmp_path / "a.pdf")


# -- watermarks, vertical text, two pages on a sheet ------------------------------------------------------------------


RULES = [f"第{number}条规定员工应当按照流程办理相关手续并承担相应的责任，不得拖延。" for number in range(1, 16)]


def mark_across(canvas: Canvas) -> None:
    canvas.saveState()
    canvas.setFont("STSong-Light", 50)
    canvas.translate(300, 560)
    canvas.rotate(45)
    canvas.drawCentredString(0, 0, "内部资料 严禁外传")
    canvas.restoreState()


def mark_in_tiles(canvas: Canvas) -> None:
    canvas.saveState()
    canvas.setFillGray(0.85)
    canvas.setFont("STSong-Light", 14)
    for across in range(3):
        for down in range(9):
            canvas.drawString(80 + across * 180, 80 + down * 93, "张三 8001")
    canvas.restoreState()


@pytest.mark.parametrize("mark", [mark_across, mark_in_tiles])
def test_a_watermark_is_no_part_of_the_text(mark: Page, tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        mark(canvas)
        write(canvas, 72, 100, *RULES)

    def draw_last(canvas: Canvas) -> None:
        mark(canvas)
        write(canvas, 72, 300, "附则由行政部负责解释。")

    sections = read_sections(make_pdf(tmp_path / "a.pdf", draw, draw_last))
    assert "".join(section.text for section in sections).replace("\n", "") == "".join(RULES) + "附则由行政部负责解释。"


def test_pale_text_that_nothing_is_printed_over_is_read(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        write(canvas, 72, 100, *RULES)
        canvas.setFillGray(0.7)
        write(canvas, 72, 500, "浅色的说明文字也是正文的一部分。")

    assert "浅色的说明文字" in read_sections(make_pdf(tmp_path / "a.pdf", draw))[-1].text


def write_columns(canvas: Canvas, x: float, top: float, *columns: str, size: float = 12) -> None:
    """Vertical text, as a program draws it whose font has no vertical form: glyph by glyph."""
    canvas.setFont("STSong-Light", size)
    for number, column in enumerate(columns):
        for step, character in enumerate(column):
            canvas.drawString(x - number * 2 * size, HEIGHT - top - step * 1.3 * size, character)


def test_vertical_text_is_read_in_columns_from_the_right(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        write_columns(canvas, WIDTH - 90, 100, "仓库管理办法", size=20)
        columns = ["第一条　库房由专人管理，非工作人员不得", "入内。", "第二条　领料须凭领料单（经主管签字）方"]
        write_columns(canvas, WIDTH - 140, 100, *columns, "可发放。")
        write(canvas, WIDTH / 2, HEIGHT - 50, "第 12 页", size=9)

    [section] = read_sections(make_pdf(tmp_path / "a.pdf", draw))
    assert section.title == "仓库管理办法"
    assert section.text == (
        "第一条 库房由专人管理，非工作人员不得入内。\n\n第二条 领料须凭领料单（经主管签字）方可发放。"
    )
    x0, top, x1, bottom = section.places[0].box
    assert x0 == pytest.approx(WIDTH - 140, abs=1)
    assert x1 - x0 == pytest.approx(12, abs=1)
    assert top < 105
    assert bottom > 350


def test_a_number_side_by_side_in_a_column_keeps_its_order(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        write_columns(canvas, 400, 100, "本年度盘点定于", size=12)
        canvas.drawString(400, HEIGHT - 100 - 7 * 1.3 * 12, "12")
        for step, character in enumerate("月进行，请各部门做好准备。", start=8):
            canvas.drawString(400, HEIGHT - 100 - step * 1.3 * 12, character)

    [section] = read_sections(make_pdf(tmp_path / "a.pdf", draw))
    assert section.text == "本年度盘点定于12月进行，请各部门做好准备。"


LEFT_PAGE = (
    "库房由专人管理，非工作人员不得入",
    "内。领料须凭领料单，经主管签字后",
    "方可发放。每月盘点一次，盘点结果",
    "报财务部备案。",
    "易燃品应当单独存放，并配备灭火器",
    "材，由安全员每周检查，检查结果应",
)


@pytest.mark.parametrize("has_table", [False, True])
def test_two_pages_on_a_sheet_are_read_one_after_the_other(has_table: bool, tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setPageSize((HEIGHT, WIDTH))
        canvas.translate(0, WIDTH - HEIGHT)  # `write` counts from the top of a tall page
        write(canvas, 60, 90, *LEFT_PAGE, size=12)
        write(canvas, 60, 540, "— 12 —", size=9)
        write(canvas, 480, 90, "当记录备查。", size=12)
        if has_table:
            draw_table(canvas, 480, 120, [["设备", "电话"], ["空调", "8001"], ["水泵", "8002"]])
        write(canvas, 620, 540, "— 13 —", size=9)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", draw))
    assert sections[0].text == (
        "库房由专人管理，非工作人员不得入内。领料须凭领料单，经主管签字后方可发放。每月盘点一次，盘点结果报财务部备案。\n\n"
        "易燃品应当单独存放，并配备灭火器材，由安全员每周检查，检查结果应当记录备查。"
    )
    rows = [section.text for section in sections[1:]]
    assert rows == (["设备: 空调 | 电话: 8001", "设备: 水泵 | 电话: 8002"] if has_table else [])


# -- columns with tables, paragraphs with numbers ---------------------------------------------------------------------


def test_a_table_in_a_column_does_not_break_the_columns(tmp_path: Path) -> None:
    left = [f"左栏第{number}行的文字写满一整行没有空余" for number in "一二三四五六七"]
    right = [f"右栏第{number}行的文字写满一整行没有空余" for number in "一二三四五六七"]

    def draw(canvas: Canvas) -> None:
        draw_table(canvas, 60, 80, [["班次", "上班"], ["早班", "6:30"]] + [["晚班", "14:30"]] * 8, widths=85)
        write(canvas, 60, 330, *left)
        write(canvas, 320, 80, *right)
        draw_table(canvas, 320, 260, [["假别", "天数"], ["婚假", "10天"]] + [["丧假", "5天"]] * 8, widths=85)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", draw))
    kinds = [section.kind for section in sections]
    assert kinds == ["row"] * 9 + ["text"] + ["row"] * 9
    assert sections[9].text.replace("\n", "") == "".join(left + right)


def test_a_few_lines_in_two_columns_are_no_table(tmp_path: Path) -> None:
    left = [
        "记录后上一班方可离岗。接班人没有到的，",
        "上一班不得离岗，由班长在三十分钟内安排",
        "人员顶班，顶班时间按加班计算。",
    ]
    right = ["假期的天数、工资、凭证和申请时间如下，", "除注明的以外，假期按工作日计算，休假前", "须提出申请。"]

    def draw(canvas: Canvas) -> None:
        write(canvas, 60, 80, *left)
        write(canvas, 320, 80, *right)

    [section] = read_sections(make_pdf(tmp_path / "a.pdf", draw))
    assert section.text.replace("\n", "") == "".join(left + right)


def test_a_numbered_paragraph_begins_after_a_sentence_and_a_figure_does_not(tmp_path: Path) -> None:
    lines = [
        "3.3 因台风、暴雨橙色以上预警不能按时到岗的，不作迟到处理，也不扣当日的工资。",
        "3.4 忘记打卡的，应当在两个工作日内补登，由直接上级确认，补登的人数每月合计为",
        "3.5 人，超过的部分参照执行第三章、第四章、第五章和第六章，以及公司另行发布的、",
        "第七章的规定，由人力资源部负责解释，医保目录内自付的部分报销七成，全年最高共",
        "6,500元。",
    ]

    def draw(canvas: Canvas) -> None:
        write(canvas, 72, 80, *lines, size=11)

    [section] = read_sections(make_pdf(tmp_path / "a.pdf", draw))
    assert section.text == f"{lines[0]}\n\n{''.join(lines[1:])}"


def test_a_number_that_a_narrow_cell_breaks_is_whole(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        rows = [["服务", "时间"], ["电话支持", "每天8:00至23:0\n0"], ["产量", "100\n200"]]
        draw_table(canvas, 72, 80, rows, ("FONTSIZE", (0, 0), (-1, -1), 7), ("LEADING", (0, 0), (-1, -1), 8))

    sections = read_sections(make_pdf(tmp_path / "a.pdf", draw))
    assert [section.text for section in sections] == [
        "服务: 电话支持 | 时间: 每天8:00至23:00",
        "服务: 产量 | 时间: 100 200",
    ]


def test_a_three_line_table_has_both_lines_of_its_header(tmp_path: Path) -> None:
    columns = (72, 190, 270, 350, 440)

    def draw(canvas: Canvas) -> None:
        write(canvas, 72, 70, "表2 各厂产量与能耗")
        for top in (90, 134, 214):
            canvas.line(72, HEIGHT - top, 500, HEIGHT - top)
        canvas.line(180, HEIGHT - 112, 330, HEIGHT - 112)
        canvas.line(340, HEIGHT - 112, 500, HEIGHT - 112)
        write(canvas, 72, 104, "工厂")
        write(canvas, 225, 95, "产量")
        write(canvas, 395, 95, "能耗")
        rows = [("", "2023年", "2024年", "2023年", "2024年"), ("苏州", "1,200", "1,350", "880", "915")]
        rows += [("成都", "800", "940", "610", "662"), ("合计", "2,000", "2,290", "1,490", "1,577")]
        for number, row in enumerate(rows):
            for x, text in zip(columns, row, strict=True):
                write(canvas, x, 117 + number * 25, text)
        write(canvas, 72, 220, "注：能耗以千度计。", size=8)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", draw))
    assert sections[1].title == "表2 各厂产量与能耗"
    assert [section.text for section in sections[1:4]] == [
        "工厂: 苏州 | 产量 2023年: 1,200 | 产量 2024年: 1,350 | 能耗 2023年: 880 | 能耗 2024年: 915",
        "工厂: 成都 | 产量 2023年: 800 | 产量 2024年: 940 | 能耗 2023年: 610 | 能耗 2024年: 662",
        "工厂: 合计 | 产量 2023年: 2,000 | 产量 2024年: 2,290 | 能耗 2023年: 1,490 | 能耗 2024年: 1,577",
    ]
    assert sections[4].text == "注：能耗以千度计。"


@pytest.mark.parametrize("repeats_header", [False, True])
@pytest.mark.parametrize("has_more", [False, True])
def test_a_row_that_the_pages_end_cuts_is_whole(has_more: bool, repeats_header: bool, tmp_path: Path) -> None:
    sides = (72, 122, 222, 422)

    def rule(canvas: Canvas, *tops: float) -> None:
        for top in tops:
            canvas.line(sides[0], HEIGHT - top, sides[-1], HEIGHT - top)

    def fill(canvas: Canvas, top: float, *cells: str) -> None:
        for x, cell in zip(sides, cells, strict=False):
            write(canvas, x + 4, top, cell)

    def first(canvas: Canvas) -> None:
        rule(canvas, 700, 720)
        for x in sides:
            canvas.line(x, HEIGHT - 700, x, HEIGHT - 780)  # as browsers print it: no rule at the page's end
        fill(canvas, 704, "序号", "名称", "内容")
        fill(canvas, 724, "1", "用印", "用印须经部门负责人批准，并在登记")
        fill(canvas, 740, "", "", "本上写明份数和用途，由印章管理员")

    def second(canvas: Canvas) -> None:
        bottom = 120 if has_more else 100
        for x in sides:
            canvas.line(x, HEIGHT - 60, x, HEIGHT - bottom)
        rule(canvas, 100, bottom, *((60, 80) if repeats_header else ()))
        if repeats_header:
            fill(canvas, 64, "序号", "名称", "内容")
        fill(canvas, 84 if repeats_header else 64, "", "", "核对后盖章。")
        if has_more:
            fill(canvas, 104, "2", "借阅", "档案不得带出。")
        write(canvas, 72, 140, "以上自发布之日起执行。")

    *rows, last = read_sections(make_pdf(tmp_path / "a.pdf", first, second))
    content = "用印须经部门负责人批准，并在登记本上写明份数和用途，由印章管理员核对后盖章。"
    expected = [(1, f"序号: 1 | 名称: 用印 | 内容: {content}")]
    expected += [(2, "序号: 2 | 名称: 借阅 | 内容: 档案不得带出。")] if has_more else []
    assert [(row.page, row.text) for row in rows] == expected
    assert last.text == "以上自发布之日起执行。"


@pytest.mark.parametrize("count", [3, 4])
def test_rows_told_by_shading_keep_their_cells(count: int, tmp_path: Path) -> None:
    sides = (72, 112, 272, 372)  # no blank of a letter's width between the columns

    def draw(canvas: Canvas) -> None:
        cells = [("职级", "交通", "住宿"), *(("P" + str(n), "", f"{300 + n}元/晚") for n in range(1, count + 1))]
        for number, row in enumerate(cells):
            top = 80 + number * 36
            if number % 2 == 0:
                canvas.setFillGray(0.9)
                for left, right in pairwise(sides):
                    canvas.rect(left, HEIGHT - top - 36, right - left, 36, stroke=0, fill=1)
                canvas.setFillGray(0)
            for x, cell in zip(sides, row, strict=False):
                write(canvas, x + 4, top + 4, cell)
            if number:
                write(canvas, sides[1] + 4, top + 4, "高铁二等座或者经济舱，须提前", "三天预订")
        write(canvas, 72, 80 + (count + 1) * 36 + 20, "注：一线城市可上浮。")

    *rows, last = read_sections(make_pdf(tmp_path / "a.pdf", draw))
    assert [row.text for row in rows] == [
        f"职级: P{n} | 交通: 高铁二等座或者经济舱，须提前三天预订 | 住宿: {300 + n}元/晚" for n in range(1, count + 1)
    ]
    assert last.text == "注：一线城市可上浮。"


def test_the_columns_of_a_vertical_scan_are_lines_from_the_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def column(text: str, x0: float, x1: float, length: int) -> Line:
        box = (x0, 80.0, x1, 80.0 + length)
        return Line(text, 1, *box, size=0.75 * length, bold=False, tilted_box=box)

    lines = [
        column("字后方可发放。", 370, 390, 140),
        column("入内，领料须凭领料单，经主管签", 400, 420, 300),
        column("库房由专人管理，非工作人员不得", 430, 449, 300),
        column("仓库管理办法", 480, 512, 190),
        Line("第3页", 1, 280, 800, 310, 812, 9, False, tilted_box=(280, 800, 310, 812)),
    ]
    assert are_columns(lines)
    monkeypatch.setattr("peg_rag.readers.ocr.recognise_pages", lambda data, numbers: [(1, lines)])
    [section] = read_sections(make_pdf(tmp_path / "a.pdf", picture_page))
    assert (section.title, section.text) == (
        "仓库管理办法",
        "库房由专人管理，非工作人员不得入内，领料须凭领料单，经主管签字后方可发放。",
    )
    assert [place.box for place in section.places] == [
        (430, 80.0, 449, 380.0),
        (400, 80.0, 420, 380.0),
        (370, 80.0, 390, 220.0),
    ]


def test_a_footnote_at_the_pages_edge_is_no_running_line(tmp_path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        write(canvas, 72, 100, *RULES)
        write(canvas, 72, 790, "① 一线城市指北京、上海、广州和深圳，其余城市按", "二线城市执行。", size=8)
        write(canvas, 400, 815, "内部资料", size=8)

    text = "".join(section.text for section in read_sections(make_pdf(tmp_path / "a.pdf", draw)))
    assert "① 一线城市指北京" in text
    assert "二线城市执行。" in text
    assert "内部资料" not in text


@pytest.mark.parametrize("has_rules", [True, False])
def test_a_label_in_the_first_row_of_its_group_holds_for_all_rows(has_rules: bool, tmp_path: Path) -> None:
    rows = [["部门", "物品", "每月限量"], ["行政部", "复印纸", "20包"], ["", "墨盒", "4个"], ["", "文件夹", "30个"]]
    rows += [["研发部", "复印纸", "5包"], ["", "白板笔", "12支"]]

    def page(canvas: Canvas) -> None:
        write(canvas, 72, 60, "各部门按下表领用物品，不得超过限量。")
        if has_rules:
            draw_table(canvas, 72, 100, rows)
        else:
            for number, row in enumerate(rows):
                for column, text in enumerate(row):
                    write(canvas, 72 + 100 * column, 100 + 20 * number, text)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))[1:]
    assert [section.cells["部门"] for section in sections] == ["行政部"] * 3 + ["研发部"] * 2


def test_equal_neighbours_in_a_ruled_table_are_two_cells(tmp_path: Path) -> None:
    rows = [["姓名", "周一", "周二"], ["王芳", "早", "早"], ["休", "休", "休"]]
    sections = read_sections(make_pdf(tmp_path / "a.pdf", lambda canvas: draw_table(canvas, 72, 100, rows)))
    assert [s.text for s in sections] == ["姓名: 王芳 | 周一: 早 | 周二: 早", "姓名: 休 | 周一: 休 | 周二: 休"]


@needs_browser
def test_a_printed_form_gives_its_fields_and_its_items(tmp_path: Path) -> None:
    rows = html_rows(
        "购买方名称|2*苏州澄湖餐饮公司|税号|2*91320506MA1X2Y3Z4Q",
        "开户行|2*农业银行吴中支行|账号|2*10550101040012345",
        "货物名称|规格|单位|数量|单 价|金额",
        "餐盘|五格|个|200|12.50|2500.00",
        "消毒柜|RTP700|台|2|1980.00|3960.00",
        "价税合计（大写）|3*陆仟肆佰陆拾元整|2*（小写）¥6460.00",
        "备注|5*货到后30日内付款",
    )
    sections = read_sections(print_page(tmp_path / "a.pdf", f"<table>{rows}</table>"))
    assert [section.text for section in sections] == [
        "购买方名称: 苏州澄湖餐饮公司 | 税号: 91320506MA1X2Y3Z4Q",
        "开户行: 农业银行吴中支行 | 账号: 10550101040012345",
        "货物名称: 餐盘 | 规格: 五格 | 单位: 个 | 数量: 200 | 单价: 12.50 | 金额: 2500.00",
        "货物名称: 消毒柜 | 规格: RTP700 | 单位: 台 | 数量: 2 | 单价: 1980.00 | 金额: 3960.00",
        "价税合计（大写）: 陆仟肆佰陆拾元整 | 小写: ¥6460.00",
        "备注: 货到后30日内付款",
    ]


@needs_browser
def test_items_within_one_cell_and_the_lines_of_a_buyer_are_told_apart(tmp_path: Path) -> None:
    buyer = html_rows("<i>购买方</i>|名称：苏州澄湖餐饮公司<br>纳税人识别号：91320506MA1X2Y3Z4Q")
    items = html_rows(
        "货物名称|规格型号|单位|数量|金额",
        "*金属制品*餐盘<br>*家用电器*消毒柜|五格<br>RTP700|个<br>台|200<br>2|2212.39<br>3504.42",
        "合 计||||¥5716.81",
    )
    body = f"<table>{buyer}</table><table>{items}</table>"
    sections = read_sections(print_page(tmp_path / "a.pdf", body))
    assert [section.text for section in sections] == [
        "购买方 名称: 苏州澄湖餐饮公司 | 购买方 纳税人识别号: 91320506MA1X2Y3Z4Q",
        "货物名称: *金属制品*餐盘 | 规格型号: 五格 | 单位: 个 | 数量: 200 | 金额: 2212.39",
        "货物名称: *家用电器*消毒柜 | 规格型号: RTP700 | 单位: 台 | 数量: 2 | 金额: 3504.42",
        "货物名称: 合 计 | 金额: ¥5716.81",
    ]
    boxes = [section.places[0].box for section in sections]
    assert boxes[1][3] == boxes[2][1]  # the items share a row between rules, half of it each


@needs_browser
def test_items_without_rules_in_a_frame_have_their_header(tmp_path: Path) -> None:
    right = "style='text-align:right;border:0'"
    items = ""
    for row in (
        ("项目名称", "规格型号", "数量", "金额", "税率"),
        ("*金属制品*餐盘", "五格", "200", "2212.39", "13%"),
        ("*家用电器*消毒柜", "RTP700", "2", "3504.42", "13%"),
    ):
        cells = "".join(f"<td {right if number in (2, 3) else 'style=border:0'}>{c}" for number, c in enumerate(row))
        items += f"<tr>{cells}"
    frame = f"<table style='border:1px solid;border-width:0 1px'>{items}</table>"
    buyer = html_rows("<i>购买方信息</i>|名称：苏州澄湖餐饮公司|<i>销售方信息</i>|名称：锡山厨具厂")
    total = html_rows("价税合计（大写）|陆仟肆佰陆拾元整 （小写）¥6460.00")
    body = f"<table>{buyer}</table>{frame}<table>{total}</table>"
    sections = read_sections(print_page(tmp_path / "a.pdf", body))
    assert [section.text for section in sections] == [
        "购买方信息: 名称：苏州澄湖餐饮公司 | 销售方信息: 名称：锡山厨具厂",
        "项目名称: *金属制品*餐盘 | 规格型号: 五格 | 数量: 200 | 金额: 2212.39 | 税率: 13%",
        "项目名称: *家用电器*消毒柜 | 规格型号: RTP700 | 数量: 2 | 金额: 3504.42 | 税率: 13%",
        "价税合计（大写）: 陆仟肆佰陆拾元整 | 小写: ¥6460.00",
    ]


@needs_browser
@pytest.mark.parametrize("turn", ["", ";transform:rotate(180deg)"])
def test_a_label_on_its_side_names_its_rows(turn: str, tmp_path: Path) -> None:
    def label(text: str) -> str:
        return f"<tr><td rowspan=2><span style='writing-mode:vertical-rl{turn}'>{text}</span></td>"

    rows = html_rows("类别|项目|标准") + label("外观检查项") + "<td>划痕<td>不超过2处<tr><td>色差<td>≤1.5"
    rows += label("Electrical") + "<td>绝缘电阻<td>≥100MΩ<tr><td>漏电流<td>≤0.5mA"
    sections = read_sections(print_page(tmp_path / "a.pdf", f"<table>{rows}</table>"))
    assert [section.cells["类别"] for section in sections] == ["外观检查项"] * 2 + ["Electrical"] * 2


def test_a_line_upside_down_on_an_upright_page_is_read(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        write(canvas, 72, 100, "桌牌从中间对折，两面都写来宾的姓名。")
        canvas.saveState()
        canvas.translate(300, 400)
        canvas.rotate(180)
        canvas.drawString(0, 0, "来宾郑海涛")
        canvas.restoreState()

    [section] = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert section.text == "桌牌从中间对折，两面都写来宾的姓名。\n\n来宾郑海涛"
    assert 240 < section.places[1].box[0] < 300


def test_turned_text_that_is_printed_twice_is_read_once(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        write(canvas, 72, 100, "桌牌从中间对折，两面都写来宾的姓名。")
        canvas.saveState()
        canvas.translate(300, 400)
        canvas.rotate(180)
        canvas.drawString(0, 0, "来宾郑海涛")
        canvas.drawString(0.2, 0, "来宾郑海涛")
        canvas.restoreState()

    [section] = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert section.text.endswith("\n\n来宾郑海涛")


def test_a_cell_between_the_heights_of_two_lines_belongs_to_both(tmp_path: Path) -> None:
    rows = [["项目", "期间", "负责人"], ["云平台\n二期工程", "2026-01-01\n2026-12-31", "张三"]]

    def page(canvas: Canvas) -> None:
        table = Table(rows, colWidths=[120, 160, 80], rowHeights=[20, 40])
        grid = [("GRID", (0, 0), (-1, -1), 0.5, colors.black), ("FONT", (0, 0), (-1, -1), "STSong-Light", 10)]
        table.setStyle(TableStyle([*grid, ("VALIGN", (0, 0), (-1, -1), "MIDDLE")]))
        table.wrapOn(canvas, WIDTH, HEIGHT)
        table.drawOn(canvas, 72, 600)

    [section] = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert section.text == "项目: 云平台二期工程 | 期间: 2026-01-01 2026-12-31 | 负责人: 张三"


def test_a_line_of_its_own_in_a_frame_is_no_part_of_the_name_above() -> None:
    heights = [0, 20, 40, 52, 72, 92]
    rows = ["货物名称 数量 金额", "餐盘 200 2500", "商用双门 2 3960", "消毒柜", "运费", "以下空白"]
    glyphs = [
        Glyph(text, 100.0 * column + 10 * number, top, 100.0 * column + 10 * number + 10, top + 10.0, 10.0, False)
        for top, row in zip(heights, rows, strict=True)
        for column, cell in enumerate(row.split())
        for number, text in enumerate(cell)
    ]
    table = read_framed_table(glyphs, (0.0, 0.0, 300.0, 110.0), 1)
    assert table is not None
    assert [row[0] for row in table.grid] == ["货物名称", "餐盘", "商用双门消毒柜", "运费", "以下空白"]
    assert table.rows[2][3] == 62.0  # both lines of the name


def test_a_name_that_fills_its_column_goes_on_in_the_next_line() -> None:
    rows = ["货物名称 数量 金额", "商用双门高温热风循 2 3960", "消毒柜", "餐盘 200 2500"]
    glyphs = [
        Glyph(
            text,
            100.0 * column + 10 * number,
            16.0 * line,
            100.0 * column + 10 * number + 10,
            16.0 * line + 10,
            10,
            False,
        )
        for line, row in enumerate(rows)
        for column, cell in enumerate(row.split())
        for number, text in enumerate(cell)
    ]
    table = read_framed_table(glyphs, (0.0, 0.0, 300.0, 110.0), 1)
    assert table is not None
    assert [row[0] for row in table.grid] == ["货物名称", "商用双门高温热风循消毒柜", "餐盘"]


def draw_lines(canvas: Canvas, top: float, *rows: str, columns: tuple[float, ...] = (72, 192, 312, 412)) -> None:
    """Rows of a table without rules, 20 points high, their cells parted by bars."""
    for number, row in enumerate(rows):
        for x, cell in zip(columns, row.split("|"), strict=False):
            write(canvas, x, top + 20 * number, cell)


def draw_rules(canvas: Canvas, *tops: float, left: float = 72, right: float = 472) -> None:
    for top in tops:
        canvas.line(left, HEIGHT - top, right, HEIGHT - top)


PRICES = ("东西|一天|押金|坏了赔", "帐篷|120元|300元|帐杆每根40元", "天幕|80元|200元|60元", "睡袋|30元|100元|150元")
PRICE_ROWS = [
    "东西: 帐篷 | 一天: 120元 | 押金: 300元 | 坏了赔: 帐杆每根40元",
    "东西: 天幕 | 一天: 80元 | 押金: 200元 | 坏了赔: 60元",
    "东西: 睡袋 | 一天: 30元 | 押金: 100元 | 坏了赔: 150元",
]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_table_without_sides_goes_on_over_the_end_of_a_page(count: int, tmp_path: Path) -> None:
    def first(canvas: Canvas) -> None:
        write(canvas, 72, 100, "租的东西用完擦干净，第二天中午以前还到服务台，晚了加一天。", size=12)
        draw_lines(canvas, 700, *PRICES[:count])
        draw_rules(canvas, *(715 + 20 * number for number in range(count)))

    def second(canvas: Canvas) -> None:
        draw_lines(canvas, 100, *PRICES[count:])
        draw_rules(canvas, 95, *(115 + 20 * number for number in range(len(PRICES) - count)))
        write(canvas, 72, 240, "押金当场退，坏了的按上面的价钱赔。", size=12)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", first, second))
    assert [section.text for section in sections if section.kind == "row"] == PRICE_ROWS
    assert [section.page for section in sections if section.kind == "row"] == [1] * (count - 1) + [2] * (4 - count)
    assert sections[-1].text == "押金当场退，坏了的按上面的价钱赔。"


def test_a_column_that_is_empty_on_the_next_page_is_left_out(tmp_path: Path) -> None:
    def first(canvas: Canvas) -> None:
        draw_lines(canvas, 700, *PRICES[:3])

    def second(canvas: Canvas) -> None:
        draw_lines(canvas, 100, "水桶|20元||漏了不赔", "板凳|5元||15元", "灯|10元||35元")

    rows = [section.text for section in read_sections(make_pdf(tmp_path / "a.pdf", first, second))]
    assert rows == [
        *PRICE_ROWS[:2],
        "东西: 水桶 | 一天: 20元 | 坏了赔: 漏了不赔",
        "东西: 板凳 | 一天: 5元 | 坏了赔: 15元",
        "东西: 灯 | 一天: 10元 | 坏了赔: 35元",
    ]


def test_a_table_with_its_own_header_on_the_next_page_is_another(tmp_path: Path) -> None:
    def first(canvas: Canvas) -> None:
        draw_lines(canvas, 700, *PRICES)

    def second(canvas: Canvas) -> None:
        draw_lines(canvas, 100, "部门名称|联系电话|值班时间|备注", "前台|8001|全天|—", "码头|8002|白天|—")

    rows = [section.text for section in read_sections(make_pdf(tmp_path / "a.pdf", first, second))]
    assert rows[-1] == "部门名称: 码头 | 联系电话: 8002 | 值班时间: 白天 | 备注: —"


def test_signatures_on_the_next_page_are_no_row(tmp_path: Path) -> None:
    def first(canvas: Canvas) -> None:
        draw_lines(canvas, 700, "东西|一天|押金", "帐篷|120元|300元", "天幕|80元|200元")

    def second(canvas: Canvas) -> None:
        draw_lines(canvas, 100, "甲方：|乙方：|日期：")
        write(canvas, 72, 140, "本单一式两份。")

    sections = read_sections(make_pdf(tmp_path / "a.pdf", first, second))
    assert [section.kind for section in sections] == ["row", "row", "text"]


def test_text_between_the_rules_of_two_tables_is_in_none(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        write(canvas, 72, 60, "营地价目", size=20)
        draw_rules(canvas, 90)
        write(canvas, 72, 110, "本单从三月一日起用，旧的作废；住营指在营地过夜，日营指当天来当天走的客人。")
        write(canvas, 72, 150, "一、租东西", size=14)
        draw_lines(canvas, 185, *PRICES)
        draw_rules(canvas, 202, 222, 242, 262)
        write(canvas, 72, 280, "租的东西用完擦干净，第二天中午以前还到服务台，晚了的按一天另外收钱。")
        write(canvas, 72, 320, "二、退多少", size=14)
        draw_lines(canvas, 355, "什么时候|营位|木屋|改期", "七天以前|全退|全退|免费", "当天|不退|不退|不能改")
        draw_rules(canvas, 372, 392, 412)
        write(canvas, 72, 430, "天气不好的时候按气象台的预警办，已经付的钱可以留到下一年用。")

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert [(section.kind, section.title, section.text) for section in sections] == [
        ("text", "营地价目", "本单从三月一日起用，旧的作废；住营指在营地过夜，日营指当天来当天走的客人。"),
        *(("row", "营地价目 > 一、租东西", row) for row in PRICE_ROWS),
        ("text", "营地价目 > 一、租东西", "租的东西用完擦干净，第二天中午以前还到服务台，晚了的按一天另外收钱。"),
        ("row", "营地价目 > 二、退多少", "什么时候: 七天以前 | 营位: 全退 | 木屋: 全退 | 改期: 免费"),
        ("row", "营地价目 > 二、退多少", "什么时候: 当天 | 营位: 不退 | 木屋: 不退 | 改期: 不能改"),
        ("text", "营地价目 > 二、退多少", "天气不好的时候按气象台的预警办，已经付的钱可以留到下一年用。"),
    ]


@pytest.mark.parametrize("has_rules", [True, False])
def test_rows_above_the_first_shaded_one_are_of_its_table(has_rules: bool, tmp_path: Path) -> None:
    sides = (72, 192, 292, 472)
    rows = ("种类|价格|能不能带人", "单次票|88元|—", "月卡|499元|不能", "年卡|3,980元|每月一次", "半年卡|1,580元|不能")

    def page(canvas: Canvas) -> None:
        write(canvas, 72, 60, "票和卡在前台买，也可以在小程序里买，买的时候看证件。")
        for number, row in enumerate(rows):
            top = 90 + 24 * number
            if number % 2 == 0 and number:
                canvas.setFillGray(0.9)
                for left, right in pairwise(sides):
                    canvas.rect(left, HEIGHT - top - 24, right - left, 24, stroke=0, fill=1)
                canvas.setFillGray(0)
            for x, cell in zip(sides, row.split("|"), strict=False):
                write(canvas, x + 4, top + 7, cell)
            if has_rules and number:
                canvas.line(sides[0], HEIGHT - top, sides[-1], HEIGHT - top)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    names = rows[0].split("|")
    expected = [" | ".join(map(": ".join, zip(names, row.split("|"), strict=True))) for row in rows[1:]]
    assert [section.text for section in sections if section.kind == "row"] == expected


def test_a_header_between_two_rules_keeps_the_rows_below(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        for top in (90, 290):  # two tables, whose headers alone have rules
            draw_rules(canvas, top, top + 20)
            draw_lines(canvas, top + 4, *PRICES)
            write(canvas, 72, top + 120, "租的东西用完擦干净，第二天中午以前还到服务台，晚了的按一天另外收钱。")

    rows = [section.text for section in read_sections(make_pdf(tmp_path / "a.pdf", page)) if section.kind == "row"]
    assert rows == [*PRICE_ROWS, *PRICE_ROWS]


def test_narrow_columns_are_told_by_the_blank_that_goes_through_all_rows(tmp_path: Path) -> None:
    rows = (
        "课|星期|几点|学费",
        "瑜伽|周二|19:00-20:00|980元",
        "羽毛球|周三|18:30-20:00|1,200元",
        "太极|周一|7:00-8:00|免费",
    )

    def page(canvas: Canvas) -> None:
        draw_lines(canvas, 104, *rows, columns=(72, 107, 132, 196))
        draw_rules(canvas, *(100 + 20 * number for number in range(5)), right=240)

    names = rows[0].split("|")
    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert [section.cells for section in sections] == [
        dict(zip(names, row.split("|"), strict=True)) for row in rows[1:]
    ]


def test_a_boxed_title_between_two_tables_parts_them(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        draw_lines(canvas, 104, *PRICES)
        draw_rules(canvas, *(100 + 20 * number for number in range(5)))
        write(canvas, 72, 195, "租的东西用完擦干净，第二天中午以前还到服务台，晚了的按一天另外收钱。")
        draw_rules(canvas, 220, 250)
        write(canvas, 76, 226, "二、赔多少", size=14)
        draw_lines(canvas, 264, "物件|轻的|重的", "手牌|20元|50元", "玻璃|80元|照价赔", columns=(72, 192, 312))
        draw_rules(canvas, 280, 300, 320)

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert [(section.title, section.text) for section in sections] == [
        *(("", row) for row in PRICE_ROWS),
        ("", "租的东西用完擦干净，第二天中午以前还到服务台，晚了的按一天另外收钱。"),
        ("二、赔多少", "物件: 手牌 | 轻的: 20元 | 重的: 50元"),
        ("二、赔多少", "物件: 玻璃 | 轻的: 80元 | 重的: 照价赔"),
    ]


def test_a_long_note_within_a_table_is_whole(tmp_path: Path) -> None:
    note = "注：以下各项在旺季要提前三天打电话，租的时候押身份证，用完擦干净还到服务台去。"

    def page(canvas: Canvas) -> None:
        draw_lines(canvas, 104, *PRICES[:3], note, PRICES[3])
        draw_rules(canvas, *(100 + 20 * number for number in range(6)))

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    assert [section.text for section in sections] == [*PRICE_ROWS[:2], note, PRICE_ROWS[2]]


def test_a_title_within_a_table_parts_nothing(tmp_path: Path) -> None:
    def page(canvas: Canvas) -> None:
        draw_lines(canvas, 104, PRICES[0], "大件", *PRICES[1:3], "小件", PRICES[3])
        draw_rules(canvas, *(100 + 20 * number for number in range(7)))

    sections = read_sections(make_pdf(tmp_path / "a.pdf", page))
    titles = ["大件", "大件", "小件"]
    assert [(section.title, section.text) for section in sections] == list(zip(titles, PRICE_ROWS, strict=True))
