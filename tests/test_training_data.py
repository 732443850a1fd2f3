"""Pairs from files: forms, cleaning, bad rows by file and line, repeats, the cache, token rows, batches, the split."""

import csv
import gzip
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from peg_rag.errors import DataError, RecipeError
from peg_rag.extras import require_zstd
from peg_rag.training.data.batches import FeatureRows, KnownPositives, RankBatch, StepBatches
from peg_rag.training.data.pairs import PairFile, load_pairs, pair_texts, row_tokens
from peg_rag.training.data.sampler import BatchPlan, PlannedBatch
from peg_rag.training.data.texts import clean_text, text_key
from peg_rag.training.data.tokens import TokenRows
from peg_rag.training.model.vocabulary import character_tokenizer, word_tokenizer
from peg_rag.training.recipe import Columns, SourceOptions, ValidationOptions
from peg_rag.training.run.validation import retrieval_validation, spearman, split_rows, training_sources

zstd = require_zstd("train")

ROWS: list[dict[str, Any]] = [
    {"query": "花呗如何还款", "positive": "在支付宝里还花呗", "negatives": ["银行卡挂失", "借呗利率"]},
    {"query": "故宫门票多少钱", "positive": "旺季六十元", "label": "2"},
    {"query": "发烧怎么办", "positive": "多喝水，物理降温。"},
]


@pytest.fixture
def characters() -> Tokenizer:
    """Every character is its code point modulo 997: ids can be worked out by hand."""
    vocabulary = {chr(c): c for c in range(0x3000, 0x9FFF)} | {"[UNK]": 0}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.enable_truncation(12)
    return tokenizer


Load = Callable[..., list[PairFile]]


@pytest.fixture
def load(tmp_path: Path, characters: Tokenizer) -> Load:
    def read(*files: Path, columns: Columns | None = None, **options: Any) -> list[PairFile]:
        sources = [SourceOptions(path=str(file), columns=columns or Columns()) for file in files]
        return load_pairs(sources, characters, tmp_path / "cache", **options)

    return read


def write_jsonl(file: Path, rows: list[Any]) -> Path:
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows), "utf-8")
    return file


def write(folder: Path, form: str) -> Path:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
    file = folder / f"pairs.{form}"
    if form == "jsonl":
        file.write_bytes(lines)
    elif form == "jsonl.gz":
        file.write_bytes(gzip.compress(lines))
    elif form == "jsonl.zst":
        file.write_bytes(zstd.compress(lines))
    elif form == "parquet":
        whole = [{"query": None, "positive": None, "negatives": None, "label": None, **row} for row in ROWS]
        pq.write_table(pa.Table.from_pylist(whole), file)
    else:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(
                stream, delimiter="\t" if form == "tsv" else ",", quoting=3 if form == "tsv" else 0, quotechar='"'
            )
            writer.writerow(["query", "positive", "label"])
            writer.writerows([row["query"], row["positive"], row.get("label", "")] for row in ROWS)
    return file


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "csv", "tsv", "parquet"])
def test_every_form_gives_the_same_rows(form: str, tmp_path: Path, load: Load) -> None:
    (file,) = load(write(tmp_path, form))
    texts = pair_texts(file, file.usable)
    assert [(t["query"], t["positive"]) for t in texts] == [(r["query"], r["positive"]) for r in ROWS]
    assert texts[0]["negatives"] == ([] if form in ("csv", "tsv") else ["银行卡挂失", "借呗利率"])
    assert file.grades.tolist()[1] == 2.0
    assert np.isnan(file.grades[0])
    tokens = row_tokens(file, file.usable)
    assert tokens.queries[2].tolist() == [ord(c) for c in "发烧怎么办"]
    assert tokens.negative_offsets.tolist() == ([0, 0, 0, 0] if form in ("csv", "tsv") else [0, 2, 2, 2])


def test_bad_rows_are_left_out_counted_and_named_by_line(
    tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [
        '{"query": "cut',
        "[1, 2]",
        {"query": "没有答案"},
        {"query": 5, "positive": "数字"},
        {"query": " \u200b", "positive": "空的问题"},
        {"query": "一样 的", "positive": "一样，的！"},
        {"query": "问", "positive": "答", "negatives": "不是列表"},
    ]
    with caplog.at_level(logging.WARNING):
        (file,) = load(write_jsonl(tmp_path / "some.jsonl", [*ROWS, *bad]), maximum_bad_share=0.9)
    assert len(file.usable) == 3
    assert file.report.bad == 7
    assert file.report.faults[0] == "some.jsonl:4: not JSON"
    assert (
        "some.jsonl: 7 of 10 rows are left out (some.jsonl:4: not JSON; some.jsonl:5: not a JSON object" in caplog.text
    )
    assert file.report.dropped == {
        "not JSON": 1,
        "not a JSON object": 1,
        "positive is not a string": 1,
        "query is not a string": 1,
        "query is blank": 1,
        "query and positive are the same text": 1,
        "negatives is not a list of strings": 1,
    }


def test_too_large_a_share_of_bad_rows_stops_the_run(tmp_path: Path, load: Load) -> None:
    file = write_jsonl(tmp_path / "some.jsonl", [*ROWS, "{"])
    with pytest.raises(
        DataError, match=r"1 of 4 rows of some\.jsonl are bad, .*maximum_bad_share=0\.01.*some\.jsonl:4"
    ):
        load(file)
    with pytest.raises(DataError, match="1 of 4"):  # the cache does not hide it
        load(file)
    assert len(load(file, maximum_bad_share=0.5)[0].usable) == 3


@pytest.mark.parametrize("content", ["", "\n\n", "{\n"])
def test_a_file_without_a_usable_row_is_an_error(content: str, tmp_path: Path, load: Load) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"sources\[0\]: empty\.jsonl has no usable row"):
        load(file, maximum_bad_share=1.0)


def test_a_wrong_column_name_names_those_there_are(tmp_path: Path, load: Load) -> None:
    file = write_jsonl(tmp_path / "some.jsonl", [{"question": "问", "answer": "答"}])
    with pytest.raises(DataError, match=r"has no column 'query'; its columns are 'question', 'answer'.*columns\.query"):
        load(file)
    (read,) = load(file, columns=Columns(query="question", positive="answer"))
    assert pair_texts(read, read.usable)[0]["query"] == "问"


def test_missing_files_kinds_and_variables_are_named(tmp_path: Path, load: Load) -> None:
    with pytest.raises(DataError, match=r"sources\[0\]\.path: .*nothing\.jsonl does not exist"):
        load(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="no file matches"):
        load(tmp_path / "no*.jsonl")
    with pytest.raises(RecipeError, match="NOT_SET_ANYWHERE is not set"):
        load(Path("$NOT_SET_ANYWHERE/x.jsonl"))
    (tmp_path / "some.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"unknown kind of file; \.jsonl"):
        load(tmp_path / "some.xlsx")


def _cut_off(packed: bytes) -> bytes:
    return packed[:-20]


def _damaged(packed: bytes) -> bytes:
    return packed[: len(packed) // 2] + b"\xff" * (len(packed) // 2)


@pytest.mark.parametrize("broken", [_cut_off, _damaged])
@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd.compress)])
def test_packed_files_that_are_not_whole_are_named(
    tmp_path: Path, load: Load, suffix: str, pack: Callable[[bytes], bytes], broken: Callable[[bytes], bytes]
) -> None:
    """Also a .zst that is cut off: no row of it may be lost in silence."""
    file = tmp_path / f"pairs.jsonl{suffix}"
    rows = "".join(json.dumps({"query": f"问{i}", "positive": f"答{i * i}"}) + "\n" for i in range(5_000)).encode()
    file.write_bytes(pack(rows[: len(rows) // 2]) + pack(rows[len(rows) // 2 :]))
    assert load(file)[0].report.rows == 5_000
    file.write_bytes(broken(file.read_bytes()))
    with pytest.raises(DataError, match=rf"pairs\.jsonl\{suffix} cannot be read .* is the file whole"):
        load(file)


def test_patterns_leave_out_what_is_excluded(tmp_path: Path, characters: Tokenizer) -> None:
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", ROWS)
    source = SourceOptions(path=str(tmp_path / "*.jsonl"), exclude=("b.*",))
    assert [file.name for file in load_pairs([source], characters, tmp_path / "cache")] == ["a", "c"]


def test_repeated_pairs_count_once_whatever_their_punctuation(tmp_path: Path, load: Load) -> None:
    rows = [
        *ROWS,
        {"query": "花呗如何还款？", "positive": "在支付宝里，还花呗"},
        {"query": "花呗如何还款", "positive": "别的答案"},
    ]
    (file,) = load(write_jsonl(tmp_path / "some.jsonl", rows))
    assert file.usable.tolist() == [0, 1, 2, 4]
    assert file.report.repeated == 1


def test_rows_below_the_least_label_are_left_out(tmp_path: Path, characters: Tokenizer) -> None:
    file = write_jsonl(
        tmp_path / "some.jsonl", [{"query": f"问{i}", "positive": f"答{i}", "label": str(i)} for i in range(3)]
    )
    source = SourceOptions(path=str(file), minimum_label=1)
    assert load_pairs([source], characters, tmp_path / "cache")[0].usable.tolist() == [1, 2]


def test_the_cache_goes_by_content_and_tokenizer(tmp_path: Path, load: Load, characters: Tokenizer) -> None:
    file = write_jsonl(tmp_path / "some.jsonl", ROWS)
    load(file)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    load(file)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == made
    write_jsonl(file, ROWS[:2])
    assert len(load(file)[0].usable) == 2
    characters.enable_truncation(3)
    (short,) = load(file)
    assert row_tokens(short, short.usable).queries.lengths.tolist() == [3, 3]


def test_prompts_are_tokenised_with_the_texts(tmp_path: Path, load: Load) -> None:
    (file,) = load(write_jsonl(tmp_path / "some.jsonl", ROWS), prompts={"query": "问题", "document": "文章"})
    tokens = row_tokens(file, np.array([0]))
    assert tokens.queries[0][:2].tolist() == [ord("问"), ord("题")]
    assert tokens.negatives[0][:2].tolist() == [ord("文"), ord("章")]


@given(st.text())
def test_cleaning_is_idempotent_and_keys_ignore_case_width_and_marks(text: str) -> None:
    clean = clean_text(text)
    assert clean_text(clean) == clean
    assert clean == clean.strip()
    assert text_key(f"《Ａｂ，{clean}》x") == text_key(f"ab {clean}x！".strip()) or clean != clean.lower()


def test_keys_differ_for_different_texts() -> None:
    assert len({text_key(t) for t in ("花呗", "借呗", "花 呗贷", "！", "？", "")}) == 6
    assert text_key("花呗，") == text_key("花呗") == text_key(" 花\u3000呗。")


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=8), st.data())
def test_token_rows_take_and_join_like_lists(rows: list[list[int]], data: st.DataObject) -> None:
    made = TokenRows.of(rows)
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    taken = made.take(np.array(picked, dtype=np.int64))
    assert [taken[i].tolist() for i in range(len(taken))] == [rows[p] for p in picked]
    joined = TokenRows.joined([made, taken])
    assert [joined[i].tolist() for i in range(len(joined))] == [*rows, *(rows[p] for p in picked)]


def test_features_are_padded_on_the_right() -> None:
    rows = FeatureRows(TokenRows.of([[1, 2, 3], [4], [5, 6]]), pad_id=9, device=torch.device("cpu"))
    features = rows.features(np.array([2, 1]))
    assert features["input_ids"].tolist() == [[5, 6], [4, 9]]
    assert features["attention_mask"].tolist() == [[1, 1], [1, 0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory is CUDA's")
def test_pinned_batches_hold_the_same_tokens(many: list[PairFile]) -> None:
    batch = batches(many)[0]
    pinned = batch.pin_memory()
    assert torch.from_numpy(pinned.documents.tokens).is_pinned()
    rows = np.arange(3)
    for side in ("queries", "documents"):
        plain, other = (FeatureRows(getattr(one, side), 0, torch.device("cuda")) for one in (batch, pinned))
        assert torch.equal(plain.features(rows)["input_ids"], other.features(rows)["input_ids"])


# ---- batches


@pytest.fixture
def many(tmp_path: Path, load: Load) -> list[PairFile]:
    """Two files; every query of the first has three negatives, of which one is shared by all rows."""
    words = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉戌亥"
    first = [
        {"query": f"问{a}{b}", "positive": f"答{a}{b}", "negatives": ["共同的错", f"错{a}{b}", f"误{a}{b}"]}
        for a in words[:8]
        for b in words
    ]
    second = [{"query": f"另{a}{b}", "positive": f"解{a}{b}"} for a in words[:6] for b in words]
    return load(write_jsonl(tmp_path / "first.jsonl", first), write_jsonl(tmp_path / "second.jsonl", second))


def batches(
    files: list[PairFile], *, world: int = 1, rank: int = 0, mixing: str = "mixed", size: int = 24
) -> StepBatches:
    rows = [file.usable for file in files]
    plan = BatchPlan(training_sources(files, rows), batch=size, steps=30, mixing=mixing, seed=4)  # type: ignore[arg-type]
    return StepBatches(files, rows, plan, steps=30, negatives=2, rank=rank, world=world, seed=4)


def text_of(rows: TokenRows, i: int) -> str:
    return "".join(map(chr, rows[i].tolist()))


@pytest.mark.parametrize("mixing", ["mixed", "one_source"])
def test_a_batch_holds_queries_their_positives_and_their_own_negatives(many: list[PairFile], mixing: str) -> None:
    made = batches(many, mixing=mixing)
    for step in range(6):
        batch = made[step]
        b = len(batch.queries)
        assert b == 24
        for i in range(b):
            assert text_of(batch.documents, i)[1:] == text_of(batch.queries, i)[1:]
            assert batch.query_keys[i] == text_key(text_of(batch.queries, i))
        for j in range(b, len(batch.documents)):
            document, owner = text_of(batch.documents, j), text_of(batch.queries, int(batch.owners[j]))
            assert document == "共同的错" or document[1:] == owner[1:]
            assert batch.document_keys[j] == text_key(document)
        assert batch.owners[:b].tolist() == list(range(b))
        assert np.bincount(batch.owners).max() <= 3


def test_no_document_stands_twice_in_a_batch_over_all_ranks(many: list[PairFile]) -> None:
    for step in range(6):
        parts = [batches(many, world=3, rank=rank)[step] for rank in range(3)]
        keys = np.concatenate([part.document_keys for part in parts])
        assert len(np.unique(keys)) == len(keys)
        assert {len(part.queries) for part in parts} == {8}


def test_the_ranks_share_out_the_batch_of_one(many: list[PairFile]) -> None:
    for step in (0, 7):
        whole = batches(many)[step]
        parts = [batches(many, world=2, rank=rank)[step] for rank in range(2)]
        assert np.concatenate([part.query_keys for part in parts]).tolist() == whole.query_keys.tolist()
        assert sorted(np.concatenate([p.document_keys for p in parts])) == sorted(whole.document_keys)


def test_samplers_and_transforms_plug_in(many: list[PairFile]) -> None:
    class InOrder:
        def batch(self, step: int) -> PlannedBatch:
            return PlannedBatch(np.zeros(4, np.int64), step + np.arange(4))

    def add_shared_document(batch: RankBatch, step: int) -> RankBatch:
        documents = TokenRows.joined([batch.documents, TokenRows.of([[7 + step, 8]])])
        keys = np.append(batch.document_keys, 123)
        return replace(batch, documents=documents, owners=np.append(batch.owners, -1), document_keys=keys)

    rows = [file.usable for file in many]
    transforms = [add_shared_document]
    made = StepBatches(many, rows, InOrder(), steps=6, negatives=0, rank=0, world=1, transforms=transforms)
    assert made[5].rows.rows.tolist() == [5, 6, 7, 8]
    assert made[5].documents[4].tolist() == [12, 8]
    assert made[5].pairs(torch.device("cpu")).owners.tolist() == [0, 1, 2, 3, -1]
    assert np.array_equal(made[5].documents.tokens, made[5].documents.tokens)


def test_the_texts_of_a_batch_can_be_dumped(many: list[PairFile]) -> None:
    made = batches(many)
    batch: RankBatch = made[0]
    texts = made.texts(batch)
    assert [row["query"] for row in texts] == [text_of(batch.queries, i) for i in range(len(batch.queries))]
    assert {row["file"] for row in texts} <= {"first", "second"}


def test_other_known_answers_in_the_batch_are_reported(tmp_path: Path, load: Load) -> None:
    rows = [{"query": "甲", "positive": "一"}, {"query": "甲", "positive": "二"}, {"query": "乙", "positive": "三"}]
    files = load(write_jsonl(tmp_path / "some.jsonl", rows))
    known = KnownPositives(files).among(
        np.array([text_key("乙"), text_key("甲")]), np.array([text_key(t) for t in ("三", "二", "四", "一")])
    )
    assert sorted(map(tuple, known.tolist())) == [(0, 0), (1, 1), (1, 3)]


# ---- the split


def test_the_split_shares_no_query_and_leaks_no_answer(many: list[PairFile], tmp_path: Path, load: Load) -> None:
    turned = [{"query": t["positive"], "positive": t["query"]} for t in pair_texts(many[0], many[0].usable)]
    files = [*many, *load(write_jsonl(tmp_path / "turned.jsonl", turned))]
    split = split_rows(files, ValidationOptions(share=0.2, queries_per_source=10))
    asked = {int(key) for file, rows in zip(files, split.validation, strict=True) for key in file.query_keys[rows]}
    for file, rows in zip(files, split.training, strict=True):
        assert not asked & set(file.query_keys[rows].tolist())
        assert not asked & set(file.positive_keys[rows].tolist())
        assert len(rows)
    assert all(0 < len(set(f.query_keys[r].tolist())) <= 10 for f, r in zip(files, split.validation, strict=True))
    dataset = retrieval_validation(files, split, distractors=20)
    assert dataset is not None
    assert all(document in dataset.corpus for judged in dataset.qrels.values() for document in judged)
    assert len(dataset.queries) == len(dataset.qrels) == len(asked) or len(dataset.queries) >= len(asked)


def test_no_split_means_no_validation(many: list[PairFile]) -> None:
    split = split_rows(many, ValidationOptions(share=0))
    assert retrieval_validation(many, split, 10) is None
    assert [len(rows) for rows in split.training] == [len(file.usable) for file in many]


def test_spearman_equals_the_definition_with_ties() -> None:
    assert spearman(np.array([1, 2, 3, 4]), np.array([10, 20, 30, 40])) == pytest.approx(1)
    assert spearman(np.array([1, 2, 2, 4]), np.array([4, 3, 1, 1])) == pytest.approx(-0.83333, abs=1e-4)
    with pytest.raises(DataError, match="1 pairs"):
        spearman(np.array([1]), np.array([1]))


# ---- vocabularies


def test_vocabularies_do_not_depend_on_the_order_of_texts() -> None:
    texts = ["如何更换花呗绑定的银行卡", "花呗怎么还款", "银行卡丢了怎么办 iPhone 15", "银行卡 花呗 花呗"]
    for learn in (word_tokenizer, character_tokenizer):
        assert learn(texts, 200).to_str() == learn(texts[::-1], 200).to_str()


def test_words_and_all_their_characters_are_in_the_vocabulary() -> None:
    tokenizer = word_tokenizer(["银行卡挂失", "银行卡和花呗", "银行卡"], 100)
    assert "银行卡" in tokenizer.encode("我的银行卡丢了").tokens
    assert tokenizer.encode("失花").tokens == ["失", "花"]
    assert tokenizer.get_vocab_size() <= 100
    with pytest.raises(DataError, match="no text"):
        word_tokenizer([], 100)


def test_a_small_vocabulary_keeps_characters_before_words() -> None:
    tokenizer = word_tokenizer(["银行卡挂失"] * 3, 4)
    assert tokenizer.get_vocab_size() == 4


def test_characters_make_a_bert_vocabulary() -> None:
    tokenizer = character_tokenizer(["银行卡 GPU gpu", "花呗 gpx 12"], 60)
    assert tokenizer.encode("花卡 GPU").tokens == ["[CLS]", "花", "卡", "gpu", "[SEP]"]
    assert tokenizer.encode("gu21").tokens == ["[CLS]", "g", "##u", "##2", "##1", "[SEP]"]
