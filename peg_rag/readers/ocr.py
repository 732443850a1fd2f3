"""Scanned pages → lines, by RapidOCR on ONNX Runtime, whose models come with the package and need no network.

A page is turned into a picture and let go before the next. Where the paper lay at an angle, the lines' boxes say by how
much, and are turned back before they are put in order; the boxes that are kept are those on the page as it is. A short
box is upright whatever the angle: the long ones are heard first, and then what stands at one height.

Costs 1 to 10 s a page on two cores and about 900 MB of memory.
"""

import math
import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate, pairwise
from statistics import median
from typing import Any

from peg_rag.extras import require
from peg_rag.readers.normalize import clean_line, is_wide, width
from peg_rag.readers.pieces import Item, Line, rounded_box

_DOTS_PER_INCH = 200
_MOST_PIXELS = 25_000_000
_LEAST_SCORE = 0.5
_SAME_TYPE = 0.25  # of the usual size that a box of the same type may differ
_BROAD_LETTERS = 1.25  # times the usual breadth, from which letters are of a larger type
_FEWEST_LETTERS = 4  # that tell how broad letters are
_TYPE_SHARE = 0.75  # of a line's box that its type is high
_CORNER_SLACK = 4.0  # pixels by which one end of a box may be too high or too low
_ANGLE_STEP = 0.0005  # radians
_SAME_HEIGHT = 0.15  # of a box's height that the ends of two boxes of one line may differ
_SAME_LINE = 0.45  # of the type size that the middles of two pieces of one line may differ
_BROKEN_GAP = 0.2  # of the type size, up to which two boxes side by side are one text
_BRACKET_GAP = 1.0  # the same within brackets
_HIGH = 1.5  # times its breadth that a box of vertical text is high
_OPENING = re.compile(r"[(（]")
_CLOSING = re.compile(r"[)）]")
_DASH = "—"
_DASH_READ = "一"  # what a dash alone in a cell is taken for
_OTHER_NUMERALS = ("二", "三")


def recognise_pages(data: bytes, numbers: Sequence[int]) -> Iterator[tuple[int, list[Item]]]:
    """(page number, lines) of the pages with these numbers, from 1.

    Raises:
        MissingExtra: the extra `ocr` is not installed.
    """
    engine = _load_engine()
    pdfium = require("pypdfium2", "ocr")
    document = pdfium.PdfDocument(data)
    try:
        for number in numbers:
            page = document[number - 1]
            width, height = page.get_size()
            scale = min(_DOTS_PER_INCH / 72, math.sqrt(_MOST_PIXELS / max(width * height, 1)))
            picture = page.render(scale=scale).to_numpy()
            page.close()
            yield number, _recognize_lines(engine(picture), number, scale)
    finally:
        document.close()


@cache
def _load_engine() -> Any:
    rapidocr = require("rapidocr", "ocr")
    require("onnxruntime", "ocr")
    threads = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        threads = len(os.sched_getaffinity(0))
    return rapidocr.RapidOCR(
        params={"Global.log_level": "critical", "EngineConfig.onnxruntime.intra_op_num_threads": threads}
    )


def _recognize_lines(result: Any, page: int, scale: float) -> list[Item]:
    if result.boxes is None:
        return []
    angle = find_skew(result.boxes)
    lines: list[Line] = []
    for box, text, score in zip(result.boxes, result.txts, result.scores, strict=True):
        line_text = clean_line(text)
        if line_text and score >= _LEAST_SCORE:
            lines.append(
                _straighten_line(line_text, [(float(x) / scale, float(y) / scale) for x, y in box], page, angle)
            )
    return list(_join_broken_lines(_restore_dashes(_measure_type(lines))))


def find_skew(boxes: Any) -> float:
    """How far a page's lines of text fall to the right, in radians.

    Half of what is written is in boxes that fall less than that, and half in those that fall more. The boxes' corners
    are some pixels off, which matters where all are short as in a table: of the angles that this leaves open, the one
    is taken at which most ends of boxes stand at the height of another.

    Args:
        boxes: each with its corners in pixels, clockwise from the top left.
    """
    sides = sorted((_skew_angle(box), _top_length(box)) for box in boxes)
    lengths = list(accumulate(length for _, length in sides))
    angle, length = sides[bisect_left(lengths, lengths[-1] / 2)]
    ends = [_middle(box[start], box[end]) for box in boxes for start, end in ((0, 3), (1, 2))]
    height = median(math.dist(box[0], box[3]) for box in boxes)
    steps = round(_CORNER_SLACK / max(length, _CORNER_SLACK) / _ANGLE_STEP)
    angles = [angle + _ANGLE_STEP * step for step in sorted(range(-steps, steps + 1), key=abs)]
    return max(angles, key=lambda angle: _count_level_ends(ends, angle, _SAME_HEIGHT * height))


def _skew_angle(box: Any) -> float:
    (left, top), (right, right_top) = box[0], box[1]
    return math.atan2(float(right_top - top), float(right - left))


def _top_length(box: Any) -> float:
    return math.dist(box[0], box[1])


def _middle(point: Any, other: Any) -> tuple[float, float]:
    return float(point[0] + other[0]) / 2, float(point[1] + other[1]) / 2


def _count_level_ends(ends: Sequence[tuple[float, float]], angle: float, slack: float) -> float:
    """How many ends of boxes stand at the height of the one before, on the page turned back by an angle."""
    cosine = math.cos(angle)
    sine = math.sin(angle)
    heights = sorted(y * cosine - x * sine for x, y in ends)
    return sum(max(0.0, 1 - (lower - upper) / slack) for upper, lower in pairwise(heights))


def _measure_type(lines: Sequence[Line]) -> list[Line]:
    """The lines with the sizes of their type: the usual one, unless their letters are broader or their boxes differ.

    Boxes of one type differ by a fifth, as the letters decide how high they are, and those of a title may be no higher
    than others. How broad letters are is told by a text of several Chinese characters.
    """
    if not lines:
        return []
    usual = median(line.size for line in lines)
    breadths = [_letter_breadth(line) for line in lines]
    usual_breadth = median(filter(None, breadths)) if any(breadths) else 0.0
    measured: list[Line] = []
    for line, breadth in zip(lines, breadths, strict=True):
        size = usual if abs(line.size - usual) <= _SAME_TYPE * usual else line.size
        if breadth >= _BROAD_LETTERS * usual_breadth > 0:
            size = max(size, usual * breadth / usual_breadth)
        measured.append(replace(line, size=size))
    return measured


def _letter_breadth(line: Line) -> float:
    """How broad a Chinese character of a line is; 0 where there are few of them."""
    letters = sum(map(is_wide, line.text))
    if letters < _FEWEST_LETTERS or 4 * letters < width(line.text) or _is_high(line):
        return 0.0
    return 2 * (line.x1 - line.x0) / width(line.text)


def _restore_dashes(lines: Sequence[Line]) -> list[Line]:
    """The lines, each 一 alone taken for a dash where no other numeral stands alone."""
    if any(line.text in _OTHER_NUMERALS for line in lines):
        return list(lines)
    return [replace(line, text=_DASH) if line.text == _DASH_READ else line for line in lines]


def _join_broken_lines(lines: Sequence[Line]) -> list[Line]:
    """The lines, those put together that were cut at a comma: side by side, with hardly a gap or within brackets."""
    joined: list[Line] = []
    for line in sorted(lines, key=lambda line: line.x0):
        place = next((number for number, before in enumerate(joined) if _goes_on(before, line)), None)
        if place is None:
            joined.append(line)
        else:
            joined[place] = _join_pieces(joined[place], line)
    return joined


def _goes_on(line: Line, following: Line) -> bool:
    if abs(line.middle - following.middle) > _SAME_LINE * line.size or _is_high(line) or _is_high(following):
        return False
    gap = (following.x0 - line.x1) / line.size
    limit = _BRACKET_GAP if _count_open(line.text) > 0 > _count_open(following.text) else _BROKEN_GAP
    return -limit < gap < limit


def _is_high(line: Line) -> bool:
    return line.bottom - line.top > _HIGH * (line.x1 - line.x0)


def _count_open(text: str) -> int:
    """How many brackets a text opens more than it closes."""
    return len(_OPENING.findall(text)) - len(_CLOSING.findall(text))


def _join_pieces(line: Line, following: Line) -> Line:
    lefts, tops, rights, bottoms = zip(line.box, following.box, strict=True)
    return replace(
        line,
        text=f"{line.text} {following.text}",
        top=min(line.top, following.top),
        x1=following.x1,
        bottom=max(line.bottom, following.bottom),
        tilted_box=(min(lefts), min(tops), max(rights), max(bottoms)),
    )


def _straighten_line(text: str, corners: list[tuple[float, float]], page: int, angle: float) -> Line:
    """A recognised line, set straight: turned about the page's corner by the angle of the paper.

    Args:
        corners: on the page as it is, in points, clockwise from the top left.
    """
    cosine = math.cos(angle)
    sine = math.sin(angle)
    straight = [(x * cosine + y * sine, y * cosine - x * sine) for x, y in corners]
    top = median([y for _, y in straight[:2]])
    bottom = median([y for _, y in straight[2:]])
    size = _TYPE_SHARE * (bottom - top)
    x0 = min(x for x, _ in straight)
    x1 = max(x for x, _ in straight)
    across, down = zip(*corners, strict=True)
    tilted_box = rounded_box(min(across), min(down), max(across), max(down))
    return Line(text, page, x0, top, x1, bottom, size, bold=False, tilted_box=tilted_box)
