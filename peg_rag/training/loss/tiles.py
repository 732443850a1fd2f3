"""Softmax cross-entropy over rows × columns of cosines, one tile at a time: the arithmetic behind `tiled_loss`.

Row tile by row tile: a forward pass over the columns gathers each row's log-sum-exp; then probabilities turn into
gradients that are added to two buffers. Scores are one matrix product, gradients two (one for columns that are frozen);
all else is a few passes over a tile. Costs per row and column, d dimensions: 6·d operations when a row tile's scores
are kept between the passes, 8·d when they are computed again.

The usual case, plain logits that are kept, has the least to do: cosines bound the scores, so exponentials need no
maximum first, one pass makes them, and the two products of the gradient go over a block's columns at once.

The loss of row i with own candidates o (column 0 the positive p) and shared columns j is `−log p_p`. A row's positive
may also stand among the shared columns; it is then one of the hidden cells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from peg_rag.training.extension import CandidateMask
from peg_rag.training.loss.masks import TileColumns, TileRows
from peg_rag.training.loss.progressive import TIE, ProgressiveState
from peg_rag.training.recipe import LossOptions

KEPT_BYTES = {"cpu": 128 << 20, "cuda": 2 << 30}  # of a row tile's scores
COUNTED_ROWS = 32  # of a tile: enough to say what share of negatives is hard
LARGEST_EXPONENT = 60.0  # e^60 times a million candidates, and its inverse times 1e-5, are normal float32 numbers
CACHED = 768 << 10  # elements that the second operation on them finds in cache
LINE_BYTES = 64  # of the cache
LEAST_EXPONENT = -80.0  # e^-80 adds nothing; much less is denormal, and products of denormals take ten times as long


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How large a piece of the score matrix is held at a time.

    rows, columns: of one tile. keep: hold a row tile's scores over all columns between its two passes, which saves a
    quarter of the arithmetic for rows × columns of memory; otherwise they are computed twice.
    """

    rows: int
    columns: int
    keep: bool

    @classmethod
    def automatic(cls, columns: int, device: torch.device, plain: bool = True) -> "Tile":
        """A tile that suits the device, with fewer rows where that lets their scores be kept.

        columns: there are in all. plain: the logits are; others make copies of a tile, so theirs is a few MB on a CPU.
        """
        on_cpu = (1024, 128, 12288) if plain else (512, 128, 2048)
        rows, least, width = on_cpu if device.type == "cpu" else (4096, 1024, 8192)
        fitting = KEPT_BYTES.get(device.type, 0) // (4 * max(columns, 1)) // 64 * 64
        keep = fitting >= least
        return cls(rows=min(rows, fitting) if keep else rows, columns=width, keep=keep)


@dataclass
class Prefix:
    """The first dimensions of some vectors at unit length, and the gradient that gathers on them, (n, dim) both."""

    unit: Tensor
    norms: Tensor
    _score_gradient: Tensor | None = None

    @property
    def gradient(self) -> Tensor:
        """(n, dim), zeros until something is added."""
        if self._score_gradient is None:
            self._score_gradient = torch.zeros_like(self.unit)
        return self._score_gradient

    def add_product(self, first: Tensor, second: Tensor) -> None:
        """Add the product of (n, k) and (k, dim) to the gradient; the first is written where zeros would have been."""
        if self._score_gradient is None:
            self._score_gradient = torch.mm(first, second)
        else:
            self._score_gradient.addmm_(first, second)

    @classmethod
    def of(cls, vectors: Tensor, dim: int) -> "Prefix":
        """Normalise the first `dim` of `vectors` (n, d) in float32 or better; a zero vector stays zero."""
        part = vectors[:, :dim].to(torch.promote_types(vectors.dtype, torch.float32))
        norms = torch.linalg.vector_norm(part, dim=1, keepdim=True)  # (n, 1)
        norms.masked_fill_(norms < torch.finfo(part.dtype).tiny, 1.0)
        return cls(part * norms.reciprocal(), norms)

    def raw_gradient(self) -> Tensor:
        """The gradient on the vectors as they were given, (g − (g·u)u) / ‖x‖, made in place of the other."""
        along = _row_dots(self.gradient, self.unit).unsqueeze_(1)  # (n, 1)
        return self.gradient.addcmul_(self.unit, along, value=-1.0).mul_(self.norms.reciprocal())


def _row_dots(first: Tensor, second: Tensor) -> Tensor:
    """(n,) dot products of paired rows (n, d). `torch.linalg.vecdot` keeps a digit more but writes all products."""
    return torch.bmm(first.unsqueeze(1), second.unsqueeze(2)).view(-1)


class Scoring:
    """What becomes of cosines: frozen for the step, alike for all tiles, passes and ranks.

    Attributes:
        scale: 1/τ, of a positive's cosine.
        factor: of a negative's, to which the progressive strategy may have added. Tiles hold cosines times this.
    """

    def __init__(self, options: LossOptions, progressive: ProgressiveState) -> None:
        self.scale = 1.0 / options.temperature
        self.factor = self.scale + progressive.strength
        self._t = progressive.t if progressive.curricular else None
        self._margin = progressive.options.margin
        self._bound = max(abs(self.factor), abs(self.scale))  # of a score

    @property
    def plain(self) -> bool:
        """Whether logits are the scores, and gradients the probabilities."""
        return self._t is None

    @property
    def needs_shift(self) -> bool:
        """Whether `shift` is more than nothing."""
        return self._bound > LARGEST_EXPONENT

    def shift(self, positives: Tensor) -> Tensor | None:
        """What to take from a row's scores (r, 1) so that no exponential overflows and none that counts vanishes.

        Scores lie within ±`_bound`, and a row's log-sum-exp is not below its positive. None where no such shift is
        known: a positive with a cosine far below 0 at a very low temperature.
        """
        positive_scores = self.scale * positives
        if not self.needs_shift:
            return torch.zeros_like(positive_scores).unsqueeze(1)
        lowest = torch.minimum(positive_scores, self.winning_score(positives))  # for the loss, and for the accuracy
        if bool((lowest < self._bound - 2 * LARGEST_EXPONENT).any()):
            return None
        return positive_scores.clamp(min=self._bound - LARGEST_EXPONENT).unsqueeze(1)

    def winning_score(self, positives: Tensor) -> Tensor:
        """The score (r,) that all negatives must stay below for the positive to have won; a tie is no win."""
        return self.factor * (positives - TIE)

    def hard_above(self, positives: Tensor) -> Tensor:
        """The score (r, 1) above which a negative is hard; a tie is not."""
        return (self.factor * (positives - self._margin + TIE)).unsqueeze(1)

    def logits(self, scores: Tensor, hard_above: Tensor) -> Tensor:
        """Scores (r, c) → logits (r, c); the very same tensor where the strategy is not curricular. −inf stays."""
        if self._t is None:
            return scores
        hard = self.hard(scores, hard_above)
        shift = self._to_cosines(scores).add_(self._t).clamp_(min=0.0)
        return shift.sub_(1.0).mul_(hard).add_(1.0).mul_(scores)

    def slope(self, scores: Tensor, hard_above: Tensor) -> Tensor | None:
        """∂logit/∂score (r, c); None where it is 1."""
        if self._t is None:
            return None
        hard = self.hard(scores, hard_above)
        cosines = self._to_cosines(scores)
        shift = (cosines + self._t).clamp_(min=0.0)
        return cosines.mul_(torch.sign(shift)).add_(shift).sub_(1.0).mul_(hard).add_(1.0)

    def _to_cosines(self, scores: Tensor) -> Tensor:
        """(r, c), hidden cells at −2: finite, and below all others."""
        return (scores / self.scale).clamp_(min=-2.0)

    def hard(self, scores: Tensor, hard_above: Tensor) -> Tensor:
        """1 where a score is hard, else 0, (r, c). By signs: comparing and choosing are slower on a CPU."""
        return torch.sub(scores, hard_above).sign_().clamp_(min=0.0)


@dataclass
class Block:
    """Columns that all rows share and that came together.

    vectors: (m, d). texts: (m,) ids. frozen: they get no gradient, and its matrix product is left out.
    """

    vectors: Prefix
    texts: Tensor
    frozen: bool = False

    def __len__(self) -> int:
        return len(self.texts)


@dataclass
class Direction:
    """One softmax per row, over its own candidates and over columns that all rows share.

    Attributes:
        rows: (b, d), without a gradient as yet.
        row_texts, positive_texts: (b,) ids.
        own_vectors: what `own_index` (b, 1 + h) points into, column 0 the positive, −1 where there is none.
        own_texts: (b, h) ids.
        blocks: the shared columns.
        masks: which cells are no negatives; together they must hide a row's positive where it stands in a block.
        weights: (b,), sum 1 over all ranks.
    """

    rows: Prefix
    row_texts: Tensor
    positive_texts: Tensor
    own_vectors: Prefix
    own_index: Tensor
    own_texts: Tensor
    blocks: Sequence[Block]
    masks: Sequence[CandidateMask]
    weights: Tensor

    @property
    def columns(self) -> int:
        """How many columns all rows share."""
        return sum(map(len, self.blocks))


@dataclass
class Sums:
    """What a direction adds up over its rows, each a float64 scalar: the weighted loss, and counts.

    `candidates` are unmasked negatives, `hard` how many of them are, estimated from `COUNTED_ROWS` of each tile;
    `masked` are those that are not; `positives` is a sum of cosines.
    """

    loss: Tensor
    correct: Tensor
    hard: Tensor
    masked: Tensor
    candidates: Tensor
    positives: Tensor


class Scratch:
    """The memory of a tile's scores, kept from step to step on a CPU, where fresh pages cost a tenth of the loss.

    For one computation at a time. A copy begins with nothing.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def __reduce__(self) -> tuple[type["Scratch"], tuple[()]]:
        return Scratch, ()

    def matrix(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """(rows, columns) of `like`'s type and device, with anything in it; the next call may give the same memory."""
        if like.device.type != "cpu":  # elsewhere the allocator itself keeps memory, and can lend it to the encoder
            return like.new_empty(rows, columns)
        buffer = self._buffer
        line = LINE_BYTES // like.element_size()
        stride = (-(-columns // line) | 1) * line  # an odd number of lines: rows 4 KB apart would share cache sets
        size = rows * stride
        if buffer is None or buffer.dtype != like.dtype or len(buffer) < size or buffer.is_inference():
            buffer = like.new_empty(size)
            self._buffer = buffer
        return buffer[:size].view(rows, stride)[:, :columns]


@dataclass(frozen=True)
class _Piece:
    """The columns of one tile: their block, their place in it and among all columns."""

    block: Block
    part: slice
    place: slice

    @property
    def vectors(self) -> Tensor:
        """(c, d) at unit length."""
        return self.block.vectors.unit[self.part]

    def scores_in(self, buffer: Tensor, keep: bool) -> Tensor:
        """The part of the buffer (r, …) for this tile's scores, (r, c)."""
        return buffer[:, self.place] if keep else buffer[:, : self.place.stop - self.place.start]

    def describe(self, scores: Tensor, scale: float) -> TileColumns:
        return TileColumns(self.place, self.block.texts[self.part].unsqueeze(0), scores, scale)


def _cut_columns(blocks: Sequence[Block], width: int) -> list[_Piece]:
    """Tiles of at most `width` columns, none of which spans two blocks."""
    pieces = []
    offset = 0
    for block in blocks:
        for start in range(0, len(block), width):
            stop = min(start + width, len(block))
            pieces.append(_Piece(block, slice(start, stop), slice(offset + start, offset + stop)))
        offset += len(block)
    return pieces


def contrast(direction: Direction, scoring: Scoring, tile: Tile, scratch: Scratch) -> Sums:
    """Add the gradients of the direction's loss to its vectors and return what its rows add up to."""
    rows = len(direction.rows.unit)
    pieces = _cut_columns(direction.blocks, tile.columns)
    width = direction.columns if tile.keep else min(tile.columns, direction.columns)
    buffer = scratch.matrix(min(tile.rows, rows), width, direction.rows.unit)  # the only scores there are
    parts = []
    for start in range(0, rows, tile.rows):
        part = slice(start, min(start + tile.rows, rows))
        row_tile = _RowTile(direction, part, scoring, tile.keep)
        parts.append(row_tile.run(pieces, buffer[: part.stop - start]))
    return Sums(*torch.stack(parts).sum(0))


class _RowTile:
    """Some rows' own candidates, and running statistics over the shared columns seen so far.

    Where a tile's scores are kept and its logits are plain, what is kept is e^(score − a shift for each row): the
    gradient is then a factor per row away, which goes into the (r, d) side of the two products.
    """

    def __init__(self, direction: Direction, rows: slice, scoring: Scoring, keep: bool) -> None:
        self.direction, self.scoring, self.keep = direction, scoring, keep
        self.weights = direction.weights[rows]
        self.unit, self.own_index = direction.rows.unit[rows], direction.own_index[rows]  # (r, d), (r, 1 + h)
        self.own_vectors = direction.own_vectors.unit[self.own_index.clamp(min=0)]  # (r, 1 + h, d)
        self.positives = torch.linalg.vecdot(self.unit, self.own_vectors[:, 0])  # (r,) cosines, to the last digit
        self.rows = TileRows(rows, direction.row_texts[rows], direction.positive_texts[rows], self.positives)
        self.shift = scoring.shift(self.positives) if keep and scoring.plain else None  # (r, 1)
        self.total = torch.zeros_like(self.positives)  # (r,) sum of the exponentials
        self.hard_above = scoring.hard_above(self.positives)
        self.positive_logits = self.positives * scoring.scale  # (r,)
        self.rest = torch.full_like(self.positives, -math.inf)  # (r,) log-sum-exp of the negatives
        self.best = torch.full_like(self.positives, -math.inf)  # (r,) the highest score of a negative, where it matters
        self.unmasked = torch.zeros_like(self.positives)  # (r,) negatives
        self.hard = torch.zeros_like(self.positives)  # (r,)
        self.row_gradient = direction.rows.gradient[rows]  # (r, d) ∂loss/∂(scale·row), zeros as yet
        self.own_scores = self._score_own(direction.own_texts[rows])  # (r, h)

    def run(self, pieces: Sequence[_Piece], buffer: Tensor) -> Tensor:
        """Both passes over the columns; what the rows add up to, as in `Sums`. `buffer`: (r, …) of scores."""
        for piece in pieces:
            scores = piece.scores_in(buffer, self.keep)
            self._take_in(scores, self._score_piece(piece, scores))
        self._close_pass(buffer)
        if self.shift is not None:
            self._spread_exponentials(buffer)
        else:
            for piece in pieces:
                scores = piece.scores_in(buffer, self.keep)
                if not self.keep:
                    self._score_piece(piece, scores)
                self._spread_gradient(scores, piece)
        self._add_own_gradients()
        return self._sum_rows()

    def _score_own(self, texts: Tensor) -> Tensor:
        """The scores of the rows' own negatives (r, h), hidden ones at −inf, taken into the statistics."""
        scores = torch.einsum("rd,rhd->rh", self.unit, self.own_vectors[:, 1:]) * self.scoring.factor
        if not scores.shape[1]:
            return scores
        scores.masked_fill_(self.own_index[:, 1:] < 0, -math.inf)
        self._hide_cells(TileColumns(None, texts, scores, self.scoring.factor))
        self._count_negatives(scores, None)
        self._add_scores(scores)
        return scores

    def _score_piece(self, piece: _Piece, out: Tensor) -> Tensor | None:
        """Write scores against a tile's columns to `out` (r, c), hidden cells at −inf → as `_hide_cells`."""
        torch.addmm(out, self.unit, piece.vectors.T, beta=0, alpha=self.scoring.factor, out=out)
        return self._hide_cells(piece.describe(out, self.scoring.factor))

    def _hide_cells(self, columns: TileColumns) -> Tensor | None:
        """Set hidden cells to −inf; the row of each where one sparse mask tells, None where they must be counted."""
        rows = None
        for mask in self.direction.masks:
            hidden = mask.hidden(self.rows, columns)
            if not hidden.is_sparse:
                columns.scores.masked_fill_(hidden, -math.inf)
                continue
            cells = hidden.coalesce().indices()
            if cells.shape[1]:
                columns.scores[cells[0], cells[1]] = -math.inf
            rows = cells[0]
        return rows if len(self.direction.masks) == 1 else None

    def _take_in(self, scores: Tensor, hidden_rows: Tensor | None) -> None:
        """Take a tile's scores (r, c) into the statistics; they are overwritten where exponentials are kept."""
        self._count_negatives(scores, hidden_rows)
        if self.shift is None:
            self._add_scores(scores)
            return
        rows = max(CACHED // scores.shape[1], 1) if scores.device.type == "cpu" else len(scores)
        pieces = (torch.split(tensor, rows) for tensor in (scores, self.total, self.shift))
        for piece, total, shift in zip(*pieces, strict=True):
            if self.scoring.needs_shift:
                torch.threshold_(piece.sub_(shift), LEAST_EXPONENT, -math.inf)
            total += piece.exp_().sum(1)

    def _count_negatives(self, scores: Tensor, hidden_rows: Tensor | None) -> None:
        """Count what is unmasked, and estimate how much of it is hard from some of the rows."""
        if hidden_rows is None:
            unmasked = (scores > -math.inf).sum(1)
        else:
            unmasked = scores.shape[1] - torch.bincount(hidden_rows, minlength=len(scores))
        self.unmasked += unmasked
        sample = slice(None, None, max(len(scores) // COUNTED_ROWS, 1))
        hard = self.scoring.hard(scores[sample], self.hard_above[sample]).sum()
        self.hard += unmasked * (hard / unmasked[sample].sum().clamp_(min=1))

    def _add_scores(self, scores: Tensor) -> None:
        self.best = torch.maximum(self.best, scores.amax(1))
        logits = self.scoring.logits(scores, self.hard_above)
        self.rest = torch.logaddexp(self.rest, logits.logsumexp(1))

    def _close_pass(self, exponentials: Tensor) -> None:
        """All tiles were seen: add up the log-sum-exp, of negatives and of all. `exponentials`: (r, m), where kept."""
        if self.shift is not None:
            self.rest = torch.logaddexp(self.rest, self.total.log().add_(self.shift.squeeze(1)))
            self._find_best(exponentials)
        self.lse = torch.logaddexp(self.positive_logits, self.rest)  # (r,)

    def _find_best(self, exponentials: Tensor) -> None:
        """Look for the highest score where it matters: no negative outdoes a positive that outweighs all together."""
        assert self.shift is not None
        unclear = self.rest >= self.scoring.winning_score(self.positives)  # (r,)
        if unclear.any():
            self.best = torch.maximum(self.best, exponentials.amax(1).log_().add_(self.shift.squeeze(1)))

    def _spread_exponentials(self, exponentials: Tensor) -> None:
        """Add the gradients to the rows' and to the columns'; (r, m), of all columns, as `_take_in` left them."""
        assert self.shift is not None
        factor = self.weights.unsqueeze(1) * (self.shift - self.lse.unsqueeze(1)).exp_()  # (r, 1)
        weighted = self.unit * (self.scoring.scale * factor)  # (r, d)
        start = 0
        for block in self.direction.blocks:
            part = exponentials[:, start : start + len(block)]
            if start == 0:
                torch.mm(part, block.vectors.unit, out=self.row_gradient)
            else:
                self.row_gradient.addmm_(part, block.vectors.unit)
            if not block.frozen:
                block.vectors.add_product(part.T, weighted)
            start += len(block)
        self.row_gradient.mul_(factor)

    def _spread_gradient(self, scores: Tensor, piece: _Piece) -> None:
        """Add a tile's gradients to the rows' and to the columns' (c, d); `scores` (r, c) as `_take_in` left them."""
        gradient = self._score_gradient(scores)  # (r, c)
        self.row_gradient.addmm_(gradient, piece.vectors)
        if not piece.block.frozen:
            column_gradient = piece.block.vectors.gradient[piece.part]  # (c, d)
            column_gradient.addmm_(gradient.T, self.unit, alpha=self.scoring.scale)

    def _score_gradient(self, scores: Tensor) -> Tensor:
        """∂loss/∂score of the tile's cells, (r, c); overwrites `scores`."""
        slope = self.scoring.slope(scores, self.hard_above)
        logits = self.scoring.logits(scores, self.hard_above)
        logits.sub_((self.lse - self.weights.log()).unsqueeze(1))
        gradient = torch.threshold_(logits, LEAST_EXPONENT, -math.inf).exp_()
        return gradient if slope is None else gradient.mul_(slope)

    def _add_own_gradients(self) -> None:
        """Add the gradients of the rows and of their own candidates."""
        gradient = -self.weights * (self.rest - self.positive_logits).sigmoid()  # (r,), the latter 1 − p_p
        gradients = torch.cat([gradient.unsqueeze(1), self._score_gradient(self.own_scores)], 1)  # (r, 1 + h)
        for score_gradient, unit, index in zip(gradients.T, self.own_vectors.unbind(1), self.own_index.T, strict=True):
            self.row_gradient.addcmul_(unit, score_gradient.unsqueeze(1))
            # The memory of `unit` is free now.
            torch.mul(self.unit, (self.scoring.scale * score_gradient).unsqueeze(1), out=unit)
            self.direction.own_vectors.gradient.index_add_(0, index.clamp(min=0), unit)
        self.row_gradient.mul_(self.scoring.scale)

    def _sum_rows(self) -> Tensor:
        losses = -functional.logsigmoid(self.positive_logits - self.rest)  # (r,) −log p_p, exact near p_p = 1 too
        total = self.direction.columns - 1 + (self.own_index[:, 1:] >= 0).sum(1)  # (r,) hidden ones included
        columns = [
            self.weights * losses,
            self.best < self.scoring.winning_score(self.positives),
            self.hard,
            total - self.unmasked,
            self.unmasked,
            self.positives,
        ]
        return torch.stack([column.double().sum() for column in columns])
