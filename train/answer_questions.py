"""Questions with their answers in tables, records and sentences, made up for training the answer scorer.

Each call to `make_cases` gives other figures, names and wordings. Every table comes in two versions (years, places,
grades) whose values differ, so that a scorer that overlooks the year or the row is wrong half of the time. A quarter of
the questions ask for a row, a version or a column that is not there.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Document:
    """A file's passages: (title, text, is a row)."""

    name: str
    passages: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A question and the texts that answer it: `name: value` of a cell, or a sentence; none if nothing answers."""

    question: str
    answers: tuple[str, ...]
    document: str = ""


@dataclass(frozen=True)
class Column:
    """A column, how its values are made, and how people ask for them; `{key}` is the row."""

    name: str
    make: Callable[[random.Random], str]
    asks: tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """A kind of table: its titles (one for each version), the name and values of its key, its columns."""

    titles: tuple[str, ...]
    versions: tuple[str, ...]
    key: str
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    said: Callable[[random.Random, str], str] = lambda rng, key: key  # how a question names a row


SURNAMES = (
    "赵钱孙李周吴郑王冯陈蒋沈韩杨朱秦许何吕张孔曹严金魏陶姜谢邹苏潘葛范彭鲁韦马方任袁柳史唐薛雷贺汤罗齐郝安常于傅康余"
)
GIVEN = "伟芳娜敏静丽强磊洋艳勇军杰娟涛超明霞秀平刚桂英华玉兰建国文斌宇浩凯晨欣雨婷佳琪思远子轩梓一诺"
CITIES = (
    "天津",
    "武汉",
    "重庆",
    "西安",
    "长沙",
    "郑州",
    "青岛",
    "大连",
    "厦门",
    "福州",
    "合肥",
    "济南",
    "昆明",
    "南昌",
    "宁波",
    "沈阳",
)
PROVINCES = (
    "山东",
    "河南",
    "河北",
    "湖北",
    "湖南",
    "福建",
    "江西",
    "陕西",
    "辽宁",
    "吉林",
    "广西",
    "贵州",
    "甘肃",
    "青海",
    "海南",
    "宁夏",
)


def money(low: int, high: int, unit: str = "元", step: int = 10) -> Callable[[random.Random], str]:
    def make(rng: random.Random) -> str:
        value = rng.randrange(low, high, step)
        return f"{value:,}{unit}" if rng.random() < 0.3 else f"{value}{unit}"

    return make


def number(low: int, high: int, unit: str = "", decimals: int = 0) -> Callable[[random.Random], str]:
    def make(rng: random.Random) -> str:
        value = rng.uniform(low, high)
        return f"{value:.{decimals}f}{unit}" if decimals else f"{int(value)}{unit}"

    return make


def choice(*values: str) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(values)


def person(rng: random.Random) -> str:
    return rng.choice(SURNAMES) + "".join(rng.sample(GIVEN, rng.choice((1, 2))))


def day(rng: random.Random) -> str:
    year, month, date = rng.choice((2023, 2024, 2025)), rng.randint(1, 12), rng.randint(1, 28)
    form = rng.choice(("{}年{}月{}日", "{}-{:02d}-{:02d}", "{}/{}/{}"))
    return form.format(year, month, date)


def phone(rng: random.Random) -> str:
    return rng.choice(
        (
            f"0{rng.randint(10, 999)}-{rng.randint(2000, 8999)}-{rng.randint(1000, 9999)}",
            f"1{rng.randint(3000000000, 9999999999)}",
        )
    )


def hours(rng: random.Random) -> str:
    return f"{rng.randint(7, 10)}:{rng.choice(('00', '30'))}-{rng.randint(16, 22)}:{rng.choice(('00', '30'))}"


def code(rng: random.Random) -> str:
    return f"{rng.choice('ABCDKMNX')}{rng.choice('ABCDKMNX')}-{rng.randint(100, 9999)}"


def place(rng: random.Random) -> str:
    return rng.choice(
        (
            f"{rng.choice('东西南北')}区{rng.randint(1, 9)}号楼{rng.randint(1, 6)}层",
            f"{rng.choice(CITIES)}市人民路{rng.randint(1, 300)}号",
            f"{rng.choice('ABCD')}座{rng.randint(101, 1220)}室",
        )
    )


ASK_MONEY = ("{key}{name}是多少", "{key}的{name}多少钱", "{key}{name}要多少", "{version}{key}{name}多少元")
ASK_PERSON = ("{key}的{name}是谁", "{key}是谁负责的", "{key}找谁", "谁是{key}的{name}")
ASK_ANY = (
    "{key}的{name}是什么",
    "{key}{name}",
    "{version}里{key}的{name}是多少",
    "请问{key}的{name}",
    "{key}{name}是多少？",
)
ASK_TIME = ("{key}几点开门", "{key}几点关门", "{key}的{name}", "{key}营业到几点")
ASK_DATE = ("{key}是哪天{verb}的", "{key}什么时候{verb}", "{key}的{name}是哪天")
ASK_LONG = ("{key}的{name}是多久", "{key}要多长时间", "{key}{name}多久")
ASK_PLACE = ("{key}在哪里", "{key}的{name}在哪", "{key}在几楼", "怎么找到{key}")


def asks(*more: str, base: Sequence[str] = ASK_ANY) -> tuple[str, ...]:
    return (*base, *more, *more)


def grade(rng: random.Random, key: str) -> str:
    """One grade out of a range of grades: L3 of L3-L4."""
    if "-" in key and key[0].isalpha():
        low, high = (int(part.strip("LMT")) for part in key.split("-"))
        return f"{key[0]}{rng.randint(low, high)}"
    return key


def years(rng: random.Random, key: str) -> str:
    """A number of years within 满3年不满5年."""
    low = {"不满3年": 2, "满3年不满8年": 5, "满8年不满15年": 11, "满15年以上": 17}[key]
    return f"工龄{low}年" if rng.random() < 0.5 else f"干了{low}年"


def amount(rng: random.Random, key: str) -> str:
    low, high = {"2,000元以下": (100, 1900), "2,000元至10,000元": (2500, 9500), "10,000元以上": (11000, 60000)}[key]
    return f"{rng.randrange(low, high, 100)}{rng.choice(('元', '块', '块钱'))}的采购"


def points(rng: random.Random, key: str) -> str:
    low, high = (int(part) for part in key.split("-"))
    return f"{rng.randint(low, high)}分"


SCHEMAS = (
    Schema(
        ("培训住宿标准", "外勤补贴标准"),
        ("2022年版", "2023年版"),
        "职级",
        ("L1-L2", "L3-L4", "L5-L6", "总经理级"),
        (
            Column("直辖市", money(300, 1500, ""), ("{version}{key}在直辖市住一晚能报多少", "{key}去直辖市，{version}标准是多少")),
            Column("地级市", money(200, 900, ""), ("{version}{key}在地级市住一晚最多多少钱", "{version}{key}地级市标准")),
            Column("县城", money(100, 500, ""), ("{version}{key}到县城能报多少", "{version}里{key}县城的标准")),
            Column("火车席别", choice("硬卧", "软卧", "动车二等座", "动车一等座"), ("{version}{key}能坐什么席别", "{key}坐火车坐什么")),
        ),
        grade,
    ),
    Schema(
        ("疗养假天数", "工龄津贴"),
        ("2021年", "2025年"),
        "工龄",
        ("不满3年", "满3年不满8年", "满8年不满15年", "满15年以上"),
        (
            Column("疗养假", number(3, 30, "天"), ("{key}有几天疗养假", "{key}疗养假能休多少天")),
            Column("工龄津贴", money(50, 900, "元/月"), ("{key}每月工龄津贴多少", "{key}能拿多少工龄津贴")),
        ),
        years,
    ),
    Schema(
        ("采购审批权限",),
        ("总公司", "分公司"),
        "采购金额",
        ("2,000元以下", "2,000元至10,000元", "10,000元以上"),
        (
            Column("审批人", choice("采购主管", "财务经理", "副总经理", "总经理", "采购委员会"), ("{version}{key}要谁批", "{key}{version}找谁审批")),
            Column("办结时限", number(1, 9, "个工作日"), ("{version}{key}多久能批完", "{key}几天能办好")),
        ),
        amount,
    ),
    Schema(
        ("等级考试评定",),
        ("笔试", "机试"),
        "分数",
        ("90-100", "80-89", "70-79", "60-69"),
        (
            Column("等级", choice("优秀", "良好", "中等", "合格"), ("{version}考了{key}是什么等级", "{version}{key}算什么")),
            Column("奖励学分", number(1, 9, "", 1), ("{version}{key}给几个学分", "{version}{key}奖励学分多少")),
        ),
        points,
    ),
    Schema(
        ("分店一览",),
        ("华东区", "华中区"),
        "门店",
        tuple(f"{city}{name}店" for city, name in zip(CITIES, ("万达", "吾悦", "中山路", "解放路", "人民广场", "火车站", "大学城", "高新", "滨江", "天街", "步行街", "软件园", "会展", "古城", "东湖", "新城"), strict=True)),
        (
            Column("营业时间", hours, asks("{key}几点开门", "{key}几点关门", "{key}营业到几点", base=())),
            Column("店长", person, asks("{key}的店长是谁", "{key}店长叫什么", base=())),
            Column("联系电话", phone, asks("{key}电话多少", "{key}的联系电话", base=())),
            Column("地址", place, asks("{key}在哪里", "{key}的地址", base=())),
            Column("面积", number(60, 900, "平方米"), asks("{key}有多大", "{key}面积多少", base=())),
        ),
    ),
    Schema(
        ("职工名册",),
        ("本部", "二厂"),
        "姓名",
        tuple(person(random.Random(seed)) for seed in range(40)),
        (
            Column("工号", code, asks("{key}的工号", "{key}工号多少", base=())),
            Column("部门", choice("质检科", "仓储科", "总务科", "工艺科", "安环科"), ("{key}是哪个部门的", "{key}在哪个部门")),
            Column("职务", choice("班长", "科员", "技术员", "副科长", "调度员"), ("{key}是什么职务", "{key}做什么的")),
            Column("分机", number(2000, 6999), asks("{key}的分机", "{key}分机号多少", base=())),
            Column("手机", phone, asks("{key}手机号", "{key}的手机是多少", base=())),
            Column("入厂日期", day, asks("{key}哪天进厂的", "{key}什么时候入厂的", base=())),
        ),
    ),
    Schema(
        ("物资台账",),
        ("一号库", "二号库"),
        "品名",
        ("轴承", "皮带", "润滑脂", "密封圈", "电磁阀", "接近开关", "继电器", "铜排", "绝缘胶带", "温控器", "防护手套", "安全帽"),
        (
            Column("规格", code, asks("{version}{key}的规格", "{version}{key}是什么型号", base=())),
            Column("结存数量", number(3, 4000), asks("{version}{key}还有多少", "{version}{key}结存多少个", base=())),
            Column("单价（元）", money(3, 900, ""), asks("{version}{key}单价多少钱", "{version}{key}多少钱一个", base=())),
            Column("货架", place, asks("{version}{key}放在哪个货架", "{version}{key}放在哪", base=())),
            Column("保管员", person, asks("{version}{key}谁保管", "{version}{key}的保管员是谁", base=())),
            Column("入账日期", day, asks("{version}{key}哪天入账的", "{version}{key}最近什么时候入账", base=())),
        ),
    ),
    Schema(
        ("办公用品领用表",),
        ("三楼库房", "五楼库房"),
        "物品",
        ("红色签字笔", "黑色签字笔", "蓝色签字笔", "A4复印纸", "A3复印纸", "大号文件夹", "小号文件夹", "无线鼠标", "有线鼠标", "镀锌螺栓", "不锈钢螺栓", "五号电池", "七号电池"),
        (
            Column("库存数量", number(3, 900), ("{version}{key}还有多少", "{version}{key}剩多少个", "{version}{key}库存多少")),
            Column("单位", choice("支", "包", "个", "盒"), ("{version}{key}按什么单位领", "{version}{key}的单位")),
            Column("单价（元）", money(1, 90, ""), ("{version}{key}多少钱", "{version}{key}单价")),
            Column("领用人", person, ("{version}{key}谁领的", "{version}谁领了{key}")),
        ),
    ),
    Schema(
        ("运费表",),
        ("2022年", "2023年"),
        "到达地",
        PROVINCES,
        (
            Column("起步价（元）", money(6, 40, "", 1), ("{version}发{key}起步价多少", "{version}到{key}起步多少钱")),
            Column("续件价（元）", money(1, 20, "", 1), ("{version}{key}续件价多少", "{version}发{key}续件多少钱")),
            Column("运输时间", number(1, 9, "天"), ("{version}发{key}几天到", "{version}寄到{key}要多久")),
        ),
    ),
    Schema(
        ("空压机型号参数",),
        ("KY标准型", "KY高压型"),
        "参数",
        ("排气量", "排气压力", "电机功率", "噪声", "冷却方式", "外形尺寸", "整机重量", "润滑油量", "保修期", "出厂编号"),
        (
            Column("KY15", number(5, 300, " kW", 1), ("KY15的{key}是多少", "KY15{key}多大", "KY15型{key}")),
            Column("KY22", number(5, 300, " kW", 1), ("KY22的{key}是多少", "KY22{key}多大", "KY22型{key}")),
            Column("KY37Pro", number(5, 300, " kW", 1), ("KY37Pro的{key}是多少", "KY37Pro{key}多大")),
        ),
    ),
    Schema(
        ("报警代码",),
        ("空压机", "干燥机"),
        "代码",
        tuple(f"A{n:02d}" for n in range(1, 20)),
        (
            Column("含义", choice("排气温度高", "电机过载", "相序错误", "压力传感器断线", "油位过低", "滤芯堵塞", "变频器通信中断"), ("{version}报{key}是什么意思", "{version}{key}是什么故障")),
            Column("处理", choice("停机散热后重启", "检查三相电流", "调换任意两相", "更换传感器", "补充润滑油", "更换滤芯", "检查通信线"), ("{version}显示{key}怎么办", "{version}报{key}怎么处理")),
        ),
    ),
    Schema(
        ("保养计划",),
        ("车床", "铣床"),
        "保养项目",
        ("导轨加油", "主轴检查", "皮带张紧", "冷却液更换", "丝杠清洁", "电柜除尘", "地脚螺栓紧固", "急停测试"),
        (
            Column("周期", choice("每班", "每日", "每周", "每月", "每季度", "每半年", "每500小时"), ("{version}{key}多久做一次", "{version}的{key}多长时间一次")),
            Column("标准", choice("油膜均匀", "跳动不大于0.02 mm", "下垂10～15 mm", "pH 8.5～9.5", "无铁屑", "无积尘", "扭矩80 N·m"), ("{version}{key}有什么要求", "{version}{key}要达到什么标准", "{version}{key}的标准")),
            Column("责任人", choice("操作者", "机修工", "电工", "工段长", "润滑工"), ("{version}{key}由谁做", "{version}{key}归谁负责")),
        ),
    ),
    Schema(
        ("门诊安排",),
        ("东院", "西院"),
        "科室",
        ("骨科", "外科", "耳鼻喉科", "神经内科", "妇科", "泌尿外科", "心内科", "消化科", "康复科", "肿瘤科"),
        (
            Column("周一至周五", hours, ("{version}{key}平时几点开门", "{version}{key}工作日几点到几点")),
            Column("周日", choice("停诊", "8:00-12:00", "9:00-11:30", "8:30-16:00"), ("{version}{key}周日看不看", "{version}{key}星期天几点开诊")),
            Column("位置", place, ("{version}{key}在几楼", "{version}{key}在哪里")),
            Column("挂号费", money(5, 200, "元", 5), ("{version}{key}挂号多少钱", "{version}挂{key}的号要多少钱")),
        ),
    ),
    Schema(
        ("收费项目表",),
        ("阳光小区", "翠湖小区"),
        "项目",
        ("电梯费", "垃圾清运费", "公共照明费", "车位管理费", "绿化养护费", "门禁卡工本费", "宽带接入费"),
        (
            Column("标准", money(1, 500, "元", 1), ("{version}{key}多少钱", "{version}的{key}怎么收", "{version}{key}收多少")),
            Column("收取方式", choice("按月", "按季度", "按年", "一次性", "随房租"), ("{version}{key}怎么交", "{version}{key}是按月还是按年")),
        ),
    ),
    Schema(
        ("经营指标（万元）",),
        ("2022年第三季度", "2023年第三季度"),
        "指标",
        ("主营收入", "管理费用", "利润总额", "资产总额", "存货余额", "销售费用", "纳税总额", "订单金额"),
        (
            Column("本期", money(800, 90000, ""), ("{version}{key}是多少", "{version}的{key}有多少万", "{version}{key}")),
            Column("上年同期", money(800, 90000, ""), ("{version}{key}的上年同期数", "{version}{key}上年同期是多少")),
            Column("增幅", number(-20, 60, "%", 1), ("{version}{key}增长了多少", "{version}{key}增幅百分之几")),
        ),
    ),
    Schema(
        ("活动日程",),
        ("春季班", "秋季班"),
        "课程",
        ("安全教育", "质量管理", "沟通技巧", "办公软件", "财务基础", "急救知识", "消防演练", "精益生产"),
        (
            Column("讲师", person, ("{version}{key}谁讲", "{version}的{key}是谁上的", "{version}{key}讲师")),
            Column("时间", lambda rng: f"{rng.randint(1, 12)}月{rng.randint(1, 28)}日 {hours(rng)}", ("{version}{key}是哪天", "{version}{key}什么时候上", "{version}{key}几点开始")),
            Column("教室", place, ("{version}{key}在哪上", "{version}{key}在哪个教室")),
        ),
    ),
    Schema(
        ("课表",),
        ("初二（1）班", "初二（6）班"),
        "节次",
        tuple(f"第{n}节" for n in range(1, 8)),
        tuple(
            Column(f"星期{d}", choice("语文", "数学", "英语", "物理", "历史", "地理", "生物", "体育", "音乐", "美术", "道法", "自习"), (f"{{version}}星期{d}{{key}}是什么课", f"{{version}}周{d}{{key}}上什么", f"周{d}{{version}}的{{key}}"))
            for d in "一二三四五"
        ),
    ),
    Schema(
        ("套餐价目",),
        ("标准店", "会员店"),
        "套餐",
        ("单人套餐", "双人套餐", "家庭套餐", "商务套餐", "儿童套餐", "团建套餐"),
        (
            Column("工作日价", money(30, 900, "元"), ("{version}{key}工作日多少钱", "{version}{key}平时什么价")),
            Column("周末价", money(30, 900, "元"), ("{version}{key}周末多少钱", "{version}周末吃{key}多少钱")),
            Column("菜品数", number(3, 20, "道"), ("{version}{key}有几道菜", "{version}{key}几个菜")),
        ),
    ),
    Schema(
        ("标志灯含义",),
        ("配电柜", "充电桩"),
        "标志灯",
        ("运行灯 绿色常亮", "运行灯 绿色闪烁", "故障灯 红色常亮", "故障灯 红色闪烁", "通信灯 蓝色闪烁", "通信灯 熄灭", "电源灯 白色常亮"),
        (
            Column("说明", choice("正在充电", "待机", "过流保护", "与后台断开", "绝缘异常", "自检中", "已锁定"), ("{version}{key}是什么意思", "{version}的{key}代表什么")),
            Column("对策", choice("等待完成", "断电重启", "联系维保单位", "检查网线", "复位漏保"), ("{version}{key}怎么办", "{version}{key}要怎么处理")),
        ),
    ),
    Schema(
        ("乘车与携带规定",),
        ("地铁", "轮渡"),
        "人员",
        ("普通乘客", "学生", "军人", "残疾人", "导游", "急救人员"),
        (
            Column("折叠自行车", choice("可以携带", "不得携带", "须购行李票", "工作日早晚高峰不可"), ("{version}{key}能带折叠自行车吗", "{key}{version}可以带自行车吗")),
            Column("宠物", choice("禁止", "仅限导盲犬", "须装笼", "可以携带"), ("{version}{key}能带宠物吗", "{version}{key}带宠物行不行")),
            Column("票价优惠", choice("无", "半价", "免费", "九折", "2元"), ("{version}{key}票价有什么优惠", "{version}{key}打几折")),
            Column("注意事项", choice("须出示证件", "提前10分钟候车", "走专用通道", "须有人陪同"), ("{version}{key}有什么要求", "{version}{key}要注意什么")),
        ),
    ),
    Schema(
        ("配方用量",),
        ("蛋糕", "面包"),
        "原料",
        ("低筋面粉", "黄油", "细砂糖", "鸡蛋", "牛奶", "泡打粉", "可可粉", "淡奶油"),
        (Column("用量", number(2, 900, "克"), ("做{version}要放多少{key}", "{version}里{key}放几克", "{version}{key}用量")),),
    ),
    Schema(
        ("付款计划",),
        ("设备合同", "工程合同"),
        "阶段",
        ("首付款", "进度款", "结算款", "尾款"),
        (
            Column("比例", number(5, 60, "%"), ("{version}{key}付百分之几", "{version}{key}比例多少")),
            Column("付款条件", choice("签约后10日内", "货到现场后15日内", "安装完毕后7个工作日内", "质保期满后20日内"), ("{version}{key}什么时候付", "{version}的{key}何时支付")),
            Column("金额（元）", money(9000, 900000, ""), ("{version}{key}多少钱", "{version}{key}金额")),
        ),
    ),
)  # fmt: skip

REVERSED = {  # a row is named by one of its values: (column, how its row is asked for, column that answers)
    "职工名册": (
        ("职务", "{version}{dept}的{value}是谁", "姓名"),
        ("分机", "分机{value}是谁的", "姓名"),
        ("工号", "{value}是谁的工号", "姓名"),
    ),
    "物资台账": (("规格", "{version}{value}是什么东西", "品名"), ("货架", "{version}{value}放的是什么", "品名")),
    "分店一览": (("店长", "{value}是哪家店的店长", "门店"), ("联系电话", "{value}是哪家店的电话", "门店")),
}
# Forms: a file about one thing, with a field in each line.
FORMS = (
    ("设备档案卡", "设备名称", ("数控冲床", "喷涂机器人", "激光打标机", "高低温试验箱", "行车"), {
        "出厂编号": (code, ("出厂编号是多少", "编号多少")), "制造商": (choice("宏达机床厂", "远航自动化有限公司", "天工仪器厂"), ("是哪家生产的", "制造商是谁")),
        "启用日期": (day, ("哪天启用的", "什么时候开始用的")), "原值": (money(9000, 900000), ("原值多少", "花了多少钱买的")), "使用年限": (number(3, 20, "年"), ("能用多少年", "使用年限多久")),
        "存放地点": (place, ("放在哪里", "存放在哪")), "负责人": (person, ("谁负责", "负责人是谁"))}),
    ("项目立项书", "项目名称", ("智慧食堂项目", "雨污分流改造", "档案数字化项目", "屋顶光伏项目"), {
        "立项编号": (code, ("立项编号", "编号是多少")), "项目经理": (person, ("的项目经理是谁", "谁牵头")), "总投资": (money(90000, 9000000), ("总投资多少", "要投多少钱")),
        "计划完工": (day, ("计划哪天完工", "什么时候完工")), "建设地点": (place, ("建在哪里", "建设地点")), "保修期": (number(6, 60, "个月"), ("保修多久", "保修期多长"))}),
    ("房屋租赁合同", "租赁标的", ("城东仓库", "临街商铺", "单身公寓"), {
        "出租方": (person, ("的出租方是谁", "是租谁的")), "月租金": (money(900, 90000), ("月租多少钱", "一个月租金多少")), "押金": (money(900, 90000), ("押金多少", "要交多少押金")),
        "起租日期": (day, ("哪天起租", "从什么时候开始租")), "租期": (number(1, 9, "年"), ("租期多久", "租几年")), "面积": (number(20, 900, "平方米"), ("面积多大", "有多少平"))}),
)  # fmt: skip
OPENINGS = ("", "", "", "", "请问", "麻烦问下", "想问一下", "帮我查一下", "问下")
CLOSINGS = ("", "", "", "？", "?", "呀", "来着", "啊？", "呢")
# Sentences around a table that speak of its subject and answer nothing.
GROUPS = {
    "直辖市": "北京、上海、天津、重庆",
    "地级市": "苏州、无锡、温州、珠海、烟台",
    "县城": "昆山、义乌、晋江、长兴",
}
AROUND = (
    "{title}由主管部门每年核定一次，经批准后公布。",
    "申请{title}相关事项，应至少提前{n}个工作日提交申请单，写明事由。",
    "{title}按{key}执行，具体见下表。",
    "未经批准超出{title}的，由个人承担，并在{n}日内补办手续。",
    "本表所列{columns}仅供内部使用，不得外传。",
    "对{title}有疑问的，可在{n}日内书面提出。",
    "{version}{title}经第{n}次办公会讨论通过。",
)

# (sentence, questions): {n} a number, {d} a day, {p} a person, {t} a phone; {v} the version of the file.
SENTENCES = (
    ("员工宿舍每月收取管理费{n}元，水电费按表另计。", ("宿舍一个月管理费多少", "住宿舍要交多少钱")),
    ("工作服每{n}个月发放一套，离职时须交回。", ("工作服多久发一次", "多长时间发一套工作服")),
    ("借用会议室须提前{n}个工作日在系统登记，超时未登记的不予安排。", ("会议室要提前几天订", "借会议室提前多久登记")),
    ("图书借期为{n}天，逾期每天收取0.2元。", ("书能借几天", "借书期限多长")),
    ("访客应在门卫处登记，由接待人陪同进入厂区，不得单独停留。", ("客人来厂里怎么进", "访客可以自己在厂里走吗")),
    ("未满{n}周岁的儿童须由监护人陪同，方可进入泳池。", ("小孩能自己去泳池吗", "多大的孩子要大人陪")),
    ("会员卡自办理之日起{n}个月内有效，不可转让他人使用。", ("会员卡有效期多久", "会员卡能转给别人吗")),
    ("本规定自{d}起施行，原规定同时废止。", ("规定什么时候开始实行", "这个规定从哪天起执行", "{v}规定何时生效")),
    ("安全生产第一责任人为{p}，联系电话{t}。", ("安全第一责任人是谁", "安全生产谁负责")),
    ("设备报修请拨打{t}，值班人员{n}分钟内到场。", ("设备坏了打什么电话", "报修电话多少", "报修后多久来人")),
    ("押金在退租验房后{n}个工作日内原路退还。", ("押金几天退", "退租后押金多久能拿到")),
    ("学员缺课超过{n}次的，取消结业资格。", ("缺几次课就不能结业", "旷课太多会怎样")),
    ("商品售出后{n}日内出现质量问题的，可以换货，人为损坏的除外。", ("多少天内可以换货", "自己摔坏的能换吗")),
    ("快递柜取件超时{n}小时后，每12小时收费1元。", ("快递柜放多久收费", "快递柜超时怎么收费")),
    ("仓库内严禁吸烟和使用明火，违者罚款{n}元。", ("仓库里能抽烟吗", "在仓库吸烟罚多少钱")),
    ("夜班津贴为每班{n}元，与当月工资一并发放。", ("上夜班有多少津贴", "夜班一次补多少")),
    ("防疫物资由总务科{p}统一保管，领用须登记。", ("口罩找谁领", "防疫物资是谁保管的")),
    ("年度总结大会定于{d}在礼堂召开，全体人员参加。", ("总结大会哪天开", "年会什么时候")),
    ("系统维护时间为每周三22:00至次日2:00，期间无法登录。", ("系统什么时候维护", "周三晚上几点开始不能登录")),
    ("忘记登录口令时，点击首页“找回口令”，输入工号和邮箱验证码后重新设置。", ("口令忘了怎么办", "怎么找回登录口令")),
    ("退会员须携带身份证、会员卡和缴费凭证到前台办理。", ("退会员要带什么", "办退会需要哪些材料")),
    ("报名材料包括报名表、两寸照片、学历复印件和无犯罪记录证明。", ("报名要交哪些材料", "报名需要准备什么")),
    ("残障人士和七十岁以上老人凭证件免费入园。", ("老人门票要钱吗", "残疾人进公园免费吗")),
    ("宠物不得进入餐厅和室内场馆，导盲犬除外。", ("能带狗进餐厅吗", "导盲犬可以进吗")),
    ("项目验收由甲方{p}组织，乙方配合提供资料。", ("谁组织验收", "项目验收归谁管")),
    ("合同履行中发生争议的，由甲方所在地人民法院管辖。", ("合同有纠纷去哪打官司", "争议怎么解决")),
    ("产品保修期为{n}个月，自开机激活之日起计算。", ("产品保修多久", "保修期从什么时候算")),
    ("电池充满约需{n}小时，连续使用时间约{m}小时。", ("电池充满要多久", "充电要几个小时")),
    ("管道最大长度不得超过{n}米，弯头不超过4个。", ("管子最长能多长", "弯头最多几个")),
    ("室内机应距地面{n}厘米以上，四周不得遮挡。", ("室内机离地要多高", "内机旁边能放东西吗")),
    ("一次性缴清全年费用的，给予{n}%的优惠。", ("一次交清打几折", "全年一起交优惠多少")),
    ("首次使用前请用清水冲洗滤芯{n}分钟。", ("滤芯第一次用要冲多久", "新滤芯怎么处理")),
    ("值班经理{p}在{d}的例会上通报了事故原因。", ("谁通报了事故原因", "哪天通报的事故")),
    ("客户投诉应在{n}小时内答复，重大投诉报总经理。", ("客户投诉多久要回复", "投诉几小时内答复")),
    ("培训费由公司承担，服务期不满{n}年离职的，按比例返还。", ("培训费谁出", "培训后要干满几年")),
    ("停车证仅限本人车辆使用，遗失补办工本费{n}元。", ("停车证丢了补办多少钱", "停车证能给别的车用吗")),
    ("第三方检测报告应在到货前{n}日寄达，未寄达的不予收货。", ("检测报告提前多久寄", "没有检测报告能收货吗")),
    ("实验室废液按酸、碱、有机三类分桶存放，每周五由专人回收。", ("废液怎么放", "废液什么时候回收")),
    ("录用通知发出后{n}日内未回复的，视为放弃。", ("收到录用通知几天内要回复", "不回复录用通知会怎样")),
    ("食堂供应午餐11:20至13:00，晚餐17:10至18:30。", ("午饭几点到几点", "食堂晚餐几点开始")),
    ("新车首次保养应在行驶{n}00公里或购车6个月内进行，以先到者为准。", ("新车多少公里做首保", "首保什么时候做")),
    ("代理商的返点按季度结算，季度结束后{n}日内支付。", ("返点多久结一次", "代理返点什么时候给")),
    ("婴儿车和轮椅可在服务台免费借用，需押身份证。", ("哪里能借婴儿车", "借轮椅要钱吗", "借轮椅押什么")),
    ("电子票可在开场前{n}小时退改，过时不予办理。", ("电影票能退吗", "电子票最晚什么时候退")),
    ("入住时间为14:00以后，退房时间为次日12:00以前。", ("几点能入住", "最晚几点退房", "几点办退房")),
    ("早餐供应时间为6:30至9:30，地点在二层西餐厅。", ("早餐几点结束", "早饭在哪吃", "几点有早餐")),
    ("团队人数满{n}人的，免一名领队门票。", ("多少人可以免领队的票", "团体票有优惠吗")),
    ("首次申领驾驶证后的{n}个月为实习期。", ("驾照实习期多长", "刚拿证实习多久")),
    ("孕期女职工每月可享受{n}天产前检查假，凭医院证明办理。", ("产检假有几天", "怀孕去检查给假吗")),
    ("员工子女入托补助为每月{n}0元，发放至子女年满六周岁。", ("孩子上幼儿园有补助吗", "入托补助一个月多少")),
    ("高温津贴自6月起至9月止，室外作业人员每月{n}0元。", ("高温补贴发到几月", "户外干活高温费多少")),
    ("合同一式四份，甲乙双方各执两份，具有同等法律效力。", ("合同一共几份", "我们留几份合同")),
    ("乙方未按期完工的，每延误一天支付合同价款{n}‰的违约金。", ("工期拖一天罚多少", "晚完工要赔多少")),
    ("质量异议应在收货后{n}日内书面提出，逾期视为合格。", ("质量有问题多久内要提", "收货后几天内可以提异议")),
    ("本合同自双方签字盖章之日起生效，有效期至{d}。", ("合同到哪天为止", "合同什么时候失效")),
    ("发票抬头应与付款单位一致，否则不予入账。", ("发票抬头写谁", "抬头写错了能报吗")),
    ("单笔付款超过{n}万元的，须由两名授权人共同签批。", ("多大金额要两个人签", "大额付款谁签字")),
    ("备用金限额为每部门{n}000元，每月末清零归还。", ("备用金能领多少", "备用金什么时候还")),
    ("机房温度应保持在{n}℃左右，湿度不超过60%。", ("机房要多少度", "机房湿度要求")),
    ("服务器每日2:00自动备份，备份保留{n}天。", ("备份存多久", "服务器几点备份")),
    ("账号连续{n}天未登录的，系统将自动冻结。", ("多久不登录会被冻结", "账号怎么被冻结了")),
    ("上传图片仅支持JPG和PNG格式，大小不超过{n}MB。", ("能传什么格式的图", "图片最大多大")),
    ("本机支持Wi-Fi和蓝牙两种连接方式，不支持有线网络。", ("能插网线吗", "怎么连网")),
    ("首次开机请长按电源键{n}秒，听到提示音后松开。", ("怎么开机", "开机键要按多久")),
    ("滤网累计使用{n}00小时后指示灯变红，应及时更换。", ("滤网什么时候换", "指示灯变红怎么办")),
    ("清洁外壳请用干软布，不得使用酒精和汽油。", ("外壳能用酒精擦吗", "机器怎么清洁")),
    ("煎药时加水没过药面两指，先泡{n}分钟再大火煮开。", ("中药煎之前泡多久", "煎药放多少水")),
    ("术后{n}小时内禁食禁水，次日可进流食。", ("手术后多久能吃东西", "术后第二天能吃什么")),
    ("接种疫苗后须留观{n}分钟，无不适方可离开。", ("打完疫苗要观察多久", "打完针能马上走吗")),
    ("住院期间陪护限一人，凭陪护证进出病区。", ("能几个人陪床", "陪护凭什么进")),
    ("复诊请在{n}日内挂同一科室，免收诊查费。", ("复诊要钱吗", "几天内复诊免费")),
    ("期中考试占总评的{n}%，期末考试占50%，其余为平时成绩。", ("期中占多少", "总评怎么算")),
    ("学生请假一天以内由班主任{p}批准，超过一天报年级组。", ("学生请一天假找谁", "班主任是谁")),
    ("校车于每日6:50从东门发车，途经三站，请提前5分钟候车。", ("校车几点发车", "校车从哪走")),
    ("社团招新时间为{d}，地点在体育馆南侧广场。", ("社团哪天招新", "招新在哪里")),
    ("毕业论文查重率不得高于{n}%，超过的须修改后重新检测。", ("查重要求多少", "论文重复率太高怎么办")),
    ("参赛作品须为原创且未公开发表，每人限报{n}件。", ("一个人能交几件作品", "发表过的能参赛吗")),
    ("会议由{p}主持，张经理、李工和财务科代表列席。", ("会议谁主持的", "哪些人列席了会议")),
    ("会议决定将交付日期由月底推迟到{d}。", ("交付推迟到什么时候", "新的交付日期是哪天")),
    ("本季度共接到投诉{n}起，其中物流类占六成，已全部办结。", ("这季度有多少投诉", "投诉里什么最多")),
    ("二号线技改项目已于{d}通过验收，产能提高{n}%。", ("技改项目什么时候验收的", "二号线产能提高了多少")),
    ("截至季度末，公司在册员工{n}0人，其中技术人员占三成。", ("公司有多少员工", "技术人员占多少")),
    ("经办人为{p}，如有疑问请致电{t}。", ("有问题联系谁", "经办人是哪位", "咨询打什么电话")),
    ("样品请寄至高新区科技路{n}号质检中心，收件人{p}。", ("样品寄到哪里", "样品寄给谁")),
)
# (introduction, items, questions): a list answers as a whole.
LISTS = (
    (
        "办理健身卡须携带下列物品：",
        ("本人身份证", "一寸照片两张", "体检合格证明"),
        ("办健身卡要带什么", "办健身卡需要哪些东西"),
    ),
    (
        "申请困难补助应提交：",
        ("书面申请", "家庭收入证明", "社区盖章的情况说明"),
        ("困难补助要交什么材料", "申请困难补助需要哪些材料"),
    ),
    (
        "更换墨盒的步骤如下：",
        ("打开前盖，等墨盒架移到中间", "按住卡扣取出旧墨盒", "撕下新墨盒的保护膜并装入", "合上前盖，打印测试页"),
        ("怎么换墨盒", "墨盒如何更换"),
    ),
    (
        "校准电子秤：",
        ("放平并清空托盘", "长按去皮键5秒", "放上标准砝码，待数字稳定", "按确认键保存"),
        ("电子秤怎么校准", "如何校准电子秤"),
    ),
    (
        "借用车辆流程：",
        ("填写用车申请", "部门负责人签字", "到车队领取钥匙", "归还时登记里程"),
        ("怎么借公司的车", "借车的流程是什么"),
    ),
    ("宿舍内禁止下列行为：", ("使用大功率电器", "私拉电线", "留宿外来人员"), ("宿舍里不能做什么", "宿舍禁止哪些行为")),
    (
        "连接投影仪：",
        ("用高清线连接电脑", "按Win+P选择复制", "在投影仪上选择信号源"),
        ("投影仪怎么连电脑", "如何连接投影仪"),
    ),
    (
        "发生火灾时：",
        ("按下手动报警按钮", "拨打消防控制室电话", "沿疏散标志撤离，不乘电梯"),
        ("着火了怎么办", "发生火灾应该怎么做"),
    ),
    (
        "泡发海参：",
        ("清水浸泡24小时，换水三次", "剪开去除沙嘴", "小火煮40分钟", "冰水再泡24小时"),
        ("海参怎么泡发", "泡海参的做法"),
    ),
    ("评优条件：", ("全年无事故", "出勤率不低于98%", "完成培训学时"), ("评优有什么条件", "评优要满足哪些要求")),
    ("产品附件包括：", ("遥控器1个", "电源线1根", "说明书1本", "壁挂架1套"), ("产品附件有哪些", "盒子里都有什么")),
    (
        "清洗净水器滤网：",
        ("关闭进水阀", "旋开滤瓶取出滤网", "用软毛刷冲洗", "装回后排气两分钟"),
        ("净水器滤网怎么洗", "如何清洗净水器滤网"),
    ),
)
FILLERS = (
    "各部门应认真组织学习，结合实际抓好落实。",
    "本文件未尽事宜，按上级有关规定办理。",
    "相关表格可在内部网站下载。",
    "为进一步规范管理，提高服务水平，特制定本规定。",
    "请各位同事互相转告，并做好准备。",
)
HEADINGS = ("管理规定", "服务指南", "使用说明", "注意事项", "办事须知", "实施细则")
PLACES = ("滨江厂区", "老厂区", "北院", "南院", "一期", "二期", "总店", "分店")


def make_cases(seed: int) -> tuple[list[Document], list[Case]]:
    """Documents and questions about them; another seed makes others."""
    rng = random.Random(seed)
    documents: list[Document] = []
    cases: list[Case] = []
    for schema in SCHEMAS:
        made, questions = _make_tables(schema, rng)
        documents += made
        cases += questions
    for make in (_make_forms, _make_prose):
        made, questions = make(rng)
        documents += made
        cases += questions
    return documents, [_as_spoken(case, rng) for case in cases]


def _as_spoken(case: Case, rng: random.Random) -> Case:
    question = case.question.rstrip("？?")
    return Case(rng.choice(OPENINGS) + question + rng.choice(CLOSINGS), case.answers, case.document)


def _make_forms(rng: random.Random) -> tuple[list[Document], list[Case]]:
    documents = []
    cases = []
    for kind, key, things, fields in FORMS:
        for thing in rng.sample(things, 3):
            title = kind
            values = {name: make(rng) for name, (make, _) in fields.items()}
            left_out = rng.choice(list(fields))
            shown = {key: thing, **{name: value for name, value in values.items() if name != left_out}}
            document = Document(f"{title}-{thing}" if rng.random() < 0.3 else f"{title}{rng.randint(1, 99)}")
            if rng.random() < 0.4:  # the thing is the title, and its fields follow
                title = f"{title} > {thing}" if rng.random() < 0.5 else thing
                del shown[key]
            lines = [f"{name}{rng.choice((': ', '：'))}{value}" for name, value in shown.items()]
            if rng.random() < 0.6:
                document.passages.extend((title, line) for line in lines)
            else:
                document.passages.append((title, "\n".join(lines)))
            for rule in rng.sample(SENTENCES, 2):  # a remark under the form is about the same thing
                answer, text = _rule_text(rule, rng)
                document.passages.append((title, text))
                cases.append(Case(thing + rng.choice(rule[-1]).replace("{v}", ""), (answer,), document.name))
            documents.append(document)
            for name in rng.sample(list(fields), 5):
                answers = () if name == left_out else (f"{name}: {values[name]}", f"{name}：{values[name]}")
                cases.append(Case(thing + rng.choice(fields[name][1]), answers, document.name if answers else ""))
    return documents, cases


def _make_tables(schema: Schema, rng: random.Random) -> tuple[list[Document], list[Case]]:
    title = rng.choice(schema.titles)
    count = min(len(schema.keys), rng.randint(4, 14))
    keys = rng.sample(schema.keys, count) if len(schema.keys) > 7 else list(schema.keys)
    absent = [key for key in schema.keys if key not in keys]
    columns = list(schema.columns) if len(schema.columns) < 4 else rng.sample(schema.columns, len(schema.columns) - 1)
    documents = []
    cases = []
    for version in schema.versions:
        document = Document(f"{version}{title}" if rng.random() < 0.7 else f"{title}-{version}")
        around = {"title": title, "key": schema.key, "version": version, "n": str(rng.randint(1, 20))}
        around["columns"] = "、".join(column.name for column in columns)
        for _ in range(rng.randint(0, 2)):
            sentences = [line.format(**around) for line in rng.sample(AROUND, 2)]
            document.passages.append((f"{title} > {rng.choice(HEADINGS)}", "".join(sentences)))
        if rng.random() < 0.5:  # a cover: it says what the file is about and states nothing
            document.passages.append(("", f"{version}{title}（{rng.randint(2020, 2026)}年修订）"))
        grouped = [name for name in GROUPS if any(column.name == name for column in columns)]
        if grouped:
            document.passages.append((title, "".join(f"{name}指{GROUPS[name]}。" for name in grouped)))
        headless = rng.random() < 0.3  # a data file: its name alone says what it is
        for key in keys:
            cells = {column.name: column.make(rng) for column in columns}
            name, _, state = key.partition(" ")
            head = [f"{schema.key}: {name}", f"状态: {state}"] if state else [f"{schema.key}: {key}"]
            text = " | ".join([*head, *(f"{name}: {value}" for name, value in cells.items())])
            document.passages.append(
                ("" if headless else f"{version} > {title}" if rng.random() < 0.5 else title, text)
            )
            cases += _reversed_cases(title, version, cells, key, rng) if rng.random() < 0.3 else []
            column = rng.choice(columns)
            ask = _ask(column, schema, version, key, rng)
            if column.name in GROUPS and rng.random() < 0.5:
                ask = ask.replace(column.name, rng.choice(GROUPS[column.name].split("、")))
            cases.append(Case(ask, (f"{column.name}: {cells[column.name]}",), document.name))
        if title in ("收费项目表", "配方用量", "付款计划"):
            total = money(900, 900_000)(rng)
            column = columns[0]
            document.passages.append(
                (title, f"{schema.key}: {rng.choice(('合计', '总计', '合计金额'))} | {column.name}: {total}")
            )
            ask = rng.choice(("{}一共多少钱", "{}总共多少", "{}加起来是多少", "{}合计多少")).format(version)
            cases.append(Case(ask, (f"{column.name}: {total}",), document.name))
        documents.append(document)
    for _ in range(max(2, count // 3)):  # a version, a row or a column that is not there
        version = rng.choice(schema.versions)
        missing = [column for column in schema.columns if column not in columns]
        which = rng.random()
        if which < 0.4 and version[:4].isdigit():
            cases.append(
                Case(
                    _ask(
                        rng.choice(columns),
                        schema,
                        f"{rng.choice((2018, 2019, 2020, 2026))}{version[4:]}",
                        rng.choice(keys),
                        rng,
                    ),
                    (),
                )
            )
        elif which < 0.7 and absent:
            cases.append(Case(_ask(rng.choice(columns), schema, version, rng.choice(absent), rng), ()))
        elif missing:
            cases.append(Case(_ask(missing[0], schema, version, rng.choice(keys), rng), ()))
    return documents, [case for case in cases if "{" not in case.question]


def _reversed_cases(title: str, version: str, cells: dict[str, str], key: str, rng: random.Random) -> list[Case]:
    """Questions that name a row by one of its values and ask for its key."""
    cases = []
    for column, template, answer in REVERSED.get(title, ()):
        if column in cells and (column != "职务" or "部门" in cells):
            question = template.format(version=version, value=cells[column], dept=cells.get("部门", ""))
            cases.append(Case(question, (f"{answer}: {key}",), ""))
    return cases[:1]


def _ask(column: Column, schema: Schema, version: str, key: str, rng: random.Random) -> str:
    template = rng.choice(column.asks)
    if "{version}" not in template and rng.random() < 0.95:
        template = rng.choice(("{version}", "{version}的")) + template
    plain = (
        version.replace("（", rng.choice(("（", ""))).replace("）", "")
        if "（" in version and rng.random() < 0.5
        else version
    )
    question = template.replace("{version}", plain).replace("{name}", column.name.split("（")[0])
    return question.replace("{key}", schema.said(rng, key)) + rng.choice(("", "", "？", "?"))


def _make_prose(rng: random.Random) -> tuple[list[Document], list[Case]]:
    """Rules in sentences and lists, some of them in two places with different figures."""
    documents = []
    cases = []
    chosen = rng.sample([*SENTENCES, *LISTS], len(SENTENCES) + len(LISTS))
    absent = chosen[:16]
    for start in range(16, len(chosen), 5):
        both = rng.random() < 0.4
        heading = rng.choice(HEADINGS)
        for where in rng.sample(PLACES, 2 if both else 1):
            document = Document(f"{where}{heading}")
            document.passages.append(
                (
                    f"{where}{heading}",
                    rng.choice(AROUND).format(title=heading, key="部门", version=where, n="3", columns="事项"),
                )
            )
            for rule in chosen[start : start + 5]:
                answer, text = _rule_text(rule, rng)
                if not both or rng.random() < 0.8:
                    document.passages.append((_title_of(rule, where, heading, rng), text))
                else:
                    answer = ""
                question = rng.choice(rule[-1]).replace("{v}", "")
                cases.append(
                    Case(f"{where}{question}" if both else question, (answer,) if answer else (), document.name)
                )
            documents.append(document)
    cases += [Case(rng.choice(rule[-1]).replace("{v}", ""), ()) for rule in absent]
    return documents, cases


def _title_of(rule: tuple[Any, ...], where: str, heading: str, rng: random.Random) -> str:
    """Headings over a rule, which may take a word or two out of it."""
    words = re.split("[{}，。：、0-9n]", rule[0])[0][:6]
    return rng.choice(
        (
            f"第{rng.randint(1, 9)}章 {rng.choice(HEADINGS)}",
            f"{where}{heading} > {words}",
            f"{where}{heading} > {rng.randint(1, 9)} {words}",
        )
    )


def _rule_text(rule: tuple[Any, ...], rng: random.Random) -> tuple[str, str]:
    """(what answers, the passage that it stands in)"""
    others = [rng.choice(FILLERS) for _ in range(rng.randint(0, 2))]
    if len(rule) == 3:
        mark = rng.choice(("{}. ", "- ", "（{}）", "{}、"))
        items = [mark.format(number_) + item for number_, item in enumerate(rule[1], start=1)]
        answer = "\n".join([rule[0], *items])
        return answer, "\n".join([*others[:1], answer, *others[1:]])
    values = {
        "n": str(rng.randint(2, 90)),
        "m": str(rng.randint(2, 90)),
        "d": day(rng),
        "p": person(rng),
        "t": phone(rng),
    }
    answer = rule[0].format(**values)
    if rng.random() < 0.15:  # a bullet without its full stop
        answer = answer.rstrip("。")
        return answer, "\n".join([answer, *others])
    return answer, "".join(rng.sample([answer, *others], len(others) + 1))


def corpus(documents: Sequence[Document]) -> Iterator[tuple[str, dict[str, object]]]:
    """(text, metadata) of every passage, as ingestion stores them."""
    for document in documents:
        for number_, (title, text) in enumerate(document.passages):
            metadata: dict[str, object] = {"source": f"documents/{document.name}.xlsx", "chunk": number_}
            yield (f"{title}\n{text}", metadata | {"title": title}) if title else (text, metadata)
