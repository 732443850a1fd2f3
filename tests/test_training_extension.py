"""What sources and masks of candidates promise: gradients pass through, products are skipped, masks hide."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from peg_rag.errors import InvalidInput
from peg_rag.training.loss.contrastive import Candidates, Pairs, tiled_loss
from peg_rag.training.loss.masks import TileColumns, TileRows
from peg_rag.training.loss.progressive import ProgressiveState
from peg_rag.training.loss.reference import dense_loss
from peg_rag.training.loss.tiles import Tile
from peg_rag.training.recipe import LossOptions, ProgressiveOptions

DIM = 6


def make_batch(seed: int, queries: int = 5, negatives: int = 2) -> tuple[Tensor, Tensor, Pairs]:
    generator = torch.Generator().manual_seed(seed)
    plain = Pairs.regular(queries, negatives)
    n = len(plain.owners)
    pairs = replace(plain, query_text_ids=torch.arange(queries), document_text_ids=queries + torch.arange(n))
    q, d = (torch.randn(k, DIM, generator=generator, dtype=torch.float64) for k in (queries, n))
    return q, d, pairs


def mix_neighbours(queries: Tensor, documents: Tensor) -> Candidates:
    """Candidates with a graph: points between documents, and between queries and documents."""
    between = 0.3 * documents + 0.7 * documents.roll(1, 0)  # (n, d)
    near = 0.2 * queries + 0.8 * documents[: len(queries)]  # (b, d)
    vectors = torch.cat([between, near])
    return Candidates(vectors, 1_000 + torch.arange(len(vectors)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    options=st.sampled_from(
        [LossOptions(), LossOptions(symmetric=True, matryoshka_dims=(3, DIM)), LossOptions(hard_negatives="own")]
    ),
    keep=st.booleans(),
    stale=st.integers(0, 5),
)
def test_gradients_pass_through_candidates_with_a_graph(
    seed: int, options: LossOptions, keep: bool, stale: int
) -> None:
    queries, documents, pairs = make_batch(seed)
    constants = Candidates(torch.randn(stale, DIM, dtype=torch.float64), 2_000 + torch.arange(stale))
    gradients = []
    for compute in ("dense", "tiled"):
        q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()
        candidates = [mix_neighbours(q, d), constants]
        if compute == "dense":
            dense_loss(q, d, pairs, options, candidates=candidates).backward()
            gradients.append((q.grad, d.grad))
        else:
            tile = Tile(rows=2, columns=7, keep=keep)
            result = tiled_loss(q, d, pairs, options, candidates=candidates, tile=tile)
            gradients.append((result.query_gradient, result.document_gradient))
    for dense, tiled in zip(*gradients, strict=True):
        assert (dense - tiled).abs().max() < 1e-9


class Products(TorchDispatchMode):
    """Counts the matrix products whose result has so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.count += len(out) == self.rows
        return out


@pytest.mark.parametrize("keep", [True, False])
def test_frozen_candidates_skip_the_product_of_their_gradient(keep: bool) -> None:
    queries, documents, pairs = make_batch(0)
    constants = torch.randn(40, DIM, dtype=torch.float64)
    for vectors, products in [(constants, 0), (constants + 0 * documents.requires_grad_().sum(), 1)]:
        candidates = [Candidates(vectors, 1_000 + torch.arange(40))]
        with Products(rows=40) as counter:
            tiled_loss(queries, documents, pairs, candidates=candidates, tile=Tile(rows=5, columns=64, keep=keep))
        assert counter.count == products


class EveryThird:
    """Hides a third of the candidates, by their texts."""

    def hidden(self, rows: TileRows, columns: TileColumns) -> Tensor:
        return ((rows.texts[:, None] + columns.texts) % 3 == 0).expand(columns.scores.shape)


class Nearest:
    """Hides candidates with a cosine above a half, in sparse form."""

    def hidden(self, rows: TileRows, columns: TileColumns) -> Tensor:
        return (columns.scores > 0.5 * columns.scale).to_sparse()


@pytest.mark.parametrize("hard_negatives", ["shared", "own"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("masks", [[EveryThird()], [Nearest()], [EveryThird(), Nearest()]])
def test_masks_hide_the_same_cells_in_tiles_and_whole_matrices(
    masks: list[EveryThird | Nearest], keep: bool, hard_negatives: str
) -> None:
    queries, documents, pairs = make_batch(3)
    options = LossOptions(hard_negatives=hard_negatives, symmetric=True)  # type: ignore[arg-type]
    candidates = [Candidates(torch.randn(9, DIM, dtype=torch.float64), 500 + torch.arange(9))]
    q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    loss = dense_loss(q, d, pairs, options, candidates=candidates, masks=masks)
    loss.backward()
    tile = Tile(rows=2, columns=4, keep=keep)
    result = tiled_loss(queries, documents, pairs, options, candidates=candidates, masks=masks, tile=tile)
    assert abs(result.loss.item() - loss.item()) < 1e-9
    assert q.grad is not None
    assert d.grad is not None
    assert (result.query_gradient - q.grad).abs().max() < 1e-9
    assert (result.document_gradient - d.grad).abs().max() < 1e-9
    assert result.metrics.masked_share > 0


def test_further_candidates_need_texts_to_be_told_from_answers() -> None:
    queries, documents, pairs = make_batch(0)
    candidates = [Candidates(torch.randn(2, DIM), torch.arange(2))]
    for wrong, options in [
        (replace(pairs, query_text_ids=None), LossOptions()),
        (pairs, LossOptions(mask_same_text=False)),
    ]:
        with pytest.raises(InvalidInput, match="which only text ids reveal"):
            tiled_loss(queries, documents, wrong, options, candidates=candidates)
    with pytest.raises(InvalidInput, match=r"\(m, d\) and \(m,\)"):
        tiled_loss(queries, documents, pairs, candidates=[Candidates(torch.randn(2, 3), torch.arange(2))])


def test_ties_do_not_depend_on_the_tiling() -> None:
    """Negatives with the very vector of the positive, and of nearly so: hard, masked or neither in every tiling."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(40, 96, generator=generator)
    positives = queries + 0.5 * torch.randn(40, 96, generator=generator)
    documents = torch.cat([positives, 3.7 * positives, torch.randn(300, 96, generator=generator)])
    pairs = Pairs(torch.arange(40), torch.cat([torch.arange(40).repeat(2), torch.full((300,), -1)]))
    for options in (
        LossOptions(progressive=ProgressiveOptions(strategy="curricular")),
        LossOptions(false_negative_margin=0.0),
        LossOptions(false_negative_ratio=1.0),
    ):
        state = ProgressiveState(options.progressive)
        state.advance(0.5, 0.9)
        exact = dense_loss(queries.double(), documents.double(), pairs, options, state)
        for rows, columns, keep in [(40, 400, True), (1, 1, False), (7, 33, False), (3, 64, True), (40, 41, False)]:
            tile = Tile(rows=rows, columns=columns, keep=keep)
            result = tiled_loss(queries, documents, pairs, options, state, tile=tile)
            assert result.loss.item() == pytest.approx(exact.item(), rel=1e-4)
            assert result.metrics.accuracy == 0.0  # a tie is not won
            assert result.metrics.masked_share == 0.0
