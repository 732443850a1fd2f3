"""What an evaluation leaves behind, and the command that does it all."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import LetterEncoder
from sample_files import static_model

from peg_rag.cli.app import run
from peg_rag.evaluation import BM25s, Dense, Evaluation, Indexed, RetrievalDataset, evaluate_all
from peg_rag.evaluation.report import summarise, write_per_query, write_report

TEXTS = {"d0": "花呗如何绑定银行卡", "d1": "借款逾期还款", "d2": "银行理财", "d3": "<b>abc</b>", "d4": "花呗逾期"}
QUERIES = {"q0": "绑定银行卡", "q1": "花呗逾期了", "q2": "没有 <i>答案</i>"}
SETS = [
    RetrievalDataset("玩具", TEXTS, QUERIES, {"q0": {"d0": 1}, "q1": {"d4": 1}, "q2": {"d3": 1}}),
    RetrievalDataset("other", TEXTS, {"q0": "银行"}, {"q0": {"d2": 1, "gone": 1}}),
]


@pytest.fixture
def results(letters: LetterEncoder) -> list[Evaluation]:
    return list(evaluate_all([Dense(letters, "letters"), BM25s(), Indexed("lexical")], SETS))


def test_summary_averages_seeds_and_compares_with_the_first(results: list[Evaluation]) -> None:
    rows = summarise(results)
    assert [row.dataset for row in rows] == ["玩具", "other"]
    assert list(rows[0].means) == ["letters", "bm25s-jieba", "bm25"]
    assert list(rows[0].comparisons) == ["bm25s-jieba", "bm25"]
    first, second = results[0], results[1]
    assert rows[0].comparisons["bm25s-jieba"].difference == pytest.approx(second.mean() - first.mean())
    seeds = [
        Evaluation("x", "s", ("a", "b"), {"nDCG@10": np.array(values)}, {}, 0.0) for values in ([0.0, 1.0], [1.0, 1.0])
    ]
    assert summarise(seeds)[0].means == {"s": 0.75}


def test_per_query_parquet(tmp_path: Path, results: list[Evaluation]) -> None:
    write_per_query(results, tmp_path / "deep" / "per_query.parquet")
    rows = pq.read_table(tmp_path / "deep" / "per_query.parquet").to_pylist()
    assert len(rows) == 3 * (3 + 1)
    row = next(r for r in rows if (r["dataset"], r["system"], r["query_id"]) == ("玩具", "letters", "q1"))
    assert (row["nDCG@10"], row["MRR@10"], row["first_document"]) == (1.0, 1.0, "d4")
    assert 0 < row["first_score"] <= 1
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["per_query.parquet"]  # no draft is left


def test_html_report(tmp_path: Path, results: list[Evaluation]) -> None:
    write_report(results, SETS, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 2
    assert ">玩具</text>" in page  # labels stay text, for the reader's fonts
    assert "&lt;b&gt;abc&lt;/b&gt;" in page
    assert "<i>答案</i>" not in page
    assert "(not in the corpus)" in page
    assert "p = " in page
    for forbidden in ("<script", "http://localhost", 'src="http'):
        assert forbidden not in page


def write_set(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", TEXTS), ("queries", QUERIES)):
        lines = [json.dumps({"_id": i, "text": text}, ensure_ascii=False) for i, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    qrels = "query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td4\t1\n"
    (folder / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(static_model(tmp_path / "models" / "small", "花呗如何绑定银行卡借款逾期还理财"))


def test_command(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    sts = tmp_path / "toy.tsv"
    sts.write_text("sentence1\tsentence2\tlabel\n花呗\t花呗\t1\n花呗\t理财\t0\n", encoding="utf-8")
    folder, out, cache = write_set(tmp_path / "toy"), tmp_path / "out", tmp_path / "vectors.sqlite"
    arguments = ["evaluate", str(folder), str(sts), "-m", model, "-s", "bm25,dense,hybrid,bm25s", "-o", str(out)]
    assert run([*arguments, "--cache", str(cache)]) == 0
    shown = capsys.readouterr().out
    for word in ("nDCG@10", "bm25", "small", "hybrid", "bm25s-jieba", "toy", "Spearman", "1.000"):
        assert word in shown
    assert sorted(path.name for path in out.iterdir()) == ["per_query.parquet", "report.html"]
    assert cache.is_file()
    assert run([*arguments, "--cache", str(cache)]) == 0
    assert capsys.readouterr().out == shown  # from the cache: the same numbers


def test_the_default_systems_have_the_reranker_where_it_was_measured(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = str(write_set(tmp_path / "toy"))
    assert run(["evaluate", toy]) == 0
    assert "reranked" in capsys.readouterr().out
    assert run(["evaluate", toy, "-m", model]) == 0
    assert "reranked" not in capsys.readouterr().out
    assert run(["evaluate", toy, "-m", model, "-s", "reranked"]) == 2
    assert "trained on the scores of peg-mini" in " ".join(capsys.readouterr().err.split())


def test_command_for_reranking(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    graded = tmp_path / "graded.tsv"
    graded.write_text("sentence1\tsentence2\tlabel\n花呗\t花呗\t1\n花呗\t理财\t0\n", encoding="utf-8")
    assert run(["evaluate", str(write_set(tmp_path / "toy")), str(graded), "-m", model, "--reranking"]) == 0
    shown = capsys.readouterr().out
    for word in ("MAP@100", "MRR@10", "toy (reranking)", "graded (reranking)", "small"):
        assert word in shown
    assert "bm25" not in shown
    assert run(["evaluate", str(graded), "-m", model, "--candidates", "--metric", "nDCG@10"]) == 0
    assert "MAP@100" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-s", "magic"], "unknown system 'magic' in --systems; choose from dense, bm25, bm25s, hybrid, reranked"),
        (["-s", ","], "--systems is empty"),
        (["--metric", "F1"], "unknown metric 'F1' in --metric; choose from nDCG@10"),
        (["--reranking", "-s", "bm25"], "--candidates ranks with the models only"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(write_set(tmp_path / "toy")), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_cross_encoder_names_the_package_that_it_needs(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert run(["evaluate", str(write_set(tmp_path / "toy")), "-m", model, "--reranker", "any/model"]) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "pip install sentence-transformers" in message
    assert "peg-rag[" not in message


def test_a_folder_that_is_no_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(tmp_path / "nowhere")]) == 1
    assert "is not a folder" in " ".join(capsys.readouterr().err.split())
