"""Answers are the documents' own words with their source: a sentence, a list or a cell; or an honest "not found"."""

from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peg_rag.answer import NOT_FOUND, Answer, _join_rival_cell, _whole_list, extract_answer, sentences_of, subject_of
from peg_rag.answering.candidates import MAX_ENCODED, Candidate, find_candidates
from peg_rag.answering.cells import find_telling_cell, longest_run
from peg_rag.answering.decision import DECISION, choose_best, decision_rows
from peg_rag.answering.evidence import FEATURES
from peg_rag.answering.kinds import rate_value
from peg_rag.answering.likeness import measure_likeness
from peg_rag.answering.opposites import compare_opposites
from peg_rag.answering.passages import defined_words, passages_of, start_of_body
from peg_rag.answering.question import parse_question, quantities_of
from peg_rag.answering.ranges import range_fit, sentence_fit
from peg_rag.answering.scorer import calibration_of, load_scorer
from peg_rag.answering.statements import Cell, Statement, names_cases, row_cells, statements_of
from peg_rag.answering.thesaurus import find_phrases
from peg_rag.answering.words import fold_text
from peg_rag.errors import DamagedModel, InvalidInput
from peg_rag.hits import Hit


def hit(text: str, **metadata: Any) -> Hit:
    return Hit(id=text[:8], text=text, score=1.0, metadata=metadata)


BANK = hit("花呗可以绑定银行卡。逾期要还款。")
MONEY = hit("理财有风险。借款按天计息。")
HOTEL = [
    hit(f"{year}版差旅制度 > 住宿标准\n{row}", title=f"{year}版差旅制度 > 住宿标准", source=f"差旅制度-{year}.pdf")
    for year, rows in (
        (2024, ("职级: P4-P5 | 一线城市: 400 | 其他城市: 250", "职级: P6-P7 | 一线城市: 550 | 其他城市: 350")),
        (2025, ("职级: P4-P5 | 一线城市: 450 | 其他城市: 280", "职级: P6-P7 | 一线城市: 600 | 其他城市: 380")),
    )
    for row in rows
]
PEOPLE = [
    hit("部门: 研发 | 姓名: 张伟 | 分机: 8501 | 入职日期: 2016年8月22日", source="通讯录.xlsx"),
    hit("部门: 研发 | 姓名: 张玮 | 分机: 8507 | 入职日期: 2018年11月5日", source="通讯录.xlsx"),
]
LEAVE = [
    hit("年休假\n累计工龄: 满1年不满10年 | 法定年假: 5天 | 福利假: 2天", title="年休假", source="手册.pdf"),
    hit("年休假\n累计工龄: 满10年不满20年 | 法定年假: 10天 | 福利假: 3天", title="年休假", source="手册.pdf"),
]


def best(question: str, hits: list[Hit], encoder: Any) -> str:
    return extract_answer(question, hits, encoder, threshold=0, max_sentences=1).sentences[0].text


# -- what a passage states -------------------------------------------------------------------------------------------


def texts_of(text: str) -> list[tuple[str, str]]:
    return [(statement.kind, statement.text) for statement in statements_of(text)]


def test_sentences_end_where_chinese_ends_them() -> None:
    text = "第一句。“第二句！”第三句？不过……第五句没有结尾，"
    assert [s for _, s in sentences_of(text)] == ["第一句。", "“第二句！”", "第三句？", "不过……", "第五句没有结尾，"]


def test_english_sentences_end_at_a_stop_before_a_capital() -> None:
    text = "Version 2.1 costs 3.50 a month. It ends on Monday."
    assert [s for _, s in sentences_of(text)] == ["Version 2.1 costs 3.50 a month.", "It ends on Monday."]


def test_a_sentence_is_never_cut() -> None:
    sentence = "；".join(f"第{i}项：" + "很长的内容" * 6 for i in range(5)) + "。"
    assert [s for _, s in sentences_of(sentence)] == [sentence]


def test_a_list_is_stated_whole_and_by_its_items() -> None:
    text = "请看：需要下列材料：\n1. 发票原件\n2. 审批单\n\n另见附件。"
    kinds = texts_of(text)
    assert ("list", "请看：需要下列材料：\n1. 发票原件\n2. 审批单") in kinds
    assert ("sentence", "1. 发票原件") in kinds
    assert kinds[-1] == ("sentence", "另见附件。")


def test_a_heading_states_nothing_and_is_kept_as_context() -> None:
    text = "第二章 退货\n退货期限\n收货后三十天内可退。逾期不退。"
    statements = list(statements_of(text))
    assert [s.text for s in statements] == ["收货后三十天内可退。", "逾期不退。"]
    assert {s.heading for s in statements} == {"退货期限"}


@pytest.mark.parametrize("heading", ["# 总则", "第三章 附则", "3.2 报销时限", "附则"])
def test_a_heading_alone_states_nothing(heading: str) -> None:
    assert texts_of(heading) == []


def test_a_row_states_its_cells() -> None:
    [first, *_] = statements = list(statements_of("职级: P6-P7 | 一线城市: 600 | 备注: 含早餐：双人"))
    assert [s.text for s in statements] == ["职级: P6-P7", "一线城市: 600", "备注: 含早餐：双人"]
    assert [(c.name, c.value) for c in first.row] == [("职级", "P6-P7"), ("一线城市", "600"), ("备注", "含早餐：双人")]


def test_the_lines_of_a_record_are_one_row() -> None:
    [row] = {s.row for s in statements_of("姓名：张伟\n分机：8501\n签订日期：2025年3月17日　　地点：上海")}
    assert [(c.name, c.value) for c in row][1:] == [("分机", "8501"), ("签订日期", "2025年3月17日"), ("地点", "上海")]
    two_rows = "姓名: 张伟 | 分机: 8501\n姓名: 张玮 | 分机: 8507"
    assert len({s.row for s in statements_of(two_rows)}) == 2


def test_one_blank_parts_fields_with_short_chinese_names() -> None:
    [row] = {s.row for s in statements_of("甲方（采购方）：第三中学 乙方（供货方）：泽润净水 联系人：王芳")}
    assert [(c.name, c.value) for c in row] == [
        ("甲方（采购方）", "第三中学"),
        ("乙方（供货方）", "泽润净水"),
        ("联系人", "王芳"),
    ]
    assert texts_of("工作时间 周一至周五 9:00 至 18:00。")[0][0] == "sentence"


def test_steps_stand_with_the_sentence_that_announces_them() -> None:
    text = "不想倒水的，可按以下步骤接软管。\n1. 断电。\n\n2. 卸下盖板。"
    assert ("list", text) in texts_of(text)
    assert all(kind != "list" for kind, _ in texts_of("请先断电。\n1. 卸下盖板。"))


def test_fields_are_read_under_their_heading(letters: Any) -> None:
    hits = [hit("# 香山公园\n地址：海淀区\n开放时间：6:00-18:00"), hit("# 月老祠\n地址：密云区\n开放时间：9:00-22:00")]
    assert best("月老祠几点开门？", hits, letters).endswith("开放时间：9:00-22:00")


def test_a_bracketed_line_heads_what_follows_and_states_something_itself() -> None:
    text = "【甲线】环线，11月14日\n限30人。领队甄牧野。\n【丙线】亲子步道，11月21日\n限40人。领队莫小渔。"
    statements = list(statements_of(text))
    assert "【丙线】亲子步道，11月21日" in [s.text for s in statements]
    assert {s.text: s.heading for s in statements}["领队莫小渔。"] == "【丙线】亲子步道，11月21日"


def test_clauses_of_one_sentence_are_no_fields() -> None:
    clauses = ["戏台和前院：1月11日至6月11日关门；", "后台和化妆间：1月5日起关，5月20日先开；", "西院：照常。"]
    kinds = [kind for kind, _ in texts_of("\n".join(clauses))]
    assert kinds[:2] == ["sentence", "sentence"]
    fields = "地址：浙江省宁波市鄞州区惊驾路三号楼；\n电话：010-12345678；\n承办人：李雷（质检部副主任工程师）；"
    assert {kind for kind, _ in texts_of(fields)} == {"cell"}


def test_a_sentence_with_a_colon_is_no_field() -> None:
    assert texts_of("验收人：品质部卢晨。保修期18个月。") == [
        ("sentence", "验收人：品质部卢晨。"),
        ("sentence", "保修期18个月。"),
    ]


@given(st.text("报销。！？；…\n 1.、-ab”:：|　（）#", max_size=200))
def test_every_statement_stands_where_it_is_said_to_stand(text: str) -> None:
    for statement in statements_of(text):
        start, end = statement.span
        assert text[start:end] == statement.text
        assert statement.text == statement.text.strip()
        for cell in statement.row:
            assert cell.value in text[slice(*cell.span)]


@pytest.mark.parametrize(
    "text", [" " * 100_000 + "1。…", "\u3000" * 100_000, "#" + " " * 100_000 + "。", "第" * 100_000, "a: b | " * 20_000]
)
def test_hostile_text_is_read_in_one_pass(text: str) -> None:
    assert len(list(statements_of(text))) <= 40_000


# -- other words for it --------------------------------------------------------------------------------------------


def test_the_phrases_of_a_question_are_looked_up() -> None:
    phrases = [phrase.text for phrase in find_phrases(fold_text("居住证搞丢了再办一张多少钱"))]
    assert phrases == ["居住证", "搞丢", "丢了", "再办一张", "多少钱"]


def test_a_document_may_use_another_word() -> None:
    [phrase] = find_phrases("搞丢")
    assert phrase.is_in("遗失补领须本人申请")
    assert not phrase.is_in("首次申领免费")
    [formal] = find_phrases("采暖")
    assert formal.is_in("暖气不热打哪个电话")
    assert not formal.is_in("供暖期为四个月")  # what is said for one phrase need not mean the same


def test_phrases_may_overlap_but_not_hold_each_other() -> None:
    assert [phrase.text for phrase in find_phrases("几点关灯")] == ["几点关", "关灯"]


def test_a_character_within_a_word_is_no_phrase() -> None:
    assert [phrase.text for phrase in find_phrases("锁")] == ["锁"]
    assert find_phrases("封锁线") == ()


def test_no_line_of_the_thesaurus_is_malformed() -> None:
    lines = (files("peg_rag") / "assets" / "thesaurus.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line and not line.startswith("#"):
            asked, colon, said = line.partition(" : ")
            assert colon, line
            assert asked.split(), line
            assert said.split(), line


@pytest.mark.parametrize(
    ("question", "text", "fit", "conflict"),
    [
        ("我住6栋，哪天洗外墙", "1至4栋为11月3日至7日，5至8栋为11月8日至14日。", {"6栋"}, False),
        ("我住9栋，哪天洗外墙", "1至4栋为11月3日至7日，5至8栋为11月8日至14日。", set(), True),
        ("家在18楼哪天停水", "高区（12至26层）：11月19日停水。", {"18楼"}, False),
        ("家在18楼哪天停水", "低区（1至11层）：11月18日停水。", set(), True),
        ("家在18楼哪天停水", "停水期间请关好阀门。", set(), False),
    ],
)
def test_a_number_lies_in_a_range_of_a_sentence(question: str, text: str, fit: set[str], conflict: bool) -> None:
    assert sentence_fit(parse_question(question).quantities, text) == (frozenset(fit), conflict)


# -- what a question asks for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("一晚多少钱", "money"),
        ("质保期多久", "duration"),
        ("哪天签的合同", "date"),
        ("几点关门", "time"),
        ("谁负责盘点", "person"),
        ("张玮的分机号", "phone"),
        ("皮肤科在哪一层", "place"),
        ("占比百分之几", "percent"),
        ("怎么恢复出厂设置", "how"),
        ("报销需要哪些材料", "list"),
        ("实习生也适用吗", "polar"),
        ("E07是什么意思", "meaning"),
        ("WX-0907是哪个师傅修的", "person"),
        ("星期天开不开", "polar"),
        ("电梯怎么修了那么多天", "reason"),
    ],
)
def test_the_kind_of_an_answer_is_read_off_the_question(question: str, kind: str) -> None:
    assert kind in parse_question(question).kinds


def test_numerals_years_and_codes_are_compared_as_figures() -> None:
    assert fold_text("第二节（周三）") == "第2节星期3"
    assert fold_text("一线城市和四川") == "一线城市和四川"
    assert fold_text("12,800元") == "12800元"
    assert parse_question("24年那版制度").years == {"2024"}
    words = {word.text for word in parse_question("HC200B一天能发多少货").words}
    assert "hc200b" in words
    assert not words & {"多少"}


def test_degrees_below_zero_are_written_in_one_way() -> None:
    for text in ("零下20度的库", "零下二十℃的库", "-20 °C的库"):
        assert fold_text(text) == "-20度的库"
    assert "-20度" in {word.text for word in parse_question("零下20度能干多久").words}
    assert fold_text("15-20℃") == "15-20度"


@pytest.mark.parametrize(
    ("spoken", "written"),
    [
        ("百分之三十五", "35%"),
        ("百分之零点五", "0.5%"),
        ("百分之3.5", "3.5%"),
        ("百分之百", "100%"),
        ("百分之几", "百分之几"),
        ("百分之三四", "百分之三四"),
        ("百分之七八十", "百分之80"),
    ],
)
def test_percentages_in_words_are_figures(spoken: str, written: str) -> None:
    assert fold_text(spoken) == written


@pytest.mark.parametrize(
    ("question", "text", "agreements", "conflicts"),
    [
        ("不是会员多少钱", "非会员价", True, False),
        ("不是会员多少钱", "会员价", False, True),
        ("会员多少钱", "非会员价", False, True),
        ("周末几点开放", "平日", False, True),
        ("没签合同的怎么算", "未签合同", True, False),
        ("押金是多少", "会员价", False, False),
        ("户口不在本市的多少钱", "外地户口", True, False),
        ("户口不在本市的多少钱", "本市户口", False, True),
        ("在不在本市都行吗", "本市户口", True, False),
        ("我有本市户口但不住本市", "本市户口", True, False),
        ("不是首班车几点", "末班车", False, True),
        ("没电梯的楼，扛上去一层加多少", "有电梯", False, True),
        ("没电梯的楼，扛上去一层加多少", "没有电梯，每层", True, False),
        ("有没有电梯", "有电梯", False, False),
        ("不是名牌的机械表，洗一回油多少", "名牌机械", False, True),
        ("不是名牌的机械表，洗一回油多少", "机械表", False, False),
        ("头一回拿镯子去当，综合费多少", "续当", False, True),
        ("租约哪天到头", "到期", True, False),
    ],
)
def test_opposites_exclude_one_another(question: str, text: str, agreements: bool, conflicts: bool) -> None:
    opposition = compare_opposites(fold_text(question), fold_text(text))
    assert (opposition.agreements > 0, opposition.conflicts > 0) == (agreements, conflicts)


@given(st.text("会员价多少", max_size=12), st.text("会员价多少", max_size=12))
def test_the_longest_run_is_that_of_all_substrings(text: str, question: str) -> None:
    pieces = {text[i:j] for i in range(len(text)) for j in range(i, len(text) + 1)}
    assert longest_run(text, question) == max(map(len, (piece for piece in pieces if piece in question)), default=0)


def test_a_season_stands_for_its_months() -> None:
    [passage] = passages_of([hit("旺季（4月至10月）7:00开放；淡季（11月至次年3月）8:00开放。")])
    assert dict(passage.definitions)["淡季"] == "11月、12月、1月、2月、3月"
    assert defined_words(parse_question("12月去玩多少钱"), passage) == {"12月": "淡季"}


def test_a_name_is_one_word() -> None:
    assert "张玮" in {word.text for word in parse_question("张玮的分机").words}


@pytest.mark.parametrize(
    ("question", "value", "expected"),
    [
        ("工龄12年", "满10年不满20年", True),
        ("工龄20年", "满10年不满20年", False),
        ("请5天假", "3天以上7天以内", True),
        ("请9天假", "3天以上7天以内", False),
        ("8000块的费用", "5,000元至20,000元", True),
        ("8000块的费用", "5,000元以下", False),
        ("三年的合同", "3年以上或无固定期限", True),
        ("8万的费用", "50,000元以上", True),
        ("两万块的报销", "1万元以上至5万元（含）", True),
        ("迟到45分钟", "30分钟至2小时", True),
        ("晚来两个半小时", "2小时以上", True),
        ("晚来一刻钟", "5至30分钟", True),
        ("60平的房子", "40-80平方米", True),
        ("4岁半的孩子", "4至5岁", True),
        ("4岁半的孩子", "3至4岁", False),
        ("请半个月的假", "7天以上", True),
        ("测出来零下16度", "-18 ℃及以下", False),
        ("测出来零下20度", "-18 ℃及以下", True),
        ("零下20度", "-25~-18℃", True),
        ("18度", "15-20℃", True),
    ],
)
def test_a_number_lies_in_a_range_or_not(question: str, value: str, expected: bool) -> None:
    cell = Cell((0, len(value)), "档次", value)
    fit, conflict = range_fit(quantities_of(fold_text(question)), [cell])
    assert (bool(fit), conflict) == (expected, not expected)


def test_a_year_that_means_every_year_is_no_number() -> None:
    [quantity] = parse_question("干满4年的员工一年有几天年假").quantities
    assert quantity.text == "4年"


def test_the_first_range_of_a_row_names_it() -> None:
    row = row_cells("工龄: 3年以上不满5年 | 须在: 30天以内申请", (0, 27))
    assert range_fit(quantities_of("干了4年"), row) == (frozenset({"4年"}), False)
    assert range_fit(quantities_of("干了6年"), row) == (frozenset(), True)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 90),
    st.sampled_from(["天", "年", "元", "万元", "岁", "公里", "小时", "人"]),
    st.sampled_from(["{a}{u}至{b}{u}", "{a}{u}以上{b}{u}以下", "{a}-{b}{u}", "{b}{u}以下", "{a}{u}以上", "不满{b}{u}"]),
)
def test_a_range_holds_what_lies_between_its_ends(low: int, width: int, value: int, unit: str, form: str) -> None:
    text = form.format(a=low, b=low + width, u=unit)
    above = value >= low or "{a}" not in form
    below = (value < low + width if "不满" in form else value <= low + width) or "{b}" not in form
    cell = Cell((0, len(text)), "档次", text)
    fit, conflict = range_fit(quantities_of(f"{value}{unit}"), [cell])
    assert (bool(fit), conflict) == (above and below, not (above and below))


# -- which statement answers -----------------------------------------------------------------------------------------


def test_the_best_sentence_comes_with_its_source(letters: Any) -> None:
    answer = extract_answer("花呗怎么绑定银行卡？", [MONEY, BANK], letters, threshold=0, max_sentences=1)
    [sentence] = answer.sentences
    assert sentence.text == "花呗可以绑定银行卡。"
    assert BANK.text[sentence.start :].startswith(sentence.text)
    assert answer.sources == (BANK,)
    assert answer.text == "花呗可以绑定银行卡。[1]"
    assert answer.found


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("2025年P6在一线城市住一晚报多少钱", "职级: P6-P7 | 一线城市: 600"),
        ("2024年P6在一线城市住一晚报多少钱", "职级: P6-P7 | 一线城市: 550"),
        ("2025版P5在其他城市的住宿标准是多少", "职级: P4-P5 | 其他城市: 280"),
    ],
)
def test_a_table_answers_with_the_cell_of_the_row_and_year(question: str, expected: str, letters: Any) -> None:
    assert best(question, HOTEL, letters) == expected


def test_two_questions_in_one_are_answered_from_one_row(letters: Any) -> None:
    said = best("张玮的分机是多少，哪天入职的", PEOPLE, letters)
    assert "分机: 8507" in said
    assert "入职日期: 2018年11月5日" in said
    assert "8501" not in said


def test_a_part_of_a_model_is_no_value_of_another_column(letters: Any) -> None:
    pumps = [
        hit("型号: LT50-32 | 流量: 12.5 | 扬程: 32 | 功率: 3"),
        hit("型号: LT65-50 | 流量: 25 | 扬程: 50 | 功率: 7.5"),
    ]
    assert best("LT50-32流量多少", pumps, letters) == "型号: LT50-32 | 流量: 12.5"


def test_another_month_of_the_year_is_another(letters: Any) -> None:
    months = [
        hit(f"品名: LP-210 | 零售价: {price}", title=f"2025年{m}月价格") for m, price in ((3, "999元"), (6, "899元"))
    ]
    assert best("2025年6月LP-210的零售价", months, letters) == "品名: LP-210 | 零售价: 899元"


def test_a_column_that_excludes_what_is_asked_gives_way_to_the_one_that_says_it(letters: Any) -> None:
    rooms = [hit("名称: 观澜 | 会员价: 160 | 非会员价: 240"), hit("名称: 望潮 | 会员价: 80 | 非会员价: 120")]
    assert best("不是会员，租观澜多少钱", rooms, letters) == "名称: 观澜 | 非会员价: 240"
    assert best("会员租观澜多少钱", rooms, letters) == "名称: 观澜 | 会员价: 160"


def test_a_cell_that_tells_the_row_from_another_of_the_same_name_is_quoted_too(letters: Any) -> None:
    parts = [
        hit(f"件: 冲煮头密封圈 | 适用: {model} | 多久换: {months}个月", source="保养.docx")
        for model, months in (("单锅炉", 12), ("多锅炉", 9))
    ]
    said = best("冲煮头密封圈多久换", parts, letters)
    assert said in {
        "件: 冲煮头密封圈 | 适用: 单锅炉 | 多久换: 12个月",
        "件: 冲煮头密封圈 | 适用: 多锅炉 | 多久换: 9个月",
    }


@pytest.mark.parametrize("sources", [("甲.csv", "乙.csv"), ("", "")])
def test_rows_of_two_files_need_no_telling_apart(sources: tuple[str, str], letters: Any) -> None:
    rows = ("件: 泵 | 年: 去年 | 价: 5元", "件: 泵 | 年: 今年 | 价: 9元")
    alike = [
        replace(hit(text, **({"source": name} if name else {})), id=text)
        for text, name in zip(rows, sources, strict=True)
    ]
    assert "年" not in best("泵的价", alike, letters)


def test_the_telling_cell_is_the_one_that_most_rivals_lack() -> None:
    def statement(row: str) -> Statement:
        return next(s for s in statements_of(row) if s.cell and s.cell.name == "价")

    own = statement("件: 泵 | 年: 去年 | 店: 东 | 价: 5元 | 备注: 新")
    quoted = [cell for cell in own.row if cell.name in ("件", "价")]
    same_year = statement("件: 泵 | 年: 去年 | 店: 西 | 价: 9元 | 备注: 新")
    same_shop = statement("件: 泵 | 年: 今年 | 店: 东 | 价: 7元 | 备注: 新")
    other_shop = statement("件: 泵 | 年: 今年 | 店: 北 | 价: 8元 | 备注: 新")
    twice = statement("件: 阀 | 件: 泵 | 年: 去年 | 店: 南 | 价: 6元 | 备注: 新")
    for rivals, telling in (
        ((own,), None),
        ((own, same_shop), "年"),
        ((same_year, same_shop, other_shop), "年"),
        ((same_year, same_shop, other_shop, twice), "店"),
        ((statement("件: 阀 | 年: 今年 | 价: 9元"),), None),
    ):
        cell = find_telling_cell(quoted, own, rivals)
        assert (cell.name if cell else None) == telling


@pytest.mark.parametrize(
    ("title", "text", "body"),
    [
        ("价", "价\n五元", "五元"),
        ("价", "价格: 5元\n数量: 3", "价格: 5元\n数量: 3"),
        ("手册 > 年休假", "手册 > 年休假 > 工龄: 满1年\n五天", "五天"),
        (
            "一份名字长得放不下的员工手册 > 第三章 休息与休假 > 年休假的天数与折算",
            "第三章 休息与休假 > 年休假的天数与折算\n五天",
            "五天",
        ),
        ("", "五天\n十天", "五天\n十天"),
        ("标题", "标题", "标题"),
    ],
)
def test_the_body_begins_after_the_line_of_the_title(title: str, text: str, body: str) -> None:
    assert text[start_of_body(hit(text, title=title)) :] == body


def test_columns_that_a_question_joins_are_both_quoted(letters: Any) -> None:
    said = best("张玮的分机和入职日期", PEOPLE, letters)
    assert said.endswith("姓名: 张玮 | 分机: 8507 | 入职日期: 2018年11月5日")


@pytest.mark.parametrize(
    ("column", "confidence", "joined"),
    [("分机", 0.25, True), ("分机", 0.19, False), ("入职日期", 0.3, True)],
)
def test_a_cell_of_the_same_row_that_is_half_as_sure_is_shown_too(
    column: str, confidence: float, joined: bool, letters: Any
) -> None:
    candidates = find_candidates("张玮怎么联系", PEOPLE, letters)

    def find_cell(name: str, row: int) -> Candidate:
        cells = [c for c in candidates if c.place == row and c.statement.cell and c.statement.cell.name == name]
        return replace(cells[0], spans=(cells[0].statement.span,))

    best_cell = find_cell("部门", 0)
    rival = find_cell(column, 0)
    ranked = [(0.4, best_cell), (0.3, find_cell("部门", 1)), (confidence, rival), (0.1, find_cell("分机", 1))]
    sureness, shown = _join_rival_cell(ranked)[0]
    if joined:
        assert sureness == pytest.approx(0.4 + confidence)
        assert set(shown.spans) == {best_cell.spans[0], rival.spans[0]}
    else:
        assert (sureness, shown) == ranked[0]


def test_a_newer_mail_goes_before_what_it_quotes(letters: Any) -> None:
    mail = hit("展位定了。\n3月9日可以进场布展。\n\n> 主办方给的安排是3月7日进场布展。", source="回复.eml")
    older = hit("展位定了。\n\n> 主办方给的安排是3月7日进场布展。", source="回复.eml")
    for question in ("几号可以进场布展", "布展哪天进场"):
        assert best(question, [mail], letters) == "3月9日可以进场布展。"
        assert "3月7日" in best(question, [older], letters)


def test_a_record_answers_with_the_field(letters: Any) -> None:
    assert best("张玮的分机号是多少", PEOPLE, letters).endswith("姓名: 张玮 | 分机: 8507")
    assert best("张伟哪天入职的", PEOPLE, letters).endswith("姓名: 张伟 | 入职日期: 2016年8月22日")


def test_a_row_is_found_by_the_range_a_number_lies_in(letters: Any) -> None:
    assert best("工龄12年，法定年假有几天", LEAVE, letters) == "累计工龄: 满10年不满20年 | 法定年假: 10天"


def test_what_is_quoted_stands_in_the_hit(letters: Any) -> None:
    for question in ("张玮的分机号是多少", "2025年P6在一线城市住一晚报多少钱"):
        answer = extract_answer(question, [*PEOPLE, *HOTEL], letters, threshold=0)
        for sentence in answer.sentences:
            text = answer.sources[sentence.citation - 1].text
            assert " | ".join(text[start:end] for start, end in sentence.spans) == sentence.text
            assert sentence.start == sentence.spans[0][0]


def test_a_list_answers_whole(letters: Any) -> None:
    text = "报销须提交下列材料：\n1. 审批单\n2. 发票\n3. 行程单"
    assert best("报销需要哪些材料", [MONEY, hit(text)], letters) == text


def test_of_a_list_of_cases_one_answers(letters: Any) -> None:
    question = "展品碰倒了该怎么做"
    cases = "1. 听到长铃：走楼梯。\n2. 孩子走散：找服务台。\n3. 碰倒展品：站在原地，不要去扶。"
    steps = "1. 不要碰展品。\n2. 站在原地。\n3. 展品碰倒了要等典藏部的人。"
    for text, is_of_cases in ((cases, True), (steps, False)):
        candidates = find_candidates(question, [hit(text)], letters)
        whole = next(c for c in candidates if c.statement.kind == "list")
        item = next(c for c in candidates if c.statement.text == text.splitlines()[-1])
        assert names_cases(text) is is_of_cases
        assert _whole_list(question, [(0.8, item), (0.4, whole)])[1] is (item if is_of_cases else whole)
        assert _whole_list(question, [(0.8, item), (0.7, whole)])[1] is whole


@pytest.mark.parametrize(
    "text", ["", "没有项目", "1. 第一步：打开电源\n2. 第二步：按下开关", "1. 先：断电\n2. 再：拆盖板"]
)
def test_steps_are_no_cases(text: str) -> None:
    assert not names_cases(text)


def test_an_announcement_is_no_answer(letters: Any) -> None:
    page = hit("不想倒水的，可按以下步骤接软管。", source="说明书.pdf")
    rest = hit("2. 卸下排水口盖板，套上软管。", source="说明书.pdf")
    assert best("怎么接软管", [page, rest], letters) == "2. 卸下排水口盖板，套上软管。"


def test_the_question_itself_is_no_answer(letters: Any) -> None:
    faq = hit("问题: 花呗怎么绑定银行卡？ | 回答: 在设置里点击银行卡。")
    copies = [hit("花呗怎么绑定银行卡？"), hit("花呗怎么绑定银行卡"), faq]
    assert best("花呗怎么绑定银行卡？", copies, letters).endswith("回答: 在设置里点击银行卡。")


def test_sentences_that_say_the_same_are_quoted_once(letters: Any) -> None:
    hits = [hit("花呗可以绑定银行卡。"), hit("花呗可以绑定银行卡了。")]
    assert len(extract_answer("花呗绑定银行卡", hits, letters, threshold=0).sentences) == 1


@pytest.mark.parametrize("hits", [[], [hit("……！")], [hit("")], [hit("第一章 总则")]])
def test_nothing_to_read_is_not_found(hits: list[Hit], letters: Any) -> None:
    answer = extract_answer("花呗", hits, letters, threshold=0)
    assert answer == Answer("花呗", (), (), 0.0)
    assert answer.text == NOT_FOUND


def test_below_the_threshold_nothing_is_said(letters: Any) -> None:
    sure = extract_answer("花呗绑定银行卡", [BANK], letters, threshold=0)
    unsure = extract_answer("花呗绑定银行卡", [MONEY], letters, threshold=0)
    assert sure.confidence > unsure.confidence
    between = (sure.confidence + unsure.confidence) / 2
    assert extract_answer("花呗绑定银行卡", [BANK], letters, threshold=between).found
    assert not extract_answer("花呗绑定银行卡", [MONEY], letters, threshold=between).found


def test_only_the_first_hits_are_read(letters: Any) -> None:
    assert "银行卡" not in extract_answer("花呗绑定银行卡", [MONEY, BANK], letters, threshold=0, max_hits=1).text


def test_no_more_statements_are_embedded_than_promised(letters: Any) -> None:
    extract_answer("花呗绑定银行卡", [hit(f"第{i}张银行卡绑定花呗。" * 9) for i in range(40)], letters, max_hits=40)
    assert letters.calls == [("query", 1), ("document", MAX_ENCODED)]


@pytest.mark.parametrize(
    "wrong", [{"question": " "}, {"threshold": 1.5}, {"threshold": float("nan")}, {"max_sentences": 0}]
)
def test_bad_arguments_are_refused(wrong: dict[str, Any], letters: Any) -> None:
    arguments = {"question": "花呗", "hits": [BANK], "encoder": letters} | wrong
    with pytest.raises(InvalidInput, match="expected a question"):
        extract_answer(**arguments)


@pytest.mark.parametrize(
    ("question", "subject"),
    [("报销需要哪些材料？", "报销需要 材料？"), ("什么是什么", "什么是什么"), ("what is the", "what is the")],
)
def test_the_subject_is_the_question_without_asking(question: str, subject: str) -> None:
    assert subject_of(question) == subject


# -- the scorer and its calibration ----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.text("报销多少钱谁P6 2025年？|:\n。", min_size=1, max_size=40).filter(str.strip),
    st.text("报销。|: 6年\n", max_size=80),
)
def test_features_are_finite_for_any_text(question: str, text: str) -> None:
    class Even:
        def encode_queries(self, texts: Any, *, show_progress: bool = False) -> np.ndarray:
            return np.ones((len(texts), 2), dtype=np.float32)

        encode_documents = encode_queries

    for candidate in find_candidates(question, [hit(text, source="a.pdf")], Even()):
        assert candidate.features.shape == (len(FEATURES),)
        assert np.isfinite(candidate.features).all()


def test_the_trees_are_walked_as_written() -> None:
    scorer = load_scorer()
    rows = np.random.default_rng(0).random((7, len(FEATURES)), dtype=np.float32)
    expected = []
    for row in rows:
        total = sum(weight * float(x) for weight, x in zip(scorer.linear, row, strict=True))
        for tree in scorer.trees:
            node = 0
            while tree.feature[node] >= 0:
                is_smaller = row[tree.feature[node]] <= tree.threshold[node]
                node = int(tree.smaller[node] if is_smaller else tree.larger[node])
            total += tree.value[node]
        expected.append(total)
    np.testing.assert_allclose(scorer.score(rows), expected, rtol=1e-5)


def test_a_lead_over_other_rows_and_over_cells_of_the_row_are_told_apart() -> None:
    scores = np.array([1.0, 3.0, 2.5, 0.5])
    features = np.zeros((4, len(FEATURES)), dtype=np.float32)
    assert choose_best(scores).tolist() == [1, 2, 0, 3]
    row = decision_rows(scores, features, [(0, 0), (0, 5), (0, 5), (1, 0)], np.zeros(4))[0]
    named = dict(zip(DECISION, row, strict=True))
    assert (named["score"], named["lead"], named["lead_in_row"], named["lead_in_hits"]) == (3.0, 2.0, 0.5, 2.5)
    assert named["above_mean"] == pytest.approx(3.0 - scores.mean())
    assert named["share"] == pytest.approx(np.exp(3.0) / np.exp(scores).sum())


def test_a_lone_statement_leads_by_the_most_there_is() -> None:
    features = np.zeros((1, len(FEATURES)), dtype=np.float32)
    [row] = decision_rows(np.array([0.5]), features, [(0, 0)], np.array([1.0]))
    named = dict(zip(DECISION, row, strict=True))
    assert named["lead"] == named["lead_in_row"] == named["lead_in_hits"] == named["reading_lead"] == 4.0
    assert named["share"] == 1.0
    assert named["cosine_ahead"] == 0.0  # there is nothing to be more than


def test_the_decision_compares_the_best_with_the_best_of_another_row() -> None:
    features = np.zeros((3, len(FEATURES)), dtype=np.float32)
    features[:, FEATURES.index("covered")] = [0.9, 0.8, 0.25]
    row = decision_rows(np.array([3.0, 2.5, 1.0]), features, [(0, 5), (0, 5), (1, 0)], np.zeros(3))[0]
    named = dict(zip(DECISION, row, strict=True))
    assert named["covered"] == pytest.approx(0.9)
    assert named["covered_ahead"] == pytest.approx(0.65)


def test_the_decision_says_how_the_reader_tells_statements_apart() -> None:
    scores = np.array([3.0, 2.5, 1.0])
    reading = np.array([-1.0, 2.0, 0.5])
    rows = decision_rows(scores, np.zeros((3, len(FEATURES)), np.float32), [(0, 5), (0, 5), (1, 0)], reading)
    named = [dict(zip(DECISION, row, strict=True)) for row in rows]
    assert [row["reading"] for row in named] == [-1.0, 2.0, 0.5]
    assert [row["reading_lead"] for row in named] == [-1.5, 1.5, -1.5]  # over those of other rows
    assert [row["reading_lead_in_row"] for row in named] == [-3.0, 3.0, 4.0]
    total = np.exp(reading).sum() + 1
    assert [row["reading_share"] for row in named] == pytest.approx(np.exp(reading) / total, rel=1e-5)
    assert named[0]["reading_none"] == pytest.approx(1 / total, rel=1e-5)


@pytest.mark.parametrize(
    ("question", "column", "value"),
    [
        ("防跌倒讲座在哪儿", "主讲人", "康复中心 邹敏"),
        ("视力筛查的医生是谁", "费用", "免费"),
        ("LT65-50有多重", "功率（kW）", "7.5"),
        ("哪家供应商暂停下单了", "供应商编号", "V004"),
        ("讲座能坐多少人", "主讲人", "市二院 董建平"),
    ],
)
def test_a_column_of_other_things_does_not_answer(question: str, column: str, value: str) -> None:
    assert rate_value(parse_question(question), fold_text(value), column) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("spoken", "written"),
    [
        ("九米六跑干线", "9.6米跑干线"),
        ("身高一米二的孩子", "身高1.2米的孩子"),
        ("娃一米四八，周六去", "娃1.48米,星期6去"),
        ("身高1米05的孩子", "身高1.05米的孩子"),
        ("长1米20厘米", "长1米20厘米"),
        ("4米2货车", "4.2米货车"),
        ("十米三层楼", "10米3层楼"),
        ("两块五一斤", "2.5块一斤"),
        ("两块三毛", "2.3块"),
        ("五块一斤", "5块一斤"),
        ("一千五的预算", "1.5千的预算"),
        ("一千五百元", "1500元"),
        ("三万五公里", "3.5万公里"),
        ("两万五千公里", "25000公里"),
        ("五万六千元", "56000元"),
        ("五百一晚", "五百一晚"),
        ("十二公分的银杏", "12厘米的银杏"),
        ("办公分机8507", "办公分机8507"),
        ("买两百棵", "买200棵"),
        ("第一百五条", "第105条"),
    ],
)
def test_measures_are_written_as_tables_write_them(spoken: str, written: str) -> None:
    assert fold_text(spoken) == written


def test_words_in_like_places_are_alike() -> None:
    words = parse_question("酒店").words
    assert measure_likeness(words, "住宿标准")[0] > 0.5
    assert measure_likeness(words, "螺栓扭矩")[0] < 0.3
    assert not measure_likeness(words, "")[0]


def test_asking_words_do_not_join_what_stands_around_them() -> None:
    assert "晚报" not in {word.text for word in parse_question("发票最晚什么时候报").words}


def test_a_model_brings_its_own_calibration(tmp_path: Any) -> None:
    class Encoder:
        class spec:  # noqa: N801
            path = tmp_path

    default = calibration_of(object())
    assert calibration_of(Encoder()) == default
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "answer.json").write_text('{"slope": 2, "intercept": -1}')
    Encoder.spec.path = tmp_path / "own"
    assert calibration_of(Encoder()).confidence(0.5) == pytest.approx(0.5)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "answer.json").write_text("{}")
    Encoder.spec.path = tmp_path / "bad"
    with pytest.raises(DamagedModel, match="calibrate_answer"):
        calibration_of(Encoder())


def test_confidence_is_between_0_and_1_for_any_vectors() -> None:
    class Wild:
        def encode_queries(self, texts: Any, *, show_progress: bool = False) -> np.ndarray:
            return np.full((len(texts), 2), 1e3, dtype=np.float32)

        def encode_documents(self, texts: Any, *, show_progress: bool = False) -> np.ndarray:
            return np.full((len(texts), 2), -1e3, dtype=np.float32)

    assert 0 <= extract_answer("花呗", [BANK], Wild(), threshold=0).confidence <= 1


def test_a_city_is_known_to_be_of_the_first_tier_without_a_definition() -> None:
    title = "差旅标准"
    rows = ["职级: P6 | 一线城市住宿: 600元/晚 | 其他城市住宿: 450元/晚"]
    hits = [Hit(str(i), f"{title}\n{row}", 1.0, {}, {"title": title, "kind": "row"}) for i, row in enumerate(rows)]
    [own] = passages_of(hits[:1])
    assert ("一线城市", "北京、上海、广州、深圳") in own.definitions
    defined = Hit("a", "一线城市指北京、成都。一线城市住宿600元/晚。", 1.0, {}, {})
    assert dict(passages_of([defined])[0].definitions)["一线城市"] == "北京、成都"
