"""The tiled loss is held to its dense definition, and the definition to values worked out by hand."""

import copy
import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from peg_rag.errors import InvalidInput, TrainingError
from peg_rag.training.loss import tiles
from peg_rag.training.loss.contrastive import LossResult, Pairs, cosines, tiled_loss
from peg_rag.training.loss.masks import AnswerMask, TileColumns, TileRows
from peg_rag.training.loss.progressive import ProgressiveState
from peg_rag.training.loss.reference import dense_loss
from peg_rag.training.loss.tiles import Scratch, Tile
from peg_rag.training.recipe import LossOptions, ProgressiveOptions

DIM = 6
TOLERANCE = 1e-9


def make_batch(seed: int, negatives: list[int], spare: int, texts: bool) -> tuple[Tensor, Tensor, Pairs]:
    """Queries with as many hard negatives as told, `spare` documents of nobody's, in shuffled order."""
    generator = torch.Generator().manual_seed(seed)

    def integers(below: int, *shape: int) -> Tensor:
        return torch.randint(0, below, shape, generator=generator)

    owners = torch.tensor([i for i, count in enumerate(negatives) for _ in range(1 + count)] + [-1] * spare)
    owners = owners[torch.randperm(len(owners), generator=generator)]
    b, n = len(negatives), len(owners)
    positives = torch.stack([(owners == i).nonzero()[0, 0] for i in range(b)])
    queries, documents = (torch.randn(k, DIM, generator=generator, dtype=torch.float64) + 0.3 for k in (b, n))
    pairs = Pairs(positives, owners)
    if texts:
        pairs = replace(
            pairs,
            query_text_ids=integers(2 * b, b) - b,
            document_text_ids=integers(2 * n, n) - b,
            known_positives=torch.stack([integers(b, 2), integers(n, 2)], 1),
            known_texts=torch.stack([integers(b, 3), integers(2 * n, 3) - b], 1),
            query_weights=torch.rand(b, generator=generator) + 0.1,
        )
    return queries, documents, pairs


def assert_equal(
    queries: Tensor,
    documents: Tensor,
    pairs: Pairs,
    options: LossOptions,
    progressive: ProgressiveState | None = None,
    tile: Tile | None = None,
) -> LossResult:
    """Loss and both gradients agree with autograd over the dense definition."""
    queries, documents = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    expected = dense_loss(queries, documents, pairs, options, progressive)
    expected.backward()
    result = tiled_loss(queries, documents, pairs, options, progressive, tile=tile)
    assert abs(result.loss.item() - expected.item()) < TOLERANCE
    assert queries.grad is not None
    assert documents.grad is not None
    assert (result.query_gradient - queries.grad).abs().max() < TOLERANCE
    assert (result.document_gradient - documents.grad).abs().max() < TOLERANCE
    return result


OPTIONS = st.builds(
    LossOptions,
    temperature=st.sampled_from([0.05, 0.14, 1.0]),
    hard_negatives=st.sampled_from(["shared", "own"]),
    symmetric=st.booleans(),
    mask_same_text=st.booleans(),
    false_negative_margin=st.sampled_from([None, -0.1, 0.05]),
    false_negative_ratio=st.sampled_from([None, 0.95]),
    matryoshka_dims=st.sampled_from([(), (3, DIM), (2,)]),
)
PROGRESSIVE = st.builds(
    ProgressiveOptions,
    strategy=st.sampled_from(["none", "static", "linear", "cosine", "curricular"]),
    margin=st.sampled_from([0.0, 0.2]),
)
TILES = st.builds(Tile, rows=st.integers(1, 9), columns=st.integers(1, 30), keep=st.booleans())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    negatives=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    spare=st.integers(0, 3),
    texts=st.booleans(),
    options=OPTIONS,
    progressive=PROGRESSIVE,
    tile=TILES,
)
def test_tiled_equals_dense(
    seed: int,
    negatives: list[int],
    spare: int,
    texts: bool,
    options: LossOptions,
    progressive: ProgressiveOptions,
    tile: Tile,
) -> None:
    state = ProgressiveState(progressive)
    state.advance(0.4, 0.5)
    assert_equal(*make_batch(seed, negatives, spare, texts), options, state, tile)


def test_everything_at_once_with_an_uneven_last_tile() -> None:
    state = ProgressiveState(ProgressiveOptions(strategy="curricular", margin=0.1))
    state.advance(0.5, 0.3)
    options = LossOptions(symmetric=True, false_negative_margin=-0.2, matryoshka_dims=(2, 4, DIM), temperature=0.1)
    batch = make_batch(1, [5] * 13, 4, True)
    for keep in (True, False):
        assert_equal(*batch, options, state, Tile(rows=5, columns=11, keep=keep))


def test_by_hand() -> None:
    """Orthogonal pairs: the positive's logit is 1/τ, each other's 0, whatever the lengths of the vectors."""
    vectors = torch.eye(3, dtype=torch.float64) * torch.tensor([[1.0], [2.0], [3.0]])
    result = tiled_loss(vectors, vectors, Pairs.regular(3, 0), LossOptions(temperature=0.5))
    assert result.loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), abs=1e-12)
    assert result.metrics.accuracy == 1.0
    assert result.metrics.positive_similarity == pytest.approx(1.0)
    assert result.metrics.hard_share == result.metrics.masked_share == 0.0


def test_definition_is_cross_entropy() -> None:
    queries, documents, _ = make_batch(0, [2] * 5, 0, False)
    pairs = Pairs.regular(5, 2)
    logits = functional.normalize(queries) @ functional.normalize(documents).T / 0.1
    expected = functional.cross_entropy(logits, pairs.positives)
    ours = dense_loss(queries, documents, pairs, LossOptions(temperature=0.1))
    assert ours.item() == pytest.approx(expected.item(), abs=1e-12)


def test_own_negatives_are_seen_by_their_query_alone() -> None:
    queries, documents, pairs = make_batch(3, [2, 0, 3], 0, False)
    options = LossOptions(hard_negatives="own")
    before = tiled_loss(queries, documents, pairs, options)
    hard = ((pairs.owners == 0) & (torch.arange(len(documents)) != pairs.positives[0])).nonzero()[0, 0]
    only_first = replace(pairs, query_weights=torch.tensor([0.0, 1.0, 1.0]))
    assert tiled_loss(queries, documents, only_first, options).document_gradient[hard].abs().max() == 0
    assert before.document_gradient[hard].abs().max() > 0


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_batch_without_weight_teaches_nothing(symmetric: bool) -> None:
    queries, documents, pairs = make_batch(3, [2, 0, 3], 0, False)
    weightless = replace(pairs, query_weights=torch.zeros(3))
    options = LossOptions(symmetric=symmetric)
    result = tiled_loss(queries, documents, weightless, options)
    assert result.loss.item() == dense_loss(queries, documents, weightless, options).item() == 0
    assert result.query_gradient.abs().max() == result.document_gradient.abs().max() == 0


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(([1, 2, 3], [7, 8, 7]), id="another query's positive has the same text"),
        pytest.param(([1, 2, 1], [7, 8, 9]), id="another query asks the same"),
        pytest.param(([1, 2, 3], [7, 8, 1]), id="another query's positive is this query"),
    ],
)
def test_same_text_is_no_negative(texts: tuple[list[int], list[int]]) -> None:
    queries, documents, _ = make_batch(5, [0, 0, 0], 0, False)
    pairs = Pairs.regular(3, 0)
    named = replace(pairs, query_text_ids=torch.tensor(texts[0]), document_text_ids=torch.tensor(texts[1]))
    weights = torch.tensor([1.0, 0.0, 0.0])  # look at the first query alone, against documents 1 and 2
    named, options = replace(named, query_weights=weights), LossOptions(temperature=1.0)
    result = tiled_loss(queries, documents, named, options)
    third_left_out = replace(Pairs.regular(2, 0), query_weights=weights[:2])
    expected = tiled_loss(queries[:2], documents[:2], third_left_out, options)
    assert result.loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)
    assert result.document_gradient[2].abs().max() == 0
    unmasked = tiled_loss(queries, documents, named, options.model_copy(update={"mask_same_text": False}))
    assert abs(unmasked.loss.item() - result.loss.item()) > 1e-3


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), b=st.integers(1, 12), m=st.integers(1, 30), width=st.integers(1, 31))
def test_known_answers_are_hidden_in_every_tile(seed: int, b: int, m: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns, left, right = (torch.randint(-4, 4, (k,), generator=generator) for k in (b, m, 9, 9))
    mask = AnswerMask(rows, columns, torch.stack([left, right], 1))
    known = set(zip(left.tolist(), right.tolist(), strict=True))
    expected = torch.tensor([[(i, j) in known for j in columns.tolist()] for i in rows.tolist()])
    for start in range(0, b, 5):
        part = slice(start, min(start + 5, b))
        tile_rows = TileRows(part, rows[part], rows[part], torch.ones(part.stop - part.start))
        for first in range(0, m, width):
            place = slice(first, min(first + width, m))
            scores = torch.zeros(part.stop - part.start, place.stop - place.start)
            hidden = mask.hidden(tile_rows, TileColumns(place, columns[None, place], scores, 1.0))
            assert hidden.coalesce().indices().shape[1] == expected[part, place].sum()  # no cell twice
            assert torch.equal(hidden.to_dense(), expected[part, place])
        own = TileColumns(None, columns.expand(len(tile_rows.texts), m), torch.zeros(len(tile_rows.texts), m), 1.0)
        assert torch.equal(mask.hidden(tile_rows, own), expected[part])


def test_metrics_against_brute_force() -> None:
    queries, documents, pairs = make_batch(11, [3, 1, 2, 4, 0], 2, True)
    state = ProgressiveState(ProgressiveOptions(margin=0.3))
    pairs = replace(pairs, query_text_ids=None, document_text_ids=None)
    metrics = tiled_loss(queries, documents, pairs, LossOptions(), state).metrics  # in one tile
    cosines = functional.normalize(queries) @ functional.normalize(documents).T
    rows = torch.arange(5)
    positives = cosines[rows, pairs.positives]
    answer = torch.zeros(5, len(documents), dtype=torch.bool)
    assert pairs.known_positives is not None
    answer[pairs.known_positives[:, 0], pairs.known_positives[:, 1]] = True
    answer[rows, pairs.positives] = True
    negatives = cosines.masked_fill(answer, -9)
    assert metrics.accuracy == pytest.approx((negatives.amax(1) < positives).double().mean().item())
    hard = (negatives > positives[:, None] - 0.3).sum() / (~answer).sum()
    assert metrics.hard_share == pytest.approx(hard.item())
    assert metrics.masked_share == pytest.approx((answer.sum().item() - 5) / (answer.numel() - 5))
    assert metrics.positive_similarity == pytest.approx(positives.mean().item())


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([1.0, 0.05, 0.01]),
    nearness=st.floats(-3, 3),
    strength=st.sampled_from([0.0, 5.0, 80.0]),
    keep=st.booleans(),
)
def test_accuracy_by_brute_force_whether_positives_outweigh_all_negatives_or_not(
    seed: int, temperature: float, nearness: float, strength: float, keep: bool
) -> None:
    """Where they do, the tiles don't look for the highest negative."""
    queries, documents, pairs = make_batch(seed, [2] * 7, 0, False)
    documents = documents.index_add(0, pairs.positives, queries * nearness)
    state = ProgressiveState(ProgressiveOptions(strategy="static", strength=strength))
    options = LossOptions(temperature=temperature)
    metrics = tiled_loss(queries, documents, pairs, options, state, tile=Tile(rows=3, columns=5, keep=keep)).metrics
    scores = (functional.normalize(queries) @ functional.normalize(documents).T) * (1 / temperature + state.strength)
    rows = torch.arange(7)
    positives = scores[rows, pairs.positives]
    negatives = scores.index_put((rows, pairs.positives), torch.tensor(-math.inf).double())
    assert metrics.accuracy == pytest.approx((negatives.amax(1) < positives).double().mean().item())


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


def test_never_holds_the_score_matrix() -> None:
    b, h, d = 120, 5, 8
    queries, documents = torch.randn(b, d), torch.randn(b * (1 + h), d)
    texts = torch.arange(b + len(documents))
    pairs = replace(Pairs.regular(b, h), query_text_ids=texts[:b], document_text_ids=texts[b:])
    options = LossOptions(symmetric=True, false_negative_margin=0.0)
    state = ProgressiveState(ProgressiveOptions(strategy="curricular"))
    for keep, limit in ((False, len(documents) * d), (True, 10 * len(documents))):
        with LargestTensor() as watch:
            tiled_loss(queries, documents, pairs, options, state, tile=Tile(rows=10, columns=200, keep=keep))
        assert watch.largest <= limit < b * len(documents) / 10
    with LargestTensor() as watch:
        dense_loss(queries, documents, replace(pairs, query_text_ids=None), options, state)
    assert watch.largest >= b * len(documents)  # the watch sees what it is there to see


def test_small_temperatures_stay_finite() -> None:
    """At τ = 0.005 a logit spans 400, far past what float32 can exponentiate; one tile is masked in whole rows."""
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    documents = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    pairs = Pairs(torch.tensor([0, 2]), torch.tensor([0, -1, 1]), known_positives=torch.tensor([[0, 1]]))
    result = tiled_loss(
        queries, documents, pairs, LossOptions(temperature=0.005), tile=Tile(rows=2, columns=1, keep=True)
    )
    expected = dense_loss(queries, documents, pairs, LossOptions(temperature=0.005))
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert result.query_gradient.isfinite().all()
    assert result.document_gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 59.0, 61.0, 100.0, 130.0, 400.0])
@pytest.mark.parametrize("case", ["positives first", "positives last", "all alike", "near"])
def test_exponentials_keep_float32_exact(scale: float, case: str) -> None:
    """Exponentials are kept without looking for a maximum; no scale and no order of the candidates may lose digits."""
    torch.manual_seed(0)
    queries, candidates = torch.randn(7, 4), torch.randn(30, 4)
    positives = {"positives first": queries, "positives last": -queries, "near": queries + 0.3 * torch.randn(7, 4)}
    documents = torch.cat([positives.get(case, queries), candidates])
    if case == "all alike":
        queries, documents = torch.ones(7, 4), torch.ones(37, 4)
    pairs = Pairs(torch.arange(7), torch.cat([torch.arange(7), torch.full((30,), -1)]))
    options = LossOptions(temperature=1 / scale)
    tiles = [Tile(rows=4, columns=9, keep=keep) for keep in (True, False)]
    results = [tiled_loss(queries, documents, pairs, options, tile=tile) for tile in tiles]
    exact = tiled_loss(queries.double(), documents.double(), pairs, options, tile=tiles[1])
    for result in results:
        assert result.loss.item() == pytest.approx(exact.loss.item(), rel=1e-5, abs=1e-7 * scale)
        for got, expected in (
            (result.query_gradient, exact.query_gradient),
            (result.document_gradient, exact.document_gradient),
        ):
            assert (got - expected).norm() <= 1e-4 * expected.norm() + 1e-6 * scale


@pytest.mark.parametrize("hard_negatives", ["shared", "own"])
def test_hard_negatives_are_counted_all_over_the_batch(hard_negatives: Literal["shared", "own"]) -> None:
    """As the trainer lays documents out, positives first: what is hard stands behind the first hundreds of columns."""
    torch.manual_seed(0)
    b, spare = 400, 1200
    queries = torch.randn(b, 16)
    documents = torch.cat([queries, queries + 0.5 * torch.randn(b, 16), torch.randn(spare, 16)])
    pairs = Pairs(torch.arange(b), torch.cat([torch.arange(b), torch.arange(b), torch.full((spare,), -1)]))
    candidates = ~torch.eye(b, len(documents), dtype=torch.bool)  # all but a query's positive
    if hard_negatives == "own":
        candidates[:, b : 2 * b] = torch.eye(b, dtype=torch.bool)
    cosine = functional.normalize(queries) @ functional.normalize(documents).T
    expected = (candidates & (cosine > 0.5)).sum() / candidates.sum()
    state = ProgressiveState(ProgressiveOptions(strategy="static", margin=0.5))
    result = tiled_loss(queries, documents, pairs, LossOptions(hard_negatives=hard_negatives), state)
    assert result.metrics.hard_share == pytest.approx(expected.item(), rel=0.1)


class DenormalFactors(TorchDispatchMode):
    """Counts the matrix products, and the denormal numbers in what is multiplied."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products = 0
        self.denormals = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.products += 1
            for factor in args[-2:]:
                small = (factor != 0) & (factor.abs() < torch.finfo(factor.dtype).tiny)
                self.denormals += int(small.sum())
        return function(*args, **(kwargs or {}))


def test_low_temperatures_multiply_no_denormal_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far negatives of a good model would be denormal numbers, with which a product takes ten times as long."""
    torch.manual_seed(0)
    queries = torch.randn(256, 64)
    documents = torch.cat([queries + 0.4 * torch.randn(256, 64), torch.randn(2048, 64)])
    pairs = Pairs(torch.arange(256), torch.cat([torch.arange(256), torch.full((2048,), -1)]))

    def count(keep: bool) -> int:
        options = LossOptions(temperature=1 / 150)
        with DenormalFactors() as factors:
            tiled_loss(queries, documents, pairs, options, tile=Tile(rows=256, columns=2304, keep=keep))
        assert factors.products >= 3
        return int(factors.denormals)

    for keep in (True, False):
        assert count(keep) == 0
    monkeypatch.setattr(tiles, "LEAST_EXPONENT", -1_000.0)
    assert count(keep=True) > 1_000  # what the limit is for


def test_the_gradient_of_a_solved_query_keeps_its_digits() -> None:
    """1 − p is computed as such: near p = 1 a difference of two rounded numbers has none left."""
    queries, documents, pairs = make_batch(4, [2] * 4, 0, False)
    documents = documents.clone()
    documents[pairs.positives] = queries
    options = LossOptions(temperature=1 / 40)
    exact = tiled_loss(queries.double(), documents.double(), pairs, options)
    got = tiled_loss(queries.float(), documents.float(), pairs, options)
    assert 0 < exact.loss.item() < 1e-3
    assert got.loss.item() == pytest.approx(exact.loss.item(), rel=1e-4)
    assert (got.document_gradient - exact.document_gradient).norm() <= 1e-4 * exact.document_gradient.norm()


def test_gradients_of_float32_keep_their_digits_in_many_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(100, 1024, generator=generator)
    documents = torch.randn(300, 1024, generator=generator)
    pairs = Pairs.regular(100, 2)
    documents[pairs.positives] += 3 * queries
    exact, got = (tiled_loss(queries.to(kind), documents.to(kind), pairs) for kind in (torch.float64, torch.float32))
    assert (got.query_gradient - exact.query_gradient).norm() <= 4e-6 * exact.query_gradient.norm()


def test_scratch_is_no_part_of_a_copy_and_survives_inference_mode() -> None:
    queries, documents, pairs = make_batch(2, [2] * 6, 0, False)
    scratch = Scratch()
    with torch.inference_mode():
        first = tiled_loss(queries, documents, pairs, scratch=scratch)
    again = tiled_loss(queries, documents, pairs, scratch=scratch)
    assert torch.equal(first.loss, again.loss)
    assert copy.deepcopy(scratch).matrix(2, 2, queries).shape == (2, 2)
    assert cosines(queries.requires_grad_(), queries).requires_grad is False


@pytest.mark.parametrize("columns", [1, 16, 17, 1024, 12_288])
def test_rows_of_the_scratch_do_not_share_cache_sets(columns: int) -> None:
    matrix = Scratch().matrix(3, columns, torch.empty(0))
    assert matrix.shape == (3, columns)
    assert matrix.stride(0) * 4 % 128 == 64  # an odd number of cache lines


def test_autocast_does_not_reach_the_loss() -> None:
    queries, documents, pairs = make_batch(2, [2] * 6, 0, False)
    queries, documents = queries.float(), documents.float()
    plain = tiled_loss(queries, documents, pairs)
    with torch.autocast("cpu", torch.bfloat16):
        cast = tiled_loss(queries, documents, pairs)
    assert torch.equal(cast.query_gradient, plain.query_gradient)
    assert torch.equal(cast.document_gradient, plain.document_gradient)


def test_half_precision_vectors_are_computed_in_float32() -> None:
    queries, documents, pairs = make_batch(2, [2] * 6, 0, False)
    halves = tiled_loss(queries.bfloat16(), documents.bfloat16(), pairs)
    full = tiled_loss(queries.bfloat16().float(), documents.bfloat16().float(), pairs)
    assert halves.query_gradient.dtype == torch.float32
    assert torch.equal(halves.document_gradient, full.document_gradient)


@pytest.mark.parametrize("length", [1e-18, 1e15])
def test_very_short_and_very_long_vectors(length: float) -> None:
    queries, documents, pairs = make_batch(5, [2] * 4, 0, False)
    exact = tiled_loss(queries, documents, pairs)
    got = tiled_loss(queries.float() * length, documents.float(), pairs)
    assert got.loss.item() == pytest.approx(exact.loss.item(), rel=1e-5)
    assert (got.query_gradient * length - exact.query_gradient).norm() <= 1e-5 * exact.query_gradient.norm()


def test_a_zero_vector_is_orthogonal_to_all() -> None:
    queries, documents, pairs = make_batch(4, [1] * 4, 0, False)
    documents[3] = 0.0
    assert_equal(queries, documents, pairs, LossOptions())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_broken_vectors_raise(value: float) -> None:
    queries, documents, pairs = make_batch(0, [2] * 4, 0, False)
    documents[7, 2] = value
    with pytest.raises(TrainingError, match=r"1 of the batch's vectors hold NaN or infinity"):
        tiled_loss(queries, documents, pairs)


def test_shapes_that_do_not_belong_together_raise() -> None:
    queries, documents, pairs = make_batch(0, [2] * 4, 0, False)
    with pytest.raises(InvalidInput, match="must be"):
        tiled_loss(queries, documents[:, :3], pairs)
    with pytest.raises(InvalidInput, match="positives"):
        tiled_loss(queries[:2], documents, pairs)
    with pytest.raises(InvalidInput, match="exceed"):
        tiled_loss(queries, documents, pairs, LossOptions(matryoshka_dims=(DIM + 1,)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"temperature": math.inf},
        {"hard_negatives": "mine"},
        {"matryoshka_dims": (4, 4)},
        {"matryoshka_dims": (0,)},
    ],
)
def test_wrong_options_raise(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossOptions(**wrong)  # type: ignore[arg-type]
