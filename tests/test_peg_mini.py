"""The bundled model: what it may have been made of, how it opens, and what it can do."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.evaluation import evaluate, load_beir
from peg_rag.extras import require_zstd
from peg_rag.models import bundled_path
from peg_rag.training import Recipe
from peg_rag.training.data.files import source_files

zstd = require_zstd("train")

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


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """What made the bundled weights."""
    return Recipe.load(REPO / "train" / "recipes" / "peg_mini.yaml")


def script(name: str) -> Any:
    """A script of `train/` as a module."""
    spec = importlib.util.spec_from_file_location(name, REPO / "train" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def trained_on(recipe: Recipe, folder: Path) -> set[str]:
    """The files of pairs in a folder that the recipe takes."""
    taken = set()
    for stage in recipe.stages:
        for source in stage.data.sources:
            if source.path.startswith("$PEG_DATA/"):
                here = source.model_copy(update={"path": source.path.replace("$PEG_DATA/pairs", str(folder))})
                taken |= {path.name.split(".")[0] for path in source_files(here)}
    return taken


def test_only_permitted_sources(recipe: Recipe, tmp_path: Path) -> None:
    for name in [*RESEARCH_ONLY, "law-statutes", "news-xwlb"]:
        (tmp_path / f"{name}.jsonl.zst").touch()
    assert trained_on(recipe, tmp_path) == {"law-statutes", "news-xwlb"}
    paths = {source.path for stage in recipe.stages for source in stage.data.sources}
    assert paths == {"$PEG_DATA/pairs/*.jsonl.zst", "$PEG_TEXT_PAIRS/*-sentences.jsonl"}
    assert recipe.model.static
    assert not recipe.model.static.vocabulary.texts  # the words come from the same sources


def test_the_sources_and_the_excluded_are_all_there_is(recipe: Recipe, data_dir: Path) -> None:
    files = {path.name.removesuffix(".jsonl.zst") for path in (data_dir / "pairs").glob("*.jsonl.zst")}
    assert files == RESEARCH_ONLY | trained_on(recipe, data_dir / "pairs")
    rules = (data_dir / "README.md").read_text(encoding="utf-8")
    left_out = re.search(r"research-only, academic or non-commercial: leave out (.*?)\. Ablations", rules)
    assert left_out
    assert set(re.findall(r"`([\w-]+)`", left_out[1])) == RESEARCH_ONLY
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(source in card for source in trained_on(recipe, data_dir / "pairs"))


def test_plain_text_gives_pairs_from_permitted_sources_alone(tmp_path: Path) -> None:
    """A passage is taken for what it is known to come from, never for want of a reason against it."""
    made = script("make_text_pairs")
    lead = "记者今天从气象台获悉，受台风影响，未来三天沿海地区将有大到暴雨。请市民注意防范，减少外出。"
    story = "从前有一位老人住在山脚下的小屋里，每天清晨都去河边打水。他的孙子喜欢听他讲过去的故事。"
    article = "第十二条 申请人应当提交书面材料。主管部门应当在二十日内作出决定。"
    unknown = "这段话不知从哪里来，谁也没有见过它。它说的是一件没有名字的事情，所以不能用。"
    (tmp_path / "pairs").mkdir()
    (tmp_path / "text").mkdir()
    for name, text in {"news-crud_lead": lead, "news-xwlb": "无", "law-statutes": "无", "reading-c3": story}.items():
        line = json.dumps({"query": "问", "positive": text}, ensure_ascii=False) + "\n"
        (tmp_path / "pairs" / f"{name}.jsonl.zst").write_bytes(zstd.compress(line.encode()))
    lines = "\n".join([lead, story, article, unknown, lead + story])
    (tmp_path / "text" / "zh.txt.zst").write_bytes(zstd.compress(lines.encode()))
    documents = list(made.text_documents(tmp_path))
    assert [(domain, "".join(document.passages)) for domain, document in documents] == [
        ("news", lead),
        ("law", article),
    ]


def test_size_and_files(recipe: Recipe) -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 40_000_000
    described = json.loads((FOLDER / "peg_rag.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    assert described["max_length"] == tokenizer["truncation"]["max_length"] == 512
    assert recipe.model.max_length == 512
    assert recipe.model.static
    assert recipe.model.static.vocabulary.size == len(tokenizer["model"]["vocab"])


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


@pytest.mark.slow
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


FIRST_VECTORS = {
    "encoder": "from peg_rag import PEGEncoder; PEGEncoder('peg-mini').encode_queries(['花呗'])",
    "langchain": "from peg_rag import PEGEmbeddings; PEGEmbeddings('peg-mini').embed_query('花呗')",
    "llama-index": "from peg_rag.llama_index import PEGEmbedding; PEGEmbedding('peg-mini').get_query_embedding('花呗')",
    "search": "from peg_rag.cli import main; sys.argv[1:] = ['search', 'kb', '花呗', '-m', 'peg-mini']; main()",
}


@pytest.mark.parametrize("way", FIRST_VECTORS)
def test_a_first_vector_needs_neither_torch_nor_what_only_stores_and_bars_need(way: str, tmp_path: Path) -> None:
    """benchmarks/first_vector.py measures what that saves."""
    if way == "search":
        encoder = PEGEncoder("peg-mini")
        with PEGIndex(tmp_path / "kb", identity=encoder.identity, dimension=encoder.dimension) as index:
            index.upsert(["a"], ["花呗"], encoder.encode_documents(["花呗"]))
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(sorted({'torch', 'transformers', 'sentence_transformers', 'huggingface_hub', "
        "'peg_rag.langchain.vectorstore', 'peg_rag.llama_index.vector_store', 'tqdm.auto'} & set(sys.modules))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + FIRST_VECTORS[way]], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
