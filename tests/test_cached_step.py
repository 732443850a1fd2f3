"""The cached step is held to a plain one: the same encodings with a graph, the dense loss, one backward."""

import copy
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from peg_rag.batching import plan_batches
from peg_rag.errors import InvalidInput, TrainingError
from peg_rag.training.data.batches import FeatureRows
from peg_rag.training.data.tokens import TokenRows
from peg_rag.training.loss.contrastive import LossMetrics, Pairs
from peg_rag.training.loss.cosent import CosentObjective
from peg_rag.training.loss.objective import ContrastiveObjective
from peg_rag.training.loss.reference import dense_loss
from peg_rag.training.loss.tiles import Tile
from peg_rag.training.recipe import LossOptions, ProgressiveOptions
from peg_rag.training.run.grad_cache import CachedStep, Rows, StepBatch

TOKENS = 20  # of a chunk: several chunks per side, the last one smaller
CURRICULAR = ProgressiveOptions(strategy="curricular", margin=0.1)
PLAIN = LossOptions(progressive=CURRICULAR)
OWN = LossOptions(hard_negatives="own", progressive=CURRICULAR)
EVERYTHING = LossOptions(
    symmetric=True, false_negative_margin=-0.1, matryoshka_dims=(3, 8), progressive=CURRICULAR, temperature=0.1
)
EVERYTHING_OWN = EVERYTHING.model_copy(update={"hard_negatives": "own"})
WITHOUT_TEXTS = EVERYTHING.model_copy(update={"mask_same_text": False})


class Encoder(nn.Module):
    """Small, but with all that matters: an embedding, attention masks, dropout before and after pooling."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.hidden, self.out = nn.Embedding(60, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        states = self.dropout(torch.tanh(self.hidden(self.embedding(features["input_ids"]))))  # (n, length, 8)
        mask = features["attention_mask"].unsqueeze(-1).to(states.dtype)
        pooled: Tensor = self.dropout(self.out((states * mask).sum(1) / mask.sum(1)))
        return pooled


def feature_rows(token_ids: list[list[int]]) -> FeatureRows:
    return FeatureRows(TokenRows.of(token_ids), 0, torch.device("cpu"))


def token_lists(rows: Rows) -> list[np.ndarray]:
    everything = rows.features(np.arange(len(rows.lengths)))["input_ids"].numpy()
    return [ids[:length] for ids, length in zip(everything, rows.lengths, strict=True)]


def make_rows(count: int, rng: np.random.Generator) -> FeatureRows:
    return feature_rows([rng.integers(1, 60, rng.integers(1, 9)).tolist() for _ in range(count)])


def make_batch(queries: int = 7, negatives: int = 5, seed: int = 0, texts: bool = True) -> StepBatch:
    rng, pairs = np.random.default_rng(seed), Pairs.regular(queries, negatives)
    if texts:
        n = len(pairs.owners)
        pairs = replace(
            pairs,
            query_text_ids=torch.from_numpy(rng.integers(0, queries, queries)),
            document_text_ids=torch.from_numpy(rng.integers(0, 2 * n, n)),
            query_weights=torch.from_numpy(rng.random(queries) + 0.1),
        )
    return StepBatch(make_rows(queries, rng), make_rows(len(pairs.owners), rng), pairs)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def plain_step(
    model: nn.Module, batch: StepBatch, objective: ContrastiveObjective, progress: float, tokens: int = TOKENS
) -> tuple[float, dict[str, Tensor]]:
    """The same chunks in the same order under the same RNG, all graphs held, the dense loss by autograd."""
    model.zero_grad()
    sides = []
    for rows in (batch.documents, batch.queries):
        parts = [(chunk, model(rows.features(chunk))) for chunk in plan_batches(rows.lengths, tokens)]
        order = torch.from_numpy(np.argsort(np.concatenate([chunk for chunk, _ in parts])))
        sides.append(torch.cat([part for _, part in parts])[order])
    documents, queries = sides
    positives = torch.cosine_similarity(queries, documents[batch.labels.positives])
    objective.progressive.advance(positives.mean().item(), progress)
    loss = dense_loss(queries, documents, batch.labels, objective.options, objective.progressive)
    loss.backward()
    return loss.item(), gradients(model)


def cached_step(
    model: nn.Module, batch: StepBatch, objective: Any, progress: float = 0.0, **options: Any
) -> tuple[LossMetrics, dict[str, Tensor]]:
    model.zero_grad()
    metrics = CachedStep(model, objective, **{"batch_tokens": TOKENS, "graphs": "replay", **options})(batch, progress)
    return metrics, gradients(model)


@pytest.mark.parametrize("graphs", ["replay", "keep"])
@pytest.mark.parametrize(
    "options",
    [PLAIN, OWN, EVERYTHING, EVERYTHING_OWN],
    ids=["plain", "own", "everything", "everything-own"],
)
def test_cached_equals_plain(options: LossOptions, graphs: str) -> None:
    model, batch = Encoder().double(), make_batch()
    torch.manual_seed(5)
    loss, expected = plain_step(model, batch, ContrastiveObjective(options), 0.5)
    following = torch.rand(1)
    torch.manual_seed(5)
    tile = Tile(rows=3, columns=10, keep=False)
    metrics, ours = cached_step(model, batch, ContrastiveObjective(options, tile=tile), 0.5, graphs=graphs)
    assert metrics.loss == pytest.approx(loss, abs=1e-9)
    assert largest_difference(ours, expected) < 1e-9
    assert torch.equal(torch.rand(1), following)  # the generator is left where one encoding leaves it
    assert metrics.t > 0


def test_without_the_remembered_rng_gradients_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = Encoder().double(), make_batch()
    torch.manual_seed(5)
    _, expected = plain_step(model, batch, ContrastiveObjective(), 0.0)
    monkeypatch.setattr(CachedStep, "_set_random_state", lambda self, states: None)
    monkeypatch.setattr("peg_rag.training.run.grad_cache._check_repeated", lambda again, before: None)
    torch.manual_seed(5)
    _, wrong = cached_step(model, batch, ContrastiveObjective())
    assert largest_difference(wrong, expected) > 1e-2


def test_features_that_change_between_encodings_raise() -> None:
    class Moody(FeatureRows):
        def features(self, rows: Any) -> dict[str, Tensor]:
            plain = super().features(rows)
            return {**plain, "input_ids": torch.from_numpy(np.random.randint(1, 60, plain["input_ids"].shape))}

    model, batch = Encoder(), make_batch()
    tokens = TokenRows.of([[1, 2, 3]] * len(batch.documents.lengths))
    moody = replace(batch, documents=Moody(tokens, 0, torch.device("cpu")))
    with pytest.raises(TrainingError, match="second time"):
        cached_step(model, moody, ContrastiveObjective())


def test_auto_keeps_graphs_that_fit_and_replays_those_that_do_not() -> None:
    model, batch = Encoder().double(), make_batch()
    step = CachedStep(model, ContrastiveObjective())
    torch.manual_seed(1)
    step(batch)
    fits = gradients(model)
    sizes = step.state_dict()
    assert sizes["batch_tokens"] == 4096
    assert sizes["token_bytes"] > 0
    tight = CachedStep(model, ContrastiveObjective())
    tight.load_state_dict({**sizes, "free_bytes": 0})
    calls = []
    model.register_forward_hook(lambda *args: calls.append(torch.is_grad_enabled()))
    model.zero_grad()
    torch.manual_seed(1)
    tight(batch)
    assert calls == [False, False, True, True]
    assert largest_difference(gradients(model), fits) < 1e-12
    calls.clear()
    step(batch)
    assert calls == [True, True]


def test_a_resumed_step_repeats_the_arithmetic() -> None:
    model, batch = Encoder(), make_batch()
    step = CachedStep(model, ContrastiveObjective(EVERYTHING), batch_tokens=TOKENS)
    step(batch, 0.1)
    saved = copy.deepcopy(step.state_dict())
    resumed = CachedStep(model, ContrastiveObjective(EVERYTHING), batch_tokens=TOKENS)
    resumed.load_state_dict(saved)
    outcomes = []
    for one in (step, resumed):
        model.zero_grad()
        torch.manual_seed(9)
        outcomes.append((one(batch, 0.2), gradients(model), one.state_dict()))
    assert outcomes[0][0] == outcomes[1][0]
    assert outcomes[0][2] == outcomes[1][2]
    assert largest_difference(outcomes[0][1], outcomes[1][1]) == 0.0


@pytest.mark.parametrize("graphs", ["replay", "keep"])
def test_autocast_reaches_both_encodings(graphs: str) -> None:
    """Weights cast without a graph in the first pass must not serve the second: gradients would vanish."""
    model, batch = Encoder(), make_batch()
    torch.manual_seed(5)
    _, full = cached_step(model, batch, ContrastiveObjective())
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        _, half = cached_step(model, batch, ContrastiveObjective(), graphs=graphs)
    assert half.keys() == full.keys()
    for name, gradient in half.items():
        assert torch.cosine_similarity(gradient.flatten(), full[name].flatten(), dim=0) > 0.99, name


def test_a_broken_vector_raises_before_any_gradient() -> None:
    model, batch = Encoder(), make_batch()
    with torch.no_grad():
        model.embedding.weight[5] = math.nan
    with pytest.raises(TrainingError, match="NaN or infinity"):
        cached_step(model, batch, ContrastiveObjective())
    assert gradients(model) == {}


def test_any_callable_is_a_model() -> None:
    table = torch.randn(60, 4, dtype=torch.float64, requires_grad=True)

    def encode(features: dict[str, Tensor]) -> Tensor:
        mask = features["attention_mask"].unsqueeze(-1)
        return (table[features["input_ids"]] * mask).sum(1)

    CachedStep(encode, ContrastiveObjective())(make_batch())
    assert table.grad is not None
    assert table.grad.abs().sum() > 0


def test_graded_pairs() -> None:
    rng = np.random.default_rng(0)
    batch = StepBatch(make_rows(9, rng), make_rows(9, rng), torch.from_numpy(rng.random(9)))
    model = Encoder(dropout=0.0).double()
    metrics, ours = cached_step(model, batch, CosentObjective())
    assert metrics.loss > 0
    _, kept = cached_step(model, batch, CosentObjective(), graphs="keep")
    assert largest_difference(ours, kept) < 1e-12


def test_what_cannot_be_raises() -> None:
    model, rng = Encoder(), np.random.default_rng(0)
    with pytest.raises(InvalidInput, match="graphs"):
        CachedStep(model, ContrastiveObjective(), graphs="maybe")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="at least one"):
        cached_step(model, StepBatch(feature_rows([]), make_rows(2, rng), Pairs.regular(0, 0)), ContrastiveObjective())
    model.requires_grad_(False)
    with pytest.raises(InvalidInput, match="frozen"):
        CachedStep(model, ContrastiveObjective())(make_batch())


# ------------------------------------------------------------------------------------------- two ranks equal one

RUNS: dict[str, tuple[LossOptions, str]] = {
    "plain": (PLAIN, "replay"),
    "everything": (EVERYTHING, "replay"),
    "own": (EVERYTHING_OWN, "replay"),
    "keep": (EVERYTHING, "keep"),
    "no texts": (WITHOUT_TEXTS, "replay"),
}
SPLIT = {0: 4, 1: 3}  # queries of each rank: uneven


def part_of(batch: StepBatch, start: int, stop: int, negatives: int) -> StepBatch:
    """Some queries of a regular batch, with their documents, numbered from 0."""
    documents = slice(start * (1 + negatives), stop * (1 + negatives))
    pairs = batch.labels
    mine = replace(
        Pairs.regular(stop - start, negatives),
        query_text_ids=pairs.query_text_ids[start:stop],
        document_text_ids=pairs.document_text_ids[documents],
        query_weights=pairs.query_weights[start:stop],
    )
    sides = (token_lists(batch.queries)[start:stop], token_lists(batch.documents)[documents])
    query_rows, document_rows = (feature_rows([ids.tolist() for ids in side]) for side in sides)
    return StepBatch(query_rows, document_rows, mine)


def run_all(model: nn.Module, batch: StepBatch) -> dict[str, Any]:
    outcome: dict[str, Any] = {}
    for name, (options, graphs) in RUNS.items():
        metrics, parameters = cached_step(model, batch, ContrastiveObjective(options), 0.5, graphs=graphs)
        outcome[name] = (vars(metrics), {key.removeprefix("module."): part for key, part in parameters.items()})
    lengths = torch.from_numpy(batch.queries.lengths.astype(float))
    shifted = feature_rows([[*ids[1:].tolist(), 7] for ids in token_lists(batch.queries)])
    metrics, parameters = cached_step(model, replace(batch, documents=shifted, labels=lengths), CosentObjective())
    outcome["graded"] = (vars(metrics), {key.removeprefix("module."): part for key, part in parameters.items()})
    return outcome


def rank_main(rank: int, folder: str) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    start = 0 if rank == 0 else SPLIT[0]
    batch = part_of(make_batch(), start, start + SPLIT[rank], 5)
    torch.save(run_all(DistributedDataParallel(Encoder(dropout=0.0).double()), batch), f"{folder}/{rank}.pt")
    broken = part_of(make_batch(), start, start + SPLIT[rank], 5)
    model = Encoder(dropout=0.0)
    if rank == 1:
        nn.init.constant_(model.out.bias, math.nan)
    with pytest.raises(TrainingError):  # on both ranks, or the other would wait for ever
        cached_step(model, broken, ContrastiveObjective())
    dist.destroy_process_group()


def test_two_ranks_equal_one_with_the_joined_batch(tmp_path: Path) -> None:
    expected = run_all(Encoder(dropout=0.0).double(), make_batch())
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]  # missing in its __all__
    for rank in SPLIT:
        outcome = torch.load(tmp_path / f"{rank}.pt")
        for name, (metrics, parameters) in expected.items():
            rank_metrics, rank_parameters = outcome[name]
            assert rank_metrics == pytest.approx(metrics, abs=1e-9), name
            assert largest_difference(rank_parameters, parameters) < 1e-9, name
