"""Evaluation sets, exact search and metrics: against hand-worked values, trec_eval's own code and brute force."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from conftest import LetterEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from peg_rag.errors import DataError, InvalidInput
from peg_rag.evaluation import METRICS, evaluate, exact_search, load_beir, load_sts, score_run
from peg_rag.extras import require_zstd
from peg_rag.index.exact import Neighbours, update_neighbours

zstd = require_zstd("train")

CORPUS = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(["aab", "bbc", "ccd", "花呗", "银行卡"])]
QUERIES = [{"_id": "q0", "text": "ab"}, {"_id": "q1", "text": "花"}, {"_id": "unjudged", "text": "x"}]
QRELS = "query-id\tcorpus-id\tscore\nq0\td0\t2\nq0\td1\t1\nq1\td3\t1\nq1\td0\t0\n"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    pack = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))


def write_beir(folder: Path, suffix: str = "", qrels: str = QRELS) -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    write_lines(folder / f"corpus.jsonl{suffix}", CORPUS)
    write_lines(folder / f"queries.jsonl{suffix}", QUERIES)
    (folder / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_load_beir(tmp_path: Path, suffix: str) -> None:
    dataset = load_beir(write_beir(tmp_path / "toy", suffix))
    assert dataset.name == "toy"
    assert dataset.corpus["d3"] == "花呗"
    assert dataset.queries == {"q0": "ab", "q1": "花"}  # only judged queries
    assert dataset.qrels == {"q0": {"d0": 2, "d1": 1}, "q1": {"d3": 1, "d0": 0}}


def test_titles_stand_before_the_text(tmp_path: Path) -> None:
    folder = write_beir(tmp_path)
    write_lines(folder / "corpus.jsonl", [{"_id": "d0", "title": "标题", "text": "正文"}, *CORPUS[1:]])
    assert load_beir(folder).corpus["d0"] == "标题 正文"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "d0", "text": "a"}\n{"_id": "d1"\n', r"corpus\.jsonl, line 2 is not JSON"),
        ("corpus.jsonl", '{"_id": "d0", "text": 3}\n', r"corpus\.jsonl, line 1: expected strings"),
        ("corpus.jsonl", "[1]\n", r"corpus\.jsonl, line 1 is a JSON list; an object"),
        ("corpus.jsonl", '{"_id": "d0", "text": "a"}\n' * 2, r"line 2: the id 'd0' was already used"),
        ("corpus.jsonl", "", r"corpus\.jsonl is empty"),
        ("queries.jsonl", '{"_id": "q0", "text": "a"}\n', r"test\.tsv: 1 queries are not in queries\.jsonl.*'q1'"),
        ("qrels/test.tsv", "query-id corpus-id score\n", r"test\.tsv, line 1: expected the header"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\n", r"line 2: expected 3 tab-separated fields, got 2"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\tyes\n", r"line 2: the grade must be a whole number"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", r"test\.tsv has no judgements"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = write_beir(tmp_path)
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_beir(folder)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_missing_and_cut_files(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        load_beir(tmp_path / "nowhere")
    folder = write_beir(tmp_path / "cut", suffix)
    corpus = folder / f"corpus.jsonl{suffix}"
    corpus.write_bytes(corpus.read_bytes()[: corpus.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"corpus\.jsonl\{suffix}: cannot be read after line"):
        load_beir(folder)
    corpus.unlink()
    with pytest.raises(DataError, match=r"corpus\.jsonl does not exist, neither plain nor packed"):
        load_beir(folder)


def test_judged_documents_outside_the_corpus_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_beir(write_beir(tmp_path, qrels=QRELS + "q1\td99\t1\n"))
    assert "1 judged documents are not in the corpus" in caplog.text


def test_load_sts(tmp_path: Path) -> None:
    path = tmp_path / "toy.dev.tsv"
    path.write_text("sentence1\tsentence2\tlabel\n花呗\t借呗\t1\na\tb\t0.5\n", encoding="utf-8")
    pairs = load_sts(path)
    assert (pairs.name, pairs.first, pairs.second) == ("toy.dev", ("花呗", "a"), ("借呗", "b"))
    assert pairs.labels.tolist() == [1.0, 0.5]
    path.write_text("sentence1\tsentence2\tlabel\na\tb\tentailment\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: the label must be a number"):
        load_sts(path)


def test_metrics_by_hand() -> None:
    qrels = {"q0": {"d0": 2, "d1": 1}, "q1": {"d3": 1}, "q2": {"d4": 1}}
    run = {"q0": {"d1": 3.0, "d9": 2.0, "d0": 1.0}, "q1": {f"x{i:02d}": 100.0 - i for i in range(11)} | {"d3": 1.0}}
    values = score_run(run, qrels)
    ideal = 2 + 1 / np.log2(3)
    assert values["nDCG@10"] == pytest.approx([(1 + 2 / np.log2(4)) / ideal, 0, 0])
    assert values["MRR@10"] == pytest.approx([1, 0, 0])  # q1's document stands at rank 12
    assert values["Recall@10"] == pytest.approx([1, 0, 0])
    assert values["Recall@100"] == pytest.approx([1, 1, 0])
    assert values["MAP@100"] == pytest.approx([(1 + 2 / 3) / 2, 1 / 12, 0])


def test_mrr_keeps_rank_ten_and_drops_rank_eleven() -> None:
    run = {"q": {f"d{i:02d}": 50.0 - i for i in range(20)}}
    assert score_run(run, {"q": {"d09": 1}})["MRR@10"] == pytest.approx([0.1])
    assert score_run(run, {"q": {"d10": 1}})["MRR@10"] == pytest.approx([0.0])


def test_unknown_metric() -> None:
    with pytest.raises(InvalidInput, match=r"unknown metric 'F1'.*nDCG@10"):
        score_run({}, {"q": {"d": 1}}, ["F1"])


def random_run(rng: np.random.Generator, queries: int, documents: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores with many ties, several grades, and judgements for documents nobody returned."""
    run = {
        f"q{i}": {f"d{j}": float(rng.integers(0, 30)) / 8 for j in rng.choice(documents, 120, replace=False)}
        for i in range(queries)
    }
    qrels = {f"q{i}": {f"d{j}": int(rng.integers(0, 4)) for j in rng.choice(documents, 15)} for i in range(queries)}
    return run, qrels


def test_metrics_agree_with_pytrec_eval() -> None:
    run, qrels = random_run(np.random.default_rng(0), queries=200, documents=400)
    ours = score_run(run, qrels)
    names = {"nDCG@10": "ndcg_cut_10", "Recall@10": "recall_10", "Recall@100": "recall_100", "MAP@100": "map_cut_100"}
    measures = {"ndcg_cut.10", "recall.10,100", "map_cut.100", "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    for name, theirs_name in names.items():
        assert ours[name] == pytest.approx([theirs[query][theirs_name] for query in qrels], abs=1e-6)
    reciprocal = np.array([theirs[query]["recip_rank"] for query in qrels])
    assert ours["MRR@10"] == pytest.approx(np.where(reciprocal > 0.0999, reciprocal, 0), abs=1e-6)
    assert (ours["MRR@10"] == 0).any() or reciprocal.min() >= 0.1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(1, 60), st.integers(1, 80), st.integers(1, 17), st.integers(0, 2**32 - 1))
def test_exact_search_equals_brute_force(rows: int, columns: int, k: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, documents = rng.normal(size=(rows, 4)), rng.normal(size=(columns, 4))
    found = exact_search(queries, documents, k, block=block)
    scores = queries.astype(np.float32) @ documents.astype(np.float32).T  # (rows, columns)
    best = -np.sort(-scores, axis=1)[:, :k]
    assert found.indices.shape == found.scores.shape == (rows, min(k, columns))
    np.testing.assert_allclose(found.scores, best, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, found.indices, 1), found.scores, atol=1e-5)
    assert all(len(set(row)) == len(row) for row in found.indices.tolist())


def test_exact_search_over_many_query_blocks() -> None:
    rng = np.random.default_rng(1)
    queries, documents = rng.normal(size=(1200, 8)), rng.normal(size=(50, 8))
    expected = np.argmax(queries @ documents.T, axis=1)
    assert exact_search(queries, documents, 1).indices[:, 0].tolist() == expected.tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_shards_of_documents_give_the_neighbours_of_all(shards: list[int], k: int, block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents = rng.integers(-1, 2, (sum(shards), 3)).astype(np.float32)  # few values: many ties
    queries = rng.integers(-1, 2, (5, 3)).astype(np.float32)
    k = min(k, len(documents))
    best = Neighbours(np.full((5, k), -1, dtype=np.int32), np.full((5, k), -np.inf, dtype=np.float32))
    first = 0
    for shard in shards:
        update_neighbours(best, queries, documents[first : first + shard], first=first, block=block)
        first += shard
    expected = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :k]
    assert best.indices.tolist() == expected.tolist()  # ties in order of position


def test_exact_search_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(InvalidInput, match=r"\(2, 3\).*\(4, 5\)"):
        exact_search(np.zeros((2, 3)), np.zeros((4, 5)), 1)
    with pytest.raises(InvalidInput, match="k must be at least 1"):
        exact_search(np.zeros((2, 3)), np.zeros((4, 3)), 0)


def test_evaluate_end_to_end(tmp_path: Path, letters: LetterEncoder) -> None:
    result = evaluate(letters, load_beir(write_beir(tmp_path / "toy")))
    assert (result.dataset, result.system) == ("toy", letters.identity)
    assert result.query_ids == ("q0", "q1")
    assert list(result.run["q0"])[:2] == ["d0", "d1"]
    assert result.mean() == pytest.approx(1.0)
    assert set(result.values) == set(METRICS)
    assert letters.calls == [("document", 5), ("query", 2)]
    with pytest.raises(InvalidInput, match="at least 100"):
        evaluate(letters, load_beir(tmp_path / "toy"), k=10)


def test_every_evaluation_set_loads(data_dir: Path) -> None:
    folder = data_dir / "eval" / "tourism-kdconv"
    dataset = load_beir(folder)
    assert (len(dataset.corpus), len(dataset.queries)) == (13_517, 880)
    assert load_sts(data_dir / "sts" / "stsb.dev.tsv").labels.shape == (1_455,)
