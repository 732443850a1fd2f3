"""Softmax cross-entropy over rows × columns of cosines, one tile at a time: the arithmetic behind `loss.tiled_loss`.

Row tile by row tile: a forward pass over the columns gathers each row's log-sum-exp; then probabilities turn into
gradients that are added to two buffers. Scores are one matrix product, gradients two; all else is a few passes over a
tile. Costs per row and column, d dimensions: 6·d operations when a row tile's scores are kept between the passes, 8·d
when they are computed again.

The usual case, plain logits that are kept, has the least to do: cosines bound the scores, so exponentials need no
maximum first, one pass makes them, and the two products of the gradient go over all columns at once.

The loss of row i with own candidates o (column 0 the positive p) and shared columns j:
`(1−ε)·(−log p_p) + ε·mean over unmasked candidates of (−log p)`, ε the label smoothing. A row's positive may also stand
among the shared columns; it is then one of the hidden cells.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from peg_rag.training.loss.masks import Answers

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
    _gradient: Tensor | None = None

    @property
    def gradient(self) -> Tensor:
        """(n, dim), zeros until something is added."""
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.unit)
        return self._gradient

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add the product of (n, k) and (k, dim) to the gradient; the first is written where zeros would have been."""
        if self._gradient is None:
            self._gradient = torch.mm(left, right)
        else:
            self._gradient.addmm_(left, right)

    @classmethod
    def of(cls, vectors: Tensor, dim: int) -> "Prefix":
        """Normalise the first `dim` of `vectors` (n, d) in float32 or better; a zero vector stays zero."""
        part = vectors[:, :dim].to(torch.promote_types(vectors.dtype, torch.float32))
        norms = torch.linalg.vector_norm(part, dim=1, keepdim=True)  # (n, 1)
        norms.masked_fill_(norms < torch.finfo(part.dtype).tiny, 1.0)
        return cls(part * norms.reciprocal(), norms)

    def raw_gradient(self) -> Tensor:
        """The gradient on the vectors as they were given, (g − (g·u)u) / ‖x‖, made in place of the other."""
        along = _dots(self.gradient, self.unit).unsqueeze_(1)  # (n, 1)
        return self.gradient.addcmul_(self.unit, along, value=-1.0).mul_(self.norms.reciprocal())


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """(n,) dot products of paired rows (n, d). `torch.linalg.vecdot` keeps a digit more but writes all products."""
    return torch.bmm(left.unsqueeze(1), right.unsqueeze(2)).view(-1)


@dataclass(frozen=True, kw_only=True)
class Logits:
    """What becomes of cosines: frozen for the step, alike for all tiles, passes and ranks.

    scale: 1/τ. strength: added to it for negatives, without gradient. t: of the curricular strategy, None for others.
    margin: a negative is hard above the positive's cosine minus this. smoothing: of the labels. learned: whether the
    gradient of `scale` is wanted. false_margin, false_ratio: a candidate above s_p − margin, or ratio·s_p, is no
    negative.
    """

    scale: float
    strength: float
    t: float | None
    margin: float
    smoothing: float
    learned: bool
    false_margin: float | None
    false_ratio: float | None

    @property
    def plain(self) -> bool:
        """Whether logits are the scores, and gradients the probabilities."""
        return self.t is None and self.smoothing == 0

    @property
    def factor(self) -> float:
        """Turns cosines of negatives into the scores that tiles hold."""
        return self.scale + self.strength

    def shift(self, positives: Tensor) -> Tensor | None:
        """What to take from a row's scores (r, 1) so that no exponential overflows and none that counts vanishes.

        Scores lie within ±`_bound`, and a row's log-sum-exp is not below its positive. None where no such shift is
        known: a positive with a cosine far below 0 at a very low temperature.
        """
        own, bound = self.scale * positives, self._bound
        if not self.shifts:
            return torch.zeros_like(own).unsqueeze(1)
        lowest = torch.minimum(own, self.factor * positives)  # that matters: for the loss, and for the accuracy
        if bool((lowest < bound - 2 * LARGEST_EXPONENT).any()):
            return None
        return own.clamp(min=bound - LARGEST_EXPONENT).unsqueeze(1)

    @property
    def shifts(self) -> bool:
        """Whether `shift` is more than nothing."""
        return self._bound > LARGEST_EXPONENT

    @property
    def _bound(self) -> float:
        return max(abs(self.factor), abs(self.scale))

    def hard_above(self, positives: Tensor) -> Tensor:
        """The score (r, 1) above which a negative is hard."""
        return (self.factor * (positives - self.margin)).unsqueeze(1)

    def false_above(self, positives: Tensor) -> Tensor | None:
        """The score (r, 1) above which a candidate is no negative; None where that is off."""
        limits = []
        if self.false_margin is not None:
            limits.append(positives - self.false_margin)
        if self.false_ratio is not None:
            limits.append(positives * self.false_ratio)
        return self.factor * torch.stack(limits).amin(0).unsqueeze(1) if limits else None

    def adjust(self, scores: Tensor, hard_above: Tensor) -> Tensor:
        """Scores (r, c) → logits (r, c); the very same tensor where the strategy is not curricular. −inf stays."""
        if self.t is None:
            return scores
        hard, shift = self.hard(scores, hard_above), self._cosines(scores).add_(self.t).clamp_(min=0.0)
        return shift.sub_(1.0).mul_(hard).add_(1.0).mul_(scores)

    def slope(self, scores: Tensor, hard_above: Tensor) -> Tensor | None:
        """∂logit/∂score (r, c); None where it is 1."""
        if self.t is None:
            return None
        hard, cosines = self.hard(scores, hard_above), self._cosines(scores)
        shift = (cosines + self.t).clamp_(min=0.0)
        return cosines.mul_(torch.sign(shift)).add_(shift).sub_(1.0).mul_(hard).add_(1.0)

    def _cosines(self, scores: Tensor) -> Tensor:
        """(r, c), hidden cells at −2: finite, and below all others."""
        return (scores / self.scale).clamp_(min=-2.0)

    def hard(self, scores: Tensor, hard_above: Tensor) -> Tensor:
        """1 where a score is hard, else 0, (r, c). By signs: comparing and choosing are slower on a CPU."""
        return torch.sub(scores, hard_above).sign_().clamp_(min=0.0)


@dataclass
class Direction:
    """One softmax per row, over its own candidates and over columns that all rows share.

    rows: (b, d), without a gradient as yet. own: vectors that `own_index` (b, 1 + h) points into, column 0 the
    positive. own_hidden: (b, h) bool. columns: (m, d). answers: the cells of rows × columns that are no negatives.
    weights: (b,), sum 1 over all ranks.
    """

    rows: Prefix
    own: Prefix
    own_index: Tensor
    own_hidden: Tensor
    columns: Prefix
    answers: Answers
    weights: Tensor


@dataclass
class Sums:
    """What a direction adds up over its rows, each a float64 scalar: the weighted loss, the gradient of the scale, and
    counts. `candidates` are unmasked negatives, `hard` how many of them are, estimated from `COUNTED_ROWS` of each
    tile; `masked` are those that are not; `positives` is a sum of cosines.
    """

    loss: Tensor
    scale_gradient: Tensor
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
        self._kept: Tensor | None = None

    def __reduce__(self) -> tuple[type["Scratch"], tuple[()]]:
        return Scratch, ()

    def matrix(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """(rows, columns) of `like`'s type and device, with anything in it; the next call may give the same memory."""
        if like.device.type != "cpu":  # elsewhere the allocator itself keeps memory, and can lend it to the encoder
            return like.new_empty(rows, columns)
        kept = self._kept
        line = LINE_BYTES // like.element_size()
        stride = (-(-columns // line) | 1) * line  # an odd number of lines: rows 4 KB apart would share cache sets
        size = rows * stride
        if kept is None or kept.dtype != like.dtype or len(kept) < size or kept.is_inference():
            self._kept = kept = like.new_empty(size)
        return kept[:size].view(rows, stride)[:, :columns]


def contrast(direction: Direction, logits: Logits, tile: Tile, scratch: Scratch) -> Sums:
    """Add the gradients of the direction's loss to its three prefixes and return what its rows add up to."""
    rows, columns = len(direction.rows.unit), len(direction.columns.unit)
    width = columns if tile.keep else min(tile.columns, columns)
    buffer = scratch.matrix(min(tile.rows, rows), width, direction.columns.unit)  # the only scores there are
    parts = []
    for start in range(0, rows, tile.rows):
        some = slice(start, min(start + tile.rows, rows))
        state = _RowTile(direction, some, logits, tile.keep)
        parts.append(_row_tile(state, direction, some, tile, buffer[: some.stop - start]))
    return Sums(*torch.stack(parts).sum(0))


def _row_tile(state: "_RowTile", direction: Direction, rows: slice, tile: Tile, buffer: Tensor) -> Tensor:
    columns, hidden = direction.columns, direction.answers.cells(rows, tile.columns)

    def scores(number: int, compute: bool) -> tuple[slice, Tensor]:
        start = number * tile.columns
        some = slice(start, min(start + tile.columns, len(columns.unit)))
        out = buffer[:, some] if tile.keep else buffer[:, : some.stop - start]  # (r, c)
        return some, state.score(columns.unit[some], hidden[number], out) if compute else out

    for number, (hidden_rows, _) in enumerate(hidden):
        state.see(scores(number, compute=True)[1], hidden_rows)
    state.close(buffer)
    if state.exponentials:
        state.spread_exponentials(buffer, columns)
    else:
        for number in range(len(hidden)):
            some, seen = scores(number, compute=not tile.keep)
            state.spread(seen, columns.unit[some], columns.gradient[some])
    return state.finish(direction, rows)


class _RowTile:
    """Some rows' own candidates, and running statistics over the shared columns seen so far.

    Where a tile's scores are kept and its logits are plain, what is kept is e^(score − a shift for each row): the
    gradient is then a factor per row away, which goes into the (r, d) side of the two products.
    """

    def __init__(self, direction: Direction, rows: slice, logits: Logits, keep: bool) -> None:
        self.logits, self.weights = logits, direction.weights[rows]
        self.unit, self.own_index = direction.rows.unit[rows], direction.own_index[rows]  # (r, d), (r, 1 + h)
        self.own = direction.own.unit[self.own_index.clamp(min=0)]  # (r, 1 + h, d)
        self.positives = torch.linalg.vecdot(self.unit, self.own[:, 0])  # (r,) cosines, to the last digit
        self.shift = logits.shift(self.positives) if keep and logits.plain else None  # (r, 1)
        self.total = torch.zeros_like(self.positives)  # (r,) sum of the exponentials
        self.hard_above, self.false_above = logits.hard_above(self.positives), logits.false_above(self.positives)
        self.own_scores = torch.einsum("rd,rhd->rh", self.unit, self.own[:, 1:]) * logits.factor  # (r, h)
        self._hide(self.own_scores.masked_fill_(direction.own_hidden[rows], -math.inf))
        self.positive_logits = self.positives * logits.scale  # (r,)
        self.rest = torch.full_like(self.positives, -math.inf)  # (r,) log-sum-exp of the negatives
        self.best = torch.full_like(self.positives, -math.inf)  # (r,) the highest score of a negative, where it matters
        self.logit_sum, self.seen = self.positive_logits.clone(), torch.ones_like(self.positives)  # (r,) unmasked ones
        self.hard = torch.zeros_like(self.positives)  # (r,)
        self.row_gradient = direction.rows.gradient[rows]  # (r, d) ∂loss/∂(scale·row), zeros as yet
        self.scale_gradient = self.positives.new_zeros(())
        if self.own_scores.shape[1]:
            self._count(self.own_scores, direction.own_hidden[rows].nonzero()[:, 0])
            self._add(self.own_scores)

    @property
    def exponentials(self) -> bool:
        """Whether `see` leaves exponentials in place of scores."""
        return self.shift is not None

    def _hide(self, scores: Tensor) -> Tensor:
        return scores if self.false_above is None else scores.masked_fill_(scores > self.false_above, -math.inf)

    def score(self, columns: Tensor, hidden: tuple[Tensor, Tensor], out: Tensor) -> Tensor:
        """Scores of the rows against columns (c, d), hidden cells at −inf, written to `out` (r, c)."""
        torch.addmm(out, self.unit, columns.T, beta=0, alpha=self.logits.factor, out=out)
        if len(hidden[0]):
            out[hidden] = -math.inf
        return self._hide(out)

    def see(self, scores: Tensor, hidden_rows: Tensor) -> None:
        """Take a tile's scores (r, c) into the statistics; `hidden_rows` has the row of each hidden cell.

        `scores` is overwritten where exponentials are kept.
        """
        self._count(scores, hidden_rows)
        if self.shift is None:
            self._add(scores)
            return
        rows = max(CACHED // scores.shape[1], 1) if scores.device.type == "cpu" else len(scores)
        pieces = (torch.split(tensor, rows) for tensor in (scores, self.total, self.shift))
        for piece, total, shift in zip(*pieces, strict=True):
            if self.logits.shifts:
                torch.threshold_(piece.sub_(shift), LEAST_EXPONENT, -math.inf)
            total += piece.exp_().sum(1)

    def close(self, exponentials: Tensor) -> None:
        """All tiles were seen: add up the log-sum-exp, of negatives and of all. `exponentials`: (r, m), where kept."""
        if self.shift is not None:
            self.rest = torch.logaddexp(self.rest, self.total.log().add_(self.shift.squeeze(1)))
            self._find_best(exponentials)
        self.lse = torch.logaddexp(self.positive_logits, self.rest)  # (r,)

    def _find_best(self, exponentials: Tensor) -> None:
        """Look for the highest score where it matters: no negative outdoes a positive that outweighs all together."""
        assert self.shift is not None
        unclear = self.rest >= self.logits.factor * self.positives  # (r,)
        if unclear.any():
            self.best = torch.maximum(self.best, exponentials.amax(1).log_().add_(self.shift.squeeze(1)))

    def _count(self, scores: Tensor, hidden_rows: Tensor) -> None:
        """Count what is unmasked, and estimate how much of it is hard from some of the rows."""
        if self.false_above is not None:
            seen = (scores > -math.inf).sum(1)
        else:
            seen = scores.shape[1] - torch.bincount(hidden_rows, minlength=len(scores))
        self.seen += seen
        some = slice(None, None, max(len(scores) // COUNTED_ROWS, 1))
        hard = self.logits.hard(scores[some], self.hard_above[some]).sum()
        self.hard += seen * (hard / seen[some].sum().clamp_(min=1))

    def _add(self, scores: Tensor) -> None:
        self.best = torch.maximum(self.best, scores.amax(1))
        logits = self.logits.adjust(scores, self.hard_above)
        self.rest = torch.logaddexp(self.rest, logits.logsumexp(1))
        if self.logits.smoothing:
            self.logit_sum += torch.where(logits > -math.inf, logits, 0.0).sum(1)

    def spread_exponentials(self, exponentials: Tensor, columns: Prefix) -> None:
        """Add the gradients to the rows' and to the columns'; (r, m), of all columns, as `see` left them."""
        assert self.shift is not None
        factor = self.weights.unsqueeze(1) * (self.shift - self.lse.unsqueeze(1)).exp_()  # (r, 1)
        torch.mm(exponentials, columns.unit, out=self.row_gradient).mul_(factor)
        columns.add_product(exponentials.T, self.unit * (self.logits.scale * factor))

    def spread(self, scores: Tensor, columns: Tensor, column_gradient: Tensor) -> None:
        """Add a tile's gradients to the rows' and to the columns' (c, d); `scores` (r, c) as `see` left them."""
        gradient = self.gradient(scores)  # (r, c)
        self.row_gradient.addmm_(gradient, columns)
        column_gradient.addmm_(gradient.T, self.unit, alpha=self.logits.scale)

    def gradient(self, scores: Tensor) -> Tensor:
        """∂loss/∂score of the tile's cells, (r, c); overwrites `scores`."""
        slope, logits = self.logits.slope(scores, self.hard_above), self.logits.adjust(scores, self.hard_above)
        smooth = self.logits.smoothing * self.weights / self.seen  # (r,)
        unmasked = logits > -math.inf if self.logits.smoothing else None
        scaled = torch.where(logits > -math.inf, logits, 0.0) if self._explicit_scale else None
        logits.sub_((self.lse - self.weights.log()).unsqueeze(1))
        gradient = torch.threshold_(logits, LEAST_EXPONENT, -math.inf).exp_()
        if unmasked is not None:
            gradient.sub_(smooth.unsqueeze(1) * unmasked)
        if scaled is not None:
            self.scale_gradient += torch.sum(gradient * scaled) / self.logits.scale
        return gradient if slope is None else gradient.mul_(slope)

    @property
    def _explicit_scale(self) -> bool:
        """Curricular logits are not linear in the row, so Euler's theorem does not give the gradient of the scale."""
        return self.logits.learned and self.logits.t is not None

    def finish(self, direction: Direction, rows: slice) -> Tensor:
        """Add the gradients of the rows and of their own candidates; return what the rows add up to, as in `Sums`."""
        smoothing, missing = self.logits.smoothing, (self.rest - self.positive_logits).sigmoid()  # (r,) 1 − p_p
        gradient = self.weights * (smoothing - smoothing / self.seen - missing)  # (r,)
        if self._explicit_scale:
            self.scale_gradient += (gradient * self.positives).sum()
        gradients = torch.cat([gradient.unsqueeze(1), self.gradient(self.own_scores)], 1)  # (r, 1 + h)
        for own, unit, index in zip(gradients.T, self.own.unbind(1), self.own_index.T, strict=True):
            self.row_gradient.addcmul_(unit, own.unsqueeze(1))
            torch.mul(self.unit, (self.logits.scale * own).unsqueeze(1), out=unit)  # whose memory is free now
            direction.own.gradient.index_add_(0, index.clamp(min=0), unit)
        if not self._explicit_scale:
            self.scale_gradient = _dots(self.row_gradient, self.unit).sum()
        self.row_gradient.mul_(self.logits.scale)
        return self._sums(direction)

    def _sums(self, direction: Direction) -> Tensor:
        losses = -functional.logsigmoid(self.positive_logits - self.rest)  # (r,) −log p_p, exact near p_p = 1 too
        losses += self.logits.smoothing * (self.positive_logits - self.logit_sum / self.seen)
        negatives = self.seen - 1
        total = len(direction.columns.unit) - 1 + (self.own_index[:, 1:] >= 0).sum(1)  # (r,) hidden ones included
        correct = self.best < self.logits.factor * self.positives
        columns = [
            self.weights * losses,
            correct,
            self.hard,
            total - negatives,
            negatives,
            self.positives,
        ]
        sums = torch.stack([column.double().sum() for column in columns])
        return torch.cat([sums[:1], self.scale_gradient.double().view(1), sums[1:]])
