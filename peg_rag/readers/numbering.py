"""How Chinese documents number their parts, and which level each kind of number has."""

import re

from peg_rag.readers.normalize import width

_DIGITS = "一二三四五六七八九十百零〇两\\d０-９"
_LEVELS = (
    re.compile(rf"第[{_DIGITS}]+[编篇部]分?(?=\s|$|[^，。；的])"),
    re.compile(rf"第[{_DIGITS}]+章|Chapter\s+\d+\b|附录\s*[A-Z\d一二三四五六七八九十]"),
    re.compile(rf"第[{_DIGITS}]+节"),
    re.compile(r"[一二三四五六七八九十]{1,3}\s*[、．.]"),
    re.compile(r"[（(][一二三四五六七八九十]{1,3}[）)]"),
    re.compile(r"\d{1,2}(?=[\s、．.][^\d])[、．.]?"),
    re.compile(r"\d{1,2}[.．]\d{1,2}(?![.．\d])"),
    re.compile(r"\d{1,2}([.．]\d{1,2}){2}(?![.．\d])"),
    re.compile(r"\d{1,2}([.．]\d{1,2}){3,}"),
)
_SURE = range(4)  # a short line with such a number is a heading in any type
_PART = 6  # numbers like 1.2, which are one where the line is short too
_SENTENCE_END = tuple("。！？；;，,：:、….!?")
_LONGEST_HEADING = 60  # half-widths


def number_level(text: str) -> int | None:
    """The place of a line's number in the usual order, from 0 (第一编) on; None for a line without a number."""
    return next((level for level, pattern in enumerate(_LEVELS) if pattern.match(text)), None)


def is_plain_heading(text: str) -> bool:
    """Whether a line in the type of the text around it is a heading for its number alone: short, and no sentence."""
    level = number_level(text)
    if level is None or width(text) > _LONGEST_HEADING or text.endswith(_SENTENCE_END):
        return False
    return level in _SURE or level >= _PART
