"""The accelerator kit: its own encoder and BERT agree, runs resume, and the loss is the reference's."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from peg_rag import PEGEncoder
from peg_rag.training.model.encoder import load_encoder
from peg_rag.training.model.retromae import HiddenTexts, RetroMAE, draw_visible
from peg_rag.training.recipe import ModelOptions

KIT = Path(__file__).parents[1] / "train" / "gpu"
TEXTS = ["花呗怎么换银行卡", "故宫周一闭馆，门票要提前预约。", "差旅报销需要发票和行程单", "好"]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_kit_{name}", KIT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


small = load_script("small")
unpack = load_script("unpack")


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    characters = sorted(set("".join(TEXTS)))
    vocabulary = {
        token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    shape = {"vocabulary": 64, "width": 64, "layers": 2, "heads": 1, "inner": 256}
    model = small.Encoder(**shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path / "run"
    folder.mkdir()
    weights = {name: weight.detach().half() for name, weight in model.state_dict().items()}
    for name in ("encoder", "cross"):
        save_file(weights, folder / f"{name}.safetensors", metadata={"shape": json.dumps(shape)})
    return folder


@pytest.fixture
def texts(tokenizer_file: Path) -> Any:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    rows = [tokenizer.encode(text).ids for text in TEXTS]
    tokens = np.concatenate([np.array(row, dtype=np.uint16) for row in rows])
    return small.Texts(tokens, np.array([len(row) for row in rows]), torch.device("cpu"))


def test_unpacked_encoder_gives_the_vectors_of_the_kit(
    run: Path, texts: Any, tokenizer_file: Path, tmp_path: Path
) -> None:
    unpack.write_encoder(tmp_path / "encoder", run, tokenizer_file)
    scorer = small.Scorer(texts, torch.device("cpu"), tokens=64)
    scorer.load(run / "encoder.safetensors")
    with torch.no_grad():
        expected = scorer.encode(texts.rows(np.arange(len(TEXTS)))).numpy()
    with PEGEncoder(tmp_path / "encoder", dtype="float32") as encoder:
        assert encoder.spec.pooling == "mean"
        np.testing.assert_allclose(encoder.encode_documents(TEXTS), expected, atol=2e-5)


def test_unpacked_cross_encoder_gives_the_scores_of_the_kit(
    run: Path, texts: Any, tokenizer_file: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    unpack.write_cross_encoder(tmp_path / "cross", run, tokenizer_file)
    scorer = small.Scorer(texts, torch.device("cpu"), tokens=64)
    scorer.load(run / "cross.safetensors")
    pairs = [(0, 1), (2, 0), (3, 2)]
    with torch.no_grad():
        expected = scorer.score_pairs(np.array([q for q, _ in pairs]), np.array([d for _, d in pairs]))
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "cross")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "cross", dtype=torch.float32)
        features = tokenizer(
            [TEXTS[q] for q, _ in pairs], [TEXTS[d] for _, d in pairs], padding=True, return_tensors="pt"
        )
        scores = model.eval()(**features).logits.squeeze(1)
    torch.testing.assert_close(scores, expected, atol=2e-4, rtol=1e-4)


def test_padding_leaves_out_the_gap(texts: Any) -> None:
    rows = texts.rows(np.array([1]))
    whole = texts.pad(rows, 510)[0]
    cut = small.Rows(rows.starts, rows.lengths - 3, np.array([2]), np.array([3]))
    ids = texts.pad(cut, 510)[0]
    length = int(rows.lengths[0])
    expected = [int(whole[0]), *whole[1:3].tolist(), *whole[6 : length + 1].tolist(), small.SEP]
    assert ids[: len(expected)].tolist() == expected


def test_masked_loss_is_that_of_the_package(run: Path, texts: Any, tokenizer_file: Path, tmp_path: Path) -> None:
    """The same weights, the same hidden tokens and the same places seen."""
    unpack.write_encoder(tmp_path / "encoder", run, tokenizer_file)
    package = RetroMAE(load_encoder(ModelOptions(path=str(tmp_path / "encoder"))), small.MASK, 0.5).eval()
    scorer = small.Scorer(texts, torch.device("cpu"), tokens=64)
    scorer.load(run / "encoder.safetensors")
    kit = scorer.model.float()
    for ours, theirs in ((package.head.transform, kit.head), (package.head.norm, kit.head_norm)):
        ours.load_state_dict(theirs.state_dict())
    names = ("attended", "attention_norm", "up", "down", "output_norm")
    for name in names:
        getattr(package.decoder, name).load_state_dict(getattr(kit.decoder, name).state_dict())
    parts = zip(kit.decoder.qkv.weight.chunk(3), kit.decoder.qkv.bias.chunk(3), strict=True)
    for name, (weight, bias) in zip(("query", "key", "value"), parts, strict=True):
        getattr(package.decoder, name).load_state_dict({"weight": weight, "bias": bias})
    ids = texts.pad(texts.rows(np.arange(len(TEXTS))), 510)
    ordinary = ids > small.MASK
    hidden = ordinary & (torch.arange(ids.shape[1]) % 3 == 1)
    words = torch.randint(0, 2**31, (*ids.shape, 2), generator=torch.Generator().manual_seed(2))
    package_texts = HiddenTexts(ids, ids != small.PAD, ordinary, hidden, words)
    with torch.no_grad():
        losses = package(package_texts)
        loss = small.masked_loss(kit, ids, hidden, draw_visible(package_texts, 0.5), ordinary)
        visible = small.visible_places(ids, torch.rand(*ids.shape, ids.shape[1]) >= 0.0)
    assert loss.item() == pytest.approx(
        float(losses.encoder / hidden.sum() + losses.decoder / ordinary.sum()), abs=1e-3
    )
    assert torch.equal(visible, draw_visible(package_texts, 0.0))


def test_a_masked_step_leaves_gradients(run: Path, texts: Any) -> None:
    trainer = small.Scorer(texts, torch.device("cpu"), tokens=64)
    trainer.load(run / "encoder.safetensors")
    torch.manual_seed(4)
    loss = trainer._masked_loss(texts.pad(texts.rows(np.arange(len(TEXTS))), 510))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(trainer.model.get_parameter(f"decoder.{name}.weight").grad.any() for name in ("qkv", "up", "down"))


def test_loss_hides_other_answers_of_the_same_question() -> None:
    torch.manual_seed(0)
    queries, documents = (torch.nn.functional.normalize(torch.randn(n, 8).double(), dim=1) for n in (4, 6))
    query_keys, document_keys = torch.tensor([1, 2, 1, 3]), torch.tensor([10, 11, 12, 13, 11, 14])
    loss = small.contrastive_loss(queries, documents, query_keys, document_keys)
    scores = (queries @ documents.T / small.TEMPERATURE).tolist()
    hidden = {(0, 2), (2, 0), (1, 4)}
    forward, backward = 0.0, 0.0
    for row in range(4):
        columns = [column for column in range(6) if (row, column) not in hidden]
        forward += np.logaddexp.reduce([scores[row][column] for column in columns]) - scores[row][row]
        others = [other for other in range(4) if (other, row) not in hidden]
        backward += np.logaddexp.reduce([scores[other][row] for other in others]) - scores[row][row]
    assert loss.item() == pytest.approx((forward + backward) / 8, abs=1e-9)


def test_optimizer_is_adamw() -> None:
    torch.manual_seed(0)
    ours, reference = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    reference.load_state_dict(ours.state_dict())
    optimizer = small.Optimizer(ours)
    groups = [{"params": [reference.weight], "weight_decay": 0.01}, {"params": [reference.bias], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), eps=1e-8)
    for step in range(5):
        batch = torch.randn(7, 5)
        for model in (ours, reference):
            model.zero_grad()
            (model(batch) ** 2).sum().backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step(0.01 / (step + 1))
        for group in adamw.param_groups:
            group["lr"] = 0.01 / (step + 1)
        adamw.step()
    torch.testing.assert_close(ours.weight, reference.weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.bias, reference.bias, atol=1e-6, rtol=1e-5)


def test_validation_is_ndcg_of_the_rankings(run: Path, texts: Any) -> None:
    generator = np.random.default_rng(3)
    lengths = generator.integers(2, 9, 90)
    tokens = generator.integers(5, 40, int(lengths.sum())).astype(np.uint16)
    store = small.Texts(tokens, lengths, torch.device("cpu"))
    scorer = small.Scorer(store, torch.device("cpu"), tokens=64)
    scorer.load(run / "encoder.safetensors")
    corpus, queries = generator.permutation(np.arange(10, 90)), np.arange(10)
    answers = np.stack([queries, corpus[:10]], axis=1)
    rows = np.stack([generator.permutation(80)[:50] for _ in queries])
    bm25 = -np.sort(-generator.random((10, 50)))
    data = {"queries": queries, "corpus": corpus, "answers": answers, "rows": rows, "scores": bm25}
    source = small.Source("a-b", *[np.zeros(0, np.int64)] * 4, None, data)
    with torch.no_grad():
        table = small.validate(source, scorer, None)
        vectors = scorer.encode(store.rows(np.arange(90))).numpy()
    expected = {"dense": 0.0, "bm25": 0.0}
    for query in queries:
        dense = np.argsort(-(vectors[corpus] @ vectors[query]), kind="stable")[:10].tolist()
        for name, ranking in {"dense": dense, "bm25": rows[query][:10].tolist()}.items():
            expected[name] += 1 / np.log2(ranking.index(query) + 2) / 10 if query in ranking else 0.0
    assert table["dense"] == pytest.approx(expected["dense"], abs=1e-6)
    assert table["bm25"] == pytest.approx(expected["bm25"], abs=1e-6)
