"""The texts of SmartArt, which Office keeps in a part of its own as a tree of points, apart from how it is drawn."""

from collections.abc import Iterator
from typing import Any

from peg_rag.extras import require
from peg_rag.readers.normalize import clean_line

_DIAGRAM = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}"
_TEXT = "{http://schemas.openxmlformats.org/drawingml/2006/main}t"
_DATA = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}dm"  # the part that holds the points
_SHOWN = ("node", "asst")  # the other points are the tree's root and what is drawn between the nodes


def is_diagram(element: Any) -> bool:
    return next(element.iter(f"{_DIAGRAM}relIds"), None) is not None


def read_diagrams(element: Any, part: Any) -> Iterator[str]:
    """The texts of the diagrams within an element, each with the texts below it in lines of their own.

    Args:
        part: of the package, which the element stands in.
    """
    for reference in element.iter(f"{_DIAGRAM}relIds"):
        key = reference.get(_DATA)
        if key in part.rels:
            yield from _read_tree(part.rels[key].target_part.blob)


def _read_tree(data: bytes) -> Iterator[str]:
    etree = require("lxml.etree", "ingest")
    root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True))
    points = {point.get("modelId"): point for point in root.iter(f"{_DIAGRAM}pt")}
    below: dict[str, list[tuple[int, str]]] = {}
    for link in root.iter(f"{_DIAGRAM}cxn"):
        if link.get("type", "parOf") == "parOf":
            below.setdefault(link.get("srcId"), []).append((int(link.get("srcOrd") or 0), link.get("destId")))
    tops = [key for key, point in points.items() if point.get("type") == "doc"]
    for _, key in sorted(child for top in tops for child in below.get(top, ())):
        lines = list(_read_branch(key, points, below))
        if lines:
            yield "\n".join(lines)


def _read_branch(top: str, points: dict[str, Any], below: dict[str, list[tuple[int, str]]]) -> Iterator[str]:
    """The texts of a point and of those below it, from the first to the last."""
    pending = [top]
    seen: set[str] = set()
    while pending:
        key = pending.pop()
        point = points.get(key)
        if point is None or key in seen:
            continue
        seen.add(key)
        if point.get("type", "node") in _SHOWN:
            text = clean_line("".join(piece.text or "" for piece in point.iter(_TEXT)))
            if text:
                yield text
        pending += [child for _, child in sorted(below.get(key, ()), reverse=True)]
