"""The bundled model: what it may have been made of, how it opens, and what it can do."""

import importlib.util
import json
import re
import sys
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import zstandard

from peg_rag import PEGEncoder
from peg_rag.evaluation import evaluate, load_beir
from peg_rag.models import bundled_path

REPO = Path(__file__).resolve().parent.parent
FOLDER = bundled_path("peg-mini")
RESEARCH_ONLY = {
    "reading-c3",
    "encyclopedia-squad_zh",
    "finance-afqmc",
    "general-cinlid",
    "law-lawyer_llama_qa",
    "law-lawyer_llama_article",
}
TEXTS = [
    "如何更换花呗绑定银行卡",
    "花呗更改绑定银行卡",
    "北京故宫的门票多少钱？",
    "ＡＢＣ Python 3.11",
    "鿿",
    "长" * 2_000,
]


@pytest.fixture(scope="module")
def encoder() -> PEGEncoder:
    return PEGEncoder("peg-mini")


def first_recipe():
    """`train/peg_mini_first.py` as a module."""
    spec = importlib.util.spec_from_file_location("peg_mini_first", REPO / "train" / "peg_mini_first.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peg_mini_first"] = module
    spec.loader.exec_module(module)
    return module


def test_only_permitted_sources() -> None:
    sources = first_recipe().SOURCES
    assert len(set(sources)) == len(sources) >= 20
    assert not RESEARCH_ONLY & set(sources)


def test_the_sources_and_the_excluded_are_all_there_is(data_dir: Path) -> None:
    files = {path.name.removesuffix(".jsonl.zst") for path in (data_dir / "pairs").glob("*.jsonl.zst")}
    assert files == RESEARCH_ONLY | set(first_recipe().SOURCES)
    rules = (data_dir / "README.md").read_text(encoding="utf-8")
    left_out = re.search(r"research-only, academic or non-commercial: leave out (.*?)\. Ablations", rules)
    assert set(re.findall(r"`([\w-]+)`", left_out[1])) == RESEARCH_ONLY


def test_the_script_trains_from_pairs_to_an_open_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = first_recipe()
    (tmp_path / "pairs").mkdir()
    cities = ["北京", "上海", "广州", "深圳", "杭州", "成都", "武汉", "西安"]
    things = ["门票", "酒店", "地铁", "博物馆", "早餐", "医院", "大学", "机场", "公园", "图书馆"]
    rows = [
        {"query": f"{city}{thing}怎么样", "positive": f"这里介绍{city}的{thing}", "negatives": [f"别处的{thing}"]}
        for city in cities
        for thing in things
    ]
    for name in ("travel-a", "travel-b"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "pairs" / f"{name}.jsonl.zst").write_bytes(zstandard.compress(text.encode()))
    small = partial(script.Settings, words=200, dimension=16, batch=32, steps=30, learning_rate=0.02)
    monkeypatch.setattr(script, "SOURCES", ("travel-a", "travel-b"))
    monkeypatch.setattr(script, "Settings", small)
    monkeypatch.setattr(sys, "argv", ["peg_mini_first.py", "--data", str(tmp_path), "--out", str(tmp_path / "model")])
    script.main()
    assert float(re.search(r"validation mean +nDCG@10 ([\d.]+)", capsys.readouterr().out)[1]) > 0.8
    vectors = PEGEncoder(tmp_path / "model").encode_documents(["北京的门票", "北京门票", "成都机场"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_size_and_files() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 40_000_000
    described = json.loads((FOLDER / "peg_rag.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    assert described["max_length"] == tokenizer["truncation"]["max_length"] == 512
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(source in card for source in first_recipe().SOURCES)


def test_sentence_transformers_opens_it_with_equal_vectors(encoder: PEGEncoder) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(FOLDER), device="cpu").float()
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), theirs.encode(TEXTS), atol=1e-5)


def test_vectors_are_unit_length_and_case_and_width_do_not_matter(encoder: PEGEncoder) -> None:
    vectors = encoder.encode_documents(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    same = encoder.encode_queries(["ＡＢＣ", "abc"])
    np.testing.assert_array_equal(same[0], same[1])


def test_paraphrases_are_nearer_than_strangers(encoder: PEGEncoder) -> None:
    scores = encoder.encode_queries(TEXTS[:1]) @ encoder.encode_documents(TEXTS[1:3]).T  # (1, 2)
    assert scores[0, 0] > 0.6 > scores[0, 1] + 0.2


def test_a_query_takes_less_than_five_milliseconds(encoder: PEGEncoder) -> None:
    encoder.encode_queries(["预热"])
    times_s = []
    for i in range(50):
        start = perf_counter()
        encoder.encode_queries([f"第{i}个问题：如何更换花呗绑定银行卡"])
        times_s.append(perf_counter() - start)
    assert np.median(times_s) < 0.005


def test_scores_hold(encoder: PEGEncoder, data_dir: Path) -> None:
    dataset = load_beir(data_dir / "eval" / "science-csl")
    assert evaluate(encoder, dataset).mean() > 0.9
