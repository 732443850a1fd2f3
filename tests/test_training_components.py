"""Each component of the recipe against a slow, obvious reference on small inputs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from peg_rag.errors import DataError, RecipeError, TrainingError
from peg_rag.training.data.batches import RankBatch, StepBatches
from peg_rag.training.data.guide import Comparison, GuideMask, GuideOptions, Questions
from peg_rag.training.data.neighbours import (
    ClusterOptions,
    ClusterOrder,
    NeighbourOptions,
    NeighbourOrder,
    balanced_clusters,
    search_neighbours,
)
from peg_rag.training.data.pairs import PairFile, load_pairs
from peg_rag.training.data.sampler import BatchPlan, PlannedBatch, SourceRows
from peg_rag.training.data.shared_documents import SharedDocumentOptions
from peg_rag.training.data.soft_augmentation import SoftAugmentation, SoftAugmentationOptions
from peg_rag.training.data.texts import text_key
from peg_rag.training.data.tokens import TokenRows
from peg_rag.training.data.vectors import TextVectors, encode_texts
from peg_rag.training.extension import StageContext
from peg_rag.training.loss.collectives import Ranks
from peg_rag.training.loss.contrastive import Candidates, Pairs, tiled_loss
from peg_rag.training.loss.masks import TileColumns, TileRows
from peg_rag.training.loss.mixing import Mixing, MixingOptions
from peg_rag.training.loss.objective import ContrastiveObjective
from peg_rag.training.loss.reference import dense_loss
from peg_rag.training.loss.tiles import Tile
from peg_rag.training.loss.trust import TrustOptions, trust_weights
from peg_rag.training.recipe import Columns, LossOptions, Recipe, SourceOptions
from peg_rag.training.run.rounds import Round

DIM = 6


def make_pairs(seed: int, queries: int = 5, negatives: int = 2) -> tuple[Tensor, Tensor, Pairs]:
    generator = torch.Generator().manual_seed(seed)
    plain = Pairs.regular(queries, negatives)
    n = len(plain.owners)
    pairs = replace(plain, query_text_ids=torch.arange(queries), document_text_ids=queries + torch.arange(n))
    q, d = (torch.randn(k, DIM, generator=generator, dtype=torch.float64) for k in (queries, n))
    return q, d, pairs


# --- candidates of one query alone ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    hard_negatives=st.sampled_from(["shared", "own"]),
    symmetric=st.booleans(),
    keep=st.booleans(),
    owners=st.lists(st.integers(0, 4), max_size=9),
    with_graph=st.booleans(),
)
def test_owned_candidates_are_met_by_their_query_alone(
    seed: int, hard_negatives: Any, symmetric: bool, keep: bool, owners: list[int], with_graph: bool
) -> None:
    queries, documents, pairs = make_pairs(seed)
    options = LossOptions(hard_negatives=hard_negatives, symmetric=symmetric, matryoshka_dims=(3, DIM))
    generator = torch.Generator().manual_seed(seed + 1)
    noise = torch.randn(len(owners), DIM, generator=generator, dtype=torch.float64)
    gradients = []
    for compute in ("dense", "tiled"):
        q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()
        owner = torch.tensor(owners, dtype=torch.int64)
        vectors = noise + q[owner] + d[owner] if with_graph else noise
        candidates = [Candidates(vectors, 900 + torch.arange(len(owners)), owner), Candidates(noise, 800 + owner)]
        candidates = [extra for extra in candidates if len(extra.texts)]
        if compute == "dense":
            loss = dense_loss(q, d, pairs, options, candidates=candidates)
            loss.backward()
            gradients.append((q.grad, d.grad, loss.detach()))
        else:
            result = tiled_loss(q, d, pairs, options, candidates=candidates, tile=Tile(rows=2, columns=7, keep=keep))
            gradients.append((result.query_gradient, result.document_gradient, result.loss))
    for dense, tiled in zip(*gradients, strict=True):
        assert (dense - tiled).abs().max() < 1e-9


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_mixtures_are_made_of_negatives_and_lie_between_them() -> None:
    queries, documents, pairs = make_pairs(4, queries=6)
    assert pairs.document_text_ids is not None
    pairs = replace(pairs, known_texts=torch.tensor([[0, int(pairs.document_text_ids[4])]]))
    options = MixingOptions(kind="mixing", nearest=4, pairs=3, with_query=2, warmup=0.0)
    mixtures = Mixing(options, steps=10, seed=1).candidates(queries, documents, pairs)
    assert mixtures.vectors.shape == (6 * 5, DIM)
    assert mixtures.owners is not None
    assert mixtures.owners.tolist() == [row for row in range(6) for _ in range(5)]
    unit = [torch.nn.functional.normalize(side, dim=1).numpy() for side in (queries, documents)]
    for place, vector in enumerate(mixtures.vectors.numpy()):
        row = place // 5
        answers = {int(pairs.positives[row])} | ({4} if row == 0 else set())
        ranked = [j for j in np.argsort(-(unit[0][row] @ unit[1].T)) if j not in answers][:4]
        firsts = [unit[1][j] for j in ranked] if place % 5 < 3 else [unit[0][row]]
        largest = 1.0 if place % 5 < 3 else 0.5
        assert any(
            is_between(vector, first, unit[1][j], largest)
            for first in firsts
            for j in ranked
            if unit[1][j] is not first
        ), place


def is_between(vector: NDArray[Any], first: NDArray[Any], second: NDArray[Any], largest: float) -> bool:
    """Whether a vector is share · first + (1 − share) · second for a share between 0 and `largest`."""
    line = first - second
    share = float((vector - second) @ line / max(line @ line, 1e-12))
    return 0 <= share <= largest and bool(np.allclose(second + share * line, vector, atol=1e-9))


@pytest.mark.parametrize("keep", [True, False])
def test_gradients_flow_back_through_mixtures(keep: bool) -> None:
    queries, documents, pairs = make_pairs(7)
    options = LossOptions(temperature=0.1)
    mixing = MixingOptions(kind="mixing", nearest=3, pairs=2, with_query=2, warmup=0.0)
    q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    loss = dense_loss(q, d, pairs, options, candidates=[Mixing(mixing, 5, seed=2).candidates(q, d, pairs)])
    loss.backward()
    objective = ContrastiveObjective(
        options, sources=[Mixing(mixing, 5, seed=2)], tile=Tile(rows=2, columns=5, keep=keep)
    )
    result = objective(queries, documents, pairs, 0.0)
    assert abs(result.loss - loss) < 1e-9
    assert q.grad is not None
    assert d.grad is not None
    assert (result.query_gradient - q.grad).abs().max() < 1e-9
    assert (result.document_gradient - d.grad).abs().max() < 1e-9


def test_nothing_is_mixed_before_the_warm_up_nor_from_one_negative() -> None:
    queries, documents, pairs = make_pairs(0)
    source = Mixing(MixingOptions(kind="mixing", warmup=0.5), steps=4)
    for expected in (0, 0, 5 * 32, 5 * 32):
        assert len(source.candidates(queries, documents, pairs).texts) == expected
        source.update(documents, pairs)
    few = Pairs(torch.tensor([0]), torch.tensor([0, 0]), torch.tensor([1]), torch.tensor([2, 3]))
    assert len(source.candidates(queries[:1], documents[:2], few).texts) == 0


# --- trust ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(0.1, 2))
def test_trust_weights_follow_their_formula(cosines: list[float], width: float) -> None:
    weights = trust_weights(torch.tensor(cosines, dtype=torch.float64), TrustOptions(width=width), Ranks()).numpy()
    mean, deviation = np.mean(cosines), np.std(cosines)
    if deviation < 1e-5:
        return
    expected = 1 / (1 + np.exp(-(np.array(cosines) - mean + width * deviation) / (width * deviation)))
    np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-9)


def test_pairs_are_weighed_once_it_is_time() -> None:
    queries, documents, pairs = make_pairs(3)
    options = LossOptions(trust=TrustOptions(start=0.3))
    cosines = torch.cosine_similarity(queries, documents[pairs.positives])
    weighed = replace(pairs, query_weights=trust_weights(cosines, TrustOptions(), Ranks()))
    for progress, expected in [(0.0, pairs), (0.29, pairs), (0.3, weighed), (1.0, weighed)]:
        result = ContrastiveObjective(options)(queries, documents, pairs, progress)
        assert abs(result.loss - dense_loss(queries, documents, expected, options)) < 1e-9
    same = queries[:1].expand(4, DIM)
    alike = replace(Pairs.regular(4, 0), query_text_ids=torch.arange(4), document_text_ids=4 + torch.arange(4))
    assert torch.isfinite(ContrastiveObjective(options)(same, same, alike, 1.0).loss)


# --- guide ------------------------------------------------------------------------------------------------------------


def make_table(keys: Sequence[int], seed: int) -> TextVectors:
    vectors = np.random.default_rng(seed).normal(size=(len(keys), 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return TextVectors(np.sort(np.array(keys, dtype=np.int64)), vectors.astype(np.float16))


@pytest.mark.parametrize(
    "compare",
    [("query_document",), ("document_document",), ("query_query",), ("query_document", "query_query")],
)
def test_the_guide_hides_what_it_ranks_above_the_positive(compare: tuple[Comparison, ...]) -> None:
    queries, documents = make_table(range(5), 0), make_table(range(10, 30), 1)
    questions = Questions(np.arange(10, 20), np.arange(10) % 5)
    positive_texts = torch.tensor([10, 13, 16, 19, 999])  # the last is no text of the data
    columns = torch.cat([torch.arange(10, 30), torch.tensor([777])])
    for margin in (0.0, 0.3):
        mask = GuideMask(margin, queries, documents, compare, questions)
        for step in range(2):  # the second finds other texts at the same place
            texts = columns.roll(step)
            rows = TileRows(slice(0, 5), torch.arange(5), positive_texts, torch.zeros(5))
            hidden = mask.hidden(rows, TileColumns(slice(0, 21), texts[None], torch.zeros(5, 21), 1.0))
            own = mask.hidden(rows, TileColumns(None, texts.expand(5, 21), torch.zeros(5, 21), 1.0))
            assert torch.equal(hidden, own)
            assert hidden.any()
            for row in range(5):
                for place, text in enumerate(texts.tolist()):
                    assert bool(hidden[row, place]) == any(
                        guide_hides(queries, documents, row, positive_texts, text, margin, comparison)
                        for comparison in compare
                    )


def guide_hides(
    queries: TextVectors,
    documents: TextVectors,
    row: int,
    positive_texts: Tensor,
    text: int,
    margin: float,
    comparison: Comparison,
) -> bool:
    """By the definition, one cell at a time; the text 10 + i answers the question i % 5, up to 19."""
    known = set(documents.keys.tolist())
    positive = int(positive_texts[row])
    if positive not in known or text not in known or (comparison == "query_query" and text >= 20):
        return False
    query, answer, candidate = (
        vector.astype(np.float64)
        for vector in (queries.vectors[row], documents.vectors[positive - 10], documents.vectors[text - 10])
    )
    if comparison == "query_query":
        candidate = queries.vectors[(text - 10) % 5].astype(np.float64)
    left = answer if comparison == "document_document" else query
    return bool(left @ candidate > query @ answer - margin + 1e-3)


def test_a_document_is_known_by_the_first_question_that_it_answers(pair_file: tuple[PairFile, Tokenizer]) -> None:
    file, _ = pair_file
    table = TextVectors(np.unique(file.query_keys), np.zeros((40, 4), np.float16))
    questions = Questions.of([file], [file.usable[5:]], table)
    for number in range(20):
        place = questions.find(np.array([text_key(f"答案{number}号")]))[0]
        first = number if number >= 5 else number + 20
        assert table.keys[place] == text_key(f"问题{first}")
    assert questions.find(np.array([1])).tolist() == [-1]


# --- order of rows ----------------------------------------------------------------------------------------------------


@given(n=st.integers(2, 80), size=st.integers(2, 9), seed=st.integers(0, 99))
def test_clusters_are_balanced_and_hold_every_row_once(n: int, size: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    rows = balanced_clusters(vectors, size, seed)
    assert sorted(rows.tolist()) == list(range(n))
    order = ClusterOrder(ClusterOptions(kind="clusters", sizes=(size,)), [[rows]], seed)
    parts = {tuple(rows[start : start + size].tolist()) for start in range(0, n, size)}
    for epoch in range(3):
        arranged = order.rows(0, epoch).tolist()
        assert sorted(arranged) == list(range(n))
        start = 0
        while start < n:  # whole clusters follow one another
            part = next(part for part in parts if part[0] == arranged[start])
            assert tuple(arranged[start : start + len(part)]) == part
            start += len(part)


def test_clusters_hold_what_is_near() -> None:
    centres = np.eye(8, dtype=np.float32)
    vectors = np.repeat(centres, 16, axis=0) + 0.05 * np.random.default_rng(0).normal(size=(128, 8)).astype(np.float32)
    shuffled = np.random.default_rng(1).permutation(128)
    rows = balanced_clusters(vectors[shuffled], 16, seed=0)
    groups = [set((shuffled[rows[start : start + 16]] // 16).tolist()) for start in range(0, 128, 16)]
    assert sum(len(group) == 1 for group in groups) >= 6


@given(n=st.integers(2, 60), among=st.integers(2, 12), seed=st.integers(0, 99))
def test_neighbours_equal_brute_force_and_every_row_comes_once(n: int, among: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries, documents = (generator.normal(size=(n, 5)).astype(np.float32) for _ in range(2))
    graph = search_neighbours(queries, documents, among)
    scores = queries @ documents.T
    np.fill_diagonal(scores, -np.inf)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, : min(among, n - 1)]
    assert graph[:, : expected.shape[1]].tolist() == expected.tolist()
    assert (graph[:, expected.shape[1] :] == -1).all()
    options = NeighbourOptions(kind="neighbours", nearest=min(2, among), random=0, among=among)
    order = NeighbourOrder(options, [graph], seed)
    for epoch in range(2):
        rows = order.rows(0, epoch)
        assert sorted(rows.tolist()) == list(range(n))
        assert order.rows(0, epoch).tolist() == rows.tolist()
    first = int(order.rows(0, 0)[0])
    assert set(order.rows(0, 0)[1:3].tolist()) <= set(expected[first, :2].tolist()) or n < 4


@settings(deadline=None)
@given(groups=st.lists(st.integers(-1, 4), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_groups_stand_together_in_the_first_epochs(groups: list[int], seed: int) -> None:
    n = len(groups)
    graph = np.full((n, 2), -1, dtype=np.int32)
    options = NeighbourOptions(kind="neighbours", nearest=1, random=0, among=2, group_epochs=2)
    order = NeighbourOrder(options, [graph], seed, [np.array(groups)])
    plain = NeighbourOrder(options.model_copy(update={"group_epochs": 0}), [graph], seed)
    for epoch in range(3):
        rows = order.rows(0, epoch)
        assert sorted(rows.tolist()) == list(range(n))
        if epoch == 2:
            assert rows.tolist() == plain.rows(0, epoch).tolist()
            continue
        arranged = [groups[row] for row in rows.tolist()]
        for group in set(groups) - {-1}:
            places = [place for place, value in enumerate(arranged) if value == group]
            assert places == list(range(places[0], places[-1] + 1))


def test_a_plan_takes_rows_in_the_order_that_it_is_given() -> None:
    class Backwards:
        def rows(self, source: int, epoch: int) -> NDArray[np.int64]:
            return np.arange(7)[::-1] if epoch % 2 == 0 else np.arange(7)

    keys = np.arange(14, dtype=np.int64)
    plan = BatchPlan([SourceRows("s", keys[:7], keys[7:])], batch=7, steps=2, order=Backwards())
    batches = sorted(plan.batch(step).rows.tolist() for step in range(2))
    assert batches == [[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0]]


# --- transforms -------------------------------------------------------------------------------------------------------


@dataclass
class CountingEncoder:
    """Vectors that depend on the text alone, and how many texts were encoded."""

    encoded: int = 0
    fail_after: int | None = None
    identity = "counting"

    def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        return self.encode_documents(texts)

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        if self.fail_after is not None and self.encoded >= self.fail_after:
            raise KeyboardInterrupt
        self.encoded += len(texts)
        seeds = [abs(text_key(text)) % 2**32 for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=4) for seed in seeds]).astype(np.float32)


@pytest.fixture
def pair_file(tmp_path: Path, tiny_bert: Path) -> tuple[PairFile, Tokenizer]:
    rows = [{"query": f"问题{i}", "positive": f"答案{i % 20}号", "negatives": [f"错误{i % 7}"]} for i in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    (file,) = load_pairs([SourceOptions(path=str(path))], tokenizer, tmp_path / "cache")
    return file, tokenizer


def make_context(file: PairFile, tokenizer: Tokenizer, folder: Path, rank: int = 0, world: int = 1) -> StageContext:
    return StageContext(
        steps=10,
        seed=5,
        rank=rank,
        world=world,
        files=[file],
        rows=[file.usable],
        tokenizer=tokenizer,
        encoder=CountingEncoder(),
        cache=folder,
        folder=folder,
    )


class FirstRows:
    def batch(self, step: int) -> PlannedBatch:
        return PlannedBatch(np.zeros(8, dtype=np.int64), np.arange(8))


def read_batches(file: PairFile, tokenizer: Tokenizer, folder: Path, world: int, step: int) -> list[RankBatch]:
    options = SharedDocumentOptions(kind="shared_documents", documents=6)
    return [
        StepBatches(
            [file],
            [file.usable],
            FirstRows(),
            steps=10,
            negatives=1,
            rank=rank,
            world=world,
            transforms=[options.build(make_context(file, tokenizer, folder, rank, world))],
            with_answers=True,
        )[step]
        for rank in range(world)
    ]


def test_shared_documents_have_no_owner_and_come_once_an_epoch(
    pair_file: tuple[PairFile, Tokenizer], tmp_path: Path
) -> None:
    file, tokenizer = pair_file
    corpus = set(file.positive_keys.tolist())
    counts: dict[int, int] = dict.fromkeys(corpus, 0)
    for step in range(10):
        (batch,) = read_batches(file, tokenizer, tmp_path, 1, step)
        shared = np.flatnonzero(batch.owners == -1)
        assert shared.tolist() == list(range(len(batch.owners) - 6, len(batch.owners)))
        for place in shared.tolist():
            key = int(batch.document_keys[place])
            counts[key] += 1
            row = int(np.flatnonzero(file.positive_keys == key)[0])
            text = file.rows[row]["positive"]
            assert batch.documents[place].tolist() == tokenizer.encode(text).ids
    assert set(counts.values()) == {3}  # sixty of twenty texts
    for step in (0, 4):  # two ranks together bring what one does
        (whole,) = read_batches(file, tokenizer, tmp_path, 1, step)
        parts = read_batches(file, tokenizer, tmp_path, 2, step)
        together = np.concatenate([part.document_keys[part.owners == -1] for part in parts])
        assert sorted(together.tolist()) == sorted(whole.document_keys[whole.owners == -1].tolist())


def test_shared_documents_begin_with_their_anchor(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"query": f"问题{i}", "positive": f"答案{i}号", "title": f"标题{i}" if i % 2 else None} for i in range(8)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    for anchor in (True, False):
        source = SourceOptions(path=str(path), columns=Columns(anchor="title"))
        (file,) = load_pairs([source], tokenizer, tmp_path / "cache", prompts={"document": "文"})
        options = SharedDocumentOptions(kind="shared_documents", documents=8, anchor=anchor)
        transform = options.build(make_context(file, tokenizer, tmp_path))
        batch = StepBatches(
            [file], [file.usable], FirstRows(), steps=1, negatives=0, rank=0, world=1, transforms=[transform]
        )[0]
        shared = np.flatnonzero(batch.owners == -1).tolist()
        assert len(shared) == 8
        for place in shared:
            number = int(np.flatnonzero(file.positive_keys == batch.document_keys[place])[0])
            title = f"标题{number} " if anchor and number % 2 else ""
            assert batch.documents[place].tolist() == tokenizer.encode(f"文{title}答案{number}号").ids
        assert batch.documents[0].tolist() == tokenizer.encode("文答案0号").ids  # a positive stays as it is


def test_groups_come_from_their_column(tmp_path: Path, tiny_bert: Path) -> None:
    places = ["北京", None, "上海", "北京", 7, ""]
    rows = [{"query": f"问题{i}", "positive": f"答案{i}号", "place": place} for i, place in enumerate(places)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    source = SourceOptions(path=str(path), columns=Columns(group="place"))
    (file,) = load_pairs([source], tokenizer, tmp_path / "cache")
    assert file.groups[0] == file.groups[3]
    assert len({int(file.groups[i]) for i in (0, 2, 4)}) == 3
    assert file.groups[[1, 5]].tolist() == [-1, -1]


@pytest.mark.parametrize("role", ["anchor", "group"])
def test_a_column_that_no_row_fills_is_refused(role: str, tmp_path: Path, tiny_bert: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows: list[dict[str, object]] = [
        {"query": f"问题{i}", "positive": f"答案{i}号", "place": [] if i else None} for i in range(3)
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    for column in ("place", "plcae"):
        source = SourceOptions(path=str(path), columns=Columns.model_validate({role: column}))
        for _ in range(2):  # nothing of the first time is kept
            with pytest.raises(DataError, match=rf"no row of pairs.jsonl .* {column!r}.*columns.{role}"):
                load_pairs([source], tokenizer, tmp_path / "cache")


def test_a_shared_document_that_answers_a_query_is_no_negative(
    pair_file: tuple[PairFile, Tokenizer], tmp_path: Path
) -> None:
    file, tokenizer = pair_file
    batches = [read_batches(file, tokenizer, tmp_path, 1, step)[0] for step in range(10)]
    batch = next(b for b in batches if set(b.document_keys[b.owners == -1]) & set(b.document_keys[:8]))
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(8, DIM, generator=generator, dtype=torch.float64)
    vectors = {int(key): torch.randn(DIM, generator=generator, dtype=torch.float64) for key in batch.document_keys}
    documents = torch.stack([vectors[int(key)] for key in batch.document_keys])
    pairs = batch.pairs(torch.device("cpu"))
    result = tiled_loss(queries, documents, pairs, LossOptions())
    negatives = [
        {int(key) for key in batch.document_keys} - {int(file.positive_keys[row])} for row in batch.rows.rows.tolist()
    ]
    keys = batch.document_keys.tolist()
    losses = []
    for row, allowed in enumerate(negatives):
        scores = [torch.cosine_similarity(queries[row], documents[j], dim=0) / 0.05 for j in range(len(keys))]
        others = [score for score, key in zip(scores, keys, strict=True) if key in allowed]
        losses.append(-(scores[row] - torch.stack([scores[row], *others]).logsumexp(0)))
    assert abs(result.loss - torch.stack(losses).mean()) < 1e-9


def test_soft_augmentation_changes_the_share_it_is_told_to(pair_file: tuple[PairFile, Tokenizer]) -> None:
    _, tokenizer = pair_file
    length, count = 50, 400
    tokens = TokenRows.of([[2, *[40] * length, 3]] * count)
    empty = np.zeros(0, dtype=np.int64)
    batch = RankBatch(
        0,
        PlannedBatch(empty, empty),
        tokens,
        tokens,
        empty,
        np.arange(count),
        1_000 + np.arange(count),
        empty.reshape(0, 2),
        np.zeros(0, dtype=np.float32),
    )
    options = SoftAugmentationOptions(kind="soft_augmentation", share=0.2, replaced=0.25, sides="documents")
    augment = SoftAugmentation(options, tokenizer, seed=3)
    changed = augment(batch, 7)
    assert changed.queries is batch.queries
    assert np.array_equal(changed.documents.offsets, tokens.offsets)
    matrix = changed.documents.tokens.reshape(count, length + 2)
    assert (matrix[:, 0] == 2).all()
    assert (matrix[:, -1] == 3).all()
    inner = matrix[:, 1:-1]
    mask = tokenizer.token_to_id("[MASK]")
    assert abs((inner != 40).mean() - 0.2) < 0.01
    assert abs((inner == mask).sum() / (inner != 40).sum() - 0.75) < 0.02
    special = np.array([tokenizer.token_to_id(token) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")])
    assert not np.isin(inner, special).any()
    assert np.array_equal(augment(batch, 7).documents.tokens, changed.documents.tokens)
    assert not np.array_equal(augment(batch, 8).documents.tokens, changed.documents.tokens)
    half = replace(batch, documents=tokens.take(np.arange(200, 400)), document_keys=batch.document_keys[200:])
    assert np.array_equal(augment(half, 7).documents.tokens, changed.documents.take(np.arange(200, 400)).tokens)


def test_soft_augmentation_needs_a_mask_token() -> None:
    from tokenizers import models

    bare = Tokenizer(models.WordLevel({"<unk>": 0, "字": 1}, unk_token="<unk>"))
    with pytest.raises(RecipeError, match="needs a tokenizer with a mask token"):
        SoftAugmentation(SoftAugmentationOptions(kind="soft_augmentation"), bare, seed=0)


# --- weights of rows --------------------------------------------------------------------------------------------------


def test_weights_of_a_column_reach_the_loss(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"query": f"问题{i}", "positive": f"答案{i}", "trust": w} for i, w in enumerate([1, 0.5, 0, "x", -1, 2])]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    source = SourceOptions(path=str(path), columns=Columns(weight="trust"))
    (file,) = load_pairs([source], tokenizer, tmp_path / "cache", maximum_bad_share=0.5)
    assert file.report.dropped == {"trust is not a number of 0 or more": 2}
    assert file.weights.tolist() == [1, 0.5, 0, 2]
    plan = BatchPlan([SourceRows("s", file.query_keys, file.positive_keys)], batch=4, steps=1)
    batch = StepBatches([file], [file.usable], plan, steps=1, negatives=0, rank=0, world=1)[0]
    weights = batch.pairs(torch.device("cpu")).query_weights
    assert weights is not None
    assert weights.tolist() == file.weights[batch.rows.rows].tolist()
    (plain,) = load_pairs([SourceOptions(path=str(path))], tokenizer, tmp_path / "cache")
    unweighted = StepBatches([plain], [plain.usable], plan, steps=1, negatives=0, rank=0, world=1)[0]
    assert unweighted.weights is None


# --- vectors of texts -------------------------------------------------------------------------------------------------


def test_every_text_is_encoded_once_and_interrupted_work_goes_on(
    pair_file: tuple[PairFile, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peg_rag.training.data.vectors.BLOCK_ROWS", 4)
    monkeypatch.setattr("peg_rag.training.data.vectors.SAVED_BLOCKS", 1)
    file, _ = pair_file
    encoder = CountingEncoder()
    table = encode_texts([file], [file.usable], "document", encoder, tmp_path / "straight")
    texts = {*(f"答案{i}号" for i in range(20)), *(f"错误{i}" for i in range(7))}
    assert encoder.encoded == len(texts) == len(table.keys)
    places = table.find(np.array([text_key(text) for text in sorted(texts)]))
    expected = encoder.encode_documents(sorted(texts))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(table.vectors[places], expected, atol=1e-3)
    assert table.find(np.array([text_key("没有")])).tolist() == [-1]
    with pytest.raises(KeyboardInterrupt):
        encode_texts([file], [file.usable], "document", CountingEncoder(fail_after=12), tmp_path / "broken")
    second = CountingEncoder()
    resumed = encode_texts([file], [file.usable], "document", second, tmp_path / "broken")
    assert second.encoded < len(texts)
    assert np.array_equal(resumed.vectors, table.vectors)


def test_vectors_that_are_cut_off_or_lack_their_keys_are_made_again(
    pair_file: tuple[PairFile, Tokenizer], tmp_path: Path
) -> None:
    file, _ = pair_file
    whole = encode_texts([file], [file.usable], "query", CountingEncoder(), tmp_path / "table")
    vectors = np.array(whole.vectors)
    files = [tmp_path / "table.keys.npy", tmp_path / "table.vectors.npy"]
    for damaged in files:
        for size in (0, 50, damaged.stat().st_size - 2):
            del whole
            damaged.write_bytes(damaged.read_bytes()[:size])
            whole = encode_texts([file], [file.usable], "query", CountingEncoder(), tmp_path / "table")
            assert np.array_equal(whole.vectors, vectors)
        damaged.unlink()
        whole = encode_texts([file], [file.usable], "query", CountingEncoder(), tmp_path / "table")
        assert np.array_equal(whole.vectors, vectors)
    untouched = CountingEncoder()
    encode_texts([file], [file.usable], "query", untouched, tmp_path / "table")
    assert untouched.encoded == 0


def test_a_guide_knows_the_negatives_that_were_mined_since(tmp_path: Path, tiny_bert: Path) -> None:
    """The vectors are kept for the next run, whose pairs may be the same with other negatives."""
    tokenizer = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    guide = GuideOptions(kind="guide")
    for number in range(2):
        rows = [
            {"query": f"问题{i}", "positive": f"答案{i}号", "negatives": [f"第{number}次的错误{i}"]} for i in range(4)
        ]
        path = tmp_path / f"pairs-{number}.jsonl"
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        (file,) = load_pairs([SourceOptions(path=str(path))], tokenizer, tmp_path / "cache")
        mask = guide.build(replace(make_context(file, tokenizer, tmp_path), cache=tmp_path / "vectors"))
        negatives = np.array([text_key(row["negatives"][0]) for row in rows])
        assert (mask._documents.find(negatives) >= 0).all()


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_recipes_refuse_components_that_do_not_go_together() -> None:
    stage: dict[str, Any] = {
        "name": "main",
        "steps": 10,
        "batch": {"queries": 8, "negatives": 1},
        "data": {"sources": [{"path": "pairs.jsonl"}]},
        "optimizer": {"learning_rate": 0.01},
    }
    tree: dict[str, Any] = {"output_dir": "out", "model": {"path": "peg-mini"}, "stages": [stage]}
    for override, message in [
        ("stages.0.data={sources: [{path: a}], mixing: mixed, order: {kind: clusters}}", "set mixing: one_source"),
        ("stages.0.data.order={kind: neighbours, nearest: 100, random: 100}", "exceed among=128"),
        ("stages.0.data.order={kind: clusters, sizes: []}", "2 or more"),
        ("stages.0.data.order={kind: neighbours, group_epochs: 1}", r"set sources\[0\].columns.group"),
        ("stages.0.data.transforms=[{kind: shared_documents, documents: 4, anchor: true}]", "columns.anchor"),
        ("stages.0.loss.masks=[{kind: guide, compare: []}]", "at least 1 item"),
        ("stages.0.rounds=2", "nothing is made anew"),
        ("stages.0.rounds=11", "exceed steps=10"),
        ("stages.0.loss={mask_same_text: false, masks: [{kind: guide}]}", "guide needs to know which texts answer"),
        ("stages.0.loss.candidates=[{kind: mixing, pairs: 0, with_query: 0}]", "nothing would be mixed"),
        ("stages.0.data.mining={first_rank: 9, last_rank: 3}", "exceeds last_rank=3"),
    ]:
        with pytest.raises(RecipeError, match=message):
            Recipe.parse(tree, [override])
    with pytest.raises(RecipeError, match=r"raise batch\.negatives"):
        Recipe.parse(tree, ["stages.0.batch.negatives=0", "stages.0.data.mining={negatives: 2}"])


def test_a_round_under_way_misses_each_file_that_was_made_for_it(tmp_path: Path) -> None:
    part = Round(0, 4, tmp_path / "round-1")
    part.folder.mkdir()
    made = [part.folder / "mined-0.jsonl", part.folder / "neighbours-0.npy"]
    for file in made:
        file.write_bytes(b"x")
    part.check(0)
    with pytest.raises(TrainingError, match="gone or damaged"):
        part.check(2)
    part.mark_ready()
    part.check(2)
    for file in made:
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(TrainingError, match="gone or damaged"):
            part.check(2)
        part.check(0)  # nothing was trained with it yet
        file.write_bytes(content[:-1])
        with pytest.raises(TrainingError, match="gone or damaged"):
            part.check(2)
        part.check(0)
        assert not file.exists()  # it is made again
        file.write_bytes(content)
    part.check(2)
