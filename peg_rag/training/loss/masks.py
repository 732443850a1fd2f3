"""Which candidates are no negatives of which query."""

import torch
from torch import Tensor


class Answers:
    """Which (row id, column id) pairs are answers, and so no negatives: a sparse set of cells, joined per row tile."""

    def __init__(self, row_ids: Tensor, column_ids: Tensor, pairs: Tensor) -> None:
        """row_ids: (b,), column_ids: (m,), pairs: (k, 2), all int64 of any value."""
        self._left, self._right = (torch.unique(column) for column in pairs.unbind(1))
        self._keys = torch.unique(_code(pairs[:, 0], self._left) * len(self._right) + _code(pairs[:, 1], self._right))
        self._rows = _code(row_ids, self._left)  # (b,)
        self._columns, self._order = _code(column_ids, self._right).sort()  # (m,)

    def cells(self, rows: slice, width: int) -> list[tuple[Tensor, Tensor]]:
        """The hidden cells of a row tile, as (row, column) index pairs within each column tile of `width`."""
        lefts, rights = self._keys // len(self._right), self._keys % len(self._right)
        wanted = self._rows[rows]
        row, key = _expand(torch.searchsorted(lefts, wanted), torch.searchsorted(lefts, wanted, right=True))
        answer = rights[key]
        first, last = torch.searchsorted(self._columns, answer), torch.searchsorted(self._columns, answer, right=True)
        entry, place = _expand(first, last)
        columns, order = self._order[place].sort()
        starts = torch.arange(0, len(self._order), width, device=columns.device)
        cuts = torch.searchsorted(columns, starts[1:]).tolist()
        tiles = zip(row[entry][order].tensor_split(cuts), columns.tensor_split(cuts), starts.tolist(), strict=True)
        return [(r, c - start) for r, c, start in tiles]

    def among(self, ids: Tensor) -> Tensor:
        """(b, h) bool: whether the column with this id, (b, h), answers its row."""
        columns = _code(ids, self._right)
        return torch.isin(self._rows[:, None] * len(self._right) + columns, self._keys) & (columns >= 0)


def _code(ids: Tensor, vocabulary: Tensor) -> Tensor:
    """The place of each id in the sorted vocabulary, −1 where it is not in it."""
    place = torch.searchsorted(vocabulary, ids.contiguous()).clamp_(max=len(vocabulary) - 1)
    return torch.where(vocabulary[place] == ids, place, -1)


def _expand(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """All (i, p) with first[i] ≤ p < last[i], as two vectors."""
    counts = last - first
    which = torch.repeat_interleave(counts)
    offset = torch.arange(len(which), device=first.device) - (counts.cumsum(0) - counts)[which]
    return which, first[which] + offset
