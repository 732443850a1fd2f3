"""The reader: its texts, its arithmetic against torch's, and what its training rests on."""

import importlib
import json
import os
import shutil
import struct
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_peg_mini
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from peg_rag.answering.passages import passages_of, start_of_body
from peg_rag.answering.question import parse_question
from peg_rag.answering.reading import READER, ContextualStatement, StatementReader, describe_statement, load_reader
from peg_rag.answering.statements import statements_of
from peg_rag.errors import DamagedModel
from peg_rag.hits import Hit
from peg_rag.models import bundled_path

TRAIN = Path(__file__).resolve().parent.parent / "train"
LETTERS = ["<s>", "<pad>", "</s>", "<unk>", *"一二三四五六七八九十: |…"]
SHAPE: dict[str, Any] = {
    "vocab_size": len(LETTERS),
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 1,
}


def load_script(name: str) -> Any:
    sys.path.insert(0, str(TRAIN))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TRAIN))


@pytest.fixture(scope="module")
def recipe() -> Any:
    return load_script("reader")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with random weights, as fine-tuning begins with one."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("start")
    model = BertModel(BertConfig(**SHAPE), add_pooling_layer=False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(LETTERS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def trained(recipe: Any, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fit` leaves, and the asset that `write` makes of it."""
    out = tmp_path_factory.mktemp("reader")
    save_file(recipe.Reader(start).trained_weights(), out / "trained.safetensors")
    recipe.write(Namespace(start=start, out=out, folder=out / "asset"))
    return out


def test_the_asset_is_unpacked_to_go_on_from(recipe: Any, trained: Path, tmp_path: Path) -> None:
    """What `unpack` makes of the asset is the asset again when `write` has made it one."""
    options = Namespace(start=tmp_path / "start", out=tmp_path / "out", folder=trained / "asset")
    recipe.unpack(options)
    recipe.write(Namespace(**(vars(options) | {"folder": tmp_path / "asset"})))
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "asset" / file).read_bytes() == (trained / "asset" / file).read_bytes()


def test_the_mean_of_several_runs_is_that_of_their_weights(recipe: Any, start: Path, tmp_path: Path) -> None:
    weights = recipe.Reader(start).trained_weights()
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        shifted = {name: weight + number for name, weight in weights.items()}
        save_file(shifted, tmp_path / str(number) / "trained.safetensors", metadata={"left_out": "0"})
    runs = [tmp_path / "1", tmp_path / "2"]
    recipe.average(Namespace(start=start, runs=runs, out=tmp_path / "mean"))
    for name, weight in load_file(tmp_path / "mean" / "trained.safetensors").items():
        torch.testing.assert_close(weight, weights[name] + 1.5)
    save_file(weights, tmp_path / "2" / "trained.safetensors", metadata={"left_out": "1"})
    with pytest.raises(SystemExit, match="left out the same"):
        recipe.average(Namespace(start=start, runs=runs, out=tmp_path / "mean"))


@pytest.fixture(scope="module")
def reader(trained: Path) -> StatementReader:
    return StatementReader(trained / "asset")


@pytest.fixture(scope="module")
def network(recipe: Any, start: Path, trained: Path) -> Any:
    """The network in torch with the weights that eight bits keep."""
    model = recipe.load_reader(start, trained)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "position" not in name and "type" not in name:
                scale = weight.abs().max(dim=1, keepdim=True).values / 127 + 1e-12
                weight.copy_((weight / scale).round() * scale)
    return model


words = st.text("一二三四五六七八九十: |", max_size=12)


@settings(max_examples=30, deadline=None)
@given(words, st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_what_numpy_computes_without_padding_is_what_torch_computes_row_by_row(
    network: Any, reader: StatementReader, question: str, texts: list[tuple[str, str]]
) -> None:
    statements = [ContextualStatement(question, *pair) for pair in texts]
    expected = []
    with torch.no_grad():
        for ids in reader._encode(statements):
            padded = torch.tensor([[*ids.tolist(), 1, 1, 1]])
            states = network.bert(padded, attention_mask=(padded != 1).long()).last_hidden_state[:, 0]
            expected.append(network.score(torch.tanh(network.pooler(states))).item())
    np.testing.assert_allclose(reader.read(statements), expected, atol=5e-4)


def test_rows_of_a_batch_are_scored_each_for_itself(recipe: Any, start: Path) -> None:
    torch.manual_seed(1)
    model = recipe.Reader(start).eval()
    rows = [[0, *range(4, 4 + length), 2] for length in (9, 2, 14, 5)]
    with torch.no_grad():
        together = model(rows)
        alone = torch.cat([model([row]) for row in rows])
    torch.testing.assert_close(together, alone, atol=0.02, rtol=0.02)  # bfloat16


def test_what_is_trained_computes_what_the_transformers_library_does(recipe: Any, start: Path) -> None:
    torch.manual_seed(1)
    model = recipe.Reader(start).eval()
    rows = [[0, *range(4, 4 + length), 2] for length in (9, 2, 14, 5)]
    ids = torch.tensor([row + [1] * (16 - len(row)) for row in rows])
    with torch.no_grad():
        states = model.bert(ids, attention_mask=(ids != 1).long()).last_hidden_state[:, 0]
        expected = model.score(torch.tanh(model.pooler(states))).squeeze(1)
        torch.testing.assert_close(model(rows), expected, atol=0.02, rtol=0.02)  # bfloat16


def test_training_lowers_the_loss_and_goes_on_where_it_was_stopped(
    recipe: Any, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_reading(tmp_path / "reading.npz")
    monkeypatch.setattr(recipe, "QUESTIONS_OF_STEP", 8)
    monkeypatch.setattr(recipe, "SAVED_EVERY", 8)
    options = Namespace(
        data=data,
        start=start,
        begin=None,
        rate=2e-3,
        dropout=0.1,
        left_out=0,
        questions=None,
        passes=1,
        seed=0,
        device="cpu",
    )
    whole = recipe.Trainer(Namespace(**vars(options), out=tmp_path / "whole"))
    losses = whole.fit()
    assert np.mean(losses[-4:]) < np.mean(losses[:4])

    first = recipe.Trainer(Namespace(**vars(options), out=tmp_path / "parts"))
    save = first._save_state

    def save_and_stop() -> None:
        save()
        raise KeyboardInterrupt

    monkeypatch.setattr(first, "_save_state", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    second = recipe.Trainer(Namespace(**vars(options), out=tmp_path / "parts"))
    assert second.step == 8
    second.fit()
    for name, weight in whole.model.trained_weights().items():
        torch.testing.assert_close(weight, second.model.trained_weights()[name])
    options.seed = 1
    with pytest.raises(SystemExit, match="another --out"):
        recipe.Trainer(Namespace(**vars(options), out=tmp_path / "parts"))

    options.begin = tmp_path / "whole"
    options.rate = 1e-4
    again = recipe.Trainer(Namespace(**vars(options), out=tmp_path / "again"))
    assert np.mean(again.fit()) < np.mean(losses[:4])


def test_two_ranks_learn_what_one_process_learns(recipe: Any, start: Path, tmp_path: Path) -> None:
    data = write_reading(tmp_path / "reading.npz", times=4)
    weights = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        fit = [
            "fit",
            f"--data={data}",
            f"--start={start}",
            f"--out={out}",
            "--rate=1e-3",
            "--dropout=0",
            "--device=cpu",
        ]
        command = [*launch, "--", str(TRAIN / "reader.py"), *fit]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        weights.append(load_file(out / "trained.safetensors"))
    before = recipe.Reader(start).trained_weights()
    for name, weight in weights[0].items():
        if name.startswith("bert"):
            moved = (weight - before[name]).norm()
            assert (weight - weights[1][name]).norm() < 0.25 * moved  # bfloat16 rounds each part by itself


def test_of_the_drawn_rows_the_right_one_and_the_likeliest_others_compete(recipe: Any) -> None:
    scores = torch.tensor([0.5, -3.0, 2.0, 1.0, -1.0])
    places, loss = recipe.choose_rows(scores, torch.tensor([False, True, False, False, False]))
    assert places.tolist() == [1, 2, 3]
    assert loss == pytest.approx(float(torch.cat([scores, torch.zeros(1)]).logsumexp(0)) + 3.0)
    places, loss = recipe.choose_rows(scores, torch.zeros(5, dtype=torch.bool))
    assert places.tolist() == [0, 2, 3]
    assert loss == pytest.approx(float(torch.cat([scores, torch.zeros(1)]).logsumexp(0)))


def test_of_the_questions_without_an_answer_some_are_learned_from(recipe: Any, tmp_path: Path) -> None:
    file = write_reading(tmp_path / "reading.npz")
    arrays = dict(np.load(file))
    arrays["right"].reshape(160, 3)[:100] = False
    np.savez(file, **arrays)
    numbers = recipe.Reading(file).choose_questions(0, np.random.default_rng(0))
    assert not (numbers % 5 == 0).any()
    assert (numbers >= 100).sum() == 48  # all of four folds that are answerable
    assert (numbers < 100).sum() == 12
    assert len(set(numbers)) == 60


def test_questions_that_are_known_give_no_gradient(
    recipe: Any, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Namespace(
        data=write_reading(tmp_path / "reading.npz"),
        start=start,
        begin=None,
        rate=1e-3,
        dropout=0.1,
        left_out=0,
        questions=None,
    )
    trainer = recipe.Trainer(Namespace(**vars(options), passes=1, seed=0, device="cpu", out=tmp_path / "out"))
    drawn = trainer._draw_questions(0)
    gradients = []
    for known_loss in (0.0, 100.0):
        monkeypatch.setattr(recipe, "KNOWN_LOSS", known_loss)
        trainer.optimizer.zero_grad()
        loss, rows = trainer._measure_gradients(drawn)
        gradients.append((loss.item(), rows, trainer.model.score.weight.grad))
    assert gradients[0][0] == gradients[1][0] > 0
    assert gradients[0][1] > 0
    assert gradients[0][2].abs().sum() > 0
    assert gradients[1][1:] == (0, None)


def write_reading(file: Path, times: int = 1) -> Path:
    """160 questions of one piece, which the statement with the same piece answers; several times over."""
    pieces = np.arange(4, 14)
    count = 160 * times
    questions = np.tile(pieces, 16 * times) - 4
    statements = np.stack([questions, (questions + 1) % 10, (questions + 3) % 10], axis=1).reshape(-1)
    np.savez(
        file,
        tokens=pieces.astype(np.uint16),
        lengths=np.ones(10, dtype=np.uint16),
        questions=np.repeat(questions, 3),
        folds=np.arange(count) % 5,
        weights=np.ones(count, dtype=np.float32),
        sizes=np.full(count, 3),
        statements=statements,
        contexts=statements,
        right=np.tile([True, False, False], count),
    )
    return file


def test_nothing_to_read_is_no_error(reader: StatementReader) -> None:
    assert reader.read([]).shape == (0,)


def test_long_texts_are_cut_before_the_places_run_out() -> None:
    long = "电" * 5_000
    odds = load_reader().read([ContextualStatement(long, long, long), ContextualStatement("", "是", "")])
    assert np.isfinite(odds).all()


def describe(question: str, hit: Hit, number: int) -> ContextualStatement:
    [passage] = passages_of([hit])
    statements = list(statements_of(hit.text, start_of_body(hit)))
    return describe_statement(parse_question(question), passage, statements[number])


def test_a_cell_is_read_with_its_column_in_its_row() -> None:
    hit = Hit("1", "编号: 3号机 | 状态: 待配件 | 负责人: 王五", 1.0, metadata={"source": "设备台账.csv", "title": ""})
    described = describe("3号机修好没", hit, 1)
    assert described.statement == "状态: 待配件"
    assert described.context == "设备台账 | 编号: 3号机 | 负责人: 王五"


def test_a_sentence_is_read_between_its_neighbours() -> None:
    text = "规定 > 钥匙\n晚上关门。钥匙交给门卫。周末不开。"
    hit = Hit("1", text, 1.0, metadata={"source": "规定.txt", "title": "规定 > 钥匙"})
    described = describe("钥匙给谁", hit, 1)
    assert described.statement == "钥匙交给门卫。"
    assert described.context == "规定 > 钥匙 | 晚上关门。 … 周末不开。"


def test_of_a_long_row_the_cells_that_the_question_names_are_read() -> None:
    cells = [f"第{number}栏: {'电气安装' * 5}" for number in range(12)]
    text = " | ".join([*cells, "用途: 夜间备份", "管理地址: 10.30.3.21"])
    hit = Hit("1", text, 1.0, metadata={"source": "台账.csv", "title": ""})
    described = describe("做备份的那台，管理地址是多少", hit, 13)
    assert described.statement == "管理地址: 10.30.3.21"
    assert described.context.startswith("台账 | 第0栏: ")
    assert described.context.endswith(" | 用途: 夜间备份")
    assert len(described.context) < 140


def test_a_price_is_read_with_what_the_file_calls_by_the_name_of_its_column() -> None:
    price = Hit("1", "车型: 厢货 | 平常日: 780元 | 好日子: 960元", 1.0, metadata={"source": "价目.pdf"})
    rule = "“好日子”指逢六、逢八的日子以及每个月的最后三天。好日子只能改一次。"
    hits = [price, Hit("2", rule, 0.5, metadata={"source": "价目.pdf"}), Hit("3", "厢货（旧车）", 0.4)]
    statement = list(statements_of(price.text))[2]
    described = describe_statement(parse_question("月底最后一天搬多少钱"), passages_of(hits)[0], statement)
    assert described.statement == "好日子: 960元"
    assert described.context == ("价目 | 好日子: 逢六、逢八的日子以及每个月的最后三天 | 车型: 厢货 | 平常日: 780元")


def test_what_is_read_anyway_is_not_explained_again() -> None:
    text = "套餐: 家庭票（两大一小） | 价: 398元\n家庭票（两大一小）要一起进。"
    described = describe("家庭票多少钱", Hit("1", text, 1.0), 1)
    assert described.context.count("两大一小") == 1


def test_headings_that_repeat_the_name_of_the_file_are_read_once() -> None:
    text = "绿洲花艺养护与订单 > 鲜切花\n花: 玫瑰 | 保鲜: 漂白片"
    metadata = {"source": "绿洲花艺养护与订单.md", "title": "绿洲花艺养护与订单 > 鲜切花"}
    described = describe("玫瑰放什么", Hit("1", text, 1.0, metadata=metadata), 1)
    assert described.context == "绿洲花艺养护与订单 > 鲜切花 | 花: 玫瑰"


def test_a_long_cell_leaves_room_for_the_others() -> None:
    text = f"名: 甲 | 说明: {'甲说了很多话。' * 60} | 价: 5元"
    described = describe("甲的价", Hit("1", text, 1.0), 2)
    assert described.context.startswith(" | 名: 甲")
    long = describe("说了很多话", Hit("1", text, 1.0), 2)
    assert len(long.context) < 140


def test_the_fields_of_a_form_are_read_together() -> None:
    fields = ("送粮人: 乜长根", "水分: 14.3%")
    hits = [Hit(text, text, 1.0, metadata={"source": "检验单.pdf"}) for text in fields]
    [statement] = statements_of(fields[1])
    described = describe_statement(parse_question("水分多高"), passages_of(hits)[1], statement)
    assert described.context == "检验单 | 送粮人: 乜长根"


def test_a_damaged_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"layers": 1}))
    with pytest.raises(DamagedModel, match="install peg-rag again"):
        StatementReader(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"format": 1}, "format 1"), ({"layers": 6}, r"layers\.5\.attended"), ({"heads": 3}, "3 heads")],
)
def test_files_that_do_not_fit_one_another_are_said(
    trained: Path, tmp_path: Path, change: dict[str, int], says: str
) -> None:
    shutil.copytree(trained / "asset", tmp_path / "asset")
    config = tmp_path / "asset" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(DamagedModel, match=says):
        StatementReader(tmp_path / "asset")


def test_another_tokenizer_is_said(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "asset", tmp_path / "asset")
    shutil.copyfile(bundled_path(READER) / "tokenizer.json", tmp_path / "asset" / "tokenizer.json")
    with pytest.raises(DamagedModel, match="18 vectors of 64 for 28032 pieces"):
        StatementReader(tmp_path / "asset")


def test_statements_compete_with_one_another_and_with_nothing(recipe: Any) -> None:
    scores = torch.tensor([1.0, -0.5, 2.0, 0.3, -1.0], requires_grad=True)
    right = torch.tensor([True, False, False, False, False])
    owner = torch.tensor([0, 0, 0, 1, 1])
    weights = torch.tensor([1.0, 0.5])
    loss = recipe.measure_loss(scores, right, owner, weights)
    first = -np.log(np.exp(1.0) / (np.exp([1.0, -0.5, 2.0]).sum() + 1))
    second = -np.log(1 / (np.exp([0.3, -1.0]).sum() + 1))  # nothing answers
    assert loss.item() == pytest.approx((first + 0.5 * second) / 1.5, rel=1e-5)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad[0] < 0 < scores.grad[2]


def test_the_bundled_reader_is_whole() -> None:
    question = "3号机修好没有"
    said = ContextualStatement(question, "状态: 已修好", "设备台账 | 编号: 3号机 | 报修人: 王五")
    other = ContextualStatement(question, "报修人: 王五", "设备台账 | 编号: 3号机 | 状态: 已修好")
    odds = load_reader().read([said, other])
    assert odds[0] > odds[1]


def test_the_pieces_are_chosen_on_permitted_sources() -> None:
    assert load_script("reader_start").RESEARCH_ONLY == test_peg_mini.RESEARCH_ONLY


def test_four_bit_blocks_are_read() -> None:
    packed = load_script("reader_start").PackedWeights(pack_matrix())
    expected = np.concatenate([np.arange(-8, 8), np.arange(7, -9, -1)]) * 0.5
    np.testing.assert_array_equal(packed.read_matrix("emb.word", 1), expected[None].astype(np.float32))


def pack_matrix() -> bytes:
    """A file of one matrix, one block: its weights -8 … 7 and 7 … -8, halved."""
    lower = np.arange(16)
    block = struct.pack("<e", 0.5) + bytes((lower | ((15 - lower) << 4)).astype(np.uint8))
    header = b"E5S1" + struct.pack("<I7ifi", 1, 32, 0, 1, 64, 1, 8, 2, 1e-12, 32)
    tokenizer = struct.pack("<5iQ", 1, 0, 2, 1, 3, 1) + struct.pack("<2If", 0, 1, 0.0) + b"a" + struct.pack("<iI", 0, 0)
    name = b"emb.word"
    entry = struct.pack("<H", len(name)) + name + b"\x01"
    offset = len(header) + len(tokenizer) + 4 + len(entry) + 20
    return header + tokenizer + struct.pack("<i", 1) + entry + struct.pack("<IQQ", 32, offset, len(block)) + block


def test_the_licence_of_the_weights_it_begins_with_lies_beside_them() -> None:
    licence = (bundled_path(READER) / "LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in licence
    assert "Microsoft" in licence
