"""The rules of a PDF's page, and those that its tables lack: sides without a frame, ends that the page cuts, stripes.

A page holds lines and filled rectangles in no order. pdfplumber finds tables where rules cross; what is given here lets
it find those that are drawn with fewer.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from peg_rag.readers.pieces import Rule

_SNAP = 3.0  # points
_FEWEST_SIDES = 3  # vertical rules that end together at the page's end
_THREE_LINES = 3  # above, below and under the header of a table
_FEWEST_RULES = 4  # between and around the rows of a table without vertical ones
_LARGEST_LEADING = 1.2  # of a glyph's height, between the lines of a row
_LARGEST_INNER_GAP = 0.75  # of a glyph's height, between the lines of a cell
_MOST_PLAIN_ROWS = 2  # above the first shaded one
_MOST_EDGES = 5_000  # beyond which a page is a drawing
_WIDEST_STRIPE = 150.0  # points from one shaded row to the next


def find_missing_sides(page: Any) -> list[dict[str, Any]]:
    """The left and right sides of tables that have rules between their rows and columns, but no frame around them."""
    verticals = [(edge["x0"], edge["top"], edge["bottom"]) for edge in page.edges if edge["orientation"] == "v"]
    rules: dict[tuple[int, int], list[tuple[float, float, float]]] = defaultdict(list)
    for top, x0, x1 in _horizontal_rules(page):
        rules[round(x0 / _SNAP), round(x1 / _SNAP)].append((top, x0, x1))
    sides = []
    for spans in rules.values():
        for (upper, x0, x1), (lower, _, _) in pairwise(spans):
            crossing = [x for x, top, bottom in verticals if top < upper + _SNAP and bottom > lower - _SNAP]
            if any(x0 + _SNAP < x < x1 - _SNAP for x in crossing):
                sides += [
                    _vertical_edge(side, upper, lower)
                    for side in (x0, x1)
                    if not any(abs(x - side) <= _SNAP for x in crossing)
                ]
    return sides


def find_open_ends(page: Any) -> list[dict[str, Any]]:
    """The rules that are missing where the page's end cuts a row: its sides end together, with nothing between them."""
    if len(page.edges) > _MOST_EDGES:
        return []
    rules = _horizontal_rules(page)
    ends: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for edge in page.edges:
        if edge["orientation"] == "v":
            ends["top", round(edge["top"])].append(edge)
            ends["bottom", round(edge["bottom"])].append(edge)
    lines = []
    for (side, _), edges in ends.items():
        sides = snap_edges(edge["x0"] for edge in edges)
        if len(sides) < _FEWEST_SIDES:
            continue
        left = sides[0]
        right = max(edge["x0"] for edge in edges)
        height = edges[0][side]
        covered = sum(max(0.0, min(x1, right) - max(x0, left)) for top, x0, x1 in rules if abs(top - height) <= _SNAP)
        reach = (min(edge["top"] for edge in edges), max(edge["bottom"] for edge in edges))
        is_table = any(
            reach[0] - _SNAP <= top <= reach[1] + _SNAP and abs(x0 - left) <= _SNAP and abs(x1 - right) <= _SNAP
            for top, x0, x1 in rules
        )
        if is_table and covered < (right - left) / 2:
            lines.append(_horizontal_edge(height, left, right))
    return lines


def ends_at(ends: list[dict[str, Any]], height: float) -> bool:
    return any(abs(end["top"] - height) <= _SNAP for end in ends)


def _horizontal_rules(page: Any) -> list[Rule]:
    """Heights and ends of the page's horizontal rules, from top to bottom, pieces in a row taken for one."""
    edges = sorted((edge["top"], edge["x0"], edge["x1"]) for edge in page.edges if edge["orientation"] == "h")
    rules: list[Rule] = []
    by_height: list[list[tuple[float, float, float]]] = []
    for edge in edges:
        if by_height and edge[0] - by_height[-1][0][0] < 1:
            by_height[-1].append(edge)
        else:
            by_height.append([edge])
    for level in by_height:
        pieces = sorted((x0, x1) for _, x0, x1 in level)
        start, end = pieces[0]
        for x0, x1 in pieces[1:]:
            if x0 > end + _SNAP:
                rules.append((level[0][0], start, end))
                start = x0
                end = x1
            else:
                end = max(end, x1)
        rules.append((level[0][0], start, end))
    return rules


def find_banded_rules(page: Any) -> list[tuple[float, float, list[float]]]:
    """Ends and heights of horizontal rules under one another, four or more of one length, as between a table's rows."""
    return [rules for rules in _equal_rules(page) if len(rules[2]) >= _FEWEST_RULES]


def find_three_line_rules(page: Any) -> Iterator[tuple[float, float, list[float], list[Rule]]]:
    """Ends and heights of three rules of one length, and the short rules between the first two of them."""
    for left, right, tops in _equal_rules(page):
        if len(tops) == _THREE_LINES:
            between = [rule for rule in _horizontal_rules(page) if tops[0] < rule[0] < tops[1]]
            yield left, right, tops, [rule for rule in between if left < rule[2] and rule[1] < right]


def _equal_rules(page: Any) -> list[tuple[float, float, list[float]]]:
    """The ends and heights of horizontal rules, those of one length and place together."""
    if not page.lines and not page.rects and not page.curves:
        return []
    heights: dict[tuple[int, int], list[float]] = defaultdict(list)
    ends: dict[tuple[int, int], tuple[float, float]] = {}
    for top, x0, x1 in _horizontal_rules(page):
        key = (round(x0 / _SNAP), round(x1 / _SNAP))
        ends[key] = (x0, x1)
        if not heights[key] or top - heights[key][-1] > _SNAP:
            heights[key].append(top)
    return [(*ends[key], tops) for key, tops in heights.items()]


def find_stripes(page: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The sides of cells in tables whose rows are told by shading every other one: they go on through the others.

    Returns:
        The vertical edges, and the horizontal ones around rows above and below that are not shaded.
    """
    rows: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for rect in page.rects:
        if rect.get("fill") and rect["width"] > _SNAP and rect["height"] > _SNAP:
            rows[round(rect["top"]), round(rect["bottom"])].append((rect["x0"], rect["x1"]))
    tables: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    for extent, cells in rows.items():
        sides = snap_edges(x for cell in cells for x in cell)
        if len(sides) >= _FEWEST_SIDES:
            tables[tuple(round(side / _SNAP) for side in sides)].append(extent)
    verticals: list[dict[str, Any]] = []
    horizontals: list[dict[str, Any]] = []
    for key, extents in tables.items():
        sides = [side * _SNAP for side in key]
        extents.sort()
        between = [(float(upper), float(lower)) for (_, upper), (lower, _) in pairwise(extents)]
        gaps = [(upper, lower) for upper, lower in between if _SNAP < lower - upper < _WIDEST_STRIPE]
        last = _find_last_row(page, sides, extents[-1][1]) if gaps else None
        if last is not None:
            gaps.append((extents[-1][1], last))
            horizontals.append(_horizontal_edge(last, sides[0], sides[-1]))
        lower = float(extents[0][0])
        for top in _find_rows_above(page, sides, lower) if gaps else []:
            gaps.append((top, lower))
            horizontals.append(_horizontal_edge(top, sides[0], sides[-1]))
            lower = top
        verticals += [_vertical_edge(side, upper, lower) for upper, lower in gaps for side in sides]
    return verticals, horizontals


def _find_last_row(page: Any, sides: list[float], top: float) -> float | None:
    """Where a row ends that stands right below the last shaded one; None where there is other text."""
    chars = [char for char in _chars_between(page, sides) if char["top"] > top - 1]
    bottom = top
    row = []
    for char in sorted(chars, key=lambda char: char["top"]):
        if char["top"] - bottom > _LARGEST_LEADING * (char["bottom"] - char["top"]):
            break
        bottom = max(bottom, char["bottom"])
        row.append(char)
    return bottom + 1 if _are_cells(row, sides) else None


def _find_rows_above(page: Any, sides: list[float], bottom: float) -> Iterator[float]:
    """Where rows begin that stand right above the first shaded one, from below: a header, and a row under it."""
    rules = [top for top, x0, x1 in _horizontal_rules(page) if abs(x0 - sides[0]) < _SNAP > abs(x1 - sides[-1])]
    chars = sorted(_chars_between(page, sides), key=lambda char: -char["bottom"])
    distance = _LARGEST_LEADING
    for _ in range(_MOST_PLAIN_ROWS):
        rule = max((height for height in rules if height < bottom - _SNAP), default=0.0)
        row = _take_row_above([char for char in chars if char["top"] > rule - 1], bottom, distance)
        if not _are_cells(row, sides):
            return
        top = float(min(char["top"] for char in row))
        has_rule = top - rule < _LARGEST_LEADING * row[0]["height"]
        bottom = rule if has_rule else top - 1
        distance = 2 * _LARGEST_LEADING  # now there is padding on both sides
        yield bottom


def _take_row_above(chars: list[Any], bottom: float, distance: float) -> list[Any]:
    """The glyphs of the lines right above a height that stand close to each other.

    Args:
        chars: from the page's bottom up.
        distance: of a glyph's height, that the last line may stand above.
    """
    row: list[Any] = []
    top = bottom
    for char in chars:
        if (char["top"] + char["bottom"]) / 2 > bottom:
            continue
        if top - char["bottom"] > (_LARGEST_INNER_GAP if row else distance) * char["height"]:
            break
        row.append(char)
        top = min(top, char["top"])
    return row


def _chars_between(page: Any, sides: list[float]) -> list[Any]:
    chars = [char for char in page.chars if not char["text"].isspace()]
    return [char for char in chars if sides[0] < char["x1"] and char["x0"] < sides[-1]]


def _are_cells(row: list[Any], sides: list[float]) -> bool:
    """Whether glyphs stand in several columns and on no side."""
    columns = {sum(side < (char["x0"] + char["x1"]) / 2 for side in sides) for char in row}
    is_crossed = any(char["x0"] < side - 1 and side + 1 < char["x1"] for char in row for side in sides)
    return len(columns) > 1 and not is_crossed


def _horizontal_edge(top: float, x0: float, x1: float) -> dict[str, Any]:
    """An edge in pdfplumber's form."""
    return {"object_type": "line", "x0": x0, "x1": x1, "top": top, "bottom": top, "width": x1 - x0, "height": 0.0}


def _vertical_edge(x: float, top: float, bottom: float) -> dict[str, Any]:
    """An edge in pdfplumber's form."""
    height = bottom - top
    return {"object_type": "line", "x0": x, "x1": x, "top": top, "bottom": bottom, "width": 0.0, "height": height}


def snap_edges(values: Any) -> list[float]:
    """Coordinates in order, those within a few points of each other taken for one."""
    snapped: list[float] = []
    for value in sorted(values):
        if not snapped or value - snapped[-1] > _SNAP:
            snapped.append(value)
    return snapped
