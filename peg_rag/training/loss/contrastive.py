"""The contrastive loss over a very large batch, and its gradients, without ever holding the score matrix.

At 80,000 candidates per query the scores of a batch of 13,334 are 4 GB in float32, and autograd keeps several such
matrices. `tiled_loss` walks over tiles of rows × columns instead: a first pass over a row tile's columns gathers the
log-sum-exp, a second writes the gradients straight into two buffers. What it costs, for B queries and N candidates of d
dimensions: 6·B·N·d operations with a row tile's scores kept between its passes, 8·B·N·d with them computed again;
memory for one normalised copy of the vectors, their gradients and a tile. Masks, weights and label smoothing enter tile
by tile. `dense_loss` says the same in twenty lines of autograd: it is the definition that the tests hold the tiles to.

The loss of query i with positive p is the cross-entropy of the softmax over its positive and its negatives,
`−log(e^{z_ip} / (e^{z_ip} + Σ_j e^{z_ij}))` (InfoNCE, arXiv 1807.03748), where z is the cosine over the temperature,
re-weighted for negatives by `peg_rag.training.progressive`. Vectors need not have unit length: normalising is part of
the loss. Cosines, sums and gradients are float32 (float64 for float64 vectors), whatever the vectors are.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from peg_rag.errors import InvalidInput, TrainingError
from peg_rag.training.loss.collectives import Ranks
from peg_rag.training.loss.masks import Answers
from peg_rag.training.loss.progressive import ProgressiveState
from peg_rag.training.loss.tiles import Direction, Logits, Prefix, Scratch, Sums, Tile, contrast


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What the contrastive loss computes.

    temperature: τ; cosines are divided by it.
    hard_negatives: `shared`, every query's hard negatives are candidates of all queries; `own`, of their query alone.
    symmetric: average with the other direction, in which each positive must find its query among all queries.
    label_smoothing: share of the target spread evenly over a query's unmasked candidates, the positive among them.
    mask_same_text: a candidate whose text is a known answer to the same query text, or is the query's own text, is no
        negative. Needs the text ids of `Pairs`.
    false_negative_margin: a candidate with cosine > s_p − margin (s_p: the positive's) is no negative; None: off.
    false_negative_ratio: a candidate with cosine > ratio·s_p is no negative; None: off.
    matryoshka_dims: the loss is the sum over these prefixes of the vectors, each normalised anew; () for the whole.
    """

    temperature: float = 0.05
    hard_negatives: Literal["shared", "own"] = "shared"
    symmetric: bool = False
    label_smoothing: float = 0.0
    mask_same_text: bool = True
    false_negative_margin: float | None = None
    false_negative_ratio: float | None = None
    matryoshka_dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.hard_negatives not in ("shared", "own"):
            raise InvalidInput(f"hard_negatives={self.hard_negatives!r} is neither 'shared' nor 'own'")
        if not self.temperature > 0 or not 0 <= self.label_smoothing < 1:
            raise InvalidInput(
                f"temperature={self.temperature} must be more than 0, label_smoothing={self.label_smoothing} in [0, 1)"
            )
        if any(dim < 1 for dim in self.matryoshka_dims) or len(set(self.matryoshka_dims)) < len(self.matryoshka_dims):
            raise InvalidInput(f"matryoshka_dims={self.matryoshka_dims} must be distinct and 1 or more")

    def false_negatives_above(self, positives: Tensor) -> Tensor | None:
        """The cosine above which a candidate is no negative, for positives of cosine (b,); None where that is off."""
        limits = []
        if self.false_negative_margin is not None:
            limits.append(positives - self.false_negative_margin)
        if self.false_negative_ratio is not None:
            limits.append(positives * self.false_negative_ratio)
        return torch.stack(limits).amin(0) if limits else None


@dataclass(frozen=True)
class Pairs:
    """Which document answers which query: the integers of a batch of b queries and n documents, all on one device.

    positives: (b,) int64, the row among the documents of each query's positive.
    owners: (n,) int64, the query that brought a document; −1 for a document that every query shares and none owns.
    query_texts, document_texts: (b,) and (n,) int64 ids of the texts, one space for both: equal ids mean equal texts.
    known_positives: (k, 2) int64 rows (query, document) that are answers too, and so no negatives.
    query_weights: (b,) weights of the queries, scaled to mean 1 over the batch by the loss; None: all alike.
    """

    positives: Tensor
    owners: Tensor
    query_texts: Tensor | None = None
    document_texts: Tensor | None = None
    known_positives: Tensor | None = None
    query_weights: Tensor | None = None

    @classmethod
    def regular(cls, queries: int, negatives: int, device: torch.device | str = "cpu") -> "Pairs":
        """Documents in the order positive, its negatives, next positive, …: n = queries·(1 + negatives)."""
        owners = torch.arange(queries, device=device).repeat_interleave(1 + negatives)  # (n,)
        return cls(torch.arange(queries, device=device) * (1 + negatives), owners)


@dataclass(frozen=True)
class LossMetrics:
    """What a step reports, over all ranks.

    loss: the loss. accuracy: share of queries whose positive scores above all their negatives. positive_similarity:
    mean cosine of the positives. hard_share: share of negatives with a cosine above the positive's minus the
    progressive margin, estimated from 32 rows of each tile. masked_share: share of candidates masked as false
    negatives. t: of the curricular strategy. temperature: τ.
    """

    loss: float
    accuracy: float
    positive_similarity: float
    hard_share: float
    masked_share: float
    t: float
    temperature: float


@dataclass(frozen=True)
class LossResult:
    """The loss of the whole batch and its gradients on this rank's vectors.

    loss: scalar. query_gradient: (b, d). document_gradient: (n, d). scale_gradient: scalar, of 1/τ, over all ranks.
    """

    loss: Tensor
    query_gradient: Tensor
    document_gradient: Tensor
    scale_gradient: Tensor
    metrics: LossMetrics


def tiled_loss(
    queries: Tensor,
    documents: Tensor,
    pairs: Pairs,
    options: LossOptions | None = None,
    progressive: ProgressiveState | None = None,
    *,
    scale: Tensor | None = None,
    tile: Tile | None = None,
    ranks: Ranks | None = None,
    scratch: Scratch | None = None,
) -> LossResult:
    """The loss of the batch and its gradients, tile by tile; equal to autograd over `dense_loss`.

    Args:
        queries: (b, d), of any length; this rank's.
        documents: (n, d); this rank's.
        pairs: which answers which, in this rank's numbering.
        options, progressive: what to compute; `progressive` is read, not moved.
        scale: 1/τ when it is learned; otherwise `options.temperature` counts.
        tile: None chooses by size and device.
        ranks: None takes the default process group where one is initialised. The candidates are those of all ranks.
        scratch: memory to work in, where it is kept from step to step; None takes fresh memory.

    Raises:
        TrainingError: a vector holds NaN or infinity, on any rank.
        InvalidInput: shapes that do not belong together.
    """
    options, progressive, ranks = options or LossOptions(), progressive or ProgressiveState(), ranks or Ranks()
    _check(queries, documents, pairs, options)
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):  # float32 is a promise
        rows = queries.detach(), documents.detach()
        return _Step(*rows, pairs, options, progressive, scale, tile, ranks, scratch or Scratch()).run()


def _check(queries: Tensor, documents: Tensor, pairs: Pairs, options: LossOptions) -> None:
    b, n = len(queries), len(documents)
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise InvalidInput(
            f"queries {tuple(queries.shape)} and documents {tuple(documents.shape)} must be (b, d), (n, d)"
        )
    if pairs.positives.shape != (b,) or pairs.owners.shape != (n,):
        raise InvalidInput(
            f"positives {tuple(pairs.positives.shape)} and owners {tuple(pairs.owners.shape)} must be ({b},) and ({n},)"
        )
    if max(options.matryoshka_dims, default=0) > queries.shape[1]:
        raise InvalidInput(
            f"matryoshka_dims={options.matryoshka_dims} exceed the {queries.shape[1]} dimensions there are"
        )


class _Side:
    """Vectors as the encoder gave them, (n, d), and the gradient that gathers on them."""

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw
        self.gradient: Tensor | None = None

    def add(self, prefix: Prefix) -> None:
        """Take up the gradient of a prefix; the buffer itself where it is the whole."""
        part = prefix.raw_gradient()
        if self.gradient is None and part.shape == self.raw.shape:
            self.gradient = part
            return
        if self.gradient is None:
            self.gradient = part.new_zeros(self.raw.shape)
        self.gradient[:, : part.shape[1]] += part


class _Step:
    """One evaluation of the loss: gathers the candidates once, goes through prefixes and directions, scatters once."""

    def __init__(
        self,
        queries: Tensor,
        documents: Tensor,
        pairs: Pairs,
        options: LossOptions,
        progressive: ProgressiveState,
        scale: Tensor | None,
        tile: Tile | None,
        ranks: Ranks,
        scratch: Scratch,
    ) -> None:
        self.pairs, self.options, self.progressive, self.ranks = pairs, options, progressive, ranks
        self.tile, self.scratch = tile, scratch
        self.logits = _logits(options, progressive, scale)
        self.shared, self.own_index = _split(pairs, options.hard_negatives)  # (m,), (b, 1 + h)
        self.queries, self.documents = _Side(queries), _Side(documents)
        everything = len(self.shared) == len(documents)
        self.candidates = self._everywhere(self.documents, None if everything else self.shared)
        self.rivals = self._everywhere(self.queries, None) if options.symmetric else self.queries
        self._identify()

    def _everywhere(self, side: _Side, rows: Tensor | None) -> _Side:
        """The chosen rows of all ranks; the very same side where that is all there is."""
        if rows is None and self.ranks.size == 1:
            return side
        return _Side(self.ranks.gather(side.raw if rows is None else side.raw[rows]))

    def _identify(self) -> None:
        """Give texts ids such that the answers of all ranks are pairs of ids; without texts, each row is its own."""
        pairs, ranks = self.pairs, self.ranks
        texts = (pairs.query_texts, pairs.document_texts) if self.options.mask_same_text else (None, None)
        if texts[0] is None or texts[1] is None:
            self.query_ids, self.document_ids = -1 - ranks.number(pairs.positives), ranks.number(pairs.owners)
            answers = []
        else:
            self.query_ids, self.document_ids = texts[0], texts[1]  # (b,), (n,)
            answers = [self.query_ids[:, None].expand(-1, 2)]
        answers.append(torch.stack([self.query_ids, self.document_ids[pairs.positives]], 1))  # (b, 2)
        if pairs.known_positives is not None:
            query, document = pairs.known_positives.unbind(1)
            answers.append(torch.stack([self.query_ids[query], self.document_ids[document]], 1))
        self.answers = ranks.gather(torch.cat(answers))  # (k, 2)

    def run(self) -> LossResult:
        self.whole = {key: Prefix.of(side.raw, side.raw.shape[1]) for key, side in self._sides().items()}
        weights = self._weights()
        dims = sorted(self.options.matryoshka_dims or (self.queries.raw.shape[1],))
        if dims[-1] < self.queries.raw.shape[1]:
            self.whole.clear()
        sums = [self._prefix(dim, weights) for dim in dims]
        for side, rows, source in ((self.documents, self.shared, self.candidates), (self.queries, None, self.rivals)):
            self._collect(side, rows, source)
        loss = torch.stack([part.loss for some in sums for part in some]).sum()
        slope = torch.stack([part.scale_gradient for some in sums for part in some]).sum()
        return self._result(loss, slope, sums[-1][0])

    def _sides(self) -> dict[int, _Side]:
        return {id(side): side for side in (self.queries, self.documents, self.candidates, self.rivals)}

    def _weights(self) -> Tensor:
        """(b,), summing to 1 over all ranks. All ranks learn here whether any vector is broken."""
        queries, documents = self.whole[id(self.queries)], self.whole[id(self.documents)]
        positives = queries.unit.new_zeros(len(queries.unit))  # (b,) any: without focus all weigh alike
        if self.progressive.focus:
            positives = torch.linalg.vecdot(queries.unit, documents.unit[self.pairs.positives])
        weights = raw_query_weights(self.pairs, self.progressive, positives)  # (b,)
        broken = (~queries.norms.isfinite()).sum() + (~documents.norms.isfinite()).sum()
        totals = self.ranks.sum(torch.stack([weights.double().sum(), broken.double()]))
        if totals[1] > 0:
            raise TrainingError(
                f"{int(totals[1])} of the batch's vectors hold NaN or infinity. The weights are broken or a value "
                "overflowed: lower the learning rate, clip gradients, or leave half precision"
            )
        return (weights / totals[0]).to(positives.dtype)

    def _prefix(self, dim: int, weights: Tensor) -> list[Sums]:
        sides = self._sides()
        whole = dim == self.queries.raw.shape[1]
        prefixes = {key: self.whole[key] if whole else Prefix.of(side.raw, dim) for key, side in sides.items()}
        queries, documents, candidates, rivals = (
            prefixes[id(side)] for side in (self.queries, self.documents, self.candidates, self.rivals)
        )
        share = weights / 2 if self.options.symmetric else weights
        sums = [self._contrast(self._retrieval(queries, documents, candidates, share))]
        if self.options.symmetric:
            back = self._back(queries, documents, rivals, share)
            sums.append(self._contrast(back))
            documents.gradient.index_add_(0, self.pairs.positives, back.rows.gradient)
        for key, side in sides.items():
            side.add(prefixes[key])
        return sums

    def _contrast(self, direction: Direction) -> Sums:
        columns = direction.columns.unit
        tile = self.tile or Tile.automatic(len(columns), columns.device, self.logits.plain)
        return contrast(direction, self.logits, tile, self.scratch)

    def _retrieval(self, queries: Prefix, documents: Prefix, candidates: Prefix, weights: Tensor) -> Direction:
        """Each query looks for its positive among its own hard negatives and the candidates of all ranks."""
        columns = self.document_ids[self.shared]
        answers = Answers(self.query_ids, self.ranks.gather(columns), self.answers)
        others = self.own_index[:, 1:]  # (b, h)
        hidden = answers.among(self.document_ids[others.clamp(min=0)]) | (others < 0)
        return Direction(queries, documents, self.own_index, hidden, candidates, answers, weights)

    def _back(self, queries: Prefix, documents: Prefix, rivals: Prefix, weights: Tensor) -> Direction:
        """Each positive looks for its query among the queries of all ranks."""
        positives = self.pairs.positives
        unit = documents.unit[positives]  # (b, dim)
        rows = Prefix(unit, documents.norms[positives])
        answers = Answers(self.document_ids[positives], self.ranks.gather(self.query_ids), self.answers.flip(1))
        own_index = torch.arange(len(unit), device=unit.device).unsqueeze(1)  # (b, 1)
        return Direction(rows, queries, own_index, own_index[:, 1:].bool(), rivals, answers, weights)

    def _collect(self, side: _Side, rows: Tensor | None, source: _Side) -> None:
        """Bring the gradient of gathered vectors home: summed over ranks, this rank's part."""
        if source is side or source.gradient is None or side.gradient is None:
            return
        home = self.ranks.scatter_sum(source.gradient, len(side.raw) if rows is None else len(rows))
        side.gradient.index_add_(0, rows, home) if rows is not None else side.gradient.add_(home)

    def _result(self, loss: Tensor, slope: Tensor, sums: Sums) -> LossResult:
        rows = torch.full_like(loss, len(self.queries.raw))
        counts = [
            loss,
            slope,
            rows,
            sums.correct,
            sums.hard,
            sums.masked,
            sums.candidates,
            sums.positives,
        ]
        loss, slope, *counts = self.ranks.sum(torch.stack(counts)).unbind()
        total, correct, hard, masked, negatives, positives = (float(count) for count in counts)
        metrics = LossMetrics(
            loss=float(loss),
            accuracy=correct / total,
            positive_similarity=positives / total,
            hard_share=hard / max(negatives, 1.0),
            masked_share=masked / max(negatives + masked, 1.0),
            t=self.progressive.t,
            temperature=1.0 / self.logits.scale,
        )
        assert self.queries.gradient is not None
        assert self.documents.gradient is not None
        return LossResult(loss, self.queries.gradient, self.documents.gradient, slope, metrics)


def _logits(options: LossOptions, progressive: ProgressiveState, scale: Tensor | None) -> Logits:
    return Logits(
        scale=1.0 / options.temperature if scale is None else float(scale),
        strength=progressive.strength,
        t=progressive.t if progressive.curricular else None,
        margin=progressive.options.margin,
        smoothing=options.label_smoothing,
        learned=scale is not None,
        false_margin=options.false_negative_margin,
        false_ratio=options.false_negative_ratio,
    )


def _split(pairs: Pairs, hard_negatives: str) -> tuple[Tensor, Tensor]:
    """Documents that all queries share (m,), and each query's own candidates (b, 1 + h): its positive, then its hard
    negatives where they are its alone; −1 fills the rows of queries that have fewer."""
    own_index = pairs.positives.unsqueeze(1)  # (b, 1)
    everything = torch.arange(len(pairs.owners), device=own_index.device)
    if hard_negatives == "shared":
        return everything, own_index
    alone = (pairs.owners >= 0).index_fill(0, pairs.positives, False)  # (n,)
    documents = everything[alone]
    owners, order = pairs.owners[alone].sort(stable=True)
    counts = torch.bincount(owners, minlength=len(own_index))  # (b,)
    place = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]
    others = own_index.new_full((len(own_index), int(counts.max())), -1)  # (b, h)
    others[owners, place] = documents[order]
    return everything[~alone], torch.cat([own_index, others], 1)


def raw_query_weights(pairs: Pairs, progressive: ProgressiveState, positives: Tensor) -> Tensor:
    weights = progressive.query_weights(positives)  # (b,)
    return weights if pairs.query_weights is None else weights * pairs.query_weights


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """(n,) cosines of paired rows (n, d), in float32 or better, without a graph; 0 for a zero vector."""
    with torch.no_grad(), torch.autocast(left.device.type, enabled=False):
        units = [Prefix.of(side.detach(), side.shape[1]).unit for side in (left, right)]
        product: Tensor = torch.linalg.vecdot(*units)
    return product
