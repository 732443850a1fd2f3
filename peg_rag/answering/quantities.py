"""Numbers with their units as people and tables write them: 3万块, 两个半小时, 满10年, 5至30分钟.

Why this exists: 45分钟 lies between 半小时 and 2小时, and 8000块 below 1万元; that can only be seen once both are in
one unit. A number without a unit, or with one that is not in the table, is compared with the like of it alone.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

# Unit → (what it measures, in the measure's smallest unit).
_UNITS = {
    "元": ("money", 1.0), "块钱": ("money", 1.0), "块": ("money", 1.0), "角": ("money", 0.1),
    "秒": ("time", 1 / 60), "分钟": ("time", 1.0), "刻钟": ("time", 15.0), "小时": ("time", 60.0),
    "钟头": ("time", 60.0),
    "天": ("time", 1440.0), "日": ("time", 1440.0), "工作日": ("time", 1440.0), "晚": ("time", 1440.0),
    "周": ("time", 10_080.0), "星期": ("time", 10_080.0), "月": ("time", 43_200.0), "季度": ("time", 129_600.0),
    "学期": ("time", 259_200.0), "年": ("time", 525_600.0),
    "岁": ("age", 1.0), "周岁": ("age", 1.0),
    "毫米": ("length", 0.001), "mm": ("length", 0.001), "厘米": ("length", 0.01), "cm": ("length", 0.01),
    "米": ("length", 1.0), "m": ("length", 1.0), "公里": ("length", 1000.0), "千米": ("length", 1000.0),
    "km": ("length", 1000.0),
    "克": ("weight", 1.0), "g": ("weight", 1.0), "斤": ("weight", 500.0), "公斤": ("weight", 1000.0),
    "千克": ("weight", 1000.0), "kg": ("weight", 1000.0), "吨": ("weight", 1e6), "t": ("weight", 1e6),
    "毫升": ("volume", 0.001), "ml": ("volume", 0.001), "升": ("volume", 1.0), "l": ("volume", 1.0),
    "平方米": ("area", 1.0), "平米": ("area", 1.0), "平": ("area", 1.0), "㎡": ("area", 1.0), "m2": ("area", 1.0),
    "人": ("people", 1.0), "名": ("people", 1.0), "位": ("people", 1.0), "个人": ("people", 1.0),
    "度": ("degrees", 1.0), "℃": ("degrees", 1.0), "°c": ("degrees", 1.0), "摄氏度": ("degrees", 1.0),
    "%": ("percent", 1.0), "分": ("points", 1.0),
    "亩": ("area", 666.7), "公顷": ("area", 10_000.0), "平方公里": ("area", 1e6),
    "瓦": ("power", 1.0),
    "棵": ("plants", 1.0), "株": ("plants", 1.0), "头": ("animals", 1.0),
    "只": ("animals", 1.0),
    "户": ("households", 1.0), "家": ("households", 1.0), "次": ("times", 1.0),
    "回": ("times", 1.0), "趟": ("times", 1.0),
    "间": ("rooms", 1.0), "本": ("books", 1.0), "册": ("books", 1.0),
    "层": ("floors", 1.0), "楼": ("floors", 1.0),
    "栋": ("buildings", 1.0), "幢": ("buildings", 1.0), "号楼": ("buildings", 1.0),
}  # fmt: skip
_SCALES = {"百": 1e2, "千": 1e3, "万": 1e4, "十万": 1e5, "百万": 1e6, "千万": 1e7, "亿": 1e8, "k": 1e3, "w": 1e4}
# What makes another word of a unit: 满100只需5元, 80本金.
_NO_UNIT_BEFORE = {
    "只": "需要能收有", "本": "金科人校次地店", "家": "具电长人里属庭", "回": "馈来家到", "次": "日年月",
    "间": "隔距接歇", "户": "口主型外", "头": "发痛", "瓦": "时",
}  # fmt: skip
_UNIT = "|".join(
    re.escape(unit) + (f"(?![{_NO_UNIT_BEFORE[unit]}])" if unit in _NO_UNIT_BEFORE else "")
    for unit in sorted(_UNITS, key=len, reverse=True)
)
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\da-z度%])-(?=\d+(?:\.\d+)?[度~～至到]))?(?P<prefix>[a-z]*)(?P<number>(?<![\d.])\d+(?:\.\d+)?)(?P<scale>[百千]?[万亿]|[百千](?![\d米克])|[kw](?![a-z]))?"
    rf"个?(?P<half>半)?(?P<about>[多余来]个?(?={_UNIT}|[张份台辆页条项]))?(?P<unit>(?:{_UNIT})(?![a-z])|[\u3400-\u9fff])?(?P<more>半)?"
)
_A_LITTLE_MORE = 1.03  # 40多天 lies above 40天
_HALF = re.compile(r"(?<![\d个])半(?=天|年|个月|个?小时|个?钟头|吨|公斤|斤|公里)")
# 一 before a unit counts nothing, 每年 is meant, but where these words stand before it.
_EACH = re.compile(
    r"(?<![满了过到作职龄请待休干用住晚期第差近前约])[一1](?=年|天|个月|晚|次|小时|个人|人|台|本|份|张|节|间|平|公里|趟|件|套|包|瓶|个(?!半|学期))"
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number in the smallest unit of what it measures, and how it stands in the folded text.

    Attributes:
        measure: what is measured, such as `time`; an unknown unit measures itself; empty without a unit.
        prefix: letters before the number, as in p6.
    """

    value: float
    measure: str
    text: str
    prefix: str = ""


def without_each(text: str) -> str:
    """A question in which 一年 that means every year is no number."""
    return _EACH.sub("每", text)


@lru_cache(maxsize=16384)
def quantities_in(folded: str) -> tuple[Quantity, ...]:
    """The numbers of a folded text in their order; one without a unit has that of the next, as in 5至30分钟."""
    plain = _HALF.sub("0.5", folded)
    quantities: list[Quantity] = []
    for match in reversed(list(_NUMBER.finditer(plain))):
        factor = _SCALES.get(match["scale"] or "", 1.0)
        value = (float(match["number"]) + (0.5 if match["half"] or match["more"] else 0.0)) * factor
        if match["about"] and match["about"][0] in "多余":
            value *= _A_LITTLE_MORE
        value = -value if match["sign"] else value  # of degrees
        unit = match["unit"] or ""
        if unit in _UNITS:
            measure, size = _UNITS[unit]
            quantities.append(Quantity(value * size, measure, match[0], match["prefix"]))
        elif match["prefix"]:
            quantities.append(Quantity(value, "", match[0], match["prefix"]))
        else:
            inherited = _inherit_unit(plain, match, quantities)
            quantities.append(Quantity(value * inherited[1], inherited[0], match[0]))
    return tuple(reversed(quantities))


def _inherit_unit(text: str, match: re.Match[str], following: list[Quantity]) -> tuple[str, float]:
    """(measure, size) of a number that a range mark alone parts from the next, else of its own unknown unit.

    It has the next one's 万 too, as in 2至3万元, unless it is the larger figure, as in 8000至1万元.
    """
    if following and not following[-1].prefix and re.match(r"[-~～—至到]+\d", text[match.end("number") :]):
        other = _NUMBER.search(following[-1].text)
        if other and other["unit"] in _UNITS:
            measure, size = _UNITS[other["unit"]]
            has_scale = not match["scale"] and float(match["number"]) <= float(other["number"])
            return measure, size * (_SCALES.get(other["scale"] or "", 1.0) if has_scale else 1.0)
    return "money" if match["scale"] else match["unit"] or "", 1.0
