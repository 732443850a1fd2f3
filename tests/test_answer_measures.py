"""A figure that is asked for, and statements that hold none of what is measured."""

import numpy as np
import pytest

from peg_rag.answering.decision import DECISION
from peg_rag.answering.kinds import rate_value
from peg_rag.answering.measures import lacks_measure
from peg_rag.answering.question import parse_question
from peg_rag.answering.scorer import load_scorer
from peg_rag.answering.words import fold_text


def _lacks(question: str, value: str, column: str = "") -> bool:
    return lacks_measure(parse_question(question), fold_text(value), fold_text(column))


@pytest.mark.parametrize(
    ("question", "value", "column"),
    [
        ("水口村那条长船有多重？", "24.5米", "长"),
        ("火花塞要拧多大扭矩", "100小时", "CS-45"),
        ("披肩一条卖多少钱", "900条", "件数"),
        ("送来救治的穿山甲有多重", "戴定位器", "备注"),
        ("经办人的手机号多少", "叶广田", "经办人"),
        ("那个坑补一补，花了多少钱", "热补", "处置"),
        ("司机底薪多少", "怀孕满3个月的女驾驶员调到站务岗，薪酬不变。", ""),
        ("一共有几个综合公园", "面积十公顷以上的，为综合公园；不足一公顷的，为口袋公园。", ""),
        ("一共划了几处封闭滩", "滩涂分为开放滩、限制滩和封闭滩。", ""),
        ("哪天开营", "雁栖岭营地、白鹿湖营地", ""),
    ],
)
def test_what_has_no_such_figure_is_known(question: str, value: str, column: str) -> None:
    assert _lacks(question, value, column)
    assert rate_value(parse_question(question), fold_text(value), column) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("question", "value", "column"),
    [
        ("长船有多重", "800公斤", "自重"),
        ("长船有多重", "0.8", "重量（吨）"),
        ("披肩一条卖多少钱", "免费", "价格"),
        ("披肩一条卖多少钱", "面议", "价格"),
        ("披肩一条卖多少钱", "35", "单价"),
        ("几天能好", "当天", "时限"),
        ("水电谁出，一个月多少钱", "乙方", "谁出"),
        ("什么时候交房租", "每季末", "付款"),
        ("打几遍药", "四遍", "用药"),
        ("线上考要几台手机", "两台", "设备"),
        ("多久打一次电话", "每周", "间隔"),
        ("一共有几个公园", "全市公园42个，面积六百公顷。", ""),
        ("离车站多远", "走路十分钟", "交通"),
        ("怎么去车站", "坐27路", "交通"),
    ],
)
def test_what_may_answer_is_let_pass(question: str, value: str, column: str) -> None:
    assert not _lacks(question, value, column)


@pytest.mark.parametrize(
    "value", ["蒯玉兰", "船老大顾阿毛", "外请楼师傅", "设备组竺可", "行政岑小舟", "司徒念", "财务部"]
)
def test_names_of_persons_are_known_by_rare_surnames_too(value: str) -> None:
    assert rate_value(parse_question("这事归谁管"), value, "负责")[0] == 1.0


def test_a_word_is_no_person_because_it_is_short() -> None:
    assert rate_value(parse_question("这事归谁管"), "虫蛀", "原因") == (0.0, 1.0)


@pytest.mark.parametrize("value", ["7:17", "第45天", "三季度", "自交件日起", "隔周上午"])
def test_moments_are_dates(value: str) -> None:
    assert rate_value(parse_question("啥时候开"), fold_text(value), "")[0] == 1.0


@pytest.mark.parametrize(
    ("question", "kind"),
    [("头一钟头几块", "money"), ("月薪给多少", "money"), ("冷泉池多深", "size"), ("要几台手机", "count")],
)
def test_short_ways_of_asking_name_their_kind(question: str, kind: str) -> None:
    assert kind in parse_question(question).kinds


@pytest.mark.parametrize(
    ("question", "noun"), [("是哪个班的学生", "班"), ("娃得了什么病", "病"), ("什么等级", "等级"), ("要几个", "")]
)
def test_what_is_asked_for_ends_at_its_particle(question: str, noun: str) -> None:
    assert parse_question(question).noun == noun


def test_what_lacks_the_figure_is_all_but_ruled_out() -> None:
    rows = np.zeros((2, len(DECISION)), dtype=np.float32)
    rows[1, DECISION.index("lacks_measure")] = 1.0
    odds = load_scorer().decide(rows)
    assert odds[1] < odds[0] - 2.0
