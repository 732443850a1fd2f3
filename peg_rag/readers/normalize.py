"""Text as people type it: one kind of line break, no control characters, no look-alikes of common characters.

A PDF says which glyphs it shows, and fonts give one glyph to several characters, so that 工长门 may come out as the
radicals ⼯⻓⻔. Nobody searches for those. They are replaced one for one, in stored text too; full-width punctuation
and all else that an author chose stays as it is.
"""

import re
import unicodedata

# The radicals without a compatibility decomposition, by Unicode's property Equivalent_Unified_Ideograph.
_RADICALS = (
    "⺁⺂⺃⺄⺅⺆⺇⺈⺉⺊⺋⺌⺍⺎⺏⺐⺑⺒⺓⺔⺕⺖⺗⺘⺙⺛⺜⺝⺞⺟⺠⺡⺢⺣⺤⺥⺦⺧⺨⺩⺪⺫⺬⺭⺮⺯⺰⺱⺲⺳⺴⺵⺶⺷⺸⺹⺺⺻⺼⺽⺾⺿⻀⻁⻂⻃⻄⻅⻆⻇⻈⻉⻊⻋⻌⻍⻎⻏⻐⻑⻒⻓⻔⻕⻖⻗⻘⻙"
    "⻚⻛⻜⻝⻞⻟⻠⻡⻢⻣⻤⻥⻦⻧⻨⻩⻪⻫⻬⻭⻮⻯⻰⻱⻲⻳"
)
_IDEOGRAPHS = (
    "厂乛乚乙亻冂𠘨刀刂卜㔾小小兀尣尢𡯂巳幺彑彐忄心扌攵旡日月歺母民氵氺灬爫爫丬牛犭王𤴔目示礻𥫗糹纟罓罒㓁冗𦉫羊𦍌𦍋耂肀聿肉𦥑艹艹艹虎衤覀西见角𧢲讠贝𧾷车辶辶辶邑钅長镸长门𨸏阝雨青韦"
    "页风飞食𩙿飠饣𩠐马骨鬼鱼鸟卤麦黄黾斉齐歯齿竜龙龜亀龟"
)
_COMPATIBLE = ((0x2F00, 0x2FD6), (0xF900, 0xFB07), (0x2F800, 0x2FA20))  # Kangxi radicals, ideographs, Latin ligatures
# The forms that punctuation has in vertical text.
_VERTICAL_FORMS = "︐︑︒︓︔︕︖︗︘︙︰︱︲︵︶︷︸︹︺︻︼︽︾︿﹀﹁﹂﹃﹄"
_PUNCTUATION = "，、。：；！？〖〗…‥—–（）｛｝〔〕【】《》〈〉「」『』"
_OTHERS = {
    "⼾": "户",  # decomposes to the traditional 戶; fonts for simplified Chinese show 户
    "\u00a0": " ",
    "\u2028": "\n",
    "\u2029": "\n",
    "\u0085": "\n",
    "\uf06c": "●",  # bullets of the fonts Wingdings and Symbol
    "\uf0b7": "•",
    "\uf0a7": "▪",
    "\uf0d8": "➢",
    "\uf0fc": "✓",
}
_CONTROLS = [*range(0x09), 0x0B, *range(0x0E, 0x20), *range(0x7F, 0x85), *range(0x86, 0xA0), 0xAD, 0x200B, 0x2060]
_CONTROLS += [0xFEFF, 0xFFFE, 0xFFFF]
_BLANKS = " \t\u3000"
_SPACED = re.compile(r"[\u4e00-\u9fff](\s+[\u4e00-\u9fff]){1,3}")
_MARKS = tuple("，。；：、！？")
_BRACKETS = ("（", "(")


def _character_table() -> dict[int, str | None]:
    table: dict[int, str | None] = dict.fromkeys(_CONTROLS)
    for first, end in _COMPATIBLE:
        table |= {code: unicodedata.normalize("NFKC", chr(code)) for code in range(first, end)}
    table |= dict(zip(map(ord, _RADICALS), _IDEOGRAPHS, strict=True))
    table |= dict(zip(map(ord, _VERTICAL_FORMS), _PUNCTUATION, strict=True))
    return table | {ord(character): replacement for character, replacement in _OTHERS.items()}


_TABLE = _character_table()


def replace_characters(text: str) -> str:
    """The text without control characters, with radicals, compatibility ideographs and ligatures as they are typed."""
    return text.translate(_TABLE)


def clean(text: str) -> str:
    """One kind of line break, no control characters, no trailing blanks, at most one empty line in a row."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n")
    text = "\n".join(line.rstrip(_BLANKS) for line in replace_characters(text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def clean_line(text: str) -> str:
    """The text in one line: every run of blanks and line breaks is one space, or nothing between Chinese characters."""
    return join_lines(replace_characters(text).split("\n"))


def clean_cell(text: str) -> str:
    """A cell's text, its lines as its author broke them; one character a line is a vertical label, and one word."""
    lines = [clean_line(line) for line in text.replace("\x0b", "\n").split("\n")]
    lines = [line for line in lines if line]
    return ("" if all(len(line) == 1 for line in lines) else "\n").join(lines)


def flatten_cell(text: str) -> str:
    """The lines of a cell in one, with a space where a line ends without a mark: two names, two items."""
    flat = ""
    for line in text.split("\n"):
        flat += line if not flat or flat.endswith(_MARKS) or line.startswith(_BRACKETS) else f" {line}"
    return flat


def join_spaced(name: str) -> str:
    """A name whose few Chinese characters are spread out (`姓 名`) as one word."""
    return name.replace(" ", "") if _SPACED.fullmatch(name) else name


def join_lines(lines: list[str]) -> str:
    """Lines of one sentence as one: Chinese ones meet without a space, hyphenated words are put together."""
    text = ""
    last = ""
    for line in (" ".join(line.split()) for line in lines):
        if text and line and _is_hyphenated(text, line):
            text = text[:-1]
        elif text and line and not _is_broken_number(last, line):
            text += _space_between(text[-1], line[0])
        text += line
        last = line
    return text


def _is_broken_number(before: str, after: str) -> bool:
    """Whether a number goes on in the next line, as in a narrow cell of Chinese text, which is broken anywhere."""
    return before[-1:].isdigit() and after[0].isdigit() and any(map(is_wide, before))


def _is_hyphenated(before: str, after: str) -> bool:
    return before.endswith("-") and before[-2:-1].islower() and after[0].islower()


def _space_between(before: str, after: str) -> str:
    return "" if is_wide(before) or is_wide(after) else " "


def is_wide(character: str) -> bool:
    """Whether a character is as wide as it is high: Chinese characters and their punctuation."""
    return (
        "\u2e80" <= character <= "\u9fff"
        or "\uf900" <= character <= "\ufaff"
        or "\uff00" <= character <= "\uff60"
        or ("\U00020000" <= character <= "\U0003ffff")
    )


def width(text: str) -> int:
    """Half-widths: a Chinese character takes two."""
    return sum(2 if is_wide(character) else 1 for character in text)
