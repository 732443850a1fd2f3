"""The momentum encoder and its queues are held to a slow pair of Python lists, and to the dense loss."""

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from peg_rag.errors import InvalidInput, RecipeError
from peg_rag.training.loss.contrastive import Candidates, Pairs, Rivals, tiled_loss
from peg_rag.training.loss.momentum import MomentumOptions, MomentumQueues
from peg_rag.training.loss.objective import ContrastiveObjective
from peg_rag.training.loss.reference import dense_loss
from peg_rag.training.loss.tiles import Tile
from peg_rag.training.recipe import LossOptions, Recipe
from peg_rag.training.run.checkpoint import _join_tensors, _split_tensors
from peg_rag.training.run.grad_cache import CachedStep, StepBatch

WORDS, DIM, STEPS = 7, 5, 6


class WordCounts:
    """Texts of one token each, that are rows of numbers: the `Rows` of a linear encoder."""

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts
        self.lengths = np.ones(len(counts), dtype=np.int64)

    def features(self, rows: NDArray[np.intp]) -> Tensor:
        return self.counts[torch.from_numpy(rows)]


def make_encoder(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(WORDS, DIM, bias=False, dtype=torch.float64)


def make_batch(step: int, queries: int = 4, negatives: int = 1) -> StepBatch:
    """Texts of 40, so that later batches meet earlier ones again, with answers that are not in the batch."""
    generator = torch.Generator().manual_seed(100 + step)
    plain = Pairs.regular(queries, negatives)
    texts = torch.randperm(40, generator=generator)[: queries + len(plain.owners)]
    known = torch.stack(
        [torch.randint(0, queries, (5,), generator=generator), torch.randint(0, 40, (5,), generator=generator)], 1
    )
    pairs = replace(plain, query_text_ids=texts[:queries], document_text_ids=texts[queries:], known_texts=known)
    counts = torch.stack([torch.randn(WORDS, generator=torch.Generator().manual_seed(int(text))) for text in texts])
    counts = counts.double()
    return StepBatch(WordCounts(counts[:queries]), WordCounts(counts[queries:]), pairs)


class SlowMomentum:
    """What the component does, one text at a time."""

    def __init__(self, options: MomentumOptions, encoder: nn.Linear) -> None:
        self.options = options
        self.weight = encoder.weight.detach().clone()
        self.first_step = round(options.warmup * STEPS)
        self.documents: dict[int, Tensor] = {}
        self.queries: dict[int, Tensor] = {}
        self.answers: set[tuple[int, int]] = set()

    def move(self, encoder: nn.Linear, step: int) -> None:
        if step:
            kept = 0.5 ** (1 / (self.options.half_life * STEPS))
            self.weight = kept * self.weight + (1 - kept) * encoder.weight.detach()

    def further(self, pairs: Pairs, step: int) -> tuple[list[Candidates], list[Rivals]]:
        if step < self.first_step:
            return [], []
        assert pairs.document_text_ids is not None
        assert pairs.query_text_ids is not None
        documents = {k: v for k, v in self.documents.items() if k not in pairs.document_text_ids.tolist()}
        queries = {k: v for k, v in self.queries.items() if k not in pairs.query_text_ids.tolist()}
        candidates = [Candidates(torch.stack([*documents.values()]), torch.tensor([*documents]))] if documents else []
        answers = torch.tensor(sorted(self.answers), dtype=torch.int64).reshape(-1, 2)
        rivals = [Rivals(torch.stack([*queries.values()]), torch.tensor([*queries]), answers)] if queries else []
        return candidates, rivals

    def remember(self, batch: StepBatch) -> None:
        pairs = batch.labels
        for texts, rows, queue, size in (
            (pairs.document_text_ids.tolist(), batch.documents, self.documents, self.options.documents),
            (pairs.query_text_ids.tolist(), batch.queries, self.queries, self.options.queries),
        ):
            for text, counts in list(zip(texts, rows.counts, strict=True))[:size]:  # type: ignore[attr-defined]
                queue.pop(text, None)
                queue[text] = self.weight @ counts
            for text in list(queue)[: max(len(queue) - size, 0)]:
                del queue[text]
        self.answers |= {(query, text) for query, text in pairs.list_answers().tolist()}
        self.answers = {(query, text) for query, text in self.answers if query in self.queries}


def run_steps(step: CachedStep, encoder: nn.Module, first: int = 0, last: int = STEPS) -> list[Tensor]:
    """The gradients of some steps of plain gradient descent."""
    gradients = []
    for number in range(first, last):
        encoder.zero_grad()
        step(make_batch(number), number / STEPS)
        gradients.append(next(encoder.parameters()).grad.clone())  # type: ignore[union-attr]
        take_step(encoder)
    return gradients


def take_step(encoder: nn.Module) -> None:
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter -= 0.3 * parameter.grad  # type: ignore[operator, misc]


def build_step(encoder: nn.Module, options: MomentumOptions, loss: LossOptions, **sizes: Any) -> CachedStep:
    queues = MomentumQueues(options, encoder, STEPS)
    objective = ContrastiveObjective(loss, sources=[queues], tile=Tile(rows=3, columns=4, keep=True))
    return CachedStep(encoder, objective, batch_tokens=3, graphs="replay", observers=[queues], **sizes)


@settings(max_examples=20, deadline=None)
@given(
    documents=st.integers(1, 30),
    queries=st.integers(0, 12),
    half_life=st.sampled_from([0.01, 0.3, 2.0]),
    warmup=st.sampled_from([0.0, 0.4]),
    loss=st.sampled_from(
        [
            LossOptions(symmetric=True),
            LossOptions(symmetric=True, matryoshka_dims=(2, DIM), hard_negatives="own"),
            LossOptions(),
        ]
    ),
)
def test_gradients_are_those_of_slow_queues(
    documents: int, queries: int, half_life: float, warmup: float, loss: LossOptions
) -> None:
    options = MomentumOptions(kind="momentum", documents=documents, queries=queries, half_life=half_life, warmup=warmup)
    encoder, plain = make_encoder(), make_encoder()
    step = build_step(encoder, options, loss)
    slow = SlowMomentum(options, plain)
    for number, gradient in enumerate(run_steps(step, encoder)):
        batch = make_batch(number)
        slow.move(plain, number)
        candidates, rivals = slow.further(batch.labels, number)
        plain.zero_grad()
        query_vectors = plain(batch.queries.counts)  # type: ignore[attr-defined]
        document_vectors = plain(batch.documents.counts)  # type: ignore[attr-defined]
        dense_loss(query_vectors, document_vectors, batch.labels, loss, candidates=candidates, rivals=rivals).backward()
        slow.remember(batch)
        assert plain.weight.grad is not None
        assert (gradient - plain.weight.grad).abs().max() < 1e-9
        take_step(plain)


def test_a_document_never_meets_its_own_query_or_one_that_it_answers() -> None:
    """They stand among the rivals, right on the document: each that counted would add 1 to the sum."""
    query = torch.eye(3, dtype=torch.float64)[:1]
    pairs = Pairs(torch.tensor([0]), torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    for texts, answers, counted in [([1], [], 0), ([5], [[5, 2]], 0), ([5], [[5, 3]], 1), ([5, 6], [[6, 2]], 1)]:
        rivals = Rivals(
            query.expand(len(texts), 3), torch.tensor(texts), torch.tensor(answers, dtype=torch.int64).reshape(-1, 2)
        )
        result = tiled_loss(query, query.clone(), pairs, LossOptions(symmetric=True), rivals=[rivals])
        assert result.loss.item() == pytest.approx(np.log(1 + counted) / 2, abs=1e-6)
        assert tiled_loss(query, query.clone(), pairs, rivals=[rivals]).loss.item() == pytest.approx(0, abs=1e-6)


def test_the_momentum_encoder_is_half_new_after_its_half_life() -> None:
    encoder = make_encoder()
    queues = MomentumQueues(MomentumOptions(kind="momentum", documents=4, half_life=0.5), encoder, STEPS)
    before = encoder.weight.detach().clone()
    with torch.no_grad():
        encoder.weight.zero_()
    for number in range(STEPS // 2 + 1):  # the first sees the weights that it was copied from
        batch = make_batch(number)
        queues.observe(batch, 8)
        queues.update(torch.zeros(0), batch.labels)
    weights = queues.state_dict()["weights"]["weight"]
    torch.testing.assert_close(weights, before / 2)
    assert not any(parameter.requires_grad for parameter in queues.state_dict()["weights"].values())


def test_a_resumed_run_repeats_every_bit() -> None:
    options = MomentumOptions(kind="momentum", documents=9, queries=6, half_life=0.3, warmup=0.2)
    loss = LossOptions(symmetric=True)
    straight = make_encoder()
    expected = run_steps(build_step(straight, options, loss), straight)
    killed = make_encoder()
    step = build_step(killed, options, loss)
    run_steps(step, killed, last=3)
    plain, tensors = _split_tensors(copy.deepcopy(step.state_dict()))
    resumed = make_encoder(seed=9)
    again = build_step(resumed, options, loss)
    resumed.load_state_dict(killed.state_dict())
    again.load_state_dict(_join_tensors(plain, tensors, torch.device("cpu")))
    gradients = run_steps(again, resumed, first=3)
    assert all(torch.equal(one, other) for one, other in zip(expected[3:], gradients, strict=True))
    assert torch.equal(straight.weight, resumed.weight)


def test_it_must_see_the_batch_and_have_a_model() -> None:
    queues = MomentumQueues(MomentumOptions(kind="momentum", documents=4), make_encoder(), STEPS)
    with pytest.raises(InvalidInput, match="call observe before the loss"):
        queues.update(torch.zeros(2, DIM), make_batch(0).labels)


def test_recipes_name_it_by_kind() -> None:
    stage = {
        "name": "main",
        "steps": 10,
        "batch": {"queries": 8, "negatives": 1},
        "data": {"sources": [{"path": "pairs.jsonl"}]},
        "optimizer": {"learning_rate": 0.01},
    }
    tree: dict[str, Any] = {"output_dir": "out", "model": {"path": "peg-mini"}, "stages": [stage]}
    recipe = Recipe.parse(tree, ["stages.0.loss.candidates=[{kind: momentum, documents: 64}]"])
    assert recipe.stages[0].candidates_per_query == 16 + 64
    for override, message in [
        ("stages.0.loss={candidates: [{kind: momentum, documents: 4, queries: 4}]}", "set symmetric: true"),
        ("stages.0.loss.candidates=[{kind: momentum, documents: 4, half_life: 0}]", "greater than 0"),
        ("stages.0.loss={mask_same_text: false, candidates: [{kind: momentum, documents: 4}]}", "mask_same_text: true"),
    ]:
        with pytest.raises(RecipeError, match=message):
            Recipe.parse(tree, [override])


def run_rank(rank: int, folder: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(run_shared_steps(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run_shared_steps(rank: int | None) -> dict[str, Any]:
    """Four steps of four queries with two documents each: of one rank, or of two that share them."""
    encoder: nn.Module = make_encoder()
    options = MomentumOptions(kind="momentum", documents=12, queries=8, half_life=0.2, warmup=0.0)
    queues = MomentumQueues(options, encoder, STEPS)
    objective = ContrastiveObjective(LossOptions(symmetric=True), sources=[queues])
    model = encoder if rank is None else nn.parallel.DistributedDataParallel(encoder)
    step = CachedStep(model, objective, batch_tokens=3, graphs="replay", observers=[queues])
    for number in range(4):
        batch = make_batch(number)
        if rank is not None:
            batch = take_share(batch, rank)
        encoder.zero_grad()
        step(batch, number / STEPS)
        take_step(encoder)
    return {"weight": next(encoder.parameters()).detach(), "queues": queues.state_dict()}


def take_share(batch: StepBatch, rank: int) -> StepBatch:
    rows, columns = slice(2 * rank, 2 * rank + 2), slice(4 * rank, 4 * rank + 4)
    pairs = batch.labels
    known = pairs.known_texts[(pairs.known_texts[:, 0] >= rows.start) & (pairs.known_texts[:, 0] < rows.stop)]
    share = replace(
        Pairs.regular(2, 1),
        query_text_ids=pairs.query_text_ids[rows],
        document_text_ids=pairs.document_text_ids[columns],
        known_texts=known - torch.tensor([rows.start, 0]),
    )
    queries, documents = batch.queries.counts[rows], batch.documents.counts[columns]  # type: ignore[attr-defined]
    return StepBatch(WordCounts(queries), WordCounts(documents), share)


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    expected = run_shared_steps(None)
    mp.spawn(run_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]  # missing in its __all__
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert (result["weight"] - expected["weight"]).abs().max() < 1e-9
        for name in ("documents", "queries"):
            assert torch.equal(result["queues"][name]["texts"], expected["queues"][name]["texts"])
            assert (result["queues"][name]["vectors"] - expected["queues"][name]["vectors"]).abs().max() < 1e-9
        assert torch.equal(result["queues"]["answers"], expected["queues"]["answers"])
