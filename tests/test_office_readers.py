"""Word, Excel, PowerPoint, e-mail, books and web pages, made with the libraries that people make them with."""

import datetime
import io
import zipfile
from email.message import EmailMessage
from html import escape
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import OxmlElement, parse_xml
from docx.oxml.ns import nsdecls
from docx.shared import Pt
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.opc.package import Part as PptPart
from pptx.opc.packuri import PackURI as PptPackURI
from pptx.oxml import parse_xml as pptx_parse_xml
from pptx.oxml.ns import nsdecls as pptx_nsdecls
from pptx.util import Inches
from pptx.util import Pt as PptPt

from peg_rag.errors import DataError
from peg_rag.readers import PartlyRead, Section, html, read_sections, xlsx
from peg_rag.readers.forms import read_pairs
from peg_rag.readers.numbering import format_number
from peg_rag.readers.tables import table_rows
from peg_rag.readers.xlsx import format_value


def shown(sections: list[Section]) -> list[tuple[str, str, str]]:
    return [(section.kind, section.title, section.text) for section in sections]


# -- Word -------------------------------------------------------------------------------------------------------------


def save_docx(document: "docx.document.Document", path: Path) -> Path:
    document.save(str(path))
    return path


def test_word_headings_come_from_styles_type_and_numbers(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_paragraph("采购合同", style="Title")
    document.add_heading("付款", 1)
    document.add_paragraph("合同价款分四期支付。")
    bold = document.add_paragraph()
    bold.add_run("验收标准").bold = True
    document.add_paragraph("终验合格后支付百分之十五。")
    document.add_paragraph("第三章 违约责任")
    document.add_paragraph("逾期交货的，每日按合同总价的千分之三支付违约金。")
    assert shown(read_sections(save_docx(document, tmp_path / "a.docx"))) == [
        ("text", "采购合同 > 付款", "合同价款分四期支付。"),
        ("text", "采购合同 > 付款 > 验收标准", "终验合格后支付百分之十五。"),
        ("text", "采购合同 > 付款 > 第三章 违约责任", "逾期交货的，每日按合同总价的千分之三支付违约金。"),
    ]


def test_word_titles_in_large_type_are_headings(tmp_path: Path) -> None:
    document = docx.Document()
    for text, size in (("关于放假的通知", 22), ("国庆节放假七天，请各部门安排好值班。", 12), ("值班电话见附件。", 12)):
        document.add_paragraph().add_run(text).font.size = Pt(size)
    [section] = read_sections(save_docx(document, tmp_path / "a.docx"))
    assert (section.title, section.text) == (
        "关于放假的通知",
        "国庆节放假七天，请各部门安排好值班。\n\n值班电话见附件。",
    )


def test_word_tables_keep_merged_cells_in_every_row(tmp_path: Path) -> None:
    document = docx.Document()
    table = document.add_table(4, 3)
    for row, cells in enumerate([("项目", "周期", "方法"), ("甲", "15天", "测序"), ("乙", "", ""), ("丙", "20天", "")]):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    table.cell(1, 2).merge(table.cell(3, 2))
    table.cell(1, 1).merge(table.cell(2, 1))
    rows = read_sections(save_docx(document, tmp_path / "a.docx"))
    assert [section.text for section in rows] == [
        "项目: 甲 | 周期: 15天 | 方法: 测序",
        "项目: 乙 | 周期: 15天 | 方法: 测序",
        "项目: 丙 | 周期: 20天 | 方法: 测序",
    ]
    assert rows[1].cells == {"项目": "乙", "周期": "15天", "方法": "测序"}


def test_words_automatic_numbers_are_part_of_the_text(tmp_path: Path) -> None:
    document = docx.Document()
    numbering = document.part.numbering_part.element
    numbering.insert(
        0,
        parse_xml(
            f'<w:abstractNum {nsdecls("w")} w:abstractNumId="90"><w:lvl w:ilvl="0"><w:start w:val="1"/>'
            '<w:numFmt w:val="chineseCounting"/><w:lvlText w:val="第%1条"/></w:lvl></w:abstractNum>'
        ),
    )
    numbering.append(parse_xml(f'<w:num {nsdecls("w")} w:numId="90"><w:abstractNumId w:val="90"/></w:num>'))
    for text in ("甲方应当按期付款，逾期支付违约金。", "乙方应当按期交货，逾期支付违约金。"):
        paragraph = document.add_paragraph(text)
        number = f'<w:numPr {nsdecls("w")}><w:ilvl w:val="0"/><w:numId w:val="90"/></w:numPr>'
        paragraph._p.get_or_add_pPr().append(parse_xml(number))
    document.add_paragraph("签字", style="List Bullet")
    [section] = read_sections(save_docx(document, tmp_path / "a.docx"))
    assert section.text == (
        "第一条 甲方应当按期付款，逾期支付违约金。\n\n第二条 乙方应当按期交货，逾期支付违约金。\n\n签字"
    )


@pytest.mark.parametrize(
    ("number", "form", "text"),
    [
        (1, "decimal", "1"),
        (12, "chineseCounting", "十二"),
        (105, "chineseCountingThousand", "一百零五"),
        (20, "ideographDigital", "二十"),
        (4, "lowerRoman", "iv"),
        (28, "upperLetter", "BB"),
        (3, "decimalEnclosedCircle", "③"),
    ],
)
def test_numbers_are_shown_as_word_shows_them(number: int, form: str, text: str) -> None:
    assert format_number(number, form) == text


def test_word_text_boxes_and_insertions_are_read_and_deletions_are_not(tmp_path: Path) -> None:
    document = docx.Document()
    paragraph = document.add_paragraph("价格为")
    paragraph._p.append(parse_xml(f"<w:del {nsdecls('w')}><w:r><w:delText>一百</w:delText></w:r></w:del>"))
    paragraph._p.append(parse_xml(f"<w:ins {nsdecls('w')}><w:r><w:t>九十元。</w:t></w:r></w:ins>"))
    box = "<w:txbxContent><w:p><w:r><w:t>框中的话。</w:t></w:r></w:p></w:txbxContent>"
    run = f"<w:r {nsdecls('w')}><w:pict>{box}</w:pict></w:r>"
    document.add_paragraph("正文。")._p.append(parse_xml(run))
    [section] = read_sections(save_docx(document, tmp_path / "a.docx"))
    assert section.text == "价格为九十元。\n\n正文。\n\n框中的话。"


def test_word_footnotes_follow_the_paragraph_that_refers_to_them(tmp_path: Path) -> None:
    document = docx.Document()
    for text, reference in (("住宿费每晚不超过450元。", "footnote"), ("餐费按天包干。", "endnote"), ("其余实报。", "")):
        paragraph = document.add_paragraph(text)
        if reference:
            mark = f'<w:r {nsdecls("w")}><w:{reference}Reference w:id="1"/></w:r>'
            paragraph._p.append(parse_xml(mark))
    for kind, text in (("footnote", "旺季可上浮至520元。"), ("endnote", "每天100元。")):
        rule = f'<w:{kind} w:type="separator" w:id="-1"><w:p><w:r><w:separator/></w:r></w:p></w:{kind}>'
        note = f'<w:{kind} w:id="1"><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:{kind}>'
        blob = f"<w:{kind}s {nsdecls('w')}>{rule}{note}</w:{kind}s>".encode()
        content_type = f"application/vnd.openxmlformats-officedocument.wordprocessingml.{kind}s+xml"
        part = Part(PackURI(f"/word/{kind}s.xml"), content_type, blob, document.part.package)
        relation = f"http://schemas.openxmlformats.org/officeDocument/2006/relationships/{kind}s"
        document.part.relate_to(part, relation)
    [section] = read_sections(save_docx(document, tmp_path / "a.docx"))
    assert section.text.split("\n\n") == [
        "住宿费每晚不超过450元。",
        "旺季可上浮至520元。",
        "餐费按天包干。",
        "每天100元。",
        "其余实报。",
    ]


def test_word_tables_lose_deleted_rows_and_repeated_headers(tmp_path: Path) -> None:
    document = docx.Document()
    rows = [("设备", "周期"), ("车床", "每月"), ("铣床", "每季"), ("设备", "周期"), ("冲床", "每周")]
    table = document.add_table(len(rows), 2)
    for row, texts in enumerate(rows):
        for column, text in enumerate(texts):
            table.cell(row, column).text = text
    deletion = parse_xml(f'<w:del {nsdecls("w")} w:id="1" w:author="a"/>')
    table.rows[2]._tr.get_or_add_trPr().append(deletion)
    sections = read_sections(save_docx(document, tmp_path / "a.docx"))
    assert [section.text for section in sections] == ["设备: 车床 | 周期: 每月", "设备: 冲床 | 周期: 每周"]


def test_a_table_within_a_words_cell_has_rows_of_its_own(tmp_path: Path) -> None:
    document = docx.Document()
    table = document.add_table(3, 2)
    for row, texts in enumerate((("巡检项目", "要求"), ("液压站", ""), ("冷却塔", "水位在红线以上"))):
        for column, text in enumerate(texts):
            table.cell(row, column).text = text
    inner = table.cell(1, 1).add_table(3, 2)
    for row, texts in enumerate((("参数", "范围"), ("油温", "35~55℃"), ("压力", "4~6MPa"))):
        for column, text in enumerate(texts):
            inner.cell(row, column).text = text
    assert shown(read_sections(save_docx(document, tmp_path / "a.docx"))) == [
        ("row", "", "巡检项目: 液压站"),
        ("row", "液压站", "参数: 油温 | 范围: 35~55℃"),
        ("row", "液压站", "参数: 压力 | 范围: 4~6MPa"),
        ("row", "", "巡检项目: 冷却塔 | 要求: 水位在红线以上"),
    ]


# -- Excel ------------------------------------------------------------------------------------------------------------


def test_every_row_of_every_sheet_carries_its_columns(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "通讯录"
    sheet["A1"] = "员工通讯录"
    sheet.merge_cells("A1:C1")
    for row in (("部门", "姓名", "入职日期"), ("财务部", "赵敏", datetime.date(2017, 10, 9)), (None, "林晓燕", None)):
        sheet.append(row)
    sheet.merge_cells("A3:A4")
    sheet["C3"].number_format = 'yyyy"年"m"月"d"日"'
    second = book.create_sheet("价格")
    second.append(("品名", "单价"))
    second.append(("电容", 42.5))
    second["B2"].number_format = "¥#,##0.00"
    book.create_sheet("隐藏").sheet_state = "hidden"
    book["隐藏"]["A1"] = "不可见"
    book.save(tmp_path / "a.xlsx")
    sections = read_sections(tmp_path / "a.xlsx")
    assert [(s.title, s.text, s.sheet, s.row) for s in sections] == [
        ("通讯录 > 员工通讯录", "部门: 财务部 | 姓名: 赵敏 | 入职日期: 2017年10月9日", "通讯录", 3),
        ("通讯录 > 员工通讯录", "部门: 财务部 | 姓名: 林晓燕", "通讯录", 4),
        ("价格", "品名: 电容 | 单价: ¥42.50", "价格", 2),
    ]


@pytest.mark.parametrize(
    ("value", "number_format", "text"),
    [
        (1234567.891, "#,##0.00", "1,234,567.89"),
        (0.125, "0.0%", "12.5%"),
        (0.1 + 0.2, "General", "0.3"),
        (1200, "General", "1200"),
        (7, "000", "007"),
        (3.0, "General", "3"),
        (5, '0"个"', "5个"),
        (datetime.datetime(2025, 4, 1), "yyyy-mm-dd", "2025-04-01"),
        (datetime.datetime(2025, 4, 1), "yyyy/m/d", "2025/4/1"),
        (datetime.datetime(2025, 4, 1, 9, 30), "yyyy-mm-dd hh:mm", "2025-04-01 09:30"),
        (datetime.datetime(2025, 4, 1), 'yyyy"年"m"月"', "2025年4月"),
        (datetime.time(18, 0), "h:mm", "18:00"),
        (123456, '0!.0,"万"', "12.3万"),
        (123456, r'0\.0,"万"', "12.3万"),
        (1234567, '#,##0,"千元"', "1,235千元"),
        (2500000, '0.0,,"百万"', "2.5百万"),
        (0.5, "# ?/?", "1/2"),
        (1.75, "# ?/4", "1 3/4"),
        (-42.5, '"¥"#,##0.00', "-¥42.50"),
        (3, '"第"0"期"', "第3期"),
        (99.9, "[$€-2] #,##0.00", "€99.90"),
        (88, "[$HK$-zh-HK]#,##0", "HK$88"),
        (5600, '_ "¥"* #,##0.00_ ;_ "¥"* -#,##0.00_ ', "¥5,600.00"),
        (-3200.5, "#,##0.00_);[Red](#,##0.00)", "-3,200.50"),
        (datetime.timedelta(hours=27, minutes=5), "[h]:mm", "27:05"),
        (datetime.timedelta(hours=27, minutes=5), "[h]:mm:ss", "27:05:00"),
        (True, "General", "TRUE"),
        (None, "General", ""),
    ],
)
def test_values_are_shown_as_excel_shows_them(value: object, number_format: str, text: str) -> None:
    assert format_value(value, number_format) == text


def test_tables_side_by_side_are_two(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["一季度销量", None, None, "门店分布"],
        ["产品", "销量", None, "城市", "门店", "经理"],
        ["水泵", 120, None, "苏州", 4, "何洁"],
        ["风机", 85, None, "无锡", 3, "邵峰"],
        [None, None, None, "常州", 2, "葛亮"],
    ]
    sections = read_sections(save_sheet(tmp_path / "a.xlsx", rows))
    assert [(section.title, section.text, section.row) for section in sections] == [
        ("Sheet > 一季度销量", "产品: 水泵 | 销量: 120", 3),
        ("Sheet > 一季度销量", "产品: 风机 | 销量: 85", 4),
        ("Sheet > 门店分布", "城市: 苏州 | 门店: 4 | 经理: 何洁", 3),
        ("Sheet > 门店分布", "城市: 无锡 | 门店: 3 | 经理: 邵峰", 4),
        ("Sheet > 门店分布", "城市: 常州 | 门店: 2 | 经理: 葛亮", 5),
    ]


def test_a_table_with_an_empty_column_stays_one(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["产品", "型号", None, "城市", "门店"],
        ["水泵", "W1", None, "苏州", 4],
        ["风机", "F2", None, "无锡", 3],
    ]
    first, _ = read_sections(save_sheet(tmp_path / "a.xlsx", rows))
    assert first.text == "产品: 水泵 | 型号: W1 | 城市: 苏州 | 门店: 4"


def test_hidden_columns_are_left_out(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in (("姓名", "部门", "证件", "工资"), ("赵一", "销售", "A1", 8000), ("钱二", "财务", "A2", 9000)):
        sheet.append(row)
    sheet.column_dimensions.group("C", "D", hidden=True)
    sheet.row_dimensions[3].hidden = True
    book.save(tmp_path / "a.xlsx")
    assert [section.text for section in read_sections(tmp_path / "a.xlsx")] == [
        "姓名: 赵一 | 部门: 销售",
        "姓名: 钱二 | 部门: 财务",
    ]


def test_formulas_without_values_are_told(tmp_path: Path) -> None:
    path = save_sheet(tmp_path / "a.xlsx", [["项目", "数量", "金额"], ["线缆", 3, "=B2*12.5"]])
    with pytest.warns(PartlyRead, match=r"a\.xlsx: 1 formulas have no values \(公式没有计算结果\)"):
        [section] = read_sections(path)
    assert section.text == "项目: 线缆 | 数量: 3"
    assert not xlsx._NO_VALUE.search(b'<c r="C2" t="str"><f>IF(B2,"","")</f><v></v></c>')


def test_a_sheet_as_wide_as_excel_allows_is_refused(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active["XFD100000"] = "远"
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match=r"a\.xlsx: sheet 'Sheet' spans"):
        read_sections(tmp_path / "a.xlsx")


# -- PowerPoint -------------------------------------------------------------------------------------------------------


def test_slides_have_titles_tables_and_notes(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "培训日程"
    table = slide.shapes.add_table(3, 2, Inches(1), Inches(3), Inches(6), Inches(2)).table
    for row, cells in enumerate([("时间", "内容"), ("周一", "制度"), ("周二", "")]):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    table.cell(1, 1).merge(table.cell(2, 1))
    slide.shapes.add_textbox(Inches(1), Inches(2), Inches(6), Inches(0.5)).text_frame.text = "请携带工牌。"
    slide.notes_slide.notes_text_frame.text = "名单另发。"
    deck.save(str(tmp_path / "a.pptx"))
    sections = read_sections(tmp_path / "a.pptx")
    assert shown(sections) == [
        ("text", "培训日程", "请携带工牌。"),
        ("row", "培训日程", "时间: 周一 | 内容: 制度"),
        ("row", "培训日程", "时间: 周二 | 内容: 制度"),
        ("text", "培训日程", "备注：名单另发。"),
    ]
    assert {section.page for section in sections} == {1}


# -- e-mail, books, web pages -----------------------------------------------------------------------------------------


def test_grouped_shapes_are_read_together(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    for column, texts in enumerate((("研发中心", "负责人：高远"), ("销售中心", "负责人：罗敏"))):
        group = slide.shapes.add_group_shape()
        for row, text in enumerate(texts):
            box = group.shapes.add_textbox(Inches(0.5 + 4 * column), Inches(2 + row), Inches(3), Inches(0.5))
            box.text_frame.text = text
    deck.save(str(tmp_path / "a.pptx"))
    [section] = read_sections(tmp_path / "a.pptx")
    assert section.text.split("\n\n") == ["研发中心", "负责人：高远", "销售中心", "负责人：罗敏"]


def test_a_chart_shows_its_numbers_as_the_slide_does(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    data = CategoryChartData(number_format="0.0%")  # type: ignore[no-untyped-call]
    data.categories = ["一季度", "二季度"]
    data.add_series("毛利率", (0.312, 0.287))  # type: ignore[no-untyped-call]
    data.add_series("收入", (12345678, 2345678), number_format="#,##0")  # type: ignore[no-untyped-call]
    slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, Inches(1), Inches(1), Inches(6), Inches(4), data)
    deck.save(str(tmp_path / "a.pptx"))
    assert [section.text for section in read_sections(tmp_path / "a.pptx")] == [
        "一季度 | 毛利率: 31.2% | 收入: 12,345,678",
        "二季度 | 毛利率: 28.7% | 收入: 2,345,678",
    ]


def make_message(subject: str, text: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "物流部 <wl@example.com>"
    message["Subject"] = subject
    message.set_content(text)
    return message


def test_the_tables_of_an_email_are_read_from_its_page(tmp_path: Path) -> None:
    message = make_message("运费", "线路 运费\n杭州—宁波 850元\n")
    table = "<table><tr><th>线路<th>运费<tr><td>杭州—宁波<td>850元</table>"
    message.add_alternative(f"<p>七月运费如下。</p>{table}", subtype="html")
    (tmp_path / "a.eml").write_bytes(bytes(message))
    _, text, row = read_sections(tmp_path / "a.eml")
    assert (text.text, row.text) == ("七月运费如下。", "线路: 杭州—宁波 | 运费: 850元")


def test_what_is_attached_to_an_email_is_read_under_its_name(tmp_path: Path) -> None:
    book = save_sheet(tmp_path / "b.xlsx", [["日期", "司机"], ["7月3日", "沈波"]])
    message = make_message("排班", "见附件。")
    message.add_attachment(book.read_bytes(), maintype="application", subtype="octet-stream", filename="排班.xlsx")
    message.add_attachment("押金每车五百元。", filename="说明.txt")
    message.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="标志.png")
    message.add_attachment(make_message("原信", "仓库周日不开。"))
    (tmp_path / "a.eml").write_bytes(bytes(message))
    assert [(section.title, section.text) for section in read_sections(tmp_path / "a.eml")[1:]] == [
        ("排班", "见附件。"),
        ("排班 > 排班.xlsx > Sheet", "日期: 7月3日 | 司机: 沈波"),
        ("排班 > 说明.txt", "押金每车五百元。"),
        ("排班 > 原信", "发件人: 物流部 <wl@example.com> | 主题: 原信"),
        ("排班 > 原信", "仓库周日不开。"),
    ]


def test_an_attachment_that_cannot_be_read_is_told_and_the_email_is_read(tmp_path: Path) -> None:
    message = make_message("报表", "见附件。")
    message.add_attachment(b"PK damaged", maintype="application", subtype="octet-stream", filename="报表.xlsx")
    (tmp_path / "a.eml").write_bytes(bytes(message))
    with pytest.warns(PartlyRead, match=r"a\.eml: an attachment is not read: .*报表\.xlsx"):
        _, text = read_sections(tmp_path / "a.eml")
    assert text.text == "见附件。"


@pytest.mark.parametrize("as_html", [False, True])
@pytest.mark.filterwarnings("ignore::peg_rag.readers.PartlyRead")  # the attachment is no real workbook
def test_an_email_tells_who_wrote_and_when(tmp_path: Path, as_html: bool) -> None:
    message = EmailMessage()
    message["From"] = "董莉 <dong@example.com>"
    message["To"] = "全体员工 <all@example.com>"
    message["Subject"] = "空调检修"
    message["Date"] = "Thu, 08 May 2025 09:12:00 +0800"
    message.set_content("10楼周六停电。")
    if as_html:
        message.add_alternative("<p>10楼周六停电。</p>", subtype="html")
    message.add_attachment(b"x", maintype="application", subtype="pdf", filename="安排.pdf")
    (tmp_path / "a.eml").write_bytes(message.as_bytes())
    head, body = read_sections(tmp_path / "a.eml")
    assert head.text == (
        "发件人: 董莉 <dong@example.com> | 收件人: 全体员工 <all@example.com> | 日期: 2025-05-08 09:12 | "
        "主题: 空调检修 | 附件: 安排.pdf"
    )
    assert (body.title, body.text) == ("空调检修", "10楼周六停电。")


def test_a_book_is_read_in_the_order_of_its_spine(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/content.opf"/></rootfiles></container>',
        )
        archive.writestr(
            "OEBPS/content.opf",
            '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
            "<dc:title>菜谱</dc:title></metadata><manifest>"
            '<item id="b" href="b.xhtml"/><item id="a" href="a.xhtml"/><item id="n" href="n.xhtml" properties="nav"/>'
            '</manifest><spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/></spine></package>',
        )
        for name, title in (("a", "红烧肉"), ("b", "鲈鱼"), ("n", "目录")):
            archive.writestr(f"OEBPS/{name}.xhtml", f"<html><body><h1>{title}</h1><p>{title}的做法。</p></body></html>")
    (tmp_path / "a.epub").write_bytes(packed.getvalue())
    assert shown(read_sections(tmp_path / "a.epub")) == [
        ("text", "菜谱 > 红烧肉", "红烧肉的做法。"),
        ("text", "菜谱 > 鲈鱼", "鲈鱼的做法。"),
    ]


def write_book(path: Path, manifest: str, spine: str, **files: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", '<container><rootfile full-path="content.opf"/></container>')
        package = f"<package><metadata><title>茶经</title></metadata><manifest>{manifest}</manifest>{spine}</package>"
        archive.writestr("content.opf", package)
        for name, text in files.items():
            archive.writestr(f"{name}.xhtml", text)
    return path


@pytest.mark.parametrize("is_old", [False, True])
def test_chapters_without_headings_have_their_titles_from_the_contents(is_old: bool, tmp_path: Path) -> None:
    chapters = (("a", "第一章 源"), ("b", "第二章 具"))
    manifest = "".join(f'<item id="{name}" href="{name}.xhtml"/>' for name in "abc")
    if is_old:
        manifest += '<item id="n" href="n.xhtml" media-type="application/x-dtbncx+xml"/>'
        points = "".join(
            f'<navPoint><navLabel><text>{title}</text></navLabel><content src="{name}.xhtml#x"/></navPoint>'
            for name, title in chapters
        )
        contents = f"<ncx><navMap>{points}</navMap></ncx>"
    else:
        manifest += '<item id="n" href="n.xhtml" properties="nav"/>'
        links = "".join(f'<li><a href="{name}.xhtml">{title}</a></li>' for name, title in chapters)
        contents = f"<html><body><nav><ol>{links}</ol></nav></body></html>"
    links = "".join(f'<p><a href="{name}.xhtml">{title}</a></p>' for name, title in chapters)
    path = write_book(
        tmp_path / "a.epub",
        manifest,
        '<spine><itemref idref="c"/><itemref idref="a"/><itemref idref="b"/></spine>',
        a='<html><body><p class="title">第一章 源</p><p>茶者，南方之嘉木也。</p></body></html>',
        b="<html><body><p>籝，一曰篮。</p></body></html>",
        c=f"<html><body><h2>目录</h2>{links}</body></html>",
        n=contents,
    )
    assert texts_of(path) == [("茶经 > 第一章 源", "茶者，南方之嘉木也。"), ("茶经 > 第二章 具", "籝，一曰篮。")]


PAGE = """<html><head><title>须知 - 市一医院</title></head><body>
<nav><ul><li><a href=/>首页</a></li><li><a href=/a>新闻中心</a></li></ul></nav>
<div class="breadcrumb">当前位置：首页 &gt; 须知</div>
<div id="content"><h1>就诊须知</h1>
<p>患者可通过微信公众号、自助机和114电话预约挂号，可预约未来14天内的号源，每日7:00放号。预约时须填写
患者本人的真实姓名和身份证号。</p>
<h2>挂号费</h2>
<table><thead><tr><th>号别</th><th>挂号费</th></tr></thead><tbody>
<tr><td rowspan=2>普通</td><td>15元</td></tr><tr><td>20元</td></tr></tbody></table>
<h2>退号</h2><ol><li>登录公众号</li><li>在就诊前一日22:00前<br>办理退号</li></ol></div>
<footer>版权所有 京ICP备12345号</footer></body></html>"""


def test_a_web_page_gives_its_content_without_navigation_and_footer(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    assert shown(read_sections(tmp_path / "a.html")) == [
        (
            "text",
            "就诊须知",
            "患者可通过微信公众号、自助机和114电话预约挂号，可预约未来14天内的号源，每日7:00放号。"
            "预约时须填写患者本人的真实姓名和身份证号。",
        ),
        ("row", "就诊须知 > 挂号费", "号别: 普通 | 挂号费: 15元"),
        ("row", "就诊须知 > 挂号费", "号别: 普通 | 挂号费: 20元"),
        ("text", "就诊须知 > 退号", "1. 登录公众号\n\n2. 在就诊前一日22:00前\n办理退号"),
    ]


def test_a_page_that_is_all_table_is_kept(tmp_path: Path) -> None:
    rows = "".join(f"<tr><td>{name}</td><td>{price}元</td></tr>" for name, price in (("甲", 1), ("乙", 2)))
    page = f"<html><body><table><tr><th>名</th><th>价</th></tr>{rows}</table></body></html>"
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    assert [s.text for s in read_sections(tmp_path / "a.html")] == ["名: 甲 | 价: 1元", "名: 乙 | 价: 2元"]


def test_rows_of_single_characters_are_kept(tmp_path: Path) -> None:
    page = (
        "<html><body><p>下面说明食堂的规定和值班的安排。</p><table><tr><td>甲</td><td>乙</td></tr></table>"
        "<table><tr><th>班次</th><th>早餐</th></tr><tr><td>甲</td><td>有</td></tr></table></body></html>"
    )
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    assert [s.text for s in read_sections(tmp_path / "a.html")][1:] == ["甲: 乙", "班次: 甲 | 早餐: 有"]


def docbook_page() -> str:
    """A page as DocBook makes it, long enough for an extractor to tell its text from the rest."""

    def paragraphs(topic: str) -> str:
        return "".join(
            f'<div class="para">{topic}的第{number}条：第{number}台机器在更新软件包清单以前，先检查磁盘上剩余的空间，'
            f"再读取<code>sources.list</code>里写明的第{number}个镜像站，最后按发行版的名字排列软件包的版本号。</div>"
            for number in "一二三四五六七八"
        )

    return f"""<html><head><title>6.2. apt 命令</title></head><body>
<p id="title"><a href="a.html">产品网站</a></p>
<div class="section"><div class="titlepage"><div><div><h2 class="title">6.2. apt 命令</h2></div></div></div>
{paragraphs("概述")}
<div class="section"><div class="titlepage"><div><div><h3 class="title">6.2.1. 初始化</h3></div></div></div>
{paragraphs("初始化")}
<div class="sidebar"><div class="titlepage"><p class="title"><strong>提示 增量更新</strong></p></div>
<div class="para">差异文件只保留一个星期，超过的要重新下载整个清单。</div></div>
<ul><li><a href="x.html">图形界面的前端</a></li><li><a href="y.html">搜索软件包</a></li></ul>
{paragraphs("清单")}</div>
<div class="section"><div class="titlepage"><div><div><h3 class="title">6.2.2. 安装</h3></div></div></div>
{paragraphs("安装")}
<pre class="screen"># apt install vim</pre>
{paragraphs("版本")}</div></div>
<div class="sidebar"><a href="n.html">最新消息</a> 每周更新，欢迎订阅本站的电子报，随时可以退订。</div>
<ul class="docnav"><li><a href="up.html">上一级</a></li></ul></body></html>"""


def test_a_page_keeps_the_titles_commands_and_boxes_within_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(docbook_page(), encoding="utf-8")
    sections = read_sections(tmp_path / "a.html")
    assert [section.title for section in sections] == [
        "6.2. apt 命令",
        "6.2. apt 命令 > 6.2.1. 初始化",
        "6.2. apt 命令 > 6.2.2. 安装",
    ]
    assert "只保留一个星期" in sections[1].text
    assert "apt install vim" in sections[2].text
    text = "".join(section.text for section in sections)
    for navigation in ("产品网站", "图形界面的前端", "电子报", "上一级"):
        assert navigation not in text


def test_an_items_number_stands_before_its_first_paragraph(tmp_path: Path) -> None:
    page = (
        "<html><body><p>软件包进入测试版要满足下面的条件：</p>"
        "<ol><li><div>在所有架构上编译成功；</div><div>包括模拟器。</div></li><li><p>至少放置五天。</p></li><li></li></ol>"
        "<p>其余的由管理员决定。</p></body></html>"
    )
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    [section] = read_sections(tmp_path / "a.html")
    assert section.text.split("\n\n") == [
        "软件包进入测试版要满足下面的条件：",
        "1. 在所有架构上编译成功；",
        "包括模拟器。",
        "2. 至少放置五天。",
        "其余的由管理员决定。",
    ]


def test_many_boxes_without_text_before_them_are_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every box used to look at all that came before it: a page of 2,000 took half a minute."""
    checked = 0
    is_paragraph = html._is_paragraph

    def count_checks(element: Any) -> bool:
        nonlocal checked
        checked += 1
        return is_paragraph(element)

    monkeypatch.setattr(html, "_is_paragraph", count_checks)
    boxes = "".join(f'<div class="sidebar">{number}</div>' for number in range(300))
    blocks = html.page_blocks(f"<body>{boxes}<p>{'正文的一段。' * 20}</p></body>", "a.html")
    assert [block.text for block in blocks] == ["正文的一段。" * 20]
    assert checked <= 301


# -- real files -------------------------------------------------------------------------------------------------------


def test_real_office_files_are_read(data_dir: Path) -> None:
    folder = data_dir / "documents" / "files"
    if not folder.is_dir():
        pytest.skip("no real documents")
    merged = read_sections(folder / "vertical_merge.docx")
    genes = [section for section in merged if "相关基因" in section.cells]
    assert len(genes) == 4
    assert all("Sanger" in section.cells["检测方法"] for section in genes)
    assert {s.sheet for s in read_sections(folder / "xlsx_complex_layout.xlsx")} >= {"Complex Report", "Customers"}
    [head, body] = read_sections(folder / "test_outlook_msg.msg")
    assert head.cells["发件人"].endswith("<test.sender@example.com>")
    assert body.text == "This is the body of the test email message"
    assert len(read_sections(folder / "chatglm-issues-open.xlsx")) == 323
    titles = {section.title for section in read_sections(folder / "test_wikipedia.html")}
    assert "Microsoft > History > 1972–1985: Founding" in titles
    assert not any("Navigation menu" in title for title in titles)
    assert merged[-1].cells == {"列A": "相同值", "列B": "相同值", "列C": "独立值"}
    order = {
        name: text for s in read_sections(folder / "movie-theater-booking-2024.pdf") for name, text in s.cells.items()
    }
    assert order["Cinema"] == "Downtown Multiplex"
    assert order["Billing Type"] == "Net 30"
    estimate = read_sections(folder / "REPAIR-2022-INV-001_multipage.pdf")
    assert any(s.cells.get("Insured name") == "Gabriel Diaz" and s.cells.get("Year") == "2022" for s in estimate)


# -- tables -----------------------------------------------------------------------------------------------------------


def test_equal_neighbours_are_merged_only_where_the_file_says_so(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["开始", "结束", "负责人"])
    sheet.append(["5月1日", "5月1日", "郭楠"])
    sheet.append(["5月2日", None, "何山"])
    sheet.merge_cells("A3:B3")
    book.save(tmp_path / "a.xlsx")
    document = docx.Document()
    table = document.add_table(3, 3)
    for row, texts in enumerate((("开始", "结束", "负责人"), ("5月1日", "5月1日", "郭楠"), ("5月2日", "", "何山"))):
        for column, text in enumerate(texts):
            table.cell(row, column).text = text
    table.cell(2, 0).merge(table.cell(2, 1))
    document.save(str(tmp_path / "a.docx"))
    rows = "<tr><td>5月1日<td>5月1日<td>郭楠<tr><td colspan=2>5月2日<td>何山"
    page = f"<html><body><table><tr><th>开始<th>结束<th>负责人{rows}</table></body></html>"
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    for suffix in ("xlsx", "docx", "html"):
        first, second = read_sections(tmp_path / f"a.{suffix}")
        assert first.cells == {"开始": "5月1日", "结束": "5月1日", "负责人": "郭楠"}, suffix
        assert second.cells == {"开始": "5月2日", "负责人": "何山"}, suffix


def test_a_row_of_equal_values_is_no_title() -> None:
    rows = table_rows([["上午", "下午", "晚上"], ["休息", "休息", "休息"]], merged=[[False] * 3] * 2)
    assert [row.cells for row in rows] == [(("上午", "休息"), ("下午", "休息"), ("晚上", "休息"))]


def test_a_form_keeps_each_name_with_its_value() -> None:
    form = [
        ["姓名", "李明", "部门", "财务部"],
        ["入职日期", "2021-03-01", "岗位", "会计"],
        ["", "", "联系电话", "8806"],
        ["备注", "负责华东区", "负责华东区", "负责华东区"],
    ]
    merged = [[False] * 4, [False] * 4, [False] * 4, [False, False, True, True]]
    rows = [dict(row.cells) for row in table_rows(form, merged=merged)]
    assert rows == [
        {"姓名": "李明", "部门": "财务部"},
        {"入职日期": "2021-03-01", "岗位": "会计"},
        {"联系电话": "8806"},
        {"备注": "负责华东区"},
    ]
    staff = [
        ["姓名", "部门", "小组", "电话"],
        ["李明", "财务部", "会计组", "8806"],
        ["王芳", "人事部", "招聘组", "8807"],
    ]
    assert dict(table_rows(staff)[0].cells) == {"姓名": "李明", "部门": "财务部", "小组": "会计组", "电话": "8806"}


def test_a_form_is_told_by_a_code_or_a_date_beside_its_names() -> None:
    form = [["单号", "ML-26-1108", "下单日期", "2026年11月17日"], ["客户", "白鹭湾民宿", "房东", "公冶先生"]]
    assert [dict(row.cells) for row in table_rows(form)] == [
        {"单号": "ML-26-1108", "下单日期": "2026年11月17日"},
        {"客户": "白鹭湾民宿", "房东": "公冶先生"},
    ]
    models = [["参数", "XR-200", "XR-300", "XR-400"], ["外壳", "铝", "钢", "钛"], ["底色", "黑", "白", "银"]]
    assert dict(table_rows(models)[0].cells) == {"参数": "外壳", "XR-200": "铝", "XR-300": "钢", "XR-400": "钛"}


def test_a_form_of_words_goes_on_where_its_names_are_known() -> None:
    form = [
        ["甲方", "青禾物业", "乙方", "大圣保洁"],
        ["范围", "三栋楼道", "人数", "四人"],
        ["起止", "一年", "付款", "按季"],
    ]
    assert [dict(row.cells) for row in table_rows(form)] == [
        {"甲方": "青禾物业", "乙方": "大圣保洁"},
        {"范围": "三栋楼道", "人数": "四人"},
        {"起止": "一年", "付款": "按季"},
    ]


@pytest.mark.parametrize("names", [["4小时", "全天"], ["4小时", "10小时"], ["一次", "30次"]])
def test_measures_may_name_the_columns_of_prices(names: list[str]) -> None:
    rows = table_rows([["鱼塘", *names], ["东塘", "60元", "100元"], ["西塘", "80元", "不开"], ["南塘", "50元", "85元"]])
    assert [dict(row.cells) for row in rows][1] == {"鱼塘": "西塘", names[0]: "80元", names[1]: "不开"}


def test_the_first_of_rows_without_a_header_names_nothing() -> None:
    rows = table_rows([["鸡蛋", "30枚", "18元"], ["牛奶", "12盒", "60元"], ["面粉", "2袋", "45元"]])
    assert [name for row in rows for name, _ in row.cells] == [""] * 9
    rows = table_rows([["肩颈", "40分钟", "都可以"], ["腰部", "45分钟", "饶师傅"], ["全身", "60分钟", "都可以"]])
    assert len(rows) == 3


def test_a_code_that_is_missing_is_not_that_of_the_row_above() -> None:
    grid = [
        ["样号", "品名", "总分"],
        ["A1", "肉桂", "92"],
        ["", "大红袍", "87"],
        ["D1", "奇兰", "84"],
        ["E1", "黄观音", "83"],
    ]
    assert [dict(row.cells).get("样号") for row in table_rows(grid)] == ["A1", None, "D1", "E1"]


def save_sheet(path: Path, rows: list[list[object]], merged: list[str] | None = None) -> Path:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in rows:
        sheet.append(row)
    for area in merged or []:
        sheet.merge_cells(area)
    book.save(path)
    return path


def test_a_form_with_a_table_of_items_gives_pairs_items_and_signatures(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["采购申请单"],
        ["申请部门", "设备部", None, "申请日期", "2025-06-03"],
        ["用途", "空压机大修"],
        ["序号", "名称", "规格", "数量", "金额"],
        [1, "油气分离器", "OF-220", 2, 3700],
        [2, "止回阀", "DN50", 460, 460],
        ["合计", None, None, None, 4160],
        ["负责人：", "周建华", None, "财务：", "孙丽"],
        ["备注：本单一式三联。"],
    ]
    merged = ["A1:E1", "B2:C2", "B3:E3", "A7:D7", "B8:C8", "A9:E9"]
    sections = read_sections(save_sheet(tmp_path / "a.xlsx", rows, merged))
    assert {section.title for section in sections} == {"Sheet > 采购申请单"}
    assert [section.text for section in sections] == [
        "申请部门: 设备部 | 申请日期: 2025-06-03",
        "用途: 空压机大修",
        "序号: 1 | 名称: 油气分离器 | 规格: OF-220 | 数量: 2 | 金额: 3700",
        "序号: 2 | 名称: 止回阀 | 规格: DN50 | 数量: 460 | 金额: 460",
        "序号: 合计 | 金额: 4160",
        "负责人: 周建华 | 财务: 孙丽",
        "备注：本单一式三联。",
    ]
    assert [section.row for section in sections] == [2, 3, 5, 6, 7, 8, 9]


def test_a_form_may_hold_several_tables_under_titles(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["姓名", "李明", "出生日期", "1990-05"],
        ["教育经历"],
        ["时间", "学校", "专业名称", "学位类型"],
        ["2008-2012", "东海大学", "会计", "学士"],
        ["工作经历"],
        ["时间", "单位", "岗位", "说明"],
        ["2012-2020", "华兴公司", "会计", "总账"],
    ]
    sections = read_sections(save_sheet(tmp_path / "a.xlsx", rows, ["A2:D2", "A5:D5"]))
    assert [(section.title, section.text) for section in sections] == [
        ("Sheet", "姓名: 李明 | 出生日期: 1990-05"),
        ("Sheet > 教育经历", "时间: 2008-2012 | 学校: 东海大学 | 专业名称: 会计 | 学位类型: 学士"),
        ("Sheet > 工作经历", "时间: 2012-2020 | 单位: 华兴公司 | 岗位: 会计 | 说明: 总账"),
    ]


def test_signatures_under_a_table_are_no_record_of_it() -> None:
    rows = table_rows([["品名", "单价", "数量"], ["钢管", "45", "3"], ["制表：", "陈晨", ""]])
    assert [row.cells for row in rows][-1] == (("制表", "陈晨"),)
    alone = table_rows([["送货人：", "陈师傅", "收货人：", "何主管"], ["以上货物请当面点清。", "", "", ""]])
    assert [row.cells for row in alone] == [
        (("送货人", "陈师傅"), ("收货人", "何主管")),
        (("", "以上货物请当面点清。"),),
    ]


def test_names_that_no_record_follows_are_kept() -> None:
    rows = table_rows([["早班", "中班", "晚班"], ["三班均需佩戴工牌。", "", ""]])
    assert [value for row in rows for _, value in row.cells] == ["早班", "中班", "晚班", "三班均需佩戴工牌。"]


# -- cells as offices fill them ---------------------------------------------------------------------------------------


def test_lines_within_a_cell_stay_apart_and_a_name_is_whole(tmp_path: Path) -> None:
    document = docx.Document()
    table = document.add_table(2, 2)
    table.cell(0, 0).text = "课\n程"
    table.cell(0, 1).text = "培训\n内容"
    table.cell(1, 0).text = "安全"
    table.cell(1, 1).text = "消防设施\n紧急疏散"
    word = save_docx(document, tmp_path / "a.docx")
    sheet = save_sheet(tmp_path / "a.xlsx", [["课\n程", "培训\n内容"], ["安全", "消防设施\n紧急疏散"]])
    page = tmp_path / "a.html"
    cells = "<tr><td>课<br>程<td>培训<br>内容<tr><td>安全<td><ul><li>消防设施<li>紧急疏散</ul>"
    page.write_text(f"<table>{cells}</table>", encoding="utf-8")
    markdown = tmp_path / "a.md"
    markdown.write_text("| 课程 | 培训内容 |\n|---|---|\n| 安全 | 消防设施<br>紧急疏散 |\n", encoding="utf-8")
    for path in (word, sheet, page, markdown):
        assert read_sections(path)[-1].text == "课程: 安全 | 培训内容: 消防设施 紧急疏散", path.name


def texts_of(path: Path) -> list[tuple[str, str]]:
    return [(section.title, section.text) for section in read_sections(path)]


def test_what_stands_above_and_below_a_sheets_table_is_no_record_of_it(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["一季度销售统计表"],
        ["单位：万元", None, None, "制表日期：2025-04-02"],
        ["区域", "一月", "二月", "三月"],
        ["上海", 100, 110, 120],
        ["合计", 160, 180, 190],
        ["注：实际数以财务入账为准。"],
        ["制表人：王芳", None, "审核人：李强"],
    ]
    assert texts_of(save_sheet(tmp_path / "a.xlsx", rows)) == [
        ("Sheet > 一季度销售统计表", "单位：万元 | 制表日期：2025-04-02"),
        ("Sheet > 一季度销售统计表 > 单位：万元", "区域: 上海 | 一月: 100 | 二月: 110 | 三月: 120"),
        ("Sheet > 一季度销售统计表 > 单位：万元", "区域: 合计 | 一月: 160 | 二月: 180 | 三月: 190"),
        ("Sheet > 一季度销售统计表 > 单位：万元", "注：实际数以财务入账为准。"),
        ("Sheet > 一季度销售统计表 > 单位：万元", "制表人：王芳 | 审核人：李强"),
    ]


def test_a_remark_in_brackets_above_a_table_that_was_cut_at_its_commas_is_no_header() -> None:
    rows = table_rows(
        [
            ["（2027年1月起", "以画心计", "木料另算）", ""],
            ["项目", "三尺", "四尺", "几天"],
            ["立轴", "260元", "340元", "20天"],
            ["镜心", "120元", "160元", "7天"],
        ]
    )
    assert rows[0].cells == (("", "（2027年1月起"), ("", "以画心计"), ("", "木料另算）"))
    assert rows[1].cells == (("项目", "立轴"), ("三尺", "260元"), ("四尺", "340元"), ("几天", "20天"))
    assert rows[1].captions == ("（2027年1月起，以画心计，木料另算）",)
    header = [["（大）", "（小）"], ["3元", "2元"], ["4元", "5元"]]
    assert [row.cells for row in table_rows(header)] == [
        (("（大）", "3元"), ("（小）", "2元")),
        (("（大）", "4元"), ("（小）", "5元")),
    ]


def test_notes_above_a_table_may_have_their_values_beside_them(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["部门：", "研发部", "日期：", "3月1日"],
        ["序号", "名称", "数量", "单价"],
        [1, "键盘", 2, 300],
    ]
    assert [text for _, text in texts_of(save_sheet(tmp_path / "a.xlsx", rows))] == [
        "部门: 研发部 | 日期: 3月1日",
        "序号: 1 | 名称: 键盘 | 数量: 2 | 单价: 300",
    ]


@pytest.mark.parametrize("titles", [[], ["2024年", None, None, "2025年"]])
def test_tables_side_by_side_without_a_blank_column_are_told_by_their_header(
    titles: list[object], tmp_path: Path
) -> None:
    rows = [titles] if titles else []
    rows += [["部门", "人数", "预算"] * 2, ["研发", 20, 100, "生产", 25, 120], ["销售", 15, 80, None, None, None]]
    assert texts_of(save_sheet(tmp_path / "a.xlsx", rows, ["A1:C1", "D1:F1"] if titles else None)) == [
        ("Sheet > 2024年" if titles else "Sheet", "部门: 研发 | 人数: 20 | 预算: 100"),
        ("Sheet > 2024年" if titles else "Sheet", "部门: 销售 | 人数: 15 | 预算: 80"),
        ("Sheet > 2025年" if titles else "Sheet", "部门: 生产 | 人数: 25 | 预算: 120"),
    ]


def test_a_header_that_repeats_over_figures_is_of_one_table(tmp_path: Path) -> None:
    rows: list[list[object]] = [["计划", "实际", "计划", "实际"], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert len(texts_of(save_sheet(tmp_path / "a.xlsx", rows))) == 2


def test_names_above_several_columns_need_not_be_merged(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["区域", "一月", None, "二月", None],
        [None, "计划", "实际", "计划", "实际"],
        ["上海", 100, 98, 110, 120],
    ]
    assert [text for _, text in texts_of(save_sheet(tmp_path / "a.xlsx", rows))] == [
        "区域: 上海 | 一月 计划: 100 | 一月 实际: 98 | 二月 计划: 110 | 二月 实际: 120"
    ]


def test_a_label_that_stands_in_the_first_row_of_its_group_holds_for_all(tmp_path: Path) -> None:
    rows: list[list[object]] = [
        ["部门", "姓名", "工资"],
        ["研发", "张三", 100],
        [None, "李四", 90],
        ["销售", "赵六", 70],
        [None, "合计", 260],
    ]
    labelled = ["部门: 研发 | 姓名: 李四 | 工资: 90", "姓名: 合计 | 工资: 260"]
    without_total = [text for _, text in texts_of(save_sheet(tmp_path / "a.xlsx", rows[:-1]))]
    assert without_total[1] == labelled[0]
    with_missing = [*rows[:-1], ["研发", "钱七", 60]]  # a label that is there twice names no group
    assert texts_of(save_sheet(tmp_path / "b.xlsx", with_missing))[1][1] == "姓名: 李四 | 工资: 90"
    with_total = [text for _, text in texts_of(save_sheet(tmp_path / "c.xlsx", rows))]
    assert [with_total[1], with_total[-1]] == labelled


def test_days_and_hours_label_groups_and_figures_do_not() -> None:
    days = [["日期", "时间", "科目"], ["6月24日", "8:30-10:00", "语文"], ["", "10:30-12:00", "物理"]]
    days += [["6月25日", "8:30-10:00", "数学"], ["", "14:00-15:30", "英语"]]
    rows = [dict(row.cells)["日期"] for row in table_rows(days)]
    assert rows == ["6月24日", "6月24日", "6月25日", "6月25日"]
    figures = [["数量", "品名", "单价"], ["12", "钢管", "45"], ["", "角铁", "31"], ["8", "螺栓", "2"]]
    assert "数量" not in dict(table_rows(figures)[1].cells)


def test_labels_may_stand_in_two_columns() -> None:
    grid = [["地区", "级别", "项目", "标准"], ["境内", "经理", "住宿", "500元"], ["", "", "餐补", "120元"]]
    grid += [["", "员工", "住宿", "350元"], ["", "", "餐补", "100元"], ["境外", "经理", "住宿", "150美元"]]
    grid += [["", "", "餐补", "60美元"], ["", "小计", "", "210美元"], ["合计", "", "", "1280元"]]
    rows = [" ".join(value for _, value in row.cells) for row in table_rows(grid)]
    assert rows[1:4] == ["境内 经理 餐补 120元", "境内 员工 住宿 350元", "境内 员工 餐补 100元"]
    assert rows[5:] == ["境外 经理 餐补 60美元", "境外 小计 210美元", "合计 1280元"]


@pytest.mark.parametrize("name", ["负责人", "姓名", "经办人", "负责老师"])
def test_nobody_is_put_where_a_persons_cell_is_blank(name: str) -> None:
    grid = [[name, "设备", "状态"], ["张三", "空调", "正常"], ["", "打印机", "待修"], ["李四", "投影仪", "正常"]]
    assert [dict(row.cells).get(name) for row in table_rows(grid)] == ["张三", None, "李四"]
    grid = [["部门", name, "设备", "状态"], ["研发", "张三", "空调", "正常"], ["", "", "打印机", "待修"]]
    grid += [["", "李四", "电脑", "正常"], ["销售", "王五", "投影仪", "正常"]]
    assert dict(table_rows(grid)[1].cells) == {"部门": "研发", "设备": "打印机", "状态": "待修"}


def test_a_number_in_the_second_column_labels_no_group() -> None:
    grid = [["楼层", "房间", "用途", "面积"], ["1楼", "101", "会议室", "30㎡"], ["", "102", "仓库", "50㎡"]]
    grid += [["", "", "茶水间", "8㎡"], ["2楼", "201", "办公室", "25㎡"], ["", "202", "档案室", "40㎡"]]
    rows = [dict(row.cells) for row in table_rows(grid)]
    assert rows[2] == {"楼层": "1楼", "用途": "茶水间", "面积": "8㎡"}
    assert rows[4] == {"楼层": "2楼", "房间": "202", "用途": "档案室", "面积": "40㎡"}


def test_two_columns_without_a_header_are_names_and_values() -> None:
    rows = table_rows([["年假", "满1年5天，满10年10天"], ["病假", "凭医院证明，每年不超过30天"]])
    assert [row.cells for row in rows] == [
        (("年假", "满1年5天，满10年10天"),),
        (("病假", "凭医院证明，每年不超过30天"),),
    ]


@pytest.mark.parametrize(
    ("value", "number_format", "text"),
    [
        (45719, "aaaa", "星期一"),
        (datetime.datetime(2025, 3, 3), 'yyyy"年"m"月"d"日" aaaa', "2025年3月3日 星期一"),
        (datetime.datetime(2025, 3, 9), 'm/d "周"aaa', "2025/3/9 周日"),
    ],
)
def test_the_day_of_the_week_is_shown(value: object, number_format: str, text: str) -> None:
    assert format_value(value, number_format) == text


def write_page(path: Path, body: str) -> Path:
    path.write_text(f"<html><body><h1>手册</h1>{body}</body></html>", encoding="utf-8")
    return path


def test_a_table_within_a_pages_cell_stands_under_its_row(tmp_path: Path) -> None:
    inner = "<table><tr><th>电压<th>功率<tr><td>{}<td>{}</table>"
    rows = "".join(
        f"<tr><td>{model}<td>{text}{inner.format(volts, watts)}"
        for model, text, volts, watts in (("A100", "室内", "220V", "50W"), ("B200", "室外", "110V", "80W"))
    )
    assert texts_of(write_page(tmp_path / "a.html", f"<table><tr><th>型号<th>参数{rows}</table>")) == [
        ("手册", "型号: A100 | 参数: 室内"),
        ("手册 > A100", "电压: 220V | 功率: 50W"),
        ("手册", "型号: B200 | 参数: 室外"),
        ("手册 > B200", "电压: 110V | 功率: 80W"),
    ]


def test_a_table_that_lays_out_a_page_is_none(tmp_path: Path) -> None:
    menu = "<ul><li><a href=a>首页</a><li><a href=b>关于</a></ul>"
    inner = "<p>值班安排如下，请各部门遵照执行。</p><table><tr><th>日期<th>值班人<tr><td>10月1日<td>张三</table>"
    page = write_page(tmp_path / "a.html", f"<table><tr><td>{menu}<td>{inner}<tr><td colspan=2>某公司</table>")
    assert ("手册", "日期: 10月1日 | 值班人: 张三") in texts_of(page)
    assert "值班安排如下，请各部门遵照执行。" in texts_of(page)[0][1]


def test_terms_stand_with_their_definitions(tmp_path: Path) -> None:
    terms = "<dl><dt>保修期<dd>两年<dt>产地<dd>苏州<br>成都</dl>"
    questions = "<dl><dt>怎么报销？<dd>先填单，再审批。</dl>"
    assert texts_of(write_page(tmp_path / "a.html", terms + questions)) == [
        ("手册", "保修期: 两年"),
        ("手册", "产地: 苏州 成都"),
        ("手册", "怎么报销？\n\n先填单，再审批。"),
    ]


def test_items_are_numbered_as_the_page_says(tmp_path: Path) -> None:
    items = "<ol start=3><li>填写<li value=7>提交</ol><ol type=A><li>甲<li>乙</ol>"
    [(_, text)] = texts_of(write_page(tmp_path / "a.html", items))
    assert text == "3. 填写\n\n7. 提交\n\nA. 甲\n\nB. 乙"


def test_readings_above_characters_are_left_out(tmp_path: Path) -> None:
    page = write_page(tmp_path / "a.html", "<p>甲方应<ruby>缴<rp>(</rp><rt>jiǎo</rt><rp>)</rp></ruby>纳保证金。</p>")
    assert texts_of(page) == [("手册", "甲方应缴纳保证金。")]


# -- Word as offices leave it -----------------------------------------------------------------------------------------


def append_paragraph(document: "docx.document.Document", content: str) -> None:
    body = document.element.body
    body.insert(len(body) - 1, parse_xml(f"<w:p {nsdecls('w')}>{content}</w:p>"))


def run_of(text: str, properties: str = "") -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (run_of("保修期两年。") + run_of("内部底价80万元", "<w:vanish/>"), "保修期两年。"),
        (run_of("保修期两年。", '<w:vanish w:val="0"/>'), "保修期两年。"),
        (
            '<w:r><w:sym w:font="Wingdings 2" w:char="F052"/></w:r>' + run_of("电汇 ")
            + '<w:r><w:sym w:font="Wingdings" w:char="F0A8"/></w:r>' + run_of("支票"),
            "☑电汇 ☐支票",
        ),
        (run_of("误差") + '<w:r><w:sym w:font="Symbol" w:char="F0B1"/></w:r>' + run_of("0.5"), "误差±0.5"),
        (
            '<w:r><w:fldChar w:fldCharType="begin"><w:ffData><w:checkBox><w:default w:val="0"/><w:checked/>'
            '</w:checkBox></w:ffData></w:fldChar></w:r><w:r><w:fldChar w:fldCharType="end"/></w:r>' + run_of("含税"),
            "☑含税",
        ),
        (
            run_of("甲方应") + "<w:r><w:ruby><w:rt><w:r><w:t>jiǎo</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>缴</w:t>"
            "</w:r></w:rubyBase></w:ruby></w:r>" + run_of("纳保证金。"),
            "甲方应缴纳保证金。",
        ),
        (
            run_of("乙方：") + "<w:sdt><w:sdtPr><w:showingPlcHdr/></w:sdtPr><w:sdtContent>"
            + run_of("单击此处输入文字") + "</w:sdtContent></w:sdt>",
            "乙方：",
        ),
    ],
)  # fmt: skip
def test_a_paragraph_reads_as_word_shows_it(content: str, text: str, tmp_path: Path) -> None:
    document = docx.Document()
    append_paragraph(document, content)
    assert texts_of(save_docx(document, tmp_path / "a.docx")) == [("", text)]


def test_a_paragraph_whose_end_was_deleted_goes_on(tmp_path: Path) -> None:
    document = docx.Document()
    deleted = '<w:pPr><w:rPr><w:del w:id="3" w:author="a"/></w:rPr></w:pPr>'
    append_paragraph(document, deleted + run_of("违约金为合同总价的"))
    append_paragraph(document, run_of("百分之五。"))
    append_paragraph(document, deleted + run_of("以上条款自签字起生效。"))
    [(_, text)] = texts_of(save_docx(document, tmp_path / "a.docx"))
    assert text == "违约金为合同总价的百分之五。\n\n以上条款自签字起生效。"


def test_a_notice_without_styles_has_its_title_and_both_levels_of_headings(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_paragraph().add_run("关于印发差旅费办法的通知").font.size = Pt(22)
    for text in (
        "一、适用范围",
        "本办法适用于全体员工，包括：",
        "（一）正式员工",
        "（二）退休返聘人员",
        "二、标准",
        "（一）交通费",
        "乘坐高铁二等座，凭票报销。",
        "（二）住宿费",
        "1. 一线城市每晚不超过600元。",
    ):
        document.add_paragraph(text)
    title = "关于印发差旅费办法的通知"
    assert texts_of(save_docx(document, tmp_path / "a.docx")) == [
        (f"{title} > 一、适用范围", "本办法适用于全体员工，包括：\n\n（一）正式员工\n\n（二）退休返聘人员"),
        (f"{title} > 二、标准 > （一）交通费", "乘坐高铁二等座，凭票报销。"),
        (f"{title} > 二、标准 > （二）住宿费", "1. 一线城市每晚不超过600元。"),
    ]


# -- slides -----------------------------------------------------------------------------------------------------------


def add_box(slide: Any, x: float, y: float, text: str, width: float = 4, size: int | None = None) -> None:
    box = slide.shapes.add_textbox(Inches(x), Inches(y), Inches(width), Inches(0.5))
    box.text_frame.text = text
    if size:
        box.text_frame.paragraphs[0].runs[0].font.size = PptPt(size)


def read_slide(path: Path, *boxes: tuple[Any, ...]) -> Section:
    presentation = pptx.Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[6])
    for box in boxes:
        add_box(slide, *box)
    presentation.save(str(path))
    [section] = read_sections(path)
    return section


def test_columns_of_boxes_on_a_slide_are_read_one_after_the_other(tmp_path: Path) -> None:
    section = read_slide(
        tmp_path / "a.pptx",
        (0.5, 6.5, "结论：外包", 9),
        (5.2, 1.6, "方案二：外包"),
        (0.5, 1.6, "方案一：自建"),
        (0.5, 2.2, "初期投入200万元"),
        (5.2, 2.5, "每年费用80万元"),
        (0.5, 3.2, "维护人员3名"),
        (5.2, 3.6, "合同期三年"),
        (0.5, 0.3, "方案对比", 9, 32),
    )
    assert section.title == "方案对比"
    assert section.text.split("\n\n") == [
        "方案一：自建",
        "初期投入200万元",
        "维护人员3名",
        "方案二：外包",
        "每年费用80万元",
        "合同期三年",
        "结论：外包",
    ]


def test_labels_beside_texts_on_a_slide_are_read_row_by_row(tmp_path: Path) -> None:
    rows = [("负责人", "王芳"), ("预算", "80万元"), ("状态", "进行中")]
    boxes: list[tuple[Any, ...]] = []
    for number, (label, text) in enumerate(rows):
        boxes += [(0.5, 1.6 + 0.8 * number, label, 2), (3.2, 1.6 + 0.8 * number, text, 6)]
    section = read_slide(tmp_path / "a.pptx", *boxes)
    assert section.text == "\n\n".join(text for row in rows for text in row)


def test_a_slides_automatic_numbers_are_part_of_the_text(tmp_path: Path) -> None:
    presentation = pptx.Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[6])
    frame = slide.shapes.add_textbox(0, 0, Inches(5), Inches(3)).text_frame
    frame.text = "填单"
    for text in ("附发票", "审批", "备查", "付款"):
        frame.add_paragraph().text = text
    schemes = [("arabicPeriod", 0), ("alphaLcParenR", 1), ("arabicPeriod", 0), ("", 0), ("ea1ChsPeriod", 0)]
    for paragraph, (scheme, level) in zip(frame.paragraphs, schemes, strict=True):
        paragraph.level = level
        if scheme:
            paragraph._p.get_or_add_pPr().append(pptx_parse_xml(f'<a:buAutoNum {pptx_nsdecls("a")} type="{scheme}"/>'))
    presentation.save(str(tmp_path / "a.pptx"))
    [section] = read_sections(tmp_path / "a.pptx")
    assert section.text == "1. 填单\na) 附发票\n2. 审批\n备查\n一. 付款"


POINTS = (
    '<dgm:dataModel xmlns:dgm="http://schemas.openxmlformats.org/drawingml/2006/diagram" '
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"><dgm:ptLst><dgm:pt modelId="0" type="doc"/>'
    "{points}</dgm:ptLst><dgm:cxnLst>{links}</dgm:cxnLst></dgm:dataModel>"
)
POINT = '<dgm:pt modelId="{0}"><dgm:t><a:p><a:r><a:t>{1}</a:t></a:r></a:p></dgm:t></dgm:pt>'
LINK = '<dgm:cxn modelId="9{1}" srcId="{0}" destId="{1}" srcOrd="{2}" destOrd="0"/>'
DIAGRAM = "http://schemas.openxmlformats.org/drawingml/2006/diagram"
DIAGRAM_DATA = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/diagramData"


def diagram_points() -> bytes:
    points = [(1, "审批"), (2, "提交"), (3, "经理三天内审批"), (4, "员工填单")]
    links = [(0, 1, 1), (0, 2, 0), (1, 3, 0), (2, 4, 0)]
    content = POINTS.format(
        points="".join(POINT.format(*point) for point in points), links="".join(LINK.format(*link) for link in links)
    )
    return content.encode()


def diagram_frame(key: str) -> str:
    return (
        f'<a:graphic xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"><a:graphicData uri="{DIAGRAM}">'
        f'<dgm:relIds xmlns:dgm="{DIAGRAM}" xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
        f' r:dm="{key}"/></a:graphicData></a:graphic>'
    )


def test_the_texts_of_a_slides_diagram_are_read_in_its_order(tmp_path: Path) -> None:
    presentation = pptx.Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    slide.shapes.title.text = "报销流程"
    name = PptPackURI("/ppt/diagrams/data1.xml")
    part = PptPart(name, "application/xml", presentation.part.package, diagram_points())
    frame = (
        f'<p:graphicFrame {pptx_nsdecls("p", "a")}><p:nvGraphicFramePr><p:cNvPr id="9" name="图示"/>'
        "<p:cNvGraphicFramePr/><p:nvPr/></p:nvGraphicFramePr>"
        "<p:xfrm><a:off x='0' y='0'/><a:ext cx='9' cy='9'/></p:xfrm>"
        f"{diagram_frame(slide.part.relate_to(part, DIAGRAM_DATA))}</p:graphicFrame>"
    )
    slide.shapes._spTree.append(pptx_parse_xml(frame))
    presentation.save(str(tmp_path / "a.pptx"))
    assert texts_of(tmp_path / "a.pptx") == [("报销流程", "提交\n员工填单\n\n审批\n经理三天内审批")]


def test_the_texts_of_a_diagram_in_word_are_read(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_paragraph("流程如下。")
    part = Part(PackURI("/word/diagrams/data1.xml"), "application/xml", diagram_points(), document.part.package)
    frame = diagram_frame(document.part.relate_to(part, DIAGRAM_DATA))
    append_paragraph(document, f"<w:r><w:drawing>{frame}</w:drawing></w:r>")
    [(_, text)] = texts_of(save_docx(document, tmp_path / "a.docx"))
    assert text == "流程如下。\n\n提交\n员工填单\n\n审批\n经理三天内审批"


# -- quoted mail ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("------------------ 原始邮件 ------------------", "原始邮件"),
        ("-----Original Message-----", "Original Message"),
        ("> 在 2025年3月2日，李四 写道：", "在 2025年3月2日，李四 写道："),
        ("李四 于2025年3月2日 16:05写道：", "李四 于2025年3月2日 16:05写道："),
        (
            "On Mon, Mar 3, 2025 at 9:00 AM Li Si <l@a.cn> wrote:",
            "On Mon, Mar 3, 2025 at 9:00 AM Li Si <l@a.cn> wrote:",
        ),
    ],
)
@pytest.mark.parametrize("as_html", [False, True])
def test_what_a_message_quotes_stands_apart_from_its_answer(
    line: str, title: str, as_html: bool, tmp_path: Path
) -> None:
    paragraphs = ["验收时间改为3月10日。", line, "> 验收时间是3月5日吗？"]
    message = make_message("关于验收", "\n\n".join(paragraphs))
    if as_html:
        body = "".join(f"<p>{escape(text.removeprefix('> '))}</p>" for text in paragraphs)
        message.set_content(f"<html><body>{body}</body></html>", subtype="html")
    (tmp_path / "a.eml").write_bytes(bytes(message))
    assert texts_of(tmp_path / "a.eml")[1:] == [
        ("关于验收", "验收时间改为3月10日。"),
        (f"关于验收 > {title}", "验收时间是3月5日吗？"),
    ]


def test_a_message_that_quotes_thousands_is_read(tmp_path: Path) -> None:
    message = make_message("关于验收", "好的。\n" + "-----原始邮件-----\n> 收到。\n" * 3000)
    (tmp_path / "a.eml").write_bytes(bytes(message))
    assert len(texts_of(tmp_path / "a.eml")) == 3002


def test_the_articles_of_a_contract_with_titles_are_headings(tmp_path: Path) -> None:
    document = docx.Document()
    for text in (
        "第一条 标的物",
        "空压机两台。",
        "第二条　交货",
        "2.1 交货时间：合同签订后30日内。",
        "第三条 甲方逾期付款的，按日支付违约金",
        "第四条",
        "本合同一式两份。",
    ):
        document.add_paragraph(text)
    assert texts_of(save_docx(document, tmp_path / "a.docx")) == [
        ("第一条 标的物", "空压机两台。"),
        ("第二条 交货", "2.1 交货时间：合同签订后30日内。\n\n第三条 甲方逾期付款的，按日支付违约金"),
        ("第四条", "本合同一式两份。"),
    ]


@pytest.mark.parametrize(
    ("header", "row", "other"),
    [
        ("项目|5公斤以下|5至15公斤|要多久", "洗澡|60|90|1小时", "药浴|120|170|1.5小时"),
        ("什么时候|12节的课|24节的课|小组课", "开课前|全退|全退|全退", "过半|退三成|退五成|不退"),
        ("教室|8:00-9:40|10:00-11:40", "东101|语文|数学", "东102|英语|历史"),
        ("轮次|日期|1号台|2号台", "第1轮|12月5日|雀鸣队|青山队", "第2轮|12月12日|晨光队|飞羽队"),
        ("塘|鱼种|4小时|限几竿", "鲫塘|鲫鱼|60元|2竿", "混塘|鲤鱼|80元|3竿"),
        ("东西|有电梯|没有电梯，每层|几人抬", "冰箱|20元|25元|2人", "钢琴|120元|80元|4人"),
    ],
)
def test_figures_and_clauses_may_stand_in_a_header(header: str, row: str, other: str) -> None:
    names = header.split("|")
    rows = table_rows([names, row.split("|"), other.split("|")])
    assert [row.cells for row in rows] == [tuple(zip(names, text.split("|"), strict=True)) for text in (row, other)]


@pytest.mark.parametrize(
    "rows",
    [
        ("面积|120平方米|含公摊", "租金|80元|按月", "押金|200元|可退"),
        ("人数|10人以内|免费", "押金|200元|可退", "茶水|30元|每人"),
        ("足球|3号场|10人", "篮球|5号场|12人", "网球|8号场|4人"),
        ("张三|13|92", "李四|14|88", "王五|13|95"),
    ],
)
def test_a_first_row_of_figures_is_no_header(rows: tuple[str, ...]) -> None:
    assert [[name for name, _ in row.cells] for row in table_rows([row.split("|") for row in rows])] == [[""] * 3] * 3


def test_a_table_of_names_with_values_alone_keeps_its_header() -> None:
    rows = table_rows([["总部", "工厂"], ["电话：8001", "电话：8002"], ["地址：上海", "地址：苏州"]])
    assert [dict(row.cells) for row in rows] == [
        {"总部": "电话：8001", "工厂": "电话：8002"},
        {"总部": "地址：上海", "工厂": "地址：苏州"},
    ]


@pytest.mark.parametrize("titles", [("一、收入", "二、支出"), ("收入明细", "支出明细")])
def test_tables_below_one_another_have_their_own_headers(titles: tuple[str, str], tmp_path: Path) -> None:
    rows: list[list[object]] = [["三月账目"], [titles[0]], ["项目", "金额"], ["货款", 100], ["服务", 50]]
    rows += [[titles[1]], ["项目", "金额", "备注"], ["工资", 80, "含社保"], ["房租", 20]]
    assert texts_of(save_sheet(tmp_path / "a.xlsx", rows)) == [
        (f"Sheet > 三月账目 > {titles[0]}", "项目: 货款 | 金额: 100"),
        (f"Sheet > 三月账目 > {titles[0]}", "项目: 服务 | 金额: 50"),
        (f"Sheet > 三月账目 > {titles[1]}", "项目: 工资 | 金额: 80 | 备注: 含社保"),
        (f"Sheet > 三月账目 > {titles[1]}", "项目: 房租 | 金额: 20"),
    ]


def test_thousands_of_tables_below_one_another_are_read(tmp_path: Path) -> None:
    rows: list[list[object]] = []
    for number in range(3000):
        rows += [[f"第{number}组名单"], ["姓名", "金额", "备注"], ["张三", number, ""]]
    assert len(texts_of(save_sheet(tmp_path / "a.xlsx", rows))) == 3000


def test_a_row_of_units_is_part_of_the_header(tmp_path: Path) -> None:
    rows: list[list[object]] = [["日期", "产量", "能耗"], [None, "台", "千瓦时"], ["3月1日", 100, 2000]]
    [(_, text)] = texts_of(save_sheet(tmp_path / "a.xlsx", rows))
    assert text == "日期: 3月1日 | 产量 台: 100 | 能耗 千瓦时: 2000"


def test_a_page_that_word_saved_has_its_headings(tmp_path: Path) -> None:
    body = (
        "<p class=MsoTitle><b><span>考勤办法<o:p></o:p></span></b></p><p class=MsoNormal><b>一、请假</b></p>"
        "<p class=MsoNormal>事假须提前\n一天申请。</p><p class=MsoNormal><b>二、加班</b></p>"
        "<p class=MsoNormal>加班费<s>10元</s><b>20元</b>。<o:p></o:p></p>"
    )
    (tmp_path / "a.html").write_bytes(f"<meta charset=gb2312><body>{body}</body>".encode("gb2312"))
    assert texts_of(tmp_path / "a.html") == [
        ("考勤办法 > 一、请假", "事假须提前一天申请。"),
        ("考勤办法 > 二、加班", "加班费10元 20元。"),
    ]


@pytest.mark.parametrize("as_html", [False, True])
def test_the_sender_and_time_of_a_quoted_message_part_it_from_the_answer(as_html: bool, tmp_path: Path) -> None:
    head = ["发件人: 李四", "发送时间: 2025年3月2日 17:00", "主题: 关于验收"]
    message = make_message("关于验收", "\n".join(["验收改为3月10日。", "", *head, "", "是3月5日吗？"]))
    if as_html:
        body = f"<p>验收改为3月10日。</p><div>{'<br>'.join(head)}</div><p>是3月5日吗？</p>"
        message.set_content(f"<html><body>{body}</body></html>", subtype="html")
    (tmp_path / "a.eml").write_bytes(bytes(message))
    [answer, quoted] = texts_of(tmp_path / "a.eml")[1:]
    assert answer == ("关于验收", "验收改为3月10日。")
    assert quoted[0] == "关于验收 > 发件人: 李四"
    assert quoted[1].endswith("主题: 关于验收\n\n是3月5日吗？")


def test_pairs_may_stand_above_and_below_a_table() -> None:
    grid = [["订单编号：", "PO-0318", "", "下单日期：", "2026-03-18"], ["序号", "品名", "数量", "单价", "金额"]]
    grid += [["1", "餐盘", "200", "12.50", "2500"], ["2", "消毒柜", "2", "1980", "3960"]]
    grid += [["付款方式", "月结30天", "", "质保期", "12个月"]]
    rows = [dict(row.cells) for row in table_rows(grid)]
    assert rows[0] == {"订单编号": "PO-0318", "下单日期": "2026-03-18"}
    assert rows[2]["品名"] == "消毒柜"
    assert rows[3] == {"付款方式": "月结30天", "质保期": "12个月"}


def test_a_title_within_a_table_that_no_record_follows_is_kept() -> None:
    grid = [["收款项目", "金额", "备注"], ["押金", "3000.00", "可退"], ["合计（大写）：叁仟元整"] * 3]
    grid += [["收款人：孙梅", "会计：何勇", "出纳：孙梅"]]
    assert [row.cells for row in table_rows(grid)][1] == (("", "合计（大写）：叁仟元整"),)


def test_comments_of_word_are_passages_that_name_their_words(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_heading("付款", 1)
    paragraph = document.add_paragraph("合同价款分四期支付，")
    words = paragraph.add_run("质保金为百分之五")
    paragraph.add_run("，质保期满退还。")
    document.add_comment([words], text="法务要求改为百分之三", author="李敏", initials="LM")
    document.add_paragraph("付款以验收为前提。")
    table = document.add_table(2, 2)
    for number, text in enumerate(["期次", "比例", "第一期", ""]):
        table.cell(number // 2, number % 2).text = text
    share = table.cell(1, 1).paragraphs[0].add_run("30%")
    document.add_comment([share], text="改成20%？", author="赵强", initials="ZQ")
    document.add_heading("验收", 1)
    assert shown(read_sections(save_docx(document, tmp_path / "a.docx"))) == [
        ("text", "付款", "合同价款分四期支付，质保金为百分之五，质保期满退还。\n\n付款以验收为前提。"),
        ("row", "付款", "期次: 第一期 | 比例: 30%"),
        ("row", "付款", "批注（李敏）：法务要求改为百分之三（批注的是：“质保金为百分之五”）"),
        ("row", "付款", "批注（赵强）：改成20%？（批注的是：“30%”）"),
        ("heading", "", "验收"),
    ]


def comments_of(document: "docx.document.Document", path: Path) -> list[str]:
    sections = read_sections(save_docx(document, path))
    return [section.text for section in sections if section.text.startswith("批注")]


def test_comments_of_word_on_no_text_are_kept(tmp_path: Path) -> None:
    document = docx.Document()
    for text, comment in (("", "此处缺图"), ("这一段", "段落标记已删")):
        paragraph = document.add_paragraph()
        document.add_comment([paragraph.add_run(text)], text=comment, author="李敏", initials="LM")
    mark = OxmlElement("w:rPr")
    mark.append(OxmlElement("w:del"))
    paragraph._p.get_or_add_pPr().append(mark)
    document.add_paragraph("并入下一段。")
    assert comments_of(document, tmp_path / "a.docx") == ["批注（李敏）：此处缺图", "批注（李敏）：段落标记已删"]


def test_a_comment_of_word_quotes_no_words_that_were_moved_away(tmp_path: Path) -> None:
    document = docx.Document()
    paragraph = document.add_paragraph("付款方式为")
    runs = [paragraph.add_run(text) for text in ("分期", "或一次付清")]
    document.add_comment(runs, text="请核对", author="李敏", initials="LM")
    moved = OxmlElement("w:moveFrom")
    runs[1]._r.addprevious(moved)
    moved.append(runs[1]._r)
    assert comments_of(document, tmp_path / "a.docx") == ["批注（李敏）：请核对（批注的是：“分期”）"]


def test_comments_on_cells_of_excel_are_passages_that_name_their_row(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "库存"
    for row in (["品名", "库存数量"], ["打印纸", 120], ["墨盒", 36]):
        sheet.append(row)
    sheet["B2"].comment = openpyxl.comments.Comment("王芳:\n含破损3包，待退货", "王芳")
    book.save(tmp_path / "a.xlsx")
    assert shown(read_sections(tmp_path / "a.xlsx"))[-1] == (
        "row",
        "库存",
        "批注（王芳）：含破损3包，待退货（批注的是：B2 打印纸，库存数量 120）",
    )


@pytest.mark.parametrize(
    ("cell", "subject"),
    [
        ("B3", "B3 上海，库存 12"),
        ("F3", "F3 苏州，退货 12"),
        ("F4", "F4 无锡，退货 5"),
        ("E4", "E4 无锡，销量 5"),
        ("D4", "D4 门店 无锡"),
    ],
)
def test_a_comment_names_the_row_and_the_column_that_it_is_on(cell: str, subject: str, tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (
        ["仓库", "库存", None, "门店", "销量", "退货"],
        ["北京", 7, None, "杭州", 3, 4],
        ["上海", 12, None, "苏州", 12, 12],
        [None, None, None, "无锡", 5, 5],
    ):
        sheet.append(row)
    sheet[cell].comment = openpyxl.comments.Comment("请核对", "王芳")
    book.save(tmp_path / "a.xlsx")
    comments = [section.text for section in read_sections(tmp_path / "a.xlsx") if "批注" in section.text]
    assert comments == [f"批注（王芳）：请核对（批注的是：{subject}）"]


def test_a_comment_beside_hidden_and_merged_cells_names_its_column(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["地区", "代码", "一月", "二月", "三月"], ["华东", 1, 100, None, 100], [None, 2, 90, 90, 90]):
        sheet.append(row)
    sheet.merge_cells("A2:A3")
    sheet.merge_cells("C2:D2")
    sheet.column_dimensions["B"].hidden = True
    for cell in ("E2", "D3", "A2"):
        sheet[cell].comment = openpyxl.comments.Comment("请核对", "王芳")
    book.save(tmp_path / "a.xlsx")
    comments = [section.text for section in read_sections(tmp_path / "a.xlsx") if "批注" in section.text]
    places = ["A2 地区 华东", "E2 华东，三月 100", "D3 华东，二月 90"]
    assert comments == [f"批注（王芳）：请核对（批注的是：{place}）" for place in places]


def test_a_roster_names_its_days_and_keeps_equal_shifts(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    shifts = [["姓名", "23日", "24日", "25日"], [None, "周一", "周二", "周三"]]
    for row in [*shifts, ["王芳", "早", "早", "休"], ["李明", "中", "休", "早"]]:
        sheet.append(row)
    sheet.merge_cells("A1:A2")
    book.save(tmp_path / "a.xlsx")
    assert [section.text for section in read_sections(tmp_path / "a.xlsx")] == [
        "姓名: 王芳 | 23日 周一: 早 | 24日 周二: 早 | 25日 周三: 休",
        "姓名: 李明 | 23日 周一: 中 | 24日 周二: 休 | 25日 周三: 早",
    ]


@pytest.mark.parametrize("figures", ["3|12|5", "12|2.5|3", "1/2|1/3|1/5", "30|31|32", "5|4|3"])
def test_figures_are_no_days_of_a_roster(figures: str) -> None:
    grid = [["空调", *figures.split("|")], ["打印机", "2", "4", "1"], ["投影仪", "1", "2", "9"]]
    rows = [[value for _, value in row.cells] for row in table_rows(grid)]
    assert rows == grid


@pytest.mark.parametrize(
    "days",
    [
        "1|2|3",
        "12/30|12/31|1/1",
        "30(周一)|31(周二)|1(周三)",
        "11月30日|12月1日|12月2日",
        "周一|周二|周四",
        "1号|3号|5号",
    ],
)
def test_days_of_a_roster_are_written_in_several_ways(days: str) -> None:
    grid = [["姓名", *days.split("|")], ["王芳", "8", "9", "6"], ["李明", "7", "8", "8"]]
    assert [row.cells[0] for row in table_rows(grid)] == [("姓名", "王芳"), ("姓名", "李明")]
    assert dict(table_rows(grid)[1].cells)[days.split("|")[0]] == "7"


def test_a_sum_over_several_columns_counts_once() -> None:
    grid = [
        ["物料", "数量", "单价", "交期"],
        ["餐盘", "200", "12.50", "12月10日"],
        ["总计", "6460.00", "6460.00", "6460.00"],
    ]
    merged = [[False] * 4, [False] * 4, [False, False, True, True]]
    assert dict(table_rows(grid, merged=merged)[1].cells) == {"物料": "总计", "数量": "6460.00"}


@pytest.mark.parametrize("label", ["合计", "平均气温"])
def test_equal_sums_count_each_where_no_file_says_that_they_are_one(label: str) -> None:
    grid = [["项目", "一月", "二月", "三月"], ["水费", "5", "7", "30"], [label, "12", "12", "30"]]
    sums = {"项目": label, "一月": "12", "二月": "12", "三月": "30"}
    assert dict(table_rows(grid)[1].cells) == sums


def test_a_reading_over_several_columns_holds_for_each() -> None:
    grid = [["项目", "一月", "二月"], ["最高气温", "9", "12"], ["平均气温", "4", "4"]]
    merged = [[False] * 3, [False] * 3, [False, False, True]]
    assert dict(table_rows(grid, merged=merged)[1].cells) == {"项目": "平均气温", "一月": "4", "二月": "4"}


def test_small_amounts_stand_apart_only_behind_amounts_in_words() -> None:
    grid = [["申请人", "王芳", "申请日期", "3月1日"], ["付款金额", "金额（小写）：100元", "付款方式", "转账"]]
    merged = [[False] * 4] * 2
    assert dict(read_pairs(grid[1], merged[1])) == {"付款金额": "金额（小写）：100元", "付款方式": "转账"}
    assert read_pairs(["金额（小写）：100元", ""], [False] * 2) == (("", "金额（小写）：100元"),)
    assert read_pairs(["合计", "壹佰元整（小写）：100元"], [False] * 2) == (("合计", "壹佰元整"), ("小写", "100元"))
    assert read_pairs(["合计", "壹佰元整", "（小写）¥100"], [False] * 3) == (("合计", "壹佰元整"), ("小写", "¥100"))


def test_items_within_a_form_of_pairs_have_their_header() -> None:
    grid = [["产品名称", "消毒柜", "型号", "RTP700"], ["整机保修", "一年", "压缩机", "三年"], ["保修范围"] * 4]
    grid += [
        ["部件", "期限", "说明", "说明"],
        ["门封条", "6个月", "自然老化", "自然老化"],
        ["控制板", "2年", "进水除外", "进水除外"],
    ]
    merged = [[False] * 4, [False] * 4, [False, True, True, True], *([[False, False, False, True]] * 3)]
    rows = [(row.captions, dict(row.cells)) for row in table_rows(grid, merged=merged)]
    assert rows[1] == ((), {"整机保修": "一年", "压缩机": "三年"})
    assert rows[2:] == [
        (("保修范围",), {"部件": "门封条", "期限": "6个月", "说明": "自然老化"}),
        (("保修范围",), {"部件": "控制板", "期限": "2年", "说明": "进水除外"}),
    ]
