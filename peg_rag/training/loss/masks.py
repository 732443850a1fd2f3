"""Candidates excluded as likely false negatives.

An in-batch negative is only presumed to be wrong. Two masks catch most of those that are not: equal texts, looked up in
a set of known answers, and a limit on the cosine. Both are `CandidateMask`s, and a third (such as the judgement of a
guide model) plugs in beside them. Few texts are equal, so the first returns sparse tiles: writing a thousand cells
costs nothing beside reading ten million.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from peg_rag.training.extension import CandidateMask
from peg_rag.training.loss.progressive import TIE
from peg_rag.training.recipe import LossOptions


@dataclass(frozen=True)
class TileRows:
    """The rows of a tile, (r,) all.

    Attributes:
        part: where they stand among the rows of this rank.
        texts: int64 ids of their texts.
        positive_texts: int64 ids of their positives' texts.
        positives: cosines of their positives.
    """

    part: slice
    texts: Tensor
    positive_texts: Tensor
    positives: Tensor


@dataclass(frozen=True)
class TileColumns:
    """The candidates of a tile.

    Attributes:
        part: where they stand among the columns that all rows share; None where each row has candidates of its own.
        texts: int64 ids, (1, c) for shared columns, (r, c) for a row's own.
        scores: cosines times `scale`, (r, c); what another mask has hidden is −inf.
        scale: a number above 0.
    """

    part: slice | None
    texts: Tensor
    scores: Tensor
    scale: float


class LimitMask:
    """A candidate is no negative where its cosine exceeds the positive's less `margin`, or `ratio` times it."""

    def __init__(self, margin: float | None, ratio: float | None) -> None:
        self.margin = margin
        self.ratio = ratio

    def hidden(self, rows: TileRows, columns: TileColumns) -> Tensor:
        """(r, c) bool; a tie with the limit is below it."""
        limits = (self._limit_cosines(rows.positives) + TIE) * columns.scale  # (r,)
        return columns.scores > limits.unsqueeze(1)

    def _limit_cosines(self, positives: Tensor) -> Tensor:
        limits = []
        if self.margin is not None:
            limits.append(positives - self.margin)
        if self.ratio is not None:
            limits.append(positives * self.ratio)
        return torch.stack(limits).amin(0)


class AnswerMask:
    """A candidate is no negative where its text is a known answer: a sparse set of cells, joined once per row tile.

    Args:
        row_ids, column_ids: int64 of any value, (b,) and (m,).
        answers: (row id, column id) pairs, (k, 2).
    """

    def __init__(self, row_ids: Tensor, column_ids: Tensor, answers: Tensor) -> None:
        self._left = torch.unique(answers[:, 0])
        self._right = torch.unique(answers[:, 1])
        row_codes = _find_codes(answers[:, 0], self._left)
        self._keys = torch.unique(row_codes * len(self._right) + _find_codes(answers[:, 1], self._right))
        self._rows = _find_codes(row_ids, self._left)  # (b,)
        self._columns, self._order = _find_codes(column_ids, self._right).sort()  # (m,)
        self._joined: tuple[slice, Tensor, Tensor, NDArray[np.int64]] | None = None  # of the last rows that came

    def hidden(self, rows: TileRows, columns: TileColumns) -> Tensor:
        """(r, c) bool, sparse for shared columns."""
        if columns.part is None:
            return self._contain_answers(rows.part, columns.texts)
        if self._joined is None or self._joined[0] != rows.part:
            self._joined = (rows.part, *self._join_answers(rows.part))
        _, row, column, places = self._joined
        start, stop = np.searchsorted(places, (columns.part.start, columns.part.stop)).tolist()
        cells = torch.stack([row[start:stop], column[start:stop] - columns.part.start])  # (2, hidden), no cell twice
        values = torch.ones(stop - start, dtype=torch.bool, device=cells.device)
        return torch.sparse_coo_tensor(cells, values, columns.scores.shape, is_coalesced=True, check_invariants=False)

    def _join_answers(self, rows: slice) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """The hidden cells of some rows over all columns, sorted by column: rows, columns, columns on the host."""
        lefts = self._keys // len(self._right)
        rights = self._keys % len(self._right)
        codes = self._rows[rows]
        row, key = _expand_ranges(torch.searchsorted(lefts, codes), torch.searchsorted(lefts, codes, right=True))
        answer = rights[key]
        first = torch.searchsorted(self._columns, answer)
        last = torch.searchsorted(self._columns, answer, right=True)
        entry, place = _expand_ranges(first, last)
        columns, order = self._order[place].sort()
        return row[entry][order], columns, columns.cpu().numpy()

    def _contain_answers(self, rows: slice, texts: Tensor) -> Tensor:
        """(r, h) bool: whether the text (r, h) answers its row."""
        columns = _find_codes(texts, self._right)
        return torch.isin(self._rows[rows, None] * len(self._right) + columns, self._keys) & (columns >= 0)


def limit_masks(options: LossOptions) -> list[CandidateMask]:
    """The masks on cosines that the options ask for."""
    if options.false_negative_margin is None and options.false_negative_ratio is None:
        return []
    return [LimitMask(options.false_negative_margin, options.false_negative_ratio)]


def _find_codes(ids: Tensor, vocabulary: Tensor) -> Tensor:
    """The place of each id in the sorted vocabulary, −1 where it is not in it."""
    place = torch.searchsorted(vocabulary, ids.contiguous()).clamp_(max=len(vocabulary) - 1)
    return torch.where(vocabulary[place] == ids, place, -1)


def _expand_ranges(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """All (i, p) with first[i] ≤ p < last[i], as two vectors."""
    counts = last - first
    which = torch.repeat_interleave(counts)
    offset = torch.arange(len(which), device=first.device) - (counts.cumsum(0) - counts)[which]
    return which, first[which] + offset
