"""What a file says of the names that it uses: 好日子 are the last days of a month, DJ-30C has a heated chamber.

Why this exists: a price list has a column 好日子, and says on another page which days these are. Who asks for the price
on the last day of a month is answered only by a reader who sees both. So a statement is read with the definitions of
the names in it.
"""

import re
from functools import lru_cache

_CHARACTER = r"[\u3400-\u9fffA-Za-z0-9-]"
_OPEN = '“"「『'
_CLOSE = '”"」』'
_BEFORE = r"(?:^|[。；;，,、：:\s|“])"
_NAME = rf"(?P<name>(?!\d+[^A-Za-z\u3400-\u9fff]){_CHARACTER}{{2,10}}?)"
_QUOTED = rf"[{_OPEN}](?P<name>[^{_OPEN}{_CLOSE}\s，。；]{{2,10}})[{_CLOSE}]"
_MEANING = rf"(?P<meaning>[^{_OPEN}{_CLOSE}。；;|>\n]{{3,60}})"
# A range, as terms are defined by: 10月至次年3月为“满奶期”, 四环路以内为“内圈”.
_RANGE = (
    rf"(?P<meaning>(?:[^{_OPEN}{_CLOSE}，。；;|>\n]|[，,](?=未|不|以))*?(?:\d|[一二三四五六七八九十两](?=[月日点号周岁天年])|以[内外上下])"
    rf"(?:[^{_OPEN}{_CLOSE}，。；;|>\n]|[，,](?=未|不|以)){{0,30}}?)"
)
_NO_MEANING = rf"其中|[^，。；;|>\n{_OPEN}]*(?:口号|名称|名字|主题|答案|奖品|礼品|活动|税号|编号)"
_DEFINING_COLUMN = r"(?:意思|含义|定义|指什么|指的是|说的是)"
# In the order in which they are believed.
_DEFINITIONS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        rf"{_QUOTED}(?:一词)?[，,]?(?:是指|指的是|指|即|是|为|包括|包含|[:：]){_MEANING}",
        rf"{_BEFORE}{_NAME}(?:是指|指的是|指(?![挥定导标示着出向派责甲南引])|包括|包含)(?={_MEANING})",
        rf"(?:^|[，。；;\s]|\d[、.])(?!{_NO_MEANING}){_RANGE}的?[，,]?(?:[记定划视列归称即]|构成|属于)?(?:为|是|算){_QUOTED}",
        rf"^[^:：|\n]{{1,8}}[:：] ?{_NAME} \| {_DEFINING_COLUMN}[:：] ?(?P<meaning>[^|\n]{{3,60}})",
        rf"(?:^|[，。；;\n]){_MEANING}(?:[，,]?(?:统称|称为|称作|简称|叫做|(?<!所)称|叫|都是|都算)|的[，,]?[为是]){_QUOTED}",
        rf"{_QUOTED}(?![的只不都要可按应须在和与或及、，]){_MEANING}",
        rf"{_BEFORE}{_NAME}[（(](?!单位|元)(?P<meaning>[^（）()|>\n]{{2,40}})[）)]",
    )
)
_SENTENCE_END = re.compile(r"[。\n]")
_LAST_QUOTED = re.compile(rf".*{_QUOTED}", re.DOTALL)
_REST = re.compile(rf"(?:其余|其他)[^{_OPEN}{_CLOSE}，。；;|>\n]{{0,6}}(?:为|是|叫|称){_QUOTED}")
# ，初一到初六叫 in 周六、周日，初一到初六叫“大假”
_NEXT_NAME = re.compile(r"[，,][^，,]*(?:统称|称为|称作|简称|叫做|称|叫|是|算|为|的)$")
# ，礼厅指 in 素厅指能坐40人以下的，礼厅指能坐41至120人的
_NEXT_DEFINITION = re.compile(r"[，,][\u3400-\u9fffA-Za-z0-9-]{2,8}?(?:是指|指的是|指(?![挥定导标示着出向派责甲南引]))")
_PARTIES = """
甲方 乙方 丙方 丁方 买方 卖方 供方 需方 出租方 承租方 委托方 受托方 发包方 承包方 出租人 承租人 委托人 受托人 发包人
承包人 买受人 出卖人 转让方 受让方 许可方 被许可方
"""
PARTIES = frozenset(_PARTIES.split())  # of a contract
_PARTY = re.compile(
    rf"(?P<name>{'|'.join(sorted(PARTIES, key=len, reverse=True))})(?:[（(][^（）()|\n]{{1,12}}[）)])?"
    r"[ \t\u3000]*[:：][ \t\u3000]*"
    r"(?!应|须|负责|提供|保证|按|每|如|未|有权|不得|付款|提前|[^\s，,。；;|（(]*[:：])"  # a duty, or the next field
    r"(?P<meaning>[^\s，,。；;:：|（(][^，,。；;:：|（(\n]{1,39}?)(?=[，,。；;|（(\n]|$|\s+\S{2,8}[:：])"
)
OTHERWISE = "以外"  # 假日以外: the meaning of 平日 in “假日”指周六、周日，其余为“平日”
_LONGEST = 45  # characters of a meaning


@lru_cache(maxsize=256)
def find_definitions(text: str) -> tuple[tuple[str, str], ...]:
    """(name, meaning) of what a text defines, each name once, those that are surely definitions first."""
    definitions: dict[str, str] = {}
    for match in _PARTY.finditer(text):
        definitions.setdefault(match["name"], match["meaning"].strip())
    for match in _REST.finditer(text):
        sentence = _SENTENCE_END.split(text[: match.start()])[-1]
        if other := _LAST_QUOTED.match(sentence):
            definitions.setdefault(match["name"], f"{other['name']}{OTHERWISE}")
    for pattern in _DEFINITIONS:
        for match in pattern.finditer(text):
            meaning = _NEXT_DEFINITION.split(match["meaning"])[0]
            if text[match.end("meaning") :][:1] in _OPEN:
                meaning = _NEXT_NAME.sub("", meaning)
            definitions.setdefault(match["name"], meaning.strip()[:_LONGEST])
    return tuple(definitions.items())
