"""Learned weights of query terms: against BM25 by definition, and with everything else that an index does."""

import json
import math
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from test_lexical import plain_bm25
from test_peg_mini import RESEARCH_ONLY, script

from peg_rag.errors import DamagedModel, InvalidInput
from peg_rag.extras import require_zstd
from peg_rag.index import PEGIndex, lexical
from peg_rag.index.term_weights import FILE_NAME, SIZE, TermWeights, hash_parts, load_term_weights, split_parts
from peg_rag.index.tokenizers import get_tokenizer
from peg_rag.models import bundled_path

zstd = require_zstd("train")

REPO = Path(__file__).resolve().parent.parent
BIGRAM = get_tokenizer("bigram")
ALPHABET = "花呗还款绑定银行卡 abc12"
QUERIES = ["怎么还花呗 abc", "绑定银行卡 12", "花", ""]


def random_weights(seed: int) -> TermWeights:
    steps = np.random.default_rng(seed).integers(-127, 128, SIZE).astype(np.int8)
    return TermWeights(steps, 0.005)


def plain_multiplier(weights: TermWeights, term: str) -> float:
    """e^theta by definition: the term's own place, its kind's, and for a pair those of its two characters."""
    if term.isdigit():
        names = [term, "#number"]
    elif term.isascii() or len(term) > 2:
        names = [term, "#word"]
    elif len(term) == 2:
        names = [term, "#pair", term[0] + "_", "_" + term[1]]
    else:
        names = [term, "#character"]
    theta = sum(weights.step * float(weights.steps[zlib.crc32(name.encode()) % 262_144]) for name in names)
    return math.exp(theta)


def weighted_bm25(weights: TermWeights, documents: Mapping[str, str], query: str) -> dict[str, float]:
    """The sum over the query's terms of each one's score by definition, multiplied."""
    scores: dict[str, float] = {}
    for term in BIGRAM.terms(query):
        for name, score in term_scores(documents, term).items():
            scores[name] = scores.get(name, 0.0) + plain_multiplier(weights, term) * score
    return scores


def term_scores(documents: Mapping[str, str], term: str) -> dict[str, float]:
    """What one term, and not the characters of a pair, adds to each document."""
    singles = [term[0], term[1]] if len(BIGRAM.terms(term)) == 3 else []
    scores = plain_bm25(dict(documents), term, 1.2, 0.75)
    for single in singles:
        for name, score in plain_bm25(dict(documents), single, 1.2, 0.75).items():
            scores[name] -= score
    return {name: score for name, score in scores.items() if score > 1e-9}


def scores_of(index: PEGIndex, query: str) -> dict[str, float]:
    return {hit.id: hit.score for hit in index.search(text=query, k=10**6)}


def fill(index: PEGIndex, texts: list[str]) -> None:
    metadatas = [{"even": number % 2 == 0} for number in range(len(texts))]
    vectors = np.random.default_rng(1).standard_normal((len(texts), 4))
    index.upsert([str(number) for number in range(len(texts))], texts, vectors, metadatas)


# -- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        ("花", ["花", "#character"]),
        ("花呗", ["花呗", "#pair", "花_", "_呗"]),
        ("api", ["api", "#word"]),
        ("über", ["über", "#word"]),
        ("2024", ["2024", "#number"]),
    ],
)
def test_parts(term: str, parts: list[str]) -> None:
    assert split_parts(term) == parts


def test_places_are_those_that_the_bundled_table_was_learned_for() -> None:
    assert hash_parts("花呗") == [zlib.crc32(part.encode()) % SIZE for part in ("花呗", "#pair", "花_", "_呗")]
    assert hash_parts("花") == [175_057, 226_367]


@given(st.text(max_size=12), st.integers(0, 3))
def test_multipliers_equal_the_definition(text: str, seed: int) -> None:
    weights = random_weights(seed)
    counts = dict.fromkeys(BIGRAM.terms(text), 2.0)
    expected = {term: 2.0 * plain_multiplier(weights, term) for term in counts}
    assert weights.weigh(counts) == pytest.approx(expected)


def test_thetas_are_rounded_to_bytes() -> None:
    table = np.zeros(SIZE, np.float32)
    table[hash_parts("花")] = [0.5, -1.0]
    weights = TermWeights.of(table)
    assert weights.multiplier("花") == pytest.approx(math.exp(-0.5), abs=0.01)
    assert weights.multiplier("呗") == pytest.approx(math.exp(-1.0), abs=0.01)
    assert TermWeights.of(np.zeros(SIZE)).multiplier("花") == 1.0


# -- an index ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(alphabet=ALPHABET, max_size=15), min_size=1, max_size=12),
    st.text(alphabet=ALPHABET, max_size=8),
    st.sets(st.integers(0, 11)),
    st.integers(0, 3),
)
def test_scores_equal_weighted_bm25_by_definition(texts: list[str], query: str, deleted: set[int], seed: int) -> None:
    weights = random_weights(seed)
    documents = {str(number): text for number, text in enumerate(texts)}
    with PEGIndex(term_weights=weights) as index:
        fill(index, texts)
        index.delete([str(number) for number in deleted])
        for number in deleted:
            documents.pop(str(number), None)
        expected = weighted_bm25(weights, documents, query) if documents else {}
        assert scores_of(index, query) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.text(alphabet=ALPHABET, max_size=15), min_size=2, max_size=12), st.integers(0, 3))
def test_filters_and_the_hybrid_see_the_same_scores(texts: list[str], seed: int) -> None:
    with PEGIndex(term_weights=random_weights(seed)) as index:
        fill(index, texts)
        for query in QUERIES:
            scores = scores_of(index, query)
            even = index.search(text=query, k=100, where={"even": True})
            assert {hit.id: hit.score for hit in even} == {name: s for name, s in scores.items() if int(name) % 2 == 0}
            for hit in index.search(np.ones(4), query, k=100):
                assert hit.scores["lexical"] == scores.get(hit.id, 0.0)


def test_compaction_changes_no_score(tmp_path: Path) -> None:
    weights = random_weights(0)
    with PEGIndex(tmp_path, term_weights=weights) as index:
        fill(index, [f"花呗还款{number}" for number in range(40)] + ["绑定银行卡 abc"] * 3)
        index.delete([str(number) for number in range(0, 30, 3)])
        before = [scores_of(index, query) for query in QUERIES]
        index.persist()
        assert [scores_of(index, query) for query in QUERIES] == before
    with PEGIndex(tmp_path, term_weights=weights, read_only=True) as index:
        assert [scores_of(index, query) for query in QUERIES] == before


def test_nothing_is_stored(tmp_path: Path) -> None:
    """The same files, whichever way they are opened; an index without weights scores as before."""
    with PEGIndex(tmp_path) as index:
        fill(index, ["花呗还款", "还款日", "绑定银行卡 abc"])
        index.persist()
        plain = [scores_of(index, query) for query in QUERIES]
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with PEGIndex(tmp_path, term_weights=random_weights(0)) as index:
        assert [scores_of(index, query) for query in QUERIES] != plain
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
    with PEGIndex(tmp_path) as index:
        assert [scores_of(index, query) for query in QUERIES] == plain


def test_weights_and_plain_terms_find_the_same_documents() -> None:
    """A multiplier is never 0: what matched before matches still."""
    texts = ["花呗还款", "还款日", "绑定银行卡 abc", "12"]
    with PEGIndex() as plain, PEGIndex(term_weights=random_weights(2)) as weighted:
        fill(plain, texts)
        fill(weighted, texts)
        for query in QUERIES:
            assert scores_of(plain, query).keys() == scores_of(weighted, query).keys()


def test_each_head_is_read_once_with_weights_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights cost no further reading."""
    heads: list[str] = []
    read = lexical._HeadPostings.read

    def note_head(connection: Any, head: str, blocks: Any) -> Any:
        heads.append(head)
        return read(connection, head, blocks)

    monkeypatch.setattr(lexical._HeadPostings, "read", note_head)
    for weights in (None, random_weights(0)):
        with PEGIndex(term_weights=weights) as index:
            fill(index, ["花呗还款", "还款日"])
            index.search(text="花呗还款")
            assert sorted(heads) == sorted("花呗还款")
            heads.clear()


def test_other_terms_are_refused() -> None:
    pytest.importorskip("jieba")
    with pytest.raises(InvalidInput, match="'bigram', and this index uses 'jieba'"):
        PEGIndex(tokenizer="jieba", term_weights=random_weights(0))


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'large' are unknown; there are 'mini'"):
        PEGIndex(tmp_path, term_weights="large")  # type: ignore[arg-type]


# -- the file ---------------------------------------------------------------------------------------------------------


def test_a_saved_table_reads_the_same(tmp_path: Path) -> None:
    weights = random_weights(0)
    weights.save(tmp_path, sources=["news-xwlb"])
    again = TermWeights.load(tmp_path)
    assert again.step == weights.step
    assert np.array_equal(again.steps, weights.steps)


@pytest.mark.parametrize("damage", ["missing", "cut", "no metadata", "short", "step"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    file = tmp_path / FILE_NAME
    steps = np.zeros(SIZE, np.int8)
    header = {"term_weights": json.dumps({"format": 1, "step": 0.01})}
    if damage == "cut":
        TermWeights(steps, 0.01).save(tmp_path)
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "no metadata":
        save_file({"steps": steps}, file)
    elif damage == "short":
        save_file({"steps": steps[:-1]}, file, header)
    elif damage == "step":
        save_file({"steps": steps}, file, {"term_weights": json.dumps({"format": 1, "step": math.nan})})
    with pytest.raises(DamagedModel, match="install the package again"):
        TermWeights.load(tmp_path)


# -- the bundled table ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled() -> TermWeights:
    return load_term_weights("mini")


def test_the_bundled_table_is_small_and_opens_by_name(bundled: TermWeights) -> None:
    assert (bundled_path("term-weights-mini") / FILE_NAME).stat().st_size <= 300_000
    with PEGIndex(term_weights="mini") as index:
        fill(index, ["花呗还款", "还款日", "绑定银行卡 abc"])
        documents = {"0": "花呗还款", "1": "还款日", "2": "绑定银行卡 abc"}
        for query in QUERIES:
            assert scores_of(index, query) == pytest.approx(weighted_bm25(bundled, documents, query), rel=1e-4)


def test_words_of_asking_weigh_less_than_what_is_asked_for(bundled: TermWeights) -> None:
    assert max(map(bundled.multiplier, ["么", "吗", "什么"])) < min(map(bundled.multiplier, ["税", "癌", "北京"]))


def test_thetas_are_moderate(bundled: TermWeights) -> None:
    """No term is silenced, and none outshouts the others."""
    multipliers = [bundled.multiplier(chr(code)) for code in range(0x4E00, 0x9FA6)]
    assert min(multipliers) > 0.1
    assert max(multipliers) < 3


def test_the_bundled_table_was_learned_from_permitted_sources(data_dir: Path) -> None:
    with safe_open(bundled_path("term-weights-mini") / FILE_NAME, "numpy") as stream:
        sources = set(json.loads(stream.metadata()["term_weights"])["sources"])
    files = {path.name.removesuffix(".jsonl.zst") for path in (data_dir / "pairs").glob("*.jsonl.zst")}
    assert sources == files - RESEARCH_ONLY


def test_the_recipe_takes_permitted_pairs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source that learning and choosing read comes from `permitted_files`."""
    pytest.importorskip("lightgbm")
    monkeypatch.syspath_prepend(REPO / "train")
    recipe = script("term_weights")
    (tmp_path / "pairs").mkdir()
    (tmp_path / "eval" / "news-xwlb").mkdir(parents=True)
    for name in [*RESEARCH_ONLY, "law-statutes", "news-xwlb"]:
        rows = [{"query": f"{name}第{n}问", "positive": f"{name}答案第{n}条"} for n in range(3)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "pairs" / f"{name}.jsonl.zst").write_bytes(zstd.compress(lines.encode()))
    recipe.make_candidates(tmp_path / "out", tmp_path)
    candidates = recipe.load_candidates(tmp_path / "out")
    assert set(candidates) == {"law-statutes", "news-xwlb"}
    assert recipe.load_table(tmp_path / "out", recipe.Settings(), ["news"]).shape == (SIZE,)


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_the_recipe_scores_as_the_index_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightgbm")
    monkeypatch.syspath_prepend(REPO / "train")
    recipe = script("term_weights")
    texts = ["花呗还款", "还款日 还款", "绑定银行卡 abc", "花" * 300]
    source = sys.modules["reranker"].Source("news-made_up", texts, ["怎么还花呗 abc", "花花"], [{0}, {3}])
    some = recipe.find_candidates(source)
    weights = random_weights(0)
    theta = np.log([weights.multiplier(term) for term in some.terms])
    weighted = some.values * np.exp(theta)[some.numbers]
    scores = np.add.reduceat(weighted, np.cumsum(some.sizes) - some.sizes)
    with PEGIndex(term_weights=weights) as index:
        fill(index, texts)
        expected = [scores_of(index, query) for query in source.queries]
    parts = np.split(scores, np.cumsum(some.hits)[:-1])
    for values, by_id in zip(parts, expected, strict=True):
        assert sorted(values) == pytest.approx(sorted(by_id.values()), rel=1e-4)


def test_the_slope_of_the_loss_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against finite differences: the loss that L-BFGS is given, with uneven lists and two domains."""
    pytest.importorskip("lightgbm")
    monkeypatch.syspath_prepend(REPO / "train")
    recipe = script("term_weights")
    made = sys.modules["reranker"].Source
    texts = ["花呗还款", "还款日 还款", "绑定银行卡 abc", "花" * 30, "银行"]
    by_source = {
        "news-a": recipe.find_candidates(made("news-a", texts, ["怎么还花呗 abc", "花花"], [{0}, {3}])),
        "law-b": recipe.find_candidates(made("law-b", texts, ["银行卡绑定还款"], [{2}])),
    }
    settings = recipe.Settings(decay=2.0, balance=1.0)
    objective, start = recipe.make_objective(recipe.Lists.of(by_source, settings), settings)
    point = start + 0.05 * np.random.default_rng(0).standard_normal(len(start))
    _, slope = objective(point)
    for place in [*hash_parts("还款"), *hash_parts("花"), SIZE, SIZE + 1]:
        step = np.zeros(len(point))
        step[place] = 1e-3
        difference = (objective(point + step)[0] - objective(point - step)[0]) / 2e-3
        assert slope[place] == pytest.approx(difference, rel=2e-2, abs=2e-3)
