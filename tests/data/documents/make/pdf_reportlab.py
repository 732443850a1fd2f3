"""PDFs set with ReportLab: a handbook in two columns, a quarterly report, a student handbook in a font of the viewer."""

from functools import partial
from typing import Any

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate, Paragraph, Spacer, Table, TableStyle

from .common import FILES, SANS_FONT, Rows

pdfmetrics.registerFont(TTFont("Sans", SANS_FONT, subfontIndex=0))
pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))  # not embedded: the viewer's own font

HANDBOOK = [
    ("h1", "第一章 总则"),
    ("h2", "1.1 适用范围"),
    "本手册适用于与海川智能科技有限公司（以下简称“公司”）签订劳动合同的全体员工；实习生和劳务派遣人员参照执行，双方另有约定的从其约定。",
    ("h2", "1.2 生效与解释"),
    "本手册自2025年3月1日起施行，2022年版同时废止。手册由人力资源部负责解释，修订须经职工代表大会讨论。",
    ("h1", "第二章 入职与试用"),
    ("h2", "2.1 报到材料"),
    "新员工报到当日须提交以下材料：身份证原件及复印件、学历学位证书、上一家单位的离职证明、近三个月内的体检报告、招商银行储蓄卡复印件。材料不全的，可在两周内补齐，逾期未补的暂缓办理转正。",
    ("h2", "2.2 试用期"),
    "试用期根据劳动合同期限确定，试用期工资为转正工资的90%。",
    [("劳动合同期限", "试用期"), ("不满1年", "1个月"), ("1年以上不满3年", "2个月"), ("3年以上或无固定期限", "6个月")],
    ("h2", "2.3 转正"),
    "员工应在试用期满前10个工作日通过OA提交转正申请，由直属上级和人力资源业务伙伴（HRBP）共同评估。评估不合格的，可延长试用期一次，但总长不得超过法定上限。",
    ("h1", "第三章 考勤"),
    ("h2", "3.1 工作时间"),
    "公司实行标准工时制，工作时间为周一至周五9:00至18:00，其中12:00至13:30为午休时间。研发中心实行弹性工作制，核心工作时段为10:00至16:00，每日在岗不少于7.5小时。",
    ("h2", "3.2 迟到与旷工"),
    "迟到15分钟以内的，每月豁免3次。迟到超过15分钟不满2小时的，每次扣款50元。迟到2小时以上的，按旷工半日处理。连续旷工3日或一年内累计旷工5日的，公司可解除劳动合同。",
    ("h2", "3.3 补卡"),
    "因漏打卡需要补卡的，每月不超过2次，须在次月3日前通过OA提交，由直属主管确认。",
    ("h2", "3.4 加班"),
    "加班须事先申请并经部门经理批准，未经批准的延时在岗不视为加班。补偿办法如下表。",
    [
        ("加班类型", "补偿方式", "计算标准"),
        ("工作日延时", "加班费或调休", "1.5倍工资"),
        ("休息日", "优先安排调休", "2倍工资"),
        ("法定节假日", "加班费", "3倍工资"),
    ],
    "调休须在加班之日起6个月内使用完毕。",
    ("h1", "第四章 休假"),
    ("h2", "4.1 年休假"),
    "年休假由法定年假和公司福利假两部分组成，按累计工龄计算。当年未休完的年假可结转至次年3月31日，逾期作废。",
    [
        ("累计工龄", "法定年假", "公司福利假"),
        ("满1年不满10年", "5天", "2天"),
        ("满10年不满20年", "10天", "3天"),
        ("满20年以上", "15天", "4天"),
    ],
    ("h2", "4.2 其他假期"),
    [
        ("假别", "天数", "须提供的材料"),
        ("婚假", "13天", "结婚证"),
        ("产假", "158天", "出生医学证明"),
        ("陪产假", "15天", "出生医学证明"),
        ("育儿假", "每年10天，子女满3周岁前", "户口簿"),
        ("丧假（直系亲属）", "3天", "死亡证明"),
        ("丧假（旁系亲属）", "1天", "死亡证明"),
    ],
    ("h2", "4.3 请假审批权限"),
    [
        ("请假天数", "普通员工的审批人", "经理级员工的审批人"),
        ("1天以内", "直属主管", "部门总监"),
        ("1天以上3天以内", "部门经理", "部门总监"),
        ("3天以上7天以内", "部门总监", "分管副总裁"),
        ("7天以上", "分管副总裁", "总裁"),
    ],
    ("h2", "4.4 病假"),
    "连续病假2天以上的，须提供二级及以上医院出具的诊断证明。病假期间的工资按本市最低工资标准的80%发放。",
    ("h1", "第五章 薪酬与福利"),
    ("h2", "5.1 发薪日"),
    "公司于每月10日发放上月工资，遇节假日提前至最近的工作日。工资条通过企业邮箱加密发送，员工不得互相打听薪酬。",
    ("h2", "5.2 补贴"),
    [
        ("补贴项目", "P4及以下", "P5-P6", "P7及以上"),
        ("餐补", "25元/工作日", "25元/工作日", "25元/工作日"),
        ("交通补贴", "300元/月", "500元/月", "800元/月"),
        ("通讯补贴", "50元/月", "100元/月", "200元/月"),
        ("应届生住房补贴", "1000元/月", "1500元/月", "无"),
    ],
    "应届生住房补贴自入职起发放两年。",
    ("h2", "5.3 社保与商业保险"),
    "住房公积金缴存比例为单位和个人各12%。公司另为员工投保补充医疗保险，由泰和人寿承保，门诊免赔额为每年300元，住院费用报销比例为90%。",
    ("h2", "5.4 内部推荐"),
    "员工推荐人才成功入职且满3个月的，发放推荐奖金：P6及以下岗位3000元，P7及以上岗位8000元。人力资源部员工和用人部门负责人推荐本部门岗位的，不享受奖金。",
    ("h1", "第六章 行为规范"),
    ("h2", "6.1 礼品与招待"),
    "员工收到单次价值超过200元的礼品，应在5个工作日内向合规部申报并上交登记。不得接受供应商支付的旅行、娱乐和现金。",
    ("h2", "6.2 举报渠道"),
    "员工发现违规行为可通过以下渠道举报：举报电话021-5888-0110，邮箱compliance@haichuan.example。合规部在收到举报后10个工作日内答复，并对举报人信息严格保密。",
    ("h1", "第七章 离职"),
    ("h2", "7.1 通知期"),
    "员工辞职应提前30日以书面形式通知公司；试用期内应提前3日通知。",
    ("h2", "7.2 交接与结算"),
    "离职员工应填写《离职交接单》，依次由部门、行政部、信息技术部、财务部签字。最后一个月的工资在离职手续办结后7个工作日内结清。",
    ("h2", "7.3 竞业限制"),
    "签有竞业限制协议的员工，离职后竞业限制期为12个月，公司每月按其离职前十二个月平均工资的30%支付补偿金。",
]

QUARTER = [
    ("title", "海川智能科技有限公司\n2024年第四季度财务季报"),
    ("h1", "一、主要财务指标"),
    "单位：万元（除每股收益外）。本报告未经审计。",
    [
        ("指标", "2024年第四季度", "2023年第四季度", "同比"),
        ("营业收入", "18,642", "16,105", "+15.8%"),
        ("营业成本", "11,930", "10,580", "+12.8%"),
        ("毛利率", "36.0%", "34.3%", "+1.7个百分点"),
        ("研发费用", "2,214", "1,876", "+18.0%"),
        ("净利润", "2,085", "1,722", "+21.1%"),
        ("基本每股收益（元）", "0.21", "0.17", "+23.5%"),
        ("经营活动现金流净额", "3,310", "2,645", "+25.1%"),
    ],
    ("h1", "二、分区域收入"),
    [
        ("区域", "收入（万元）", "占比"),
        ("华东", "8,203", "44.0%"),
        ("华南", "4,474", "24.0%"),
        ("西南", "2,610", "14.0%"),
        ("华北", "2,237", "12.0%"),
        ("海外", "1,118", "6.0%"),
    ],
    ("h1", "三、经营情况说明"),
    "本季度营业收入增长主要来自智能网关HC200系列放量，该系列贡献收入7,830万元。工业机器人集成业务受两个项目延期验收影响，收入同比下降4.2%，预计在2025年上半年确认。",
    "应收账款余额为9,876万元，平均账期由上季度的92天缩短至85天。公司于2024年11月15日归还银行短期借款3,000万元。",
    "董事会秘书顾明远负责信息披露事宜，投资者热线为021-5888-0168。",
    ("h1", "四、分红方案"),
    "董事会拟以总股本9,930万股为基数，每10股派发现金红利1.5元（含税），方案须经2025年5月28日召开的年度股东大会审议。",
]

STUDENT = [
    ("title", "江临大学学生手册\n学籍与成绩管理（2024级本科生适用）"),
    ("h1", "第一部分 成绩与绩点"),
    "课程考核成绩采用百分制，绩点换算关系见下表。平均学分绩点低于1.8的，给予学业警示；连续两学期受到学业警示的，应当降级试读。",
    [
        ("百分制成绩", "等级", "绩点"),
        ("90-100", "A", "4.0"),
        ("85-89", "A-", "3.7"),
        ("80-84", "B+", "3.3"),
        ("75-79", "B", "3.0"),
        ("70-74", "C+", "2.5"),
        ("60-69", "C", "1.5"),
        ("60以下", "F", "0"),
    ],
    ("h1", "第二部分 补考、重修与缓考"),
    "期末考核不及格的学生可参加一次补考，补考安排在下一学期开学第二周，补考成绩及格的一律按60分记载。补考仍不及格的必修课必须重修，重修费为每学分80元。因病不能参加考试的，应在考试前持校医院证明向学院申请缓考。",
    ("h1", "第三部分 转专业"),
    "学生入学满一年、平均学分绩点不低于3.2且无不及格课程的，可在第二学期末申请转专业，每名学生只有一次机会。定向生、艺术类和体育类学生不得转专业。申请于每年5月6日至5月12日在教务系统提交，由接收学院组织面试。",
    ("h1", "第四部分 奖学金"),
    [
        ("奖学金", "比例", "2023级金额（元/年）", "2024级金额（元/年）"),
        ("国家奖学金", "0.2%", "8,000", "10,000"),
        ("校一等奖学金", "5%", "3,000", "3,500"),
        ("校二等奖学金", "10%", "1,800", "2,000"),
        ("校三等奖学金", "15%", "800", "1,000"),
        ("学业进步奖", "3%", "500", "600"),
    ],
    "奖学金每学年评定一次，获奖名单公示5个工作日。受到记过及以上处分的学生当年不得参评。",
    ("h1", "第五部分 图书馆借阅"),
    [
        ("读者类型", "可借册数", "借期", "续借次数"),
        ("本科生", "20册", "30天", "1次"),
        ("硕士研究生", "30册", "60天", "1次"),
        ("博士研究生", "40册", "90天", "2次"),
        ("教职工", "50册", "120天", "2次"),
    ],
    "图书逾期每册每天收取滞纳金0.1元；遗失图书的，按原价的3倍赔偿。图书馆开馆时间为每天7:30至22:30，法定节假日另行通知。",
    ("h1", "第六部分 毕业与学位"),
    "本科生修满165学分并通过毕业论文答辩方可毕业。大学英语四级成绩不低于425分，是授予学士学位的条件之一。毕业生图像采集由教务处学籍科负责，联系电话027-6875-3321，办公室在行政楼204室。",
]


def make() -> None:
    _build("员工手册.pdf", HANDBOOK, "Sans", "海川智能科技有限公司 · 员工手册（2025年修订）", columns=2)
    _build("财务季报-2024Q4.pdf", QUARTER, "Sans", "海川智能 2024年第四季度财务季报", columns=1)
    _build("学生手册-学籍与成绩.pdf", STUDENT, "STSong-Light", "江临大学学生手册", columns=1)


def _build(name: str, story: list[Any], font: str, header: str, columns: int) -> None:
    width, height = A4
    margin, gap = 18 * mm, 8 * mm
    frame_width = (width - 2 * margin - (columns - 1) * gap) / columns
    frames = [
        Frame(margin + i * (frame_width + gap), 20 * mm, frame_width, height - 42 * mm, id=str(i), leftPadding=2)
        for i in range(columns)
    ]
    document = BaseDocTemplate(str(FILES / name), pagesize=A4, invariant=1, title=header, author="海川智能")
    document.addPageTemplates(
        PageTemplate(frames=frames, onPage=partial(_decorate, font=font, header=header, width=width, height=height))
    )
    document.build([flowable for part in story for flowable in _flowables(part, font, frame_width)])


def _decorate(canvas: Any, document: Any, font: str, header: str, width: float, height: float) -> None:
    canvas.saveState()
    canvas.setFont(font, 8)
    canvas.drawString(18 * mm, height - 14 * mm, header)
    canvas.drawRightString(width - 18 * mm, height - 14 * mm, "内部资料 请勿外传")
    canvas.line(18 * mm, height - 16 * mm, width - 18 * mm, height - 16 * mm)
    canvas.drawCentredString(width / 2, 11 * mm, f"第 {document.page} 页")
    canvas.restoreState()


def _flowables(part: Any, font: str, width: float) -> list[Any]:
    if isinstance(part, str):
        return [Paragraph(part, _style(font, 9.5, indent=19))]
    if isinstance(part, tuple):
        kind, text = part
        size = {"title": 17, "h1": 13, "h2": 10.5}[kind]
        return [Paragraph(text.replace("\n", "<br/>"), _style(font, size, before=size * 0.6))]
    return [_table(part, font, width), Spacer(1, 4 * mm)]


def _table(rows: Rows, font: str, width: float) -> Table:
    cells = [[Paragraph(cell, _style(font, 8.5)) for cell in row] for row in rows]
    table = Table(cells, colWidths=[width * 0.97 / len(rows[0])] * len(rows[0]), repeatRows=1)
    grid: list[Any] = [("GRID", (0, 0), (-1, -1), 0.5, colors.grey), ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke)]
    table.setStyle(TableStyle([*grid, ("VALIGN", (0, 0), (-1, -1), "MIDDLE")]))
    return table


def _style(font: str, size: float, indent: float = 0, before: float = 1) -> ParagraphStyle:
    return ParagraphStyle(
        "p",
        fontName=font,
        fontSize=size,
        leading=size * 1.55,
        wordWrap="CJK",
        firstLineIndent=indent,
        spaceBefore=before,
        spaceAfter=3,
    )
