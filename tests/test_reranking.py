"""The bundled reranker: its features against reference code, its trees against LightGBM, and a search."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LetterEncoder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from peg_rag import Hit, PEGIndex, Retriever
from peg_rag.errors import DamagedModel, InvalidInput, UnsupportedSearch
from peg_rag.models import bundled_path, resolve
from peg_rag.reranking import MiniReranker, load_reranker
from peg_rag.reranking import features as module
from peg_rag.reranking.features import FEATURES, Candidates, FeatureMaker
from peg_rag.reranking.matching import LONGEST_RUN, common_runs
from peg_rag.reranking.rarity import PAIR_BITS, UNIT_BITS, Rarity, count_documents, hash_pairs, hash_units
from peg_rag.reranking.trees import Trees
from peg_rag.reranking.units import MAX_CHARACTERS, split_units, unit_code, unit_strings
from peg_rag.reranking.vectors import LONGEST_WORD, TokenVectors

TOKENS = [
    "<unk>",
    "花",
    "呗",
    "花呗",
    "还",
    "还款",
    "逾期还款",
    "abc",
    "12",
    "の",
    "😀",
    "花呗12",
    "。",
    "银行卡",
    "卡",
    "行卡",
]
ODD = ["", "😀😀", "。、！", "花呗" * 3_000, "ＡＢＣ 花呗", "a" * 5_000, "花\n呗\r\n12", "\U00020001花", "ﬁ 花", "İ花"]

texts = st.one_of(
    st.text(alphabet="花呗还款逾期银行卡abc12 。\n😀", max_size=60), st.text(max_size=20), st.sampled_from(ODD)
)
queries = st.text(alphabet="花呗还款逾期银行卡abc12 。", min_size=1, max_size=30) | st.sampled_from(
    [t for t in ODD if t]
)
documents = st.lists(texts, min_size=1, max_size=6)
twins = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def token_vectors(dimension: int = 6) -> TokenVectors:
    rng = np.random.default_rng(0)
    return TokenVectors(TOKENS, rng.normal(size=(len(TOKENS), dimension)))


def some_rarity() -> Rarity:
    rng = np.random.default_rng(1)
    return Rarity(
        rng.integers(0, 256, 1 << UNIT_BITS).astype(np.uint8), rng.integers(0, 256, 1 << PAIR_BITS).astype(np.uint8)
    )


def make_reranker(share: float = 0.5) -> MiniReranker:
    """Trees that count the longest common run, and how the dense scores stand."""
    run, dense = FEATURES.index("longest_run"), FEATURES.index("dense_scaled")
    trees = Trees(
        roots=np.array([0, 3], np.int32),
        features=np.array([run, 0, 0, dense, 0, 0], np.int16),
        thresholds=np.array([1.1, np.inf, np.inf, 0.5, np.inf, np.inf]),
        left=np.array([1, 1, 2, 4, 4, 5], np.int32),
        right=np.array([2, 1, 2, 5, 4, 5], np.int32),
        values=np.array([0, -1.0, 1.0, 0, -0.1, 0.1]),
    )
    return MiniReranker(FeatureMaker(token_vectors(), some_rarity()), trees, share)


# -- reference features ------------------------------------------------------------------------------------------------


def runs_of(units: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(units[i : i + length]) for i in range(len(units) - length + 1)]


def slow_columns(query: str, texts: Sequence[str], rarity: Rarity) -> dict[str, list[float]]:
    """The features of matches, one document and one run after the other."""
    question = unit_strings(query)[: module.QUERY_UNITS]
    units = [unit_strings(text) for text in texts]
    columns: dict[str, list[float]] = {name: [] for name in module.MATCHES}
    for text in units:
        longest = max(
            (n for n in range(1, LONGEST_RUN + 1) if set(runs_of(question, n)) & set(runs_of(text, n))), default=0
        )
        columns["longest_run"].append(math.log2(1 + longest))
        columns["longest_run_share"].append(longest / max(1, min(len(question), LONGEST_RUN)))
        columns["longest_run_document"].append(longest / min(max(len(text), 1), LONGEST_RUN))
        words = {unit for unit in question if len(unit) > 1 or unit_code(unit) >= 0x110000}
        columns["words_coverage"].append(sum(word in text for word in words) / len(words) if words else 1.0)
    for length, kind in enumerate(module.KINDS, start=1):
        wanted = sorted(set(runs_of(question, length)))
        standing = [runs_of(text, length) for text in units]
        local = {
            run: math.log1p((len(texts) - n + 0.5) / (n + 0.5))
            for run in wanted
            for n in [sum(run in s for s in standing)]
        }
        general = {run: rarity_of(run, rarity) for run in wanted}
        any_shorter = length == 1 or any(
            set(runs_of(question, length - 1)) & set(runs_of(t, length - 1)) for t in units
        )
        for runs, text in zip(standing, units, strict=True):
            row = slow_run_features(kind, wanted, runs, text, local, general) if wanted and any_shorter else {}
            for name in module.MATCHES:
                if name.split("_")[0] == kind and name != "words_coverage":
                    columns[name].append(row.get(name, 0.0))
    return columns


def slow_run_features(
    kind: str, wanted: list[Any], runs: list[Any], text: list[str], local: dict[Any, float], general: dict[Any, float]
) -> dict[str, float]:
    def share(present: Any, weights: dict[Any, float]) -> float:
        total = sum(weights.values())
        return sum(weights[run] for run in wanted if run in present) / total if total else 0.0

    first = next((place for place, run in enumerate(runs) if run in wanted), len(text))
    saturated = sum(local[run] * runs.count(run) / (1 + runs.count(run)) for run in wanted)
    return {
        f"{kind}_coverage": sum(run in runs for run in wanted) / len(wanted),
        f"{kind}_coverage_local": share(runs, local),
        f"{kind}_saturated_local": saturated / sum(local.values()),
        f"{kind}_of_document": sum(run in wanted for run in runs) / max(1, len(runs)),
        f"{kind}_coverage_general": share(runs, general),
        f"{kind}_window": max((share(runs[i : i + module.WINDOW], general) for i in range(len(runs))), default=0.0),
        f"{kind}_head": share(runs[: module.HEAD], general),
        f"{kind}_first": math.log2(1 + first),
    }


def rarity_of(run: tuple[str, ...], rarity: Rarity) -> float:
    codes = np.array([[unit_code(unit) for unit in (*run, run[0])[:2]]])
    return float(rarity.of_units(codes[:, 0])[0] if len(run) == 1 else rarity.of_pairs(codes)[0])


def slow_words(text: list[str]) -> list[tuple[int, int, int]]:
    """(place, units, token) of every token in a text."""
    tokens = {}
    for number, token in enumerate(TOKENS):
        units = tuple(unit_strings(token))
        if units and "".join(units) == token and (len(units) == 1 or all(unit_code(u) < 1 << 16 for u in units)):
            tokens[units] = number
    return [
        (place, length, tokens[run])
        for place in range(len(text))
        for length in range(1, LONGEST_WORD + 1)
        if (run := tuple(text[place : place + length])) in tokens and len(run) == length
    ]


def slow_cut(text: list[str]) -> list[int]:
    words = slow_words(text)
    tokens = []
    place = 0
    while place < len(text):
        starting = [word for word in words if word[0] == place]
        if starting:
            tokens.append(starting[-1][2])
        place += starting[-1][1] if starting else 1
    return tokens


def slow_word_columns(query: str, texts: Sequence[str], vectors: TokenVectors) -> dict[str, list[float]]:
    question = slow_cut(unit_strings(query)[: module.QUERY_UNITS])[: module.QUERY_WORDS]
    columns: dict[str, list[float]] = {name: [] for name in module.WORDS}
    units = [slow_words(unit_strings(text)) for text in texts]
    if not question or not any(units):
        return {name: [0.0] * len(texts) for name in module.WORDS}
    weight = {token: vectors.lengths[token] * question.count(token) for token in question}
    total = sum(weight.values())
    aim = sum(weight[token] * vectors.directions_of(np.array([token]))[0].astype(float) for token in weight)
    aim /= np.linalg.norm(aim)
    for words in units:
        best = {t: max((likeness(w, t, vectors) for _, _, w in words), default=0.0) for t in weight}
        columns["words_best"].append(sum(weight[t] * best[t] for t in weight) / total)
        columns["words_best_plain"].append(float(np.mean(list(best.values()))))
        columns["words_best_least"].append(min(best.values()))
        for cosine in module.LIKENESS:
            columns[f"words_like_{cosine}"].append(sum(weight[t] for t in weight if best[t] >= cosine) / total)
        longest = [words[i][2] for i in range(len(words)) if i + 1 == len(words) or words[i + 1][0] != words[i][0]]
        stretches = [longest[max(0, end - module.WORD_WINDOW) : end] for end in range(1, len(longest) + 1)]
        columns["words_window"].append(max((mean_nearness(s, aim, vectors) for s in stretches), default=0.0))
        columns["words_mean"].append(mean_nearness(longest, aim, vectors) if longest else 0.0)
    return columns


def likeness(first: int, second: int, vectors: TokenVectors) -> float:
    return float(vectors.directions[first].astype(float) @ vectors.directions[second].astype(float))


def mean_nearness(tokens: list[int], aim: Any, vectors: TokenVectors) -> float:
    weights = vectors.lengths[tokens].astype(float)
    return float(np.sum(weights * (vectors.directions_of(np.array(tokens)) @ aim)) / np.sum(weights))


@twins
@given(queries, documents)
@example("花呗还款", ["花呗逾期还款", ""])
@example("花呗" * 200, ["花呗" * 300])
def test_match_features_equal_their_slow_twins(query: str, texts: list[str]) -> None:
    rarity = some_rarity()
    question = module._first_units(split_units([query]), module.QUERY_UNITS)
    columns = module.match_features(question, split_units(texts), rarity)
    assert set(columns) == set(module.MATCHES)
    for name, values in slow_columns(query, texts, rarity).items():
        assert columns[name] == pytest.approx(values, abs=1e-9), name


@twins
@given(queries, documents)
@example("花呗还款abc", ["花呗逾期还款", "", "银行卡" * 40 + "花呗"])
def test_word_features_equal_their_slow_twins(query: str, texts: list[str]) -> None:
    vectors = token_vectors()
    question = module._first_units(split_units([query]), module.QUERY_UNITS)
    columns = module.word_features(question, split_units(texts), vectors)
    assert set(columns) == set(module.WORDS)
    for name, values in slow_word_columns(query, texts, vectors).items():
        assert columns[name] == pytest.approx(values, abs=1e-5), name


@twins
@given(st.lists(texts, max_size=6))
def test_units_are_those_of_a_regular_expression(texts: list[str]) -> None:
    units = split_units(texts)
    spelled = [[unit_code(unit) for unit in unit_strings(text)] for text in texts]
    assert units.lengths.tolist() == [len(row) for row in spelled]
    assert units.codes.tolist() == [code for row in spelled for code in row]
    assert units.rows.tolist() == [number for number, row in enumerate(spelled) for _ in row]


@twins
@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.25, 1.0, 7.0]), min_size=1, max_size=30))
def test_score_features_equal_their_slow_twins(scores: list[float]) -> None:
    values = np.array(scores)
    columns = module.score_features(Candidates([""] * len(scores), values, values[::-1], values))
    low, high = min(scores), max(scores)
    mean = sum(scores) / len(scores)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
    for place, score in enumerate(scores):
        assert columns["dense_scaled"][place] == pytest.approx((score - low) / (high - low) if high > low else 0)
        assert columns["dense_standard"][place] == pytest.approx((score - mean) / deviation if high > low else 0)
        assert columns["dense_place"][place] == math.log2(1 + sum(other > score for other in scores))
        assert columns["lexical_share"][::-1][place] == pytest.approx(score / high if high > 0 else 0)
    followers = sorted(scores, reverse=True)[1:20]
    if len(followers) > 1 and np.std(followers) > 1e-9:
        expected = min(10.0, (high - np.mean(followers)) / np.std(followers))
        assert columns["dense_stands_out"].tolist() == pytest.approx([expected] * len(scores))
    agreement = np.mean(columns["dense_standard"] * columns["lexical_standard"])
    assert columns["agreement"].tolist() == pytest.approx([agreement] * len(scores))


def test_scores_that_hardly_differ_give_finite_features() -> None:
    for scores in ([0.1, 0.1, 0.1], [0.0, 5e-324], [0.0, 1e-200], [1.0, 1.0 + 1e-16]):
        values = np.array(scores)
        columns = module.score_features(Candidates([""] * len(scores), values, values, values))
        assert all(np.isfinite(column).all() for column in columns.values())
        assert np.isfinite(module.standardize(values)).all()
    assert module.standardize(np.array([0.1, 0.1, 0.1])).tolist() == [0, 0, 0]


@twins
@given(queries, documents, st.randoms(use_true_random=False))
def test_features_are_finite_and_go_with_their_document(query: str, texts: list[str], random: Any) -> None:
    maker = FeatureMaker(token_vectors(), some_rarity())
    scores = np.array([random.random() for _ in texts])
    rows = maker.make(query, Candidates(texts, scores, scores**2, scores / 2))
    assert rows.shape == (len(texts), len(FEATURES))
    assert np.isfinite(rows).all()
    order = list(range(len(texts)))
    random.shuffle(order)
    moved = maker.make(
        query, Candidates([texts[i] for i in order], scores[order], scores[order] ** 2, scores[order] / 2)
    )
    assert moved == pytest.approx(rows[order], abs=1e-5)


def test_relative_columns_and_lengths() -> None:
    maker = FeatureMaker(token_vectors(), some_rarity())
    candidates = Candidates(["花呗", "花呗还款", "花呗逾期还款了吗"], *(np.arange(3.0) for _ in range(3)))
    column = dict(zip(FEATURES, maker.make("花呗还款", candidates).T, strict=True))
    for name in module.COMPARED:
        assert column[f"{name}_behind"] == pytest.approx(column[name] - column[name].max(), abs=1e-6)
    assert column["length"] == pytest.approx(np.log2([3, 5, 9]))
    assert column["length_beside"] == pytest.approx(np.log2([3, 5, 9]) - np.log2(5))
    assert column["query_length"] == pytest.approx([np.log2(5)] * 3)
    assert len(set(FEATURES)) == len(FEATURES)


def test_only_the_beginning_of_a_long_text_is_read() -> None:
    cut = split_units(["花" * MAX_CHARACTERS, "花" * MAX_CHARACTERS + "呗" * 10])
    assert cut.lengths.tolist() == [MAX_CHARACTERS] * 2


def test_runs_do_not_cross_from_one_document_into_the_next() -> None:
    *_, last = common_runs(split_units(["花呗还款"]).codes, split_units(["花呗", "还款"]))
    assert last.length == 3
    assert not len(last.places)


def test_rarity_counts_documents_not_occurrences() -> None:
    batches = [split_units(["花花花呗", "花呗还"]), split_units(["还款"])]
    units, pairs, count = count_documents(batches)
    assert count == 3
    codes = np.array([unit_code(unit) for unit in "花呗还款"])
    assert units[hash_units(codes)].tolist() == [2, 2, 2, 1]
    both = np.array(
        [[unit_code("花"), unit_code("呗")], [unit_code("花"), unit_code("花")], [unit_code("呗"), unit_code("还")]]
    )
    assert pairs[hash_pairs(both)].tolist() == [2, 1, 1]
    rarity = Rarity.of(units, pairs, count)
    common, rare, unseen = rarity.of_units(np.array([unit_code("花"), unit_code("款"), unit_code("卡")]))
    assert 0 < common < rare < unseen == 1


# -- trees ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", [2, 4, 31])
def test_trees_equal_lightgbm(leaves: int) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(leaves)
    rows = rng.normal(size=(2_000, 12)).astype(np.float32)
    labels = (rows[:, 0] * rows[:, 1] + rows[:, 2] > 0.3).astype(int)
    settings = {"objective": "lambdarank", "num_leaves": leaves, "verbose": -1, "use_missing": False, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(rows, labels, group=[50] * 40), 30)
    trees = Trees.from_lightgbm(booster.dump_model())
    others = np.concatenate([rng.normal(size=(500, 12)), rng.choice([0.0, -1e30, 1e30, 1e-40], (50, 12))])
    assert trees.predict(others) == pytest.approx(booster.predict(others), abs=1e-9)
    read = Trees.from_tensors(trees.tensors(), 12)
    assert np.array_equal(read.predict(others), trees.predict(others))


def test_trees_at_a_threshold_and_of_one_leaf() -> None:
    leaf = {"leaf_value": 0.25}
    split = {
        "split_feature": 1, "threshold": 0.5, "decision_type": "<=", "missing_type": "None",
        "left_child": {"leaf_value": -1.0}, "right_child": {"leaf_value": 2.0},
    }  # fmt: skip
    trees = Trees.from_lightgbm({"tree_info": [{"tree_structure": leaf}, {"tree_structure": split}]})
    assert trees.predict(np.array([[9.0, 0.5], [9.0, 0.5000001]])).tolist() == [-0.75, 2.25]
    assert trees.predict(np.empty((0, 2))).tolist() == []
    with pytest.raises(DamagedModel, match="use_missing"):
        Trees.from_lightgbm({"tree_info": [{"tree_structure": split | {"missing_type": "NaN"}}]})


@pytest.mark.parametrize(
    ("name", "value"),
    [("left", [0, 1, 2]), ("right", [7, 1, 2]), ("features", [9, 0, 0]), ("roots", [-1]), ("values", [1.0])],
)
def test_trees_that_cannot_be_walked_are_refused(name: str, value: list[Any]) -> None:
    arrays = {
        "roots": np.array([0]), "features": np.array([1, 0, 0]), "thresholds": np.array([0.5, np.inf, np.inf]),
        "left": np.array([1, 1, 2]), "right": np.array([2, 1, 2]), "values": np.array([0.0, 1.0, 2.0]),
    }  # fmt: skip
    assert Trees.from_tensors(arrays, 2).predict(np.array([[0, 0.0]])).tolist() == [1.0]
    with pytest.raises(DamagedModel):
        Trees.from_tensors(arrays | {name: np.array(value)}, 2)
    with pytest.raises(DamagedModel, match=name):
        Trees.from_tensors({key: array for key, array in arrays.items() if key != name}, 2)


# -- the reranker -----------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_scores_alike(tmp_path: Path) -> None:
    reranker = make_reranker(share=0.7)
    reranker.save(tmp_path)
    again = MiniReranker.load(tmp_path, token_vectors())
    candidates = Candidates(["花呗", "花呗还款", ""], *(np.array([0.3, 0.2, 0.9]) for _ in range(3)))
    assert np.array_equal(again.score("花呗还款", candidates), reranker.score("花呗还款", candidates))
    assert again.share == 0.7


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedModel, match="install the package again"):
        MiniReranker.load(tmp_path, token_vectors())
    make_reranker().save(tmp_path)
    file = tmp_path / "reranker.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DamagedModel, match="no reranker"):
        MiniReranker.load(tmp_path, token_vectors())


def test_a_file_of_other_features_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = make_reranker().trees.tensors() | {"rarity_units": np.zeros(1), "rarity_pairs": np.zeros(1)}
    settings = {"format": 1, "features": ["dense"], "share": 0.5}
    save_file(tensors, tmp_path / "reranker.safetensors", {"reranker": json.dumps(settings)})
    with pytest.raises(DamagedModel, match="other features"):
        MiniReranker.load(tmp_path, token_vectors())


def test_vectors_that_do_not_belong_to_their_tokens_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"embedding.weight": np.zeros((2, 4), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["花", -1.0]]}}))
    with pytest.raises(DamagedModel, match="1 tokens and 2 vectors"):
        TokenVectors.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DamagedModel, match="unigram"):
        TokenVectors.load(tmp_path)


def test_the_share_weighs_trees_against_the_fused_score() -> None:
    candidates = Candidates(["花呗还款", "银行卡"], np.zeros(2), np.zeros(2), np.array([0.1, 0.9]))
    by_trees = make_reranker(share=1).score("花呗还款", candidates)
    assert by_trees[0] > by_trees[1]
    by_fusion = make_reranker(share=0).score("花呗还款", candidates)
    assert by_fusion[0] < by_fusion[1]


def test_hits_without_a_hybrids_scores_are_refused() -> None:
    with pytest.raises(UnsupportedSearch, match="'lexical'"):
        make_reranker().score_hits("花呗", [Hit("1", "花呗", 0.5, {"dense": 0.5, "fused": 0.5})])
    assert make_reranker().score_hits("花呗", []).tolist() == []


# -- in a search ------------------------------------------------------------------------------------------------------

PASSAGES = ["花呗还款", "花呗逾期还款", "银行卡绑定", "理财", "abc 12 花呗"]


@pytest.fixture
def index(letters: LetterEncoder) -> PEGIndex:
    index = PEGIndex(identity=letters.identity)
    metadatas = [{"number": number, "tags": ["甲"]} for number in range(len(PASSAGES))]
    index.upsert([f"id{n}" for n in range(len(PASSAGES))], PASSAGES, letters.encode_documents(PASSAGES), metadatas)
    return index


@pytest.fixture
def many(letters: LetterEncoder) -> PEGIndex:
    """80 passages, more than the reranker looks at."""
    alphabet = "花呗银行卡绑定借款理财还逾期"
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list(alphabet), 12)) for _ in range(80)]
    index = PEGIndex(identity=letters.identity)
    metadatas = [{"number": number} for number in range(len(texts))]
    index.upsert([f"id{n}" for n in range(len(texts))], texts, letters.encode_documents(texts), metadatas)
    return index


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> MiniReranker:
    """Stands where the bundled reranker does, and is for the letters' vectors."""
    reranker = make_reranker()
    monkeypatch.setattr("peg_rag.retriever._load_reranker", lambda: reranker)
    monkeypatch.setattr("peg_rag.retriever._model_of_reranker", lambda: "letters")
    return reranker


def test_reranked_hits_are_the_hybrids_in_the_rerankers_order(
    index: PEGIndex, letters: LetterEncoder, tiny: MiniReranker
) -> None:
    plain = Retriever(index, letters, rerank=None, k=50, mode="hybrid").retrieve("花呗逾期")
    hits = Retriever(index, letters, k=50, mode="hybrid").retrieve("花呗逾期")
    assert Retriever(index, letters, rerank="mini", k=50, mode="hybrid").retrieve("花呗逾期") == hits
    scores = dict(zip([hit.id for hit in plain], tiny.score_hits("花呗逾期", plain), strict=True))
    assert [hit.id for hit in hits] == sorted(scores, key=lambda name: -scores[name])
    before = {hit.id: hit for hit in plain}
    for hit in hits:
        assert hit.score == hit.scores["rerank"] == pytest.approx(scores[hit.id], abs=1e-9)
        assert {name: hit.scores[name] for name in before[hit.id].scores} == before[hit.id].scores
        assert hit.metadata == before[hit.id].metadata
        assert hit.text == before[hit.id].text


def test_a_reranked_batch_is_its_queries_one_by_one(
    index: PEGIndex, letters: LetterEncoder, tiny: MiniReranker
) -> None:
    retriever = Retriever(index, letters, k=2, mode="hybrid", rerank="mini")
    questions = ["花呗", "银行卡", "zzz", "。"]
    for hits, question in zip(retriever.retrieve_batch(questions), questions, strict=True):
        alone = retriever.retrieve(question)
        assert [hit.id for hit in hits] == [hit.id for hit in alone]
        assert len(hits) == 2


def test_candidates_that_the_reranker_looks_at(index: PEGIndex, letters: LetterEncoder, tiny: MiniReranker) -> None:
    calls = []

    class Counting:
        identity = letters.identity

        def search_batch(self, *arguments: Any, **settings: Any) -> list[list[Hit]]:
            calls.append(settings["k"])
            return index.search_batch(*arguments, **settings)

    retriever = Retriever(Counting(), letters, k=3, mode="hybrid", rerank="mini")
    assert len(retriever.retrieve("花呗")) == 3
    assert len(retriever.retrieve("花呗", k=70)) == len(PASSAGES)
    assert retriever.retrieve("花呗", k=0) == []
    assert calls == [50, 70, 0]
    assert [hit.metadata["number"] for hit in retriever.retrieve("花呗", where={"number": 4})] == [4]
    assert Retriever(PEGIndex(), letters, mode="hybrid", rerank="mini").retrieve("花呗") == []


def test_rerank_is_refused_where_it_cannot_work(index: PEGIndex, letters: LetterEncoder, tiny: MiniReranker) -> None:
    with pytest.raises(InvalidInput, match="'mini'"):
        Retriever(index, letters, mode="hybrid", rerank="maxi")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="hybrid search"):
        Retriever(index, letters, mode="dense", rerank="mini")
    with pytest.raises(InvalidInput, match="type object"):
        Retriever(index, letters, object(), mode="hybrid")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="hybrid search"):
        Retriever(index, letters, mode="hybrid", rerank="mini").retrieve("花呗", mode="lexical")


def test_another_models_hits_are_reranked_by_no_default_and_refused_by_name(
    index: PEGIndex, letters: LetterEncoder
) -> None:
    hits = Retriever(index, letters, mode="hybrid").retrieve("花呗逾期")
    assert hits == Retriever(index, letters, None, mode="hybrid").retrieve("花呗逾期")
    assert hits == Retriever(index, letters, "none", mode="hybrid").retrieve("花呗逾期")
    assert all("rerank" not in hit.scores for hit in hits)
    with pytest.raises(InvalidInput, match=r"trained on the scores of peg-mini@\w{8}, and the vectors are of letters"):
        Retriever(index, letters, "mini", mode="hybrid")


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "dense"},
        {"mode": "lexical"},
        {"mode": "mmr"},
        {"weights": {"dense": 0.7, "lexical": 0.3}},
        {"fusion": "rrf"},
        {"rerank": "none"},
        {"rerank": None},
    ],
)
def test_by_default_only_the_indexs_own_mix_is_reranked(
    index: PEGIndex, letters: LetterEncoder, tiny: MiniReranker, options: dict[str, Any]
) -> None:
    hits = Retriever(index, letters, **({"mode": "hybrid"} | options)).retrieve("花呗逾期")
    assert hits
    assert all("rerank" not in hit.scores for hit in hits)
    by_name = Retriever(index, letters, "mini", mode="hybrid", fusion="rrf").retrieve("花呗逾期")
    assert all("rerank" in hit.scores for hit in by_name)


def test_scores_fall_between_one_and_zero_and_k_cuts_the_same_list(
    letters: LetterEncoder, tiny: MiniReranker, many: PEGIndex
) -> None:
    whole = Retriever(many, letters, k=len(many), mode="hybrid").retrieve("花呗逾期还款")
    assert len(whole) == len(many)
    scores = [hit.score for hit in whole]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] <= scores[0] < 1
    for k in (1, 3, 49, 50):
        hits = Retriever(many, letters, k=k, mode="hybrid").retrieve("花呗逾期还款")
        assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in whole[:k]]


def test_hits_beyond_the_candidates_keep_their_order_behind_them(
    letters: LetterEncoder, tiny: MiniReranker, many: PEGIndex
) -> None:
    plain = Retriever(many, letters, None, k=len(many), mode="hybrid").retrieve("花呗还款")
    hits = Retriever(many, letters, k=len(many), mode="hybrid").retrieve("花呗还款")
    assert {hit.id for hit in hits[:50]} == {hit.id for hit in plain[:50]}
    assert [hit.id for hit in hits[50:]] == [hit.id for hit in plain[50:]]
    assert ["rerank" in hit.scores for hit in hits] == [True] * 50 + [False] * (len(many) - 50)
    few = Retriever(many, letters, k=10, mode="hybrid", fetch_k=20).retrieve("花呗还款")
    assert len(few) == 10
    assert all("rerank" in hit.scores for hit in few)


@given(threshold=st.floats(-0.1, 1.1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_threshold_leaves_the_same_hits_in_the_rerankers_order(
    letters: LetterEncoder, tiny: MiniReranker, many: PEGIndex, threshold: float
) -> None:
    plain = Retriever(many, letters, None, k=50, mode="hybrid", threshold=threshold).retrieve("花呗逾期")
    hits = Retriever(many, letters, k=50, mode="hybrid", threshold=threshold).retrieve("花呗逾期")
    whole = Retriever(many, letters, k=50, mode="hybrid").retrieve("花呗逾期")
    assert {hit.id for hit in hits} == {hit.id for hit in plain}
    assert hits == [hit for hit in whole if hit.scores["fused"] >= threshold]


def test_deleted_documents_and_filters(letters: LetterEncoder, tiny: MiniReranker, many: PEGIndex) -> None:
    retriever = Retriever(many, letters, k=5, mode="hybrid")
    best = retriever.retrieve("花呗逾期")[0]
    many.delete([best.id])
    assert best.id not in {hit.id for hit in retriever.retrieve("花呗逾期", k=200)}
    some = retriever.retrieve("花呗逾期", k=200, where={"number": {"$lt": 7}})
    assert 0 < len(some) <= 7
    assert all(hit.metadata["number"] < 7 and "rerank" in hit.scores for hit in some)
    many.delete([hit.id for hit in some])
    assert retriever.retrieve("花呗逾期", where={"number": {"$lt": 7}}) == []
    many.clear()
    assert retriever.retrieve("花呗逾期") == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_documents(letters: LetterEncoder, tiny: MiniReranker, count: int) -> None:
    with PEGIndex(identity=letters.identity) as few:
        few.upsert(PASSAGES[:count], PASSAGES[:count], letters.encode_documents(PASSAGES[:count]))
        hits = Retriever(few, letters, mode="hybrid").retrieve("银行卡")
    assert len(hits) == count
    assert all(0 < hit.score < 1 for hit in hits)


def test_a_query_without_any_unit(index: PEGIndex, letters: LetterEncoder, tiny: MiniReranker) -> None:
    assert len(Retriever(index, letters, mode="hybrid").retrieve("？！")) == len(PASSAGES)


class Silent:
    """A searcher whose hits have one score only."""

    def search_batch(self, vectors: Any = None, texts: Any = None, *, k: int = 10, **settings: Any) -> Any:
        return [[Hit(str(n), "花呗", 1 - n / 10) for n in range(4)][:k] for _ in texts]


def test_a_searcher_that_gives_one_score_only(letters: LetterEncoder, tiny: MiniReranker) -> None:
    hits = Retriever(Silent(), letters, k=3, mode="hybrid").retrieve("花呗")
    assert [hit.id for hit in hits] == ["0", "1", "2"]
    assert len(Retriever(Silent(), letters, k=3, mode="hybrid", threshold=0.85).retrieve("花呗")) == 2
    with pytest.raises(UnsupportedSearch, match="scores dense"):
        Retriever(Silent(), letters, "mini", mode="hybrid").retrieve("花呗")


def test_the_old_name_of_the_argument_still_works(index: PEGIndex, letters: LetterEncoder, tiny: MiniReranker) -> None:
    class Lengths:
        def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
            return [float(len(text)) for _, text in text_pairs]

    with pytest.warns(DeprecationWarning, match="rerank="):
        old = Retriever(index, letters, reranker=Lengths(), k=2)
    assert old.retrieve("花呗") == Retriever(index, letters, Lengths(), k=2).retrieve("花呗")
    with pytest.warns(DeprecationWarning, match="rerank="), pytest.raises(InvalidInput, match="leave reranker="):
        Retriever(index, letters, "none", reranker=Lengths())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_reranks_with_an_index_of_its_own(tmp_path: Path) -> None:
    code = f"""
import os, sys
from peg_rag import PEGEncoder, PEGIndex, Retriever
path, passages = {str(tmp_path / "kb")!r}, {PASSAGES!r}
with PEGEncoder("peg-mini") as encoder:
    with PEGIndex(path, identity=encoder.identity) as index:
        index.upsert(passages, passages, encoder.encode_documents(passages))
        before = Retriever(index, encoder, mode="hybrid").retrieve("花呗逾期")
        sys.stdout.flush()
        child = os.fork()
        if not child:
            with PEGIndex(path, identity=encoder.identity, read_only=True) as own:
                os._exit(0 if Retriever(own, encoder, mode="hybrid").retrieve("花呗逾期") == before else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert all("rerank" in hit.scores for hit in before)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_langchains_retriever_reranks_by_the_same_rule(index: PEGIndex, letters: LetterEncoder) -> None:
    from langchain_core.embeddings import Embeddings

    from peg_rag.langchain import PEGEmbeddings, PEGRetriever, PEGVectorStore

    def scores_of(store: PEGVectorStore, **fields: Any) -> list[dict[str, float]]:
        retriever = PEGRetriever(vectorstore=store, k=3, with_scores=True, **fields)
        documents = retriever.invoke("花呗逾期")
        assert [document.metadata["score"] for document in documents] == sorted(
            (document.metadata["score"] for document in documents), reverse=True
        )
        return [document.metadata["scores"] for document in documents]

    store = PEGVectorStore.from_texts(PASSAGES, PEGEmbeddings(model="peg-mini"))
    assert all("rerank" in scores for scores in scores_of(store, search_type="hybrid"))
    assert not any("rerank" in scores for scores in scores_of(store, search_type="hybrid", rerank="none"))
    assert not any("rerank" in scores for scores in scores_of(store))

    class Letters(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            vectors: list[list[float]] = letters.encode_documents(texts).tolist()
            return vectors

        def embed_query(self, text: str) -> list[float]:
            vector: list[float] = letters.encode_queries([text])[0].tolist()
            return vector

    nameless = PEGVectorStore.from_texts(PASSAGES, Letters())
    assert not any("rerank" in scores for scores in scores_of(nameless, search_type="hybrid"))
    assert all("rerank" in scores for scores in scores_of(nameless, search_type="hybrid", rerank="mini"))
    with pytest.raises(ValueError, match="rerank"):
        PEGRetriever(vectorstore=store, search_type="hybrid", rerank="maxi")
    with pytest.raises(InvalidInput, match="hybrid"):
        PEGRetriever(vectorstore=store, rerank="mini")


def test_llama_indexs_store_reranks_by_the_same_rule(letters: LetterEncoder, tiny: MiniReranker) -> None:
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

    from peg_rag.llama_index import PEGVectorStore

    store = PEGVectorStore(identity=letters.identity)
    vectors = letters.encode_documents(PASSAGES)
    store.add(
        [TextNode(id_=text, text=text, embedding=row.tolist()) for text, row in zip(PASSAGES, vectors, strict=True)]
    )
    query = VectorStoreQuery(
        query_embedding=letters.encode_queries(["花呗逾期"])[0].tolist(),
        query_str="花呗逾期",
        similarity_top_k=3,
        mode=VectorStoreQueryMode.HYBRID,
    )
    expected = Retriever(store.client, letters, k=3, mode="hybrid").retrieve("花呗逾期")
    result = store.query(query)
    assert result.ids == [hit.id for hit in expected]
    assert result.similarities == pytest.approx([hit.score for hit in expected])
    limited = Retriever(store.client, letters, k=3, mode="hybrid", threshold=0.4).retrieve("花呗逾期")
    assert store.query(query, threshold=0.4).ids == [hit.id for hit in limited]
    fused = store.query(query, rerank="none")
    assert fused.similarities == [hit.score for hit in store.client.search(query.query_embedding, "花呗逾期", k=3)]
    query.alpha = 0.5
    mixed = {"dense": 0.5, "lexical": 0.5}
    assert store.query(query).ids == [
        hit.id for hit in store.client.search(query.query_embedding, "花呗逾期", k=3, weights=mixed)
    ]
    ids = store.query(query, rerank="mini").ids
    assert ids
    assert ids[0] == expected[0].id


# -- the bundled one --------------------------------------------------------------------------------------------------


def test_the_bundled_reranker_prefers_the_passage_with_the_name(letters: LetterEncoder) -> None:
    from peg_rag import PEGEncoder

    passages = [
        "八达岭长城的门票旺季40元，淡季35元。",
        "慕田峪长城的门票45元，六十岁以上老人半价。",
        "长城的门票可以在网上预约，也可以现场购买。",
        "故宫的门票旺季60元。",
    ]
    with PEGEncoder("peg-mini") as encoder, PEGIndex(identity=encoder.identity) as index:
        index.upsert(list("abcd"), passages, encoder.encode_documents(passages))
        retriever = Retriever(index, encoder, mode="hybrid")
        first = retriever.retrieve("慕田峪长城门票多少钱")
        assert first[0].id == "b"
        assert len(first) == 4
        assert all("rerank" in hit.scores for hit in first)
        with pytest.raises(InvalidInput, match="blank"):
            retriever.retrieve(" ")
        assert retriever.retrieve("慕田峪长城门票多少钱") == first


def test_the_bundled_reranker_is_whole() -> None:
    reranker = load_reranker("mini")
    assert load_reranker("mini") is reranker
    assert 0 < reranker.share <= 1
    with pytest.raises(InvalidInput, match="'mini'"):
        load_reranker("maxi")


def test_the_bundled_reranker_belongs_to_the_bundled_model() -> None:
    from safetensors import safe_open

    with safe_open(bundled_path("reranker-mini") / "reranker.safetensors", "numpy") as stream:
        settings = json.loads(stream.metadata()["reranker"])
    model = resolve("peg-mini")
    assert settings["model"] == f"{model.name}@{model.fingerprint}", "train the reranker again: train/reranker.py"


def test_it_is_imported_only_when_used_and_brings_no_torch() -> None:
    code = """
import sys, peg_rag.retriever
assert "peg_rag.reranking" not in sys.modules
from peg_rag.reranking import load_reranker
load_reranker("mini")
print([name for name in ("torch", "lightgbm", "transformers", "tokenizers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
