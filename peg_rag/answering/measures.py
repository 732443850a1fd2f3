"""Whether a statement can hold the figure that a question asks for: 24.5米 is no weight, and 戴定位器 no figure at all.

Why this exists: of a thing that is listed without the fact that is asked for, another fact stands in its place, and
fits the question in every word. What has no figure, or one of another measure alone, does not answer 多重. The rules
are strict: of the statements that answer written questions they deny one in two hundred, of the others one in four.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from peg_rag.answering.question import Question

_FIGURE = re.compile(r"\d|[一两二三四五六七八九十百千半倍单双]|分之")
_DIGIT = re.compile(r"\d")
_ASKS_FIGURE = re.compile(r"多少|几(?!乎|率)|多[重沉高宽远深厚粗久长大]|第几")
_FIGURE_KINDS = frozenset({"money", "percent", "duration", "size", "count", "phone", "time", "date"})
_NEVER_FIGURES = frozenset({"date", "time"})
# Short values that answer 多少 without a figure: 免费, 面议, 照原价, 全程, 当天.
_INSTEAD = re.compile(
    r"[免不无没未照按随全均封待暂视实各自整齐永终当马同现初底末常仅立另每次隔年最所都始以由归至到含]|"
    r"[原时市差]价|打折|询|协商|[见附][附表件]|赠|[余尾]款|度奖|绩效奖|适量|遵医嘱|逐[日班批]|定期|法定|约定|抽查|即办|秒批|长期|"
    r"充足|包邮|工本费|面议|议定|酌|承担|报销|证书|警告|开除|少许|若干|室温|^[a-z]+$|^\W*$"
)
# The same in a sentence, where most of these characters say nothing.
_SAID_INSTEAD = re.compile(
    r"免|不[收限用需计]|无[需固须限]|原价|照价|全额|终身|永久|长期|当[场天日]|即时|实时|随到|充足|包邮|时价|对[折半]|凭.{1,3}证|"
    r"按.{1,8}(?:规定|标准|支付|赔偿)|首月|每[天日周月季年]"
)
_ENUMERATES = re.compile(r"[、和与或及]")
_ASKS_KIND = re.compile(r"几[种个条款样类项]")
# These are no figures though 多少 asks for them, and 前几名 and 这几天 ask for none.
_ASKS_OTHER = re.compile(
    r"密码|[账帐]号|用户名|车牌|微信|几码|什么(?!时候)|啥(?!时候)|(?:这|那|前|头|后|过|最近|好)几|几度电|几钱"
)
# A moment without a figure: 每季, 春节前, 随时.
_MOMENT = re.compile(
    r"星期|周[末几中一二三四五六日]|礼拜|每|季|旬|[春夏秋冬]|节|国庆|元旦|[初末底中]|当[天日晚场]|前|后|起|随时|立即|马上|即|届|期|"
    r"次[日年月]|[早午晚夜]|年|月|日|时|天|永|长期|今|明|已|未|待|不|无|没|定|另"
)
# 什么时候 may be answered by an event, as by 验收合格.
_ASKS_MOMENT = re.compile(
    r"哪[一1]?[天年日]|(?<!打)几[号月](?![楼库线门窗房电球教桌台机车])|哪个月|礼拜几|星期几|周几|几点"
)
_ASKS_WHEN = re.compile(r"什么时候|啥时候|何时")
_PHONE = re.compile(r"\d|同|见")
_ASKS_PHONE = re.compile(
    r"(?<![台部打回次])(?:电话|手机|号码|热线|分机|短号|内线|座机)(?:号码?)?(?:是?多少|是?几[号位]?|是?什么|[呢？?]|$)|打几号"
)


@dataclass(frozen=True, slots=True)
class _Measure:
    """What asks for a measure, the units that have it, and the names of columns whose bare figures have it."""

    asks: re.Pattern[str]
    units: re.Pattern[str]
    columns: re.Pattern[str]


def _measure(asks: str, units: str, columns: str) -> _Measure:
    return _Measure(re.compile(asks), re.compile(units), re.compile(columns))


_MEASURES = (
    _measure(
        r"多少钱|几块(?=钱|一|每|了|呢|[，。？?！!]|$)|几[元毛角]|多少(?:元|块|万元)|什么价|价钱|[收付补赔罚扣押退交花]多少(?![人天个次张])|"
        r"(?:薪|工资|租金|房租|月租|押金|学费)[^，。]{0,3}多少",
        r"元|块|角|毛|欧|美金|\d[百千]|\dn$|万|亿|[¥￥$%‰]|折|成|倍|分之|半|[收补赔罚扣押退交付加]\d",
        r"元|价|费|额|款|薪|工资|钱|押|租|补|罚|赔|扣|收|付|退|金|奖|账|利|本|税",
    ),
    _measure(
        r"多重|多沉|几斤|几公斤|几[克吨两]|多少(?:公斤|斤|克|吨)|重量",
        r"kg|lb|公斤|千克|克|吨|斤|两|钱|磅|(?<![a-z])[gt](?![a-z])",
        r"重|量|载|kg|斤|克|吨",
    ),
    _measure(
        r"多高|多宽|多远|多深|多厚|多粗|几米|几公里|几公分|几厘米|几毫米|几里地?|多少(?:米|公里|厘米|毫米|公分|里)|口径多",
        r"[米里寸尺步码浬丝号块]|公分|\dm|mm|cm|km|awg|丈|分|小时|站|平方",
        r"[长宽高距深厚径远程]|米|尺|寸",
    ),
    _measure(r"多少度(?!电)|(?<!第)几度|多热|多冷", r"度|℃|°|%|\d[ckd]|火|wh|瓦时|-\d", r"温|度|℃|火"),
    _measure(r"(?:几|多少)(?:升|毫升)", r"升|l|容|斤|加仑|杯", r"升|容|量|l"),
    _measure(
        r"多久|多长时间|(?:几|多少)(?:天|年|周|分钟|秒|个?小时|个?钟头|个?月|个?工作日|个?星期)",
        r"天|日|周|月|年|时|分|秒|季|学期|晚|夜|钟|期|久|:|岁|次|号|公里|km|班|节|讲|场|帧|mah|工|届|遍",
        r"时|期|天|日|久|年|月|周|分|秒|间|寿|龄",
    ),
    _measure(r"多少人|几个人|几人|几位", r"人|名|位|户|个|桌|员|口|座|席|床|大|满|生|组|队", r"人|员|数|名|位|容"),
    _measure(r"扭矩|扭力", r"n|牛|kgf|lb", r"矩|力|牛"),
    _measure(r"多少千?瓦|几千?瓦|功率", r"w|瓦|马力|匹|va|伏安|\dp", r"功|瓦|w"),
)
# 个 and the like count anything; a figure of one of these measures counts none of it.
_ASKS_COUNT = re.compile(
    r"(?<!哪)(?:几|多少)(?P<counter>[个家处只条棵张台间座户桌场根把件辆艘头匹])(?!半|小时|钟头|月|星期|工作日|学期|礼拜)"
)
_MEASURED = re.compile(
    r"\d[\d,.]*\s*(?:多|余|来)?(?:元|块钱|万元|亿元|米|厘米|毫米|公里|公分|千米|公斤|千克|斤|克|吨|公顷|平方|亩|个?小时|分钟|秒|天|日|"
    r"年|个?月|周|个?星期|周?岁|度|℃|%|升|毫升|点|:|号)"
)
_UNITED = re.compile(r"\d[\d,.]*\s*(?:个|余|多|来)?(?:[\u3400-\u9fff%‰℃°]|[a-z]{1,3})")


def lacks_measure(question: Question, value: str, column: str) -> bool:
    """Whether the question asks for a figure and the statement surely has none of what is measured.

    Args:
        value: of a cell, or a sentence; folded.
        column: the name of the cell's column, folded; empty for a sentence.
    """
    asked = _asked_measure(question)
    if asked is None:
        return False
    if _ASKS_KIND.search(question.asked) and _ENUMERATES.search(value):
        return False
    if asked.is_phone:
        return not _PHONE.search(value)
    if not _FIGURE.search(value):
        if asked.is_moment:
            return not _MOMENT.search(value)
        return not stands_for_figure(value) if column else not _SAID_INSTEAD.search(value)
    if asked.counter:
        return not column and asked.counter not in value and _measures_all_figures(value)
    if asked.measure is None or not _UNITED.search(value):
        return False
    return not asked.measure.units.search(value) and not (column and asked.measure.columns.search(column))


def stands_for_figure(value: str) -> bool:
    """Whether a folded value, as short as cells are, may answer 多少 without a figure."""
    return not _FIGURE.search(value) and _INSTEAD.search(value) is not None


@dataclass(frozen=True, slots=True)
class _Asked:
    is_phone: bool
    is_moment: bool
    counter: str
    measure: _Measure | None


@lru_cache(maxsize=256)
def _asked_measure(question: Question) -> _Asked | None:
    """What figure is asked for; nothing where something else is asked for, too, as in 谁去，几号去."""
    kinds = frozenset(question.kinds)
    asks_moment = _ASKS_MOMENT.search(question.asked) is not None
    if not kinds <= _FIGURE_KINDS or not (asks_moment or kinds - _NEVER_FIGURES or _ASKS_FIGURE.search(question.asked)):
        return None
    asks_phone = _ASKS_PHONE.search(question.asked) is not None
    if _ASKS_OTHER.search(question.asked) or _ASKS_WHEN.search(question.asked) or (asks_phone and len(kinds) > 1):
        return None
    measures = [measure for measure in _MEASURES if measure.asks.search(question.asked)]
    counter = None if measures else _ASKS_COUNT.search(question.asked)
    return _Asked(
        asks_phone,
        asks_moment,
        counter["counter"] if counter else "",
        measures[0] if len(measures) == 1 and not asks_moment else None,
    )


def _measures_all_figures(value: str) -> bool:
    return not _DIGIT.search(_MEASURED.sub("", value))
