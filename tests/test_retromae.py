"""RetroMAE is held to a plain reference: loops over texts, places and heads, in float64."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_resume import finish, launch
from torch import Tensor
from torch.nn import functional

from peg_rag import PEGEncoder
from peg_rag.errors import DataError, RecipeError, TrainingError
from peg_rag.training import Recipe, train
from peg_rag.training.data.corpus import TextBatch, TextReader, choose_masked, load_texts
from peg_rag.training.data.sampler import PlannedBatch
from peg_rag.training.data.tokens import TokenRows
from peg_rag.training.model.encoder import TrainableEncoder, load_encoder
from peg_rag.training.model.retromae import (
    MULTIPLIER,
    DecoderLayer,
    HiddenTexts,
    RetroMAE,
    TokenHead,
    draw_visible,
)
from peg_rag.training.recipe import ModelOptions, SourceOptions
from peg_rag.training.run.estimate import estimate_run
from peg_rag.training.run.masked_step import MaskedStep

WORDS = "花呗银行卡绑定更换借款理财逾期北京故宫门票医院报销材料需哪些公司法律合同"
HIDDEN = 0.5

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that repeat a few phrases, one a line."""
    phrases = [WORDS[i : i + 5] for i in range(0, len(WORDS) - 5, 3)]
    texts = [f"{phrases[i % 11]}，{phrases[(i * 7 + 3) % 11]}。{phrases[(i * i) % 11]}{i}" for i in range(120)]
    file = tmp_path_factory.mktemp("corpus") / "texts.txt"
    file.write_text("\n".join([*texts, "", *texts[:5]]), encoding="utf-8")
    return file


@pytest.fixture
def encoder(tiny_bert: Path) -> TrainableEncoder:
    return load_encoder(ModelOptions(path=str(tiny_bert), pooling="cls"))


@pytest.fixture
def model(encoder: TrainableEncoder) -> RetroMAE:
    """In float64, without dropout, with weights that matter."""
    torch.manual_seed(1)
    model = RetroMAE(encoder, mask_id=4, decoder_masked=HIDDEN)
    for parameter in (*model.decoder.parameters(), *model.head.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


@pytest.fixture
def batch(corpus: Path, encoder: TrainableEncoder, tmp_path: Path) -> TextBatch:
    """Texts of several lengths."""
    (file,) = load_texts([SourceOptions(path=str(corpus))], encoder.tokenizer, tmp_path)
    reader = TextReader([file], [file.usable], encoder.tokenizer, masked=0.3, seed=5)
    return cut_texts(reader.read(PlannedBatch(np.zeros(7, np.int64), np.arange(7)), step=3))


def cut_texts(batch: TextBatch) -> TextBatch:
    """The same with text i cut to 4 + 2·i tokens at most."""
    keep = np.concatenate([np.arange(n) < 4 + 2 * i for i, n in enumerate(batch.texts.lengths)])
    lengths = [int(min(n, 4 + 2 * i)) for i, n in enumerate(batch.texts.lengths)]
    texts = TokenRows(batch.texts.tokens[keep], np.concatenate([[0], np.cumsum(lengths)]))
    return TextBatch(batch.step, batch.rows, texts, batch.ordinary[keep], batch.masked[keep], batch.words[keep])


def plain_loss(model: RetroMAE, batch: TextBatch) -> Tensor:
    """The definition, text by text, place by place, head by head."""
    body: Any = model.encoder.body
    encoder_losses, decoder_losses = [], []
    for number in range(len(batch)):
        part = slice(int(batch.texts.offsets[number]), int(batch.texts.offsets[number + 1]))
        ids = torch.from_numpy(batch.texts.tokens[part].astype(np.int64))
        masked, ordinary, words = batch.masked[part], batch.ordinary[part], batch.words[part].tolist()
        seen = torch.tensor([4 if hidden else token for token, hidden in zip(ids.tolist(), masked, strict=True)])
        states = body(input_ids=seen[None]).last_hidden_state[0]  # (tokens, d)
        vector = states[0] if model.encoder.pooling == "cls" else states.mean(0)
        table = body.embeddings.word_embeddings.weight
        keys = [vector, *(embed(body, table[ids[j]], j) for j in range(1, len(ids)))]
        for i in range(len(ids)):
            if masked[i]:
                encoder_losses.append(token_loss(model.head, body, states[i], ids[i]))
            if ordinary[i]:
                others = [j for j in range(1, len(ids)) if j != i]
                visible = [j for j in others if sees(words[i], words[j], bool(ordinary[j]))]
                decoded = decode(model.decoder, embed(body, vector, i), [keys[0], *(keys[j] for j in visible)])
                decoder_losses.append(token_loss(model.head, body, decoded, ids[i]))
    return torch.stack(encoder_losses).mean() + torch.stack(decoder_losses).mean()


def embed(body: Any, vector: Tensor, place: int) -> Tensor:
    embeddings = body.embeddings
    with_place = vector + embeddings.position_embeddings.weight[place] + embeddings.token_type_embeddings.weight[0]
    normed: Tensor = embeddings.LayerNorm(with_place)
    return normed


def sees(asking: list[int], asked: list[int], ordinary: bool) -> bool:
    draw = ((asking[0] ^ asked[1]) * MULTIPLIER >> 16) % 2**31
    return not ordinary or draw >= round(HIDDEN * 2**31)


def decode(layer: DecoderLayer, query: Tensor, keys: list[Tensor]) -> Tensor:
    size = len(query) // layer.heads
    attended = []
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        q = layer.query(query)[part]
        weights = torch.stack([q @ layer.key(key)[part] / math.sqrt(size) for key in keys]).exp()
        values = torch.stack([layer.value(key)[part] for key in keys])
        attended.append((weights[:, None] * values).sum(0) / weights.sum())
    states = layer.attention_norm(query + layer.attended(torch.cat(attended)))
    output: Tensor = layer.output_norm(states + layer.down(functional.gelu(layer.up(states))))
    return output


def token_loss(head: TokenHead, body: Any, state: Tensor, token: Tensor) -> Tensor:
    logits = body.embeddings.word_embeddings.weight @ head.norm(functional.gelu(head.transform(state))) + head.bias
    loss: Tensor = torch.log(logits.exp().sum()) - logits[token]
    return loss


@pytest.mark.parametrize(("pooling", "tolerance"), [("cls", 1e-9), ("mean", 1e-5)])  # means are float32
@pytest.mark.parametrize("batch_tokens", [20, 4_096])
def test_loss_and_gradients_equal_the_plain_reference(
    model: RetroMAE,
    batch: TextBatch,
    pooling: Any,
    tolerance: float,
    batch_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one chunk and in several, with logits of a few tokens at a time."""
    monkeypatch.setattr("peg_rag.training.model.retromae.BLOCK_TOKENS", 5)
    model.encoder.pooling = pooling
    expected = plain_loss(model, batch)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    step = MaskedStep(model, batch_tokens=batch_tokens)
    metrics = step(batch)
    assert metrics.loss == pytest.approx(expected.item(), abs=tolerance)
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        ours = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        theirs = gradient if gradient is not None else torch.zeros_like(parameter)
        assert (ours - theirs).abs().max() < tolerance, name
    assert step.score(batch) == pytest.approx(expected.item(), abs=tolerance)


def test_the_decoder_never_sees_what_it_tells_and_always_the_vector(batch: TextBatch) -> None:
    rows, tokens = 3, 200
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 2**31, (rows, tokens, 2), generator=generator)
    everything = torch.ones(rows, tokens, dtype=torch.bool)
    texts = HiddenTexts(torch.zeros(rows, tokens, dtype=torch.long), everything, everything, ~everything, words)
    visible = draw_visible(texts, 0.5)
    assert visible[:, :, 0].all()
    assert not visible[:, range(1, tokens), range(1, tokens)].any()
    others = visible[:, :, 1:].float()
    assert others.mean() == pytest.approx(0.5, abs=0.01)
    # No token is seen by all or by none, and what two places see has nothing to do with each other.
    assert (others.mean(1) - 0.5).abs().max() < 0.2
    both = (visible[:, 10, 1:] & visible[:, 20, 1:]).float().mean()
    assert both == pytest.approx(0.25, abs=0.06)
    assert draw_visible(texts, 0.0)[:, :, 1:].sum() == rows * (tokens * (tokens - 1) - (tokens - 1))
    assert not draw_visible(texts, 1.0)[:, :, 1:].any()


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**16),
)
def test_every_text_loses_its_share_of_ordinary_tokens(lengths: list[int], share: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    texts = TokenRows.of([[7] * length for length in lengths])
    ordinary = generator.random(len(texts.tokens)) < 0.8
    words = generator.integers(0, 2**63, len(texts.tokens), dtype=np.uint64)
    masked = choose_masked(texts, ordinary, words, share)
    for number in range(len(texts)):
        part = slice(int(texts.offsets[number]), int(texts.offsets[number + 1]))
        count = int(ordinary[part].sum())
        assert masked[part].sum() == min(count, max(1, round(share * count)))
        assert not (masked[part] & ~ordinary[part]).any()
        if masked[part].any() and not masked[part][ordinary[part]].all():
            assert words[part][masked[part]].max() <= words[part][ordinary[part] & ~masked[part]].min()


def test_what_is_hidden_depends_on_seed_step_and_text_alone(
    corpus: Path, encoder: TrainableEncoder, tmp_path: Path
) -> None:
    (file,) = load_texts([SourceOptions(path=str(corpus))], encoder.tokenizer, tmp_path)

    def read(rows: list[int], step: int, seed: int = 5) -> dict[int, tuple[list[bool], list[list[int]]]]:
        reader = TextReader([file], [file.usable], encoder.tokenizer, masked=0.3, seed=seed)
        batch = reader.read(PlannedBatch(np.zeros(len(rows), np.int64), np.array(rows)), step)
        parts = [slice(a, b) for a, b in pairwise(batch.texts.offsets.tolist())]
        return {row: (batch.masked[p].tolist(), batch.words[p].tolist()) for row, p in zip(rows, parts, strict=True)}

    first = read([4, 9, 2], step=1)
    assert read([9, 30], step=1)[9] == first[9]
    assert read([9], step=2)[9] != first[9]
    assert read([9], step=1, seed=6)[9] != first[9]


def test_texts_come_from_lines_and_from_the_positives_of_pairs(
    corpus: Path, encoder: TrainableEncoder, tmp_path: Path
) -> None:
    rows = [{"positive": "甲乙丙"}, {"positive": "甲乙丙。"}, {"passage": "丁"}]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    sources = [SourceOptions(path=str(corpus)), SourceOptions(path=str(pairs))]
    lines, positives = load_texts(sources, encoder.tokenizer, tmp_path, maximum_bad_share=0.5)
    assert (len(lines.usable), lines.report.repeated) == (120, 5)
    assert (len(positives.usable), positives.report.repeated, positives.report.bad) == (1, 1, 1)
    assert positives.report.faults == ["pairs.jsonl:3: positive holds no text"]
    again = load_texts(sources[:1], encoder.tokenizer, tmp_path)[0]
    assert (again.rows[0], again.report.rows) == (lines.rows[0], lines.report.rows)
    with pytest.raises(DataError, match=r"1 of 3 rows of pairs\.jsonl are bad"):
        load_texts(sources[1:], encoder.tokenizer, tmp_path)


# -- whole runs -------------------------------------------------------------------------------------------------------


def make_recipe(tmp_path: Path, corpus: Path, model: dict[str, Any], *overrides: str) -> Recipe:
    stage = {
        "name": "pretrain",
        "objective": "retromae",
        "steps": 8,
        "batch": {"queries": 16},
        "data": {"sources": [{"path": str(corpus)}]},
        "optimizer": {"learning_rate": 3e-3},
        "memory": {"chunk_tokens": 128},
    }
    tree = {
        "output_dir": str(tmp_path / "run"),
        "cache_dir": str(tmp_path / "cache"),
        "device": "cpu",
        "model": model,
        "stages": [stage],
        "validation": {"share": 0.1},
        "evaluation": {"at_start": True},
        "logging": {"every_steps": 2},
    }
    return Recipe.parse(tree, overrides)


def read_history(recipe: Recipe) -> list[dict[str, float]]:
    (file,) = Path(recipe.output_dir).glob("stages/1-*/history.json")
    history: list[dict[str, float]] = json.loads(file.read_text())["log_history"]
    return history


def test_the_loss_falls_on_held_out_texts(tmp_path: Path, corpus: Path) -> None:
    shape = {"transformer": {"hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.0, "vocabulary": {"size": 100}}}
    overrides = ["stages.0.steps=40", "stages.0.memory.chunk_tokens=null", "stages.0.optimizer.learning_rate=0.01"]
    recipe = make_recipe(tmp_path, corpus, shape, *overrides)
    result = train(recipe)
    losses = [entry["eval_loss"] for entry in read_history(recipe) if "eval_loss" in entry]
    assert losses[0] == pytest.approx(2 * math.log(70), rel=0.2)  # two guesses among some 70 tokens
    assert losses[-1] < losses[0] - 1.5
    assert result.stages[0].scores == {"loss": losses[-1]}
    encoder = PEGEncoder(result.folder)
    assert encoder.encode_documents(["花呗"]).shape == (1, 32)
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    assert "40 steps of 16 texts, retromae loss." in card


@pytest.mark.parametrize("origin", ["folder", "new"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    tmp_path: Path, corpus: Path, tiny_bert: Path, origin: str
) -> None:
    """Dropout on; decoder and head are in the checkpoint too. A learned vocabulary comes back from its folder."""
    model: dict[str, Any] = {"path": str(tiny_bert), "pooling": "cls"}
    if origin == "new":
        model = {"transformer": {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": {"size": 100}}}
    straight = make_recipe(tmp_path, corpus, model)
    stopped = make_recipe(tmp_path, corpus, model, f"output_dir={tmp_path / 'stopped'}")
    train(straight)
    first = train(stopped, on_log=lambda entry: entry["step"] == 4)
    assert first.interrupted
    train(stopped, resume=True)
    weights = [Path(recipe.output_dir) / "model.safetensors" for recipe in (straight, stopped)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [e.get("loss") for e in read_history(straight)] == [e.get("loss") for e in read_history(stopped)]


def test_chunks_do_not_change_the_gradient_of_a_batch(model: RetroMAE, batch: TextBatch) -> None:
    gradients = []
    for batch_tokens in (16, 10_000):
        model.zero_grad()
        MaskedStep(model, batch_tokens=batch_tokens)(batch)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(*gradients, strict=True))


def test_a_stage_of_pairs_goes_on_from_the_pretrained_model(tmp_path: Path, corpus: Path, tiny_bert: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"query": f"{a}{b}怎么办", "positive": f"关于{a}{b}的回答"} for a in WORDS[:8] for b in WORDS[8:16]]
    pairs.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    recipe = make_recipe(tmp_path, corpus, {"path": str(tiny_bert), "pooling": "cls"})
    second = {
        "name": "contrastive",
        "steps": 2,
        "batch": {"queries": 8},
        "data": {"sources": [{"path": str(pairs)}]},
        "optimizer": {"learning_rate": 1e-3},
    }
    tree = recipe.model_dump(mode="json")
    result = train(Recipe.parse({**tree, "stages": [*tree["stages"], second]}))
    assert [stage.name for stage in result.stages] == ["pretrain", "contrastive"]
    assert "ndcg@10" in result.stages[1].scores


def test_a_loss_that_is_no_number_dumps_the_texts(
    tmp_path: Path, corpus: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, corpus, {"path": str(tiny_bert)}, "stages.0.optimizer.learning_rate=1e30")
    with pytest.raises(TrainingError, match=r"the loss is|gradient's norm"):
        train(recipe)
    (dump,) = Path(recipe.output_dir).glob("stages/*/bad-batch-*.jsonl")
    assert {"file", "row", "text"} == set(json.loads(dump.read_text(encoding="utf-8").splitlines()[0]))


def test_a_dry_run_counts_texts(tmp_path: Path, corpus: Path, tiny_bert: Path) -> None:
    lines = list(estimate_run(make_recipe(tmp_path, corpus, {"path": str(tiny_bert)})).lines())
    assert any("steps of 16 texts" in line for line in lines)
    assert not any("candidates" in line for line in lines)


# -- recipes that cannot be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.batch.negatives=2", "no hard negatives"),
        ("stages.0.loss.temperature=0.1", "no use of loss.temperature"),
        ("stages.0.memory.loss_tile=64", "no use of memory.loss_tile"),
        ("stages.0.data.transforms=[{kind: soft_augmentation}]", "no use of data.transforms"),
        ("stages.0.data.sources.0.columns.query=q", "columns.positive only"),
        ("stages.0.data.sources.0.minimum_label=1", "columns.positive only"),
        ("stages.0.retromae.encoder_masked=0", "greater than 0"),
        ("stages.0.objective=contrastive", "retromae belongs to objective retromae"),
        ("model={static: {dimension: 8}}", "model.static has none"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, corpus: Path, override: str, message: str) -> None:
    overrides = [override]
    if "objective" in override:
        overrides.insert(0, "stages.0.retromae.decoder_masked=0.7")
    with pytest.raises(RecipeError, match=message):
        make_recipe(tmp_path, corpus, {"path": "somewhere"}, *overrides)


def test_a_static_model_that_is_loaded_is_refused(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(RecipeError, match="mask token"):
        train(make_recipe(tmp_path, corpus, {"path": "peg-mini"}))


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(tmp_path: Path, corpus: Path) -> None:
    """Each batch is shared out and its loss is one loss over all tokens."""
    shape = {"transformer": {"hidden_size": 16, "layers": 1, "heads": 2, "dropout": 0.0, "vocabulary": {"size": 100}}}
    weights = []
    for ranks in (1, 2):
        recipe = make_recipe(tmp_path, corpus, shape, f"output_dir={tmp_path / f'ranks-{ranks}'}", "evaluation={}")
        file = tmp_path / f"ranks-{ranks}.yaml"
        file.write_text(recipe.dump(), encoding="utf-8")
        finish(launch(ranks, str(file)))
        weights.append(load_file(Path(recipe.output_dir) / "model.safetensors"))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=1e-3)
