"""Slides made with python-pptx: bullets, tables and speaker notes."""

from datetime import UTC, datetime
from typing import Any

from pptx import Presentation
from pptx.util import Inches

from .common import FILES, Rows, repack


def make() -> None:
    _quarter()
    _onboarding()


def _quarter() -> None:
    deck = _new("2025年第一季度财务季报")
    _title(deck, "2025年第一季度财务季报", "海川智能科技有限公司　财务部　2025年4月22日")
    _table(
        deck,
        "主要财务指标（万元）",
        [
            ("指标", "2025年第一季度", "2024年第一季度", "同比"),
            ("营业收入", "15,270", "13,048", "+17.0%"),
            ("营业成本", "9,620", "8,475", "+13.5%"),
            ("毛利率", "37.0%", "35.0%", "+2.0个百分点"),
            ("研发费用", "2,336", "1,905", "+22.6%"),
            ("净利润", "1,512", "1,230", "+22.9%"),
            ("基本每股收益（元）", "0.15", "0.12", "+25.0%"),
        ],
    )
    _table(
        deck,
        "分产品收入",
        [
            ("产品线", "收入（万元）", "占比"),
            ("智能网关", "6,870", "45.0%"),
            ("工业机器人集成", "4,581", "30.0%"),
            ("云平台订阅", "2,596", "17.0%"),
            ("备件与服务", "1,223", "8.0%"),
        ],
    )
    _bullets(
        deck,
        "经营要点",
        [
            "云平台订阅付费客户达到1,386家，较年初净增152家。",
            "研发人员占员工总数的41%，季度末员工总数为612人。",
            "应收账款余额9,140万元，平均账期缩短至79天。",
            "昆山工厂二期已于2025年3月26日投产，新增年产能20万台。",
        ],
        notes="提问环节预计有投资者问到汇率：本季度汇兑损失46万元，主要来自欧元应收款。",
    )
    _bullets(
        deck, "二季度展望", ["预计营业收入1.75亿元至1.85亿元。", "计划推出HC300系列样机，发布会定于2025年6月18日。"]
    )
    _save(deck, "财务季报-2025Q1.pptx")


def _onboarding() -> None:
    deck = _new("新员工入职培训")
    _title(deck, "新员工入职培训", "人力资源部　2025年5月班")
    _table(
        deck,
        "培训日程",
        [
            ("时间", "内容", "讲师", "地点"),
            ("5月12日 9:00-10:30", "公司介绍与文化", "沈雅琴", "12楼海纳厅"),
            ("5月12日 10:45-12:00", "制度与福利", "李娜", "12楼海纳厅"),
            ("5月12日 14:00-16:00", "信息安全", "贺冬", "11楼百川厅"),
            ("5月13日 9:00-11:30", "产品与技术", "张伟", "张江研发楼3楼"),
            ("5月13日 13:30-16:30", "昆山工厂参观", "马洪涛", "昆山工厂"),
        ],
    )
    _bullets(
        deck,
        "参加须知",
        [
            "请携带工牌和笔记本电脑，提前10分钟签到。",
            "5月13日下午的班车13:00从张江研发楼南门出发。",
            "培训结束后一周内完成线上考试，80分为及格，可补考一次。",
            "着装要求：商务休闲；进入工厂须穿安全鞋，由工厂提供。",
        ],
        notes="导师名单另发邮件。",
    )
    _bullets(deck, "导师制", ["每位新员工配一名导师，为期3个月。", "导师津贴每月500元，由人力资源部按季度发放。"])
    _save(deck, "新员工入职培训.pptx")


def _new(title: str) -> Any:
    deck = Presentation()
    deck.core_properties.title = title
    deck.core_properties.created = deck.core_properties.modified = datetime(2025, 5, 6, tzinfo=UTC)
    return deck


def _title(deck: Any, title: str, subtitle: str) -> None:
    slide = deck.slides.add_slide(deck.slide_layouts[0])
    slide.shapes.title.text = title
    slide.placeholders[1].text = subtitle


def _bullets(deck: Any, title: str, lines: list[str], notes: str = "") -> None:
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = title
    frame = slide.placeholders[1].text_frame
    frame.text = lines[0]
    for line in lines[1:]:
        frame.add_paragraph().text = line
    if notes:
        slide.notes_slide.notes_text_frame.text = notes


def _table(deck: Any, title: str, rows: Rows) -> None:
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = title
    shape = slide.shapes.add_table(len(rows), len(rows[0]), Inches(0.5), Inches(1.6), Inches(9), Inches(0.4))
    for r, row in enumerate(rows):
        for c, text in enumerate(row):
            shape.table.cell(r, c).text = text


def _save(deck: Any, name: str) -> None:
    deck.save(str(FILES / name))
    repack(FILES / name)
