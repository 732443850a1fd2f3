"""Components on two ranks: losses and gradients are those of the whole batch in one dense matrix."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from peg_rag.training.data.guide import GuideMask, Questions
from peg_rag.training.data.vectors import TextVectors
from peg_rag.training.loss.collectives import Ranks
from peg_rag.training.loss.contrastive import Candidates, Pairs
from peg_rag.training.loss.mixing import Mixing, MixingOptions
from peg_rag.training.loss.objective import ContrastiveObjective
from peg_rag.training.loss.reference import dense_loss
from peg_rag.training.loss.tiles import Tile
from peg_rag.training.loss.trust import TrustOptions, trust_weights
from peg_rag.training.recipe import LossOptions

DIM = 6
QUERIES = (4, 3)  # of each rank
MIXING = MixingOptions(kind="mixing", nearest=4, pairs=2, with_query=2, warmup=0.0)
PLAIN = LossOptions(symmetric=True)
CASES = {  # options of the loss, with a guide, with mixtures
    "shared documents": (PLAIN, False, False),
    "trust": (PLAIN.model_copy(update={"trust": TrustOptions(start=0.0)}), False, False),
    "guide": (PLAIN, True, False),
    "mixing": (PLAIN, False, True),
    "all": (LossOptions(symmetric=True, matryoshka_dims=(3, DIM), trust=TrustOptions(start=0.0)), True, True),
}


def make_share(rank: int) -> tuple[Tensor, Tensor, Pairs]:
    """Queries with two documents each, and at the end two that all queries share; one of these answers a query."""
    generator = torch.Generator().manual_seed(rank)
    count = QUERIES[rank]
    plain = Pairs.regular(count, 1)
    owners = torch.cat([plain.owners, torch.full((2,), -1)])
    query_ids = 10 * rank + torch.arange(count)
    document_ids = 100 + 20 * rank + torch.arange(len(owners))
    answers = torch.tensor([[0, 108]] if rank else [[1, 126]])  # a document that the other rank shares
    pairs = replace(plain, owners=owners, query_text_ids=query_ids, document_text_ids=document_ids, known_texts=answers)
    queries, documents = (
        torch.randn(rows, DIM, generator=generator, dtype=torch.float64) for rows in (count, len(owners))
    )
    return queries, documents, pairs


def make_guide() -> GuideMask:
    generator = np.random.default_rng(0)
    tables = []
    for keys in ([*range(4), *range(10, 13)], [*range(100, 110), *range(120, 128)]):
        vectors = generator.normal(size=(len(keys), 3))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        tables.append(TextVectors(np.array(keys, dtype=np.int64), vectors.astype(np.float16)))
    questions = Questions(np.array([100, 102, 120]), np.array([0, 1, 4]))
    return GuideMask(0.0, tables[0], tables[1], ("query_document", "query_query"), questions)


def join_shares(shares: list[tuple[Tensor, Tensor, Pairs]]) -> tuple[Tensor, Tensor, Pairs]:
    """The batch of one rank that would have all."""
    (first_queries, first_documents, first), (second_queries, second_documents, second) = shares
    row, column = len(first_queries), len(first_documents)
    assert second.known_texts is not None
    pairs = Pairs(
        torch.cat([first.positives, second.positives + column]),
        torch.cat([first.owners, torch.where(second.owners < 0, -1, second.owners + row)]),
        join_ids(first.query_text_ids, second.query_text_ids),
        join_ids(first.document_text_ids, second.document_text_ids),
        known_texts=join_ids(first.known_texts, second.known_texts + torch.tensor([row, 0])),
    )
    return torch.cat([first_queries, second_queries]), torch.cat([first_documents, second_documents]), pairs


def join_ids(*parts: Tensor | None) -> Tensor:
    return torch.cat([part for part in parts if part is not None])


def compute_dense(case: str) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of both shares, and its gradients on all queries and documents."""
    options, with_guide, with_mixing = CASES[case]
    shares = [make_share(rank) for rank in (0, 1)]
    queries, documents, pairs = join_shares(shares)
    queries.requires_grad_()
    documents.requires_grad_()
    if options.trust is not None:
        positives = torch.cosine_similarity(queries, documents[pairs.positives]).detach()
        pairs = replace(pairs, query_weights=trust_weights(positives, options.trust, Ranks()))
    candidates = []
    row = column = 0
    for rank, (own_queries, own_documents, own) in enumerate(shares if with_mixing else []):
        rows, columns = slice(row, row + len(own_queries)), slice(column, column + len(own_documents))
        mixtures = Mixing(MIXING, 5, seed=3, rank=rank).candidates(queries[rows], documents[columns], own)
        assert mixtures.owners is not None
        candidates.append(Candidates(mixtures.vectors, mixtures.texts, mixtures.owners + row))
        row, column = rows.stop, columns.stop
    masks = [make_guide()] if with_guide else []
    loss = dense_loss(queries, documents, pairs, options, candidates=candidates, masks=masks)
    loss.backward()
    assert queries.grad is not None
    assert documents.grad is not None
    return loss.detach(), queries.grad, documents.grad


def run_rank(rank: int, folder: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    outcomes: dict[str, Any] = {}
    for case, (options, with_guide, with_mixing) in CASES.items():
        objective = ContrastiveObjective(
            options,
            sources=[Mixing(MIXING, 5, seed=3, rank=rank)] if with_mixing else [],
            masks=[make_guide()] if with_guide else [],
            tile=Tile(rows=2, columns=5, keep=True),
        )
        result = objective(*make_share(rank), 0.0)
        outcomes[case] = (result.loss, result.query_gradient, result.document_gradient)
    torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(run_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]  # missing in its __all__
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    losses = []
    for case in CASES:
        loss, query_gradient, document_gradient = compute_dense(case)
        for outcome in (first, second):
            assert abs(outcome[case][0] - loss) < 1e-9, case
        for part, gradient in enumerate([query_gradient, document_gradient], start=1):
            together = torch.cat([first[case][part], second[case][part]])
            assert (together - gradient).abs().max() < 1e-9, case
        losses.append(float(loss))
    assert len({round(loss, 6) for loss in losses}) == len(CASES)  # each component does something
