"""The contrastive loss over a very large batch, and its gradients, without ever holding the score matrix.

At 80,000 candidates per query the scores of a batch of 13,334 are 4 GB in float32, and autograd keeps several such
matrices. `tiled_loss` walks over tiles of rows × columns instead: a first pass over a row tile's columns gathers the
log-sum-exp, a second writes the gradients straight into two buffers. What it costs, for B queries and N candidates of d
dimensions: 6·B·N·d operations with a row tile's scores kept between its passes, 8·B·N·d with them computed again
(2·B·N·d less for frozen candidates); memory for one normalised copy of the vectors, their gradients and a tile. Masks
and weights enter tile by tile. `peg_rag.training.loss.reference` says the same in twenty lines of autograd: it is the
definition that the tests hold the tiles to.

The loss of query i with positive p is the cross-entropy of the softmax over its positive and its negatives,
`−log(e^{z_ip} / (e^{z_ip} + Σ_j e^{z_ij}))` (InfoNCE, arXiv 1807.03748), where z is the cosine over the temperature,
re-weighted for negatives by `peg_rag.training.loss.progressive`. Vectors need not have unit length: normalising is part
of the loss. Cosines, sums and gradients are float32 (float64 for float64 vectors), whatever the vectors are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from peg_rag.errors import InvalidInput, TrainingError
from peg_rag.training.extension import CandidateMask
from peg_rag.training.loss.collectives import Ranks
from peg_rag.training.loss.masks import AnswerMask, limit_masks
from peg_rag.training.loss.progressive import ProgressiveState
from peg_rag.training.loss.tiles import Block, Direction, Prefix, Scoring, Scratch, Sums, Tile, contrast
from peg_rag.training.recipe import LossOptions


@dataclass(frozen=True)
class Pairs:
    """Which document answers which query: the integers of a batch of b queries and n documents, all on one device.

    positives: (b,) int64, the row among the documents of each query's positive.
    owners: (n,) int64, the query that brought a document; −1 for a document that every query shares and none owns.
    query_text_ids, document_text_ids: (b,) and (n,) int64; one space for both: equal ids mean equal texts.
    known_positives: (k, 2) int64 rows (query, document) that are answers too, and so no negatives.
    known_texts: (k, 2) int64, a query's row and the id of a text that answers it, in the batch or not.
    query_weights: (b,) weights of the queries, scaled to mean 1 over the batch by the loss; None: all alike.
    """

    positives: Tensor
    owners: Tensor
    query_text_ids: Tensor | None = None
    document_text_ids: Tensor | None = None
    known_positives: Tensor | None = None
    known_texts: Tensor | None = None
    query_weights: Tensor | None = None

    @classmethod
    def regular(cls, queries: int, negatives: int, device: torch.device | str = "cpu") -> "Pairs":
        """Documents in the order positive, its negatives, next positive, …: n = queries·(1 + negatives)."""
        owners = torch.arange(queries, device=device).repeat_interleave(1 + negatives)  # (n,)
        return cls(torch.arange(queries, device=device) * (1 + negatives), owners)

    def list_answers(self) -> Tensor:
        """(k, 2) ids of a query's text and of a text that is no negative for it: known answers, and the text itself.

        Raises:
            InvalidInput: the texts have no ids.
        """
        if self.query_text_ids is None or self.document_text_ids is None:
            raise InvalidInput("known answers are told by text ids; give those of queries and documents")
        answers = [
            self.query_text_ids[:, None].expand(-1, 2),
            torch.stack([self.query_text_ids, self.document_text_ids[self.positives]], 1),
        ]
        if self.known_positives is not None:
            query, document = self.known_positives.unbind(1)
            answers.append(torch.stack([self.query_text_ids[query], self.document_text_ids[document]], 1))
        if self.known_texts is not None:
            query, text = self.known_texts.unbind(1)
            answers.append(torch.stack([self.query_text_ids[query], text], 1))
        return torch.cat(answers)


@dataclass(frozen=True)
class Candidates:
    """Candidates of this rank's queries besides the documents of the batch.

    vectors: (m, d). With a graph to the batch's vectors, these get its gradient; without one they are constants.
    texts: (m,) int64 ids, of the same space as the texts of `Pairs`.
    owners: (m,) int64, the row of the query that alone meets a candidate; None: every query meets all of them.
    """

    vectors: Tensor
    texts: Tensor
    owners: Tensor | None = None


@dataclass(frozen=True)
class Rivals:
    """Queries that the documents meet besides those of the batch, in the symmetric loss; the same on every rank.

    vectors: (m, d), constants.
    texts: (m,) int64 ids, of the same space as the texts of `Pairs`, and none of the batch's queries.
    answers: (k, 2) int64 ids of such a query's text and of a text that answers it, for which it is no negative.
    """

    vectors: Tensor
    texts: Tensor
    answers: Tensor


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

    loss: scalar. query_gradient: (b, d). document_gradient: (n, d).
    """

    loss: Tensor
    query_gradient: Tensor
    document_gradient: Tensor
    metrics: LossMetrics


def tiled_loss(
    queries: Tensor,
    documents: Tensor,
    pairs: Pairs,
    options: LossOptions | None = None,
    progressive: ProgressiveState | None = None,
    *,
    candidates: Sequence[Candidates] = (),
    rivals: Sequence[Rivals] = (),
    masks: Sequence[CandidateMask] = (),
    tile: Tile | None = None,
    ranks: Ranks | None = None,
    scratch: Scratch | None = None,
) -> LossResult:
    """The loss of the batch and its gradients, tile by tile; equal to autograd over `dense_loss`.

    Args:
        queries: (b, d), of any length; this rank's.
        documents: (n, d); this rank's.
        pairs: which answers which, in this rank's numbering.
        options: what to compute.
        progressive: read, not moved; None for the first step of the strategy in the options.
        candidates: further candidates of this rank's queries. Those with a graph to `queries` or `documents` pass
            their gradient on to these.
        masks: besides those that the options ask for; they judge documents, not the queries of the other direction.
        tile: None chooses by size and device.
        ranks: None takes the default process group where one is initialised. The candidates are those of all ranks.
        scratch: memory to work in, where it is kept from step to step; None takes fresh memory.

    Raises:
        TrainingError: a vector holds NaN or infinity, on any rank.
        InvalidInput: shapes that do not belong together.
    """
    options = options or LossOptions()
    progressive = progressive or ProgressiveState(options.progressive)
    _check_shapes(queries, documents, pairs, options, candidates, rivals)
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):  # float32 is a promise
        step = _Step(
            queries.detach(),
            documents.detach(),
            pairs,
            options,
            progressive,
            candidates,
            rivals if options.symmetric else (),
            masks,
            tile,
            ranks or Ranks(),
            scratch or Scratch(),
        )
        result = step.run()
    _pass_gradients_on(candidates, step.extra, (queries, documents), result)
    return result


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """(n,) cosines of paired rows (n, d), in float32 or better, without a graph; 0 for a zero vector."""
    with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
        units = [Prefix.of(side.detach(), side.shape[1]).unit for side in (first, second)]
        product: Tensor = torch.linalg.vecdot(*units)
    return product


def _check_shapes(
    queries: Tensor,
    documents: Tensor,
    pairs: Pairs,
    options: LossOptions,
    candidates: Sequence[Candidates],
    rivals: Sequence[Rivals],
) -> None:
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
    further: list[Candidates | Rivals] = [*candidates, *rivals]
    for columns in further:
        if columns.vectors.shape != (len(columns.texts), queries.shape[1]):
            raise InvalidInput(
                f"further candidates {tuple(columns.vectors.shape)} with {len(columns.texts)} text ids must be (m, d) "
                "and (m,)"
            )
    for extra in candidates:
        if extra.owners is not None and extra.owners.shape != extra.texts.shape:
            raise InvalidInput(f"owners of candidates {tuple(extra.owners.shape)} must be ({len(extra.texts)},)")
    if (candidates or rivals) and not (options.mask_same_text and pairs.query_text_ids is not None):
        raise InvalidInput(
            "further candidates can contain a query's own positive, which only text ids reveal; "
            "give the text ids of queries and documents, and leave mask_same_text on"
        )


def _pass_gradients_on(
    candidates: Sequence[Candidates], sides: Sequence["_Side"], leaves: tuple[Tensor, Tensor], result: LossResult
) -> None:
    """Add what reaches queries and documents through candidates that were made of them."""
    outputs, gradients = [], []
    for extra, side in zip(candidates, sides, strict=True):
        if side.gradient is not None:
            outputs.append(extra.vectors)
            gradients.append(side.gradient.to(extra.vectors.dtype))
    totals = (result.query_gradient, result.document_gradient)
    reachable = [(leaf, total) for leaf, total in zip(leaves, totals, strict=True) if leaf.requires_grad]
    if not outputs or not reachable:
        return
    parts = torch.autograd.grad(outputs, [leaf for leaf, _ in reachable], gradients, allow_unused=True)
    for (_, total), part in zip(reachable, parts, strict=True):
        if part is not None:
            total.add_(part)


class _Side:
    """Vectors as the encoder gave them, (n, d), and the gradient that gathers on them; frozen ones get none."""

    def __init__(self, raw: Tensor, frozen: bool = False) -> None:
        self.raw = raw
        self.frozen = frozen
        self.gradient: Tensor | None = None

    def add(self, prefix: Prefix) -> None:
        """Take up the gradient of a prefix; the buffer itself where it is the whole."""
        if self.frozen:
            return
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
        candidates: Sequence[Candidates],
        rivals: Sequence[Rivals],
        masks: Sequence[CandidateMask],
        tile: Tile | None,
        ranks: Ranks,
        scratch: Scratch,
    ) -> None:
        self.pairs, self.options, self.progressive, self.ranks = pairs, options, progressive, ranks
        self.masks, self.tile, self.scratch = masks, tile, scratch
        self.scoring = Scoring(options, progressive)
        self.shared, self.own_index = _split_documents(pairs, options.hard_negatives)  # (m,), (b, 1 + h)
        self.queries, self.documents = _Side(queries), _Side(documents)
        all_shared = len(self.shared) == len(documents)
        self.candidates = self._gather_side(self.documents, None if all_shared else self.shared)
        self.rivals = self._gather_side(self.queries, None) if options.symmetric else self.queries
        self.extra = [_Side(extra.vectors.detach(), not extra.vectors.requires_grad) for extra in candidates]
        self.extra_texts = [extra.texts for extra in candidates]
        self.further_rivals = [_Side(extra.vectors.detach(), frozen=True) for extra in rivals]
        self.rival_texts = [extra.texts for extra in rivals]
        own_answers = self._number_texts()  # (k, 2)
        self.answers = torch.cat([own_answers, *(extra.answers for extra in rivals)])
        self._index_owned(candidates)

    def _gather_side(self, side: _Side, rows: Tensor | None) -> _Side:
        """The chosen rows of all ranks; the very same side where that is all there is."""
        if rows is None and self.ranks.size == 1:
            return side
        return _Side(self.ranks.gather(side.raw if rows is None else side.raw[rows]))

    def _number_texts(self) -> Tensor:
        """Give texts ids; the answers of all ranks as pairs of these, (k, 2). Without texts, each row is its own."""
        pairs, ranks = self.pairs, self.ranks
        if not self.options.mask_same_text or pairs.query_text_ids is None or pairs.document_text_ids is None:
            self.query_ids, self.document_ids = -1 - ranks.number(pairs.positives), ranks.number(pairs.owners)
            pairs = replace(pairs, query_text_ids=self.query_ids, document_text_ids=self.document_ids, known_texts=None)
        else:
            self.query_ids, self.document_ids = pairs.query_text_ids, pairs.document_text_ids  # (b,), (n,)
        return ranks.gather(pairs.list_answers())

    def _index_owned(self, candidates: Sequence[Candidates]) -> None:
        """Append candidates that one query alone meets to its own: they stand behind the documents."""
        self.owned = [extra.owners is not None for extra in candidates]
        start = len(self.documents.raw)
        own_texts = [self.document_ids]
        for extra in candidates:
            if extra.owners is None:
                continue
            places = torch.arange(start, start + len(extra.texts), device=extra.owners.device)
            index = _list_by_owner(extra.owners, places, len(self.own_index))
            self.own_index = torch.cat([self.own_index, index], 1)
            own_texts.append(extra.texts)
            start += len(extra.texts)
        self.own_texts = torch.cat(own_texts)[self.own_index[:, 1:].clamp(min=0)]  # (b, h)

    def run(self) -> LossResult:
        self.whole = {key: Prefix.of(side.raw, side.raw.shape[1]) for key, side in self._all_sides().items()}
        weights = self._normalise_weights()
        dims = sorted(self.options.matryoshka_dims or (self.queries.raw.shape[1],))
        if dims[-1] < self.queries.raw.shape[1]:
            self.whole.clear()
        sums = [self._add_prefix(dim, weights) for dim in dims]
        for side, rows, source in ((self.documents, self.shared, self.candidates), (self.queries, None, self.rivals)):
            self._return_gradient(side, rows, source)
        loss = torch.stack([part.loss for parts in sums for part in parts]).sum()
        return self._sum_up(loss, sums[-1][0])

    def _all_sides(self) -> dict[int, _Side]:
        sides = (self.queries, self.documents, self.candidates, self.rivals, *self.extra, *self.further_rivals)
        return {id(side): side for side in sides}

    def _normalise_weights(self) -> Tensor:
        """(b,), summing to 1 over all ranks. All ranks learn here whether any vector is broken."""
        queries, documents = self.whole[id(self.queries)], self.whole[id(self.documents)]
        weights = queries.unit.new_ones(len(queries.unit))
        if self.pairs.query_weights is not None:
            weights = self.pairs.query_weights.to(weights)
        invalid_norms = (~queries.norms.isfinite()).sum() + (~documents.norms.isfinite()).sum()
        totals = self.ranks.sum(torch.stack([weights.double().sum(), invalid_norms.double()]))
        if totals[1] > 0:
            raise TrainingError(
                f"{int(totals[1])} of the batch's vectors hold NaN or infinity. The weights are broken or a value "
                "overflowed: lower the learning rate, clip gradients, or leave half precision"
            )
        total = totals[0].where(totals[0] > 0, 1.0)  # a batch without weight teaches nothing
        return (weights.double() / total).to(weights)

    def _add_prefix(self, dim: int, weights: Tensor) -> list[Sums]:
        sides = self._all_sides()
        full = dim == self.queries.raw.shape[1]
        prefixes = {key: self.whole[key] if full else Prefix.of(side.raw, dim) for key, side in sides.items()}
        queries, documents, candidates, rivals = (
            prefixes[id(side)] for side in (self.queries, self.documents, self.candidates, self.rivals)
        )
        extra = [prefixes[id(side)] for side in self.extra]
        share = weights / 2 if self.options.symmetric else weights
        owned = [vectors for vectors, is_owned in zip(extra, self.owned, strict=True) if is_owned]
        row_vectors = _join_prefixes([documents, *owned])
        sums = [self._contrast_direction(self._query_direction(queries, row_vectors, candidates, extra, share))]
        if owned:
            parts = torch.split(row_vectors.gradient, [len(part.unit) for part in (documents, *owned)])
            for prefix, part in zip((documents, *owned), parts, strict=True):
                prefix.gradient.add_(part)
        if self.options.symmetric:
            further = [prefixes[id(side)] for side in self.further_rivals]
            back = self._document_direction(queries, documents, rivals, further, share)
            sums.append(self._contrast_direction(back))
            documents.gradient.index_add_(0, self.pairs.positives, back.rows.gradient)
        for key, side in sides.items():
            side.add(prefixes[key])
        return sums

    def _contrast_direction(self, direction: Direction) -> Sums:
        tile = self.tile or Tile.automatic(direction.columns, direction.rows.unit.device, self.scoring.plain)
        return contrast(direction, self.scoring, tile, self.scratch)

    def _query_direction(
        self, queries: Prefix, row_vectors: Prefix, candidates: Prefix, extra: Sequence[Prefix], weights: Tensor
    ) -> Direction:
        """Each query looks for its positive among its own hard negatives, those of all ranks and further ones."""
        blocks = [Block(candidates, self.ranks.gather(self.document_ids[self.shared]))]
        for vectors, texts, side, is_owned in zip(extra, self.extra_texts, self.extra, self.owned, strict=True):
            if not is_owned:
                blocks.append(Block(vectors, texts, side.frozen))
        columns = torch.cat([block.texts for block in blocks])
        masks = [AnswerMask(self.query_ids, columns, self.answers), *limit_masks(self.options), *self.masks]
        positive_texts = self.document_ids[self.pairs.positives]
        return Direction(
            queries, self.query_ids, positive_texts, row_vectors, self.own_index, self.own_texts, blocks, masks, weights
        )

    def _document_direction(
        self, queries: Prefix, documents: Prefix, rivals: Prefix, further: Sequence[Prefix], weights: Tensor
    ) -> Direction:
        """Each positive looks for its query among the queries of all ranks and further ones."""
        positives = self.pairs.positives
        unit = documents.unit[positives]  # (b, dim)
        rows = Prefix(unit, documents.norms[positives])
        blocks = [Block(rivals, self.ranks.gather(self.query_ids))]
        blocks += [Block(part, ids, frozen=True) for part, ids in zip(further, self.rival_texts, strict=True)]
        texts = self.document_ids[positives]
        columns = torch.cat([block.texts for block in blocks])
        masks = [AnswerMask(texts, columns, self.answers.flip(1)), *limit_masks(self.options)]
        own_index = torch.arange(len(unit), device=unit.device).unsqueeze(1)  # (b, 1)
        return Direction(
            rows,
            texts,
            self.query_ids,
            queries,
            own_index,
            own_index[:, 1:],
            blocks,
            masks,
            weights,
        )

    def _return_gradient(self, side: _Side, rows: Tensor | None, source: _Side) -> None:
        """Bring the gradient of gathered vectors home: summed over ranks, this rank's part."""
        if source is side or source.gradient is None or side.gradient is None:
            return
        home = self.ranks.scatter_sum(source.gradient, len(side.raw) if rows is None else len(rows))
        if rows is None:
            side.gradient.add_(home)
        else:
            side.gradient.index_add_(0, rows, home)

    def _sum_up(self, loss: Tensor, sums: Sums) -> LossResult:
        rows = torch.full_like(loss, len(self.queries.raw))
        counts = [loss, rows, sums.correct, sums.hard, sums.masked, sums.candidates, sums.positives]
        loss, *counts = self.ranks.sum(torch.stack(counts)).unbind()
        total, correct, hard, masked, negatives, positives = (float(count) for count in counts)
        metrics = LossMetrics(
            loss=float(loss),
            accuracy=correct / total,
            positive_similarity=positives / total,
            hard_share=hard / max(negatives, 1.0),
            masked_share=masked / max(negatives + masked, 1.0),
            t=self.progressive.t,
            temperature=self.options.temperature,
        )
        assert self.queries.gradient is not None
        assert self.documents.gradient is not None
        return LossResult(loss, self.queries.gradient, self.documents.gradient, metrics)


def _split_documents(pairs: Pairs, hard_negatives: str) -> tuple[Tensor, Tensor]:
    """Documents that all queries share (m,), and each query's own candidates (b, 1 + h): its positive, then its hard
    negatives where they are its alone; −1 fills the rows of queries that have fewer."""
    own_index = pairs.positives.unsqueeze(1)  # (b, 1)
    everything = torch.arange(len(pairs.owners), device=own_index.device)
    if hard_negatives == "shared":
        return everything, own_index
    alone = (pairs.owners >= 0).index_fill(0, pairs.positives, False)  # (n,)
    hard_index = _list_by_owner(pairs.owners[alone], everything[alone], len(own_index))
    return everything[~alone], torch.cat([own_index, hard_index], 1)


def _list_by_owner(owners: Tensor, items: Tensor, rows: int) -> Tensor:
    """The items (m,) of each owner (m,) as a row, in order, (rows, h); −1 fills the rows of owners with fewer."""
    owners, order = owners.sort(stable=True)
    counts = torch.bincount(owners, minlength=rows)  # (rows,)
    place = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]
    index = items.new_full((rows, int(counts.max())), -1)
    index[owners, place] = items[order]
    return index


def _join_prefixes(parts: Sequence[Prefix]) -> Prefix:
    """One after the other, without their gradients; a single one as it is."""
    if len(parts) == 1:
        return parts[0]
    return Prefix(torch.cat([part.unit for part in parts]), torch.cat([part.norms for part in parts]))
