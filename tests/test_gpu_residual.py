"""The accelerator's residual encoder: it starts as the static model, and its loss and scores are the package's."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from peg_rag.evaluation.metrics import score_run
from peg_rag.training.loss.contrastive import Pairs
from peg_rag.training.loss.progressive import ProgressiveState
from peg_rag.training.loss.reference import dense_loss
from peg_rag.training.recipe import LossOptions, ProgressiveOptions, Strategy

KIT = Path(__file__).parents[1] / "train" / "gpu"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, KIT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


residual = load_script("residual")
pack_halves = load_script("pack_halves")
report = load_script("report_ablation")
SHAPE = residual.Shape(layers=2, width=16, heads=2, inner=32, positions=8)


def make_pack(pairs: int = 60, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 12, 2 * pairs)
    texts = residual.Texts(generator.integers(0, 40, int(lengths.sum())), lengths, 16, 40, torch.device("cpu"))
    table = torch.from_numpy(generator.normal(size=(41, 16)).astype(np.float32))
    table[40] = 0
    sources = [residual.Source("a", 0, pairs // 2, 16), residual.Source("b", pairs // 2, pairs, 16)]
    return residual.Pack(table, texts, sources, torch.arange(pairs), torch.arange(pairs, 2 * pairs))


def make_lab(pack: Any, shape: Any = SHAPE, steps: int = 20) -> Any:
    torch.manual_seed(0)
    model = residual.ResidualEncoder(pack.table, torch.eye(16), shape, train_table=True)
    return residual.Lab(pack, model, residual.Batches({16: 8}, 2, 16), most_steps=steps, graphs=False)


@pytest.mark.parametrize("gated", [False, True])
def test_untrained_encoder_is_the_static_model(gated: bool) -> None:
    pack = make_pack()
    lab = make_lab(pack, residual.Shape(2, 16, 2, 32, 8, gated=gated, dropout=0.1, dropped_tokens=0.1))
    rows = torch.arange(len(pack.texts))
    means = torch.stack([pack.table[ids[ids < 40].long()].mean(0) for ids in pack.texts.ids])
    expected = torch.nn.functional.normalize(means, dim=1)
    torch.testing.assert_close(lab.encode(pack.texts, rows, 16), expected, atol=1e-5, rtol=1e-5)


def test_padding_changes_no_vector() -> None:
    pack = make_pack()
    lab = make_lab(pack)
    torch.nn.init.normal_(lab.model.output.weight, std=0.3)
    ids = pack.texts.ids[:5, :12]
    wide = torch.nn.functional.pad(ids, (0, 20), value=40)
    lab.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(lab.model(wide), lab.model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "progress", "t"),
    [("none", 0.4, 0.0), ("static", 0.4, 0.0), ("linear", 0.4, 0.0), ("curricular", 0.4, 0.3)],
)
def test_loss_is_the_packages(strategy: Strategy, progress: float, t: float) -> None:
    generator = torch.Generator().manual_seed(3)
    queries = torch.nn.functional.normalize(torch.randn(6, 12, generator=generator).double(), dim=1)
    documents = torch.nn.functional.normalize(torch.randn(18, 12, generator=generator).double(), dim=1)
    documents[:6] = torch.nn.functional.normalize(documents[:6] + 0.6 * queries, dim=1)
    weights = torch.rand(6, generator=generator).double() + 0.1
    query_keys = torch.tensor([1, 2, 1, 3, 4, 5])
    document_keys = torch.tensor([10, 11, 12, 13, 14, 15, 11, 12, 13, 2, *range(20, 28)])
    options = LossOptions(temperature=0.07, symmetric=True, progressive=ProgressiveOptions(strategy=strategy))
    state = ProgressiveState(options.progressive)
    state.load_state_dict({"t": t, "progress": progress})
    owners = torch.cat([torch.arange(6), torch.arange(6).repeat_interleave(2)])
    pairs = Pairs(torch.arange(6), owners, query_keys, document_keys, query_weights=weights)
    for leaf in (queries, documents):
        leaf.requires_grad_(True)
    expected = torch.autograd.grad(dense_loss(queries, documents, pairs, options, state), [queries, documents])
    weighting = residual.Weighting(
        torch.tensor(1 / 0.07, dtype=torch.float64),
        torch.tensor(state.strength, dtype=torch.float64),
        torch.tensor(strategy == "curricular"),
        torch.tensor(t, dtype=torch.float64),
    )
    hidden = residual.hidden_answers(query_keys, document_keys)
    unit = [torch.nn.functional.normalize(vectors, dim=1) for vectors in (queries, documents)]
    gradients = torch.autograd.grad(
        residual.weighted_loss(unit[0] @ unit[1].T, hidden, weights, weighting), [queries, documents]
    )
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-9, rtol=1e-6)


def test_t_follows_the_positives_as_in_the_package() -> None:
    pack = make_pack()
    lab = make_lab(pack)
    plan = residual.Plan(20, 0.0, strategy="curricular")
    state = ProgressiveState(ProgressiveOptions(strategy="curricular"))
    steps: list[float] = []

    def note_t(number: int) -> bool:
        steps.append(lab.t.item())
        return True

    lab.train(plan, note_t)
    weights, queries = lab._half_weights(), pack.queries
    for number in range(20):
        rows = lab.rows[16][number]
        vectors = [lab._encode_rows(weights, keys[rows], 16) for keys in (queries, lab.positives)]
        state.advance((vectors[0] * vectors[1]).sum(1).mean().item(), number / 20)
        assert steps[number] == pytest.approx(state.t, abs=1e-5)


def test_optimizer_is_adamw() -> None:
    torch.manual_seed(0)
    ours, reference = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    reference.load_state_dict(ours.state_dict())
    optimizer = residual.AdamW(list(ours.parameters()), 0.01)
    adamw = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.01)
    for step in range(5):
        batch = torch.randn(7, 5)
        gradients = torch.autograd.grad((ours(batch) ** 2).sum(), list(ours.parameters()))
        optimizer.step(gradients, torch.tensor(0.01), torch.tensor(step + 1.0))
        reference.zero_grad()
        (reference(batch) ** 2).sum().backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        adamw.step()
    torch.testing.assert_close(ours.weight, reference.weight, atol=1e-6, rtol=1e-5)


def test_runs_repeat_and_learn() -> None:
    lab = make_lab(make_pack())
    plan = residual.Plan(20, 0.01, trust=True, remine=(0.5,))
    losses = []
    for _ in range(2):
        lab.train(plan)
        losses.append(lab.losses.clone())
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[0][-5:].mean() < 0.7 * losses[0][:5].mean()
    assert lab.weights.std() > 0


def test_mined_negatives_are_hard_and_answer_nothing() -> None:
    pack = make_pack()
    pack.queries[1] = pack.queries[0]  # two answers to one question
    lab = make_lab(pack)
    negatives = lab.mine()
    vectors = lab.encode(pack.texts, torch.arange(len(pack.texts)), 16)
    for source in pack.sources:
        corpus = pack.positives[source.start : source.end]
        for pair in range(source.start, source.end):
            query = pack.queries[pair]
            answers = set(pack.positives[pack.queries == query].tolist())
            scores = {text: (vectors[query] @ vectors[text]).item() for text in corpus.tolist()}
            limit = 0.95 * scores[int(pack.positives[pair])]
            ranked = sorted(scores, key=lambda text: -scores[text])
            expected = [text for text in ranked if text not in answers and scores[text] < limit][: residual.MINED]
            assert negatives[pair, : len(expected)].tolist() == expected
            assert set(negatives[pair].tolist()) <= set(corpus.tolist())


def test_noise_moves_a_share_of_the_positives_within_their_source() -> None:
    pack = make_pack()
    lab = make_lab(pack)
    lab.reset(residual.Plan(20, 0.01, noise=0.2))
    moved = lab.positives != pack.positives
    assert moved.sum() == 12
    for source in pack.sources:
        rows = slice(source.start, source.end)
        assert sorted(lab.positives[rows].tolist()) == sorted(pack.positives[rows].tolist())


def test_ranking_scores_as_trec_eval() -> None:
    generator = torch.Generator().manual_seed(1)
    queries, documents = torch.randn(5, 8, generator=generator), torch.randn(40, 8, generator=generator)
    answers = torch.tensor([(q, (7 * q + i) % 40, 1 + i % 2) for q in range(5) for i in range(3)])
    scores = residual.rank(queries, documents, answers, depth=20)
    cosines = (queries @ documents.T).tolist()
    run = {str(q): {str(d): cosines[q][d] for d in range(40)} for q in range(5)}
    qrels: dict[str, dict[str, int]] = {}
    for query, document, grade in answers.tolist():
        qrels.setdefault(str(query), {})[str(document)] = grade
    expected = score_run(run, qrels, ["nDCG@10"])["nDCG@10"]
    np.testing.assert_allclose(scores.ndcg, expected, atol=1e-6)
    assert scores.rows.shape == (5, 20)


def test_trust_is_half_at_half_a_deviation_below_the_mean() -> None:
    cosines = torch.linspace(-1, 1, 101)
    weights = residual.trust_weights(cosines)
    middle = cosines.mean() - cosines.std() / 2
    assert weights[(cosines - middle).abs().argmin()] == pytest.approx(0.5, abs=0.02)
    assert (weights.diff() > 0).all()


def test_packed_table_and_texts_are_read_back(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    table = generator.normal(size=(30, 16)).astype(np.float16)
    save_file({"embedding.weight": table}, tmp_path / "model.safetensors")
    lengths = np.array([3, 0, 9, 2, 40, 5])
    tokens = generator.integers(0, 30, int(lengths.sum())).astype(np.uint16)
    arrays = pack_halves.pack_table(tmp_path / "model.safetensors") | {
        "texts/tokens": tokens,
        "texts/lengths": lengths.astype(np.uint16),
        "train/a-b/queries": np.array([0, 3]),
        "train/a-b/positives": np.array([2, 4]),
        "validation/new/c-d/queries": np.array([5]),
        "validation/new/c-d/corpus": np.array([2, 4]),
        "validation/new/c-d/answers": np.array([[0, 1, 1]]),
    }
    np.savez(tmp_path / "pack.npz", **arrays)
    pack = residual.load_pack(tmp_path / "pack.npz", torch.device("cpu"), widths=(8, 32))
    cosines = torch.nn.functional.cosine_similarity(pack.table[:-1], torch.from_numpy(table).float())
    assert cosines.min() > 0.995
    assert pack.texts.ids.shape == (6, 32)
    assert pack.texts.ids[2].tolist() == [*tokens[3:12].tolist(), *[30] * 23]
    assert pack.texts.ids[1].tolist() == [0, *[30] * 31]
    assert pack.sources == [residual.Source("a-b", 0, 2, 32)]
    (task,) = pack.validation
    assert (task.name, task.queries.tolist(), task.corpus.tolist()) == ("new/c-d", [5], [2, 4])


def test_report_weighs_sets_alike_and_pairs_queries(tmp_path: Path) -> None:
    layout = {"new/law-a": 2, "law-b": 30, "news-c": 10}
    generator = np.random.default_rng(4)
    before = generator.random(42)
    after = np.concatenate([before[:2], before[2:32] + 0.1, before[32:]])
    rows: list[dict[str, Any]] = [
        {"key": f"seeds/{arm}/{seed}", "part": "seeds", "arm": arm, "seed": seed} for arm in "ab" for seed in (1, 2)
    ]
    (tmp_path / "layout.json").write_text(json.dumps(layout), encoding="utf-8")
    (tmp_path / "ablation.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arrays = {row["key"].replace("/", "|"): before if row["arm"] == "a" else after for row in rows}
    np.savez(tmp_path / "ablation.npz", **arrays)  # type: ignore[arg-type]
    table = report.Table(tmp_path)
    (first, _) = table.values(table.part("seeds", "a"), "ten sets")
    assert first == pytest.approx((before[2:32].mean() + before[32:].mean()) / 2)
    points, p = table.compare(table.part("seeds", "a"), table.part("seeds", "b"), "ten sets")
    assert points == pytest.approx(5.0)
    assert p < 0.001
    assert table.compare(table.part("seeds", "a"), table.part("seeds", "b"), "six sets, known") == (0.0, 1.0)
