"""How Chinese documents number their parts: the level of each kind of number, and numbers as programs show them."""

import re

from peg_rag.readers.normalize import width

_DIGITS = "一二三四五六七八九十百零〇两\\d０-９"
_LEVELS = (
    re.compile(rf"第[{_DIGITS}]+[编篇部]分?(?=\s|$|[^，。；的])"),
    re.compile(rf"第[{_DIGITS}]+章|Chapter\s+\d+\b|附录\s*[A-Z\d一二三四五六七八九十]"),
    re.compile(rf"第[{_DIGITS}]+节"),
    re.compile(rf"第[{_DIGITS}]+条"),
    re.compile(r"[一二三四五六七八九十]{1,3}\s*[、．.]"),
    re.compile(r"[（(][一二三四五六七八九十]{1,3}[）)]"),
    re.compile(r"\d{1,2}(?=[\s、．.][^\d])[、．.]?"),
    re.compile(r"\d{1,2}[.．]\d{1,2}(?![.．\d])"),
    re.compile(r"\d{1,2}([.．]\d{1,2}){2}(?![.．\d])"),
    re.compile(r"\d{1,2}([.．]\d{1,2}){3,}"),
)
_SURE = (0, 1, 2, 4)  # a short line with such a number is a heading in any type
_ARTICLE = re.compile(rf"第[{_DIGITS}]+条[\s\u3000]*[^，。；：、]{{0,20}}$")  # an article's title, as in contracts
_BRACKETED = 5  # numbers like （一）, which headings and items have alike
_PART = 7  # numbers like 1.2, which are one where the line is short too
_SENTENCE_END = tuple("。！？；;，,：:、….!?")
_NUMERALS = "〇一二三四五六七八九"
_LONGEST_HEADING = 60  # half-widths


def number_level(text: str) -> int | None:
    """The place of a line's number in the usual order, from 0 (第一编) on; None for a line without a number."""
    return next((level for level, pattern in enumerate(_LEVELS) if pattern.match(text)), None)


def is_plain_heading(text: str) -> bool:
    """Whether a line in the type of the text around it is a heading for its number alone: short, and no sentence."""
    level = number_level(text)
    if level is None or width(text) > _LONGEST_HEADING or text.endswith(_SENTENCE_END):
        return False
    return level in _SURE or level >= _PART or _ARTICLE.match(text) is not None


def has_own_text(text: str, before: str, after: str) -> bool:
    """Whether a line numbered （一） is a heading, which a text follows, rather than an item among others.

    Args:
        before, after: the paragraphs around it; empty at the document's ends.
    """
    if number_level(text) != _BRACKETED or width(text) > _LONGEST_HEADING or text.endswith(_SENTENCE_END):
        return False
    following = number_level(after)
    return bool(after) and number_level(before) != _BRACKETED and (following is None or following > _BRACKETED)


def format_number(number: int, form: str) -> str:
    """A number in one of Word's formats, as far as Chinese documents use them; else in digits."""
    if form.startswith(("chinese", "ideographDigital", "japaneseCounting", "taiwaneseCounting")):
        return _chinese_numeral(number)
    if form == "decimalEnclosedCircle" and 1 <= number <= 20:
        return chr(0x2460 + number - 1)
    if form == "upperLetter" or form == "lowerLetter":
        letter = chr(ord("A") + (number - 1) % 26) * ((number - 1) // 26 + 1)
        return letter if form == "upperLetter" else letter.lower()
    if form == "upperRoman" or form == "lowerRoman":
        return _roman_numeral(number) if form == "upperRoman" else _roman_numeral(number).lower()
    return str(number)


def _chinese_numeral(number: int) -> str:
    if number <= 0 or number >= 1000:
        return str(number)
    hundreds, remainder = divmod(number, 100)
    tens, ones = divmod(remainder, 10)
    text = f"{_NUMERALS[hundreds]}百" if hundreds else ""
    if tens:
        text += "十" if tens == 1 and not hundreds else f"{_NUMERALS[tens]}十"
    elif hundreds and ones:
        text += "零"
    return text + (_NUMERALS[ones] if ones else "")


def _roman_numeral(number: int) -> str:
    text = ""
    for value, letters in (
        (100, "C"),
        (90, "XC"),
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    ):
        while number >= value:
            text += letters
            number -= value
    return text
