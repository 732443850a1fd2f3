"""The reader: its texts, its arithmetic against torch's, and what its training rests on."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_peg_mini
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from peg_rag.answering.passages import passages_of
from peg_rag.answering.reading import ContextualStatement, StatementReader, describe_statement, load_reader
from peg_rag.answering.statements import statements_of
from peg_rag.errors import DamagedModel
from peg_rag.hits import Hit

GPU = Path(__file__).resolve().parent.parent / "train" / "gpu"
SHAPE = {"vocabulary": 40, "width": 128, "layers": 2, "heads": 2, "inner": 256}


@pytest.fixture(scope="module")
def recipe() -> Any:
    sys.path.insert(0, str(GPU))
    try:
        import reader
    finally:
        sys.path.remove(str(GPU))
    return reader


@pytest.fixture(scope="module")
def network(recipe: Any) -> Any:
    torch.manual_seed(4)
    model = recipe.Encoder(**SHAPE).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape).half() * 0.2)
    return model


@pytest.fixture(scope="module")
def reader(recipe: Any, network: Any, tmp_path_factory: pytest.TempPathFactory) -> StatementReader:
    """A small network with random weights, in the folder that `unpack_reader.py` makes."""
    folder = tmp_path_factory.mktemp("reader")
    recipe.save_weights(network, SHAPE, folder / "trained.safetensors")
    letters = {letter: number for number, letter in enumerate("PUCSM一二三四五六七八九十: |…")}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="U"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "letters.json"))
    sys.path.insert(0, str(GPU))
    try:
        import unpack_reader
    finally:
        sys.path.remove(str(GPU))
    unpack_reader.write_folder(folder / "trained.safetensors", folder / "letters.json", folder / "made")
    return StatementReader(folder / "made")


words = st.text("一二三四五六七八九十: |", max_size=12)


@settings(max_examples=30, deadline=None)
@given(words, st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_what_numpy_computes_without_padding_is_what_torch_computes_row_by_row(
    network: Any, reader: StatementReader, question: str, texts: list[tuple[str, str]]
) -> None:
    statements = [ContextualStatement(*pair) for pair in texts]
    expected = []
    with torch.no_grad():
        for ids, types in reader._encode(question, statements):
            padded = torch.zeros(1, len(ids) + 3, dtype=torch.long)
            padded[0, : len(ids)] = torch.from_numpy(ids)
            padded_types = torch.zeros_like(padded)
            padded_types[0, : len(ids)] = torch.from_numpy(types)
            expected.append(network.score_rows(padded, padded_types).item())
    np.testing.assert_allclose(reader.read(question, statements), expected, atol=2e-4)


def test_nothing_to_read_is_no_error(reader: StatementReader) -> None:
    assert reader.read("一", []).shape == (0,)


def test_long_texts_are_cut_before_the_places_run_out() -> None:
    long = "电" * 5_000
    odds = load_reader().read(long, [ContextualStatement(long, long), ContextualStatement("是", "")])
    assert np.isfinite(odds).all()


def test_a_cell_is_read_with_its_column_in_its_row() -> None:
    hit = Hit("1", "编号: 3号机 | 状态: 待配件 | 负责人: 王五", 1.0, metadata={"source": "设备台账.csv", "title": ""})
    [passage] = passages_of([hit])
    state = list(statements_of(hit.text))[1]
    described = describe_statement(passage, state)
    assert described.statement == "状态: 待配件"
    assert described.context == "设备台账 | 编号: 3号机 | 负责人: 王五"


def test_a_sentence_is_read_between_its_neighbours() -> None:
    hit = Hit("1", "晚上关门。钥匙交给门卫。周末不开。", 1.0, metadata={"source": "规定.txt", "title": "钥匙"})
    [passage] = passages_of([hit])
    described = describe_statement(passage, list(statements_of(hit.text))[1])
    assert described.statement == "钥匙交给门卫。"
    assert "晚上关门。 … 周末不开。" in described.context
    assert "规定" in described.context
    assert "钥匙" in described.context


def test_a_damaged_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"layers": 1}))
    with pytest.raises(DamagedModel, match="install peg-rag again"):
        StatementReader(tmp_path)


def test_statements_compete_with_one_another_and_with_nothing(recipe: Any) -> None:
    scores = torch.tensor([1.0, -0.5, 2.0, 0.3, -1.0], requires_grad=True)
    right = torch.tensor([True, False, False, False, False])
    owner = torch.tensor([0, 0, 0, 1, 1])
    weights = torch.tensor([1.0, 0.5])
    loss = recipe.competition_loss(scores, right, owner, weights)
    first = -np.log(np.exp(1.0) / (np.exp([1.0, -0.5, 2.0]).sum() + 1))
    second = -np.log(1 / (np.exp([0.3, -1.0]).sum() + 1))  # nothing answers
    assert loss.item() == pytest.approx((first + 0.5 * second) / 1.5, rel=1e-5)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad[0] < 0 < scores.grad[2]


def test_masked_runs_hide_what_they_ask_for(recipe: Any) -> None:
    ids = np.random.default_rng(1).integers(5, 40, size=(50, 60))
    ids[:, 0] = recipe.CLS
    ids[:, 50:] = recipe.PAD
    masked, places, labels = recipe.mask_runs(ids, np.random.default_rng(2))
    assert (ids.reshape(-1)[places] == labels).all()
    assert (labels >= 5).all()
    assert 0.15 < len(places) / (50 * 49) < 0.3
    assert (masked.reshape(-1)[places] == recipe.MASK).mean() > 0.8
    untouched = np.setdiff1d(np.arange(ids.size), places)
    assert (masked.reshape(-1)[untouched] == ids.reshape(-1)[untouched]).all()


def test_the_bundled_reader_is_whole() -> None:
    said = ContextualStatement("状态: 已修好", "设备台账 | 编号: 3号机 | 报修人: 王五")
    other = ContextualStatement("报修人: 王五", "设备台账 | 编号: 3号机 | 状态: 已修好")
    odds = load_reader().read("3号机修好没有", [said, other])
    assert odds[0] > odds[1]


def test_only_permitted_sources_are_packed() -> None:
    sys.path.insert(0, str(GPU))
    try:
        import pack
    finally:
        sys.path.remove(str(GPU))
    assert set(pack.EXCLUDED) == test_peg_mini.RESEARCH_ONLY
