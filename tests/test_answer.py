"""Answers are sentences of the hits, each with its source, or an honest "not found"."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peg_rag.answer import NOT_FOUND, Answer, extract_answer, sentences_of, subject_of
from peg_rag.errors import InvalidInput
from peg_rag.hits import Hit


def hit(text: str, **metadata: Any) -> Hit:
    return Hit(id=text[:8], text=text, score=1.0, metadata=metadata)


BANK = hit("花呗可以绑定银行卡。逾期要还款。")
MONEY = hit("理财有风险。借款按天计息。")


def test_sentences_are_cut_where_chinese_ends_them() -> None:
    text = "第一句。“第二句！”第三句？不过……第五句没有结尾"
    assert [s for _, s in sentences_of(text)] == ["第一句。", "“第二句！”", "第三句？", "不过……", "第五句没有结尾"]


def test_a_long_enumeration_is_cut_at_its_semicolons() -> None:
    fields = [f"第{i}项：" + "很长的内容" * 6 + "；" for i in range(5)]
    assert [s for _, s in sentences_of("".join(fields))] == fields


def test_the_items_of_a_list_stay_together() -> None:
    text = "需要：\n1. 发票原件\n2. 审批单\n\n另见附件。"
    assert [s for _, s in sentences_of(text)] == ["需要：\n1. 发票原件\n2. 审批单", "另见附件。"]


def test_a_heading_stays_with_the_first_sentence_under_it() -> None:
    text = "# 一、总则\n\n第二章 退货期限\n收货后三十天内可退。逾期不退。\n附则"
    expected = ["# 一、总则", "第二章 退货期限\n收货后三十天内可退。", "逾期不退。", "附则"]
    assert [s for _, s in sentences_of(text)] == expected
    lines = "营业时间 9:00-17:00\n苹果\n香蕉\n地址：北京"  # a line that says something is no heading
    assert [s for _, s in sentences_of(lines)] == ["营业时间 9:00-17:00", "苹果", "香蕉\n地址：北京"]
    assert [s for _, s in sentences_of("Returns\nThirty days. No more.")] == ["Returns\nThirty days. No more."]


@pytest.mark.parametrize("between", ["\n\n", "\n \n", "\r\n\r\n", "\n……\n", "\n- ", "\n" + "；" * 130 + "\n"])
def test_a_heading_is_not_lost_over_what_says_nothing(between: str) -> None:
    text = f"退货期限{between}三十天内可退。"
    assert list(sentences_of(text)) == [(0, text)]


@pytest.mark.parametrize(
    "text", [" " * 100_000 + "1。…", "\u3000" * 100_000, "#" + " " * 100_000 + "。", "第" * 100_000]
)
def test_hostile_text_takes_no_longer_than_its_length(text: str) -> None:
    started = time.process_time()
    list(sentences_of(text))
    assert time.process_time() - started < 10  # of the processor, however busy the machine; a square takes minutes


@given(st.text("报销。！？；…\n 1.、-ab”", max_size=200))
def test_every_sentence_stands_where_it_is_said_to_stand(text: str) -> None:
    for start, sentence in sentences_of(text):
        assert text[start : start + len(sentence)] == sentence
        assert sentence == sentence.strip()


def test_the_best_sentence_comes_with_its_source(letters: Any) -> None:
    answer = extract_answer("花呗怎么绑定银行卡？", [MONEY, BANK], letters, threshold=0, max_sentences=1)
    [sentence] = answer.sentences
    assert sentence.text == "花呗可以绑定银行卡。"
    assert BANK.text[sentence.start :].startswith(sentence.text)
    assert answer.sources == (BANK,)
    assert answer.text == "花呗可以绑定银行卡。[1]"
    assert answer.found


def test_sentences_that_say_the_same_are_quoted_once(letters: Any) -> None:
    hits = [hit("花呗可以绑定银行卡。"), hit("花呗可以绑定银行卡了。"), hit("银行卡绑定花呗即可。")]
    answer = extract_answer("花呗绑定银行卡", hits, letters, threshold=0)
    assert [s.text for s in answer.sentences] == ["花呗可以绑定银行卡。", "银行卡绑定花呗即可。"]
    assert [s.citation for s in answer.sentences] == [1, 2]
    assert answer.sources == (hits[0], hits[2])


def test_a_sentence_is_read_under_its_heading(letters: Any) -> None:
    hits = [hit("还款 > 逾期\n三天以内。", title="还款 > 逾期"), hit("理财\n七天以内。", title="理财")]
    answer = extract_answer("逾期还款", hits, letters, threshold=0, max_sentences=1)
    assert answer.text == "三天以内。[1]"
    assert hits[0].text[answer.sentences[0].start :] == "三天以内。"


@pytest.mark.parametrize("hits", [[], [hit("……！")], [hit("")]])
def test_nothing_to_read_is_not_found(hits: list[Hit], letters: Any) -> None:
    answer = extract_answer("花呗", hits, letters, threshold=0)
    assert answer == Answer("花呗", (), (), 0.0)
    assert answer.text == NOT_FOUND


def test_below_the_threshold_nothing_is_said(letters: Any) -> None:
    sure = extract_answer("花呗绑定银行卡", [BANK], letters, threshold=0)
    unsure = extract_answer("花呗绑定银行卡", [MONEY], letters, threshold=0)
    assert sure.confidence > unsure.confidence
    between = (sure.confidence + unsure.confidence) / 2
    assert extract_answer("花呗绑定银行卡", [BANK], letters, threshold=between).found
    assert not extract_answer("花呗绑定银行卡", [MONEY], letters, threshold=between).found


def test_only_the_first_hits_are_read(letters: Any) -> None:
    assert "银行卡" not in extract_answer("花呗绑定银行卡", [MONEY, BANK], letters, threshold=0, max_hits=1).text


@pytest.mark.parametrize(
    "wrong", [{"question": " "}, {"threshold": 1.5}, {"threshold": float("nan")}, {"max_sentences": 0}]
)
def test_bad_arguments_are_refused(wrong: dict[str, Any], letters: Any) -> None:
    arguments = {"question": "花呗", "hits": [BANK], "encoder": letters} | wrong
    with pytest.raises(InvalidInput, match="expected a question"):
        extract_answer(**arguments)


@pytest.mark.parametrize(
    ("question", "subject"),
    [("报销需要哪些材料？", "报销需要 材料？"), ("什么是什么", "什么是什么"), ("what is the", "what is the")],
)
def test_the_subject_is_the_question_without_asking(question: str, subject: str) -> None:
    assert subject_of(question) == subject


def test_confidence_is_between_0_and_1_for_any_vectors() -> None:
    class Wild:
        def encode_queries(self, texts: Any, *, show_progress: bool = False) -> np.ndarray:
            return np.full((len(texts), 2), 1e3, dtype=np.float32)

        def encode_documents(self, texts: Any, *, show_progress: bool = False) -> np.ndarray:
            return np.full((len(texts), 2), -1e3, dtype=np.float32)

    assert 0 <= extract_answer("花呗", [BANK], Wild(), threshold=0).confidence <= 1
