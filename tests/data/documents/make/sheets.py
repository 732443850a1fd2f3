"""Workbooks and CSV files: several sheets, merged cells, dates, formulas with their results, two encodings."""

import csv
import io
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import xlsxwriter
from openpyxl import Workbook
from openpyxl.styles import Alignment, Font
from openpyxl.utils import get_column_letter

from .common import FILES, repack

_CREATED = datetime(2025, 5, 6, tzinfo=UTC).replace(tzinfo=None)

STOCK_HEADER = (
    "物料编码",
    "品名",
    "规格型号",
    "单位",
    "账面数量",
    "实盘数量",
    "差异",
    "单价（元）",
    "金额（元）",
    "最近入库日期",
    "库位",
)
# code, name, model, unit, booked, counted, price, date, shelf
SHANGHAI = [
    ("A10021", "贴片电容", "0402 10μF", "盘", 320, 318, 42.5, date(2025, 3, 12), "A-01-03"),
    ("A10035", "贴片电阻", "0603 10kΩ", "盘", 410, 410, 18.0, date(2025, 2, 27), "A-01-07"),
    ("B20110", "通信模组", "EC800M", "个", 1250, 1246, 63.8, date(2025, 4, 2), "B-02-01"),
    ("B20118", "Wi-Fi模组", "AW-CM256", "个", 880, 880, 37.6, date(2025, 4, 15), "B-02-04"),
    ("C30007", "铝合金外壳", "HC200A", "套", 560, 558, 21.9, date(2025, 5, 9), "C-05-02"),
    ("C30012", "铝合金外壳", "HC200Pro", "套", 140, 137, 58.4, date(2025, 5, 16), "C-05-06"),
    ("D40003", "电源适配器", "12V/2A", "个", 1020, 1020, 15.2, date(2025, 6, 3), "D-01-01"),
    ("E50001", "包装纸箱", "320×240×110", "个", 3600, 3585, 2.6, date(2025, 6, 11), "F-00-01"),
]
CHENGDU = [
    ("A10021", "贴片电容", "0402 10μF", "盘", 150, 150, 42.5, date(2025, 1, 20), "1区-12"),
    ("A10035", "贴片电阻", "0603 10kΩ", "盘", 205, 203, 18.0, date(2025, 3, 5), "1区-15"),
    ("B20110", "通信模组", "EC800M", "个", 430, 430, 64.5, date(2025, 5, 22), "2区-03"),
    ("B20118", "Wi-Fi模组", "AW-CM256", "个", 265, 261, 38.0, date(2025, 4, 28), "2区-04"),
    ("C30012", "铝合金外壳", "HC200Pro", "套", 60, 60, 58.4, date(2025, 5, 30), "3区-01"),
    ("D40003", "电源适配器", "12V/2A", "个", 390, 388, 15.2, date(2025, 6, 5), "3区-09"),
]
PEOPLE = [
    ("人力资源部", "沈雅琴", "人力资源总监", "8101", "138-0001-2101", "shen.yaqin", date(2016, 4, 11), "上海总部12楼"),
    ("人力资源部", "李娜", "招聘主管", "8105", "138-0001-2105", "li.na1", date(2019, 7, 1), "上海总部12楼"),
    ("人力资源部", "徐静", "薪酬专员", "8107", "138-0001-2107", "xu.jing", date(2021, 9, 13), "上海总部12楼"),
    ("财务部", "郑国平", "首席财务官", "8300", "138-0001-2300", "zheng.guoping", date(2015, 3, 2), "上海总部11楼"),
    ("财务部", "赵敏", "总账会计", "8302", "138-0001-2302", "zhao.min", date(2017, 10, 9), "上海总部11楼"),
    ("财务部", "林晓燕", "费用会计", "8306", "138-0001-2306", "lin.xiaoyan", date(2020, 6, 15), "上海总部11楼"),
    ("研发中心", "张伟", "嵌入式架构师", "8501", "138-0001-2501", "zhang.wei", date(2016, 8, 22), "上海张江研发楼3楼"),
    ("研发中心", "张玮", "测试经理", "8507", "138-0001-2507", "zhang.wei2", date(2018, 11, 5), "上海张江研发楼3楼"),
    ("研发中心", "王梓涵", "云平台工程师", "8512", "138-0001-2512", "wang.zihan", date(2022, 7, 4), "成都研发分部"),
    ("研发中心", "高明", "硬件工程师", "8515", "138-0001-2515", "gao.ming", date(2023, 2, 20), "上海张江研发楼2楼"),
    ("采购部", "周雯", "采购经理", "8601", "138-0001-2601", "zhou.wen", date(2017, 5, 8), "上海总部10楼"),
    ("采购部", "吴磊", "采购专员", "8603", "138-0001-2603", "wu.lei", date(2021, 3, 1), "昆山工厂办公楼"),
    ("生产部", "孙国栋", "设备科长", "6101", "138-0001-2701", "sun.guodong", date(2014, 12, 1), "昆山工厂办公楼"),
    ("生产部", "马洪涛", "生产总监", "6100", "138-0001-2700", "ma.hongtao", date(2013, 6, 17), "昆山工厂办公楼"),
    ("生产部", "李娜", "质检员", "6115", "138-0001-2715", "li.na2", date(2022, 10, 10), "昆山工厂2号车间"),
    ("客服部", "陈立", "售后主管", "8801", "138-0001-2801", "chen.li", date(2018, 1, 15), "苏州售后中心"),
    ("客服部", "何倩", "热线组长", "8805", "138-0001-2805", "he.qian", date(2020, 12, 7), "苏州售后中心"),
]
DAYS = ("星期一", "星期二", "星期三", "星期四", "星期五")
CLASS_3 = [
    ("第1节 8:00-8:40", "语文", "数学", "英语", "物理", "数学"),
    ("第2节 8:50-9:30", "数学", "英语", "语文", "化学", "英语"),
    ("第3节 10:00-10:40", "英语", "语文", "数学", "语文", "历史"),
    ("第4节 10:50-11:30", "物理", "体育", "地理", "数学", "语文"),
    ("第5节 13:30-14:10", "历史", "化学", "生物", "英语", "体育"),
    ("第6节 14:20-15:00", "政治", "生物", "物理", "信息技术", "音乐"),
    ("第7节 15:20-16:00", "班会", "地理", "美术", "自习", "社团活动"),
]
CLASS_4 = [
    ("第1节 8:00-8:40", "数学", "语文", "物理", "英语", "语文"),
    ("第2节 8:50-9:30", "语文", "数学", "英语", "数学", "化学"),
    ("第3节 10:00-10:40", "英语", "物理", "语文", "语文", "数学"),
    ("第4节 10:50-11:30", "化学", "英语", "体育", "历史", "英语"),
    ("第5节 13:30-14:10", "地理", "政治", "数学", "体育", "生物"),
    ("第6节 14:20-15:00", "信息技术", "历史", "音乐", "地理", "物理"),
    ("第7节 15:20-16:00", "班会", "生物", "自习", "美术", "社团活动"),
]
SHOPS = [
    ("门店编号", "门店名称", "城市", "地址", "营业时间", "店长", "联系电话", "面积（平方米）"),
    ("S001", "徐家汇旗舰店", "上海", "徐汇区虹桥路1号港汇广场3楼", "10:00-22:00", "方婷", "021-6407-8801", "320"),
    ("S002", "五角场店", "上海", "杨浦区淞沪路77号2楼", "10:00-21:30", "罗军", "021-6548-8802", "145"),
    ("S003", "南京东路店", "上海", "黄浦区南京东路300号1楼", "9:30-22:00", "蒋文静", "021-6322-8803", "98"),
    ("B001", "朝阳大悦城店", "北京", "朝阳区朝阳北路101号5楼", "10:00-22:00", "董浩", "010-8556-8811", "210"),
    ("B002", "西单店", "北京", "西城区西单北大街131号4楼", "10:00-21:00", "丁晓", "010-6601-8812", "126"),
    ("B003", "望京店", "北京", "朝阳区广顺南大街16号1楼", "9:30-21:30", "冯岩", "010-8472-8813", "88"),
    ("G001", "天河城店", "广州", "天河区天河路208号6楼", "10:00-22:00", "梁志华", "020-8559-8821", "176"),
    ("G002", "北京路店", "广州", "越秀区北京路238号2楼", "10:00-22:30", "黄咏", "020-8333-8822", "105"),
    ("C001", "春熙路店", "成都", "锦江区春熙路中段8号2楼", "10:00-22:00", "谭小萌", "028-8665-8831", "152"),
    ("C002", "高新天府店", "成都", "高新区天府大道北段1700号1楼", "9:30-21:00", "唐毅", "028-8533-8832", "117"),
    ("H001", "湖滨银泰店", "杭州", "上城区东坡路7号3楼", "10:00-22:00", "俞佳", "0571-8700-8841", "163"),
    ("N001", "新街口店", "南京", "玄武区中山路18号4楼", "10:00-21:30", "夏晨", "025-8476-8851", "134"),
]
POST_2025 = [
    ("目的地", "首重1公斤（元）", "续重每公斤（元）", "时效", "偏远附加费（元）"),
    ("江苏", "8", "1.5", "次日达", "0"),
    ("浙江", "8", "1.5", "次日达", "0"),
    ("安徽", "9", "2", "次日达", "0"),
    ("北京", "11", "4", "2天", "0"),
    ("广东", "11", "4", "2天", "0"),
    ("四川", "13", "6", "3天", "0"),
    ("云南", "14", "8", "3-4天", "5"),
    ("内蒙古", "16", "10", "4-5天", "8"),
    ("新疆", "22", "18", "6-7天", "15"),
    ("西藏", "25", "20", "7-9天", "20"),
]
POST_2024 = [
    ("目的地", "首重1公斤（元）", "续重每公斤（元）", "时效", "偏远附加费（元）"),
    ("江苏", "7", "1", "次日达", "0"),
    ("浙江", "7", "1", "次日达", "0"),
    ("安徽", "8", "1.5", "次日达", "0"),
    ("北京", "10", "3.5", "2-3天", "0"),
    ("广东", "10", "3.5", "2-3天", "0"),
    ("四川", "12", "5", "3-4天", "0"),
    ("云南", "13", "7", "4天", "3"),
    ("内蒙古", "15", "9", "5天", "6"),
    ("新疆", "20", "16", "7-8天", "12"),
    ("西藏", "24", "19", "8-10天", "18"),
]


def make() -> None:
    _stock()
    _people()
    _timetables()
    _csv("门店信息.csv", SHOPS, "gb18030")
    _csv("快递价目表-2024.csv", POST_2024, "utf-8-sig")
    _csv("快递价目表-2025.csv", POST_2025, "utf-8-sig")


def _stock() -> None:
    """XlsxWriter keeps a formula's result beside it, as Excel does; openpyxl cannot."""
    path = FILES / "库存盘点表-2025Q2.xlsx"
    with xlsxwriter.Workbook(path) as book:
        book.set_properties({"title": "库存盘点表", "created": _CREATED})
        notes = book.add_worksheet("说明")
        lines = (
            "2025年第二季度库存盘点说明",
            "盘点基准日：2025年6月30日",
            "上海仓盘点负责人：吴磊，监盘人：赵敏",
            "成都仓盘点负责人：曾莉，监盘人：林晓燕",
            "差异率超过0.5%的物料须在7月10日前提交差异说明。",
        )
        for row, line in enumerate(lines):
            notes.write(row, 0, line)
        for name, rows in (("上海仓", SHANGHAI), ("成都仓", CHENGDU)):
            _stock_sheet(book, book.add_worksheet(name), name, rows)
    repack(path)


def _stock_sheet(book: Any, sheet: Any, name: str, rows: list[tuple[Any, ...]]) -> None:
    bold, money = book.add_format({"bold": True}), book.add_format({"num_format": "#,##0.00"})
    day = book.add_format({"num_format": "yyyy-mm-dd"})
    sheet.merge_range(0, 0, 0, 10, f"海川智能{name}库存盘点表（2025年第二季度）", bold)
    sheet.write_row(2, 0, STOCK_HEADER, bold)
    for i, (code, item, model, unit, booked, counted, price, received, shelf) in enumerate(rows, start=3):
        sheet.write_row(i, 0, [code, item, model, unit, booked, counted])
        sheet.write_formula(i, 6, f"=F{i + 1}-E{i + 1}", None, counted - booked)
        sheet.write_number(i, 7, price, money)
        sheet.write_formula(i, 8, f"=F{i + 1}*H{i + 1}", money, round(counted * price, 2))
        sheet.write_datetime(i, 9, datetime(received.year, received.month, received.day), day)
        sheet.write(i, 10, shelf)
    last = len(rows) + 3
    sheet.merge_range(last, 0, last, 7, "合计金额", bold)
    total = round(sum(round(row[5] * row[6], 2) for row in rows), 2)
    sheet.write_formula(last, 8, f"=SUM(I4:I{last})", money, total)
    sheet.set_column(0, 10, 14)


def _people() -> None:
    book = _workbook("员工通讯录")
    sheet = book.active
    sheet.title = "通讯录"
    sheet.append(["海川智能科技有限公司员工通讯录（2025年5月更新）"])
    sheet.merge_cells("A1:H1")
    sheet.append(["部门", "姓名", "岗位", "分机", "手机", "邮箱", "入职日期", "办公地点"])
    for department, name, role, extension, mobile, mail, joined, place in PEOPLE:
        sheet.append([department, name, role, extension, mobile, f"{mail}@haichuan.example", joined, place])
        sheet.cell(sheet.max_row, 7).number_format = "yyyy年m月d日"
    start = 3
    for row in range(4, len(PEOPLE) + 4):
        if row == len(PEOPLE) + 3 or PEOPLE[row - 3][0] != PEOPLE[start - 3][0]:
            sheet.merge_cells(start_row=start, end_row=row - 1, start_column=1, end_column=1)
            start = row
    services = book.create_sheet("公共电话")
    services.append(["用途", "号码", "服务时间"])
    for line in (
        ("总机", "021-5888-0100", "工作日9:00-18:00"),
        ("信息技术服务台", "分机8900", "工作日8:30-20:00"),
        ("行政报修", "分机8911", "工作日9:00-18:00"),
        ("消防监控室", "分机8119", "24小时"),
        ("昆山工厂门卫", "0512-5739-6000", "24小时"),
    ):
        services.append(line)
    _save(book, "员工通讯录.xlsx")


def _timetables() -> None:
    book = _workbook("高一年级课程表")
    book.remove(book.active)
    for name, teacher, room, rows in (
        ("高一（3）班", "刘芳", "明德楼302", CLASS_3),
        ("高一（4）班", "韩冰", "明德楼304", CLASS_4),
    ):
        sheet = book.create_sheet(name)
        sheet.append([f"江临第一中学{name}课程表（2025年春季学期）"])
        sheet.merge_cells("A1:G1")
        sheet["A1"].font = Font(bold=True)
        sheet.append([f"班主任：{teacher}　教室：{room}"])
        sheet.merge_cells("A2:G2")
        sheet.append(["时段", "节次", *DAYS])
        for i, row in enumerate(rows):
            sheet.append(["上午" if i == 0 else "下午" if i == 4 else None, *row])
        sheet.merge_cells("A4:A7")
        sheet.merge_cells("A8:A10")
        sheet["A4"].alignment = sheet["A8"].alignment = Alignment(vertical="center")
    _save(book, "高一课程表-2025春.xlsx")


def _workbook(title: str) -> Workbook:
    book = Workbook()
    book.properties.title = title
    book.properties.created = book.properties.modified = _CREATED
    return book


def _save(book: Workbook, name: str) -> None:
    for sheet in book.worksheets:
        for column in range(1, sheet.max_column + 1):
            sheet.column_dimensions[get_column_letter(column)].width = 18
    book.save(FILES / name)
    repack(FILES / name)


def _csv(name: str, rows: Sequence[tuple[str, ...]], encoding: str) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)  # ends lines in \r\n, as Excel does
    (FILES / name).write_bytes(text.getvalue().encode(encoding))
