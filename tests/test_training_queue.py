"""The queue of stale document vectors is held to a slow one of Python lists, and to the dense loss."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peg_rag.errors import InvalidInput, RecipeError
from peg_rag.training.loss.contrastive import Candidates, Pairs
from peg_rag.training.loss.objective import ContrastiveObjective
from peg_rag.training.loss.progressive import ProgressiveState
from peg_rag.training.loss.queue import DocumentQueue, QueueOptions
from peg_rag.training.loss.reference import dense_loss
from peg_rag.training.loss.tiles import Tile
from peg_rag.training.recipe import LossOptions, ProgressiveOptions, Recipe

DIM = 5
CURRICULAR = ProgressiveOptions(strategy="curricular", margin=0.1)


class SlowQueue:
    """What the queue does, one document at a time."""

    def __init__(self, size: int, first_step: int) -> None:
        self.size = size
        self.first_step = first_step
        self.steps = 0
        self.entries: list[tuple[int, Tensor]] = []

    def candidates(self, pairs: Pairs) -> list[Candidates]:
        assert pairs.document_text_ids is not None
        entries = [entry for entry in self.entries if entry[0] not in pairs.document_text_ids.tolist()]
        if self.steps < self.first_step or not entries:
            return []
        return [Candidates(torch.stack([vector for _, vector in entries]), torch.tensor([text for text, _ in entries]))]

    def update(self, documents: Tensor, pairs: Pairs) -> None:
        assert pairs.document_text_ids is not None
        newest = list(zip(pairs.document_text_ids.tolist(), documents.unbind(), strict=True))[: self.size]
        texts = {text for text, _ in newest}
        self.entries = [entry for entry in self.entries if entry[0] not in texts] + newest
        self.entries = self.entries[-self.size :]
        self.steps += 1


def make_step(seed: int, queries: int = 4, negatives: int = 1) -> tuple[Tensor, Tensor, Pairs]:
    """A batch without repeats whose texts come from so few that later batches meet them again."""
    generator = torch.Generator().manual_seed(seed)
    plain = Pairs.regular(queries, negatives)
    texts = torch.randperm(60, generator=generator)[: queries + len(plain.owners)]
    known_texts = torch.stack(
        [torch.randint(0, queries, (6,), generator=generator), torch.randint(0, 60, (6,), generator=generator)], 1
    )
    pairs = Pairs(
        plain.positives, plain.owners, texts[:queries], texts[queries:], known_texts=known_texts, query_weights=None
    )
    vectors = torch.randn(len(texts), DIM, dtype=torch.float64, generator=generator)
    return vectors[:queries], vectors[queries:], pairs


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 30),
    warmup=st.sampled_from([0.0, 0.4]),
    options=st.sampled_from(
        [
            LossOptions(),
            LossOptions(symmetric=True, progressive=CURRICULAR, matryoshka_dims=(2, DIM)),
            LossOptions(hard_negatives="own", false_negative_margin=0.1),
        ]
    ),
    keep=st.booleans(),
)
def test_losses_and_gradients_are_those_of_a_slow_queue(
    seed: int, size: int, warmup: float, options: LossOptions, keep: bool
) -> None:
    tile = Tile(rows=3, columns=4, keep=keep)
    queue = DocumentQueue(QueueOptions(kind="queue", size=size, warmup=warmup), steps=5)
    objective = ContrastiveObjective(options, sources=[queue], tile=tile)
    slow = SlowQueue(size, round(5 * warmup))
    state = ProgressiveState(options.progressive)
    for step in range(5):
        queries, documents, pairs = make_step(seed + step)
        result = objective(queries, documents, pairs, step / 5)
        q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()
        state.advance(torch.cosine_similarity(queries, documents[pairs.positives]).mean().item(), step / 5)
        loss = dense_loss(q, d, pairs, options, state, candidates=slow.candidates(pairs))
        loss.backward()
        slow.update(documents, pairs)
        assert abs(result.loss.item() - loss.item()) < 1e-9
        assert q.grad is not None
        assert d.grad is not None
        assert (result.query_gradient - q.grad).abs().max() < 1e-9
        assert (result.document_gradient - d.grad).abs().max() < 1e-9


def test_a_query_never_meets_its_own_text_or_a_known_answer() -> None:
    """They stand in the queue, right on the query: the loss would be log 2 and more, not nearly 0."""
    queue = DocumentQueue(QueueOptions(kind="queue", size=9, warmup=0.0), steps=9)
    query = torch.eye(3, dtype=torch.float64)[:1]
    stale = Pairs(torch.tensor([0]), torch.tensor([0, 0]), torch.tensor([1]), torch.tensor([2, 3]))
    queue.update(query.expand(2, 3), stale)
    documents = torch.eye(3, dtype=torch.float64)[:2]
    for own, known, loss in [(2, [[0, 3]], 0.0), (2, [], 1.0), (9, [[0, 2], [0, 3]], 0.0), (9, [], 2.0)]:
        pairs = Pairs(
            torch.tensor([0]),
            torch.tensor([0, 0]),
            torch.tensor([own]),
            torch.tensor([7, 8]),
            known_texts=torch.tensor(known, dtype=torch.int64).reshape(-1, 2),
        )
        result = ContrastiveObjective(LossOptions(), sources=[copy.deepcopy(queue)])(query, documents, pairs, 0.0)
        expected = torch.log(torch.tensor(1.0 + loss)).item()  # so many candidates as near as the positive
        assert result.loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_resumed_queue_repeats_every_bit() -> None:
    def build() -> ContrastiveObjective:
        queue = DocumentQueue(QueueOptions(kind="queue", size=7, warmup=0.2), steps=6)
        return ContrastiveObjective(LossOptions(progressive=CURRICULAR), sources=[queue])

    straight, killed = build(), build()
    for step in range(3):
        for objective in (straight, killed):
            objective(*make_step(step), step / 6)
    resumed = build()
    resumed.load_state_dict(copy.deepcopy(killed.state_dict()))
    for step in range(3, 6):
        results = [objective(*make_step(step), step / 6) for objective in (straight, resumed)]
        assert torch.equal(results[0].query_gradient, results[1].query_gradient)
        assert torch.equal(results[0].document_gradient, results[1].document_gradient)
        assert results[0].metrics == results[1].metrics
    states = [objective.state_dict()["sources"][0] for objective in (straight, resumed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in ("vectors", "texts"))


def test_batches_without_texts_are_refused() -> None:
    queue = DocumentQueue(QueueOptions(kind="queue", size=7), steps=6)
    with pytest.raises(InvalidInput, match="needs document text ids"):
        queue.update(torch.ones(4, 2), Pairs.regular(2, 1))


def test_recipes_name_it_by_kind() -> None:
    stage = {
        "name": "main",
        "steps": 10,
        "batch": {"queries": 8, "negatives": 1},
        "data": {"sources": [{"path": "pairs.jsonl"}]},
        "optimizer": {"learning_rate": 0.01},
    }
    tree: dict[str, Any] = {"output_dir": "out", "model": {"path": "peg-mini"}, "stages": [stage]}
    recipe = Recipe.parse(tree, ["stages.0.loss.candidates=[{kind: queue, size: 64}]"])
    assert recipe.stages[0].candidates_per_query == 16 + 64
    assert isinstance(recipe.stages[0].loss.candidates[0], QueueOptions)
    for override, message in [
        (
            "stages.0.loss={mask_same_text: false, candidates: [{kind: queue, size: 4}]}",
            "set mask_same_text: true",
        ),
        ("stages.0.loss.candidates=[{kind: queue, size: 0}]", r"candidates\[0\].*greater than or equal to 1"),
        ("stages.0.loss.candidates=[{kind: stack, size: 4}]", r"candidates\[0\].*queue"),
    ]:
        with pytest.raises(RecipeError, match=message):
            Recipe.parse(tree, [override])


def run_rank(rank: int, folder: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(run_steps(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run_steps(rank: int | None) -> list[dict[str, Any]]:
    """Three steps of four queries with two documents each: of one rank, or of two that share them."""
    objective = ContrastiveObjective(
        LossOptions(symmetric=True), sources=[DocumentQueue(QueueOptions(kind="queue", size=12, warmup=0.0), steps=3)]
    )
    outcomes = []
    for step in range(3):
        queries, documents, pairs = make_step(step)
        pairs = Pairs(pairs.positives, pairs.owners, pairs.query_text_ids, pairs.document_text_ids)
        if rank is not None:
            rows, columns = slice(2 * rank, 2 * rank + 2), slice(4 * rank, 4 * rank + 4)
            queries, documents = queries[rows], documents[columns]
            plain = Pairs.regular(2, 1)
            assert pairs.query_text_ids is not None
            assert pairs.document_text_ids is not None
            pairs = Pairs(plain.positives, plain.owners, pairs.query_text_ids[rows], pairs.document_text_ids[columns])
        result = objective(queries, documents, pairs, step / 3)
        outcomes.append({"q": result.query_gradient, "d": result.document_gradient, "loss": result.loss})
    return [*outcomes, objective.sources[0].state_dict()]


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    expected = run_steps(None)
    mp.spawn(run_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]  # missing in its __all__
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for one, left, right in zip(expected[:-1], first, second, strict=False):
        for name in ("q", "d"):
            assert (torch.cat([left[name], right[name]]) - one[name]).abs().max() < 1e-9
        assert abs(left["loss"] - one["loss"]) < 1e-9
    for state in (first[-1], second[-1]):
        assert torch.equal(state["texts"], expected[-1]["texts"])
        assert torch.equal(state["vectors"], expected[-1]["vectors"])
