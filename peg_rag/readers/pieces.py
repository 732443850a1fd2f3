"""What a PDF's page is made of on its way to text: glyphs, pieces of lines and tables, each with its box."""

from dataclasses import dataclass

from peg_rag.readers.blocks import Box
from peg_rag.readers.tables import Grid


@dataclass(frozen=True, slots=True)
class Glyph:
    """A character and where it stands, in points from the page's top left corner."""

    text: str
    x0: float
    top: float
    x1: float
    bottom: float
    size: float
    bold: bool

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


@dataclass(frozen=True, slots=True)
class Line:
    """A piece of a line of text.

    Attributes:
        left_edge, right_edge: of the column that it stands in.
        tilted_box: around it on a page that lay at an angle, where the coordinates are those of the page set straight.
    """

    text: str
    page: int
    x0: float
    top: float
    x1: float
    bottom: float
    size: float
    bold: bool
    left_edge: float = 0.0
    right_edge: float = 0.0
    tilted_box: Box | None = None

    @property
    def box(self) -> Box:
        """Around the line on the page as it is."""
        return self.tilted_box or rounded_box(self.x0, self.top, self.x1, self.bottom)

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


@dataclass(frozen=True, slots=True)
class Table:
    """A table on a page: its cells' texts, which of them are bold, and the boxes of its rows.

    Attributes:
        is_open: the page's end cuts it, so that no rule is below its last row.
        merged: which cells are one with the cell at their left, where rules or blanks say it.
        columns: where each begins and ends; those of a table without rules are as broad as their texts.
    """

    grid: Grid
    bold: list[list[bool]]
    page: int
    x0: float
    top: float
    x1: float
    bottom: float
    rows: list[Box]
    is_open: bool = False
    merged: list[list[bool]] | None = None
    columns: tuple[tuple[float, float], ...] = ()

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


Item = Line | Table
Rule = tuple[float, float, float]  # a horizontal line: its height, its left and its right end


def rounded_box(x0: float, top: float, x1: float, bottom: float) -> Box:
    return (round(x0, 1), round(top, 1), round(x1, 1), round(bottom, 1))
