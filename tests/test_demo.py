"""The demo runs offline, on a corpus that is what its README says it is."""

import gzip
import json
from pathlib import Path

import pytest

from peg_rag.cli.app import run
from peg_rag.cli.demo import Question, count_successes, load_passages, load_questions
from peg_rag.hits import Hit

ASSETS = Path(__file__).resolve().parent.parent / "peg_rag" / "assets" / "demo"


def test_the_corpus_is_small_to_ship_and_large_to_search() -> None:
    passages = load_passages()
    assert sum(file.stat().st_size for file in ASSETS.iterdir()) < 2_000_000
    assert len(passages) == len({p["id"] for p in passages}) == len({p["text"] for p in passages}) > 5000
    assert all(set(p) <= {"id", "topic", "text", "title"} and p["text"].strip() for p in passages)


def test_the_readme_counts_every_passage_under_a_licence() -> None:
    readme = (ASSETS / "README.md").read_text(encoding="utf-8")
    counts: dict[str, int] = {}
    for passage in load_passages():
        prefix = passage["id"].split("-")[0]
        counts[prefix] = counts.get(prefix, 0) + 1
    kdconv = counts.pop("sight") + counts.pop("film") + counts.pop("music")
    for prefix, count in counts.items():
        assert f"| `{prefix}-*` | {count:,} |" in readme
    assert f"| `sight-*`, `film-*`, `music-*` | {kdconv:,} |" in readme
    assert f"{len(load_passages()):,} Chinese passages" in readme


def test_every_question_has_a_known_passage_in_the_corpus() -> None:
    ids = {p["id"] for p in load_passages()}
    questions = load_questions()
    assert 10 <= len(questions) <= 12
    assert all(asked.relevant and asked.relevant <= ids for asked in questions)


def test_no_passage_of_the_demo_is_an_evaluation_answer(data_dir: Path) -> None:
    texts = {p["text"] for p in load_passages()}
    for name in ("encyclopedia-cmrc2018", "science-csl", "tourism-kdconv"):
        folder = data_dir / "eval" / name
        relevant = {line.split("\t")[1] for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]}
        with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as corpus:
            rows = map(json.loads, corpus)
            assert not [row["_id"] for row in rows if row["_id"] in relevant and row["text"] in texts]


def test_questions_count_as_found_by_the_rank_of_a_known_passage() -> None:
    questions = [Question("a", frozenset({"x", "y"})), Question("b", frozenset({"z"}))]
    answers = [[Hit(i, "", 0.0) for i in ids] for ids in (["n", "y"], ["n", "m"])]
    assert [count_successes(k, questions, answers) for k in (1, 2)] == [0, 1]


def test_the_demo_answers_its_questions_with_citations(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")[1:]
    questions = load_questions()
    assert len(blocks) == len(questions) == 12
    for number, (question, block) in enumerate(zip(questions, blocks, strict=True), start=1):
        asked, *lines = block.splitlines()
        assert asked == f"{number:>2}. {question.text}"
        assert lines[0].endswith(" [1]")
        source = next(line for line in lines if line.startswith("    [1] "))
        assert question.answer in lines[0]
        assert source.endswith(" ✓"), source
        assert any(f"/{name}" in source for name in question.relevant)
    assert "✓ 12 of 12 questions" in blocks[-1]
    assert "(0/s)" not in blocks[-1]  # the seconds are those of this run


def test_the_demo_speaks_chinese_and_shows_hits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert run(["demo", "-k", "2"]) == 0
    printed = capsys.readouterr().out
    assert "✓ 12 个问题中，12 个的答案出自事先标注的正确段落" in printed
    assert printed.count("  dense ") + printed.count("dense 0") >= 24
