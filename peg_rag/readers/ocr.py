"""Scanned pages → lines, by RapidOCR on ONNX Runtime, whose models come with the package and need no network.

A page is turned into a picture and let go before the next. Where the paper lay at an angle, the lines' boxes say by how
much, and are turned back before they are put in order; the boxes that are kept are those on the page as it is.

Costs 1 to 10 s a page on two cores and about 900 MB of memory.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from statistics import median
from typing import Any

from peg_rag.extras import require
from peg_rag.readers.normalize import clean_line
from peg_rag.readers.pieces import Item, Line, rounded_box

_DOTS_PER_INCH = 200
_MOST_PIXELS = 25_000_000
_LEAST_SCORE = 0.5
_SAME_TYPE = 0.25  # of the usual size that a box of the same type may differ
_TYPE_SHARE = 0.75  # of a line's box that its type is high


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
    angle = median(_skew_angle(box) for box in result.boxes)
    lines: list[Line] = []
    for box, text, score in zip(result.boxes, result.txts, result.scores, strict=True):
        line_text = clean_line(text)
        if line_text and score >= _LEAST_SCORE:
            lines.append(
                _straighten_line(line_text, [(float(x) / scale, float(y) / scale) for x, y in box], page, angle)
            )
    usual = median(line.size for line in lines) if lines else 0.0
    # Boxes of one type differ by a fifth: the letters decide how high they are.
    return [replace(line, size=usual) if abs(line.size - usual) <= _SAME_TYPE * usual else line for line in lines]


def _skew_angle(box: Any) -> float:
    """How far a line of text falls to the right, in radians."""
    (left, top), (right, right_top) = box[0], box[1]
    return math.atan2(float(right_top - top), float(right - left))


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
