"""The order in which the boxes of a slide are read, which the file does not say: it keeps them as they were drawn.

The slide is cut where the widest blank runs through it, across or down, and each part again (an XY cut, after Nagy and
Seth, 1984). Boxes near one another so stay together: the text under its card's title, a column before the next one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peg_rag.readers.diagrams import is_diagram

_SAME_HEIGHT = 457_200  # half an inch, in which boxes that no blank parts count as one row
_OVERLAP = 91_440  # a tenth of an inch that boxes may reach into each other
_LABEL_WIDTH = 0.7  # of the width of the text beside it, up to which a box is its label


@dataclass(frozen=True, slots=True)
class _Box:
    """A shape with something to read in it, and where it stands, in English Metric Units."""

    shape: Any
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class _Blank:
    """A strip of a slide with nothing in it, and the boxes on both sides."""

    width: int
    before: list[_Box]
    after: list[_Box]


def order_shapes(shapes: Iterable[Any]) -> list[Any]:
    """The shapes that hold something, as they are read; those of a group together, in the group's place."""
    ordered: list[Any] = []
    for box in _order_boxes([_make_box(shape) for shape in shapes if _holds_content(shape)]):
        ordered += order_shapes(box.shape.shapes) if hasattr(box.shape, "shapes") else [box.shape]
    return ordered


def _holds_content(shape: Any) -> bool:
    if hasattr(shape, "shapes"):
        return any(map(_holds_content, shape.shapes))
    if getattr(shape, "has_table", False) or getattr(shape, "has_chart", False) or is_diagram(shape._element):
        return True
    return bool(shape.has_text_frame and shape.text_frame.text.strip())


def _make_box(shape: Any) -> _Box:
    left = int(shape.left or 0)
    top = int(shape.top or 0)
    return _Box(shape, left, top, left + int(shape.width or 0), top + int(shape.height or 0))


def _order_boxes(boxes: Sequence[_Box]) -> list[_Box]:
    ordered: list[_Box] = []
    pending = [list(boxes)]
    while pending:
        part = pending.pop()
        parts = _cut(part)
        if parts is None:
            ordered += sorted(part, key=lambda box: (round(box.top / _SAME_HEIGHT), box.left))
        else:
            pending += reversed(parts)
    return ordered


def _cut(boxes: list[_Box]) -> tuple[list[_Box], list[_Box]] | None:
    """The boxes on both sides of the widest blank; None where there is none."""
    across = _find_blank(boxes, lambda box: (box.top, box.bottom))
    down = _find_blank(boxes, lambda box: (box.left, box.right))
    if across is None or down is None:
        blank = across or down
        return None if blank is None else (blank.before, blank.after)
    is_row = across.width >= down.width or _are_labelled(down.before, down.after)
    return (across.before, across.after) if is_row else (down.before, down.after)


def _find_blank(boxes: list[_Box], extent: Callable[[_Box], tuple[int, int]]) -> _Blank | None:
    """The widest blank in one direction, in which boxes may reach into each other a little."""
    ordered = sorted(boxes, key=extent)
    widest = -_OVERLAP - 1
    place = 0
    end = extent(ordered[0])[1] if ordered else 0
    for number, box in enumerate(ordered[1:], start=1):
        start, box_end = extent(box)
        if start - end > widest:
            widest = start - end
            place = number
        end = max(end, box_end)
    return _Blank(widest, ordered[:place], ordered[place:]) if place else None


def _are_labelled(left: Sequence[_Box], right: Sequence[_Box]) -> bool:
    """Whether the boxes at the left name those at the right, one beside the other: such rows are read one by one."""
    if len(left) != len(right) or len(left) < 2:
        return False
    pairs = list(zip(sorted(left, key=_top_of), sorted(right, key=_top_of), strict=True))
    return all(_are_beside(label, text) and _width_of(label) <= _LABEL_WIDTH * _width_of(text) for label, text in pairs)


def _are_beside(label: _Box, text: _Box) -> bool:
    lower_top = max(label.top, text.top)
    upper_bottom = min(label.bottom, text.bottom)
    return 2 * (upper_bottom - lower_top) >= min(label.bottom - label.top, text.bottom - text.top)


def _top_of(box: _Box) -> int:
    return box.top


def _width_of(box: _Box) -> int:
    return box.right - box.left
