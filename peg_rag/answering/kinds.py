"""What an answer of a kind looks like, and what a column that holds such answers is called.

Why this exists: a question with 多久 is answered by 15个工作日 in a column 时限, not by the sentence that repeats most
of it. The patterns are wide: they say what can be an answer, and the scorer decides what is one.
"""

import re

from peg_rag.answering.measures import lacks_measure, stands_for_figure
from peg_rag.answering.question import Question
from peg_rag.answering.surnames import COMPOUND_SURNAMES, RARE_SURNAMES, SURNAMES
from peg_rag.answering.words import fold_text

_ROLE = (
    r"经理|总监|主管|总裁|主任|科长|部长|院长|校长|主席|董事|专员|组长|工程师|操作工|维修工|电工|"
    r"负责人|委员会|医生|老师|官"
)
_CHARACTERS = SURNAMES + RARE_SURNAMES
_SURNAME = "|".join([f"[{_CHARACTERS}]", *COMPOUND_SURNAMES])
# How a value looks that is of a kind, and what its column is called.
_LOOKS = {
    "money": r"\d\s*(?:元|块|万|亿|美元|欧元|港元|角)|[¥￥$€]\s*\d|免费|免收|不收费|百元|千元|万元|\d[倍折成]|分之|%",
    "percent": r"\d\s*[%％‰]|分之|[\d一二三四五六七八九][成折]|[一退收]半|[全不]退",
    "duration": r"\d\s*个?(?:年|月|天|日|周|星期|小时|分钟|秒|工作日|学期|minutes?|hours?|days?|months?|years?)|"
    r"[每次]+(?:班|日|天|周|月|年|季度)|长期|永久|半年|[一二三四五六七八九十]+个?(?:年|月|天|日|周|小时|分钟)",
    "date": r"\d{4}[-年/.]\d|\d{1,2}月|每[年月周天日季]|\d{1,2}[日号](?![楼线库机桌])|次[年月]|星期|礼拜|"
    r"周[1-6一二三四五六日末]|(?<!\d)\d{1,2}-\d{2}(?!\d)|(?:19|20)\d\d(?!\d)|[当次隔翌][天日]|[天日][起后前内]|第\d+天|随时|[年月季]末|[年月][底初]|"
    r"节|除夕|初\d|满\d|假前|季度?|届|期满|\d:\d{2}|\d[点时](?!\d)|[早晚]上|[上下中]午|\d/\d|[已未待尚]|"
    r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)",
    "time": r"\d{1,2}[:：]\d{2}|\d{1,2}[点时]|24小时|停诊|全天",
    "person": rf"(?:(?<![\u3400-\u9fff])|[由是为归找向给部科组处队站厂店班区室长人务员理监管师导任工帅政、])"
    rf"(?:{_SURNAME})[\u3400-\u9fff]{{1,2}}(?=负责|主持|担任|统一|组织|通报|说|确认|批准|保管|签|管|去|带|来|盯|守|值|接|讲|开|[^\u3400-\u9fff]|$)|"
    rf"[老小阿][{_CHARACTERS}]|[{_CHARACTERS}](?:师傅|大夫|阿姨|大爷|[叔婶姐哥嫂伯姨爷工总队])|{_ROLE}|"
    r"(?:师傅|大夫|阿姨|大爷|[长员人者工师方户家主商客部科处组站所局会厂店队司院校室班委办]|自己|家属|中心)(?:[^\u3400-\u9fff]|$)",
    "phone": r"\d{3,4}-\d{3,4}(?:-?\d{4})?|(?<!\d)1\d{10}|(?<!\d)\d{7,8}(?!\d)|分机\s*\d|(?<!\d)\d{4,5}(?!\d)",
    "place": r"[路街号楼层室区市省县村镇座厅库栋处院校馆店站门港台柜屋城园房桥架格间棚坊铺摊口桌池场]|"
    r"[厂仓洞塘岛湾岸坡坝井沟角边旁]|码头|中心|[东西南北左右前后上下里外内]|[a-z]-?\d|\d-\d",
    "code": r"[a-z]+[\w\-./]*\d|\d[\w\-./]*\d|https?:",
    "size": r"\d\s*(?:[gmkt]b|k?g|[mck]?m|克|斤|公斤|吨|米|公里|升|毫升|l|ml|w|kw|v|℃|°|度|寸|平方|㎡|m2|"
    r"[kmg]?pa|kn|n|×|乘|兆|牛|汤匙|勺|颗|根|条)",
    "count": r"\d|[一二三四五六七八九十百千两半]+[个名位人次天年月日周项只台本份张件种倍成册套条根颗把]",
    "name": r"^(?=.*(?:[\u3400-\u9fff]|[a-z]{2}))[^。]{1,25}$|[“《]",
    "how": r"先|再|然后|后|点击|打开|登录|提交|按|拨打|携带|联系|通过|请|检查|更换|加|用|step|click|open",
    "rule": r"须|应|必须|不得|不能|不可|禁|限|需|不少于|不超过|不低于|至少|仅|要|不大于|不小于|≥|≤",
    "list": r"、.*、|；.*；|,.*,|，.*，|\n",
    "meaning": r"是|为|指|表示|即|称|\S",
    "reason": r"因|由于|原因|为了|导致|故|\S",
    "polar": r"可以|不可|可|不得|不能|不予|不享受|不|无须|无需|须|需|应|必须|免|禁止|严禁|仅|均|也|"
    r"参照|适用|支持|有|无|减半|not|may|must",
}
_COLUMNS = {
    "money": r"元|价|费|额|款|薪|工资|收入|利润|成本|补贴|奖|票|标准|上限|消费|price|fee|cost|amount|credit",
    "percent": r"比例|率|占比|%|percent",
    "duration": r"周期|期限|时效|时长|天数|[^时]间|时间|期|年假|假|duration|downtime|period",
    "date": r"日期|时间|日|年|期|date|入职|生效|出生|发行|上映",
    "time": r"时间|营业|开放|周|星期|time|hours",
    "person": r"人|员|者|姓名|负责|讲师|店长|经理|主任|导演|主演|演员|编剧|班主任|教师|医生|名称|name|owner|contact",
    "phone": r"电话|手机|分机|热线|号码|联系|phone|tel",
    "place": r"地址|地点|位置|库位|楼|层|地区|场|教室|籍|出生地|院校|地|区域|place|address|location",
    "code": r"编号|编码|代码|货号|型号|账号|单号|号|code|id|no",
    "size": r"重|尺寸|容量|大小|内存|存储|温度|功率|功耗|压力|"
    r"数量|用量|量|面积|长|宽|高|距离|参数|数值|身高|体重|size|weight",
    "count": r"数|量|库存|评分|分|节|序|number|count",
    "name": r"名|企业|公司|单位|供应商|厂|品|型|种|线|科目|机构|店|name",
    "how": r"方法|处理|措施|做法|步骤|方式|操作|回答|答|解决|answer|说明",
    "rule": r"要求|说明|备注|注意|条件|标准|规定|限制|须知",
    "list": r"材料|清单|内容|名单|包括|配置|项目|菜|设施|景点|作品|成员",
    "meaning": r"含义|意义|说明|解释|定义|简介|原因|现象|描述|meaning|description",
    "reason": r"原因|理由|说明|cause|reason",
    "polar": r"是否|要求|说明|备注|规定|可|能",
}
# What a column of such a name holds and nothing else.
_HOLDS_ONLY = {
    "person": r"人$|员$|者$|姓名|讲师|教师|医生|经理$|店长|负责|班主任|嘉宾|教练",
    "money": r"价|费|金额|[（(][万亿]?元|款$|押金|奖金|租金|工资|补贴",
    "phone": r"电话|手机|分机|座机|热线|传真",
    "when": r"日期|时间|期限|时限|起始|截止|哪天|首班|末班",
    "place": r"地点|地址|位置|楼层|库位|教室|办公室",
}
_GROUP_OF = {
    "person": "person", "money": "money", "phone": "phone", "date": "when", "time": "when", "duration": "when",
    "place": "place", "count": "count", "size": "count", "percent": "count", "name": "name",
}  # fmt: skip
# What is measured, by what asks for it, and what a value or its column then says.
_MEASURED_BY = (
    (r"多重|重量|几斤|几公斤|多少(?:公斤|斤|克|吨)", r"重|kg|公斤|千克|克|吨|斤|(?<![a-z])g(?![a-z])"),
    (r"多高|多宽|多远|多深|多厚|多长(?!时)|几米|多少(?:米|公里|厘米|毫米)", r"[米里寸尺长宽高距深厚远程]|\dm|mm|cm|km"),
    (r"多少度|几度|多热|多冷|温度", r"度|℃|°|温"),
    (r"什么颜色|啥颜色|哪种颜色", r"[红橙黄绿青蓝紫黑白灰棕粉银金]|颜色|色"),
)
_LOOKS_LIKE = {kind: re.compile(pattern, re.IGNORECASE | re.DOTALL) for kind, pattern in _LOOKS.items()}
_COLUMN_OF = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in _COLUMNS.items()}
_HOLDS = {group: re.compile(pattern) for group, pattern in _HOLDS_ONLY.items()}
_MEASURED_PATTERNS = tuple((re.compile(asks), re.compile(says)) for asks, says in _MEASURED_BY)
_MEASURE_UNITS = "天年月日周时分秒元块次度米克升岁%"
_MEASURED = re.compile(r"\d\s*([\u3400-\u9fff%])")
_SHORT_NAME = re.compile(r"[\u3400-\u9fff·]{2,4}$")
_BARE_NUMBER = re.compile(r"[-+±]?\s*\d[\d,，.]*\s*$")
# A value that looks like one of these is one whatever its column is called: 会员: 1,880元.
_TELLING = frozenset({"money", "percent", "phone"})
_NUMERIC = frozenset({"money", "percent", "duration", "size", "count", "phone", "code"})


def names_kind(question: Question, name: str) -> float:
    return float(any(_COLUMN_OF[kind].search(fold_text(name)) for kind in question.kinds))


def rate_value(question: Question, value: str, column: str) -> tuple[float, float]:
    """(how much a value looks like an answer, whether it cannot be one); `column` is its name, if it is a cell's."""
    folded_column = fold_text(column)
    text = f"{folded_column} {value}"
    is_telling = any(_LOOKS_LIKE[kind].search(value) for kind in _TELLING & set(question.kinds))
    if not is_telling and lacks_measure(question, value, folded_column):
        return 0.0, 1.0
    if any(asks.search(question.text) and not says.search(text) for asks, says in _MEASURED_PATTERNS):
        return 0.0, 1.0
    if not question.kinds:
        return 0.5, 0.0
    if is_telling:
        return 1.0, 0.0
    if column and _holds_other(question, folded_column):
        return 0.0, 1.0
    measured = _MEASURED.search(value) if question.unit else None
    if measured and "count" in question.kinds and not _same_measure(question.unit, measured[1]):
        return 0.0, 1.0
    if any(_LOOKS_LIKE[kind].search(value) for kind in question.kinds):
        return 1.0, 0.0
    if _BARE_NUMBER.match(value) and _NUMERIC & set(question.kinds):
        return 0.7, 0.0
    if (
        column
        and any(_LOOKS_LIKE[kind].search(folded_column) for kind in question.kinds if kind in _NUMERIC)
        and re.search(r"\d", value)
    ):
        return 0.9, 0.0
    if column and _may_stand_for(question, value, folded_column):
        return 0.5, 0.0
    return 0.0, 1.0


def _may_stand_for(question: Question, value: str, column: str) -> bool:
    """Whether a short value may be a name that no surname tells, or answer 多少 without a figure, as 面议 does."""
    if "person" in question.kinds and _SHORT_NAME.match(value) and _COLUMN_OF["person"].search(column):
        return True
    return bool(_NUMERIC & set(question.kinds)) and stands_for_figure(value)


def _holds_other(question: Question, column: str) -> bool:
    """Whether a column holds another thing than what is asked for, as a column of persons does where 在哪 asks."""
    groups = {_GROUP_OF[kind] for kind in question.kinds if kind in _GROUP_OF}
    held_groups = {group for group, pattern in _HOLDS.items() if pattern.search(column)}
    may_count = "count" in groups and bool(held_groups & {"money", "when"})
    return bool(groups and held_groups and not groups & held_groups and not may_count)


def _same_measure(unit: str, other: str) -> bool:
    return unit == other or (unit not in _MEASURE_UNITS and other not in _MEASURE_UNITS)
