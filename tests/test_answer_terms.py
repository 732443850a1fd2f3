"""What a file calls what a question says: terms, times, and ranges that name columns."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peg_rag.answering.candidates import find_candidates
from peg_rag.answering.definitions import find_definitions
from peg_rag.answering.evidence import FEATURES
from peg_rag.answering.question import parse_question
from peg_rag.answering.statements import Cell
from peg_rag.answering.terms import find_ranges, find_terms, restate_question
from peg_rag.answering.times import time_spans
from peg_rag.answering.words import fold_text
from peg_rag.hits import Hit

RULES = (
    "“幼童”指满3周岁、未满7周岁；“少年”指满7周岁、未满18周岁；“成人”指满18周岁；“长者”指满65周岁。"
    "“晨段”指6:30至10:00，“日段”指10:00至17:00，“夜段”指17:00至21:00，其后为“静段”。“深夜”指23:00至次日5:00。"
    "生活能力61分以上的为“轻助”，41至60分的为“中助”，40分以下的为“重助”。“半晴夜”指云量四成至六成，“阴夜”指云量七成以上。"
    "“假日”指周六、周日和法定节假日，其余为“平日”。“旺月”指3月、9月至12月，“暖季”指5月10日至8月20日，“冷季”指11月至次年2月。"
    "签有年度协议的为“签约客户”，其他客户称“散客”。型号：OX-5（五升机）、OX-5S（五升静音机）"
)


def terms_of(question: str, rules: str = RULES) -> tuple[str, ...]:
    return find_terms(parse_question(question), find_definitions(rules), fold_text(rules))


@pytest.mark.parametrize(
    ("question", "term"),
    [
        ("十二岁的娃夜票多少", "少年"),
        ("我妈七十岁，票多少钱", "长者"),
        ("晚上七点骑一节多少钱", "夜段"),
        ("下午三点半骑一节多少钱", "日段"),
        ("10:00来要多少", "日段"),
        ("凌晨2点叫车多少", "深夜"),
        ("半夜叫车多少", "深夜"),
        ("婆婆评了38分，几点能探视", "重助"),
        ("天上六成是云，课还上不上", "半晴夜"),
        ("礼拜天去要多少", "假日"),
        ("国庆去要多少", "假日"),
        ("周三去要多少", "平日"),
        ("静音的那款多沉", "OX-5S"),
        ("我们签过协议，运一箱多少钱", "签约客户"),
        ("我们没签协议，运一箱多少钱", "散客"),
    ],
)
def test_what_a_question_says_has_a_name_in_the_file(question: str, term: str) -> None:
    assert term in terms_of(question)


@pytest.mark.parametrize(
    ("rules", "definitions"),
    [
        (
            "10月至次年3月为“满奶期”，4月至9月为“欠奶期”。",
            {"满奶期": "10月至次年3月", "欠奶期": "4月至9月"},
        ),
        (
            "四环路以内为“内圈”，17:00至22:30是“灯段”，其余是“日段”。",
            {"内圈": "四环路以内", "灯段": "17:00至22:30", "日段": "灯段以外"},
        ),
        (
            "素厅指能坐40人以下的告别厅，礼厅指能坐41至120人的，瞻厅指能坐121人以上的。",
            {"素厅": "能坐40人以下的告别厅", "礼厅": "能坐41至120人的", "瞻厅": "能坐121人以上的"},
        ),
        (
            "本合同所称“晚点”，是指晚于班次表十分钟以上、三十分钟以下；晚于三十分钟以上的，为“重大晚点”。",
            {"晚点": "晚于班次表十分钟以上、三十分钟以下", "重大晚点": "晚于三十分钟以上"},
        ),
        ("叫法: 细缆 | 意思: 直径不到16毫米的缆绳", {"细缆": "直径不到16毫米的缆绳"}),
        ("口号是“安全第一”，标语为“人人有责”。", {}),
    ],
)
def test_rules_define_names_in_these_ways(rules: str, definitions: dict[str, str]) -> None:
    assert dict(find_definitions(rules)) == definitions


@pytest.mark.parametrize("question", ["我爸今年六十一，打几局", "我妈六十一了，打几局", "老人今年刚六十一，打几局"])
def test_an_age_needs_no_unit(question: str) -> None:
    rules = "“公开组”是指满18周岁、未满50周岁的，“常青组”是指满50周岁、未满65周岁的。"
    assert terms_of(question, rules) == ("常青组",)


@pytest.mark.parametrize(
    ("question", "term"),
    [("带个一米高的娃", "小客"), ("空车半吨", "轻车"), ("两吨的货车", "重车"), ("一吨半的车", "重车")],
)
def test_sizes_are_known_as_they_are_said(question: str, term: str) -> None:
    rules = "身高不足1.2米的为“小客”，其余为“大客”。空车不足1吨为“轻车”，1吨及以上为“重车”。"
    assert term in terms_of(f"{question}过河多少钱", rules)


@pytest.mark.parametrize("question", ["今年6月打几局", "我爸买了61个球", "今年61号台打几局"])
def test_other_figures_are_no_age(question: str) -> None:
    assert "age" not in {quantity.measure for quantity in parse_question(question).quantities}


@pytest.mark.parametrize(
    ("question", "term"),
    [("还差四十来天", "中期"), ("还差三十多天", "中期"), ("还差两个来月", "中期"), ("还差三个多月", "远期")],
)
def test_about_so_many_days_lie_in_a_range(question: str, term: str) -> None:
    rules = "“近期”指30天以内，“中期”指超过30天、不超过90天，“远期”指超过90天。"
    assert terms_of(question, rules) == (term,)


@pytest.mark.parametrize(
    ("question", "rules", "terms"),
    [
        ("周三去多少钱", "“平日”指周一至五，其余为“假日”。", ("平日",)),
        ("周日去多少钱", "“假日”指周六日和法定节假日，其余为“平日”。", ("假日",)),
        ("7月去多少钱", "“旺季”指7-9月，其余为“淡季”。", ("旺季",)),
        ("7月去多少钱", "“旺季”指7、8月，其余为“淡季”。", ("旺季",)),
        ("5月报名多少钱", "“新价”指3月1日起，其余为“旧价”。", ("新价",)),
        ("12月20日报名多少钱", "“早鸟价”指12月31日前报名，其余为“原价”。", ("早鸟价",)),
        ("晚上七点多少钱", "“夜场”指18:00开始，其余为“日场”。", ("夜场",)),
        ("下午四点多少钱", "“日场”指9:00至下午5:00，其余为“夜场”。", ("日场",)),
        ("晚上七点多少钱", "“夜场”指晚上6点至9点，其余为“静场”。", ("夜场",)),
        ("晚7点多少钱", "“夜场”指18:00至21:00，其余为“日场”。", ("夜场",)),
        ("夜里两点多少钱", "“深夜”指23:00至次日5:00，“日段”指10:00至17:00。", ("深夜",)),
        ("晚上12点多少钱", "“深夜”指23:00至次日5:00，“日段”指10:00至17:00。", ("深夜",)),
        ("中午两点多少钱", "“深夜”指23:00至次日5:00，“日段”指10:00至17:00。", ("日段",)),
        ("一点半去多少钱", "“凌晨段”指0:00至5:00，“日段”指10:00至17:00。", ("凌晨段",)),
        ("周六去多少钱", "“平场”指周一至周四全天，“热场”指其余时间和法定节假日。", ("热场",)),
        ("农历初十上排多少钱", "“大潮日”指农历初一至初四和十五至十八，其余日子为“小潮日”。", ("小潮日",)),
        ("初三晚上上排多少钱", "“大潮日”指农历初一至初四和十五至十八，其余日子为“小潮日”。", ("大潮日",)),
        ("农历初三看星星多少钱", "“暗月期”指农历廿三至次月初七，“亮月期”指农历初八至廿二。", ("暗月期",)),
        ("农历二十六搬家多少钱", "“好日子”指农历逢六、逢八的日子，其余为“平常日”。", ("好日子",)),
        ("国庆去多少钱", "“平日”指周一至周五（法定节假日除外），其余为“假日”。", ()),  # not a weekday
        ("不满七岁的多少钱", "“幼童”指满3周岁、未满7周岁，“少年”指满7周岁、未满18周岁。", ("幼童",)),
        ("18岁以下多少钱", "“少年”指满7周岁、未满18周岁，“成人”指满18周岁。", ("少年",)),
        ("12月25日去多少钱", "“短租”指30天以内，“长租”指30天以上。", ()),
        ("租6个月多少钱", "“短租”指租期12个月以内，“长租”指租期12个月以上。", ("短租",)),
        ("有没有协议价", "签有年度协议的为“签约客户”，其他客户称“散客”。", ("签约客户",)),
        ("没跟你们签协议多少钱", "签有年度协议的为“签约客户”，其他客户称“散客”。", ("散客",)),
        ("协议没签多少钱", "签有年度协议的为“签约客户”，其他客户称“散客”。", ("散客",)),
        ("2026年8月去多少钱", "“旺季”指2027年7月至8月，其余为“淡季”。", ()),
        ("下午三点开会在哪", "报销找财务室（9:00至17:00）。", ()),
        ("周末多少钱", "“假日”指周六、周日，其余为“平日”。", ()),  # two spans of one name
    ],
)
def test_definitions_in_the_forms_that_files_use(question: str, rules: str, terms: tuple[str, ...]) -> None:
    assert terms_of(question, rules) == terms


CONTRACT = (
    "甲方（委托方）：禾丰种业有限公司，地址：阡陌县育种路12号\n乙方（开发方）: 拾字科技有限公司\n"
    "“致命缺陷”是指系统不能登录或者出入库数量算错。乙方应当在4小时内修好致命缺陷。"
)
ACADEMY = (
    "“住监”指在中心睡一晚做全套监测，“家监”指带仪器回家自己做。“学童”指6周岁以上、不满14周岁。“潮地”指有水膜、没有积水。"
    "“平扫”指不打药的检查，“增强”指打造影剂的检查。“协议户”指签有年度供货协议的，其余为“散户”。"
    "“轻污染”指一批里杂菌瓶不超过百分之一，超过百分之一、不到百分之三的为“中污染”，百分之三以上的为“重污染”。"
)


@pytest.mark.parametrize(
    ("question", "rules", "terms"),
    [
        ("拾字出了哪些事，禾丰能单方面解约", CONTRACT, ("甲方", "乙方")),
        ("拾字那边得几个钟头修好算错的数", CONTRACT, ("乙方", "致命缺陷")),
        ("乙方几个钟头修好", CONTRACT, ()),
        ("睡一晚的那个检查多少钱", ACADEMY, ("住监",)),
        ("七岁的娃睡一晚做检查多少钱", ACADEMY, ("学童", "住监")),
        ("住监睡一晚多少钱", ACADEMY, ()),
        ("就一层水膜，开哪款车", ACADEMY, ("潮地",)),
        ("没签协议的小花农，抽几个点", ACADEMY, ("散户",)),
        ("一批里坏了百分之二，该由谁来定", ACADEMY, ("中污染",)),
        ("脑袋做检查，不打药的多少钱", ACADEMY, ("平扫",)),
        ("脑袋做检查，打药的多少钱", ACADEMY, ()),
        ("护工一天多少钱", "甲方：第三人民医院\n乙方：康宁护工公司", ()),
        ("国庆放假几天", "甲方：王国庆\n乙方：李四", ()),
        ("李雷哪天付款", "甲方：李雷 乙方：韩梅梅", ("甲方",)),
        ("韩梅梅哪天来", "甲方（签字）：李雷 日期：2025\n乙方：韩梅梅", ("乙方",)),
        ("租金一个月多少", "甲方：\n第一条 租金每月3000元\n乙方：李四", ()),
        ("扣款多少", "甲方：每逾期一天支付千分之五。乙方：每逾期一天扣款千分之三。", ()),
        ("校园卡补办多少钱", "“校外人员”指没有校园卡的人，“校内人员”指有校园卡的人。", ()),
        ("登没登记价钱差多少", "“挂号”指登记的信件，“平信”指不登记的信件。", ()),
        ("要早餐的多少钱", "“净房价”指不含早餐的房价。", ()),
        ("能吸烟的房间多少钱", "“无烟房”指禁止吸烟的房间。", ()),
        ("明天送到多少钱", "“特快”指当天送达，“标快”指次日送达，“慢件”指三天以上送达。", ()),
        ("物业费每平方米多少钱", "“公摊”指每平方米建筑面积中的公共部分。", ()),
        ("一天出结果多少钱", "“快检”指两小时出结果的检测，“普检”指第二天出结果的检测。", ()),
        ("表面有划痕的打几折", "“次品”指尺寸超差，或表面有划痕的。", ("次品",)),
    ],
)
def test_definitions_in_other_words(question: str, rules: str, terms: tuple[str, ...]) -> None:
    assert terms_of(question, rules) == terms


def test_of_two_ranges_the_one_within_the_other_is_meant() -> None:
    rules = "“旺季”指4月至10月，“大旺季”指7月10日至8月20日，“返校季”指8月15日至9月5日。"
    assert terms_of("7月底去要多少", rules) == ("大旺季",)
    assert terms_of("5月去要多少", rules) == ("旺季",)
    assert terms_of("8月18号去要多少", rules) == ()  # two that overlap


@pytest.mark.parametrize(
    "question",
    [
        "两岁的娃要不要票",  # of no range
        "少年票多少钱，娃十二岁",  # the question says it
        "玩三个小时多少钱",  # a duration is no time of day
        "静音的那款怎么保养",  # how to do something is said in sentences
        "散客和签约客户有啥不一样",
    ],
)
def test_what_has_no_other_name(question: str) -> None:
    assert terms_of(question) == ()


def test_what_two_definitions_hold_alike_is_neither() -> None:
    assert terms_of("周五去要多少", "“甲日”指周五、周六，“乙日”指周五、周日。") == ()


def test_a_word_that_the_file_says_often_is_no_name() -> None:
    rules = "“自种”是自己天天来管，“全托”是全由我们管。"
    question = parse_question("天天去的地多少钱")
    assert find_terms(question, find_definitions(rules), fold_text(rules)) == ("自种",)
    assert find_terms(question, find_definitions(rules), fold_text(rules + "天天开门。天天浇水。天天有人。")) == ()


@pytest.mark.parametrize(
    ("question", "names", "expected"),
    [
        ("十公斤的狗洗澡多少钱", ("5公斤以下", "5至15公斤", "15至30公斤"), ("5至15公斤",)),
        ("两百份一份多少钱", ("1至50份", "51至500份", "500份以上"), ("51至500份",)),
        ("1.2米的画洗一洗多少钱", ("1米以内", "2米以内", "3米以内"), ("2米以内",)),
        ("礼拜五去多少钱", ("平日（周一至周四）", "周五、周六"), ("周五、周六",)),
        ("十公斤的狗洗澡多少钱", ("项目", "价格"), ()),
    ],
)
def test_a_number_chooses_the_column_whose_name_is_its_range(
    question: str, names: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    row = [Cell((0, 1), name, "1") for name in names]
    assert find_ranges(parse_question(question), row) == expected


@pytest.mark.parametrize(
    ("question", "row", "expected"),
    [
        ("十公斤的狗洗澡多少钱", {"体重": "5至15公斤", "价格": "80元"}, ("5至15公斤",)),
        ("二十公斤的狗洗澡多少钱", {"体重": "5至15公斤", "价格": "80元"}, ()),
        ("晚上七点过五分那包碳多少", {"包次": "第四包", "时间": "19:05", "碳": "3.66"}, ("19:05",)),
        ("九月那回量的宫高", {"检查日": "9月14日", "宫高": "23"}, ("9月14日",)),
        ("八月里送去要多少", {"营期": "第五期", "日期": "8月2日至8月8日", "费用": "3,680元"}, ("8月2日至8月8日",)),
        ("一米二的鱼缸造景多少钱", {"缸长": "120厘米", "造景（元）": "2180"}, ("120厘米",)),
        ("一米二的鱼缸造景多少钱", {"缸长": "60厘米", "造景（元）": "680"}, ()),
        ("不到一米二的鱼缸造景多少钱", {"缸长": "120厘米", "造景（元）": "2180"}, ()),
        ("泡两年退多少", {"年限": "1至3年", "等几年": "24个月"}, ("1至3年",)),
        ("9月14日量的宫高", {"检查日": "9月14日", "宫高": "23"}, ()),  # the question says it
        ("满两年退多少", {"年限": "1至3年", "等几年": "2至4年"}, ("1至3年",)),  # the first names the row
    ],
)
def test_a_number_chooses_the_row_whose_range_holds_it(
    question: str, row: dict[str, str], expected: tuple[str, ...]
) -> None:
    cells = [Cell((0, 1), name, value) for name, value in row.items()]
    assert find_ranges(parse_question(question), cells) == expected


def test_a_restated_question_says_the_terms_and_asks_the_same() -> None:
    question = parse_question("晚上七点骑一节多少钱")
    restated = restate_question(question, ("夜段", "夜段"))
    assert restate_question(question, ()) is question
    assert restated.terms == ("夜段",)
    assert "夜段" in restated.text
    assert restated.words[: len(question.words)] == question.words
    assert (restated.asked, restated.kinds, restated.quantities) == (
        question.asked,
        question.kinds,
        question.quantities,
    )


def test_the_column_that_a_time_means_is_the_one_asked_for(letters: Any) -> None:
    hits = [
        Hit("1", "课: 单人 | 日段: 420元 | 夜段: 580元", 1.0, metadata={"source": "手册.pdf", "title": ""}),
        Hit("2", RULES, 0.9, metadata={"source": "手册.pdf", "title": ""}),
        Hit("3", "课: 单人 | 夜段: 999元", 0.8, metadata={"source": "别处.pdf", "title": ""}),
    ]
    candidates = find_candidates("晚上七点骑一节单人多少钱", hits, letters)
    cells = {candidate.statement.text: candidate for candidate in candidates if candidate.statement.cell}
    column = FEATURES.index("column_words")
    assert cells["夜段: 580元"].features[column] == 1.0
    assert cells["日段: 420元"].features[column] < 1.0
    assert cells["夜段: 580元"].describe().question == "晚上七点骑一节单人多少钱（夜段）"
    assert cells["夜段: 999元"].describe().question == "晚上七点骑一节单人多少钱"  # another file's terms


def test_a_cell_is_known_to_stand_where_all_terms_are_said(letters: Any) -> None:
    hits = [
        Hit("1", "谁: 幼童 | 日段: 42元 | 夜段: 58元", 1.0, metadata={"source": "手册.pdf", "title": ""}),
        Hit("2", "谁: 少年 | 日段: 62元 | 夜段: 78元", 1.0, metadata={"source": "手册.pdf", "title": ""}),
        Hit("3", RULES, 0.9, metadata={"source": "手册.pdf", "title": ""}),
    ]
    candidates = find_candidates("晚上七点带十二岁的娃来，票多少钱", hits, letters)
    names = ("terms_said", "terms_missing", "terms_beside", "terms_gap")
    found = {
        candidate.statement.text: tuple(float(candidate.features[FEATURES.index(name)]) for name in names)
        for candidate in candidates
        if candidate.statement.cell
    }
    assert found["夜段: 78元"] == (1.0, 0.0, 0.0, 0.0)
    assert found["日段: 62元"] == (0.5, 0.5, 0.5, 0.5)
    assert found["夜段: 58元"] == (0.5, 0.5, 0.0, 0.5)


def test_a_long_question_keeps_its_terms(letters: Any) -> None:
    hits = [
        Hit("1", "课: 单人 | 日段: 420元 | 夜段: 580元", 1.0, metadata={"source": "手册.pdf", "title": ""}),
        Hit("2", RULES, 0.9, metadata={"source": "手册.pdf", "title": ""}),
    ]
    question = "晚上七点骑一节单人多少钱" + "，我们从很远的地方赶过来" * 6
    cell = next(c for c in find_candidates(question, hits, letters) if c.statement.text == "夜段: 580元")
    assert cell.describe().question == f"{question[:40]}（夜段）"


def test_a_term_that_is_asked_for_may_answer(letters: Any) -> None:
    hits = [
        Hit("1", "得分: 40分以下 | 等级: 重助 | 护工: 全天", 1.0, metadata={"source": "手册.pdf", "title": ""}),
        Hit("2", RULES, 0.9, metadata={"source": "手册.pdf", "title": ""}),
    ]
    candidates = find_candidates("评了38分算什么等级", hits, letters)
    assert "等级: 重助" in {candidate.statement.text for candidate in candidates}


@pytest.mark.parametrize(
    ("text", "measures"),
    [
        ("十一去要多少", {"holiday"}),
        ("五一那几天要多少", {"holiday"}),
        ("十一个人、五十一元、第十一条", set()),
        ("十一月去要多少", {"date"}),
        ("住三个月要多少", set()),
        ("屏幕是16:9的", set()),
        ("星期天晚上十点半", {"weekday", "clock"}),
        ("每周三次多少钱", set()),
        ("一周六天班", set()),
        ("列出3点建议", set()),
        ("便宜两点行不行", set()),
        ("涨5点", set()),
        ("超过年限的车", set()),
        ("王国庆的工资", set()),
        ("国庆路店几点开门", set()),
        ("请假期间发工资吗", set()),
        ("平时（法定节假日除外）", set()),
        ("除周一以外的日子", set()),
    ],
)
def test_what_a_figure_says_of_time(text: str, measures: set[str]) -> None:
    assert {measure for measure, _ in time_spans(fold_text(text))} == measures


@given(st.integers(0, 23), st.integers(0, 59), st.integers(0, 23), st.integers(0, 59), st.integers(0, 23))
def test_a_time_lies_in_a_range_if_it_comes_after_its_start_and_before_its_end(
    hour: int, minute: int, last_hour: int, last_minute: int, asked: int
) -> None:
    first, end = hour * 60 + minute, last_hour * 60 + last_minute
    spans = [
        span for measure, span in time_spans(f"{hour}:{minute:02}至{last_hour}:{last_minute:02}") if measure == "clock"
    ]
    [(value, _)] = [span for measure, span in time_spans(f"{asked}:00去") if measure == "clock"]
    minutes = range(first, end) if first < end else [*range(first, 1440), *range(end)]
    assert any(low <= value < high for low, high in spans) == (asked * 60 in minutes)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))
def test_a_weekday_lies_in_a_range_if_it_is_counted_from_its_first_to_its_last_day(
    first: int, last: int, asked: int
) -> None:
    names = "一二三四五六日"
    text = fold_text(f"周{names[first - 1]}至星期{names[last - 1]}")
    spans = [span for measure, span in time_spans(text) if measure == "weekday"]
    [(_, (value, _))] = time_spans(fold_text(f"礼拜{names[asked - 1]}去"))
    days = {(first - 1 + number) % 7 + 1 for number in range((last - first) % 7 + 1)}
    assert any(low <= value < high for low, high in spans) == (asked in days)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(1, 28))
def test_a_date_lies_in_a_season_that_may_go_on_into_the_next_year(first: int, last: int, month: int, day: int) -> None:
    spans = [span for measure, span in time_spans(f"{first}月至{last}月") if measure == "date"]
    [(_, (value, _))] = time_spans(f"{month}月{day}号去")
    months = {(first - 1 + number) % 12 + 1 for number in range((last - first) % 12 + 1)}
    assert any(low <= value < high for low, high in spans) == (month in months)
