"""Systems, significance and STS: each against values worked out by hand or another implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import LetterEncoder
from scipy import stats

from peg_rag import PEGEncoder, PEGIndex, Retriever
from peg_rag.errors import DataError, InvalidInput
from peg_rag.evaluation import (
    BM25s,
    Candidates,
    Dense,
    Evaluation,
    Indexed,
    Reranked,
    RerankedHybrid,
    RetrievalDataset,
    SentencePairs,
    System,
    as_reranking,
    compare,
    evaluate,
    evaluate_all,
    load_dataset,
    load_dureader,
    sts_spearman,
    with_candidates,
)

TEXTS = {"d0": "花呗如何绑定银行卡", "d1": "借款逾期还款", "d2": "银行理财", "d3": "abc", "d4": "花呗逾期"}
TOY = RetrievalDataset("toy", TEXTS, {"q0": "绑定银行卡", "q1": "花呗逾期了"}, {"q0": {"d0": 1}, "q1": {"d4": 1}})


class LengthReranker:
    """Prefers long documents, whatever is asked."""

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        return [float(len(document)) for _, document in text_pairs]


@pytest.mark.parametrize("name", ["dense", "bm25s", "lexical", "hybrid"])
def test_every_system_finds_the_obvious(letters: LetterEncoder, name: str) -> None:
    systems: dict[str, System] = {
        "dense": Dense(letters, "dense"),
        "bm25s": BM25s(),
        "lexical": Indexed("lexical"),
        "hybrid": Indexed("hybrid", letters, "hybrid"),
    }
    result = evaluate(systems[name], TOY)
    assert result.system == systems[name].name
    assert {max(found, key=lambda d: found[d]) for found in result.run.values()} == {"d0", "d4"}
    assert result.mean("MRR@10") == pytest.approx(1.0)


def test_hybrid_equals_the_fusion_of_its_sides(letters: LetterEncoder) -> None:
    hybrid = Indexed("hybrid", letters, options={"fusion": "rrf"}).run(TOY, 100)["q0"]
    sides = [Dense(letters, "dense").run(TOY, 100)["q0"], Indexed("lexical").run(TOY, 100)["q0"]]
    expected: dict[str, float] = {}
    for side in sides:
        for place, document in enumerate(sorted(side, key=lambda d: -side[d]), start=1):
            expected[document] = expected.get(document, 0.0) + 1 / (60 + place)
    assert hybrid == pytest.approx(expected, abs=1e-6)


def test_the_reranked_hybrid_is_what_a_retriever_finds_by_default(letters: LetterEncoder) -> None:
    with PEGEncoder("peg-mini") as encoder, PEGIndex(identity=encoder.identity) as index:
        run = RerankedHybrid(encoder).run(TOY, 3)
        index.upsert(list(TEXTS), list(TEXTS.values()), encoder.encode_documents(list(TEXTS.values())))
        for query, text in TOY.queries.items():
            hits = Retriever(index, encoder, k=3, mode="hybrid").retrieve(text)
            assert all("rerank" in hit.scores for hit in hits)
            assert run[query] == pytest.approx({hit.id: hit.score for hit in hits})
    with pytest.raises(InvalidInput, match="peg-mini"):
        RerankedHybrid(letters).run(TOY, 3)


def test_reranked_orders_the_head_and_keeps_the_tail(letters: LetterEncoder) -> None:
    first = Dense(letters, "dense")
    plain = first.run(TOY, 100)["q0"]
    ranked = sorted(plain, key=lambda d: -plain[d])
    system = Reranked(first, LengthReranker(), candidates=3)
    again = system.run(TOY, 100)["q0"]
    assert system.name == "dense+reranker"
    order = sorted(again, key=lambda d: -again[d])
    assert sorted(order[:3]) == sorted(ranked[:3])
    assert [len(TEXTS[d]) for d in order[:3]] == sorted((len(TEXTS[d]) for d in ranked[:3]), reverse=True)
    assert order[3:] == ranked[3:]


def test_evaluate_all_goes_set_by_set(letters: LetterEncoder) -> None:
    other = RetrievalDataset("other", TEXTS, TOY.queries, TOY.qrels)
    found = [(r.dataset, r.system) for r in evaluate_all([letters, BM25s()], [TOY, other])]
    names = [letters.identity, "bm25s-jieba"]
    assert found == [("toy", names[0]), ("toy", names[1]), ("other", names[0]), ("other", names[1])]


def result_of(values: np.ndarray, dataset: str = "toy") -> Evaluation:
    ids = tuple(f"q{i}" for i in range(len(values)))
    return Evaluation(dataset, "system", ids, {"nDCG@10": values}, {}, 0.0)


def test_compare_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(300)
    b = np.clip(a + rng.normal(0.02, 0.2, 300), 0, 1)
    ours = compare([result_of(a)], [result_of(b)], resamples=20_000)
    theirs = stats.permutation_test((b, a), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=20_000)
    assert ours.difference == pytest.approx((b - a).mean())
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.02)
    interval = stats.bootstrap((b - a,), np.mean, n_resamples=5_000, method="percentile").confidence_interval
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), abs=0.005)
    assert (ours.wins, ours.losses) == ((b > a).sum(), (b < a).sum())


def test_compare_finds_a_difference_and_only_where_there_is_one() -> None:
    a = np.linspace(0, 1, 200)
    assert compare([result_of(a)], [result_of(a)]).p == 1.0
    assert compare([result_of(a)], [result_of(a + 0.1)]).p < 0.001


def test_seeds_are_averaged_before_the_test() -> None:
    a, noise = np.linspace(0, 1, 50), np.tile([0.2, -0.2], 25)
    result = compare([result_of(a)], [result_of(a + noise), result_of(a - noise)])
    assert result.difference == pytest.approx(0.0)
    assert result.p == 1.0


def test_compare_refuses_other_queries() -> None:
    with pytest.raises(InvalidInput, match="cannot be paired"):
        compare([result_of(np.ones(3))], [result_of(np.ones(4))])
    with pytest.raises(InvalidInput, match="cannot be paired"):
        compare([result_of(np.ones(3))], [result_of(np.ones(3), "other")])
    with pytest.raises(InvalidInput, match="at least one run"):
        compare([], [result_of(np.ones(3))])


def test_sts_by_hand(letters: LetterEncoder) -> None:
    first, second = ("aa", "ab", "abcd"), ("aa", "cd", "abce")
    assert sts_spearman(letters, SentencePairs("toy", first, second, np.array([3.0, 1.0, 2.0]))) == pytest.approx(1.0)
    assert sts_spearman(letters, SentencePairs("toy", first, second, np.array([1.0, 3.0, 2.0]))) == pytest.approx(-1.0)


def test_reranking_set_from_graded_pairs(letters: LetterEncoder) -> None:
    first = ("ab", "ab", "ab", "only right", "only wrong", "cd", "cd")
    second = ("abb", "花", "ddd", "x", "y", "cdd", "abb")
    dataset = as_reranking(SentencePairs("toy", first, second, np.array([2.0, 0, 1, 1, 0, 0, 1])))
    assert list(dataset.queries.values()) == ["ab", "cd"]
    names = {text: name for name, text in dataset.corpus.items()}
    assert dataset.qrels["q0"] == {names["abb"]: 2, names["花"]: 0, names["ddd"]: 1}
    result = evaluate(Candidates(letters, "letters"), dataset)
    assert set(result.run["q1"]) == {names["cdd"], names["abb"]}  # only its own candidates
    assert result.values["MRR@10"] == pytest.approx([1, 1 / 2])
    assert result.values["MAP@100"] == pytest.approx([(1 + 2 / 3) / 2, 1 / 2], abs=1e-6)
    with pytest.raises(DataError, match="no query with both"):
        as_reranking(SentencePairs("toy", ("a",), ("b",), np.array([1.0])))


def test_reranking_set_from_a_search(letters: LetterEncoder) -> None:
    texts = TEXTS | {"d5": "没有人找到"}
    dataset = RetrievalDataset("toy", texts, TOY.queries, {"q0": {"d0": 1, "d3": 0}, "q1": {"d4": 2, "gone": 1}})
    run = {"q0": {"d1": 3.0, "d0": 2.0, "d2": 1.0}, "q1": {"d4": 9.0}}
    found = with_candidates(dataset, run, k=2)
    assert found.qrels == {"q0": {"d1": 0, "d0": 1, "d3": 0}, "q1": {"d4": 2}}
    assert list(found.corpus) == ["d0", "d1", "d3", "d4"]  # nobody encodes what is no candidate
    assert set(evaluate(Candidates(letters, "letters"), found).run["q0"]) == {"d0", "d1", "d3"}


def write_dureader(folder: Path) -> Path:
    (folder / "passage-collection").mkdir(parents=True)
    (folder / "dev").mkdir()
    parts = {"part-00": ["第一段", "第二段"], "part-01": ["第三段"]}
    for name, passages in parts.items():
        (folder / "passage-collection" / name).write_text(
            "".join(f"-\t-\t{p}\t0\n" for p in passages), encoding="utf-8"
        )
    names = {"0": "a", "1": "b", "2": "c"}
    (folder / "passage-collection" / "passage2id.map.json").write_text(json.dumps(names), encoding="utf-8")
    answers = [{"paragraph_id": "b", "paragraph_text": "第二段"}, {"paragraph_id": "c", "paragraph_text": "第三段"}]
    question = {"question_id": "q7", "question": "问", "answer_paragraphs": answers}
    (folder / "dev" / "dev.json").write_text(json.dumps(question, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def test_load_dureader(tmp_path: Path) -> None:
    dataset = load_dataset(write_dureader(tmp_path / "dureader"))
    assert dataset.name == "dureader-dev"
    assert dataset.corpus == {"a": "第一段", "b": "第二段", "c": "第三段"}
    assert (dataset.queries, dataset.qrels) == ({"q7": "问"}, {"q7": {"b": 1, "c": 1}})


def test_dureader_errors_name_file_and_line(tmp_path: Path) -> None:
    folder = write_dureader(tmp_path / "dureader")
    (folder / "dev" / "dev.json").write_text('{"question_id": "q"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"dev\.json, line 1: expected question_id, question"):
        load_dureader(folder)
    (folder / "passage-collection" / "part-01").write_text("only text\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"part-01, line 1: expected 4 tab-separated fields, got 1"):
        load_dureader(folder)
    (folder / "passage-collection" / "part-01").write_text("-\t-\tx\t0\n-\t-\ty\t0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"part-01, line 2: passage2id\.map\.json gives line 3 no id"):
        load_dureader(folder)
