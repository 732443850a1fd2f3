"""The contrastive loss by its definition: whole matrices and autograd, short, and only for batches that are small."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from peg_rag.training.extension import CandidateMask
from peg_rag.training.loss.contrastive import Candidates, Pairs, Rivals
from peg_rag.training.loss.masks import TileColumns, TileRows
from peg_rag.training.loss.progressive import TIE, ProgressiveState
from peg_rag.training.recipe import LossOptions


def dense_loss(
    queries: Tensor,
    documents: Tensor,
    pairs: Pairs,
    options: LossOptions | None = None,
    progressive: ProgressiveState | None = None,
    *,
    candidates: Sequence[Candidates] = (),
    rivals: Sequence[Rivals] = (),
    masks: Sequence[CandidateMask] = (),
) -> Tensor:
    """The loss by autograd over whole (b, n) matrices.

    Args and errors as for `tiled_loss`; one process. Returns a scalar with a graph.
    """
    options = options or LossOptions()
    progressive = progressive or ProgressiveState(options.progressive)
    b = len(queries)
    rows = torch.arange(b, device=queries.device)
    weights = torch.ones_like(queries[:, 0])
    if pairs.query_weights is not None:
        weights = pairs.query_weights.to(queries)
    total = weights.sum()
    weights = weights / total.where(total > 0, 1.0)
    columns = torch.cat([documents, *(extra.vectors for extra in candidates)])  # (n + m, d)
    owners = torch.cat([pairs.owners, *(_owners_of(extra) for extra in candidates)])  # (n + m,)
    answers = _known_answers(pairs, options, candidates)  # (b, n + m)
    is_positive = torch.zeros_like(answers[0]).index_fill(0, pairs.positives, True)  # (n + m,)
    foreign = (owners[None, :] != rows[:, None]) & (owners >= 0) & ~is_positive  # (b, n + m)
    if options.hard_negatives == "shared":
        foreign[:, : len(documents)] = False
    never = answers | foreign
    total = queries.new_zeros(())
    for dim in options.matryoshka_dims or (queries.shape[1],):
        cosines = _unit_vectors(queries[:, :dim]) @ _unit_vectors(columns[:, :dim]).T  # (b, n + m)
        is_hidden = never | _apply_masks(cosines, pairs, candidates, masks)
        loss = _mean_loss(cosines, pairs.positives, is_hidden, weights, options, progressive)
        if options.symmetric:
            back = cosines[:, pairs.positives].T  # (b, b)
            is_answered = answers[:, pairs.positives].T  # (b, b)
            for extra in rivals:
                further = _unit_vectors(documents[pairs.positives][:, :dim]) @ _unit_vectors(extra.vectors[:, :dim]).T
                back = torch.cat([back, further], 1)
                is_answered = torch.cat([is_answered, _answers_rivals(pairs, extra)], 1)
            loss = (loss + _mean_loss(back, rows, is_answered, weights, options, progressive)) / 2
        total = total + loss
    return total


def _mean_loss(
    cosines: Tensor,
    target: Tensor,
    is_hidden: Tensor,
    weights: Tensor,
    options: LossOptions,
    progressive: ProgressiveState,
) -> Tensor:
    at_target = torch.zeros_like(is_hidden).scatter(1, target[:, None], True)  # (b, n)
    positives = cosines.detach().gather(1, target[:, None])  # (b, 1)
    if options.false_negative_margin is not None:
        is_hidden = is_hidden | (cosines > positives - options.false_negative_margin + TIE)
    if options.false_negative_ratio is not None:
        is_hidden = is_hidden | (cosines > positives * options.false_negative_ratio + TIE)
    scale = 1 / options.temperature
    logits = cosines * scale + progressive.strength * cosines.detach()
    if progressive.curricular:
        hard = cosines > positives - progressive.options.margin + TIE
        logits = torch.where(hard, cosines * (progressive.t + cosines).clamp(min=0), cosines) * scale
    logits = torch.where(at_target, cosines * scale, logits).masked_fill(is_hidden & ~at_target, -math.inf)
    return -(weights * logits.log_softmax(1).gather(1, target[:, None]).squeeze(1)).sum()


def _owners_of(extra: Candidates) -> Tensor:
    return torch.full_like(extra.texts, -1) if extra.owners is None else extra.owners


def _known_answers(pairs: Pairs, options: LossOptions, candidates: Sequence[Candidates]) -> Tensor:
    """(b, n + m) bool: the candidate is the query's positive, or known to be as good an answer."""
    b, n = len(pairs.positives), len(pairs.owners)
    is_answer = torch.zeros(b, n, dtype=torch.bool, device=pairs.positives.device)
    is_answer[torch.arange(b), pairs.positives] = True
    if pairs.known_positives is not None:
        is_answer[pairs.known_positives[:, 0], pairs.known_positives[:, 1]] = True
    if not options.mask_same_text or pairs.query_text_ids is None or pairs.document_text_ids is None:
        return is_answer
    texts = torch.cat([pairs.document_text_ids, *(extra.texts for extra in candidates)])  # (n + m,)
    same_query = (pairs.query_text_ids[:, None] == pairs.query_text_ids[None, :]).double()  # (b, b)
    same_text = (pairs.document_text_ids[:, None] == texts[None, :]).double()  # (n, n + m)
    answer_counts = same_query @ is_answer.double() @ same_text  # (b, n + m)
    if pairs.known_texts is not None:
        query, text = pairs.known_texts.unbind(1)
        answer_counts = answer_counts + same_query[:, query] @ (text[:, None] == texts[None, :]).double()
    return (answer_counts > 0) | (pairs.query_text_ids[:, None] == texts[None, :])


def _answers_rivals(pairs: Pairs, rivals: Rivals) -> Tensor:
    """(b, m) bool: the query's positive is known to answer the rival."""
    assert pairs.document_text_ids is not None
    answers = {(query, text) for query, text in torch.cat([pairs.list_answers(), rivals.answers]).tolist()}
    positives = pairs.document_text_ids[pairs.positives].tolist()
    cells = [[(rival, text) in answers for rival in rivals.texts.tolist()] for text in positives]
    return torch.tensor(cells, device=rivals.texts.device).reshape(len(positives), -1)


def _apply_masks(
    cosines: Tensor, pairs: Pairs, candidates: Sequence[Candidates], masks: Sequence[CandidateMask]
) -> Tensor:
    """(b, n + m) bool: what the further masks hide."""
    is_hidden = torch.zeros_like(cosines, dtype=torch.bool)
    if not masks:
        return is_hidden
    assert pairs.query_text_ids is not None
    assert pairs.document_text_ids is not None
    texts = torch.cat([pairs.document_text_ids, *(extra.texts for extra in candidates)])
    positives = cosines.detach().gather(1, pairs.positives[:, None]).squeeze(1)
    positive_texts = pairs.document_text_ids[pairs.positives]
    rows = TileRows(slice(0, len(cosines)), pairs.query_text_ids, positive_texts, positives)
    columns = TileColumns(slice(0, len(texts)), texts[None, :], cosines.detach(), 1.0)
    for mask in masks:
        cells = mask.hidden(rows, columns)
        is_hidden |= cells.to_dense() if cells.is_sparse else cells
    return is_hidden


def _unit_vectors(vectors: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(norms == 0, 1.0, norms)
