"""The contrastive loss by its definition: twenty lines of autograd that the tiles are held to."""

import math

import torch
from torch import Tensor

from peg_rag.training.loss.contrastive import LossOptions, Pairs, raw_query_weights
from peg_rag.training.loss.progressive import ProgressiveState


def dense_loss(
    queries: Tensor,
    documents: Tensor,
    pairs: Pairs,
    options: LossOptions | None = None,
    progressive: ProgressiveState | None = None,
    *,
    scale: Tensor | None = None,
) -> Tensor:
    """The loss by autograd over whole (b, n) matrices: short, and only for batches that are small.

    Args and errors as for `tiled_loss`; one process. Returns a scalar with a graph.
    """
    options, progressive = options or LossOptions(), progressive or ProgressiveState()
    scale = torch.as_tensor(1.0 / options.temperature) if scale is None else scale
    rows, known = torch.arange(len(queries), device=queries.device), _known_matrix(pairs, options)  # (b,), (b, n)
    weights: Tensor | None = None
    total = queries.new_zeros(())
    for dim in (queries.shape[1], *options.matryoshka_dims):
        q, d = _unit(queries[:, :dim]), _unit(documents[:, :dim])
        cosines = q @ d.T  # (b, n)
        positives = cosines[rows, pairs.positives]  # (b,)
        if weights is None:
            weights = raw_query_weights(pairs, progressive, positives)
            weights = weights / weights.sum()
            if options.matryoshka_dims:
                continue  # the whole vectors only gave the weights
        elsewhere = pairs.owners[None, :] != rows[:, None]  # (b, n)
        is_positive = torch.zeros_like(known[0]).index_fill(0, pairs.positives, True)  # (n,)
        theirs = elsewhere & (pairs.owners >= 0) & ~is_positive if options.hard_negatives == "own" else False
        direction = _dense_direction(cosines, pairs.positives, known | theirs, weights, options, progressive, scale)
        if options.symmetric:
            back = _dense_direction(
                cosines[:, pairs.positives].T, rows, known[:, pairs.positives].T, weights, options, progressive, scale
            )
            direction = (direction + back) / 2
        total = total + direction
    return total


def _dense_direction(
    cosines: Tensor,
    target: Tensor,
    hidden: Tensor,
    weights: Tensor,
    options: LossOptions,
    progressive: ProgressiveState,
    scale: Tensor,
) -> Tensor:
    at_target = torch.zeros_like(hidden).scatter(1, target[:, None], True)  # (b, n)
    positives = cosines.gather(1, target[:, None])  # (b, 1)
    limit = options.false_negatives_above(positives.detach().squeeze(1))
    hidden = hidden if limit is None else hidden | (cosines > limit[:, None])
    logits = cosines * scale + progressive.strength * cosines.detach()
    if progressive.curricular:
        hard = cosines > positives.detach() - progressive.options.margin
        logits = torch.where(hard, cosines * (progressive.t + cosines).clamp(min=0), cosines) * scale
    logits = torch.where(at_target, cosines * scale, logits).masked_fill(hidden & ~at_target, -math.inf)
    seen = logits.isfinite()
    log_p = logits.log_softmax(1).masked_fill(~seen, 0.0)  # (b, n)
    smooth = log_p.sum(1) / seen.sum(1)
    losses = (1 - options.label_smoothing) * log_p.gather(1, target[:, None]).squeeze(1)
    return -(weights * (losses + options.label_smoothing * smooth)).sum()


def _unit(vectors: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(norms == 0, 1.0, norms)


def _known_matrix(pairs: Pairs, options: LossOptions) -> Tensor:
    """(b, n) bool: the document is the query's positive, or known to be as good an answer."""
    b, n = len(pairs.positives), len(pairs.owners)
    known = torch.zeros(b, n, dtype=torch.bool, device=pairs.positives.device)
    known[torch.arange(b), pairs.positives] = True
    if pairs.known_positives is not None:
        known[pairs.known_positives[:, 0], pairs.known_positives[:, 1]] = True
    if options.mask_same_text and pairs.query_texts is not None and pairs.document_texts is not None:
        same_query = (pairs.query_texts[:, None] == pairs.query_texts[None, :]).double()  # (b, b)
        same_document = (pairs.document_texts[:, None] == pairs.document_texts[None, :]).double()  # (n, n)
        known = (same_query @ known.double() @ same_document) > 0
        known |= pairs.query_texts[:, None] == pairs.document_texts[None, :]
    return known
