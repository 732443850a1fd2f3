"""Cleaning of training pairs: each rule, near-duplicates against brute force, the filter on planted noise."""

import json
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from peg_rag.cli.app import run
from peg_rag.errors import DataError, InvalidInput
from peg_rag.training import CleaningOptions, clean_pairs
from peg_rag.training.clean.consistency import assign_halves, rank_positives, trust_of
from peg_rag.training.clean.duplicates import character_runs, group_near_duplicates, jaccard, normalise
from peg_rag.training.clean.rules import RuleOptions, chinese_share, find_fault, repetition
from peg_rag.training.data.texts import text_key

LONG = (
    "合同的解除应当采用书面形式，通知到达对方时合同解除；对方有异议的，可以请求人民法院或者仲裁机构确认解除行为的效力。"
)


@pytest.mark.parametrize(
    ("query", "positive", "uses", "options", "fault"),
    [
        ("如何解除合同", LONG, 1, RuleOptions(), None),
        ("？", LONG, 1, RuleOptions(), "query too short"),
        ("问" * 600, LONG, 1, RuleOptions(), "query too long"),
        ("如何解除合同", "答", 1, RuleOptions(), "positive too short"),
        ("https://example.com/a?b=1", LONG, 1, RuleOptions(), "query is an address"),
        ("how to cancel", "Send a letter to the other side.", 1, RuleOptions(minimum_chinese=0.3), "not Chinese"),
        ("how to cancel", "Send a letter to the other side.", 1, RuleOptions(), None),
        ("如何解除合同", "<div class='a'><br/><p></p></div>&nbsp;书面形式", 1, RuleOptions(), "markup"),
        ("如何解除合同", "点击查看更多内容，" * 20, 1, RuleOptions(), "repetition"),
        ("如何解除合同", LONG, 101, RuleOptions(), "boilerplate"),
        ("如何解除合同", LONG, 101, RuleOptions(maximum_uses=None), None),
    ],
)
def test_each_rule_names_what_it_removes(
    query: str, positive: str, uses: int, options: RuleOptions, fault: str | None
) -> None:
    assert find_fault(query, positive, uses, options) == fault


def test_shares_are_those_of_letters() -> None:
    assert chinese_share("合同ab12，。") == 0.5
    assert chinese_share("2024-01-01") == 1.0
    assert repetition("合同" * 10) == 0.0  # too short to judge
    assert repetition("".join(chr(0x4E00 + i) for i in range(100))) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_near_duplicates_equal_brute_force_where_they_are_near(data: st.DataObject) -> None:
    """Texts are copies of a few with a character changed: always nearer than 0.8, or far from each other."""
    bases = ["".join(chr(0x4E00 + 97 * b + i) for i in range(60)) for b in range(4)]
    texts = []
    for _ in range(data.draw(st.integers(2, 12))):
        base = data.draw(st.sampled_from(bases))
        end = data.draw(st.sampled_from(["", "。", " 完", "！！"]))
        texts.append(base + end)
    groups = group_near_duplicates(texts).tolist()
    runs = [character_runs(normalise(text)) for text in texts]
    for i, group in enumerate(groups):
        near = [j for j in range(len(texts)) if jaccard(runs[i], runs[j]) >= 0.8]
        assert group == min(near)


def test_texts_that_only_share_a_topic_are_no_duplicates() -> None:
    texts = [LONG, LONG.replace("书面", "口头").replace("人民法院", "公证处").replace("对方", "乙方"), LONG[:30]]
    assert group_near_duplicates(texts).tolist() == [0, 1, 2]
    assert group_near_duplicates(["Ａ公司 2024", "a公司2024。"]).tolist() == [0, 0]
    assert group_near_duplicates([]).tolist() == []
    assert group_near_duplicates(["一"]).tolist() == [0]


class HashEncoder:
    """A text's vector is that of its first character, so texts that begin alike are near."""

    dimension = 16
    identity = "hash"

    def encode_queries(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        return self.encode_documents(texts)

    def encode_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        vectors = np.stack([np.random.default_rng(ord(text[0])).normal(size=16) for text in texts])
        unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit


def test_ranks_are_those_among_the_pool() -> None:
    letters = [chr(0x4E00 + i) for i in range(30)]
    queries = [f"{letter}问" for letter in letters]
    positives = [f"{letter}答" for letter in letters]
    positives[3] = "错了"
    keys = np.array([text_key(text) for text in positives], dtype=np.int64)
    ranks, cosines = rank_positives(queries, positives, keys, HashEncoder(), pool=1_000)
    assert [i for i, rank in enumerate(ranks.tolist()) if rank > 1] == [3]
    encoder = HashEncoder()
    own = encoder.encode_queries(queries)[3] @ encoder.encode_documents(positives).T
    assert ranks[3] == 1 + (np.delete(own, 3) > own[3] + 1e-6).sum()
    assert cosines[0] == pytest.approx(1.0, abs=1e-5)
    weights = trust_of(cosines)
    assert weights[3] == weights.min() < 0.2 < weights[0]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_kept_or_removed_with_their_reason(tmp_path: Path) -> None:
    letters = [chr(0x4E00 + i) for i in range(40)]
    rows: list[dict[str, Any]] = [
        {"query": f"{c}是什么意思", "positive": f"{c}的意思是{c * 2}", "negatives": ["别的"], "label": 2}
        for c in letters
    ]
    rows[5]["positive"] = "错误的答案在这里"
    rows += [dict(rows[0]), {"query": "只有问题"}, {"query": "？", "positive": "短问题的答案"}]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    options = CleaningOptions(top=1, trust=True)
    report = clean_pairs(pairs, tmp_path / "clean.jsonl", options=options, encoder=HashEncoder())
    assert report.rows == 43
    assert report.removed == {
        "no query or positive": 1,
        "query too short": 1,
        "near-duplicate": 1,
        "positive not found": 1,
    }
    kept = read_rows(tmp_path / "clean.jsonl")
    assert len(kept) == report.kept == 39
    assert kept[0]["negatives"] == ["别的"]
    assert kept[0]["label"] == 2
    assert all(0 <= row["weight"] <= 1 for row in kept)
    removed = read_rows(tmp_path / "clean.jsonl.removed.jsonl")
    assert {row["reason"] for row in removed} == report.removed.keys()
    assert {"query": "只有问题", "reason": "no query or positive"} in removed
    assert next(row for row in removed if row["reason"] == "positive not found")["query"].startswith(letters[5])


def test_models_that_have_not_seen_a_pair_judge_it(tmp_path: Path) -> None:
    """A fifth of the pairs has another's positive; the filter must remove most of these and few of the others."""
    generator = np.random.default_rng(0)
    words = [chr(0x4E00 + i) + chr(0x5000 + i) for i in range(60)]
    rows = []
    for i in range(1_200):
        topic = generator.choice(60, size=3, replace=False)
        query = "".join(words[j] for j in topic)
        rows.append({"query": f"{query}呢", "positive": f"关于{''.join(words[j] for j in topic[::-1])}第{i}条"})
    wrong = generator.choice(1_200, size=240, replace=False)
    texts = [rows[i]["positive"] for i in wrong]
    for i, text in zip(wrong.tolist(), texts[1:] + texts[:1], strict=True):
        rows[i]["positive"] = text
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    report = clean_pairs(pairs, tmp_path / "clean.jsonl", options=CleaningOptions(similarity=None, top=20))
    removed = {row["positive"] for row in read_rows(tmp_path / "clean.jsonl.removed.jsonl")}
    assert report.removed.keys() == {"positive not found"}
    share = len(removed & set(texts)) / len(texts)
    right = {row["positive"] for i, row in enumerate(rows) if i not in set(wrong.tolist())}
    assert share > 0.8
    assert len(removed & right) / len(right) < 0.1
    again = clean_pairs(pairs, tmp_path / "clean.jsonl", options=CleaningOptions(similarity=None, top=20))
    assert again.removed == report.removed


def test_both_halves_keep_a_positive_together() -> None:
    keys = np.array([text_key(f"答案{i % 50}") for i in range(500)], dtype=np.int64)
    halves = assign_halves(keys)
    assert all(len({bool(half) for half in halves[keys == key]}) == 1 for key in np.unique(keys))
    assert 0.2 < halves.mean() < 0.8


def test_what_cannot_be_cleaned_is_an_error(tmp_path: Path) -> None:
    empty = write_rows(tmp_path / "empty.jsonl", [{"frage": "was"}])
    with pytest.raises(DataError, match="no row with texts"):
        clean_pairs(empty, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(InvalidInput, match=r"a \.jsonl file is expected"):
        clean_pairs(empty, tmp_path / "out.csv")
    for wrong in ({"top": 0}, {"similarity": 0.0}, {"pool": 0}):
        with pytest.raises(InvalidInput):
            CleaningOptions(**wrong)
    for limits in ({"query_characters": (5, 2)}, {"minimum_chinese": 2.0}):
        with pytest.raises(InvalidInput):
            RuleOptions(**limits)


def test_a_file_of_pairs_is_never_written_over(tmp_path: Path) -> None:
    rows = [{"query": f"问题{i}号", "positive": f"答案{i}号"} for i in range(4)]
    pairs = write_rows(tmp_path / "pairs.jsonl", [*rows, {"query": "？", "positive": "答案"}])
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for out in (pairs, tmp_path / "link" / "pairs.jsonl"):
        with pytest.raises(InvalidInput, match="written over"):
            clean_pairs(pairs, out, options=CleaningOptions(top=None))
    kept = write_rows(tmp_path / "out.jsonl.removed.jsonl", rows)
    with pytest.raises(InvalidInput, match="written over"):
        clean_pairs(kept, tmp_path / "out.jsonl", options=CleaningOptions(top=None))
    assert len(read_rows(pairs)) == 5
    assert read_rows(kept) == rows


def test_columns_of_parquet_travel_along_or_are_refused_before_any_work(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {"query": ["问题一"], "positive": ["答案一"], "day": [date(2024, 1, 2)]}
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    out = tmp_path / "out.jsonl"
    clean_pairs(tmp_path / "pairs.parquet", out, options=CleaningOptions(top=None))
    assert read_rows(out) == [{"query": "问题一", "positive": "答案一", "day": "2024-01-02"}]
    pq.write_table(pa.table({**columns, "picture": [b"png"]}), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=r"pairs\.parquet:1: .*'picture'"):
        clean_pairs(tmp_path / "pairs.parquet", out, options=CleaningOptions(top=None))


def test_other_pairs_are_judged_by_other_models(tmp_path: Path) -> None:
    """The folder of the first models is kept for an interrupted call, and must not judge what it was not made for."""
    first = [{"query": f"第{i}个问题", "positive": f"第{i}个回答在此"} for i in range(40)]
    changed = [{"query": f"另{i}个问题", "positive": f"另{i}个回答在此"} for i in range(40)]
    out = tmp_path / "out.jsonl"
    options = CleaningOptions(similarity=None, trust=True)
    clean_pairs(write_rows(tmp_path / "a.jsonl", first), out, options=options)
    for rows in (first[:30], changed):
        pairs = write_rows(tmp_path / "a.jsonl", rows)
        clean_pairs(pairs, out, options=options)
        again = read_rows(out)
        clean_pairs(pairs, tmp_path / "fresh.jsonl", options=options)
        assert again == read_rows(tmp_path / "fresh.jsonl")
        shutil.rmtree(tmp_path / "fresh.jsonl.cleaning")
    clean_pairs(pairs, out, options=CleaningOptions(similarity=None, seed=1))


def test_an_interruption_of_the_first_models_ends_the_cleaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peg_rag.training.run import train as training

    pairs = write_rows(
        tmp_path / "pairs.jsonl", [{"query": f"第{i}个问题", "positive": f"第{i}个回答在此"} for i in range(40)]
    )
    whole = training.train
    monkeypatch.setattr(training, "train", lambda *given, **options: whole(*given, **options, on_log=lambda _: True))
    with pytest.raises(KeyboardInterrupt):
        clean_pairs(pairs, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    monkeypatch.undo()
    assert clean_pairs(pairs, tmp_path / "out.jsonl").rows == 40


@pytest.mark.filterwarnings("error")
def test_where_no_pair_is_left_nothing_is_judged(tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"query": "相同", "positive": "相同"}])
    report = clean_pairs(pairs, tmp_path / "out.jsonl", encoder=HashEncoder())
    assert (report.rows, report.kept) == (1, 0)


def test_the_command_prints_what_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"query": f"问题{i}号", "positive": f"答案{i}号"} for i in range(4)]
    pairs = write_rows(tmp_path / "pairs.jsonl", [*rows, {"query": "？", "positive": "答案"}])
    out = str(tmp_path / "out.jsonl")
    assert run(["clean", str(pairs), "-o", out, "--model", "peg-mini", "--similarity", "0"]) == 0
    printed = capsys.readouterr().err
    assert "4 of 5 pairs" in printed
    assert "1 query too short" in printed
