"""Word documents made with python-docx: a contract and a manual whose tables merge cells over rows and columns."""

from datetime import UTC, datetime
from typing import Any

from docx import Document
from docx.oxml.ns import qn
from docx.shared import Pt

from .common import FILES, Rows, repack

ITEMS = [
    ("序号", "名称", "型号", "数量", "单价（元）", "金额（元）"),
    ("1", "六轴机械臂", "RH-6A", "4台", "86,000", "344,000"),
    ("2", "四轴机械臂", "RH-4S", "6台", "48,500", "291,000"),
    ("3", "视觉定位模块", "VP-20", "10套", "12,800", "128,000"),
    ("4", "安装调试服务", "—", "1项", "37,000", "37,000"),
]
PAYMENTS = [
    ("阶段", "付款条件", "比例", "金额（元）"),
    ("预付款", "合同签订后7个工作日内", "30%", "240,000"),
    ("到货款", "全部货物到厂并初验合格后10个工作日内", "50%", "400,000"),
    ("验收款", "终验合格后15个工作日内", "15%", "120,000"),
    ("质保金", "质保期满后30日内", "5%", "40,000"),
]
CHECKS = [
    ("部位", "检查项目", "标准", "周期", "责任人"),
    ("液压系统", "油位", "油标2/3以上", "每班", "操作工"),
    ("液压系统", "油温", "35～50 ℃", "每班", "操作工"),
    ("液压系统", "滤芯更换", "换新并记录", "每2000小时", "维修工"),
    ("液压系统", "液压油更换", "L-HM46抗磨液压油", "每5000小时或一年", "维修工"),
    ("合模机构", "导柱润滑", "润滑泵油量1/2以上", "每日", "操作工"),
    ("合模机构", "模板平行度", "不大于0.15 mm", "每季度", "设备工程师"),
    ("电气系统", "急停按钮", "按下即停", "每班", "操作工"),
    ("电气系统", "电柜滤网", "清洁无积尘", "每周", "维修工"),
    ("电气系统", "加热圈绝缘", "不小于1 MΩ", "每月", "电工"),
    ("料筒与螺杆", "螺杆间隙", "0.10～0.25 mm", "每年", "设备工程师"),
]
FAULTS = [
    ("代码", "现象", "可能原因", "处理方法"),
    ("E01", "油温过高", "冷却水不足", "检查冷却水阀，清洗过滤网"),
    ("E02", "射胶超时", "喷嘴堵塞", "升温后清理喷嘴"),
    ("E05", "合模不到位", "模具保护动作", "清除模面异物后复位"),
    ("E07", "料温异常", "热电偶断线", "更换K型热电偶"),
    ("E11", "润滑报警", "润滑油不足", "加注0号锂基脂"),
    ("E13", "安全门信号异常", "行程开关松动", "紧固行程开关并重新测试"),
]


def make() -> None:
    _contract()
    _manual()


def _contract() -> None:
    document = _new("设备采购合同")
    document.add_heading("设备采购合同", 0)
    for line in (
        "合同编号：HC-CG-2025-0317",
        "甲方（买方）：海川智能科技有限公司",
        "乙方（卖方）：苏州锐恒精密机械有限公司",
        "签订日期：2025年3月17日　　签订地点：上海市浦东新区",
    ):
        document.add_paragraph(line)
    document.add_heading("第一条 合同标的", 1)
    document.add_paragraph("甲方向乙方采购下列设备和服务，价格均含13%增值税、运费和保险费。")
    table = _table(document, ITEMS)
    total = table.add_row().cells
    total[0].merge(total[4]).text = "合计（大写：人民币捌拾万元整）"
    total[5].text = "800,000"
    document.add_heading("第二条 交货", 1)
    document.add_paragraph(
        "机械臂应于2025年5月20日前交付，视觉定位模块应于2025年6月10日前交付。交货地点为海川智能昆山工厂3号车间，卸货由甲方负责。"
    )
    document.add_heading("第三条 付款", 1)
    document.add_paragraph("合同价款分四期支付，乙方应在每期付款前开具等额增值税专用发票。")
    _table(document, PAYMENTS)
    document.add_paragraph(
        "乙方收款账户：户名苏州锐恒精密机械有限公司，开户行中国工商银行苏州工业园区支行，账号1102 0219 0900 0317 558。"
    )
    document.add_heading("第四条 质量与质保", 1)
    document.add_paragraph(
        "机械臂质保期为终验合格之日起24个月，视觉定位模块质保期为12个月。质保期内发生故障的，乙方应在接到通知后4小时内响应，48小时内派人到达现场。"
    )
    document.add_heading("第五条 违约责任", 1)
    document.add_paragraph(
        "乙方逾期交货的，每逾期一日按逾期货物价款的0.5‰支付违约金，累计不超过合同总额的5%；逾期超过30日的，甲方有权解除合同。甲方逾期付款的，每逾期一日按应付款项的0.3‰支付违约金。"
    )
    document.add_heading("第六条 争议解决", 1)
    document.add_paragraph("因本合同产生的争议，双方应协商解决；协商不成的，提交上海仲裁委员会仲裁。")
    document.add_heading("第七条 联系人", 1)
    _table(
        document,
        [
            ("", "姓名", "职务", "电话"),
            ("甲方联系人", "周雯", "采购经理", "021-5888-0123"),
            ("乙方联系人", "何志强", "销售总监", "0512-6288-7741"),
        ],
    )
    _save(document, "采购合同-HC-CG-2025-0317.docx")


def _manual() -> None:
    document = _new("ZS-280注塑机维护手册")
    document.add_heading("ZS-280注塑机维护手册", 0)
    document.add_heading("1 概述", 1)
    document.add_heading("1.1 适用机型", 2)
    document.add_paragraph("本手册适用于昆山工厂ZS-280型卧式注塑机，设备编号ZS280-01至ZS280-06。")
    document.add_heading("1.2 主要参数", 2)
    _table(
        document,
        [
            ("参数", "数值"),
            ("锁模力", "2800 kN"),
            ("最大射胶量", "640 g"),
            ("料筒温度上限", "380 ℃"),
            ("液压油容量", "320 L"),
            ("系统压力", "16 MPa"),
        ],
    )
    document.add_heading("2 点检与保养", 1)
    document.add_heading("2.1 点检表", 2)
    document.add_paragraph("点检结果记录在设备旁的点检卡上，由班组长每日签字。")
    _table(document, CHECKS, merge_first=True)
    document.add_heading("2.2 更换液压油", 2)
    document.add_paragraph("更换液压油按以下步骤进行：")
    for step in (
        "停机并切断电源，挂“禁止合闸”牌",
        "待油温降到40 ℃以下，打开放油阀排净旧油",
        "拆洗吸油滤网，更换回油滤芯",
        "用煤油清洗油箱并擦干",
        "加入新油至油标上限，点动油泵排气3分钟",
    ):
        document.add_paragraph(step, style="List Number")
    document.add_heading("3 故障处理", 1)
    document.add_heading("3.1 故障代码", 2)
    _table(document, FAULTS)
    document.add_heading("3.2 报修", 2)
    document.add_paragraph(
        "操作工无法排除故障的，应在10分钟内通过内线6119通知设备科值班员。停机超过4小时的，由设备科长孙国栋上报生产总监。"
    )
    document.add_heading("4 安全", 1)
    document.add_paragraph(
        "维修前必须上锁挂牌，钥匙由维修负责人保管。进入模具区域作业须两人在场。料筒温度未降到60 ℃以下，不得拆卸喷嘴。"
    )
    _save(document, "ZS-280注塑机维护手册.docx")


def _new(title: str) -> Any:
    document = Document()
    document.core_properties.title = title
    document.core_properties.created = document.core_properties.modified = datetime(2025, 5, 6, tzinfo=UTC)
    style = document.styles["Normal"]
    style.font.name, style.font.size = "宋体", Pt(10.5)
    style.element.rPr.rFonts.set(qn("w:eastAsia"), "宋体")
    document.sections[0].header.paragraphs[0].text = f"{title}　　版本2025"
    document.sections[0].footer.paragraphs[0].text = "海川智能科技有限公司　机密"
    return document


def _table(document: Any, rows: Rows, merge_first: bool = False) -> Any:
    table = document.add_table(rows=0, cols=len(rows[0]), style="Table Grid")
    for row in rows:
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    if merge_first:
        _merge_equal(table, [row[0] for row in rows])
    return table


def _merge_equal(table: Any, names: list[str]) -> None:
    """Merge the cells of the first column that say the same, as people do."""
    start = 1
    for i in range(2, len(names) + 1):
        if i == len(names) or names[i] != names[start]:
            if i - start > 1:
                for row in range(start + 1, i):
                    table.cell(row, 0).text = ""
                table.cell(start, 0).merge(table.cell(i - 1, 0)).text = names[start]
            start = i


def _save(document: Any, name: str) -> None:
    document.save(str(FILES / name))
    repack(FILES / name)
