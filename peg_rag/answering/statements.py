"""What a passage states, piece by piece: sentences, whole lists, and the cells of rows and records.

Why this exists: an answer is quoted, so what can be quoted must be found first, and it must make sense by itself. A
sentence is never cut. The items of a list stand together, under the line that introduces them. A cell is stated by its
row and column: `姓名: 张玮 | 分机: 8507`. A heading states nothing; it is what the statements under it are read with.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Kind = Literal["sentence", "list", "cell"]
Span = tuple[int, int]

_SENTENCE = re.compile(r"(?:[^。！？!?…\n]|(?<=[a-z])[!?](?=[^\s”’\"]))+(?:[。！？!?…]+[”’」』）)\"]*)?")
_STOP = re.compile(r"(?<=[a-z0-9)\"])\.(?=\s+[A-Z])")  # between two English sentences
_NUMERAL = r"[一二三四五六七八九十\d]{1,3}"
_MARK = rf"(?:[-*•·●○▪◆✓✔]\s|[•·●○▪◆]|\d{{1,2}}[.)）、](?!\d)|[（(]{_NUMERAL}[)）]|{_NUMERAL}、|[①-⑳]|step\s*\d)"
_ITEM = re.compile(rf"[ \t]*{_MARK}", re.IGNORECASE)
_LONGEST_NAME = 60  # characters
_LONGEST_CASE = 15  # characters of the name of a case
_STEP = re.compile(rf"第{_NUMERAL}步|首先|先|然后|接着|再|最后")
# A line without an end that states nothing: no punctuation but a colon, and no figure but its number.
_STATING = r"\d.。！？!?…：:；;，,|\n"
_HEADING = re.compile(
    rf"(?:#+ *)?(?:第{_NUMERAL}(?:章节|章|节|部分|条款|条|款|篇)|{_NUMERAL}[、.]|[\d.]+\s)?"
    rf"[^-*•·{_STATING}][^{_STATING}]*[：:]?"
)
_NUMBERED_HEADING = re.compile(rf"\s*(?:#+\s|第{_NUMERAL}(?:章|节|部分|篇)|\d+(?:\.\d+)+\s)[^。！？!?…；;，,|]*$")
_BRACKETED_HEADING = re.compile(r"\s*【[^】\n]{1,20}】[^。！？!?；;\n]{0,40}")  # 【丙线】镜湖步道，11月21日
_LONGEST_HEADING = 50  # characters
_LONGEST_LIST = 12  # items
_WORD = re.compile(r"\w")
_COLON = re.compile(r"：|(?<!\d):|:(?!\d)")
_BAR = re.compile(r" \| ")
# One blank parts fields too where a short name in Chinese follows it.
_SHORT_NAME = r"[\u3400-\u9fff]{2,8}(?:[（(][^（()）\s]{1,8}[）)])?[:：]\s?[^\s]"
_GAP = re.compile(rf"(?<![ \t\u3000])(?:[ \t\u3000]{{2,}}(?=[^:：\s]{{1,12}}[:：])|[ \t\u3000](?={_SHORT_NAME}))")
_INTRODUCTION = re.compile(r"[:：]\s*$|(?:以下|如下|下列|下面|步骤)[^。；]{0,12}。?\s*$")
_LONGEST_FIELD = 80  # characters
_CLAUSE = re.compile(r"，|\d\s*[年月日号点时]")  # of a value that states something
_SHORT_FIELD = 12  # characters up to which a field may end as a sentence does


@dataclass(frozen=True, slots=True)
class Cell:
    """A named value of a row: where `name: value` stands in the passage, and its two parts."""

    span: Span
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A piece of a passage that can be quoted.

    Attributes:
        kind: `sentence`, `list` (with the line that introduces it) or `cell` (of a row or record).
        span: where it stands in the passage: characters from, to.
        text: the passage's characters there.
        heading: the line that it stands under within the passage, or an empty string.
        cell: the value, for a cell.
        row: all cells of its row, for a cell.
    """

    kind: Kind
    span: Span
    text: str
    heading: str = ""
    cell: Cell | None = None
    row: tuple[Cell, ...] = ()


def start_of(statement: Statement) -> int:
    """Where the row of a cell, or the sentence or list, begins: two cells of a row have this in common."""
    return statement.row[0].span[0] if statement.row else statement.span[0]


def statements_of(text: str, start: int = 0) -> Iterator[Statement]:
    """The statements of a passage from character `start` on, in their order. Linear in time."""
    lines = [line for line in _split_lines(text, start) if _WORD.search(text, *line)]
    heading = ""
    number = 0
    while number < len(lines):
        line = text[slice(*lines[number])]
        end = number + 1
        if (end := _list_end(text, lines, number)) > number + 1:
            yield from _list_statements(text, lines[number:end], heading)
        elif cells := row_cells(text, lines[number]):
            end = number + 1
            while not _BAR.search(text, *lines[number]) and end < len(lines) and (more := row_cells(text, lines[end])):
                if len(more) > 1 and _BAR.search(text, *lines[end]):
                    break
                cells += more  # a record may have a line for each of its fields
                end += 1
            yield from _cell_statements(text, cells, heading)
        elif _is_heading(line, text, lines, number):
            heading = line.strip()
            end = number + 1
        else:
            end = number + 1
            yield from _split_sentences(text, lines[number], heading)
            if _BRACKETED_HEADING.fullmatch(line):  # it states something, and what follows is about it
                heading = line.strip()
        number = end


def sentences_of(text: str) -> Iterator[tuple[int, str]]:
    """(offset, statement) for every statement of a text; the cells of a row count as one."""
    last = -1
    for statement in statements_of(text):
        span = (statement.row[0].span[0], statement.row[-1].span[1]) if statement.row else statement.span
        if span[0] >= last:
            yield span[0], text[slice(*span)]
            last = span[1]


def announces_more(text: str) -> bool:
    """Whether a sentence only announces what follows it, as 可按以下步骤接软管。 does."""
    return _INTRODUCTION.search(text) is not None


def without_mark(text: str) -> str:
    """A statement without the number or bullet of a list's item, which is no figure of what it states."""
    return _ITEM.sub("", text, count=1) if _ITEM.match(text) else text


def names_cases(text: str) -> bool:
    """Whether the items of a list, as 碰倒展品：站在原地, each begin with a name and a colon, and are no steps."""
    names = [_name_and_value(without_mark(line).strip())[0] for line in text.splitlines() if _ITEM.match(line)]
    return bool(names) and all(0 < len(name) <= _LONGEST_CASE and not _STEP.match(name) for name in names)


def row_cells(text: str, line: Span) -> tuple[Cell, ...]:
    """The cells of a line in the form `name: value | name: value`; none if it has another form."""
    cells = []
    pieces = _split_cells(text[slice(*line)])
    for position, piece in pieces:
        span = _strip_span(text, line[0] + position, line[0] + position + len(piece))
        name, value = _name_and_value(text[slice(*span)])
        if name and value:
            cells.append(Cell(span, name, value))
        elif len(pieces) == 1 or not piece.strip():
            return ()
        else:
            cells.append(Cell(span, "", piece.strip()))
    if len(cells) == 1 and not _is_field(cells[0]):
        return ()
    return tuple(cells)


def _name_and_value(piece: str) -> tuple[str, str]:
    """The parts before and after the first colon, which 9:00 has none of; empty if there is none early enough."""
    colon = _COLON.search(piece[: _LONGEST_NAME + 1])
    return (piece[: colon.start()].rstrip(), piece[colon.end() :].lstrip()) if colon else ("", "")


def _split_cells(line: str) -> list[tuple[int, str]]:
    """(offset, piece): a row at its bars; a line of fields where a wide gap is followed by another field."""
    separator = _BAR if _BAR.search(line) else _GAP
    cuts = [(match.start(), match.end()) for match in separator.finditer(line)]
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(line)]
    return [(start, line[start:end]) for start, end in zip(starts, ends, strict=True)]


def _is_field(cell: Cell) -> bool:
    """Whether a lone `name: value` is a field, and no sentence with a colon in it."""
    if len(_SENTENCE.findall(cell.value)) > 1 or len(cell.value) > _LONGEST_FIELD:
        return False
    if cell.value[-1] in "。！？!?" and len(cell.value) > _SHORT_FIELD:
        return False
    if cell.value[-1] in "；;" and len(cell.value) > _SHORT_FIELD and _CLAUSE.search(cell.value):
        return False
    return len(cell.name) <= 12 and not re.search(r"[，。；！？,;!?]", cell.name) and not _ITEM.match(cell.name)


def _split_lines(text: str, start: int) -> Iterator[Span]:
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield start, end
        start = end + 1


def _cell_statements(text: str, cells: tuple[Cell, ...], heading: str) -> Iterator[Statement]:
    for cell in cells:
        yield Statement("cell", cell.span, text[slice(*cell.span)], heading, cell, cells)


def _list_end(text: str, lines: list[Span], number: int) -> int:
    """The line after a list that begins at this line, or with the line that introduces it; else `number`."""
    first = number
    if not _ITEM.match(text, *lines[first]):
        if not _INTRODUCTION.search(text, *lines[first]):
            return number
        first += 1
    end = first
    while end < len(lines) and end - first < _LONGEST_LIST and _ITEM.match(text, *lines[end]):
        end += 1
    return end if end - first >= 2 else number


def _list_statements(text: str, lines: list[Span], heading: str) -> Iterator[Statement]:
    """A list with the sentence that introduces it, then each of its items."""
    introduction = [lines[0]] if _ITEM.match(text, *lines[0]) else _sentence_spans(text, lines[0])
    for span in introduction[:-1]:
        yield Statement("sentence", span, text[slice(*span)], heading)
    span = _strip_span(text, introduction[-1][0] if introduction else lines[0][0], lines[-1][1])
    yield Statement("list", span, text[slice(*span)], heading)
    for line in lines:
        if _ITEM.match(text, *line):
            yield from _split_sentences(text, line, heading)


def _strip_span(text: str, start: int, end: int) -> Span:
    body = text[start:end]
    return start + len(body) - len(body.lstrip()), end - (len(body) - len(body.rstrip()))


def _is_heading(line: str, text: str, lines: list[Span], number: int) -> bool:
    """A line that is marked as a title, or is short, states nothing and has something under it."""
    stripped = line.strip()
    if _NUMBERED_HEADING.fullmatch(line) and len(stripped) <= _LONGEST_HEADING:
        return True
    if len(stripped) > _LONGEST_HEADING or not _HEADING.fullmatch(stripped):
        return False
    following = text[slice(*lines[number + 1])].strip() if number + 1 < len(lines) else ""
    return (
        not following
        or _ITEM.match(following) is not None
        or not _HEADING.fullmatch(following)
        or _NUMBERED_HEADING.match(following) is not None
    )


def _split_sentences(text: str, line: Span, heading: str) -> Iterator[Statement]:
    for span in _sentence_spans(text, line):
        yield Statement("sentence", span, text[slice(*span)], heading)


def _sentence_spans(text: str, line: Span) -> list[Span]:
    spans = []
    for piece in _SENTENCE.finditer(text, *line):
        cuts = [piece.start(), *(stop.end() for stop in _STOP.finditer(text, *piece.span())), piece.end()]
        for begin, end in pairwise(cuts):
            body = text[begin:end]
            if len(_WORD.findall(body)) >= 2:
                spans.append(_strip_span(text, begin, end))
    return spans
