"""Forms drawn as tables: names beside their values, with a table of items in the middle and signatures at the end.

Such a grid has no header of its own, and its cells are merged differently from row to row. Each row is judged by the
cells that it has: names and values in turn make pairs, a row of names alone begins a table of items, which goes on
until the next row of pairs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from peg_rag.readers.names import ends_in_name_word, is_name, is_value
from peg_rag.readers.normalize import join_spaced

Pairs = tuple[tuple[str, str], ...]

_COLONS = (":", "：")
_FEWEST_ITEM_COLUMNS = 3
_FORM_WORDS = re.compile(
    r"(税号|识别号|税率|税额|征收率|开户行|开户银行|户名|账号|帐号|账户|卡号|编码|号码|单号|大写|小写|传真|邮编|手机|邮箱|网址|"
    r"购买方|销售方|购货方|销货方|购方|销方|买方|卖方|甲方|乙方|供方|需方|收货方|发货方|收货人|发货人|联系人|收款人|付款人|开票人|经办人|"
    r"经手人|负责人|申请人|制单|制表|复核|审核|审批|批准|签收|验收|出纳|会计|信息|质保期|保修期|保修|有效期|交期|交货期|品名|品牌|称谓|年龄|"
    r"性别|民族|籍贯|学历|学位|专业|职务|职称|职业|出生年月|身份证号|工号|学号)[）)]?$"
)
# The total of an invoice in figures stands behind the one in words, in a cell of its own or not.
_SMALL_TOTAL = re.compile(r"\s*[（(]小写[)）]\s*[:：]?\s*")
_AMOUNT_IN_WORDS = re.compile(
    r"[零〇一二三四五六七八九十壹贰叁肆伍陆柒捌玖拾][零〇一二三四五六七八九十百千万亿壹贰叁肆伍陆柒捌玖拾佰仟萬圆元角分整正\s]*[圆元角分整正]\s*$"
)
_LABELLED = re.compile(r"([^：:]{1,26})[：:]\s*(\S.*)")


@dataclass(frozen=True, slots=True)
class FormPart:
    """Rows of a form of one kind, from `first` to before `end`: pairs, a table of items, a title, or other text."""

    kind: Literal["pairs", "items", "title", "text"]
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    columns: int  # that it covers


def find_form(grid: Sequence[Sequence[str]], merged: Sequence[Sequence[bool]]) -> list[FormPart] | None:
    """The parts of a form, from the first row to the last; None for a grid that is a table like others.

    Args:
        grid: the cells' texts, merged cells filled.
        merged: which cells are one with the cell at their left.
    """
    rows = [_cells_of(row, spans) for row, spans in zip(grid, merged, strict=True)]
    first = next((number for number, row in enumerate(rows) if len(row) > 1), None)
    if first is None or not _are_named(rows[first]):
        return None
    parts = list(_split_rows(rows, len(grid[0])))
    is_even = len({tuple(spans) for spans in merged}) == 1 and all(all(row) for row in grid)
    if any(part.kind == "items" for part in parts):
        return parts
    has_rest = any(part.kind == "text" and len(rows[part.first]) > 1 for part in parts)
    return None if has_rest or is_even else parts


def read_pairs(row: Sequence[str], merged: Sequence[bool]) -> Pairs:
    """(name, value) of a row of a form; a name alone has an empty value, a text without a name an empty name."""
    cells = _cells_of(row, merged)
    by_colon = any(cell.text.endswith(_COLONS) for cell in cells)
    pairs: list[tuple[str, str]] = []
    name = ""
    for number, cell in enumerate(cells):
        is_label = cell.text.endswith(_COLONS) if by_colon else number % 2 == 0 and len(cells) > 1
        if is_label:
            if name:
                pairs.append(("", name))
            name = cell.text.rstrip(":： ")
        else:
            pairs += read_value(name, cell.text)
            name = ""
    if name:
        pairs.append(("", name))
    return tuple(pairs)


def read_value(name: str, text: str) -> Pairs:
    """A value under its name, or the several of one cell: lines with own names, an amount in words and in figures."""
    in_words, in_figures = _split_amounts(text)
    if in_words and in_figures:
        return ((name, in_words), ("小写", in_figures))
    labelled = [_LABELLED.fullmatch(line) for line in text.split("\n")]
    if not name or len(labelled) < 2 or not all(labelled):
        return ((name, text),)
    return tuple((f"{name} {match[1].strip()}", match[2]) for match in labelled if match)


def is_form_name(text: str) -> bool:
    """Whether a text ends in a word that forms call their values by."""
    text = join_spaced(text)
    return ends_in_name_word(text) or _FORM_WORDS.search(text) is not None


def is_signature(row: Sequence[str], merged: Sequence[bool]) -> bool:
    """Whether a row under a table is none of its records: names with a colon, each with its value."""
    cells = _cells_of(row, merged)
    names = [cell.text.endswith(_COLONS) for cell in cells]
    return bool(cells) and names == [number % 2 == 0 for number in range(len(cells))]


def _split_rows(rows: Sequence[Sequence[_Cell]], columns: int) -> Iterator[FormPart]:
    number = 0
    pairs: Sequence[_Cell] = ()  # the row above, where it holds pairs
    while number < len(rows):
        pairs_above = pairs
        pairs = ()
        end = number + 1
        if len(rows[number]) == 1:
            has_more = end < len(rows) and len(rows[end]) > 1
            is_title = has_more and rows[number][0].columns == columns and is_name(rows[number][0].text)
            yield FormPart("title" if is_title else "text", number, end)
        elif _begins_items(rows, number, columns) and not _continue_pairs(rows[number], pairs_above):
            while end < len(rows) and len(rows[end]) > 1 and not _are_pairs(rows[end]):
                if _begins_items(rows, end, columns):
                    break
                end += 1
            yield FormPart("items", number, end)
        elif _are_pairs(rows[number]) or _are_alike(rows[number], pairs_above):
            pairs = rows[number]
            yield FormPart("pairs", number, end)
        else:
            yield FormPart("text", number, end)
        number = end


def _are_alike(cells: Sequence[_Cell], pairs: Sequence[_Cell]) -> bool:
    """Whether a row is divided as the pairs above it, and has names where they have theirs."""
    if not pairs or [cell.columns for cell in cells] != [cell.columns for cell in pairs]:
        return False
    if not all(is_name(cell.text) and not is_value(cell.text) for cell in cells[::2]):
        return False
    return len(cells) % 2 == 0 and not any(is_form_name(cell.text) for cell in cells[1::2])


def _continue_pairs(cells: Sequence[_Cell], pairs: Sequence[_Cell]) -> bool:
    """Whether a row is divided as the pairs above it, and known names stand where they have theirs and nowhere else."""
    if [cell.columns for cell in cells] != [cell.columns for cell in pairs]:
        return False
    return [is_form_name(cell.text) for cell in cells] == [number % 2 == 0 for number in range(len(cells))]


def _begins_items(rows: Sequence[Sequence[_Cell]], number: int, columns: int) -> bool:
    """Whether a row names the columns of the row below it, and that row holds neither pairs nor names."""
    header = rows[number]
    if len(header) < _FEWEST_ITEM_COLUMNS or sum(cell.columns for cell in header) < 0.6 * columns:
        return False
    if not all(is_name(cell.text) and not cell.text.endswith(_COLONS) for cell in header) or number + 1 == len(rows):
        return False
    names = sum(is_form_name(cell.text) for cell in header)
    below = rows[number + 1]
    return 2 * names >= len(header) and len(below) > 1 and not _are_pairs(below) and not _are_names(below)


def _are_names(cells: Sequence[_Cell]) -> bool:
    return all(is_name(cell.text) for cell in cells) and 2 * sum(is_form_name(cell.text) for cell in cells) > len(cells)


def _are_pairs(cells: Sequence[_Cell]) -> bool:
    """Whether names and values take turns, or one value reaches over the columns beside its name."""
    if _are_named(cells):
        return True
    return len(cells) == 2 and cells[1].columns > max(1, cells[0].columns) and is_name(cells[0].text)


def _are_named(cells: Sequence[_Cell]) -> bool:
    """Whether a row says for certain that it holds names with their values: by colons, or by the names' words."""
    if len(cells) > 1 and cells[0].text.endswith(_COLONS):
        return True
    names = cells[::2]
    values = cells[1::2]
    if not values or len(names) != len(values):
        return False
    if not all(is_name(cell.text) and not is_value(cell.text) for cell in names):
        return False
    known = sum(is_form_name(cell.text) for cell in names)
    return 2 * known >= len(names) and not any(is_form_name(cell.text) for cell in values)


def _cells_of(row: Sequence[str], merged: Sequence[bool]) -> list[_Cell]:
    """The cells that hold something, merged ones as one."""
    cells: list[_Cell] = []
    for text, is_merged in zip(row, merged, strict=True):
        if is_merged and cells and cells[-1].text == text:
            cells[-1] = _Cell(text, cells[-1].columns + 1)
        elif text:
            cells.append(_Cell(text, 1))
    return [part for cell in cells for part in _split_total(cell)]


def _split_total(cell: _Cell) -> Iterator[_Cell]:
    """The amounts in words and in figures that one cell of an invoice holds, with the name of the second."""
    in_words, in_figures = _split_amounts(cell.text)
    if not in_figures:
        yield cell
        return
    if in_words:
        yield _Cell(in_words, max(1, cell.columns - 2))
    yield _Cell("小写", 1)
    yield _Cell(in_figures, 1)


def _split_amounts(text: str) -> tuple[str, str]:
    """The amount in words and the one in figures, which stands behind `（小写）`; else the text and nothing."""
    match = _SMALL_TOTAL.search(text)
    if match is None or (match.start() and not _AMOUNT_IN_WORDS.search(text, 0, match.start())):
        return text, ""
    return text[: match.start()], text[match.end() :]
