"""Whether a cell's text names what others say: the guess that headers and forms are found by."""

import re
from collections.abc import Sequence

from peg_rag.readers.normalize import join_spaced, width

_VALUE = re.compile(
    r"^[-+±<>≤≥~≈¥￥$€£]?\s*[\d０-９][\d０-９,，.．:/\-–—~～至%％‰ ]*\s*\S{0,6}$|^[√×✓✗✔○●—–\-/]$|^\d+\s*[-~～至]"
)
_YEAR = re.compile(r"(19|20)\d{2}\s*(年|Q\d|[-/.]\d{1,2}$|$)|FY\s?\d{2}", re.IGNORECASE)  # names a column as well
_LONGEST_NAME = 40  # half-widths
_CLAUSES = re.compile(r"[，。；！？]")
_BRACKETED = re.compile(r"[（(][^（()）]*[)）]")
_NOTE = re.compile(r"(注|备注|说明|附注|提示|资料来源|数据来源)\d?[:：]|注\d|[*※]")
_LABELLED = re.compile(r"[^：:]{0,15}[\u4e00-\u9fff）)]\s*[:：]\s*\S")
_POINT_IN_TIME = re.compile(r"(19|20)\d{2}\s*([-./]\s*\d{1,2}(?!\d)|年)|\d{1,2}\s*月|\d{1,2}\s*[:：]\s*\d{2}(?!\d)")
_CODE = re.compile(r"(?=[^\d]*\d)[A-Za-z\d][A-Za-z\d./_-]*")
_WHEREABOUTS = re.compile(r"\d{1,4}\s*(号楼|号线|号院|年级|车间|单元|[楼层栋幢区班组室期])$")
_NAME_WORDS = re.compile(
    r"(项目|名称|内容|说明|要求|标准|金额|数量|备注|描述|参数|单价|价格|费用|类别|类型|字段|编号|序号|级别|等级|职级|岗位|城市|日期|时间|"
    r"指标|科目|条款|情形|事项|课程|部门|姓名|电话|地址|单位|规格|型号|状态|限额|比例|材料|步骤|条件|结果|方式|期限|责任人|审批人|供应商|数值|取值|用量|占比|"
    r"含义|作用|类型|范围|位置|结论|天数|次数|人数|"
    r"item|name|value|description|type|price|amount|date|quantity|total|unit|field|key|note|status)s?$",
    re.IGNORECASE,
)


def is_value(text: str) -> bool:
    """Whether a cell holds a figure or a tick."""
    return _VALUE.match(text) is not None


def is_point_in_time(text: str) -> bool:
    """Whether a text begins with a day, a month or an hour, such as `6月24日` or `8:00-9:40`."""
    return _POINT_IN_TIME.match(text) is not None


def is_whereabouts(text: str) -> bool:
    """Whether a text is a numbered place or group, such as `3号楼` or `2班`."""
    return _WHEREABOUTS.match(text) is not None


def is_code(text: str) -> bool:
    """Whether a text is a number or a code of letters and figures, such as `A1` or `ZT-2611-052`."""
    return _CODE.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether a cell may name a column: short, no sentence, no figure but a year."""
    return (
        (_YEAR.match(text) is not None or not is_value(text))
        and width(text) <= _LONGEST_NAME
        and not text.endswith(";")
        and not _CLAUSES.search(_BRACKETED.sub("", text))
    )


def is_note(text: str) -> bool:
    """Whether a text is a remark on a table, such as `注：含税`, or a sentence."""
    return _NOTE.match(text) is not None or text.endswith(("。", "；"))


def is_labelled(text: str) -> bool:
    """Whether a cell holds a name and its value, such as `制表人：王芳`."""
    return _LABELLED.match(text) is not None


def ends_in_name_word(text: str) -> bool:
    """Whether a text ends in one of the words that columns are called by, such as 日期 in 申请日期."""
    return _NAME_WORDS.search(join_spaced(text)) is not None


def is_name_row(row: Sequence[str]) -> bool:
    """Whether all cells that hold something, half of them or more, may be names."""
    names = [text for text in row if text]
    return len(names) >= max(1, len(row) // 2) and all(map(is_name, names))
