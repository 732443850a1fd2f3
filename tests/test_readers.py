"""Files of every kind, honest and broken ones, become clean text in sections or an error that names the file."""

import contextlib
import io
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_files import docx

from peg_rag.errors import DataError
from peg_rag.readers import Section, clean, decode, document_text, files, read_sections, records, sections_of
from peg_rag.readers.text import markdown_blocks, without_markup

CHINESE = "报销需要提交发票原件和审批单。逾期不予受理，请于三十天内办理。"


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030", "gbk"])
def test_text_is_read_in_every_usual_encoding(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "a.txt", CHINESE.encode(encoding))
    assert read_sections(path) == [Section(CHINESE)]


def test_traditional_chinese_in_big5_is_not_taken_for_gb18030(tmp_path: Path) -> None:
    text = "臺灣大學圖書館收藏許多古籍，歡迎讀者前來參觀。" * 8
    assert read_sections(write(tmp_path, "a.txt", text.encode("big5")))[0].text == text


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
def test_utf8_is_decoded_as_it_is(text: str) -> None:
    assert decode(text.encode(), "x") == text.removeprefix("\ufeff")


@settings(deadline=None)  # the first example loads the detector of encodings
@given(st.binary(max_size=400))
def test_no_bytes_do_more_than_raise_a_data_error(data: bytes) -> None:
    with contextlib.suppress(DataError):
        assert isinstance(decode(data, "x.txt"), str)


def test_clean_keeps_one_kind_of_line_break_and_no_control_characters() -> None:
    assert clean("一\r\n二\r三\x00\x1b[31m  \n\n\n\n四\u3000\n") == "一\n二\n三[31m\n\n四"


def test_punctuation_of_vertical_text_is_stored_as_it_is_typed() -> None:
    assert clean("领料单︵经主管签字︶方可发放︒﹁内部﹂︽办法︾") == "领料单（经主管签字）方可发放。「内部」《办法》"


def test_markdown_sections_carry_their_headings_and_offsets() -> None:
    code = "```\n# 不是标题\n\n| 不是表 |\n```"
    text = f"# 制度\n\n前言。\n\n## 材料 ##\n发票\n{code}\n### 细则\n三条\n## C#\n三十天\n# 附录\n"
    blocks = list(markdown_blocks(text))
    sections = list(sections_of(blocks))
    assert [(s.kind, s.title, s.text) for s in sections] == [
        ("text", "制度", "前言。"),
        ("text", "制度 > 材料", f"发票\n{code}"),
        ("text", "制度 > 材料 > 细则", "三条"),
        ("text", "制度 > C#", "三十天"),
        ("heading", "", "附录"),
    ]
    whole = document_text(blocks)
    assert all(whole[s.start :].startswith(s.text) for s in sections)


def test_markdown_tables_give_rows_with_their_header(tmp_path: Path) -> None:
    table = "# 差旅\n\n| 职级 | 住宿 |\n|---|:-:|\n| **P6** | 600元 \\| 晚 |\n| P8 | |\n\n完。"
    assert [(s.kind, s.title, s.text, s.row) for s in read_sections(write(tmp_path, "a.md", table))] == [
        ("row", "差旅", "职级: P6 | 住宿: 600元 | 晚", 2),
        ("row", "差旅", "职级: P8", 3),
        ("text", "差旅", "完。", None),
    ]


BOXED = """表 3.2. 推荐的系统配置

┌────────────┬──────────────┬─────┐
│  安装类别  │RAM (最低要求)│硬盘 │
├────────────┼──────────────┼─────┤
│无桌面的系统│256 MB        │4 GB │
├────────────┼──────────────┼─────┤
│桌面系统    │1 GB          │10   │
│            │              │GB   │
└────────────┴──────────────┴─────┘

以上是最低值。"""
DRAWN_WITHOUT_INNER_RULES = """+------+------+
| 班次 | 时间 |
+------+------+
| 早班 | 8:00 |
| 晚班 | 16:00 |
+------+------+
早班提前十分钟到岗。"""


def test_markdown_has_underlined_titles_front_matter_and_tables_without_outer_bars(tmp_path: Path) -> None:
    text = """---
title: "发布说明"
date: 2025-03-01
---
修订记录
--------

版本 | 内容
--- | ---
2.1 | 修复登录
2.2 |

- 列表一
---
总览
====
完。
"""
    assert [(s.title, s.text) for s in read_sections(write(tmp_path, "a.md", text))] == [
        ("发布说明", "date: 2025-03-01"),
        ("发布说明 > 修订记录", "版本: 2.1 | 内容: 修复登录"),
        ("发布说明 > 修订记录", "版本: 2.2"),
        ("发布说明 > 修订记录", "- 列表一"),
        ("总览", "完。"),
    ]


def test_tables_drawn_with_characters_give_rows(tmp_path: Path) -> None:
    assert [(s.kind, s.text) for s in read_sections(write(tmp_path, "a.txt", BOXED))] == [
        ("text", "表 3.2. 推荐的系统配置"),
        ("row", "安装类别: 无桌面的系统 | RAM (最低要求): 256 MB | 硬盘: 4 GB"),
        ("row", "安装类别: 桌面系统 | RAM (最低要求): 1 GB | 硬盘: 10 GB"),
        ("text", "以上是最低值。"),
    ]
    assert [(s.kind, s.text) for s in read_sections(write(tmp_path, "b.txt", DRAWN_WITHOUT_INNER_RULES))] == [
        ("row", "班次: 早班 | 时间: 8:00"),
        ("row", "班次: 晚班 | 时间: 16:00"),
        ("text", "早班提前十分钟到岗。"),
    ]


def test_a_drawing_that_is_no_table_stays_text(tmp_path: Path) -> None:
    tree = "目录：\n├── etc\n│   └── apt\n└── var\n\n+------+\n| 提示 |\n+------+\n"
    sections = read_sections(write(tmp_path, "a.txt", tree))
    assert [section.kind for section in sections] == ["text"]
    assert "└── apt" in sections[0].text
    assert "| 提示 |" in sections[0].text


def test_plain_text_has_the_headings_that_its_numbers_make(tmp_path: Path) -> None:
    text = "停车办法\n\n第一章 总则\n\n第一条 为规范停车，制定本办法。\n\n第二章 收费\n首小时6元。\n"
    assert [(s.title, s.text) for s in read_sections(write(tmp_path, "a.txt", text))] == [
        ("", "停车办法"),
        ("第一章 总则", "第一条 为规范停车，制定本办法。"),
        ("第二章 收费", "首小时6元。"),
    ]


def test_lines_that_a_program_broke_are_put_together(tmp_path: Path) -> None:
    wrapped = [
        "本公司员工应当遵守国家法律法规和公司的各项规章制度，服从工作",
        "安排，按时完成工作任务，维护公司的名誉和利益，保守公司的商业",
        "秘密，不得利用职务之便谋取私利。",
        "1. 每年体检一次。",
        "The members of the committee meet on the first Monday of the",
        "month.",
        "员工离职须提前三十日以书面形式通知公司，办理工作交接和财物归",
        "还手续后方可离开。",
    ]
    [section] = read_sections(write(tmp_path, "a.txt", "\n".join(wrapped)))
    joined = ["".join(wrapped[:3]), wrapped[3], " ".join(wrapped[4:6]), "".join(wrapped[6:])]
    assert section.text == "\n".join(joined)


def test_lines_that_an_author_broke_are_kept(tmp_path: Path) -> None:
    lines = ["白日依山尽，", "黄河入海流。", "欲穷千里目，", "更上一层楼。"]
    [section] = read_sections(write(tmp_path, "a.txt", "\n".join(lines)))
    assert section.text == "\n".join(lines)


@pytest.mark.parametrize("gap", ["\t", "    ", "\u3000\u3000"])
def test_a_table_aligned_with_blanks_gives_rows(gap: str, tmp_path: Path) -> None:
    rows = [("姓名", "部门", "电话"), ("张三", "研发", "8001"), ("李四", "销售", "8002")]
    text = "通讯录如下：\n" + "\n".join(gap.join(row) for row in rows) + "\n有误请告知。"
    assert [section.text for section in read_sections(write(tmp_path, "a.txt", text))] == [
        "通讯录如下：",
        "姓名: 张三 | 部门: 研发 | 电话: 8001",
        "姓名: 李四 | 部门: 销售 | 电话: 8002",
        "有误请告知。",
    ]


def test_markdown_loses_pictures_and_comments(tmp_path: Path) -> None:
    path = write(tmp_path, "a.md", "看![图](data:image/png;base64,AAAA)图<!-- 秘密\n-->。\n")
    assert [s.text for s in read_sections(path)] == ["看图。"]


def test_html_gives_its_words_and_not_its_scripts(tmp_path: Path) -> None:
    page = (
        "<html><head><title>门票</title><style>b{}</style><script>steal()</script></head>"
        "<body><p>前言<a href='u'>链接</a></p>"
        "<h1>故宫</h1><p>旺季六十元。</p><table><tr><th>季</th></tr><tr><td>淡季</td></tr></table></body></html>"
    )
    sections = read_sections(write(tmp_path, "a.html", page.encode("gb18030")))
    assert [(s.title, s.text) for s in sections] == [
        ("门票", "前言链接"),
        ("故宫", "旺季六十元。"),
        ("故宫", "季: 淡季"),
    ]


def test_deeply_nested_html_is_read_or_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.html", "<div>" * 1500 + "深" + "</div>" * 1500)
    assert [s.text for s in read_sections(path)] == ["深"]
    with pytest.raises(DataError, match=r"a\.html.*nested too deeply"):
        read_sections(write(tmp_path, "a.html", "<div>" * 5000 + "深" + "</div>" * 5000))


def test_docx_gives_headings_and_paragraphs(tmp_path: Path) -> None:
    path = write(tmp_path, "a.docx", docx(["# 报销", "需要发票。", "# 期限", "三十天。"]))
    assert [(s.title, s.text) for s in read_sections(path)] == [("报销", "需要发票。"), ("期限", "三十天。")]


def test_csv_rows_have_text_title_and_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id,标题,正文,年\n1,差旅,出差要申请。,2023\n2,,住宿四百元。,\n")
    assert read_sections(path) == [
        Section("出差要申请。", 0, "差旅", row=1, fields={"id": "1", "年": "2023"}, kind="record"),
        Section("住宿四百元。", 8, row=2, fields={"id": "2"}, kind="record"),
    ]


@pytest.mark.parametrize(
    "above",
    ["果园农事记录,,,导出时间：2026-11-18\n", "果园农事记录\n\n", '"果园\n农事记录",,,导出时间：2026-11-18\r\n,,,\r\n'],
)
def test_a_csv_may_have_lines_above_its_header(above: str, tmp_path: Path) -> None:
    table = "编号,日期,农事,备注\nNS-1,2026-02-26,修剪,\nNS-2,2026-03-09,打药,芽前清园\n"
    title, *records = read_sections(write(tmp_path, "a.csv", above + table))
    assert title.text.startswith("果园")
    assert [record.text for record in records] == [
        "编号: NS-1 | 日期: 2026-02-26 | 农事: 修剪",
        "编号: NS-2 | 日期: 2026-03-09 | 农事: 打药 | 备注: 芽前清园",
    ]
    assert [record.row for record in records] == [1, 2]


@pytest.mark.parametrize(
    ("above", "below", "record"),
    [
        ("单位：万元,,制表日期：2025-04-02,\n", "区域,一月,,二月\n上海,1,,2\n", "区域: 上海 | 一月: 1 | 二月: 2"),
        ("# 温度记录\n# 单位：摄氏度\n", "时间,温度\n08:00,21.5\n", "时间: 08:00 | 温度: 21.5"),
    ],
)
def test_notes_and_comments_above_a_csvs_header_are_none(above: str, below: str, record: str, tmp_path: Path) -> None:
    *notes, last = read_sections(write(tmp_path, "a.csv", above + below))
    assert "单位：" in notes[0].text
    assert last.text == record


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "名称,,\n甲,1,2\n", "text,,,\n甲,1,2,3\n乙,4,5,6\n", "a,b,c\n1,,\n2,,\n", ""]
)
def test_a_csvs_first_line_is_its_header_where_nothing_else_can_be(text: str, tmp_path: Path) -> None:
    stream = io.StringIO(text, newline="")
    assert records._read_preamble(stream, ",") == []
    assert stream.tell() == 0


@pytest.mark.parametrize("blank", ["", ",,"])
def test_a_second_table_in_a_csv_has_its_own_header(blank: str, tmp_path: Path) -> None:
    above = "品名,库存数量,库位\n打印纸,120,A-01\n墨盒,36,A-02\n"
    below = "供应商名称,联系电话\n澄湖纸业,0512-65881234\n锡山耗材,0510-83002211\n"
    path = tmp_path / "a.csv"
    path.write_text(f"{above}{blank}\n{below}", "utf-8")
    assert [(s.row, s.text) for s in read_sections(path)] == [
        (1, "品名: 打印纸 | 库存数量: 120 | 库位: A-01"),
        (2, "品名: 墨盒 | 库存数量: 36 | 库位: A-02"),
        (3, "供应商名称: 澄湖纸业 | 联系电话: 0512-65881234"),
        (4, "供应商名称: 锡山耗材 | 联系电话: 0510-83002211"),
    ]
    path.write_text(f"一月\n{above}{blank}\n二月\n{above.replace('120', '80')}", "utf-8")
    titled = [(s.title, s.text) for s in read_sections(path) if "打印纸" in s.text]
    assert titled[-1] == ("二月", "品名: 打印纸 | 库存数量: 80 | 库位: A-01")


def test_an_empty_line_between_records_begins_no_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("姓名,岗位,城市\n王芳,会计,苏州\n\n李明,司机,无锡\n赵静,厨师,常州\n", "utf-8")
    assert [section.text for section in read_sections(path)][1] == "姓名: 李明 | 岗位: 司机 | 城市: 无锡"


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ("品名,类别,数量\n白纸,办公用品,12\n", "胶水,手工材料,若干\n剪刀,手工工具,5\n"),
        ("品名,类别,数量\n白纸,办公用品,12\n", "审批人,王芳\n审批日期,2026-03-02\n"),
        ("品名,数量\n白纸,12\n", "审批人,王芳\n审批日期,2026-03-02\n"),
        ("品名,类别,数量,库位\n白纸,办公用品,12,A-1\n", "审批人,王芳,申请人,李明\n审批日期,3月2日,申请日期,3月1日\n"),
    ],
)
def test_records_and_pairs_below_an_empty_line_are_no_table(above: str, below: str, tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", f"{above}\n{below}")
    first = below.split(",")[0]
    assert any(f"品名: {first}" in section.text for section in read_sections(path))


def test_a_second_table_may_begin_with_the_name_of_costs(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "品名,类别,数量\n白纸,办公用品,12\n\n项目,一月,二月,三月\n办公费用,3,4,5\n")
    assert read_sections(path)[-1].text == "项目: 办公费用 | 一月: 3 | 二月: 4 | 三月: 5"


def test_csv_without_a_text_column_gives_all_columns_with_their_names(tmp_path: Path) -> None:
    [section] = read_sections(write(tmp_path, "a.csv", "城市,门票\r\n北京,40\r\n"))
    assert section.text == "城市: 北京 | 门票: 40"
    assert section.cells == {"城市": "北京", "门票": "40"}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ('订单;金额;说明\nA1;"1.234,50";"加急周五前到"\nA2;980,00;\n', "utf-8"),
        ("订单\t金额\t说明\nA1\t1.234,50\t加急周五前到\nA2\t980,00\t\n", "utf-16"),
        ("订单|金额|说明\r\nA1|1.234,50|加急周五前到\r\nA2|980,00|\r\n", "gb18030"),
        ("sep=;\r\n订单;金额;说明\r\nA1;1.234,50;加急周五前到\r\nA2;980,00\r\n", "utf-8-sig"),
    ],
)
def test_a_csv_may_have_another_delimiter_than_a_comma(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    assert [section.text for section in read_sections(tmp_path / "a.csv")] == [
        "订单: A1 | 金额: 1.234,50 | 说明: 加急周五前到",
        "订单: A2 | 金额: 980,00",
    ]


def test_lines_within_a_cell_stay_apart(tmp_path: Path) -> None:
    [section] = read_sections(write(tmp_path, "a.csv", '班组,成员,要求\n甲,"张三\n李四","穿工服，\n戴安全帽"\n'))
    assert section.text == "班组: 甲 | 成员: 张三 李四 | 要求: 穿工服，戴安全帽"


def test_other_delimiters_within_the_cells_of_a_csv_divide_nothing(tmp_path: Path) -> None:
    assert read_sections(write(tmp_path, "a.csv", "问,答\na;b,c;d\ne;f,g;h\n"))[0].cells == {"问": "a;b", "答": "c;d"}
    one_column = write(tmp_path, "b.csv", "text\n甲;乙\n丙;丁\n")
    assert [section.text for section in read_sections(one_column)] == ["甲;乙", "丙;丁"]


def test_columns_of_one_name_hide_none_of_each_other(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "姓名,电话,电话,,\n王五,8801,8802,在职,夜班\n")
    [section] = read_sections(path)
    assert section.text == "姓名: 王五 | 电话: 8801 | 电话 (2): 8802 | 在职 | 夜班"
    assert section.cells["电话 (2)"] == "8802"


def test_a_wrong_column_names_the_right_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "城市,门票\n北京,40\n")
    with pytest.raises(DataError, match=r"no column '正文'.*城市, 门票"):
        read_sections(path, text_column="正文")


def test_jsonl_rows_keep_only_plain_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "一", "year": 2020, "deep": {"a": 1}}\n\n"二"\n')
    assert read_sections(path) == [
        Section("一", row=1, fields={"year": 2020}, kind="record"),
        Section("二", 3, row=3, kind="record"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"", "is empty"),
        ("a.pdf", b"", "is empty"),
        ("a.txt", b" \n\t ", "no text"),
        ("a.txt", b"abc\x00\x01\x02", "binary"),
        ("a.txt", bytes(range(1, 32)) * 20, "binary"),
        ("a.pdf", b"hello", "not a PDF"),
        ("a.pdf", b"%PDF-1.4\n%garbage", "cannot be converted"),
        ("a.docx", b"PK\x03\x04 broken", "not a valid docx"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", b"[1, 2]", "JSON list"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.csv", b"text\na,b,c\n", "2 more fields"),
        ("a.exe", b"MZ", r"unsupported file type \.exe"),
        ("a.xls", b"MZ", "save it as xlsx"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "pre-2007"),
        ("a.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"), "文件已加密"),
        ("a.eml", "没有头".encode(), "not an e-mail"),
        ("a.msg", b"hello", "not an Outlook message"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    path = write(tmp_path, name, data)
    with pytest.raises(DataError, match=said) as caught:
        read_sections(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"text": "a", "n": NaN}', "NaN"),
        ('{"text": "a", "n": -Infinity}', "Infinity"),
        ('{"text": "a", "n": 1e999}', "1e999"),
        ('{"text": "a\\ud800"}', "surrogate"),
        ('{"text": "a", "\\udc00": 1}', "surrogate"),
        ('{"text": "a", "n": ' + "9" * 5_000 + "}", "digits"),
        ('{"text": "a", "n": ' + "[" * 100_000, "nested"),
    ],
)
def test_a_row_that_no_index_can_hold_is_refused_by_line(tmp_path: Path, row: str, problem: str) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "good"}\n' + row + "\n")
    with pytest.raises(DataError, match=problem) as caught:
        read_sections(path)
    assert str(caught.value).startswith(f"{path}, line 2")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
def test_text_with_the_line_breaks_of_windows_is_text(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "a.txt", "一\r\n二\r\n三\r\n".encode(encoding))
    assert [s.text for s in read_sections(path)] == ["一\n二\n三"]


# What is not linear takes hours for these, and meets the time limit of every test.
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.md", "# a" + " " * 1_000_000 + "x", "a x"),
        ("a.md", "# a" + "\t#" * 500_000 + "x\n文", "文"),
        ("a.txt", "甲" + " " * 1_000_000 + "乙" + "\u3000" * 1_000_000 + "\n丙", None),
        ("a.txt", ("甲" + " " * 100 + "\n") * 20_000, None),
    ],
)
def test_long_runs_of_blanks_are_read_in_linear_time(
    tmp_path: Path, name: str, text: str, expected: str | None
) -> None:
    path = write(tmp_path, name, text)
    if expected == "":
        with pytest.raises(DataError, match="no text"):
            read_sections(path)
    else:
        assert [s.text for s in read_sections(path)] == [
            expected or "\n".join(map(str.rstrip, text.split("\n"))).strip()
        ]


def test_random_bytes_named_txt_are_refused(tmp_path: Path) -> None:
    noise = bytes(b or 1 for b in os.urandom(4000))
    with pytest.raises(DataError, match=r"a\.txt"):
        read_sections(write(tmp_path, "a.txt", noise))


def test_a_docx_of_nothing_but_a_zip_is_refused(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(DataError, match="cannot be converted"):
        read_sections(write(tmp_path, "a.docx", packed.getvalue()))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 10_000_000)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"0" * 20_000_000)
    assert len(packed.getvalue()) < 100_000
    with pytest.raises(DataError, match="zip bomb"):
        read_sections(write(tmp_path, "a.docx", packed.getvalue()))


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the limit is"):
        read_sections(write(tmp_path, "a.txt", b"a" * 2000), max_bytes=1000)


def test_an_unreadable_file_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_sections(tmp_path / "gone.txt")


@pytest.mark.parametrize("piece", ["<!--", "![", "![](", "![a]", "|", "| - ", "|\n", "<!-- --"])
def test_hostile_markdown_is_read_in_linear_time(piece: str) -> None:
    without_markup(piece * (2_000_000 // len(piece)))  # what is quadratic here meets the time limit of every test


def test_markup_that_nobody_searches_for_goes() -> None:
    assert without_markup("前<!-- 注\n释 -->后![图](a.png)\n<!-- 未完") == "前后\n<!-- 未完"
