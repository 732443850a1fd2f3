"""Files of every kind, honest and broken ones, become clean text in sections or an error that names the file."""

import contextlib
import io
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_files import docx, pdf

from peg_rag import readers
from peg_rag.errors import DataError
from peg_rag.readers import Section, clean, decode, markdown_sections, read_sections, unwrap, without_markup

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


def test_markdown_sections_carry_their_headings_and_offsets() -> None:
    text = "# 制度\n\n前言。\n\n## 材料 ##\n发票\n```\n# 不是标题\n```\n### 细则\n三条\n## 期限\n三十天\n"
    sections = list(markdown_sections(text))
    assert [(s.title, s.text) for s in sections] == [
        ("制度", "前言。"),
        ("制度 > 材料", "发票\n```\n# 不是标题\n```"),
        ("制度 > 材料 > 细则", "三条"),
        ("制度 > 期限", "三十天"),
    ]
    assert all(text[s.start :].startswith(s.text) for s in sections)


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
    assert [(s.title, s.text) for s in sections] == [("门票", "前言链接"), ("故宫", "旺季六十元。\n\n| 季 |\n| 淡季 |")]


def test_deeply_nested_html_is_read_or_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.html", "<div>" * 5000 + "深" + "</div>" * 5000)
    with pytest.warns(UserWarning, match="nested"):
        assert [s.text for s in read_sections(path)] == ["深"]


def test_docx_gives_headings_and_paragraphs(tmp_path: Path) -> None:
    path = write(tmp_path, "a.docx", docx(["# 报销", "需要发票。", "# 期限", "三十天。"]))
    assert [(s.title, s.text) for s in read_sections(path)] == [("报销", "需要发票。"), ("期限", "三十天。")]


def test_pdf_gives_pages_with_broken_lines_joined(tmp_path: Path) -> None:
    path = write(tmp_path, "a.pdf", pdf([["报销需要提交发票", "原件和审批单。", "逾期不予受理。"], ["第二页"]]))
    assert [(s.page, s.text) for s in read_sections(path)] == [
        (1, "报销需要提交发票原件和审批单。\n逾期不予受理。"),
        (2, "第二页"),
    ]


def test_pdf_without_text_says_ocr(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="OCR"):
        read_sections(write(tmp_path, "a.pdf", pdf([[]])))


def test_unwrap_joins_chinese_without_and_english_with_a_space() -> None:
    assert unwrap("检索增\n强生成。\n新的一句\n\n新段\n\nretrieval aug-\nmented gen\neration") == (
        "检索增强生成。\n新的一句\n\n新段\n\nretrieval augmented gen eration"
    )


def test_unwrap_joins_widely_spaced_lines_of_full_width() -> None:
    page = (
        "第一章 差旅\n\n差旅报销需要提供发票、行程单和审批\n\n单，缺一不可。\n\n住宿每晚不超过六百元\n\n高铁报二等座。"
    )
    assert unwrap(page) == (
        "第一章 差旅\n\n差旅报销需要提供发票、行程单和审批单，缺一不可。\n\n住宿每晚不超过六百元\n\n高铁报二等座。"
    )
    assert unwrap("员工手册\n\n二〇二四") == "员工手册\n\n二〇二四"


@pytest.mark.parametrize(
    "page", ["中" * 300_000, "中 " * 150_000 + "\na", "中\n\n" * 100_000, "中" * 9 + "\na" * 100_000]
)
def test_unwrap_takes_linear_time(page: str) -> None:
    assert unwrap(page)  # what is quadratic here meets the time limit of every test


def test_csv_rows_have_text_title_and_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id,标题,正文,年\n1,差旅,出差要申请。,2023\n2,,住宿四百元。,\n")
    assert read_sections(path) == [
        Section("出差要申请。", title="差旅", row=1, fields={"id": "1", "年": "2023"}),
        Section("住宿四百元。", row=2, fields={"id": "2"}),
    ]


def test_csv_without_a_text_column_becomes_lines(tmp_path: Path) -> None:
    assert [s.text for s in read_sections(write(tmp_path, "a.csv", "城市,门票\n北京,40\n"))] == ["城市：北京\n门票：40"]


def test_a_wrong_column_names_the_right_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "城市,门票\n北京,40\n")
    with pytest.raises(DataError, match=r"no column '正文'.*城市, 门票"):
        read_sections(path, text_column="正文")


def test_jsonl_rows_keep_only_plain_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "一", "year": 2020, "deep": {"a": 1}}\n\n"二"\n')
    assert read_sections(path) == [Section("一", row=1, fields={"year": 2020}), Section("二", row=3)]


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
        ("a.docx", b"PK\x03\x04 broken", "not a whole docx"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", b"[1, 2]", "JSON list"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.csv", b"text\na,b,c\n", "2 more fields"),
        ("a.exe", b"MZ", r"\*\.exe are not read"),
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
        ("a.md", "# a" + " " * 1_000_000 + "x", ""),
        ("a.md", "# a" + "\t#" * 500_000 + "x\n文", "文"),
        ("a.txt", "甲" + " " * 1_000_000 + "乙" + "\u3000" * 1_000_000 + "\n丙", None),
        ("a.txt", ("甲" + " " * 100 + "\n") * 20_000, None),
    ],
)
def test_long_runs_of_blanks_are_read_in_linear_time(tmp_path: Path, name: str, text: str, expected: str) -> None:
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
    monkeypatch.setattr(readers, "MAX_UNPACKED_BYTES", 10_000_000)
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
def test_hostile_markdown_is_read_in_linear_time(piece):
    without_markup(piece * (2_000_000 // len(piece)))  # what is quadratic here meets the time limit of every test


def test_markup_that_nobody_searches_for_goes():
    text = "前<!-- 注\n释 -->后![图](a.png)\n| 名 | 价 |\n|---|:-:|\n| 票 | 60 |\n<!-- 未完"
    assert without_markup(text) == "前后\n| 名 | 价 |\n| 票 | 60 |\n<!-- 未完"
