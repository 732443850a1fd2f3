"""Tables that go on on the next page, put together under one header.

A page's end may leave a table's header or its last row alone, where a line by itself is no table. Where rules are
missing, a table is as broad on each page as its texts there; it goes on where its columns stand under one another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from peg_rag.readers.layout import match_columns, read_lone_rows
from peg_rag.readers.names import ends_in_name_word, is_name, is_name_row
from peg_rag.readers.normalize import join_lines
from peg_rag.readers.pieces import Item, Line, Table
from peg_rag.readers.tables import guess_header, guess_merged

_SAME_WIDTH = 12.0  # points


@dataclass(frozen=True, slots=True)
class _Continued(Table):
    """A table over several pages: the page of each row."""

    pages: tuple[int, ...] = ()


def pages_of(table: Table) -> tuple[int, ...]:
    """The page of each row."""
    if isinstance(table, _Continued):
        return table.pages
    return (table.page,) * len(table.grid)


def is_continued(table: Table, following: Table) -> bool:
    """Whether the first table on a page goes on with the last one of the page before."""
    if following.page != pages_of(table)[-1] + 1:
        return False
    is_same_width = abs((table.x1 - table.x0) - (following.x1 - following.x0)) < _SAME_WIDTH
    if len(table.grid[0]) == len(following.grid[0]) and is_same_width:
        return True  # perhaps in another column of the page
    places = match_columns(following.columns, table.columns)
    if places is None or _begins_another(table, following):
        return False
    return len(places) == len(table.columns) or not guess_header(following.grid, bold=following.bold).rows


def append_table(table: Table, following: Table) -> Table:
    """The rows of both, without the header that the second repeats; a cell cut by the page's end is whole again."""
    following = _spread_columns(following, table)
    skipped = 0
    while (
        skipped < len(following.grid) and skipped < len(table.grid) and following.grid[skipped] == table.grid[skipped]
    ):
        skipped += 1
    grid = [list(row) for row in following.grid[skipped:]]
    if grid and _is_cut(table, grid[0]):
        whole = [join_lines([above, below]) for above, below in zip(table.grid[-1], grid[0], strict=True)]
        table = replace(table, grid=[*table.grid[:-1], whole])
        skipped += 1
        grid = grid[1:]
    if grid and not skipped and not grid[0][0] and any(grid[0]):
        above = table.grid[-1][0]
        for row in grid:  # the rest of a cell over several rows
            if row[0]:
                break
            row[0] = above
    return _Continued(
        [*table.grid, *grid],
        [*table.bold, *following.bold[skipped:]],
        table.page,
        table.x0,
        table.top,
        table.x1,
        following.bottom,
        [*table.rows, *following.rows[skipped:]],
        following.is_open,
        [*_merged_of(table), *_merged_of(following)[skipped:]],
        table.columns,
        (*pages_of(table), *pages_of(following)[skipped:]),
    )


def with_lone_rows(items: Sequence[Item]) -> Iterator[Item]:
    """The items, with a header at a page's end, and rows at a page's beginning, made parts of the table beside them."""
    pages = [list(group) for _, group in groupby(items, key=lambda item: item.page)]
    for number, page in enumerate(pages):
        before = pages[number - 1][-1] if number else None
        if isinstance(before, Table) and before.page == page[0].page - 1:
            page[:] = _with_rows_first(page, before)
        after = pages[number + 1][0] if number + 1 < len(pages) else None
        if isinstance(after, Table) and after.page == page[0].page + 1:
            page[:] = _with_header_last(page, after)
    for page in pages:
        yield from page


def _with_rows_first(page: Sequence[Item], table: Table) -> list[Item]:
    """The items of a page, those that are rows of the table on the page before as a table."""
    rows = _take_rows(page)
    while rows:
        lone = read_lone_rows(rows, table)
        if lone is not None:
            return [lone, *page[sum(map(len, rows)) :]]
        rows.pop()
    return list(page)


def _with_header_last(page: Sequence[Item], table: Table) -> list[Item]:
    """The items of a page, the names at its end as a table where they stand above the columns on the next page."""
    rows = [row[::-1] for row in _take_rows(page[::-1])][::-1]
    while rows:
        lone = read_lone_rows(rows, table)
        if lone is not None and is_name_row(lone.grid[0]) and all(is_name(name) for name in lone.grid[-1] if name):
            return [*page[: len(page) - sum(map(len, rows))], lone]
        rows.pop(0)
    return list(page)


def _take_rows(items: Sequence[Item]) -> list[list[Line]]:
    """The first items that stand in lines of several pieces, by line."""
    rows: list[list[Line]] = []
    for item in items:
        if not isinstance(item, Line):
            break
        if rows and abs(rows[-1][0].middle - item.middle) < 0.4 * item.size:
            rows[-1].append(item)
        elif rows and len(rows[-1]) == 1:
            break
        else:
            rows.append([item])
    return [row for row in rows if len(row) > 1]


def _begins_another(table: Table, following: Table) -> bool:
    """Whether a table on the next page has a header of its own: in bold type, or of words that name columns."""
    names = following.grid[0]
    if names == table.grid[0]:
        return False
    if all(following.bold[0]) and not all(map(all, following.bold)):
        return True
    return is_name_row(names) and 2 * sum(map(ends_in_name_word, names)) > sum(map(bool, names))


def _spread_columns(following: Table, table: Table) -> Table:
    """A table's rows in the columns of the table before it, of which some may be empty."""
    columns = len(table.grid[0])
    if len(following.grid[0]) == columns:
        return following
    places = match_columns(following.columns, table.columns) or []
    grid = [[""] * columns for _ in following.grid]
    bold = [[False] * columns for _ in following.grid]
    for row, place in ((row, place) for row in range(len(grid)) for place in range(len(places))):
        grid[row][places[place]] = following.grid[row][place]
        bold[row][places[place]] = following.bold[row][place]
    return replace(following, grid=grid, bold=bold, merged=[[False] * columns for _ in grid])


def _merged_of(table: Table) -> list[list[bool]]:
    return table.merged or guess_merged(table.grid)


def _is_cut(table: Table, row: Sequence[str]) -> bool:
    """Whether the first row on a page is the rest of the last one on the page before, which has no rule below."""
    last = table.grid[-1]
    return table.is_open and not row[0] and bool(last[0]) and any(row)
